"""Minima and roots in one variable for many laws side by side: the law itself in row 0, its draws in the rows after.

Every function here takes and returns arrays [rows]; a row without an answer is NaN, and says so to its caller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.fit.law import Law

Array = NDArray[np.float64]
Function = Callable[[Array], Array]
Loss = Callable[[Array, Array], Array]

GRID = 65
"""Points of the first search, about one a factor of e: a law that is no sum of power laws may have several minima."""
REFINED = (11,) * 12
"""Points of the searches after it; each leaves a fifth of the range."""
BUDGETS = (1e3, 1e40)
"""FLOPs between which a budget is looked for."""


@dataclass(frozen=True)
class Cost:
    """FLOPs(N, D) = N·(train·D + fixed); `fixed` is what a parameter costs whatever D is: 2·D_inference."""

    train: float = 6.0
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


def loss_function(law: Law, unique_tokens: float | None = None) -> Loss:
    """L(N, D) [rows] of a law of N and D, or of N, D and U: U is D, a single epoch, where the stock is unlimited."""
    constants, variables = rows(law), law.form.variables
    if set(variables) not in ({"N", "D"}, {"N", "D", "U"}):
        raise ValueError(
            f"the frontier needs a law of N and D, or of N, D and U; {law.form.name} is one of {', '.join(variables)}: "
            f"fit or choose a law such as besiroglu2024"
        )
    stock = np.inf if unique_tokens is None else unique_tokens

    def loss(N: Array, D: Array) -> Array:
        values = {"N": N, "D": D, "U": np.minimum(stock, D)}
        with np.errstate(all="ignore"):
            return np.asarray(law.form.function(*(values[name] for name in variables), **constants), dtype=float)

    return loss


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
        N, D = best_at_budget(loss, np.exp(log_C), cost)
        return loss(N, D) - target

    low, high = (np.full(number, np.log(limit)) for limit in (BUDGETS[0] + cost.fixed, BUDGETS[1]))
    # so small a budget may have no inner minimum yet: upwards to the first that has one
    for _ in range(20):
        missing = np.isnan(excess(low))
        if not missing.any():
            break
        low = np.where(missing, low + 3, low)
    lowest = excess(high)
    N, D = best_at_budget(loss, np.exp(root(excess, low, high, steps=50)), cost)
    return np.where(lowest > 0, np.inf, N), np.where(lowest > 0, np.inf, D)


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
