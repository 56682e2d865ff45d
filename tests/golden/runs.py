"""Scripted runs of a tiny language model: a plain loop, Lightning, the Hugging Face Trainer.

An optimizer step takes a second of the scripted clock, an evaluation batch a quarter. Each leaves a record, event
files and the lines that it said.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

import isoflop
from golden.clock import scripted_clock, tick
from tiny import TinyLM as OneLayer

VOCABULARY, LENGTH, ROWS, ACCUMULATE = 32, 16, 16, 2
STEPS, LOG_EVERY, EVALUATE_EVERY, WARM_UP, PEAK = 160, 2, 40, 8, 0.01


@dataclass(frozen=True)
class Ran:
    """What a scripted run left.

    Attributes:
        folder: everything is below it.
        said: lines on standard output and in isoflop's log, in order.
    """

    folder: Path
    said: tuple[str, ...]

    @property
    def record(self) -> Path:
        """The one record below the folder."""
        (path,) = sorted(self.folder.rglob("isoflop-*.jsonl"))
        return path

    @property
    def run(self) -> isoflop.Run:
        """The record as it is read."""
        return isoflop.read_run(self.record)


class TinyLM(nn.Module):
    """Attention and feed-forward layers; `labels` are aligned with the logits."""

    def __init__(self, width: int = 16, layers: int = 1, config: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        if config:
            self.config = {"n_layer": layers, "n_embd": width, "n_head": 1, "vocab_size": VOCABULARY}

    forward = OneLayer.forward

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unsqueeze(1) for part in self.qkv(x).chunk(3, -1))
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)
        return x + self.down(F.gelu(self.up(x)))


def tiny(width: int = 16, layers: int = 1, seed: int = 1, config: bool = False) -> TinyLM:
    """A model whose weights are those of its seed."""
    net = TinyLM(width, layers, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in net.parameters():
            scale = 1 / math.sqrt(weight.shape[-1]) if weight.dim() > 1 else 0.0
            weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return net


def sequences(count: int, seed: int) -> torch.Tensor:
    """Sequences of a chain that can be learnt: each token follows from the one before, up to one of three."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(3, (count, LENGTH + 1), generator=generator)
    ids = torch.empty(count, LENGTH + 1, dtype=torch.long)
    ids[:, 0] = torch.randint(VOCABULARY, (count,), generator=generator)
    for i in range(LENGTH):
        ids[:, i + 1] = (5 * ids[:, i] + 1 + noise[:, i]) % VOCABULARY
    return ids


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Sequences in a trainer's dataset; `padded` ones end early. An evaluation's rows take time."""

    def __init__(self, count: int, seed: int, padded: bool = False, seconds: float = 0.0) -> None:
        ids = sequences(count, seed)
        self.ids, self.labels, self.seconds = ids[:, :-1], ids[:, 1:].clone(), seconds
        ends = LENGTH - (torch.arange(count) % 3 if padded else torch.zeros(count, dtype=torch.long))
        self.mask = (torch.arange(LENGTH)[None] < ends[:, None]).long()
        self.labels[self.mask == 0] = -100

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tick(self.seconds)
        return {"input_ids": self.ids[index], "attention_mask": self.mask[index], "labels": self.labels[index]}


def rate(step: int, steps: int = STEPS) -> float:
    """Warm-up, then a cosine to a tenth: a factor on the peak."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, (step - WARM_UP) / (steps - WARM_UP))))


def optimizer_of(net: nn.Module, steps: int = STEPS) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW, whose steps take a second each, and its schedule."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK, betas=(0.9, 0.95))  # Adam's v settles soon
    optimizer.register_step_post_hook(lambda *_: tick(1.0))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """What is said meanwhile, on standard output and by isoflop's loggers."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.extend(  # type: ignore[method-assign]
        f"{record.levelname}: {record.getMessage()}".replace("\n", "\n  | ").split("\n")
    )
    logger = logging.getLogger("isoflop")
    logger.addHandler(handler)
    try:
        with contextlib.redirect_stdout(_Lines(lines)):
            yield lines
    finally:
        logger.removeHandler(handler)


class _Lines(io.TextIOBase):
    """A stream that appends whole lines to a list."""

    def __init__(self, lines: list[str]) -> None:
        self._lines, self._rest = lines, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *whole, self._rest = (self._rest + text).split("\n")
        self._lines.extend(line for line in whole if line.strip())
        return len(text)


# -- a plain loop ----------------------------------------------------------------------------------------------------


def plain(
    folder: Path,
    *,
    name: str = "plain",
    width: int = 16,
    layers: int = 1,
    steps: int = STEPS,
    seed: int = 1,
    stop_at: int | None = None,
    checkpoint: dict[str, Any] | None = None,
    evaluate: bool = True,
    **options: Any,
) -> tuple[Ran, dict[str, Any]]:
    """Train in a plain loop.

    Args:
        folder: of the record.
        name: of the run.
        width, layers: of the model.
        steps: planned.
        seed: of weights and data.
        stop_at: the step after which the process is gone, without an end.
        checkpoint: what an earlier call gave back, to go on from.
        evaluate: whether there is a held-out set.
        **options: of the Monitor.

    Returns:
        What it left, and a checkpoint.
    """
    held_out = sequences(32, 999)
    with heard() as said, scripted_clock():
        net = tiny(width, layers, seed, config=True)
        optimizer, scheduler = optimizer_of(net, steps)
        monitor = isoflop.Monitor(
            net,
            optimizer=optimizer,
            scheduler=scheduler,
            total_steps=steps,
            run_name=name,
            record_dir=folder,
            log_every=LOG_EVERY,
            **options,
        )
        first = 0
        if checkpoint is not None:
            net.load_state_dict(checkpoint["model"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            scheduler.load_state_dict(checkpoint["scheduler"])
            monitor.load_state_dict(checkpoint["monitor"])
            first = checkpoint["step"]
        for step in range(first, stop_at or steps):
            total = torch.zeros(())
            for part in range(ACCUMULATE):
                ids = sequences(ROWS, 10_000 * seed + ACCUMULATE * step + part)
                loss = net(ids[:, :-1], labels=ids[:, 1:])["loss"] / ACCUMULATE
                loss.backward()
                total += loss.detach()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            monitor.step(total)
            if evaluate and (step + 1) % EVALUATE_EVERY == 0:
                with monitor.evaluating(), torch.no_grad():
                    tick(1.0)
                    value = net(held_out[:, :-1], labels=held_out[:, 1:])["loss"]
                monitor.evaluate("held_out", value)
        done = {
            "model": {name: value.clone() for name, value in net.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "monitor": json.loads(json.dumps(monitor.state_dict())),  # plain values, whatever keeps them
            "step": stop_at or steps,
        }
        if stop_at is None:
            monitor.close()
    return Ran(folder, tuple(said)), done


# -- Lightning -------------------------------------------------------------------------------------------------------

EPOCHS = 2
LIGHTNING_NOISE = (
    "ignore:.*does not have many workers",
    "ignore:.*GPU available but not used",
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:.*isinstance.treespec, LeafSpec.* is deprecated",
)


def lightning(folder: Path, *, stop_after_epoch: int | None = None, resume: bool = False, **options: Any) -> Ran:
    """Train under Lightning, with TensorBoard, validation and a checkpoint each epoch.

    Args:
        folder: of the logger's files and checkpoints.
        stop_after_epoch: as if the process were gone then.
        resume: go on from the checkpoint.
        **options: of the callback.
    """
    import lightning.pytorch as pl

    from isoflop.lightning import IsoFLOPMonitor

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny(seed=2)

        def training_step(self, batch: Any, index: int) -> Any:
            return self.net(**batch)["loss"]

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", self.net(**batch)["loss"])

        def configure_optimizers(self) -> Any:
            optimizer, scheduler = optimizer_of(self.net)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    class Gone(Exception):
        """The process is killed."""

    class Kill(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == stop_after_epoch:
                raise Gone

        def on_exception(self, trainer: Any, module: Any, error: BaseException) -> None:
            monitor.monitor = None  # a process that is killed ends no record

    saver = pl.callbacks.ModelCheckpoint(folder / "checkpoints", save_last=True)
    monitor = IsoFLOPMonitor(record_dir=folder, **options)
    with heard() as said, scripted_clock():
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            default_root_dir=str(folder),
            logger=pl.loggers.TensorBoardLogger(str(folder), name="", version="events"),
            max_epochs=EPOCHS,
            accumulate_grad_batches=ACCUMULATE,
            log_every_n_steps=LOG_EVERY,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[saver, monitor, Kill()],
        )
        with contextlib.suppress(Gone):
            trainer.fit(
                Module(),
                DataLoader(Rows(STEPS * ACCUMULATE * ROWS // EPOCHS, 5), batch_size=ROWS),
                DataLoader(Rows(32, 999, seconds=1 / 32), batch_size=ROWS),
                ckpt_path=str(folder / "checkpoints" / "last.ckpt") if resume else None,
                **({"weights_only": False} if resume else {}),
            )
        for logger in trainer.loggers:
            logger.finalize("success")
    return Ran(folder, tuple(_of_isoflop(said)))


# -- Hugging Face ----------------------------------------------------------------------------------------------------


def transformers(folder: Path, *, stop_at: int | None = None, resume: bool = False, **options: Any) -> Ran:
    """Train under the Hugging Face Trainer, on padded rows.

    Args:
        folder: of the record, the event files and the checkpoints.
        stop_at: the step after which the process is gone.
        resume: go on from the checkpoint.
        **options: of the callback.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from isoflop.transformers import IsoFLOPCallback

    class Gone(Exception):
        """The process is killed."""

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == stop_at:
                raise Gone

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=ROWS,
        per_device_eval_batch_size=ROWS,
        gradient_accumulation_steps=ACCUMULATE,
        max_steps=STEPS,
        logging_steps=LOG_EVERY,
        eval_strategy="steps",
        eval_steps=EVALUATE_EVERY,
        save_strategy="steps",
        save_steps=STEPS // 2,
        learning_rate=PEAK,
        lr_scheduler_type="cosine",
        warmup_steps=WARM_UP,
        adam_beta2=0.95,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=3,
    )
    net = tiny(seed=3)
    with heard() as said, scripted_clock():
        trainer = Trainer(
            model=net,
            args=arguments,
            train_dataset=Rows(STEPS * ACCUMULATE * ROWS // 2, 6, padded=True),
            eval_dataset=Rows(32, 999, seconds=1 / 32),
            callbacks=[IsoFLOPCallback(**options), Kill(), _ticks()],
        )
        with contextlib.suppress(Gone):
            trainer.train(resume_from_checkpoint=resume)
    return Ran(folder, tuple(_of_isoflop(said)))


def _ticks() -> Any:
    from transformers import TrainerCallback

    class Ticks(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tick(1.0)

    return Ticks()


def _of_isoflop(lines: list[str]) -> Iterator[str]:
    """Without what the trainer prints."""
    return (line for line in lines if not line.startswith(("{'", '{"')) and "rank_zero" not in line)
