"""MLflow's file store, read directly: `mlruns/<experiment>/<run>/{meta.yaml, metrics/, params/, tags/}`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isoflop.record.run import Status

from .files import MAX_LINE, number, open_bytes, read_yaml, whole
from .logged import Columns, Logged
from .names import wanted
from .problem import ImportProblem, Problems, plain

STATES: dict[object, Status] = {
    1: "running",
    2: "running",
    3: "completed",
    4: "interrupted",
    5: "interrupted",
    "RUNNING": "running",
    "SCHEDULED": "running",
    "FINISHED": "completed",
    "FAILED": "interrupted",
    "KILLED": "interrupted",
}
"""A run's states, by number in files and by name in the client."""
MAX_PARAMS = 2000


def is_run(folder: Path) -> bool:
    """Whether a folder is a run of the file store."""
    return (folder / "meta.yaml").is_file() and (folder / "metrics").is_dir()


def read(path: str | os.PathLike[str], want: Callable[[str], bool] = wanted) -> list[Logged]:
    """Read a run's folder.

    Raises:
        ImportProblem: it is none, or its meta.yaml can't be read.
    """
    folder = Path(path)
    if not is_run(folder):
        raise ImportProblem(f"{folder}: expected a run of MLflow's file store (meta.yaml and metrics/), got none")
    told: list[str] = []
    try:
        meta = read_yaml(folder / "meta.yaml")
    except ImportProblem as problem:
        told.append(str(problem))
        meta = {}
    columns = Columns()
    unused: list[str] = []
    metrics = folder / "metrics"
    for file in sorted(one for one in metrics.rglob("*") if one.is_file()):
        name = file.relative_to(metrics).as_posix()
        if want(name):
            problems = Problems(str(file))
            _metric(file, name, columns, problems)
            told.extend(problems.all())
        elif len(unused) < 200:
            unused.append(plain(name, 40))
    settings = _texts(folder / "params")
    run_id = str(meta.get("run_id") or folder.name)
    start = number(meta.get("start_time"))
    return [
        Logged(
            kind="mlflow",
            source=str(folder),
            key=f"mlflow:{run_id}",
            name=plain(str(meta.get("run_name") or _texts(folder / "tags").get("mlflow.runName") or run_id)),
            columns=columns,
            settings=settings,
            planned_steps=whole(settings.get("max_steps")) or None,
            status=status_of(meta.get("status")),
            created=None if start is None else start / 1000,
            unused=tuple(unused),
            problems=tuple(told),
        )
    ]


def status_of(value: object) -> Status | None:
    """MLflow's state of a run; None where it does not say."""
    return STATES.get(value) if isinstance(value, (int, str)) else None


def _metric(path: Path, name: str, columns: Columns, problems: Problems) -> None:
    """Lines `milliseconds value step`."""
    try:
        with open_bytes(path) as stream:
            for line, raw in enumerate(iter(lambda: stream.readline(MAX_LINE), b""), 1):
                fields = raw.split()
                if not fields:
                    continue
                time, value = number(fields[0]), number(fields[1]) if fields[1:] else None
                step = whole(fields[2].decode("ascii", "replace")) if fields[2:] else 0
                if step is None or value is None or not raw.endswith(b"\n"):
                    problems.add(f":{line}", "`milliseconds value step`", raw)
                    continue
                columns.add(name, step, value, float("nan") if time is None else time / 1000)
    except (ImportProblem, OSError) as problem:
        problems.add("", "a metric's file that can be read", str(problem))


def _texts(folder: Path) -> dict[str, Any]:
    """Parameters or tags: a file each."""
    found: dict[str, Any] = {}
    try:
        files = sorted(one for one in folder.rglob("*") if one.is_file())[:MAX_PARAMS]
    except OSError:
        return found
    for file in files:
        try:
            with open_bytes(file) as stream:
                found[file.relative_to(folder).as_posix()] = stream.read(1000).decode("utf-8", "replace").strip()
        except (ImportProblem, OSError):
            continue
    return found
