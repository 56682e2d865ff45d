"""The three ways to train the tiny model of `tiny`: Lightning, Hugging Face, a plain loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

# -- Lightning -------------------------------------------------------------------------------------------------------

LIGHTNING_NOISE = (
    "ignore:.*does not have many workers",
    "ignore:.*GPU available but not used",
    "ignore:Checkpoint directory .* exists and is not empty",
)


def lightning_module(package: Any, net: nn.Module, *, validate: bool = False, **overrides: Callable[..., Any]) -> Any:
    """A LightningModule (of `lightning.pytorch` or `pytorch_lightning`) around a `TinyLM`."""

    class Module(package.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.net.parameters(), lr=0.01)

    if validate:
        overrides["validation_step"] = _validation_step
    for name, function in overrides.items():
        setattr(Module, name, function)
    return Module()


def _validation_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
    self.log("val_loss", self.net(**batch)["loss"])


def lightning_trainer(package: Any, folder: Path, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": str(folder),
        "max_epochs": 1,
        "log_every_n_steps": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": True,
    }
    return package.Trainer(**{**defaults, "logger": package.loggers.CSVLogger(folder), **options})


def unpickling(method: Callable[..., Any]) -> dict[str, Any]:
    """`weights_only=False` for a Trainer's method that asks (Lightning 2.6): the checkpoint is the test's own."""
    return {"weights_only": False} if "weights_only" in inspect.signature(method).parameters else {}


# -- Hugging Face ----------------------------------------------------------------------------------------------------


def hf_arguments(folder: Path, **options: Any) -> Any:
    from transformers import TrainingArguments

    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "logging_steps": 2,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    return TrainingArguments(**{**defaults, **options})


def hf_trainer(net: nn.Module, folder: Path, rows: Any, callbacks: list[Any], evaluate_on: Any = None, **options: Any):
    from transformers import Trainer

    arguments = hf_arguments(folder, **options)
    return Trainer(model=net, args=arguments, train_dataset=rows, eval_dataset=evaluate_on, callbacks=callbacks)


# -- a plain loop ----------------------------------------------------------------------------------------------------


def plain_loop(
    net: nn.Module,
    loader: Any,
    *,
    monitor: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    accumulate: int = 1,
    after_step: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Train on the loader once, `accumulate` micro-batches a step; returns the mean loss of each step."""
    optimizer = optimizer or torch.optim.AdamW(net.parameters(), lr=0.01)
    means: list[float] = []
    for step, window in enumerate(_windows(loader, accumulate), 1):
        total = torch.zeros(())
        for batch in window:
            loss = net(**batch)["loss"] / len(window)
            loss.backward()
            total = total + loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        means.append(float(total))
        if monitor is not None:
            monitor.step(total)
        after_step(step)
    return means


def splitting_loop(net: nn.Module, loader: Any, monitor: Any, optimizer: torch.optim.Optimizer, split: bool) -> None:
    """Train on the loader once, a step's batch in the parts that the Monitor says, or whole."""
    for batch in loader:
        for part, share in monitor.split(batch) if split else [(batch, 1.0)]:
            (share * net(**part)["loss"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.step()
    monitor.close()


def _windows(loader: Any, size: int) -> Iterator[list[Any]]:
    window = []
    for batch in loader:
        window.append(batch)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window
