"""MLflow's runs through its client, where it is installed: a database, or `mlflow:<tracking URI>[#experiment]`.

MLflow's file store, read directly: `mlruns/<experiment>/<run>/{meta.yaml, metrics/, params/, tags/}`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from isoflop.logs.files import MAX_LINE, number, open_bytes, read_yaml, whole
from isoflop.logs.logged import Columns, ImportProblem, Logged, Problems, plain, wanted, why
from isoflop.record.run import Status

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


def mlflow_files_read(path: str | os.PathLike[str], want: Callable[[str], bool] = wanted) -> list[Logged]:
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


PREFIX = "mlflow:"
SQLITE = b"SQLite format 3\0"


def read(address: str | os.PathLike[str], want: Callable[[str], bool] = wanted, client: Any = None) -> list[Logged]:
    """Read all runs of a tracking server, a database file, or one experiment of it.

    Args:
        address: `mlflow:` and a tracking URI, with `#experiment` if only one is meant; or a SQLite file.
        want: which columns are kept.
        client: `mlflow.tracking.MlflowClient`, or what does as well.

    Raises:
        ImportProblem: mlflow is not installed, can't reach it, or there is no run.
    """
    text = os.fspath(address)
    uri, _, wanted_experiment = text.removeprefix(PREFIX).partition("#")
    if not text.startswith(PREFIX):
        uri, wanted_experiment = f"sqlite:///{os.path.abspath(text)}", ""
    if client is None:
        client = _client(text, uri)
    found: list[Logged] = []
    failures: list[str] = []
    try:
        experiments = [one for one in _pages(client.search_experiments) if wanted_experiment in ("", one.name)]
        for experiment in experiments:
            for run in _pages(lambda ids=[experiment.experiment_id], **page: client.search_runs(ids, **page)):
                try:
                    found.append(_logged(client, run, text, want))
                except Exception as error:  # of a broken run; the others are imported
                    failures.append(f"{text}: run {plain(str(run.info.run_id))}: MLflow gave {why(error)}")
    except Exception as error:  # whatever its client raises: no server, another schema, no SQLAlchemy
        raise ImportProblem(f"{text}: MLflow gave {why(error)}") from None
    if not found:
        raise ImportProblem("; ".join(failures[:3]) or f"{text}: expected runs, got none")
    return [replace(found[0], problems=(*found[0].problems, *failures)), *found[1:]]


def _client(text: str, uri: str) -> Any:
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise ImportProblem(f"{text}: mlflow is not installed: pip install mlflow") from None
    try:
        return MlflowClient(tracking_uri=uri)
    except Exception as error:  # an address of no kind it knows
        raise ImportProblem(f"{text}: MLflow gave {why(error)}") from None


def _pages(search: Any) -> list[Any]:
    found, token = [], None
    while True:
        page = search(page_token=token)
        found.extend(page)
        token = getattr(page, "token", None)
        if not token:
            return found


def _logged(client: Any, run: Any, source: str, want: Callable[[str], bool]) -> Logged:
    columns = Columns()
    for name in run.data.metrics:
        if want(name):
            history = client.get_metric_history(run.info.run_id, name)
            for metric in sorted(history, key=lambda one: one.timestamp):  # a stable sort: as logged
                columns.add(name, metric.step, metric.value, metric.timestamp / 1000)
    settings = dict(run.data.params)
    return Logged(
        kind="mlflow",
        source=f"{source} run {run.info.run_id}",
        key=f"mlflow:{run.info.run_id}",
        name=plain(str(run.info.run_name or run.info.run_id)),
        columns=columns,
        settings=settings,
        planned_steps=whole(settings.get("max_steps")) or None,
        status=status_of(run.info.status),
        created=None if run.info.start_time is None else run.info.start_time / 1000,
        unused=tuple(plain(name, 40) for name in run.data.metrics if not want(name))[:50],
    )
