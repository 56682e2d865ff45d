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
    from isoflop.noise.cadence import DENSEST, FREE, SHARE, Cadence, StepTimes
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
    from isoflop.noise.sources import MicroBatches, denominators, settled
    from isoflop.noise.split import halves

__getattr__ = face(
    __name__,
    {
        "cadence": "Cadence DENSEST FREE SHARE StepTimes",
        "estimator": "MIN_MEASUREMENTS NoiseScale RunningMoments StepEstimate Unusable "
        "estimate_step fieller read result",
        "sources": "MicroBatches denominators settled",
        "split": "halves",
    },
)
