"""What carries a ladder's runs: processes of this machine, Ray, Slurm; each imports its package when it runs.

The ladder on this machine: a process for each run, so many at one time.

The ladder on Ray: a Tune trial for each run, on a cluster (RAY_ADDRESS) or, without one, on this machine.

The ladder on Slurm: an array job through submitit, a task for each run.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from isoflop.ladder.attempt import ERROR_LINES, Job, as_text, attempt
from isoflop.ladder.state import read_status, state_of, write_status


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the runs may use.

    Attributes:
        workers: runs at one time; None: as many as there are processors or devices for.
        cpus_per_run: processors of each.
        gpus_per_run: devices of each; a part of one under Ray alone.
        retries: further attempts at a run that fails, or whose process dies.
        slurm: options of the scheduler by name: partition, time, account …
        folder: of this machine, for what the engine itself keeps.
    """

    workers: int | None = None
    cpus_per_run: int = 1
    gpus_per_run: float = 0.0
    retries: int = 1
    slurm: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path("runs")


ENGINES = ("ray", "slurm", "local")


class Engine(Protocol):
    """Makes attempts at all jobs, each again as often as it may be; a run that fails does not stop the others."""

    def __call__(self, jobs: Sequence[Job], resources: Resources, ended: Callable[[str], None]) -> None:
        """`ended` is called with a run's name when no further attempt at it is made.

        Raises:
            ValueError: its package is not installed, or an option that it can't take.
        """
        ...


def engine_of(name: str) -> Engine:
    """The engine of a name: "local", "ray" or "slurm".

    Raises:
        ValueError: there is none of this name.
    """
    if name not in ENGINES:
        raise ValueError(f"--engine: expected {', '.join(ENGINES)}, got {name!r}")
    return {"local": run, "ray": ray_run, "slurm": slurm_run}[name]


def run(jobs: Sequence[Job], resources: Resources, ended: Callable[[str], None]) -> None:
    """Train the jobs in processes of this machine; see `Engine`."""
    slots = _slots(resources)
    free: SimpleQueue[dict[str, str]] = SimpleQueue()
    for slot in slots:
        free.put(slot)
    running: set[subprocess.Popen[str]] = set()
    stop = threading.Event()

    def train(job: Job) -> None:
        slot = free.get()
        try:
            for _ in range(1 + resources.retries):
                if stop.is_set() or _attempt(job, slot, running) == 0:
                    break
        finally:
            free.put(slot)
            ended(job.name)

    with ThreadPoolExecutor(len(slots), thread_name_prefix="isoflop-ladder") as pool:
        futures = [pool.submit(train, job) for job in jobs]
        try:
            wait(futures)
        except BaseException:  # Ctrl-C: the runs end too, and go on from their checkpoints the next time
            stop.set()
            for process in list(running):
                with suppress(OSError):
                    process.send_signal(signal.SIGTERM)
            raise
    for future in futures:
        future.result()


def _slots(resources: Resources) -> list[dict[str, str]]:
    """The environment of each worker: its processors, and its devices where runs are to have some."""
    threads = {"OMP_NUM_THREADS": str(resources.cpus_per_run)}
    if not resources.gpus_per_run:
        workers = resources.workers or max(1, (os.cpu_count() or 1) // resources.cpus_per_run)
        return [threads] * workers
    each = int(resources.gpus_per_run)
    if each != resources.gpus_per_run:
        raise ValueError(
            f"--gpus-per-run: expected whole devices with --engine local, got {resources.gpus_per_run:g}; Ray "
            "shares them"
        )
    devices = _devices()
    most = len(devices) // each
    if most < (resources.workers or 1):
        raise ValueError(
            f"expected {each * (resources.workers or 1)} devices for the runs at one time, got {len(devices)}"
        )
    workers = resources.workers or most
    return [{**threads, "CUDA_VISIBLE_DEVICES": ",".join(devices[i * each : (i + 1) * each])} for i in range(workers)]


def _devices() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _attempt(job: Job, slot: dict[str, str], running: set[subprocess.Popen[str]]) -> int:
    job.folders.work.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(folder for folder in sys.path if folder)
    with open(job.folders.output, "a", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "isoflop.ladder.attempt"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **slot, "PYTHONPATH": path},
            text=True,
        )
        running.add(process)
        with suppress(BrokenPipeError):
            process.communicate(as_text(job))
        running.discard(process)
    status = read_status(job.folders)
    if process.returncode and (status is None or status.stage == "running"):  # it could not say so itself
        with suppress(OSError):
            write_status(job.folders, "failed", 1 if status is None else status.attempts, _why(job, process.returncode))
    return process.returncode


def _why(job: Job, code: int) -> str:
    end = job.folders.output.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return "\n".join([f"its process {how}; the last of its output:", *end])


_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # each run has its record
    "RAY_worker_niceness": "0",  # Ray's 15 leaves next to nothing to training where others use the machine too
    "RAY_raylet_start_wait_time_s": "120",  # on a busy machine Ray takes its time to start
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default, of which it warns
    "TUNE_GLOBAL_CHECKPOINT_S": "60",  # what Tune keeps of an experiment is not needed: the records tell it
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def ray_run(jobs: Sequence[Job], resources: Resources, ended: Callable[[str], None]) -> None:
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


def slurm_run(jobs: Sequence[Job], resources: Resources, ended: Callable[[str], None]) -> None:
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
