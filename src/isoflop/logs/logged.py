"""A run as another tool logged it: columns of values by the tool's own index, and counts by optimizer step."""

from __future__ import annotations

import math
import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array
from isoflop.logs.names import Kind, role_of
from isoflop.record.lines import Problems
from isoflop.record.run import RecordError, Status

MAX_STEP = 2**63 - 1
MAX_WORDS = 10_000
"""Different words of a column; a column with more of them tells no runs apart."""
MAX_COLUMNS = 2000
"""Names kept of one run: a file of random names must not fill the memory."""
Value = TypeVar("Value")


class ImportProblem(RecordError):
    """A source can't be imported; the text says what was expected, what was found and what to do."""


def read_each(
    source: str, tool: str, runs: Iterable[tuple[str, Value]], read: Callable[[Value], Logged]
) -> list[Logged]:
    """Read the runs that a tool's client gives; a broken one is a problem of the first that can be read.

    Args:
        source: the address, for messages.
        tool: its name, for messages.
        runs: (id, run).
        read: reads one; may raise anything.

    Raises:
        ImportProblem: there is none that can be read.
    """
    found, failures = [], []
    for run_id, run in runs:
        try:
            found.append(read(run))
        except Exception as error:  # of a broken run; the others are imported
            failures.append(f"{source}: run {plain(run_id)}: {tool} gave {why(error)}")
    if not found:
        raise ImportProblem("; ".join(failures[:3]) or f"{source}: expected runs, got none")
    return [replace(found[0], problems=tuple(failures)), *found[1:]]


def plain(text: str, limit: int = 200) -> str:
    """A name from a file as it may be shown and kept: printable, of bounded length."""
    kept = "".join(letter if letter.isprintable() else "?" for letter in text.strip()[:limit])
    return kept.encode("utf-8", "replace").decode("utf-8")


def why(error: BaseException) -> str:
    """A library's error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def number(value: object) -> float | None:
    """A cell's number, NaN and inf as such; None where it is none. A truth value is none."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        return None


def whole(value: object) -> int | None:
    """A count; None where it is none."""
    found = number(value)
    if found is None or not math.isfinite(found) or found < 0 or found % 1 or found >= 2**63:
        return None
    return int(found) if not isinstance(value, int) else value


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

    def extend(self, steps: Sequence[int], values: Sequence[float]) -> None:
        """Append values whose times are not known."""
        self.steps.extend(steps)
        self.values.extend(values)

    def arrays(self) -> tuple[NDArray[np.int64], Array, Array]:
        """Views of the steps, values and times."""
        return (
            np.frombuffer(self.steps, dtype=np.int64),
            np.frombuffer(self.values, dtype=float),
            np.frombuffer(self.times, dtype=float) if self.times else np.broadcast_to(math.nan, len(self.values)),
        )

    def taken(self, rows: NDArray[Any], steps: NDArray[np.int64] | None = None) -> Column:
        """The values of some rows (indices or a mask), at their own or other steps."""
        result = Column()
        own, values, times = self.arrays()
        result.steps.frombytes(np.ascontiguousarray(own[rows] if steps is None else steps, dtype=np.int64).tobytes())
        result.values.frombytes(values[rows].tobytes())
        if self.times:
            result.times.frombytes(times[rows].tobytes())
        return result

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, float, float]]:
        return zip(self.steps, self.values, self.times or repeat(math.nan, len(self.values)), strict=True)


class Columns(dict[str, Column]):
    """The columns of a run whose names tell a role, or that the user named, made as they are met.

    Attributes:
        unused: names of some others, for a question about them.
    """

    def __init__(self, named: Collection[str] = ()) -> None:
        super().__init__()
        self._named = named
        self.unused: dict[str, None] = {}

    def keeps(self, name: str) -> bool:
        """True if a column of this name is kept; else its name is noted."""
        if name in self or name in self._named or (name not in self.unused and role_of(name) is not None):
            return True
        if len(self.unused) < 200:
            self.unused[name] = None
        return False

    def add(self, name: str, step: int, value: float, time: float = math.nan) -> None:
        """Append a value to a column that is kept, unless there are too many columns or the step can't be one."""
        if self.keeps(name) and 0 <= step <= MAX_STEP and (column := self.column(name)) is not None:
            column.add(step, value, time)

    def column(self, name: str) -> Column | None:
        """The column of this name, made where there is none yet; None: there are too many."""
        if name not in self:
            if len(self) >= MAX_COLUMNS:
                return None
            self[name] = Column()
        return self[name]

    def read(self, name: str, step: int, cell: object, problems: Problems, time: float = math.nan) -> None:
        """Append the number of a cell; an empty cell is skipped, any other text is a problem."""
        if cell in ("", None) or not self.keeps(name):
            return
        value = number(cell)
        if value is None:
            problems.add(f"{plain(name, 40)} to be a number", cell)
        else:
            self.add(name, step, value, time)

    def like(self, columns: Mapping[str, Column]) -> Columns:
        """Other columns of the same run, or of a part of it."""
        result = Columns(self._named)
        result.update(columns)
        result.unused = self.unused
        return result


class Labels:
    """A column of words by row; dropped, where there are too many of them to tell runs apart."""

    __slots__ = ("codes", "rows", "words")

    def __init__(self) -> None:
        self.rows, self.codes = array("q"), array("q")
        self.words: dict[str, int] = {}

    def add(self, row: int, word: str) -> None:
        """Append the word of a row."""
        if len(self.words) <= MAX_WORDS:
            self.rows.append(row)
            self.codes.append(self.words.setdefault(word, len(self.words)))

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The code of each of these rows; -1: it has none."""
        own, codes = np.frombuffer(self.rows, dtype=np.int64), np.frombuffer(self.codes, dtype=np.int64)
        if len(own) == len(rows) and np.array_equal(own, rows):
            return codes
        place = np.minimum(np.searchsorted(own, rows), max(len(own) - 1, 0))
        return np.where(own[place] == rows, codes[place], -1) if len(own) else np.full(len(rows), -1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Logged:
    """One run as another tool logged it.

    Attributes:
        kind: which reader: `huggingface`, `tensorboard`, `lightning`, `wandb`, `mlflow`, `table`.
        source: where it was read, for messages and for the record.
        key: what the run is known by: a second import of the same key is the same run.
        name: what its owner calls it.
        columns: by name, as logged.
        index: what the steps of the columns are: `steps` (optimizer steps done), `calls` (of a tracker's log(), or what
            the loop gave it as step) or `rows` of a file.
        numbered: the steps are numbers of rows, for lack of better ones.
        more: what is added to a column of steps, for a trainer that counts from 0.
        labels: columns of words or small numbers by row, that may tell runs or splits apart.
        settings: hyperparameters as the tool kept them, flat.
        config: a Hugging Face model configuration: its file, or its content.
        parameters: N by convention, where the log says so itself; `N` where it does not say which.
        total_flos: by step, Hugging Face's count.
        status: None where the tool does not say.
        created: unix seconds.
        averaged: losses are means over the steps since the one before.
        single: values are float32.
        ends: its one point is the end of a run, whose steps are not known.
        notes: what the user should know of how it was read.
        problems: what could not be read.
    """

    kind: str
    source: str
    key: str
    name: str
    columns: Columns
    index: Literal["steps", "calls", "rows"] = "steps"
    more: int = 0
    numbered: bool = False
    labels: Mapping[str, Labels] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: str | Mapping[str, Any] | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)
    total_flos: Mapping[int, float] = field(default_factory=dict)
    status: Status | None = None
    created: float | None = None
    averaged: bool = False
    single: bool = False
    ends: bool = False
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", plain(self.name) or "run")

    @property
    def names(self) -> tuple[str, ...]:
        """Names by which the user may refer to it: its name, that with its folder, its last part."""
        folder = os.path.basename(os.path.dirname(os.path.abspath(self.source)))
        return self.name, f"{folder}/{self.name}", self.name.rpartition("/")[2]

    @property
    def planned_steps(self) -> int | None:
        """Optimizer steps of the plan."""
        return whole(self.settings.get("max_steps")) or None

    def best(self, kind: Kind) -> list[str]:
        """Names of the columns of a kind, the likeliest first."""
        ranked = [(role.rank, name) for name in self.columns if (role := role_of(name)) and role.kind == kind]
        return [name for _, name in sorted(ranked, key=lambda one: one[0])]

    def count(self, name: str) -> Count | None:
        """The count that a column logged, in ones; None where it holds none: values that are finite and don't fall."""
        if name not in self.columns:
            return None
        steps, values = _known(self.columns[name])
        if not len(steps) or (np.diff(values) < 0).any():
            return None
        role = role_of(name)
        unit = role.unit if role is not None and isinstance(role.unit, float) else 1.0
        return interpolated(steps.tolist(), (values * unit).tolist())

    def rates(self) -> Count | None:
        """Learning rates by step; of several parameter groups the first."""
        for name in self.best("rate")[:1]:
            steps, values = _known(self.columns[name])
            if len(steps):
                return interpolated(steps.tolist(), values.tolist(), origin=False)
        return None


Count = Callable[[int], float | None]
"""A quantity by optimizer steps done; None: unknown."""


def _known(column: Column) -> tuple[NDArray[np.int64], Array]:
    steps, values, _ = column.arrays()
    known = np.isfinite(values) & (values >= 0)
    return steps[known], values[known]


def interpolated(steps: Sequence[int], values: Sequence[float], *, origin: bool = True) -> Count:
    """Values by step: exact where they were logged, on a line in between, unknown beyond the last.

    Args:
        steps: growing.
        values: at these steps.
        origin: 0 at step 0; else unknown before the first step.
    """

    def at(step: int) -> float | None:
        index = bisect_left(steps, step)
        if index == len(steps) or (index == 0 and steps[0] != step and not origin):
            return None
        if steps[index] == step:
            return values[index]
        before, low = (steps[index - 1], values[index - 1]) if index else (0, 0.0)
        return low + (values[index] - low) * (step - before) / (steps[index] - before)

    return at


def scaled(count: Count, factor: float) -> Count:
    """The count times a factor."""
    return lambda step: None if (value := count(step)) is None else value * factor


def first(names: Iterable[str], present: Mapping[str, Value]) -> tuple[str, Value] | None:
    """The first of some names that is there, and what it stands for."""
    return next(((name, present[name]) for name in names if name in present), None)
