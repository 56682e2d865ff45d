"""The global optimum of a law over runs: starts that see every basin, Newton from each, a second search, a finish.

Given its exponents, a sum of powers is linear in its coefficients: weighted least squares solves them, so a grid over
the exponents alone sees every basin (variable projection: Golub & Pereyra 1973, as Czech et al. 2026 use it). Residuals
are relative (weights 1/L²), reweighted twice by Huber's rule. Any other law is searched between plausible bounds of its
constants. The best starts that lie apart go to damped Newton, which lowers δ step by step and solves many rows of θ
(starts, or resamples that differ in their weights) side by side; each has its own damping and stops for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array
from isoflop.fit.prior import FIRST_NOISE, Prior, fitted_by_runs, noise_of, typical_size
from isoflop.fit.problem import PowerSum, Problem, huber

CONTINUATION = 3.0
"""δ is lowered by this factor: a Huber loss with a small δ has kinks everywhere, with a large one it is quadratic."""
WIDEST = 3e-2
LOWEST, HIGHEST = 0.02, 3.0
"""Exponents that are looked at. Published ones lie between .05 and .8."""
CONVERGED = 1e-9
"""Relative gain that Newton's quadratic form promises, below which a row is done whatever else is asked."""
MOST_RUNS = 2000
"""Runs that the search looks at; Newton sees them all."""
GRID = {1: 64, 2: 20, 3: 11}
"""Points of an axis by number of exponents; of more a Sobol sequence."""
DRAWS = 2048
FEWEST = 64
"""Rows of the grid that go on after the first round, at the least."""
LARGEST = 600.0
"""Of a term's logarithm in the search: an exponent that ran off puts e^1000 beside 1."""
SEED = 0
"""Of Sobol sequences and of the runs that are looked at: the same runs have the same fit."""
BLOCK = 16_000
"""Runs × rows of the grid that are solved side by side: what fits into a processor's cache."""
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
BOUNDS: dict[str, tuple[float, float]] = {
    "E": (1e-2, 10.0),
    **dict.fromkeys(("A", "B"), (1.0, 1e6)),
    **dict.fromkeys(("alpha", "beta"), (LOWEST, HIGHEST)),
    **dict.fromkeys(("N_c", "D_c"), (1e6, 1e18)),
    **dict.fromkeys(("alpha_N", "alpha_D"), (0.01, 1.0)),
    "gamma": (1e-4, 3.0),
    "epsilon": (0.05, 2.0),
    "k": (1e-2, 1e3),
    "X_start": (1.01, 10.0),
    "X_max": (20.0, 5000.0),
    **dict.fromkeys(("R_D_star", "R_N_star"), (0.1, 1e4)),
}
"""Where a constant of a law that is no sum of powers is looked for: a form of these constants alone can be fitted."""


# -- Newton ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """What is minimised over θ: a law over its runs, their weights ([n], or by row of θ [rows, n]), Huber's δ.

    A prior's penalty is added, on the scale of `Prior.weighed`.
    """

    problem: Problem
    weights: Array
    delta: float
    prior: Prior | None = None

    def value(self, theta: Array) -> Array:
        """At θ [rows, free]: [rows]."""
        value = self.problem.objective(theta, self.weights, self.delta)
        return value if self.prior is None else value + self.prior.penalty(theta)


def minimise(
    objective: Objective,
    theta: Array,
    *,
    widest: float = WIDEST,
    merge: float = 0.0,
    tolerance: float = 1e-14,
    steps: int = 200,
) -> tuple[Array, Array]:
    """From each row of θ to a minimum nearby.

    Args:
        objective: of all rows.
        theta: [rows, free].
        widest: where the continuation in δ begins; 0: at the objective's δ.
        merge: rows of common weights that the continuation brings this near a better one are dropped.
        tolerance: relative gain of a step below which a row is done.
        steps: at most.

    Returns:
        θ and objectives [rows, or fewer where some merged].
    """
    widths = [objective.delta]
    while widths[-1] * CONTINUATION <= widest:
        widths.append(widths[-1] * CONTINUATION)
    for width in widths[:0:-1]:
        # at the widest δ starts far off still come together, which is cheaper than to take each through the kinks
        at_most = 30 if merge and width == widths[-1] else 8
        theta, found = _newton(replace(objective, delta=width), theta, steps=at_most, tolerance=1e-3)
        if merge:
            theta = theta[np.argsort(found)]
            near = np.abs(theta[:, None] - theta).max(axis=2) < merge
            theta = theta[~np.tril(near, -1).any(axis=1)]
    return _newton(objective, theta, steps, tolerance)


def _newton(objective: Objective, theta: Array, steps: int, tolerance: float) -> tuple[Array, Array]:
    problem, delta, prior = objective.problem, objective.delta, objective.prior
    theta = theta.copy()
    rows = len(theta)
    weights = np.broadcast_to(objective.weights, (rows, len(problem.log_loss)))
    damping, stalled = np.full(rows, 1e-3), np.zeros(rows, dtype=int)
    residuals, details = problem.state(theta)
    best = (weights * huber(residuals, delta)).sum(axis=1)
    if prior is not None:
        best += prior.penalty(theta)
    active = np.arange(rows)
    for _ in range(steps):
        w = weights[active]
        gradient, hessian = problem.derivatives((residuals, details), w, delta)
        mine = None if prior is None else prior.of(active)
        if mine is not None:
            more = mine.derivatives(theta[active])
            gradient, hessian = gradient + more[0], hessian + more[1]
        step, promised = _step(gradient, hessian, damping[active])
        tried = theta[active] + step
        new_residuals, new_details = problem.state(tried)
        value = (w * huber(new_residuals, delta)).sum(axis=1)
        if mine is not None:
            value += mine.penalty(tried)
        gain = best[active] - value
        better = gain > 0
        good = active[better]
        theta[good], best[good] = tried[better], value[better]
        residuals[better], details[better] = new_residuals[better], new_details[better]
        damping[good] = np.maximum(damping[good] / 5, 1e-15)
        damping[active[~better]] = np.minimum(damping[active[~better]] * 6, 1e8)
        # done: nothing to speak of is left to gain, or three steps in a row gain nothing
        stalled[active] = np.where(gain <= tolerance * np.abs(best[active]), stalled[active] + 1, 0)
        open_ = promised > min(tolerance, CONVERGED) * np.abs(best[active])
        going = open_ & (stalled[active] < np.where(better, 2, 9))
        active, residuals, details = active[going], residuals[going], details[going]
        if not active.size:
            break
    return theta, best


def _step(gradient: Array, hessian: Array, damping: Array) -> tuple[Array, Array]:
    """Newton's step by row, damped, downhill along directions of negative curvature too (|eigenvalue|) [rows, free].

    And what the undamped one gains by the quadratic form [rows].
    """
    values, vectors = np.linalg.eigh(hessian)
    rotated = np.matmul(gradient[:, None], vectors)[:, 0]
    size = np.abs(values)
    least = size.max(axis=1)[:, None]
    curvature = np.maximum(size + damping[:, None] * least, 1e-290)
    step = -np.matmul(vectors, (rotated / curvature)[..., None])[..., 0]
    gain = 0.5 * (rotated**2 / np.maximum(size, 1e-290)).sum(axis=1)
    # no leap by more than e² in a coefficient
    return step * np.minimum(1, 2 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300)), gain


# -- the optimum -------------------------------------------------------------------------------------------------------


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
    """The best fit, its prior weighed here; `absolute`: by least absolute deviations in place of Huber's loss."""
    if objective.prior is not None:
        return _under_prior(objective, objective.prior)
    found = minimise(objective, starts(objective), merge=SAME)
    again = _restarts(objective, found[0][found[1].argmin()])
    if len(again):
        found = _with(found, minimise(objective, again, widest=0.0))
    theta, value = _hop(objective, *found)
    if np.abs(objective.problem.residuals(theta[None])).max() < NOISELESS:
        theta, value = _to_the_last_digit(objective, theta)
    if absolute:
        theta, value = least_absolute(objective, theta)
    return Optimum(theta, objective, value, len(theta))


def _with(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
    return np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])


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
    theta, _ = _hop(mine, found, values)
    return Optimum(theta, mine, float(problem.objective(theta[None], weights, delta)[0]), constants, before)


def _hop(objective: Objective, theta: Array, values: Array) -> tuple[Array, float]:
    """The best of minima [rows, free] and of those found by starts about it, at the final δ."""
    rng = np.random.default_rng(SEED)
    for _ in range(HOP_ROUNDS if isinstance(objective.problem, PowerSum) else 0):
        best, least = theta[values.argmin()], float(values.min())
        state = objective.problem.state(best[None])
        slope = objective.problem.slope(state) / max(typical_size(state[0][0]), objective.delta)
        curvature, directions = np.linalg.eigh(slope.T @ slope)
        length = np.minimum(1 / np.sqrt(np.maximum(curvature, LONGEST_HOP**-2)), LONGEST_HOP)
        jumps = rng.standard_normal((HOPS, len(best))) * length @ directions.T
        theta, values = _with((theta, values), minimise(objective, best + jumps, widest=0.0))
        if not values.min() < least * (1 - 1e-12):
            break
    return theta[values.argmin()], float(values.min())


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


# -- starts ------------------------------------------------------------------------------------------------------------


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


def _projected(objective: Objective, problem: PowerSum, around: Array | None, keep: int) -> Array:
    """Starts of a sum of powers by variable projection over its exponents."""
    delta, prior = objective.delta, objective.prior
    runs = np.arange(len(problem.log_loss))
    if len(runs) > MOST_RUNS:
        runs = np.sort(np.random.default_rng(SEED).choice(runs, MOST_RUNS, replace=False))
    is_exponent = problem.is_exponent[problem.free]
    axis = np.geomspace(LOWEST, HIGHEST, GRID[1])
    if around is None:
        grid = np.exp(_grid(*np.log([[LOWEST, HIGHEST]] * int(is_exponent.sum())).reshape(-1, 2).T))
    else:  # each exponent through its range, the others as they are
        grid = np.repeat(around[is_exponent][None], len(axis) * is_exponent.sum(), axis=0)
        for i in range(grid.shape[1]):
            grid[i * len(axis) : (i + 1) * len(axis), i] = axis
    if prior is not None:  # the exponents that have a prior at its mean, too
        held = grid.copy()
        for i, name in enumerate(np.array(problem.free_names)[is_exponent].tolist()):
            if name in prior.names:
                held[:, i] = np.clip(prior.mean[prior.names.index(name)], LOWEST, HIGHEST)
        grid = np.concatenate([grid, np.unique(held, axis=0)])
    log_loss, w = problem.log_loss[runs], objective.weights[runs]
    loss = np.exp(log_loss)
    relative = np.broadcast_to(w / loss**2, (len(grid), len(runs)))
    for again in range(3):
        at = np.array_split(np.arange(len(grid)), -(-grid.shape[0] * len(runs) // BLOCK))
        parts = [_projection(problem, runs, grid[rows], is_exponent, loss, relative[rows]) for rows in at]
        coefficients, predicted = (np.concatenate(part) for part in zip(*parts, strict=True))
        residuals = np.log(np.maximum(predicted, 1e-12)) - log_loss
        scale = max(delta, 1.345 * float(np.median(np.abs(residuals).min(axis=0))) / 0.6745)
        if again == 0:  # a quarter of the grid goes on
            good = np.argsort((w * huber(residuals, scale)).sum(axis=1))[: max(len(grid) // 4, FEWEST)]
            grid, residuals = grid[good], residuals[good]
        relative = w / loss**2 * np.minimum(1, scale / np.maximum(np.abs(residuals), 1e-300))
    theta = np.empty((len(grid), len(problem.free)))
    theta[:, is_exponent], theta[:, ~is_exponent] = grid, np.log(coefficients)
    values = (w * huber(residuals, delta)).sum(axis=1)
    if prior is not None:
        values += prior.penalty(theta)
    return theta[apart(np.log(np.abs(grid)), values, APART, keep)]


def _grid(low: Array, high: Array) -> Array:
    """Points between bounds, each [dimensions]: a mesh in few dimensions, else a Sobol sequence."""
    if len(low) > max(GRID):
        return _sobol(low, high, DRAWS)
    return _mesh([np.linspace(a, b, GRID[len(low)]) for a, b in zip(low, high, strict=True)])


def _mesh(axes: list[Array]) -> Array:
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes)) if axes else np.zeros((1, 0))


def _sobol(low: Array, high: Array, points: int) -> Array:
    from scipy.stats import qmc  # takes .4 s, which who only draws figures need not wait for

    return qmc.scale(qmc.Sobol(len(low), seed=SEED).random(points), low, high)


def _projection(
    problem: PowerSum, runs: NDArray[np.int64], grid: Array, is_exponent: NDArray[np.bool_], loss: Array, weights: Array
) -> tuple[Array, Array]:
    """For each row of exponents the coefficients [rows, c] that weighted squares ask for, and the losses [rows, n]."""
    columns, known = _columns(problem, runs, grid, is_exponent)
    coefficients = _least_squares(columns, loss - known, weights)
    return coefficients, np.matmul(coefficients[:, None], columns)[:, 0] + known


def _columns(
    problem: PowerSum, runs: NDArray[np.int64], grid: Array, is_exponent: NDArray[np.bool_]
) -> tuple[Array, Array]:
    """For each row of exponents: what each free coefficient multiplies [rows, c, n], and what is fixed [rows, n]."""
    design, offset = problem.design[runs], problem.offset[runs]
    shifts, members = design[:, :, is_exponent], design[:, :, ~is_exponent]
    columns = np.zeros((len(grid), members.shape[2], len(runs)))
    known = np.zeros((len(grid), len(runs)))
    for k in range(design.shape[1]):
        power = (
            np.exp(np.minimum(grid @ shifts[:, k].T + offset[:, k], LARGEST))
            if shifts[:, k].any()
            else (np.exp(offset[None, :, k]))
        )
        for c in np.flatnonzero(members[:, k].any(axis=0)):
            columns[:, c] += members[:, k, c] * power
        fixed = 1 - members[:, k].sum(axis=1)
        if fixed.any():
            known += fixed * power
    return columns, known


def _least_squares(columns: Array, target: Array, weights: Array) -> Array:
    """Coefficients [rows, c], positive: where one comes out negative it is put at a thousandth of the loss."""
    # An exponent that ran off makes columns of 1e250, whose squares overflow; a power of two changes no digit.
    exponent = np.frexp(np.abs(columns).max(axis=2, keepdims=True))[1]
    columns = np.ldexp(columns, -exponent)
    weighted = columns * weights[:, None]
    normal = np.matmul(weighted, np.swapaxes(columns, 1, 2))
    scale = np.sqrt(np.maximum(np.diagonal(normal, axis1=1, axis2=2), 1e-300))
    normal = normal / (scale[:, :, None] * scale[:, None, :]) + 1e-13 * np.eye(normal.shape[1])
    target = np.broadcast_to(target, weights.shape)
    right = np.matmul(weighted, target[..., None])[..., 0] / scale
    found = np.linalg.solve(normal, right[..., None])[..., 0] / scale
    whole = float(np.mean(np.abs(target))) / np.maximum(columns.mean(axis=2), 1e-300)
    return np.ldexp(np.where(found > 1e-9 * whole, found, 1e-3 * whole), -exponent[..., 0])


def _between_bounds(objective: Objective, cells: int, keep: int) -> Array:
    """Starts of any law: the best of a grid or a Sobol sequence, a cell of each range apart."""
    low, high = np.log([BOUNDS[name] for name in objective.problem.free_names]).T
    few = len(low) <= 2
    points = _mesh(np.linspace(low, high, 40).T.tolist()) if few else _sobol(low, high, 2 * DRAWS)
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
    rows = [theta[None], starts(objective, keep=STARTS)]
    if isinstance(problem, PowerSum) and problem.is_exponent[problem.free].any():
        rows.append(starts(objective, around=theta, keep=STARTS))
    best, least = theta, float(objective.value(theta[None])[0])
    for x in np.concatenate(rows):
        if len(x) > len(root) or least < EXACT * float(objective.weights.sum()):
            break
        found = least_squares(
            lambda x: root * problem.residuals(x[None])[0],
            x,
            lambda x: root[:, None] * problem.slope(problem.state(x[None])),
            method="lm",
            **dict.fromkeys(("xtol", "ftol", "gtol"), 1e-15),
            max_nfev=300,
        ).x
        value = float(objective.value(found[None])[0])
        if value < least:
            best, least = found, value
    return best, least


def least_absolute(objective: Objective, theta: Array) -> tuple[Array, float]:
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
    for _ in range(40):
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
            theta, best, radius = tried, value, radius * 2
        else:
            radius /= 8
        if radius < 1e-9:
            break
    return theta, best
