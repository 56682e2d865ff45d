"""The ladder on Slurm: an array job through submitit, a task for each run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from isoflop.ladder.attempt import Job, attempt
from isoflop.ladder.engines import Resources
from isoflop.ladder.state import read_status, write_status

POLL = 5.0  # seconds between two questions to the scheduler; submitit itself asks it once a minute
_TIME = "time"


class Task:
    """What a task of the array executes; submitted again by submitit where Slurm preempts it or its time is up."""

    def __call__(self, job: Job) -> None:
        """Train the run."""
        attempt(job)

    def checkpoint(self, job: Job) -> Any:
        """The run goes on from its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def run(jobs: Sequence[Job], resources: Resources, ended: Callable[[str], None]) -> None:
    """Submit the jobs as an array and wait for them; see `Engine`. What is submitted outlives this process."""
    try:
        import submitit
    except ImportError:
        raise ValueError('--engine slurm needs submitit: pip install "isoflop[slurm]", or take --engine local') from None

    executor = executor_of(submitit, resources)
    left = list(jobs)
    for _ in range(1 + resources.retries):
        failed = []
        for job in _wait(executor, left):
            if job.failed:
                failed.append(job.job)
            else:
                ended(job.job.name)
        left = failed
        if not left:
            return
    for job in left:
        ended(job.name)
