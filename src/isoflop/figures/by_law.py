"""Loss over size and tokens by the fitted law, with the runs and the frontier: Hoffmann et al. 2022, figure 4.

Compute wasted by a model larger or smaller than the best: Kaplan et al. 2020, figure 12 (left).

How far each run's loss lies from the fitted law.

Batch against the critical batch, over the tokens seen: McCandlish et al. 2018; Kaplan et al. 2020, section 5.1.

Every figure of a study, in the order in which they are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from isoflop.arrays import Array
from isoflop.figures.by_compute import ends_series, frontier_line, loss_flops, optimal_parameters, optimal_tokens
from isoflop.figures.curves import learning_curves
from isoflop.figures.figure import Axis, Band, Contours, Figure, NoFigure, Series
from isoflop.figures.profiles import isoflop_profiles
from isoflop.figures.study import Study, compute_axis, size_axis, tokens_axis
from isoflop.figures.text import counted, parameters, points_each, thin
from isoflop.fit.runs import RunCurve
from isoflop.laws.forms import HOFFMANN, Law, compute_of
from isoflop.laws.frontier import Frontier, interval, size_factor
from isoflop.laws.published import published
from isoflop.noise.critical_batch import VALID, prior_critical_batch

KEY, TITLE = "contours", "Loss over size and tokens"
CELLS = 72
LEVELS = 12
"""Lines, about."""
AROUND = 1.5
"""A factor of N and of D around the runs."""


def contours(study: Study) -> Figure | NoFigure:
    """Lines of equal loss, lines of equal compute, the frontier and the runs."""
    if study.law is None or study.fit is None:
        return NoFigure(KEY, TITLE, study.nothing or f"no law is fitted: {study.refused}")
    N, D = study.columns["N"], study.columns["D"]
    y = np.geomspace(N.min() / AROUND, N.max() * AROUND, CELLS)
    x = np.geomspace(D.min() / AROUND, D.max() * AROUND, CELLS)
    z = study.law.loss(N=y[:, None], D=x[None, :])
    line = frontier_line(study.law, float(study.C.min()), float(study.C.max()), study.level, rate=study.rate)
    inside = (line.values["N"] >= y[0]) & (line.values["N"] <= y[-1])
    inside &= (line.values["D"] >= x[0]) & (line.values["D"] <= x[-1])
    best = {name: np.where(inside, values, np.nan) for name, values in line.values.items()}
    frontier = Series(
        "compute-optimal",
        best["D"],
        best["N"],
        role="fit",
        hover={"N": line.values["N"], "D": line.values["D"], "C": line.C, "L": line.values["loss"]},
    )
    runs = ends_series(study, range(len(N)), D, N)
    return Figure(
        KEY,
        TITLE,
        _ending(tokens_axis(), x),
        _ending(size_axis(study), y),
        (*_equal_compute(x, y, study.rate), runs, frontier),
        contours=(Contours("loss by the fitted law", x, y, z, nice_levels(z), "nats per token"),),
        shades=study.sizes(),
        notes=(
            f"Lines of equal loss by L(N,D) fitted to {study.fit.n} runs; away from the runs they are extrapolated.",
            f"Dotted: equal compute, {study.rate:.3g}·N·D, at powers of ten.",
            *study.doubts,
        ),
    )


def nice_levels(z: Array, about: int = LEVELS) -> Array:
    """Round values, evenly spaced, that cut what the runs' middle spans into about so many.

    >>> nice_levels(np.array([2.03, 3.4]), 7)
    array([2.2, 2.4, 2.6, 2.8, 3. , 3.2, 3.4])
    """
    low, high = float(z.min()), float(z.max())
    rough = max((high - low) / about, 1e-6)
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if power * factor >= rough)
    first, last = np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9)
    return np.asarray(np.round(np.arange(first, last + 1) * step, 10))


def _ending(axis: Axis, values: Array) -> Axis:
    return Axis(axis.label, axis.unit, low=float(values[0]), high=float(values[-1]))


def _equal_compute(x: Array, y: Array, rate: float) -> list[Series]:
    low, high = (np.log10(rate * x[i] * y[i]) for i in (0, -1))
    powers = np.arange(np.ceil(low), np.floor(high) + 1)
    lines: list[Series] = []
    for power in powers[:: max(1, len(powers) // 8)]:
        N = 10.0**power / (rate * x)
        N = np.where((y[0] <= N) & (y[-1] >= N), N, np.nan)
        lines.append(
            Series(
                "equal compute",
                x,
                N,
                role="guide",
                number=1,
                dashed=True,
                legend=not lines,
                hover={"C": float(10.0**power)},
                group="equal compute",
            )
        )
    return lines


WASTE_KEY, WASTE_TITLE = "waste", "Compute wasted by a size that is not the best"
POINTS = 81
WIDEST = 8.0
"""A factor of the best size to either side, at the least."""
HIGHEST = 8.0
"""Times the compute that the axis reaches; a far too small model never gets there."""


def waste(study: Study) -> Figure | NoFigure:
    """Compute for the same loss over the least, against size over the best size; where each run lies."""
    if study.nothing:
        return NoFigure(WASTE_KEY, WASTE_TITLE, study.nothing)
    sizes = np.geomspace(1 / WIDEST, WIDEST, POINTS)
    series, bands, notes = [], [], []
    if study.law is not None:
        k, taken = _of_runs(study.law, study)
        sizes = np.geomspace(min(1 / WIDEST, float(k.min()) / 1.2), max(WIDEST, float(k.max()) * 1.2), POINTS)
        factors = np.array([size_factor(study.law, float(each)) for each in sizes])
        series.append(Series("by the law of these runs", sizes, _capped(factors[:, 0]), role="fit", group="fit"))
        if factors.shape[1] > 1:
            low, high = np.minimum([interval(each[1:], study.level) for each in factors], HIGHEST).T
            bands.append(Band(f"{study.level:.0%} interval", sizes, low, high, group="fit"))
        shown = [int(i) for i in np.flatnonzero(taken <= HIGHEST)]
        series.append(ends_series(study, shown, k[shown], taken[shown]))
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
        WASTE_KEY,
        WASTE_TITLE,
        Axis(f"N over the compute-optimal N, {parameters(study.convention)}"),
        Axis("compute for the same loss over the least", low=0.96, high=HIGHEST),
        tuple(series),
        tuple(bands),
        shades=None if study.law is None else study.sizes(),
        notes=tuple(notes),
    )


def _of_runs(law: Law, study: Study) -> tuple[Array, Array]:
    """Of each counted run: its N over that of the least compute for its loss, its 6·N·D over that."""
    frontier = Frontier(Law(law.form, law.constants, law.convention))
    N, D = study.columns["N"], study.columns["D"]
    best = [frontier.at_loss(float(loss)) for loss in law.loss(N=N, D=D)]
    return N / np.array([each.N for each in best]), compute_of(N, D) / np.array([each.flops for each in best])


def _others(sizes: Array) -> list[Series]:
    kaplan = published("kaplan2020-ns").law
    besiroglu = published("besiroglu2024").law
    assert kaplan is not None and besiroglu is not None
    alphas = kaplan.constants
    as_hoffmann = Law(HOFFMANN, {"E": 0.0, "A": 1.0, "B": 1.0, "alpha": alphas["alpha_N"], "beta": alphas["alpha_S"]})
    found = []
    for number, (name, law) in enumerate((("besiroglu2024", besiroglu), ("kaplan2020-ns", as_hoffmann))):
        factor = np.array([size_factor(law, float(each))[0] for each in sizes])
        found.append(Series(name, sizes, _capped(factor), role="published", number=number, dashed=True))
    return found


def _capped(factor: Array) -> Array:
    return np.where(factor <= HIGHEST, factor, np.nan)


RESIDUALS_KEY, RESIDUALS_TITLE = "residuals", "Residuals of the fitted law"


def residuals(study: Study) -> Figure | NoFigure:
    """Loss over the law's loss, less 1, against compute."""
    if study.fit is None or study.law is None:
        return NoFigure(RESIDUALS_KEY, RESIDUALS_TITLE, study.nothing or f"no law is fitted: {study.refused}")
    off = np.expm1(-study.fit.residuals)  # residuals are ln L̂ − ln L
    half, nine = np.quantile(np.abs(off), [0.5, 0.9])
    return Figure(
        RESIDUALS_KEY,
        RESIDUALS_TITLE,
        compute_axis(study),
        Axis("loss above the law", log=False, percent=True),
        (
            Series("the law", np.array([study.C.min(), study.C.max()]), np.zeros(2), role="guide", legend=False),
            ends_series(study, range(len(off)), study.C, off),
        ),
        shades=study.sizes(),
        notes=(
            f"Half of the {study.fit.n} runs lie within {half:.2%} of the law, nine in ten within {nine:.2%}.",
            *study.doubts,
        ),
    )


BATCH_KEY, BATCH_TITLE = "batch", "Batch against the critical batch"
LEVEL = 0.95
"""Of beliefs about a batch, as everywhere in isoflop."""
Z = 1.959964
"""Standard deviations that hold it."""
BANDS = 3
"""Runs whose intervals are drawn; of more they hide one another."""
BATCH_POINTS = 40


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
        return NoFigure(BATCH_KEY, BATCH_TITLE, "no record says how many tokens its runs took a step")
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
        "Solid: tokens processed a step. Beyond the critical batch a loss costs more tokens: E/E_min = 1 + B/B_crit."
    ]
    if measured:
        notes.append(
            f"Dashed: B_crit of {counted(len(measured), 'run', 'runs')}, by the gradient noise scale where it was "
            f"measured and published runs{f'; band: {LEVEL:.0%} interval' if bands else ''}."
        )
    else:
        notes.append("No run has a critical batch of its own in its record.")
    low, high = VALID
    notes.append(
        f"Published: B_crit(D) of language models, known from {low:.0e} to {high:.0e} tokens; {LEVEL:.0%} interval, "
        "wider outside."
    )
    return Figure(
        BATCH_KEY,
        BATCH_TITLE,
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
    D = np.geomspace(least, max(most, least * 1.01), BATCH_POINTS)
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


FIGURES: Mapping[str, Callable[[Study], Figure | NoFigure]] = {
    "loss-flops": loss_flops,
    "learning-curves": learning_curves,
    "isoflop-profiles": isoflop_profiles,
    "optimal-parameters": optimal_parameters,
    "optimal-tokens": optimal_tokens,
    "contours": contours,
    "waste": waste,
    "batch": batch,
    "residuals": residuals,
}
"""By key: `FIGURES[key](study)` makes one alone."""


def figures(study: Study) -> tuple[Figure | NoFigure, ...]:
    """All of them; in place of one that can't be made, why."""
    return tuple(make(study) for make in FIGURES.values())
