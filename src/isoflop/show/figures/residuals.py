"""How far each run's loss lies from the fitted law."""

from __future__ import annotations

import numpy as np

from isoflop.show.figures.axes import compute_axis
from isoflop.show.figures.figure import Axis, Figure, NoFigure, Series
from isoflop.show.figures.loss_flops import ends_series
from isoflop.show.figures.study import Study

KEY, TITLE = "residuals", "Residuals of the fitted law"


def residuals(study: Study) -> Figure | NoFigure:
    """Loss over the law's loss, less 1, against compute."""
    if study.fit is None or study.law is None:
        return NoFigure(KEY, TITLE, study.nothing or f"no law is fitted: {study.refused}")
    off = np.expm1(-study.fit.residuals)  # residuals are ln L̂ − ln L
    half, nine = np.quantile(np.abs(off), [0.5, 0.9])
    return Figure(
        KEY,
        TITLE,
        compute_axis(study),
        Axis("loss above the law", log=False, percent=True),
        (
            Series("the law", np.array([study.C.min(), study.C.max()]), np.zeros(2), role="guide", legend=False),
            ends_series(study, range(len(off)), study.C, off),
        ),
        shades=study.sizes(),
        notes=(
            f"Half of the {study.fit.n} runs lie within {half:.2%} of the law, nine in ten within {nine:.2%}.",
            *study.doubts,
        ),
    )
