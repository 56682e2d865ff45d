"""Tables, CSV or Parquet: curves of one or several runs, or the end of a run in each row; W&B's exports too.

Lightning's CSV logs: `metrics.csv`, with `hparams.yaml` beside it.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.logs.files import csv_rows, flat, number, read_yaml, stem, whole
from isoflop.logs.logged import RUNS, SIZES, STEPS, Columns, ImportProblem, Logged, Problems, first, plain, wanted, why
from isoflop.logs.wandb import exports, read_rows

MAX_RUNS = 10_000
BATCH = 65_536
ROWS_OF_PARQUET = b"PAR1"

Row = tuple[int, list[Any]]


@dataclass
class _Run:
    """One run while its rows are read."""

    columns: Columns
    parameters: dict[str, int]
    rows: int = 0


@dataclass(frozen=True)
class _Layout:
    """Which column is what: indices."""

    step: int | None
    run: int | None
    sizes: dict[int, str]
    kept: dict[int, str]


def read(path: str | os.PathLike[str], want: Callable[[str], bool] = wanted, step: str | None = None) -> list[Logged]:
    """Read a table.

    With a column of steps its rows are points of curves, told apart by a column `run`, if there is one. Without: each
    row is a finished run where it has an N or a name of its own; else the rows are one curve, numbered.

    Args:
        path: a CSV or Parquet file with the columns' names in its first row.
        want: which columns are kept.
        step: the column of steps, where it can't be guessed.

    Raises:
        ImportProblem: it can't be read, or has no columns' names.
    """
    path = Path(path)
    problems = Problems(str(path))
    rows = iter(_parquet_rows(path) if _is_parquet(path) else csv_rows(path, problems))
    _, names = next(rows, (0, []))
    header = [str(name).strip() for name in names]
    if len(header) < 2 or all(number(name) is not None for name in header):
        raise ImportProblem(f"{path}: expected a table whose first row names two columns or more, got {header!a:.80}")
    if step is not None and step not in header:
        raise ImportProblem(f"{path}: --step: expected one of its columns {shown_names(header)}, got {step!r}")
    exported = exports(header)
    if exported:
        return read_rows(path, header, exported, rows, problems, want)
    return _plain(path, header, rows, problems, want, step)


def shown_names(names: list[str]) -> str:
    """Some of a table's columns, for a message."""
    kept = [plain(name, 40) for name in names if name][:12]
    return ", ".join(kept) + (", …" if len(names) > len(kept) else "")


def _plain(
    path: Path,
    header: list[str],
    rows: Iterator[Row],
    problems: Problems,
    want: Callable[[str], bool],
    step: str | None,
) -> list[Logged]:
    layout = _layout(header, want, step)
    by_row = layout.step is None and (bool(layout.sizes) or layout.run is not None)
    runs: dict[str, _Run] = {}
    crowded = False
    for line, row in rows:
        if len(row) != len(header):
            problems.add(f":{line}", f"{len(header)} values, as in the first row", f"{len(row)} values")
            continue
        name = "" if layout.run is None else str(row[layout.run]).strip()
        if by_row:
            name = name if name and name not in runs else f"{name or stem(path)}:{line}"
        if name not in runs:
            if len(runs) >= MAX_RUNS:
                crowded = True
                continue
            runs[name] = _Run(Columns(), {})
        run = runs[name]
        run.rows += 1
        at = run.rows if layout.step is None else whole(row[layout.step])
        if at is None:
            problems.add(f":{line}", f"{header[layout.step or 0]} to be a whole number from 0", row[layout.step or 0])
            continue
        _take(run, row, 1 if by_row else at, layout, line, problems)
    if crowded:
        problems.add("", f"at most {MAX_RUNS} runs in a file", "more: the others are left out")
    if not runs:
        raise ImportProblem("; ".join(problems.all()) or f"{path}: expected rows, got none")
    notes: tuple[str, ...] = ()
    if by_row:
        notes = ("the end of a run: the file has no steps, the point is recorded as step 1",)
    elif layout.step is None:
        notes = ("the file has no column of steps: its rows are numbered",)
    used = {*layout.kept, *layout.sizes, layout.step, layout.run}
    unused = tuple(plain(name, 40) for index, name in enumerate(header) if index not in used and name)[:50]
    return [
        Logged(
            kind="table",
            source=str(path),
            key=f"{os.path.realpath(path)}#{name}" if name else os.path.realpath(path),
            name=plain(name) or plain(stem(path)) or "run",
            columns=run.columns,
            parameters=run.parameters,
            parameters_method="as the file says" if run.parameters else None,
            ends=by_row,
            unused=unused,
            notes=notes,
            problems=problems.all() if index == 0 else (),
        )
        for index, (name, run) in enumerate(runs.items())
    ]


def _layout(header: list[str], want: Callable[[str], bool], step: str | None) -> _Layout:
    name_of_step = step or first(STEPS, header)
    name_of_run = first(RUNS, header)
    at = header.index
    return _Layout(
        step=None if name_of_step is None else at(name_of_step),
        run=None if name_of_run is None else at(name_of_run),
        sizes={index: SIZES[name] for index, name in enumerate(header) if name in SIZES},
        kept={
            index: name
            for index, name in enumerate(header)
            if want(name) and name not in (name_of_step, name_of_run) and name not in SIZES
        },
    )


def _take(run: _Run, row: list[Any], step: int, layout: _Layout, line: int, problems: Problems) -> None:
    for index, name in layout.kept.items():
        if row[index] in ("", None):
            continue
        value = number(row[index])
        if value is None:
            problems.add(f":{line}", f"{plain(name, 40)} to be a number", row[index])
        else:
            run.columns.add(name, step, value)
    for index, convention in layout.sizes.items():
        size = number(row[index])
        if convention not in run.parameters and size is not None and 1 <= size < 1e18:
            run.parameters[convention] = round(size)


def _is_parquet(path: Path) -> bool:
    from isoflop.logs.files import head

    return head(path, 4) == ROWS_OF_PARQUET


def _parquet_rows(path: Path) -> Iterator[Row]:
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
            names = file.schema_arrow.names
            yield 0, list(names)
            line = 0
            for batch in file.iter_batches(batch_size=BATCH):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    line += 1
                    yield line, list(values)
    except Exception as error:  # whatever pyarrow raises for a broken file
        raise ImportProblem(f"{path}: expected a Parquet file that can be read, got {why(error)}") from None


FROM_ZERO = "Lightning counts steps from 0 (step 9 is the tenth): one is added"


def looks_like(header: list[str], path: Path) -> bool:
    """Whether a CSV file is one of Lightning's: its columns, and its name or its neighbour."""
    names = {name.strip() for name in header}
    return "step" in names and (
        (path.name == "metrics.csv" and ("epoch" in names or (path.parent / "hparams.yaml").is_file()))
        or (path.parent / "hparams.yaml").is_file()
    )


def one_more(columns: Columns) -> None:
    """From Lightning's index of a step to optimizer steps done."""
    for column in columns.values():
        column.steps = array("q", (min(step, 2**63 - 2) + 1 for step in column.steps))


def lightning_read(path: str | os.PathLike[str], want: Callable[[str], bool] = wanted) -> list[Logged]:
    """Read a `metrics.csv`, or the folder that holds it.

    Raises:
        ImportProblem: it can't be read, or has no step column.
    """
    path = Path(path)
    path = path / "metrics.csv" if path.is_dir() else path
    problems = Problems(str(path))
    rows = csv_rows(path, problems)
    _, header = next(rows, (0, []))
    header = [name.strip() for name in header]
    if "step" not in header:
        raise ImportProblem(f"{path}: expected a first row with a column step, as Lightning's CSVLogger writes it")
    at = header.index("step")
    used = [(index, name) for index, name in enumerate(header) if want(name)]
    columns = Columns()
    for line, row in rows:
        if len(row) < len(header):
            problems.add(f":{line}", f"{len(header)} values: it is cut off", f"{len(row)} values")
        step = whole(row[at]) if at < len(row) else None
        if step is None:
            problems.add(f":{line}", "a step (a whole number from 0)", row[at] if at < len(row) else "nothing")
            continue
        for index, name in used:
            if index < len(row) and row[index]:
                if (value := number(row[index])) is None:
                    problems.add(f":{line}", f"{plain(name)} to be a number", row[index])
                elif len(row) == len(header) or index < len(row) - 1:  # the last value of a cut line is cut too
                    columns.add(name, step, value)
    one_more(columns)
    told = list(problems.all())
    settings: dict[str, object] = {}
    if (path.parent / "hparams.yaml").is_file():
        try:
            settings = flat(read_yaml(path.parent / "hparams.yaml"))
        except ImportProblem as problem:
            told.append(str(problem))
    folder = Path(os.path.abspath(path.parent))
    name = f"{folder.parent.name}/{folder.name}" if folder.name.startswith("version_") else folder.name
    unused = tuple(plain(name, 40) for name in header if name and not want(name) and name not in ("step", "epoch"))
    return [
        Logged(
            kind="lightning",
            source=str(path),
            key=os.path.realpath(path),
            name=plain(name) or "run",
            columns=columns,
            settings=settings,
            notes=(FROM_ZERO,),
            problems=tuple(told),
            unused=unused[:50],
        )
    ]
