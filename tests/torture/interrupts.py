"""Ctrl-C at random moments: a run ends as it would without isoflop, its record says so, and its process can train on.

A real SIGINT, sent by the process that started the run. What it interrupts is the training nearly always; each line of
isoflop's own is interrupted by `tests/test_observe_ends.py`.
"""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import torch

import isoflop
from isoflop.lightning import IsoFLOPMonitor
from isoflop.transformers import IsoFLOPCallback
from tiny import Rows, TinyLM, batches, model, the_run, weights
from trainers import hf_trainer, lightning_module, lightning_trainer, plain_loop
from workers import forking

TRAINERS = ("plain", "lightning", "transformers")
ROWS, LONGEST = 40_000, 1.0
"""Rows, of which four make a step, enough for many seconds; and after how many the signal comes at the latest."""


class Told(TinyLM):
    """Calls `tell` at its first forward."""

    tell: Any = None

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
        tell, Told.tell = Told.tell, None
        if tell is not None:
            tell()
        return super().forward(input_ids, attention_mask, labels)


def train(trainer: str, net: torch.nn.Module, folder: Path, observed: bool, rows: int) -> None:
    """A run that an exception may end."""
    if trainer == "plain":
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        monitor = isoflop.Monitor(net, optimizer=optimizer, record_dir=folder, log_every=2) if observed else None
        try:
            plain_loop(net, batches(Rows(rows), 4), monitor=monitor, optimizer=optimizer)
        finally:
            if monitor is not None:
                monitor.close()
    elif trainer == "lightning":
        import lightning.pytorch as package

        callbacks = [IsoFLOPMonitor(record_dir=folder)] if observed else []
        options = {"max_epochs": 1, "callbacks": callbacks, "log_every_n_steps": 2}
        lightning_trainer(package, folder, **options).fit(lightning_module(package, net), batches(Rows(rows), 4))
    else:
        callbacks = [IsoFLOPCallback(record_dir=folder)] if observed else []
        hf_trainer(net, folder, Rows(rows), callbacks, num_train_epochs=1, per_device_train_batch_size=4).train()


def interrupted(pipe: Any, trainer: str, folder: Path, observed: bool) -> None:
    """Train until the signal comes; then train another model in the same process, as in a notebook."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.manual_seed(1)
    net = Told()
    Told.tell = lambda: pipe.send("it trains")
    ended = "it trained to the end"
    try:
        train(trainer, net, folder / "first", observed, ROWS)
    except BaseException as error:
        ended = type(error).__name__
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning has it ignored
    try:
        modes = torch._C._len_torch_dispatch_stack()
        second = model()
        train(trainer, second, folder / "second", observed, 12)
        digest = [value.double().sum().item() for value in weights(second).values()]
        pipe.send((ended, modes, digest))
    except BaseException:
        pipe.send(traceback.format_exc())


def one_interrupt(trainer: str, folder: Path, observed: bool, wait: float) -> tuple[Any, float]:
    """What the interrupted process says of itself, and the seconds that it took to end after the signal."""
    with forking() as context:
        ours, theirs = context.Pipe()
        process = context.Process(target=interrupted, args=(theirs, trainer, folder, observed), daemon=True)
        process.start()
        theirs.close()
    assert ours.poll(120), "it does not begin"
    assert (said := ours.recv()) == "it trains", said
    time.sleep(wait)
    os.kill(process.pid, signal.SIGINT)
    began = time.monotonic()
    assert ours.poll(120), "it hangs"
    found, took = ours.recv(), time.monotonic() - began
    process.join(60)
    assert process.exitcode == 0, f"it hangs at its end, or ended with {process.exitcode}"
    return found, took


def one_moment(trainer: str, folder: Path, number: int) -> None:
    """Interrupt a run at the moment of this number, with isoflop and without, and compare.

    Raises:
        AssertionError: it ended in another way, left something behind, or its record does not say what happened.
    """
    wait = random.Random(f"{trainer} {number}").uniform(0, LONGEST)
    alone, _ = one_interrupt(trainer, folder / f"{number}-alone", False, wait)
    came, took = one_interrupt(trainer, folder / f"{number}", True, wait)
    assert came == alone and alone[0] in ("KeyboardInterrupt", "SystemExit"), (came, alone)
    assert took < 60, took
    first = folder / f"{number}" / "first"
    if any(first.rglob("isoflop-*.jsonl")):  # none, where the signal came before the first step's end
        record = the_run(first)
        assert record.status == "interrupted" and not record.problems, (record.status, record.problems)
    assert the_run(folder / f"{number}" / "second").status == "completed"
