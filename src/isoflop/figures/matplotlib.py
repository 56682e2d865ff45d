"""A figure for paper, by matplotlib: PDF and SVG with text as text, PNG at 300 dpi; a column or the text's width."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.figures.figure import (
    Figure,
    Series,
    Shades,
    Theme,
    colour_of,
    colour_scale,
    extent_of,
    round_ticks,
    theme_of,
)
from isoflop.figures.text import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn


WIDTH, HEIGHT, LEAST_HEIGHT = 5.5, 3.6, 2.7
"""Inches: the width of the text of most conferences' papers; in a narrow column the axes' labels want some height."""
NAMED = 8
"""Runs that the legend names; of more it has one entry, and a colour scale."""
DASHES: tuple[Any, ...] = ((0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (8, 2, 1, 2)))
WIDTHS = {"fit": 1.4, "approach 1": 2.8, "approach 2": 1.8, "approach 3": 0.9}
"""Points; lines on one another are all seen."""
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 8.5,
    "axes.spines.right": False,
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("xtick.minor.width", "ytick.minor.width"), 0.4),
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text that can be searched and edited
    "svg.fonttype": "none",
    "svg.hashsalt": "isoflop",  # the same file for the same figure
    "text.usetex": False,
    "axes.unicode_minus": True,
}
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
TIMES = {"font.family": "serif", "font.serif": ["Times New Roman", "Times", "Liberation Serif", "STIXGeneral"]}
STYLES: dict[str, tuple[float, dict[str, Any]]] = {
    "plain": (WIDTH, {}),
    "neurips": (5.5, TIMES),
    "iclr": (5.5, TIMES),
    "icml": (3.25, TIMES),
    "acl": (3.03, TIMES),
    "slides": (9.0, {"font.size": 14, "legend.fontsize": 12}),
}
"""By name: inches of the column or text, and what differs from `STYLE`, as the venues' LaTeX classes have it."""
METADATA: dict[str, dict[str, Any]] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {}}
"""By a file's ending: without the date the same figure is the same file."""


def matplotlib_figure(
    figure: Figure, theme: str = "light", width: float | None = None, title: bool = False, style: str = "plain"
) -> Drawn:
    """The figure drawn, to be saved or changed.

    Args:
        figure: as `figures` makes it.
        theme: light for paper; dark for slides.
        width: inches; default: the style's.
        title: whether its title stands above it; papers say it in the caption.
        style: of `STYLES`.

    Raises:
        ValueError: another style.
        ImportError: matplotlib is not installed, with how to get it.
    """
    look = theme_of(theme)
    colours = {**dict.fromkeys(INKED, look.text), "grid.color": look.grid}
    colours |= dict.fromkeys(("axes.facecolor", "figure.facecolor"), look.background)
    with _style(style, colours):
        from matplotlib.figure import Figure as Canvas

        width = width or STYLES[style][0]
        drawn = Canvas(figsize=(width, max(HEIGHT * width / WIDTH, LEAST_HEIGHT)), layout="constrained")
        _draw(figure, drawn, look, title)
    return drawn


def save(figure: Figure, path: str | Path, theme: str = "light", **options: Any) -> Path:
    """Write the figure to a file; what it rests on goes into the file's metadata.

    Args:
        figure: as `figures` makes it.
        path: ends in .pdf, .svg or .png.
        theme: light or dark.
        options: of `matplotlib_figure`.

    Raises:
        ValueError: another ending, or another style.
        ImportError: matplotlib is not installed, with how to get it.
    """
    target = Path(path)
    kind = target.suffix.lower()
    if kind not in METADATA:
        raise ValueError(f"expected a file that ends in {', '.join(METADATA)}, got {target.name!r}")
    drawn = matplotlib_figure(figure, theme, **options)
    about = {"Title": figure.title, ("Description" if kind != ".pdf" else "Subject"): " ".join(figure.notes)}
    with _style(options.get("style", "plain")), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a run's name in a script that the font lacks
        drawn.savefig(target, dpi=300, metadata={**about, **METADATA[kind]})
    return target


def _style(style: str, colours: Mapping[str, str] | None = None) -> Any:
    """The context of matplotlib's settings for a style."""
    if style not in STYLES:
        raise ValueError(f"expected a style of {', '.join(STYLES)}, got {style!r}")
    try:
        import matplotlib
    except ImportError:
        raise ImportError(
            "figures as PDF, SVG or PNG need matplotlib, which is not installed: pip install 'isoflop[matplotlib]'"
        ) from None
    settings: dict[Any, Any] = {**STYLE, **STYLES[style][1], **(colours or {})}
    return matplotlib.rc_context(settings)


def _draw(figure: Figure, drawn: Drawn, theme: Theme, title: bool) -> None:
    axes = drawn.add_subplot()
    many = figure.runs > NAMED
    axes.set(**{f"{which}scale": "log" for which, axis in (("x", figure.x), ("y", figure.y)) if axis.log})
    for contours in figure.contours:
        look: dict[str, Any] = {"levels": contours.levels, "colors": theme.contour, "linewidths": 0.6, "zorder": 1}
        axes.clabel(axes.contour(contours.x, contours.y, contours.z, **look), fontsize=6, fmt="%g")
    legend: list[tuple[Any, str]] = []
    for series in figure.series:
        handle = _series(axes, series, theme, many)
        if series.legend and not (series.run_id is not None and many):
            legend.append((handle, series.name))
    if many:
        legend.append((axes.plot([], [], color=colour_of(theme, "run", 0.5))[0], f"{figure.runs:,} runs"))
    for band in figure.bands:
        look = {"color": colour_of(theme, band.role, band.shade), "alpha": 0.18, "linewidth": 0, "zorder": 1}
        handle = axes.fill_between(band.x, band.low, band.high, **look)
        if band.name not in [name for _, name in legend]:
            legend.append((handle, band.name))
    _axes(axes, figure)
    texts = [axes.set_xlabel(name_of(figure.x.title, 90)), axes.set_ylabel(name_of(figure.y.title, 60))]
    if figure.shades is not None and (many or not figure.runs):
        _shades(figure.shades, drawn, axes, theme)
    if title:
        texts.append(axes.set_title(name_of(figure.title, 90)))
    if legend:
        # a no-break space ahead: matplotlib leaves out of its legend what begins with an underscore
        labels = [f"\u00a0{name_of(name, 34)}" for _, name in legend]
        columns = _columns(drawn, max(map(len, labels)), len(labels))
        where: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, "handlelength": 2.2}
        texts += drawn.legend([handle for handle, _ in legend], labels, **where).get_texts()
    for text in texts:
        plain(text)


def _columns(drawn: Drawn, longest: int, entries: int) -> int:
    """Columns of a legend that fit the figure, which grows where they make more than two rows."""
    from matplotlib import rcParams

    letter = rcParams["legend.fontsize"] / 72  # inches high, about half as wide
    columns = int(np.clip(drawn.get_figwidth() / (letter * (5.5 + 0.5 * longest)), 1, min(3, entries)))
    drawn.set_figheight(drawn.get_figheight() + 1.6 * letter * max(-(-entries // columns) - 2, 0))
    return columns


def _axes(axes: Axes, figure: Figure) -> None:
    """Limits, ticks, grid, and the second scale of x at the top."""
    from matplotlib import ticker

    axes.grid(True, linewidth=0.4)
    axes.set_axisbelow(True)
    for which, axis, (low, high) in zip("xy", (figure.x, figure.y), extent_of(figure), strict=True):
        getattr(axes, f"set_{which}lim")(*((10**low, 10**high) if axis.log else (low, high)))
        ticks = getattr(axes, f"{which}axis")
        if axis.percent:
            ticks.set_major_formatter(lambda value, _: f"{100 * value:g}")
        if not axis.log:
            continue
        ticked = round_ticks(axis, (low, high))
        few = not ticked and high - low <= 0.45  # a logarithmic scale of so little reads best in even steps
        if ticked or few:
            even = ticker.MaxNLocator(7, steps=[1, 2, 2.5, 5, 10])
            ticks.set_major_locator(even if few else ticker.FixedLocator(ticked))
            ticks.set_minor_locator(ticker.NullLocator())
        else:
            ticks.set_major_locator(ticker.LogLocator(numticks=9))
        short = low > -3 and high < 4.5
        powers = ticker.LogFormatterSciNotation(minor_thresholds=(9, 9))
        ticks.set_major_formatter((lambda value, _: f"{value:g}") if short else powers)
        ticks.set_minor_formatter(ticker.NullFormatter())
    if figure.x.second is None:
        axes.spines.top.set_visible(False)
        return
    factor = figure.x.second.factor
    top = axes.secondary_xaxis("top", functions=(lambda x: np.asarray(x) / factor, lambda x: np.asarray(x) * factor))
    plain(top.set_xlabel(figure.x.second.label))


def plain(text: Any) -> None:
    """No mathematics between dollars: a run's name is text."""
    text.set_parse_math(False)


def _series(axes: Axes, series: Series, theme: Theme, many: bool) -> Any:
    zorder = {"guide": 2, "out": 2, "published": 3, "run": 3, "bad": 6}.get(series.role, 4)
    if series.shades is not None:
        scale: dict[str, Any] = {"c": series.shades, "cmap": _colour_map(theme), "vmin": 0, "vmax": 1}
        return axes.scatter(series.x, series.y, **scale, s=9, linewidths=0, zorder=zorder)
    look: dict[str, Any] = {"color": colour_of(theme, series.role, series.shade, series.number), "zorder": zorder}
    if series.kind == "line":
        dash = DASHES[series.number % len(DASHES)] if series.dashed else "-"
        look |= {"linestyle": dash, "linewidth": WIDTHS.get(series.role, 0.6 if many else 1.0)}
    else:
        marker = {"bad": "x", "published": "D", "approach 2": "D"}.get(series.role, "o")
        look |= {"linestyle": "none", "marker": marker, "markersize": 3.6 if marker == "D" else 3.0}
        if series.role == "out":
            look |= {"markerfacecolor": "none", "markeredgewidth": 0.8, "markeredgecolor": look["color"]}
        elif marker != "x":
            look |= {"markeredgewidth": 0.5 if marker == "D" else 0, "markeredgecolor": theme.text}
    bars: dict[str, Any] = {f"{axis}err": np.abs(np.stack(ends)) for axis, ends in series.errors.items()}
    if bars:
        return axes.errorbar(series.x, series.y, **bars, **look, elinewidth=0.8, capsize=1.5)
    return axes.plot(series.x, series.y, **look)[0]


def _shades(shades: Shades, drawn: Drawn, axes: Axes, theme: Theme) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = drawn.colorbar(ScalarMappable(Normalize(0, 1), _colour_map(theme)), ax=axes, pad=0.02, aspect=30)
    bar.set_ticks([at for at, _ in shades.ticks])
    bar.outline.set_visible(False)
    for text in (*bar.ax.set_yticklabels([name for _, name in shades.ticks]), bar.ax.set_ylabel(name_of(shades.label))):
        plain(text)


def _colour_map(theme: Theme) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("sizes", [colour for _, colour in colour_scale(theme)])
