"""One attempt at one run, in the process that trains it: what every engine calls, wherever it calls it from."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from isoflop.ladder.plan import PlannedRun
from isoflop.ladder.state import (
    Folders,
    Held,
    hold,
    is_complete,
    latest_checkpoint,
    reached,
    read_status,
    records_of,
    write_status,
)
from isoflop.record.paths import file_system, location_of

ERROR_LINES = 12
"""How much of an error's traceback a status file keeps."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to train; plain values only, for it travels between processes.

    Attributes:
        run: `PlannedRun.as_dict()`.
        train: `module:function` or `file.py:function`.
        record: the folder or URL of its record.
        work: the folder of its checkpoints.
        search: folders in which modules are looked for.
    """

    run: Mapping[str, Any]
    train: str
    record: str
    work: str
    search: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.run["name"])

    @property
    def planned(self) -> PlannedRun:
        """The run as the plan has it."""
        return PlannedRun(**self.run)

    @property
    def folders(self) -> Folders:
        """Where the run writes."""
        return Folders(location_of(self.record), Path(self.work))


class AttemptFailed(RuntimeError):
    """A run raised an error or did not get to its end; the text is the last lines of the error."""


def attempt(job: Job) -> None:
    """Train a run from its latest checkpoint to its planned end, unless it is there already.

    Raises:
        AttemptFailed: `train` raised, or came back without a record of the planned steps.
        Held: another process is at it.
    """
    folders, steps = job.folders, job.planned.steps
    with hold(folders):
        if any(is_complete(record, steps) for record in records_of(folders)):
            return
        before = read_status(folders)
        attempts = 1 if before is None else before.attempts + 1
        write_status(folders, "running", attempts)
        try:
            _train(job, folders)
            done = max((reached(record) for record in records_of(folders)), default=None)
            if not any(is_complete(record, steps) for record in records_of(folders)):
                came = "no record" if done is None else f"a record of {done:,} steps"
                raise ValueError(
                    f"expected {job.train} to leave a completed record of {steps:,} steps in {job.record}, got {came}: "
                    'pass config["record_dir"] to isoflop\'s callback, and train for config["steps"] optimizer steps'
                )
        except BaseException as error:  # SystemExit and Ctrl-C too
            told = _last_lines(error)
            with suppress(OSError):
                write_status(folders, "stopped" if isinstance(error, KeyboardInterrupt) else "failed", attempts, told)
            if isinstance(error, Exception | SystemExit):
                raise AttemptFailed(told) from None
            raise
        write_status(folders, "finished", attempts)


def _train(job: Job, folders: Folders) -> None:
    sys.path[:0] = [folder for folder in job.search if folder not in sys.path]
    folders.checkpoints.mkdir(parents=True, exist_ok=True)
    resume = latest_checkpoint(folders.checkpoints)
    if resume is None:
        _put_aside(folders)
    config = {
        **job.run,
        "record_dir": job.record,
        "checkpoint_dir": str(folders.checkpoints),
        "resume": None if resume is None else str(resume),
    }
    _found(job.train)(config)


@cache
def _found(train: str) -> Callable[[dict[str, Any]], Any]:
    """The user's function; a process that trains several runs imports its module once."""
    from isoflop.lookup import find

    function: Callable[[dict[str, Any]], Any] = find(train)
    return function


def _put_aside(folders: Folders) -> None:
    """Records of attempts that end without a checkpoint: the run begins anew, and readers see it once."""
    for record in records_of(folders):
        assert record.path is not None
        place = location_of(record.path)
        if isinstance(place, Path):
            os.replace(place, f"{place}.superseded")
        else:
            system, path = file_system(place)
            system.mv(path, f"{path}.superseded")


def _last_lines(error: BaseException) -> str:
    """The end of the traceback; the frames of isoflop before `train` say nothing to its author."""
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    return "\n".join(lines[-ERROR_LINES:])


def main() -> int:
    """`python -m isoflop.ladder.attempt`: a job comes as JSON on stdin."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    job = Job(**json.loads(sys.stdin.read()))
    try:
        attempt(job)
    except (AttemptFailed, Held) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def as_text(job: Job) -> str:
    """What `main` reads."""
    return json.dumps(asdict(job))


if __name__ == "__main__":
    sys.exit(main())
