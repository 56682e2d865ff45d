"""One rank of several is killed as it asks the others: those train on, to the bit, after one warning each at most.

Ranks of a plain loop meet in the process group's store and call no collective; each request to it is such a moment.
Each rank trains a model of its own: what DDP does where a rank is missing is not isoflop's to say.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import isoflop
from isoflop.live import ranks as ranks_of_a_run
from isoflop.record import read_runs
from tiny import Rows, TinyLM, batches, same_weights, the_run, weights
from trainers import plain_loop
from workers import kill_me, run

STEPS, LOG_EVERY = 6, 3


def _train(monitor: isoflop.Monitor | None, net: TinyLM, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    plain_loop(net, batches(Rows(4 * STEPS), 4), monitor=monitor, optimizer=optimizer)
    return weights(net)


def _fresh() -> tuple[TinyLM, torch.optim.Optimizer]:
    torch.manual_seed(dist.get_rank())
    net = TinyLM()
    return net, torch.optim.SGD(net.parameters(), lr=0.1)


def train_on(folder: Path, victim: int, at: int) -> tuple[int, list[str]]:
    """Train on this rank; `victim` is killed at its `at`-th request to the store (from 1; 0: never).

    Returns: the requests that were made here, and the warnings.
    """
    ranks_of_a_run.PATIENCE = 1.0
    expected = _train(None, *_fresh())
    requests, warnings = 0, []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    class Counted:
        def __getattr__(self, name: str) -> Any:
            def request(*args: Any) -> Any:
                nonlocal requests
                requests += 1
                if dist.get_rank() == victim and requests == at:
                    kill_me()
                return getattr(dist.group.WORLD.get_group_store(), name)(*args)

            return request

    ranks_of_a_run._store = Counted  # type: ignore[assignment]
    logging.getLogger("isoflop").addHandler(Heard(logging.WARNING))
    net, optimizer = _fresh()
    monitor = isoflop.Monitor(net, optimizer=optimizer, record_dir=folder, total_steps=STEPS, log_every=LOG_EVERY)
    came = _train(monitor, net, optimizer)
    monitor.close()
    assert same_weights(expected, came), "other weights than without isoflop"
    return requests, [text for text in warnings if "peak" not in text]


def one_kill(folder: Path, ranks: int, victim: int, at: int) -> int:
    """Train on `ranks` ranks, of which one is killed, and check what the others and the record have left.

    Returns: the requests that the first rank alive has made.
    """
    results = run(train_on, folder, victim, at, ranks=ranks, timeout=120)
    alive = [result for result in results if result != "killed"]
    assert len(alive) == ranks - (at > 0), "the rank that was to be killed lives"
    for _, warnings in alive:
        assert len(warnings) <= (at > 0), warnings
    if at and victim == 0:  # who writes the record is gone: what was written stays
        assert all(record.status == "running" for record in read_runs(folder))
    else:
        record = the_run(folder)
        assert record.status == "completed" and record.points[-1].step == STEPS
        assert (record.points[-1].tokens is None) == bool(alive[0][1])  # who dies last has given its part before
    return int(alive[0][0])


def kills_at_every_request(folder: Path, ranks: int) -> tuple[int, list[tuple[int, int, Exception]]]:
    """Each rank is killed at each request, a run each; returns the runs and what was lost: rank, request, why."""
    lost: list[tuple[int, int, Exception]] = []
    requests = [result[0] for result in run(train_on, folder / "whole", 0, 0, ranks=ranks)]
    moments = [(victim, at) for victim in range(ranks) for at in range(1, 1 + requests[victim])]
    for victim, at in moments:
        try:
            one_kill(folder / f"{victim}-{at}", ranks, victim, at)
        except Exception as error:
            lost.append((victim, at, error))
    return len(moments), lost
