"""The fixed-size memory of a training curve: losses in bins that are evenly spaced in the logarithm of the step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PER_E_FOLD = 32
"""Bins of loss per factor e of steps."""
KEPT = 0.12
"""Bins older than this fraction of the present step hold no loss any more."""
RATES_PER_E_FOLD = 16
"""Knots kept of the learning rate per factor e, over the whole run."""
MOST = 1e30
"""A loss beyond it counts as infinite: squares, and sums of them, stay within a float's range."""


def usable(loss: float) -> bool:
    """Whether a loss is a number that can be computed with: neither NaN nor infinite nor beyond all bounds."""
    return abs(loss) <= MOST


class LossBins:
    """Means of step, tokens, learning rate and loss per bin. Adding is O(1); the size does not grow with the run.

    A bin is [points, raw steps, Σ step, Σ tokens, Σ loss, Σ loss²], each weighted with the raw steps behind a point.
    """

    def __init__(self) -> None:
        self.bins: dict[int, list[float]] = {}
        self.rates: dict[int, list[float]] = {}
        self.last_step = 0.0
        self.last_tokens = 0.0
        self.last_lr: float | None = None
        self.lost = 0  # losses since the last finite one

    def add(self, step: float, tokens: float, lr: float | None, loss: float, count: float) -> None:
        """One logged loss, the mean over `count` steps up to `step`."""
        key = math.floor(PER_E_FOLD * math.log(max(step, 1.0)))
        row = self.bins.get(key)
        if row is None:
            row = self.bins[key] = [0.0] * 6
            oldest = math.floor(PER_E_FOLD * math.log(max(KEPT * step, 1.0)))
            for old in [k for k in self.bins if k < oldest]:
                del self.bins[old]
        row[0] += 1
        row[1] += count
        row[2] += count * step
        row[3] += count * tokens
        row[4] += count * loss
        row[5] += count * loss * loss
        if lr is not None:
            # the first and the last of each: what lies between is a line
            place = math.floor(RATES_PER_E_FOLD * math.log(max(step, 1.0)))
            seen = self.rates.setdefault(place, [step, lr, step, lr])
            seen[2:] = [step, lr]
        self.last_step, self.last_tokens, self.last_lr = step, tokens, lr

    def columns(self) -> dict[str, Array]:
        """Mean `step`, `tokens` and `loss`, `points`, raw steps `count` and the spread `variance` of each bin."""
        table = np.array([self.bins[key] for key in sorted(self.bins)]).reshape(-1, 6)
        points, count = table[:, 0], table[:, 1]
        step, tokens, loss = (table[:, i] / count for i in (2, 3, 4))
        return {
            "step": step,
            "tokens": tokens,
            "loss": loss,
            "points": points,
            "count": count,
            "variance": np.maximum(table[:, 5] / count - loss**2, 0),
        }

    def seen_rates(self) -> tuple[Array, Array]:
        """Steps and learning rates as they were seen, thinned."""
        flat = np.array([self.rates[key] for key in sorted(self.rates)]).reshape(-1, 2)
        new = np.append(np.diff(flat[:, 0]) > 0, True) if len(flat) else np.zeros(0, dtype=bool)
        return flat[new, 0], flat[new, 1]

    def state_dict(self) -> dict[str, Any]:
        """Plain values; floats survive JSON bit by bit."""
        return {
            "bins": [[key, *row] for key, row in sorted(self.bins.items())],
            "rates": [[key, *row] for key, row in sorted(self.rates.items())],
            "last": [self.last_step, self.last_tokens, self.last_lr, self.lost],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.bins = {int(row[0]): [float(v) for v in row[1:]] for row in state["bins"]}
        self.rates = {int(row[0]): [float(v) for v in row[1:]] for row in state["rates"]}
        self.last_step, self.last_tokens, self.last_lr, self.lost = state["last"]
