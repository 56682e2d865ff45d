"""Scaling laws: formulas, published constants, robust fits with their uncertainty, the compute-optimal frontier."""

from isoflop.laws.forms import FORMS, Law
from isoflop.laws.published import published, published_names

__all__ = ["FORMS", "Law", "published", "published_names"]
