"""Lightning's CSV logs: `metrics.csv`, with `hparams.yaml` beside it."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from pathlib import Path

from .files import csv_rows, flat, number, read_yaml, whole
from .logged import Columns, Logged
from .names import wanted
from .problem import ImportProblem, Problems, plain

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


def read(path: str | os.PathLike[str], want: Callable[[str], bool] = wanted) -> list[Logged]:
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
