"""A figure as plotly's JSON: a plain dict, made without importing plotly, that its script draws in a browser.

Columns of numbers go as base64 of float32 (plotly.js ≥ 2.35), a third of the text and no parsing. Every text passes
through `escaped`: plotly reads a subset of HTML in names, `%{…}` in templates and MathJax between dollars.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.arrays import Array
from isoflop.figures.figure import Axis, Band, Contours, Figure, Series, extent_of, round_ticks
from isoflop.figures.palette import Theme, ThemeName, colour_of, colour_scale, see_through, theme_of
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


NAMED = 12
"""Runs that the legend names; of more it has one entry, and a colour scale."""
WRITTEN = 500
"""Points whose hover numbers are written out; of more, and of runs' curves, plotly formats them."""
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")
WIDTHS = {"fit": 2.5, "approach 1": 4.5, "approach 2": 3.0, "approach 3": 1.5}
"""Lines on one another are all seen."""
UNITS = {"N": "parameters", "D": "tokens", "C": "FLOPs", "L": "nats per token"}
FORMATS = {"C": ".3~g", "L": ".4~f"}


def plotly_figure(figure: Figure, theme: ThemeName = "light") -> dict[str, Any]:
    """`{"data": …, "layout": …}` for `Plotly.newPlot`.

    Traces of a run carry `meta: {"run_id"}`, so that a page can show and hide it in all figures.

    Args:
        figure: as `figures` makes it.
        theme: light or dark.
    """
    look = theme_of(theme)
    many = figure.runs > NAMED
    named: set[str] = set()  # a band's kind is in the legend once
    data: list[dict[str, Any]] = []
    for band in figure.bands:
        data.append(_band(band, look, band.name not in named))
        named.add(band.name)
    data += [_contours(contours, look) for contours in figure.contours]
    data += [_series(series, figure, look, many) for series in figure.series]
    if many:
        data.append(_all_runs(figure.runs, look))
    if figure.shades is not None and (many or not figure.runs):  # few runs are in the legend by name
        data.append(_shades(figure, look))
    x, y = extent_of(figure)
    layout = layout_of(figure, look, x, y)
    if figure.x.second is not None:
        layout["xaxis2"] = second_axis(figure.x, x, look)
        low = 10 ** x[0] if figure.x.log else x[0]
        data.append(
            {"x": [low], "y": [None], "xaxis": "x2", "type": "scatter", "showlegend": False, "hoverinfo": "skip"}
        )
    return {"data": data, "layout": layout}


def packed(values: Array) -> dict[str, str]:
    """A column, or a matrix [rows, columns], as plotly's typed array; NaN is a gap."""
    numbers = np.ascontiguousarray(values, dtype="<f4")
    found = {"dtype": "f4", "bdata": base64.b64encode(numbers.tobytes()).decode("ascii")}
    return found if numbers.ndim == 1 else {**found, "shape": ", ".join(map(str, numbers.shape))}


def _series(series: Series, figure: Figure, theme: Theme, many: bool) -> dict[str, Any]:
    colour = colour_of(series.role, series.number, series.shade, theme)
    run = series.run_id is not None
    in_group = run and many
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": {"line": "lines", "points": "markers", "line+points": "lines+markers"}[series.kind],
        "name": escaped(name_of(series.name)),
        "x": packed(series.x),
        "y": packed(series.y),
        "showlegend": series.legend and not in_group,
        "legendgroup": "runs" if in_group else escaped(series.group or (series.run_id or series.name)),
        **_hover(series, figure),
    }
    if run:
        trace["meta"] = {"run_id": series.run_id}
    if series.kind != "points":
        width = WIDTHS.get(series.role, 1.2 if in_group else 1.7)
        dash = DASHES[series.number % len(DASHES)] if series.dashed else "solid"
        trace["line"] = {"color": colour, "width": width, "dash": dash}
        trace["connectgaps"] = False
    if series.kind != "line":
        symbol = {"bad": "x", "published": "diamond-open", "approach 2": "diamond"}.get(series.role, "circle")
        trace["marker"] = {"color": colour, "size": 7, "symbol": symbol, "opacity": 0.85}
        if symbol == "diamond":  # seen among points of any colour
            trace["marker"] |= {"size": 9, "opacity": 1, "line": {"color": theme.text, "width": 1.2}}
        if series.shades is not None:
            scale = {"color": packed(series.shades), "cmin": 0, "cmax": 1, "colorscale": colour_scale(theme)}
            trace["marker"] |= scale
    for axis, (below, above) in series.errors.items():
        ends = {"array": packed(above), "arrayminus": packed(below)}
        look = {"color": colour, "thickness": 1.3, "width": 3}
        trace[f"error_{axis}"] = {"type": "data", "symmetric": False, **ends, **look}
    return trace


def _hover(series: Series, figure: Figure) -> dict[str, Any]:
    """`hovertemplate`, `text` and `customdata`: the name, then a line for each column."""
    lines = ["<b>%{text}</b>" if series.labels else "<b>%{fullData.name}</b>"]
    columns: list[Array] = []
    written = series.run_id is None and len(series.x) <= WRITTEN
    cells: list[Sequence[str]] = []
    for name, values in series.hover.items():
        unit = UNITS.get(name, "")
        if not isinstance(values, np.ndarray):
            lines.append(f"{escaped(name)} {escaped(written_number(name, float(values)))} {unit}")
        elif written:
            lines.append(f"{escaped(name)} %{{customdata[{len(cells)}]}} {unit}")
            cells.append([written_number(name, float(value)) for value in values])
        else:
            where = "x" if values is series.x else "y" if values is series.y else f"customdata[{len(columns)}]"
            lines.append(f"{escaped(name)} %{{{where}:{FORMATS.get(name, '.3~g')}}} {unit}")
            if where.startswith("c"):
                columns.append(values)
    if not series.hover:
        lines.append(f"{escaped(figure.x.label)} %{{x:.4~g}}<br>{escaped(figure.y.label)} %{{y:.4~g}}")
    found: dict[str, Any] = {"hovertemplate": "<br>".join(lines) + "<extra></extra>"}
    if series.labels:
        found["text"] = [escaped(name_of(label)) for label in series.labels]
    if cells:
        found["customdata"] = [list(row) for row in zip(*cells, strict=True)]
    elif columns:
        found["customdata"] = packed(np.stack(columns, axis=1))
    return found


def written_number(name: str, value: float) -> str:
    """A number for people, by what it is: N and D short, C in powers of ten, L in four decimals."""
    if not math.isfinite(value):
        return "unknown"
    if name in ("N", "D"):
        return short(value)
    return f"{value:.4f}" if name == "L" else f"{value:.3g}"


def _band(band: Band, theme: Theme, first: bool) -> dict[str, Any]:
    colour = colour_of(band.role, band.number, band.shade, theme)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "name": escaped(name_of(band.name)),
        "x": packed(np.concatenate([band.x, band.x[::-1]])),
        "y": packed(np.concatenate([band.high, band.low[::-1]])),
        "fill": "toself",
        "fillcolor": see_through(colour, 0.2 if theme.dark else 0.16),
        "line": {"width": 0, "color": colour},
        "hoverinfo": "skip",
        "showlegend": first and band.run_id is None,  # a run's own goes with its line
        "legendrank": 1100,  # after lines
        "legendgroup": escaped(band.group or band.run_id or band.name),
    }
    if band.run_id is not None:
        trace["meta"] = {"run_id": band.run_id}
    return trace


def _contours(contours: Contours, theme: Theme) -> dict[str, Any]:
    return {
        "type": "contour",
        "name": escaped(contours.name),
        "x": packed(contours.x),
        "y": packed(contours.y),
        "z": packed(contours.z),
        "contours": {
            "coloring": "lines",
            "start": float(contours.levels[0]),
            "end": float(contours.levels[-1]),
            "size": float(np.diff(contours.levels).min()) if len(contours.levels) > 1 else 1.0,
            "showlabels": True,
            "labelfont": {"size": 10, "color": theme.text},
        },
        "line": {"width": 1},
        "colorscale": [[0, theme.contour], [1, theme.contour]],
        "showscale": False,
        "hovertemplate": f"%{{z:.3f}} {escaped(contours.unit)}<extra></extra>",
    }


def _all_runs(number: int, theme: Theme) -> dict[str, Any]:
    """The one entry in the legend for many runs: a click hides and shows them."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"{number:,} runs",
        "x": [None],
        "y": [None],
        "line": {"color": colour_of("run", 0, 0.5, theme), "width": 2},
        "legendgroup": "runs",
        "showlegend": True,
        "hoverinfo": "skip",
    }


def _shades(figure: Figure, theme: Theme) -> dict[str, Any]:
    assert figure.shades is not None
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [None],
        "y": [None],
        "showlegend": False,
        "hoverinfo": "skip",
        "marker": {
            "color": [0, 1],
            "cmin": 0,
            "cmax": 1,
            "colorscale": colour_scale(theme),
            "showscale": True,
            "colorbar": {
                "title": {"text": escaped(figure.shades.label), "side": "right"},
                "tickvals": [at for at, _ in figure.shades.ticks],
                "ticktext": [escaped(text) for _, text in figure.shades.ticks],
                "thickness": 12,
                "outlinewidth": 0,
            },
        },
    }
