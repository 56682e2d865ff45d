"""Where a density is highest, and draws of it: damped least squares, and Markov chains that learn its shape."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from isoflop.arrays import Array

CHAINS, STEPS, KEPT_FROM, EVERY = 120, 1000, 600, 20
"""Each half of the chains moves every other step; they are kept when they have forgotten where they began."""
JITTER = 1e-4
"""Of the spread of the first points, added to jumps: chains could not leave the differences of others otherwise."""
GRID = 1 / 256
"""Of the same spread: points lie on a grid of about so much, so that another processor's rounding changes no draw."""


def least_squares(
    residuals: Callable[[Array], Array], jacobian: Callable[[Array], Array], at: Array, robust: bool
) -> Array:
    """Where Σr² is least, of `robust` Σ8·(√(1 + r²/4) − 1), by Levenberg and Marquardt's method from `at`.

    Args:
        residuals: r [n] at a point.
        jacobian: of r by the first k entries of a point [n, k]; the others stay.
        at: a point.
        robust: outliers draw it less.

    Returns:
        The first k entries.
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


def chains(log_density: Callable[[Array], Array], at: Array, rng: np.random.Generator) -> Array:
    """Draws by differential evolution Markov chains (ter Braak 2006): jumps along differences of other chains.

    Halves take turns, each jumping along the other's differences, which keeps detailed balance. No proposal needs to be
    fixed, so skewed densities are reached; the nearer to a Gaussian, the sooner chains forget where they began.

    Args:
        log_density: of rows [rows, d], but for a constant [rows].
        at: where the chains begin, an even number [chains, d].
        rng: of the jumps.

    Returns:
        Rows [draws, d].
    """
    d, spread = at.shape[1], at.std(axis=0)
    grid, jitter = 2 ** np.floor(np.log2(GRID * spread)), JITTER * spread
    at = np.round(at / grid) * grid
    value = log_density(at)
    half, kept = len(at) // 2, []
    for step in range(STEPS):
        mine, others = (slice(0, half), half) if step % 2 else (slice(half, None), 0)
        first = rng.integers(half, size=half)
        second = (first + rng.integers(1, half, size=half)) % half
        length = 1.0 if step % 20 < 2 else 2.38 / math.sqrt(2 * d)
        jump = length * (at[others + first] - at[others + second]) + jitter * rng.standard_normal((half, d))
        moved = np.round((at[mine] + jump) / grid) * grid
        new = log_density(moved)
        accept = np.log(rng.random(half)) < new - value[mine]
        at[mine] = np.where(accept[:, None], moved, at[mine])
        value[mine] = np.where(accept, new, value[mine])
        if step >= KEPT_FROM and (step + 1) % EVERY == 0:
            kept.append(at.copy())
    return np.concatenate(kept)
