"""How much compute a size wastes: N parameters on D tokens against the cheapest way to the same loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.fit.frontier.allocation import interval
from isoflop.fit.frontier.constrained import at_reducible
from isoflop.fit.frontier.optimum import INFERENCE_FLOPS
from isoflop.fit.frontier.solve import Cost, rows
from isoflop.fit.law import Law
from isoflop.fit.laws import TRAINING_FLOPS

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Waste:
    """By a law and its draws; the law's row is first.

    Attributes:
        extra: compute over the cheapest way to this loss, less 1 [1 + draws].
        N, D: parameters and tokens of that way [1 + draws].
        cost: FLOPs of the plan, serving included.
    """

    extra: Array
    N: Array
    D: Array
    cost: float

    def at_least(self, sure: float) -> float:
        """Extra compute that is exceeded with this probability."""
        return float(np.quantile(self.extra[1:], 1 - sure))

    def saved(self, level: float) -> tuple[float, float, float]:
        """Share of the compute that the cheapest way saves: value, low, high."""
        low, high = interval(self.extra[1:], level)
        return tuple(extra / (1 + extra) for extra in (float(self.extra[0]), low, high))  # type: ignore[return-value]


def waste_of(law: Law, N: float, D: float, inference_tokens: float = 0.0) -> Waste:
    """What N parameters on D tokens cost over the cheapest way to the same loss.

    L = E + A/N^α + B/D^β, cost 6·N·D + 2·N·D_inference. E drops out: the same reducible loss is asked of every size.

    Args:
        law: Hoffmann's form; its draws carry the uncertainty.
        N: parameters.
        D: training tokens.
        inference_tokens: to be served.

    >>> from isoflop.fit.law import HOFFMANN, Law
    >>> law = Law(HOFFMANN, {"E": 1.8, "A": 478.0, "B": 2143.0, "alpha": 0.347, "beta": 0.367})
    >>> waste = waste_of(law, 73.2e9 * 4, 1.31e12 / 4)  # four times Chinchilla's optimum
    >>> f"{waste.extra[0]:.0%} more than {waste.N[0] / 1e9:.0f}B parameters need"
    '94% more than 52B parameters need'
    """
    constants, cost = rows(law), Cost(TRAINING_FLOPS, INFERENCE_FLOPS * inference_tokens)
    A, B, alpha, beta = (constants[name] for name in ("A", "B", "alpha", "beta"))
    best_N, best_D = at_reducible(constants, A * N**-alpha + B * D**-beta, cost)
    given = N * (cost.train * D + cost.fixed)
    return Waste(np.maximum(given / cost.flops(best_N, best_D) - 1, 0.0), best_N, best_D, given)
