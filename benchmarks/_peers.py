"""Published laws of a run's curve, as peers of isoflop's forecast: the momentum law and the Multi-Power Law."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from isoflop.forecast import LrPlan, path
from isoflop.forecast.backtest import ESTIMATORS, EXPONENTS, Baseline, fit_separable

Array = NDArray[np.float64]
STARTS = [(a, c, g) for a in (0.3, 0.6) for c in (0.05, 0.5, 2.0) for g in (0.3, 0.7)]


class MomentumLaw(Baseline):
    """Tissue et al. 2024 (arXiv:2408.11029): L0 + A·S1^−α − C·S2, S2 the momentum of the rate's falls.

    The rate is over its peak. The paper sets the momentum's decay λ by hand, .99 to .999; here the best of three.
    """

    name = "momentum-law"
    decays: ClassVar[tuple[float, ...]] = (0.99, 0.995, 0.999)

    def _predict(self, steps: Array, loss: Array, count: Array, plan: LrPlan, target: float) -> tuple[float, float]:
        everywhere = np.append(steps, target)
        road = path(plan, plan.warmup_steps, float(max(plan.total_steps, target)))
        nodes, shape = road.nodes[road.first :], road.shape[road.first :]
        x = road.x(everywhere)
        x = x / x[0]
        results = []
        for decay in self.decays:
            fall = np.zeros(len(everywhere))
            if len(nodes) > 1:
                lag = np.maximum(everywhere[:, None] - (nodes[1:] + nodes[:-1]) / 2, 0)
                fall = (1 - decay**lag) @ -np.diff(shape)

            def columns(exponent: float, fall: Array = fall) -> Array:
                return np.column_stack([np.ones(len(x)), x**-exponent, -fall])

            results.append(fit_separable(columns, loss, count, EXPONENTS))
        return min(results)[1:]


class MultiPowerLaw(Baseline):
    """L0 + A·S1^−α − B·Σ_k (η_{k−1} − η_k)·G(η_k^−γ·S_k), G(x) = 1 − (1 + C·x)^−β, S_k = Σ_{i≥k} η_i (eq. 1, 2).

    The rate is over its peak; Huber's loss from several starts, as the paper fits it. Some seconds a fit.
    """

    name = "multi-power-law"

    def _predict(self, steps: Array, loss: Array, count: Array, plan: LrPlan, target: float) -> tuple[float, float]:
        road = path(plan, plan.warmup_steps, float(max(plan.total_steps, target)))
        shape, effective = road.shape[road.first :], road.effective[road.first :]
        everywhere = np.append(steps, target)
        x = road.x(everywhere)
        scale = x[-2]
        drops = -np.diff(shape) if len(shape) > 1 else np.zeros(0)
        lag = np.maximum(x[:, None] - (effective[1:] + effective[:-1]) / 2, 0)
        after = np.maximum(shape[1:], 1e-4)
        decays = bool(np.any(drops != 0))

        def curve(p: Array) -> Array:
            out: Array = p[0] + math.exp(p[1]) * (x / scale) ** -math.exp(p[2])
            if decays:
                gain = 1 - (1 + math.exp(p[4]) * lag / 100 * after ** -p[6]) ** -math.exp(p[5])
                out = out - math.exp(p[3]) * (gain @ drops)
            return out

        weight = np.sqrt(count / count.mean())
        low = np.array([0, -9, -4, -7, -9, -3, 0.0])
        high = np.array([12, 4, 1.2, 3, 9, 2, 2.0])
        best = None
        for alpha, rate, gamma in STARTS:
            start = np.array(
                [loss.min() - 0.3, math.log(0.3), math.log(alpha), math.log(0.2), math.log(rate), math.log(0.5), gamma]
            )
            fit = least_squares(
                lambda p: (np.log(np.maximum(curve(p)[:-1], 1e-3)) - np.log(loss)) * weight,
                np.clip(start, low + 1e-3, high - 1e-3),
                bounds=(low, high),
                loss="huber",
                f_scale=1e-3,
                max_nfev=400,
            )
            if best is None or fit.cost < best.cost:
                best = fit
        assert best is not None
        at = curve(best.x)
        moved = np.array([(curve(best.x + 1e-4 * unit) - at) / 1e-4 for unit in np.eye(7)]).T
        residual = (loss - at[:-1]) * weight
        noise = float(residual @ residual) / max(len(loss) - (7 if decays else 3), 1)
        X = moved[:-1] * weight[:, None]
        variance = float(moved[-1] @ np.linalg.pinv(X.T @ X, rcond=1e-10) @ moved[-1]) * noise
        return float(at[-1]), math.sqrt(max(variance, 1e-12))


ESTIMATORS.update({kind.name: kind for kind in (MomentumLaw, MultiPowerLaw)})
