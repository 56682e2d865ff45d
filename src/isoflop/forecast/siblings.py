"""A run beside finished runs of one user that are like it: over their final losses, their curves are one curve.

So at fixed tokens per parameter and schedule, whatever the size (Qiu et al. 2025, arXiv:2507.02119; Bergsma et al.
2025, 2509.25087): the final loss is the present one times what the siblings' fell by from the same part of the run on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from isoflop.forecast.curve import LossCurve
from isoflop.forecast.lr_plan import LrPlan

FEWEST = 2
"""Siblings that a forecast needs."""
SHAPE, RATIO = 0.08, 0.3
"""How alike: rates within this part of their peaks at each part of the run, ln(tokens per parameter) within this."""
WINDOW = 0.015
"""Of the run, to either side, over which a sibling's loss is averaged."""
PARTS = np.linspace(0.02, 1, 50)


class Beside(NamedTuple):
    """Final loss by siblings, its standard deviation without the run's own noise, and how many they are."""

    mean: float
    sd: float
    siblings: int

    def joined(self, mean: float, sd: float, error: float) -> tuple[float, float]:
        """With the run's own forecast: the mean by precision, the spread of the surer one, widened where they disagree.

        By how much they are apart over what their spreads allow (Birge's ratio). `error`: of the run's present loss.
        """
        mine = math.hypot(self.sd, error)
        part, apart = sd**-2 / (sd**-2 + mine**-2), abs(mean - self.mean) / math.hypot(sd, mine)
        return part * mean + (1 - part) * self.mean, min(sd, mine) * max(1.0, apart)


def beside(
    runs: Sequence[LossCurve], plan: LrPlan, N: float, batch_tokens: float, now: float, loss: float, left_out: float
) -> Beside | None:
    """The final loss of a run by its siblings; None with fewer than `FEWEST`.

    Args:
        runs: finished runs of the same data and loss.
        plan: of the run.
        N, batch_tokens: its parameters, and tokens of a step.
        now: its present step.
        loss: its smoothed loss there, nats.
        left_out: of the drop to come, the standard deviation that no sibling shows.
    """
    shape, tokens = plan.at(PARTS * plan.total_steps) / plan.peak, plan.total_steps * batch_tokens / N
    part, found = now / plan.total_steps, []
    for run in runs:
        if not run.N or not run.batch_tokens:
            continue
        its = run.plan.at(PARTS * run.total_steps) / run.plan.peak
        ratio = run.total_steps * run.batch_tokens / run.N / tokens
        near = np.abs(run.steps / run.total_steps - part) <= WINDOW
        if np.abs(its - shape).max() < SHAPE and abs(math.log(ratio)) < RATIO and near.any():
            found.append((run.final / float(run.loss[near].mean()), math.exp(-abs(math.log(run.N / N)))))
    if len(found) < FEWEST:
        return None
    falls, weights = np.array(found).T
    weights = weights / weights.sum()
    fall, several = float(weights @ falls), 1 / float(weights @ weights)
    spread = float(weights @ (falls - fall) ** 2) * several / max(several - 1, 0.5)
    mean = loss * fall
    return Beside(mean, math.hypot(loss * math.sqrt(spread * (1 + 1 / several)), left_out * (loss - mean)), len(found))
