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
from isoflop.laws.forms import TRAINING_FLOPS, compute_of
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
            raise ValueError(f"--where: there is no column {column!r}; there are {_listed(columns)}")
        quoted = bare is None
        value = next(item for item in (bare, single, double) if item is not None)
        if not quoted and comparison not in ("==", "!=") and cell_number(value) is None:
            raise ValueError(f"--where: {column} {comparison} expects a number, got {value!r}")
        conditions.append(Condition(column, comparison, value, quoted))
    return conditions


GUESSES: dict[str, tuple[str, ...]] = {
    "N": ("N", "params", "parameters", "n_params", "num_params", "model_size", "size", "non_embedding"),
    "D": ("D", "tokens", "n_tokens", "num_tokens", "train_tokens", "training_tokens", "tokens_seen", "data"),
    "C": (
        "C",
        "flops",
        "compute",
        "training_flops",
        "train_flops",
        "total_flops",
        "C_min",
        "budget",
        "flops_budget",
        "compute_budget",
        "flop_budget",
    ),
    "U": ("U", "unique_tokens"),
    "X": ("X", "experts", "num_experts", "n_experts", "num_local_experts", "n_routed_experts"),
    "loss": ("loss", "L", "final_loss", "val_loss", "eval_loss", "valid_loss", "validation_loss", "train_loss"),
    "L": ("loss", "L", "final_loss", "val_loss", "eval_loss", "valid_loss", "validation_loss", "train_loss"),
    "error": ("error", "err", "downstream_error", "top1_error", "mean_error", "error_rate"),
    "perplexity": ("perplexity", "ppl", "val_ppl", "eval_ppl", "val_perplexity", "validation_perplexity"),
}
"""Names of columns that are taken without being told, in any case and with any separators, the likeliest first."""
LOSS_NAME = "loss name"
BLANK = ("", "nan", "none", "null", "na", "n/a", "-")
"""Cells that hold nothing."""
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
        what: [_number(row.get(name), name, label) for row, label in zip(rows, labels, strict=True)]
        for what, name in taken.items()
    }
    blanks = [_blank(label, i, cells, taken) for i, label in enumerate(labels)]
    full = [i for i, said in enumerate(blanks) if not said]
    if not full:
        raise BadData(f"expected runs with numbers in {', '.join(taken.values())}, got none; {blanks[0]}")
    rows, labels = [rows[i] for i in full], [labels[i] for i in full]
    columns, doubts = _derived({what: [column[i] for i in full] for what, column in cells.items()}, taken, wanted)
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


def _taken(wanted: Sequence[str], present: Sequence[str], named: Mapping[str, str]) -> dict[str, str]:
    """Which column is what; one of N and D may be missing where C is there, and the loss where the perplexity is."""
    taken = {}
    if "L" in wanted and "loss" not in named:  # an error by the loss: Gadre et al. 2024
        named = {**named, "loss": _column("error", present, None)}
    for what in wanted:
        stand_in = {"N": "C", "D": "C", "loss": "perplexity"}.get(what)
        missing = what not in named and _guess(what, present) is None
        if missing and stand_in is not None and (stand_in in named or _guess(stand_in, present)):
            what = stand_in
        taken[what] = _column(what, present, named.get(what))
    if {"N", "D"} <= {*wanted} and not {"N", "D"} & {*taken}:
        _column("N", present, None)  # C alone: raises
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
    return compute_of(N, D, flops).tolist(), doubts


def _measured(
    rows: Sequence[Mapping[str, str]], labels: Sequence[str], present: Sequence[str], named: str | None
) -> list[float]:
    """Training FLOPs from the column that holds them; NaN where it is blank or there is none."""
    if named is None and _guess("C", present) is None:
        return [math.nan] * len(rows)
    name = _column("C", present, named)
    return [_number(row.get(name), name, label) for row, label in zip(rows, labels, strict=True)]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _guess(what: str, present: Sequence[str]) -> str | None:
    """The column that is known to be something; None: none is."""
    guesses = GUESSES.get(what, (what,))
    plain = {_plain(name): name for name in reversed(present)}
    exact = next((guess for guess in guesses if guess in present), None)
    return exact or next((plain[_plain(guess)] for guess in guesses if _plain(guess) in plain), None)


def _column(what: str, present: Sequence[str], named: str | None) -> str:
    if named is not None:
        found = named if named in present else next((name for name in present if _plain(name) == _plain(named)), None)
        if found is None:
            raise BadData(f"there is no column {named!r} for {what}; there are {_listed(present)}")
        return found
    found = _guess(what, present)
    if found is None:
        raise BadData(
            f"no column is known to be {what} (looked for {', '.join(GUESSES.get(what, (what,)))}); there are "
            f"{_listed(present)}: say which with --column {what}=…"
        )
    return found


def _listed(names: Sequence[str]) -> str:
    """Names in a sentence; of very many the first ones."""
    some = ", ".join(name[:40] for name in names[:30])
    return some if len(names) <= 30 else f"{some} and {len(names) - 30:,} more"


def _number(text: str | None, column: str, label: str) -> float:
    """A cell's number, such as 1e9, 543M or 1,000; NaN where it holds nothing."""
    if text is None or text.strip().lower() in BLANK:
        return math.nan
    number = cell_number(text)
    if number is None:
        raise BadData(
            f"{label}, column {column!r}: expected a number, got {text!r}; correct it or leave the run out (--where)"
        )
    return number


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
