"""How much compute a size wastes: N parameters on D tokens against the cheapest way to the same loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.fit.frontier.allocation import interval
from isoflop.fit.frontier.optimum import INFERENCE_FLOPS
from isoflop.fit.frontier.solve import rows
from isoflop.fit.law import Law
from isoflop.fit.laws import TRAINING_FLOPS

Array = NDArray[np.float64]

_SIZES = np.linspace(-7.0, 7.0, 281)
"""ln of the sizes that are tried, over the one given."""


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
    constants = rows(law)
    A, B, alpha, beta = (constants[name][:, None] for name in ("A", "B", "alpha", "beta"))
    reducible = A * N**-alpha + B * D**-beta
    sizes = N * np.exp(_SIZES)[None, :]

    def cost(sizes: Array) -> tuple[Array, Array]:
        rest = reducible - A * sizes**-alpha
        with np.errstate(all="ignore"):
            tokens = np.where(rest > 0, (B / np.where(rest > 0, rest, 1.0)) ** (1 / beta), np.inf)
            return sizes * (TRAINING_FLOPS * tokens + INFERENCE_FLOPS * inference_tokens), tokens

    best = cost(sizes)[0].argmin(axis=1)
    centre, width = _SIZES[best], _SIZES[1] - _SIZES[0]
    finer = N * np.exp(centre[:, None] + np.linspace(-width, width, 41)[None, :])
    costs, tokens = cost(finer)
    best = costs.argmin(axis=1)
    row = np.arange(len(best))
    given = N * (TRAINING_FLOPS * D + INFERENCE_FLOPS * inference_tokens)
    return Waste(np.maximum(given / costs[row, best] - 1, 0.0), finer[row, best], tokens[row, best], given)
