"""W&B's runs: offline ones (`run-<id>.wandb`) by `wandb leet inspect`, online ones by its API (`wandb:entity/project`).

Both need the wandb package, which alone knows its format. A chart's CSV export is a table (`isoflop.logs.table`).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from isoflop.logs.files import flat
from isoflop.logs.logged import Columns, ImportProblem, Logged, number, read_each, whole, why
from isoflop.logs.rows import NO_OPTIONS, Options
from isoflop.record.lines import Problems, bounded_lines
from isoflop.record.run import Status

PREFIX = "wandb:"
MAGIC = b":W&B"
"""First bytes of an offline run's file."""
MAX_RECORD = 1 << 26
"""Bytes of a record as JSON; a longer one is passed over."""
PACKAGE = 'pip install "wandb>=0.31"'
"""The first version whose `wandb leet inspect` prints JSON."""
PRIVATE = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
"""Environment of its command: it sends nothing anywhere."""


def read_offline(source: str | os.PathLike[str], options: Options = NO_OPTIONS) -> list[Logged]:
    """Read an offline run: its file, or its folder.

    Raises:
        ImportProblem: it can't be read, or is none; or wandb is not installed.
    """
    path = Path(source)
    if path.is_dir():
        path = min(path.glob("run-*.wandb"), default=path)
    if path.is_dir():
        raise ImportProblem(f"{path}: expected an offline run of W&B (run-<id>.wandb), got none")
    problems = Problems(str(path))
    run: dict[str, Any] = {}
    config: dict[str, Any] = {}
    codes: list[object] = []

    def history() -> Iterator[dict[str, Any]]:
        for kind, record in _records(path, problems):
            if kind == "history":
                yield {"_step": _object(record, "step").get("num", 0), **_object(record, "item")}
            elif kind == "run":
                run.update(record)
                config.update(_object(record, "config", "update"))
            elif kind == "config":
                config.update(_object(record, "update"))
            elif kind == "exit":
                codes.append(record.get("exit_code", 0))

    columns = _columns(history(), options)
    if not run and not columns:
        raise ImportProblem("; ".join(problems.all()) or f"{path}: expected a run of W&B, got a file without one")
    run_id = str(run.get("run_id") or path.stem)
    logged = _logged(str(path), run_id, run.get("display_name"), config, columns)
    status: Status = "completed" if codes[-1:] == [0] else "interrupted"
    return [replace(logged, status=status, created=_time(run.get("start_time")), problems=problems.all())]


def _records(path: Path, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and content of each record, as W&B's own command prints them; its complaints are problems."""
    if find_spec("wandb") is None:
        raise ImportProblem(f"{path}: a run of W&B is read by wandb, which is not installed: {PACKAGE}")
    with _with_suffix(path) as file, tempfile.TemporaryFile() as complaints:
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
                        problems.add("a record of W&B", why(error), at=f" (record {index})")
            finally:
                process.kill()
        complaints.seek(0)
        for complaint in complaints.read(1 << 16).decode("utf-8", "replace").splitlines():
            if "No such option" in complaint or "No such command" in complaint:
                raise ImportProblem(f"{path}: this wandb can't read it: {PACKAGE}")
            if complaint.strip():
                problems.add("a whole run of W&B", complaint.removeprefix("wandb leet inspect: "))


@contextmanager
def _with_suffix(path: Path) -> Iterator[Path]:
    """The file under a name that W&B's command takes."""
    if path.suffix == ".wandb":
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="isoflop-") as folder:
        yield Path(shutil.copyfile(path, Path(folder) / "run-import.wandb"))


def _object(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    value: Any = record
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, dict) else {}


def read(source: str | os.PathLike[str], options: Options = NO_OPTIONS) -> list[Logged]:
    """Read a run, or all runs of a project, by W&B's API.

    Args:
        source: `wandb:entity/project` or `wandb:entity/project/run`.
        options: what the user says of its keys.

    Raises:
        ImportProblem: wandb is not installed, not logged in, or knows no such run.
    """
    address = os.fspath(source)
    parts = address.removeprefix(PREFIX).strip("/").split("/")
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
        raise ImportProblem(f"{address}: W&B gave {why(error)}; is `wandb login` done?") from None
    project = f"{PREFIX}{parts[0]}/{parts[1]}"
    ids = [(str(getattr(run, "id", "?")), run) for run in runs]
    return read_each(address, "W&B", ids, lambda run: _fetched(run, project, options))


def _fetched(run: Any, project: str, options: Options) -> Logged:
    columns = _columns(run.scan_history(page_size=10_000), options)  # every row; history() is a sample of 500
    logged = _logged(f"{project}/{run.id}", str(run.id), getattr(run, "name", ""), dict(run.config), columns)
    states: dict[str, Status] = {"finished": "completed", "running": "running"}
    status = states.get(str(run.state), "interrupted")
    return replace(logged, status=status, created=_time(getattr(run, "created_at", None)))


def _columns(rows: Iterable[Mapping[str, Any]], options: Options) -> Columns:
    """The columns of a history by W&B's own step, the trainer's steps among them."""
    columns = Columns(options.named)
    for row in rows:
        at = whole(row.get("_step")) or 0
        time = number(row.get("_timestamp"))
        for key, value in row.items():
            if key == "_step":
                continue
            name = _column(str(key), columns)
            is_number = not isinstance(value, str) or value in ("NaN", "Infinity", "-Infinity")
            if is_number and (found := number(value)) is not None:
                columns.add(name, at, found, math.nan if time is None else time)
    return columns


def _logged(source: str, run_id: str, name: object, config: dict[str, Any], columns: Columns) -> Logged:
    config.pop("_wandb", None)
    return Logged(
        kind="wandb",
        source=source,
        key=f"wandb:{run_id}",
        name=str(name or run_id),
        columns=columns,
        index="calls",
        settings=flat(config),
        config=config if "model_type" in config else None,
    )


def _column(key: str, columns: Columns) -> str:
    """The column that a key is: W&B joins nested names by points (`train.loss`)."""
    return key if columns.keeps(key) else key.replace(".", "/")


def _time(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
