"""Figures as data: `figures(study(runs))`, drawn by `draw_plotly` for a browser and by `draw_matplotlib` for paper."""

from isoflop.show.figures.all import figures
from isoflop.show.figures.curve import RunCurve, curve_of_run
from isoflop.show.figures.ends import RunEnd, ends_of_table
from isoflop.show.figures.figure import Axis, Band, Contours, Figure, NoFigure, Scale, Series
from isoflop.show.figures.study import Study, study

__all__ = [
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
