"""Approach 1 of recorded runs: their curves averaged, then the envelope of them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from isoflop.fit.approaches.approach import Approach
from isoflop.fit.approaches.envelope import Curve, envelope
from isoflop.fit.law import Convention
from isoflop.show.figures.figure import Array

BINS = 60
"""Of a curve, even in ln C; losses are averaged in each. A minimum over many noisy curves lies too low: of 100 planted
runs with 1e5 losses each and noise of .01, a = .552 for .513 by a smoother of two points, .514 [.510, .517] by bins."""
SHORTEST = 8
"""Points of a curve that is looked at."""


def envelope_of(runs: Iterable[tuple[float, Array, Array, Array]], level: float, convention: Convention) -> Approach:
    """Approach 1 with intervals.

    Args:
        runs: parameters; FLOPs, losses and tokens [points] of each, as recorded: NaN where unknown.
        level: of the intervals.
        convention: which parameters these are.

    Raises:
        ValueError: no envelope, or one that nothing bounds: why.
    """
    curves = []
    for N, C, loss, tokens in runs:
        good = np.isfinite(C) & (C > 0) & np.isfinite(loss) & (loss > 0) & np.isfinite(tokens) & (tokens > 0)
        rises = np.flatnonzero(good)[np.diff(C[good], prepend=0.0) > 0]
        if len(rises) >= SHORTEST:
            curves.append(Curve(N, *averaged(C[rises], loss[rises], tokens[rises])))
    if not curves:
        raise ValueError(f"curves of several sizes, each with {SHORTEST} points of this loss, are needed")
    found = envelope(curves, level=level, convention=convention)
    if not found.intervals:  # steps between two or three sizes
        raise ValueError("; ".join(found.warnings[-2:]))
    return found


def averaged(C: Array, loss: Array, tokens: Array, bins: int = BINS) -> tuple[Array, Array, Array]:
    """Means over bins even in ln C: of FLOPs and tokens geometric ones."""
    x = np.log(C)
    place = np.minimum(((x - x[0]) / (x[-1] - x[0]) * bins).astype(int), bins - 1)
    number = np.bincount(place, minlength=bins)
    some = number > 0

    def mean(values: Array) -> Array:
        return np.asarray(np.bincount(place, values, minlength=bins)[some] / number[some])

    return np.exp(mean(x)), mean(loss), np.exp(mean(np.log(tokens)))
