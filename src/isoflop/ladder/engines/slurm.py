"""The ladder on Slurm: an array job through submitit, a task for each run."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from isoflop.ladder.attempt import ERROR_LINES, Job, attempt
from isoflop.ladder.engines import Resources
from isoflop.ladder.state import read_status, write_status

POLL = 1.0  # seconds between two looks; submitit itself asks the scheduler less often


class Task:
    """What a task of the array executes; submitit submits it again where Slurm preempts it or its time is up."""

    def __call__(self, job: Job) -> None:
        """Train the run."""
        attempt(job)

    def checkpoint(self, job: Job) -> Any:
        """The run goes on from its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def run(jobs: Sequence[Job], resources: Resources, ended: Callable[[str], None]) -> None:
    """Submit the jobs as an array and wait for them; see `Engine`.

    What is submitted outlives this process: the next one finds it by the note in each run's folder, and waits for it
    instead of submitting it again.
    """
    executor = _executor(resources)
    tries: Counter[str] = Counter()
    waiting = {job.name: (job, handle) for job in jobs if (handle := _submitted(executor, job)) is not None}
    new = [job for job in jobs if job.name not in waiting]
    while new or waiting:
        if new:
            handles = executor.map_array(Task(), new)
            for job, handle in zip(new, handles, strict=True):
                waiting[job.name] = job, handle
                _note(job).write_text(json.dumps({"job_id": handle.job_id, "folder": str(resources.folder / ".slurm")}))
        new = []
        for job, handle in list(waiting.values()):
            if not handle.done():
                continue
            del waiting[job.name]
            _note(job).unlink(missing_ok=True)
            tries[job.name] += 1
            if not _failed(job, handle) or tries[job.name] > resources.retries:
                ended(job.name)
            else:
                new.append(job)
        if waiting and not new:
            time.sleep(POLL)


def _executor(resources: Resources) -> Any:
    try:
        import submitit
    except ImportError:
        raise ValueError(
            '--engine slurm needs submitit: pip install "isoflop[slurm]", or take --engine local'
        ) from None
    options = dict(resources.slurm)
    try:
        executor = submitit.AutoExecutor(folder=resources.folder / ".slurm", cluster=options.pop("cluster", "slurm"))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--engine slurm: {error}; take --engine local or ray where there is no Slurm") from None
    known = submitit.SlurmExecutor._valid_parameters()
    executor.update_parameters(**parameters(options, known, resources))
    return executor


def parameters(options: Mapping[str, str], known: set[str], resources: Resources) -> dict[str, Any]:
    """What submitit is told of an array.

    Args:
        options: of `--slurm`, by the names of sbatch's options; those that submitit does not know go to sbatch as they
            are.
        known: names that submitit knows.
        resources: what each run gets, and how many there may be at one time.

    Raises:
        ValueError: a part of a device.
    """
    gpus = math.ceil(resources.gpus_per_run)
    if gpus != resources.gpus_per_run:
        raise ValueError(f"--gpus-per-run: expected whole devices with --engine slurm, got {resources.gpus_per_run:g}")
    found: dict[str, Any] = {"name": "isoflop-ladder", "cpus_per_task": resources.cpus_per_run}
    if gpus:
        found["gpus_per_node"] = gpus
    if resources.workers is not None:
        found["slurm_array_parallelism"] = resources.workers
    others = {}
    for given, value in options.items():
        key = given.replace("-", "_")
        plain = int(value) if value.isdecimal() else value
        if key == "time" and isinstance(plain, int):
            found["timeout_min"] = plain
        elif key in known:
            found[f"slurm_{key}"] = plain
        else:
            others[given] = plain
    if others:
        found["slurm_additional_parameters"] = others
    return found


def _note(job: Job) -> Path:
    job.folders.work.mkdir(parents=True, exist_ok=True)
    return job.folders.work / "slurm.json"


def _submitted(executor: Any, job: Job) -> Any:
    """The task of an earlier invocation that still waits or runs; None: there is none."""
    if executor.cluster != "slurm":
        return None
    with suppress(OSError, ValueError, KeyError):
        note = json.loads(_note(job).read_text())
        from submitit import SlurmJob

        handle: Any = SlurmJob(folder=note["folder"], job_id=note["job_id"])
        return None if handle.done(force_check=True) else handle
    return None


def _failed(job: Job, handle: Any) -> bool:
    """Whether a task failed; what killed it is written down where it could not do so itself."""
    error = handle.exception()
    if error is None:
        return False
    status = read_status(job.folders)
    if status is None or status.stage == "running":
        told = "\n".join([*str(error).splitlines(), *(handle.stderr() or "").splitlines()][-ERROR_LINES:])
        with suppress(OSError):
            write_status(job.folders, "failed", 1 if status is None else status.attempts, told)
    return True
