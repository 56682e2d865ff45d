"""The least loss that compute buys, by a law fitted to the user's own finished runs; None where they do not tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.fit.fitting.data import check_runs
from isoflop.fit.fitting.fit_law import fit_law
from isoflop.fit.frontier.optimum import optimal_allocation
from isoflop.fit.law import Law
from isoflop.fit.laws import typical_rate
from isoflop.record.conventions import DEFAULT_N

Array = NDArray[np.float64]

FEWEST = 8
"""Own runs for a fit of five constants."""
BEYOND = 30.0
"""A factor of compute over the largest own run to which the law is taken."""
LEVEL, WIDEST = 0.8, 0.025
"""An 80% half-width above this fraction of the loss is no frontier, as it is no forecast."""
DRAWS = 200


@dataclass(frozen=True)
class OwnFrontier:
    """L = E + A/N^α + B/D^β of the own runs, N with the head.

    Attributes:
        law: with draws of its constants.
        least, most: training FLOPs between which it is asked.
        rate: C/(N·D) that the own runs typically took.
    """

    law: Law
    least: float
    most: float
    rate: float

    def loss(self, C: float) -> float | None:
        """Nats per token of the best size and tokens for C training FLOPs; None: too far, or not sure enough."""
        if not self.least <= C <= self.most:
            return None
        try:
            best = optimal_allocation(self.law, C, level=LEVEL, flops_per_param_token=self.rate)
        except ValueError:  # draws without an optimum
            return None
        assert best.intervals is not None
        low, high = best.intervals["loss"]
        return best.loss if (high - low) / 2 <= WIDEST * best.loss else None


def own_frontier(N: Array, D: Array, loss: Array, C: Array) -> OwnFrontier | None:
    """Fitted to finished runs: parameters with the head, tokens, final losses, training FLOPs.

    None below `FEWEST` runs, and where the fit says of anything that the runs do not determine it: published constants
    do not step in, for their losses are of another corpus and tokenizer.
    """
    if len(N) < FEWEST:
        return None
    columns = {"N": N, "D": D, "loss": loss}
    try:
        odd = check_runs(columns, ("N", "D")).warnings  # of the numbers, such as small compute: these were counted
        fit = fit_law("hoffmann", columns, draws=DRAWS, convention=DEFAULT_N)
    except ValueError:  # losses that no law has
        return None
    if fit.law.draws is None or set(fit.warnings) - set(odd):
        return None
    return OwnFrontier(fit.law, float(C.min()), BEYOND * float(C.max()), typical_rate(C, N, D))
