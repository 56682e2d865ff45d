"""What a learning-rate plan does to the loss: effective steps, and how far each fall of the rate has taken effect.

L = E + A·x^−α − C·F, x = Σ η̃, F(t) = Σ_k (η̃_{k−1}^p − η̃_k^p)·G(lag from k to t), η̃ = lr over its peak; after Tissue
et al. 2024 (arXiv:2408.11029) and Luo et al. 2025 (2503.12811), who take p = 1 and other kernels G.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.fit.forecast.schedule import LrPlan

Array = NDArray[np.float64]
CELLS = 160
"""Pieces that the falls of the rate are summed over."""


@dataclass(frozen=True)
class Kernel:
    """G = lag/(lag + T), lag = Σ η̃^q steps: `q` 0 is a lag in steps; `p` is the power of the rate that falls.

    `gain` is what ln C is above its prior with this kernel (a slower one needs a larger C), `weight` its prior weight.
    """

    p: float
    q: float
    T: float
    gain: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True)
class Path:
    """A plan made ready: cumulative effective steps and lags at nodes, and the falls between them."""

    nodes: Array
    effective: Array  # Σ η̃ at the nodes
    shape: Array  # η̃ at the nodes
    first: int  # the node at which the warm-up ends

    def x(self, steps: Array) -> Array:
        """Effective steps Σ η̃ up to `steps`; at least a millionth, so that powers are finite at the start."""
        return np.maximum(np.interp(steps, self.nodes, self.effective), 1e-6)


def path(plan: LrPlan, warmup: float, end: float, peak: float | None = None) -> Path:
    """The nodes of a plan from step 0 to `end`: all its knots where there are few, else the ones that matter."""
    steps = np.unique(np.concatenate([[0.0, min(warmup, end), end], plan.steps[plan.steps < end]]))
    rate = plan.at(steps) / (peak or plan.peak)
    if len(steps) > CELLS // 2:
        # evenly by the change of the rate and by the steps together
        measure = np.cumsum(np.abs(np.diff(rate, prepend=rate[0]))) / max(np.abs(np.diff(rate)).sum(), 1e-12)
        measure = measure + steps / end
        at = np.searchsorted(measure, np.linspace(0, measure[-1], CELLS // 2))
        keep = np.unique(np.concatenate([[0, len(steps) - 1], np.clip(at, 0, len(steps) - 1)]))
        keep = np.union1d(keep, np.searchsorted(steps, min(warmup, end)))
        full_x = np.concatenate([[0.0], np.cumsum(np.diff(steps) * (rate[1:] + rate[:-1]) / 2)])
        steps, rate, known = steps[keep], rate[keep], full_x[keep]
    else:
        known = np.concatenate([[0.0], np.cumsum(np.diff(steps) * (rate[1:] + rate[:-1]) / 2)])
    # long straight falls are cut into pieces
    spread = np.abs(np.diff(rate)) / max(np.abs(np.diff(rate)).sum(), 1e-12)
    pieces = np.minimum(1 + np.floor(spread * CELLS), np.maximum(np.diff(steps), 1)).astype(int)
    index = np.repeat(np.arange(len(pieces)), pieces)
    within = (np.arange(len(index)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) / pieces[index]
    width, rise = np.diff(steps)[index] * within, np.diff(rate)[index] * within
    nodes = np.append(steps[:-1][index] + width, steps[-1])
    shape = np.append(rate[:-1][index] + rise, rate[-1])
    # exact on a line: x is quadratic within a piece
    start = rate[:-1][index]
    x = np.append(known[:-1][index] + width * (start + rise / 2), known[-1])
    return Path(nodes, x, np.maximum(shape, 0), int(np.searchsorted(nodes, min(warmup, end))))


def falls(road: Path, kernels: tuple[Kernel, ...], steps: Array) -> Array:
    """F of each kernel at `steps`: shape (kernels, steps)."""
    out = np.zeros((len(kernels), len(steps)))
    nodes, shape = road.nodes[road.first :], road.shape[road.first :]
    if len(nodes) < 2:
        return out
    moved = np.flatnonzero(np.diff(shape) != 0)
    if len(moved) == 0:
        return out
    drops = {p: -np.diff(shape**p)[moved] for p in {kernel.p for kernel in kernels}}
    effects: dict[tuple[float, float], Array] = {}
    lags: dict[float, Array] = {}
    for i, kernel in enumerate(kernels):
        if kernel.q not in lags:
            speed = shape**kernel.q
            clock = np.concatenate([[0.0], np.cumsum(np.diff(nodes) * (speed[1:] + speed[:-1]) / 2)])
            middle = (clock[1:] + clock[:-1])[moved] / 2
            lags[kernel.q] = np.maximum(np.interp(steps, nodes, clock)[:, None] - middle, 0)
        key = kernel.q, kernel.T
        if key not in effects:
            effects[key] = lags[kernel.q] / (lags[kernel.q] + kernel.T)
        out[i] = effects[key] @ drops[kernel.p]
    return out
