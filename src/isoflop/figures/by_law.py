"""Figures of the fitted law: loss over size and tokens, compute wasted by other sizes, residuals of the runs.

Hoffmann et al. 2022, figure 4; Kaplan et al. 2020, figure 12 (left).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from isoflop.arrays import Array
from isoflop.figures.by_compute import frontier_line
from isoflop.figures.curves import ends_series
from isoflop.figures.figure import Axis, Band, Contours, Figure, NoFigure, Series
from isoflop.figures.study import NO_LAW, Study, compute_axis, size_axis, tokens_axis
from isoflop.figures.text import Indices, counted, law_label, parameters
from isoflop.laws import HOFFMANN, Frontier, Law, interval, published, size_factor
from isoflop.laws.forms import compute_of

CONTOURS = ("contours", "Loss over size and tokens")
CELLS = 72
LEVELS = 12
"""Lines, about."""
AROUND = 1.5
"""A factor of N and of D around the runs."""

WASTE = ("waste", "Compute wasted by a size that is not the best")
POINTS = 81
WIDEST = 8.0
"""A factor of the best size to either side, at the least."""
HIGHEST = 8.0
"""Times the compute that the axis reaches; a far too small model never gets there."""

RESIDUALS = ("residuals", "Residuals of the fitted law against compute")
BY_RATIO = ("residuals-ratio", "Residuals of the fitted law against tokens per parameter")


# -- contours ----------------------------------------------------------------------------------------------------------


def contours(study: Study) -> Figure | NoFigure:
    """Lines of equal loss, lines of equal compute, the frontier and the runs."""
    if study.law is None or study.fit is None:
        return NoFigure(*CONTOURS, study.nothing or f"no law is fitted: {study.no_law}")
    N, D = study.columns["N"], study.columns["D"]
    y = np.geomspace(N.min() / AROUND, N.max() * AROUND, CELLS)
    x = np.geomspace(D.min() / AROUND, D.max() * AROUND, CELLS)
    z = study.law.loss(N=y[:, None], D=x[None, :])
    line, _ = frontier_line(study, np.geomspace(study.C.min(), study.C.max(), 60))
    inside = (line["N"] >= y[0]) & (line["N"] <= y[-1]) & (line["D"] >= x[0]) & (line["D"] <= x[-1])
    best = {name: np.where(inside, line[name], np.nan) for name in "ND"}
    frontier = Series("compute-optimal", best["D"], best["N"], role="fit", hover=line)
    return Figure(
        *CONTOURS,
        replace(tokens_axis(), low=float(x[0]), high=float(x[-1])),
        replace(size_axis(study), low=float(y[0]), high=float(y[-1])),
        (*_equal_compute(x, y, study.rate), ends_series(study, range(len(N)), D, N), frontier),
        contours=(Contours("loss by the fitted law", x, y, z, nice_levels(z), "nats per token"),),
        shades=study.sizes(),
        notes=(
            f"Lines of equal loss by L(N,D) fitted to {study.fit.n} runs; away from the runs they are extrapolated.",
            f"Dotted: equal compute, {study.rate:.3g}·N·D, at powers of ten.",
            *study.doubts,
        ),
    )


def nice_levels(z: Array, about: int = LEVELS) -> Array:
    """Round values, evenly spaced, that cut the range of z into about so many.

    >>> nice_levels(np.array([2.03, 3.4]), 7)
    array([2.2, 2.4, 2.6, 2.8, 3. , 3.2, 3.4])
    """
    low, high = float(z.min()), float(z.max())
    rough = max((high - low) / about, 1e-6)
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if power * factor >= rough)
    first, last = np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9)
    return np.asarray(np.round(np.arange(first, last + 1) * step, 10))


def _equal_compute(x: Array, y: Array, rate: float) -> list[Series]:
    low, high = (np.log10(rate * x[i] * y[i]) for i in (0, -1))
    powers = np.arange(np.ceil(low), np.floor(high) + 1)
    lines: list[Series] = []
    look: dict[str, Any] = {"role": "guide", "number": 1, "dashed": True, "group": "equal compute"}
    for power in powers[:: max(1, len(powers) // 8)]:
        N = 10.0**power / (rate * x)
        inside = np.where((y[0] <= N) & (y[-1] >= N), N, np.nan)
        hover = {"C": float(10.0**power)}
        lines.append(Series("equal compute", x, inside, legend=not lines, hover=hover, **look))
    return lines


# -- waste -------------------------------------------------------------------------------------------------------------


def waste(study: Study) -> Figure | NoFigure:
    """Compute for the same loss over the least, against size over the best size; where each run lies."""
    if study.nothing:
        return NoFigure(*WASTE, study.nothing)
    sizes = np.geomspace(1 / WIDEST, WIDEST, POINTS)
    series, bands, notes = [], [], []
    if study.law is not None:
        k, taken, rows = _of_runs(study.law, study)
        sizes = np.geomspace(min(1 / WIDEST, float(k.min()) / 1.2), max(WIDEST, float(k.max()) * 1.2), POINTS)
        factors = np.array([size_factor(study.law, float(each)) for each in sizes])
        series.append(Series("by the law of these runs", sizes, _capped(factors[:, 0]), role="fit", group="fit"))
        if factors.shape[1] > 1:
            low, high = np.minimum([interval(each[1:], study.level) for each in factors], HIGHEST).T
            bands.append(Band(f"{study.level:.0%} interval", sizes, low, high, group="fit"))
        shown = [int(i) for i in np.flatnonzero(taken <= HIGHEST)]
        series.append(ends_series(study, rows[shown].tolist(), k[shown], taken[shown]))
        runs = len(study.counted)
        if len(shown) < runs:
            notes.append(f"{runs - len(shown)} of {runs} runs took more than {HIGHEST:g} times the least compute.")
        notes.append("Points: a run's N and its compute, each over what the law takes at least for the run's loss.")
        notes += study.doubts
    else:
        notes.append(f"Your runs are not drawn: {NO_LAW}.")
    notes.append(
        "Kaplan et al.: exponents of L(N,S), steps at a batch far below the critical one for tokens (eq. B.16)."
    )
    return Figure(
        *WASTE,
        Axis(f"N over the compute-optimal N, {parameters(study.convention)}"),
        Axis("compute for the same loss over the least", low=0.96, high=HIGHEST),
        (*series, *_published_waste(sizes)),
        tuple(bands),
        shades=None if study.law is None else study.sizes(),
        notes=tuple(notes),
    )


def _of_runs(law: Law, study: Study) -> tuple[Array, Array, Indices]:
    """N over that of the least compute for a run's measured loss, 6·N·D over that compute, and which counted runs."""
    frontier = Frontier(Law(law.form, law.constants, law.convention))
    rows = study.fitted_rows[study.columns["loss"][study.fitted_rows] > law.constants["E"]]
    N, D, L = (study.columns[name][rows] for name in ("N", "D", "loss"))
    best = [frontier.at_loss(float(loss)) for loss in L]
    return N / np.array([each.N for each in best]), compute_of(N, D) / np.array([each.flops for each in best]), rows


def _published_waste(sizes: Array) -> list[Series]:
    laws = {name: published(name) for name in ("besiroglu2024", "kaplan2020-ns")}
    alphas = laws["kaplan2020-ns"].law.constants  # type: ignore[union-attr]
    as_hoffmann = Law(HOFFMANN, {"E": 0.0, "A": 1.0, "B": 1.0, "alpha": alphas["alpha_N"], "beta": alphas["alpha_S"]})
    found = []
    for number, each in enumerate(laws.values()):
        law = each.law if number == 0 else as_hoffmann
        factor = np.array([size_factor(law, float(size))[0] for size in sizes])  # type: ignore[arg-type]
        found.append(Series(law_label(each), sizes, _capped(factor), role="published", number=number, dashed=True))
    return found


def _capped(factor: Array) -> Array:
    return np.where(factor <= HIGHEST, factor, np.nan)


# -- residuals ---------------------------------------------------------------------------------------------------------


def residuals(study: Study) -> Figure | NoFigure:
    """Loss over the law's loss, less 1, against compute."""
    return _residuals(RESIDUALS, study, compute_axis(study), study.C)


def residuals_by_ratio(study: Study) -> Figure | NoFigure:
    """The same against D/N: a trend there says that the law misjudges small models on much data, or large on little."""
    axis = Axis(f"D/N, {parameters(study.convention)}", "tokens per parameter")
    return _residuals(BY_RATIO, study, axis, study.columns["D"] / study.columns["N"])


def _residuals(title: tuple[str, str], study: Study, axis: Axis, x: Array) -> Figure | NoFigure:
    if study.fit is None or study.law is None or study.scatter is None:
        return NoFigure(*title, study.nothing or f"no law is fitted: {study.no_law}")
    rows = study.fitted_rows
    off = np.expm1(-study.fit.residuals)  # residuals are ln L̂ − ln L
    half, nine = study.scatter
    left = study.fit.left_out
    outliers = f"; not drawn: {counted(len(left), 'outlier', 'outliers')} left out of the fit" if left else ""
    zero = Series("the law", np.array([x.min(), x.max()]), np.zeros(2), role="guide", legend=False)
    near = f"Half of {study.fit.n} runs lie within {half:.2%} of the law, nine in ten within {nine:.2%}{outliers}."
    return Figure(
        *title,
        axis,
        Axis("loss above the law", log=False, percent=True),
        (zero, ends_series(study, rows.tolist(), x[rows], off)),
        shades=study.sizes(),
        notes=(near, *study.doubts),
    )
