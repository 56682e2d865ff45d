"""The noise of binned losses: its size by robust residuals, Huber's weights, and how long it remembers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
HUBER = 1.345
"""Huber's k: 95% efficient on normal residuals."""


def estimate(residual: Array, relative: Array, before: float, floor: float) -> tuple[float, Array]:
    """Standard deviation of a bin with the mean number of steps, and each bin's weight.

    Args:
        residual: of the bins, nats.
        relative: raw steps of each bin over their mean.
        before: the last estimate: residuals beyond 2.5 of it are clipped.
        floor: standard deviation that no number of steps takes away.
    """
    scaled = residual * np.sqrt(relative)
    median = 1.4826 * float(np.sort(np.abs(scaled))[len(scaled) // 2])
    square = float(np.sqrt(np.mean(np.minimum(scaled**2, (2.5 * before) ** 2))))
    sd = max(median, square, 0.02 * floor)
    z = np.abs(residual) / np.sqrt(sd**2 / relative + floor**2)
    return sd, np.minimum(1.0, HUBER / np.maximum(z, 1e-12))


def remembered(residual: Array) -> float:
    """(1 − ρ)/(1 + ρ) by the lag-one correlation ρ: the share of the bins that count as independent."""
    square = float(residual @ residual)
    if len(residual) < 5 or square == 0:
        return 1.0
    rho = min(max(float(residual[1:] @ residual[:-1]) / square, 0.0), 0.9)
    return (1 - rho) / (1 + rho)
