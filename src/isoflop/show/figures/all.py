"""Every figure of a study, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from isoflop.show.figures.figure import Figure, NoFigure
from isoflop.show.figures.loss_flops import loss_flops
from isoflop.show.figures.residuals import residuals
from isoflop.show.figures.study import Study

FIGURES: Mapping[str, Callable[[Study], Figure | NoFigure]] = {
    "loss-flops": loss_flops,
    "residuals": residuals,
}
"""By key: `FIGURES[key](study)` makes one alone."""


def figures(study: Study) -> tuple[Figure | NoFigure, ...]:
    """All of them; in place of one that can't be made, why."""
    return tuple(make(study) for make in FIGURES.values())
