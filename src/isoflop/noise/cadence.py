"""Which steps are measured: the first ones by number, then as many as a small share of the training time pays for.

Times are of CPUs, so that a busy machine measures the steps that an idle one does.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

SHARE = 0.005
"""Of the training time that measuring may take."""
FREE = 32
"""Measurements whatever they take: a short run, too, gets a value, and on any machine the same."""
DENSEST = 4
"""At most every 4th step is measured."""


@dataclass
class Cadence:
    """Measure each step that is a multiple of `every`.

    Attributes:
        every: steps between two measurements.
        fixed: `every` stays.
        count: measurements so far.
    """

    every: int = DENSEST
    fixed: bool = False
    count: int = 0

    def due(self, step: int) -> bool:
        """Whether this step is to be measured."""
        return step % self.every == 0

    def adapt(self, seconds: float, measured: int, steps: int, interval: float) -> None:
        """At a log step, from numbers that all ranks share.

        Args:
            seconds: that the interval's measurements took.
            measured: how many there were.
            steps: in the interval.
            interval: seconds that it took.
        """
        self.count += measured
        if self.fixed or measured == 0 or steps <= 0 or self.count < FREE:
            return
        cost = seconds / measured * steps / max(interval, 1e-9)  # in steps
        self.every = max(DENSEST, 2 ** math.ceil(math.log2(max(cost / SHARE, 1.0))))

    def state_dict(self) -> dict[str, int]:
        """Plain values."""
        return {"every": self.every, "count": self.count}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The inverse of `state_dict`; states of earlier versions have no count."""
        self.count = int(state.get("count", FREE))
        if not self.fixed:
            self.every = int(state["every"])


class StepTimes:
    """What a measured step takes longer than the one before it, on this rank; of the last steps, in constant memory.

    The hooks' own time on the host leaves out what they cost elsewhere: caches, an all-reduce that waits, the device.
    """

    def __init__(self) -> None:
        self._measured: deque[float] = deque(maxlen=32)
        self._others: deque[float] = deque(maxlen=32)
        self.last: tuple[int, float] | None = None
        """Number and end of the last step; None: what came since (logging, evaluation) is no step's time."""

    def add(self, step: int, now: float, measured: bool) -> None:
        """Optimizer step number `step` is over, at `now` seconds."""
        before, self.last = self.last, (step, now)
        if before is not None and before[0] == step - 1:
            (self._measured if measured else self._others).append(now - before[1])

    def cost(self) -> float:
        """Seconds; 0 while there is nothing to compare."""
        if not self._measured or not self._others:
            return 0.0
        return max(statistics.median(self._measured) - statistics.median(self._others), 0.0)
