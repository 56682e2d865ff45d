"""The critical batch size: what is known of it before a run and from a run, and what a batch costs."""

from isoflop.noise.critical_batch import (
    BatchChange,
    Belief,
    agree,
    change_batch,
    combine,
    critical_batch_by_tokens,
    kaplan_critical_batch,
    measured_critical_batch,
    prior_critical_batch,
    steps_over_minimum,
    tokens_over_minimum,
)

__all__ = [
    "BatchChange",
    "Belief",
    "agree",
    "change_batch",
    "combine",
    "critical_batch_by_tokens",
    "kaplan_critical_batch",
    "measured_critical_batch",
    "prior_critical_batch",
    "steps_over_minimum",
    "tokens_over_minimum",
]
