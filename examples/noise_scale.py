"""How large a batch pays? The gradient noise scale of a run with gradient accumulation, and the cost of another batch.

    python examples/noise_scale.py
    tensorboard --logdir runs/noise_scale       # isoflop/b_simple, isoflop/b_crit, isoflop/batch_over_b_crit

Each start replaces runs/noise_scale, and nothing else.
"""

from __future__ import annotations

import torch
from tiny_gpt import QUICK, GPTConfig, TinyGPT, Windows, fresh_folder, next_token_loss, stdlib_text, warm_up_then_decay
from torch.utils.data import DataLoader

import isoflop
from isoflop.noise import change_batch, critical_batch_by_tokens

STEPS = 60 if QUICK else 1_500  # optimizer steps
ACCUMULATE, SEQUENCES = 4, 4  # micro-batches a step, sequences in each


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder, (text, _) = fresh_folder("noise_scale"), stdlib_text()
    config = GPTConfig()
    model = TinyGPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_up_then_decay(step, 50))
    monitor = isoflop.Monitor(model, optimizer=optimizer, total_steps=STEPS, record_dir=folder, log_every=STEPS // 20)

    micro_batches = iter(DataLoader(Windows(text, config.context), batch_size=SEQUENCES, shuffle=True, drop_last=True))
    for _ in range(STEPS):
        loss = torch.zeros(())
        for _ in range(ACCUMULATE):  # each is one forward and one backward pass: measured without another line
            inputs, targets = next(micro_batches)
            micro_loss = next_token_loss(model(inputs), targets) / ACCUMULATE
            micro_loss.backward()
            loss += micro_loss.detach()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        monitor.step(loss)
    monitor.close()

    scale, critical = monitor.noise.noise_scale, monitor.noise.critical
    print("noise scale:     ", scale or "not measured often enough yet")
    print("critical batch:  ", critical)
    batch, tokens = ACCUMULATE * SEQUENCES * config.context, monitor.totals.processed
    print(change_batch(batch, 2 * batch, critical.value))

    # A run ten times as long: the prior says how B_crit grows with the tokens, this run says how large it is
    growth = float(critical_batch_by_tokens(10 * tokens) / critical_batch_by_tokens(tokens))
    print(f"after ten times the tokens: {growth * critical.value:,.0f} tokens a batch")


if __name__ == "__main__":
    main()
