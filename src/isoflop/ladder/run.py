"""Train a ladder's runs by an engine: processes of this machine, Ray, or Slurm through submitit.

Finished runs are skipped, stopped ones go on from their checkpoint, failed ones are tried again. Each engine makes
attempts at all of its jobs; a run that fails does not stop the others.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from isoflop.ladder.attempt import ERROR_LINES, Job, RunState, attempt, job_of, read_status, state_of, write_status
from isoflop.ladder.plan import LadderPlan
from isoflop.lookup import find
from isoflop.record.paths import check_location

Ended = Callable[[str], None]
"""Called with a run's name when no further attempt at it is made."""
Watch = Callable[[Sequence[Job]], AbstractContextManager[Ended]]
"""Shows how the ladder goes while its block lasts."""


@dataclass(frozen=True)
class LadderRun:
    """The runs that were asked for, in the plan's order: their `states` after `run_ladder`, and `before` it."""

    states: tuple[RunState, ...]
    before: tuple[RunState, ...]

    def of(self, *stages: str) -> tuple[RunState, ...]:
        """The runs in these stages."""
        return tuple(state for state in self.states if state.stage in stages)

    @property
    def done(self) -> bool:
        """Whether each run is at its planned end."""
        return len(self.of("finished")) == len(self.states)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the runs may use.

    Attributes:
        workers: runs at one time; None: as many as there are processors or devices for.
        cpus_per_run: processors of each.
        gpus_per_run: devices of each; a part of one under Ray alone.
        retries: further attempts at a run that fails, or whose process dies.
        slurm: by the names of sbatch's options; `time` may be a number of minutes.
        folder: of this machine, for files of submitit.
    """

    workers: int | None = None
    cpus_per_run: int = 1
    gpus_per_run: float = 0.0
    retries: int = 1
    slurm: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path("runs")


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
    watch: Watch | None = None,
) -> LadderRun:
    """Train the runs of a plan that are not finished.

    Args:
        plan: the ladder.
        train: `module:function` or `file.py:function`; called with the planned run's dict, and in it where to write:
            "record_dir", "checkpoint_dir", "resume", the latest checkpoint or None, and "branches", at which steps
            to save another checkpoint, and in which folders.
        out: folder or URL in which each run gets a folder of its own.
        engine: "ray", "slurm" or "local".
        workers, cpus_per_run, gpus_per_run, retries, slurm: see `Resources`.
        only: names of runs; none: all.
        work: folder of this machine for checkpoints and output; default: `out`, or of a URL `runs/<its last part>`.
        watch: shows how it goes.

    Raises:
        ValueError: an unknown engine, an unknown run, `train` can't be found, a package that is not installed, or an
            option that the engine can't take.
    """
    check_location(out)
    if str(out).startswith("memory://"):
        raise ValueError(f"--out: expected a place that other processes see, got {out}, which ends with this one")
    known = {run.name: run for run in plan.runs}
    for name in only:
        if name not in known:
            raise ValueError(f"--only: expected a run of the plan ({', '.join(known)}), got {name!r}")
    if engine not in ENGINES:
        raise ValueError(f"--engine: expected {', '.join(ENGINES)}, got {engine!r}")
    if not callable(find(train)):
        raise ValueError(f"--train: expected a function, got {train}, which is none")
    planned = [run for run in plan.runs if not only or run.name in only]
    jobs = {run.name: job_of(run, train, out, work) for run in planned}
    before = tuple(state_of(job) for job in jobs.values())
    left = {state.name for state in before if state.stage not in ("finished", "running")}
    for run in planned:
        if run.name in left and (trunk := jobs.get(run.branch_of or "")):
            branch = {"step": run.first_step, "checkpoint_dir": str(jobs[run.name].checkpoints)}
            jobs[trunk.name] = replace(trunk, branches=(*trunk.branches, branch))
    if not left:
        return LadderRun(before, before)
    resources = Resources(
        workers=workers,
        cpus_per_run=cpus_per_run,
        gpus_per_run=gpus_per_run,
        retries=retries,
        slurm=dict(slurm or {}),
        folder=Path(jobs[planned[0].name].work).parent,
    )
    with nullcontext(lambda name: None) if watch is None else watch([*jobs.values()]) as ended:
        for branching in (False, True):  # what branches off another run goes on from its checkpoint
            now = [jobs[run.name] for run in planned if run.name in left and (run.branch_of is not None) == branching]
            if now:
                ENGINES[engine](now, resources, ended)
    return LadderRun(tuple(state_of(job) for job in jobs.values()), before)


def _record_death(job: Job, text: str) -> None:
    """Write down what ended a run's process where it could not do so itself."""
    status = read_status(job)
    if status.get("stage", "running") == "running":
        with suppress(OSError):
            write_status(job, "failed", status.get("attempts", 1), text)


# -- processes of this machine ----------------------------------------------------------------------------------------

POLL = 0.02  # seconds between two looks at the processes


def train_locally(jobs: Sequence[Job], resources: Resources, ended: Ended) -> None:
    """Train each job in a process of this machine, so many at one time."""
    free, waiting, tries = local_slots(resources), deque(jobs), Counter[str]()
    running: dict[subprocess.Popen[bytes], tuple[Job, dict[str, str]]] = {}
    try:
        while waiting or running:
            while waiting and free:
                job, slot = waiting.popleft(), free.pop(0)
                running[_process(job, slot)] = job, slot
            for process in [process for process in running if process.poll() is not None]:
                job, slot = running.pop(process)
                free.append(slot)
                tries[job.name] += 1
                if process.returncode not in (0, os.EX_TEMPFAIL):
                    _record_exit(job, process.returncode)
                if process.returncode == 0 or tries[job.name] > resources.retries:
                    ended(job.name)
                else:
                    waiting.appendleft(job)
            time.sleep(POLL)
    finally:  # Ctrl-C: the runs end too, and go on from their checkpoints the next time
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait()


def _process(job: Job, slot: Mapping[str, str]) -> subprocess.Popen[bytes]:
    job.output.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(folder for folder in sys.path if folder)
    with open(job.output, "a", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "isoflop.ladder.attempt"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **slot, "PYTHONPATH": path},
        )
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(json.dumps(asdict(job)).encode())
    return process


def _record_exit(job: Job, code: int) -> None:
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    lines = job.output.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
    _record_death(job, "\n".join([f"its process {how}; the last of its output:", *lines]))


def local_slots(resources: Resources) -> list[dict[str, str]]:
    """The environment of each worker: its number of threads, and its devices where runs are to have some.

    Raises:
        ValueError: a part of a device, or too few devices.
    """
    threads = {"OMP_NUM_THREADS": str(resources.cpus_per_run)}
    if not resources.gpus_per_run:
        return [threads] * (resources.workers or max(1, (os.cpu_count() or 1) // resources.cpus_per_run))
    each = int(resources.gpus_per_run)
    if each != resources.gpus_per_run:
        given = f"got {resources.gpus_per_run:g}; Ray shares them"
        raise ValueError(f"--gpus-per-run: expected whole devices with --engine local, {given}")
    devices = _devices()
    workers = resources.workers or max(1, len(devices) // each)
    if len(devices) < workers * each:
        raise ValueError(f"expected {each * workers} devices for the runs at one time, got {len(devices)}")
    return [{**threads, "CUDA_VISIBLE_DEVICES": ",".join(devices[i * each : (i + 1) * each])} for i in range(workers)]


def _devices() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    # in a process of its own: what only watches the runs loads no torch, and opens no device
    code = "import torch; print(torch.cuda.device_count())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return [str(i) for i in range(int(found.stdout or 0))]


# -- Ray --------------------------------------------------------------------------------------------------------------

_RAY_SETTINGS = {
    "RAY_worker_niceness": "0",  # Ray's 15 leaves next to nothing to training where others use the machine too
    "RAY_raylet_start_wait_time_s": "120",  # on a busy machine Ray takes its time to start
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default, of which it warns
}


def train_on_ray(jobs: Sequence[Job], resources: Resources, ended: Ended) -> None:
    """Train each job as a task of Ray, on a cluster (RAY_ADDRESS) or, without one, on this machine.

    Ray tries a task again that fails or whose worker dies. Without devices its workers serve many runs: a new process
    for each of many short runs would cost more than the runs.
    """
    try:
        import ray
    except ImportError:
        raise ValueError('--engine ray needs Ray: pip install "isoflop[ray]", or take --engine local') from None

    @ray.remote(  # type: ignore[untyped-decorator, unused-ignore]
        num_cpus=resources.cpus_per_run,
        num_gpus=resources.gpus_per_run,
        max_retries=resources.retries,
        retry_exceptions=True,
    )
    def train(job: dict[str, Any]) -> None:
        attempt(Job(**job))

    with _ray_cluster(ray, resources):
        waiting = deque(jobs)
        running: dict[Any, Job] = {}
        while waiting or running:
            while waiting and len(running) < (resources.workers or math.inf):
                job = waiting.popleft()
                running[train.remote(asdict(job))] = job
            (done, *_), _ = ray.wait(list(running))
            job = running.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError:
                pass  # an error of `train`: its status file has it
            except ray.exceptions.RayError as error:
                _record_death(job, str(error))
            ended(job.name)


@contextmanager
def _ray_cluster(ray: Any, resources: Resources) -> Iterator[None]:
    """Ray, if it is not there already: a cluster's where RAY_ADDRESS names one, else one of our own."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    settings = {name: os.environ.get(name, value) for name, value in _RAY_SETTINGS.items()}
    if not os.environ.get("RAY_ADDRESS"):
        wanted = (resources.workers or 0) * resources.cpus_per_run  # may be more than there are processors
        options |= {"num_cpus": max(os.cpu_count() or 1, wanted), "include_dashboard": False}
        settings["PYTHONPATH"] = os.pathsep.join(folder for folder in sys.path if folder)
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        ray.init(**options)
        yield
    finally:
        ray.shutdown()
        for name in settings:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if value is not None})


# -- Slurm ------------------------------------------------------------------------------------------------------------


class SlurmTask:
    """A task of the array; submitit submits it again where Slurm preempts it or its time is up."""

    def __call__(self, job: Job) -> None:
        """Train the run."""
        attempt(job)

    def checkpoint(self, job: Job) -> Any:
        """Submit the run again: it goes on from its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def train_on_slurm(jobs: Sequence[Job], resources: Resources, ended: Ended) -> None:
    """Submit the jobs as an array job and wait for them.

    What is submitted outlives this process: the next one finds it by the note in each run's folder, and waits for it
    instead of submitting it again.
    """
    executor = _slurm_executor(resources)
    tries: Counter[str] = Counter()
    waiting = {job.name: (job, handle) for job in jobs if (handle := _submitted(executor, job)) is not None}
    new = [job for job in jobs if job.name not in waiting]
    while new or waiting:
        if new:
            for job, handle in zip(new, executor.map_array(SlurmTask(), new), strict=True):
                waiting[job.name] = job, handle
                _note(job).write_text(json.dumps({"job_id": handle.job_id, "folder": str(resources.folder / ".slurm")}))
        new = []
        for job, handle in list(waiting.values()):
            if not handle.done():
                continue
            del waiting[job.name]
            _note(job).unlink(missing_ok=True)
            tries[job.name] += 1
            error = handle.exception()
            if error is not None:
                lines = [*str(error).splitlines(), *(handle.stderr() or "").splitlines()]
                _record_death(job, "\n".join(lines[-ERROR_LINES:]))
            if error is None or tries[job.name] > resources.retries:
                ended(job.name)
            else:
                new.append(job)
        if waiting and not new:
            time.sleep(1.0)  # submitit itself asks the scheduler less often


def _slurm_executor(resources: Resources) -> Any:
    try:
        import submitit
    except ImportError:
        known = 'pip install "isoflop[slurm]", or take --engine local'
        raise ValueError(f"--engine slurm needs submitit: {known}") from None
    cluster = resources.slurm.get("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(folder=resources.folder / ".slurm", cluster=cluster)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--engine slurm: {error}; take --engine local or ray where there is no Slurm") from None
    executor.update_parameters(**slurm_parameters(resources))
    return executor


def slurm_parameters(resources: Resources) -> dict[str, Any]:
    """Parameters of submitit for an array.

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
    others = {name: value for name, value in resources.slurm.items() if name != "cluster"}
    if others.get("time", "").isdecimal():  # submitit has to know it: a task that is out of time is submitted again
        found["timeout_min"] = int(others.pop("time"))
    if others:
        found["slurm_additional_parameters"] = others
    return found


def _note(job: Job) -> Path:
    folder = Path(job.work)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "slurm.json"


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


ENGINES: dict[str, Callable[[Sequence[Job], Resources, Ended], None]] = {
    "ray": train_on_ray,
    "slurm": train_on_slurm,
    "local": train_locally,
}
"""By the names on the command line."""
