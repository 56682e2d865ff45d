"""A learning-rate schedule that does not end with the run (Hoffmann et al. 2022, appendix B and figure A1)."""

from __future__ import annotations

import numpy as np

from isoflop.advise.advice import Advice, Quantity, Reason, Severity
from isoflop.advise.situation import Situation
from isoflop.advise.thresholds import Thresholds

FLAT = 0.02
"""Of the peak: a rate that changes by less over the run's last tenth has ended, or never decays."""
IDLE = 1e-3
"""Of the peak: a rate below it does nothing."""
ENDED = 0.12
"""Of the peak: where a decay may end (Hoffmann et al.: a tenth)."""


def schedule(run: Situation, thresholds: Thresholds) -> Advice | None:
    """Cut off in the middle of its decay, over long before the end, or rising again after the decay."""
    if run.rates is None or not run.total_steps or (run.left or 0.0) < thresholds.frontier_steps:
        return None
    steps = np.linspace(0, run.total_steps, 401)
    lr = run.rates.at(steps)
    if not lr.max() > 0:
        return None
    share = lr / lr.max()
    last, before = float(share[-1]), float(share[-41])
    top = int((share >= 0.999).argmax())
    lowest = top + int(share[top:].argmin())
    if last - float(share[lowest]) > 0.1 and float(share[lowest]) < 0.5:
        return _advice(
            run,
            f"The learning rate comes down to {share[lowest]:.0%} of its peak at step {steps[lowest]:,.0f} and rises "
            f"again to {last:.0%} before the run ends at step {run.total_steps:,}.",
            "set the schedule's length to the planned steps; if restarts are meant, end the run at the end of one.",
            share,
        )
    if before - last > FLAT and last > ENDED:
        longer = _length(share)
        if longer < thresholds.schedule_over:
            return None
        return _advice(
            run,
            f"The learning-rate decay is cut off: at the planned end, step {run.total_steps:,}, the rate is still "
            f"{last:.0%} of its peak and falling; the decay is about {longer:.1f} times as long as the run.",
            f"unless it is meant to end there, set the schedule's length to {run.total_steps:,} steps: a decay more "
            "than 25% too long costs loss.",
            share,
        )
    idle = float(steps[share > IDLE][-1])
    if last <= IDLE and idle < 0.9 * run.total_steps:
        return _advice(
            run,
            f"The learning rate is below a thousandth of its peak from step {idle:,.0f} on; the "
            f"{run.total_steps - idle:,.0f} steps after it buy nothing.",
            f"set the schedule's length to {run.total_steps:,} steps, or end the run there.",
            share,
        )
    return None


def _length(share: np.ndarray) -> float:
    """Length of the whole decay over the run's, read as a cosine to a tenth from the peak's end on."""
    top = int(np.flatnonzero(share >= 0.999)[-1])
    done = (len(share) - 1 - top) / (len(share) - 1)
    progress = float(np.arccos(np.clip(2 * (share[-1] - 0.1) / 0.9 - 1, -1, 1))) / np.pi
    return 1 - done + done / max(progress, 1e-3)


def _advice(run: Situation, what: str, do: str, share: np.ndarray) -> Advice:
    numbers = (Quantity("learning rate at the end over its peak", float(share[-1]), "%"),)
    basis = ("the trainer's schedule", "Hoffmann et al. 2022, appendix B")
    return Advice(Reason.SCHEDULE, Severity.WARNING, run.step, what, do, numbers, basis=basis)
