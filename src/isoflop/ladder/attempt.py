"""One run of a ladder: its folder and lock, how far its record is, and an attempt to train it to its planned end.

Everything that is known of a run lies in its folder: the record, a small status file beside it, and a lock. Each engine
calls `attempt` in the process that trains; `python -m isoflop.ladder.attempt` reads a `Job` as JSON from stdin.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from isoflop.ladder.plan import PlannedRun
from isoflop.lookup import find
from isoflop.record.paths import below, file_system, last_name, location_of, read_bytes, write_bytes
from isoflop.record.reader import read_runs
from isoflop.record.run import Run, stopped_early

ERROR_LINES = 12
"""Last lines of a traceback that a status file keeps."""
Stage = Literal["waiting", "running", "stopped", "failed", "finished"]
"""Not begun; held by another process; killed or interrupted; raised an error; at its planned end."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to train and where it writes; plain values only, for it travels between processes.

    Attributes:
        run: `PlannedRun.as_dict()`.
        train: `module:function` or `file.py:function`.
        record: the folder or URL of its record and its status file.
        work: of checkpoints, output and lock: a folder of this machine, or of a disk that all machines share.
        search: folders in which modules are looked for.
        branches: where runs that branch off this one expect a checkpoint of it: {"step", "checkpoint_dir"} each.
    """

    run: Mapping[str, Any]
    train: str
    record: str
    work: str
    search: tuple[str, ...] = ()
    branches: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.run["name"])

    @property
    def steps(self) -> int:
        """Optimizer steps planned."""
        return int(self.run["steps"])

    @property
    def checkpoints(self) -> Path:
        """The folder that `train` gets as `config["checkpoint_dir"]`."""
        return Path(self.work, "checkpoints")

    @property
    def output(self) -> Path:
        """What the run prints, under the local engine."""
        return Path(self.work, "output.txt")


def job_of(run: PlannedRun, train: str, out: str | os.PathLike[str], work: str | os.PathLike[str] | None = None) -> Job:
    """A run as it travels to the process that trains it; paths are absolute since workers have other current folders.

    `out` is the ladder's folder or URL; `work` the folder for what can't lie at a URL, of one `runs/<its last part>`.
    """
    record, url = below(out, run.name), isinstance(location_of(out), str)
    if work is None:
        work = Path("runs", last_name(out)) if url else location_of(out)
    place, _, name = train.rpartition(":")
    return Job(
        run=run.as_dict(),
        train=f"{Path(place).expanduser().resolve()}:{name}" if place.endswith(".py") else train,
        record=str(record if url else Path(record).resolve()),
        work=str(Path(work, run.name).resolve()),
        search=tuple(dict.fromkeys([str(Path.cwd()), *(folder for folder in sys.path if folder)])),
    )


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How far a run of the ladder is.

    Attributes:
        name: of the run.
        stage: see `Stage`.
        step, steps: optimizer steps recorded and planned.
        attempts: of all invocations.
        error: the last lines of its last error.
        loss: the last one in its record, nats per token; an evaluation's if there is one.
    """

    name: str
    stage: Stage
    step: int
    steps: int
    attempts: int
    error: str | None
    loss: float | None


def state_of(job: Job) -> RunState:
    """How far a run is. Its record decides whether it is finished, whatever the status file says."""
    status, steps = read_status(job), job.steps
    # a run without a checkpoint begins anew: the furthest record is its own
    last = max(_records(job), key=lambda record: (is_complete(record, steps), record.steps_done), default=None)
    stage: Stage
    if last is not None and is_complete(last, steps):
        stage = "finished"
    elif not status:
        stage = "waiting" if last is None else "stopped"
    elif status.get("stage") == "failed":
        stage = "failed"
    else:
        stage = "running" if status.get("stage") == "running" and _is_held(job) else "stopped"
    points = () if last is None else last.points
    losses = {name: loss for name, loss in points[-1].losses.items() if loss is not None} if points else {}
    return RunState(
        name=job.name,
        stage=stage,
        step=0 if last is None else last.steps_done,
        steps=steps,
        attempts=status.get("attempts", 0),
        error=status.get("error") if stage in ("failed", "stopped") else None,
        loss=next((loss for name, loss in losses.items() if name != "train"), losses.get("train")),
    )


def is_complete(record: Run, steps: int) -> bool:
    """Whether a record ended in order at its planned end: the rule by which `ladder fit` counts it."""
    return record.status == "completed" and record.steps_done > 0 and not stopped_early(record.steps_done, steps)


def _records(job: Job) -> list[Run]:
    return read_runs(job.record, on_problem=lambda text: None)


def read_status(job: Job) -> dict[str, Any]:
    """The status file, as `write_status` left it; empty where there is none that can be read."""
    with suppress(OSError, ValueError):
        found = json.loads(read_bytes(below(job.record, "status.json")))
        if isinstance(found, dict):
            return found
    return {}


def write_status(job: Job, stage: Stage, attempts: int, error: str | None = None) -> None:
    """Write how an attempt goes: after so many of all invocations, with the last lines of its error."""
    where = {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()}  # unix seconds
    status = {"stage": stage, "attempts": attempts, "error": error, **where}
    write_bytes(below(job.record, "status.json"), json.dumps(status).encode())


class Held(RuntimeError):
    """Another process is at this run."""


@contextmanager
def hold(job: Job, patience: float = 1.0) -> Iterator[None]:
    """Keep other processes from a run until the end of the block, or of this process.

    Args:
        job: the run.
        patience: seconds to try again in; whoever only looks whether a run is held holds it for a moment too.

    Raises:
        Held: one has it.
    """
    Path(job.work).mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(Path(job.work, ".lock")).acquire(timeout=patience, poll_interval=0.02)
    except Timeout:
        raise Held(f"another process is at {job.work}") from None
    with lock:
        yield


def _is_held(job: Job) -> bool:
    if not Path(job.work, ".lock").exists():
        return False
    try:
        with hold(job, patience=0.0):
            return False
    except Held:
        return True


_LOGS = ("runs", "logs", "lightning_logs", "wandb")


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete file or folder in a run's checkpoint folder; None: there is none.

    Names that begin with a point, or end in .tmp or .part, are being written; folders of logs are left out. Of Hugging
    Face's folders (`checkpoint-<step>`) one without `trainer_state.json`, which is written last, is not complete.
    """
    found = [path for path in folder.iterdir() if _is_checkpoint(path)] if folder.is_dir() else []
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def _is_checkpoint(path: Path) -> bool:
    if path.name.startswith((".", "events.out")) or path.suffix in (".tmp", ".part") or path.name in _LOGS:
        return False
    return not (path.is_dir() and path.name.startswith("checkpoint-")) or (path / "trainer_state.json").is_file()


class AttemptFailed(RuntimeError):
    """A run raised an error or did not get to its end; the text is the last lines of the error."""


def attempt(job: Job) -> None:
    """Train a run from its latest checkpoint to its planned end, unless it is there already.

    Raises:
        AttemptFailed: `train` raised, or came back without a record of the planned steps.
        Held: another process is at it.
    """
    with hold(job):
        if any(is_complete(record, job.steps) for record in _records(job)):
            return
        attempts = read_status(job).get("attempts", 0) + 1
        write_status(job, "running", attempts)
        try:
            _train(job)
        except BaseException as error:  # SystemExit and Ctrl-C too
            lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
            text = "\n".join(lines[-ERROR_LINES:])
            with suppress(OSError):
                write_status(job, "stopped" if isinstance(error, KeyboardInterrupt) else "failed", attempts, text)
            if isinstance(error, Exception | SystemExit):
                raise AttemptFailed(text) from None
            raise
        write_status(job, "finished", attempts)


_find = cache(find)
"""A process that trains several runs imports the user's module once."""


def _train(job: Job) -> None:
    sys.path[:0] = [folder for folder in job.search if folder not in sys.path]
    for folder in (job.checkpoints, *(Path(branch["checkpoint_dir"]) for branch in job.branches)):
        folder.mkdir(parents=True, exist_ok=True)
    resume, trunk = latest_checkpoint(job.checkpoints), job.run.get("branch_of")
    if resume is None and trunk is not None:
        raise ValueError(
            f"expected a checkpoint of {trunk} at step {job.steps - job.run['decay_steps']:,} in "
            f'{job.checkpoints}, got none: train must save one for each of its config["branches"]'
        )
    for record in _records(job) if resume is None else ():  # the run begins anew, and readers see it once
        _put_aside(str(record.path))
    config = {
        **job.run,
        "record_dir": job.record,
        "checkpoint_dir": str(job.checkpoints),
        "resume": None if resume is None else str(resume),
        "branches": list(job.branches),
    }
    _find(job.train)(config)
    records = _records(job)
    if not any(is_complete(record, job.steps) for record in records):
        got = f"a record of {max(record.steps_done for record in records):,} steps" if records else "no record"
        raise ValueError(
            f"expected {job.train} to leave a completed record of {job.steps:,} steps in {job.record}, got {got}: "
            'pass config["record_dir"] to isoflop\'s callback, and train for config["steps"] optimizer steps'
        )


def _put_aside(record: str) -> None:
    place = location_of(record)
    if isinstance(place, Path):
        os.replace(place, f"{place}.superseded")
    else:
        system, path = file_system(place)
        system.mv(path, f"{path}.superseded")


def main() -> int:
    """Train the job on stdin; the exit code is 1 where it fails, `os.EX_TEMPFAIL` where another process is at it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        attempt(Job(**json.loads(sys.stdin.read())))
    except (AttemptFailed, Held) as error:
        print(error, file=sys.stderr)
        return os.EX_TEMPFAIL if isinstance(error, Held) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
