"""Tables of runs from CSV files and isoflop's records: columns by name or guessed, rows picked by `--where`.

Conditions such as 'epoch_outlier==0 and N>1e8' are parsed, never evaluated.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.fit.runs import (
    BadData,
    common_loss,
    describe_rate,
    final_loss,
    implausible,
    known_losses,
    loss_names,
    unfinished,
)
from isoflop.laws.forms import compute_of
from isoflop.logs.cells import cell_number, csv_rows
from isoflop.record.lines import Problems
from isoflop.record.paths import Location
from isoflop.record.reader import read_runs
from isoflop.record.run import COUNTS, Run, common_n

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(
    r"""\s*([A-Za-z_][\w.\-/ ]*?)\s*(==|!=|<=|>=|<|>)\s*(?:'([^']*)'|"([^"]*)"|([^\s'"<>=!]+))\s*"""
)


@dataclass(frozen=True)
class Condition:
    """column comparison value; numbers compare as numbers, texts as texts."""

    column: str
    comparison: str
    value: str
    quoted: bool

    def holds(self, row: Mapping[str, str]) -> bool:
        """Whether a row of texts fulfils it."""
        compare = _COMPARISONS[self.comparison]
        mine = row[self.column].strip()
        ours, theirs = (None, None) if self.quoted else (cell_number(mine), cell_number(self.value))
        if ours is not None and theirs is not None:
            return compare(ours, theirs)
        if self.comparison not in ("==", "!="):
            return False  # a text is neither more nor less than a number
        return compare(mine, self.value)


def parse_where(text: str, columns: list[str]) -> list[Condition]:
    """Conditions joined by `and`.

    Raises:
        ValueError: what was expected and what came, and which columns there are.

    >>> parse_where("epoch_outlier==0 and N>1e8", ["N", "epoch_outlier"])[1]
    Condition(column='N', comparison='>', value='1e8', quoted=False)
    """
    conditions = []
    for part in re.split(r"\band\b(?=(?:[^'\"]|'[^']*'|\"[^\"]*\")*$)", text):
        match = _CONDITION.fullmatch(part)
        if match is None:
            raise ValueError(
                f"--where: expected column, comparison ({' '.join(_COMPARISONS)}) and value, joined by `and`, such as "
                f"'epoch_outlier==0 and N>1e8'; got {part.strip()!r}"
            )
        column, comparison, single, double, bare = match.groups()
        if column not in columns:
            raise ValueError(f"--where: there is no column {column!r}; there are {_listed(columns)}")
        quoted = bare is None
        value = next(item for item in (bare, single, double) if item is not None)
        if not quoted and comparison not in ("==", "!=") and cell_number(value) is None:
            raise ValueError(f"--where: {column} {comparison} expects a number, got {value!r}")
        conditions.append(Condition(column, comparison, value, quoted))
    return conditions


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
    parameters N counts; "unknown" where a CSV file has it. `C`: training FLOPs of tables of N and D: as measured, else
    6·N·D. `doubts`: measurements of records that were not taken.
    """

    columns: Mapping[str, list[float]]
    taken: Mapping[str, str]
    rows: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    convention: str = "unknown"
    C: Sequence[float] = ()
    doubts: tuple[str, ...] = ()


def read_table(
    sources: Sequence[Location],
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
    records: list[Location] = []
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
    C: Sequence[float] = columns.get("C", [])
    doubts: tuple[str, ...] = ()
    if not C and {"N", "D"} <= set(columns):
        measured = _measured(rows, labels, present, (named or {}).get("C"))
        C, doubts = _compute(columns["N"], columns["D"], measured, rows, labels)
    if all(LOSS_NAME in row for row in rows):  # records: which N and which loss
        meant = {"N": f"N_{convention}", "loss": " and ".join(dict.fromkeys(row[LOSS_NAME] for row in rows))}
        taken = {what: meant.get(name, name) for what, name in taken.items()}
        convention = {f"N_{name}": name for name in COUNTS}.get(taken.get("N", ""), "unknown")
    else:
        convention = "unknown"
    return Table(columns, taken, tuple(labels), convention=convention, C=C, doubts=doubts)


def _compute(
    N: Sequence[float],
    D: Sequence[float],
    measured: Sequence[float],
    rows: Sequence[Mapping[str, str]],
    labels: Sequence[str],
) -> tuple[list[float], tuple[str, ...]]:
    """Training FLOPs: as measured where that is plausible, else 6·N·D; and which records' were not plausible.

    Raises:
        BadData: an implausible value of a CSV file.
    """
    flops = np.array(measured, dtype=float)
    odd = implausible(flops, N, D)
    if by_hand := [i for i in odd if LOSS_NAME not in rows[i]]:
        raise BadData(describe_rate(flops, N, D, by_hand[0], labels))
    doubts: tuple[str, ...] = ()
    if odd.size:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        rate = flops[odd[0]] / N[odd[0]] / D[odd[0]]
        doubts = (
            f"measured FLOPs of {labels[odd[0]]}{more} are not used: {rate:.3g} per parameter and token, where about 6 "
            "are expected; their C is 6·N·D",
        )
        flops[odd] = np.nan
    return compute_of(N, D, flops).tolist(), doubts


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
            raise BadData(f"there is no column {named!r} for {what}; there are {_listed(present)}")
        return named
    for guess in GUESSES.get(what, (what,)):
        if guess in present:
            return guess
    raise BadData(
        f"no column is known to be {what} (looked for {', '.join(GUESSES.get(what, (what,)))}); there are "
        f"{_listed(present)}: say which with --column {what}=…"
    )


def _listed(names: Sequence[str]) -> str:
    """Names in a sentence; of very many the first ones."""
    some = ", ".join(name[:40] for name in names[:30])
    return some if len(names) <= 30 else f"{some} and {len(names) - 30:,} more"


def _number(text: str | None, column: str, label: str) -> float:
    value = cell_number(text or "")
    if value is None:
        came = "nothing" if text is None or not text.strip() else repr(text)
        raise BadData(
            f"{label}, column {column!r}: expected a number, got {came}; correct it or leave the run out (--where)"
        )
    return value


def _rows(source: Path) -> list[tuple[str, dict[str, str]]]:
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
            raise BadData(
                f"{source}, line {line}: expected {len(names)} values, as in the first row, got {len(values)}"
            )
        found.append((f"line {line} of {source.name}", dict(zip(names, values, strict=True))))
    if told := problems.all():
        raise BadData("; ".join(told[:3]))
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
    names = [loss_names(run) for run in runs]
    name = loss or common_loss(runs)
    found = []
    for run, losses in zip(runs, names, strict=True):
        last = next((point for point in reversed(run.points) if name in known_losses(point)), run.points[-1])
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
    if not any(known_losses(point) and point.data_tokens for point in run.points):
        return "it has no loss with its tokens"
    return ""
