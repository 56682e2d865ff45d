"""The compute-optimal frontier of a law as lines with bands: loss, N and D against C, within the runs and beyond."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoflop.fit.frontier.optimum import optimal_allocation
from isoflop.fit.law import Law
from isoflop.fit.laws import TRAINING_FLOPS
from isoflop.show.figures.figure import Array

POINTS = 60


@dataclass(frozen=True, eq=False)
class FrontierLine:
    """By C [points]: the optimum's value, and the ends of its interval by the law's draws.

    `values`, `low`, `high` by "loss", "N", "D"; `low` and `high` are empty where the law has no draws.
    """

    C: Array
    values: dict[str, Array]
    low: dict[str, Array]
    high: dict[str, Array]


def frontier_line(
    law: Law, least: float, most: float, level: float, points: int = POINTS, rate: float = TRAINING_FLOPS
) -> FrontierLine:
    """The frontier between two budgets.

    Args:
        law: of N and D.
        least, most: training FLOPs.
        level: of the intervals.
        points: evenly spaced in ln C.
        rate: FLOPs per parameter and token, C/(N·D), of the runs that it is drawn with.

    Raises:
        ValueError: the law has no optimum there.
    """
    C = np.geomspace(least, most, points)
    best = [optimal_allocation(law, float(each), level=level, flops_per_param_token=rate) for each in C]
    names = ("loss", "N", "D")
    values = {name: np.array([getattr(each, name) for each in best]) for name in names}
    ends = [
        {name: np.array([each.intervals[name][i] for each in best if each.intervals]) for name in names} for i in (0, 1)
    ]
    drawn = all(each.intervals for each in best)
    return FrontierLine(C, values, ends[0] if drawn else {}, ends[1] if drawn else {})
