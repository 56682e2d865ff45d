"""Ranks that do not do the same: nothing hangs or raises, the weights are those without isoflop, and it is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import isoflop
from isoflop.flops import StepObserver
from isoflop.live import monitor as monitor_of_a_run
from isoflop.live import ranks as ranks_of_a_run
from tiny import Rows, TinyLM, batches, losses, the_run, weights
from trainers import hf_trainer, lightning_module, lightning_trainer
from workers import run

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
    for batch in batches(Rows(4 * STEPS), 4):
        loss = net(**batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if late and rank and not monitor.steps:
            store.wait(["rank 0 went on"])
        if monitor is not None and not (rank and kind == "step() on rank 0"):
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
    known = "alone" not in kind and "on rank 0" not in kind and kind != "NaN padding"
    every = {"another end": 3, "rank 1 late": 1}.get(kind, 2)
    assert list(losses(record)) == [*range(every, STEPS + 1, every)] + ([STEPS] if STEPS % every else [])
    assert record.points[-1].tokens == (2 * 16 * 4 * STEPS if known else None)
    if kind == "rank 1 late":  # what was counted before the ranks agreed is in their first sum
        assert {point.step: point.tokens for point in record.points if point.tokens} == {7: 896, 8: 1024}
        assert [point.batch_tokens for point in record.points] == [None] * 6 + [128.0] * 2


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
