"""A run that is killed with SIGKILL and resumed from its last checkpoint counts, and learns, like one in one piece."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import isoflop
from isoflop.record import Run
from tiny import Rows, batches, losses, model, the_run, totals
from trainers import LIGHTNING_NOISE, hf_trainer, lightning_module, lightning_trainer, plain_loop, unpickling
from workers import kill_me, run

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_NOISE]

ROWS = Rows(96)  # 12 steps of 8

Train = Callable[..., None]


class Resumable:
    """A loader that goes on where it was: `torch.utils.data.DataLoader` restarts its data after a resume."""

    def __init__(self, size: int) -> None:
        self.batches = list(batches(ROWS, size))
        self.done = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        while self.done < len(self.batches):
            self.done += 1
            yield self.batches[self.done - 1]

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


def train_plain(folder: Path, every: int, kill_at: int | None = None, accumulate: int = 1) -> None:
    net = model(dropout=0.1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    monitor = isoflop.Monitor(net, optimizer=optimizer, record_dir=folder, log_every=2, total_steps=12)
    loader = Resumable(8 // accumulate)
    checkpoint = folder / "checkpoint.pt"
    parts = {"net": net, "optimizer": optimizer, "monitor": monitor, "loader": loader}
    if checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(stored[name])
        torch.set_rng_state(stored["random"])

    def after_step(_: int) -> None:
        if monitor.steps % every == 0:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**states, "random": torch.get_rng_state()}, folder / "new.pt")
            os.replace(folder / "new.pt", checkpoint)
        if monitor.steps == kill_at:
            kill_me()

    plain_loop(net, loader, monitor=monitor, optimizer=optimizer, accumulate=accumulate, after_step=after_step)
    monitor.close()


def train_lightning(folder: Path, every: int, kill_at: int | None = None, accumulate: int = 1) -> None:
    import lightning.pytorch as package

    from isoflop.lightning import IsoFLOPMonitor

    class KillAndSeed(package.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            # Lightning does not restore it: after the first micro-batch of a resumed step it would save that half of a
            # step, whose gradient a checkpoint does not hold
            saver._last_global_step_saved = trainer.global_step

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            torch.manual_seed(100 + index)  # Lightning does not restore the random numbers of dropout

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            if trainer.global_step == kill_at:
                kill_me()

    checkpoints = folder / "checkpoints"
    saver = package.callbacks.ModelCheckpoint(checkpoints, every_n_train_steps=every, save_last=True, save_top_k=-1)
    killer = KillAndSeed()
    trainer = lightning_trainer(
        package,
        folder,
        enable_checkpointing=True,
        accumulate_grad_batches=accumulate,
        callbacks=[IsoFLOPMonitor(), saver, killer],
    )
    # Lightning runs the checkpoint callbacks last: the killer after them, so that a kill at a checkpoint finds it
    trainer.callbacks.sort(key=lambda callback: callback is killer)
    last = checkpoints / "last.ckpt"
    path = last if last.exists() else None
    module = lightning_module(package, model(dropout=0.1))
    trainer.fit(module, Resumable(8 // accumulate), ckpt_path=path, **unpickling(trainer.fit))


def train_transformers(folder: Path, every: int, kill_at: int | None = None, accumulate: int = 1) -> None:
    from transformers import TrainerCallback

    from isoflop.transformers import IsoFLOPCallback

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == kill_at:
                kill_me()

    trainer = hf_trainer(
        model(dropout=0.1),
        folder,
        ROWS,
        [IsoFLOPCallback(), Kill()],
        per_device_train_batch_size=8 // accumulate,
        gradient_accumulation_steps=accumulate,
        save_strategy="steps",
        save_steps=every,
    )
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))


@pytest.fixture(scope="module")
def in_one_piece(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """The run that nobody kills; of each training once."""

    @cache
    def trained(train: Train, every: int, accumulate: int) -> Run:
        folder = tmp_path_factory.mktemp("whole")
        train(folder, every, accumulate=accumulate)
        return the_run(folder)

    return trained


def killed_and_resumed(train: Train, folder: Path, every: int, kill_at: int, **options: Any) -> Run:
    folder.mkdir()
    assert run(train, folder, every, kill_at, *options.values()) == ["killed"]
    half = the_run(folder)
    assert half.status == "running" and half.points[-1].step in (kill_at, kill_at - 1)
    train(folder, every, **options)
    return the_run(folder)


@pytest.mark.parametrize(
    ("accumulate", "every", "kill_at"),
    [
        (1, 3, 5),
        (4, 3, 6),
        (4, 3, 5),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 3, 6), (1, 4, 7), (4, 4, 7)]),
    ],
)
@pytest.mark.parametrize("train", [train_plain, train_lightning, train_transformers])
def test_a_killed_run_goes_on(
    train: Train,
    every: int,
    kill_at: int,
    accumulate: int,
    in_one_piece: Callable[..., Run],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = in_one_piece(train, every, accumulate)
    resumed = killed_and_resumed(train, tmp_path / "killed", every, kill_at, accumulate=accumulate)
    assert totals(whole) == totals(resumed) == ROWS.totals()
    assert [point.step for point in resumed.points] == [2, 4, 6, 8, 10, 12]
    assert (resumed.status, resumed.attempts, resumed.problems) == ("completed", 2, ())
    assert [point.interval_steps for point in resumed.points] == [2] * 6
    for name in ("tokens", "flops", "padding", "loss_tokens", "flops_6nd", "lr", "batch_tokens"):
        assert [getattr(point, name) for point in resumed.points] == [getattr(point, name) for point in whole.points]
    expected = losses(whole)
    if train is train_transformers and every % 2:
        del expected[4 if kill_at == 5 else 8]  # the Trainer does not keep the loss since its last log step
    # the same to rounding: a save reads the float32 sum of the losses so far
    assert {step: loss for step, loss in losses(resumed).items() if step in expected} == pytest.approx(expected, 1e-7)
    assert "goes on from step" not in caplog.text
