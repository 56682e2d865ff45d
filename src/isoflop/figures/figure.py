"""Figures as data: axes with units, series, bands, contours and notes; how far the axes reach; and the colours.

The axes reach all that is drawn and a margin; a logarithmic axis counts in powers of ten. Colours say what a series is,
and a run's shade; the colour-blind can tell them apart, on white and on black.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from isoflop.arrays import Array
from isoflop.figures.text import sentence

Kind = Literal["line", "points"]
Role = Literal["run", "fit", "approach 1", "approach 2", "approach 3", "published", "guide", "bad", "out", "group"]
"""What a series is, which is all that a renderer chooses its colour by: `fit` is the law of these runs, `guide` a line
to read the others by, `bad` what went wrong, `out` a run that the law does not rest on, `group` a run of the group
`number`."""


@dataclass(frozen=True)
class Scale:
    """A second scale of an axis: `value / factor`."""

    label: str
    factor: float


@dataclass(frozen=True)
class Axis:
    """One axis."""

    label: str  # what it shows, without the unit
    unit: str = ""  # "": a ratio
    log: bool = True
    second: Scale | None = None  # at the other side
    low: float | None = None  # where it should end; None: by the data
    high: float | None = None
    percent: bool = False  # values are shares, shown times 100

    @property
    def title(self) -> str:
        """Label and unit."""
        unit = "%" if self.percent else self.unit
        return f"{self.label} ({unit})" if unit else self.label


@dataclass(frozen=True, eq=False)
class Series:
    """Points or a line: y over x, of one length; a NaN in y breaks the line.

    Attributes:
        shade: of a run, 0 to 1 by its size among the runs: the same in every figure; `shades`: by point, of several.
        hover: columns for the reader, as long as x or one number for all: "N", "D", "C", "L" and others by their name.
        low, high: ends of the interval of y, error bars; NaN: none. left, right: of x.
    """

    name: str  # for the legend; of a run its name: a stranger's text, which each renderer makes harmless
    x: Array
    y: Array
    role: Role = "run"
    kind: Kind = "line"
    run_id: str | None = None
    shade: float | None = None
    number: int = 0  # among several of one role, from 0
    dashed: bool = False  # beyond the data, or from elsewhere
    hover: Mapping[str, Array | float] = field(default_factory=dict)
    low: Array | None = None
    high: Array | None = None
    left: Array | None = None
    right: Array | None = None
    shades: Array | None = None
    labels: tuple[str, ...] = ()  # what to call each point, where a series is of several runs
    ends: tuple[int, ...] = ()  # which of the study's counted ends these are, where a series is of several runs
    legend: bool = True  # whether it has an entry of its own
    group: str = ""  # series that are shown and hidden together

    @property
    def errors(self) -> dict[Literal["x", "y"], tuple[Array, Array]]:
        """Lengths of the error bars to either side, by axis."""
        found: dict[Literal["x", "y"], tuple[Array, Array]] = {}
        if self.low is not None and self.high is not None:
            found["y"] = self.y - self.low, self.high - self.y
        if self.left is not None and self.right is not None:
            found["x"] = self.x - self.left, self.right - self.x
        return found


@dataclass(frozen=True, eq=False)
class Band:
    """The interval around a line: low and high at x; in the colour of its role."""

    name: str
    x: Array
    low: Array
    high: Array
    role: Role = "fit"
    run_id: str | None = None
    shade: float | None = None
    group: str = ""


@dataclass(frozen=True, eq=False)
class Contours:
    """Lines of equal z [len(y), len(x)] over x and y."""

    name: str
    x: Array
    y: Array
    z: Array
    levels: Array
    unit: str = ""


@dataclass(frozen=True)
class Shades:
    """What the shades of series stand for: `ticks` are (shade, text), from 0 to 1."""

    label: str
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, eq=False)
class Figure:
    """A figure, as data: `key` names it in files and addresses; `title`: what it shows; two axes; what is drawn.

    Attributes:
        series, bands, contours: drawn bands first, then contours, then series in order.
    """

    key: str
    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...] = ()
    bands: tuple[Band, ...] = ()
    contours: tuple[Contours, ...] = ()
    shades: Shades | None = None  # what the shades stand for; None: there are none, or they are all in the legend
    notes: tuple[str, ...] = ()  # what it rests on, what is extrapolated, why a layer is missing: sentences

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(dict.fromkeys(map(sentence, self.notes))))

    def __repr__(self) -> str:
        return f"<Figure {self.key}: {self.title}, {len(self.series)} series>"

    def _repr_svg_(self) -> str | None:
        """For notebooks, by matplotlib where it is installed."""
        text = io.StringIO()
        try:
            draw = importlib.import_module("isoflop.figures.matplotlib").matplotlib_figure  # it imports this module
            draw(self, title=True).savefig(text, format="svg")
        except ImportError:
            return None
        return text.getvalue()

    @property
    def runs(self) -> int:
        """Number of runs that have a series of their own in the legend."""
        return len({series.run_id for series in self.series if series.legend} - {None})


@dataclass(frozen=True)
class NoFigure:
    """Why a figure is not there."""

    key: str
    title: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", sentence(self.reason))


MARGIN = 0.04
NARROWEST = 0.02
"""Of a logarithmic axis, in powers of ten."""


def extent_of(figure: Figure) -> tuple[tuple[float, float], tuple[float, float]]:
    """(low, high) of x and of y; log10 of the values where the axis is logarithmic."""
    drawn: tuple[Series | Band | Contours, ...] = (*figure.series, *figure.bands, *figure.contours)
    ranged: tuple[Series | Band, ...] = (*figure.series, *figure.bands)
    over: tuple[Series | Contours, ...] = (*figure.series, *figure.contours)
    ends = [each for one in ranged for each in (one.low, one.high)]
    y = [*(each.y for each in over), *(each for each in ends if each is not None)]
    return _ends(figure.x, [each.x for each in drawn]), _ends(figure.y, y)


def _ends(axis: Axis, columns: list[Array]) -> tuple[float, float]:
    values = np.concatenate([np.ravel(each) for each in columns]) if columns else np.empty(0)
    values = values[np.isfinite(values) & ((values > 0) | (not axis.log))]
    if not values.size:
        return 0.0, 1.0
    scale = np.log10 if axis.log else np.asarray
    low, high = float(scale(values).min()), float(scale(values).max())
    narrow = NARROWEST if axis.log else 1e-3 * max(abs(low), abs(high), 1e-12)
    margin = max(MARGIN * (high - low), narrow / 2)
    return (
        low - margin if axis.low is None else float(scale(axis.low)),
        high + margin if axis.high is None else float(scale(axis.high)),
    )


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


VIRIDIS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"]
"""Of matplotlib (CC0): even steps for the eye, and in grey."""
_CHANNELS = np.array([list(bytes.fromhex(colour)) for colour in VIRIDIS]).T

ROLES: Mapping[Role, tuple[str, ...]] = {
    "run": ("#56B4E9",),
    "fit": ("#D55E00",),
    "approach 1": ("#0072B2", "#56B4E9"),
    "approach 2": ("#009E73",),
    "approach 3": ("#D55E00",),
    "published": ("#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A"),
    "guide": ("#8A8A8A",),
    "bad": ("#CC3311", "#FF6B4A"),
    "out": ("#A8ADB3", "#5C636B"),
    "group": ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31"),
}
"""Okabe & Ito's palette for what isn't a run; where there are two, the second is for dark. Published, groups: by
number."""


@dataclass(frozen=True)
class Theme:
    """Colours of the page; `shades`: the part of viridis with a contrast of 2 to 3 or more."""

    background: str
    text: str
    grid: str
    contour: str
    shades: tuple[float, float]
    dark: bool = False


THEMES: Mapping[str, Theme] = {
    "light": Theme("#ffffff", "#1f2328", "#e4e7eb", "#7d8ea3", (0.0, 0.76)),
    "dark": Theme("#14171c", "#d8dde3", "#2e343c", "#71849b", (0.33, 1.0), dark=True),
}


def theme_of(name: str) -> Theme:
    """A theme by name; ValueError for another."""
    if name not in THEMES:
        raise ValueError(f"expected the theme light or dark, got {name!r}")
    return THEMES[name]


def colour_of(theme: Theme, role: Role, shade: float | None = None, number: int = 0) -> str:
    """#rrggbb of a series."""
    if shade is not None:
        low, high = theme.shades
        at, steps = low + shade * (high - low), np.linspace(0, 1, len(VIRIDIS))
        return "#" + "".join(f"{round(float(np.interp(at, steps, channel))):02x}" for channel in _CHANNELS)
    colours = ROLES[role]
    if role in ("published", "group"):
        return colours[number % len(colours)]
    return colours[-1] if theme.dark else colours[0]


def colour_scale(theme: Theme) -> list[list[Any]]:
    """[shade, colour] from 0 to 1."""
    return [[i / 8, colour_of(theme, "run", i / 8)] for i in range(9)]


def see_through(colour: str, opacity: float) -> str:
    """#rrggbb as rgba(…)."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return f"rgba({red},{green},{blue},{opacity:g})"
