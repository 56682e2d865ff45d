"""Two ranks (gloo, DDP) count what one process counts, under each trainer and in a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import Rows, batches, losses, model, the_run, totals
from trainers import hf_trainer, lightning_module, lightning_trainer, plain_loop, unpickling
from workers import kill_me, run

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


def ddp_trainer(folder: Path, callbacks: list[Any], evaluate_on: Any = None, **options: Any) -> Any:
    """The Hugging Face Trainer as one of two ranks."""
    given = {"per_device_train_batch_size": 4, "ddp_backend": "gloo", "ddp_find_unused_parameters": False, **options}
    return hf_trainer(model(), folder, Rows(ROWS), callbacks, evaluate_on, **given)


def transformers_rank(folder: Path, accumulate: int) -> dict[str, float]:
    from isoflop.transformers import IsoFLOPCallback

    watcher = IsoFLOPCallback()
    size = 4 // accumulate
    trainer = ddp_trainer(folder, [watcher], per_device_train_batch_size=size, gradient_accumulation_steps=accumulate)
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


# the trainers without accumulation: below, where one rank does something alone
@pytest.mark.parametrize(
    ("train", "accumulate"), [(lightning_rank, 4), (transformers_rank, 4), (plain_rank, 1), (plain_rank, 4)]
)
def test_two_ranks_count_like_one_process(train: Any, accumulate: int, tmp_path: Path) -> None:
    first, second = run(train, tmp_path, accumulate, ranks=2)
    assert first == second  # every rank knows the same, so EarlyStopping decides the same
    record = the_run(tmp_path)
    assert totals(record) == Rows(ROWS).totals()
    assert (record.status, record.problems) == ("completed", ())
    assert record.device["world_size"] == 2
    assert list(losses(record)) == [2, 4, 6, 8]
    assert record.points[-1].batch_tokens == 128


# -- what one rank does alone must not let the other wait --------------------------------------------------------------


def fail_to_log() -> None:
    from isoflop.guard import BOUNDARIES, hook
    from isoflop.live import Monitor

    def raises(*_: Any) -> None:
        raise ValueError("on purpose")

    Monitor._log = hook("logging", BOUNDARIES["logging"])(raises)  # type: ignore[method-assign]


def lightning_rank_alone(folder: Path, what: str) -> int:
    import lightning.pytorch as package

    from isoflop.lightning import IsoFLOPMonitor

    rank = torch.distributed.get_rank()
    if what == "logging fails" and rank == 1:
        fail_to_log()

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        if what != "a metric of rank 0" or rank == 0:
            self.log("val_loss", self.net(**batch)["loss"], rank_zero_only=what == "a metric of rank 0")

    watcher = IsoFLOPMonitor()
    trainer = lightning_trainer(package, folder, devices=2, strategy="ddp", val_check_interval=3, callbacks=[watcher])
    module = lightning_module(package, model(), validation_step=validation_step)
    trainer.fit(module, batches(Rows(ROWS), 4), batches(Rows(16, seed=5), 4))
    return len(watcher.guard.aside)


def transformers_rank_alone(folder: Path, what: str) -> int:
    from isoflop.transformers import IsoFLOPCallback

    rank = torch.distributed.get_rank()
    if what == "logging fails" and rank == 1:
        fail_to_log()

    watcher = IsoFLOPCallback()
    ddp_trainer(folder, [watcher], Rows(16, seed=5), eval_strategy="steps", eval_steps=3).train()
    return len(watcher.guard.aside)


@pytest.mark.parametrize(
    ("train", "what"),
    [
        (lightning_rank_alone, "a metric of rank 0"),
        (lightning_rank_alone, "logging fails"),
        (transformers_rank_alone, "logging fails"),
    ],
)
def test_what_one_rank_does_alone(train: Any, what: str, tmp_path: Path) -> None:
    aside = run(train, tmp_path, what, ranks=2)
    assert aside == [0, what == "logging fails"]
    record = the_run(tmp_path)
    assert totals(record) == Rows(ROWS).totals() and record.status == "completed"
    assert "eval/val" in str(record.points) or "eval/eval" in str(record.points)


# -- killed and resumed on two ranks -----------------------------------------------------------------------------------


def lightning_resumable(folder: Path, kill_at: int | None) -> None:
    import lightning.pytorch as package

    from isoflop.lightning import IsoFLOPMonitor

    class Kill(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == kill_at:
                kill_me()

    saver = package.callbacks.ModelCheckpoint(folder / "c", save_last=True, every_n_epochs=1)
    trainer = lightning_trainer(
        package,
        folder,
        devices=2,
        strategy="ddp",
        max_epochs=2,
        log_every_n_steps=3,  # not a divisor of an epoch's 4 steps: the checkpoint falls between two log steps
        enable_checkpointing=True,
        callbacks=[IsoFLOPMonitor(), saver, Kill()],
    )
    path = folder / "c" / "last.ckpt"
    loader = batches(Rows(ROWS // 2), 4)
    fit = {"ckpt_path": path if path.exists() else None, **unpickling(trainer.fit)}
    trainer.fit(lightning_module(package, model()), loader, **fit)


def transformers_resumable(folder: Path, kill_at: int | None) -> None:
    from transformers import TrainerCallback

    from isoflop.transformers import IsoFLOPCallback

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == kill_at:
                kill_me()

    callbacks = [IsoFLOPCallback(), Kill()]
    trainer = ddp_trainer(folder, callbacks, logging_steps=3, save_strategy="steps", save_steps=4)
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))


@pytest.mark.parametrize("train", [lightning_resumable, transformers_resumable])
def test_two_ranks_killed_and_resumed(train: Any, tmp_path: Path) -> None:
    assert run(train, tmp_path, 7, ranks=2) == ["killed", "killed"]
    assert the_run(tmp_path).status == "running"
    run(train, tmp_path, None, ranks=2)
    record = the_run(tmp_path)
    rows = Rows(ROWS // 2) if train is lightning_resumable else Rows(ROWS)
    epochs = 2 if train is lightning_resumable else 1
    assert totals(record) == {name: epochs * value for name, value in rows.totals().items()}
    assert [point.step for point in record.points] == [3, 6, 8]
    assert [point.tokens for point in record.points] == [384, 768, 1024]
    assert (record.status, record.attempts, record.problems) == ("completed", 2, ())
