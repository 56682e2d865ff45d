"""What the forecast costs a run: asking schedulers for 10⁶ steps, a refit, its share of the wall time, the checkpoint.

    python benchmarks/forecast_live.py

Times are of the CPU, for these machines are noisy: read the sizes.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.optim import lr_scheduler as S

from isoflop.flops.parameters import given_parameters
from isoflop.flops.totals import Totals
from isoflop.forecast import Forecast, LrPlan
from isoflop.live.forecast import ForecastPart
from isoflop.live.log_step import Interval, LogStep
from isoflop.live.options import Options
from isoflop.live.run_info import RunInfo
from isoflop.live.scheduler import future_learning_rates

TOTAL = 1_000_000


def hugging_face(name: str, **more: Any) -> Callable[[Any], Any]:
    def make(optimizer: Any) -> Any:
        from transformers import get_scheduler

        return get_scheduler(name, optimizer, 2_000, TOTAL, scheduler_specific_kwargs=more)

    return make


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "none": lambda o: None,
    "Hugging Face's cosine": hugging_face("cosine"),
    "Hugging Face's warmup_stable_decay": hugging_face("warmup_stable_decay", num_decay_steps=TOTAL // 5),
    "StepLR, 10 steps down": lambda o: S.StepLR(o, TOTAL // 11, 0.5),
    "SequentialLR of LinearLR, CosineAnnealingLR": lambda o: S.SequentialLR(
        o, [S.LinearLR(o, 0.01, 1.0, 2_000), S.CosineAnnealingLR(o, TOTAL - 2_000)], [2_000]
    ),
    "ChainedScheduler of LinearLR, ExponentialLR": lambda o: S.ChainedScheduler(
        [S.LinearLR(o, 0.01, 1.0, 2_000), S.ExponentialLR(o, 0.999999)]
    ),
    "OneCycleLR": lambda o: S.OneCycleLR(o, 1e-3, total_steps=TOTAL),
    "CosineAnnealingWarmRestarts, T_mult 2": lambda o: S.CosineAnnealingWarmRestarts(o, 10_000, 2),
}


def schedulers() -> Table:
    """Time and knots of each."""
    table = Table("scheduler, 10⁶ steps", "ms", "knots", "off by, of the peak")
    for name, make in SCHEDULERS.items():
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        scheduler, spent = make(optimizer), []
        for _ in range(5):
            began = time.thread_time()
            found = future_learning_rates(scheduler, TOTAL, optimizer=optimizer)
            spent.append(time.thread_time() - began)
        assert isinstance(found, LrPlan), found
        steps = np.random.default_rng(0).integers(1, TOTAL, 2_000)
        off = 0.0
        if scheduler is not None:
            from isoflop.live.scheduler import _rates

            true = _rates(scheduler)(np.sort(steps) - 1.0)
            off = float(np.abs(np.interp(np.sort(steps), found.steps, found.lr) - true).max() / true.max())
        table.add_row(name, f"{1e3 * statistics.median(spent):.1f}", str(len(found.steps)), f"{off:.1e}")
    return table


def live() -> Table:
    """A driver fed at every 100th of 10⁵ steps, a tenth of a second each by its clock."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = S.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 500) * (1 - step / 100_001))
    rate = scheduler.lr_lambdas[0]
    run = RunInfo(optimizer=optimizer, scheduler=scheduler, total_steps=100_000, scheduler_calls=lambda done: done)
    run.say = lambda line: None
    part, N = ForecastPart(Options(), run), given_parameters(10**8)
    noise, adds, refits = np.random.default_rng(0), [], []
    for step in range(100, 100_000, 100):
        loss = 2.5 + 1.2 * (step / 100) ** -0.5 + 0.004 * noise.normal()
        scheduler.last_epoch, optimizer.param_groups[0]["lr"] = step, 1e-3 * rate(step)
        now = LogStep(
            step=step,
            before=Interval(step - 100),
            totals=Totals(processed=step * 500_000),
            loss=loss,
            parameters=N,
            lr=1e-3 * rate(step - 1),
            busy_time=step / 10,
            scalars={"isoflop/batch_tokens": 5e5},
        )
        began, spent = time.thread_time(), part._spent
        part.log(now)
        took, refit = time.thread_time() - began, part._spent - spent
        adds.append(took - refit)
        if refit:
            refits.append(refit)
    assert isinstance(part.last, Forecast), part.last
    table = Table("live, 10⁵ steps of 0.1 s, logged every 100", "")
    table.add_row("a loss added, µs", f"{1e6 * statistics.median(adds):.0f}")
    table.add_row("a refit, ms", f"{1e3 * statistics.median(refits):.1f}")
    table.add_row("refits, at 999 log steps", str(len(refits)))
    table.add_row("their share of the wall time", f"{sum(refits) / 1e4:.4%}")
    table.add_row("state in a checkpoint, kB of JSON", f"{len(json.dumps(part.state_dict())) / 1e3:.1f}")
    return table


if __name__ == "__main__":
    torch.set_num_threads(1)
    console = Console()
    console.print(schedulers())
    console.print(live())
