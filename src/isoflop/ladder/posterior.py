"""A drifting law's posterior given a ladder's finished runs: its mode, then Markov chains around it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import least_squares

from isoflop.ladder.belief import BEYOND, NOISE, NOISE_SD, pulls, scatter
from isoflop.ladder.drifting_law import (
    CONSTANTS,
    Array,
    BudgetLine,
    Origin,
    best_size,
    gradient,
    least_loss,
    log_loss,
    slopes,
)

CHAINS, STEPS, KEPT_FROM, EVERY = 120, 1000, 600, 40
"""Each half of the chains moves every other step; they are kept when they have forgotten where they began."""
WIDER = 1.6
"""Chains begin at draws of the Gaussian about the mode, this much wider: skewed tails are reached sooner so."""
PLACE_SD = 3.0
"""Of ln L at the origin about the runs' mean: no information."""


@dataclass(frozen=True)
class Posterior:
    """What runs and prior say.

    Attributes:
        origin: of θ.
        mode: θ of greatest posterior probability [8].
        draws: θ [draws, 8].
        noise: standard deviation of a run's own ln L, by draw [draws].
        residuals: ln L of the runs less the mode's [n].
    """

    origin: Origin
    mode: Array
    draws: Array = field(repr=False)
    noise: Array = field(repr=False)
    residuals: Array = field(repr=False)

    def sizes(self, line: BudgetLine) -> Array:
        """Ln N of the least loss on a budget's line, by draw."""
        return best_size(self.draws, self.origin, line)

    def losses(self, N: float, D: float) -> Array:
        """Ln L of a law's run of that size, without its noise, by draw."""
        return log_loss(self.draws, self.origin.x(np.array([N])), self.origin.y(np.array([D])))[:, 0]

    def run_losses(self, N: float, D: float, seed: int = 0) -> Array:
        """Logarithm of the loss of a run of that size, by draw: its noise and, beyond the ladder, doubt of any law."""
        own = scatter(np.array([N]), np.array([D]))[0, 0] * self.noise**2
        reach = max(0.0, float(self.origin.x(N) + self.origin.y(D)))
        rng = np.random.default_rng(seed)
        return self.losses(N, D) + np.sqrt(own + (BEYOND * reach) ** 2) * rng.standard_normal(len(self.noise))

    def least(self, line: BudgetLine) -> Array:
        """Ln L at each draw's own best size."""
        return least_loss(self.draws, self.origin, line)


def posterior_of(N: Array, D: Array, loss: Array, origin: Origin, seed: int = 0) -> Posterior:
    """Fit.

    Args:
        N: parameters [n].
        D: tokens [n].
        loss: nats per token [n].
        origin: near the largest budget's runs, at 20 tokens per parameter.
        seed: of the chains.
    """
    x, y, seen = origin.x(N), origin.y(D), np.log(np.asarray(loss, dtype=float))
    whiten = np.linalg.inv(np.linalg.cholesky(scatter(np.asarray(N, dtype=float), np.asarray(D, dtype=float))))
    place = float(seen.mean())
    mode, log_noise = _mode(x, y, seen, whiten, place)

    def log_density(rows: Array) -> Array:
        theta, s = rows[:, :CONSTANTS], rows[:, CONSTANTS]
        with np.errstate(over="ignore", invalid="ignore"):
            r = (log_loss(theta, x, y) - seen) @ whiten.T
            value = -0.5 * np.exp(-2 * s) * (r**2).sum(axis=1) - len(seen) * s
            value -= 0.5 * ((s - math.log(NOISE)) / NOISE_SD) ** 2
            value -= 0.5 * (_prior(theta, place) ** 2).sum(axis=1)
        return np.where(np.isfinite(value), value, -np.inf)

    information = _information(mode, x, y, whiten, math.exp(log_noise), place)
    spread = np.zeros((CONSTANTS + 1, CONSTANTS + 1))
    spread[:CONSTANTS, :CONSTANTS] = np.linalg.inv(information)
    spread[-1, -1] = 1 / (2 * len(seen) + NOISE_SD**-2)
    rows = _chains(log_density, np.append(mode, log_noise), spread, np.random.default_rng(seed))
    residuals = seen - log_loss(mode[None], x, y)[0]
    return Posterior(origin, mode, rows[:, :CONSTANTS], np.exp(rows[:, CONSTANTS]), residuals)


def _prior(theta: Array, place: float) -> Array:
    level = np.log(np.exp(theta[:, :3]).sum(axis=1)) - place
    return np.concatenate([pulls(theta), level[:, None] / PLACE_SD], axis=1)


def _mode(x: Array, y: Array, seen: Array, whiten: Array, place: float) -> tuple[Array, float]:
    """θ and ln noise: each in turn, for the noise's own optimum is known given the residuals."""
    level = math.exp(seen.min())
    log_alpha = math.log(0.35)
    theta = np.array([math.log(0.6 * level), *([math.log(0.2 * level)] * 2), log_alpha, log_alpha, 0.0, 0.0, 0.0])
    log_noise = math.log(0.02)
    for _ in range(12):

        def residuals(t: Array, sd: float = math.exp(log_noise)) -> Array:
            r = whiten @ (log_loss(t[None], x, y)[0] - seen) / sd
            return np.concatenate([r, _prior(t[None], place)[0]])

        def jacobian(t: Array, sd: float = math.exp(log_noise)) -> Array:
            prior = gradient(lambda rows: _prior(rows, place), t[None])[0]
            return np.concatenate([whiten @ slopes(t[None], x, y)[0] / sd, prior])

        theta = least_squares(residuals, theta, jacobian, method="trf", x_scale="jac", max_nfev=100).x
        squares = float(((whiten @ (log_loss(theta[None], x, y)[0] - seen)) ** 2).sum())
        before, log_noise = log_noise, _log_noise(squares, len(seen))
        if abs(before - log_noise) < 0.02:
            break
    return theta, log_noise


def _log_noise(squares: float, n: int) -> float:
    """Ln of the noise of greatest posterior probability given the sum of squares: by bisection."""
    low, high = math.log(1e-6), math.log(1.0)
    effective = max(n - 5, 1)  # constants that the runs fit take their share of the squares
    for _ in range(60):
        s = 0.5 * (low + high)
        slope = squares * math.exp(-2 * s) - effective - (s - math.log(NOISE)) / NOISE_SD**2
        low, high = (s, high) if slope > 0 else (low, s)
    return 0.5 * (low + high)


def _information(theta: Array, x: Array, y: Array, whiten: Array, noise: float, place: float) -> Array:
    rows = whiten @ slopes(theta[None], x, y)[0] / noise
    prior = gradient(lambda rows: _prior(rows, place), theta[None])[0]
    return np.asarray(rows.T @ rows + prior.T @ prior)


def _chains(log_density: Callable[[Array], Array], centre: Array, spread: Array, rng: np.random.Generator) -> Array:
    """Differential evolution Markov chains (ter Braak 2006): jumps along differences of other chains.

    The posterior is skewed where E is nearly open, and no fixed proposal fits it. Halves take turns, each jumping along
    the other half's differences, which keeps detailed balance.
    """
    d = len(centre)
    root = np.linalg.cholesky(spread + 1e-15 * np.eye(d))
    at = centre + WIDER * rng.standard_normal((CHAINS, d)) @ root.T
    value = log_density(at)
    half, kept = CHAINS // 2, []
    for step in range(STEPS):
        mine, others = (slice(0, half), half) if step % 2 else (slice(half, None), 0)
        first = rng.integers(half, size=half)
        second = (first + rng.integers(1, half, size=half)) % half
        length = 1.0 if step % 20 < 2 else 2.38 / math.sqrt(2 * d)
        jump = length * (at[others + first] - at[others + second]) + 1e-4 * rng.standard_normal((half, d)) @ root.T
        new = log_density(at[mine] + jump)
        accept = np.log(rng.random(half)) < new - value[mine]
        at[mine] = np.where(accept[:, None], at[mine] + jump, at[mine])
        value[mine] = np.where(accept, new, value[mine])
        if step >= KEPT_FROM and (step + 1) % EVERY == 0:
            kept.append(at.copy())
    return np.concatenate(kept)
