"""A run as isoflop's records hold it, from what was logged and what the user says; how each number came is kept."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import Any

from isoflop.record.provenance import json_safe
from isoflop.record.run import Run

from .counts import counts_of
from .files import read_json
from .given import Given
from .logged import Logged
from .losses import losses_of
from .points import iso_time, points_of
from .problem import ImportProblem, plain
from .sized import Counter

CONVENTION = "1 multiply-add = 2 FLOPs"
FRAMEWORKS = {"huggingface": "transformers", "lightning": "lightning"}


@dataclass(frozen=True)
class Imported:
    """One run, and what the user should know of it.

    Attributes:
        run: as a record would hold it; `run.extra["imported"]` says where it is from and how each number was obtained.
        kind: the tool.
        source: where it was read.
        notes: what was derived, converted or repaired.
        missing: `params`, `tokens`: what it has not and can't be told.
        hint: what its log says towards the tokens.
        ends: it is the end of a run, without a curve.
    """

    run: Run
    kind: str
    source: str
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    hint: str = ""
    ends: bool = False


def run_id_of(logged: Logged) -> str:
    """The same for the same source, so that a second import is known as one: a part of its name and 10 hex digits."""
    digest = hashlib.sha256(f"{logged.kind}\n{logged.key}".encode("utf-8", "replace")).hexdigest()[:10]
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", logged.name).strip("-.")[:60]
    return f"{slug or 'run'}-{digest}"


def assembled(logged: Logged, given: Given, counter: Counter | None, problems: list[str]) -> Imported:
    """A run of what was logged and given.

    Raises:
        RecordError: it has no loss.
    """
    answers = given.of(logged.names)
    losses = losses_of(logged, answers)
    if not any(len(column) for column in losses.columns.values()):
        there = ", ".join([*logged.columns, *logged.unused][:20]) or "none"
        raise ImportProblem(
            f"{logged.source}: no loss is in it; its columns are {there}: name the one with --loss COLUMN (an "
            "evaluation's with --loss eval/val=COLUMN)"
        )
    counts = counts_of(logged, answers, counter)
    problems.extend(counts.problems)
    points = points_of(logged, losses, counts)
    status = logged.status or "completed"
    notes = [*logged.notes, *losses.notes]
    if logged.status is None:
        notes.append("the log does not say whether the run was finished: taken as finished")
    if not answers.loss_unit and "isoflop/loss" not in losses.taken.values():
        notes.append("losses are taken as nats per token (--loss-unit says otherwise)")
    how = {**{f"loss {name}": column for name, column in losses.taken.items()}, **counts.how}
    planned: dict[str, Any] = {}
    steps = answers.planned_steps or logged.planned_steps
    if steps:
        planned["steps"] = round(steps)
    run = Run(
        run_id=run_id_of(logged),
        name=logged.name,
        created=iso_time(logged.created if logged.created is not None else _modified(logged.source)),
        framework=FRAMEWORKS.get(logged.kind, logged.kind),
        model={"config": json_safe(_config(logged))} if logged.config is not None else {},
        parameters=dict(counts.parameters),
        parameters_method=counts.how.get("params"),
        optimizer={"class": plain(str(logged.settings["optim"]))} if logged.settings.get("optim") else None,
        planned=planned,
        device={} if answers.devices is None else {"world_size": round(answers.devices)},
        counting={
            "method": f"imported: {counts.how.get('flops', 'FLOPs unknown')}",
            "convention": CONVENTION,
            "flops_per_token": counts.flops_per_token,
        },
        loss_units=dict(losses.units),
        extra={
            "imported": {
                "from": logged.kind,
                "source": logged.source,
                "precision": "float32" if logged.single else "float64",
                "how": how,
                "notes": notes,
            }
        },
        points=points,
        status=status,
        end={"step": points[-1].step, "status": status} if status != "running" else None,
        path=None,
    )
    said = [f"{what}: {text}" for what, text in counts.how.items()]
    return Imported(
        run=run,
        kind=logged.kind,
        source=logged.source,
        notes=(*notes, *said),
        missing=tuple(counts.missing),
        hint=counts.hints.get("tokens", ""),
        ends=logged.ends,
    )


def _config(logged: Logged) -> Any:
    """The configuration's content, for the record; what is not readable was told when it was counted."""
    if not isinstance(logged.config, str):
        return logged.config
    try:
        return read_json(logged.config)
    except ImportProblem:
        return None


def _modified(source: str) -> float | None:
    """When a file was last written; a folder's newest file is not looked for."""
    try:
        return os.stat(source).st_mtime
    except (OSError, ValueError):
        return None
