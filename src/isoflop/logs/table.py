"""Tables, CSV or Parquet: curves of one or several runs, or the end of a run in each row.

Rows become columns by their number, and what the columns say tells the runs in them apart. Lightning's CSV logs
(`metrics.csv`) and the charts that the pages of W&B, SwanLab and TensorBoard export have a layout of their own.
"""

from __future__ import annotations

import math
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.logs.files import (
    PARQUET,
    ImportProblem,
    cell_number,
    cell_step,
    csv_rows,
    head,
    is_blank,
    mixed_marks,
    parquet_rows,
    plain,
    read_hparams,
    stem,
    unpacked,
)
from isoflop.logs.given import Given
from isoflop.logs.logged import Column, Columns, Logged, Words
from isoflop.logs.names import (
    DATA,
    HYPERPARAMETERS,
    NO_END,
    PLANNED,
    RUNS,
    SPLITS,
    TRAINING,
    fact_of,
    flag_of,
    kind_of,
    role_of,
    run_rank,
    settings_of,
    split_of,
    status_of,
    words,
)
from isoflop.record.lines import Problems

CHUNK = 4096
_EXPORT = re.compile(r"^(?P<run>.+) - (?P<metric>.+?)(?P<bound>__MIN|__MAX)?$")
_TAG = re.compile(r"run-(?P<run>.+)-tag-(?P<tag>.+)")
_OF_WANDB = {"State", "Created", "Runtime", "Sweep"}
"""Columns of W&B's table of runs, whose names may come several times."""
Cells = Iterator[list[Any]]
MAX_RUNS = 10_000
FEW = 3  # Rows of a run, fewer than which make a learning rate a schedule, not one of a sweep
_OF_DATA = {"dataset", "corpus"}
METRIC = {"metric", "tag", "key", "variable", "series", "scalar", "attribute"}
FALLS, FEWEST = 0.5, 6  # Rank correlation and values from which on losses by row are a curve
CHANCE = 2.2  # Standard deviations of the rank correlation of values in no order
UNEVEN, FEW_ROWS = 1.5, 12
"""Longest over shortest gap between steps, and rows of one size, from and below which rows may be runs of their own."""
AN_END = "the end of a run: the file has no steps, the point is recorded as step 1"
Codes = NDArray[np.int64]


def read(source: str, given: Given) -> list[Logged]:
    """Read a table.

    With a column of steps its rows are points of curves, told apart by a column that names runs, if there is one.
    Without: each row is a finished run where it has an N or a name of its own; else the rows are one curve, numbered.
    """
    path = Path(source)
    problems = Problems(str(path))
    header, rows = _opened(path, problems)
    exported = _exports(header)
    if exported:
        header, rows = _by_run(header, rows, exported, problems)
    tag = _TAG.fullmatch(unpacked(path).stem)
    if tag and "Value" in header:  # a chart that TensorBoard's page saved
        header = [tag["tag"] if name == "Value" else name for name in header]
    for name in given.run:
        if name not in header:
            there = ", ".join(plain(one, 40) for one in header[:12])
            raise ImportProblem(f"{path}: --run: expected one of its columns {there}, got {name!r}")
    told = words(unpacked(path).stem)
    of_file = any(told[-len(words(name)) :] == words(name) for name in header)
    if "samples" in told and of_file and any(kind_of(name) == "step" for name in header):
        raise ImportProblem(f"{path}: its steps count samples (DeepSpeed): divide them by the batch size")
    kept, kind = _kept(header, rows, problems, given), "wandb" if exported else "table"
    of_wandb = "Name" in header and bool(_OF_WANDB & {*header})
    return kept.runs(kind, str(path), tag["run"] if tag else stem(path), ends=of_wandb)


def read_lightning(source: str, given: Given) -> list[Logged]:
    """Read Lightning's `metrics.csv`, or the folder that holds it, with the `hparams.yaml` beside it."""
    path = Path(source)
    path = path / "metrics.csv" if path.is_dir() else path
    problems = Problems(str(path))
    header, rows = _opened(path, problems)
    if "step" not in header:
        raise ImportProblem(f"{path}: expected a first row with a column step, as Lightning's CSVLogger writes it")
    kept = _kept(header, rows, problems, given)
    kept.columns.unused.pop("epoch", None)
    told: list[str] = []
    settings = read_hparams(path.parent / "hparams.yaml", told) or {}
    folder = Path(os.path.abspath(path.parent))
    name = f"{folder.parent.name}/{folder.name}" if folder.name.startswith("version_") else folder.name
    return kept.runs("lightning", str(path), name, more=1, settings=settings, problems=told)


def is_lightning(path: Path) -> bool:
    """True for Lightning's CSV logs: by the neighbour, the folder, or a first step of a trainer that counts from 0."""
    header, *rows = [*islice(csv_rows(path, Problems("")), 20)] or [[]]
    header = [name.strip() for name in header]
    if "step" not in header:
        return False
    named = path.name == "metrics.csv" and "epoch" in header
    if (path.parent / "hparams.yaml").is_file() or (named and path.parent.name.startswith("version_")):
        return True
    index = header.index("step")
    steps = [*dict.fromkeys(cell_number(row[index]) if index < len(row) else None for row in rows)]
    first, second = (*steps, None, None)[:2]
    return named and (first == 0.0 or (first is not None and second == 2 * first + 1))


def _opened(path: Path, problems: Problems) -> tuple[list[str], Cells]:
    """The columns' names, and the rows."""
    rows = parquet_rows(path, problems) if head(path, 4) == PARQUET else csv_rows(path, problems)
    header = [str(name).strip() for name in next(rows, [])]
    if len(header) < 2 or all(cell_number(name) is not None for name in header):
        raise ImportProblem(f"{path}: expected a table whose first row names two columns or more, got {header!a:.80}")
    if twice := {name for name in header if header.count(name) > 1 and kind_of(name)}:
        raise ImportProblem(f"{path}: several columns are called {', '.join(sorted(twice)[:5])}: rename them")
    return header, rows


def _kept(header: list[str], rows: Cells, problems: Problems, given: Given) -> Rows:
    """All rows of a table, in columns."""
    kept = Rows(problems, given)
    if any({*words(name)} & METRIC for name in header):
        kept.columns.named |= {*filter(is_value, header)}
    padded = _padded(rows, len(header), problems)
    while chunk := list(islice(padded, CHUNK)):
        kept.extend(header, [row for row, _ in chunk], [line for _, line in chunk])
    if not len(kept):
        raise ImportProblem("; ".join(problems.all()) or f"{problems.source}: expected rows, got none")
    return kept


def _padded(rows: Cells, length: int, problems: Problems) -> Iterator[tuple[list[Any], int]]:
    """Rows of one length with their lines; of one that was cut off all but its last value, which may be cut itself."""
    for row in rows:
        line = int(problems.at[1:] or 0)
        if len(row) == length:
            yield row, line
            continue
        problems.add(f"{length} values, as in the first row", f"{len(row)} values")
        if len(row) < length:
            yield [*row[:-1], *[None] * (length - len(row) + 1)], line


def _exports(header: list[str]) -> dict[int, tuple[str, str]]:
    """Columns of a chart exported from W&B's pages, `run - metric`, as run and metric by index; none: another table."""
    matches = {index: _EXPORT.match(name) for index, name in enumerate(header) if index}
    found = {i: (match["run"], match["metric"]) for i, match in matches.items() if match and not match["bound"]}
    bounds = any(match["bound"] for match in matches.values() if match)
    return found if bounds or kind_of(header[0]) == "step" else {}


def _by_run(
    header: list[str], rows: Cells, exported: dict[int, tuple[str, str]], problems: Problems
) -> tuple[list[str], Cells]:
    """The table of a chart with a row for each run at each step."""
    if kind_of(header[0]) != "step":
        raise ImportProblem(
            f"{problems.source}: expected W&B's export of a chart over Step, got one over {plain(header[0], 40)}: set "
            "the chart's x-axis to Step"
        )
    metrics = list(dict.fromkeys(metric for _, metric in exported.values()))
    places: dict[str, list[int | None]] = {run: [None] * len(metrics) for run, _ in exported.values()}
    for index, (run, metric) in exported.items():
        places[run][metrics.index(metric)] = index

    def by_run() -> Cells:
        for row in rows:
            if len(row) != len(header):
                problems.add(f"{len(header)} values, as in the first row", f"{len(row)} values")
                continue
            for run, mine in places.items():
                cells = [None if place is None else row[place] for place in mine]
                if any(cell not in ("", None) for cell in cells):
                    yield [run, row[0], *cells]

    return ["run", header[0], *metrics], by_run()


# -- the runs in rows --------------------------------------------------------------------------------------------------


class Rows:
    """Columns by row: numbers whose name tells a role, and words that may tell runs apart."""

    def __init__(self, problems: Problems, given: Given) -> None:
        self.problems, self.given = problems, given
        self.columns = Columns(given.named)
        self.labels: dict[str, Words] = {}
        self.lines = array("q")
        self.pivots: list[str] = []

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, cells: Mapping[str, Any], line: int) -> None:
        """Append a row of cells by name."""
        self.extend(list(cells), [list(cells.values())], [line])

    def extend(self, header: Sequence[str], rows: Sequence[Sequence[Any]], lines: Sequence[int]) -> None:
        """Append rows of one length, a column at a time."""
        start = len(self.lines)
        self.lines.extend(lines)
        for name, cells in zip(header, zip(*rows, strict=True), strict=True):
            if not name or (name in self.columns.unused and name not in self.labels):
                continue
            label = self._is_label(name)
            kept = not label and self.columns.keeps(name)
            if kept and bool not in set(map(type, cells)):
                try:
                    numbers = array("d", map(float, cells))
                except (ValueError, TypeError):
                    pass
                else:
                    column = self.columns.setdefault(name, Column())
                    column.steps.extend(range(start, start + len(cells)))
                    column.values.extend(numbers)
                    continue
            flag, of_steps = flag_of(name), kept and kind_of(name) == "step"
            for row, cell in enumerate(cells, start):
                cell = (flag and split_of(flag, name, cell)) or cell
                if is_blank(cell) or isinstance(cell, (bool, dict, list)):
                    continue
                value = None if label else (cell_step if of_steps else cell_number)(cell)
                if kept and value is not None:
                    self.columns.add(name, row, value)
                elif kept and (mixed := mixed_marks(cell)):
                    raise ImportProblem(f"{self.problems.source}:{lines[row - start]}: {plain(name, 40)}: {mixed}")
                elif kept:
                    self.problems.add(f"{plain(name, 40)} to be a number", cell, at=f":{lines[row - start]}")
                elif label or (value is None and isinstance(cell, str)):
                    self.labels.setdefault(name, Words()).word(row, str(cell).strip()[:200])

    def _is_label(self, name: str) -> bool:
        role = role_of(name)
        if name in self.given.group or (name in self.given.run and role is None):
            return True
        return name not in self.columns.named and role is None and (run_rank(name) is not None or bool(fact_of(name)))

    def runs(self, kind: str, source: str, called: str, *, ends: bool = False, **more: Any) -> list[Logged]:
        """The runs, in the order in which they begin, with `more` fields.

        `called`: what to call a run that has no name; `ends`: each row is a finished run of its own.
        """
        self._pivot()
        steps = [(role.rank, name) for name in self.columns if (role := role_of(name)) and role.kind == "step"]
        step = self.given.step if self.given.step in self.columns else min(steps)[1] if steps else None
        sizes = [name for name in self.columns if kind_of(name) == "size"]
        keys = self._keys(step, sizes)
        codes, names = self._grouped(keys)
        by_epoch = "epoch" in self.columns.unused
        ends = ends or (step is None and bool(sizes or keys) and not by_epoch)
        rise = self._rises(step, codes) if step is not None and self.labels else np.empty(0)
        ends = ends or (len(rise) > 0 and not rise.any())  # several rows of a name have one step
        if step is not None and not ends and keys and {*keys} <= {*sizes} and not self.given.run:
            self._ask_for_runs(source, step, keys, codes)
        if step is None and not ends and (why := self._no_curve(codes)):
            raise ImportProblem(
                f"{source}: it has no column of steps, and {why}: if each row is a run, say which column separates "
                "them with --run COLUMN; else name the steps with --step COLUMN"
            )
        if ends:
            names = [f"{names[code] or called}" for code in codes]
            twice = {name for name in names if names.count(name) > 1} if len(names) <= MAX_RUNS else set(names)
            names = [f"{name}:{line}" if name in twice else name for name, line in zip(names, self.lines, strict=True)]
            codes = np.arange(len(self.lines))
        if len(names) > MAX_RUNS:
            self.problems.add(f"at most {MAX_RUNS} runs in a file", "more: the others are left out", at="")
        ends = ends and step is None
        path, told = os.path.realpath(source), (*self.problems.all(), *more.pop("problems", ()))
        facts = self._facts(codes, len(names), [] if ends else PLANNED)
        settings = more.pop("settings", {})
        fields = {"kind": kind, "source": source, "index": "rows", "labels": self.labels, "ends": ends, **more}
        fields["notes"] = (AN_END,) if ends else ()
        return [
            Logged(
                key=f"{path}#{name}" if name else path,
                name=name or called,
                columns=columns,
                groups={**{name: mine[name] for name in DATA if name in mine}, **groups},
                settings={**settings_of(mine), **settings},
                status=status_of(mine),
                problems=told if index == 0 else (),
                **fields,
            )
            for index, (name, columns, groups, mine) in enumerate(self._parts(codes, names[:MAX_RUNS], facts))
        ]

    def _facts(self, codes: Codes, runs: int, further: Sequence[str]) -> list[dict[str, str]]:
        """What the file says of each run: the last word of its state, and of other facts those that stay the same."""
        found: list[dict[str, str]] = [{} for _ in range(runs)]
        for label, column in self.labels.items():
            fact, rows, words_ = fact_of(label), column.arrays()[0], list(column.codes)
            if fact is None or (fact in PLANNED and fact not in further):
                continue
            for code, row_code in zip(codes[rows].tolist(), column.arrays()[1].tolist(), strict=True):
                word = words_[int(row_code)]
                if fact not in NO_END and found[code].get(fact, word) != word:
                    word = ""  # of a step, not of the run
                found[code][fact] = word
        return [{fact: word for fact, word in mine.items() if word} for mine in found]

    def _ask_for_runs(self, source: str, step: str, keys: Sequence[str], codes: Codes) -> None:
        """ImportProblem where rows of one size may be finished runs: few, at uneven steps, without a learning rate."""
        rows, steps, _ = self.columns[step].arrays()
        gaps = [np.diff(steps[codes[rows] == code]) for code in range(int(codes.max()) + 1)]
        uneven = [each.max() > UNEVEN * each.min() for each in gaps if 1 < len(each) < FEW_ROWS]
        if (
            not uneven
            or len(uneven) < len(gaps)
            or not all(uneven)
            or any(kind_of(name) == "rate" for name in self.columns)
        ):
            return
        key, count = plain(keys[-1], 40), plain(step, 40)
        raise ImportProblem(
            f"{source}: are its {len(self.lines)} rows finished runs, or points of {len(gaps)} curves, one for each "
            f"{key}? Runs: --run '{key}' --run '{count}'; curves: --run '{key}'"
        )

    def _parts(
        self, codes: Codes, names: list[str], facts: list[dict[str, str]]
    ) -> list[tuple[str, Columns, dict[str, str], dict[str, str]]]:
        """Name, columns, groups and facts of each run."""
        columns: list[dict[str, Column]] = [{} for _ in names]
        groups: list[dict[str, str]] = [{} for _ in names]
        for name, column in [*self.columns.items(), *((key, self.labels[key]) for key in self._of_groups())]:
            of = codes[column.arrays()[0]]
            order = np.argsort(of, kind="stable")
            bounds = np.searchsorted(of[order], np.arange(len(names) + 1))
            for code, (low, high) in enumerate(pairwise(bounds)):
                if high > low and isinstance(column, Words):
                    groups[code][name] = list(column.codes)[int(column.values[order[low]])]
                elif high > low:
                    columns[code][name] = column if len(names) == 1 else column.taken(order[low:high])
        each = zip(names, columns, groups, facts, strict=False)
        return [(name, self.columns.like(one), mine, of) for name, one, mine, of in each if one or len(names) == 1]

    def _no_curve(self, codes: Codes) -> str:
        """Why the rows can't be points of one curve; "": they can."""
        rises = {name: self._rises(name, codes) for name in self.columns if len(self.columns[name]) > 1}
        kinds = {name: kind_of(name) for name in rises}
        if fallen := [name for name in rises if kinds[name] == "tokens" and (rises[name] < 0).any()]:
            return f"{plain(fallen[0], 40)} falls"
        counted = [rise for name, rise in rises.items() if kinds[name] in ("tokens", "flops", "samples")]
        if "epoch" in self.columns.unused or any(len(rise) >= FEWEST - 1 and (rise > 0).all() for rise in counted):
            return ""
        for name in rises:
            turns = np.diff(np.sign(rises[name][rises[name] != 0]))
            if kinds[name] == "rate" and (np.count_nonzero(turns) > 1 or (turns > 0).any()):
                return f"{plain(name, 40)} goes up and down, as no schedule does"
        others = {name: {*words(name)} for name in (*self.labels, *self.columns.unused)}
        if told := [
            name for name, of in others.items() if of & HYPERPARAMETERS and not of & {"per", "sec", "time", "ms"}
        ]:
            return f"{plain(told[0], 40)} is of a run, not of a step"
        for name, values in ((name, self.columns[name].arrays()[1]) for name in rises if kinds[name] == "loss"):
            falls = -np.corrcoef(np.arange(len(values)), np.argsort(np.argsort(values)))[0, 1]
            if falls < max(FALLS, CHANCE / math.sqrt(len(values))) or len(values) < FEWEST:
                return f"{plain(name, 40)} does not fall from row to row as a curve does"
        return ""

    def _of_groups(self) -> list[str]:
        return [name for name in self.given.group if name in self.labels]

    def _pivot(self) -> None:
        """Columns by metric where a row holds one metric's value; losses by split where a row says its split."""
        values = next(filter(is_value, self.columns), None)
        metric = next((name for name in self.labels if {*words(name)} & METRIC and self._names_metrics(name)), None)
        if values is not None and metric is not None:
            self._split(metric, [values], lambda word, name: word)
        for label, column in list(self.labels.items()):
            told = any({*words(word)} & SPLITS for word in column.codes)
            rests = {frozenset(words(word)) - SPLITS for word in column.codes}  # `c4` and `c4-val`
            distinct = len({_of_alike(word, "") for word in column.codes}) == len(column.codes)
            alike = not _OF_DATA.isdisjoint(words(label)) and len(rests) == 1 < len(column.codes) and distinct
            of_split = run_rank(label) is None or (run_rank(label) and alike and label not in self.given.group)
            if flag_of(label) and len(column.codes) == 1 and (_at(column, np.arange(len(self.lines))) >= 0).all():
                continue  # a flag that all rows have tells none of them apart
            if told and of_split and label != metric and label not in self.given.run and len(column.codes) <= 12:
                losses = [name for name in self.columns if kind_of(name) == "loss"]
                self._split(label, losses, _of_alike if alike else _of_split if distinct else _of_each)

    def _names_metrics(self, label: str) -> bool:
        """True for a column of names of metrics; a `key` may tell runs apart, too."""
        return run_rank(label) is None or any(kind_of(word) == "loss" for word in self.labels[label].codes)

    def _split(self, label: str, names: list[str], called: Callable[[str, str], str]) -> None:
        self.pivots.append(label)
        for name in names:
            column = self.columns.pop(name)
            codes = _at(self.labels[label], column.arrays()[0])
            alike: dict[str, list[int]] = {}
            for word, code in self.labels[label].codes.items():
                alike.setdefault(called(word, name), []).append(code)
            for inner, of_it in alike.items():
                if (rows := np.isin(codes, of_it)).any() and self.columns.keeps(inner):
                    self.columns[inner] = column.taken(rows)
            if (codes < 0).any() and name not in self.columns:
                self.columns[name] = column.taken(codes < 0)

    def _keys(self, step: str | None, sizes: list[str]) -> list[str]:
        """The columns that tell runs apart: the user's, one that names runs, and those that make steps rise in each."""
        groups = self._of_groups()
        if self.given.run:
            return [*(name for name in self.given.run if name in self.labels or name in self.columns), *groups]
        keys = [*[name for name in RUNS if name in self.labels][:1], *groups]
        further = [name for name in self.labels if run_rank(name) is not None and name not in (*keys, *self.pivots)]
        if step is None:
            return keys or [name for name in further if len(self.labels[name].codes) > 1]
        best, least = keys, self._fault(step, keys)
        tried = keys
        rates = [name for name in self.columns if kind_of(name) == "rate"]  # of a sweep, in each run one
        for name in [*sorted(further, key=lambda name: run_rank(name) or 0), *sizes, *rates] if least else ():
            runs = len(self._grouped([*tried, name])[1])
            if name in rates and (least < 2 or runs * FEW > len(self.lines)):
                continue
            if runs > len(self._grouped(tried)[1]):
                tried = [*tried, name]
                if (fault := self._fault(step, tried)) < least:
                    best, least = tried, fault
                if not fault:
                    break
        return best

    def _fault(self, step: str, keys: list[str]) -> int:
        """0: the steps of each run rise; 1: they don't fall; 2: they do."""
        rise = self._rises(step, self._grouped([*keys, *self.pivots])[0])
        return 2 if (rise < 0).any() else 1 if (rise == 0).any() else 0

    def _rises(self, step: str, codes: Codes) -> NDArray[np.float64]:
        """From one step of a run to its next."""
        rows, values, _ = self.columns[step].arrays()
        of = codes[rows]
        order = np.argsort(of, kind="stable") if of.any() else slice(None)
        return np.diff(values[order])[np.diff(of[order]) == 0]

    def _grouped(self, keys: Sequence[str]) -> tuple[Codes, list[str]]:
        """The run of each row, and the runs' names."""
        if not keys:
            return np.zeros(len(self.lines), dtype=np.int64), [""]
        columns = [self._codes(key) for key in keys]
        table = np.stack([codes for codes, _ in columns], axis=1)
        found, first, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
        order = np.argsort(first)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        names = []
        for row in found[order]:
            told = [(key, of[code]) for key, code, (_, of) in zip(keys, row, columns, strict=True) if code >= 0]
            names.append(", ".join(value if key in RUNS else f"{key} {value}" for key, value in told))
        return place[inverse.reshape(-1)], names

    def _codes(self, key: str) -> tuple[Codes, list[str]]:
        """A code of each row by a column of words (-1: it has none) or of numbers, and what it stands for.

        A row without a number is of the run of the row before: an evaluation's line may not state its size.
        """
        if key in self.labels:
            return _at(self.labels[key], np.arange(len(self.lines))), list(self.labels[key].codes)
        rows, values, _ = self.columns[key].arrays()
        distinct, inverse = np.unique(values, return_inverse=True)
        last = np.searchsorted(rows, np.arange(len(self.lines)), side="right") - 1
        return inverse[np.maximum(last, 0)], [f"{value:.6g}" for value in distinct]


def is_value(name: str) -> bool:
    """True for the column of values where another one names the metric."""
    found = words(name)
    return found[-1:] == ["value"] and {*found} <= {"metric", "float", "value"}


def _at(words: Words, rows: Codes) -> Codes:
    """The code of each of these rows; -1: it has none."""
    own, codes, _ = words.arrays()
    place = np.minimum(np.searchsorted(own, rows), len(own) - 1)
    return np.where(own[place] == rows, codes[place], -1).astype(np.int64)


def _of_split(word: str, name: str, other: str = "") -> str:
    told = next((one for one in words(word) if one in SPLITS), other or word)
    return f"{told}/{name}"


_of_alike = partial(_of_split, other="train")  # of `c4` and `c4-val` the first


def _of_each(word: str, name: str) -> str:
    """Of `val_c4` and `val_pile` each is an evaluation; `train_c4` and `train_pile` are one training."""
    return _of_split(word, name) if TRAINING & {*words(word)} else f"{word.lower()}/{name}"
