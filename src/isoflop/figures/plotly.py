"""A figure as plotly's JSON: a plain dict, made without importing plotly, that its script draws in a browser.

Columns of numbers go as base64 of float32 (plotly.js ≥ 2.35), a third of the text and no parsing. Every text passes
through `escaped`: plotly reads a subset of HTML in names, `%{…}` in templates and MathJax between dollars.
"""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from isoflop.arrays import Array
from isoflop.figures.figure import (
    Axis,
    Band,
    Contours,
    Figure,
    Scale,
    Series,
    Shades,
    Theme,
    colour_of,
    colour_scale,
    extent_of,
    round_ticks,
    see_through,
    theme_of,
)
from isoflop.figures.text import name_of
from isoflop.laws import short


def escaped(text: str) -> str:
    """A text that plotly shows as it is, whatever it holds.

    >>> escaped('<a href="javascript:x">%{x}$y$</a>')
    '&lt;a href="javascript:x"&gt;&#37;{x}&#36;y&#36;&lt;/a&gt;'
    """
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("%", "&#37;"), ("$", "&#36;")):
        text = text.replace(character, entity)
    return text


FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LAYOUT: dict[str, Any] = {"autosize": True, "height": 520, "hovermode": "closest"}
LAYOUT["hoverlabel"] = {"align": "left", "namelength": -1}
LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.2, "yanchor": "top", "itemsizing": "constant"}
LINE = {"ticks": "outside", "ticklen": 4, "zeroline": False}
"""Of every axis."""
NAMED = 12
"""Runs that the legend names; of more it has one entry, and a colour scale."""
WRITTEN = 500
"""Points whose hover numbers are written out; of more, and of runs' curves, plotly formats them."""
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")
WIDTHS = {"fit": 2.5, "approach 1": 4.5, "approach 2": 3.0, "approach 3": 1.5}
"""Lines on one another are all seen."""
SYMBOLS = {"bad": "x", "out": "circle-open", "published": "diamond-open", "approach 2": "diamond"}
UNITS = {"N": "parameters", "D": "tokens", "C": "FLOPs", "L": "nats per token"}
FORMATS = {"C": ".3~g", "L": ".4~f"}


def plotly_figure(figure: Figure, theme: str = "light") -> dict[str, Any]:
    """`{"data": …, "layout": …}` for `Plotly.newPlot`, light or dark.

    Traces of a run carry `meta: {"run_id"}`, so that a page can show and hide it in all figures.
    """
    look, many = theme_of(theme), figure.runs > NAMED
    kinds = [band.name for band in figure.bands]  # each is in the legend once
    data = [_band(band, look, band.name not in kinds[:i]) for i, band in enumerate(figure.bands)]
    data += [_contours(contours, look) for contours in figure.contours]
    data += [_series(series, figure, look, many) for series in figure.series]
    if many:  # a click hides and shows them
        line = {"color": colour_of(look, "run", 0.5), "width": 2}
        all_runs = {"name": f"{figure.runs:,} runs", "legendgroup": "runs", "line": line, "showlegend": True}
        data.append({**_empty("lines"), **all_runs})
    if figure.shades is not None and (many or not figure.runs):  # few runs are in the legend by name
        data.append(_shades(figure.shades, look))
    x, y = extent_of(figure)
    layout: dict[str, Any] = {
        **LAYOUT,
        **dict.fromkeys(("paper_bgcolor", "plot_bgcolor"), look.background),
        "font": {"family": FONT, "size": 13, "color": look.text},
        "margin": {"l": 70, "r": 20, "t": 36 if figure.x.second is None else 60, "b": 60},
        "legend": {**LEGEND, "font": {"size": 12}},
        "xaxis": _axis(figure.x, x, look),
        "yaxis": _axis(figure.y, y, look),
    }
    if figure.x.second is not None:
        layout["xaxis2"] = _second_axis(figure.x.second, x, look)
        data.append({**_empty("markers"), "x": [10 ** x[0]], "xaxis": "x2"})
    return {"data": data, "layout": layout}


# -- axes --------------------------------------------------------------------------------------------------------------


def _axis(axis: Axis, ends: tuple[float, float], theme: Theme) -> dict[str, Any]:
    found: dict[str, Any] = {
        **LINE,
        "type": "log" if axis.log else "linear",
        "title": {"text": escaped(axis.title), "standoff": 10},
        "range": list(ends),
        "gridcolor": theme.grid,
        "linecolor": theme.text,
        "automargin": True,
    }
    span = ends[1] - ends[0]
    if axis.percent:
        return found | {"tickformat": ".1~%"}
    if axis.log and (ticks := round_ticks(axis, ends)):
        return found | {"tickvals": ticks, "ticktext": [f"{value:g}" for value in ticks]}
    if axis.log:
        dense = {} if span <= 1.2 else {"dtick": "D2" if span < 3 else max(1, round(span / 8))}
        return found | {"exponentformat": "power", **dense}
    return found


def _second_axis(scale: Scale, ends: tuple[float, float], theme: Theme) -> dict[str, Any]:
    """The scale at the top of a logarithmic axis: ticks of its own at powers of ten, on the same range."""
    span = ends[1] - ends[0]
    parts, powers = ((1, 2, 5) if span < 2.2 else (1,)), range(-30, 31)
    ticks = {
        part * 10.0**power * scale.factor: f"{'' if part == 1 else f'{part}·'}10<sup>{power}</sup>".replace("-", "−")
        for power in powers
        for part in parts
        if power % max(1, round(span / 8)) == 0
    }
    return {
        **LINE,
        **{"type": "log", "overlaying": "x", "matches": "x", "side": "top", "showgrid": False},
        "title": {"text": escaped(scale.label), "standoff": 6},
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
        "range": list(ends),
        "linecolor": theme.text,
    }


# -- traces ------------------------------------------------------------------------------------------------------------


def packed(values: Array) -> dict[str, str]:
    """A column, or a matrix [rows, columns], as plotly's typed array; NaN is a gap."""
    numbers = np.ascontiguousarray(values, dtype="<f4")
    found = {"dtype": "f4", "bdata": base64.b64encode(numbers.tobytes()).decode("ascii")}
    return found if numbers.ndim == 1 else {**found, "shape": ", ".join(map(str, numbers.shape))}


def _empty(mode: str) -> dict[str, Any]:
    """A trace without points, for the legend, a colour scale or an axis."""
    return {"type": "scatter", "mode": mode, "x": [None], "y": [None], "showlegend": False, "hoverinfo": "skip"}


def _of_run(run_id: str | None) -> dict[str, Any]:
    return {} if run_id is None else {"meta": {"run_id": run_id}}


def _scale(theme: Theme) -> dict[str, Any]:
    return {"cmin": 0, "cmax": 1, "colorscale": colour_scale(theme)}


def _series(series: Series, figure: Figure, theme: Theme, many: bool) -> dict[str, Any]:
    colour = colour_of(theme, series.role, series.shade, series.number)
    in_group = series.run_id is not None and many
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines" if series.kind == "line" else "markers",
        "name": escaped(name_of(series.name)),
        "x": packed(series.x),
        "y": packed(series.y),
        "showlegend": series.legend and not in_group,
        "legendgroup": "runs" if in_group else escaped(series.group or series.run_id or series.name),
        **_of_run(series.run_id),
        **_hover(series, figure),
    }
    if series.kind == "line":
        width = WIDTHS.get(series.role, 1.2 if in_group else 1.7)
        dash = DASHES[series.number % len(DASHES)] if series.dashed else "solid"
        trace |= {"line": {"color": colour, "width": width, "dash": dash}, "connectgaps": False}
    else:
        symbol = SYMBOLS.get(series.role, "circle")
        trace["marker"] = {"color": colour, "size": 7, "symbol": symbol, "opacity": 0.85}
        if symbol == "diamond":  # seen among points of any colour
            trace["marker"] |= {"size": 9, "opacity": 1, "line": {"color": theme.text, "width": 1.2}}
        if series.shades is not None:
            trace["marker"] |= {"color": packed(series.shades), **_scale(theme)}
    look = {"type": "data", "symmetric": False, "color": colour, "thickness": 1.3, "width": 3}
    for axis, (below, above) in series.errors.items():
        trace[f"error_{axis}"] = {**look, "array": packed(above), "arrayminus": packed(below)}
    return trace


def _hover(series: Series, figure: Figure) -> dict[str, Any]:
    """`hovertemplate`, `text` and `customdata`: the name, then a line for each column."""
    lines = ["<b>%{text}</b>" if series.labels else "<b>%{fullData.name}</b>"]
    columns: list[Any] = []
    written = series.run_id is None and len(series.x) <= WRITTEN
    for name, values in series.hover.items():
        form = FORMATS.get(name, ".3~g")
        if not isinstance(values, np.ndarray):
            value = escaped(_written(name, float(values)))
        elif written:
            value = f"%{{customdata[{len(columns)}]}}"
            columns.append([_written(name, float(each)) for each in values])
        elif values is series.x or values is series.y:
            value = f"%{{{'x' if values is series.x else 'y'}:{form}}}"
        else:
            value = f"%{{customdata[{len(columns)}]:{form}}}"
            columns.append(values)
        lines.append(f"{escaped(name)} {value} {UNITS.get(name, '')}")
    if not series.hover:
        lines.append(f"{escaped(figure.x.label)} %{{x:.4~g}}<br>{escaped(figure.y.label)} %{{y:.4~g}}")
    found: dict[str, Any] = {"hovertemplate": "<br>".join(lines) + "<extra></extra>"}
    if series.labels:
        found["text"] = [escaped(name_of(label)) for label in series.labels]
    if columns:
        found["customdata"] = list(map(list, zip(*columns, strict=True))) if written else packed(np.stack(columns, 1))
    return found


def _written(name: str, value: float) -> str:
    """A number for people, by what it is: N and D short, C in powers of ten, L in four decimals."""
    if not math.isfinite(value):
        return "unknown"
    if name in ("N", "D"):
        return short(value)
    return f"{value:.4f}" if name == "L" else f"{value:.3g}"


def _band(band: Band, theme: Theme, first: bool) -> dict[str, Any]:
    colour = colour_of(theme, band.role, band.shade)
    return {
        **{"type": "scatter", "mode": "lines", "fill": "toself", "hoverinfo": "skip"},
        "name": escaped(name_of(band.name)),
        "x": packed(np.concatenate([band.x, band.x[::-1]])),
        "y": packed(np.concatenate([band.high, band.low[::-1]])),
        "fillcolor": see_through(colour, 0.2 if theme.dark else 0.16),
        "line": {"width": 0, "color": colour},
        "showlegend": first and band.run_id is None,  # a run's own goes with its line
        "legendrank": 1100,  # after lines
        "legendgroup": escaped(band.group or band.run_id or band.name),
        **_of_run(band.run_id),
    }


def _contours(contours: Contours, theme: Theme) -> dict[str, Any]:
    levels = contours.levels
    step = float(np.diff(levels).min()) if len(levels) > 1 else 1.0
    drawn = {"start": float(levels[0]), "end": float(levels[-1]), "size": step, "coloring": "lines"}
    return {
        "type": "contour",
        "name": escaped(contours.name),
        **{name: packed(getattr(contours, name)) for name in "xyz"},
        "contours": {**drawn, "showlabels": True, "labelfont": {"size": 10, "color": theme.text}},
        "line": {"width": 1},
        "colorscale": [[0, theme.contour], [1, theme.contour]],
        "showscale": False,
        "hovertemplate": f"%{{z:.3f}} {escaped(contours.unit)}<extra></extra>",
    }


def _shades(shades: Shades, theme: Theme) -> dict[str, Any]:
    bar = {
        "title": {"text": escaped(shades.label), "side": "right"},
        "tickvals": [at for at, _ in shades.ticks],
        "ticktext": [escaped(text) for _, text in shades.ticks],
        **{"thickness": 12, "outlinewidth": 0},
    }
    return {**_empty("markers"), "marker": {"color": [0, 1], **_scale(theme), "showscale": True, "colorbar": bar}}
