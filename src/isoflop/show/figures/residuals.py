"""How far each run's loss lies from the fitted law."""

from __future__ import annotations

import numpy as np

from isoflop.show.figures.axes import compute_axis
from isoflop.show.figures.figure import Axis, Figure, NoFigure, Series
from isoflop.show.figures.study import Study

KEY, TITLE = "residuals", "Residuals of the fitted law"


def residuals(study: Study) -> Figure | NoFigure:
    """Loss over the law's loss, less 1, against compute."""
    if study.fit is None or study.law is None:
        return NoFigure(KEY, TITLE, f"no law is fitted: {study.refused}")
    N, D, L = (study.columns[name] for name in ("N", "D", "loss"))
    off = np.expm1(-study.fit.residuals)  # residuals are ln L̂ − ln L
    order = np.argsort(study.C)
    half, nine = np.quantile(np.abs(off), [0.5, 0.9])
    C = study.C[order]
    return Figure(
        KEY,
        TITLE,
        compute_axis(study),
        Axis("loss above the law", log=False, percent=True),
        (
            Series("the law", np.array([C[0], C[-1]]), np.zeros(2), role="guide", legend=False),
            Series(
                "finished runs",
                C,
                off[order],
                kind="points",
                role="fit",
                labels=tuple(study.counted[i].name for i in order),
                hover={"N": N[order], "D": D[order], "C": C, "L": L[order]},
            ),
        ),
        notes=(
            f"Half of the {study.fit.n} runs lie within {half:.2%} of the law, nine in ten within {nine:.2%}.",
            *study.doubts,
        ),
    )
