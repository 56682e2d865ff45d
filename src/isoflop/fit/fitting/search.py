"""Where to start: variable projection over the exponents (Golub & Pereyra 1973), as Czech et al. 2026 use it.

Given the exponents, a sum of powers is linear in its coefficients: weighted least squares solves them. So the search
has only the exponents' dimensions, and a grid over these sees every basin. Residuals are relative (weights 1/L²),
reweighted twice by Huber's rule: the best few, apart from each other, then go to Newton.
"""

from __future__ import annotations

import numpy as np

from isoflop.fit.fitting.newton import Array, huber
from isoflop.fit.fitting.power_sum import PowerSum
from isoflop.fit.fitting.prior import Prior

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
