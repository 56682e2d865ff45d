"""How sure a fit is: draws of its constants, influence of single runs, what the runs do not tell.

Draws are from a bootstrap, or of a density: from where it is highest (damped least squares) by importance sampling that
learns its shape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np

from isoflop.arrays import Array
from isoflop.fit.prior import LEAST_NOISE, typical_size
from isoflop.fit.problem import PowerSum
from isoflop.fit.search import BOUNDS, HIGHEST, LOWEST, Objective, Optimum, minimise

MANY = 5000
"""Runs from which on draws come from the asymptotic normal distribution: a bootstrap's cost is runs × draws."""
CHUNK = 15_000
"""Runs × resamples solved side by side: what fits into a processor's cache."""
FARTHEST = 345.0
"""Draws of the logarithm of a constant run off where nothing holds them: so far that exp and its square have values."""
Progress = Callable[[float], None]
"""Told what share of a fit is done, 0 to 1."""


def nothing(share: float) -> None:
    """Progress that nobody looks at."""


def draw(best: Optimum, draws: int, seed: int, progress: Progress = nothing) -> Array:
    """θ drawn from its uncertainty [draws, free].

    Runs are drawn anew, all residuals with their runs (noise that depends on N stays with it). The resamples are
    weights on the same design, and each fit begins at the optimum. Where residuals lie within δ the fit is one of
    squares, and multinomial weights (Efron 1979) give intervals that cover what they claim, once widened a little for
    the constants that the residuals were fitted with. Where they lie beyond, the fit is in effect a median, for which
    those spread too far on a few dozen runs (90% intervals covered 95–98% in our simulations); exponential weights
    (Rubin 1981) do not. So each takes its share of the draws (`tests/test_fit_coverage.py` measures the result).

    Priors are drawn anew like runs: each draw has means of its own, as far off as the priors are uncertain. Of a linear
    law this gives the posterior itself.
    """
    objective, theta = best.objective, best.theta
    weights, asked, prior = objective.weights, objective.delta, objective.prior
    n = len(weights)
    residuals = objective.problem.residuals(theta[None])[0]
    spread = typical_size(residuals)
    if n > MANY:
        return _asymptotic(best, max(asked, 0.1 * spread), draws, seed)
    # a δ far below the noise makes a median, whose resamples stick to single runs and are all kinks for Newton: it is
    # smoothed by a share of the noise that falls with n, as kernels for quantiles are
    delta = max(asked, spread * n ** (-1 / 3))
    if prior is not None:
        prior = prior.weighed(best.noise, delta, weights)
    smooth = Objective(objective.problem, weights, delta, prior)
    centre = minimise(smooth, theta[None], widest=0.0, tolerance=1e-12)[0][0] if delta > asked else theta
    # of its own, so that the runs drawn are the same with a prior and without
    means = None if prior is None else prior.drawn(np.random.default_rng([seed, 1]), draws)
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
        mine = None if prior is None or means is None else replace(prior, mean=means[first:last])
        start = np.repeat(centre[None], last - first, axis=0)
        resampled = replace(smooth, weights=drawn * weights, prior=mine)
        found[first:last], _ = minimise(resampled, start, widest=0.0, tolerance=1e-9)
        progress(last / draws)
    found -= centre
    found[:counted] *= (n / max(n - best.constants, 1)) ** 0.25
    return np.clip(theta + found, -FARTHEST, FARTHEST)


def _asymptotic(best: Optimum, delta: float, draws: int, seed: int) -> Array:
    """Normal draws with the sandwich covariance of an M-estimator (Huber 1967)."""
    objective, theta, weights = best.objective, best.theta, best.objective.weights
    state = objective.problem.state(theta[None])
    residuals, slope = state[0][0], objective.problem.slope(state)
    width = max(delta, 1.06 * typical_size(residuals) * len(residuals) ** -0.2)
    # E ψ′: the share within δ, from a window wide enough to hold many residuals
    within = float(np.mean(np.abs(residuals) < width)) * min(1.0, delta / width)
    pulled = slope * (weights * np.clip(residuals, -delta, delta))[:, None]
    curve, varies = (slope * weights[:, None]).T @ slope * within, pulled.T @ pulled
    if objective.prior is not None:
        prior = objective.prior.weighed(best.noise, delta, weights)
        known = prior.as_runs(theta).T @ prior.as_runs(theta)
        curve, varies = curve + prior.scale * known, varies + prior.scale**2 * known
    bread = np.linalg.pinv(curve)
    return np.random.default_rng(seed).multivariate_normal(theta, bread @ varies @ bread, size=draws, method="svd")


def influence(best: Optimum, drawn: Array) -> Array:
    """Change of each free constant [n, free], in standard deviations of the draws, when a run is left out."""
    weights, theta = best.objective.weights, best.theta
    n, rows = len(weights), max(1, CHUNK // len(weights))
    moved = np.empty((n, len(theta)))
    for first in range(0, n, rows):
        out = np.arange(first, min(n, first + rows))
        left = np.repeat(weights[None], len(out), axis=0)
        left[np.arange(len(out)), out] = 0
        start = np.repeat(theta[None], len(out), axis=0)
        moved[out], _ = minimise(replace(best.objective, weights=left), start, widest=0.0, tolerance=1e-10)
    return (moved - theta) / np.maximum(drawn.std(axis=0), 1e-300)


# -- what the runs do not tell -----------------------------------------------------------------------------------------

FEW = 3
"""Runs beyond the number of constants below which nothing is said about their noise."""
RESTS = 0.9
"""Standard deviation after the runs over that before them from which on a constant rests on its prior."""
SINGULAR = 1e-6
"""Of the largest singular value of the law's slopes, each scaled to 1: a direction below it is flat."""
VAGUE, STUCK = 0.5, 0.4
"""Linear standard error of an exponent over its value, or of ln of a coefficient, beyond which it is open; and least
share of it that draws must reach, else they have not left the flat valley's floor where they began."""
LARGE = 0.6
"""An exponent above it counts as this: it came out high because it is open (published ones are below .8)."""
LOOSE, BEYOND = 2.0, 10.0
"""Of a law that is no sum of powers: linear standard error of a constant's logarithm, and a factor beyond where it is
looked for, from which on it is open: the draws of one that changes no loss (R_N* at infinity) stay where they began."""
ON_A_LINE = 0.02
"""Standard deviation of ln D about its line on ln N below which all runs lie on one."""
EXPONENT_SPAN, COEFFICIENT_SPAN, SPAN = 4.0, 1e4, 100.0
"""Highest over lowest of 90% of the draws from which on an exponent is not identified; a coefficient, which goes with
its exponent; a constant of a law that is no sum of powers."""


class Gap(Enum):
    """Reasons why runs leave constants open, to be completed by the names and numbers of an `Unknown`."""

    FEW = (
        "{runs:.0f} run{s} for {constants:.2g} constants{beside}: the residuals do not show the noise, so no interval "
        "is to be trusted"
    )
    SIZES = "not identified: {names}: the runs' sizes leave it open"
    ALIKE = "not identified: {names}: the runs are too much alike in size, or too noisy"
    LINE = (
        "not identified: {names}: {other} goes with {one} in all runs (about {ratio:.3g} × {one}): which of them "
        "lowers the loss is open"
    )
    SPAN = "{names} is not identified: 90% of its draws run from {low:.2g} to {high:.2g}"
    ZERO = "{names} can't be distinguished from 0: the runs do not show where the loss levels off"
    COUPLED = "{names} is not identified by itself: its draws run from {low:.2g} to {high:.2g}, with its exponent"
    PRIOR = "{names} is determined by its prior ({label} = {mean:.4g} ± {sd:.3g}): the runs add next to nothing"


@dataclass(frozen=True)
class Unknown:
    """Constants that runs do not tell, why, and the numbers behind it; `str()` says it.

    `closed`: nothing can be said of their intervals.
    """

    gap: Gap
    names: tuple[str, ...]
    closed: bool = True
    numbers: Mapping[str, float | str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.gap.value.format(names=", ".join(self.names), **self.numbers)


def too_few(n: int, constants: float) -> bool:
    """Whether residuals say anything of the noise. With as many constants as runs they are rounding errors."""
    return n < constants + FEW - 0.05


def unknown(best: Optimum, drawn: Array) -> list[Unknown]:
    """What the runs do not tell of a law: constants without an interval, and those that rest on others or a prior."""
    problem, prior = best.objective.problem, best.objective.prior
    n, free = len(problem.log_loss), problem.free_names
    held = () if prior is None else prior.names
    found = []
    if too_few(n, best.constants):
        beside = "" if best.constants > len(free) - 0.05 else " without a prior"
        numbers = {"runs": n, "s": "s" if n > 1 else "", "constants": best.constants, "beside": beside}
        found.append(Unknown(Gap.FEW, free, True, numbers))
    reasons = {name: why for name, why in _undetermined(best, drawn).items() if name not in held}
    every = list(reasons.values())
    for i, (gap, numbers) in enumerate(every):
        if (gap, numbers) not in every[:i]:
            mine = tuple(name for name in reasons if reasons[name] == (gap, numbers))
            found.append(Unknown(gap, mine, True, numbers))
    values, least_loss = problem.constants(drawn), float(np.exp(problem.log_loss.min()))
    sums = isinstance(problem, PowerSum)
    for i in problem.free:
        name, (low, high) = problem.names[i], np.quantile(values[:, i], [0.05, 0.95])
        span, numbers = high / max(low, 1e-300), {"low": low, "high": high}
        if name in reasons or name in held:
            continue
        if problem.is_exponent[i] or not sums:
            if span > (EXPONENT_SPAN if problem.is_exponent[i] else SPAN):
                found.append(Unknown(Gap.SPAN, (name,), not sums, numbers))
        elif isinstance(problem, PowerSum) and problem.slopes[i] < 0 and low < 0.01 * least_loss:
            found.append(Unknown(Gap.ZERO, (name,), False))
        elif span > COEFFICIENT_SPAN:
            found.append(Unknown(Gap.COUPLED, (name,), False, numbers))
    if prior is not None:
        rests = prior.values(drawn)[0].std(axis=0) > RESTS * prior.sd
        for i in np.flatnonzero(rests).tolist():
            numbers = {"label": prior.labels[i], "mean": prior.mean[i], "sd": prior.sd[i]}
            found.append(Unknown(Gap.PRIOR, (held[i],), False, numbers))
    return found


Reason = tuple[Gap, dict[str, float | str]]


def _undetermined(best: Optimum, drawn: Array) -> dict[str, Reason]:
    """Constants that the runs leave open, and why, by name (coefficients with their exponents).

    One size of model or nearly, a single line D = k·N, fewer distinct runs than constants: draws that start from one
    optimum in a long flat valley stay near it, and would make narrow intervals of nothing.
    """
    problem, prior, theta = best.objective.problem, best.objective.prior, best.theta
    free, is_exponent = problem.free_names, problem.is_exponent[problem.free]
    sizes: Reason = (Gap.SIZES, {})
    alike: Reason = (Gap.ALIKE, {})
    flat, errors = _linear_errors(best)
    said = {free[i]: sizes for i in np.flatnonzero(flat)}
    if not isinstance(problem, PowerSum):  # θ are logarithms
        for name, value, error in zip(free, np.exp(theta), errors, strict=True):
            low, high = BOUNDS[name.partition("[")[0]]
            if error > LOOSE or not low / BEYOND < value < high * BEYOND:
                said.setdefault(name, sizes)
        return said
    size = np.where(is_exponent, np.minimum(np.abs(theta), LARGE), 1)
    edge = is_exponent & ((theta < LOWEST * 1.05) | (theta > HIGHEST * 0.95))
    stuck = (drawn.std(axis=0) < STUCK * errors) & (errors > 1e-6)
    for i in np.flatnonzero((errors > VAGUE * size) | stuck | edge):
        said.setdefault(free[i], alike)
    # a term whose exponent is open takes any part of what the others leave, from the constant too
    if any(name in said for name, exponent in zip(free, is_exponent, strict=True) if exponent):
        for i in problem.free[(problem.slopes[problem.free] < 0) & ~is_exponent]:
            said.setdefault(problem.names[i], alike)
    held = () if prior is None else prior.names
    for columns, line in _on_a_line(problem):
        indices = np.unique(np.concatenate([problem.coefficient[:, columns], problem.exponent[:, columns]]))
        if not {problem.names[i] for i in indices if problem.is_exponent[i]} <= {*held}:
            said |= {problem.names[i]: line for i in indices if problem.names[i] in free}
    for i in problem.free[~is_exponent]:
        slopes = {problem.names[e] for e in problem.exponent[problem.coefficient == i].tolist() if e >= 0}
        for name in slopes & set(said):
            said.setdefault(problem.names[i], said[name])
    return said


def _linear_errors(best: Optimum) -> tuple[Array, Array]:
    """Which constants a flat direction moves, and standard errors of a linear fit with the noise of these residuals."""
    theta, problem, prior = best.theta, best.objective.problem, best.objective.prior
    state = problem.state(theta[None])
    slope = problem.slope(state)
    n = len(slope)
    spread = typical_size(state[0][0]) * np.sqrt(n / max(n - best.constants, 1))
    if prior is not None:  # beside the runs, as runs of the same noise
        slope = np.concatenate([slope, max(spread, LEAST_NOISE) * prior.as_runs(theta)])
    norms = np.linalg.norm(slope, axis=0)
    nothing = ~(norms > 1e-12 * max(norms.max(), 1e-12))
    lengths = np.where(nothing, np.inf, norms)
    _, singular, directions = np.linalg.svd(slope / lengths, full_matrices=len(slope) < len(theta))
    singular = np.append(singular, np.zeros(len(theta) - len(singular)))
    least = SINGULAR * max(singular.max(), 1e-300)
    flat = (np.abs(directions[singular < least]) > 0.05).any(axis=0) | nothing
    scaled = directions / np.maximum(singular, least)[:, None] / lengths
    return flat, spread * np.linalg.norm(scaled, axis=0)


def _on_a_line(problem: PowerSum) -> list[tuple[list[int], Reason]]:
    """Pairs of terms whose variables go with each other in all runs."""
    found: list[tuple[list[int], Reason]] = []
    columns = {term.variable: k for k, term in enumerate(problem.terms) if term.variable}
    for one, other in itertools.combinations(columns, 2):
        x, y = problem.logs[:, columns[one]], problem.logs[:, columns[other]]
        if not (np.ptp(x) > 0 and np.ptp(y) > 0):
            continue
        if np.std(y - np.polyval(np.polyfit(x - x.mean(), y, 1), x - x.mean())) < ON_A_LINE:
            ratio = float(np.exp(np.median(y - x)))
            found.append(([columns[one], columns[other]], (Gap.LINE, {"one": one, "other": other, "ratio": ratio})))
    return found


ROUND, EARLY, LATE = 500, 6, 1500
"""Points of each of the first rounds, how many these are, and points of later ones, which know the density's shape."""
EFFECTIVE, MOST_POINTS = 1000, 15_000
"""Independent draws that the weights are worth, from which on no further round is needed; points at most."""
TAILS, WIDE = 5.0, 1.25
"""Degrees of freedom of the Student's t that points are from, and its covariance over the density's as known so far. By
8 and 1 the tail of a funnel came out short, by 8% of its standard deviation; with these by 1%."""
FEWEST_EFFECTIVE = 80
"""Draws that weights have to be worth for the next round's shape; else they are drawn nearer together."""


def least_squares(
    residuals: Callable[[Array], Array], jacobian: Callable[[Array], Array], at: Array, robust: bool
) -> Array:
    """Where Σr² is least, of `robust` Σ8·(√(1 + r²/4) − 1), by Levenberg and Marquardt's method from a point `at`.

    `jacobian` is of r [n] by the first k entries of a point [n, k]: these are returned, the others stay.
    """

    def cost(r: Array) -> float:
        return float((8 * (np.sqrt(1 + r * r / 4) - 1) if robust else r * r).sum())

    damping, r = 1e-3, residuals(at)
    for _ in range(100):
        rows, weights = jacobian(at), 1 / np.sqrt(1 + r * r / 4) if robust else np.ones(len(r))
        normal, pull = rows.T @ (weights[:, None] * rows), rows.T @ (weights * r)
        while True:
            step = -np.linalg.solve(normal + damping * np.diag(np.diag(normal)), pull)
            tried = np.append(at[: len(step)] + np.clip(step, -2, 2), at[len(step) :])
            with np.errstate(over="ignore", invalid="ignore"):
                new = residuals(tried)
                gain = cost(r) - cost(new)
            if gain > 0 or damping > 1e8:
                break
            damping *= 6
        if not gain > 0:
            break
        at, r, damping = tried, new, max(damping / 5, 1e-12)
        if gain < 1e-9 * (1 + cost(r)):
            break
    return np.asarray(at[: rows.shape[1]])


def importance(
    log_density: Callable[[Array], Array], starts: Sequence[tuple[Array, Array]], rng: np.random.Generator
) -> tuple[Array, Array]:
    """Points and weights of a density by adaptive importance sampling (Cornuet et al. 2012).

    Each round's points are from a Student's t, somewhat wider than the density by all points so far. A point's weight
    is its density over that of the mixture of all rounds: those of early rounds, which knew the shape badly, count
    little.

    Args:
        log_density: of points [n, d], but for a constant [n].
        starts: mean [d] and root of the covariance [d, d] of each Student's t of the first round.
        rng: of the points.

    Returns:
        Points [n, d] and their weights [n], whose sum is 1.
    """
    d, mixed = len(starts[0][0]), np.full(0, -np.inf)
    points, value, proposals = np.empty((0, d)), np.empty(0), list[tuple[Array, Array, int]]()
    fresh = [(mean, root, ROUND // len(starts)) for mean, root in starts]
    for done in itertools.count(1):
        z = [rng.standard_normal((count, d)) / np.sqrt(rng.chisquare(TAILS, (count, 1)) / TAILS) for *_, count in fresh]
        new = np.concatenate([mean + each @ root.T for each, (mean, root, _) in zip(z, fresh, strict=True)])
        proposals += fresh
        mixed = np.append(_mixed(mixed, points, fresh), _mixed(np.full(len(new), -np.inf), new, proposals))
        points, value = np.concatenate([points, new]), np.append(value, log_density(new))
        log_weights = value - mixed
        log_weights -= log_weights.max()
        weights = np.exp(log_weights)
        if _effective(weights) >= EFFECTIVE or len(points) >= MOST_POINTS:
            return points, weights / weights.sum()
        flat, least = 1.0, min(FEWEST_EFFECTIVE, np.isfinite(value).sum() // 2)
        while _effective(weights) < least:
            weights = np.exp((flat := 0.85 * flat) * log_weights)
        weights /= weights.sum()
        mean = weights @ points
        covariance = WIDE * (points - mean).T @ (weights[:, None] * (points - mean))
        root = np.linalg.cholesky(covariance + 1e-15 * np.eye(d))
        fresh = [(mean, root, ROUND if done < EARLY else LATE)]
    raise AssertionError("unreachable")


def _effective(weights: Array) -> float:
    """Independent draws that weights [n] are worth (Kish)."""
    return float(weights.sum() ** 2 / (weights @ weights))


def _mixed(mixed: Array, points: Array, proposals: Sequence[tuple[Array, Array, int]]) -> Array:
    """Ln of a density of points [n], but for a constant, with Student's t of mean, root and count added to it [n]."""
    d = points.shape[1]
    for mean, root, count in proposals:
        squares = (np.linalg.solve(root, (points - mean).T) ** 2).sum(axis=0)
        log_t = -(TAILS + d) / 2 * np.log1p(squares / TAILS) - np.log(np.diag(root)).sum()
        mixed = np.logaddexp(mixed, math.log(count) + log_t)
    return mixed


def evenly(weights: Array, count: int) -> Array:
    """Which points [n] stand for those of these weights: `count` of them, each as often as its weight says."""
    summed = np.cumsum(weights)
    return np.searchsorted(summed / summed[-1], (np.arange(count) + 0.5) / count).clip(max=len(weights) - 1)


def log_of_one_and(value: Array) -> None:
    """Ln(1 + e^value) in place."""
    np.exp(value, out=value)
    value += 1
    np.log(value, out=value)
