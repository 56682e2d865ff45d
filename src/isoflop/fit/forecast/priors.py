"""What is known of a run before its curve is: how steep, how high, and how much a falling learning rate gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

REFERENCE = (3e8, 5e5, 1e-3)
"""Non-embedding parameters, tokens a batch and peak learning rate at which the intercepts hold."""
UNKNOWN = (1.5, 1.0, 0.7)
"""Standard deviation, in e-folds, of a size, batch or peak rate that is not known."""
EFFECTIVE = 1e10
"""Effective tokens at which the amplitude A is given."""


@dataclass(frozen=True)
class Line:
    """A quantity's logarithm, normal about a line in ln N, ln B and ln peak rate.

    Attributes:
        mean: intercept at `REFERENCE` and slopes in ln N, ln B, ln η.
        sd: standard deviations of the four.
        between: standard deviation between organisations (data, tokenizer, recipe).
        within: standard deviation between runs of one organisation.
    """

    mean: tuple[float, float, float, float]
    sd: tuple[float, float, float, float]
    between: float
    within: float

    def at(self, where: tuple[float | None, float | None, float | None]) -> tuple[float, float]:
        """Mean and standard deviation for a run with these N, B and peak rate; None is unknown."""
        mean, variance = self.mean[0], self.sd[0] ** 2 + self.between**2 + self.within**2
        for value, ref, unknown, slope, sd in zip(where, REFERENCE, UNKNOWN, self.mean[1:], self.sd[1:], strict=True):
            if value is None:
                variance += (slope**2 + sd**2) * unknown**2
            else:
                away = math.log(value / ref)
                mean += slope * away
                variance += (sd * away) ** 2
        return mean, variance**0.5


@dataclass(frozen=True)
class Priors:
    """Priors of α, of the amplitude at `EFFECTIVE` tokens and of the gain of a full decay; E is flat.

    Attributes:
        alpha: ln α of x^−α.
        amplitude: ln A at 1e10 effective tokens, nats; at other tokens scaled with their power −`scaling`.
        gain: ln C, the nats that a decay of the rate from its peak to 0 gives in the end.
        source: where they are from, in words.
    """

    alpha: Line
    amplitude: Line
    gain: Line
    scaling: float = 0.5
    discrepancy: float = 0.095
    source: str = ""


WEAK_PRIORS = Priors(
    alpha=Line((math.log(0.5), 0.0, 0.0, 0.0), (0.25, 0.05, 0.05, 0.05), 0.12, 0.15),
    amplitude=Line((-1.6, 0.14, 0.2, 0.0), (0.5, 0.1, 0.2, 0.1), 0.2, 0.2),
    gain=Line((-1.6, 0.1, -0.15, 0.15), (0.4, 0.08, 0.15, 0.1), 0.15, 0.1),
    source="weak priors",
)
"""Before any curve: slopes about 0, and a factor of 1.3 to 1.7 of doubt on each."""

DEFAULT_PRIORS = Priors(
    alpha=Line((math.log(0.50), 0, 0, 0), (0.0, 0.0, 0.0, 0.0), 0.1, 0.15),
    amplitude=Line((-1.62, 0.14, 0.35, 0), (0.0, 0.0, 0.0, 0.0), 0.2, 0.22),
    gain=Line((-1.55, 0.11, -0.26, 0.19), (0.0, 0.0, 0.0, 0.0), 0.14, 0.1),
    source="public curves of dense AdamW language models",
)

REAL_RATE = 0.2
"""A peak learning rate above this is taken as relative: its scale says nothing."""


def known(value: float | None, most: float = np.inf) -> float | None:
    """The value where it says something: positive, finite and not above `most`."""
    return float(value) if value is not None and np.isfinite(value) and 0 < value <= most else None


def adam(optimizer: str | None) -> bool:
    """Whether an optimizer is of the family that the priors know."""
    return optimizer is not None and optimizer.lower().replace("torch.optim.", "") in {"adam", "adamw", "adam(w)"}
