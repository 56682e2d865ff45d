"""The global optimum of a law over runs: starts that see every basin, Newton from each, a second search, a finish.

Given its exponents, a sum of powers is linear in its coefficients: weighted least squares solves them, so a grid over
the exponents alone sees every basin (variable projection: Golub & Pereyra 1973, as Czech et al. 2026 use it). Residuals
are relative (weights 1/L²), reweighted twice by Huber's rule. Any other law is searched between plausible bounds of its
constants. The best starts that lie apart go to Newton, which lowers δ step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array
from isoflop.fit.newton import Objective, minimise
from isoflop.fit.prior import FIRST_NOISE, Prior, fitted_by_runs, noise_of, typical_size
from isoflop.fit.problem import PowerSum, huber

LOWEST, HIGHEST = 0.02, 3.0
"""Exponents that are looked at. Published ones lie between .05 and .8."""
MOST_RUNS = 2000
"""Runs that the search looks at; Newton sees them all."""
GRID = {1: 64, 2: 20, 3: 11}
"""Points of an axis by number of exponents; of more a Sobol sequence."""
DRAWS = 2048
FEWEST = 64
"""Rows of the grid that go on after the first round, at the least."""
SEED = 0
"""Of Sobol sequences and of the runs that are looked at: the same runs have the same fit."""
APART = 0.45
"""Of ln of an exponent, between two starts."""
SAME = 1e-3
"""Starts that the continuation in δ has brought this near each other go on as one."""
ROUNDS, SETTLED = 8, 0.02
"""Of the fit under a prior and of the noise that weighs it, and the change of that noise's logarithm that ends them."""
LOST = 1e-2
"""Share of the loss below which a term may have been overlooked: it is looked for again."""
SMALL, GONE = 0.2, 20.0
"""Share of the loss below which a term is tried without, and by how much ln of its coefficient is lowered for that."""
NOISELESS, EXACT, STARTS = 1e-3, 1e-30, 24
"""Residuals of runs with next to no noise, the mean ½r² of an exact fit, starts that are tried in between."""
HOPS, HOP_ROUNDS, LONGEST_HOP = 32, 6, 3.0
"""Starts about the best minimum at the final δ, as far off as the runs' noise leaves the constants; how often at most,
for as long as a better one is found; the longest step. With a δ far below the noise every few runs make a minimum of
their own: of subsets of Hoffmann et al. 2022's runs one in 25 ended in a worse one without them."""
WIDE = 1e-2
"""δ by which starts of a law that is no sum of powers are ranked first; it shows the basins."""


@dataclass(frozen=True)
class Optimum:
    """The best fit.

    Attributes:
        theta: [free].
        objective: what it minimises, its prior weighed.
        value: Σ w·huber there, without the prior's part; Σ w·|r| of least absolute deviations.
        constants: how many of them the runs fit; what rests on a prior counts less.
        noise: standard deviation of ln L that the prior was weighed by.
    """

    theta: Array
    objective: Objective
    value: float
    constants: float
    noise: float = 0.0


def optimum(objective: Objective, *, absolute: bool = False) -> Optimum:
    """Find it.

    Args:
        objective: with a prior that is not weighed yet.
        absolute: least absolute deviations in place of Huber's loss, from its optimum at a small δ.
    """
    if objective.prior is not None:
        return _under_prior(objective, objective.prior)
    theta, value = _least(objective)
    if np.abs(objective.problem.residuals(theta[None])).max() < NOISELESS:
        theta, value = _to_the_last_digit(objective, theta)
    if absolute:
        theta, value = least_absolute(objective, theta)
    return Optimum(theta, objective, value, len(theta))


def _least(objective: Objective) -> tuple[Array, float]:
    """The least minimum found, θ and objective."""
    theta, values = minimise(objective, starts(objective), merge=SAME)
    again = _restarts(objective, theta[values.argmin()])
    if len(again):
        more, their_values = minimise(objective, again, widest=0.0)
        theta, values = np.concatenate([theta, more]), np.concatenate([values, their_values])
    if isinstance(objective.problem, PowerSum):
        theta, values = _hop(objective, theta, values)
    return theta[values.argmin()], float(values.min())


def _hop(objective: Objective, theta: Array, values: Array) -> tuple[Array, Array]:
    """The minima [rows, free], and those found by starts about the best of them, at the final δ."""
    rng = np.random.default_rng(SEED)
    for _ in range(HOP_ROUNDS):
        best, least = theta[values.argmin()], float(values.min())
        state = objective.problem.state(best[None])
        slope = objective.problem.slope(state) / max(typical_size(state[0][0]), objective.delta)
        curvature, directions = np.linalg.eigh(slope.T @ slope)
        length = np.minimum(1 / np.sqrt(np.maximum(curvature, LONGEST_HOP**-2)), LONGEST_HOP)
        jumps = rng.standard_normal((HOPS, len(best))) * length @ directions.T
        found, theirs = minimise(objective, best + jumps, widest=0.0)
        theta, values = np.concatenate([theta, found]), np.concatenate([values, theirs])
        if not values.min() < least * (1 - 1e-12):
            break
    return theta, values


def starts(objective: Objective, *, around: Array | None = None, keep: int = 0) -> Array:
    """θ to begin with, the best first: [≤ keep, free].

    Args:
        objective: ranks them.
        around: θ [free] of a fit of a sum of powers: exponents are tried one at a time, the others as there. A term
            that moves the loss by 1e-5 is lost in what a coarse grid leaves of the others.
        keep: how many; default: 5, or 32 of a law that is no sum of powers.
    """
    if isinstance(objective.problem, PowerSum):
        return _projected(objective, objective.problem, around, keep or 5)
    return _between_bounds(replace(objective, delta=max(objective.delta, WIDE)), 12, keep or 32)


def _restarts(objective: Objective, theta: Array) -> Array:
    """θ for a second search, at the final δ, once the best is known: minima that the continuation in δ passes by."""
    problem = objective.problem
    if not isinstance(problem, PowerSum):
        return _between_bounds(objective, 24, 32)
    share = problem.state(theta[None])[1][0].max(axis=1)
    # Where the best E is 0, ln E runs off, and Newton's way there over Huber's kinks is long: a term that is small at
    # all runs is tried as good as gone.
    small = [np.isin(problem.free, problem.coefficient[:, k]) for k in np.flatnonzero(share < SMALL)]
    rows = [np.where(mine, theta - GONE, theta)[None] for mine in small if mine.any()]
    if share.min() < LOST and problem.is_exponent[problem.free].any():
        rows.append(starts(objective, around=theta))
    return np.concatenate(rows) if rows else np.empty((0, len(theta)))


def _under_prior(objective: Objective, prior: Prior) -> Optimum:
    """The optimum under a prior, which the noise weighs, which comes from the residuals at the optimum."""
    problem, weights, delta = objective.problem, objective.weights, objective.delta
    noise = FIRST_NOISE
    for _ in range(ROUNDS):
        mine = replace(objective, prior=prior.weighed(noise, delta, weights))
        found, values = minimise(mine, starts(mine), merge=SAME)
        theta = found[values.argmin()]
        constants = fitted_by_runs(problem, theta, weights, prior, noise, delta)
        before, noise = noise, noise_of(problem.residuals(theta[None])[0], weights, constants)
        if abs(np.log(noise / before)) < SETTLED:
            break
    found, values = _hop(mine, found, values)
    theta = found[values.argmin()]
    return Optimum(theta, mine, float(problem.objective(theta[None], weights, delta)[0]), constants, before)


# -- starts ------------------------------------------------------------------------------------------------------------


def _projected(objective: Objective, problem: PowerSum, around: Array | None, keep: int) -> Array:
    """Starts of a sum of powers by variable projection over its exponents."""
    delta, prior = objective.delta, objective.prior
    runs = np.arange(len(problem.log_loss))
    if len(runs) > MOST_RUNS:
        runs = np.sort(np.random.default_rng(SEED).choice(runs, MOST_RUNS, replace=False))
    is_exponent = problem.is_exponent[problem.free]
    grid = _grid(int(is_exponent.sum())) if around is None else _lines(around[is_exponent])
    if prior is not None:
        grid = np.concatenate([grid, _at_means(grid, prior, np.array(problem.free_names)[is_exponent].tolist())])
    log_loss, w = problem.log_loss[runs], objective.weights[runs]
    loss = np.exp(log_loss)
    columns, known = _columns(problem, runs, grid, is_exponent)
    relative = np.broadcast_to(w / loss**2, (len(grid), len(runs)))
    for again in range(3):
        coefficients = _least_squares(columns, loss - known, relative)
        predicted = np.matmul(coefficients[:, None], columns)[:, 0] + known
        residuals = np.log(np.maximum(predicted, 1e-12)) - log_loss
        scale = max(delta, 1.345 * float(np.median(np.abs(residuals).min(axis=0))) / 0.6745)
        if again == 0:  # a quarter of the grid goes on
            good = np.argsort((w * huber(residuals, scale)).sum(axis=1))[: max(len(grid) // 4, FEWEST)]
            grid, columns, known, residuals = grid[good], columns[good], known[good], residuals[good]
        relative = w / loss**2 * np.minimum(1, scale / np.maximum(np.abs(residuals), 1e-300))
    theta = np.empty((len(grid), len(problem.free)))
    theta[:, is_exponent], theta[:, ~is_exponent] = grid, np.log(coefficients)
    values = (w * huber(residuals, delta)).sum(axis=1)
    if prior is not None:
        values += prior.penalty(theta)
    return theta[apart(np.log(np.abs(grid)), values, APART, keep)]


def _grid(dimensions: int) -> Array:
    """Exponents [rows, dimensions] that cover their range."""
    low, high = np.log(LOWEST), np.log(HIGHEST)
    if dimensions == 0:
        return np.zeros((1, 0))
    if dimensions not in GRID:
        return np.exp(_sobol(np.full(dimensions, low), np.full(dimensions, high), DRAWS))
    return np.exp(_mesh([np.linspace(low, high, GRID[dimensions])] * dimensions))


def _mesh(axes: Sequence[Array]) -> Array:
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def _sobol(low: Array, high: Array, points: int) -> Array:
    from scipy.stats import qmc  # takes .4 s, which who only draws figures need not wait for

    return qmc.scale(qmc.Sobol(len(low), seed=SEED).random(points), low, high)


def _lines(exponents: Array) -> Array:
    """Each exponent through its range, the others as they are."""
    axis = np.exp(np.linspace(np.log(LOWEST), np.log(HIGHEST), GRID[1]))
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


def _columns(
    problem: PowerSum, runs: NDArray[np.int64], grid: Array, is_exponent: NDArray[np.bool_]
) -> tuple[Array, Array]:
    """For each row of exponents: what each free coefficient multiplies [rows, c, n], and what is fixed [rows, n]."""
    design, offset = problem.design[runs], problem.offset[runs]
    shifts, members = design[:, :, is_exponent], design[:, :, ~is_exponent]
    columns = np.zeros((len(grid), members.shape[2], len(runs)))
    known = np.zeros((len(grid), len(runs)))
    for k in range(design.shape[1]):
        power = np.exp(grid @ shifts[:, k].T + offset[:, k])
        for c in np.flatnonzero(members[:, k].any(axis=0)):
            columns[:, c] += members[:, k, c] * power
        held = 1 - members[:, k].sum(axis=1)
        if held.any():
            known += held * power
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


BOUNDS: dict[str, tuple[float, float]] = {
    "E": (1e-2, 10.0),
    "A": (1.0, 1e6),
    "B": (1.0, 1e6),
    "alpha": (0.02, 3.0),
    "beta": (0.02, 3.0),
    "N_c": (1e6, 1e18),
    "D_c": (1e6, 1e18),
    "alpha_N": (0.01, 1.0),
    "alpha_D": (0.01, 1.0),
    "gamma": (1e-4, 3.0),
    "epsilon": (0.05, 2.0),
    "k": (1e-2, 1e3),
    "X_start": (1.01, 10.0),
    "X_max": (20.0, 5000.0),
    "R_D_star": (0.1, 1e4),
    "R_N_star": (0.1, 1e4),
}
"""Where a constant of a law that is no sum of powers is looked for: a form of these constants alone can be fitted."""


def _between_bounds(objective: Objective, cells: int, keep: int) -> Array:
    """Starts of any law: the best of a grid or a Sobol sequence, a cell of each range apart."""
    names = objective.problem.free_names
    low, high = np.log([BOUNDS[name] for name in names]).T
    if len(names) <= 2:
        points = _mesh([np.linspace(a, b, 40) for a, b in zip(low, high, strict=True)])
    else:
        points = _sobol(low, high, 2 * DRAWS)
    values = np.concatenate([objective.value(part) for part in np.array_split(points, 32)])
    return points[apart(points, values, (high - low) / cells, keep)]


def apart(points: Array, values: Array, distance: Array | float, keep: int) -> list[int]:
    """Indices of the points [rows, dimensions] of the least values that are no neighbours of a better one."""
    chosen: list[int] = []
    for i in np.argsort(values):
        if all((np.abs(points[i] - points[j]) > distance).any() for j in chosen):
            chosen.append(int(i))
        if len(chosen) == keep or (chosen and points.shape[1] == 0):
            break
    return chosen


# -- the finish --------------------------------------------------------------------------------------------------------


def _to_the_last_digit(objective: Objective, theta: Array) -> tuple[Array, float]:
    """Of runs without noise: a term of 1e-5 of the loss is told by digits that Newton's squares of them lose.

    Levenberg and Marquardt's method works on the residuals themselves; from many starts, for such a term's basin is
    narrow, and the other terms' constants hide it while they are not exact.
    """
    from scipy.optimize import least_squares

    problem, root = objective.problem, np.sqrt(objective.weights)

    def residuals(x: Array) -> Array:
        return root * problem.residuals(x[None])[0]

    def slope(x: Array) -> Array:
        return root[:, None] * problem.slope(problem.state(x[None]))

    best, least = theta, float(objective.value(theta[None])[0])
    for x in _narrow_starts(objective, theta):
        if len(x) > len(root) or least < EXACT * float(objective.weights.sum()):
            break
        found = least_squares(residuals, x, slope, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=300).x
        value = float(objective.value(found[None])[0])
        if value < least:
            best, least = found, value
    return best, least


def _narrow_starts(objective: Objective, theta: Array) -> Array:
    problem = objective.problem
    rows = [theta[None], starts(objective, keep=STARTS)]
    if isinstance(problem, PowerSum) and problem.is_exponent[problem.free].any():
        rows.append(starts(objective, around=theta, keep=STARTS))
    return np.concatenate(rows)


def least_absolute(objective: Objective, theta: Array, rounds: int = 40) -> tuple[Array, float]:
    """From θ [free] near the optimum to the minimum of Σ w·|ln L̂ − ln L|. Returns θ and that.

    In each round residuals are linearised and the step is a linear programme in a trust region, which grows while the
    real sum falls as promised (a sequential linear programme: Fletcher & Sainz de la Maza 1989).
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, hstack, identity, vstack

    problem, weights = objective.problem, objective.weights
    n, free = len(problem.log_loss), len(theta)
    radius, best = 0.05, float((weights * np.abs(problem.residuals(theta[None])[0])).sum())
    ones = identity(n, format="csr")
    cost = np.concatenate([np.zeros(free), weights])
    for _ in range(rounds):
        state = problem.state(theta[None])
        residuals, slope = state[0][0], csr_array(problem.slope(state))
        limits = vstack([hstack([slope, -ones]), hstack([-slope, -ones])])
        bounds = [(-radius, radius)] * free + [(0, None)] * n
        found = linprog(cost, A_ub=limits, b_ub=np.concatenate([-residuals, residuals]), bounds=bounds, method="highs")
        if found.x is None:
            break
        tried = theta + found.x[:free]
        value = float((weights * np.abs(problem.residuals(tried[None])[0])).sum())
        if value < best * (1 - 1e-13):
            theta, best = tried, value
            radius *= 2
        else:
            radius /= 8
        if radius < 1e-9:
            break
    return theta, best
