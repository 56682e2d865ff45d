"""Runs of experiment trackers: W&B, MLflow and trackio, from their files or by their clients.

W&B's format is known to the wandb package alone: offline runs (`run-<id>.wandb`) are read by `wandb leet inspect`,
online ones by its API (`wandb:entity/project`). MLflow's file store and trackio's database are read directly.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from isoflop.logs.files import ImportProblem, flat, head, json_object, number, open_bytes, plain, read_hparams, whole
from isoflop.logs.given import Given
from isoflop.logs.logged import Columns, Logged
from isoflop.lookup import one_line
from isoflop.record.lines import Problems, bounded_lines
from isoflop.record.run import Status

WANDB, MLFLOW = "wandb:", "mlflow:"
"""Prefixes of addresses."""
MAGIC = b":W&B"  # First bytes of an offline run's file of W&B
SQLITE = b"SQLite format 3\0"
MAX_RECORD = 1 << 26  # Bytes of a record as JSON; a longer one is passed over
MAX_PARAMS = 2000
PACKAGE = 'pip install "wandb>=0.31"'  # The first version whose `wandb leet inspect` prints JSON
PRIVATE = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
"""Environment of its command: it sends nothing anywhere."""
STATES: dict[object, Status] = {
    **dict.fromkeys((1, 2, "RUNNING", "SCHEDULED", "running"), "running"),
    **dict.fromkeys((3, "FINISHED", "finished"), "completed"),
    **dict.fromkeys((4, 5, "FAILED", "KILLED", "failed", "crashed", "killed"), "interrupted"),
}
"""A run's states, by number in MLflow's files and by name in the clients."""


def _run(kind: str, source: str, run_id: str, name: object, columns: Columns, **more: Any) -> Logged:
    """A tracker's run, known by its id wherever it is read."""
    name = str(name or run_id)
    return Logged(kind=kind, source=source, key=f"{kind}:{run_id}", name=name, columns=columns, **more)


def _read_each(address: str, tool: str, runs: list[tuple[str, Any]], read: Callable[[Any], Logged]) -> list[Logged]:
    """Read the runs that a tool's client gives; a broken one is a problem of the first that can be read."""
    found, failures = [], []
    for run_id, run in runs:
        try:
            found.append(read(run))
        except Exception as error:  # of a broken run; the others are imported
            failures.append(f"{address}: run {plain(run_id)}: {tool} gave {one_line(error)}")
    if not found:
        raise ImportProblem("; ".join(failures[:3]) or f"{address}: expected runs, got none")
    return [replace(found[0], problems=tuple(failures)), *found[1:]]


def _add(columns: Columns, step: int, time: float | None, values: Mapping[str, Any]) -> None:
    """Add what one call of a tracker's log() holds; nested names are joined by a slash, W&B joins them by points."""
    for key, value in flat(values).items():
        is_number = not isinstance(value, str) or value in ("NaN", "Infinity", "-Infinity")
        if is_number and (found := number(value)) is not None:
            name = key if columns.keeps(key) else key.replace(".", "/")
            columns.add(name, step, found, math.nan if time is None else time)


def _seconds(stamp: object) -> float | None:
    try:
        return datetime.fromisoformat(str(stamp).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def read_wandb_file(source: str, given: Given) -> list[Logged]:
    """Read an offline run: its file, or its folder."""
    path = min(Path(source).glob("run-*.wandb"), default=Path(source))
    if path.is_dir():
        raise ImportProblem(f"{path}: expected an offline run of W&B (run-<id>.wandb), got none")
    problems = Problems(str(path))
    run: dict[str, Any] = {}
    config: dict[str, Any] = {}
    codes: list[object] = []
    columns = Columns(given.named)
    for kind, record in _records(path, problems):
        if kind == "history":
            item = _object(record, "item")
            _add(columns, whole(_object(record, "step").get("num", 0)) or 0, number(item.get("_timestamp")), item)
        elif kind == "run":
            run.update(record)
            config.update(_object(record, "config", "update"))
        elif kind == "config":
            config.update(_object(record, "update"))
        elif kind == "exit":
            codes.append(record.get("exit_code", 0))
    if not run and not columns:
        raise ImportProblem("; ".join(problems.all()) or f"{path}: expected a run of W&B, got a file without one")
    logged = _of_wandb(str(path), str(run.get("run_id") or path.stem), run.get("display_name"), config, columns)
    status: Status = "completed" if codes[-1:] == [0] else "interrupted"
    return [replace(logged, status=status, created=_seconds(run.get("start_time")), problems=problems.all())]


def _of_wandb(source: str, run_id: str, name: object, config: dict[str, Any], columns: Columns) -> Logged:
    config.pop("_wandb", None)
    columns.pop("_step", None)
    model = config if "model_type" in config else None
    return _run("wandb", source, run_id, name, columns, settings=flat(config), index="calls", config=model)


def _records(path: Path, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and content of each record, as W&B's own command prints them; its complaints are problems."""
    if find_spec("wandb") is None:
        raise ImportProblem(f"{path}: a run of W&B is read by wandb, which is not installed: {PACKAGE}")
    with tempfile.TemporaryDirectory(prefix="isoflop-") as folder, tempfile.TemporaryFile() as complaints:
        file = path if path.suffix == ".wandb" else shutil.copyfile(path, Path(folder) / "run-import.wandb")
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, env={**os.environ, **PRIVATE}
        ) as process:
            assert process.stdout is not None
            try:
                for index, line in enumerate(bounded_lines(process.stdout, MAX_RECORD)):
                    try:
                        record = json.loads(line or b"")
                        yield record["type"], _object(record, record["type"])
                    except (ValueError, KeyError, TypeError, RecursionError) as error:
                        problems.add("a record of W&B", one_line(error), at=f" (record {index})")
            finally:
                process.kill()
        complaints.seek(0)
        for complaint in complaints.read(1 << 16).decode("utf-8", "replace").splitlines():
            if "No such option" in complaint or "No such command" in complaint:
                raise ImportProblem(f"{path}: this wandb can't read it: {PACKAGE}")
            if complaint.strip():
                problems.add("a whole run of W&B", complaint.removeprefix("wandb leet inspect: "))


def _object(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    value: Any = record
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, dict) else {}


def read_wandb(address: str, given: Given) -> list[Logged]:
    """Read a run, or all runs of a project, by W&B's API."""
    parts = address.removeprefix(WANDB).strip("/").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise ImportProblem(f"{address}: expected wandb:entity/project or wandb:entity/project/run")
    try:
        import wandb
    except ImportError:
        raise ImportProblem(f"{address}: wandb is not installed: pip install wandb, then wandb login") from None
    try:
        api = wandb.Api()
        runs = [api.run("/".join(parts))] if len(parts) == 3 else list(api.runs("/".join(parts)))
    except Exception as error:  # whatever its client raises: no network, no login, no such run
        raise ImportProblem(f"{address}: W&B gave {one_line(error)}; is `wandb login` done?") from None

    def fetched(run: Any) -> Logged:
        columns = Columns(given.named)
        for row in run.scan_history(page_size=10_000):  # every row; history() is a sample of 500
            _add(columns, whole(row.get("_step")) or 0, number(row.get("_timestamp")), row)
        place = f"{WANDB}{parts[0]}/{parts[1]}/{run.id}"
        logged = _of_wandb(place, str(run.id), getattr(run, "name", ""), dict(run.config), columns)
        created = _seconds(getattr(run, "created_at", None))
        return replace(logged, status=STATES.get(str(run.state), "interrupted"), created=created)

    return _read_each(address, "W&B", [(str(getattr(run, "id", "?")), run) for run in runs], fetched)


def is_mlflow_run(folder: Path) -> bool:
    """True for a run's folder of the file store."""
    return (folder / "meta.yaml").is_file() and (folder / "metrics").is_dir()


def read_mlflow_folder(source: str, given: Given) -> list[Logged]:
    """Read a run's folder of the file store: `meta.yaml`, `metrics/`, `params/`, `tags/`."""
    folder = Path(source)
    if not is_mlflow_run(folder):
        raise ImportProblem(f"{folder}: expected a run of MLflow's file store (meta.yaml and metrics/), got none")
    told: list[str] = []
    meta = read_hparams(folder / "meta.yaml", told) or {}
    columns = Columns(given.named)
    for name, file in _files(folder / "metrics"):
        if columns.keeps(name):
            problems = Problems(str(file))
            for line, raw in enumerate(_lines(file, problems), 1):
                fields = (raw or b"-").split()  # milliseconds, value, step
                time, value = (*map(number, fields[:2]), None, None)[:2]
                step = whole(fields[2].decode("ascii", "replace")) if fields[2:] else 0
                if step is not None and value is not None and raw is not None and raw.endswith(b"\n"):
                    columns.add(name, step, value, math.nan if time is None else time / 1000)
                elif fields:
                    problems.add("`milliseconds value step`", raw or "a longer line", at=f":{line}")
            told.extend(problems.all())
    if meta.get("lifecycle_stage") == "deleted":
        raise ImportProblem(f"{folder}: a run that was deleted in MLflow: left out")
    run_id = str(meta.get("run_id") or folder.name)
    called = meta.get("run_name") or _texts(folder / "tags").get("mlflow.runName")
    return [_of_mlflow(str(folder), run_id, called, columns, _texts(folder / "params"), meta, problems=tuple(told))]


def _of_mlflow(
    source: str, run_id: str, name: object, columns: Columns, params: Any, meta: Mapping[str, Any], **more: Any
) -> Logged:
    start, state = number(meta.get("start_time")), meta.get("status")
    status = STATES.get(state) if isinstance(state, (int, str)) else None
    created = None if start is None else start / 1000
    return _run("mlflow", source, run_id, name, columns, settings=params, status=status, created=created, **more)


def _lines(path: Path, problems: Problems) -> Iterator[bytes | None]:
    try:
        with open_bytes(path) as stream:
            yield from bounded_lines(stream)
    except ImportProblem as problem:
        problems.add("a metric's file that can be read", str(problem), at="")


def _files(folder: Path) -> list[tuple[str, Path]]:
    """The files below a folder by their paths in it."""
    try:
        return [(one.relative_to(folder).as_posix(), one) for one in sorted(folder.rglob("*")) if one.is_file()]
    except OSError:
        return []


def _texts(folder: Path) -> dict[str, str]:
    """Parameters or tags: a file each."""
    return {name: head(file, 1000).decode("utf-8", "replace").strip() for name, file in _files(folder)[:MAX_PARAMS]}


def read_mlflow(text: str, given: Given) -> list[Logged]:
    """Read all runs of a tracking server, a SQLite file, or one experiment of a server, by MLflow's client."""
    uri, _, only = text.removeprefix(MLFLOW).partition("#")
    if not text.startswith(MLFLOW):
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
        raise ImportProblem(f"{text}: MLflow gave {one_line(error)}") from None

    def fetched(run: Any) -> Logged:
        columns, info = Columns(given.named), run.info
        for name in filter(columns.keeps, run.data.metrics):
            history = client.get_metric_history(info.run_id, name)
            for metric in sorted(history, key=lambda one: one.timestamp):  # a stable sort: as logged
                columns.add(name, metric.step, metric.value, metric.timestamp / 1000)
        meta = {"start_time": info.start_time, "status": info.status}
        place = f"{text} run {info.run_id}"
        return _of_mlflow(place, info.run_id, info.run_name, columns, dict(run.data.params), meta)

    return _read_each(text, "MLflow", runs, fetched)


def _pages(search: Any, *arguments: Any) -> Iterator[Any]:
    page = search(*arguments, page_token=None)
    yield from page
    while page.token:
        page = search(*arguments, page_token=page.token)
        yield from page


def _database(path: str | Path) -> Any:
    return closing(sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True))


def is_trackio(path: Path) -> bool:
    """True for a database with trackio's tables."""
    try:
        with _database(path) as database:
            return {"run_name", "step", "metrics"} <= {row[1] for row in database.execute("PRAGMA table_info(metrics)")}
    except sqlite3.Error:
        return False


def read_trackio(source: str, given: Given) -> list[Logged]:
    """Read a project's runs: `metrics` (run_name, step, timestamp, JSON) and `configs` (run_name, JSON)."""
    problems = Problems(source)
    runs: dict[str, Columns] = {}
    configs: dict[str, dict[str, Any]] = {}
    try:
        with _database(source) as database:
            tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            query = "SELECT run_name, config FROM configs"
            for run, text in database.execute(query) if "configs" in tables else ():
                configs[str(run)] = flat(json_object(text))
            query = "SELECT run_name, step, timestamp, metrics FROM metrics ORDER BY id"
            for index, (run, step, stamp, text) in enumerate(database.execute(query)):
                columns = runs.setdefault(str(run), Columns(given.named))
                at, cells = whole(step), json_object(text)
                if at is None or not cells:
                    problems.add("a row with a step and a JSON object", text, at=f" (row {index})")
                else:
                    _add(columns, at, _seconds(stamp), cells)
    except sqlite3.Error as error:
        raise ImportProblem(f"{source}: expected trackio's database, got {one_line(error)}") from None
    if not runs:
        raise ImportProblem("; ".join(problems.all()) or f"{source}: expected runs, got none")
    place, told = os.path.realpath(source), problems.all()
    found = [
        _run("trackio", source, f"{place}#{run}", plain(run), columns, settings=configs.get(run, {}), index="calls")
        for run, columns in runs.items()
    ]
    return [replace(found[0], problems=told), *found[1:]]
