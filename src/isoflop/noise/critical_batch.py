"""The critical batch size B_crit: what published runs and a measured noise scale say of it, and what a batch costs.

Reaching one loss takes E/E_min = 1 + B/B_crit tokens and S/S_min = 1 + B_crit/B steps, so that
(S/S_min − 1)(E/E_min − 1) = 1: McCandlish et al. 2018 (arXiv:1812.06162), eq. 2.11; Kaplan et al. 2020, section 5.1.
B_crit is known up to a factor: a log-normal `Belief`, and independent ones combined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scipy.special import ndtr, ndtri

from isoflop.guard import attempt
from isoflop.laws.forms import critical_batch

if TYPE_CHECKING:  # the mathematics runs without torch
    from torch import nn

    from isoflop.noise.estimator import NoiseScale


@dataclass(frozen=True, slots=True)
class Belief:
    """ln B is normal about ln `value` with standard deviation `sigma`."""

    value: float  # tokens, the median
    sigma: float  # of ln B: .5 is a factor of 1.65 either way
    source: str = ""  # where it is from, for the reader

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
    if len(beliefs) == 1:
        return beliefs[0]
    weights = [belief.sigma**-2 for belief in beliefs]
    mean = sum(w * math.log(belief.value) for w, belief in zip(weights, beliefs, strict=True)) / sum(weights)
    sources = ", ".join(belief.source for belief in beliefs if belief.source)
    return Belief(math.exp(mean), sum(weights) ** -0.5, sources)


def agree(one: Belief, other: Belief, sigmas: float = 2.0) -> bool:
    """Whether two beliefs differ by no more than `sigmas` standard deviations of their difference."""
    return abs(math.log(one.value / other.value)) <= sigmas * math.hypot(one.sigma, other.sigma)


GRID_LAW = (16.9, 0.505)
"""B_crit = 16.9·D^.505 tokens: our fit of S = S_min(1 + B_crit/B) to a large public learning-rate × batch grid (rms
.15 in the log)."""
ZHANG_LAW = (3.1, 0.608)
"""B_crit = 3.1·D^.608 tokens, through the B_crit that the steps of Zhang et al. 2024 (arXiv:2410.21676) give at five
sizes, 85M to 1.2B. Their own critical batch, at 20% overhead, is about .2 of it."""
VALID = (1e9, 1e11)  # tokens behind the two
SIGMA = 0.5  # of ln B within it
SIGMA_PER_DECADE = (0.5, 0.25)
"""More for each decade below and above, a judgement. Below: a byte-level model after 1e6 to 4e6 tokens had a B_crit
of 2,000 to 4,000 tokens, where the laws say 16,000 to 34,000."""
SIGMA_KAPLAN = 1.0

BYTES_PER_BPE_TOKEN = 4.3
"""English web text under GPT-2's tokenizer, which Kaplan et al.'s losses are on."""

MODEL_ERROR = {"preconditioned": 0.5, "raw": 1.0}
"""Of ln B_crit, beside B_simple's own error: how far the noise scale was from the batch at which steps to a loss
double. A judgement from one tiny model; Merrill et al. 2025 (arXiv:2505.23971) found raw values far below B_crit."""
RAW_BELOW = 5.0
"""How far below B_crit the noise scale lies without Adam's metric: 2.4 to 11 times below the one in it while tiny GPTs
trained. Doubt: a choice; Merrill et al. 2025 say "far"."""


def critical_batch_by_tokens(D: Any) -> Any:
    """B_crit(D) in tokens, of a number or an array: the geometric mean of `GRID_LAW` and `ZHANG_LAW`.

    Valid from 1e9 to 1e11 tokens, AdamW, language models of 85M to 1.2B.
    """
    (a, alpha), (b, beta) = GRID_LAW, ZHANG_LAW
    return (a * b) ** 0.5 * D ** ((alpha + beta) / 2)


def prior_critical_batch(D: float) -> Belief:
    """B_crit(D) with its uncertainty: σ of ln B .5 from 1e9 to 1e11 tokens, .5 more for each decade below, .25 above.

    Args:
        D: tokens trained on.

    >>> print(prior_critical_batch(1e10))
    2,658,424 tokens [997,754, 7,083,126] (prior by tokens)
    """
    if not (0 < D < math.inf):
        raise ValueError(f"expected a positive, finite number of tokens D, got {D!r}")
    below, above = max(math.log10(VALID[0] / D), 0.0), max(math.log10(D / VALID[1]), 0.0)
    sigma = SIGMA + SIGMA_PER_DECADE[0] * below + SIGMA_PER_DECADE[1] * above
    return Belief(float(critical_batch_by_tokens(D)), sigma, "prior by tokens")


def kaplan_critical_batch(loss: float, *, bytes_per_token: float = BYTES_PER_BPE_TOKEN) -> Belief:
    """Kaplan et al. 2020's B_crit(L) = 2.1e8/L^(1/.21) tokens, eq. 5.3 and table 5, with σ of ln B 1.

    Their L is in nats per token of GPT-2's tokenizer, some 4.3 bytes, and so are the tokens. A loss on shorter tokens
    is converted: L·4.3/b for tokens of b bytes (a byte-level loss of 1.2 is their 5.2: unconverted it would overshoot a
    thousandfold), and the result is given in the model's own tokens. Fitted for L of about 2.5 to 6.

    Args:
        loss: nats per token of the model's own tokenizer.
        bytes_per_token: of that tokenizer; 1 for a byte-level model.
    """
    if not (0 < loss < math.inf and 0 < bytes_per_token < math.inf):
        raise ValueError(
            f"expected a positive loss in nats per token and positive bytes per token, got {loss!r} and "
            f"{bytes_per_token!r}"
        )
    longer = BYTES_PER_BPE_TOKEN / bytes_per_token
    return Belief(float(critical_batch(loss * longer)) * longer, SIGMA_KAPLAN, "Kaplan 2020 by loss")


def measured_critical_batch(value: float, log_error: float, *, preconditioned: bool) -> Belief:
    """B_simple taken for B_crit: its own standard error of ln B and the model's error (`MODEL_ERROR`) added."""
    kind = "preconditioned" if preconditioned else "raw"
    return Belief(value, math.hypot(log_error, MODEL_ERROR[kind]), f"measured, {kind}")


def beliefs(
    tokens: int, loss: float | None, scale: NoiseScale | None, preconditioned: bool, token_bytes: float | None
) -> list[Belief]:
    """Of B_crit after so many tokens: the measurement first, where there is one with both ends, then the priors.

    `preconditioned`: the noise scale is in Adam's metric. Kaplan's law needs the loss, and the bytes of a token.
    """
    known = [prior_critical_batch(tokens)]
    if loss is not None and 0 < loss < 100 and token_bytes is not None:
        known.append(kaplan_critical_batch(loss, bytes_per_token=token_bytes))
    if scale is not None and scale.value is not None and scale.bounded and scale.low > 0:
        known.insert(0, measured_critical_batch(scale.value, scale.log_error, preconditioned=preconditioned))
    return known


def bytes_per_token(model: nn.Module | None) -> float | None:
    """Of the model's tokenizer, by its vocabulary: bytes, or BPE; None: not known, or in between."""
    size = attempt(lambda: model.config.vocab_size)  # type: ignore[union-attr]
    if not isinstance(size, int):
        return None
    return 1.0 if size <= 300 else 4.3 if size >= 20_000 else None


def tokens_over_minimum(B: float, B_crit: float) -> float:
    """E/E_min = 1 + B/B_crit: tokens to a loss over those of a batch far below critical."""
    return 1 + B / B_crit


def steps_over_minimum(B: float, B_crit: float) -> float:
    """S/S_min = 1 + B_crit/B: optimizer steps to a loss over those of a batch far above critical."""
    return 1 + B_crit / B


@dataclass(frozen=True, slots=True)
class BatchChange:
    """What another batch would have needed for the same loss, as factors."""

    batch: float
    new_batch: float
    steps: float  # optimizer steps, new over old
    tokens: float  # tokens and compute, new over old

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
    steps = steps_over_minimum(new, B_crit) / steps_over_minimum(B, B_crit)
    tokens = tokens_over_minimum(new, B_crit) / tokens_over_minimum(B, B_crit)
    return BatchChange(B, new, steps, tokens)
