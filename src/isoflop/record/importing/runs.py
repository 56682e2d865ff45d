"""Other tools' logs as isoflop's `Run`s: found, read, completed with what the user says. Nothing is written here."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isoflop.record.provenance import json_safe
from isoflop.record.run import RecordError, Run

from . import huggingface, lightning, mlflow_api, mlflow_files, table, tensorboard, wandb_api, wandb_files
from .counts import counts_of
from .find import KINDS, find
from .given import EVERY, UNITS, Given
from .logged import Logged
from .losses import losses_of
from .names import wanted
from .points import iso_time, points_of
from .problem import ImportProblem, plain
from .sized import Counter

CONVENTION = "1 multiply-add = 2 FLOPs"
FRAMEWORKS = {"huggingface": "transformers", "lightning": "lightning"}
_READERS: dict[str, Callable[..., list[Logged]]] = {
    "huggingface": huggingface.read,
    "tensorboard": tensorboard.read,
    "lightning": lightning.read,
    "wandb": wandb_files.read,
    "wandb-api": wandb_api.read,
    "mlflow": mlflow_files.read,
    "mlflow-api": mlflow_api.read,
    "table": table.read,
}
_ASKED = {
    "params": ("N is", "--params 124M (or --config config.json)", "--params NAME=124M"),
    "tokens": ("The number of tokens is", "--tokens-per-step 524288", "--tokens-per-step NAME=524288"),
}


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


@dataclass(frozen=True)
class ImportResult:
    """What was found.

    Attributes:
        imported: the runs, with what there is to say of each.
        problems: what could not be read, with file and line.
        questions: what is not in the logs, with the option that gives it.
    """

    imported: tuple[Imported, ...] = ()
    problems: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs alone."""
        return tuple(one.run for one in self.imported)


def import_runs(
    paths: Iterable[str | os.PathLike[str]],
    given: Given | None = None,
    *,
    kind: str | None = None,
    step: str | None = None,
    counter: Counter | None = None,
    leave_out: Sequence[Path] = (),
) -> ImportResult:
    """Read other tools' logs.

    Args:
        paths: files, folders that are searched, `wandb:entity/project[/run]`, `mlflow:<tracking URI>[#experiment]`.
        given: what the user says of runs whose logs don't.
        kind: one of `find.KINDS`, where the content is not to be asked.
        step: the column of steps of a plain table.
        counter: counts a model configuration; None: config.json is not read.
        leave_out: files that are no runs, such as a table of answers.

    Returns:
        The runs; those that lack N or tokens too, if they have a loss. What is broken is in `problems`.

    Raises:
        ImportProblem: `kind` or a unit that there is not.
    """
    given = given or Given()
    if kind is not None and kind not in KINDS:
        raise ImportProblem(f"--from: expected one of {', '.join(KINDS)}, got {kind!r}")
    for unit in given.loss_unit.values():
        if unit not in UNITS:
            raise ImportProblem(f"--loss-unit: expected one of {', '.join(UNITS)}, got {unit!r}")
    named = frozenset(given.loss.values())
    imported: dict[str, Imported] = {}
    problems: list[str] = []
    names: set[str] = set()
    for path in paths:
        try:
            sources = find(os.fspath(path), kind, leave_out)
        except ImportProblem as problem:
            problems.append(str(problem))
            continue
        for reader, source in sources:
            for logged in _read(reader, source, named, step, problems):
                names.add(logged.name)
                problems.extend(logged.problems)
                try:
                    one = _assembled(logged, given, counter, problems)
                except RecordError as problem:
                    problems.append(str(problem))
                else:
                    imported.setdefault(one.run.run_id, one)
    if names:
        problems.extend(given.of_nobody(names))
    found = _named_apart(tuple(imported.values()))
    return ImportResult(found, tuple(dict.fromkeys(problems)), _questions(found))


def _read(reader: str, source: str, named: frozenset[str], step: str | None, problems: list[str]) -> list[Logged]:
    """What a reader finds; what it can't is told. `named`: columns that the user wants."""
    if reader == "wandb" and os.path.isfile(source) and source.lower().endswith(".csv"):
        reader = "table"  # an export
    options: dict[str, Any] = {"step": step} if reader == "table" else {}
    try:
        return _READERS[reader](source, lambda name: name in named or wanted(name), **options)
    except RecordError as problem:
        problems.append(str(problem))
    except OSError as error:
        problems.append(f"{source}: expected to be able to read it, got {error}")
    return []


def run_id_of(logged: Logged) -> str:
    """The same for the same source, so that a second import is known as one: a part of its name and 10 hex digits."""
    digest = hashlib.sha256(f"{logged.kind}\n{logged.key}".encode("utf-8", "replace")).hexdigest()[:10]
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", logged.name).strip("-.")[:60]
    return f"{slug or 'run'}-{digest}"


def _assembled(logged: Logged, given: Given, counter: Counter | None, problems: list[str]) -> Imported:
    """A run of what was logged and given.

    Raises:
        RecordError: it has no loss.
    """
    answers = given.of(logged.name)
    losses = losses_of(logged, answers)
    if not any(len(column) for column in losses.columns.values()):
        there = ", ".join([*logged.columns, *logged.unused][:20]) or "none"
        raise ImportProblem(
            f"{logged.source}: no loss is in it; its columns are {there}: name the one with --loss COLUMN (an "
            "evaluation's with --loss eval/val=COLUMN)"
        )
    counts = counts_of(logged, answers, counter)
    problems.extend(counts.problems)
    points = points_of(logged, losses.columns, counts)
    status = logged.status or "completed"
    notes = [*logged.notes, *losses.notes]
    if logged.status is None:
        notes.append("the log does not say whether the run was finished: taken as finished")
    if answers.loss_unit.get(EVERY) is None and not answers.loss_unit and "isoflop/loss" not in losses.taken.values():
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
    from .files import read_json

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


def _named_apart(found: tuple[Imported, ...]) -> tuple[Imported, ...]:
    """Runs of one name get their sources' folders in front, so that figures and tables tell them apart."""
    names = [one.run.name for one in found]
    result = []
    for one in found:
        if (
            names.count(one.run.name) > 1
            and "://" not in one.source
            and not one.source.startswith(("wandb:", "mlflow:"))
        ):
            parent = Path(os.path.abspath(one.source)).parent.name
            one = replace(one, run=replace(one.run, name=f"{parent}/{one.run.name}"))
        result.append(one)
    return tuple(result)


def _questions(found: tuple[Imported, ...]) -> tuple[str, ...]:
    """What is asked for, of all runs that lack it together; without N or tokens a run has its loss by step alone."""
    asked = []
    for what, (subject, option, by_name) in _ASKED.items():
        lacking = [one for one in found if what in one.missing]
        if not lacking:
            continue
        hints = list(dict.fromkeys(one.hint for one in lacking if what == "tokens" and one.hint))[:2]
        if len(lacking) == 1:
            where, how = lacking[0].source, option
        else:
            some = ", ".join(one.run.name for one in lacking[:4]) + (", …" if len(lacking) > 4 else "")
            where = f"{len(lacking)} of {len(found)} runs ({some})"
            how = f"{option}, of each run with {by_name} or --table runs.csv (run,params,tokens_per_step)"
        text = f"{subject} not in {where}: give it with {how}."
        asked.append(" ".join([text, *hints]))
    return tuple(asked)
