"""What a run and published runs say of the critical batch: the measured noise scale and the priors, side by side."""

from __future__ import annotations

from torch import nn

from isoflop.fit.batch import Belief, kaplan_critical_batch, measured_critical_batch, prior_critical_batch
from isoflop.observe.noise.averages import NoiseScale


def beliefs(
    tokens: int, loss: float | None, scale: NoiseScale | None, preconditioned: bool, token_bytes: float | None
) -> list[Belief]:
    """Of B_crit after so many tokens: the measurement first, where there is one with both ends, then the priors.

    Args:
        tokens: D so far.
        loss: nats per token; None: Kaplan's law is left out.
        scale: the run's noise scale.
        preconditioned: whether it is in Adam's metric.
        token_bytes: bytes of a token, for Kaplan's law; None: not known, so it is left out.
    """
    known = [prior_critical_batch(tokens)]
    if loss is not None and 0 < loss < 100 and token_bytes is not None:
        known.append(kaplan_critical_batch(loss, bytes_per_token=token_bytes))
    if scale is not None and scale.value is not None and scale.bounded and scale.low > 0:
        known.insert(0, measured_critical_batch(scale.value, scale.log_error, preconditioned=preconditioned))
    return known


def bytes_per_token(model: nn.Module | None) -> float | None:
    """Of the model's tokenizer, by its vocabulary: bytes, or BPE; None: not known, or in between."""
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    if not isinstance(size, int):
        return None
    return 1.0 if size <= 300 else 4.3 if size >= 20_000 else None
