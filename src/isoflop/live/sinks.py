"""Where a log step is shown: the trainer's loggers, TensorBoard, the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from isoflop.guard import TERMINAL, declare
from isoflop.live.log_step import LogStep, Part
from isoflop.live.run_info import RunInfo
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


class Sinks(Part):
    """All places where a run is shown, each behind a boundary of its own."""

    name = "axes"  # all that it keeps
    boundary = declare("showing the log step", "nothing is shown in loggers and in the terminal")

    def __init__(self, run: RunInfo) -> None:
        self._run, self._guard = run, run.guard
        self._axes = ComputeAxes()

    def log(self, step: LogStep) -> LogStep:
        """Write the scalars, the loss against compute and new advice; print a line."""
        axes = self._axes.points(step.totals.flops_known, step.loss)
        for sink in self._run.sinks:
            if self._guard.open(sink.boundary):
                with self._guard.part(sink.boundary):
                    for advice in step.advice:
                        sink.text(step.step, "isoflop/advice", advice.markdown())
                    sink.write(step.step, step.scalars, axes)
        with self._guard.part(TERMINAL):
            self._guard.tell(self._run.say, interval_line(step.step, step.scalars))
        return step

    def close(self, step: LogStep, completed: bool) -> None:
        """Close every sink."""
        for sink in self._run.sinks:
            with self._guard.part(sink.boundary):
                sink.close()

    def state_dict(self) -> dict[str, int]:
        """The last steps on the compute axes."""
        return self._axes.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from `state_dict()`."""
        self._axes.load_state_dict(state)


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
