"""A loop under Lightning Fabric with isoflop: evaluation, checkpoint and resume.

    python examples/fabric_loop.py
    tensorboard --logdir runs/fabric_loop

Each start replaces runs/fabric_loop, and nothing else.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from lightning.fabric import Fabric
from tiny_gpt import QUICK, GPTConfig, TinyGPT, Windows, fresh_folder, next_token_loss, stdlib_text
from torch.utils.data import DataLoader

import isoflop
from isoflop.live.passport import print_summary

STEPS = 20 if QUICK else 600  # optimizer steps
ACCUMULATE = 2  # micro-batches a step


def train(folder: Path, texts: tuple[bytes, bytes], stop_at: int) -> None:
    """Train up to step `stop_at`, from the checkpoint in `folder` where there is one."""
    fabric = Fabric(accelerator="auto", devices=1)
    fabric.seed_everything(0, verbose=False)
    config = GPTConfig()
    model = TinyGPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.99))
    model, optimizer = fabric.setup(model, optimizer)
    batches, validation = fabric.setup_dataloaders(
        DataLoader(Windows(texts[0], config.context), batch_size=8, shuffle=True, drop_last=True),
        DataLoader(Windows(texts[1], config.context, limit=256), batch_size=64),
    )

    # After setup(): the monitor watches the model that will be called.
    monitor = isoflop.Monitor(model, optimizer=optimizer, total_steps=STEPS, record_dir=folder, log_every=STEPS // 20)
    # What has state_dict() and load_state_dict() can go into a Fabric checkpoint as it is.
    state = {"model": model, "optimizer": optimizer, "isoflop": monitor}
    checkpoint = folder / "checkpoint.ckpt"
    if checkpoint.exists():
        fabric.load(checkpoint, state)

    micro_losses = []
    for number, (inputs, targets) in enumerate(batches, start=1):
        if monitor.steps >= stop_at:
            break
        step_follows = number % ACCUMULATE == 0
        with fabric.no_backward_sync(model, enabled=not step_follows):
            loss = next_token_loss(model(inputs), targets)
            fabric.backward(loss / ACCUMULATE)
        micro_losses.append(loss.detach())
        if step_follows:
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
            monitor.step(torch.stack(micro_losses).mean())  # once an optimizer step, with its mean loss
            micro_losses.clear()

    with monitor.evaluating(), torch.no_grad():
        model.eval()
        losses = [next_token_loss(model(x), y) for x, y in validation]
    monitor.evaluate("val", torch.stack(losses).mean())

    monitor.sync()  # sums over the ranks, so that the state holds all of the last steps
    fabric.save(checkpoint, state)
    monitor.close()


def main() -> None:
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # matrices this small gain little from a second one
    folder, texts = fresh_folder("fabric_loop"), stdlib_text()
    train(folder, texts, stop_at=STEPS // 2)
    train(folder, texts, stop_at=STEPS)
    print_summary(isoflop.read_runs(folder))


if __name__ == "__main__":
    main()
