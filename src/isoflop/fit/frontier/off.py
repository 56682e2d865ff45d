"""The cost of being off the frontier: compute wasted by a model k times too large or small, and the loss at stake."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoflop.fit.frontier import checks as check
from isoflop.fit.frontier.allocation import Intervals, interval
from isoflop.fit.frontier.optimum import Asked
from isoflop.fit.frontier.solve import Array, Loss, root
from isoflop.fit.law import Law
from isoflop.fit.laws import TRAINING_FLOPS


@dataclass(frozen=True)
class SizeCost:
    """What a model k times the optimal size costs.

    Attributes:
        k: size over optimal size.
        N: parameters, k times the optimum.
        D: training tokens at the same budget.
        compute_factor: compute with which this size reaches the optimal loss, over the budget; infinite where it never
            does.
        excess_loss: loss at the same budget above the optimal one, nats per token.
        loss: loss at the same budget, nats per token.
        intervals: (low, high) of `compute_factor` and `excess_loss`, each draw against its own optimum; None where the
            law has no draws.
        level: of the intervals.
    """

    k: float
    N: float
    D: float
    compute_factor: float
    excess_loss: float
    loss: float
    intervals: Intervals | None = None
    level: float | None = None

    def __str__(self) -> str:
        factor, loss = f"{self.compute_factor:.3g}× the compute", f"{self.excess_loss:.3g} nats per token"
        if self.intervals is not None and self.level is not None:
            (a, b), (c, d) = self.intervals["compute_factor"], self.intervals["excess_loss"]
            factor += f" [{a:.3g}, {b:.3g}]"
            loss += f" [{c:.3g}, {d:.3g}] {self.level:.0%}"
        return f"{self.k:.3g}× the optimal size: {factor} for the optimal loss, or {loss} more at the same compute"


def cost_of_size(
    law: Law, C: float, k: float, *, flops_per_param_token: float = TRAINING_FLOPS, level: float = 0.9
) -> SizeCost:
    """What it costs to train k times the compute-optimal number of parameters.

    For L = E + A/N^α + B/D^β the factor is k·(1 + (β/α)·(1 − k^−α))^(−1/β), whatever C: Kaplan et al. 2020, eq. B.16,
    where S and α_S stand for D and β; by α_N = 0.077, α_S = 0.76 it is 1.16 at k = 0.6 and 1.20 at 2.2 (figure 12).

    Args:
        law: of N and D; of N, D and U as with unlimited unique tokens.
        C: budget, training FLOPs.
        k: size over optimal size.
        flops_per_param_token: 6 for training a dense model.
        level: of the intervals.

    Raises:
        ValueError: as `optimal_allocation`.

    >>> from isoflop.fit.law import HOFFMANN, Law
    >>> law = Law(HOFFMANN, {"E": 1.817218, "A": 477.826, "B": 2143.417, "alpha": 0.347311, "beta": 0.367172})
    >>> print(cost_of_size(law, 5.76e23, 2))
    2× the optimal size: 1.15× the compute for the optimal loss, or 0.00485 nats per token more at the same compute
    """
    C, k = check.budget("C", C), check.positive("k", k, "times the optimal size")
    asked = Asked(law, flops_per_param_token=flops_per_param_token, level=level)
    level, constants, loss = asked.level, asked.constants, asked.loss
    best_N, best_D = asked.at_budget(C)
    closed = asked.closed
    factor = _hoffmann_factor(constants["alpha"], constants["beta"], k) if closed else _factor(loss, best_N, best_D, k)
    if not np.isfinite(best_N[0]):
        raise ValueError(
            f"the law {law.form.name} has no optimum inside this budget of {C:g} FLOPs: nothing to be off from"
        )
    here = loss(k * best_N, best_D / k)
    excess = here - loss(best_N, best_D)
    drawn = len(excess) > 1
    uncertain = {"compute_factor": factor, "excess_loss": excess}
    return SizeCost(
        k=k,
        N=float(k * best_N[0]),
        D=float(best_D[0] / k),
        compute_factor=float(factor[0]),
        excess_loss=float(excess[0]),
        loss=float(here[0]),
        intervals={name: interval(values[1:], level) for name, values in uncertain.items()} if drawn else None,
        level=level if drawn else None,
    )


def _hoffmann_factor(alpha: Array, beta: Array, k: float) -> Array:
    with np.errstate(all="ignore"):
        left = 1 - beta / alpha * np.expm1(-alpha * np.log(k))
        return np.where(left > 0, k * np.where(left > 0, left, np.nan) ** (-1 / beta), np.inf)


def _factor(loss: Loss, best_N: Array, best_D: Array, k: float) -> Array:
    """N·D over the optimum's, for D at which k times the optimal N reaches the optimal loss."""
    target = loss(best_N, best_D)

    def excess(log_factor: Array) -> Array:
        return loss(k * best_N, best_D * np.exp(log_factor)) - target

    widest = np.full_like(best_N, 60.0)
    factor = k * np.exp(root(excess, -widest, widest))
    return np.where(excess(widest) > 0, np.inf, factor)
