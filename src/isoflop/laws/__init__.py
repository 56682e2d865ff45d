"""Scaling laws: formulas, published constants, the compute-optimal frontier."""

from isoflop.laws.forms import FORMS, HOFFMANN, Convention, Form, Law
from isoflop.laws.frontier import Allocation, Frontier, optimal_allocation, size_factor, waste_of
from isoflop.laws.published import PowerLaw, Published, published, published_names
from isoflop.laws.quantities import PF_DAY, interval, short

__all__ = [
    "FORMS",
    "HOFFMANN",
    "PF_DAY",
    "Allocation",
    "Convention",
    "Form",
    "Frontier",
    "Law",
    "PowerLaw",
    "Published",
    "interval",
    "optimal_allocation",
    "published",
    "published_names",
    "short",
    "size_factor",
    "waste_of",
]
