"""W&B's runs: offline ones (`run-<id>.wandb`) by `wandb leet inspect`, online ones by its API (`wandb:entity/project`).

Both need the wandb package, which alone knows its format.

A chart's CSV export from W&B's pages: columns `run - metric` over Step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from isoflop.logs.files import flat, number, whole
from isoflop.logs.logged import STEPS, Columns, ImportProblem, Logged, Problems, plain, wanted, why
from isoflop.record.run import Status

PREFIX = "wandb:"
MAGIC = b":W&B"
MAX_RECORD = 1 << 26
"""Bytes of a record as JSON; a longer one is passed over."""
PACKAGE = 'pip install "wandb>=0.31"'
"""The first version whose `wandb leet inspect` prints JSON."""
PRIVATE = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
"""Environment of its command: it sends nothing anywhere."""


def is_datastore(head: bytes) -> bool:
    """By a file's first bytes."""
    return head.startswith(MAGIC)


def read_offline(path: str | os.PathLike[str], want: Callable[[str], bool] = wanted) -> list[Logged]:
    """Read an offline run: its file, or its folder.

    Raises:
        ImportProblem: it can't be read, or is none; or wandb is not installed.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("run-*.wandb"))
        if not found:
            raise ImportProblem(f"{path}: expected an offline run of W&B (run-<id>.wandb), got none")
        path = found[0]
    problems = Problems(str(path))
    config: dict[str, Any] = {}
    run: dict[str, Any] = {}
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

    rows = _Rows(history(), want)
    if not run and not rows.columns:
        raise ImportProblem("; ".join(problems.all()) or f"{path}: expected a run of W&B, got a file without one")
    logged = rows.logged(
        source=str(path),
        run_id=str(run.get("run_id") or path.stem),
        name=str(run.get("display_name") or run.get("run_id") or path.stem),
        config=config,
    )
    status: Status = "completed" if codes[-1:] == [0] else "interrupted"
    return [replace(logged, status=status, created=_time(run.get("start_time")), problems=problems.all())]


def _records(path: Path, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and content of each record, as W&B's own command prints them; what it complains of is told."""
    if find_spec("wandb") is None:
        raise ImportProblem(f"{path}: a run of W&B is read by wandb, which is not installed: {PACKAGE}")
    with _named(path) as file, tempfile.TemporaryFile() as complaints:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, env={**os.environ, **PRIVATE}
        ) as process:
            assert process.stdout is not None
            try:
                for index, line in enumerate(_lines(process.stdout)):
                    try:
                        record = json.loads(line)
                        yield record["type"], _object(record, record["type"])
                    except (ValueError, KeyError, TypeError, RecursionError) as error:
                        problems.add(f" (record {index})", "a record of W&B", why(error))
            finally:
                process.kill()
        complaints.seek(0)
        for said in complaints.read(1 << 16).decode("utf-8", "replace").splitlines():
            if "No such option" in said or "No such command" in said:
                raise ImportProblem(f"{path}: this wandb can't read it: {PACKAGE}")
            if said.strip():
                problems.add("", "a whole run of W&B", said.removeprefix("wandb leet inspect: "))


@contextmanager
def _named(path: Path) -> Iterator[Path]:
    """The file under a name that W&B's command takes."""
    if path.suffix == ".wandb":
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="isoflop-") as folder:
        yield Path(shutil.copyfile(path, Path(folder) / "run-import.wandb"))


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    while line := stream.readline(MAX_RECORD):
        yield line
        while not line.endswith(b"\n") and (line := stream.readline(MAX_RECORD)):
            """The rest of a line that is too long: what was yielded is no JSON, which is told."""


def _object(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    value: Any = record
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, dict) else {}


def read(address: str, want: Callable[[str], bool] = wanted, api: Any = None) -> list[Logged]:
    """Read a run, or all runs of a project.

    Args:
        address: `wandb:entity/project` or `wandb:entity/project/run`.
        want: which columns are kept.
        api: `wandb.Api()`, or what does as well.

    Raises:
        ImportProblem: wandb is not installed, not logged in, or knows no such run.
    """
    parts = address.removeprefix(PREFIX).strip("/").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise ImportProblem(f"{address}: expected wandb:entity/project or wandb:entity/project/run")
    if api is None:
        api = _api(address)
    try:
        runs = [api.run("/".join(parts))] if len(parts) == 3 else list(api.runs("/".join(parts)))
    except Exception as error:  # whatever its client raises: no network, no login, no such run
        raise ImportProblem(f"{address}: W&B gave {why(error)}") from None
    found, failures = [], []
    for run in runs:
        try:
            found.append(_logged(run, parts, want))
        except Exception as error:  # of a broken run; the others are imported
            failures.append(f"{address}: run {plain(str(getattr(run, 'id', '?')))}: W&B gave {why(error)}")
    if not found:
        raise ImportProblem("; ".join(failures[:3]) or f"{address}: expected runs, got none")
    return [replace(found[0], problems=(*found[0].problems, *failures)), *found[1:]]


def _api(address: str) -> Any:
    try:
        import wandb
    except ImportError:
        raise ImportProblem(f"{address}: wandb is not installed: pip install wandb, then wandb login") from None
    try:
        return wandb.Api()
    except Exception as error:  # no login
        raise ImportProblem(f"{address}: W&B gave {why(error)}; run `wandb login` first") from None


def _logged(run: Any, parts: list[str], want: Callable[[str], bool]) -> Logged:
    logged = _Rows(
        run.scan_history(page_size=10_000), want
    ).logged(  # every row; history() is a sample of 500
        source=f"{PREFIX}{'/'.join(parts[:2])}/{run.id}",
        run_id=str(run.id),
        name=str(getattr(run, "name", "") or run.id),
        config=dict(run.config),
    )
    states: dict[str, Status] = {"finished": "completed", "running": "running"}
    status = states.get(str(run.state), "interrupted")
    return replace(logged, status=status, created=_time(getattr(run, "created_at", None)))


class _Rows:
    """The rows of a run's history, as columns."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], want: Callable[[str], bool]) -> None:
        self.columns = Columns()
        self._steps = StepOf()
        self._unused: set[str] = set()
        for row in rows:
            step = self._steps.of(row)
            time = number(row.get("_timestamp"))
            for key, value in row.items():
                name = _column(str(key), want)
                if name is not None and (found := as_number(value)) is not None:
                    self.columns.add(name, step, found, float("nan") if time is None else time)
                elif len(self._unused) < 200:
                    self._unused.add(plain(str(key), 40))

    def logged(self, *, source: str, run_id: str, name: str, config: dict[str, Any]) -> Logged:
        """The run with this history."""
        config.pop("_wandb", None)
        return Logged(
            kind="wandb",
            source=source,
            key=f"wandb:{run_id}",
            name=plain(name),
            columns=self.columns,
            settings=flat(config),
            config=config if "model_type" in config else None,
            planned_steps=whole(config.get("max_steps")) or None,
            averaged="train/global_step" in self._steps.seen,
            unused=tuple(sorted(self._unused)),
            notes=self._steps.notes(),
        )


def _column(key: str, want: Callable[[str], bool]) -> str | None:
    """The column that a key is kept as: W&B joins nested names by points (`train.loss`); None: not kept."""
    names = (key, key.replace(".", "/"))
    return next((name for name in names if want(name)), None)


class StepOf:
    """Optimizer steps of a history row: what the trainer says, else W&B's own count."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._last: int | None = None

    def of(self, row: Mapping[str, Any]) -> int:
        """The step of a row; W&B's own counts calls of log() unless it was given one."""
        for name, more in (("trainer/global_step", 1), ("train/global_step", 0)):
            if (step := whole(row.get(name))) is not None:
                self.seen.add(name)
                self._last = step + more
                return self._last
        if self._last is not None:  # a row of such a run that does not say its step belongs to the one before
            return self._last
        return whole(row.get("_step")) or 0

    def notes(self) -> tuple[str, ...]:
        """Which were used."""
        if "trainer/global_step" in self.seen:
            return ("steps are trainer/global_step, which Lightning counts from 0: one is added",)
        if "train/global_step" in self.seen:
            return ("steps are train/global_step",)
        return ("steps are W&B's own: what log(step=) was given, else its calls",)


def as_number(value: object) -> float | None:
    """A history value as a number; NaN and infinities are texts there."""
    if isinstance(value, str) and value not in ("NaN", "Infinity", "-Infinity"):
        return None
    return number(value)


def _time(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


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
