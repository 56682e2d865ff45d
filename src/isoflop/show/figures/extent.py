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
