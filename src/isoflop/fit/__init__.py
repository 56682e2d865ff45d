"""Scaling laws: formulas, published constants, robust fits with their uncertainty, the compute-optimal frontier."""

from isoflop.fit.law import FORMS, Law
from isoflop.fit.papers.published import published, published_names

__all__ = ["FORMS", "Law", "published", "published_names"]
