"""How sure a fit is: draws of its constants from a bootstrap, and what the runs do not tell."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from isoflop.fit.fitting.newton import Array, Problem, minimise
from isoflop.fit.fitting.power_sum import PowerSum
from isoflop.fit.fitting.search import HIGHEST, LOWEST

FEW = 3
"""Runs beyond the number of constants below which nothing is said about their noise."""
MANY = 5000
"""Runs from which on draws come from the asymptotic normal distribution: a bootstrap's cost is runs × draws."""
SINGULAR = 1e-6
"""Of the largest singular value of the law's slopes, each scaled to 1: a direction below it is flat."""
VAGUE, STUCK = 0.5, 0.4
"""Linear standard error of an exponent over its value, or of ln of a coefficient, beyond which it is open; and least
share of it that draws must reach, else they have not left the flat valley's floor where they began."""
LARGE = 0.6
"""An exponent above it counts as this: it came out high because it is open (published ones are below .8)."""
ALIKE = "the runs are too much alike in size, or too noisy"
ON_A_LINE = 0.02
"""Standard deviation of ln D about its line on ln N below which all runs lie on one."""
CHUNK = 120_000
"""Runs × resamples solved side by side: what fits into a processor's cache."""


def draw(problem: Problem, theta: Array, weights: Array, delta: float, draws: int, seed: int) -> Array:
    """θ drawn from its uncertainty [draws, parameters].

    Runs are drawn anew, all residuals with their runs (noise that depends on N stays with it). The resamples are
    weights on the same design, and each fit begins at the optimum. Where residuals lie within δ the fit is one of
    squares, and multinomial weights (Efron 1979) give intervals that cover what they claim, once widened a little for
    the constants that the residuals were fitted with. Where they lie beyond, the fit is in effect a median, for which
    those spread too far on a few dozen runs (90% intervals covered 95–98% in our simulations); exponential weights
    (Rubin 1981) do not. So each takes its share of the draws (`tests/test_fit_coverage.py` measures the result).
    """
    n = len(problem.log_loss)
    residuals = problem.residuals(theta[None])[0]
    spread = 1.4826 * float(np.median(np.abs(residuals)))
    if n > MANY:
        return _asymptotic(problem, theta, weights, max(delta, 0.1 * spread), draws, seed)
    # a δ far below the noise makes a median, whose resamples stick to single runs and are all kinks for Newton: it is
    # smoothed by a share of the noise that falls with n, as kernels for quantiles are
    delta = max(delta, spread * n ** (-1 / 3))
    (centre,), _ = minimise(problem, theta[None], weights[None], delta, widest=0.0, tolerance=1e-12)
    rng = np.random.default_rng(seed)
    within = float(np.average(np.abs(residuals) < delta, weights=weights))
    counted = round(within**2 * draws)
    found = np.empty((draws, len(theta)))
    rows = max(8, CHUNK // n)
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
    found -= centre
    found[:counted] *= (n / max(n - len(theta), 1)) ** 0.25
    return theta + found


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


def undetermined(law: PowerSum, problem: Problem, theta: Array, drawn: Array) -> dict[str, str]:
    """Constants that the runs leave open, and why, by name (coefficients with their exponents).

    One size of model or nearly, a single line D = k·N, fewer distinct runs than constants: draws that start from one
    optimum in a long flat valley stay near it, and would make narrow intervals of nothing.
    """
    said: dict[str, str] = {}
    residuals = problem.residuals(theta[None])[0]
    (_,), (share,) = problem.state(theta[None])
    slope = problem.slope(share)
    norms = np.linalg.norm(slope, axis=0)
    lengths = np.where(norms > 1e-12 * norms.max(), norms, np.inf)
    _, singular, directions = np.linalg.svd(slope / lengths, full_matrices=len(slope) < len(theta))
    singular = np.append(singular, np.zeros(len(theta) - len(singular)))
    for direction in directions[singular < SINGULAR * singular.max()]:
        for i in np.flatnonzero(np.abs(direction) > 0.05):
            said[law.free_names[i]] = "the runs' sizes leave it open"
    n, p = slope.shape
    spread = 1.4826 * float(np.median(np.abs(residuals))) * np.sqrt(n / max(n - p, 1))
    scaled = directions / np.maximum(singular, SINGULAR * singular.max())[:, None] / lengths
    errors = spread * np.linalg.norm(scaled, axis=0)
    is_exponent = law.is_exponent[law.free]
    size = np.where(is_exponent, np.minimum(np.abs(theta), LARGE), 1)
    edge = is_exponent & ((theta < LOWEST * 1.05) | (theta > HIGHEST * 0.95))
    stuck = (drawn.std(axis=0) < STUCK * errors) & (errors > 1e-6)
    for i in np.flatnonzero((errors > VAGUE * size) | stuck | edge):
        said.setdefault(law.free_names[i], ALIKE)
    # a term whose exponent is open takes any part of what the others leave, from the constant too
    if any(name in said for name, exponent in zip(law.free_names, is_exponent, strict=True) if exponent):
        for i in law.free:
            if (law.exponent[law.coefficient == i] < 0).all() and not law.is_exponent[i]:
                said.setdefault(law.names[i], ALIKE)
    columns = {term.variable: k for k, term in enumerate(law.terms) if term.variable}
    for one, other in itertools.combinations(columns, 2):
        x, y = law.logs[:, columns[one]], law.logs[:, columns[other]]
        ratio = np.exp(np.median(y - x))
        line = f"{other} goes with {one} in all runs (about {ratio:.3g} × {one}): which of them lowers the loss is open"
        left = np.std(y - np.polyval(np.polyfit(x - x.mean(), y, 1), x - x.mean())) if np.ptp(x) > 0 else np.std(y)
        if left < ON_A_LINE and np.ptp(x) > 0 and np.ptp(y) > 0:
            for k in (columns[one], columns[other]):
                indices = {*law.coefficient[:, k].tolist(), *law.exponent[:, k].tolist()}
                said |= {law.names[i]: line for i in indices if law.names[i] in law.free_names}
    for i in np.flatnonzero(~law.is_exponent):
        slopes = {law.names[e] for e in law.exponent[law.coefficient == i].tolist() if e >= 0}
        for name in slopes & set(said):
            if law.names[i] in law.free_names:
                said.setdefault(law.names[i], said[name])
    return said


def intervals(draws: Mapping[str, Array], level: float) -> dict[str, tuple[float, float]]:
    """Percentile intervals by constant."""
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {name: (float(low), float(high)) for name, (low, high) in _quantiles(draws, tails).items()}


def _quantiles(draws: Mapping[str, Array], at: list[float]) -> dict[str, Array]:
    return {name: np.quantile(values, at) for name, values in draws.items()}


def not_identified(
    law: PowerSum,
    draws: Mapping[str, Array],
    least_loss: float,
    n: int,
    undetermined: Mapping[str, str],
) -> list[str]:
    """What the runs do not tell, in sentences; empty: nothing to say.

    A published fit of 240 runs has its exponents to ±9% and B to a factor of 2.3 each way (Besiroglu et al. 2024).
    """
    said = []
    free = law.free_names
    if n < len(free) + FEW:
        said.append(
            f"{n} run{'s' if n > 1 else ''} for {len(free)} constants: the residuals "
            "tell nothing about the noise, so no interval is to be trusted"
        )
    for reason in dict.fromkeys(undetermined.values()):
        said.append(
            f"not identified: {', '.join(name for name in undetermined if undetermined[name] == reason)}: {reason}"
        )
    for i in law.free:
        name = law.names[i]
        if name in undetermined:
            continue
        low, high = np.quantile(draws[name], [0.05, 0.95])
        if law.is_exponent[i]:
            if high > 4 * max(low, 1e-12):
                said.append(f"{name} is not identified: 90% of its draws run from {low:.2g} to {high:.2g}")
        elif (law.exponent[law.coefficient == i] < 0).all() and low < 0.01 * least_loss:
            said.append(f"{name} can't be told from 0: the runs do not show where the loss levels off")
        elif high > 1e4 * max(low, 1e-300):
            said.append(
                f"{name} is not identified by itself: its draws run from {low:.2g} to {high:.2g}, with its exponent"
            )
    return said
