"""Time per step inside isoflop's hooks, beside what Lightning and Hugging Face bring for the same purpose, in one run.

    python benchmarks/overhead.py [--steps 400]

Every callback runs in the same Trainer, on the same batches; the CPU time inside its hooks is added up per training
step (log steps apart), of the thread that trains: a busy machine does not disturb it much. Medians; read the ratios.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import unittest.mock
import warnings
from collections import defaultdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

VOCABULARY, LENGTH, BATCH, LOG_EVERY = 256, 128, 8, 10


class Stopwatch:
    """Seconds spent in wrapped functions, by owner and step."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(list)
        self.now: dict[str, float] = defaultdict(float)

    def wrap(self, owner: str, target: Any, names: list[str]) -> None:
        """Time the methods of `target`."""
        for name in names:
            setattr(target, name, self._timed(owner, getattr(target, name)))

    def _timed(self, owner: str, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.now[owner] += time.thread_time() - began

        return timed

    def lap(self) -> None:
        """A training step is over."""
        for owner, seconds in self.now.items():
            self.spent[owner].append(seconds * 1e6)
        for owner in self.now:
            self.now[owner] = 0.0

    def rows(self) -> list[tuple[str, float, float]]:
        """(owner, µs of an ordinary step, µs of a log step), medians; the first steps are left out."""
        rows = []
        for owner, laps in self.spent.items():
            kept = list(enumerate(laps))[20:]
            logged = [lap for i, lap in kept if (i + 1) % LOG_EVERY == 0]
            rows.append(
                (owner, statistics.median(lap for i, lap in kept if (i + 1) % LOG_EVERY), statistics.median(logged))
            )
        return rows


class Model(nn.Module):
    """Small enough that hooks are seen."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 64)
        self.block = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0)
        self.head = nn.Linear(64, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embed(tokens)))


def data(steps: int) -> torch.Tensor:
    """Random tokens."""
    return torch.randint(0, VOCABULARY, (steps * BATCH, LENGTH), generator=torch.Generator().manual_seed(0))


def under_lightning(steps: int) -> list[tuple[str, float, float]]:
    """IsoFLOPMonitor, ThroughputMonitor and DeviceStatsMonitor in one Trainer."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback, DeviceStatsMonitor, ThroughputMonitor

    from isoflop.lightning import IsoFLOPMonitor

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return F.cross_entropy(self.model(batch[0]).flatten(0, 1), batch[0].flatten())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    watch = Stopwatch()

    class Empty(Callback):
        """Comes before the others, so that the stopwatch's own code is in the cache for each of them."""

    class Lap(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            watch.lap()

    empty, ours = Empty(), IsoFLOPMonitor()
    throughput = ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0]), length_fn=lambda batch: LENGTH)
    stats = DeviceStatsMonitor(cpu_stats=True)
    hooks = ["on_train_batch_start", "on_train_batch_end"]
    watch.wrap("nothing: the stopwatch, the first to come", empty, hooks)
    watch.wrap("isoflop", ours, hooks)
    watch.wrap("Lightning ThroughputMonitor", throughput, hooks)
    watch.wrap("Lightning DeviceStatsMonitor", stats, hooks)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="auto",
        log_every_n_steps=LOG_EVERY,
        default_root_dir=tempfile.mkdtemp(),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[empty, ours, throughput, stats, Lap()],
    )
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data(steps)), batch_size=BATCH)
    trainer.fit(Module(), loader)
    return watch.rows()


def under_transformers(steps: int) -> list[tuple[str, float, float]]:
    """IsoFLOPCallback beside the Trainer's own token and FLOPs tracking."""
    from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from isoflop import Monitor
    from isoflop.transformers import IsoFLOPCallback

    watch = Stopwatch()

    class Lap(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step:  # the log comes after a step's end
                watch.lap()

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
        )
    )
    rows = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in data(steps)]
    ours = IsoFLOPCallback()
    args = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        logging_steps=LOG_EVERY,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        use_cpu=not torch.cuda.is_available(),
        include_num_input_tokens_seen="all",
    )
    trainer = Trainer(model, args, train_dataset=rows, callbacks=[ours, Lap()])
    trainer.remove_callback(PrinterCallback)
    watch.wrap("isoflop", ours, ["on_step_end", "on_log", "_look_at_loss"])
    watch.wrap("HF floating_point_ops (total_flos)", trainer, ["floating_point_ops"])
    watch.wrap("HF num_input_tokens_seen", trainer.accelerator, ["gather"])

    with_stopwatch = watch._timed("isoflop", Monitor.forward)
    with unittest.mock.patch.object(Monitor, "forward", with_stopwatch):
        trainer.train()
    return watch.rows()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    warnings.simplefilter("ignore")
    logging.getLogger("isoflop").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    table = Table(title=f"CPU inside the hooks, {device}, medians of {steps} steps (µs)")
    columns = (("", "left"), ("ordinary step", "right"), ("log step", "right"), ("isoflop =", "right"))
    for column, justify in (*columns, ("log step =", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for title, rows in (("Lightning", under_lightning(steps)), ("Hugging Face Trainer", under_transformers(steps))):
        table.add_section()
        table.add_row(f"[bold]{title}")
        ours = next(row[1:] for row in rows if row[0] == "isoflop")
        for owner, *theirs in rows:
            ratios = ["" if owner == "isoflop" else f"{a / b:.2f} ×" for a, b in zip(ours, theirs, strict=True)]
            table.add_row(owner, *(f"{value:.0f}" for value in theirs), *ratios)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
