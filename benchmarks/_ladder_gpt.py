"""What the end-to-end benchmark of the ladder trains: small GPTs on the bytes of installed Python sources.

`train(config)` is what `isoflop ladder run --train _ladder_gpt:train` calls. No byte is read twice in training, and
whole files are held out for the evaluation at the end, the same tokens for every run.
"""

from __future__ import annotations

import importlib.util
import math
import os
import random
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import isoflop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from tiny_gpt import Windows, next_token_loss, planned_gpt

SEQUENCE = 64  # tokens a window
BATCH = 16  # windows a step: 1,024 tokens, small beside the critical batch at these losses
EVALUATED = 4096  # windows of held-out text: 262,144 tokens
PACKAGES = ("torch", "scipy", "numpy")  # isoflop's own dependencies: they are there wherever it is
MAX_BYTES = 60_000_000
RATE, RATE_WIDTH, RATE_TOKENS = 1.1e-2, 32, 1.5e6
WIDTH_EXPONENT, TOKENS_EXPONENT = -0.65, -0.2
"""The best peak learning rate at a width of 32 and 1.5M tokens, and how it falls with both: tried out at widths of 32
and 64, and at 1.5M and 5M tokens (docs/ladder-run.md has the losses)."""


def learning_rate(width: int, tokens: float) -> float:
    """Peak learning rate of a model of this width, trained on so many tokens."""
    return float(RATE * (width / RATE_WIDTH) ** WIDTH_EXPONENT * (tokens / RATE_TOKENS) ** TOKENS_EXPONENT)


def rate_at(step: int, steps: int, warm_up: int) -> float:
    """Learning rate over its peak: linear warm-up, then a cosine that ends at 0 with the run's last step."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


@cache
def text() -> tuple[bytes, bytes]:
    """Training and held-out text: the standard library's sources and those of torch, SciPy and NumPy.

    Files are shuffled, so that every part of the text is a mixture of all; one in twenty is held out whole.
    """
    folders = [Path(sysconfig.get_path("stdlib"))]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            folders.append(Path(spec.origin).parent)
    files = [
        (str(path.relative_to(folder)), path)
        for folder in folders
        for path in folder.rglob("*.py")
        if "site-packages" not in path.relative_to(folder).parts
    ]
    files.sort()
    random.Random(0).shuffle(files)
    held_out = b"".join(path.read_bytes() for _, path in files[::20])
    train = b"".join(path.read_bytes() for i, (_, path) in enumerate(files) if i % 20)
    return train[:MAX_BYTES], held_out


@torch.no_grad()
def evaluate(model: nn.Module, windows: Windows, batch: int = 128) -> float:
    """Mean loss of the held-out windows, in nats per byte."""
    model.eval()
    total = 0.0
    for first in range(0, len(windows), batch):
        inputs, targets = batch_of(windows, range(first, min(first + batch, len(windows))))
        total += next_token_loss(model(inputs), targets).item() * len(inputs)
    model.train()
    return total / len(windows)


def batch_of(windows: Windows, indices: Any) -> tuple[Tensor, Tensor]:
    """Inputs and targets of these windows."""
    starts = torch.tensor([windows.starts[int(i)] for i in indices])
    both = windows.tokens[starts[:, None] + torch.arange(windows.context + 1)].long()
    return both[:, :-1], both[:, 1:]


def train(config: dict[str, Any]) -> None:
    """Train one planned run to its last step, from its latest checkpoint if there is one."""
    torch.set_num_threads(1)  # models this small only wait for a second thread
    torch.manual_seed(config["seed"])
    training, held_out = text()
    length, steps = config["config"]["sequence_length"], config["steps"]
    batch = config["batch_tokens"] // length
    windows, validation = Windows(training, length), Windows(held_out, length, limit=EVALUATED)
    if steps * batch > len(windows):
        raise ValueError(f"expected at most {len(windows) * length:,} tokens, got {config['tokens']:,}: text repeats")
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(config["seed"]))

    model = planned_gpt(config["config"])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config["learning_rate"], betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps, config["warmup_steps"]))
    monitor = isoflop.Monitor(
        model,
        optimizer=optimizer,
        scheduler=schedule,
        total_steps=steps,
        run_name=config["name"],
        record_dir=config["record_dir"],
        log_every=max(1, steps // 100),
    )
    first = 0
    if config["resume"] is not None:
        state = torch.load(config["resume"])
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        monitor.load_state_dict(state["isoflop"])
        first = state["step"]

    for step in range(first, steps):
        inputs, targets = batch_of(windows, order[step * batch : (step + 1) * batch])
        loss = next_token_loss(model(inputs), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        monitor.step(loss)
        if (step + 1) % max(50, steps // 20) == 0 and step + 1 < steps:
            state = {
                "step": step + 1,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "isoflop": monitor.state_dict(),
            }
            save(state, Path(config["checkpoint_dir"]) / "latest.pt")
    with monitor.evaluating():
        loss_held_out = evaluate(model, validation)
    monitor.evaluate("val", loss_held_out)
    monitor.close()


def save(state: dict[str, Any], path: Path) -> None:
    """Save a checkpoint whole or not at all, whenever the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)
