"""Where a log step is shown: the sinks (a trainer's loggers, TensorBoard) and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from isoflop.guard import TERMINAL, Guard
from isoflop.show.axes import AxisPoint, ComputeAxes
from isoflop.show.terminal import interval_line


class Sink(Protocol):
    """Where scalars go. `boundary` is its name in `guard.BOUNDARIES`."""

    boundary: str

    def write(self, step: int, scalars: Mapping[str, float], axes: Sequence[AxisPoint]) -> None:
        """Scalars against the optimizer step, and the points on compute axes (TensorBoard's alone)."""

    def text(self, step: int, tag: str, markdown: str) -> None:
        """A text at the optimizer step, where the sink shows texts."""

    def close(self) -> None:
        """The run has ended."""


class Output:
    """All places where a run shows, each behind a boundary of its own."""

    def __init__(self, sinks: Sequence[Sink], say: Callable[[str], None], guard: Guard) -> None:
        self.axes = ComputeAxes()
        self._sinks = list(sinks)
        self._say = say
        self._guard = guard

    def show(self, step: int, scalars: Mapping[str, float], flops: int | None, loss: float | None) -> None:
        """A log step."""
        axes = self.axes.points(flops, loss)
        for sink in self._sinks:
            if self._guard.open(sink.boundary):
                with self._guard.part(sink.boundary):
                    sink.write(step, scalars, axes)
        with self._guard.part(TERMINAL):
            self._guard.tell(self._say, interval_line(step, scalars))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """A text, wherever texts are shown."""
        for sink in self._sinks:
            if self._guard.open(sink.boundary):
                with self._guard.part(sink.boundary):
                    sink.text(step, tag, markdown)

    def close(self) -> None:
        """The run has ended."""
        for sink in self._sinks:
            with self._guard.part(sink.boundary):
                sink.close()
