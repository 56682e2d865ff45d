"""B_crit from runs at several batch sizes: the steps each took to one loss. What the noise scale is held against."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import ndtri, stdtrit

from isoflop.arrays import Array
from isoflop.noise import Belief


@dataclass(frozen=True, slots=True)
class CriticalBatchFit:
    """S = S_min·(1 + B_crit/B), fitted in ln S.

    Attributes:
        B_crit: in the unit of the batches.
        interval: of B_crit; 0 or infinite where the runs leave that end open.
        S_min: steps at an endless batch.
        E_min: tokens at a vanishing one, B_crit·S_min.
        rms: of the residuals of ln S.
        level: of the interval.
        runs: how many.
    """

    B_crit: float
    interval: tuple[float, float]
    S_min: float
    E_min: float
    rms: float
    level: float
    runs: int

    def belief(self) -> Belief:
        """For `combine`; ValueError where the interval is open."""
        low, high = self.interval
        if low <= 0 or not math.isfinite(high):
            raise ValueError(f"B_crit is not bounded by these runs ({self}): add runs at other batch sizes")
        z = float(ndtri(0.5 + self.level / 2))
        return Belief(self.B_crit, max(math.log(high / low) / (2 * z), 1e-3), "fitted to runs")

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"B_crit {self.B_crit:,.0f} [{low:,.0f}, {high:,.0f}] ({self.level:.0%}, {self.runs} runs), S_min "
            f"{self.S_min:,.0f} steps, E_min {self.E_min:.3g} tokens, rms {self.rms:.1%}"
        )


def fit_critical_batch(batch: ArrayLike, steps: ArrayLike, *, level: float = 0.95) -> CriticalBatchFit:
    """Fit the hyperbola of McCandlish et al. 2018 (eq. 2.11) to runs of one model, one per batch size.

    Least squares in ln S. For a given B_crit the best S_min is a mean, so B_crit alone is searched, on a grid and then
    exactly; the interval is the profile's: where the sum of squares stays below F's quantile.

    Args:
        batch: B, tokens a step (or sequences: B_crit comes in the same unit); at least 3, not all equal.
        steps: optimizer steps to the same loss, each at a learning rate tuned for its batch.
        level: of the interval.

    Raises:
        ValueError: fewer than three runs, one batch size only, or values that are not positive.
    """
    B, S = np.broadcast_arrays(np.asarray(batch, dtype=float), np.asarray(steps, dtype=float))
    if B.ndim != 1 or len(B) < 3 or len(np.unique(B)) < 2:
        raise ValueError(
            f"expected at least 3 runs at 2 or more batch sizes, got batches {B.tolist()}: S_min and B_crit are two "
            "unknowns, and their error a third"
        )
    if not np.all((B > 0) & (S > 0) & np.isfinite(B) & np.isfinite(S)):
        raise ValueError(f"expected positive, finite batches and steps, got {B.tolist()} and {S.tolist()}")

    def residuals(log_critical: float) -> Array:
        raw: Array = np.log(S) - np.log1p(np.exp(log_critical) / B)
        return raw - raw.mean()

    def loss(log_critical: float) -> float:
        return float((residuals(log_critical) ** 2).sum())

    # from 1e-4 of the smallest to 1e4 of the largest batch: beyond, the curve is straight and says no more
    grid = np.linspace(math.log(B.min()) - 9.2, math.log(B.max()) + 9.2, 400)
    profile = np.array([loss(x) for x in grid])
    at = int(profile.argmin())
    bounds = (grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)])
    best = float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x)
    free = len(B) - 2
    least = loss(best)
    q = float(stdtrit(free, 0.5 + level / 2))
    # a floor on the residuals: a perfect fit of three made-up points has an interval all the same
    allowed = max(least, len(B) * 1e-12) * (1 + q * q / free)
    inside = profile <= allowed
    low = 0.0 if inside[0] else math.exp(_crossing(loss, allowed, grid[0], best))
    high = math.inf if inside[-1] else math.exp(_crossing(loss, allowed, grid[-1], best))
    critical = math.exp(best)
    S_min = math.exp(float((np.log(S) - np.log1p(critical / B)).mean()))
    return CriticalBatchFit(critical, (low, high), S_min, critical * S_min, math.sqrt(least / len(B)), level, len(B))


def _crossing(loss: object, allowed: float, outside: float, inside: float) -> float:
    assert callable(loss)
    for _ in range(80):
        middle = (outside + inside) / 2
        if loss(middle) > allowed:
            outside = middle
        else:
            inside = middle
    return inside


def steps_to_loss(steps: ArrayLike, losses: ArrayLike, target: float) -> float | None:
    """The step at which a run's loss first came down to `target`, between points straight in ln step; None: never.

    Args:
        steps: increasing, at least 1.
        losses: of a validation set, or smoothed: a noisy curve crosses too early.
        target: the same unit.
    """
    S, L = np.asarray(steps, dtype=float), np.asarray(losses, dtype=float)
    if S.shape != L.shape or S.ndim != 1:
        raise ValueError(f"expected as many losses as steps, got {L.shape} and {S.shape}")
    below = np.flatnonzero(target >= L)
    if len(below) == 0:
        return None
    i = int(below[0])
    if i == 0:
        return float(S[0])
    share = (L[i - 1] - target) / (L[i - 1] - L[i])
    return float(np.exp(np.log(S[i - 1]) + share * np.log(S[i] / S[i - 1])))
