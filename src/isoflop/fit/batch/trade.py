"""What a batch size costs in tokens and steps: McCandlish et al. 2018 (arXiv:1812.06162), eq. 2.11; Kaplan 2020, 5.1.

To one loss: E/E_min = 1 + B/B_crit tokens, S/S_min = 1 + B_crit/B steps, so (S/S_min − 1)(E/E_min − 1) = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike

from isoflop.fit.laws import Values, values


def tokens_over_minimum(B: ArrayLike, B_crit: ArrayLike) -> Values:
    """E/E_min = 1 + B/B_crit: tokens to a loss over those of a batch far below critical."""
    return 1 + values(B) / values(B_crit)


def steps_over_minimum(B: ArrayLike, B_crit: ArrayLike) -> Values:
    """S/S_min = 1 + B_crit/B: optimizer steps to a loss over those of a batch far above critical."""
    return 1 + values(B_crit) / values(B)


def minimum_tokens(E: ArrayLike, B: ArrayLike, B_crit: ArrayLike) -> Values:
    """E_min = E/(1 + B/B_crit); S_min is `laws_kaplan.minimum_steps`."""
    return values(E) / tokens_over_minimum(B, B_crit)


@dataclass(frozen=True, slots=True)
class BatchChange:
    """What another batch would have needed for the same loss, as factors.

    Attributes:
        steps: optimizer steps, new over old.
        tokens: tokens and compute, new over old.
    """

    batch: float
    new_batch: float
    steps: float
    tokens: float

    def __str__(self) -> str:
        return (
            f"{self.new_batch:,.0f} instead of {self.batch:,.0f} tokens a step: {self.steps - 1:+.0%} steps, "
            f"{self.tokens - 1:+.0%} tokens to the same loss, learning rate retuned"
        )


def change_batch(B: float, new: float, B_crit: float) -> BatchChange:
    """From B to another batch, tokens a step each.

    Raises:
        ValueError: one of the three is not positive.

    >>> print(change_batch(0.5e6, 1e6, 2e6))
    1,000,000 instead of 500,000 tokens a step: -40% steps, +20% tokens to the same loss, learning rate retuned
    """
    if not all(0 < value < float("inf") for value in (B, new, B_crit)):
        raise ValueError(f"expected three positive, finite batches in tokens, got {B!r}, {new!r} and B_crit {B_crit!r}")
    steps = float(steps_over_minimum(new, B_crit) / steps_over_minimum(B, B_crit))
    tokens = float(tokens_over_minimum(new, B_crit) / tokens_over_minimum(B, B_crit))
    return BatchChange(B, new, steps, tokens)
