"""A run as another tool logged it: columns of values by the tool's own index, counts by optimizer step, and its losses.

Which columns are losses, and their unit: held against the perplexity where both were logged.
"""

from __future__ import annotations

import math
import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.arrays import Array
from isoflop.averages import increments
from isoflop.logs.files import ImportProblem, plain, read_json
from isoflop.logs.given import EVERY, Answers, either
from isoflop.logs.names import AVERAGED, Kind, Role, factor_of, kind_of, part_words, role_of, words
from isoflop.record.run import Status

MAX_STEP = 2**63 - 1
MAX_WORDS = 10_000  # Different words of a column; a column with more of them tells no runs apart
MAX_COLUMNS = 2000  # Names kept of one run: a file of random names must not fill the memory


class Column:
    """One logged quantity: steps, values and unix times (NaN where unknown; none: all are), as logged."""

    __slots__ = ("steps", "times", "values")

    def __init__(self) -> None:
        self.steps, self.values, self.times = array("q"), array("d"), array("d")

    def add(self, step: int, value: float, time: float = math.nan) -> None:
        """Append a value."""
        self.steps.append(step)
        self.values.append(value)
        if self.times or time == time:
            self.times.extend(repeat(math.nan, len(self.values) - 1 - len(self.times)))
            self.times.append(time)

    def arrays(self) -> tuple[NDArray[np.int64], Array, Array]:
        """Views of the steps, values and times."""
        return (
            np.frombuffer(self.steps, dtype=np.int64),
            np.frombuffer(self.values, dtype=float),
            np.frombuffer(self.times, dtype=float) if self.times else np.broadcast_to(math.nan, len(self.values)),
        )

    def taken(self, rows: NDArray[Any] | slice, steps: NDArray[np.int64] | None = None) -> Column:
        """The values of some rows (indices, a mask or a slice), at their own or other steps."""
        result = Column()
        own, values, times = self.arrays()
        result.steps.frombytes(np.ascontiguousarray(own[rows] if steps is None else steps, dtype=np.int64).tobytes())
        result.values.frombytes(values[rows].tobytes())
        if self.times:
            result.times.frombytes(times[rows].tobytes())
        return result

    def known(self) -> tuple[NDArray[np.int64], Array]:
        """The steps and values that are finite and not negative."""
        steps, values, _ = self.arrays()
        known = np.isfinite(values) & (values >= 0)
        return steps[known], values[known]

    def stands(self) -> bool:
        """True where several values are all the same."""
        values = self.arrays()[1]
        return len(values) > 1 and bool((values == values[0]).all())

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, float, float]]:
        return zip(self.steps, self.values, self.times or repeat(math.nan, len(self.values)), strict=True)


class Columns(dict[str, Column]):
    """The columns of a run whose names tell a role, or that the user named, made as they are met."""

    def __init__(self, named: frozenset[str]) -> None:
        super().__init__()
        self.named = named
        self.unused: dict[str, None] = {}  # names of some others, for a question about them

    def keeps(self, name: str) -> bool:
        """True if a column of this name is kept; else its name is noted."""
        if name in self:
            return True
        if len(self) < MAX_COLUMNS and (name in self.named or (name not in self.unused and role_of(name) is not None)):
            return True
        if len(self.unused) < 200:
            self.unused[name] = None
        return False

    def add(self, name: str, step: int, value: float, time: float = math.nan) -> None:
        """Append a value to a column that is kept, unless the step can't be one."""
        if self.keeps(name) and 0 <= step <= MAX_STEP:
            if name not in self:
                self[name] = Column()
            self[name].add(step, value, time)

    def like(self, columns: Mapping[str, Column]) -> Columns:
        """Other columns of the same run, or of a part of it."""
        result = Columns(self.named)
        result.update(columns)
        result.unused = self.unused
        return result


class Words(Column):
    """A column of words by row, coded; of more than `MAX_WORDS` different ones the further are dropped."""

    __slots__ = ("codes",)

    def __init__(self) -> None:
        super().__init__()
        self.codes: dict[str, int] = {}

    def word(self, row: int, word: str) -> None:
        """Append the word of a row."""
        if word in self.codes or len(self.codes) < MAX_WORDS:
            self.add(row, self.codes.setdefault(word, len(self.codes)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Logged:
    """One run as another tool logged it."""

    kind: str  # a name of `importing.KINDS`
    source: str  # where it was read, for messages and for the record
    key: str  # what the run is known by: a second import of the same key is the same run
    name: str  # what its owner calls it
    columns: Columns
    index: Literal["steps", "calls", "rows"] = "steps"  # their steps: optimizer's, calls of a tracker's log(), or rows
    more: int = 0  # what is added to a column of steps, for a trainer that counts from 0
    numbered: bool = False  # the steps are numbers of rows, for lack of better ones
    labels: Mapping[str, Words] = field(default_factory=dict)  # by row, that may tell runs or splits apart
    settings: Mapping[str, Any] = field(default_factory=dict)  # hyperparameters as the tool kept them, flat
    config: str | Mapping[str, Any] | None = None  # a Hugging Face model configuration: its file, or its content
    total_flos: Mapping[int, float] = field(default_factory=dict)  # by step, Hugging Face's count
    status: Status | None = None  # None where the tool does not say
    done: int = 0  # optimizer steps done, where the tool states them; its last loss may be of an earlier one
    created: float | None = None  # unix seconds
    averaged: bool = False  # losses are means over the steps since the one before
    single: bool = False  # values are float32
    ends: bool = False  # its one point is the end of a run, whose steps are not known
    notes: tuple[str, ...] = ()  # what the user should know of how it was read
    groups: Mapping[str, str] = field(default_factory=dict)  # words of the columns by which the user groups runs
    problems: tuple[str, ...] = ()  # what could not be read

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", plain(self.name) or "run")

    @property
    def names(self) -> tuple[str, ...]:
        """Names by which the user may refer to it: its name, that after its file or a folder, its last part, its file.

        An import calls runs of one name by the file or folder too, in which they differ.
        """
        *folders, file = os.path.abspath(self.source).split(os.sep)
        above = (f"{folder}/{self.name}" for folder in (os.path.splitext(file)[0], *folders[-1:-6:-1]))
        return self.name, *above, self.name.rpartition("/")[2], file

    def shown(self, most: int = 12, *, unused: bool = False) -> str:
        """Names of its columns, for messages; `unused`: of those alone that say nothing of use."""
        names = [*([] if unused else self.columns), *self.labels, *self.columns.unused]
        return ", ".join([plain(name, 40) for name in names if name][:most])

    @property
    def model(self) -> Mapping[str, Any]:
        """The configuration's content; empty where there is none, or it can't be read."""
        if isinstance(self.config, str):
            try:
                return read_json(self.config)
            except ImportProblem:  # which is a problem already
                return {}
        return self.config or {}

    def best(self, kind: Kind) -> list[str]:
        """Names of the columns of a kind, the likeliest first."""
        ranked = [(role.rank, name) for name in self.columns if (role := role_of(name)) and role.kind == kind]
        return [name for _, name in sorted(ranked, key=lambda one: one[0])]

    @property
    def is_chart(self) -> bool:
        """True for an export of one of W&B's charts."""
        return self.kind == "wandb" and self.source.endswith(".csv")

    @property
    def losses(self) -> set[tuple[str, str]]:
        """Its losses, by what they are of and their units."""
        roles = (role_of(name) for name in self.columns)
        return {(role.name, role.unit) for role in roles if role and role.kind == "loss"}

    def with_chart(self, other: Logged) -> Logged:
        """The run with the columns of another chart of it, whose rows follow on its own."""
        rows = 1 + max(column.steps[-1] for column in self.columns.values())
        columns = self.columns.like(self.columns)
        columns.unused.update(other.columns.unused)
        further = {name: one for name, one in other.columns.items() if name not in columns or kind_of(name) == "step"}
        for name, column in further.items():
            both = columns[name].taken(slice(None)) if name in columns else Column()
            for row, value, time in column:
                both.add(row + rows, value, time)
            columns[name] = both
        return replace(self, columns=columns, notes=(*self.notes, f"{other.source} is of it too: joined"))

    def count(self, name: str) -> Count | None:
        """The count that a column logged, in ones; None where it holds none: values that are finite and don't fall."""
        if name not in self.columns:
            return None
        steps, values = self.columns[name].known()
        if not len(steps) or (np.diff(values) < 0).any():
            return None
        return interpolated(steps, values * factor_of(name))


Count = Callable[[int], float | None]  # A quantity by optimizer steps done; None: unknown


def interpolated(steps: ArrayLike, values: ArrayLike, *, origin: bool = True) -> Count:
    """Values [n] by growing steps [n]: exact where they were logged, on a line in between, unknown beyond the last.

    Before the first step they begin at 0 (`origin`), or are unknown.
    """
    at, there = np.asarray(steps), np.asarray(values, dtype=float)

    def count(step: int) -> float | None:
        index = int(np.searchsorted(at, step))
        if index == len(at) or (index == 0 and at[0] != step and not origin):
            return None
        if at[index] == step:
            return float(there[index])
        before, low = (int(at[index - 1]), float(there[index - 1])) if index else (0, 0.0)
        return low + (float(there[index]) - low) * (step - before) / (int(at[index]) - before)

    return count


def scaled(count: Count, factor: float) -> Count:
    """The count times a factor."""
    return lambda step: None if (value := count(step)) is None else value * factor


CONVERTED = {
    "bits": "bits per token: × ln 2",
    "ppl": "perplexity: its natural logarithm",
    "bpb": "bits per byte: kept so",
    "mean": "its mean since the start: the mean since the value before, by differences",
}
CLOSE = 0.02  # Relative distance of a loss from its perplexity's logarithm, both printed with few digits


@dataclass
class Losses:
    """The losses of a run by name, in order."""

    columns: dict[str, Column] = field(default_factory=dict)  # in nats per token but where `units` says otherwise
    units: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what the user should know
    taken: dict[str, str] = field(default_factory=dict)  # the column that each was taken from
    doubts: list[str] = field(default_factory=list)  # what must be asked
    averaged: bool = False  # those of training are means over the steps since the one before


def losses_of(logged: Logged, answers: Answers) -> Losses:
    """The training loss and those of evaluations: the columns that the user names, else those whose names tell.

    Of several columns for one loss that with most values is taken (a mean over the run is logged once), isoflop's own
    before any other, a loss before a perplexity, a cross-entropy before a sum of losses.
    """
    by_loss = _candidates(logged)
    chosen = {name: columns[0] for name, columns in by_loss.items()}
    for name, text in answers.given.loss.items():
        found = (one if one in logged.columns else chosen.get(one) for one in either(text))
        if column := next(filter(None, found), None):
            chosen = {loss: other for loss, other in chosen.items() if other != column} | {name: column}
    losses = Losses()
    for name in sorted(chosen, key=lambda one: (one != "train", one)):
        column = chosen[name]
        unit = _unit(name, column, answers.given.loss_unit) or _by_perplexity(
            logged, column, by_loss.get(name, ()), losses
        )
        if unit == "mean" and name != "train":
            unit = "nats"
        if unit == "bpb":
            losses.units[name] = "bits per byte"
        if unit != "nats":
            losses.notes.append(f"{name} ({plain(column, 40)}) is {CONVERTED[unit]}")
        if name not in answers.given.loss:
            _doubt_multiple(logged, column, by_loss.get(name, ()), losses)
            if name == "train":
                _doubt_sum(logged, column, losses)
        losses.averaged |= unit == "mean" or (name == "train" and column == "isoflop/loss")
        losses.columns[name] = _converted(logged.columns[column], unit)
        if name != "train" and (first := _firsts(losses.columns[name])) is not None:
            losses.notes.append(f"{plain(column, 40)} repeats each value until the next one: the first of each counts")
            losses.columns[name] = first
        losses.taken[name] = column
    return losses


def _firsts(column: Column) -> Column | None:
    """The first of equal values in a row, where all values come equally often, twice or more; None: they don't."""
    steps, values, _ = column.arrays()
    new = np.flatnonzero(np.append(True, np.diff(values) != 0)) if len(steps) else steps
    often = np.diff(new)
    return column.taken(new) if len(new) > 2 and often.min() > 1 and np.ptp(often) <= 1 else None


def _doubt_multiple(logged: Logged, column: str, others: Sequence[str], losses: Losses) -> None:
    """Of two columns for one loss one may be a multiple of the other: a sum over devices or micro-batches."""
    for other in others:
        one, two = role_of(column), role_of(other)
        if other == column or one is None or two is None or one.unit != two.unit or "own" in (one.kind, two.kind):
            continue
        with np.errstate(all="ignore"):
            ratio = np.divide(*_beside(logged, other, column))
        middle = float(np.median(ratio)) if len(ratio) else math.nan
        if abs(middle - 1) > CLOSE and len(ratio) > 2 and np.ptp(ratio) < CLOSE * abs(middle) / 10:
            told = f"{plain(other, 40)} is {middle:.3g} times {plain(column, 40)} at each step"
            losses.doubts.append(f"{told}: which is the mean per token? Name it with --loss COLUMN")
            return


def _beside(logged: Logged, one: str, other: str) -> tuple[Array, Array]:
    """The values of two columns at the steps that they share."""
    (steps, values, _), (at, theirs, _) = logged.columns[one].arrays(), logged.columns[other].arrays()
    _, mine, place = np.intersect1d(steps, at, return_indices=True)
    return values[mine], theirs[place]


def _doubt_sum(logged: Logged, column: str, losses: Losses) -> None:
    """A loss that is no cross-entropy by its name, beside parts of a loss, may be their sum."""
    role = role_of(column)
    beside = [plain(name, 40) for name in logged.columns.unused if part_words(name)][:5]
    if beside and role is not None and role.kind == "loss" and role.rank % 3:
        losses.doubts.append(
            f"{plain(column, 40)} may be a sum: there are {', '.join(beside)} beside it. Name the cross-entropy with "
            "--loss COLUMN"
        )


def _candidates(logged: Logged) -> dict[str, list[str]]:
    """Columns by loss, the best first; parts of a loss that training logged too are none."""
    parts = {word for name in logged.columns.unused for word in part_words(name)}
    ranked: dict[str, list[tuple[tuple[int, ...], str]]] = defaultdict(list)
    for column, values in logged.columns.items():
        role = Role("loss", "train") if column == "isoflop/loss" else role_of(column)
        if role is None or role.kind != "loss" or not len(values) or (role.parts and role.parts <= parts):
            continue
        there = {*words(column)}
        plainly = (bool(there & AVERAGED), "train" not in there)  # a mean of what, and since when, is not known
        rank = (column != "isoflop/loss", bool(role.unit), -len(values), role.rank, *plainly)
        ranked[role.name].append((rank, column))
    return {name: [column for _, column in sorted(columns)] for name, columns in ranked.items()}


def _unit(name: str, column: str, given: Mapping[str, str]) -> str | None:
    """The unit that the user or the column's name tells; None: neither."""
    role = role_of(column)
    told = role.unit if role is not None else ""
    return "nats" if column == "isoflop/loss" else given.get(name) or told or given.get(EVERY)


def _by_perplexity(logged: Logged, column: str, others: Sequence[str], losses: Losses) -> str:
    """The base of a loss's logarithm, by the perplexity that was logged beside it; nats where there is none."""
    beside = next((name for name in others if (role := role_of(name)) and role.unit == "ppl" and name != column), None)
    if beside is None:
        return "nats"
    values, ppl = _beside(logged, column, beside)
    with np.errstate(all="ignore"):
        ratio = np.log(ppl) / values
        ratio = ratio[np.isfinite(ratio) & (values > 0.1)]
    if not len(ratio):
        return "nats"
    middle = float(np.median(ratio))
    if abs(middle - 1) < CLOSE:
        return "nats"
    if abs(middle / math.log(2) - 1) < CLOSE:
        losses.notes.append(f"{plain(beside, 40)} is 2 to the power of {plain(column, 40)}")
        return "bits"
    losses.doubts.append(
        f"ln {plain(beside, 40)} is {middle:.3g} times {plain(column, 40)}: another loss, or no mean per token? "
        "Name the loss with --loss COLUMN, its unit with --loss-unit nats, bits or ppl"
    )
    return "nats"


def _converted(column: Column, unit: str) -> Column:
    """A column of losses in nats per token (of bits per byte: as they are)."""
    if unit in ("nats", "bpb"):
        return column
    if unit == "mean":
        finite, steps = np.isfinite(column.arrays()[1]), column.arrays()[0]
        result = column.taken(finite & np.append(np.diff(steps) > 0, True)[: len(steps)])
        at, means, _ = result.arrays()
        done = np.append(0, at + (at[:1] == 0))  # some count steps from 0
        result.values = array("d", increments(done, np.append(0, means)).tobytes())
        return result
    values = column.arrays()[1]
    with np.errstate(all="ignore"):
        nats = values * math.log(2) if unit == "bits" else np.log(np.where(values > 0, values, math.nan))
    result = column.taken(slice(None))
    result.values = array("d", nats.tobytes())
    return result
