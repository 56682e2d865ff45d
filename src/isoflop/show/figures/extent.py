"""How far a figure's axes reach: all that is drawn, and a margin; on a logarithmic axis in powers of ten."""

from __future__ import annotations

import numpy as np

from isoflop.show.figures.figure import Array, Axis, Figure

MARGIN = 0.04
NARROWEST = 0.02
"""Of a logarithmic axis, in powers of ten."""


def extent_of(figure: Figure) -> tuple[tuple[float, float], tuple[float, float]]:
    """(low, high) of x and of y; log10 of the values where the axis is logarithmic."""
    x = [series.x for series in figure.series] + [band.x for band in figure.bands]
    y = [series.y for series in figure.series]
    y += [ends for each in (*figure.series, *figure.bands) for ends in (each.low, each.high) if ends is not None]
    x += [each.x for each in figure.contours]
    y += [each.y for each in figure.contours]
    return _ends(figure.x, x), _ends(figure.y, y)


def _ends(axis: Axis, columns: list[Array]) -> tuple[float, float]:
    values = np.concatenate([np.ravel(each) for each in columns]) if columns else np.empty(0)
    values = values[np.isfinite(values) & ((values > 0) | (not axis.log))]
    if not values.size:
        return 0.0, 1.0
    given = [None if end is None else float(np.log10(end)) if axis.log else end for end in (axis.low, axis.high)]
    scaled = np.log10(values) if axis.log else values
    low, high = float(scaled.min()), float(scaled.max())
    narrow = NARROWEST if axis.log else 1e-3 * max(abs(low), abs(high), 1e-12)
    margin = max(MARGIN * (high - low), narrow / 2)
    low, high = low - margin, high + margin
    return (low if given[0] is None else given[0], high if given[1] is None else given[1])


def round_ticks(axis: Axis, ends: tuple[float, float]) -> list[float]:
    """Ticks of a logarithmic axis of plain numbers between about a half and two decades; of others none.

    There a renderer's own ticks are powers of ten, and too few: losses from 2 to 10 want 2.5 as well.

    >>> round_ticks(Axis("loss", "nats per token"), (0.33, 1.03))
    [2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0]
    """
    low, high = ends
    if not 0.45 < high - low < 2.5 or low < -3 or high > 4:
        return []
    parts = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0) if high - low < 1.2 else (1.0, 2.0, 5.0)
    values = [round(part * 10.0**power, 6) for power in range(-4, 5) for part in parts]
    return [value for value in values if low <= np.log10(value) <= high]
