"""MLflow's runs: of its file store (`mlruns/<experiment>/<run>/`) read directly, else by its client."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from isoflop.logs.files import open_bytes, read_yaml
from isoflop.logs.logged import Columns, ImportProblem, Logged, number, read_each, whole, why
from isoflop.logs.rows import NO_OPTIONS, Options
from isoflop.record.lines import Problems, bounded_lines
from isoflop.record.run import Status

PREFIX = "mlflow:"
SQLITE = b"SQLite format 3\0"
STATES: dict[object, Status] = {
    **dict.fromkeys((1, 2, "RUNNING", "SCHEDULED"), "running"),
    **dict.fromkeys((3, "FINISHED"), "completed"),
    **dict.fromkeys((4, 5, "FAILED", "KILLED"), "interrupted"),
}
"""A run's states, by number in files and by name in the client."""
MAX_PARAMS = 2000


def is_run(folder: Path) -> bool:
    """True for a run's folder of the file store."""
    return (folder / "meta.yaml").is_file() and (folder / "metrics").is_dir()


def read_folder(source: str | os.PathLike[str], options: Options = NO_OPTIONS) -> list[Logged]:
    """Read a run's folder of the file store: `meta.yaml`, `metrics/`, `params/`, `tags/`.

    Raises:
        ImportProblem: it is none.
    """
    folder = Path(source)
    if not is_run(folder):
        raise ImportProblem(f"{folder}: expected a run of MLflow's file store (meta.yaml and metrics/), got none")
    told: list[str] = []
    meta: dict[str, Any] = {}
    try:
        meta = read_yaml(folder / "meta.yaml")
    except ImportProblem as problem:
        told.append(str(problem))
    columns = Columns(options.named)
    for name, file in _files(folder / "metrics"):
        if columns.keeps(name):
            problems = Problems(str(file))
            _read_metric(file, name, columns, problems)
            told.extend(problems.all())
    run_id = str(meta.get("run_id") or folder.name)
    name = meta.get("run_name") or _texts(folder / "tags").get("mlflow.runName") or run_id
    logged = _logged(str(folder), run_id, name, columns, _texts(folder / "params"), meta.get("status"))
    start = number(meta.get("start_time"))
    return [replace(logged, created=None if start is None else start / 1000, problems=tuple(told))]


def _read_metric(path: Path, name: str, columns: Columns, problems: Problems) -> None:
    """Lines `milliseconds value step`."""
    try:
        with open_bytes(path) as stream:
            for line, raw in enumerate(bounded_lines(stream), 1):
                fields = (raw or b"-").split()
                if not fields:
                    continue
                time, value = number(fields[0]), number(fields[1]) if fields[1:] else None
                step = whole(fields[2].decode("ascii", "replace")) if fields[2:] else 0
                if step is None or value is None or raw is None or not raw.endswith(b"\n"):
                    problems.add("`milliseconds value step`", raw or "a longer line", at=f":{line}")
                else:
                    columns.add(name, step, value, math.nan if time is None else time / 1000)
    except ImportProblem as problem:
        problems.add("a metric's file that can be read", str(problem), at="")


def _files(folder: Path) -> list[tuple[str, Path]]:
    """The files below a folder by their paths in it."""
    try:
        return [(one.relative_to(folder).as_posix(), one) for one in sorted(folder.rglob("*")) if one.is_file()]
    except OSError:
        return []


def _texts(folder: Path) -> dict[str, Any]:
    """Parameters or tags: a file each."""
    found: dict[str, Any] = {}
    for name, file in _files(folder)[:MAX_PARAMS]:
        try:
            with open_bytes(file) as stream:
                found[name] = stream.read(1000).decode("utf-8", "replace").strip()
        except ImportProblem:
            continue
    return found


def _logged(source: str, run_id: str, name: object, columns: Columns, settings: dict[str, Any], state: Any) -> Logged:
    return Logged(
        kind="mlflow",
        source=source,
        key=f"mlflow:{run_id}",
        name=str(name),
        columns=columns,
        settings=settings,
        status=STATES.get(state) if isinstance(state, (int, str)) else None,
    )


def read(source: str | os.PathLike[str], options: Options = NO_OPTIONS) -> list[Logged]:
    """Read all runs of a tracking server, a database file, or one experiment of it, by MLflow's client.

    Args:
        source: `mlflow:` and a tracking URI, with `#experiment` if only one is meant; or a SQLite file.
        options: what the user says of its metrics.

    Raises:
        ImportProblem: mlflow is not installed, can't reach it, or there is no run.
    """
    text = os.fspath(source)
    uri, _, only = text.removeprefix(PREFIX).partition("#")
    if not text.startswith(PREFIX):
        uri, only = f"sqlite:///{os.path.abspath(text)}", ""
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise ImportProblem(f"{text}: mlflow is not installed: pip install mlflow") from None
    try:
        client = MlflowClient(tracking_uri=uri)
        experiments = [one.experiment_id for one in _pages(client.search_experiments) if only in ("", one.name)]
        runs = [(str(run.info.run_id), run) for one in experiments for run in _pages(client.search_runs, [one])]
    except Exception as error:  # whatever its client raises: no server, another schema, no SQLAlchemy
        raise ImportProblem(f"{text}: MLflow gave {why(error)}") from None
    return read_each(text, "MLflow", runs, lambda run: _fetched(client, run, text, options))


def _pages(search: Any, *arguments: Any) -> list[Any]:
    found, token = [], None
    while True:
        page = search(*arguments, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found


def _fetched(client: Any, run: Any, source: str, options: Options) -> Logged:
    columns = Columns(options.named)
    for name in filter(columns.keeps, run.data.metrics):
        history = client.get_metric_history(run.info.run_id, name)
        for metric in sorted(history, key=lambda one: one.timestamp):  # a stable sort: as logged
            columns.add(name, metric.step, metric.value, metric.timestamp / 1000)
    info = run.info
    logged = _logged(
        f"{source} run {info.run_id}",
        info.run_id,
        info.run_name or info.run_id,
        columns,
        dict(run.data.params),
        info.status,
    )
    return replace(logged, created=None if info.start_time is None else info.start_time / 1000)
