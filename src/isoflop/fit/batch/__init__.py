"""The critical batch size: what is known of it before a run and from a run, and what a batch costs."""

from isoflop.fit.batch.belief import Belief, agree, combine
from isoflop.fit.batch.prior import (
    critical_batch_by_tokens,
    kaplan_critical_batch,
    measured_critical_batch,
    prior_critical_batch,
)
from isoflop.fit.batch.trade import BatchChange, change_batch, minimum_tokens, steps_over_minimum, tokens_over_minimum

__all__ = [
    "BatchChange",
    "Belief",
    "agree",
    "change_batch",
    "combine",
    "critical_batch_by_tokens",
    "kaplan_critical_batch",
    "measured_critical_batch",
    "minimum_tokens",
    "prior_critical_batch",
    "steps_over_minimum",
    "tokens_over_minimum",
]
