"""Curves to learn from: of isoflop's records, and of folders laid out as index.csv + <dataset>/<run>.csv."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.arrays import Array
from isoflop.console import by_reason, listed
from isoflop.fit.runs import RunCurve, curve_of_run, unfinished
from isoflop.forecast.curve import OFF_PLAN, LossCurve
from isoflop.forecast.lr_plan import LrPlan
from isoflop.forecast.priors import Priors, known
from isoflop.forecast.sizes import Ladder, fit_ladder
from isoflop.record.reader import read_runs
from isoflop.record.run import Run
from isoflop.record.task import task_of

FEWEST_POINTS = 12
OWN = "own"
"""The organisation of a user's runs: they share data, tokenizer and recipe."""


def curve_of(run: Run | RunCurve, loss: str = "train") -> LossCurve:
    """A recorded run, finished or under way, with its plan to the planned end.

    Args:
        run: as read from its record.
        loss: `train` or eval/<name>.

    Raises:
        ValueError: what is missing; of a run under way the learning rates to come.
    """
    columns = curve_of_run(run) if isinstance(run, Run) else run
    record = columns.run
    values = columns.losses.get(loss, np.full(len(columns.step), np.nan))
    known = np.isfinite(values) & (columns.tokens > 0) & (columns.step > 0)
    if known.sum() < 2:
        others = [f"--loss {name}" for name in columns.losses if name != loss]
        beside = f"; there is {' or '.join(others[:4])}" if others and not known.any() else ""
        raise ValueError(f"{known.sum()} of its points have a loss {loss!r} and tokens; at least 2 are needed{beside}")
    optimizer, parent = (record.optimizer or {}).get("class"), (record.parent or {}).get("run_id")
    sizes = columns.batch[known & (columns.batch > 0)]
    return LossCurve(
        steps=columns.step[known],
        tokens=columns.tokens[known],
        lr=columns.lr[known],
        loss=values[known],
        plan=_plan(columns),
        N=size_of(record.parameters),
        batch_tokens=float(np.median(sizes)) if len(sizes) else None,
        optimizer=optimizer if isinstance(optimizer, str) else None,
        # a branch knows what its parent knows: they are left out together
        organisation=parent if isinstance(parent, str) and parent else record.run_id,
        name=columns.name,
        dataset="records",
        count=np.maximum(columns.count[known], 1.0) if loss == "train" else None,
        task=task_of(record.task, record.parameters, record.model),
        loss_name=loss,
        done=record.steps_done,
    )


def _plan(columns: RunCurve) -> LrPlan:
    """The learning rates of a recorded run, past and to come."""
    given = columns.run.planned.get("learning_rates")
    if isinstance(given, Mapping):
        try:  # a record may be a stranger's
            steps, lr = (np.asarray(given.get(name), dtype=float) for name in ("steps", "lr"))
            return LrPlan(steps, lr)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"its record holds no plan of learning rates that can be read: {error}") from None
    if columns.run.not_ended:
        raise ValueError("it is not finished, and its record does not hold the learning rates to come")
    known = np.isfinite(columns.lr) & (columns.step > 0)
    seen = dict(zip(columns.step[known], columns.lr[known], strict=True))
    if len(seen) < 2:
        raise ValueError("its record holds no learning rates")
    return LrPlan(np.array(list(seen)), np.array(list(seen.values())))


def size_of(parameters: Mapping[str, int | None]) -> int | None:
    """N non-embedding; of experts what a token passes through."""
    body, total, active = (parameters.get(name) for name in ("non_embedding", "total", "active"))
    if body is None:
        return None
    return body - (total - active if total and active else 0)


def finished_runs(runs: Iterable[Run], loss: str = "train") -> tuple[list[LossCurve], list[str]]:
    """The completed runs that can be learnt from; and of the others, why not, a line a reason."""
    found, problems = [], []
    for run in runs:
        try:
            found.append(_finished(run, loss))
        except ValueError as reason:
            problems.append((run.name or run.run_id, str(reason)))
    return found, [f"{listed(names)}: {why}" for why, names in by_reason(problems).items()]


def _finished(run: Run, loss: str) -> LossCurve:
    if why := unfinished(run, loss):
        raise ValueError(why)
    curve = curve_of(run, loss)
    if len(curve.steps) < FEWEST_POINTS:
        raise ValueError(f"{len(curve.steps)} points with a loss {loss!r}; at least {FEWEST_POINTS} are needed")
    if curve.not_of_plan:
        raise ValueError(curve.not_of_plan)
    return curve


def history_of(paths: Iterable[str | os.PathLike[str]], loss: str = "train") -> tuple[list[LossCurve], str | None]:
    """A user's finished runs, as one organisation's, for `learn_priors`.

    Args:
        paths: records, or folders with some.
        loss: which loss of theirs.

    Returns:
        The runs, and what the user should know: that none could be used, and why; else None.
    """
    unread: list[str] = []
    found, problems = finished_runs(read_runs(*paths, on_problem=unread.append), loss)
    if not found:
        reasons = "; ".join([*unread, *problems][:3]) or "there is no record"
        return [], f"no finished run to learn from ({reasons})"
    return [replace(run, organisation=OWN) for run in found], None


def ladder_of(own: Sequence[LossCurve], base: Priors) -> Ladder | None:
    """The joint fit of runs of one user; None where they are of one size, or too short."""
    try:
        return fit_ladder([run for run in own if run.N and run.batch_tokens], base)
    except ValueError:
        return None


def read_curves(folder: str | Path) -> list[LossCurve]:
    """The runs of a folder with an index.csv and <dataset>/<run>.csv (step, tokens, lr, loss, n).

    Raises:
        ValueError: there is no such file, or what is wrong with which run.
        OSError: a file that can't be read.
    """
    folder = Path(folder)
    index = folder / "index.csv"
    if not index.exists():
        raise ValueError(f"Expected a file index.csv in {folder}; there is none.")
    found: list[LossCurve] = []
    try:
        for row in _rows(index):
            found.append(_published(folder, row))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, csv.Error) as error:  # a stranger's file
        reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{index}, run {len(found) + 1}: expected columns and values as in docs/forecast-live.md, got {reason}"
        ) from None
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _published(folder: Path, row: dict[str, str]) -> LossCurve:
    for name in (row["dataset"], row["run"]):
        # it must not lead out of the folder
        if name in ("", ".", "..") or name != Path(name).name or "\\" in name or "\0" in name:
            raise ValueError(f"{name!r} where the plain name of a folder or file should be")
    points = _rows(folder / row["dataset"] / f"{row['run']}.csv")
    table = np.array([[_float(p.get(name)) for name in ("step", "tokens", "lr", "loss", "n")] for p in points])
    table = table.reshape(-1, 5)
    step, tokens, lr, loss, n = table[np.isfinite(table[:, 0]) & np.isfinite(table[:, 3])].T
    note = row.get("note", "")
    return LossCurve(
        steps=step,
        tokens=tokens,
        lr=lr,
        loss=loss,
        plan=_published_plan(row, step, lr),
        N=_positive(row.get("N_non_embedding")) or _positive(row.get("N")),
        batch_tokens=_positive(row.get("batch_tokens")),
        optimizer=row.get("optimizer")
        or (note.split("optimizer=")[1].split(";")[0] if "optimizer=" in note else "adamw"),
        organisation=row.get("organisation", "") or row["dataset"],
        name=row["run"],
        dataset=row["dataset"],
        count=np.where(np.isfinite(n), n, 1.0),
        final_loss=_positive(row.get("final_loss")),
    )


def _published_plan(row: dict[str, str], steps: Array, lr: Array) -> LrPlan:
    """The plan that a row's `schedule` describes, unless the rates that were logged contradict it."""
    total, seen = int(float(row["total_steps"])), np.isfinite(lr)
    peak = _positive(row.get("peak_lr")) or (float(np.nanmax(lr)) if seen.any() else 1.0)
    described = _described(json.loads(row.get("schedule") or "{}"), peak, total)
    steps, rates = steps[seen], lr[seen]
    if described is None and len(steps) < 2:
        raise ValueError(f"The run {row['run']} has neither a known schedule nor learning rates.")
    if described is not None and (len(steps) < 2 or np.mean(described.off(steps, rates) > OFF_PLAN) < OFF_PLAN):
        return described
    if steps[-1] < total:
        steps, rates = np.append(steps, total), np.append(rates, rates[-1])
    return LrPlan(steps, np.maximum(rates, 0))


def _described(schedule: dict[str, Any], peak: float, total: int) -> LrPlan | None:
    kind, warmup, end = schedule.get("kind"), int(schedule.get("warmup", 0)), float(schedule.get("end", 0.0))
    decay = int(schedule.get("decay", 0))
    if kind == "two_stage" and warmup < decay < total - 1:
        head = LrPlan.constant(decay, peak, warmup)
        return LrPlan(np.append(head.steps, [decay + 1, total]), np.append(head.lr, [end * peak] * 2))
    shapes = {"cosine": "cosine", "wsd_exp": "exponential"} | dict.fromkeys(
        ("constant", "linear", "wsd_lin", "wsd"), "linear"
    )
    begin = decay if str(kind).startswith("wsd") else warmup
    if kind not in shapes or not warmup <= begin < total:
        return None
    return LrPlan.wsd(total, peak, warmup, total - begin, 1.0 if kind == "constant" else end, shapes[kind])


def _float(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _positive(text: str | None) -> float | None:
    return known(_float(text))
