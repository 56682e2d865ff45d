"""The ladder on Ray: a Tune trial for each run, on a cluster (RAY_ADDRESS) or, without one, on this machine."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isoflop.ladder.attempt import Job, attempt
from isoflop.ladder.engines import Resources
from isoflop.ladder.state import state_of

_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # each run has its record
    "RAY_worker_niceness": "0",  # Ray's 15 leaves next to nothing to training where others use the machine too
    "RAY_raylet_start_wait_time_s": "120",  # on a busy machine Ray takes its time to start
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default, of which it warns
    "TUNE_GLOBAL_CHECKPOINT_S": "60",  # what Tune keeps of an experiment is not needed: the records tell it
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def run(jobs: Sequence[Job], resources: Resources, ended: Callable[[str], None]) -> None:
    """Train the jobs as trials of Ray Tune; see `Engine`.

    A trial that fails, or whose worker dies, is tried again by Tune, and goes on from the run's checkpoint. After the
    driver's own death its trials are not restored but begun anew, for what is left to do stands in the runs' folders.
    """
    try:
        import ray
        from ray import tune
    except ImportError:
        raise ValueError('--engine ray needs Ray: pip install "isoflop[ray]", or take --engine local') from None

    kept = resources.folder / ".ray"  # Tune's own account of its trials; an earlier one is of a driver that was killed
    shutil.rmtree(kept, ignore_errors=True)
    with _environment(_SETTINGS), _cluster(ray, resources), _silent(logging.getLogger("ray.tune")):
        left = list(jobs)
        for _ in range(1 + resources.retries):
            _trials(ray, tune, left, resources, kept, ended)
            # a worker that is killed between two runs takes the next one's trial with it, whatever `max_failures` says
            left = [job for job in left if _is_left(job)]
            if not left:
                break
    for job in left:
        ended(job.name)
    shutil.rmtree(kept, ignore_errors=True)


def _is_left(job: Job) -> bool:
    """Whether a run is neither finished nor has raised an error."""
    return state_of(job.planned, job.folders).stage in ("waiting", "stopped")


def _trials(
    ray: Any, tune: Any, jobs: Sequence[Job], resources: Resources, kept: Path, ended: Callable[[str], None]
) -> None:
    """A trial for each job, until none is left that Tune tries again."""

    class Tell(tune.Callback):
        def __reduce__(self) -> tuple[Any, ...]:
            return tune.Callback, ()  # Tune keeps its callbacks on disk; nobody restores this one

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ended(jobs[trial.config["number"]].name)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            job = jobs[trial.config["number"]]
            if not _is_left(job):
                ended(job.name)

    held = ray.put([asdict(job) for job in jobs])

    def trial(config: dict[str, Any]) -> None:
        attempt(Job(**ray.get(held)[config["number"]]))

    each = {"cpu": resources.cpus_per_run, "gpu": resources.gpus_per_run}
    tuner = tune.Tuner(
        tune.with_resources(trial, each),
        param_space={"number": tune.grid_search(list(range(len(jobs))))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=resources.workers,
            reuse_actors=True,  # a new process for each of many short runs would cost more than the runs
        ),
        run_config=tune.RunConfig(
            name="ladder",
            storage_path=str(kept),
            failure_config=tune.FailureConfig(max_failures=resources.retries),
            callbacks=[Tell()],
            verbose=0,
        ),
    )
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # Tune prints whatever `verbose` says
        tuner.fit()


@contextmanager
def _cluster(ray: Any, resources: Resources) -> Iterator[None]:
    """Ray, if it is not there already: a cluster's where RAY_ADDRESS names one, else one of our own."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        wanted = (resources.workers or 0) * resources.cpus_per_run
        with _environment({"PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder)}, over=True):
            ray.init(
                num_cpus=max(os.cpu_count() or 1, wanted),  # --workers may ask for more runs than there are processors
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Without Tune's own account of trials that fail: each run's status file has it."""
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _environment(values: dict[str, str], over: bool = False) -> Iterator[None]:
    """What Ray and its workers read from the environment; the user's own values come first, unless `over` them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if over or before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
