"""A run of isoflop's from what was logged and what the user says: losses, points, header; and its record.

What was read is held against itself: N, D, C and the loss must be possible together, in this world. What is not is
asked, and left out of the record until it is answered. What the user gave is not doubted.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from msgspec import structs

from isoflop.averages import looks_averaged
from isoflop.laws.forms import usual_loss
from isoflop.logs.counts import Counts, SizeOf, counts_of
from isoflop.logs.files import ImportProblem, number, plain, whole
from isoflop.logs.given import EVERY, Answers
from isoflop.logs.logged import Column, Count, Logged, Losses, interpolated, losses_of
from isoflop.logs.names import PLANNED, factor_of
from isoflop.record.lines import MAX_SECONDS, due
from isoflop.record.provenance import json_safe, library_versions
from isoflop.record.reader import read_run
from isoflop.record.run import Point, RecordError, Run, stopped_early
from isoflop.record.writer import RecordLog, iso_time, record_path

CONVENTION = "1 multiply-add = 2 FLOPs"
FRAMEWORKS = {"huggingface": "transformers", "lightning": "lightning"}


ALL = ("params", "tokens", "flops")

FEWEST_PARAMETERS = 100_000  # Fewer are millions or billions, or a toy
MOST_APART = 50_000  # Steps from one value to the next
FEWEST_TOKENS = 1_000_000
TOKENS_A_PARAMETER = (1e-3, 1e6)
"""Public runs lie between .02 and 1e4; outside N or D alone is in millions, or D counts samples or bytes of media."""
FLOPS_OVER_6ND = 3.0
"""Attention, the head and the conventions of N make less than this."""
TOKENS_A_SECOND = 1e10
FLOPS_A_SECOND = 1e21  # More than the largest cluster computes
FAR_BELOW, LARGE_ENOUGH = 0.4, 1e7
"""Of the loss of text at N and D, below which a loss is asked about; and parameters from which text's is known."""
WILD = (
    13.0  # First loss in nats, from which to 1/ln 2 times as much it may be in bits: ln of large vocabularies is 12.5
)
UNTRAINED = 11.0  # Nats per token: ln V of the usual vocabularies, which a run that learned anything falls below


@dataclass(frozen=True)
class Doubt:
    """What can't be: which of `params`, `tokens`, `flops` and `loss`, in words, and the option that answers it."""

    of: tuple[str, ...]
    text: str
    answer: str


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


class NoLoss(ImportProblem):
    """A run without a loss."""


def assembled(logged: Logged, answers: Answers, size_of: SizeOf | None, problems: list[str]) -> Imported:
    """A run of what was logged, by optimizer step, and given; `problems` of it are noted. ImportProblem: no loss."""
    losses = losses_of(logged, answers)
    if not any(len(column) for column in losses.columns.values()):
        need = "export the loss's chart into the same folder too, or " if logged.is_chart else ""
        raise NoLoss(
            f"no loss is in it; its columns are {logged.shown(20) or 'none'}: {need}name the one with --loss COLUMN "
            "(an evaluation's with --loss eval/val=COLUMN)",
            logged.source,
        )
    counts = counts_of(logged, answers, size_of, problems)
    points = points_of(logged, losses, counts)
    doubts = doubts_of(logged, answers, losses, counts, points)
    if wrong := {what for doubt in doubts for what in doubt.of}:
        counts = counts.without(wrong)
        points = points_of(logged, losses, counts)
    notes = [*logged.notes, *losses.notes]
    if answers.groups:
        notes.append(f"{', '.join(answers.groups)}: of the table, for --group and --where")
    planned = _planned(logged, answers, points)
    if logged.status is None and not planned:
        notes.append("the log does not say whether the run was finished: taken as finished")
    done = _steps_done(logged, losses, planned)
    if done > max(points[-1].step, logged.done):
        notes.append("the last value lies less than a log interval before the planned end: taken as finished there")
    if not answers.given.loss_unit and "isoflop/loss" not in losses.taken.values():
        notes.append("losses are taken as nats per token (--loss-unit says otherwise)")
    return Imported(
        run=_run_of(logged, answers, losses, counts, points, planned, done, notes),
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


def _planned(logged: Logged, answers: Answers, points: Sequence[Point]) -> int | None:
    """Optimizer steps planned, as given or logged; None: unknown."""
    told = (whole(logged.settings.get(name)) for name in PLANNED)
    steps = answers.planned_steps or next((count for count in told if count and count >= points[-1].step), None)
    return round(steps) if steps and not logged.ends else None  # the end of a run is recorded as step 1


def _steps_done(logged: Logged, losses: Losses, planned: int | None) -> int:
    """Optimizer steps done: as the tool states; else the planned ones where the next value would lie beyond them."""
    steps = np.unique(np.concatenate([column.arrays()[0][-2:] for column in losses.columns.values()]))
    last = max(int(steps[-1]), logged.done)
    open_end = planned is not None and len(steps) > 1 and not logged.done and logged.status in (None, "completed")
    return planned if open_end and planned and last < planned <= 2 * steps[-1] - steps[-2] else last


def _run_of(
    logged: Logged,
    answers: Answers,
    losses: Losses,
    counts: Counts,
    points: tuple[Point, ...],
    planned: int | None,
    done: int,
    notes: list[str],
) -> Run:
    early = planned is not None and bool(stopped_early(done, planned))
    status = logged.status or ("interrupted" if early else "completed")
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
        planned={"steps": planned} if planned else {},
        device={} if answers.devices is None else {"world_size": round(answers.devices)},
        counting={
            "method": f"imported: {counts.how.get('flops', 'FLOPs unknown')}",
            "convention": CONVENTION,
            "flops_per_token": counts.flops_per_token,
            "six_nd": counts.six_nd,
        },
        loss_units=dict(losses.units),
        extra={"imported": imported},
        points=points,
        status=status,
        end={"step": done, "status": status} if status != "running" else None,
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
    rates = None
    for name in logged.best("rate")[:1]:  # of several parameter groups the first
        steps, values = logged.columns[name].known()
        rates = interpolated(steps, values * factor_of(name), origin=False)

    def whole_at(count: Count | None, step: int) -> int | None:
        value = None if count is None else count(step)
        return None if value is None or not value < 1e36 else round(value)

    found: dict[int, Point] = {}
    for name, column in losses.columns.items():
        averaged = None if name != "train" else logged.averaged or losses.averaged
        for step, loss, time, covered in _thinned(column, averaged):
            tokens, data = whole_at(counts.tokens, step), whole_at(counts.data_tokens, step)
            point = Point(
                step=step,
                tokens=tokens,
                padding=None if tokens is None or data is None else max(tokens - data, 0),
                loss_tokens=whole_at(counts.loss_tokens, step),
                flops=whole_at(counts.flops, step),
                flops_6nd=whole_at(counts.flops_6nd, step),
                losses={name: loss},
                lr=None if rates is None else rates(step),
                interval_steps=covered,
                time=time if math.isfinite(time) and 0 <= time < MAX_SECONDS else None,
            )
            found[step] = found[step].merged(point) if step in found else point
    points = [found[step] for step in sorted(found)]
    rows_alone = logged.numbered and not counts.how.get("tokens", "").endswith("given")  # a row may be many steps
    return tuple(points) if rows_alone else _with_batches(points, logged)


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


def doubts_of(
    logged: Logged, answers: Answers, losses: Losses, counts: Counts, points: Sequence[Point]
) -> tuple[Doubt, ...]:
    """What of a run can't be, one doubt a quantity; of what the user gave, or isoflop counted, nothing is doubted."""
    told = {"params": answers.parameters, "tokens": answers.tokens_per_step, "flops": answers.flops_per_token}
    given = {what for what, value in told.items() if value}
    given |= {what for what, how in counts.how.items() if how.startswith(("isoflop's own", "config.json"))}
    size = counts.parameters
    names = ("active", "non_embedding_with_head", "total", "non_embedding")
    N = next((size[name] for name in names if size.get(name)), None)
    how = counts.how.get("flops", "")
    found = [Doubt(("loss",), text, "") for text in losses.doubts]
    found += _impossible(N, given, "as logged" in how or "total_flos" in how, points[-1], logged.ends)
    if "tokens" not in given:
        found += _too_fast(N, points)
    if len(points) > 2 and (gap := statistics.median(b.step - a.step for a, b in pairwise(points))) >= MOST_APART:
        text = f"its steps lie {gap:,.0f} apart, as tokens or samples do: are they optimizer steps?"
        found.append(Doubt(("loss",), text, "--step COLUMN, or a log by steps"))
    config = logged.model
    vocabulary = number(config.get("vocab_size")) or number(logged.settings.get("vocab_size"))
    asked = [
        name for name in losses.columns if name not in {*answers.given.loss, *answers.given.loss_unit, *losses.units}
    ]
    if EVERY not in answers.given.loss_unit:
        found += _losses(asked, vocabulary, N, points)
        found += _averages(losses.columns["train"], points[-1]) if "train" in asked else ()
    return tuple(replace(doubt, of=tuple(what for what in doubt.of if what not in given)) for doubt in found)


def _impossible(N: int | None, given: set[str], logged_flops: bool, last: Point, ends: bool) -> Iterator[Doubt]:
    """N, D and C held against each other; `ends`: the point is the end of a run."""
    D, C = last.tokens, last.flops
    trusted = {"params", "tokens"} <= given
    rate = C / (6 * N * D) if logged_flops and N and D and C else None
    agree = rate is not None and 1 / FLOPS_OVER_6ND <= rate <= FLOPS_OVER_6ND
    if N is not None and N < FEWEST_PARAMETERS and "params" not in given and not agree:
        text = f"N is {N:,}, fewer than a model has, as if in millions"
        yield Doubt(ALL, text, "columns named with their unit (params_M, tokens_B), or --params 124M")
        return
    if ends and D is not None and D < FEWEST_TOKENS and "tokens" not in given and not agree:
        text = f"D is {D:,}, fewer tokens than a run has, as if in millions or billions"
        answer = "a column named with its unit (tokens_B), cells such as 8.2B, or --tokens-per-step 8.2B"
        yield Doubt(("tokens", "flops"), text, answer)
        return
    if N and D is not None and not trusted and not TOKENS_A_PARAMETER[0] <= D / N <= TOKENS_A_PARAMETER[1]:
        text = f"N {N:.3g} and D {D:.3g} make {D / N:.3g} tokens a parameter"
        yield Doubt(ALL, text, "--params 124M --tokens-per-step 524288")
        return
    if rate is not None and not agree and "flops" not in given:
        text = f"FLOPs {C:.3g} as logged are {rate:.3g} times 6·N·D with N {N:.3g}, D {D:.3g}: one of them is wrong"
        answer = (
            "--flops-per-token 6.5e8"
            if trusted
            else "--tokens-per-step 524288 --params 124M, or --flops-per-token 6.5e8"
        )
        yield Doubt(("flops",) if trusted else ("tokens", "flops"), text, answer)


def _too_fast(N: int | None, points: Sequence[Point]) -> Iterator[Doubt]:
    timed = [(point.time, point.tokens) for point in points if point.time is not None and point.tokens is not None]
    if len(timed) < 2:
        return
    seconds, tokens = timed[-1][0] - timed[0][0], timed[-1][1] - timed[0][1]
    if seconds <= 1.0 or tokens <= 0:
        return
    speed = tokens / seconds
    if speed > TOKENS_A_SECOND or speed * 6 * (N or 0) > FLOPS_A_SECOND:
        text = f"{speed:.3g} tokens a second is more than any cluster trains on"
        yield Doubt(("tokens", "flops"), text, "--tokens-per-step 524288")


def _losses(names: Sequence[str], vocabulary: float | None, N: int | None, points: Sequence[Point]) -> Iterator[Doubt]:
    vocabulary = vocabulary if vocabulary and vocabulary > 1 else None
    highest = UNTRAINED if vocabulary is None else math.log(vocabulary) + 1
    for name in names:
        values = [value for point in points if (value := point.losses.get(name)) is not None]
        if not values:
            continue
        size, seen = N or 0, next((p.tokens for p in reversed(points) if p.losses.get(name) is not None), None)
        usual = float(usual_loss(size, seen)) if size > LARGE_ENOUGH and seen else math.inf
        if min(values) < 0:
            yield Doubt(("loss",), f"{name} falls to {min(values):.4g}: no cross-entropy is below 0", "--loss COLUMN")
        elif name != "train" and 0 < (zeros := values.count(0.0)) < len(values):
            text = f"{name} is 0 at {zeros:,} of its {len(values):,} points, as if nothing was evaluated there"
            yield Doubt(("loss",), text, "blank cells there, or --loss-unit nats if it is right")
        elif min(values) > highest:
            bound = f"ln {vocabulary:,.0f} + 1 = {highest:.4g}" if vocabulary else f"{highest:.4g}"
            text = f"{name} never falls below {min(values):.4g} nats, above {bound}: it may be a sum"
            yield Doubt(("loss",), f"{text}, a perplexity, or in bits", "--loss-unit bits (or ppl), or --loss COLUMN")
        elif WILD < values[0] < WILD / math.log(2) and len(values) > 2 and values[1] > highest:
            text = f"{name} begins at {values[0]:.4g} nats, where a guess among all tokens has about {highest - 1:.3g}"
            yield Doubt(("loss",), f"{text}: it may be in bits", "--loss-unit bits, or nats")
        elif 0 <= values[-1] < FAR_BELOW * usual and usual < math.inf:
            text = (
                f"{name} ends at {values[-1]:.3g}, where text has about {usual:.2g} nats per token after {seen:.3g} "
                "tokens: divided by accumulation steps, per character, or continued from a checkpoint?"
            )
            yield Doubt(("loss",), text, "--loss COLUMN, or --loss-unit nats if it is right")


def _averages(train: Column, last: Point) -> Iterator[Doubt]:
    if last.tokens and last.step and looks_averaged(*train.known(), last.tokens / last.step):
        text = "train looks like its mean since the start of the run, which lags behind the loss of the model"
        yield Doubt(("loss",), text, "--loss-unit train=mean, which takes the mean back, or train=nats if it is none")


Action = Literal["written", "updated", "unchanged"]


def write_run(folder: str | os.PathLike[str], run: Run) -> tuple[Path, Action]:
    """Write a run's record into a folder; its file, and what was done.

    A record of the same source that says the same is left alone; one that says less, or otherwise, is replaced in one
    step, so that a reader sees the old one or the new one.

    Raises:
        RecordError: the folder can't be written, or the file is no import of this source.
    """
    path = record_path(folder, run.run_id)
    told = repr(asdict(replace(run, created="", path=None)))  # all that a record says, but for its file's time
    digest = hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()[:20]
    action: Action = "written"
    if path.exists():
        there = read_run(path).extra.get("imported")
        if not isinstance(there, dict):
            raise RecordError(f"{path}: expected an earlier import, got another record: choose another folder")
        if there.get("fingerprint") == digest:
            return path, "unchanged"
        action = "updated"
    kept = ("name", "framework", "model", "parameters", "parameters_method", "optimizer", "planned", "device")
    header = {name: getattr(run, name) for name in (*kept, "counting", "loss_units")}
    header |= {"created": run.created} if run.created else {}
    header |= {"versions": {"isoflop": library_versions().get("isoflop", "")}}
    header |= {"imported": {**run.extra["imported"], "fingerprint": digest}}
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".isoflop-import-", dir=folder) as part:
            log = RecordLog.create(part, run.run_id, header)
            for point in run.points:
                log.point(point)
            if run.end is not None:
                totals = ("tokens", "padding", "loss_tokens", "flops", "flops_6nd")
                log.end(**run.end, **{name: getattr(run.points[-1], name) for name in totals})
            log.close()
            os.replace(log.path, path)
    except OSError as error:
        raise RecordError(
            f"Expected a folder that can be made and written, but {path} gave: {error}. Set -o."
        ) from None
    return path, action
