"""Hoffmann et al.'s three approaches on a ladder's runs, beside the ladder's own law."""

from __future__ import annotations

import math

import numpy as np

from isoflop.fit.approaches.approach import NoApproach
from isoflop.fit.approaches.compare import Comparison, approach_3, compare_approaches, posterior_approach
from isoflop.fit.approaches.envelope import Curve, envelope
from isoflop.fit.approaches.isoflop_profiles import isoflop_profiles
from isoflop.fit.fitting.fit_law import fit_law
from isoflop.fit.posterior import BudgetLine, Posterior
from isoflop.ladder.finished import Finished

DRAWS = 400
OPEN = 0.15
"""Standard error of an exponent from which on an approach says nothing: a is known to .09 before any run."""
NAME = "ladder (law with prior)"


def three_approaches(
    finished: Finished, posterior: Posterior, target: BudgetLine, level: float
) -> tuple[Comparison | None, tuple[NoApproach, ...]]:
    """The approaches side by side at the target, and why some have no opinion.

    Args:
        finished: the runs, with their curves.
        posterior: the ladder's law.
        target: where they are compared.
        level: of the intervals.
    """
    table = np.array([[run.flops, run.N, run.D, run.loss] for run in finished.runs])
    C, N, D, L = table.T
    found = [posterior_approach(posterior, target, level, NAME)]
    without = []
    try:
        curves = [
            Curve(run.N, run.curve[0], run.curve[2], run.curve[1]) for run in finished.runs if run.curve is not None
        ]
        if len(curves) < 3:
            raise ValueError("fewer than three runs recorded a training curve with FLOPs")
        by_curves = envelope(curves, level=level)
        if by_curves.standard_errors.get("a", math.inf) > OPEN:
            raise ValueError("the envelope of these curves leaves the exponent open: too few sizes lead in turn")
        found.append(by_curves)
    except ValueError as reason:
        without.append(NoApproach("approach 1 (envelope of curves)", str(reason)))
    try:
        found.append(isoflop_profiles(C, N, D, L, level=level))
    except ValueError as reason:
        without.append(NoApproach("approach 2 (minima of isoFLOP profiles)", str(reason)))
    try:
        law = fit_law("hoffmann", {"N": N, "D": D, "loss": L}, level=level, draws=DRAWS).law
        if law.draws is None:
            raise ValueError("these runs alone leave constants of the law open")
        found.append(approach_3(law, level))
    except ValueError as reason:
        without.append(NoApproach("approach 3 (the law without a prior)", str(reason)))
    return compare_approaches(found, target.C), tuple(without)
