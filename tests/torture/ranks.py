"""One rank of several is killed at a collective of isoflop's: the others train on, to the bit, after one warning each.

Each rank trains a model of its own: what DDP does where a rank is missing is not isoflop's to say.
"""

from __future__ import annotations

import logging
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import isoflop
from tiny import Rows, TinyLM, batches, same_weights, the_run, weights
from workers import kill_me, run

STEPS, LOG_EVERY = 12, 3
COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_object",
    "all_gather_into_tensor",
    "broadcast",
    "reduce",
    "barrier",
)
"""Of torch.distributed, by any of which isoflop could ask the other ranks."""


def _train(monitor: isoflop.Monitor | None, net: TinyLM, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    for batch in batches(Rows(4 * STEPS), 4):
        loss = net(**batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if monitor is not None:
            monitor.step(loss)
    return weights(net)


def _fresh() -> tuple[TinyLM, torch.optim.Optimizer]:
    torch.manual_seed(dist.get_rank())
    net = TinyLM()
    return net, torch.optim.SGD(net.parameters(), lr=0.1)


def train_on(folder: Path, victim: int, at: int) -> tuple[int, list[str]]:
    """Train on this rank; `victim` is killed as it enters its `at`-th collective (from 1; 0: never).

    Returns: the collectives that were entered here, and the warnings.
    """
    expected = _train(None, *_fresh())
    entered, warnings = 0, []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    def counted(function: Any) -> Any:
        def collective(*args: Any, **more: Any) -> Any:
            nonlocal entered
            entered += 1
            if dist.get_rank() == victim and entered == at:
                kill_me()
            return function(*args, **more)

        return collective

    for name in COLLECTIVES:
        setattr(dist, name, counted(getattr(dist, name)))
    logging.getLogger("isoflop").addHandler(Heard(logging.WARNING))
    net, optimizer = _fresh()
    monitor = isoflop.Monitor(net, optimizer=optimizer, record_dir=folder, total_steps=STEPS, log_every=LOG_EVERY)
    came = _train(monitor, net, optimizer)
    monitor.close()
    assert same_weights(expected, came), "other weights than without isoflop"
    return entered, [text for text in warnings if "summing over ranks" in text]


def one_kill(folder: Path, ranks: int, victim: int, at: int) -> int:
    """Train on `ranks` ranks, of which one is killed, and check what the others and the record have left.

    Returns: the collectives that the first rank alive has entered.
    """
    results = run(train_on, folder, victim, at, ranks=ranks, timeout=120)
    alive = [result for result in results if result != "killed"]
    assert len(alive) == ranks - (at > 0), "the rank that was to be killed lives"
    for _, warnings in alive:
        assert len(warnings) == (at > 0), warnings
    record = the_run(folder)
    last = record.points[-1].step if record.points else 0
    if at and victim == 0:  # who writes the record is gone: what was written stays
        assert record.status == "running" and last <= STEPS
    else:
        assert record.status == "completed" and last == STEPS
        assert (record.points[-1].tokens is None) == (at > 0)
    return int(alive[0][0])


def kills_at_every_collective(folder: Path, ranks: int) -> tuple[int, list[tuple[int, int, Exception]]]:
    """Each rank is killed at each collective, a run each; returns the runs and what was lost: rank, collective, why."""
    lost: list[tuple[int, int, Exception]] = []
    moments = list(product(range(ranks), range(1, 1 + one_kill(folder / "whole", ranks, 0, 0))))
    for victim, at in moments:
        try:
            one_kill(folder / f"{victim}-{at}", ranks, victim, at)
        except Exception as error:
            lost.append((victim, at, error))
    return len(moments), lost
