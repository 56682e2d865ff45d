"""The runs of a ladder under Lightning: for `isoflop ladder run --train examples/ladder_lightning.py:train`.

    python examples/ladder_lightning.py        # a ladder of four small runs, minutes; here, in processes

A run that is killed goes on from its last checkpoint when the ladder is run again.
"""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from _tiny_ladder import train_ladder
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_gpt import Windows, next_token_loss, planned_gpt, stdlib_text
from torch import Tensor
from torch.utils.data import DataLoader

from isoflop.lightning import IsoFLOPMonitor


class LanguageModel(L.LightningModule):
    """The planned model, with the planned learning rate."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.model = planned_gpt(config["config"])
        self.learning_rate, self.steps, self.warm_up = config["learning_rate"], config["steps"], config["warmup_steps"]

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return next_token_loss(self.model(inputs), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        inputs, targets = batch
        self.log("val_loss", next_token_loss(self.model(inputs), targets))

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, betas=(0.9, 0.99), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate(self, step: int) -> float:
        """(1) A cosine that ends with this run: only then is its last loss what the law is about."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        return 0.5 + 0.5 * math.cos(math.pi * (step - self.warm_up) / (self.steps - self.warm_up))


def train(config: dict[str, Any]) -> None:
    """Train one planned run to its last step."""
    L.seed_everything(config["seed"], verbose=False)
    torch.set_num_threads(1)  # models this small only wait for a second thread
    texts, context, steps = stdlib_text(), config["config"]["sequence_length"], config["steps"]
    batch = config["batch_tokens"] // context
    trainer = L.Trainer(
        max_steps=steps,
        val_check_interval=steps,  # (2) once, at the end: the loss that the law is fitted to
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        logger=False,
        log_every_n_steps=max(1, steps // 50),
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="auto",
        devices=1,
        callbacks=[
            IsoFLOPMonitor(record_dir=config["record_dir"]),  # (3) the run's record is how the ladder knows of it
            ModelCheckpoint(config["checkpoint_dir"], every_n_train_steps=max(1, steps // 10)),  # (4) the latest one
        ],
    )
    trainer.fit(
        LanguageModel(config),
        DataLoader(Windows(texts[0], context), batch_size=batch, shuffle=True, drop_last=True),
        DataLoader(Windows(texts[1], context, limit=512), batch_size=128),
        ckpt_path=config["resume"],  # (5) None for a run from the start
    )


if __name__ == "__main__":
    train_ladder(__file__, "ladder_lightning")
