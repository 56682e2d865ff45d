"""Where a log step is shown: the sinks (a trainer's loggers, TensorBoard) and the terminal.

One line an interval for the terminal.

TensorBoard scalars by a writer of our own, where the trainer's can't be reached (plain loops, Hugging Face).

The frontier of the user's finished runs as a TensorBoard run of its own, drawn under every run on the same axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from isoflop.guard import TERMINAL, Guard, declare
from isoflop.live.scalars import AxisPoint, ComputeAxes
from isoflop.record.thinned import due


def interval_line(step: int, scalars: Mapping[str, float]) -> str:
    """What a user reads while the model trains; unknown numbers are left out.

    >>> interval_line(1200, {"isoflop/loss": 2.4131, "isoflop/tokens_per_second_per_device": 10050.2,
    ...     "isoflop/tflops_per_device": 315.2, "isoflop/mfu": 0.318, "isoflop/goodput": 0.94})
    'step 1,200 · loss 2.413 · 10,050 tok/s/device · 315 TFLOP/s · MFU 31.8% · goodput 94%'
    >>> interval_line(1300, {"isoflop/loss": 2.4, "isoflop/forecast_loss": 2.031, "isoflop/forecast_high": 2.044})
    'step 1,300 · loss 2.400 · ends at 2.031 ± 0.013'
    """
    parts = [f"step {step:,}"]
    loss = scalars.get("isoflop/loss")
    if loss is not None:
        parts.append(f"loss {loss:.3f}" if abs(loss) < 1e6 else f"loss {loss:.3g}")  # also inf and nan
    speed = scalars.get("isoflop/tokens_per_second_per_device")
    if speed is not None:
        parts.append(f"{speed:,.0f} tok/s/device")
    rate = scalars.get("isoflop/tflops_per_device")
    if rate is not None:
        parts.append(_rate(rate))
    mfu = scalars.get("isoflop/mfu")
    if mfu is not None:
        parts.append(f"MFU {mfu:.1%}")
    goodput = scalars.get("isoflop/goodput")
    if goodput is not None:
        parts.append(f"goodput {goodput:.0%}")
    forecast, high = scalars.get("isoflop/forecast_loss"), scalars.get("isoflop/forecast_high")
    if forecast is not None and high is not None:
        parts.append(f"ends at {forecast:.3f} ± {high - forecast:.3f}")
    return " · ".join(parts)


def _rate(tera: float) -> str:
    value, unit = (tera, "TFLOP/s") if tera >= 0.1 else (tera * 1000, "GFLOP/s")
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


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


TENSORBOARD = declare("TensorBoard", "no further scalars in TensorBoard")


class TensorBoardSink:
    """Writes event files into `folder`, from the first write on; of a long run ever fewer log steps, like the record.

    TensorBoard draws 1,000 points a chart; all of 10⁶ log steps would be a gigabyte.
    """

    boundary = TENSORBOARD

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._log_steps = 0
        self._left_out: tuple[int, Mapping[str, float], Sequence[AxisPoint]] | None = None

    def write(self, step: int, scalars: Mapping[str, float], axes: Sequence[AxisPoint]) -> None:
        """Scalars against the optimizer step, losses against compute."""
        self._log_steps += 1
        if due(self._log_steps):
            self._left_out = None
            self._put(step, scalars, axes)
        else:
            self._left_out = step, dict(scalars), tuple(axes)

    def _put(self, step: int, scalars: Mapping[str, float], axes: Sequence[AxisPoint]) -> None:
        writer = self._open()
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)
        for point in axes:
            writer.add_scalar(point.tag, point.value, point.step)

    def text(self, step: int, tag: str, markdown: str) -> None:
        """For the text tab."""
        self._open().add_text(tag, markdown, step)

    def _open(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # the default queue of 10 makes every log step wait for the disk
            self._writer = SummaryWriter(str(self._folder), max_queue=1000, flush_secs=5)
        return self._writer

    def close(self) -> None:
        """Close the event file; a curve ends where the run does."""
        if self._left_out is not None:
            self._put(*self._left_out)
            self._left_out = None
        if self._writer is not None:
            self._writer.close()


FRONTIER = declare("drawing the frontier", "TensorBoard does not show the frontier of earlier runs")
NAME = "_frontier"
"""Folder beside the run's event file; TensorBoard shows it as a run."""
BETWEEN = 20
"""Points drawn between two runs, straight in ln C."""


def draw_frontier(folder: Path, frontier: Sequence[tuple[float, float]]) -> None:
    """Write the frontier's event file.

    Args:
        folder: of the run; the frontier goes into its `_frontier`.
        frontier: (FLOPs, loss in nats per token) by FLOPs, at least two.
    """
    from torch.utils.tensorboard import SummaryWriter

    target = folder / NAME
    if len(frontier) < 2 or target.exists():
        return
    writer, axes = SummaryWriter(str(target)), ComputeAxes()
    for (C0, L0), (C1, L1) in pairwise(frontier):
        for i in range(BETWEEN + 1):
            part = i / BETWEEN
            C = math.exp(math.log(C0) + part * math.log(C1 / C0))
            for point in axes.points(int(C), L0 + part * (L1 - L0)):
                writer.add_scalar(point.tag, point.value, point.step)
    writer.close()
