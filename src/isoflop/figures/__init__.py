"""Figures as data: `figures(study(runs))`, drawn by `draw_plotly` for a browser and by `draw_matplotlib` for paper."""

from isoflop.figures.by_law import FIGURES, figures
from isoflop.figures.figure import Axis, Band, Contours, Figure, NoFigure, Scale, Series
from isoflop.figures.study import Study, study
from isoflop.fit.runs import RunCurve, RunEnd, curve_of_run, ends_of_table

__all__ = [
    "FIGURES",
    "Axis",
    "Band",
    "Contours",
    "Figure",
    "NoFigure",
    "RunCurve",
    "RunEnd",
    "Scale",
    "Series",
    "Study",
    "curve_of_run",
    "ends_of_table",
    "figures",
    "study",
]
