"""A search for the learning rate that ends trials by what they are forecast to end with. Needs `isoflop[optuna]`.

    python examples/optuna_search.py

Each trial trains a small GPT in a plain loop. Half-way through the decay a high learning rate looks bad and may still
end best: the pruner compares forecasts of the final loss, not losses so far. Each start replaces runs/optuna.
"""

from __future__ import annotations

import logging
from functools import partial

import optuna
import torch
from tiny_gpt import QUICK, GPTConfig, TinyGPT, Windows, fresh_folder, next_token_loss, stdlib_text
from torch.utils.data import DataLoader

import isoflop
from isoflop.optuna import ForecastPruner, report

STEPS, TRIALS = (20, 2) if QUICK else (2_000, 6)


def objective(trial: optuna.Trial, text: bytes) -> float:
    """Train with a learning rate; the mean loss at the end."""
    torch.manual_seed(0)
    rate = trial.suggest_float("learning_rate", 1e-4, 3e-2, log=True)
    config = GPTConfig(width=16)
    model = TinyGPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, STEPS, pct_start=0.1)
    folder = fresh_folder(f"optuna/{trial.number}")
    loader = DataLoader(Windows(text, config.context), batch_size=16, shuffle=True, drop_last=True)
    told = {"optimizer": optimizer, "scheduler": schedule, "total_steps": STEPS, "record_dir": folder}
    with isoflop.Monitor(model, log_every=max(1, STEPS // 100), **told) as monitor:
        for step, (inputs, targets) in zip(range(1, STEPS + 1), loader, strict=False):
            loss = next_token_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            monitor.step(loss)
            if monitor.logged_now:
                report(trial, monitor)
                if trial.should_prune():
                    print(f"trial {trial.number} stops at step {step:,}: {monitor.forecast}", flush=True)
                    raise optuna.TrialPruned
    print(f"trial {trial.number} ends with {monitor.scalars['isoflop/loss']:.3f}", flush=True)
    return monitor.scalars["isoflop/loss"]


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("isoflop").setLevel(logging.ERROR)  # no line an interval
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1), pruner=ForecastPruner())
    study.optimize(partial(objective, text=stdlib_text()[0]), n_trials=TRIALS)
    for trial in study.trials:
        print(f"learning rate {trial.params['learning_rate']:.1e}: {trial.state.name.lower()}")


if __name__ == "__main__":
    main()
