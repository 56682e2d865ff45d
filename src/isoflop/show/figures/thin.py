"""A curve in fewer points that looks the same: of each column of the screen its first, last, lowest and highest point.

At as many columns as the screen has pixels a line through these four is drawn exactly as the line through all (Jugel et
al. 2014, "M4: A Visualization-Oriented Time Series Data Aggregation"). Spikes stay.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isoflop.show.figures.figure import Array

MOST = 1000
"""Points of a curve: 250 columns."""
TOTAL = 40_000
"""Points of a figure's curves in all: what a browser draws at once without a pause."""
LEAST = 60
Indices = NDArray[np.intp]


def points_each(curves: int) -> int:
    """Points of each of so many curves."""
    return int(np.clip(TOTAL // max(curves, 1), LEAST, MOST))


def thin(x: Array, y: Array, most: int = MOST, log: bool = True) -> Indices:
    """Which points to draw.

    Keeps the first and the last, the lowest and the highest, their order, and of losses that are not finite the first
    of each gap. What is left out lies between the lowest and highest point kept of its column. Thinning again changes
    nothing.

    Args:
        x: not decreasing; on a logarithmic axis what is not positive is left out.
        y: NaN breaks the line.
        most: points at the most, at least 8; a gap may add one each.
        log: whether the x axis is.

    >>> x = np.arange(1.0, 100_001.0)
    >>> y = 10 / x**0.1
    >>> y[50_000] = 8  # a spike
    >>> kept = thin(x, y)
    >>> len(kept) <= 1000, 50_000 in kept
    (True, True)
    """
    at = np.flatnonzero(np.isfinite(x) & (x > 0) if log else np.isfinite(x))
    fine = at[np.isfinite(y[at])]
    if len(fine) > most:
        fine = fine[_four_a_column(np.log(x[fine]) if log else x[fine], y[fine], max(most // 4, 2))]
    gaps = at[~np.isfinite(y[at])]
    if not len(gaps):
        return fine
    between = np.searchsorted(fine, gaps)
    first = np.unique(between, return_index=True)[1]
    return np.sort(np.concatenate([fine, gaps[first]]))


def _four_a_column(x: Array, y: Array, columns: int) -> Indices:
    """First, last, lowest and highest of each column, by index."""
    width = (x[-1] - x[0]) / columns
    column = np.zeros(len(x), dtype=int) if width <= 0 else np.minimum((x - x[0]) / width, columns - 1).astype(int)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    ends = np.append(starts[1:], len(x)) - 1
    part = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(x))))
    kept = [starts, ends]
    for values in (y, -y):
        lowest = np.minimum.reduceat(values, starts)
        hits = np.flatnonzero(values == lowest[part])
        kept.append(hits[np.unique(part[hits], return_index=True)[1]])  # the first of equals
    return np.unique(np.concatenate(kept))
