"""isoFLOP profiles: at each budget the loss against size, and the size with the least: Hoffmann et al. 2022, fig. 3."""

from __future__ import annotations

from typing import Any

import numpy as np

from isoflop.arrays import Array
from isoflop.figures.curves import ends_series
from isoflop.figures.figure import Figure, NoFigure, Series, Shades
from isoflop.figures.study import Study, loss_axis, size_axis
from isoflop.figures.text import counted
from isoflop.fit.optimal_line import Minimum
from isoflop.fit.profiles import group, profile_minima, refused

PROFILES = ("isoflop-profiles", "isoFLOP profiles: loss against size at equal compute")
NEAR = 5.0
"""A factor of the best size within which a parabola is drawn: farther out a law of sizes is no parabola."""
FEWEST = 3
"""Sizes that make a profile."""
NAMED = 10
"""Budgets that the legend names; of more a colour scale tells."""


def profiles(study: Study) -> Figure | NoFigure:
    """Runs of about equal compute, a parabola through each budget, its minimum with its interval."""
    if study.nothing:
        return NoFigure(*PROFILES, study.nothing)
    N, L = study.columns["N"], study.columns["loss"]
    try:
        groups, _ = group(study.C, study.budgets)
    except ValueError as reason:
        return NoFigure(*PROFILES, f"the runs do not share budgets: {reason}")
    found = [(budget, rows) for budget, rows in groups if len(np.unique(N[rows])) >= FEWEST]
    if not found:
        sizes = max((len(np.unique(N[rows])) for _, rows in groups), default=0)
        return NoFigure(
            *PROFILES, f"a profile needs {FEWEST} sizes at one budget; {counted(sizes, 'size', 'sizes')} at the most"
        )
    minima, notes = _minima(study)
    series: list[Series] = []
    misfits: list[tuple[float, str]] = []
    for number, (budget, rows) in enumerate(found):
        order = rows[np.argsort(N[rows])]
        label = f"{budget:.3g} FLOPs"
        look: dict[str, Any] = {"shade": number / max(len(found) - 1, 1), "shades": None, "group": label}
        named = len(found) <= NAMED
        series.append(ends_series(study, order.tolist(), N[order], L[order], label, legend=named, **look))
        if refused(np.log(N[order]), L[order]) is None:
            x, y, off = _parabola(N[order], L[order])
            series.append(Series(label, x, y, legend=False, **look))
            misfits.append((off, label))
    if minima:
        best, D, C, losses = (np.array([getattr(each, name) for each in minima]) for name in ("N", "D", "C", "L"))
        left, right = np.array([each.interval or (np.nan, np.nan) for each in minima]).T
        look = {"role": "approach 2", "kind": "points", "hover": {"N": best, "D": D, "C": C, "L": losses}}
        series.append(Series("minima (approach 2)", best, losses, left=left, right=right, **look))
    every = max(1, len(found) // 6)
    ticks = tuple((i / max(len(found) - 1, 1), f"{found[i][0]:.2g}") for i in range(0, len(found), every))
    return Figure(
        *PROFILES,
        size_axis(study),
        loss_axis(study),
        tuple(series),
        shades=Shades("budget, FLOPs", ticks) if len(found) > NAMED else None,
        notes=(
            f"Lines: parabolas in ln N through all runs of a budget, drawn within a factor {NEAR:g} of their minimum.",
            *([_misfit(misfits)] if misfits else []),
            *([f"Diamonds: minima, with their {study.level:.0%} interval by the losses' noise."] if minima else []),
            *notes,
        ),
    )


def _minima(study: Study) -> tuple[tuple[Minimum, ...], tuple[str, ...]]:
    """By approach 2; of a single budget, for which there is no line, the minimum alone."""
    found = next((each for each in study.approaches if each.number == 2), None)
    if found is not None:
        return found.minima, found.warnings
    N, D, L = (study.columns[name] for name in ("N", "D", "loss"))
    try:
        one = profile_minima(study.C, N, D, L, budgets=study.budgets, level=study.level)
    except ValueError as reason:
        return (), (str(reason),)
    return one.minima, (*one.warnings, *one.reasons)


def _parabola(N: Array, L: Array) -> tuple[Array, Array, float]:
    """Near its minimum; and the root mean square of the runs' relative distances from it."""
    line = np.polynomial.Polynomial.fit(np.log(N), L, 2)
    vertex = float(line.deriv().roots()[0])
    x = np.linspace(max(np.log(N[0]), vertex - np.log(NEAR)), min(np.log(N[-1]), vertex + np.log(NEAR)), 60)
    return np.exp(x), line(x), float(np.sqrt(np.mean((line(np.log(N)) / L - 1) ** 2)))


def _misfit(found: list[tuple[float, str]]) -> str:
    off, worst = max(found)
    typical = float(np.median([each for each, _ in found]))
    return f"The runs lie {typical:.2%} off their parabola (root mean square, median budget), {off:.2%} at {worst}."
