"""How far each run of a ladder is, as its own folder tells it: the record, and a small status file beside it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from isoflop.fit.runs import stopped_early
from isoflop.ladder.plan import PlannedRun
from isoflop.record.paths import Location, below, location_of, read_bytes, write_bytes
from isoflop.record.reader import read_runs
from isoflop.record.run import Run

STATUS = "status.json"
LOCK = ".lock"
Stage = Literal["waiting", "running", "stopped", "failed", "finished"]
"""Not begun · another process has it · killed or interrupted · raised an error · at its planned end."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the status file holds: how the last attempt at a run went.

    Attributes:
        stage: "running", "failed" or "finished", as that attempt left it.
        attempts: how many there were, of all invocations.
        error: the last lines of what went wrong.
        host, process: where it runs or ran.
        time: unix seconds of the last change.
    """

    stage: Stage
    attempts: int = 1
    error: str | None = None
    host: str = ""
    process: int = 0
    time: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How far a run of the ladder is.

    Attributes:
        name: of the run.
        stage: see `Stage`.
        step, steps: optimizer steps recorded and planned.
        attempts: at this run, of all invocations.
        error: the last lines of its last error.
        loss: what its record said last.
    """

    name: str
    stage: Stage
    step: int
    steps: int
    attempts: int = 0
    error: str | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Folders:
    """Where a run of the ladder keeps what it writes.

    Attributes:
        record: its record and its status file: a folder or a URL.
        work: on this machine, or on a disk that all machines share: checkpoints, output, lock.
    """

    record: Location
    work: Path

    @property
    def checkpoints(self) -> Path:
        """What `config["checkpoint_dir"]` is."""
        return self.work / "checkpoints"

    @property
    def output(self) -> Path:
        """What the run prints, under the engines that catch it."""
        return self.work / "output.txt"


def folders_of(name: str, out: str | os.PathLike[str], work: str | os.PathLike[str] | None = None) -> Folders:
    """Folders of a run.

    Args:
        name: of the run.
        out: the ladder's folder or URL.
        work: folder of this machine for what can't lie at a URL; default: `out`, of a URL `runs/<its last part>`.
    """
    place = location_of(out)
    record = below(place, name)
    if work is None:
        work = place if isinstance(place, Path) else Path("runs") / place.rsplit("/", 1)[-1]
    # absolute: workers have other current folders
    return Folders(record.resolve() if isinstance(record, Path) else record, (Path(work) / name).resolve())


def state_of(run: PlannedRun, folders: Folders) -> RunState:
    """How far a run is. Its record decides whether it is finished, whatever the status file says."""
    status = read_status(folders)
    records = records_of(folders)
    # a run without a checkpoint begins anew: the furthest record is its own
    last = max(records, key=lambda record: (is_complete(record, run.steps), reached(record)), default=None)
    stage: Stage
    if last is not None and is_complete(last, run.steps):
        stage = "finished"
    elif _is_held(folders, status):
        stage = "running"
    elif status is None:
        stage = "waiting" if last is None else "stopped"
    else:
        stage = "stopped" if status.stage in ("running", "finished") else status.stage
    point = last.points[-1] if last is not None and last.points else None
    losses = {} if point is None else {name: loss for name, loss in point.losses.items() if loss is not None}
    return RunState(
        name=run.name,
        stage=stage,
        step=0 if last is None else reached(last),
        steps=run.steps,
        attempts=0 if status is None else status.attempts,
        error=status.error if status is not None and stage in ("failed", "stopped") else None,
        loss=next((loss for name, loss in losses.items() if name != "train"), losses.get("train")),
    )


def records_of(folders: Folders) -> list[Run]:
    """The records in a run's folder; none where there is no folder."""
    return read_runs(folders.record, on_problem=lambda text: None)


def reached(record: Run) -> int:
    """The last optimizer step that a record knows of."""
    return max([point.step for point in record.points[-1:]] + [record.end["step"] if record.end else 0])


def is_complete(record: Run, steps: int) -> bool:
    """Whether a record ended in order, at its planned end: by the rule by which `ladder fit` counts it."""
    return record.status == "completed" and reached(record) > 0 and not stopped_early(reached(record), steps)


def read_status(folders: Folders) -> Status | None:
    """What the last attempt left; None where there was none, or its file can't be read."""
    with suppress(OSError, ValueError, TypeError):
        found: dict[str, Any] = json.loads(read_bytes(below(folders.record, STATUS)))
        return Status(**found)
    return None


def write_status(folders: Folders, stage: Stage, attempts: int, error: str | None = None) -> None:
    """Say how this attempt goes."""
    status = Status(
        stage=stage,
        attempts=attempts,
        error=error,
        host=socket.gethostname(),
        process=os.getpid(),
        time=time.time(),
    )
    write_bytes(below(folders.record, STATUS), json.dumps(asdict(status)).encode())


class Held(RuntimeError):
    """Another process is at this run."""


@contextmanager
def hold(folders: Folders, patience: float = 1.0) -> Iterator[None]:
    """Keep other processes from this run until the end of the block, or of this process.

    Args:
        folders: of the run.
        patience: seconds to try again in; whoever only looks whether a run is held holds it for a moment too.

    Raises:
        Held: one has it.
    """
    folders.work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folders.work / LOCK)
    try:
        lock.acquire(timeout=patience, poll_interval=0.02)
    except Timeout:
        raise Held(f"another process is at {folders.work}") from None
    try:
        yield
    finally:
        lock.release()


def _is_held(folders: Folders, status: Status | None) -> bool:
    if status is None or status.stage != "running" or not (folders.work / LOCK).exists():
        return False
    try:
        with hold(folders, patience=0.0):
            return False
    except Held:
        return True


_LOGS = ("runs", "logs", "lightning_logs", "wandb")


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest file or folder in a run's checkpoint folder that is complete; None: there is none.

    Names that begin with a point, or end in .tmp or .part, are being written; logs are none. Of Hugging
    Face's folders (`checkpoint-<step>`) one without `trainer_state.json`, which is written last, is not complete.
    """
    if not folder.is_dir():
        return None
    found = [path for path in folder.iterdir() if not path.name.startswith((".", "events.out"))]
    found = [path for path in found if path.suffix not in (".tmp", ".part") and path.name not in _LOGS]
    found = [
        path
        for path in found
        if not (path.is_dir() and path.name.startswith("checkpoint-")) or (path / "trainer_state.json").is_file()
    ]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
