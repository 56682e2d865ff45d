"""Two ranks (gloo, DDP) count what one process counts, under each trainer and in a plain loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tiny import (
    Rows,
    batches,
    hf_trainer,
    lightning_module,
    lightning_trainer,
    losses,
    model,
    plain_loop,
    the_run,
    totals,
)
from workers import run

ROWS = 64


def lightning_rank(folder: Path, accumulate: int) -> dict[str, float]:
    import lightning.pytorch as package

    from isoflop.lightning import IsoFLOPMonitor

    watcher = IsoFLOPMonitor()
    trainer = lightning_trainer(
        package, folder, devices=2, strategy="ddp", accumulate_grad_batches=accumulate, callbacks=[watcher]
    )
    trainer.fit(lightning_module(package, model()), batches(Rows(ROWS), 4 // accumulate))
    assert watcher.monitor is not None and not watcher.guard.aside
    return {name: value for name, value in watcher.monitor.scalars.items() if name in _AGREED}


def transformers_rank(folder: Path, accumulate: int) -> dict[str, float]:
    from isoflop.transformers import IsoFLOPCallback

    watcher = IsoFLOPCallback()
    trainer = hf_trainer(
        model(),
        folder,
        Rows(ROWS),
        [watcher],
        per_device_train_batch_size=4 // accumulate,
        gradient_accumulation_steps=accumulate,
        ddp_backend="gloo",
        ddp_find_unused_parameters=False,
    )
    assert trainer.args.world_size == 2
    trainer.train()
    assert watcher.monitor is not None and not watcher.guard.aside
    return {name: value for name, value in watcher.monitor.scalars.items() if name in _AGREED}


def plain_rank(folder: Path, accumulate: int) -> dict[str, float]:
    from torch.nn.parallel import DistributedDataParallel

    import isoflop

    rank = torch.distributed.get_rank()
    rows = torch.utils.data.Subset(Rows(ROWS), range(rank, ROWS, 2))
    net = DistributedDataParallel(model())
    with isoflop.Monitor(net, record_dir=folder, log_every=2) as monitor:
        plain_loop(net, batches(rows, 4 // accumulate), monitor=monitor, accumulate=accumulate)
    assert not monitor.guard.aside
    return {name: value for name, value in monitor.scalars.items() if name in _AGREED}


_AGREED = ("isoflop/loss", "isoflop/flops", "isoflop/tokens", "isoflop/loss_tokens")


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("train", [lightning_rank, transformers_rank, plain_rank])
def test_two_ranks_count_like_one_process(train: object, accumulate: int, tmp_path: Path) -> None:
    first, second = run(train, tmp_path, accumulate, ranks=2)
    assert first == second  # every rank knows the same, so EarlyStopping decides the same
    record = the_run(tmp_path)
    assert totals(record) == Rows(ROWS).totals()
    assert (record.status, record.problems) == ("completed", ())
    assert record.device["world_size"] == 2
    assert list(losses(record)) == [2, 4, 6, 8]
    assert record.points[-1].batch_tokens == 128
