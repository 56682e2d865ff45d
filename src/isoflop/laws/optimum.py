"""Optimal N and D of many laws side by side: in closed form, by a root, or by minimisation on a log scale.

Minimise L(N, D) where FLOPs(N, D) = N·(train·D + fixed). For L = E + A/N^α + B/D^β the marginal returns per FLOP of N
and of D are equal at the optimum. Without constraints αA/N^α = βB/D^β (Hoffmann et al. 2022, eq. 4); each inference
token adds to the price of a parameter and to none of D (Sardana et al. 2023), so the right side is multiplied by
1 + fixed/(train·D). Both sides are monotone: one root. Any other law is minimised by ever finer grids.

Arrays are [rows]: the law itself in row 0, its draws in the rows after. A row without an answer is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.arrays import Array
from isoflop.laws.forms import TRAINING_FLOPS, Law, hoffmann_allocation

Function = Callable[[Array], Array]
Loss = Callable[[Array, Array], Array]
Constants = Mapping[str, Array]

GRID = 65
"""Points of the first search, about one a factor of e: a law that is no sum of power laws may have several minima."""
REFINED = (11,) * 12
"""Points of the searches after it; each leaves a fifth of the range."""
BUDGETS = (1e3, 1e40)
"""FLOPs between which a budget is looked for."""
LOWEST, HIGHEST = -100.0, 300.0
"""Range of ln D, and of the logit of a share, in which a root is looked for."""


@dataclass(frozen=True)
class Cost:
    """FLOPs(N, D) = N·(train·D + fixed); `fixed` is what a parameter costs whatever D is: 2·D_inference."""

    train: float = TRAINING_FLOPS
    fixed: float = 0.0

    def tokens(self, N: Array, C: Array | float) -> Array:
        """D that spends C on N parameters; not positive where the fixed part alone is dearer."""
        return (C / N - self.fixed) / self.train

    def flops(self, N: Array, D: Array) -> Array:
        """All FLOPs of N parameters on D tokens."""
        return N * (self.train * D + self.fixed)


def rows(law: Law) -> dict[str, Array]:
    """Constants [1 + draws] by letter; a constant without draws was held fixed."""
    draws = law.draws or {}
    number = max((np.size(value) for value in draws.values()), default=0)
    return {
        name: np.concatenate([[float(value)], np.broadcast_to(np.asarray(draws.get(name, value), dtype=float), number)])
        for name, value in law.constants.items()
    }


# -- any law -----------------------------------------------------------------------------------------------------------


def best_at_budget(loss: Loss, C: Array, cost: Cost) -> tuple[Array, Array]:
    """N and D [rows] that minimise L where FLOPs(N, D) = C [rows]; NaN where the minimum is not inside 1 ≤ N, 1 ≤ D."""

    def along(log_N: Array) -> Array:
        N = np.exp(log_N)
        return loss(N, cost.tokens(N, C))

    with np.errstate(all="ignore"):
        N = np.exp(minimise(along, np.zeros_like(C), np.log(C / (cost.train + cost.fixed))))
        return N, cost.tokens(N, C)


def best_at_loss(loss: Loss, target: float, number: int, cost: Cost) -> tuple[Array, Array]:
    """N and D [rows] that reach the target with the fewest FLOPs; infinite where no budget does.

    The least loss at a budget falls as the budget grows: the budget at which it passes the target is the least.
    """

    def excess(log_C: Array) -> Array:
        return loss(*best_at_budget(loss, np.exp(log_C), cost)) - target

    low, high = (np.full(number, np.log(limit)) for limit in (BUDGETS[0] + cost.fixed, BUDGETS[1]))
    # so small a budget may have no inner minimum yet: upwards to the first that has one
    for _ in range(20):
        missing = np.isnan(excess(low))
        if not missing.any():
            break
        low = np.where(missing, low + 3, low)
    never = excess(high) > 0
    N, D = best_at_budget(loss, np.exp(root(excess, low, high, steps=50)), cost)
    return np.where(never, np.inf, N), np.where(never, np.inf, D)


def minimise(function: Function, low: Array, high: Array) -> Array:
    """Where the function is least in [low, high], [rows]: ever finer grids; NaN at an end of the range.

    The function takes [points, rows]. As near as function values can tell points apart: √(ε·f/f″), for a loss close to
    its E about 1e-5 in log N.
    """
    inside = np.ones(low.shape, dtype=bool)
    for points in (GRID, *REFINED):
        step = (high - low) / (points - 1)
        values = function(low + np.arange(points)[:, None] * step)
        values = np.where(np.isnan(values), np.inf, values)
        best = values.argmin(axis=0)
        if points == GRID:
            inside = (best > 0) & (best < points - 1) & np.isfinite(values.min(axis=0))
        low, high = low + (best - 1) * step, low + (best + 1) * step
    return np.where(inside, (low + high) / 2, np.nan)


def root(function: Function, low: Array, high: Array, steps: int = 64) -> Array:
    """Where a monotone function crosses zero in [low, high], [rows], by bisection; NaN where it does not."""
    rises = function(high) > 0
    with np.errstate(invalid="ignore"):
        crosses = function(low) * function(high) <= 0
    for _ in range(steps):
        middle = (low + high) / 2
        beyond = (function(middle) > 0) == rises
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return np.where(crosses, (low + high) / 2, np.nan)


# -- L = E + A/N^α + B/D^β ---------------------------------------------------------------------------------------------


def hoffmann_at_budget(constants: Constants, C: Array | float, cost: Cost) -> tuple[Array, Array]:
    """N and D [rows] that minimise L where N·(train·D + fixed) = C [rows].

    In closed form without inference; else the root of αA/N^α = βB/D^β·(1 + fixed/(train·D)) in ln D, which falls from
    +∞ to −∞.
    """
    A, B, alpha, beta = _valid(constants)
    with np.errstate(all="ignore"):
        if cost.fixed == 0:
            return hoffmann_allocation(C * 6 / cost.train, A=A, B=B, alpha=alpha, beta=beta)
        log_prices = np.log(alpha * A) - np.log(beta * B)

        def per_parameter(log_D: Array) -> Array:
            return np.logaddexp(np.log(cost.train) + log_D, np.log(cost.fixed))

        def balance(log_D: Array) -> Array:
            log_share = per_parameter(log_D) - np.log(cost.train) - log_D
            return alpha * (np.log(C) - per_parameter(log_D)) - beta * log_D + log_share - log_prices

        log_D = root(balance, np.full_like(A, LOWEST), np.full_like(A, HIGHEST))
        return np.exp(np.log(C) - per_parameter(log_D)), np.exp(log_D)


def hoffmann_at_reducible(constants: Constants, reducible: ArrayLike, cost: Cost) -> tuple[Array, Array]:
    """N and D [rows] that reach a loss E + `reducible` with the fewest N·(train·D + fixed) FLOPs; infinite from 0 down.

    By the share u of the reducible loss L − E that A/N^α has: u = a = β/(α+β) without inference; else the root of
    αu = β(1−u)·(1 + fixed/(train·D)), sought in logit u.
    """
    A, B, alpha, beta = _valid(constants)
    never = np.asarray(reducible) <= 0
    with np.errstate(all="ignore"):
        log_r = np.log(np.where(never, np.nan, reducible))

        def log_D(logit: Array) -> Array:
            return (np.log(B) - log_r + np.logaddexp(0, logit)) / beta

        def balance(logit: Array) -> Array:
            return logit + np.log(alpha / beta) - np.log1p(cost.fixed / cost.train * np.exp(-log_D(logit)))

        logit = np.log(beta / alpha)
        if cost.fixed > 0:
            logit = root(balance, np.full_like(A, LOWEST), np.full_like(A, HIGHEST))
        N, D = np.exp((np.log(A) - log_r + np.logaddexp(0, -logit)) / alpha), np.exp(log_D(logit))
    return np.where(never, np.inf, N), np.where(never, np.inf, D)


def _valid(constants: Constants) -> tuple[Array, Array, Array, Array]:
    """A, B, α, β; NaN in rows where one is not positive: their loss has no minimum along a budget."""
    values = np.stack([constants[name] for name in ("A", "B", "alpha", "beta")])
    good = (np.isfinite(values) & (values > 0)).all(axis=0)
    A, B, alpha, beta = np.where(good, values, np.nan)
    return A, B, alpha, beta
