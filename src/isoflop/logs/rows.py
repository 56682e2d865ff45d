"""Rows of a file as columns by their number; and the runs in them, told apart by what the columns say."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isoflop.logs.cells import cell_number
from isoflop.logs.logged import Column, Columns, Labels, plain
from isoflop.logs.names import RUNS, SPLITS, role_of, run_rank, words
from isoflop.record.lines import Problems

MAX_RUNS = 10_000
BLANK = ("", None, "NA", "N/A", "n/a", "null", "None", "-", "–")
_METRIC = {"metric", "tag", "key", "variable", "series", "scalar"}
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """What the user says before anything is read: columns that are kept (`named`), and those that name runs (`run`)."""

    named: frozenset[str] = frozenset()
    run: tuple[str, ...] = ()


NO_OPTIONS = Options()


@dataclass
class Part:
    """The rows of one run."""

    name: str
    columns: Columns
    parameters: dict[str, int] = field(default_factory=dict)
    ends: bool = False
    index: Literal["rows", "steps"] = "rows"


class Rows:
    """Columns by row: numbers whose name tells a role, and words that may tell runs apart."""

    def __init__(self, problems: Problems, options: Options) -> None:
        self.problems, self.options = problems, options
        self.columns = Columns(options.named)
        self.labels: dict[str, Labels] = {}
        self.lines = array("q")
        self.pivots: list[str] = []

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, cells: Mapping[str, Any], line: int, time: float = math.nan) -> None:
        """Append a row of cells by name."""
        row = len(self.lines)
        self.lines.append(line)
        for name, cell in cells.items():
            self._cell(name, row, cell, line, time)

    def extend(self, header: Sequence[str], rows: Sequence[Sequence[Any]], lines: Sequence[int]) -> None:
        """Append rows of one length, a column at a time."""
        start = len(self.lines)
        self.lines.extend(lines)
        for name, cells in zip(header, zip(*rows, strict=True), strict=True):
            if not name or (name in self.columns.unused and name not in self.labels):
                continue
            if not self._is_label(name) and self.columns.keeps(name):
                try:
                    numbers = array("d", map(float, cells))
                except (ValueError, TypeError):
                    pass
                else:
                    if (column := self.columns.column(name)) is not None:
                        column.extend(range(start, start + len(cells)), numbers)
                    continue
            for row, cell in enumerate(cells, start):
                if cell not in BLANK:
                    self._cell(name, row, cell, lines[row - start], math.nan)

    def _is_label(self, name: str) -> bool:
        told = name in self.options.run or (name not in self.options.named and run_rank(name) is not None)
        return told and (name in self.options.run or role_of(name) is None)

    def _cell(self, name: str, row: int, cell: Any, line: int, time: float) -> None:
        if cell in BLANK or isinstance(cell, (bool, dict, list)):
            return
        if self._is_label(name):
            self.labels.setdefault(name, Labels()).add(row, str(cell).strip()[:200])
            return
        value = cell_number(cell) if isinstance(cell, str) else float(cell) if isinstance(cell, (int, float)) else None
        if self.columns.keeps(name):
            if value is None:
                self.problems.add(f"{plain(name, 40)} to be a number", cell, at=f":{line}")
            else:
                self.columns.add(name, row, value, time)
        elif value is None and isinstance(cell, str):
            self.labels.setdefault(name, Labels()).add(row, cell.strip()[:200])

    def runs(self, stem: str, ends: bool = False) -> list[Part]:
        """The runs, in the order in which they begin.

        Args:
            stem: what to call a run that has no name.
            ends: each row is a finished run of its own.
        """
        step = next((name for name in sorted(self.columns, key=_step_rank) if _step_rank(name) < 100), None)
        self._pivot()
        by_column = self.columns.get(step or "") if self.pivots else None
        sizes = [name for name in self.columns if (role := role_of(name)) and role.kind == "size"]
        every = np.arange(len(self.lines))
        keys = self._keys(step, sizes, every)
        codes, names = self._grouped(keys, every)
        ends = ends or (step is None and bool(sizes or keys)) or self._all_stand(step, codes, every)
        if ends:
            names = [f"{names[code] or stem}" for code in codes]
            twice = {name for name in names if names.count(name) > 1} if len(names) <= MAX_RUNS else set(names)
            names = [f"{name}:{line}" if name in twice else name for name, line in zip(names, self.lines, strict=True)]
            codes = every
        if len(names) > MAX_RUNS:
            self.problems.add(f"at most {MAX_RUNS} runs in a file", "more: the others are left out", at="")
        ends = ends and step is None
        one = [self._part(names[0], self.columns, sizes, ends)] if len(names) == 1 else None
        parts = one or self._parts(codes, names[:MAX_RUNS], sizes, ends)
        if by_column is not None and step is not None:
            for part in parts:
                _move(part, step, by_column)
        return parts

    def _parts(self, codes: Codes, names: list[str], sizes: list[str], ends: bool) -> list[Part]:
        columns: list[dict[str, Column]] = [{} for _ in names]
        for name, column in self.columns.items():
            of = codes[column.arrays()[0]]
            order = np.argsort(of, kind="stable")
            bounds = np.searchsorted(of[order], np.arange(len(names) + 1))
            for code, (low, high) in enumerate(pairwise(bounds)):
                if high > low:
                    columns[code][name] = column.taken(order[low:high])
        parts = zip(names, columns, strict=True)
        return [self._part(name, self.columns.like(one), sizes, ends) for name, one in parts if one]

    def _part(self, name: str, columns: Columns, sizes: list[str], ends: bool) -> Part:
        parameters: dict[str, int] = {}
        for size in sizes:
            role, column = role_of(size), columns.pop(size, None)
            values = [] if column is None else [value for value in column.values if value * _unit(role) >= 1]
            if values and role is not None and values[0] * _unit(role) < 1e18 and min(values) == max(values):
                parameters.setdefault(role.name, round(values[0] * _unit(role)))
        return Part(name, columns, parameters, ends)

    def _pivot(self) -> None:
        """Columns by metric where a row holds one metric's value; losses by split where a row says its split."""
        values = next((name for name in ("value", "Value", "metric_value") if name in self.columns), None)
        metric = next((name for name in self.labels if {*words(name)} & _METRIC), None)
        if values is not None and metric is not None:
            self._split(metric, [values], lambda word, name: word)
        for label in list(self.labels):
            found = self.labels[label].words
            told = [word for word in found if {*words(word)} & SPLITS]
            if told and run_rank(label) is None and label not in self.options.run and len(found) <= 12:
                losses = [name for name in self.columns if (role := role_of(name)) and role.kind == "loss"]
                self._split(label, losses, _of_split)

    def _split(self, of: str, names: list[str], called: Any) -> None:
        label = self.labels[of]
        self.pivots.append(of)
        for name in names:
            column = self.columns.pop(name)
            codes = label.at(column.arrays()[0])
            for word, code in label.words.items():
                inner = called(word, name)
                if (codes == code).any() and self.columns.keeps(inner):
                    self.columns[inner] = column.taken(codes == code)
            if (codes < 0).any() and name not in self.columns:
                self.columns[name] = column.taken(codes < 0)

    def _keys(self, step: str | None, sizes: list[str], every: Codes) -> list[str]:
        """The columns that tell runs apart: the user's, one that names runs, and those that make steps rise in each."""
        if self.options.run:
            return [name for name in self.options.run if name in self.labels]
        keys = [next(name for name in RUNS if name in self.labels)] if {*RUNS} & {*self.labels} else []
        if step is None or self._fault(step, keys, every) == 0:
            return keys
        taken = {*keys, *self.pivots}
        further = [name for name in self.labels if run_rank(name) is not None and name not in taken]
        tried = list(keys)
        for name in [*sorted(further, key=lambda name: run_rank(name) or 0), *sizes]:
            if len(self._grouped([*tried, name], every)[1]) > len(self._grouped(tried, every)[1]):
                tried.append(name)
                if self._fault(step, tried, every) == 0:
                    return tried
        return tried if self._fault(step, tried, every) < self._fault(step, keys, every) else keys

    def _fault(self, step: str, keys: list[str], every: Codes) -> int:
        """0: the steps of each run rise; 1: they don't fall; 2: they do."""
        rows, values, _ = self.columns[step].arrays()
        codes = self._grouped([*keys, *self.pivots], every)[0][rows]
        order = np.argsort(codes, kind="stable")
        rise = np.diff(values[order])[np.diff(codes[order]) == 0]
        return 2 if (rise < 0).any() else 1 if (rise == 0).any() else 0

    def _all_stand(self, step: str | None, codes: Codes, every: Codes) -> bool:
        """True where several rows of a name have one step: each is a run."""
        if step is None or len(self.columns[step]) < 2:
            return False
        rows, values, _ = self.columns[step].arrays()
        of = codes[rows]
        order = np.argsort(of, kind="stable")
        same = np.diff(of[order]) == 0
        return bool(same.any() and (np.diff(values[order])[same] == 0).all() and self.labels)

    def _grouped(self, keys: Sequence[str], every: Codes) -> tuple[Codes, list[str]]:
        """The run of each row, and the runs' names."""
        if not keys:
            return np.zeros(len(every), dtype=np.int64), [""]
        columns = [self._codes(key, every) for key in keys]
        table = np.stack([codes for codes, _ in columns], axis=1)
        found, first, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
        order = np.argsort(first)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        names = []
        for row in found[order]:
            parts = [
                told[code] if name in RUNS else f"{name} {told[code]}"
                for name, code, (_, told) in zip(keys, row, columns, strict=True)
                if code >= 0
            ]
            names.append(", ".join(parts))
        return place[inverse.reshape(-1)], names

    def _codes(self, key: str, every: Codes) -> tuple[Codes, list[str]]:
        if key in self.labels:
            return self.labels[key].at(every), list(self.labels[key].words)
        rows, values, _ = self.columns[key].arrays()
        distinct, inverse = np.unique(values, return_inverse=True)
        codes = np.full(len(every), -1)
        codes[rows] = inverse
        return codes, [f"{value:.6g}" for value in distinct]


def _move(part: Part, step: str, axis: Column) -> None:
    """The columns of a part at the steps of their rows: rows of another metric or split lie in between."""
    rows, values, _ = axis.arrays()
    for name, column in list(part.columns.items()):
        own = column.arrays()[0]
        place = np.minimum(np.searchsorted(rows, own), len(rows) - 1)
        fits = np.flatnonzero((rows[place] == own) & (values[place] >= 0) & (values[place] % 1 == 0))
        part.columns[name] = column.taken(fits, values[place[fits]].astype(np.int64))
    part.columns.pop(step, None)
    part.index = "steps"


def _unit(role: Any) -> float:
    return role.unit if role is not None and isinstance(role.unit, float) else 1.0


def _step_rank(name: str) -> int:
    role = role_of(name)
    return role.rank if role is not None and role.kind == "step" else 100


def _of_split(word: str, name: str) -> str:
    told = next((one for one in words(word) if one in SPLITS), word)
    return f"{told}/{name}"


def json_cells(value: Mapping[str, Any], prefix: str = "", depth: int = 3) -> dict[str, Any]:
    """The cells of a JSON object, nested names joined by a slash."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"[:200]
        if isinstance(inner, dict) and depth > 1:
            found |= json_cells(inner, f"{name}/", depth - 1)
        elif isinstance(inner, (str, int, float)) and not isinstance(inner, bool):
            found[name] = inner
    return found


_PAIR = re.compile(
    r"([A-Za-z][A-Za-z0-9_ ()/%.-]*?)\s*[:= ]\s*"
    r"([+-]?\d[\d,]*(?:\.\d*)?(?:[eE][+-]?\d+)?(?:[kMBT](?![A-Za-z]))?|[+-]?(?:nan|inf)\b(?! [A-Za-z]))"
    r"(?![A-Za-z]*/[A-Za-z])"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def printed_cells(text: str) -> dict[str, str]:
    """The quantities that a line of a program's output tells, `name: value` or `name value` with anything between.

    >>> printed_cells("iter 100: loss 3.25, time 120.5ms")
    {'iter': '100', 'loss': '3.25', 'time': '120.5'}
    """
    found: dict[str, str] = {}
    for name, value in _PAIR.findall(_COLOUR.sub("", text)[:4000]):
        found.setdefault(name.rpartition(" - ")[2].strip(), value.replace(",", ""))
    return found
