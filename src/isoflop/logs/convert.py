"""A run as isoflop's records hold it, from what was logged and what the user says; how each number came is kept.

The points of an imported run: its losses with the counts at their steps, thinned as isoflop's own record is.

What is asked of the user: what no log holds, once for all runs that lack it, and what they can't serve without.

Other tools' logs as isoflop's `Run`s: found, read, completed with what the user says. Nothing is written here.

Imported runs as isoflop's records: a file each, whole or not at all, the same source always the same file.

`isoflop.import_runs`: other tools' logs as `Run`s, with N counted from a config.json as `isoflop count` does.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
import warnings
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from sys import stderr
from typing import Any, Literal

from isoflop import __version__
from isoflop.logs import huggingface, table, tensorboard
from isoflop.logs import mlflow as mlflow_api
from isoflop.logs import mlflow as mlflow_files
from isoflop.logs import table as lightning
from isoflop.logs import wandb as wandb_api
from isoflop.logs.counts import Counts, Losses, counts_of, losses_of
from isoflop.logs.files import read_json
from isoflop.logs.find import KINDS, find
from isoflop.logs.given import UNITS, Counter, Given, Sized
from isoflop.logs.logged import Column, ImportProblem, Logged, Track, in_order, is_rate, plain, wanted, whole_at
from isoflop.record.provenance import json_safe
from isoflop.record.reader import read_run
from isoflop.record.run import Point, RecordError, Run
from isoflop.record.thinned import due
from isoflop.record.writer import RecordLog, record_path

TRAIN = "train"


def points_of(logged: Logged, losses: Losses, counts: Counts) -> tuple[Point, ...]:
    """The points by step: means of the training loss since the point before, evaluations as they are."""
    rates = _rates(logged)
    found: dict[int, Point] = {}
    columns = losses.columns
    if TRAIN in columns:
        averaged = logged.averaged or losses.taken[TRAIN] == "isoflop/loss"
        for step, loss, covered, time in _thinned(columns[TRAIN], averaged):
            found[step] = _point(step, {TRAIN: loss}, covered, time, counts, rates)
    for name, column in columns.items():
        if name == TRAIN:
            continue
        last = len(column)
        for index, (step, loss, time) in enumerate(column, 1):
            if due(index) or index == last:
                point = _point(step, {name: loss}, 0, time, counts, rates)
                found[step] = found[step].merged(point) if step in found else point
    return _with_batches([found[step] for step in sorted(found)], logged)


def _thinned(column: Column, averaged: bool) -> list[tuple[int, float, int, float]]:
    """(step, mean loss, optimizer steps in it, time) at the log steps that are due, and the last."""
    found: list[tuple[int, float, int, float]] = []
    total, count, since = 0.0, 0, 0
    last = len(column)
    for index, (step, loss, time) in enumerate(column, 1):
        total, count = total + loss, count + 1
        if due(index) or index == last:
            covered = max(step - since, 1) if averaged else count
            found.append((step, total / count if count > 1 else loss, covered, time))
            total, count, since = 0.0, 0, step
    return found


def _point(
    step: int, losses: dict[str, float], covered: int, time: float, counts: Counts, rates: Track | None
) -> Point:
    tokens, data = whole_at(counts.tokens, step), whole_at(counts.data_tokens, step)
    return Point(
        step=step,
        tokens=tokens,
        padding=None if tokens is None or data is None else max(tokens - data, 0),
        loss_tokens=whole_at(counts.loss_tokens, step),
        flops=whole_at(counts.flops, step),
        flops_6nd=whole_at(counts.flops_6nd, step),
        losses=losses,
        lr=None if rates is None else rates.at(step),
        interval_steps=covered,
        time=time if math.isfinite(time) and 0 <= time < 2.5e11 else None,
    )


def _rates(logged: Logged) -> Track | None:
    """Learning rates by step; of several parameter groups the first."""
    name = min(
        (one for one in logged.columns if is_rate(one)), key=lambda one: (one.startswith("lr-"), one), default=None
    )
    if name is None:
        return None
    tidy, _, _ = in_order(logged.columns[name])
    rows = [(step, value) for step, value, _ in tidy if math.isfinite(value) and value >= 0]
    if not rows:
        return None
    return _Between([step for step, _ in rows], [value for _, value in rows])


class _Between(Track):
    """Learning rates: on a line between those logged, unknown before the first and after the last."""

    def at(self, step: int) -> float | None:
        """The rate of a step."""
        return super().at(step) if step >= self._steps[0] else None


def _with_batches(points: list[Point], logged: Logged) -> tuple[Point, ...]:
    """Each with the mean tokens of a step: as logged, or since the point before."""
    if len(points) < 2:  # the end of a run: all its tokens are no batch
        return tuple(points)
    own = logged.columns.get("isoflop/batch_tokens")
    said = {} if own is None else dict(zip(own.steps, own.values, strict=True))
    result: list[Point] = []
    step, tokens = 0, 0
    for point in points:
        batch = said.get(point.step)
        if batch is None and point.tokens is not None and point.step > step and point.tokens >= tokens:
            batch = (point.tokens - tokens) / (point.step - step)
        result.append(point if batch is None or batch < 0 else replace(point, batch_tokens=batch))
        if point.tokens is not None:
            step, tokens = point.step, point.tokens
    return tuple(result)


def iso_time(seconds: float | None) -> str:
    """A unix time as records write it; empty where there is none."""
    if seconds is None or not 0 <= seconds < 2.5e11:
        return ""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


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


_ASKED = {
    "params": (
        "N is",
        "--params 124M (or --config config.json)",
        "--params NAME=124M",
        "Without it fit and plan can't use the run.",
    ),
    "tokens": (
        "The number of tokens is",
        "--tokens-per-step 524288",
        "--tokens-per-step NAME=524288",
        "Without it the loss is known by step alone: fit, plan, backtest and rank can't use the run.",
    ),
}


def named_apart(found: tuple[Imported, ...]) -> tuple[Imported, ...]:
    """Runs of one name get their sources' folders in front, so that figures and tables tell them apart."""
    names = Tally(one.run.name for one in found)
    result = []
    for one in found:
        if names[one.run.name] > 1 and "://" not in one.source and not one.source.startswith(("wandb:", "mlflow:")):
            parent = Path(os.path.abspath(one.source)).parent.name
            one = replace(one, run=replace(one.run, name=f"{parent}/{one.run.name}"))
        result.append(one)
    return tuple(result)


def questions(found: tuple[Imported, ...]) -> tuple[str, ...]:
    """What is asked for, of all runs that lack it together; without N or tokens a run has its loss by step alone."""
    asked = []
    for what, (subject, option, by_name, without) in _ASKED.items():
        lacking = [one for one in found if what in one.missing]
        if not lacking:
            continue
        hints = list(dict.fromkeys(one.hint for one in lacking if what == "tokens" and one.hint))[:2]
        if len(lacking) == 1:
            where, how = lacking[0].source, option
        else:
            some = ", ".join(one.run.name for one in lacking[:4]) + (", …" if len(lacking) > 4 else "")
            many = "the" if len(lacking) == len(found) else f"{len(lacking)} of"
            where = f"{many} {len(found)} runs ({some})"
            how = f"{option}, for single runs with {by_name} or --table runs.csv (run,params,tokens_per_step)"
        text = f"{subject} not in {where}: give it with {how}."
        asked.append(" ".join([text, *hints, without.replace("the run", "these runs") if lacking[1:] else without]))
    return tuple(asked)


_READERS: dict[str, Callable[..., list[Logged]]] = {
    "huggingface": huggingface.read,
    "tensorboard": tensorboard.read,
    "lightning": lightning.lightning_read,
    "wandb": wandb_api.read_offline,
    "wandb-api": wandb_api.read,
    "mlflow": mlflow_files.mlflow_files_read,
    "mlflow-api": mlflow_api.read,
    "table": table.read,
}


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


def runs_of_logs(
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
    names: set[tuple[str, ...]] = set()
    for path in paths:
        try:
            sources = find(os.fspath(path), kind, leave_out)
        except ImportProblem as problem:
            problems.append(str(problem))
            continue
        for reader, source in sources:
            for logged in _read(reader, source, named, step, problems):
                names.add(logged.names)
                problems.extend(logged.problems)
                try:
                    one = assembled(logged, given, counter, problems)
                except RecordError as problem:
                    problems.append(str(problem))
                else:
                    imported.setdefault(one.run.run_id, one)
    if names:
        problems.extend(given.of_nobody(names))
    found = named_apart(tuple(imported.values()))
    return ImportResult(found, tuple(dict.fromkeys(problems)), questions(found))


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


Action = Literal["written", "updated", "unchanged"]


def write_run(folder: str | os.PathLike[str], run: Run) -> tuple[Path, Action]:
    """Write a run's record into a folder.

    A record of the same source that says the same is left alone; one that says less, or otherwise, is replaced in one
    step, so that a reader sees the old one or the new one.

    Returns:
        Its file, and what was done.

    Raises:
        RecordError: the folder can't be written, or the file is no import of this source.
    """
    path = record_path(folder, run.run_id)
    print_of_run = fingerprint(run)
    action: Action = "written"
    if path.exists():
        there = read_run(path).extra.get("imported")
        if not isinstance(there, dict):
            raise RecordError(f"{path}: expected an earlier import, got another record: choose another folder")
        if there.get("fingerprint") == print_of_run:
            return path, "unchanged"
        action = "updated"
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".isoflop-import-", dir=folder) as part:
            log = RecordLog.create(part, run.run_id, header_of(run, print_of_run))
            for point in run.points:
                log.point(point)
            if run.end is not None:
                last = run.points[-1]
                counts = {
                    name: getattr(last, name) for name in ("tokens", "padding", "loss_tokens", "flops", "flops_6nd")
                }
                log.end(run.end["step"], run.end["status"], **counts)
            log.close()
            os.replace(log.path, path)
    except OSError as error:
        raise RecordError(
            f"Expected a folder that can be made and written, but {path} gave: {error}. Set -o."
        ) from None
    return path, action


def header_of(run: Run, print_of_run: str) -> dict[str, Any]:
    """The header line of an imported run."""
    kept = ("name", "framework", "model", "parameters", "parameters_method", "optimizer", "planned", "device")
    fields = {name: getattr(run, name) for name in (*kept, "counting", "loss_units")}
    if run.created:
        fields["created"] = run.created
    imported = {**run.extra["imported"], "fingerprint": print_of_run}
    return {**fields, "versions": {"isoflop": __version__}, "imported": imported}


def fingerprint(run: Run) -> str:
    """Of all that a record of the run would say, but for the time of its file."""
    values = asdict(run)
    del values["created"], values["path"]
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:20]


def import_runs(
    paths: Iterable[str | os.PathLike[str]],
    given: Given | None = None,
    *,
    kind: str | None = None,
    step: str | None = None,
    leave_out: Sequence[Path] = (),
) -> ImportResult:
    """Read other tools' logs; see `isoflop.logs.import_runs`, and docs/import.md.

    Args:
        paths: files, folders that are searched, `wandb:entity/project[/run]`, `mlflow:<tracking URI>[#experiment]`.
        given: what the user says of runs whose logs don't.
        kind: huggingface, tensorboard, lightning, wandb, mlflow or table, where the content is not to be asked.
        step: the column of steps of a plain table.
        leave_out: files that are no runs.

    Returns:
        Runs, problems and questions; nothing is written (`isoflop.logs.write_run` does).
    """
    return runs_of_logs(paths, given, kind=kind, step=step, counter=Counted(), leave_out=leave_out)


class Counted:
    """Counts configurations on the meta device, each once."""

    def __init__(self) -> None:
        self._done: dict[tuple[str, int | None], Sized | ValueError] = {}

    def __call__(self, config: str | Mapping[str, Any], length: int | None) -> Sized:
        """The size of the model that a config.json describes.

        Args:
            config: the file, or its content.
            length: tokens a sequence, for the FLOPs of a token.

        Raises:
            ValueError: it can't be opened or counted.
        """
        try:
            text = Path(config).read_text(encoding="utf-8") if isinstance(config, str) else json.dumps(dict(config))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"expected a config.json that can be read, got {error}") from None
        if (text, length) not in self._done:
            try:
                self._done[text, length] = _count(text, length)
            except ValueError as error:
                self._done[text, length] = error
        done = self._done[text, length]
        if isinstance(done, ValueError):
            raise done
        return done


def _count(text: str, length: int | None) -> Sized:
    from isoflop.flops.calls import Uncountable
    from isoflop.flops.count import count_measured
    from isoflop.flops.open_model import candidate_calls, open_model
    from isoflop.flops.parameters import count_parameters

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries' remarks while a model is built
        place = Path(folder) / "config.json"
        place.write_text(text, encoding="utf-8")
        try:
            model = open_model(str(place)).model
        except ValueError as error:
            if "--trust" in str(error):
                raise ValueError(
                    "it brings code of its own, which is not run here: `isoflop count --trust` tells N, for --params"
                ) from None
            raise ValueError(str(error).replace(str(place), "config.json")) from None
        count_like_theirs: Any = getattr(model, "num_parameters", None)
        theirs = int(count_like_theirs(exclude_embeddings=True)) if callable(count_like_theirs) else None
        calls: list[Any] = []
        with suppress(ValueError):  # a model that does not eat tokens: N is told by module type
            calls = candidate_calls(model, 1, length or 16, {})
        for call in calls:
            try:
                counted = count_measured(model, call)
            except Uncountable:
                continue
            flops = counted.model_flops
            return Sized(
                parameters=counted.parameters.by_convention(),
                method=counted.parameters.method,
                huggingface=theirs,
                flops_per_token=flops / length if length and flops is not None else None,
                flops_method=f"{counted.method}, at {length} tokens a sequence" if length else None,
            )
        parameters = count_parameters(model)
        return Sized(parameters=parameters.by_convention(), method=parameters.method, huggingface=theirs)
