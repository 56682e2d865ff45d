"""Compute wasted by a model larger or smaller than the best: Kaplan et al. 2020, figure 12 (left)."""

from __future__ import annotations

import numpy as np

from isoflop.fit.frontier.off import cost_of_size
from isoflop.fit.frontier.optimum import allocation_at_loss
from isoflop.fit.law import HOFFMANN, Law
from isoflop.fit.laws import compute_of
from isoflop.fit.papers.published import published
from isoflop.show.figures.figure import Array, Axis, Band, Figure, NoFigure, Series
from isoflop.show.figures.loss_flops import ends_series
from isoflop.show.figures.study import Study
from isoflop.show.figures.words import parameters

KEY, TITLE = "waste", "Compute wasted by a size that is not the best"
POINTS = 81
WIDEST = 8.0
"""A factor of the best size to either side, at the least."""
HIGHEST = 8.0
"""Times the compute that the axis reaches; a far too small model never gets there."""
ANY_C = 1e20
"""What a size costs depends on k alone under L = E + A/N^α + B/D^β (Kaplan et al. 2020, eq. B.16)."""


def waste(study: Study) -> Figure | NoFigure:
    """Compute for the same loss over the least, against size over the best size; where each run lies."""
    if study.nothing:
        return NoFigure(KEY, TITLE, study.nothing)
    sizes = np.geomspace(1 / WIDEST, WIDEST, POINTS)
    series, bands, notes = [], [], []
    if study.law is not None:
        k, factors = _of_runs(study.law, study)
        sizes = np.geomspace(min(1 / WIDEST, float(k.min()) / 1.2), max(WIDEST, float(k.max()) * 1.2), POINTS)
        costs = [cost_of_size(study.law, ANY_C, float(each), level=study.level) for each in sizes]
        factor = _capped(np.array([each.compute_factor for each in costs]))
        ends = np.array([each.intervals["compute_factor"] for each in costs if each.intervals])
        series.append(Series("by the law of these runs", sizes, factor, role="fit", group="fit"))
        if len(ends) == len(sizes):
            low, high = (np.minimum(ends[:, i], HIGHEST) for i in (0, 1))
            bands.append(Band(f"{study.level:.0%} interval", sizes, low, high, group="fit"))
        shown = [int(i) for i in np.flatnonzero(factors <= HIGHEST)]
        series.append(ends_series(study, shown, k[shown], factors[shown]))
        if len(shown) < len(k):
            notes.append(f"{len(k) - len(shown)} of {len(k)} runs took more than {HIGHEST:g} times the least compute.")
        notes.append("Runs lie where the law sees them: at its least compute for the loss that it gives them.")
        notes += study.doubts
    else:
        notes.append(f"Your runs are not in it: {study.refused}.")
    series += _others(sizes)
    notes.append(
        "Kaplan et al.: exponents of L(N,S), steps at a batch far below critical in place of tokens (eq. B.16)."
    )
    return Figure(
        KEY,
        TITLE,
        Axis(f"N over the compute-optimal N, {parameters(study.convention)}"),
        Axis("compute for the same loss over the least", low=0.96, high=HIGHEST),
        tuple(series),
        tuple(bands),
        shades=None if study.law is None else study.sizes(),
        notes=tuple(notes),
    )


def _of_runs(law: Law, study: Study) -> tuple[Array, Array]:
    """Of each counted run: its N over that of the least compute for its loss, its 6·N·D over that."""
    point = Law(law.form, law.constants, law.convention)
    N, D = study.columns["N"], study.columns["D"]
    best = [allocation_at_loss(point, float(loss)) for loss in law.loss(N=N, D=D)]
    return N / np.array([each.N for each in best]), compute_of(N, D) / np.array([each.flops for each in best])


def _others(sizes: Array) -> list[Series]:
    kaplan = published("kaplan2020-ns").law
    besiroglu = published("besiroglu2024").law
    assert kaplan is not None and besiroglu is not None
    alphas = kaplan.constants
    as_hoffmann = Law(HOFFMANN, {"E": 0.0, "A": 1.0, "B": 1.0, "alpha": alphas["alpha_N"], "beta": alphas["alpha_S"]})
    found = []
    for number, (name, law) in enumerate((("besiroglu2024", besiroglu), ("kaplan2020-ns", as_hoffmann))):
        factor = np.array([cost_of_size(law, ANY_C, float(each)).compute_factor for each in sizes])
        found.append(Series(name, sizes, _capped(factor), role="published", number=number, dashed=True))
    return found


def _capped(factor: Array) -> Array:
    return np.where(factor <= HIGHEST, factor, np.nan)
