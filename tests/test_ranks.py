"""Ranks that do not do the same: nothing hangs or raises, the weights are those without isoflop, and it is said."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import isoflop
from isoflop.flops import StepObserver, Totals
from isoflop.guard import Guard
from isoflop.live import monitor as monitor_of_a_run
from isoflop.live import ranks as ranks_of_a_run
from isoflop.live.ranks import Ranks
from tiny import Rows, TinyLM, batches, losses, the_run, weights
from trainers import hf_trainer, lightning_module, lightning_trainer
from workers import kill_me, run

STEPS = 8


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        logging.getLogger("isoflop").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


OPTIONS: dict[str, Any] = {
    "alike": lambda rank: {"log_every": 2},
    "rank 0 alone": lambda rank: None if rank else {"log_every": 2},
    "rank 1 alone": lambda rank: {"log_every": 2} if rank else None,
    "another interval": lambda rank: {"log_every": 2 + rank},
    "another noise scale": lambda rank: {"log_every": 2, "noise_scale": ("auto", "off")[rank]},
    "another end": lambda rank: {"log_every": 3, "total_steps": STEPS - rank},
    "advice on one": lambda rank: {"log_every": 2, "on_advice": ("warn", "stop")[rank]},
    "step() on rank 0": lambda rank: {"log_every": 2},
    "before the group": lambda rank: {"log_every": 2},
    "rank 1 late": lambda rank: {"log_every": 1 + rank},
    "rank 1 passes over a step": lambda rank: {"log_every": 2},
}


def trained(folder: Path, kind: str | None) -> dict[str, Any]:
    ranks_of_a_run.PATIENCE = 1.0
    heard, rank = Heard(), dist.get_rank()
    net = DistributedDataParallel(TinyLM())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    options = None if kind is None else OPTIONS[kind](rank)
    early = {"rank": lambda: 0, "world_size": lambda: 1} if kind == "before the group" else {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in early.items():
            patch.setattr(monitor_of_a_run, name, value)
            patch.setattr(ranks_of_a_run, name, value)
        monitor = None if options is None else isoflop.Monitor(net, optimizer=optimizer, record_dir=folder, **options)
    late, store = kind == "rank 1 late", dist.group.WORLD.get_group_store()
    for number, batch in enumerate(batches(Rows(4 * STEPS), 4)):
        loss = net(**batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if late and rank and not monitor.steps:
            store.wait(["rank 0 went on"])
        passes = kind == "step() on rank 0" or (kind == "rank 1 passes over a step" and number == 2)
        if monitor is not None and not (rank and passes):
            odd = kind == "NaN padding" and monitor.steps == 4 and rank
            monitor.step(loss, tokens=isoflop.TokenCount(32, padding=float("nan")) if odd else None)  # type: ignore[arg-type]
            store.set("rank 0 went on" if rank == 0 else "rank 1 did", "")
    if monitor is not None:
        monitor.close()
    found = {name: value.numpy() for name, value in weights(net.module).items()}
    return {"weights": found, "heard": [text for text in heard.texts if "peak" not in text]}


SAID = {
    "alike": None,
    "NaN padding": "reading the counts failed",
    "rank 0 alone": "only 1 of 2 ranks called their Monitor's step()",
    "rank 1 alone": "only 1 of 2 ranks called their Monitor's step()",
    "another interval": "ranks differ in log_every: 2 on rank 0, 3 on rank 1. 2 is taken on all",
    "another noise scale": "ranks differ in noise_scale: auto on rank 0, off on rank 1. off is taken on all",
    "another end": "ranks differ in total_steps: 8 on rank 0, 7 on rank 1. 8 is taken on all",
    "advice on one": None,
    "before the group": None,
    "rank 1 late": "only 1 of 2 ranks called their Monitor's step()",
    "step() on rank 0": "only 1 of 2 ranks called their Monitor's step()",
    "rank 1 passes over a step": "only 1 of 2 ranks came to the sum at step 4",  # the other is in DDP's backward
}
OPTIONS["NaN padding"] = OPTIONS["alike"]


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(trained, tmp_path_factory.mktemp("without"), None, ranks=2)


@pytest.mark.parametrize("kind", SAID)
def test_ranks_that_differ(kind: str, without: list[dict[str, Any]], tmp_path: Path) -> None:
    results = run(trained, tmp_path, kind, ranks=2)
    for expected, came in zip(without, results, strict=True):
        assert all((came["weights"][name] == value).all() for name, value in expected["weights"].items())
    texts = [text for result in results for text in result["heard"]]
    said = SAID[kind]
    assert (not texts) if said is None else sum(said in text for text in texts) == 1, texts
    if kind == "rank 1 alone":
        return
    record = the_run(tmp_path)
    known = "alone" not in kind and "on rank 0" not in kind and "passes" not in kind and kind != "NaN padding"
    every = {"another end": 3, "rank 1 late": 1}.get(kind, 2)
    assert list(losses(record)) == [*range(every, STEPS + 1, every)] + ([STEPS] if STEPS % every else [])
    assert record.points[-1].tokens == (2 * 16 * 4 * STEPS if known else None)
    if kind == "rank 1 late":  # what was counted before the ranks agreed is in their first sum
        assert {point.step: point.tokens for point in record.points if point.tokens} == {7: 896, 8: 1024}
        assert [point.batch_tokens for point in record.points] == [None] * 6 + [128.0] * 2


# -- ranks that train models of their own, and may do different numbers of steps --------------------------------------


def trained_alone(folder: Path, steps: tuple[int, ...], late: int, dies: int, observed: bool) -> dict[str, Any]:
    """`steps` of each rank, then a barrier; rank 1 is `late` at that step's end or `dies` there (0: never)."""
    ranks_of_a_run.PATIENCE = 1.0
    heard, rank, store = Heard(), dist.get_rank(), dist.group.WORLD.get_group_store()
    torch.manual_seed(rank)
    net = TinyLM()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    monitor = isoflop.Monitor(net, optimizer=optimizer, record_dir=folder, log_every=1) if observed else None
    for step, batch in enumerate(batches(Rows(4 * steps[rank]), 4), 1):
        loss = net(**batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if observed and rank == 1 and step == late:
            store.wait(["the others went on"])
        if rank == 1 and step == dies:
            kill_me()
        if monitor is not None:
            monitor.step(loss)
            if late and step > late and rank != 1:
                store.set("the others went on", "")
    if not dies:
        dist.barrier()
    if monitor is not None:
        monitor.close()
    found = {name: value.numpy() for name, value in weights(net).items()}
    return {"weights": found, "heard": [text for text in heard.texts if "peak" not in text]}


MISSED = "ranks came to the sum at step"


@pytest.mark.parametrize(
    ("steps", "late", "dies", "tokens"),
    [
        ((12, 12), 0, 0, {12: 12}),
        ((12, 12, 12, 12), 0, 0, {12: 12}),
        ((5, 12), 0, 0, {5: 5}),  # rank 1 waits once where rank 0 is at the barrier
        ((12, 5), 0, 0, {5: 5, 6: None, 12: None}),
        ((4, 12, 7, 9), 0, 0, {4: 4}),
        ((24, 24), 6, 0, {5: 5, 6: None, 8: None, 24: 24}),  # a late rank costs some points their totals, no more
        ((24, 24, 24, 24), 6, 0, {5: 5, 6: None, 8: None, 24: 24}),
        ((12, 12), 0, 6, {5: 5, 6: None, 12: None}),
        ((12, 12, 12, 12), 0, 6, {5: 5, 6: None, 12: None}),
    ],
)
def test_ranks_with_models_of_their_own(
    steps: tuple[int, ...], late: int, dies: int, tokens: dict[int, int | None], tmp_path: Path
) -> None:
    ranks = len(steps)
    alone = run(trained_alone, tmp_path, steps, late, dies, False, ranks=ranks)
    results = run(trained_alone, tmp_path, steps, late, dies, True, ranks=ranks, timeout=60)
    texts = []
    for expected, came in zip(alone, results, strict=True):
        assert (expected == "killed") == (came == "killed")
        if came != "killed":
            assert all((came["weights"][name] == value).all() for name, value in expected["weights"].items())
            texts.append(came["heard"])
            assert len(came["heard"]) <= 1 and all(MISSED in text for text in came["heard"]), came["heard"]
    assert any(texts) == (bool(late or dies) or len(set(steps)) > 1)
    points = {point.step: point.tokens for point in the_run(tmp_path).points}
    assert len(points) == steps[0]
    for step, rows in tokens.items():
        assert points[step] == (None if rows is None else rows * ranks * 4 * 16), (step, points)


class Adrift:
    """Some ranks' store in one process, and its time: the other rank looks, and does not come to the sum."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.now, self.waited = 0.0, 0.0

    def set(self, name: str, value: str) -> None:
        self.values[name] = value.encode()

    def get(self, name: str) -> bytes:
        return self.values[name]

    def check(self, names: list[str]) -> bool:
        return all(name in self.values for name in names)

    def wait(self, names: list[str], patience: timedelta) -> None:
        if not self.check(names):
            self.now += patience.total_seconds()
            self.waited += patience.total_seconds()
            raise RuntimeError("it took too long")

    def delete_key(self, name: str) -> bool:
        return self.values.pop(name, None) is not None

    def multi_get(self, names: list[str]) -> list[bytes]:
        return [self.values[name] for name in names]

    def compare_set(self, name: str, expected: str, value: str) -> bytes:
        return self.values.setdefault(name, value.encode())


def test_waiting_in_vain_is_limited(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Thirty seconds and 1% of the run, whatever its length; and what was counted is in the sum once all come again."""
    store, settings = Adrift(), ranks_of_a_run.Settings(1, None, "auto", False)
    monkeypatch.setattr(ranks_of_a_run, "world_size", lambda: 2)
    monkeypatch.setattr(ranks_of_a_run, "_store", lambda: store)
    monkeypatch.setattr(ranks_of_a_run, "time", SimpleNamespace(monotonic=lambda: store.now))
    ranks, step, misses = Ranks(Guard(), settings), 0, 0

    def log_step(comes: bool) -> Totals:
        nonlocal step, misses
        step, store.now = step + 1, store.now + 5
        place = f"{ranks._key}/{ranks._round}"
        store.set(f"{place}/settings/1", json.dumps([step, *settings]))
        ranks.agree(step)
        if comes:
            row = [*map(int, Totals(processed=10 * step))], [step, 1.0, 1.0]
            store.set(f"{place}/{ranks._sums}/1", json.dumps(row))
        before = ranks._round
        totals, _ = ranks.total(Totals(processed=10 * step), [1.0, 1.0], [], step, None)
        misses += ranks._round - before
        return totals

    for _ in range(2000):
        assert log_step(comes=False).processed == 0 and ranks.open
    assert misses > 200 and store.waited < 31 + 0.01 * store.now
    assert len([name for name in store.values if not name.endswith("/settings/1")]) < 10  # the other rank's stay here
    found = [log_step(comes=True).processed for _ in range(20)]
    assert found[-1] == 2 * 10 * step
    assert sum("ranks came to the sum" in record.message for record in caplog.records) == 1


# -- a part of an adapter fails on one rank: it takes part in every sum all the same -----------------------------------


def raiser(*_: Any, **__: Any) -> None:
    raise ValueError("on purpose")


def lightning_rank(folder: Path, target: str) -> tuple[int, str]:
    import lightning.pytorch as package

    import isoflop_lightning.callback as adapter

    if dist.get_rank() == 1:
        owner = StepObserver if target == "batch" else adapter if hasattr(adapter, target) else adapter.Monitor
        setattr(owner, target, raiser)
    net = TinyLM()
    watcher = adapter.IsoFLOPMonitor()
    trainer = lightning_trainer(package, folder, devices=2, strategy="ddp", val_check_interval=3, callbacks=[watcher])
    loaders = batches(Rows(64), 4), batches(Rows(16, seed=5), 4)
    trainer.fit(lightning_module(package, net, validate=True), *loaders)
    return trainer.global_step, ", ".join(watcher.guard.aside)


def transformers_rank(folder: Path, target: str) -> tuple[int, str]:
    from isoflop_transformers.callback import IsoFLOPCallback, Monitor

    if dist.get_rank() == 1:
        setattr(Monitor, target, raiser)
    watcher = IsoFLOPCallback()
    options = {"per_device_train_batch_size": 4, "ddp_backend": "gloo", "ddp_find_unused_parameters": False}
    trainer = hf_trainer(
        TinyLM(), folder, Rows(64), [watcher], Rows(16, seed=5), eval_strategy="steps", eval_steps=3, **options
    )
    trainer.train()
    return trainer.state.global_step, ", ".join(watcher.guard.aside)


@pytest.mark.parametrize(
    ("train", "target", "aside"),
    [
        (lightning_rank, "batch", "counting the batch"),
        (lightning_rank, "loss", "Lightning: a batch's end"),
        (lightning_rank, "evaluation_name", "Lightning: on_validation_end"),
        (transformers_rank, "evaluate", "Hugging Face: on_evaluate"),
    ],
)
def test_a_rank_whose_adapter_fails_takes_part_in_every_sum(
    train: Any, target: str, aside: str, tmp_path: Path
) -> None:
    (steps, none), (others, failed) = run(train, tmp_path, target, ranks=2)
    assert steps == others == STEPS and (none, failed) == ("", aside)
    record = the_run(tmp_path)
    assert record.status == "completed" and record.points[-1].step == STEPS
    assert (record.points[-1].tokens is None) == ("batch" in aside)
