"""`RunInfo`: what a trainer's adapter knows of the run: its plan, and where numbers are shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import IterableDataset
from tqdm import tqdm

from isoflop.flops.totals import data_parallel_ranks, world_size
from isoflop.guard import Guard, attempt, declare
from isoflop.live.scalars import AxisPoint
from isoflop.live.scheduler import Calls
from isoflop.record.paths import PASSPORT
from isoflop.record.task import Task

LAYOUT = declare("seeing which ranks share a batch", "tokens and FLOPs of ranks that do are counted more than once")


def steps_of_epoch(loader: Any, accumulate: int) -> int | None:
    """Optimizer steps in which a loader's data set is seen once; None: a stream, or none is known."""
    data = getattr(loader, "dataset", None)
    if isinstance(data, IterableDataset) or attempt(len, data) is None:
        return None
    batches = attempt(len, loader)
    return -(-batches // accumulate) if batches else None


class Sink(Protocol):
    """Where scalars go. `boundary` is its name in `guard.BOUNDARIES`."""

    boundary: str

    def write(self, step: int, scalars: Mapping[str, float], axes: Sequence[AxisPoint]) -> None:
        """Scalars against the optimizer step, and the points on compute axes (TensorBoard's alone)."""

    def text(self, step: int, tag: str, markdown: str) -> None:
        """A text at the optimizer step, where the sink shows texts."""

    def flush(self) -> None:
        """A checkpoint is saved: what was written is in files from here on."""

    def close(self) -> None:
        """The run has ended."""


@dataclass(kw_only=True)
class RunInfo:
    """One run as its trainer describes it.

    Attributes:
        framework: "lightning", "transformers" or "loop".
        record_dir: the default folder of the record.
        log_every: the default interval, in optimizer steps.
        logs_itself: the trainer decides when to log (it calls `Monitor.log`), not the interval.
        together: every rank makes the same calls at the same steps, so that an evaluation may sum over ranks.
        run_id: of the record, once that is open.
        own: the folder below the record's that holds this run's events and passport: "" is that folder itself, None
            is still to be decided, for another run's may be there (plain loops, whose default folder is one).
        total_steps: planned optimizer steps; None: endless or unknown.
        epoch_steps: optimizer steps in which the data set is seen once; None: a stream, or unknown.
        dtype: of the matrix products; None: to be seen at the first forward pass.
        data_parallel: ranks with data of their own; None: all.
        scheduler: sets the optimizer's learning rate; None: nobody does.
        scheduler_calls: optimizer steps done → steps that the scheduler has made; None: one each.
        future_unknown: why the learning rates to come can't be asked for.
        trainer: names of its class and of its arguments'.
        label_smoothing: of the trainer's loss.
        task: what is trained, as it was recognised.
        grad_scaler: AMP's scaler of the loss.
        say: prints the terminal's line.
        guard: what has stepped aside.
    """

    framework: str = "loop"
    record_dir: Path = Path("runs/isoflop")
    log_every: int = 10
    logs_itself: bool = False
    together: bool = False
    run_name: str | None = None
    run_id: str | None = None
    own: str | None = ""
    total_steps: int | None = None
    epoch_steps: int | None = None
    optimizer: Any = None
    schedule: str | None = None
    scheduler: Any = None
    scheduler_calls: Calls | None = None
    future_unknown: str | None = None
    accumulate: int | None = None
    dtype: torch.dtype | None = None
    precision: str | None = None
    data_parallel: int | None = None
    grad_scaler: Any = None
    tokenizer: str | None = None
    data: str | None = None
    trainer: tuple[str, ...] = ()
    label_smoothing: float = 0.0
    task: Task = field(default_factory=Task)
    guard: Guard = field(default_factory=Guard)
    sinks: list[Sink] = field(default_factory=list)
    say: Callable[[str], None] = tqdm.write  # leaves a progress bar whole

    @property
    def planned(self) -> dict[str, Any]:
        """`Run.planned` of the record, as it is known before the first forecast."""
        schedule = self.schedule or (None if self.scheduler is None else type(self.scheduler).__name__)
        return {"steps": self.total_steps, "schedule": schedule, "accumulate": self.accumulate}

    def own_folder(self, folder: Path) -> Path:
        """Where this run's events and passport go: `folder`, or one below it where those of another run are there."""
        if self.own is None:
            taken = any(folder.glob("events.out.tfevents.*")) or (folder / f"{PASSPORT}.json").exists()
            name = re.sub(r"[^\w.-]+", "-", self.run_name or "").strip("-.")
            unused = bool(name) and not (folder / name).exists()
            self.own = ("" if not taken else name if unused else self.run_id) or ""
        return folder / self.own

    def see_layout(self, model: nn.Module | None, given: int | None) -> None:
        """Set `data_parallel`: as the user says (`given`), as the trainer knows, or as the parameters show.

        Raises:
            ValueError: a number that does not divide the job's ranks.
        """
        ranks = world_size()
        if given is not None and given < ranks and ranks % given:
            raise ValueError(f"data_parallel= expects a number that divides the job's {ranks} ranks, got {given}")
        if given is not None:
            self.data_parallel = min(given, ranks)
        elif self.data_parallel is None:
            with self.guard.part(LAYOUT):
                self.data_parallel = data_parallel_ranks(model)

    def draw(self, step: int, points: Sequence[AxisPoint]) -> None:
        """Write points on compute axes alone."""
        for sink in self.sinks if points else ():
            if sink.boundary not in self.guard.aside:
                with self.guard.part(sink.boundary):
                    sink.write(step, {}, points)

    def tell(self, line: str) -> None:
        """Print a line that is no warning; `logging.getLogger("isoflop").setLevel(logging.WARNING)` silences it."""
        self.guard.tell(self.say, line)
