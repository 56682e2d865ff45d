"""Runs from files: CSV tables and isoflop's own records, their columns named by the user or guessed, and said.

Runs to fit: columns of numbers, checked before anything is computed from them.

Whether a recorded run came to its end, and its final loss: one rule for every fit, figure and advice.

`--where 'epoch_outlier==0 and N>1e8'`: rows picked by comparisons, which are parsed and never evaluated.

A run as columns of numbers, which is what figures are made from: read from its points once.

Where runs ended: what a law is fitted to; of each that does not count, why.
"""

from __future__ import annotations

import csv
import io
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.arrays import Array
from isoflop.laws.forms import compute_of
from isoflop.laws.quantities import LEAST, UNITS
from isoflop.record.paths import Location
from isoflop.record.reader import read_runs
from isoflop.record.run import COUNTS, Point, Run, common_n

TOKENS_A_PARAMETER = (1e-3, 1e6)
"""Half of the runs outside: N or D alone is in millions. Public runs lie between .02 and 1e4."""
LITTLE = 1e12
"""FLOPs, 6·N·D: half of the runs below a second of one GPU are toys, or N and D are both in millions."""


PLAUSIBLE_RATE = (0.5, 1000.0)
"""FLOPs per parameter and token: 6 for dense models; N without the head of a tiny model reaches 100."""


class BadData(ValueError):
    """Expected runs that a law can be fitted to; the text names row and column."""


@dataclass(frozen=True)
class Runs:
    """`variables` of the law by name [n], `loss` in nats per token [n], `weights` [n]; `warnings` on what is odd."""

    variables: Mapping[str, Array]
    loss: Array
    weights: Array
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.loss)


def check_runs(
    columns: Mapping[str, ArrayLike],
    names: Sequence[str],
    weights: ArrayLike | None = None,
    rows: Sequence[object] | None = None,
) -> Runs:
    """Check columns and take those that a law wants.

    Args:
        columns: by name, "loss" among them.
        names: the law's variables.
        weights: of the runs; default: all 1.
        rows: what to call each row in messages; default: row 1, row 2, …

    Raises:
        BadData: a column is missing, not of numbers, of another length; a value is not positive and finite; there are
            no runs; a unit is plainly another.
    """
    for name in (*names, "loss"):
        if name not in columns:
            raise BadData(
                f"expected a column {name!r} ({UNITS.get(name, 'numbers')}), got {', '.join(columns) or 'none'}"
            )
    taken: dict[str, Array] = {}
    for name in (*names, "loss"):
        try:
            taken[name] = np.asarray(columns[name], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise BadData(f"column {name!r}: expected numbers, got something else ({error})") from None
        if taken[name].ndim != 1:
            raise BadData(f"column {name!r}: expected one number a run, got an array of shape {taken[name].shape}")
    n = len(taken["loss"])
    if n == 0:
        raise BadData("expected runs, got none: the table is empty")
    called = [f"row {i + 1}" for i in range(n)] if rows is None else [str(row) for row in rows]
    for name, values in taken.items():
        if len(values) != n:
            raise BadData(f"column {name!r} has {len(values)} values, but there are {n} losses")
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if bad.size:
            more = f" (and {bad.size - 1} more rows)" if bad.size > 1 else ""
            raise BadData(
                f"{called[bad[0]]}, column {name!r}: expected a positive number of {UNITS.get(name, 'units')}, got "
                f"{values[bad[0]]}{more}; leave the run out or correct it"
            )
        least = LEAST.get(name, 0.0)
        if np.median(values) < least:
            raise BadData(
                f"column {name!r}: expected {UNITS[name]}, got values around {np.median(values):.3g}; they look like "
                "millions or billions: multiply them out"
            )
    if "N" in taken and "D" in taken:
        ratio = float(np.median(taken["D"] / taken["N"]))
        if not TOKENS_A_PARAMETER[0] < ratio < TOKENS_A_PARAMETER[1]:
            small = "N" if ratio > 1 else "D"
            raise BadData(
                f"column {small!r}: expected {UNITS[small]}, got values around {np.median(taken[small]):.3g}, which "
                f"makes {ratio:.3g} tokens a parameter; they look like millions: multiply them out"
            )
    return Runs(
        {name: taken[name] for name in names},
        taken["loss"],
        _weights(weights, n),
        tuple(_oddities(taken, names, called)),
    )


def _weights(weights: ArrayLike | None, n: int) -> Array:
    values = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.shape != (n,) or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise BadData(f"weights: expected {n} numbers of at least 0, not all 0, got {values}")
    return values


def _oddities(taken: Mapping[str, Array], names: Sequence[str], called: Sequence[str]) -> list[str]:
    said = []
    table = np.column_stack([taken[name] for name in (*names, "loss")])
    first: dict[bytes, str] = {}
    twice = []
    for row, label in zip(table, called, strict=True):
        if first.setdefault(row.tobytes(), label) is not label:
            twice.append(f"{first[row.tobytes()]} and {label}")
    if twice:
        said.append(
            f"{len(twice)} run{'s are' if len(twice) > 1 else ' is'} given twice ({twice[0]}): each counts, which "
            "makes intervals too narrow"
        )
    if "N" in taken and "D" in taken and (flops := float(np.median(6 * taken["N"] * taken["D"]))) < LITTLE:
        said.append(f"half of the runs took less than {flops:.3g} FLOPs (6·N·D): are N and D multiplied out?")
    for name in names:
        values = taken[name]
        typical = np.median(values)
        odd = np.flatnonzero((values < typical / 1e5) | (values > typical * 1e5))
        if odd.size:
            said.append(
                f"{called[odd[0]]}, column {name!r}: {values[odd[0]]:.3g} beside a median of {typical:.3g}: is it "
                "in the same unit?"
            )
        if np.ptp(np.log(values)) < 1e-9:
            said.append(f"all runs have the same {name} ({values[0]:.4g}): what depends on it is not identified")
    if (taken["loss"] > 20).any():
        row = int(np.argmax(taken["loss"]))
        said.append(f"{called[row]}: a loss of {taken['loss'][row]:.3g} nats per token is no language model's")
    return said


ENDED = 0.98
"""Share of its planned steps that a run must have done: one that was stopped before has no final loss."""
TAIL = 0.05
"""Share of a run's steps, the last ones, over whose points the mean training loss is its final loss. Not of its points:
long records have ever fewer of them, and the last twentieth would be two fifths of the run."""


def unfinished(run: Run, last_step: int) -> str:
    """Why a run has no final loss; "": it has.

    Args:
        run: its record; the points are not looked at.
        last_step: optimizer steps done.
    """
    if run.status != "completed":
        return "it is not finished" if run.status == "running" else f"it was {run.status}"
    planned = run.planned.get("steps")
    return stopped_early(last_step, planned) if isinstance(planned, int | float) else ""


def stopped_early(last_step: float, planned: float) -> str:
    """Why a run that ended did not come to its planned end; "": it did, or no step is known.

    Args:
        last_step: optimizer steps done.
        planned: optimizer steps planned.

    >>> stopped_early(979, 1000), stopped_early(980, 1000)
    ('it ended at step 979 of 1,000 planned', '')
    """
    if 0 < last_step < ENDED * planned:
        return f"it ended at step {last_step:,.0f} of {planned:,.0f} planned"
    return ""


def in_tail(step: Any, last_step: float) -> Any:
    """Whether steps are among the last 5% of a run's: an array where `step` is one."""
    return step >= (1 - TAIL) * last_step


def at_end(steps: ArrayLike, loss: str) -> NDArray[np.bool_]:
    """Which points' mean is the final loss: of the training loss those in the last 5% of steps, else the last one.

    Args:
        steps: of the points that have a finite loss, rising [points].
        loss: `train` or eval/<name>.

    >>> at_end([10, 50, 96, 98, 100], "train").tolist(), at_end([10, 50, 100], "eval/val").tolist()
    ([False, False, True, True, True], [False, False, True])
    """
    steps = np.asarray(steps)
    if loss == "train":
        return np.asarray(in_tail(steps, steps[-1]) if len(steps) else np.zeros(0, dtype=bool))
    return np.arange(len(steps)) == len(steps) - 1


def final_loss(points: Sequence[Point], loss: str) -> float | None:
    """The final loss of a run in nats per token, by `at_end`; None: no point has it with its tokens.

    Args:
        points: all that its record has.
        loss: `train` or eval/<name>.
    """
    known = [
        (point.step, value)
        for point in points
        if (value := point.losses.get(loss)) is not None and math.isfinite(value) and point.data_tokens
    ]
    if not known:
        return None
    steps, values = (np.array(column, dtype=float) for column in zip(*known, strict=True))
    return float(values[at_end(steps, loss)].mean())


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
        ours, theirs = (None, None) if self.quoted else (_where_number(mine), _where_number(self.value))
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
            raise ValueError(f"--where: there is no column {column!r}; there are {', '.join(columns)}")
        quoted = bare is None
        value = next(item for item in (bare, single, double) if item is not None)
        if not quoted and comparison not in ("==", "!=") and _where_number(value) is None:
            raise ValueError(f"--where: {column} {comparison} expects a number, got {value!r}")
        conditions.append(Condition(column, comparison, value, quoted))
    return conditions


def _where_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


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
        rate = flops[odd[0]] / (N[odd[0]] * D[odd[0]])
        doubts = (
            f"measured FLOPs of {labels[odd[0]]}{more} are not used: {rate:.3g} per parameter and token, where about 6 "
            "are expected; their C is 6·N·D",
        )
        flops[odd] = np.nan
    return compute_of(N, D, flops).tolist(), doubts


def implausible(C: ArrayLike, N: ArrayLike, D: ArrayLike) -> NDArray[np.intp]:
    """Rows whose C is no training compute of N parameters on D tokens; NaN, not known, is none of them."""
    rate = np.asarray(C, dtype=float) / (np.asarray(N, dtype=float) * np.asarray(D, dtype=float))
    return np.flatnonzero((rate < PLAUSIBLE_RATE[0]) | (rate > PLAUSIBLE_RATE[1]))


def describe_rate(C: ArrayLike, N: ArrayLike, D: ArrayLike, row: int, labels: Sequence[object]) -> str:
    """What is wrong with an implausible row."""
    rate = float(np.asarray(C)[row] / (np.asarray(N)[row] * np.asarray(D)[row]))
    return (
        f"{labels[row]}, column 'C': expected about 6 FLOPs per parameter and token, got C/(N·D) = {rate:.3g}: are N "
        "and D plain counts (not millions), and C in FLOPs? Without the column C is 6·N·D"
    )


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
    names = [loss_names(run) for run in runs]
    name = loss or common_loss(runs)
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


def loss_names(run: Run) -> list[str]:
    """The losses that a record has, in the order in which they came."""
    return list(dict.fromkeys(name for point in run.points for name in _known(point)))


def common_loss(runs: Iterable[Run]) -> str:
    """The first evaluation loss that all runs have; else the training loss."""
    names = [loss_names(run) for run in runs]
    common = [name for name in (names[0] if names else ()) if all(name in others for others in names)]
    return next((name for name in common if name.startswith("eval/")), "train")


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


@dataclass(frozen=True, eq=False)
class RunCurve:
    """A run's points as arrays of one length; NaN where unknown.

    Attributes:
        run: the record without its points.
        step, tokens, flops, batch: optimizer steps, D, measured FLOPs, tokens processed a step.
        lr, count: learning rate, and optimizer steps averaged into the training loss.
        losses: by name, nats per token.
        nonfinite: by name of the loss, where it was recorded and was no number.
        extra: the record's further scalars (`forecast_loss`, `b_crit` …) by name.
    """

    run: Run
    step: Array
    tokens: Array
    flops: Array
    batch: Array
    lr: Array
    count: Array
    losses: Mapping[str, Array]
    nonfinite: Mapping[str, Array] = field(default_factory=dict)
    extra: Mapping[str, Array] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """Of the record."""
        return self.run.run_id

    @property
    def name(self) -> str:
        """For people."""
        return self.run.name or self.run.run_id

    def size(self, convention: str) -> float | None:
        """N of a convention; None: unknown."""
        N = self.run.parameters.get(convention)
        return float(N) if N else None

    def known(self, loss: str, x: Array) -> Array:
        """Where the loss was recorded, a number or not, and x is known [points]."""
        if loss not in self.losses:
            return np.zeros(len(self.step), dtype=bool)
        recorded = np.isfinite(self.losses[loss]) | self.nonfinite.get(loss, np.zeros(len(self.step), dtype=bool))
        return np.asarray(recorded & np.isfinite(x) & (x > 0))


def curve_of_run(run: Run) -> RunCurve:
    """The columns of a run's points."""
    points = run.points
    names = dict.fromkeys(name for point in points for name in point.losses)
    extra = dict.fromkeys(name for point in points for name in point.extra)
    nonfinite = {
        name: np.array([name in point.nonfinite for point in points], dtype=bool)
        for name in names
        if any(name in point.nonfinite for point in points)
    }
    return RunCurve(
        replace(run, points=()),
        step=np.array([point.step for point in points], dtype=float),
        tokens=_curve_column(points, "data_tokens"),
        flops=_curve_column(points, "flops"),
        batch=_curve_column(points, "batch_tokens"),
        lr=_curve_column(points, "lr"),
        count=_curve_column(points, "interval_steps"),
        losses={name: _items([point.losses.get(name) for point in points]) for name in names},
        nonfinite=nonfinite,
        extra={name: _items([point.extra.get(name) for point in points]) for name in extra},
    )


def _curve_column(points: Sequence[Point], name: str) -> Array:
    return _items([getattr(point, name) for point in points])


def _items(values: Sequence[float | None]) -> Array:
    return np.array([np.nan if value is None else float(value) for value in values], dtype=float)


@dataclass(frozen=True)
class RunEnd:
    """The end of a run; unknown is None.

    Attributes:
        name: for people.
        N: parameters, of the study's convention.
        D: tokens.
        loss: nats per token: of the training loss the mean over the last 5% of its steps, of an evaluation the last.
        flops: training FLOPs as measured.
        run_id: of its record; None: a row of a table.
        left_out: why it does not count as a finished run; "": it does.
    """

    name: str
    N: float | None = None
    D: float | None = None
    loss: float | None = None
    flops: float | None = None
    run_id: str | None = None
    left_out: str = ""


def end_of_curve(curve: RunCurve, loss: str, convention: str) -> RunEnd:
    """The end of a recorded run.

    Args:
        curve: the run.
        loss: `train` or eval/<name>.
        convention: which parameters N counts.
    """
    N = curve.size(convention)
    known = np.flatnonzero(curve.known(loss, curve.tokens))
    values = curve.losses.get(loss, np.empty(0))
    fine = known[np.isfinite(values[known])]
    why = unfinished(curve.run, int(curve.step[-1]) if len(curve.step) else 0)
    if not len(fine):
        return RunEnd(curve.name, N, run_id=curve.run_id, left_out=why or f"it has no loss {loss!r} with its tokens")
    last = fine[at_end(curve.step[fine], loss)]
    if not why and N is None:
        why = f"its parameters ({convention.replace('_', ' ')}) are not known"
    if not why and known[-1] != fine[-1]:
        why = "its last loss is no finite number"
    flops = float(curve.flops[fine[-1]])
    return RunEnd(
        curve.name,
        N,
        float(curve.tokens[fine[-1]]),
        float(values[last].mean()),
        flops if np.isfinite(flops) else None,
        curve.run_id,
        why,
    )


def ends_of_table(columns: Mapping[str, ArrayLike], names: Sequence[str] | None = None) -> tuple[RunEnd, ...]:
    """Rows of a table of finished runs, such as `isoflop.fit.runs.read_table` gives.

    Args:
        columns: "N" parameters, "D" tokens, "loss" nats per token; "C" FLOPs where they were counted.
        names: what to call each row.
    """
    N, D, L = (np.asarray(columns[name], dtype=float) for name in ("N", "D", "loss"))
    C = np.asarray(columns["C"], dtype=float) if "C" in columns else np.full(len(N), np.nan)
    called = names or [f"row {i + 1}" for i in range(len(N))]
    return tuple(
        RunEnd(str(name), float(n), float(d), float(loss), float(c) if np.isfinite(c) else None)
        for name, n, d, loss, c in zip(called, N, D, L, C, strict=True)
    )


def said(loss: str) -> str:
    """A loss in a sentence."""
    return "a training loss" if loss == "train" else f"the loss {loss!r}"
