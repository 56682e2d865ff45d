"""How sure a fit is: draws of its constants from a bootstrap, and what the runs do not tell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from isoflop.fit.newton import Array, Problem, minimise
from isoflop.fit.power_sum import PowerSum
from isoflop.fit.search import HIGHEST, LOWEST

FEW = 3
"""Runs beyond the number of constants below which nothing is said about their noise."""
MANY = 5000
"""Runs from which on draws come from the asymptotic normal distribution: a bootstrap's cost is runs × draws."""
_CHUNK = 120_000
"""Runs × resamples solved side by side: what fits into a processor's cache."""


def draw(problem: Problem, theta: Array, weights: Array, delta: float, draws: int, seed: int) -> Array:
    """θ drawn from its uncertainty [draws, parameters].

    Runs are drawn anew, all residuals with their runs (noise that depends on N stays with it). The resamples are
    weights on the same design, and each fit begins at the optimum. Where residuals lie within δ the fit is one of
    squares, and multinomial weights (Efron 1979) give intervals that cover what they claim. Where they lie beyond, it
    is in effect a median, for which those spread too far on a few dozen runs (90% intervals covered 95–98% in our
    simulations); exponential weights (Rubin 1981) do not. So each takes its share of the draws.
    """
    n = len(problem.log_loss)
    residuals = problem.residuals(theta[None])[0]
    # a δ far below the noise makes a median of it, all kinks for Newton: a tenth of the noise is as good
    delta = max(delta, 0.1 * 1.4826 * float(np.median(np.abs(residuals))))
    if n > MANY:
        return _asymptotic(problem, theta, weights, delta, draws, seed)
    (centre,), _ = minimise(problem, theta[None], weights[None], delta, widest=0.0, tolerance=1e-12)
    rng = np.random.default_rng(seed)
    within = float(np.average(np.abs(residuals) < delta, weights=weights))
    counted = round(within * draws)
    found = np.empty((draws, len(theta)))
    rows = max(8, _CHUNK // n)
    for first in range(0, draws, rows):
        last = min(draws, first + rows)
        multinomial = min(max(counted - first, 0), last - first)
        drawn = np.concatenate(
            [
                rng.multinomial(n, np.full(n, 1 / n), size=multinomial).astype(np.float64),
                rng.exponential(size=(last - first - multinomial, n)),
            ]
        )
        start = np.repeat(centre[None], last - first, axis=0)
        found[first:last], _ = minimise(problem, start, drawn * weights, delta, widest=0.0, tolerance=1e-9)
    return found + (theta - centre)


def _asymptotic(problem: Problem, theta: Array, weights: Array, delta: float, draws: int, seed: int) -> Array:
    """Normal draws with the sandwich covariance of an M-estimator (Huber 1967)."""
    (residuals,), (share,) = problem.state(theta[None])
    slope = problem.slope(share)
    spread = 1.4826 * float(np.median(np.abs(residuals)))
    width = max(delta, 1.06 * spread * len(residuals) ** -0.2)
    # E ψ′: the share within δ, from a window wide enough to hold many residuals
    within = float(np.mean(np.abs(residuals) < width)) * min(1.0, delta / width)
    pull = weights * np.clip(residuals, -delta, delta)
    bread = np.linalg.pinv((slope * weights[:, None]).T @ slope * within)
    covariance = bread @ ((slope * pull[:, None]).T @ (slope * pull[:, None])) @ bread
    return np.random.default_rng(seed).multivariate_normal(theta, covariance, size=draws, method="svd")


def intervals(draws: Mapping[str, Array], level: float) -> dict[str, tuple[float, float]]:
    """Percentile intervals by constant."""
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {name: (float(low), float(high)) for name, (low, high) in _quantiles(draws, tails).items()}


def _quantiles(draws: Mapping[str, Array], at: list[float]) -> dict[str, Array]:
    return {name: np.quantile(values, at) for name, values in draws.items()}


def not_identified(
    law: PowerSum, constants: Mapping[str, float], draws: Mapping[str, Array], least_loss: float, n: int
) -> list[str]:
    """What the runs do not tell, in sentences; empty: nothing to say.

    A published fit of 240 runs has its exponents to ±9% and B to a factor of 2.3 each way (Besiroglu et al. 2024).
    """
    said = []
    free = law.free_names
    if n < len(free) + FEW:
        said.append(
            f"{n} runs for {len(free)} constants: the residuals tell nothing about the noise, so no interval is to be "
            "trusted"
        )
    for i in law.free:
        name = law.names[i]
        low, high = np.quantile(draws[name], [0.05, 0.95])
        if law.is_exponent[i]:
            if constants[name] <= LOWEST * 1.05 or constants[name] >= HIGHEST * 0.95:
                said.append(f"{name} = {constants[name]:.3g} is at the edge of what was searched: not identified")
            elif high > 4 * max(low, 1e-12):
                said.append(f"{name} is not identified: 90% of its draws run from {low:.2g} to {high:.2g}")
        elif (law.exponent[law.coefficient == i] < 0).all() and low < 0.01 * least_loss:
            said.append(f"{name} can't be told from 0: the runs do not show where the loss levels off")
        elif high > 1e4 * max(low, 1e-300):
            said.append(
                f"{name} is not identified by itself: its draws run from {low:.2g} to {high:.2g}, with its exponent"
            )
    return said
