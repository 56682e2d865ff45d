"""Hoffmann's law with exponents that may drift: what a ladder is fitted with, and what its runs are chosen for.

L(N, D) = E + A(N) + B(D), ln A = p − α·x − κ_A·x²/2 and ln B = q − β·y − κ_B·y²/2 with x = ln(N/N₀), y = ln(D/D₀). With
κ = 0 it is Hoffmann et al. 2022, eq. 10. No pure power law holds over all scales, so κ, small by
its prior, carries what the form leaves out: an extrapolation is less sure the farther it goes.

Constants are rows θ = (ln E, p, q, ln α, ln β, κ_A, κ_B), [rows, 7]; the origin (N₀, D₀) is that of the largest budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
E, P, Q, ALPHA, BETA, KAPPA_A, KAPPA_B = range(7)
CONSTANTS = 7
FLATTEST = 0.03
"""Of a local exponent: one that drifts below counts as this."""
NEWTON_STEPS = 30


@dataclass(frozen=True)
class Origin:
    """N₀ parameters and D₀ tokens."""

    N: float
    D: float

    def x(self, N: Array | float) -> Array:
        """Ln N/N₀."""
        return np.log(np.asarray(N, dtype=float) / self.N)

    def y(self, D: Array | float) -> Array:
        """Ln D/D₀."""
        return np.log(np.asarray(D, dtype=float) / self.D)


@dataclass(frozen=True)
class BudgetLine:
    """The sizes that a budget allows: ln D falls by `slope` per ln N around (N, D).

    Attributes:
        C: FLOPs.
        N, D: a point of it.
        slope: 1 where C = 6·N·D; less for small models, whose attention is a larger part.
    """

    C: float
    N: float
    D: float
    slope: float = 1.0

    def tokens(self, N: Array | float) -> Array:
        """D for N parameters."""
        return np.asarray(self.D * (np.asarray(N, dtype=float) / self.N) ** -self.slope)


def parts(theta: Array, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """E, A(N) and B(D) [rows, runs], nats per token."""
    t = theta[:, :, None]
    A = np.exp(t[:, P] - np.exp(t[:, ALPHA]) * x - t[:, KAPPA_A] * x * x / 2)
    B = np.exp(t[:, Q] - np.exp(t[:, BETA]) * y - t[:, KAPPA_B] * y * y / 2)
    return np.broadcast_to(np.exp(t[:, E]), A.shape), A, B


def log_loss(theta: Array, x: Array, y: Array) -> Array:
    """Ln L [rows, runs]."""
    floor, A, B = parts(theta, x, y)
    return np.log(floor + A + B)


def slopes(theta: Array, x: Array, y: Array) -> Array:
    """∂ ln L/∂θ [rows, runs, 7]."""
    floor, A, B = parts(theta, x, y)
    L = floor + A + B
    t = theta[:, :, None]
    a, b = A / L, B / L
    terms = (floor / L, a, b, -a * np.exp(t[:, ALPHA]) * x, -b * np.exp(t[:, BETA]) * y, -a * x * x / 2, -b * y * y / 2)
    return np.stack(terms, axis=-1)


def best_size(theta: Array, origin: Origin, line: BudgetLine) -> Array:
    """Ln N of the least loss on a budget's line [rows].

    Where −∂L/∂ln N of both terms balance: α(x)·A(x) = slope·β(y)·B(y), the local exponents α(x) = α + κ_A·x, likewise
    β(y). The difference of the logarithms falls in x, so Newton's method with steps of at most 2 finds it.
    """
    alpha, beta = np.exp(theta[:, ALPHA]), np.exp(theta[:, BETA])
    x_line, y_line = float(origin.x(line.N)), float(origin.y(line.D))
    x = np.full(len(theta), x_line)
    for _ in range(NEWTON_STEPS):
        y = y_line - line.slope * (x - x_line)
        steep_a = np.maximum(alpha + theta[:, KAPPA_A] * x, FLATTEST)
        steep_b = np.maximum(beta + theta[:, KAPPA_B] * y, FLATTEST)
        log_A = theta[:, P] - alpha * x - theta[:, KAPPA_A] * x * x / 2
        log_B = theta[:, Q] - beta * y - theta[:, KAPPA_B] * y * y / 2
        gap = np.log(steep_a) + log_A - np.log(line.slope * steep_b) - log_B
        step = np.clip(gap / (steep_a + line.slope * steep_b), -2.0, 2.0)
        x = x + step
        if np.abs(step).max() < 1e-9:
            break
    return np.asarray(x + math.log(origin.N))


def least_loss(theta: Array, origin: Origin, line: BudgetLine) -> Array:
    """Ln L at `best_size` [rows]."""
    N = np.exp(best_size(theta, origin, line))
    return log_loss(theta, origin.x(N)[:, None], origin.y(line.tokens(N))[:, None])[:, 0]


def gradient(function: Callable[[Array], Array], theta: Array, step: float = 1e-4) -> Array:
    """∂ function/∂θ by central differences [rows, …, 7]; `function` maps [rows, 7] to [rows, …]."""
    columns = []
    for k in range(CONSTANTS):
        move = np.zeros(CONSTANTS)
        move[k] = step
        columns.append((function(theta + move) - function(theta - move)) / (2 * step))
    return np.stack(columns, axis=-1)
