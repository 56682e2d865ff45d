"""Figures as data: `figures(study(runs))`; `plotly_figure` is for a browser, `save` for paper."""

# ruff: noqa: F401, F811

from collections.abc import Callable, Mapping

from isoflop.figures.by_compute import loss_flops, optimal_parameters, optimal_tokens, profiles
from isoflop.figures.by_law import contours, residuals, residuals_by_ratio, waste
from isoflop.figures.curves import batch, by_group, learning_curves
from isoflop.figures.figure import Axis, Band, Contours, Figure, NoFigure, Scale, Series
from isoflop.figures.matplotlib import matplotlib_figure, save
from isoflop.figures.plotly import plotly_figure
from isoflop.figures.study import Study, ends_of_table, study
from isoflop.fit.runs import RunCurve, RunEnd, curve_of_run

FIGURES: Mapping[str, Callable[[Study], Figure | NoFigure]] = {
    "loss-flops": loss_flops,
    "learning-curves": learning_curves,
    "isoflop-profiles": profiles,
    "optimal-parameters": optimal_parameters,
    "optimal-tokens": optimal_tokens,
    "contours": contours,
    "waste": waste,
    "batch": batch,
    "residuals": residuals,
    "residuals-ratio": residuals_by_ratio,
}
"""By key, in the order in which they are shown: `FIGURES[key](study)` makes one alone."""


def figures(study: Study) -> tuple[Figure | NoFigure, ...]:
    """All figures of a study; in place of one that can't be made, the reason."""
    return tuple(make(study) for make in FIGURES.values())
