"""What `isoflop.fit.table` makes tables of: rows of texts from CSV files and from isoflop's records, and their columns.

What columns are by their names, the units in these, the numbers in their cells; and rows picked by conditions such as
'epoch_outlier==0 and N>1e8', which are parsed, never evaluated. Of several records together: the loss that they share
or that is joined, and by what they can be grouped.
"""

from __future__ import annotations

import functools
import math
import operator
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from msgspec import structs

from isoflop.arrays import Array
from isoflop.console import by_reason, listed
from isoflop.fit.runs import BadData, curve_of_run, end_of_curve, unfinished
from isoflop.laws.quantities import PF_DAY
from isoflop.logs.files import (
    MARKS,
    PARQUET,
    ImportProblem,
    cell_number,
    csv_rows,
    flat,
    head,
    is_blank,
    json_list,
    json_object,
    mixed_marks,
    parquet_rows,
)
from isoflop.logs.names import DATA, EPOCHS, EXPERTS, UNIQUE, Kind, end_of, fact_of, factor_of, kind_of, role_of
from isoflop.record.lines import Problems
from isoflop.record.run import Point, Run, common_n

GUESSES: dict[str, tuple[str, ...]] = {
    "N": ("N", "params", "parameters", "n_params", "num_params", "model_size", "size", "non_embedding"),
    "D": ("D", "tokens", "n_tokens", "num_tokens", "train_tokens", "training_tokens", "tokens_seen", "data"),
    "C": (
        *("C", "flops", "compute", "training_flops", "train_flops", "total_flops", "C_min", "budget", "flops_budget"),
        *("compute_budget", "flop_budget"),
    ),
    "D/N": ("D/N", "tokens_per_param", "tokens_per_parameter", "token_param_ratio", "tpp"),
    "U": ("U", *UNIQUE),
    "epochs": EPOCHS,
    "X": ("X", *EXPERTS),
    **dict.fromkeys(
        ("loss", "L"),
        ("loss", "L", "final_loss", "val_loss", "eval_loss", "valid_loss", "validation_loss", "train_loss"),
    ),
    "error": ("error", "err", "downstream_error", "top1_error", "mean_error", "error_rate"),
    "perplexity": ("perplexity", "ppl", "val_ppl", "eval_ppl", "val_perplexity", "validation_perplexity"),
}
"""Names of columns that are taken without being told, in any case and with any separators, the likeliest first."""
_SI = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21}
_SI |= {"mega": 1e6, "giga": 1e9, "tera": 1e12, "peta": 1e15, "exa": 1e18, "zetta": 1e21}
FLOPS_OF_UNITS: dict[str, float] = {
    **dict.fromkeys(("pfdays", "pfday", "pflopdays", "pflopsdays", "petaflopdays", "petaflopsdays"), PF_DAY),
    **{prefix + unit: factor for prefix, factor in _SI.items() for unit in ("flop", "flops")},
    **dict.fromkeys(("flop", "flops", "params", "parameters", "tokens", "nats", "natspertoken", "natstoken"), 1.0),
}
"""What a unit in brackets behind a column's name, `C (PF-days)`, multiplies its cells by."""
_KINDS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "N": ("size", ("",)),
    "D": ("tokens", ("",)),
    "loss": ("loss", ("", "bits")),
    "perplexity": ("loss", ("ppl",)),
}
"""Kind and units of the columns of logs that are taken, too, where there is one alone."""


@functools.lru_cache(maxsize=10_000)
def plain(name: str) -> str:
    """A name in lower case, without separators and unit."""
    return re.sub(r"[\W_]+", "", unit_of(name)[0]).lower()


@functools.lru_cache(maxsize=10_000)
def unit_of(name: str) -> tuple[str, float]:
    """A column's name without its unit of FLOPs, and what its unit multiplies cells by.

    >>> unit_of("C (PF-days)"), unit_of("compute_pf_days"), unit_of("Params (M)"), unit_of("D (tokens)")
    (('C', 8.64e+19), ('compute', 8.64e+19), ('Params (M)', 1000000.0), ('D', 1.0))
    """
    found = re.fullmatch(r"(.*\w)\s*[(\[]([^()\[\]]+)[)\]]\s*", name)
    found = found or re.fullmatch(r"(.*[^\W_])[_ ]((?:pf|pflops?|petaflops?)[_ -]?days?|[A-Za-z]+flops?)", name, re.I)
    if found and (factor := FLOPS_OF_UNITS.get(re.sub(r"[\W_]+", "", found[2]).lower())):
        return found[1], factor
    role, factor = role_of(name), factor_of(name)
    if role is None and factor != 1.0 and found:  # `unique_tokens (B)`
        return found[1], factor
    return name, math.log(2) if role is not None and role.unit == "bits" else factor


def guessed(what: str, present: Sequence[str]) -> str | None:
    """The column that is known to be something; None: none is, or several may be."""
    names = GUESSES.get(what, (what,))
    by_plain = {plain(name): name for name in reversed(present)}
    if exact := next((name for name in names if name in present), None):
        return exact
    if found := next((by_plain[plain(name)] for name in names if plain(name) in by_plain), None):
        return found
    alike = _alike(what, present)
    return alike[0] if len(alike) == 1 else None


def _alike(what: str, present: Sequence[str]) -> list[str]:
    """Columns that are something by the words of their names."""
    kind, units = _KINDS.get(what, (None, ()))
    roles = {name: role_of(name) for name in present} if kind else {}
    return [name for name, role in roles.items() if role is not None and role.kind == kind and role.unit in units]


def column_of(what: str, present: Sequence[str], named: str | None) -> str:
    """The column that the user names for something, else the one that is known to be it; BadData: there is none."""
    if named is not None:
        found = named if named in present else next((name for name in present if plain(name) == plain(named)), None)
        if found is None:
            raise BadData(f"there is no column {named!r} for {what}; there are {columns_listed(present)}")
        return found
    found = guessed(what, present)
    if found is None:
        if len(several := _alike(what, present)) > 1:
            raise BadData(f"several columns may be {what}, {columns_listed(several)}: say which with --column {what}=…")
        more = {"N": ", or add a column of parameter counts", "D": ", or name FLOPs, 6·N·D, with --column C=…"}
        steps = [name for name in present if (role := role_of(name)) is not None and role.kind == "step"]
        if what == "D" and steps:
            more["D"] = f", or add one of tokens: {steps[0]} times the tokens of a step"
        raise BadData(
            f"no column is known to be {what} (looked for {', '.join(GUESSES.get(what, (what,)))}); there are "
            f"{columns_listed(present)}: say which with --column {what}=…{more.get(what, '')}"
        )
    return found


def tells_kinds(name: str, cells: Sequence[str]) -> bool:
    """Whether a column's cells, one a run, tell kinds of runs: several, and not nearly as many as runs."""
    return 1 < len(set(cells)) <= len(cells) / (1 if fact_of(name) in DATA else 4)


def best_of_rates(rows: Sequence[Mapping[str, str]], rate: str, columns: Mapping[str, Sequence[float]]) -> list[int]:
    """Runs but for those that another rate beats in the mean at the same size, tokens and kind of run.

    Rates that agree in two digits are one: warm-ups and rounding end near each other. Where one is 0 the column tells
    the ends of schedules, not their peaks, and all runs stay; so they do without `columns` of N, D and loss.
    """
    values = [cell_number(row.get(rate, "")) for row in rows]
    if not {"N", "D", "loss"} <= {*columns} or 0 in values:
        return [*range(len(rows))]
    peaks = [row.get(rate, "") if value is None else f"{value:.1e}" for row, value in zip(rows, values, strict=True)]
    every = {name: [row.get(name, "") for row in rows] for name in rows[0] if kind_of(name) is None}
    kinds = [cells for name, cells in every.items() if tells_kinds(name, cells)]  # another optimizer has another best
    tried: dict[tuple[str, ...], dict[str, list[int]]] = {}
    for i, peak in enumerate(peaks):
        place = (*(f"{columns[name][i]:.4g}" for name in "ND"), *(cells[i] for cells in kinds))
        tried.setdefault(place, {}).setdefault(peak, []).append(i)

    def mean(runs: list[int]) -> float:
        return sum(columns["loss"][i] for i in runs) / len(runs)

    return sorted(i for rates in tried.values() for i in min(rates.values(), key=mean))


def columns_listed(names: Sequence[str]) -> str:
    """Names of strangers' columns in a sentence; of very many the first ones."""
    return listed([name[:40] for name in names], 30)


def number_of(text: str | None, column: str, label: str) -> float:
    """A cell's number, such as 1e9, 543M, 1,000 or 3.21†; NaN where it holds nothing, or that no run ended."""
    text = (text or "").strip()
    number = cell_number(text)
    if is_blank(text) or (number is None and end_of("status", text) in ("interrupted", "running")):
        return math.nan
    if mixed := mixed_marks(text) if number is None else "":
        raise BadData(f"{label}, column {column!r}: {mixed}")
    if number is None:
        picked = shlex.quote(f'{column}!="{text}"')
        raise BadData(
            f"{label}, column {column!r}: expected a number, got {text!r}; correct it or leave the run out: "
            f"--where {picked}"
        )
    return number if text.strip(MARKS)[-1].isalpha() else number * unit_of(column)[1]  # 543M has a unit of its own


# -- rows picked by --where --------------------------------------------------------------------------------------------

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_COLUMN = re.compile(r"""(?:'([^']+)'|"([^"]+)"|([A-Za-z_][\w.\-/ ]*?))\s*(?=[=!<>])""")
_COMPARED = re.compile(r"""\s*(==|!=|<=|>=|<|>)\s*(?:'([^']*)'|"([^"]*)"|([^\s'"<>=!]+))\s*""")


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
    longest = sorted(columns, key=len, reverse=True)
    for part in re.split(r"\band\b(?=(?:[^'\"]|'[^']*'|\"[^\"]*\")*$)", text):
        part = part.strip()
        fits = (name for name in longest if part.startswith(name) and _COMPARED.fullmatch(part, len(name)))
        if known := next(fits, ""):
            column, rest = known, part[len(known) :]
        elif named := _COLUMN.match(part):
            column, rest = next(filter(None, named.groups())), part[named.end() :]
        else:
            column, rest = "", ""
        match = _COMPARED.fullmatch(rest)
        if match is None:
            raise ValueError(
                f"--where: expected column, comparison ({' '.join(_COMPARISONS)}) and value, joined by `and`, such as "
                f"'epoch_outlier==0 and N>1e8'; got {part!r}"
            )
        comparison, single, double, bare = match.groups()
        if column not in columns:
            raise ValueError(f"--where: there is no column {column!r}; there are {columns_listed(columns)}")
        quoted = bare is None
        value = next(item for item in (bare, single, double) if item is not None)
        if not quoted and comparison not in ("==", "!=") and cell_number(value) is None:
            raise ValueError(f"--where: {column} {comparison} expects a number, got {value!r}")
        conditions.append(Condition(column, comparison, value, quoted))
    return conditions


def groups_of(runs: Sequence[Run]) -> list[dict[str, str]]:
    """By what runs can be grouped: what an import kept of each, and the folder, where that differs.

    The folder is the first part in which the paths of the records differ; of records in one folder that of the logs
    which they were imported from.
    """
    imports = [each if isinstance(each := run.extra.get("imported"), dict) else {} for run in runs]
    places = [str(run.path or "").split("/")[:-1] for run in runs]
    if len(set(map(tuple, places))) < 2:
        places = [str(each.get("source") or "").split("/")[:-1] for each in imports]
    shared = next((i for i, parts in enumerate(zip(*places, strict=False)) if len(set(parts)) > 1), None)
    shared = min(map(len, places), default=0) if shared is None else shared
    folders = [(place[shared:] or ["."])[0] for place in places]
    told = len(set(folders)) > 1
    groups = [each.get("groups") for each in imports]
    return [
        {**({"folder": folder} if told else {}), **(mine if isinstance(mine, dict) else {})}
        for folder, mine in zip(folders, groups, strict=True)
    ]


def loss_names(run: Run) -> list[str]:
    """The losses that a record has, in the order in which they came."""
    return list(dict.fromkeys(name for point in run.points for name in known_losses(point)))


def common_loss(runs: Iterable[Run]) -> str:
    """The loss that `shared_loss` takes; one that a run has not to its end counts for it only where it has no other."""
    return shared_loss(
        [[name for name in loss_names(run) if not unfinished(run, name)] or loss_names(run) for run in runs]
    )


def shared_loss(names: Sequence[Sequence[str]]) -> str:
    """The first evaluation loss that all runs have; else of all losses that most runs have, the training loss first."""
    common = [name for name in (names[0] if names else ()) if all(name in others for others in names)]
    if evaluated := next((name for name in common if name.startswith("eval/")), None):
        return evaluated
    counted = Counter(name for those in names for name in those)
    return max(counted, key=lambda name: (counted[name], name == "train"), default="train")


ALIKE_SETS = ("eval/val", "eval/valid", "eval/validation", "eval/eval", "eval/dev")
"""Names that trainers give to one evaluation, that on held-out data."""


LossName = TypeVar("LossName", str, "str | None")


def joined(runs: Iterable[Run], loss: LossName) -> tuple[list[Run], LossName]:
    """Runs in which a loss has one name, and that name.

    Args:
        runs: as read from their records.
        loss: a name, or `eval/val=eval/valid,eval/eval`: runs without eval/val have the first of the others as it.

    Raises:
        BadData: no run has one of the others.
    """
    name, separator, others = (loss or "").partition("=")
    found = list(runs)
    if not separator:
        return found, loss
    of_run = [loss_names(run) for run in found]
    known, wanted = {one for names in of_run for one in names}, [each.strip() for each in others.split(",")]
    if missing := [each for each in wanted if each not in known]:
        raise BadData(f"--loss: expected losses of the runs ({', '.join(sorted(known))}), got {missing[0]!r}")
    instead = [None if name in names else next((one for one in wanted if one in names), None) for names in of_run]
    return [run if old is None else _renamed(run, old, name) for run, old in zip(found, instead, strict=True)], name


def _renamed(run: Run, old: str, new: str) -> Run:
    """The run with another name of one of its losses."""

    def named(values: Mapping[str, Any]) -> dict[str, Any]:
        return {new if name == old else name: value for name, value in values.items()}

    points = tuple(
        structs.replace(point, losses=named(point.losses), nonfinite=named(point.nonfinite)) for point in run.points
    )
    return replace(run, points=points, loss_units=named(run.loss_units))


def describe_alike(names: Iterable[Iterable[str]], loss: str) -> str:
    """That losses of different names may be one evaluation, and how they are joined; "": they are not.

    Args:
        names: the losses of each run.
        loss: the one that is looked at: it matters where a run with another one of these lacks it, or where it is
            the training loss and each run has one of them.
    """
    of_run = [[*each] for each in names]
    mine = [[name for name in each if name in ALIKE_SETS] for each in of_run]
    counts = Counter(name for each in mine for name in each)
    lost = any(loss not in each and alike for each, alike in zip(of_run, mine, strict=True))
    lost = lost or (loss == "train" and all(mine))
    if not lost or len(counts) < 2 or any(len(each) > 1 for each in mine):
        return ""
    first, *others = [name for name, _ in counts.most_common()]
    each = ", ".join(f"{name} of {counts[name]}" for name in (first, *others))
    return f"{each} runs may be one evaluation: --loss {first}={','.join(others)} joins them"


def known_losses(point: Point) -> dict[str, float]:
    """The losses of a point that were measured, nats per token."""
    return {name: value for name, value in point.losses.items() if value is not None}


LOSS_NAME = "loss name"
"""The cell of a record's row that names its loss; rows of files have none."""
NAMES = ("name", "runname", "run", "runid")
"""Columns whose cells name the runs of a file, where each has another."""
WORKBOOK = b"PK\x03\x04"
Rows = Sequence[tuple[str, dict[str, str]]]
"""What to call each row in messages, and its cells by column."""


def file_rows(source: Path) -> Rows:
    """Rows of a file, called by a column of names, where each has another; BadData names the line."""
    problems = Problems(str(source))
    rows = _cells(source, problems)
    names = [" ".join(name.split()) for name in next(rows, [])]
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


def _cells(source: Path, problems: Problems) -> Iterator[list[str]]:
    """The columns' names, then each row's cells: of CSV, Parquet, or JSON (objects in a list, or one a line)."""
    start = head(source, 64).lstrip()
    if start.startswith(WORKBOOK):
        raise BadData(f"{source}: expected a table as text, got an Excel workbook: save it as CSV")
    if not start.startswith((PARQUET, b"[", b"{")):
        yield from csv_rows(source, problems)
        return
    try:
        if start.startswith(PARQUET):
            names, *rows = parquet_rows(source, problems)
        else:
            objects = [flat(each) for each in json_list(source)]
            names = list(dict.fromkeys(name for each in objects for name in each))
            rows = [[each.get(name) for name in names] for each in objects]
    except ImportProblem as error:
        raise BadData(str(error)) from None
    yield names
    for number, row in enumerate(rows, 1):
        problems.at = f":{number}"
        yield ["" if cell is None else cell if isinstance(cell, str) else repr(cell) for cell in row]


def is_table(source: Path) -> bool:
    """Whether the lines of a JSON file are runs with their sizes, not a record's."""
    first = json_object(head(source, 1 << 16).split(b"\n", 1)[0]) or {}
    return "event" not in first and (guessed("N", [*first]) or guessed("C", [*first])) is not None


@dataclass(frozen=True)
class RecordRows:
    """Each finished run at its end; why others are left out, a line a cause; which parameters N counts; and doubts."""

    rows: Rows = ()
    left_out: tuple[str, ...] = ()
    convention: str = "unknown"
    doubts: tuple[str, ...] = ()


def record_rows(runs: Sequence[Run], convention: str | None, loss: str | None, repeats: bool = False) -> RecordRows:
    """Each finished run at its end.

    The loss is by default one that all runs have, an evaluation's if there is one, else that of most runs; N likewise
    by `common_n`. `loss` as of `joined`, `repeats` as of `end_of_curve`.
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
        end = end_of_curve(curve, name, convention, repeats)
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
            **({} if run.unique_tokens is None else {"unique_tokens": run.unique_tokens}),
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
