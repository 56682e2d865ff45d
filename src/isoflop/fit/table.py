"""Runs from files: CSV tables and isoflop's own records, their columns named by the user or guessed, and said."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.fit.data import BadData
from isoflop.fit.where import parse_where
from isoflop.record import read_runs

GUESSES: dict[str, tuple[str, ...]] = {
    "N": ("N", "n", "params", "parameters", "n_params", "num_params", "model_size", "non_embedding"),
    "D": ("D", "tokens", "d", "n_tokens", "num_tokens", "train_tokens", "training_tokens", "tokens_seen"),
    "C": ("C", "flops", "compute", "training_flops", "C_min"),
    "U": ("U", "unique_tokens"),
    "loss": ("loss", "L", "final_loss", "val_loss", "eval_loss", "validation_loss", "train_loss"),
}
"""Names of columns that are taken without being told, the likeliest first."""


@dataclass(frozen=True)
class Table:
    """Columns of numbers by what they are ("N", "D", "loss"), and which columns of the file these were.

    `rows`: what to call each run in messages.
    """

    columns: Mapping[str, list[float]]
    taken: Mapping[str, str]
    rows: tuple[str, ...]


def read_table(
    sources: Sequence[Path],
    wanted: Sequence[str],
    named: Mapping[str, str] | None = None,
    where: str | None = None,
    convention: str = "non_embedding",
    loss: str | None = None,
) -> Table:
    """Read runs.

    Args:
        sources: CSV files; isoflop's records, or folders with some.
        wanted: what the law needs, "loss" among them.
        named: column of the file by what it is, where the user says so.
        where: see `parse_where`.
        convention: which of a record's parameter counts is N.
        loss: which of a record's losses ("train", "eval/<name>"); default: an evaluation's, else the training loss.

    Raises:
        BadData: nothing there, a column missing, a value that is no number: with file, row and column.
    """
    rows: list[dict[str, str]] = []
    labels: list[str] = []
    for source in sources:
        for label, row in _rows(source, convention, loss):
            rows.append(row)
            labels.append(label)
    if not rows:
        raise BadData(f"expected runs, got none in {', '.join(map(str, sources))}")
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
    return Table(columns, taken, tuple(labels))


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
        return float(text) if text is not None and text.strip() else float("nan")
    except ValueError:
        raise BadData(f"{label}, column {column!r}: expected a number, got {text!r}") from None


def _rows(source: Path, convention: str, loss: str | None) -> list[tuple[str, dict[str, str]]]:
    if not source.exists():
        raise BadData(f"expected a CSV file, a record or a folder with records, got {source}, which does not exist")
    if source.is_dir() or source.suffix == ".jsonl":
        return _records(source, convention, loss)
    with source.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        if not reader.fieldnames:
            raise BadData(f"{source} is empty: expected a first row with the columns' names")
        found = []
        for number, row in enumerate(reader, start=2):
            if None in row or any(value is None for value in row.values()):
                raise BadData(f"{source}, line {number}: expected {len(reader.fieldnames)} values, as in the first row")
            found.append((f"line {number} of {source.name}", {name.strip(): value for name, value in row.items()}))
    return found


def _records(source: Path, convention: str, loss: str | None) -> list[tuple[str, dict[str, str]]]:
    found = []
    for run in read_runs(source):
        last = next((point for point in reversed(run.points) if point.losses), None)
        if last is None:
            continue
        row: dict[str, object] = {
            **{f"N_{name}": value for name, value in run.parameters.items()},
            "N": run.parameters.get(convention),
            "D": last.data_tokens,
            "C": last.flops,
        }
        losses = {name: value for point in run.points for name, value in point.losses.items() if value is not None}
        row.update({f"loss_{name}": value for name, value in losses.items()})
        name = loss or next((name for name in losses if name.startswith("eval/")), "train")
        row["loss"] = losses.get(name)
        label = f"run {run.name or run.run_id}"
        found.append((label, {key: "" if value is None else repr(value) for key, value in row.items()}))
    return found
