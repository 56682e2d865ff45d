"""Runs a plan's ladder: what is finished is left alone, what was stopped goes on, what fails is tried again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.ladder.attempt import Job
from isoflop.ladder.engines import Resources, engine_of
from isoflop.ladder.plan import LadderPlan, PlannedRun
from isoflop.ladder.state import Folders, RunState, folders_of, state_of
from isoflop.record.paths import check_location


@dataclass(frozen=True)
class LadderRun:
    """How a ladder stands after `run_ladder`.

    Attributes:
        states: of the runs that were asked for, in the plan's order.
        before: the same before.
    """

    states: tuple[RunState, ...]
    before: tuple[RunState, ...]

    def of(self, *stages: str) -> tuple[RunState, ...]:
        """The runs in these stages."""
        return tuple(state for state in self.states if state.stage in stages)

    @property
    def done(self) -> bool:
        """Whether each run is at its planned end."""
        return len(self.of("finished")) == len(self.states)


class Watching:
    """Shows how the ladder goes, or nothing, as this one does. `ended` comes from any thread."""

    def ended(self, name: str) -> None:
        """No further attempt is made at this run."""

    def close(self) -> None:
        """The engine is done."""


def run_ladder(
    plan: LadderPlan,
    train: str,
    out: str | os.PathLike[str],
    *,
    engine: str = "ray",
    workers: int | None = None,
    cpus_per_run: int = 1,
    gpus_per_run: float = 0.0,
    retries: int = 1,
    only: Sequence[str] = (),
    slurm: Mapping[str, str] | None = None,
    work: str | os.PathLike[str] | None = None,
    watch: Callable[[Sequence[PlannedRun], Mapping[str, Folders]], Watching] | None = None,
) -> LadderRun:
    """Train the runs of a plan that are not finished.

    Args:
        plan: the ladder.
        train: `module:function` or `file.py:function`; called with the planned run's dict, and in it where to write:
            "record_dir", "checkpoint_dir", and "resume", the latest checkpoint or None.
        out: folder or URL in which each run gets a folder of its own.
        engine: "ray", "slurm" or "local".
        workers: runs at one time.
        cpus_per_run, gpus_per_run: of each.
        retries: further attempts at a run that fails.
        only: names of runs; none: all.
        slurm: options of the scheduler.
        work: folder of this machine for checkpoints and output; default: `out`, or of a URL `runs/<its last part>`.
        watch: shows how it goes.

    Raises:
        ValueError: an unknown engine, an unknown run, or `train` can't be found.
    """
    from isoflop.lookup import find

    check_location(out)
    if str(out).startswith("memory://"):
        raise ValueError(f"--out: expected a place that other processes see, got {out}, which ends with this one")
    runs = _chosen(plan, only)
    carry = engine_of(engine)
    if not callable(find(train)):
        raise ValueError(f"--train: expected a function, got {train}, which is none")
    folders = {run.name: folders_of(run.name, out, work) for run in runs}
    before = tuple(state_of(run, folders[run.name]) for run in runs)
    jobs = [
        job_of(run, folders[run.name], train)
        for run, state in zip(runs, before, strict=True)
        if state.stage not in ("finished", "running")
    ]
    if jobs:
        watching = Watching() if watch is None else watch(runs, folders)
        try:
            resources = Resources(
                workers=workers,
                cpus_per_run=cpus_per_run,
                gpus_per_run=gpus_per_run,
                retries=retries,
                slurm=dict(slurm or {}),
                folder=folders[runs[0].name].work.parent,
            )
            carry(jobs, resources, watching.ended)
        finally:
            watching.close()
    return LadderRun(tuple(state_of(run, folders[run.name]) for run in runs), before)


def job_of(run: PlannedRun, folders: Folders, train: str) -> Job:
    """A run as it travels to the process that trains it."""
    place, _, name = train.rpartition(":")
    if place.endswith(".py"):  # workers have other current folders
        train = f"{Path(place).expanduser().resolve()}:{name}"
    search = tuple(dict.fromkeys([str(Path.cwd()), *(folder for folder in sys.path if folder)]))
    return Job(run=run.as_dict(), train=train, record=str(folders.record), work=str(folders.work), search=search)


def _chosen(plan: LadderPlan, only: Sequence[str]) -> list[PlannedRun]:
    known = {run.name: run for run in plan.runs}
    for name in only:
        if name not in known:
            raise ValueError(f"--only: expected a run of the plan ({', '.join(known)}), got {name!r}")
    return [run for run in plan.runs if not only or run.name in only]
