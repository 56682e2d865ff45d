"""Throughput far below what this run itself reached."""

from __future__ import annotations

import statistics

from isoflop.advise.advice import Advice, Quantity, Reason, Severity, count, duration
from isoflop.advise.situation import Situation
from isoflop.advise.thresholds import Thresholds

FEW = 5
"""Log steps, each of which must be slow: one validation or checkpoint in between is none."""


def hardware(run: Situation, thresholds: Thresholds) -> Advice | None:
    """The last log steps, each, below a share of the run's best stretch."""
    recent = list(run.speeds)[-FEW:]
    if run.best_speed is None or len(recent) < FEW or run.warming_up:
        return None
    if max(recent) >= thresholds.slow * run.best_speed:
        return None
    now = statistics.median(recent)
    saves: tuple[Quantity, ...] = ()
    hours = None if run.total_steps is None else run.hours(run.total_steps - run.step)
    if hours is not None:
        lost = hours * (run.best_speed / now - 1)
        if lost < thresholds.slow_hours:
            return None
        saves = (duration("time, if it stays so slow", lost),)
    return Advice(
        Reason.HARDWARE,
        Severity.WARNING,
        run.step,
        f"Training runs at {now / run.best_speed:.0%} of the speed that this run has reached: {count(now)} tokens/s "
        f"per device now, {count(run.best_speed)} before.",
        "look at the data loader, a slow or throttled device, another job on the machine, longer sequences or padding.",
        (
            Quantity("now", now, "tokens/s per device"),
            Quantity("best", run.best_speed, "tokens/s per device"),
        ),
        saves=saves,
        basis=("this run's throughput",),
    )
