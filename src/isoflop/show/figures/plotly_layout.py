"""Axes, legend and page of a figure for plotly."""

from __future__ import annotations

import math
from typing import Any

from isoflop.show.figures.extent import round_ticks
from isoflop.show.figures.figure import Axis, Figure
from isoflop.show.figures.palette import Theme
from isoflop.show.figures.plotly_text import escaped

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def layout_of(figure: Figure, theme: Theme, x: tuple[float, float], y: tuple[float, float]) -> dict[str, Any]:
    """The layout of a figure whose axes end at x and y (`extent_of`)."""
    second = figure.x.second is not None
    return {
        "autosize": True,
        "height": 520,
        "paper_bgcolor": theme.background,
        "plot_bgcolor": theme.background,
        "font": {"family": FONT, "size": 13, "color": theme.text},
        "margin": {"l": 70, "r": 20, "t": 60 if second else 36, "b": 60},
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "namelength": -1},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": -0.2,
            "yanchor": "top",
            "font": {"size": 12},
            "itemsizing": "constant",
        },
        "xaxis": _axis(figure.x, x, theme),
        "yaxis": _axis(figure.y, y, theme),
    }


def _axis(axis: Axis, ends: tuple[float, float], theme: Theme) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "log" if axis.log else "linear",
        "title": {"text": escaped(axis.title), "standoff": 10},
        "range": list(ends),
        "gridcolor": theme.grid,
        "linecolor": theme.text,
        "ticks": "outside",
        "ticklen": 4,
        "zeroline": False,
        "automargin": True,
    }
    span = ends[1] - ends[0]
    if axis.percent:
        found["tickformat"] = ".1~%"
    elif axis.log and (ticks := round_ticks(axis, ends)):
        found |= {"tickvals": ticks, "ticktext": [f"{value:g}" for value in ticks]}
    elif axis.log and span > 1.2:
        found |= {"exponentformat": "power", "dtick": "D2" if span < 3 else max(1, round(span / 8))}
    return found


def second_axis(axis: Axis, ends: tuple[float, float], theme: Theme) -> dict[str, Any]:
    """The scale at the top: ticks of its own at powers of ten, on the same range."""
    assert axis.second is not None and axis.log
    shift = math.log10(axis.second.factor)
    span = ends[1] - ends[0]
    step = max(1, round(span / 8))
    parts = (1, 2, 5) if span < 2.2 else (1,)
    ticks = [(part, power) for power in range(-30, 31) if power % step == 0 for part in parts]
    return {
        "type": "log",
        "overlaying": "x",
        "matches": "x",
        "side": "top",
        "title": {"text": escaped(axis.second.label), "standoff": 6},
        "tickvals": [part * 10 ** (power + shift) for part, power in ticks],
        "ticktext": [_power(part, power) for part, power in ticks],
        "range": list(ends),
        "showgrid": False,
        "linecolor": theme.text,
        "ticks": "outside",
        "ticklen": 4,
        "zeroline": False,
    }


def _power(part: int, power: int) -> str:
    """5·10⁻³ as plotly writes it."""
    ten = f"10<sup>{str(power).replace('-', '−')}</sup>"
    return ten if part == 1 else f"{part}·{ten}"
