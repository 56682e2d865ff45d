"""What is believed of the critical batch: by the tokens trained on, by the loss reached, by a measured noise scale."""

from __future__ import annotations

import math

from isoflop.fit.batch.belief import Belief
from isoflop.fit.laws import Values, values
from isoflop.fit.laws_kaplan import critical_batch

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


def critical_batch_by_tokens(D: float | Values) -> Values:
    """B_crit(D) in tokens: the geometric mean of `GRID_LAW` and `ZHANG_LAW`.

    Valid from 1e9 to 1e11 tokens, AdamW, language models of 85M to 1.2B.
    """
    D = values(D)
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
