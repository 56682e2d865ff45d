"""A run of isoflop's from what was logged and what the user says: losses, points, header; and its record."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec import structs

from isoflop.logs.checks import Doubt, doubts_of
from isoflop.logs.counts import Counts, counts_of
from isoflop.logs.files import ImportProblem, plain, whole
from isoflop.logs.given import Answers
from isoflop.logs.logged import Column, Count, Logged
from isoflop.logs.losses import Losses, losses_of
from isoflop.logs.size import SizeOf
from isoflop.record.lines import MAX_SECONDS
from isoflop.record.provenance import json_safe, library_versions
from isoflop.record.reader import read_run
from isoflop.record.run import Point, RecordError, Run
from isoflop.record.thinned import due
from isoflop.record.writer import RecordLog, iso_time, record_path

CONVENTION = "1 multiply-add = 2 FLOPs"
FRAMEWORKS = {"huggingface": "transformers", "lightning": "lightning"}


@dataclass(frozen=True)
class Imported:
    """One run, as a record would hold it, and what the user should know of it.

    `run.extra["imported"]` says where it is from and how each number was obtained.
    """

    run: Run
    kind: str  # the tool
    source: str  # where it was read
    notes: tuple[str, ...]  # what was derived, converted or repaired
    missing: tuple[str, ...]  # of `params` and `tokens` those that are unknown
    hint: str  # the part of what the tokens need that the log does hold
    doubts: tuple[Doubt, ...]  # what of it can't be, and was left out
    ends: bool  # it is the end of a run, without a curve
    single: bool  # its values are float32
    curve: Column = field(compare=False)  # the losses by which a second log of the same run is told


def assembled(logged: Logged, answers: Answers, size_of: SizeOf | None, problems: list[str]) -> Imported:
    """A run of what was logged, by optimizer step, and given; `problems` of it are noted. ImportProblem: no loss."""
    losses = losses_of(logged, answers)
    if not any(len(column) for column in losses.columns.values()):
        raise ImportProblem(
            f"{logged.source}: no loss is in it; its columns are {logged.shown(20) or 'none'}: name the one with "
            "--loss COLUMN (an evaluation's with --loss eval/val=COLUMN)"
        )
    counts = counts_of(logged, answers, size_of, problems)
    points = points_of(logged, losses, counts)
    doubts = doubts_of(logged, answers, losses, counts, points)
    if wrong := {what for doubt in doubts for what in doubt.of}:
        counts = counts.without(wrong)
        points = points_of(logged, losses, counts)
    notes = [*logged.notes, *losses.notes]
    if logged.status is None:
        notes.append("the log does not say whether the run was finished: taken as finished")
    if not answers.loss_unit and "isoflop/loss" not in losses.taken.values():
        notes.append("losses are taken as nats per token (--loss-unit says otherwise)")
    return Imported(
        run=_run_of(logged, answers, losses, counts, points, notes),
        kind=logged.kind,
        source=logged.source,
        notes=(*notes, *(f"{what}: {text}" for what, text in counts.how.items())),
        missing=counts.missing,
        hint=counts.hint,
        doubts=doubts,
        ends=logged.ends,
        single=logged.single,
        curve=next(iter(losses.columns.values())),
    )


def _run_of(
    logged: Logged, answers: Answers, losses: Losses, counts: Counts, points: tuple[Point, ...], notes: list[str]
) -> Run:
    status = logged.status or "completed"
    steps = answers.planned_steps or whole(logged.settings.get("max_steps"))
    imported = {
        "from": logged.kind,
        "source": logged.source,
        "precision": "float32" if logged.single else "float64",
        "how": {**{f"loss {name}": plain(column) for name, column in losses.taken.items()}, **counts.how},
        "notes": notes,
        **({"groups": dict(logged.groups)} if logged.groups else {}),
    }
    return Run(
        run_id=_run_id(logged),
        name=logged.name,
        created=_created(logged),
        framework=FRAMEWORKS.get(logged.kind, logged.kind),
        model={"config": json_safe(logged.model)} if logged.config is not None else {},
        parameters=dict(counts.parameters),
        parameters_method=counts.how.get("params"),
        optimizer={"class": plain(str(logged.settings["optim"]))} if logged.settings.get("optim") else None,
        planned={"steps": round(steps)} if steps else {},
        device={} if answers.devices is None else {"world_size": round(answers.devices)},
        counting={
            "method": f"imported: {counts.how.get('flops', 'FLOPs unknown')}",
            "convention": CONVENTION,
            "flops_per_token": counts.flops_per_token,
        },
        loss_units=dict(losses.units),
        extra={"imported": imported},
        points=points,
        status=status,
        end={"step": points[-1].step, "status": status} if status != "running" else None,
    )


def _run_id(logged: Logged) -> str:
    """The same for the same source, so that a second import is known as one: a part of its name and 10 hex digits."""
    digest = hashlib.sha256(f"{logged.kind}\n{logged.key}".encode("utf-8", "replace")).hexdigest()[:10]
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", logged.name).strip("-.")[:60]
    return f"{slug or 'run'}-{digest}"


def _created(logged: Logged) -> str:
    """When the run began, as records write it; else when its file was last written (a folder's files are not asked)."""
    seconds = logged.created
    if seconds is None:
        try:
            seconds = os.stat(logged.source).st_mtime
        except (OSError, ValueError):
            return ""
    return iso_time(seconds) if 0 <= seconds < MAX_SECONDS else ""


def points_of(logged: Logged, losses: Losses, counts: Counts) -> tuple[Point, ...]:
    """The points by step, thinned as isoflop's own: means of the training loss, evaluations as they are."""
    rates = logged.rates()
    found: dict[int, Point] = {}
    for name, column in losses.columns.items():
        averaged = logged.averaged or losses.taken[name] == "isoflop/loss"
        for step, loss, time, covered in _thinned(column, averaged) if name == "train" else _thinned(column, None):
            point = _point(step, {name: loss}, covered, time, counts, rates)
            found[step] = found[step].merged(point) if step in found else point
    return _with_batches([found[step] for step in sorted(found)], logged)


def _thinned(column: Column, averaged: bool | None) -> Iterable[tuple[int, float, float, int]]:
    """(step, loss, time, optimizer steps in it) at the log steps that are due, and the last.

    `averaged`: each loss is a mean over the steps since the one before; None: it is no training loss.
    """
    steps, values, times = column.arrays()
    n = len(steps)
    kept = np.array([index - 1 for index in range(1, n + 1) if due(index) or index == n], dtype=np.int64)
    counts = np.diff(kept, prepend=-1)
    covered = np.maximum(np.diff(steps[kept], prepend=0), 1) if averaged else counts
    if averaged is None:
        losses, covered = values[kept], np.zeros_like(counts)
    else:
        with np.errstate(all="ignore"):  # infinite losses
            losses = np.add.reduceat(values, kept - counts + 1) / counts
    return zip(steps[kept].tolist(), losses.tolist(), times[kept].tolist(), covered.tolist(), strict=True)


def _point(
    step: int, losses: dict[str, float], covered: int, time: float, counts: Counts, rates: Count | None
) -> Point:
    tokens, data = _whole_at(counts.tokens, step), _whole_at(counts.data_tokens, step)
    return Point(
        step=step,
        tokens=tokens,
        padding=None if tokens is None or data is None else max(tokens - data, 0),
        loss_tokens=_whole_at(counts.loss_tokens, step),
        flops=_whole_at(counts.flops, step),
        flops_6nd=_whole_at(counts.flops_6nd, step),
        losses=losses,
        lr=None if rates is None else rates(step),
        interval_steps=covered,
        time=time if math.isfinite(time) and 0 <= time < MAX_SECONDS else None,
    )


def _whole_at(count: Count | None, step: int) -> int | None:
    """The count after a step as a whole number, as records hold it."""
    value = None if count is None else count(step)
    return None if value is None or not value < 1e36 else round(value)


def _with_batches(points: list[Point], logged: Logged) -> tuple[Point, ...]:
    """Each with the mean tokens of a step: as logged, or since the point before."""
    if len(points) < 2:  # the end of a run: all its tokens are no batch
        return tuple(points)
    own = logged.columns.get("isoflop/batch_tokens")
    logged_batch = {} if own is None else dict(zip(own.steps, own.values, strict=True))
    result: list[Point] = []
    step, tokens = 0, 0
    for point in points:
        batch = logged_batch.get(point.step)
        if batch is None and point.tokens is not None and point.step > step and point.tokens >= tokens:
            batch = (point.tokens - tokens) / (point.step - step)
        result.append(point if batch is None or batch < 0 else structs.replace(point, batch_tokens=batch))
        if point.tokens is not None:
            step, tokens = point.step, point.tokens
    return tuple(result)


Action = Literal["written", "updated", "unchanged"]


def write_run(folder: str | os.PathLike[str], run: Run) -> tuple[Path, Action]:
    """Write a run's record into a folder; its file, and what was done.

    A record of the same source that says the same is left alone; one that says less, or otherwise, is replaced in one
    step, so that a reader sees the old one or the new one.

    Raises:
        RecordError: the folder can't be written, or the file is no import of this source.
    """
    path = record_path(folder, run.run_id)
    digest = _fingerprint(run)
    action: Action = "written"
    if path.exists():
        there = read_run(path).extra.get("imported")
        if not isinstance(there, dict):
            raise RecordError(f"{path}: expected an earlier import, got another record: choose another folder")
        if there.get("fingerprint") == digest:
            return path, "unchanged"
        action = "updated"
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".isoflop-import-", dir=folder) as part:
            log = RecordLog.create(part, run.run_id, _header(run, digest))
            for point in run.points:
                log.point(point)
            if run.end is not None:
                totals = ("tokens", "padding", "loss_tokens", "flops", "flops_6nd")
                counts = {name: getattr(run.points[-1], name) for name in totals}
                log.end(run.end["step"], run.end["status"], **counts)
            log.close()
            os.replace(log.path, path)
    except OSError as error:
        raise RecordError(
            f"Expected a folder that can be made and written, but {path} gave: {error}. Set -o."
        ) from None
    return path, action


def _header(run: Run, digest: str) -> dict[str, Any]:
    """The header line of an imported run."""
    kept = ("name", "framework", "model", "parameters", "parameters_method", "optimizer", "planned", "device")
    fields = {name: getattr(run, name) for name in (*kept, "counting", "loss_units")}
    if run.created:
        fields["created"] = run.created
    imported = {**run.extra["imported"], "fingerprint": digest}
    return {**fields, "versions": {"isoflop": library_versions().get("isoflop", "")}, "imported": imported}


def _fingerprint(run: Run) -> str:
    """Of all that a record of the run would say, but for the time of its file."""
    values = asdict(run)
    del values["created"], values["path"]
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:20]
