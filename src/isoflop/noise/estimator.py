"""|G|², tr Σ and B_simple from one optimizer step's gradient and the parts it is the sum of: pure mathematics.

A step's gradient g = Σ h_j is the sum of its parts' contributions (micro-batches, ranks, halves). Part j holds w_j
tokens and enters with the coefficient c_j: h_j = c_j · (mean gradient of its tokens), Σ c_j = 1. With G the gradient
of all data and Σ the covariance of one token's gradient,

    E|g|²     = |G|²         + tr Σ · Σ c_j²/w_j
    E Σ|h_j|² = |G|² · Σ c_j² + tr Σ · Σ c_j²/w_j

so that without bias

    |G|²  = (|g|² − Σ|h_j|²) / (1 − Σ c_j²)
    tr Σ  = (|g|² − |G|²) / Σ(c_j²/w_j)
    B_simple = tr Σ / |G|²        in tokens: McCandlish et al. 2018 (arXiv:1812.06162), eq. 2.9

With c_j = w_j/N (a mean over the step's N tokens) Σ c_j²/w_j is 1/N; with equal parts the pair is their appendix
A.1's. "A token's" covariance is that of the independent draws, which are sequences, over their length: it holds where
each part's variance falls with its tokens, not for parts of one sequence.

Divide averages over steps, never the step's own pair: the mean of ratios is biased, and one step's |G|² may be
negative.

`Measured` holds what a source has seen of one step, on its device until a log step reads it (`read`) and sums it over
ranks (`packed`, `unpacked`); `result` is that step's pair, and `RunningMoments` the averages with the interval of their
ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import torch
from scipy.special import stdtrit

from isoflop.flops.totals import read_scalars


class Unusable(Enum):
    """Why a measured step gives no value; the value is the sentence that a user reads."""

    ONE_PART = "the step's gradient came in one part: there is nothing to compare it with"
    NOT_FINITE = "the gradient held NaN or infinity (an overflowed step of mixed precision is one)"
    ZERO = "the gradient was zero"
    IDENTICAL = "the parts' gradients were the same: their sequences are identical"
    NO_TOKENS = "the tokens of the parts are unknown or 0: pass tokens_fn=, or monitor.accumulate(tokens=…)"
    NOT_THE_SUM = (
        "the optimizer's gradient is not the sum (over ranks: the mean) of the parts that were seen; it was changed "
        "or reduced in another way, or micro-batches were thrown away (two passes a step, as SAM makes them)"
    )


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """One step's unbiased pair, each noisy and perhaps negative: average both over steps before dividing."""

    gradient: float  # |G|², the squared norm of the true gradient, in the gradient's unit squared
    variance: float  # tr Σ, the variance of one token's gradient, the same unit
    tokens: float  # N, the step's batch


def estimate_step(
    parts: float,
    squares: float,
    whole: float,
    tokens: float,
    tokens_squared: float,
    inverse_tokens: float,
    *,
    by_tokens: bool = False,
) -> StepEstimate | Unusable:
    """The pair of one step, or why there is none. Arguments are sums over the parts, so those of ranks add up.

    Args:
        parts: how many, K.
        squares: Σ|h_j|².
        whole: |g|², the squared norm of the step's gradient; of parts that were scaled, scaled alike.
        tokens, tokens_squared, inverse_tokens: N = Σ w_j, Σ w_j², Σ 1/w_j.
        by_tokens: c_j = w_j/N, the loss is a mean over the step's tokens; else c_j = 1/K, a mean of the parts' means.

    >>> step = estimate_step(2, 6.0, 10.0, 200, 20_000, 0.02)
    >>> step.gradient, step.variance  # |G|² = (10 − 6)/(1 − ½)
    (8.0, 400.0)
    """
    if parts < 2:
        return Unusable.ONE_PART
    if not (math.isfinite(squares) and math.isfinite(whole)):
        return Unusable.NOT_FINITE
    if not (math.isfinite(inverse_tokens) and tokens > 0):
        return Unusable.NO_TOKENS
    if whole <= 0 or squares <= 0:
        return Unusable.ZERO
    coefficients_squared = tokens_squared / tokens**2 if by_tokens else 1 / parts  # Σ c_j²
    spread = 1 / tokens if by_tokens else inverse_tokens / parts**2  # Σ c_j²/w_j
    gradient = (whole - squares) / (1 - coefficients_squared)
    if abs(whole - gradient) < ROUNDING * whole:
        return Unusable.IDENTICAL
    return StepEstimate(gradient, (whole - gradient) / spread, tokens)


ROUNDING = 1e-5
"""Relative to |g|²: what norms in single precision leave of a difference that is zero."""


MEMORY = 1.0
"""Exponent c of the run's average: the i-th measurement weighs i^c. 0 would be the plain mean."""
MIN_MEASUREMENTS = 5
"""Below that an interval of two correlated means says nothing."""
LATELY = 8
"""Steps whose own ratios bound B_simple from above."""


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """B_simple = tr Σ/|G|² with its 95% interval, in tokens."""

    value: float | None  # the ratio of the means; None where |G|² came out at 0 or below
    low: float  # lower end of the interval, 0 where it is not bounded
    high: float  # upper end; infinite where |G|² is not told from 0
    measurements: int  # how many steps are behind it

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
    """Weighted means of (|G|², tr Σ) and the (co)variances of those means, in constant memory.

    The i-th pair weighs i^memory: early values, of another order of magnitude, fade as the run goes on.
    """

    memory: float = MEMORY
    count: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 12)
    # of w·(1, x, y), w²·(1, x, y, xx, yy, xy), w·(xx, yy, xy)
    lately: list[float] = field(default_factory=list)  # the last steps' own ratios y/x; infinite where x ≤ 0
    _asked: NoiseScale | None = field(default=None, repr=False, compare=False)

    def add(self, x: float, y: float) -> None:
        """One measured step's |G|² and tr Σ."""
        self.count += 1
        self.lately = [*self.lately[1 - LATELY :], y / x if x > 0 else math.inf]
        fade = ((self.count - 1) / self.count) ** self.memory if self.count > 1 else 0.0
        squares = (x * x, y * y, x * y)
        once, twice = (1.0, x, y), (1.0, x, y, *squares)
        for i, value in enumerate(once):
            self.sums[i] = self.sums[i] * fade + value
        for i, value in enumerate(twice, 3):
            self.sums[i] = self.sums[i] * fade * fade + value
        for i, value in enumerate(squares, 9):
            self.sums[i] = self.sums[i] * fade + value

    def ratio(self) -> NoiseScale | None:
        """y/x of the means with Fieller's interval; None with fewer than `MIN_MEASUREMENTS`."""
        if self.count < MIN_MEASUREMENTS:
            return None
        if self._asked is not None and self._asked.measurements == self.count:
            return self._asked
        w, x, y, w2, *_ = self.sums
        x, y = x / w, y / w
        effective = w * w / w2
        # deviations from the mean, squared and weighted by w², are the variance of a weighted mean
        (_, wx, wy, wxx, wyy, wxy) = self.sums[3:9]
        small = effective / (effective - 1)
        xx = max(wxx - 2 * x * wx + x * x * w2, 0.0) / (w * w) * small
        yy = max(wyy - 2 * y * wy + y * y * w2, 0.0) / (w * w) * small
        xy = (wxy - x * wy - y * wx + x * y * w2) / (w * w) * small
        low, high = fieller(x, y, xx, yy, xy, float(stdtrit(effective - 1, 0.975)))
        value = y / x if x > 0 and y > 0 else None
        self._asked = NoiseScale(value, low, high, self.count)
        return self._asked

    def bound(self) -> tuple[float, float] | None:
        """The median of the last steps' own ratios, and the standard error of its logarithm by its upper end.

        The end is a sign test's: with the true median above it, all of five to seven steps (but one of eight) would lie
        below it at most once in 25 times. It needs no average of |G|², which changes tenfold from step to step, and
        is known early where the batch is far above B_simple; elsewhere single steps are noise, and there is none.
        """
        if len(self.lately) < MIN_MEASUREMENTS:
            return None
        ratios = sorted(self.lately)
        middle, end = ratios[len(ratios) // 2], ratios[-2 if len(ratios) == LATELY else -1]
        if not (middle > 0 and math.isfinite(end)):
            return None
        return middle, math.log(end / middle) / 1.75  # a normal's quantile at 1 − 1/25

    def state_dict(self) -> dict[str, Any]:
        """Plain values; JSON knows no infinity."""
        lately = [value if math.isfinite(value) else None for value in self.lately]
        return {"memory": self.memory, "count": self.count, "sums": list(self.sums), "lately": lately}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RunningMoments:
        """The inverse of `state_dict`."""
        state = state.get("run", state)  # as earlier versions nest it
        lately = [math.inf if value is None else float(value) for value in state.get("lately", ())]
        return cls(float(state["memory"]), int(state["count"]), [float(value) for value in state["sums"]], lately)


Number = float | int | torch.Tensor

MAX_WAITING = 32
"""Measured steps that wait for a log step at most: the collective is of one size whatever a rank has measured."""
TOLERANCE = 0.05
"""Of the check that the parts add up to the step's gradient: far above bfloat16's rounding, far below a lost part."""


class Measured(NamedTuple):
    """One measured step on this rank; over ranks every field adds up.

    The check is the sum of one small parameter's gradient, a linear function: over the parts it must come to that of
    the step's gradient.
    """

    step: Number
    raw_squares: Number
    raw_whole: Number
    preconditioned_squares: Number  # NaN: not measured
    preconditioned_whole: Number
    parts: Number
    tokens: Number
    tokens_squared: Number
    inverse_tokens: Number
    check_parts: Number
    check_squares: Number
    check_whole: Number
    check_whole_squared: Number  # over ranks its mean, so that ranks that differ are noticed; NaN: ranks hold shards


WIDTH = 1 + len(Measured._fields)
"""Numbers of a measured step in a sum over ranks."""


def packed(rows: Sequence[Measured]) -> list[float]:
    """Measured steps, `MAX_WAITING` at most, as numbers that add up over ranks: each begins with a 1."""
    return [number for row in rows for number in (1.0, *map(float, row))]


def unpacked(summed: Sequence[float], rows: Sequence[Measured], ranks: int) -> list[Measured]:
    """This rank's steps as summed over ranks; one that some rank has not measured is left out."""
    together = []
    for i, row in enumerate(rows):
        here, step, *rest = summed[i * WIDTH : (i + 1) * WIDTH]
        if here == ranks and step == ranks * row.step:
            together.append(Measured(row.step, *rest))
    return together


def read(waiting: Sequence[Measured]) -> list[Measured]:
    """The numbers of measured steps, with one wait a device."""
    values = iter(read_scalars([value for row in waiting for value in row if isinstance(value, torch.Tensor)]))
    return [Measured(*[next(values) if isinstance(v, torch.Tensor) else v for v in row]) for row in waiting]


def result(row: Measured, by_tokens: bool) -> tuple[StepEstimate | Unusable, StepEstimate | Unusable | None]:
    """The raw and the preconditioned estimate of a step that has been read and summed; None: not measured."""
    _, raw, raw_whole, adams, adams_whole, parts, tokens, squared, inverse, *check = map(float, row)
    if parts >= 2 and not math.isfinite(raw + raw_whole):
        return Unusable.NOT_FINITE, None
    check_parts, check_squares, whole, whole_squared = check
    allowed = TOLERANCE**2 * max(check_squares, 0.0)
    # the second: of a gradient that is not the same on every rank the mean alone would pass
    if parts >= 2 and not ((check_parts - whole) ** 2 <= allowed and not whole_squared - whole**2 > allowed):
        return Unusable.NOT_THE_SUM, None
    counts = (tokens, squared, inverse)
    estimate = estimate_step(parts, raw, raw_whole, *counts, by_tokens=by_tokens)
    if math.isnan(adams + adams_whole):
        return estimate, None
    return estimate, estimate_step(parts, adams, adams_whole, *counts, by_tokens=by_tokens)
