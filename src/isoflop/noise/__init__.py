"""The critical batch size: what is known of it before a run and from a run, and what a batch costs."""

# ruff: noqa: F401

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.lookup import face
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

if TYPE_CHECKING:
    from isoflop.noise.estimator import (
        MIN_MEASUREMENTS,
        NoiseScale,
        RunningMoments,
        StepEstimate,
        Unusable,
        estimate_step,
        fieller,
        read,
        result,
    )
    from isoflop.noise.sources import DENSEST, FREE, SHARE, Cadence, MicroBatches, StepTimes, denominators, settled
    from isoflop.noise.split import halves

__getattr__ = face(
    __name__,
    {
        "estimator": "MIN_MEASUREMENTS NoiseScale RunningMoments StepEstimate Unusable "
        "estimate_step fieller read result",
        "sources": "Cadence DENSEST FREE MicroBatches SHARE StepTimes denominators settled",
        "split": "halves",
    },
)
