"""Fit a law that is no sum of powers (Muennighoff's with repeated data, Kaplan's L(N,D)): slower, by its values alone.

Constants are searched in logarithms between plausible bounds: a grid or a Sobol sequence sees the basins, the best few
that lie apart are polished (L-BFGS-B, then Nelder & Mead's simplex, which needs no derivative at Huber's kinks).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.stats import qmc

from isoflop.fit.law import Form
from isoflop.fit.newton import Array, huber

BOUNDS: dict[str, tuple[float, float]] = {
    "E": (1e-2, 10.0),
    "A": (1.0, 1e6),
    "B": (1.0, 1e6),
    "alpha": (0.02, 3.0),
    "beta": (0.02, 3.0),
    "N_c": (1e6, 1e18),
    "D_c": (1e6, 1e18),
    "S_c": (1.0, 1e8),
    "alpha_N": (0.01, 1.0),
    "alpha_D": (0.01, 1.0),
    "alpha_S": (0.05, 3.0),
    "R_D_star": (0.1, 1e4),
    "R_N_star": (0.1, 1e4),
}
"""Where a constant is looked for."""
_DRAWS = 4096


@dataclass(frozen=True)
class Values:
    """A law over some runs, as a function of the logarithms of its free constants."""

    form: Form
    variables: Mapping[str, Array]
    log_loss: Array
    fixed: Mapping[str, float]

    @property
    def free(self) -> tuple[str, ...]:
        """Constants that are fitted."""
        return tuple(name for name in self.form.constants if name not in self.fixed)

    def residuals(self, theta: Array) -> Array:
        """From ln L̂ − ln L at θ [free], ∞ where the law has no value."""
        constants = {**self.fixed, **dict(zip(self.free, np.exp(theta), strict=True))}
        with np.errstate(all="ignore"):
            loss = self.form.function(*(self.variables[name] for name in self.form.variables), **constants)
            residuals = np.log(loss) - self.log_loss
        return np.where(np.isfinite(residuals), residuals, 1e3)

    def objective(self, theta: Array, weights: Array, delta: float) -> float:
        """Σ w·huber."""
        return float((weights * huber(self.residuals(theta), delta)).sum())


def optima(law: Values, weights: Array, delta: float, keep: int = 8, seed: int = 0) -> list[tuple[Array, float]]:
    """Minima found, the best first: (θ, objective). Others than the first are local, or say that little is identified.

    Raises:
        ValueError: a constant without bounds to look between.
    """
    unknown = [name for name in law.free if name not in BOUNDS]
    if unknown:
        raise ValueError(f"{law.form.name}: {', '.join(unknown)} can't be fitted; hold it with fixed=")
    low, high = (np.log([BOUNDS[name][side] for name in law.free]) for side in (0, 1))
    if len(law.free) <= 2:
        axes = [np.linspace(a, b, 40) for a, b in zip(low, high, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(law.free))
    else:
        points = qmc.scale(qmc.Sobol(len(law.free), seed=seed).random(_DRAWS), low, high)
    values = np.array([law.objective(point, weights, max(delta, 1e-2)) for point in points])
    found: list[tuple[Array, float]] = []
    for start in _apart(points, values, (high - low) / 12, keep):
        theta, value = polish(law, points[start], weights, delta)
        if all(np.abs(theta - other).max() > 1e-3 for other, _ in found):
            found.append((theta, value))
    return sorted(found, key=lambda item: item[1])


def polish(law: Values, theta: Array, weights: Array, delta: float, rounds: int = 4) -> tuple[Array, float]:
    """From θ to the minimum nearby."""
    scale = max(law.objective(theta, weights, delta), 1e-300)

    def value(point: Array) -> float:
        return law.objective(point, weights, delta) / scale

    best = minimize(value, theta, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-12})
    for _ in range(rounds):
        before = best.fun
        tolerances = {"xatol": 1e-8, "fatol": 1e-14, "maxiter": 4000, "maxfev": 4000, "adaptive": True}
        tried = minimize(value, best.x, method="Nelder-Mead", options=tolerances)
        best = tried if tried.fun <= best.fun else best
        if before - best.fun <= 1e-12 * before:
            break
    return best.x, float(best.fun) * scale


def general_draws(law: Values, theta: Array, weights: Array, delta: float, draws: int, seed: int) -> Array:
    """θ of runs drawn anew (pairs bootstrap), each polished from the optimum: [draws, free]."""
    n = len(law.log_loss)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=draws) * weights
    return np.array([polish(law, theta, w, delta, rounds=1)[0] for w in drawn])


def _apart(points: Array, values: Array, distance: Array, keep: int) -> Sequence[int]:
    chosen: list[int] = []
    for i in np.argsort(values):
        if all((np.abs(points[i] - points[j]) > distance).any() for j in chosen):
            chosen.append(int(i))
        if len(chosen) == keep:
            break
    return chosen
