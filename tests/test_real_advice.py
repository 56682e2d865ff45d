"""Real training on a CPU: a ladder of tiny GPTs, then runs that are wrong on purpose and one that is not (slow).

The ladder's sizes share one budget and the middle one wins, so that `history=` moves the line; its runs and the later
ones are trained under both trainers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as package
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from tiny_gpt import GPTConfig, TinyGPT, Windows, next_token_loss, stdlib_text

from isoflop.advice import Reason, Severity
from isoflop.lightning import IsoFLOPMonitor
from isoflop.transformers import IsoFLOPCallback
from trainers import LIGHTNING_NOISE, hf_arguments, lightning_module, lightning_trainer

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(text) for text in LIGHTNING_NOISE)]

BUDGET, WINDOWS, CONTEXT = 1.2e12, 32, 64
RATES = {16: 2e-2, 32: 1.4e-2, 64: 8e-3, 256: 3e-3}
"""Width → peak learning rate."""


def steps_for(width: int) -> int:
    return round(BUDGET / (6 * (24 * width**2 + 256 * width)) / (WINDOWS * CONTEXT))


class Pairs(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Windows as Hugging Face wants them: labels aligned with the logits."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        inputs, targets = self.windows[index]
        return {"input_ids": inputs, "labels": targets}


class WithLoss(TinyGPT):
    """Gives its loss, as Hugging Face's models do."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        del self.config  # Hugging Face's Trainer would write to it

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        logits = super().forward(input_ids)
        return {"loss": next_token_loss(logits, labels), "logits": logits}


def shape(steps: int) -> Any:
    """Warm-up, then a line to a tenth."""
    warm_up = max(steps // 50, 20)
    return lambda step: min((step + 1) / warm_up, max(1 - 0.9 * (step + 1 - warm_up) / max(steps - warm_up, 1), 0.1))


def by_lightning(
    text: bytes, folder: Path, width: int, steps: int, *, rate: float | None = None, stop: int | None = None, **how: Any
) -> set[Reason]:
    torch.manual_seed(0)
    net = WithLoss(GPTConfig(width=width))

    def optimizers(self: Any) -> Any:
        optimizer = torch.optim.AdamW(net.parameters(), lr=rate or RATES[width], betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class Stop(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop |= stop is not None and trainer.global_step >= stop

    seen: list[Any] = []
    watcher = IsoFLOPMonitor(on_advice=seen.append, **how)
    trainer = lightning_trainer(
        package,
        folder,
        max_steps=steps,
        max_epochs=-1,
        min_epochs=0,
        gradient_clip_val=1.0,
        log_every_n_steps=max(steps // 100, 2),
        callbacks=[watcher, Stop()],
    )
    loader = torch.utils.data.DataLoader(
        Pairs(Windows(text, CONTEXT)), batch_size=WINDOWS, shuffle=True, drop_last=True
    )
    trainer.fit(lightning_module(package, net, configure_optimizers=optimizers), loader)
    return reasons(watcher, seen, steps)


def by_transformers(
    text: bytes, folder: Path, width: int, steps: int, *, rate: float | None = None, stop: int | None = None, **how: Any
) -> set[Reason]:
    from transformers import Trainer, TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= stop is not None and state.global_step >= stop

    torch.manual_seed(0)
    net = WithLoss(GPTConfig(width=width))
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate or RATES[width], betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape(steps))
    seen: list[Any] = []
    watcher = IsoFLOPCallback(on_advice=seen.append, **how)
    arguments = hf_arguments(
        folder, per_device_train_batch_size=WINDOWS, max_steps=steps, logging_steps=max(steps // 100, 2)
    )
    data = Pairs(Windows(text, CONTEXT))
    Trainer(
        model=net, args=arguments, train_dataset=data, callbacks=[watcher, Stop()], optimizers=(optimizer, schedule)
    ).train()
    return reasons(watcher, seen, steps)


def reasons(watcher: Any, seen: list[Any], steps: int) -> set[Reason]:
    """What was said in the first half, but for neutral lines."""
    assert not watcher.guard.aside
    found = {advice.reason for advice in seen if advice.severity > Severity.NOTE and advice.step <= steps / 2}
    return found - {Reason.HARDWARE}  # true where the tests' machine has other work


@pytest.fixture(scope="module")
def text() -> bytes:
    torch.set_num_threads(1)
    return stdlib_text()[0]


@pytest.fixture(scope="module")
def ladder(text: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ladder")
    by_lightning(text, folder / "w16", 16, steps_for(16))
    by_transformers(text, folder / "w32", 32, steps_for(32))
    by_lightning(text, folder / "w64", 64, steps_for(64))
    return folder


BOTH = pytest.mark.parametrize("train", [by_lightning, by_transformers])


@BOTH
def test_far_too_large(train: Any, text: bytes, ladder: Path, tmp_path: Path) -> None:
    assert train(text, tmp_path, 256, 100, stop=50, history=ladder) == {Reason.TOO_LARGE}


@BOTH
def test_far_too_small(train: Any, text: bytes, ladder: Path, tmp_path: Path) -> None:
    said = train(text, tmp_path, 16, 100_000, stop=300, log_every=20, history=ladder)
    assert Reason.TOO_SMALL in said and Reason.TOO_LARGE not in said


@BOTH
def test_a_learning_rate_fifty_times_too_high(train: Any, text: bytes, ladder: Path, tmp_path: Path) -> None:
    said = train(text, tmp_path, 32, 3000, rate=0.7, stop=1500, history=ladder)
    assert said & {Reason.DIVERGING, Reason.OFF_CURVE, Reason.PLATEAU}


@BOTH
def test_a_healthy_run(train: Any, text: bytes, ladder: Path, tmp_path: Path) -> None:
    assert train(text, tmp_path, 32, 3000, history=ladder) == set()
