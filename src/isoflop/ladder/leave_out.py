"""The largest rung left out and predicted from the others: whether the law extrapolates where that can be seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.fit.posterior import Array, Posterior

RUNG = 1.5
"""A factor of the largest budget within which runs are its rung."""
FEWEST = 5
"""Runs below it."""
SURPRISING = 0.05
"""Probability of as few runs inside from which on it is no accident."""


@dataclass(frozen=True)
class Predicted:
    """One run of the largest rung: its loss and what the others said it would be, with an interval."""

    name: str
    loss: float
    expected: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether the loss lies in the interval."""
        return self.low <= self.loss <= self.high


@dataclass(frozen=True)
class LeftOut:
    """The check.

    Attributes:
        runs: of the largest rung.
        fitted: runs below it.
        reach: its budget over the largest that was fitted.
        level: of the intervals.
        chance: probability of as few runs inside their intervals if the law holds.
    """

    runs: tuple[Predicted, ...]
    fitted: int
    reach: float
    level: float
    chance: float

    @property
    def inside(self) -> int:
        """How many runs came out inside their interval."""
        return sum(run.inside for run in self.runs)

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.passed:
            return "the law does NOT extrapolate: do not rely on it"
        if 2 * self.inside < len(self.runs):
            return "too few runs to tell a law that does not extrapolate from chance"
        return "the law extrapolates there"

    @property
    def passed(self) -> bool:
        """Whether so many inside are no surprise."""
        return self.chance >= SURPRISING


def leave_largest_out(
    N: Array,
    D: Array,
    C: Array,
    loss: Array,
    names: Sequence[str],
    level: float,
    fit: Callable[[Array, Array, Array, Array], Posterior],
) -> LeftOut | None:
    """Fit without the largest rung and predict it; None where fewer than five runs are left.

    All predictions share the law's error, so runs leave their intervals together: the chance comes from draws.
    """
    top = C.max() / RUNG <= C
    if (~top).sum() < FEWEST:
        return None
    posterior = fit(N[~top], D[~top], C[~top], loss[~top])
    drawn = np.stack([posterior.run_losses(N[i], D[i], seed=int(i)) for i in np.flatnonzero(top)], axis=1)
    low, middle, high = np.quantile(drawn, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=0)
    hits = ((low <= np.log(loss[top])) & (np.log(loss[top]) <= high)).sum()
    chance = float(np.mean(((low <= drawn) & (drawn <= high)).sum(axis=1) <= hits))
    runs = tuple(
        Predicted(names[int(i)], float(loss[i]), *(float(np.exp(v[k])) for v in (middle, low, high)))
        for k, i in enumerate(np.flatnonzero(top))
    )
    return LeftOut(runs, int((~top).sum()), float(C[top].max() / C[~top].max()), level, chance)
