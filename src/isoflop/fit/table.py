"""Tables of runs from CSV files and isoflop's records: columns by name or guessed, rows picked by `--where`.

Conditions such as 'epoch_outlier==0 and N>1e8' are parsed, never evaluated.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.fit.columns import GUESSES, column_of, guessed, listed, number_of, plain, unit_of
from isoflop.fit.runs import (
    TOKENS_A_PARAMETER,
    BadData,
    common_loss,
    describe_rate,
    final_loss,
    implausible,
    known_losses,
    loss_names,
    unfinished,
)
from isoflop.laws.forms import TRAINING_FLOPS, compute_of
from isoflop.laws.quantities import LEAST
from isoflop.logs.files import cell_number, csv_rows
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
            raise ValueError(f"--where: there is no column {column!r}; there are {listed(columns)}")
        quoted = bare is None
        value = next(item for item in (bare, single, double) if item is not None)
        if not quoted and comparison not in ("==", "!=") and cell_number(value) is None:
            raise ValueError(f"--where: {column} {comparison} expects a number, got {value!r}")
        conditions.append(Condition(column, comparison, value, quoted))
    return conditions


LOSS_NAME = "loss name"
RUNS_OF_LOGS = ("run", "runid", "runname")
STEPS_OF_LOGS = ("step", "globalstep", "iteration", "iter")
"""Columns by which rows along one run's curve are told from the ends of runs."""
_NO, _YES = ("false", "0", "no"), ("true", "1", "yes")
_STATES = (
    "running",
    "scheduled",
    "crashed",
    "failed",
    "killed",
    "interrupted",
    "stopped",
    "diverged",
    "preempted",
    "oom",
)
NO_END: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("status", "state"), _STATES),
    **dict.fromkeys(("diverged", "crashed", "failed", "stoppedearly", "earlystopped"), _YES),
    **dict.fromkeys(("finished", "completed"), _NO),
}
"""Cells, by column, of a run that did not come to its end."""
FORWARD_ONLY = (1.9, 2.1)
"""FLOPs per parameter and token, of all runs, that are those of the forward pass alone."""
MOST_LOSS = 13.0
"""Nats per token: a uniform guess among 440,000 tokens. Half of the runs above: these are perplexities, or sums."""


@dataclass(frozen=True)
class Table:
    """Columns of numbers by what they are ("N", "D", "loss"), and which columns of the file these were.

    `rows`: what to call each run in messages. `left_out`: runs that don't count, and why. `convention`: which
    parameters N counts; "unknown" where a CSV file has it. `C`: training FLOPs of tables of N and D: as measured, else
    6·N·D. `doubts`: how cells were understood, where that is not plain. `labels`: cells of other columns that tell runs
    apart by kind (corpus, optimizer).
    """

    columns: Mapping[str, list[float]]
    taken: Mapping[str, str]
    rows: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    convention: str = "unknown"
    C: Sequence[float] = ()
    doubts: tuple[str, ...] = ()
    labels: Mapping[str, list[str]] = field(default_factory=dict)


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
        if what not in (known := (*wanted, "perplexity", *(["C"] if {"N", "D"} <= {*wanted} else []))):
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
        hint = "; of other logs `isoflop import` makes records" if records and not left_out else ""
        raise BadData(f"expected {kind}, got none in {', '.join(map(str, sources))}{told}{hint}")
    table = _table(found, wanted, named, where, counted)
    return replace(table, left_out=(*left_out, *table.left_out))


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
    named = named or {}
    rows, labels = [row for _, row in found], [label for label, _ in found]
    present = list(dict.fromkeys(name for row in rows for name in row))
    taken = _taken(wanted, present, named)
    if where is not None:
        conditions = parse_where(where, present)
        kept = [i for i, row in enumerate(rows) if all(c.column in row and c.holds(row) for c in conditions)]
        if not kept:
            raise BadData(f"--where {where!r} leaves none of {len(rows)} runs")
        rows, labels = [rows[i] for i in kept], [labels[i] for i in kept]
    cells = {
        what: [number_of(row.get(name), name, label) for row, label in zip(rows, labels, strict=True)]
        for what, name in taken.items()
    }
    blanks = [_blank(label, i, cells, taken) or _no_end(label, rows[i]) for i, label in enumerate(labels)]
    full = [i for i, said in enumerate(blanks) if not said]
    if not full:
        raise BadData(f"expected runs with numbers in {', '.join(taken.values())}, got none; {blanks[0]}")
    rows, labels = [rows[i] for i in full], [labels[i] for i in full]
    columns, doubts = _derived({what: [column[i] for i in full] for what, column in cells.items()}, taken, wanted)
    doubts += tuple(
        f"column {name!r} is multiplied by {unit_of(name)[1]:.4g}" for name in taken.values() if unit_of(name)[1] != 1
    )
    if {"N", "D"} <= set(columns) and LOSS_NAME not in rows[0]:
        _check_not_swapped(columns["N"], columns["D"], taken, named)
        _check_ends(columns["N"], columns["D"], rows, present)
        doubts += _other_tokens(taken, named, rows, present)
    C: Sequence[float] = columns.get("C", [])
    if not C and {"N", "D"} <= set(columns):
        measured = _measured(rows, labels, present, named.get("C"))
        C, more = _compute(columns["N"], columns["D"], measured, rows, labels)
        doubts += more
    if all(LOSS_NAME in row for row in rows):  # records: which N and which loss
        meant = {"N": f"N_{convention}", "loss": " and ".join(dict.fromkeys(row[LOSS_NAME] for row in rows))}
        taken = {what: meant.get(name, name) for what, name in taken.items()}
        convention = {f"N_{name}": name for name in COUNTS}.get(taken.get("N", ""), "unknown")
    else:
        convention = "unknown"
    others = {name: [row.get(name, "").strip() for row in rows] for name in present if name not in taken.values()}
    kinds = {name: values for name, values in others.items() if 1 < len(set(values)) <= len(rows) / 4}
    columns = {what: columns[what] for what in wanted}
    return Table(columns, taken, tuple(labels), tuple(filter(None, blanks)), convention, C, doubts, kinds)


def _blank(label: str, row: int, cells: Mapping[str, list[float]], taken: Mapping[str, str]) -> str:
    """Which cells of a row hold nothing; "": none."""
    names = [taken[what] for what, column in cells.items() if math.isnan(column[row])]
    return f"{label}: nothing in {' and '.join(names)}" if names else ""


def _no_end(label: str, row: Mapping[str, str]) -> str:
    """Which cell says that a run did not come to its end; "": none."""
    for name, cell in row.items():
        if cell.strip().lower() in NO_END.get(plain(name), ()):
            return f"{label}: its {name} is {cell.strip()}"
    return ""


def _check_not_swapped(
    N: Sequence[float], D: Sequence[float], taken: Mapping[str, str], named: Mapping[str, str]
) -> None:
    """BadData where half of the runs have fewer tokens than parameters, unless the user named N or D."""
    if {"N", "D"} & {*named} or min(np.median(N), np.median(D)) < LEAST["N"]:
        return
    ratio = float(np.median(np.divide(D, N)))  # of public sweeps: 7 to 2,000
    if not TOKENS_A_PARAMETER[0] < ratio < 1:  # below: another unit
        return
    n, d = taken.get("N"), taken.get("D")
    swapped = " ".join(f"--column {what}={name!r}" for what, name in (("N", d), ("D", n)) if name)
    right = " ".join(f"--column {what}={name!r}" for what, name in (("N", n), ("D", d)) if name)
    raise BadData(
        f"columns 'N' and 'D': half of the runs have at most {ratio:.2g} tokens per parameter, where sweeps have "
        f"about 20: are the columns swapped? Then {swapped}; if they are right, {right}"
    )


def _check_ends(
    N: Sequence[float], D: Sequence[float], rows: Sequence[Mapping[str, str]], present: Sequence[str]
) -> None:
    """BadData where rows are points along the curves of runs."""
    run = next((name for name in present if plain(name) in RUNS_OF_LOGS), None)
    if run is None and not any(plain(name) in STEPS_OF_LOGS for name in present):
        return
    tokens: dict[tuple[str, float], list[float]] = {}
    for row, n, d in zip(rows, N, D, strict=True):
        tokens.setdefault((row.get(run or "", ""), n), []).append(d)
    for (name, n), values in tokens.items():
        gaps = np.diff(values)
        # tokens of a sweep's runs rise by factors, those of a curve by steps
        even = len(gaps) >= 4 and gaps.min() > 0 and np.ptp(gaps) < 0.05 * gaps.max()
        if even if run is None else bool(name.strip()) and len(set(values)) > 1:
            called = f"the runs of {n:.4g} parameters have" if run is None else f"run {name.strip()!r} has"
            raise BadData(
                f"expected one row for each run, its end; {called} {len(values)} rows along a curve: leave its last "
                "alone (--where), or import the logs (isoflop import)"
            )


def _other_tokens(
    taken: Mapping[str, str], named: Mapping[str, str], rows: Sequence[Mapping[str, str]], present: Sequence[str]
) -> tuple[str, ...]:
    """That another column could be D, too."""
    mine = taken.get("D")
    guesses = {plain(guess) for guess in GUESSES["D"]}
    for name in present:
        if mine is None or "D" in named or name == mine or plain(name) not in guesses:
            continue
        if any(row[name] != row[mine] and cell_number(row[name]) for row in rows):
            return (f"D is column {mine!r}; there is {name!r} with other numbers: --column D={name!r} takes that",)
    return ()


def _taken(wanted: Sequence[str], present: Sequence[str], named: Mapping[str, str]) -> dict[str, str]:
    """Which column is what; one of N and D may be missing where C is there, and the loss where the perplexity is."""
    taken = {}
    if "L" in wanted and "loss" not in named:  # an error by the loss: Gadre et al. 2024
        named = {**named, "loss": column_of("error", present, None)}
    for what in wanted:
        stand_in = {"N": "C", "D": "C", "loss": "perplexity"}.get(what)
        missing = what not in named and guessed(what, present) is None
        if missing and stand_in is not None and (stand_in in named or guessed(stand_in, present)):
            what = stand_in
        taken[what] = column_of(what, present, named.get(what))
    if {"N", "D"} <= {*wanted} and not {"N", "D"} & {*taken}:
        column_of("N", present, None)  # C alone: raises
    return taken


def _derived(
    columns: dict[str, list[float]], taken: Mapping[str, str], wanted: Sequence[str]
) -> tuple[dict[str, list[float]], tuple[str, ...]]:
    """Columns that follow from others, and that in words.

    Raises:
        BadData: losses that are none.
    """
    said: tuple[str, ...] = ()
    for what, other in (("N", "D"), ("D", "N")):
        if what in wanted and what not in columns:
            flops, known = np.array(columns["C"]), np.array(columns[other])
            columns[what] = (flops / TRAINING_FLOPS / np.where(known > 0, known, np.nan)).tolist()
            said = (f"{what} is C/(6·{other}): there is no column for it",)
    if "perplexity" in columns:
        values = np.array(columns["perplexity"])
        if not (values > 1).all():
            raise BadData(f"column {taken['perplexity']!r}: expected perplexities, above 1, got {values.min():.4g}")
        columns["loss"] = np.log(values).tolist()
        said += (f"the loss is the logarithm of column {taken['perplexity']!r}",)
    elif "loss" in columns and (middle := float(np.median(columns["loss"]))) > MOST_LOSS:
        raise BadData(
            f"column {taken['loss']!r}: expected nats per token, got values around {middle:.3g}, more than a guess "
            f"among all tokens has; are they perplexities? Then name them: --column perplexity={taken['loss']}"
        )
    return columns, said


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
    rates = flops / np.array(N) / np.array(D)
    if len(rates) > 2 and ((rates > FORWARD_ONLY[0]) & (rates < FORWARD_ONLY[1])).all():
        doubts += (
            "column 'C' holds 2 FLOPs per parameter and token, those of the forward pass; training takes 6: if so, "
            "multiply it by 3, or leave it out",
        )
    return compute_of(N, D, flops).tolist(), doubts


def _measured(
    rows: Sequence[Mapping[str, str]], labels: Sequence[str], present: Sequence[str], named: str | None
) -> list[float]:
    """Training FLOPs from the column that holds them; NaN where it is blank or there is none."""
    if named is None and guessed("C", present) is None:
        return [math.nan] * len(rows)
    name = column_of("C", present, named)
    return [number_of(row.get(name), name, label) for row, label in zip(rows, labels, strict=True)]


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

    The loss is by default one that all runs have, an evaluation's if there is one, else that of most runs; N likewise
    by `common_n`.
    """
    reasons = [_useless(run) for run in runs]
    if convention is None:
        convention = common_n(run.parameters for run, why in zip(runs, reasons, strict=True) if not why)
        unknown = f"its parameters ({convention.replace('_', ' ')}) are not known"
        reasons = [
            why or ("" if run.parameters.get(convention) else unknown) for run, why in zip(runs, reasons, strict=True)
        ]
    name = loss or common_loss(run for run, why in zip(runs, reasons, strict=True) if not why)
    reasons = [
        why or ("" if final_loss(run.points, name) is not None else _without(name, loss_names(run)))
        for run, why in zip(runs, reasons, strict=True)
    ]
    left_out = tuple(f"{run.name or run.run_id}: {why}" for run, why in zip(runs, reasons, strict=True) if why)
    runs = [run for run, why in zip(runs, reasons, strict=True) if not why]
    names = [loss_names(run) for run in runs]
    found = []
    for run, losses in zip(runs, names, strict=True):
        last = next((point for point in reversed(run.points) if name in known_losses(point)), run.points[-1])
        imported = run.extra.get("imported")
        groups = imported.get("groups") if isinstance(imported, dict) else None  # of isoflop import --group
        row: dict[str, object] = {
            **(groups if isinstance(groups, dict) else {}),
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


def _without(name: str, losses: Sequence[str]) -> str:
    return f"it has no loss {name!r} with its tokens (it has {', '.join(sorted(losses))})"


def _useless(run: Run) -> str:
    """Why a record can't be a row; "": it can."""
    if why := unfinished(run, run.points[-1].step if run.points else 0):
        return why
    if not run.parameters:
        return "its parameters are not known"
    if not any(known_losses(point) and point.data_tokens for point in run.points):
        return "it has no loss with its tokens"
    return ""
