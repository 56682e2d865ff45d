"""Hoffmann's law with exponents that may drift: what a ladder is fitted with, and what its runs are chosen for.

L(N, D) = E + (A^(1/ρ) + B^(1/ρ))^ρ with ln A = p − α·x − κ_A·x²/2, x = ln(N/N₀), and ln B = q − β·y − κ_B·y²/2,
y = ln(D/D₀). With κ = 0 and ρ = 1 it is Hoffmann et al. 2022, eq. 10; without E a form of Kaplan et al. 2020, eq. 1.5.
No form holds over all scales: κ and ln ρ, small by their prior, carry what Hoffmann's leaves out, so that an
extrapolation is less sure the farther it goes.

Constants are rows θ = (ln E, p, q, ln α, ln β, κ_A, κ_B, ln ρ), [rows, 8]; (N₀, D₀) is near the largest budget's runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
E, P, Q, ALPHA, BETA, KAPPA_A, KAPPA_B, RHO = range(8)
CONSTANTS = 8
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


def _terms(theta: Array, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Ln A(N), ln B(D) and the logarithm of both mixed [rows, runs]."""
    t = theta[:, :, None]
    log_A = t[:, P] - np.exp(t[:, ALPHA]) * x - t[:, KAPPA_A] * x * x / 2
    log_B = t[:, Q] - np.exp(t[:, BETA]) * y - t[:, KAPPA_B] * y * y / 2
    rho = np.exp(t[:, RHO])
    return log_A, log_B, rho * np.logaddexp(log_A / rho, log_B / rho)


def log_loss(theta: Array, x: Array, y: Array) -> Array:
    """Ln L [rows, runs]."""
    return np.logaddexp(theta[:, E, None], _terms(theta, x, y)[2])


def slopes(theta: Array, x: Array, y: Array) -> Array:
    """∂ ln L/∂θ [rows, runs, 8]."""
    log_A, log_B, mixed = _terms(theta, x, y)
    t = theta[:, :, None]
    above = 1 / (1 + np.exp(t[:, E] - mixed))  # share of the loss that is above E
    w = np.exp((log_A - mixed) / np.exp(t[:, RHO]))
    a, b = above * w, above * (1 - w)
    terms = (
        1 - above,
        a,
        b,
        -a * np.exp(t[:, ALPHA]) * x,
        -b * np.exp(t[:, BETA]) * y,
        -a * x * x / 2,
        -b * y * y / 2,
        above * (mixed - w * log_A - (1 - w) * log_B),
    )
    return np.stack(terms, axis=-1)


def best_size(theta: Array, origin: Origin, line: BudgetLine) -> Array:
    """Ln N of the least loss on a budget's line [rows].

    Where −∂L/∂ln N of both terms balance: α(x)·A^(1/ρ) = slope·β(y)·B^(1/ρ), the local exponents α(x) = α + κ_A·x,
    likewise β(y). The difference of the logarithms falls in x, so Newton's method with steps of at most 2 finds it.
    """
    alpha, beta, rho = np.exp(theta[:, ALPHA]), np.exp(theta[:, BETA]), np.exp(theta[:, RHO])
    x_line, y_line = float(origin.x(line.N)), float(origin.y(line.D))
    x = np.full(len(theta), x_line)
    for _ in range(NEWTON_STEPS):
        y = y_line - line.slope * (x - x_line)
        steep_a = np.maximum(alpha + theta[:, KAPPA_A] * x, FLATTEST)
        steep_b = np.maximum(beta + theta[:, KAPPA_B] * y, FLATTEST)
        log_A = theta[:, P] - alpha * x - theta[:, KAPPA_A] * x * x / 2
        log_B = theta[:, Q] - beta * y - theta[:, KAPPA_B] * y * y / 2
        gap = np.log(steep_a / (line.slope * steep_b)) + (log_A - log_B) / rho
        step = np.clip(gap * rho / (steep_a + line.slope * steep_b), -2.0, 2.0)
        x = x + step
        if np.abs(step).max() < 1e-9:
            break
    return np.asarray(x + math.log(origin.N))


def least_loss(theta: Array, origin: Origin, line: BudgetLine) -> Array:
    """Ln L at `best_size` [rows]."""
    N = np.exp(best_size(theta, origin, line))
    return log_loss(theta, origin.x(N)[:, None], origin.y(line.tokens(N))[:, None])[:, 0]


def gradient(function: Callable[[Array], Array], theta: Array, step: float = 1e-4) -> Array:
    """∂ function/∂θ by central differences [rows, …, 8]; `function` maps [rows, 8] to [rows, …]."""
    columns = []
    for k in range(CONSTANTS):
        move = np.zeros(CONSTANTS)
        move[k] = step
        columns.append((function(theta + move) - function(theta - move)) / (2 * step))
    return np.stack(columns, axis=-1)
