"""Baselines: forecasts by least squares, without priors; and `ESTIMATORS`, all estimators by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from isoflop.arrays import Array
from isoflop.forecast.forecast import NO_PLAN, Forecast, NoForecast, Refusal, forecast_of
from isoflop.forecast.lr_plan import LrPlan
from isoflop.forecast.online import FEWEST, Estimator, OnlineForecaster

EXPONENTS = np.geomspace(0.1, 2, 80)
"""Exponents of a power law that are tried."""


class Baseline(Estimator):
    """E + A·S^−a in optimizer steps S, fitted to the window after the warm-up; others predict otherwise."""

    exponents = EXPONENTS

    def forecast(self, plan: LrPlan | None, step: int | None = None, level: float = 0.8) -> Forecast | NoForecast:
        """The loss at `step` of `plan` (its end by default), or why there is none."""
        if plan is None:
            return NO_PLAN
        columns = self.columns(plan.warmup_steps)
        steps, losses, count = (columns[name] for name in ("step", "loss", "count"))
        if len(steps) < FEWEST:
            return NoForecast(Refusal.TOO_FEW_POINTS, {"n": len(steps), "needed": FEWEST})
        target = plan.total_steps if step is None else step
        loss, sd = self._predict(steps, losses, count, plan, float(target))
        if not (math.isfinite(loss) and math.isfinite(sd)):
            return NoForecast(Refusal.NO_FIT)
        return forecast_of(loss, sd, level=level, step=target, estimator=self.name, nu=1e6)

    def _predict(self, steps: Array, loss: Array, count: Array, plan: LrPlan, target: float) -> tuple[float, float]:
        """Loss at `target` and its standard error."""
        return self._power_law(np.append(steps, target), loss, count)

    def _power_law(self, x: Array, loss: Array, count: Array) -> tuple[float, float]:
        x = x / x[0]
        return fit_separable(lambda a: np.column_stack([np.ones(len(x)), x**-a]), loss, count, self.exponents)[1:]


class LastValue(Baseline):
    """The loss stays where it is: the mean of the last tenth of an e-fold."""

    name = "last-value"

    def _predict(self, steps: Array, loss: Array, count: Array, plan: LrPlan, target: float) -> tuple[float, float]:
        last = steps >= 0.9 * steps[-1]
        mean = float(np.average(loss[last], weights=count[last]))
        return mean, max(float(np.std(loss[last])) / math.sqrt(last.sum()), 1e-6)


class PowerLaw(Baseline):
    """With a free exponent."""

    name = "power-law"


class Hoffmann(Baseline):
    """E + B·D^−β with Hoffmann et al. 2022's β = .2849; one run has a fixed batch, so S stands for D."""

    name = "hoffmann"
    exponents = np.array([0.2849083])


class Kaplan(Baseline):
    """Kaplan et al. 2020, eq. 1.6 within one run: E + A·S_min^−.76, S_min = S/(1 + B_crit(L)/B).

    B_crit = B*/L^(1/α_B) with B* = 2.1e8 tokens and α_B = .21 (eq. 1.4, 5.3), L the smoothed loss; at the target the
    loss is iterated. Without a known batch S stands for S_min. Kaplan's α_S is of runs with the same schedule.
    """

    name = "kaplan"
    exponents = np.array([0.76])

    def _predict(self, steps: Array, loss: Array, count: Array, plan: LrPlan, target: float) -> tuple[float, float]:
        out = (float(loss[-1]), 0.0)
        smooth = np.polyval(np.polyfit(np.log(steps), loss, 2, w=np.sqrt(count)), np.log(steps))
        for _ in range(8):
            s_min = np.append(steps, target)
            if self.batch_tokens:
                level = np.maximum(np.append(smooth, out[0]), 0.05)  # an iteration may overshoot below 0
                s_min = s_min / (1 + 2.1e8 / level ** (1 / 0.21) / self.batch_tokens)
            out = self._power_law(s_min, loss, count)
        return out


def fit_separable(
    columns: Callable[[float], Array], loss: Array, count: Array, exponents: Array
) -> tuple[float, float, float]:
    """Fit a curve that is linear given one exponent: the exponent by a search, coefficients by least squares, all ≥ 0.

    Args:
        columns: exponent → the design, a row each loss and one more, the target's: shape (losses + 1, coefficients).
        loss: shape (losses,), nats.
        count: raw steps behind each, its weight.
        exponents: those that are tried, ascending.

    Returns:
        Residual sum of squares, loss at the target and its standard error.
    """
    from scipy.optimize import nnls  # slow to import

    weight = np.sqrt(count / count.mean())

    def fit(exponent: float) -> tuple[float, Array, Array]:
        design = columns(exponent)
        beta, norm = nnls(design[:-1] * weight[:, None], loss * weight)
        return float(norm) ** 2 if beta[0] > 0 else math.inf, beta, design  # no limit is no law of a loss

    sums = [fit(exponent)[0] for exponent in exponents]
    best = int(np.argmin(sums))
    exponent = float(exponents[best])
    if 0 < best < len(sums) - 1 and math.isfinite(
        sums[best - 1] + sums[best + 1]
    ):  # the vertex of the parabola through three points
        logs = np.log(exponents[best - 1 : best + 2])
        a, b, _ = np.polyfit(logs - logs[1], sums[best - 1 : best + 2], 2)
        exponent = math.exp(logs[1] - b / (2 * a)) if a > 0 else exponent
    rss, beta, design = fit(exponent)
    jacobian = design[:, beta > 0]
    if len(sums) > 1:
        jacobian = np.column_stack([jacobian, (columns(exponent * 1.001) - design) @ beta / 1e-3])
    X, at = jacobian[:-1] * weight[:, None], jacobian[-1]
    noise = rss / max(len(loss) - X.shape[1], 1)
    variance = float(at @ np.linalg.pinv(X.T @ X) @ at) * noise
    return rss, float(design[-1] @ beta), math.sqrt(max(variance, 1e-12))


ESTIMATORS: dict[str, type[Estimator]] = {
    kind.name: kind for kind in (OnlineForecaster, LastValue, PowerLaw, Kaplan, Hoffmann)
}
"""By name, isoflop's own first; `benchmarks/` adds the published laws that it compares with."""
