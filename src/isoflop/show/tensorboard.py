"""TensorBoard scalars by a writer of our own, where the trainer's can't be reached (plain loops, Hugging Face)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop.guard import declare
from isoflop.record import due
from isoflop.show.axes import AxisPoint

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
