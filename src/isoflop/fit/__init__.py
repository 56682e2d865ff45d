"""Fits of scaling laws to finished runs, their uncertainty, the three approaches, hold-out and plans.

A module is imported when one of its names is first used. `isoflop.plan` plans.
"""

# ruff: noqa: F401

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.lookup import face

if TYPE_CHECKING:
    from isoflop.fit.approaches import approach_3, compare_approaches, loss_envelope
    from isoflop.fit.holdout import Extrapolation, extrapolation
    from isoflop.fit.law_fit import FITTED, LawFit, fit_law
    from isoflop.fit.optimal_line import Approach
    from isoflop.fit.options import Option, Price, compare_options, parse_option
    from isoflop.fit.own_runs import OwnRun, OwnRuns, Profile, learn_from
    from isoflop.fit.plan import Plan
    from isoflop.fit.posterior import Posterior, posterior_of_runs
    from isoflop.fit.profiles import isoflop_profiles
    from isoflop.fit.runs import BadData, check_runs, final_loss
    from isoflop.fit.sources import parse_where
    from isoflop.fit.table import read_table, table_of_runs

__getattr__ = face(
    __name__,
    {
        "approaches": "approach_3 compare_approaches loss_envelope",
        "law_fit": "FITTED LawFit fit_law",
        "optimal_line": "Approach",
        "own_runs": "OwnRun OwnRuns Profile learn_from",
        "holdout": "Extrapolation extrapolation",
        "options": "Option Price compare_options parse_option",
        "plan": "Plan",
        "posterior": "Posterior posterior_of_runs",
        "profiles": "isoflop_profiles",
        "runs": "BadData check_runs final_loss",
        "sources": "parse_where",
        "table": "read_table table_of_runs",
    },
)
