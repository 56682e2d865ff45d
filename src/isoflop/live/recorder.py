"""Writes one run's record: its header, then its points, thinned, with their losses averaged; new, resumed, or a branch.

The header says model, optimizer, device, versions and how FLOPs are counted.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from torch import nn

from isoflop.flops.device import Device
from isoflop.flops.operators import SIX_ND
from isoflop.flops.parameters import original_class, unwrap
from isoflop.flops.step import StepObserver
from isoflop.flops.totals import world_size
from isoflop.forecast import LrPlan
from isoflop.guard import attempt, declare
from isoflop.live.log_step import LogStep, Part
from isoflop.live.options import Options
from isoflop.live.run_info import RunInfo
from isoflop.record.lines import due
from isoflop.record.paths import Location
from isoflop.record.provenance import git_state, library_versions
from isoflop.record.reader import UPDATED, read_run
from isoflop.record.remote import RemoteLog
from isoflop.record.run import Point, RecordError, Status
from isoflop.record.task import PLAIN
from isoflop.record.writer import RecordLog, new_run_id, record_path

RECORD = declare("writing the record", "no further points are recorded")
PASSPORT = declare(
    "the passport", "isoflop-passport.json and .md are not written; `isoflop passport` makes them of the record"
)

NOT_COUNTED = (
    "training goes on from step %d, but the checkpoint holds isoflop's counts up to step %d: "
    "tokens and FLOPs in between are not counted"
)
MAX_EARLY = 100
KEPT = {
    f"isoflop/{name}"
    for name in (
        *("tokens_per_second_per_device", "tflops_per_device", "mfu", "forecast_loss", "forecast_low", "forecast_high"),
        *("b_simple", "b_simple_low", "b_simple_high", "b_simple_raw", "b_crit", "b_crit_sigma", "batch_over_b_crit"),
        *("s_min", "e_min", "flops_no_grad", "flops_optimizer"),
    )
}
"""Scalars that a point keeps, as logged last."""


class Recorder(Part):
    """The record of a run on the rank that writes; on the others it keeps the same books and writes nothing.

    Args:
        folder: where a new record goes: a folder, or the URL of one.
        named: the user named `folder`, so an earlier record elsewhere is not gone on with.
        run: what the plan says beside the learning rates.
        writes: whether this process writes.
    """

    name = "recorder"
    boundary = RECORD

    def __init__(self, folder: Location, *, named: bool, run: RunInfo, writes: bool) -> None:
        self.folder = folder
        self._named, self._run, self._writes, self._guard = named, run, writes, run.guard
        self._log: RecordLog | None = None
        self._earlier: dict[str, Any] | None = None
        self._own: str | None = ""
        self._counting: Mapping[str, Any] = {}
        self._task = run.task
        self._plan: LrPlan | None = None
        self._last: Point | None = None
        self._early: list[Point] = []  # evaluations before the first step, when there is no file yet
        # since the last point: sum of losses, how many, and its step; and how many log steps there were
        self._loss_sum, self._losses, self._since, self._intervals = 0.0, 0, 0, 0

    @property
    def wants_header(self) -> bool:
        """Whether `open` is still to be called."""
        return self._writes and self._log is None and RECORD not in self._guard.aside

    def open(self, header: Callable[[], dict[str, Any]], step: int) -> None:
        """Open the record; `step`: optimizer steps done when this attempt began."""
        with self._guard.part(RECORD):
            fields = header()
            self._log = open_record(
                self.folder,
                fields,
                earlier=self._earlier,
                step=step,
                named=self._named,
                say=self._guard.once,
                place=self._run.place,
            )
            self._run.run_id, self._run.record = self._log.run_id, self._log.location
            if self._log.attempt > 1:  # neither a new run nor a branch
                self._run.own = self._own
            self._counting, self._task = fields["counting"], self._run.task
            for point in self._early:
                self._log.point(point)
            self._early.clear()
            if self._log.attempt > 1:
                self._log.event("update", **{key: value for key, value in fields.items() if key in UPDATED})

    def log(self, step: LogStep) -> None:
        """Write what is new and, if the cadence is due, the point with the mean loss since the last one."""
        self._loss_sum, self._losses = self._loss_sum + step.loss_sum, self._losses + step.losses
        self._intervals += 1
        if self._log is not None:
            if step.plan is not None and step.plan is not self._plan and not step.plan.assumed:
                self._plan = step.plan
                self._log.event("update", planned={**self._run.planned, "learning_rates": step.plan.as_dict()})
            if self._run.task != self._task:
                self._task = self._run.task
                self._log.event("update", task=self._task.as_dict())
            if step.advice:
                self._write_advice(step)
            if step.counting != self._counting:
                self._counting = step.counting
                self._log.event("update", counting=step.counting)
        if due(self._intervals):
            self._train_point(step)

    def evaluate(self, name: str, loss: float, step: LogStep) -> None:
        """Write the loss of an evaluation set, beside the training loss where that was just recorded."""
        point = point_of(step) if step.summed else Point(step=step.step, time=time.time())
        if self._last is not None and self._last.step == step.step:
            point = replace(self._last, nonfinite={})
        self._write(replace(point, losses={f"eval/{name}": loss}))

    def close(self, step: LogStep, completed: bool) -> None:
        """Write the last point, unless it is there, and the totals."""
        self._loss_sum, self._losses = self._loss_sum + step.loss_sum, self._losses + step.losses
        point = point_of(step)
        if point.step > self._since and self._losses:
            self._train_point(step)
        elif self._last is None or point.step > self._last.step:
            self._write(point)
        self._write_advice(step)
        if self._log is not None:
            totals = ("tokens", "padding", "loss_tokens", "flops", "flops_hardware", "flops_6nd")
            times = ("wall_time", "training_time")
            status: Status = "completed" if completed else "interrupted"
            self._log.end(point.step, status, **{key: getattr(point, key) for key in (*totals, *times)})
            self._log.close()
            self._write_passport()

    def _write_advice(self, step: LogStep) -> None:
        if self._log is not None:
            for advice in step.advice:
                self._log.event("advice", **advice.as_dict())

    def _write_passport(self) -> None:
        if self._log is None or isinstance(self._log, RemoteLog):
            return
        with self._guard.part(PASSPORT):
            from isoflop.live.passport import write_passport

            beside = self._log.path.parent  # of a trainer: its checkpoints, which a later run there replaces too
            write_passport(
                read_run(self._log.path), self._run.own_folder(beside) if self._run.framework == "loop" else beside
            )

    def state_dict(self) -> dict[str, Any]:
        """Which record it is, and the losses of its next point."""
        name = self._earlier
        if self._log is not None:
            location = self._log.location
            name = {
                "run_id": self._log.run_id,
                "path": location if isinstance(location, str) else str(location.resolve()),
            }
            if isinstance(self._log, RemoteLog) and not self._log.closed:
                name["unsent"] = self._log.unsent()
        return {
            "record": name,
            "own": self._run.own,
            "window": [self._loss_sum, self._losses, self._since, self._intervals],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`, before `open`."""
        self._earlier, self._own = state["record"], state.get("own", "")  # not in states of earlier versions
        loss_sum, losses, since, intervals = state["window"]
        self._loss_sum, self._losses = float(loss_sum), int(losses)
        self._since, self._intervals = int(since), int(intervals)

    def _train_point(self, step: LogStep) -> None:
        losses = {"train": self._loss_sum / self._losses} if self._losses else {}
        # not below 0, where a trainer has gone back to a step before the checkpoint's
        self._last = point_of(step, losses=losses, interval_steps=max(0, step.step - self._since))
        self._loss_sum, self._losses, self._since = 0.0, 0, step.step
        if self._log is not None:
            self._log.point(self._last)

    def _write(self, point: Point) -> None:
        if self._log is not None:
            self._log.point(point)
        elif self.wants_header and len(self._early) < MAX_EARLY:
            self._early.append(point)


def point_of(step: LogStep, losses: Mapping[str, float | None] | None = None, interval_steps: int = 0) -> Point:
    """A point of the record as the run stands."""
    totals, scalars = step.totals, step.scalars
    return Point(
        step=step.step,
        tokens=totals.tokens_known,
        padding=None if totals.without_tokens else totals.padding,
        loss_tokens=totals.loss_tokens_known,
        flops=totals.flops_known,
        flops_hardware=None if totals.without_flops else totals.flops_hardware,
        flops_6nd=None if step.parameters is None else step.parameters.six_nd(totals.tokens_known),
        lr=step.lr,
        batch_tokens=scalars.get("isoflop/batch_tokens"),
        losses=dict(losses or {}),
        interval_steps=interval_steps,
        time=time.time(),
        wall_time=step.wall_time,
        training_time=step.training_time,
        extra={
            name.removeprefix("isoflop/"): value
            for name, value in scalars.items()
            if name in KEPT or name.startswith("isoflop/offset/")
        },
    )


def open_record(
    folder: Location,
    header: dict[str, Any],
    *,
    earlier: dict[str, Any] | None,
    step: int,
    named: bool,
    say: Callable[[str], None],
    place: Callable[[Location], str],
) -> RecordLog:
    """Open a record for writing.

    Args:
        folder: where a new record goes: a folder, or the URL of one.
        header: its header.
        earlier: {"run_id", "path"}, and of a URL what was "unsent", from the checkpoint that training resumed from;
            None: a new run.
        step: optimizer steps done in that checkpoint.
        named: the user named `folder`, so an earlier record elsewhere is not gone on with.
        say: gets a sentence where the record is not simply gone on with.
        place: folder of a new record → the run's name.

    Returns:
        The earlier record, if it can be gone on with; else a new one, whose header names the earlier run as `parent`
        (a branch: that run had completed beyond `step`, or another process writes it, or it is of another model, or
        lies in another folder).

    Raises:
        RecordError: `folder` can't be written.
    """
    if earlier is None:
        return _create(folder, header, say, place)
    try:
        if isinstance(folder, str):
            unsent = earlier.get("unsent")
            log: RecordLog = RemoteLog.go_on(folder, earlier["run_id"], step, expected=header, unsent=unsent, say=say)
        else:
            log = RecordLog.resume(_earlier_path(folder, earlier, named), step, expected=header)
    except RecordError as error:
        reason = str(error)
    else:
        for message in log.messages:
            say(message)
        return log
    branch = _create(folder, {**header, "parent": {"run_id": earlier["run_id"], "step": step}}, say, place)
    say(f"{reason} The run goes on from step {step:,} in a record of its own: {branch.location}")
    return branch


def _create(
    folder: Location, header: dict[str, Any], say: Callable[[str], None], place: Callable[[Location], str]
) -> RecordLog:
    header = {**header, "name": place(folder)}
    if isinstance(folder, str):
        return RemoteLog.start(folder, new_run_id(), header, say)
    return RecordLog.create(folder, new_run_id(), header)


def _earlier_path(folder: Path, earlier: dict[str, Any], named: bool) -> Path:
    here, there = record_path(folder, earlier["run_id"]), Path(earlier["path"])
    candidates = [here, there] if not named and _same_place(there.parent, folder) else [here]
    path = next((path for path in candidates if os.path.exists(path)), None)
    if path is None:
        raise RecordError(f"The checkpoint is of run {earlier['run_id']}, whose record is not in {folder}.")
    return path


def _same_place(old: Path, new: Path) -> bool:
    """Whether a resumed run logs where it logged before; Lightning's loggers begin a new `version_<n>` beside it.

    Another folder means another run, such as a cool-down that branches off an unfinished one: it must not write
    into the record of the run that its checkpoint is from.
    """
    old, new = old.resolve(), new.resolve()
    versions = all(re.fullmatch(r"version_\d+", path.name) for path in (old, new))
    return old == new or (versions and old.parent == new.parent)


CONVENTION = "1 multiply-add = 2 FLOPs; matrix products and convolutions, forward and backward, attention in full"
UNITS = "nats per loss token, as the trainer reports it"


def run_header(
    run: RunInfo,
    observer: StepObserver,
    device: Device | None,
    options: Options,
    model: nn.Module | None,
) -> dict[str, Any]:
    """Fields of `isoflop.record.Run`, as they are known after the first optimizer step."""
    parameters = observer.costing.parameters
    return {
        "framework": run.framework,
        "model": attempt(describe_model, model) or {"class": None},
        "parameters": {} if parameters is None else parameters.by_convention(),
        "parameters_method": None if parameters is None else parameters.method,
        "optimizer": attempt(describe_optimizer, run.optimizer),
        "task": run.task.as_dict(),
        "planned": run.planned,
        "tokenizer": run.tokenizer,
        "data": run.data,
        "git": attempt(git_state),
        "versions": attempt(library_versions) or {},
        "device": {
            "name": None if device is None else device.name,
            "dtype": None if device is None else device.dtype,
            "precision": run.precision,
            "peak_flops": None if device is None else device.peak,
            "peak_source": None if device is None else device.peak_source,
            "world_size": world_size(),
            "data_parallel": run.data_parallel or world_size(),
        },
        "counting": describe_counting(observer),
        "loss_units": {"train": UNITS if run.task.loss == PLAIN else run.task.loss},
        "options": options.given(),
    }


def describe_counting(observer: StepObserver) -> dict[str, Any]:
    """How the FLOPs of this run are counted."""
    return {
        "method": "; ".join(observer.costing.methods) or None,
        "reasons": {method: reason for method, reason in observer.costing.methods.items() if reason},
        "uncounted": sorted(observer.costing.uncounted),
        "convention": CONVENTION,
        "flops_per_token": observer.costing.flops_per_token,
        "six_nd": SIX_ND in observer.costing.methods,
    }


def describe_model(model: nn.Module | None) -> dict[str, Any]:
    """Class and configuration of a model."""
    if model is None:
        return {"class": None}
    model = unwrap(model)
    kind = original_class(model)
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "config": attempt(_configuration, model)}


def _configuration(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None:
        config = getattr(model, "hparams", None)
    to_dict = getattr(config, "to_diff_dict", None) or getattr(config, "to_dict", None)
    return to_dict() if callable(to_dict) else config


def describe_optimizer(optimizer: Any) -> dict[str, Any] | None:
    """Class and settings of the first parameter group."""
    groups = attempt(getattr, optimizer, "param_groups", None)  # of an optimizer of the user's own making
    if not groups:
        return None
    wrapped = getattr(optimizer, "optimizer", optimizer)  # Accelerate's and Fabric's wrappers
    numbers = {key: each.item() for key, each in groups[0].items() if isinstance(each, torch.Tensor) and not each.dim()}
    settings = {key: each for key, each in groups[0].items() if key != "params"}
    return {"class": type(wrapped).__name__, **settings, **numbers}
