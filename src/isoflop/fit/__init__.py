"""Fits of scaling laws to finished runs, their uncertainty, the three approaches, hold-out and plans."""

from isoflop.fit.fit_law import FITTED, LawFit, fit_law
from isoflop.fit.holdout import Extrapolation, extrapolation
from isoflop.fit.runs import BadData

__all__ = ["FITTED", "BadData", "Extrapolation", "LawFit", "extrapolation", "fit_law"]
