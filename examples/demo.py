"""Three sizes of a small GPT under Lightning, watched by one callback: where does the compute pay?

    make demo                                    # under four minutes on two free cores
    tensorboard --logdir runs/demo
    python examples/demo.py --ship src/isoflop/data/demo   # the runs just trained become those of `isoflop demo`

In TensorBoard the three loss curves lie over one another, against compute, as in figure 2 of
Hoffmann et al. 2022 ("Chinchilla"): the small model is best while there is little compute, the
large one once there is much, and the lower edge of all three is the best that a FLOP can buy.

A fourth run trains the largest size on 32 kB of the text, 28 times over. Its evaluation loss turns, and isoflop
says so while it trains.

Each start replaces runs/demo/<run>, and nothing else.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from tiny_gpt import QUICK, GPTConfig, TinyGPT, Windows, fresh_folder, next_token_loss, stdlib_text, warm_up_then_decay
from torch import Tensor
from torch.utils.data import DataLoader

import isoflop
from isoflop.lightning import IsoFLOPMonitor
from isoflop.live.passport import print_summary

# Each size: shape, peak learning rate (tried out; wider models want a lower one), optimizer steps.
# Twice the width is four times the parameters; a name counts them without embeddings, 12 · layers · width².
# The steps carry each curve past the point where the next size overtakes it.
SIZES = {
    "6k": (GPTConfig(width=16), 2.0e-2, 4_000),
    "25k": (GPTConfig(width=32), 1.4e-2, 8_000),
    "98k": (GPTConfig(width=64), 8e-3, 3_000),
}
LITTLE = ("98k", 1 << 15, 900)  # size, bytes to train on, steps
LITTLE_DATA = "little-data/98k-on-32kB"  # in a folder of its own: the tab fits the runs of one folder together
CONTEXT = 64  # tokens a window, for all sizes
BATCH = 16  # windows a step: small, since small models learn more from many steps than from large ones
LOG_EVERY = 50


class LanguageModel(L.LightningModule):
    """TinyGPT as Lightning wants it. Nothing in here knows of isoflop."""

    def __init__(self, config: GPTConfig, learning_rate: float, schedule: Callable[[int], float]) -> None:
        super().__init__()
        self.model = TinyGPT(config)
        self.learning_rate = learning_rate
        self.schedule = schedule

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return next_token_loss(self.model(inputs), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        inputs, targets = batch
        self.log("val_loss", next_token_loss(self.model(inputs), targets), prog_bar=True)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, betas=(0.9, 0.99), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def warm_up(step: int) -> float:
    """Learning rate over its peak: where the evaluation loss turns, a decay would only blur by what."""
    return min((step + 1) / 200, 1.0)


def train(
    size: str,
    folder: Path,
    texts: tuple[bytes, bytes],
    steps: int,
    schedule: Callable[[int], float] = warm_up_then_decay,
    unique_tokens: int | None = None,
) -> None:
    """Train one size; its curves and its record go to `folder`."""
    L.seed_everything(0, verbose=False)
    config, learning_rate, _ = SIZES[size]
    print(f"\n{folder.name}: {size} parameters, {steps * BATCH * CONTEXT:,} tokens", flush=True)
    train_text, validation_text = texts
    batches = DataLoader(Windows(train_text, CONTEXT), batch_size=BATCH, shuffle=True, drop_last=True)
    validation = DataLoader(Windows(validation_text, CONTEXT, limit=512), batch_size=128)

    watcher = IsoFLOPMonitor(unique_tokens=unique_tokens)
    trainer = L.Trainer(
        max_steps=steps,
        val_check_interval=max(1, steps // 8),
        check_val_every_n_epoch=None,  # by steps, not by epochs
        gradient_clip_val=1.0,
        log_every_n_steps=LOG_EVERY,
        # an empty version: TensorBoard then names the run by its folder, the size
        logger=TensorBoardLogger(folder.parent, name=folder.name, version=""),
        callbacks=[watcher, TQDMProgressBar(refresh_rate=LOG_EVERY)],
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        accelerator="auto",
        devices=1,
    )
    trainer.fit(LanguageModel(config, learning_rate, schedule), batches, validation)
    for advice in watcher.monitor.advice if watcher.monitor is not None else ():
        print(f"\nisoflop says: {advice}")


def ship(folder: Path, to: Path) -> None:
    """Pack the records for `isoflop demo`, without what is of this machine alone: the commit, how busy it was."""
    for path in sorted(folder.rglob("isoflop-*.jsonl")):
        header, *lines = path.read_bytes().splitlines(keepends=True)
        known = {**json.loads(header), "git": None}
        told = [line for line in lines if b'"reason":"hardware"' not in line]
        text = b"".join([json.dumps(known, separators=(",", ":")).encode() + b"\n", *told])
        name = "+".join(path.parent.relative_to(folder).parts)
        (to / f"{name}.jsonl.gz").write_bytes(gzip.compress(text, mtime=0))


def quieten() -> None:
    """Leave what is told here readable: the curves say the rest."""
    for name in ("lightning.pytorch", "pytorch_lightning"):  # devices, tips: all under the name imported last
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("isoflop").setLevel(logging.WARNING)  # a line every 50 steps; the progress bar is enough here
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data is in memory
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning 2.6 under torch 2.13


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="which to train (all)")
    parser.add_argument("--steps", type=int, help="optimizer steps of each size (default: 3,000 to 8,000)")
    parser.add_argument("--quick", action="store_true", default=QUICK, help="seconds, to see that it runs")
    parser.add_argument("--ship", type=Path, metavar="FOLDER", help="pack the records of the last runs, train nothing")
    arguments = parser.parse_args()
    if arguments.ship is not None:
        return ship(Path("runs/demo"), arguments.ship)
    folder, steps = ("demo-quick", 100) if arguments.quick else ("demo", arguments.steps)

    quieten()
    torch.set_num_threads(1)  # models this small only wait for a second thread, badly so on a busy machine
    texts = stdlib_text()
    print(f"Python's standard library: {len(texts[0]):,} bytes to train on, {len(texts[1]):,} in files held out")
    for size in arguments.sizes:
        train(size, fresh_folder(f"{folder}/{size}"), texts, steps or SIZES[size][2])
    size, tokens, most = LITTLE
    if size in arguments.sizes:
        little = texts[0][:tokens], texts[1]
        train(size, fresh_folder(f"{folder}/{LITTLE_DATA}"), little, min(steps or most, most), warm_up, tokens)

    print_summary(isoflop.read_runs(f"runs/{folder}"))
    print(f"""
See the runs:   tensorboard --logdir runs/{folder}    the tab Scaling: figures, fit, advice, a planner
A report:       isoflop report runs/{folder} -o report.html
Among the scalars isoflop/1000log10C_loss has 1000 · log10(FLOPs) on its x-axis: 12,000 reads 10^12 FLOPs.""")


if __name__ == "__main__":
    main()
