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
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


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
class PartSums:
    """What the estimator needs of a step's parts, as sums: those of several ranks add up.

    Attributes:
        parts: how many, K.
        squares: Σ|h_j|².
        tokens: N = Σ w_j.
        tokens_squared: Σ w_j².
        inverse_tokens: Σ 1/w_j.
        by_tokens: c_j = w_j/N, the loss is a mean over the step's tokens; else c_j = 1/K, a mean of the parts' means.
    """

    parts: float
    squares: float
    tokens: float
    tokens_squared: float
    inverse_tokens: float
    by_tokens: bool = False

    @classmethod
    def of(cls, tokens: Sequence[float], squares: Sequence[float], by_tokens: bool = False) -> PartSums:
        """From each part's tokens w_j and squared norm |h_j|².

        Raises:
            ValueError: the two differ in length, or a part has no tokens.
        """
        if len(tokens) != len(squares) or not all(w > 0 for w in tokens):
            raise ValueError(
                f"expected as many squared norms as token counts, and positive counts; got {len(squares)} squared "
                f"norms and the counts {list(tokens)}"
            )
        inverse = math.fsum(1 / w for w in tokens)
        squared = math.fsum(w * w for w in tokens)
        return cls(len(tokens), math.fsum(squares), math.fsum(tokens), squared, inverse, by_tokens)

    @property
    def coefficients_squared(self) -> float:
        """Σ c_j²."""
        return self.tokens_squared / self.tokens**2 if self.by_tokens else 1 / self.parts

    @property
    def spread(self) -> float:
        """Σ c_j²/w_j: the variance of g is tr Σ times this."""
        return 1 / self.tokens if self.by_tokens else self.inverse_tokens / self.parts**2


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """One step's unbiased pair, each noisy and perhaps negative: average both over steps before dividing.

    Attributes:
        gradient: |G|², the squared norm of the true gradient, in the gradient's unit squared.
        variance: tr Σ, the variance of one token's gradient, the same unit.
        tokens: N, the step's batch.
    """

    gradient: float
    variance: float
    tokens: float


def estimate_step(sums: PartSums, whole: float) -> StepEstimate | Unusable:
    """The pair of one step; or why there is none.

    Args:
        sums: of the parts.
        whole: |g|², the squared norm of the step's gradient; of parts that were scaled, scaled alike.

    >>> step = estimate_step(PartSums.of([100, 100], [3.0, 3.0]), 10.0)
    >>> step.gradient, step.variance  # |G|² = (10 − 6)/(1 − ½)
    (8.0, 400.0)
    """
    if sums.parts < 2:
        return Unusable.ONE_PART
    if not (math.isfinite(sums.squares) and math.isfinite(whole)):
        return Unusable.NOT_FINITE
    if not (math.isfinite(sums.inverse_tokens) and sums.tokens > 0):
        return Unusable.NO_TOKENS
    if whole <= 0 or sums.squares <= 0:
        return Unusable.ZERO
    gradient = (whole - sums.squares) / (1 - sums.coefficients_squared)
    if abs(whole - gradient) < ROUNDING * whole:
        return Unusable.IDENTICAL
    return StepEstimate(gradient, (whole - gradient) / sums.spread, sums.tokens)


ROUNDING = 1e-5
"""Relative to |g|²: what norms in single precision leave of a difference that is zero."""
