"""Where to start: variable projection over the exponents (Golub & Pereyra 1973), as Czech et al. 2026 use it.

Given the exponents, a sum of powers is linear in its coefficients: weighted least squares solves them. So the search
has only the exponents' dimensions, and a grid over these sees every basin. Residuals are relative (weights 1/L²),
reweighted twice by Huber's rule: the best few, apart from each other, then go to Newton.

Least absolute deviations: the limit of Huber's loss for δ → 0, finished by linear programming.

The global optimum of a sum of powers over some runs, with a prior or without.

Fit a law that is no sum of powers (Muennighoff's with repeated data, Kaplan's L(N,D)): slower, by its values alone.

Constants are searched in logarithms between plausible bounds: a grid or a Sobol sequence sees the basins, Gauss–Newton
goes down from the best that lie apart, and the best of those are polished (L-BFGS-B, then Nelder & Mead's simplex,
which needs no derivative at Huber's kinks).

What the runs do not tell: flat directions, constants that they leave open, constants that rest on a prior.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares, linprog, minimize
from scipy.sparse import csr_array, hstack, identity, vstack

from isoflop.arrays import Array
from isoflop.fit.newton import Problem, Values, huber, minimise
from isoflop.fit.problem import FIRST_NOISE, LEAST_NOISE, RESTS, PowerSum, Prior, fitted_by_runs, noise_of, weighed
from isoflop.fit.runs import Runs
from isoflop.fit.uncertainty import Progress, nothing

LOWEST, HIGHEST = 0.02, 3.0
"""Exponents that are looked at. Published ones lie between .05 and .8."""
MOST_RUNS = 2000
"""Runs that the search looks at; Newton sees them all."""
_GRID = {1: 64, 2: 20, 3: 11}
_DRAWS = 2048
_FEWEST = 64
APART = 0.45
"""Of ln of an exponent, between two starts."""


def starts(
    law: PowerSum,
    log_loss: Array,
    weights: Array,
    delta: float,
    *,
    around: Array | None = None,
    prior: Prior | None = None,
    keep: int = 5,
    seed: int = 0,
) -> Array:
    """θ of the free constants (`PowerSum.problem`) to begin with, the best first: [≤ keep, free].

    Args:
        law: set up for the runs.
        log_loss: ln L [n].
        weights: of the runs [n].
        delta: of the Huber loss.
        around: θ [free] of a fit: exponents are tried one at a time, the others as there. A term that moves the loss
            by 1e-5 is lost in what a coarse grid leaves of the others.
        prior: exponents are tried at its means too, and its penalty is part of the ranking.
        keep: how many.
        seed: for a draw of the runs, and of the exponents where there are more than three.
    """
    rng = np.random.default_rng(seed)
    runs = np.arange(len(log_loss))
    if len(runs) > MOST_RUNS:
        runs = np.sort(rng.choice(runs, MOST_RUNS, replace=False))
    exponents = [i for i in law.free if law.is_exponent[i]]
    grid = _grid(len(exponents), seed) if around is None else _lines(around[law.is_exponent[law.free]])
    if prior is not None:
        grid = np.concatenate([grid, _at_means(grid, prior, [law.names[i] for i in exponents])])
    loss, w = np.exp(log_loss[runs]), weights[runs]
    columns, known = _columns(law, runs, grid, exponents)
    relative = np.broadcast_to(w / loss**2, (len(grid), len(runs)))
    for again in range(3):
        coefficients = _least_squares(columns, loss - known, relative)
        predicted = np.matmul(coefficients[:, None], columns)[:, 0] + known
        residuals = np.log(np.maximum(predicted, 1e-12)) - log_loss[runs]
        scale = max(delta, 1.345 * float(np.median(np.abs(residuals).min(axis=0))) / 0.6745)
        if again == 0:  # a quarter of the grid goes on
            good = np.argsort((w * huber(residuals, scale)).sum(axis=1))[: max(len(grid) // 4, _FEWEST)]
            grid, columns, known, residuals = grid[good], columns[good], known[good], residuals[good]
        relative = w / loss**2 * np.minimum(1, scale / np.maximum(np.abs(residuals), 1e-300))
    objective = (w * huber(residuals, delta)).sum(axis=1)
    theta = np.empty((len(grid), len(law.names)))
    theta[:, exponents] = grid
    theta[:, [i for i in law.free if not law.is_exponent[i]]] = np.log(coefficients)
    if prior is not None:
        objective += prior.penalty(theta[:, law.free])
    return theta[apart(np.log(np.abs(grid)), objective, APART, keep)][:, law.free]


def _grid(dimensions: int, seed: int) -> Array:
    low, high = np.log(LOWEST), np.log(HIGHEST)
    if dimensions == 0:
        return np.zeros((1, 0))
    if dimensions not in _GRID:
        from scipy.stats import qmc  # takes .4 s, which who only draws figures need not wait for

        return np.exp(low + (high - low) * qmc.Sobol(dimensions, seed=seed).random(_DRAWS))
    axis = np.exp(np.linspace(low, high, _GRID[dimensions]))
    return np.stack(np.meshgrid(*[axis] * dimensions, indexing="ij"), axis=-1).reshape(-1, dimensions)


def _lines(exponents: Array) -> Array:
    """Each exponent through its range, the others as they are."""
    axis = np.exp(np.linspace(np.log(LOWEST), np.log(HIGHEST), _GRID[1]))
    grid = np.repeat(exponents[None], len(axis) * len(exponents), axis=0)
    for i in range(len(exponents)):
        grid[i * len(axis) : (i + 1) * len(axis), i] = axis
    return grid


def _at_means(grid: Array, prior: Prior, names: list[str]) -> Array:
    """The grid with the exponents that have a prior at its mean."""
    held = grid.copy()
    for i, name in enumerate(names):
        if name in prior.names:
            held[:, i] = np.clip(prior.mean[prior.names.index(name)], LOWEST, HIGHEST)
    return np.unique(held, axis=0)


def _columns(law: PowerSum, runs: np.ndarray, grid: Array, exponents: list[int]) -> tuple[Array, Array]:
    """For each row of exponents: what each free coefficient multiplies [rows, c, n], and what is fixed [rows, n]."""
    free = [i for i in law.free if not law.is_exponent[i]]
    columns = np.zeros((len(grid), len(free), len(runs)))
    known = np.zeros((len(grid), len(runs)))
    centre = law.centres()
    values = np.zeros((len(grid), len(law.names) + 1))  # the last for "no exponent"
    values[:, exponents] = grid
    for name, value in law.fixed.items():
        values[:, law.names.index(name)] = value
    for k in range(law.logs.shape[1]):
        coefficient, exponent = law.coefficient[runs, k], law.exponent[runs, k]
        for i, j in dict.fromkeys(zip(coefficient.tolist(), exponent.tolist(), strict=True)):
            mine = (coefficient == i) & (exponent == j)
            is_free = i in free
            shift = law.logs[runs[mine], k] - (centre[i] if is_free else 0)
            distinct, which = np.unique(values[:, j], return_inverse=True)
            power = np.exp(-distinct[:, None] * shift)[which]
            everywhere = slice(None) if mine.all() else mine
            if is_free:
                columns[:, free.index(i), everywhere] += power
            else:
                known[:, everywhere] += law.fixed[law.names[i]] * power
    return columns, known


def _least_squares(columns: Array, target: Array, weights: Array) -> Array:
    """Coefficients [rows, c], positive: where one comes out negative it is put at a thousandth of the loss."""
    weighted = columns * weights[:, None]
    normal = np.matmul(weighted, np.swapaxes(columns, 1, 2))
    scale = np.sqrt(np.maximum(np.diagonal(normal, axis1=1, axis2=2), 1e-300))
    normal = normal / (scale[:, :, None] * scale[:, None, :]) + 1e-13 * np.eye(normal.shape[1])
    target = np.broadcast_to(target, weights.shape)
    right = np.matmul(weighted, target[..., None])[..., 0] / scale
    found = np.linalg.solve(normal, right[..., None])[..., 0] / scale
    whole = float(np.mean(np.abs(target))) / np.maximum(columns.mean(axis=2), 1e-300)
    return np.where(found > 1e-9 * whole, found, 1e-3 * whole)


def apart(points: Array, values: Array, distance: Array | float, keep: int) -> list[int]:
    """Indices of the points [rows, dimensions] of the least values that are no neighbours of a better one."""
    chosen: list[int] = []
    for i in np.argsort(values):
        if all((np.abs(points[i] - points[j]) > distance).any() for j in chosen):
            chosen.append(int(i))
        if len(chosen) == keep or (chosen and points.shape[1] == 0):
            break
    return chosen


def least_absolute(problem: Problem, theta: Array, weights: Array, rounds: int = 40) -> tuple[Array, float]:
    """From θ [parameters] near the optimum to the minimum of Σ w·|ln L̂ − ln L|. Returns (θ, Σ w·|r|).

    In each round residuals are linearised and the step is a linear programme in a trust region, which grows while the
    real sum falls as promised (a sequential linear programme: Fletcher & Sainz de la Maza 1989).
    """
    n, parameters = len(problem.log_loss), len(theta)
    radius, best = 0.05, float((weights * np.abs(problem.residuals(theta[None])[0])).sum())
    ones = identity(n, format="csr")
    cost = np.concatenate([np.zeros(parameters), weights])
    for _ in range(rounds):
        (residuals,), (share,) = problem.state(theta[None])
        slope = csr_array(problem.slope(share))
        limits = vstack([hstack([slope, -ones]), hstack([-slope, -ones])])
        bounds = [(-radius, radius)] * parameters + [(0, None)] * n
        found = linprog(cost, A_ub=limits, b_ub=np.concatenate([-residuals, residuals]), bounds=bounds, method="highs")
        if found.x is None:
            break
        tried = theta + found.x[:parameters]
        value = float((weights * np.abs(problem.residuals(tried[None])[0])).sum())
        if value < best * (1 - 1e-13):
            theta, best = tried, value
            radius *= 2
        else:
            radius /= 8
        if radius < 1e-9:
            break
    return theta, best


SAME = 1e-3
"""Starts that the continuation in δ has brought this near each other go on as one."""
ROUNDS, SETTLED = 8, 0.02
"""Of the fit under a prior and of the noise that weighs it, and the change of that noise's logarithm that ends them."""
LOST = 1e-2
"""Share of the loss below which a term may have been overlooked: it is looked for again."""

NOISELESS, EXACT, STARTS = 1e-3, 1e-30, 24
"""Residuals of runs with next to no noise, the mean ½r² of an exact fit, starts that are tried in between."""
SMALL, GONE = 0.2, 20.0
"""Share of the loss below which a term is tried without, and by how much ln of its coefficient is lowered for that."""


@dataclass(frozen=True)
class Optimum:
    """θ [free], Σ w·huber there without the prior's part, δ; the prior weighed, the noise it was weighed by.

    `constants`: how many of them the runs fit; what rests on a prior counts less.
    """

    theta: Array
    objective: float
    width: float
    constants: float
    prior: Prior | None = None
    noise: float = 0.0


def optimum(
    law: PowerSum,
    problem: Problem,
    runs: Runs,
    delta: float | str,
    prior: Prior | None = None,
) -> Optimum:
    """Find it.

    Args:
        law: set up for the runs.
        problem: of the law.
        runs: their losses and weights.
        delta: of Huber's loss; "lad": least absolute deviations.
        prior: of the constants.
    """
    log_loss = problem.log_loss
    width = 1e-6 if isinstance(delta, str) else float(delta)
    if prior is not None:
        return _with_prior(law, problem, runs.weights, width, prior)
    found, objectives = minimise(
        problem, starts(law, log_loss, runs.weights, width), runs.weights[None], width, merge=SAME
    )
    theta, objective = found[objectives.argmin()], float(objectives.min())
    _, (share,) = problem.state(theta[None])
    if share.max(axis=1).min() < LOST and law.is_exponent[law.free].any():
        again = starts(law, log_loss, runs.weights, width, around=theta)
        found, objectives = minimise(problem, again, runs.weights[None], width)
        if objectives.min() < objective:
            theta, objective = found[objectives.argmin()], float(objectives.min())
    gone = _without_small_terms(law, problem, theta)
    if len(gone):
        found, objectives = minimise(problem, gone, runs.weights[None], width, widest=0.0)
        if objectives.min() < objective:
            theta, objective = found[objectives.argmin()], float(objectives.min())
    if np.abs(problem.residuals(theta[None])).max() < NOISELESS:
        theta, objective = _to_the_last_digit(law, problem, runs, theta, width)
    if isinstance(delta, str):
        theta, objective = least_absolute(problem, theta, runs.weights)
    return Optimum(theta, objective, width, len(theta))


def _to_the_last_digit(law: PowerSum, problem: Problem, runs: Runs, theta: Array, width: float) -> tuple[Array, float]:
    """Of runs without noise: a term of 1e-5 of the loss is told by digits that Newton's squares of them lose.

    Levenberg and Marquardt's method works on the residuals themselves; from many starts, for such a term's basin is
    narrow, and the other terms' constants hide it while they are not exact.
    """
    root = np.sqrt(runs.weights)

    def residuals(x: Array) -> Array:
        values: Array = root * problem.residuals(x[None])[0]
        return values

    def slope(x: Array) -> Array:
        values: Array = root[:, None] * problem.slope(problem.state(x[None])[1][0])
        return values

    log_loss = problem.log_loss
    begin = [theta[None], starts(law, log_loss, runs.weights, width, keep=STARTS)]
    if law.is_exponent[law.free].any():
        begin.append(starts(law, log_loss, runs.weights, width, around=theta, keep=STARTS))
    best, least = theta, float((runs.weights * huber(problem.residuals(theta[None])[0], width)).sum())
    for x in np.concatenate(begin):
        if len(x) > len(root) or least < EXACT * float(runs.weights.sum()):
            break
        found = least_squares(residuals, x, slope, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=300).x
        value = float((runs.weights * huber(problem.residuals(found[None])[0], width)).sum())
        if value < least:
            best, least = found, value
    return best, least


def _without_small_terms(law: PowerSum, problem: Problem, theta: Array) -> Array:
    """θ with each term that is small at all runs as good as gone [≤ terms, free].

    Where the best E is 0, ln E runs off, and Newton's way there over Huber's kinks is long.
    """
    _, (share,) = problem.state(theta[None])
    rows = []
    for k in np.flatnonzero(share.max(axis=1) < SMALL):
        mine = np.isin(law.free, law.coefficient[:, k])
        rows += [np.where(mine, theta - GONE, theta)] if mine.any() else []
    return np.array(rows)


def _with_prior(law: PowerSum, problem: Problem, weights: Array, width: float, prior: Prior) -> Optimum:
    noise = FIRST_NOISE
    for _ in range(ROUNDS):
        mine = weighed(prior, noise, width, weights)
        begin = starts(law, problem.log_loss, weights, width, prior=mine)
        found, objectives = minimise(problem, begin, weights[None], width, merge=SAME, penalty=mine)
        theta = found[objectives.argmin()]
        constants = fitted_by_runs(problem, theta, weights, prior, noise, width)
        residuals = problem.residuals(theta[None])[0]
        before, noise = noise, noise_of(residuals, weights, constants)
        if abs(np.log(noise / before)) < SETTLED:
            break
    objective = float((weights * huber(residuals, width)).sum())
    return Optimum(theta, objective, width, constants, mine, before)


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
_GENERAL_DRAWS = 4096
EXPONENTS = ("alpha", "beta", "gamma", "eta")
"""What the names of exponents begin with: a factor that is nothing to a coefficient is all there is to them."""
GENERAL_SAME = 0.01
"""Relative difference of objectives below which no optimum is preferred. On Muennighoff et al. 2023's 182 runs the
published optimum, at a sixth of the best R_D*, is 0.13% above the best; other draws of the runs move both by ±5%."""
DESCENT = 60
"""Steps down from a start, before those that ended together are one."""
HOPELESS = 1.1
"""Objective over the best beyond which a minimum is not taken to its last digit."""
ROUNDING = 1e-6
"""Of ln L: a difference of objectives by residuals that small is none either."""
SPAN, EXPONENT_SPAN = 100.0, 4.0
"""Highest over lowest of 90% of the draws from which on a constant is not identified."""
GENERAL_APART = 3.0
"""Factor between two optima's values of a constant from which on they are different answers."""


def optima(
    law: Values, weights: Array, delta: float, keep: int = 8, seed: int = 0, progress: Progress = nothing
) -> list[tuple[Array, float]]:
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
        from scipy.stats import qmc  # takes .4 s, which who only draws figures need not wait for

        points = qmc.scale(qmc.Sobol(len(law.free), seed=seed).random(_GENERAL_DRAWS), low, high)
    found: list[tuple[Array, float]] = []
    # a wide δ shows the basins, the asked one the minima at its kinks
    for half, (width, distance) in enumerate(((max(delta, 1e-2), 12), (delta, 24))):
        values = np.concatenate([law.objectives(part, weights, width) for part in np.array_split(points, 32)])
        starts = points[apart(points, values, (high - low) / distance, 4 * keep)]
        # the best start need not lie in the best basin: a narrow one shows only from inside
        starts, values = minimise(law, starts, weights[None], width, widest=0.0, tolerance=1e-6, steps=DESCENT)
        chosen = starts[apart(starts, values, (high - low) / 1000, keep)]
        chosen, values = minimise(law, chosen, weights[None], delta, widest=0.0, tolerance=1e-6)
        for done, (theta, value) in enumerate(zip(chosen, values.tolist(), strict=True)):
            progress((half + (done + 1) / (len(chosen) + 1)) / 2)
            if value < HOPELESS * values.min():
                theta, value = polish(law, theta, weights, delta)
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
    best_value = float(best.fun) * scale
    if np.abs(law.residuals(best.x)).max() < delta:
        # all within δ: squares, which Gauss and Newton finish to the last digit
        finished = least_squares(
            lambda x: np.sqrt(weights) * law.residuals(x), best.x, xtol=1e-15, ftol=1e-15, gtol=1e-15
        )
        value_there = law.objective(finished.x, weights, delta)
        if value_there < best_value:
            return finished.x, value_there
    return best.x, best_value


def flat_directions(
    law: Values,
    theta: Array,
    weights: Array,
    delta: float,
    draws: Array | None = None,
    found: Sequence[tuple[Array, float]] | None = None,
) -> list[str]:
    """Which constants the runs do not identify, in sentences; empty: nothing to say.

    Three signs: 90% of the draws span more than a factor of 100 (of an exponent: 4); held at ten times or a tenth of
    its value (an exponent: twice, half) with the others fitted anew, a constant raises the objective by less than 1%;
    optima within 1% of the best lie a factor of 3 apart. A minimum that is not found hides a flat direction, so
    silence proves nothing.

    Args:
        law: the fit's runs.
        theta: its optimum [free].
        weights: of the runs [n].
        delta: of Huber's loss.
        draws: of θ [draws, free], from `uncertainty.draw`.
        found: what `optima` returned; by default it is called.
    """
    found = optima(law, weights, delta) if found is None else found
    best = min([law.objective(theta, weights, delta), *(value for _, value in found)])
    enough = best * (1 + GENERAL_SAME) + 0.5 * ROUNDING**2 * float(weights.sum())
    said = []
    for i, name in enumerate(law.free):
        signs = _signs(law, i, theta, weights, delta, draws, best, enough)
        if signs:
            said.append(f"{name} = {np.exp(theta[i]):.3g} is not identified: {'; '.join(signs)}")
    near = [(other, value) for other, value in found if value <= enough]
    for i, name in enumerate(law.free):
        at = sorted((float(np.exp(other[i])), _excess(value, best)) for other, value in near)
        if len(at) > 1 and at[-1][0] > GENERAL_APART * at[0][0]:
            places = ", ".join(f"{value:.3g}{excess}" for value, excess in at)
            said.append(f"{len(at)} optima within {GENERAL_SAME:.0%} of the best objective differ in {name}: {places}")
    return said


def _signs(
    law: Values, i: int, theta: Array, weights: Array, delta: float, draws: Array | None, best: float, enough: float
) -> list[str]:
    """Why constant i would not be identified, from its draws and from holding it elsewhere."""
    name = law.free[i]
    is_exponent = name.startswith(EXPONENTS)
    signs = []
    if draws is not None and len(draws):
        low, high = np.exp(np.quantile(draws[:, i], [0.05, 0.95]))
        if high > (EXPONENT_SPAN if is_exponent else SPAN) * low:
            signs.append(f"90% of its draws run from {low:.2g} to {high:.2g}")
    factor = 2.0 if is_exponent else 10.0
    for text, times in ((f"{factor:g} times as much", factor), (f"1/{factor:g} of it", 1 / factor)):
        held = replace(law, fixed={**law.fixed, name: float(np.exp(theta[i]) * times)})
        rest = np.delete(theta, i)
        value = polish(held, rest, weights, delta, rounds=1)[1] if rest.size else held.objective(rest, weights, delta)
        if value <= enough:
            signs.append(f"{text} fits as well{_excess(value, best)}")
    return signs


def _excess(value: float, best: float) -> str:
    """How far an objective is above the best; nothing where it is the best, or both are 0 but for rounding."""
    relative = value / max(best, 1e-300) - 1
    return f" ({relative:+.2%})" if 1e-6 < relative <= GENERAL_SAME else ""


FEW = 3
"""Runs beyond the number of constants below which nothing is said about their noise."""

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


def too_few(n: int, constants: float) -> bool:
    """Whether so many runs, which fit so many constants (a share of one where a prior helps), tell no noise."""
    return n < constants + FEW - 0.5


def undetermined(
    law: PowerSum,
    problem: Problem,
    theta: Array,
    drawn: Array,
    prior: Prior | None = None,
    constants: float | None = None,
) -> dict[str, str]:
    """Constants that the runs leave open, and why, by name (coefficients with their exponents).

    One size of model or nearly, a single line D = k·N, fewer distinct runs than constants: draws that start from one
    optimum in a long flat valley stay near it, and would make narrow intervals of nothing. What has a prior is closed.
    """
    said: dict[str, str] = {}
    held = () if prior is None else prior.names
    residuals = problem.residuals(theta[None])[0]
    (_,), (share,) = problem.state(theta[None])
    slope = problem.slope(share)
    n, p = slope.shape
    constants = p if constants is None else constants
    spread = 1.4826 * float(np.median(np.abs(residuals))) * np.sqrt(n / max(n - constants, 1))
    if prior is not None:  # beside the runs, as runs of the same noise
        slope = np.concatenate([slope, max(spread, LEAST_NOISE) * prior.rows(theta)])
    norms = np.linalg.norm(slope, axis=0)
    lengths = np.where(norms > 1e-12 * norms.max(), norms, np.inf)
    _, singular, directions = np.linalg.svd(slope / lengths, full_matrices=len(slope) < len(theta))
    singular = np.append(singular, np.zeros(len(theta) - len(singular)))
    for direction in directions[singular < SINGULAR * singular.max()]:
        for i in np.flatnonzero(np.abs(direction) > 0.05):
            said[law.free_names[i]] = "the runs' sizes leave it open"
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
        slopes_held = {law.names[i] for k in (columns[one], columns[other]) for i in law.exponent[:, k]} <= {*held}
        if left < ON_A_LINE and np.ptp(x) > 0 and np.ptp(y) > 0 and not slopes_held:
            for k in (columns[one], columns[other]):
                indices = {*law.coefficient[:, k].tolist(), *law.exponent[:, k].tolist()}
                said |= {law.names[i]: line for i in indices if law.names[i] in law.free_names}
    for i in np.flatnonzero(~law.is_exponent):
        slopes = {law.names[e] for e in law.exponent[law.coefficient == i].tolist() if e >= 0}
        for name in slopes & set(said):
            if law.names[i] in law.free_names:
                said.setdefault(law.names[i], said[name])
    return {name: reason for name, reason in said.items() if name not in held}


def not_identified(
    law: PowerSum,
    draws: Mapping[str, Array],
    least_loss: float,
    n: int,
    undetermined: Mapping[str, str],
    constants: float | None = None,
    held: Collection[str] = (),
) -> list[str]:
    """What the runs do not tell, in sentences; empty: nothing to say.

    A published fit of 240 runs has its exponents to ±9% and B to a factor of 2.3 each way (Besiroglu et al. 2024).
    """
    said = []
    free = law.free_names
    constants = len(free) if constants is None else constants
    if too_few(n, constants):
        beside = "" if constants > len(free) - 0.05 else " that rest on no prior"
        said.append(
            f"{n} run{'s' if n > 1 else ''} for {constants:.2g} constants{beside}: the residuals "
            "tell nothing about the noise, so no interval is to be trusted"
        )
    for reason in dict.fromkeys(undetermined.values()):
        said.append(
            f"not identified: {', '.join(name for name in undetermined if undetermined[name] == reason)}: {reason}"
        )
    for i in law.free:
        name = law.names[i]
        if name in undetermined or name in held:
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


def resting(prior: Prior | None, drawn: Array) -> list[str]:
    """Which constants the runs tell nothing about that the prior had not told, in sentences.

    Args:
        prior: of the constants.
        drawn: θ drawn [draws, free].
    """
    said = []
    for j, name in enumerate(() if prior is None else prior.names):
        assert prior is not None
        u = np.clip(drawn @ prior.form[j] + prior.offset[j], -300, 300)
        spread = float((np.exp(u) if prior.lifted[j] else u).std())
        if spread > RESTS * prior.sd[j]:
            what = name if prior.lifted[j] or name in prior.plain else f"ln {name}"
            said.append(
                f"{name} rests on its prior ({what} = {prior.mean[j]:.4g} ± {prior.sd[j]:.3g}): the runs add next to "
                "nothing"
            )
    return said
