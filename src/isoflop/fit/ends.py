"""Whether a recorded run came to its end, and its final loss: one rule for every fit, figure and advice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.record import Point, Run

ENDED = 0.98
"""Share of its planned steps that a run must have done: one that was stopped before has no final loss."""
TAIL = 0.05
"""Share of a run's steps, the last ones, over whose points the mean training loss is its final loss. Not of its points:
long records have ever fewer of them, and the last twentieth would be two fifths of the run."""


def unfinished(run: Run, last_step: int) -> str:
    """Why a run has no final loss; "": it has.

    Args:
        run: its record; the points are not looked at.
        last_step: optimizer steps done.
    """
    if run.status != "completed":
        return "it is not finished" if run.status == "running" else f"it was {run.status}"
    planned = run.planned.get("steps")
    return stopped_early(last_step, planned) if isinstance(planned, int | float) else ""


def stopped_early(last_step: float, planned: float) -> str:
    """Why a run that ended did not come to its planned end; "": it did, or no step is known.

    Args:
        last_step: optimizer steps done.
        planned: optimizer steps planned.

    >>> stopped_early(979, 1000), stopped_early(980, 1000)
    ('it ended at step 979 of 1,000 planned', '')
    """
    if 0 < last_step < ENDED * planned:
        return f"it ended at step {last_step:,.0f} of {planned:,.0f} planned"
    return ""


def in_tail(step: Any, last_step: float) -> Any:
    """Whether steps are among the last 5% of a run's: an array where `step` is one."""
    return step >= (1 - TAIL) * last_step


def at_end(steps: ArrayLike, loss: str) -> NDArray[np.bool_]:
    """Which points' mean is the final loss: of the training loss those in the last 5% of steps, else the last one.

    Args:
        steps: of the points that have a finite loss, rising [points].
        loss: `train` or eval/<name>.

    >>> at_end([10, 50, 96, 98, 100], "train").tolist(), at_end([10, 50, 100], "eval/val").tolist()
    ([False, False, True, True, True], [False, False, True])
    """
    steps = np.asarray(steps)
    if loss == "train":
        return np.asarray(in_tail(steps, steps[-1]) if len(steps) else np.zeros(0, dtype=bool))
    return np.arange(len(steps)) == len(steps) - 1


def final_loss(points: Sequence[Point], loss: str) -> float | None:
    """The final loss of a run in nats per token, by `at_end`; None: no point has it with its tokens.

    Args:
        points: all that its record has.
        loss: `train` or eval/<name>.
    """
    known = [
        (point.step, value)
        for point in points
        if (value := point.losses.get(loss)) is not None and math.isfinite(value) and point.data_tokens
    ]
    if not known:
        return None
    steps, values = (np.array(column, dtype=float) for column in zip(*known, strict=True))
    return float(values[at_end(steps, loss)].mean())
