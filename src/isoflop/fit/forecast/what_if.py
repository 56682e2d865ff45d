"""The posterior under another future: a plan that is left now, or a run of another size."""

from __future__ import annotations

import numpy as np

from isoflop.fit.forecast.features import Path, path
from isoflop.fit.forecast.posterior import Posterior, Prediction
from isoflop.fit.forecast.schedule import LrPlan

SIZE, EXPONENT = 482.01, 0.3478
"""A and α of A/N^α, Besiroglu et al. 2024 (arXiv:2404.10102): how the loss falls with N at the same tokens."""
DOUBT = 0.3
"""Relative standard deviation of that change: one run says nothing of it; measured between runs of public ladders."""

SCATTER = 0.007
"""Of the loss: what two runs of one family differ by at the same N, by their shape (width and depth)."""


def diverted(plan: LrPlan, new: LrPlan, now: float, warmup: int) -> Path:
    """The path of a run that follows `plan` to step `now` and `new` after it; rates over the peak of `plan`."""
    past = plan.steps < now
    steps, rates = np.append(plan.steps[past], now), np.append(plan.lr[past], plan.at(now))
    joined = new.spliced(steps, rates)
    return path(joined, warmup, float(max(joined.total_steps, now)), peak=plan.peak)


def resized(
    posterior: Posterior, plan: LrPlan, new: LrPlan, N: float, other: float, step: int
) -> tuple[Prediction, float]:
    """The prediction at the end of `plan` and at `step` of a run with `other` parameters under `new`.

    The curve in tokens is kept and moved by the law of N, whose variance is returned beside it.
    """
    road = path(new, new.warmup_steps, float(new.total_steps))
    old = posterior.predict(road, np.array([float(plan.total_steps), float(step)]))
    moved = SIZE * (other**-EXPONENT - N**-EXPONENT)
    return old._replace(mean=old.mean + moved), (DOUBT * moved) ** 2 + (SCATTER * float(old.mean[1])) ** 2
