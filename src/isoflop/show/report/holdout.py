"""Does the law reach beyond the runs it is fitted to? Fitted to the smaller ones, it predicts the larger ones."""

from __future__ import annotations

import numpy as np

from isoflop.fit.fitting.extrapolation import TELLING, extrapolation
from isoflop.fit.fitting.extrapolation_result import Extrapolation
from isoflop.fit.fitting.identified import FEW
from isoflop.show.figures import Study

PART = 0.7
"""Share of the runs that is fitted to."""
CONSTANTS = 5
"""Of L(N,D) = E + A/N^α + B/D^β."""
DRAWS = 300
"""Enough to tell whether a run lies inside its interval."""


def holdout(study: Study) -> Extrapolation | str:
    """The law of the smaller runs held against the larger ones; or why that can't be done."""
    if study.fit is None or study.law is None:
        return "there is no law to hold against runs"
    C = study.C
    below = float(np.quantile(C, PART, method="lower"))
    fitted, held = int((below >= C).sum()), int((below < C).sum())
    if fitted < CONSTANTS + FEW or held < TELLING:
        return (
            f"{len(C)} runs are too few to keep some back: it takes {CONSTANTS + FEW} to fit and {TELLING} larger ones"
        )
    try:
        return extrapolation(
            "hoffmann", {**study.columns, "C": C}, below, level=study.level, draws=DRAWS, convention=study.convention
        )
    except ValueError as error:
        return str(error)
