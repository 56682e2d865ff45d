"""A forked copy of the process reaches nothing of the training's: no lock, no memory, no file, no signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import isoflop
from isoflop.flops import apart
from isoflop.flops.apart import run_apart
from isoflop.flops.calls import TookTooLong, Uncountable
from workers import run


def test_a_script_that_nothing_else_was_loaded_in() -> None:
    """torch's compiler is loaded by the measurement itself then, and asks for a temporary folder."""
    script = "import torch, isoflop; print(isoflop.count(torch.nn.Linear(4, 5), torch.empty(3, 4)).flops.model)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout == "240\n", done.stderr


def test_a_lock_that_is_taken_at_a_fork_and_held_around_the_forward() -> None:
    assert run(_locked, timeout=120) == [(True, 7, False)]


def _locked() -> Any:
    lock = threading.Lock()
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    with lock, pytest.raises(TookTooLong, match="lock"):
        run_apart(int)
    until = time.monotonic() + 30
    while (late := lock.locked()) and time.monotonic() < until:  # the fork that came too late
        time.sleep(0.01)
    return True, run_apart(lambda: 7), late


def test_what_is_called_at_a_fork_has_the_thread_s_own_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thread that is not in the copy they would be finalised there."""
    here, gone = threading.local(), get_context("fork").Value("i", 0)

    class Kept:
        def __del__(self) -> None:
            gone.value += 1

    here.kept = Kept()
    assert run_apart(int) == 0
    assert gone.value == 0 and isinstance(here.kept, Kept)


def test_shared_memory_stays_as_it_is(tmp_path: Path) -> None:
    number = get_context("fork").Value("i", 0)
    tensor = torch.zeros(3).share_memory_()
    mapped = np.memmap(tmp_path / "numbers", dtype="f4", mode="w+", shape=(4,))

    def changes() -> tuple[Any, ...]:
        with number.get_lock():
            number.value += 1
        mapped[1] += 2
        return number.value, tensor.add_(3).tolist(), float(mapped[1])

    assert run_apart(changes) == (1, [3.0] * 3, 2.0)
    assert (number.value, tensor.tolist(), float(mapped[1])) == (0, [0.0] * 3, 0.0)
    assert number.get_lock().acquire(timeout=5)


def test_much_shared_memory_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.ones(3).share_memory_()
    monkeypatch.setattr(apart, "COPIED", 0)
    assert run_apart(lambda: tensor.sum().item()) == 3
    with pytest.raises(TookTooLong, match="its process ended"):
        run_apart(lambda: tensor.add_(1).tolist())
    assert tensor.tolist() == [1.0] * 3


def test_more_open_files_than_select_takes() -> None:
    read, write = os.pipe()
    many = [os.dup(read) for _ in range(1100)]
    try:
        assert run_apart(lambda: 7) == 7
        with pytest.raises(Uncountable, match="Bad file descriptor"):
            run_apart(lambda: os.write(write, b"x"))
    finally:
        for number in (*many, read, write):
            os.close(number)


def test_no_more_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe", full)
    with pytest.raises(Uncountable, match="Too many open files"):
        run_apart(int)


def test_what_waits_is_given_up_and_what_computes_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "IDLE", 2.0)
    began = time.monotonic()
    with pytest.raises(TookTooLong, match="waits for a thread"):
        run_apart(lambda: time.sleep(60))
    assert time.monotonic() - began < 30

    def computes() -> int:
        end = time.process_time() + 3
        while time.process_time() < end:
            pass
        return 7

    assert run_apart(computes) == 7


def test_a_copy_that_nobody_waits_for_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "IDLE", 1.0)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        # the copy keeps this pipe open as long as it is there
        run_apart(lambda: time.sleep(100), 1.0, prepare=lambda pipe: None)
        os._exit(0)
    os.close(write)
    time.sleep(0.5)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    began = time.monotonic()
    assert os.read(read, 1) == b""
    os.close(read)
    assert time.monotonic() - began < 30


def test_a_signal_to_the_group_is_the_training_s() -> None:
    assert run(_signalled) == [(7, True)]


def _signalled() -> tuple[int, bool]:
    os.setsid()
    seen, sent, over = get_context("fork").Value("i", 0, lock=False), [0], threading.Event()

    def see(*_: Any) -> None:
        seen.value += 1

    def send() -> None:
        while not over.wait(0.005):
            os.killpg(0, signal.SIGUSR1)
            sent[0] += 1

    signal.signal(signal.SIGUSR1, see)
    thread = threading.Thread(target=send)
    thread.start()
    found = run_apart(lambda: time.sleep(0.5) or 7)
    over.set()
    thread.join()
    return found, 0 < seen.value <= sent[0]


def test_an_error_in_measuring_does_not_reach_the_compiled_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise KeyError("ours")

    monkeypatch.setattr("isoflop.flops.costing.measure_flops", fails)
    net = torch.compile(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)), backend="eager")
    monitor = isoflop.Monitor(net, record_dir=tmp_path)
    ids = torch.arange(8).view(2, 4)
    for _ in range(3):
        F.cross_entropy(net(ids).flatten(0, 1), ids.flatten()).backward()
        monitor.step(1.0)
    monitor.close()
    assert not monitor.guard.aside and monitor.totals.without_flops == 0
    assert "ours" in str(monitor.observer.costing.methods)
