"""Averages of the estimator's pair over steps, and B_simple from them with its interval. Plain Python numbers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from scipy.special import stdtrit

from isoflop.observe.noise.estimator import StepEstimate

WINDOW = 60
MEMORY = 1.0
"""Exponent c of the run's average: the i-th measurement weighs i^c. 0 would be the plain mean."""
MIN_MEASUREMENTS = 5
"""Below that an interval of two correlated means says nothing."""


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """B_simple = tr Σ/|G|² with its interval, in tokens.

    Attributes:
        value: the ratio of the means; None where |G|² came out at 0 or below.
        low: lower end of the interval, 0 where it is not bounded.
        high: upper end; infinite where |G|² is not told from 0.
        measurements: how many steps are behind it.
        level: of the interval.
    """

    value: float | None
    low: float
    high: float
    measurements: int
    level: float = 0.95

    @property
    def bounded(self) -> bool:
        """Whether the upper end is known."""
        return math.isfinite(self.high)

    @property
    def log_error(self) -> float:
        """Half the interval in standard errors of ln B; infinite where it is unbounded."""
        if not self.bounded or self.low <= 0:
            return math.inf
        return math.log(self.high / self.low) / (2 * 1.96)

    def __str__(self) -> str:
        level = f"{self.level:.0%}, {self.measurements} measurements"
        if not self.bounded or self.value is None:
            return f"B_noise > {self.low:,.0f} tokens ({level})" if self.low > 0 else f"B_noise unknown ({level})"
        return f"B_noise {self.value:,.0f} tokens [{self.low:,.0f}, {self.high:,.0f}] ({level})"


def fieller(x: float, y: float, xx: float, yy: float, xy: float, quantile: float) -> tuple[float, float]:
    """Interval of a ratio y/x ≥ 0 of two correlated means (Fieller 1954): every r with (y − rx)² ≤ q²·Var(y − rx).

    Args:
        x, y: the means.
        xx, yy, xy: variances and covariance of the means.
        quantile: q, of Student's distribution.

    Returns:
        (low, high): low 0 or high infinite where the interval has no end on that side.

    >>> fieller(1.0, 2.0, 0.01, 0.04, 0.0, 2.0)
    (1.5, 2.666666666666667)
    >>> fieller(0.1, 2.0, 0.01, 0.04, 0.0, 2.0)  # the denominator may be 0
    (6.465143735728139, inf)
    """
    q2 = quantile * quantile
    a, b, c = x * x - q2 * xx, x * y - q2 * xy, y * y - q2 * yy  # a·r² − 2b·r + c ≤ 0
    root = b * b - a * c
    if root < 0:  # a < 0: every ratio fits
        return 0.0, math.inf
    root = math.sqrt(root)
    if a > 0:
        low, high = (b - root) / a, (b + root) / a
        return (max(low, 0.0), high) if high > 0 else (0.0, math.inf)
    if a == 0:
        return (max(c / (2 * b), 0.0), math.inf) if b > 0 else (0.0, math.inf)
    # outside of two roots; the smaller is below 0 unless y, too, may be 0
    small, large = sorted(((b + root) / a, (b - root) / a))
    return (large, math.inf) if small <= 0 < large else (0.0, math.inf)


@dataclass(slots=True)
class RunningMoments:
    """Weighted means of pairs and the (co)variances of those means, in constant memory.

    The i-th pair weighs i^memory: early values, of another order of magnitude, fade as the run goes on.
    """

    memory: float = MEMORY
    count: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 12)
    # of w·(1, x, y), w²·(1, x, y, xx, yy, xy), w·(xx, yy, xy)

    def add(self, x: float, y: float) -> None:
        """One measured pair."""
        self.count += 1
        fade = ((self.count - 1) / self.count) ** self.memory if self.count > 1 else 0.0
        squares = (x * x, y * y, x * y)
        once, twice = (1.0, x, y), (1.0, x, y, *squares)
        for i, value in enumerate(once):
            self.sums[i] = self.sums[i] * fade + value
        for i, value in enumerate(twice, 3):
            self.sums[i] = self.sums[i] * fade * fade + value
        for i, value in enumerate(squares, 9):
            self.sums[i] = self.sums[i] * fade + value

    def ratio(self, level: float = 0.95) -> NoiseScale | None:
        """y/x of the means with Fieller's interval; None with fewer than `MIN_MEASUREMENTS`."""
        if self.count < MIN_MEASUREMENTS:
            return None
        w, x, y, w2, *_ = self.sums
        x, y = x / w, y / w
        effective = w * w / w2
        # deviations from the mean, squared and weighted by w², are the variance of a weighted mean
        (_, wx, wy, wxx, wyy, wxy) = self.sums[3:9]
        small = effective / (effective - 1)
        xx = max(wxx - 2 * x * wx + x * x * w2, 0.0) / (w * w) * small
        yy = max(wyy - 2 * y * wy + y * y * w2, 0.0) / (w * w) * small
        xy = (wxy - x * wy - y * wx + x * y * w2) / (w * w) * small
        low, high = fieller(x, y, xx, yy, xy, float(stdtrit(effective - 1, 0.5 + level / 2)))
        value = y / x if x > 0 and y > 0 else None
        return NoiseScale(value, low, high, self.count, level)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"memory": self.memory, "count": self.count, "sums": list(self.sums)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RunningMoments:
        """The inverse of `state_dict`."""
        return cls(float(state["memory"]), int(state["count"]), [float(value) for value in state["sums"]])


def ratio_of(pairs: Iterable[tuple[float, float]], level: float = 0.95) -> NoiseScale | None:
    """B_simple of (|G|², tr Σ) pairs that weigh alike."""
    moments = RunningMoments(memory=0.0)
    for x, y in pairs:
        moments.add(x, y)
    return moments.ratio(level)


class Averages:
    """One kind of measurement (raw or preconditioned): the last `WINDOW` of them, and the whole run's."""

    def __init__(self) -> None:
        self.run = RunningMoments()
        self._window: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def add(self, step: StepEstimate) -> None:
        """One measured step."""
        self.run.add(step.gradient, step.variance)
        self._window.append((step.gradient, step.variance))

    def over_run(self) -> NoiseScale | None:
        """Of the run, later steps weighing more (`MEMORY`)."""
        return self.run.ratio()

    def over_window(self) -> NoiseScale | None:
        """Of the last `WINDOW` measured steps."""
        return ratio_of(self._window)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"run": self.run.state_dict(), "window": [list(pair) for pair in self._window]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.run = RunningMoments.from_state(state["run"])
        self._window = deque(((float(x), float(y)) for x, y in state["window"]), maxlen=WINDOW)
