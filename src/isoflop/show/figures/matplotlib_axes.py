"""Axes of a figure for matplotlib: where they end, their ticks, the second scale; texts without mathematics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.show.figures.extent import extent_of, round_ticks
from isoflop.show.figures.figure import Axis, Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def set_axes(axes: Axes, figure: Figure) -> None:
    """Limits and ticks."""
    from matplotlib.ticker import (
        FixedLocator,
        FuncFormatter,
        LogFormatterSciNotation,
        LogLocator,
        MaxNLocator,
        NullFormatter,
        NullLocator,
    )

    for which, axis, (low, high) in zip("xy", (figure.x, figure.y), extent_of(figure), strict=True):
        getattr(axes, f"set_{which}lim")(*((10**low, 10**high) if axis.log else (low, high)))
        ticks = getattr(axes, f"{which}axis")
        if axis.percent:
            ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
        if not axis.log:
            continue
        ticks.set_minor_formatter(NullFormatter())
        if ticked := round_ticks(axis, (low, high)):
            ticks.set_major_locator(FixedLocator(ticked))
            ticks.set_minor_locator(NullLocator())
        elif high - low <= 0.45:  # a logarithmic scale of so little reads best in even steps
            ticks.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
            ticks.set_minor_locator(NullLocator())
        else:
            ticks.set_major_locator(LogLocator(numticks=9))
        plain = low > -3 and high < 4.5
        ticks.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:g}") if plain else LogFormatterSciNotation(minor_thresholds=(9, 9))
        )


def set_second(axes: Axes, axis: Axis) -> None:
    """The second scale of x at the top; without one no line there."""
    if axis.second is None:
        axes.spines.top.set_visible(False)
        return
    factor = axis.second.factor
    top = axes.secondary_xaxis("top", functions=(lambda x: np.asarray(x) / factor, lambda x: np.asarray(x) * factor))
    plain(top.set_xlabel(axis.second.label))


def plain(text: Any) -> None:
    """No mathematics between dollars: a run's name is text."""
    text.set_parse_math(False)
