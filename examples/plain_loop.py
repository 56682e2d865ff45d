"""A plain PyTorch loop with isoflop: gradient accumulation, evaluation in between, checkpoint and resume.

    python examples/plain_loop.py
    tensorboard --logdir runs/plain_loop

The run stops half-way on purpose and goes on from its checkpoint: the record shows one run without a
gap. Each start replaces runs/plain_loop, and nothing else.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_gpt import QUICK, GPTConfig, TinyGPT, Windows, fresh_folder, next_token_loss, stdlib_text, warm_up_then_decay
from torch import Tensor, nn
from torch.utils.data import DataLoader

import isoflop
from isoflop.live.passport import print_summary

STEPS = 20 if QUICK else 1_000  # optimizer steps
ACCUMULATE = 2  # micro-batches a step
EVALUATE_EVERY = STEPS // 4


def evaluate(model: nn.Module, batches: DataLoader[tuple[Tensor, Tensor]]) -> float:
    """Mean loss of the held-out text."""
    model.eval()
    with torch.no_grad():
        losses = [next_token_loss(model(inputs), targets).item() for inputs, targets in batches]
    model.train()
    return sum(losses) / len(losses)


def train(folder: Path, texts: tuple[bytes, bytes], stop_at: int) -> None:
    """Train up to step `stop_at`, from the checkpoint in `folder` where there is one."""
    torch.manual_seed(0)
    config = GPTConfig()
    validation = DataLoader(Windows(texts[1], config.context, limit=256), batch_size=64)
    model = TinyGPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.4e-2, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_then_decay)

    # (1) The monitor sees the model's inputs by itself: tokens and FLOPs need no further line.
    # It asks the scheduler for the learning rates to come, and forecasts the loss at step `total_steps`.
    monitor = isoflop.Monitor(
        model,
        optimizer=optimizer,
        scheduler=schedule,
        total_steps=STEPS,
        record_dir=folder,
        log_every=STEPS // 20,
    )

    checkpoint, first = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        monitor.load_state_dict(state["isoflop"])  # (2) counts go on where they were
        first = state["step"]

    # Shuffled anew at a resume. A training set that must be read exactly once needs a stateful loader.
    loader = DataLoader(Windows(texts[0], config.context), batch_size=8, shuffle=True, drop_last=True)
    micro_batches = iter(loader)
    for step in range(first + 1, stop_at + 1):
        loss = torch.zeros(())
        for _ in range(ACCUMULATE):
            inputs, targets = next(micro_batches)
            micro_loss = next_token_loss(model(inputs), targets) / ACCUMULATE
            micro_loss.backward()
            loss += micro_loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        monitor.step(loss)  # (3) once an optimizer step, with its mean loss; the tensor is not read until it is logged

        if step % EVALUATE_EVERY == 0:
            with monitor.evaluating():  # (4) its time and its tokens are no training
                validation_loss = evaluate(model, validation)
            monitor.evaluate("val", validation_loss)

    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "isoflop": monitor.state_dict(),  # (5) numbers and texts only
            "step": stop_at,
        },
        checkpoint,
    )
    monitor.close()  # (6) the last point is written


def main() -> None:
    torch.set_num_threads(1)  # matrices this small gain little from a second one
    folder, texts = fresh_folder("plain_loop"), stdlib_text()
    train(folder, texts, stop_at=STEPS // 2)
    print("Stopped half-way; now on from the checkpoint")
    train(folder, texts, stop_at=STEPS)

    (run,) = isoflop.read_runs(folder)
    print_summary([run])
    last = run.points[-1]
    print(f"step {last.step:,}: {last.tokens:,} tokens, {last.flops:.3g} FLOPs. See it: tensorboard --logdir {folder}")


if __name__ == "__main__":
    main()
