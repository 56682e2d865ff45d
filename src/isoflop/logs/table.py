"""Tables, CSV or Parquet: curves of one or several runs, or the end of a run in each row.

Lightning's CSV logs (`metrics.csv`) and the charts that W&B's pages export are tables with a layout of their own.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoflop.logs.files import csv_rows, head, read_hparams, stem
from isoflop.logs.logged import RUNS, SIZES, STEPS, Columns, ImportProblem, Logged, number, plain, whole, why
from isoflop.record.lines import Problems

MAX_RUNS = 10_000
BATCH = 65_536
PARQUET = b"PAR1"
FROM_ZERO = "Lightning counts steps from 0 (step 9 is the tenth): one is added"
_EXPORT = re.compile(r"^(?P<run>.+) - (?P<metric>.+?)(?P<bound>__MIN|__MAX)?$")


@dataclass
class _Run:
    """One run while its rows are read."""

    columns: Columns
    parameters: dict[str, int] = field(default_factory=dict)
    rows: int = 0


@dataclass(frozen=True)
class _Layout:
    """Roles of a table's columns.

    Attributes:
        step: index of the steps; None: there are none.
        run: index of the runs' names; None: the rows are of one run.
        sizes: convention of N by index.
        values: (run, name) of the others by index; run is empty where the row tells it.
        notes: what the user should know.
    """

    step: int | None
    run: int | None
    sizes: dict[int, str]
    values: dict[int, tuple[str, str]]
    notes: tuple[str, ...] = ()

    @property
    def by_row(self) -> bool:
        """True if each row is a finished run: it has an N or a name, and no step."""
        return self.step is None and (bool(self.sizes) or self.run is not None)


def read(source: str | os.PathLike[str], named: Collection[str] = (), step: str | None = None) -> list[Logged]:
    """Read a table.

    With a column of steps its rows are points of curves, told apart by a column `run`, if there is one. Without: each
    row is a finished run where it has an N or a name of its own; else the rows are one curve, numbered.

    Args:
        source: a CSV or Parquet file with the columns' names in its first row.
        named: columns that are kept whatever their names say.
        step: the column of steps, where it can't be guessed.

    Raises:
        ImportProblem: it can't be read, or has no columns' names.
    """
    path = Path(source)
    problems = Problems(str(path))
    rows = _parquet_rows(path, problems) if head(path, 4) == PARQUET else csv_rows(path, problems)
    header = [str(name).strip() for name in next(rows, [])]
    if len(header) < 2 or all(number(name) is not None for name in header):
        raise ImportProblem(f"{path}: expected a table whose first row names two columns or more, got {header!a:.80}")
    if step is not None and step not in header:
        there = ", ".join([plain(name, 40) for name in header if name][:12]) + (", …" if len(header) > 12 else "")
        raise ImportProblem(f"{path}: --step: expected one of its columns {there}, got {step!r}")
    exported = exports(header)
    layout = _of_export(path, header, exported) if exported else _of_table(header, step)
    runs = _runs(header, layout, rows, problems, named)
    if not runs:
        raise ImportProblem("; ".join(problems.all()) or f"{path}: expected rows, got none")
    return [
        Logged(
            kind="wandb" if exported else "table",
            source=str(path),
            key=f"{os.path.realpath(path)}#{name}" if name else os.path.realpath(path),
            name=name or stem(path),
            columns=run.columns,
            parameters=run.parameters,
            ends=layout.by_row,
            unused=filter(None, run.columns.unused),
            notes=layout.notes,
            problems=problems.all() if index == 0 else (),
        )
        for index, (name, run) in enumerate(runs.items())
    ]


def exports(header: list[str]) -> dict[int, tuple[str, str]]:
    """Columns of a chart exported from W&B's pages, `run - metric`, as run and metric by index; none: another table."""
    matches = {index: _EXPORT.match(name) for index, name in enumerate(header) if index}
    found = {i: (match["run"], match["metric"]) for i, match in matches.items() if match and not match["bound"]}
    bounds = any(match["bound"] for match in matches.values() if match)
    return found if bounds or header[0] in STEPS else {}


def _of_export(path: Path, header: list[str], exported: dict[int, tuple[str, str]]) -> _Layout:
    if header[0] not in STEPS:
        raise ImportProblem(
            f"{path}: expected W&B's export of a chart over Step, got one over {plain(header[0], 40)}: set the chart's "
            "x-axis to Step"
        )
    return _Layout(0, None, {}, exported, (f"steps are the export's {header[0]}",))


def _of_table(header: list[str], step: str | None) -> _Layout:
    step = step or next((name for name in STEPS if name in header), None)
    run = next((name for name in RUNS if name in header), None)
    sizes = {index: SIZES[name] for index, name in enumerate(header) if name in SIZES}
    notes: tuple[str, ...] = ()
    if step is None and (sizes or run is not None):
        notes = ("the end of a run: the file has no steps, the point is recorded as step 1",)
    elif step is None:
        notes = ("the file has no column of steps: its rows are numbered",)
    return _Layout(
        step=None if step is None else header.index(step),
        run=None if run is None else header.index(run),
        sizes=sizes,
        values={i: ("", name) for i, name in enumerate(header) if i not in sizes and name not in (step, run)},
        notes=notes,
    )


def _runs(
    header: list[str], layout: _Layout, rows: Iterator[list[Any]], problems: Problems, named: Collection[str]
) -> dict[str, _Run]:
    """The runs of a table, by name."""
    runs = {owner: _Run(Columns(named)) for owner, _ in layout.values.values() if owner}
    by_column = bool(runs)  # a chart's export
    crowded = False
    for row, cut in _padded(rows, len(header), problems):
        name = "" if layout.run is None else str(row[layout.run] or "").strip()
        if layout.by_row and (not name or name in runs):
            name = f"{name or stem(problems.source)}{problems.at}"
        if name not in runs and len(runs) >= MAX_RUNS:
            crowded = True
            continue
        run = runs.setdefault(name, _Run(Columns(named)))
        run.rows += 1
        step = run.rows if layout.step is None else whole(row[layout.step])
        if step is None and cut:
            continue
        if step is None:
            problems.add(f"{header[layout.step or 0]} to be a whole number from 0", row[layout.step or 0])
            continue
        for index, (owner, column) in layout.values.items():
            runs[owner or name].columns.read(column, 1 if layout.by_row else step, row[index], problems)
        for index, convention in layout.sizes.items():
            size = number(row[index])
            if size is not None and 1 <= size < 1e18:
                run.parameters.setdefault(convention, round(size))
    if crowded:
        problems.add(f"at most {MAX_RUNS} runs in a file", "more: the others are left out", at="")
    if by_column:
        runs.pop("", None)
    return runs


def _padded(rows: Iterator[list[Any]], length: int, problems: Problems) -> Iterator[tuple[list[Any], bool]]:
    """Rows of one length, and whether a row was cut off: then all but its last value, which may be cut itself."""
    for row in rows:
        if len(row) != length:
            problems.add(f"{length} values, as in the first row", f"{len(row)} values")
        if len(row) == length:
            yield row, False
        elif len(row) < length:
            yield [*row[:-1], *[None] * (length - len(row) + 1)], True


def _parquet_rows(path: Path, problems: Problems) -> Iterator[list[Any]]:
    """The columns' names, then the rows, a batch in memory at a time.

    Raises:
        ImportProblem: pyarrow is not installed, or can't read it.
    """
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ImportProblem(f'{path}: pyarrow is not installed: pip install "isoflop[parquet]"') from None
    try:
        with ParquetFile(path) as file:
            yield list(file.schema_arrow.names)
            line = 0
            for batch in file.iter_batches(batch_size=BATCH):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    line += 1
                    problems.at = f":{line}"
                    yield list(values)
    except Exception as error:  # whatever pyarrow raises for a broken file
        raise ImportProblem(f"{path}: expected a Parquet file that can be read, got {why(error)}") from None


def is_lightning(header: list[str], path: Path) -> bool:
    """True for Lightning's CSV logs, by their columns and their name or neighbour."""
    beside = (path.parent / "hparams.yaml").is_file()
    return "step" in header and (beside or (path.name == "metrics.csv" and "epoch" in header))


def one_more(columns: Columns) -> None:
    """From Lightning's index of a step to optimizer steps done."""
    for column in columns.values():
        column.steps = array("q", (min(step, 2**63 - 2) + 1 for step in column.steps))


def read_lightning(source: str | os.PathLike[str], named: Collection[str] = ()) -> list[Logged]:
    """Read Lightning's `metrics.csv`, or the folder that holds it, with the `hparams.yaml` beside it.

    Raises:
        ImportProblem: it can't be read, or has no step column.
    """
    path = Path(source)
    path = path / "metrics.csv" if path.is_dir() else path
    problems = Problems(str(path))
    rows = csv_rows(path, problems)
    header = [name.strip() for name in next(rows, [])]
    if "step" not in header:
        raise ImportProblem(f"{path}: expected a first row with a column step, as Lightning's CSVLogger writes it")
    values = {i: ("", name) for i, name in enumerate(header) if name != "step"}
    runs = _runs(header, _Layout(header.index("step"), None, {}, values), rows, problems, named)
    columns = runs[""].columns if runs else Columns(named)
    one_more(columns)
    told = list(problems.all())
    folder = Path(os.path.abspath(path.parent))
    return [
        Logged(
            kind="lightning",
            source=str(path),
            key=os.path.realpath(path),
            name=f"{folder.parent.name}/{folder.name}" if folder.name.startswith("version_") else folder.name,
            columns=columns,
            settings=read_hparams(path.parent, told) or {},
            unused=[name for name in columns.unused if name not in ("", "epoch")],
            notes=(FROM_ZERO,),
            problems=tuple(told),
        )
    ]
