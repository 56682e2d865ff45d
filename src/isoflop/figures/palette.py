"""Colours: of what a series is, and of runs by their shade; told apart by the colour-blind, on white and on black."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.figures.figure import Role

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


def colour_scale(theme: Theme, steps: int = 9) -> list[list[Any]]:
    """[shade, colour] from 0 to 1."""
    return [[i / (steps - 1), colour_of(theme, "run", i / (steps - 1))] for i in range(steps)]


def see_through(colour: str, opacity: float) -> str:
    """#rrggbb as rgba(…)."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return f"rgba({red},{green},{blue},{opacity:g})"
