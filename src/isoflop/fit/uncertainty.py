"""How sure a fit is: draws of its constants from a bootstrap, influence of single runs, what the runs do not tell."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from isoflop.arrays import Array
from isoflop.fit.newton import Objective, minimise
from isoflop.fit.prior import LEAST_NOISE, typical_size
from isoflop.fit.problem import ByDifferences, PowerSum, Problem
from isoflop.fit.search import HIGHEST, LOWEST, Optimum

MANY = 5000
"""Runs from which on draws come from the asymptotic normal distribution: a bootstrap's cost is runs × draws."""
CHUNK = 60_000
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

    Args:
        best: the optimum.
        draws: how many.
        seed: of the draws.
        progress: told what share is done.
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
ALIKE = "the runs are too much alike in size, or too noisy"
ON_A_LINE = 0.02
"""Standard deviation of ln D about its line on ln N below which all runs lie on one."""
EXPONENT_SPAN, COEFFICIENT_SPAN, SPAN = 4.0, 1e4, 100.0
"""Highest over lowest of 90% of the draws from which on an exponent is not identified; a coefficient, which goes with
its exponent; a constant of a law that is no sum of powers."""
ALIKE_OBJECTIVES = 0.01
"""Relative difference of objectives below which no optimum is preferred. On Muennighoff et al. 2023's 182 runs the
published optimum, at a sixth of the best R_D*, is 0.13% above the best; other draws of the runs move both by ±5%."""
ROUNDING = 1e-6
"""Of ln L: a difference of objectives by residuals that small is none either."""
OTHER = 3.0
"""Factor between two optima's values of a constant from which on they are different answers."""


@dataclass(frozen=True)
class Unknown:
    """What the runs do not tell.

    Attributes:
        constants: of which nothing is known.
        told: in sentences.
    """

    constants: frozenset[str]
    told: tuple[str, ...]


def too_few(n: int, constants: float) -> bool:
    """Whether so many runs, which fit so many constants (a share of one where a prior helps), tell no noise."""
    return n < constants + FEW - 0.5


def unknown(best: Optimum, drawn: Array) -> Unknown:
    """What the runs of a fit do not tell, by its optimum and its draws [draws, free].

    A published fit of 240 runs has its exponents to ±9% and B to a factor of 2.3 each way (Besiroglu et al. 2024).
    """
    problem = best.objective.problem
    n, free = len(problem.log_loss), problem.free_names
    few = too_few(n, best.constants)
    told = []
    if few:
        beside = "" if best.constants > len(free) - 0.05 else " without a prior"
        told.append(
            f"{n} run{'s' if n > 1 else ''} for {best.constants:.2g} constants{beside}: the residuals "
            "do not show the noise, so no interval is to be trusted"
        )
    if isinstance(problem, PowerSum):
        reasons = undetermined(best, problem, drawn)
        for reason in dict.fromkeys(reasons.values()):
            told.append(f"not identified: {', '.join(name for name in reasons if reasons[name] == reason)}: {reason}")
        told += _wide(best, problem, drawn, reasons) + _resting(best, drawn)
        return Unknown(frozenset(free if few else reasons), tuple(told))
    flat, differing = flat_directions(best, drawn), _differing_minima(best, problem)
    values = dict(zip(problem.names, problem.constants(best.theta[None])[0], strict=True))
    told += [f"{name} = {values[name]:.3g} is not identified: {'; '.join(signs)}" for name, signs in flat.items()]
    return Unknown(frozenset(free if few else (*flat, *differing)), (*told, *differing.values()))


def undetermined(best: Optimum, problem: PowerSum, drawn: Array) -> dict[str, str]:
    """Constants that the runs leave open, and why, by name (coefficients with their exponents).

    One size of model or nearly, a single line D = k·N, fewer distinct runs than constants: draws that start from one
    optimum in a long flat valley stay near it, and would make narrow intervals of nothing. What has a prior is closed.
    """
    said: dict[str, str] = {}
    free, is_exponent = problem.free_names, problem.is_exponent[problem.free]
    held = () if best.objective.prior is None else best.objective.prior.names
    flat, errors = _linear_errors(best)
    for i in np.flatnonzero(flat):
        said[free[i]] = "the runs' sizes leave it open"
    size = np.where(is_exponent, np.minimum(np.abs(best.theta), LARGE), 1)
    edge = is_exponent & ((best.theta < LOWEST * 1.05) | (best.theta > HIGHEST * 0.95))
    stuck = (drawn.std(axis=0) < STUCK * errors) & (errors > 1e-6)
    for i in np.flatnonzero((errors > VAGUE * size) | stuck | edge):
        said.setdefault(free[i], ALIKE)
    # a term whose exponent is open takes any part of what the others leave, from the constant too
    if any(name in said for name, exponent in zip(free, is_exponent, strict=True) if exponent):
        for i in problem.free:
            if problem.slopes[i] < 0 and not problem.is_exponent[i]:
                said.setdefault(problem.names[i], ALIKE)
    for columns, line in _on_a_line(problem):
        indices = np.unique(np.concatenate([problem.coefficient[:, columns], problem.exponent[:, columns]]))
        if not {problem.names[i] for i in indices if problem.is_exponent[i]} <= {*held}:
            said |= {problem.names[i]: line for i in indices if problem.names[i] in free}
    for i in np.flatnonzero(~problem.is_exponent):
        slopes = {problem.names[e] for e in problem.exponent[problem.coefficient == i].tolist() if e >= 0}
        for name in slopes & set(said):
            if problem.names[i] in free:
                said.setdefault(problem.names[i], said[name])
    return {name: reason for name, reason in said.items() if name not in held}


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
    lengths = np.where(norms > 1e-12 * norms.max(), norms, np.inf)
    _, singular, directions = np.linalg.svd(slope / lengths, full_matrices=len(slope) < len(theta))
    singular = np.append(singular, np.zeros(len(theta) - len(singular)))
    least = SINGULAR * singular.max()
    flat = (np.abs(directions[singular < least]) > 0.05).any(axis=0)
    scaled = directions / np.maximum(singular, least)[:, None] / lengths
    return flat, spread * np.linalg.norm(scaled, axis=0)


def _on_a_line(problem: PowerSum) -> list[tuple[list[int], str]]:
    """Pairs of terms whose variables go with each other in all runs, and that in words."""
    found = []
    columns = {term.variable: k for k, term in enumerate(problem.terms) if term.variable}
    for one, other in itertools.combinations(columns, 2):
        x, y = problem.logs[:, columns[one]], problem.logs[:, columns[other]]
        if not (np.ptp(x) > 0 and np.ptp(y) > 0):
            continue
        if np.std(y - np.polyval(np.polyfit(x - x.mean(), y, 1), x - x.mean())) < ON_A_LINE:
            ratio = np.exp(np.median(y - x))
            line = f"{other} goes with {one} in all runs (about {ratio:.3g} × {one})"
            found.append(([columns[one], columns[other]], f"{line}: which of them lowers the loss is open"))
    return found


def _wide(best: Optimum, problem: PowerSum, drawn: Array, reasons: Mapping[str, str]) -> list[str]:
    """Constants of a sum of powers whose draws reach too far, in sentences."""
    said = []
    held = () if best.objective.prior is None else best.objective.prior.names
    values, least_loss = problem.constants(drawn), float(np.exp(problem.log_loss.min()))
    for i in problem.free:
        name = problem.names[i]
        if name in reasons or name in held:
            continue
        low, high = np.quantile(values[:, i], [0.05, 0.95])
        if problem.is_exponent[i]:
            if high > EXPONENT_SPAN * max(low, 1e-12):
                said.append(f"{name} is not identified: 90% of its draws run from {low:.2g} to {high:.2g}")
        elif problem.slopes[i] < 0 and low < 0.01 * least_loss:
            said.append(f"{name} can't be distinguished from 0: the runs do not show where the loss levels off")
        elif high > COEFFICIENT_SPAN * max(low, 1e-300):
            said.append(
                f"{name} is not identified by itself: its draws run from {low:.2g} to {high:.2g}, with its exponent"
            )
    return said


def _resting(best: Optimum, drawn: Array) -> list[str]:
    """Which constants the runs tell nothing about that the prior had not told, in sentences."""
    prior = best.objective.prior
    if prior is None:
        return []
    rests = prior.values(drawn)[0].std(axis=0) > RESTS * prior.sd
    return [
        f"{name} is determined by its prior ({label} = {mean:.4g} ± {sd:.3g}): the runs add next to nothing"
        for name, label, mean, sd, resting in zip(prior.names, prior.labels, prior.mean, prior.sd, rests, strict=True)
        if resting
    ]


def flat_directions(best: Optimum, drawn: Array | None = None) -> dict[str, list[str]]:
    """Constants of a law that is no sum of powers which the runs do not identify, and the signs of it.

    Two signs: 90% of the draws span more than a factor of 100 (of an exponent: 4); held at ten times or a tenth of its
    value (an exponent: twice, half) with the others fitted anew, a constant raises the objective by less than 1%. A
    minimum that is not found hides a flat direction, so silence proves nothing.
    """
    problem = best.objective.problem
    found = {}
    for i, name in enumerate(problem.free_names):
        is_exponent = bool(problem.is_exponent[problem.free[i]])
        signs = []
        if drawn is not None and len(drawn):
            low, high = np.exp(np.quantile(drawn[:, i], [0.05, 0.95]))
            if high > (EXPONENT_SPAN if is_exponent else SPAN) * low:
                signs.append(f"90% of its draws run from {low:.2g} to {high:.2g}")
        factor = 2.0 if is_exponent else 10.0
        for text, times in ((f"{factor:g} times as much", factor), (f"1/{factor:g} of it", 1 / factor)):
            value = _held(best.objective, best.theta, i, times)
            if value <= _as_good(best):
                signs.append(f"{text} fits as well{_excess(value, best)}")
        if signs:
            found[name] = signs
    return found


def _held(objective: Objective, theta: Array, i: int, times: float) -> float:
    """The least objective near θ with a constant held at so many times its value."""
    moved = theta + np.log(times) * (np.arange(len(theta)) == i)
    problem = objective.problem
    if len(theta) == 1 or not isinstance(problem, ByDifferences):
        return float(objective.value(moved[None])[0])
    held = replace(objective, problem=problem.holding(problem.free_names[i], float(np.exp(moved[i]))))
    return float(minimise(held, np.delete(theta, i)[None], widest=0.0)[1][0])


def _as_good(best: Optimum) -> float:
    """The objective up to which no other fit is worse."""
    return best.least * (1 + ALIKE_OBJECTIVES) + 0.5 * ROUNDING**2 * float(best.objective.weights.sum())


def _differing_minima(best: Optimum, problem: Problem) -> dict[str, str]:
    """Constants of which minima as good as the best have other values, and that in a sentence."""
    near = [(problem.constants(theta[None])[0], value) for theta, value in best.minima if value <= _as_good(best)]
    said = {}
    for i in problem.free:
        name, at = problem.names[i], sorted((float(constants[i]), _excess(value, best)) for constants, value in near)
        if len(at) > 1 and at[-1][0] > OTHER * at[0][0]:
            places = ", ".join(f"{value:.3g}{excess}" for value, excess in at)
            share = f"{ALIKE_OBJECTIVES:.0%}"
            said[name] = f"{len(at)} optima within {share} of the best objective differ in {name}: {places}"
    return said


def _excess(value: float, best: Optimum) -> str:
    """How far an objective is above the best; nothing where it is the best, or both are 0 but for rounding."""
    relative = value / max(best.least, 1e-300) - 1
    return f" ({relative:+.2%})" if 1e-6 < relative <= ALIKE_OBJECTIVES else ""
