"""Which steps are measured: as many as a small share of the training time pays for, by what measuring costs."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

SHARE = 0.005
"""Of the training time that measuring may take."""
GRACE = 0.1
"""Seconds that it may take beside that: a short run, too, gets a value."""
DENSEST = 4
"""At most every 4th step is measured."""
FIRST = 4
"""Measurements before the first log step, while their cost is not known."""


@dataclass
class Cadence:
    """Measure each step that is a multiple of `every`.

    Attributes:
        every: steps between two measurements.
        fixed: `every` stays.
        spent: seconds so far.
    """

    every: int = DENSEST
    fixed: bool = False
    spent: float = 0.0
    known: bool = False

    def due(self, step: int, waiting: int) -> bool:
        """Whether this step is to be measured; `waiting`: how many were since the last log step."""
        return step % self.every == 0 and (self.known or self.fixed or waiting < FIRST)

    def adapt(self, seconds: float, measured: int, steps: int, interval: float, elapsed: float) -> None:
        """At a log step, from numbers that all ranks share.

        Args:
            seconds: that the interval's measurements took.
            measured: how many there were.
            steps: in the interval.
            interval: seconds of training in it.
            elapsed: seconds of training since the run began.
        """
        self.spent += seconds
        if self.fixed or measured == 0 or steps <= 0:
            return
        self.known = True
        cost = max(seconds / measured, 1e-9)
        room = (SHARE * elapsed + GRACE - self.spent) / cost  # measurements that are paid for by now
        per_step = max(interval, 1e-9) / steps
        by_share = math.ceil(cost / (SHARE * per_step))
        by_room = math.ceil(steps / room) if room >= 1 else by_share
        self.every = max(DENSEST, min(by_share, by_room))

    def state_dict(self) -> dict[str, float]:
        """Plain values."""
        return {"every": self.every, "spent": self.spent, "known": self.known}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The inverse of `state_dict`."""
        self.spent, self.known = float(state["spent"]), bool(state["known"])
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
