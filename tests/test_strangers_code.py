"""What other code makes of the process while a step is observed stays; nothing of ours is in its way."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import nn

import isoflop
import isoflop.guard
from isoflop.record.writer import RecordLog
from tiny import Rows, batches, model
from workers import run

BATCH = next(iter(batches(Rows(8), 8)))


def test_a_class_is_pickled_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As MLflow and Ray do with classes of a script: what is loaded needs no isoflop."""

    class Own(nn.Linear):
        pass

    class Calls(nn.Linear):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return super().__call__(x) + 1

    for kind in (Own, Calls):
        net = kind(2, 2)
        before = net(torch.ones(2))
        monitor = isoflop.Monitor(net, record_dir=tmp_path)
        net(torch.ones(1, 2)).sum().backward()
        assert "__call__" in vars(kind)
        content = cloudpickle.dumps(net)
        monitor.close()
        with monkeypatch.context() as elsewhere:
            for name in [name for name in sys.modules if name.split(".")[0] == "isoflop"]:
                elsewhere.setitem(sys.modules, name, None)
            assert pickle.loads(content)(torch.ones(2)).equal(before)


@pytest.mark.parametrize("home", ["class", "thread"])
def test_what_others_put_there_meanwhile_stays(home: str, tmp_path: Path) -> None:
    net = model()
    kind, name = {"class": (type(net), "__call__"), "thread": (threading.Thread, "start")}[home]
    own = vars(kind).get(name)
    monitor = isoflop.Monitor(net, record_dir=tmp_path)
    net(**BATCH)["loss"].backward()
    ours, called = vars(kind)[name], []
    assert ours is not own

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(1)
        return ours(self, *args, **kwargs)

    setattr(kind, name, theirs)
    try:
        monitor.step(1.0)
        monitor.close()
        assert vars(kind)[name] is theirs
        net(**BATCH)
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
        assert called
    finally:
        if own is None:
            delattr(kind, name)
        else:
            setattr(kind, name, own)


def test_what_others_take_back_meanwhile_does_not_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: first(thread))
    net = model()
    monitor = isoflop.Monitor(net, record_dir=tmp_path)
    net(**BATCH)["loss"].backward()
    threading.Thread.start = first  # type: ignore[method-assign]
    monitor.step(1.0)
    monitor.close()
    assert threading.Thread.start is first


def test_a_worker_that_is_forked_while_a_step_is_observed(tmp_path: Path) -> None:
    net = model()
    monitor = isoflop.Monitor(net, record_dir=tmp_path)
    net(**BATCH)["loss"]
    assert torch._C._len_torch_dispatch_stack() == 1
    child = os.fork()
    if child == 0:
        clean = torch._C._len_torch_dispatch_stack() == 0 and threading.Thread.start.__module__ == "threading"
        os._exit(0 if clean else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch._C._len_torch_dispatch_stack() == 1
    monitor.close()


def test_a_process_forked_while_another_thread_writes_the_record(tmp_path: Path) -> None:
    log = RecordLog.create(tmp_path, "one", {})
    with log._one_at_a_time:
        holder_is_gone = []

        def forks() -> None:
            child = os.fork()
            if child == 0:
                try:
                    log.event("late")
                except isoflop.record.RecordError:
                    os._exit(0)
                os._exit(1)
            holder_is_gone.append(os.waitpid(child, 0)[1])

        thread = threading.Thread(target=forks)
        thread.start()
        thread.join(60)
    assert holder_is_gone == [0]
    log.close()


def test_a_warning_leaves_the_start_method_open() -> None:
    """tqdm's lock, where there is no bar, is not made: it would settle how processes are started."""
    assert run(_warned) == ["spawn"]


def _warned() -> Any:
    import multiprocessing

    import tqdm

    for each in (tqdm.tqdm, *tqdm.tqdm.__subclasses__()):
        if "_lock" in vars(each):
            del each._lock
    tqdm.std.TqdmDefaultWriteLock.__dict__.get("mp_lock") and delattr(tqdm.std.TqdmDefaultWriteLock, "mp_lock")
    multiprocessing.set_start_method(None, force=True)
    isoflop.guard.warn("a warning")
    multiprocessing.set_start_method("spawn")
    return multiprocessing.get_start_method()
