"""A chart's CSV export from W&B's pages: columns `run - metric` over Step."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .files import number, whole
from .logged import Columns, Logged
from .names import STEPS
from .problem import ImportProblem, Problems, plain

_EXPORT = re.compile(r"^(?P<run>.+) - (?P<metric>.+?)(?P<bound>__MIN|__MAX)?$")


def exports(header: list[str]) -> dict[int, tuple[str, str]]:
    """Columns of a chart exported from W&B's pages, `run - metric`, as run and metric by index; none: another table."""
    found = {}
    bounds = False
    for index, name in enumerate(header[1:], 1):
        match = _EXPORT.match(name)
        if match is None:
            continue
        if match["bound"]:
            bounds = True
        else:
            found[index] = (match["run"], match["metric"])
    return found if bounds or (found and header[0] in STEPS) else {}


def read_rows(
    path: Path,
    header: list[str],
    exported: dict[int, tuple[str, str]],
    rows: Iterator[tuple[int, list[Any]]],
    problems: Problems,
    want: Callable[[str], bool],
) -> list[Logged]:
    """Runs of W&B's export: the first column is the chart's horizontal axis."""
    if header[0] not in STEPS:
        raise ImportProblem(
            f"{path}: expected W&B's export of a chart over Step, got one over {plain(header[0], 40)}: set the chart's "
            "x-axis to Step"
        )
    runs: dict[str, Columns] = {name: Columns() for name, _ in exported.values()}
    for line, row in rows:
        step = whole(row[0]) if row else None
        if step is None:
            problems.add(f":{line}", f"{header[0]} to be a whole number from 0", row[0] if row else "nothing")
            continue
        for index, (run, metric) in exported.items():
            value = number(row[index]) if index < len(row) and row[index] not in ("", None) else None
            if value is not None and want(metric):
                runs[run].add(metric, step, value)
    unused = tuple(plain(metric, 40) for _, metric in exported.values() if not want(metric))
    return [
        Logged(
            kind="wandb",
            source=str(path),
            key=f"{os.path.realpath(path)}#{name}",
            name=plain(name),
            columns=columns,
            unused=unused[:50],
            notes=(f"steps are the export's {header[0]}",),
            problems=problems.all() if index == 0 else (),
        )
        for index, (name, columns) in enumerate(runs.items())
    ]
