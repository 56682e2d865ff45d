"""Runs from files: CSV tables and isoflop's own records, their columns named by the user or guessed, and said."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isoflop.fit.ends import final_loss, unfinished
from isoflop.fit.fitting.data import BadData
from isoflop.fit.fitting.where import parse_where
from isoflop.fit.laws import compute_of
from isoflop.record import Point, Run, read_runs
from isoflop.record.conventions import COUNTS, common_n
from isoflop.record.place import Place

GUESSES: dict[str, tuple[str, ...]] = {
    "N": ("N", "n", "params", "parameters", "n_params", "num_params", "model_size", "non_embedding"),
    "D": ("D", "tokens", "d", "n_tokens", "num_tokens", "train_tokens", "training_tokens", "tokens_seen"),
    "C": ("C", "flops", "compute", "training_flops", "C_min"),
    "U": ("U", "unique_tokens"),
    "loss": ("loss", "L", "final_loss", "val_loss", "eval_loss", "validation_loss", "train_loss"),
}
"""Names of columns that are taken without being told, the likeliest first."""
LOSS_NAME = "loss name"


@dataclass(frozen=True)
class Table:
    """Columns of numbers by what they are ("N", "D", "loss"), and which columns of the file these were.

    `rows`: what to call each run in messages. `left_out`: recorded runs that don't count, and why. `convention`: which
    parameters N counts; "unknown" where a CSV file has it. `C`: training FLOPs of tables of N and D: as measured in
    records, else 6·N·D, unless C is a wanted column.
    """

    columns: Mapping[str, list[float]]
    taken: Mapping[str, str]
    rows: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    convention: str = "unknown"
    C: Sequence[float] = ()


def read_table(
    sources: Sequence[Place],
    wanted: Sequence[str],
    named: Mapping[str, str] | None = None,
    where: str | None = None,
    convention: str | None = None,
    loss: str | None = None,
) -> Table:
    """Read runs.

    Args:
        sources: CSV files; isoflop's records, or folders with some, or a URL of these.
        wanted: what the law needs, "loss" among them.
        named: column of the file by what it is, where the user says so.
        where: see `parse_where`.
        convention: which of a record's parameter counts is N; default: with the output head, or the next of
            `PREFERRED_N` that all records state.
        loss: which of a record's losses ("train", "eval/<name>"); default: an evaluation's, else the training loss.

    Raises:
        BadData: nothing there, a column missing, a value that is no number: with file, row and column.
    """
    if convention is not None and convention not in COUNTS:
        raise BadData(f"--n: expected one of {', '.join(COUNTS)}, got {convention!r}")
    for what in named or {}:
        if what not in (known := (*wanted, "C") if {"N", "D"} <= {*wanted} else wanted):
            raise BadData(f"--column: expected one of {', '.join(known)} before =, got {what!r}")
    files: list[Path] = []
    records: list[Place] = []
    for source in sources:
        if isinstance(source, Path) and not source.exists():
            raise BadData(f"expected a CSV file, a record or a folder with records, got {source}, which does not exist")
        if isinstance(source, str) or source.is_dir() or source.suffix == ".jsonl":
            records.append(source)
        else:
            files.append(source)
    found = [item for file in files for item in _rows(file)]
    rows, left_out, counted = _records(read_runs(*records), convention, loss) if records else ([], (), "unknown")
    found += rows
    if not found:
        kind = "finished runs" if left_out else "runs"
        told = "".join(f"; {text}" for text in left_out)
        raise BadData(f"expected {kind}, got none in {', '.join(map(str, sources))}{told}")
    return replace(_table(found, wanted, named, where, counted), left_out=left_out)


def table_of_runs(
    runs: Sequence[Run], wanted: Sequence[str], convention: str | None = None, loss: str | None = None
) -> Table:
    """The same of runs that were read already. Raises as `read_table` does."""
    found, left_out, counted = _records(runs, convention, loss)
    if not found:
        raise BadData("expected finished runs with a loss, got none" + "".join(f"; {text}" for text in left_out))
    return replace(_table(found, wanted, None, None, counted), left_out=left_out)


def _table(
    found: Sequence[tuple[str, dict[str, str]]],
    wanted: Sequence[str],
    named: Mapping[str, str] | None,
    where: str | None,
    convention: str,
) -> Table:
    rows, labels = [row for _, row in found], [label for label, _ in found]
    present = list(dict.fromkeys(name for row in rows for name in row))
    taken = {what: _column(what, present, (named or {}).get(what)) for what in wanted}
    if where is not None:
        conditions = parse_where(where, present)
        kept = [i for i, row in enumerate(rows) if all(c.column in row and c.holds(row) for c in conditions)]
        if not kept:
            raise BadData(f"--where {where!r} leaves none of {len(rows)} runs")
        rows, labels = [rows[i] for i in kept], [labels[i] for i in kept]
    columns = {
        what: [_number(row.get(name), name, label) for row, label in zip(rows, labels, strict=True)]
        for what, name in taken.items()
    }
    C = columns.get("C", [])
    if not C and {"N", "D"} <= set(columns):
        C = compute_of(columns["N"], columns["D"], _measured(rows, labels, present, (named or {}).get("C"))).tolist()
    if all(LOSS_NAME in row for row in rows):  # records: which N and which loss
        meant = {"N": f"N_{convention}", "loss": " and ".join(dict.fromkeys(row[LOSS_NAME] for row in rows))}
        taken = {what: meant.get(name, name) for what, name in taken.items()}
        convention = {f"N_{name}": name for name in COUNTS}.get(taken.get("N", ""), "unknown")
    else:
        convention = "unknown"
    return Table(columns, taken, tuple(labels), convention=convention, C=C)


def _measured(
    rows: Sequence[Mapping[str, str]], labels: Sequence[str], present: Sequence[str], named: str | None
) -> list[float]:
    """Training FLOPs from the column that holds them; NaN where it is blank or there is none."""
    if named is None and not set(GUESSES["C"]) & set(present):
        return [math.nan] * len(rows)
    name = _column("C", present, named)
    cells = [(row.get(name) or "").strip() for row in rows]
    return [_number(cell, name, label) if cell else math.nan for cell, label in zip(cells, labels, strict=True)]


def _column(what: str, present: Sequence[str], named: str | None) -> str:
    if named is not None:
        if named not in present:
            raise BadData(f"there is no column {named!r} for {what}; there are {', '.join(present)}")
        return named
    for guess in GUESSES.get(what, (what,)):
        if guess in present:
            return guess
    raise BadData(
        f"no column is known to be {what} (looked for {', '.join(GUESSES.get(what, (what,)))}); there are "
        f"{', '.join(present)}: say which with --column {what}=…"
    )


def _number(text: str | None, column: str, label: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        came = "nothing" if text is None or not text.strip() else repr(text)
        raise BadData(
            f"{label}, column {column!r}: expected a number, got {came}; correct it or leave the run out (--where)"
        ) from None


def _rows(source: Path) -> list[tuple[str, dict[str, str]]]:
    try:
        text = source.read_text(encoding="utf-8-sig")
        return _cells(source, csv.reader(io.StringIO(text, newline=""), skipinitialspace=True))
    except UnicodeDecodeError as error:
        raise BadData(f"{source}: expected a CSV file in UTF-8, got {error}") from None
    except csv.Error as error:  # a NUL, a quote that never ends
        raise BadData(f"{source}: expected a CSV file, got {error}") from None


def _cells(source: Path, reader: Any) -> list[tuple[str, dict[str, str]]]:
    names = [name.strip() for name in next(reader, [])]
    if not any(names):
        raise BadData(f"{source} is empty: expected a first row with the columns' names")
    for name in names:
        if name and names.count(name) > 1:
            raise BadData(f"{source}: expected columns of different names, got {name!r} twice")
    found = []
    for values in reader:
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(names):
            raise BadData(
                f"{source}, line {reader.line_num}: expected {len(names)} values, as in the first row, got "
                f"{len(values)}"
            )
        found.append((f"line {reader.line_num} of {source.name}", dict(zip(names, values, strict=True))))
    return found


def _records(
    runs: Sequence[Run], convention: str | None, loss: str | None
) -> tuple[list[tuple[str, dict[str, str]]], tuple[str, ...], str]:
    """Each finished run at its end, why others are left out, and which parameters N counts.

    The loss is by default one that all runs have, an evaluation's if there is one; N likewise by `common_n`.
    """
    reasons = [_useless(run) for run in runs]
    if convention is None:
        convention = common_n(run.parameters for run, why in zip(runs, reasons, strict=True) if not why)
        unknown = f"its parameters ({convention.replace('_', ' ')}) are not known"
        reasons = [
            why or ("" if run.parameters.get(convention) else unknown) for run, why in zip(runs, reasons, strict=True)
        ]
    left_out = tuple(f"{run.name or run.run_id}: {why}" for run, why in zip(runs, reasons, strict=True) if why)
    runs = [run for run, why in zip(runs, reasons, strict=True) if not why]
    names = [list(dict.fromkeys(name for point in run.points for name in _known(point))) for run in runs]
    common = [name for name in (names[0] if names else ()) if all(name in others for others in names)]
    name = loss or next((name for name in common if name.startswith("eval/")), "train")
    found = []
    for run, losses in zip(runs, names, strict=True):
        last = next((point for point in reversed(run.points) if name in _known(point)), run.points[-1])
        row: dict[str, object] = {
            **{f"N_{key}": value for key, value in run.parameters.items()},
            **{f"loss_{key}": final_loss(run.points, key) for key in losses},
            "N": run.parameters.get(convention),
            "D": last.data_tokens,
            "C": last.flops,
            "loss": final_loss(run.points, name),
            LOSS_NAME: name,
        }
        cells = {
            key: value if isinstance(value, str) else repr(value) for key, value in row.items() if value is not None
        }
        found.append((f"run {run.name or run.run_id}", dict.fromkeys(row, "") | cells))
    return found, left_out, convention


def _useless(run: Run) -> str:
    """Why a record can't be a row; "": it can."""
    if why := unfinished(run, run.points[-1].step if run.points else 0):
        return why
    if not run.parameters:
        return "its parameters are not known"
    if not any(_known(point) and point.data_tokens for point in run.points):
        return "it has no loss with its tokens"
    return ""


def _known(point: Point) -> dict[str, float]:
    return {name: value for name, value in point.losses.items() if value is not None}
