"""The critical batch size: what is known of it before a run, from a run, and from runs; and what a batch costs."""

from isoflop.fit.batch.belief import Belief, agree, combine
from isoflop.fit.batch.critical import CriticalBatchFit, fit_critical_batch, steps_to_loss
from isoflop.fit.batch.prior import (
    critical_batch_by_tokens,
    kaplan_critical_batch,
    measured_critical_batch,
    prior_critical_batch,
)
from isoflop.fit.batch.trade import BatchChange, change_batch, minimum_tokens, steps_over_minimum, tokens_over_minimum
from isoflop.fit.batch.warm_up import BatchStage, BatchWarmUp, plan_batch_warm_up

__all__ = [
    "BatchChange",
    "BatchStage",
    "BatchWarmUp",
    "Belief",
    "CriticalBatchFit",
    "agree",
    "change_batch",
    "combine",
    "critical_batch_by_tokens",
    "fit_critical_batch",
    "kaplan_critical_batch",
    "measured_critical_batch",
    "minimum_tokens",
    "plan_batch_warm_up",
    "prior_critical_batch",
    "steps_over_minimum",
    "steps_to_loss",
    "tokens_over_minimum",
]
