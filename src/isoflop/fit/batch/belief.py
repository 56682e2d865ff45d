"""A batch size that is known up to a factor: a log-normal belief; several combined, and whether they agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import ndtr, ndtri


@dataclass(frozen=True, slots=True)
class Belief:
    """ln B is normal about ln `value` with standard deviation `sigma`.

    Attributes:
        value: tokens, the median.
        sigma: of ln B: .5 is a factor of 1.65 either way.
        source: where it is from, for the reader.
    """

    value: float
    sigma: float
    source: str = ""

    def __post_init__(self) -> None:
        if not (0 < self.value < math.inf and 0 < self.sigma < math.inf):
            raise ValueError(
                f"expected a positive, finite batch in tokens and a positive, finite sigma, got {self.value!r} and "
                f"{self.sigma!r}"
            )

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Equal tails."""
        factor = math.exp(self.sigma * float(ndtri(0.5 + level / 2)))
        return self.value / factor, self.value * factor

    def probability_below(self, batch: float) -> float:
        """P(B < batch)."""
        return float(ndtr(math.log(batch / self.value) / self.sigma))

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.value:,.0f} tokens [{low:,.0f}, {high:,.0f}] ({self.source or '95%'})"


def combine(beliefs: Sequence[Belief]) -> Belief:
    """The product of independent beliefs: means of ln B weighted by 1/σ².

    >>> both = combine([Belief(1e6, 0.5), Belief(4e6, 0.5)])
    >>> round(both.value), round(both.sigma, 3)
    (2000000, 0.354)
    """
    if not beliefs:
        raise ValueError("expected at least one belief to combine, got none")
    weights = [belief.sigma**-2 for belief in beliefs]
    mean = sum(w * math.log(belief.value) for w, belief in zip(weights, beliefs, strict=True)) / sum(weights)
    sources = ", ".join(belief.source for belief in beliefs if belief.source)
    return Belief(math.exp(mean), sum(weights) ** -0.5, sources)


def agree(one: Belief, other: Belief, sigmas: float = 2.0) -> bool:
    """Whether two beliefs differ by no more than `sigmas` standard deviations of their difference."""
    return abs(math.log(one.value / other.value)) <= sigmas * math.hypot(one.sigma, other.sigma)
