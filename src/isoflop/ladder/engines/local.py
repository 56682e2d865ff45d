"""The ladder on this machine: a process for each run, so many at one time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from queue import SimpleQueue

from isoflop.ladder.attempt import Job, as_text
from isoflop.ladder.engines import Resources
from isoflop.ladder.state import read_status, write_status


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
