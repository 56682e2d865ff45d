"""Scaling laws: formulas, published constants, the compute-optimal frontier."""

from isoflop.laws.forms import (
    FORMS,
    HOFFMANN,
    Convention,
    Form,
    Law,
    compute_of,
    critical_batch,
    minimum_steps,
    typical_rate,
    unique_tokens_needed,
)
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
    "compute_of",
    "critical_batch",
    "interval",
    "minimum_steps",
    "optimal_allocation",
    "published",
    "published_names",
    "short",
    "size_factor",
    "typical_rate",
    "unique_tokens_needed",
    "waste_of",
]
