"""What is known of a run before its curve is: how steep, how high, and how much a falling learning rate gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from isoflop.fit.forecast.features import Kernel

REFERENCE = (3e8, 5e5, 1e-3, 1e10)
"""Non-embedding parameters, tokens a batch, peak learning rate and effective tokens at which the intercepts hold."""
UNKNOWN = (1.5, 1.0, 0.7, 1.5)
"""Standard deviation, in e-folds, of a size, batch, peak rate or number of tokens that is not known."""
KERNELS = tuple(Kernel(p, 1.0, T) for p in (0.5, 0.65, 0.8) for T in (40.0, 100.0, 250.0))
Where = tuple[float | None, float | None, float | None, float | None]


@dataclass(frozen=True)
class Line:
    """A quantity's logarithm, normal about a line in ln N, ln B, ln peak rate and ln D.

    Attributes:
        mean: intercept at `REFERENCE` and slopes in ln N, ln B, ln η, ln D.
        sd: standard deviations of the five.
        between: standard deviation between organisations (data, tokenizer, recipe).
        within: standard deviation between runs of one organisation.
        centre: where the intercept holds, in logarithms from `REFERENCE`: amid the runs it was learnt from, where
            intercept and slopes are independent.
    """

    mean: tuple[float, float, float, float, float]
    sd: tuple[float, float, float, float, float]
    between: float
    within: float
    centre: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def at(self, where: Where) -> tuple[float, float]:
        """Mean and standard deviation for a run with these N, B, peak rate and D; None is unknown."""
        mean, variance = self.mean[0], self.sd[0] ** 2 + self.between**2 + self.within**2
        parts = zip(where, REFERENCE, self.centre, UNKNOWN, self.mean[1:], self.sd[1:], strict=True)
        for value, ref, centre, unknown, slope, sd in parts:
            if value is None:
                variance += (slope**2 + sd**2) * unknown**2
            else:
                away = math.log(value / ref) - centre
                mean += slope * away
                variance += (sd * away) ** 2
        return mean, variance**0.5


@dataclass(frozen=True)
class Priors:
    """Priors of α, of the amplitude at `EFFECTIVE` tokens and of the gain of a full decay; E is flat.

    D is in effective tokens, Σ lr/peak × batch: so far for α and A, at the end of the plan for C.

    Attributes:
        alpha: ln α of x^−α.
        amplitude: ln of A·x^−α now, nats.
        gain: ln C, the nats that a decay of the rate from its peak to 0 gives in the end.
        kernels: how a fall of the rate takes effect, each with its own level of ln C and its weight.
        discrepancy: what the curve's form leaves out, as fractions of the drop still to come by training on and by the
            falling rate.
        width: what the posterior's standard deviation is multiplied with; set, as `discrepancy`, so that intervals
            hold what they should with each organisation left out in turn.
        own_runs: finished runs of the user's own among what they were learnt from.
        source: where they are from, in words.
    """

    alpha: Line
    amplitude: Line
    gain: Line
    kernels: tuple[Kernel, ...] = KERNELS
    discrepancy: tuple[float, float] = (0.05, 0.05)
    width: float = 0.6
    own_runs: int = 0
    source: str = ""


WEAK_PRIORS = Priors(
    alpha=Line((math.log(0.5), 0.0, 0.0, 0.0, 0.0), (0.25, 0.05, 0.05, 0.05, 0.0), 0.12, 0.15),
    amplitude=Line((-1.6, 0.14, 0.2, 0.0, -0.5), (0.5, 0.1, 0.2, 0.1, 0.0), 0.2, 0.2),
    gain=Line((-1.6, 0.1, -0.15, 0.15, 0.0), (0.4, 0.08, 0.15, 0.1, 0.06), 0.09, 0.08),
    source="weak priors",
)
"""Before any curve: slopes about 0, and a factor of 1.3 to 1.7 of doubt on each."""

DEFAULT_PRIORS = Priors(
    alpha=Line((-0.82, -0.03, 0.02, 0.02, 0.0), (0.07, 0.02, 0.04, 0.04, 0.0), 0.12, 0.14),
    amplitude=Line((-1.35, 0.17, 0.31, -0.08, -0.5), (0.13, 0.02, 0.10, 0.08, 0.0), 0.22, 0.18),
    gain=Line((-1.41, 0.11, -0.18, 0.16, -0.09), (0.07, 0.02, 0.06, 0.04, 0.02), 0.12, 0.06),
    kernels=tuple(
        Kernel(p, 1.0, T, gain, weight)
        for p, T, gain, weight in (
            (0.5, 40.0, -0.06, 0.09),
            (0.5, 100.0, 0.06, 0.09),
            (0.5, 250.0, 0.24, 0.07),
            (0.65, 40.0, -0.15, 0.14),
            (0.65, 100.0, -0.04, 0.13),
            (0.65, 250.0, 0.14, 0.10),
            (0.8, 40.0, -0.19, 0.16),
            (0.8, 100.0, -0.09, 0.13),
            (0.8, 250.0, 0.08, 0.09),
        )
    ),
    source="141 public curves of dense language models, 4 organisations",
)
"""What ships: `learn_priors` on the public curves of MultiPowerLaw (Luo et al. 2025: 25 to 400M, several plans),
OLMo-ladder (190M to 1B, cosine), Gemstones (McLeish et al. 2025: 50M to 2B, constant) and modded-nanogpt (124M, linear
and cosine to 0), from `WEAK_PRIORS`, rounded; the spread of the gain between organisations is rounded up, for three say
little of a fourth."""

FOREIGN = 0.25
"""The least standard deviation of ln C with an unknown learning rate or another optimizer than Adam's family."""
REAL_RATE = 0.2
"""A peak learning rate above this is taken as relative: its scale says nothing."""


def known(value: float | None, most: float = np.inf) -> float | None:
    """The value where it says something: positive, finite and not above `most`."""
    return float(value) if value is not None and np.isfinite(value) and 0 < value <= most else None


def comparable_peak(peak: float, optimizer: str | None, seen: bool = True) -> float | None:
    """The peak rate where it can be compared: a real rate of Adam's family."""
    return known(peak, REAL_RATE) if seen and adam(optimizer) else None


def adam(optimizer: str | None) -> bool:
    """Whether an optimizer is of the family that the priors know."""
    return optimizer is not None and optimizer.lower().replace("torch.optim.", "") in {"adam", "adamw", "adam(w)"}
