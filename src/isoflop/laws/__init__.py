"""Scaling laws: formulas, published constants, the compute-optimal frontier. Modules are imported when used."""

# ruff: noqa: F401

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.lookup import face

if TYPE_CHECKING:
    from isoflop.laws.forms import (
        FORMS,
        HOFFMANN,
        Convention,
        Form,
        Law,
        compute_of,
        critical_batch,
        typical_rate,
        unique_tokens_needed,
    )
    from isoflop.laws.frontier import Allocation, Frontier, optimal_allocation, size_factor, waste_of
    from isoflop.laws.papers import PowerLaw, Published, published, published_names
    from isoflop.laws.quantities import PF_DAY, interval, short
    from isoflop.laws.recipes import BATCHES, RATES, batch_rule, published_values, rate_rule, shape_warning, warmup_of

__getattr__ = face(
    __name__,
    {
        "forms": "FORMS HOFFMANN Convention Form Law compute_of critical_batch typical_rate unique_tokens_needed",
        "frontier": "Allocation Frontier optimal_allocation size_factor waste_of",
        "papers": "PowerLaw Published published published_names",
        "quantities": "PF_DAY interval short",
        "recipes": "BATCHES RATES batch_rule published_values rate_rule shape_warning warmup_of",
    },
)
