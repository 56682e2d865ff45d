"""A loop under Hugging Face Accelerate with isoflop: gradient accumulation, evaluation, checkpoint and resume.

    python examples/accelerate_loop.py            # or: accelerate launch examples/accelerate_loop.py
    tensorboard --logdir runs/accelerate_loop

Each start replaces runs/accelerate_loop, and nothing else.
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tiny_gpt import QUICK, GPTConfig, TinyGPT, Windows, fresh_folder, next_token_loss, stdlib_text
from torch.utils.data import DataLoader

import isoflop
from isoflop.live.passport import print_summary

STEPS = 20 if QUICK else 600  # optimizer steps
ACCUMULATE = 2  # micro-batches a step


def train(folder: Path, texts: tuple[bytes, bytes], stop_at: int) -> None:
    """Train up to step `stop_at`, from the checkpoint in `folder` where there is one."""
    set_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATE)
    config = GPTConfig()
    model = TinyGPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.99))
    batches = DataLoader(Windows(texts[0], config.context), batch_size=8, shuffle=True, drop_last=True)
    validation = DataLoader(Windows(texts[1], config.context, limit=256), batch_size=64)
    model, optimizer, batches, validation = accelerator.prepare(model, optimizer, batches, validation)

    # After prepare(): the monitor watches the model that will be called. One on every rank.
    monitor = isoflop.Monitor(model, optimizer=optimizer, total_steps=STEPS, record_dir=folder, log_every=STEPS // 20)
    accelerator.register_for_checkpointing(monitor)  # save_state() and load_state() take it along
    checkpoint = folder / "checkpoint"
    if checkpoint.exists():
        accelerator.load_state(str(checkpoint))

    micro_losses = []
    for inputs, targets in batches:
        if monitor.steps >= stop_at:
            break
        with accelerator.accumulate(model):
            loss = next_token_loss(model(inputs), targets)
            accelerator.backward(loss)  # divides by the number of micro-batches
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        micro_losses.append(loss.detach())
        if accelerator.sync_gradients:  # an optimizer step has been done
            monitor.step(torch.stack(micro_losses).mean())
            micro_losses.clear()

    with monitor.evaluating(), torch.no_grad():
        model.eval()
        losses = [accelerator.gather_for_metrics(next_token_loss(model(x), y)).mean() for x, y in validation]
    monitor.evaluate("val", torch.stack(losses).mean())

    monitor.sync()  # sums over the ranks, so that the state holds all of the last steps
    accelerator.save_state(str(checkpoint))
    monitor.close()


def main() -> None:
    torch.set_num_threads(1)  # matrices this small gain little from a second one
    folder, texts = fresh_folder("accelerate_loop"), stdlib_text()
    train(folder, texts, stop_at=STEPS // 2)
    train(folder, texts, stop_at=STEPS)
    accelerator = Accelerator()
    if accelerator.is_main_process:
        print_summary(isoflop.read_runs(folder))
    accelerator.end_training()  # it ends the process group: once, at the end


if __name__ == "__main__":
    main()
