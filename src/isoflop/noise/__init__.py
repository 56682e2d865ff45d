"""The critical batch size: what is known of it before a run and from a run, and what a batch costs."""

from __future__ import annotations

from isoflop.lookup import face

__getattr__ = face(
    __name__,
    {
        "critical_batch": "BatchChange Belief agree change_batch combine critical_batch_by_tokens "
        "kaplan_critical_batch measured_critical_batch prior_critical_batch steps_over_minimum tokens_over_minimum",
        "estimator": "MIN_MEASUREMENTS NoiseScale RunningMoments StepEstimate Unusable "
        "estimate_step fieller read result",
        "sources": "Cadence DENSEST FREE MicroBatches SHARE StepTimes denominators settled",
        "split": "halves",
    },
)
