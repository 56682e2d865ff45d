"""Where the wall time goes: training, evaluation, checkpoints, compilation, our own measuring.

Goodput = training time / wall time. Waiting for data counts as training time: it is the run's own doing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Phase = Literal["evaluation", "checkpoint", "measuring"]


def compile_seconds() -> float:
    """Seconds that torch.compile has spent in this process so far; 0 where nothing was compiled."""
    # torch's own, not public: without it compilation counts as training time
    dynamo = sys.modules.get("torch._dynamo.utils")
    if not getattr(dynamo, "cumulative_time_spent_ns", True):
        return 0.0
    spent = getattr(dynamo, "calculate_time_spent", None)
    return 0.0 if spent is None else float(spent().get("total_wall_time", 0.0))


class Clock:
    """Wall and training time of a run, over all its attempts; the gaps between attempts count as neither.

    Phases nest (a checkpoint inside an evaluation): the outermost one is charged.
    """

    def __init__(
        self, now: Callable[[], float] = time.monotonic, compiling: Callable[[], float] = compile_seconds
    ) -> None:
        self._now, self._compiling = now, compiling
        self._before = {"wall": 0.0, "away": 0.0, "cpu": 0.0}
        self._cpu_before = time.thread_time()
        self._started: float | None = None
        self._away = self._compiled_before = self._read = 0.0
        self._phases: list[tuple[Phase, float, float]] = []

    def start(self) -> None:
        """The run begins, or goes on after a resume."""
        self._started, self._cpu_before = self._now(), time.thread_time()
        self._away = 0.0
        self._compiled_before = self._compiling()
        self._phases.clear()

    def enter(self, phase: Phase) -> None:
        """Time is no longer training time."""
        self._phases.append((phase, self._now(), self._compiling()))

    def leave(self, phase: Phase) -> None:
        """Back to training; whatever was entered inside `phase` and not left ends with it."""
        names = [name for name, _, _ in self._phases]
        if phase not in names:
            return
        _, since, compiled = self._phases[names.index(phase)]
        del self._phases[names.index(phase) :]
        if not self._phases:
            # compilation during the phase (an evaluation's first batch) is counted by compile_seconds already
            self._away += max(0.0, self._now() - since - (self._compiling() - compiled))

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """`enter` and `leave` around a block."""
        self.enter(phase)
        try:
            yield
        finally:
            self.leave(phase)

    def times(self) -> tuple[float, float]:
        """Seconds since the run began, less the gaps between attempts; and of them those of training."""
        wall, away = self._before["wall"], self._before["away"]
        if self._started is not None:
            now, compiled = self._now(), self._compiling()
            self._read = now
            wall += now - self._started
            away += self._away + max(0.0, compiled - self._compiled_before)  # torch._dynamo.reset() sets it back
            if self._phases:
                _, since, before = self._phases[0]
                away += now - since - (compiled - before)
        return wall, max(0.0, wall - away)

    def measured(self) -> None:
        """Since `times` were read last we have measured: that is no training time."""
        if self._started is not None and not self._phases:
            self._away += max(0.0, self._now() - self._read)

    def cpu(self) -> float:
        """CPU seconds of the thread that trains, over all attempts: as many on a busy machine as on an idle one."""
        return self._before["cpu"] + (0.0 if self._started is None else time.thread_time() - self._cpu_before)

    def state_dict(self) -> dict[str, float]:
        """Plain numbers, for a checkpoint."""
        wall, training = self.times()
        return {"wall": wall, "away": wall - training, "cpu": self.cpu()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state_dict()`."""
        cpu = state.get("cpu", state["wall"])  # not in states of earlier versions
        self._before = {"wall": float(state["wall"]), "away": float(state["away"]), "cpu": float(cpu)}
