"""Rows of texts from CSV files and from isoflop's records: what `isoflop.fit.table` makes tables of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isoflop.arrays import Array
from isoflop.console import by_reason, listed
from isoflop.fit.columns import plain
from isoflop.fit.record_set import common_loss, describe_alike, groups_of, joined, known_losses, loss_names
from isoflop.fit.runs import BadData, curve_of_run, end_of_curve, unfinished
from isoflop.logs.files import cell_number, csv_rows
from isoflop.record.lines import Problems
from isoflop.record.run import Run, common_n

LOSS_NAME = "loss name"
"""The cell of a record's row that names its loss; rows of files have none."""
NAMES = ("name", "runname", "run", "runid")
"""Columns whose cells name the runs of a file, where each has another."""
Rows = Sequence[tuple[str, dict[str, str]]]
"""What to call each row in messages, and its cells by column."""


def file_rows(source: Path) -> Rows:
    """Rows of a CSV file, called by a column of names, where each has another; BadData names the line."""
    problems = Problems(str(source))
    rows = csv_rows(source, problems)
    names = [name.strip() for name in next(rows, [])]
    if not any(names):
        raise BadData(next(iter(problems.all()), f"{source} is empty: expected a first row with the columns' names"))
    for name, times in Counter(names).items():
        if name and times > 1:
            raise BadData(f"{source}: expected columns of different names, got {name!r} twice")
    found = []
    for values in rows:
        line = problems.at[1:]
        if len(values) != len(names):
            log = "; is it a training log? `isoflop import` reads those" if len(names) == 1 else ""
            raise BadData(
                f"{source}, line {line}: expected {len(names)} values, as in the first row, got {len(values)}{log}"
            )
        found.append((f"line {line} of {source.name}", dict(zip(names, values, strict=True))))
    if told := problems.all():
        raise BadData("; ".join(told[:3]))
    return _named(found)


@dataclass(frozen=True)
class RecordRows:
    """Each finished run at its end; why others are left out, a line a cause; which parameters N counts; and doubts."""

    rows: Rows = ()
    left_out: tuple[str, ...] = ()
    convention: str = "unknown"
    doubts: tuple[str, ...] = ()


def record_rows(runs: Sequence[Run], convention: str | None, loss: str | None) -> RecordRows:
    """Each finished run at its end.

    The loss is by default one that all runs have, an evaluation's if there is one, else that of most runs; N likewise
    by `common_n`. `loss` as of `isoflop.fit.runs.joined`.
    """
    runs, loss = joined(runs, loss)
    reasons = [_useless(run) for run in runs]
    useful = [run for run, why in zip(runs, reasons, strict=True) if not why]
    if convention is None:
        convention = common_n(run.parameters for run in useful)
        useful = [run for run in useful if run.parameters.get(convention)]
    name = loss or common_loss(useful)
    found = []
    left_out: list[tuple[str, str]] = []
    for run, why, groups in zip(runs, reasons, groups_of(runs), strict=True):
        called, curve = run.name or run.run_id, curve_of_run(run)
        end = end_of_curve(curve, name, convention)
        losses = loss_names(run)
        if not why and end.left_out:
            why = end.left_out + (f" (it has {', '.join(sorted(losses))})" if name not in losses else "")
        if why:
            left_out.append((called, why))
            continue
        row: dict[str, object] = {
            **groups,
            **{f"N_{key}": value for key, value in run.parameters.items()},
            **{f"loss_{key}": end_of_curve(curve, key, convention).loss for key in losses},
            "N": run.parameters.get(convention),
            "D": end.D,
            "C": end.flops,
            "loss": end.loss,
            LOSS_NAME: name,
            "learning_rate": _most(curve.lr),
            "batch_tokens": _most(curve.batch),
        }
        cells = {key: "" if it is None else it if isinstance(it, str) else repr(it) for key, it in row.items()}
        found.append((f"run {called}", cells))
    told = tuple(f"{listed(names)}: {why}" for why, names in by_reason(left_out).items())
    alike = "" if loss else describe_alike(map(loss_names, useful), name)
    return RecordRows(found, told, convention, (alike,) if alike else ())


def _most(values: Array) -> float | None:
    """The largest known one: a rate's peak, a batch that grew."""
    known = values[np.isfinite(values)]
    return float(known.max()) if len(known) else None


def _useless(run: Run) -> str:
    """Why a record can't be a row; "": it can."""
    if why := unfinished(run):
        return why
    if not run.parameters:
        return "its parameters are not known"
    if not any(known_losses(point) and point.data_tokens for point in run.points):
        return "it has no loss with its tokens"
    return ""


def _named(rows: Rows) -> Rows:
    """Rows called by a column of names, where each has another."""
    present = rows[0][1] if rows else {}
    for column in (name for known in NAMES for name in present if plain(name) == known):
        names = [row[column].strip() for _, row in rows]
        if all(names) and len(set(names)) == len(names) and not any(map(cell_number, names)):
            return [(name, row) for name, (_, row) in zip(names, rows, strict=True)]
    return rows
