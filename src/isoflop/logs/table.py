"""Tables, CSV or Parquet: curves of one or several runs, or the end of a run in each row.

Lightning's CSV logs (`metrics.csv`) and the charts that the pages of W&B, SwanLab and TensorBoard export are tables
with a layout of their own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from isoflop.logs.files import ImportProblem, cell_number, csv_rows, head, plain, read_hparams, stem, why
from isoflop.logs.given import Given
from isoflop.logs.logged import Logged
from isoflop.logs.names import kind_of, words
from isoflop.logs.rows import METRIC, Rows, is_value
from isoflop.record.lines import Problems

CHUNK = 4096
PARQUET = b"PAR1"
_EXPORT = re.compile(r"^(?P<run>.+) - (?P<metric>.+?)(?P<bound>__MIN|__MAX)?$")
_TAG = re.compile(r"run-(?P<run>.+)-tag-(?P<tag>.+)")
_OF_WANDB = {"State", "Created", "Runtime", "Sweep"}
"""Columns of W&B's table of runs, whose names may come several times."""
Cells = Iterator[list[Any]]


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
    tag = _TAG.fullmatch(path.stem)
    if tag and "Value" in header:  # a chart that TensorBoard's page saved
        header = [tag["tag"] if name == "Value" else name for name in header]
    for name in given.run:
        if name not in header:
            there = ", ".join(plain(one, 40) for one in header[:12])
            raise ImportProblem(f"{path}: --run: expected one of its columns {there}, got {name!r}")
    told = words(path.stem)
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
    header, *rows = [*islice(csv_rows(path, Problems("")), 3)] or [[]]
    header = [name.strip() for name in header]
    if "step" not in header:
        return False
    named = path.name == "metrics.csv" and "epoch" in header
    if (path.parent / "hparams.yaml").is_file() or (named and path.parent.name.startswith("version_")):
        return True
    index = header.index("step")
    steps = [cell_number(row[index]) if index < len(row) else None for row in rows]
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


def parquet_rows(path: Path, problems: Problems) -> Cells:
    """The columns' names, then the rows, a batch in memory at a time."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ImportProblem(f'{path}: pyarrow is not installed: pip install "isoflop[parquet]"') from None
    try:
        with ParquetFile(path) as file:
            yield list(file.schema_arrow.names)
            line = 0
            for batch in file.iter_batches(batch_size=CHUNK):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    line += 1
                    problems.at = f":{line}"
                    yield list(values)
    except Exception as error:  # whatever pyarrow raises for a broken file
        raise ImportProblem(f"{path}: expected a Parquet file that can be read, got {why(error)}") from None
