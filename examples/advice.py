"""A ladder of small runs, then three runs that go wrong: what isoflop says about each.

    python examples/advice.py                    # about five minutes on a CPU
    tensorboard --logdir runs/advice             # the text tab has the advice, the charts the ladder's frontier

The ladder's runs share one budget, so that the best of their sizes shows; `history=` lets later runs learn from
them. Each start replaces runs/advice, and nothing else.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from tiny_gpt import QUICK, GPTConfig, TinyGPT, Windows, fresh_folder, next_token_loss, stdlib_text
from torch import nn
from torch.utils.data import DataLoader

import isoflop

BUDGET = 2e9 if QUICK else 1.2e12  # FLOPs, 6·N·D
BATCH, CONTEXT = 32, 64
LADDER = {16: 2e-2, 32: 1.4e-2, 64: 8e-3}  # width → peak learning rate


def parameters(width: int, layers: int = 2) -> int:
    """Of a TinyGPT, without its position table: blocks and the head."""
    return 12 * layers * width**2 + 256 * width


def steps_for(width: int, budget: float = BUDGET) -> int:
    """Optimizer steps that spend the budget."""
    return max(round(budget / (6 * parameters(width)) / (BATCH * CONTEXT)), 4)


def train(
    folder: Path, text: bytes, width: int, learning_rate: float, steps: int, stop_at: int | None = None, **options: Any
) -> isoflop.Monitor:
    """One run; warm-up, then a linear decay to a tenth. `stop_at` cuts it short of its plan."""
    torch.manual_seed(0)
    model = TinyGPT(GPTConfig(width=width, context=CONTEXT))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), fused=True)
    warm_up = max(steps // 50, 2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 1 - 0.9 * (step + 1 - warm_up) / max(steps - warm_up, 1))
    )
    loader = iter(DataLoader(Windows(text, CONTEXT), batch_size=BATCH, shuffle=True, drop_last=True))
    with isoflop.Monitor(
        model,
        optimizer=optimizer,
        scheduler=schedule,
        total_steps=steps,
        record_dir=folder,
        log_every=max(steps // 200, 1),
        **options,
    ) as monitor:
        for _ in range(stop_at or steps):
            inputs, targets = next(loader)
            loss = next_token_loss(model(inputs), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            monitor.step(loss.detach())
            if monitor.should_stop:  # on_advice="stop" asks for it
                break
    return monitor


def main() -> None:
    logging.getLogger("isoflop").setLevel(logging.ERROR)  # here the advice is printed by hand
    torch.set_num_threads(1)  # models this small only wait for a second thread
    folder, (text, _) = fresh_folder("advice-quick" if QUICK else "advice"), stdlib_text()
    for width, rate in LADDER.items():
        monitor = train(folder / f"ladder-{width}", text, width, rate, steps_for(width))
        print(
            f"{parameters(width):>9,} parameters, {monitor.steps:,} steps: loss {monitor.scalars['isoflop/loss']:.3f}"
        )

    ladder: dict[str, Any] = {"history": sorted(folder.glob("ladder-*"))}
    runs: dict[str, tuple[int, float, int, dict[str, Any]]] = {
        "far too large": (256, 3e-3, steps_for(256), {}),
        "out of reach": (32, 1.4e-2, steps_for(32), {"target_loss": 1.0, "on_advice": "stop"}),
        "a learning rate 50 times too high": (32, 0.7, steps_for(32), {"on_advice": "stop"}),
        "healthy": (32, 1.4e-2, steps_for(32), {}),
    }
    for name, (width, rate, steps, options) in runs.items():
        monitor = train(folder / name.replace(" ", "-"), text, width, rate, steps, **ladder, **options)
        print(f"\n--- {name}: {monitor.steps:,} of {steps:,} steps")
        for advice in monitor.advice:
            print(advice)


if __name__ == "__main__":
    main()
