"""Cumulative counts (tokens, FLOPs) against optimizer steps: exact where they were logged, in between on a line."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from .logged import Column, in_order


class Track:
    """A count by step; 0 at step 0, unknown beyond the last step that is known.

    Args:
        steps: growing.
        values: at these steps.
    """

    def __init__(self, steps: Sequence[int], values: Sequence[float]) -> None:
        self._steps, self._values = steps, values

    def at(self, step: int) -> float | None:
        """The count after a step."""
        index = bisect_left(self._steps, step)
        if index == len(self._steps):
            return None
        if self._steps[index] == step:
            return self._values[index]
        before, low = (self._steps[index - 1], self._values[index - 1]) if index else (0, 0.0)
        return low + (self._values[index] - low) * (step - before) / (self._steps[index] - before)

    def times(self, factor: float) -> Track:
        """The count scaled."""
        return Track(self._steps, [value * factor for value in self._values])

    @property
    def last(self) -> float:
        """The last count."""
        return self._values[-1]


class PerStep(Track):
    """A count that grows by the same amount each step."""

    def __init__(self, amount: float) -> None:
        super().__init__((1,), (amount,))
        self._amount = amount

    def at(self, step: int) -> float | None:
        """The count after a step."""
        return self._amount * step

    def times(self, factor: float) -> Track:
        """The count scaled."""
        return PerStep(self._amount * factor)


def track_of(column: Column | None) -> Track | None:
    """The count that a column logged; None where it holds none: values that are finite and don't fall."""
    if column is None:
        return None
    tidy, _, _ = in_order(column)
    rows = [(step, value) for step, value, _ in tidy if math.isfinite(value) and value >= 0]
    if not rows or any(later[1] < earlier[1] for earlier, later in pairwise(rows)):
        return None
    return Track([step for step, _ in rows], [value for _, value in rows])


def whole_at(track: Track | None, step: int) -> int | None:
    """The count after a step as a whole number, as records hold it."""
    value = None if track is None else track.at(step)
    return None if value is None or not value < 1e36 else round(value)
