"""Every figure of a study, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from isoflop.show.figures.batch import batch
from isoflop.show.figures.contours import contours
from isoflop.show.figures.figure import Figure, NoFigure
from isoflop.show.figures.isoflop_profiles import isoflop_profiles
from isoflop.show.figures.learning_curves import learning_curves
from isoflop.show.figures.loss_flops import loss_flops
from isoflop.show.figures.optimal import optimal_parameters, optimal_tokens
from isoflop.show.figures.residuals import residuals
from isoflop.show.figures.study import Study
from isoflop.show.figures.waste import waste

FIGURES: Mapping[str, Callable[[Study], Figure | NoFigure]] = {
    "loss-flops": loss_flops,
    "learning-curves": learning_curves,
    "isoflop-profiles": isoflop_profiles,
    "optimal-parameters": optimal_parameters,
    "optimal-tokens": optimal_tokens,
    "contours": contours,
    "waste": waste,
    "batch": batch,
    "residuals": residuals,
}
"""By key: `FIGURES[key](study)` makes one alone."""


def figures(study: Study) -> tuple[Figure | NoFigure, ...]:
    """All of them; in place of one that can't be made, why."""
    return tuple(make(study) for make in FIGURES.values())
