"""trackio's database of a project: `metrics` (run_name, step, timestamp, JSON) and `configs` (run_name, JSON)."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from isoflop.logs.files import flat
from isoflop.logs.logged import Columns, ImportProblem, Logged, number, plain, whole, why
from isoflop.logs.rows import NO_OPTIONS, Options, json_cells
from isoflop.record.lines import Problems


def is_database(path: Path) -> bool:
    """True for a database with trackio's tables."""
    try:
        with closing(_opened(path)) as database:
            return {"run_name", "step", "metrics"} <= {row[1] for row in database.execute("PRAGMA table_info(metrics)")}
    except sqlite3.Error:
        return False


def _opened(path: str | os.PathLike[str]) -> sqlite3.Connection:
    return sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True)


def read(source: str | os.PathLike[str], options: Options = NO_OPTIONS) -> list[Logged]:
    """Read all runs of a project's database; it is opened for reading only.

    Raises:
        ImportProblem: it is no database of trackio's, or broken.
    """
    problems = Problems(os.fspath(source))
    runs: dict[str, Columns] = {}
    configs: dict[str, dict[str, Any]] = {}
    try:
        with closing(_opened(source)) as database:
            tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "configs" in tables:
                configs = {
                    str(run): _object(text) for run, text in database.execute("SELECT run_name, config FROM configs")
                }
            query = "SELECT run_name, step, timestamp, metrics FROM metrics ORDER BY id"
            for index, (run, step, stamp, text) in enumerate(database.execute(query)):
                columns = runs.setdefault(str(run), Columns(options.named))
                at, time = whole(step), _seconds(stamp)
                if at is None or not (cells := _object(text)):
                    problems.add("a row with a step and a JSON object", text, at=f" (row {index})")
                    continue
                for name, value in json_cells(cells).items():
                    if (found := number(value)) is not None:
                        columns.add(name, at, found, time)
    except sqlite3.Error as error:
        raise ImportProblem(f"{source}: expected trackio's database, got {why(error)}") from None
    if not runs:
        raise ImportProblem("; ".join(problems.all()) or f"{source}: expected runs, got none")
    return [
        Logged(
            kind="trackio",
            source=os.fspath(source),
            key=f"{os.path.realpath(source)}#{run}",
            name=plain(run),
            columns=columns,
            index="calls",
            settings=flat(configs.get(run)),
            problems=problems.all() if index == 0 else (),
        )
        for index, (run, columns) in enumerate(runs.items())
    ]


def _object(text: object) -> dict[str, Any]:
    try:
        value = json.loads(text) if isinstance(text, (str, bytes)) else None
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def _seconds(stamp: object) -> float:
    try:
        return datetime.fromisoformat(str(stamp).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return math.nan
