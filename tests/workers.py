"""Training in processes of its own: several ranks (gloo), and processes that kill themselves with SIGKILL.

A fork server imports torch and the trainers once; workers are forked from it, so each costs no import.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_PRELOAD = [
    "isoflop",
    "isoflop.lightning",
    "isoflop.transformers",
    "transformers.trainer",
    "torch.utils.tensorboard",
    "tiny",
    "workers",
]
_TIMEOUT = 180.0
"""Seconds: a busy machine takes many."""


def run(function: Callable[..., Any], *args: Any, ranks: int = 1, timeout: float = _TIMEOUT) -> list[Any]:
    """Call `function(*args)` on each rank; returns what each returned; `Killed` for a process that was killed."""
    with forking() as context:
        rendezvous = str(Path(os.environ.get("TMPDIR", "/tmp")) / f"isoflop-gloo-{os.getpid()}-{os.urandom(4).hex()}")
        pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
        processes = [
            context.Process(target=_worker, args=(pipe, function, args, rank, ranks, rendezvous), daemon=True)
            for rank, (_, pipe) in enumerate(pipes)
        ]
        for process, (_, pipe) in zip(processes, pipes, strict=True):
            process.start()
            pipe.close()
    results = []
    for process, (pipe, _) in zip(processes, pipes, strict=True):
        try:
            assert pipe.poll(timeout), "a worker hangs"
            ok, result = pipe.recv()
        except EOFError:
            process.join(_TIMEOUT)
            assert process.exitcode == -signal.SIGKILL, f"a worker ended with {process.exitcode}"
            results.append("killed")
            continue
        process.join(_TIMEOUT)
        assert ok, result
        results.append(result)
    Path(rendezvous).unlink(missing_ok=True)
    return results


@contextmanager
def forking() -> Iterator[Any]:
    """Where processes are started: multiprocessing's context with a fork server that finds the tests' modules."""
    context = multiprocessing.get_context("forkserver")
    folder = Path(__file__).parent
    paths = [folder, folder.parent / "src", folder.parent / "integrations", os.environ.get("PYTHONPATH", "")]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(str(path) for path in paths if str(path))
    try:
        context.set_forkserver_preload(_PRELOAD)
        yield context
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _worker(
    pipe: Any, function: Callable[..., Any], args: tuple[Any, ...], rank: int, ranks: int, rendezvous: str
) -> None:
    gc.freeze()  # what the fork server imported stays: trainers collect garbage often, a third of a second each time
    torch.set_num_threads(1)
    try:
        if ranks > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            os.environ.update({name: str(value) for name, value in names.items()})
            # never used (the process group is there already), but asked for
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500", OMP_NUM_THREADS="1")
            dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
        pipe.send((True, function(*args)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    finally:
        pipe.close()
        if dist.is_initialized():
            dist.destroy_process_group()
