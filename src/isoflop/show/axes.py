"""Loss against compute in TensorBoard, which has neither a log axis nor another x than an integer step."""

from __future__ import annotations

import math
from typing import NamedTuple

MAX_STEP = 2**63 - 1  # a step is an int64 there


class AxisPoint(NamedTuple):
    """A scalar whose step is compute."""

    tag: str
    value: float
    step: int


class ComputeAxes:
    """Turns (FLOPs, loss) into scalars on two compute axes, each written only when its integer step has grown.

    So a log axis thins itself: 1,000 points a factor of ten.
    """

    def __init__(self) -> None:
        self._last = {"isoflop/loss_vs_log10FLOPs_x1000": -1, "isoflop/loss_vs_GFLOPs": -1}

    def points(self, flops: int | None, loss: float | None) -> list[AxisPoint]:
        """The scalars to write now."""
        if not flops or flops < 1 or loss is None or not math.isfinite(loss):
            return []
        steps = {
            "isoflop/loss_vs_log10FLOPs_x1000": round(1000 * math.log10(flops)),
            "isoflop/loss_vs_GFLOPs": flops // 10**9,
        }
        new = [AxisPoint(tag, loss, step) for tag, step in steps.items() if self._last[tag] < step <= MAX_STEP]
        self._last.update({point.tag: point.step for point in new})
        return new

    def state_dict(self) -> dict[str, int]:
        """The last steps written."""
        return dict(self._last)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from `state_dict()`."""
        self._last.update(state)
