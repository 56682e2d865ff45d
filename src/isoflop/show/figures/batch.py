"""Batch against the critical batch, over the tokens seen: McCandlish et al. 2018; Kaplan et al. 2020, section 5.1."""

from __future__ import annotations

import numpy as np

from isoflop.fit.batch.prior import VALID, prior_critical_batch
from isoflop.show.figures.axes import tokens_axis
from isoflop.show.figures.curve import RunCurve
from isoflop.show.figures.figure import Array, Axis, Band, Figure, NoFigure, Series
from isoflop.show.figures.study import Study
from isoflop.show.figures.thin import points_each, thin
from isoflop.show.figures.words import counted

KEY, TITLE = "batch", "Batch against the critical batch"
LEVEL = 0.95
"""Of beliefs about a batch, as everywhere in isoflop."""
Z = 1.959964
"""Standard deviations that hold it."""
BANDS = 3
"""Runs whose intervals are drawn; of more they hide one another."""
POINTS = 40


def batch(study: Study) -> Figure | NoFigure:
    """Tokens a step of each run, its critical batch as it was measured, and what published runs say of it."""
    most = points_each(3 * len(study.curves))
    series: list[Series] = []
    bands: list[Band] = []
    measured = [curve for curve in study.curves if _some(curve, "b_crit")]
    for curve in study.curves:
        line = _line(study, curve, curve.batch, most, curve.name)
        if line is not None:
            series.append(line)
    if not series:
        return NoFigure(KEY, TITLE, "no record says how many tokens its runs took a step")
    for curve in measured:
        line = _line(study, curve, curve.extra["b_crit"], most, f"{curve.name}: B_crit", dashed=True)
        if line is None:
            continue
        series.append(line)
        if len(measured) <= BANDS and _some(curve, "b_crit_sigma"):
            bands.append(_band(study, curve, most))
    D = np.concatenate([each.x for each in series])
    prior, around = _published(float(np.nanmin(D)), float(np.nanmax(D)))
    notes = [
        "Solid: tokens processed a step. Above the critical batch more tokens buy the same loss: E/E_min = 1 + B/B_crit."
    ]
    if measured:
        notes.append(
            f"Dashed: B_crit of {counted(len(measured), 'run', 'runs')}, the gradient noise scale where it was measured and "
            f"published runs, combined{f'; band: {LEVEL:.0%} interval' if bands else ''}."
        )
    else:
        notes.append("No run has a critical batch of its own in its record.")
    low, high = VALID
    notes.append(
        f"Published: B_crit(D) of language models, known from {low:.0e} to {high:.0e} tokens; {LEVEL:.0%} interval, wider "
        "outside."
    )
    return Figure(
        KEY,
        TITLE,
        tokens_axis(),
        Axis("tokens a step", "tokens"),
        (prior, *series),
        (around, *bands),
        shades=study.sizes(),
        notes=tuple(notes),
    )


def _some(curve: RunCurve, name: str) -> bool:
    return name in curve.extra and bool(np.isfinite(curve.extra[name]).any())


def _line(study: Study, curve: RunCurve, values: Array, most: int, name: str, dashed: bool = False) -> Series | None:
    known = np.flatnonzero(np.isfinite(values) & (values > 0) & np.isfinite(curve.tokens) & (curve.tokens > 0))
    if not len(known):
        return None
    kept = known[thin(curve.tokens[known], values[known], most)]
    N = curve.size(study.convention)
    loss = curve.losses.get(study.loss)
    return Series(
        name,
        curve.tokens[kept],
        values[kept],
        run_id=curve.run_id,
        shade=study.shade(curve.run_id),
        kind="line" if len(kept) > 1 else "points",
        dashed=dashed,
        legend=not dashed,
        hover={
            **({} if N is None else {"N": N}),
            "D": curve.tokens[kept],
            "B": values[kept],
            **({} if loss is None else {"L": loss[kept]}),
        },
    )


def _band(study: Study, curve: RunCurve, most: int) -> Band:
    value, sigma = curve.extra["b_crit"], curve.extra["b_crit_sigma"]
    known = np.flatnonzero(np.isfinite(value) & np.isfinite(sigma) & (curve.tokens > 0))
    kept = known[thin(curve.tokens[known], value[known], most)]
    reach = np.exp(Z * sigma[kept])
    return Band(
        f"{LEVEL:.0%} interval",
        curve.tokens[kept],
        value[kept] / reach,
        value[kept] * reach,
        role="run",
        run_id=curve.run_id,
        shade=study.shade(curve.run_id),
    )


def _published(least: float, most: float) -> tuple[Series, Band]:
    D = np.geomspace(least, max(most, least * 1.01), POINTS)
    known = [prior_critical_batch(float(each)) for each in D]
    ends = np.array([each.interval(LEVEL) for each in known])
    line = Series(
        "B_crit(D), published runs",
        D,
        np.array([each.value for each in known]),
        role="published",
        dashed=True,
        group="published",
    )
    return line, Band(f"{LEVEL:.0%} interval", D, ends[:, 0], ends[:, 1], role="published", group="published")
