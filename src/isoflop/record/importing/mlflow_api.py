"""MLflow's runs through its client, where it is installed: a database, or `mlflow:<tracking URI>[#experiment]`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .files import whole
from .logged import Columns, Logged
from .mlflow_files import status_of
from .names import wanted
from .problem import ImportProblem, plain, why

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
