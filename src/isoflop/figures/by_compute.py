"""Figures of compute: loss of all runs with the fitted frontier, isoFLOP profiles, the compute-optimal size and tokens.

Hoffmann et al. 2022, figures 2 and 3; Kaplan et al. 2020, figure 1; beside published laws, as in Porian et al. 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from isoflop.arrays import Array
from isoflop.figures.curves import axis_of_losses, broken, ends_series, loss_series, unsound
from isoflop.figures.figure import Axis, Band, Figure, NoFigure, Role, Series, Shades
from isoflop.figures.study import BEYOND, Study, compute_axis, loss_axis, size_axis, tokens_axis
from isoflop.figures.text import counted, law_label, listed, parameters
from isoflop.fit.optimal_line import Approach, Minimum
from isoflop.fit.profiles import group, profile_minima, refused
from isoflop.fit.runs import RunCurve
from isoflop.laws import optimal_allocation

LOSS_FLOPS = ("loss-flops", "Loss against training compute")
OPTIMAL = {
    "N": ("optimal-parameters", "Compute-optimal parameters"),
    "D": ("optimal-tokens", "Compute-optimal tokens"),
}
PROFILES = ("isoflop-profiles", "isoFLOP profiles: loss against size at equal compute")
NEAR = 5.0
"""A factor of the best size within which a parabola is drawn: farther out a law of sizes is no parabola."""
FEWEST = 3
"""Sizes that make a profile."""
NAMED = 10
"""Budgets that the legend names; of more a colour scale tells."""
ROLES: tuple[Role, ...] = ("approach 1", "approach 2", "approach 3")
POINTS = 60


def frontier_line(study: Study, C: Array) -> tuple[dict[str, Array], Array | None]:
    """N, D, C and L of the study's frontier at these budgets, and the interval of L [2, points] by the law's draws."""
    assert study.law is not None
    best = [optimal_allocation(study.law, c, level=study.level, flops_per_param_token=study.rate) for c in C.tolist()]
    N, D, L = np.array([(each.N, each.D, each.loss) for each in best]).T
    ends = [each.intervals["loss"] for each in best if each.intervals]
    return {"N": N, "D": D, "C": C, "L": L}, np.array(ends).T if len(ends) == len(best) else None


def extended(
    study: Study,
    line: Callable[[Array], tuple[dict[str, Array], Array | None]],
    what: str,
    names: tuple[str, str],
    doubtful: bool,
    **look: Any,
) -> tuple[list[Series], list[Band]]:
    """The column `what` of a line over C with its band, within the runs; dashed beyond them unless it is doubtful.

    `line` gives columns at some budgets and the interval of `what`. `names`: within and beyond; "": not in the legend.
    """
    least, most = float(study.C.min()), float(study.C.max())
    pieces = [(least, most)] if most > least else []
    pieces += [] if doubtful else [(most, most * BEYOND)]
    lines, bands = [], []
    for low, high in pieces:
        dashed = high > most
        columns, ends = line(np.geomspace(low, high, POINTS))
        drawn: dict[str, Any] = {"dashed": dashed, "legend": bool(names[dashed]), "hover": columns, **look}
        lines.append(Series(names[dashed] or names[0], columns["C"], columns[what], **drawn))
        if ends is not None:
            bands.append(Band(f"{study.level:.0%} interval", columns["C"], *ends, **look))
    return lines, bands


# -- loss --------------------------------------------------------------------------------------------------------------


def loss_flops(study: Study) -> Figure | NoFigure:
    """Curves of all runs, their ends, the least loss that compute buys by the law fitted to the ends."""
    curves, missing = loss_series(study, study.flops)
    rows = [i for i, end in enumerate(study.counted) if end.run_id is None]  # of tables: they have no curve
    without = (
        f"{counted(len(missing), 'run is', 'runs are')} not drawn: no loss with measured FLOPs, or with tokens and "
        f"parameters: {listed(missing)}."
    )
    if not curves and not rows:
        why = without if missing else "there are no runs"
        return NoFigure(*LOSS_FLOPS, f"no run has both a loss and its compute: {why}")
    kept, L = {*study.fitted_rows.tolist()}, study.columns["loss"]
    fine, far = [i for i in rows if i in kept], [i for i in rows if i not in kept]
    ends = [ends_series(study, fine, study.C[fine], L[fine])] if fine else []
    if far:
        name = f"{counted(len(far), 'outlier', 'outliers')}, left out of the fit"
        ends.append(ends_series(study, far, study.C[far], L[far], name, role="out", shades=None))
    fitted, bands, notes = _fitted_frontier(study)
    grey, named = unsound(study)
    axis, above = axis_of_losses(study, curves)
    return Figure(
        *LOSS_FLOPS,
        compute_axis(study),
        axis,
        (*curves, *ends, *fitted, *grey, *broken(study, study.flops)),
        bands,
        shades=study.sizes(),
        notes=(*notes, *([study.left_out] if study.left_out else []), *named, *above, *([without] if missing else [])),
    )


def _fitted_frontier(study: Study) -> tuple[tuple[Series, ...], tuple[Band, ...], tuple[str, ...]]:
    """The frontier's line within the runs and beyond, its band, and notes on them."""
    if not any(end.N for end in study.ends):
        return (), (), ("No frontier: it is a law of N, and no run states its parameters.",)
    if study.law is None or study.fit is None:
        return (), (), (f"No frontier: {study.no_law}.",)
    names = "least loss by the fitted law", "the same, beyond the runs"
    look: dict[str, Any] = {"role": "fit", "group": "fit"}
    lines, bands = extended(study, partial(frontier_line, study), "L", names, bool(study.doubts), **look)
    runs = counted(study.fit.n, "finished run", "finished runs")
    beyond = (
        "It is not drawn beyond the runs: " + "; ".join(study.doubts)
        if study.doubts
        else f"Dashed: extrapolated, up to {BEYOND:g} times the compute of the largest run"
    )
    notes = (
        f"Frontier: least loss for C = {study.rate:.3g}·N·D by L(N,D) = E + A/N^α + B/D^β, fitted to {runs}; band: "
        f"{study.level:.0%} interval by {study.draws:,} resamples of the runs"
    )
    return tuple(lines), tuple(bands), (notes, beyond)


def _six_n_d(study: Study, curve: RunCurve) -> Array:
    return 6 * (curve.size(study.convention) or np.nan) * curve.tokens


X_AXES: Mapping[str, tuple[str, str, Callable[[Study, RunCurve], Array]]] = {
    "flops": ("training compute C, measured", "FLOPs", lambda study, curve: curve.flops),
    "6nd": ("training compute C = 6·N·D", "FLOPs", _six_n_d),
    "tokens": ("D, processed less padding", "tokens", lambda study, curve: curve.tokens),
    "step": ("optimizer steps", "", lambda study, curve: curve.step),
    "hours": ("training time", "hours", lambda study, curve: curve.seconds / 3600),
}
"""What the losses of runs can be drawn against: label, unit, and the values of a run."""


TITLED = {"tokens": "tokens", "step": "optimizer steps", "hours": "training time"}


def loss_against(study: Study, axis: str, loss: str = "") -> Figure | NoFigure:
    """The curves of all runs against an axis of `X_AXES`, without a law; `loss` "" is the study's."""
    label, unit, values = X_AXES[axis]
    titled = LOSS_FLOPS[0], f"Loss against {TITLED.get(axis, 'training compute')}"
    shown = replace(study, loss=loss or study.loss)
    vars(shown).update(unsound=study.unsound)  # by the study's own loss and fit
    curves, missing = loss_series(shown, partial(values, shown))
    if not curves:
        return NoFigure(*titled, f"no run has this loss with its {label}")
    grey, named = unsound(shown)
    drawn = (*curves, *grey, *broken(shown, partial(values, shown)))
    y, above = axis_of_losses(shown, curves)
    notes = (*named, *above, *([f"Not drawn, without this loss or axis: {listed(missing)}."] if missing else []))
    return Figure(*titled, Axis(label, unit), y, drawn, shades=shown.sizes(), notes=notes)


# -- isoFLOP profiles --------------------------------------------------------------------------------------------------


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
        sound = order[np.isin(order, study.fitted_rows)]
        if refused(np.log(N[sound]), L[sound]) is None:
            x, y, off = _parabola(N[sound], L[sound])
            series.append(Series(label, x, y, legend=False, **look))
            misfits += [(off, label)] if len(sound) > 3 else []  # a parabola passes through three
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
            f"Lines: parabolas in ln N through a budget's runs (no outliers) up to a factor {NEAR:g} of their minimum.",
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
    C, N, D, L = (each[study.fitted_rows] for each in (study.C, *(study.columns[name] for name in ("N", "D", "loss"))))
    try:
        one = profile_minima(C, N, D, L, budgets=study.budgets, level=study.level)
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


# -- the optimum -------------------------------------------------------------------------------------------------------


def optimal_parameters(study: Study) -> Figure | NoFigure:
    """N_opt against C."""
    return _optimal(study, "N")


def optimal_tokens(study: Study) -> Figure | NoFigure:
    """D_opt against C."""
    return _optimal(study, "D")


def _optimal(study: Study, what: str) -> Figure | NoFigure:
    if study.nothing:
        return NoFigure(*OPTIMAL[what], study.nothing)
    every = range(len(study.counted))
    drawn = [ends_series(study, every, study.C, study.columns[what], "finished runs", role="guide", shades=None)]
    C: Array = np.geomspace(study.C.min(), study.C.max() * BEYOND, POINTS)
    look: dict[str, Any] = {"role": "published", "dashed": True}
    for number, each in enumerate(study.published):
        optimum = dict(zip("ND", each.allocate(C), strict=True)) | {"C": C}
        drawn.append(Series(law_label(each), C, optimum[what], number=number, hover=optimum, **look))
    bands: list[Band] = []
    for approach in study.approaches:
        lines, around = _approach(study, approach, what)
        drawn += lines
        bands += around
    axis = size_axis(study) if what == "N" else tokens_axis()
    return Figure(*OPTIMAL[what], compute_axis(study), axis, tuple(drawn), tuple(bands), notes=_optimal_notes(study))


def _optimal_notes(study: Study) -> tuple[str, ...]:
    notes = [
        *(_exponents(approach) for approach in study.approaches),
        *(f"{text}." for text in study.without),
        *(f"{approach.name}: {text}." for approach in study.approaches for text in approach.warnings),
    ]
    if any(each.number == 1 for each in study.approaches):
        notes.append(
            "Approach 1 takes losses from the middle of runs: a learning rate that decays later, and noise, bias it."
        )
    if not study.approaches:
        notes.insert(0, "Published laws alone: these runs determine no frontier of their own.")
    if any(each.n_convention != study.convention for each in study.published):
        conventions = "; ".join(f"{law_label(each)}: {parameters(each.n_convention)}" for each in study.published)
        notes.append(f"Each published law counts N in its own way ({conventions}); they are not converted.")
    return tuple(notes)


def _approach(study: Study, approach: Approach, what: str) -> tuple[list[Series], list[Band]]:
    role, column = ROLES[approach.number - 1], "ND".index(what)

    def line(C: Array) -> tuple[dict[str, Array], Array | None]:
        columns = dict(zip("ND", np.array([approach.allocate(c) for c in C.tolist()]).T, strict=True)) | {"C": C}
        ends = [each[column] for c in C.tolist() if (each := approach.allocate_intervals(c)) is not None]
        return columns, np.array(ends).T if len(ends) == len(C) else None

    name = "approach 3 (fitted law)" if role == "approach 3" else approach.name
    group: dict[str, Any] = {"role": role, "group": role}
    doubtful = bool(study.doubts) and role == "approach 3"
    lines, bands = extended(study, line, what, (name, ""), doubtful, **group)
    if approach.minima and role == "approach 2":
        N, D, C, L = (np.array([getattr(each, name) for each in approach.minima]) for name in ("N", "D", "C", "L"))
        low, high = np.array([each.interval or (np.nan, np.nan) for each in approach.minima]).T
        if what == "D":
            low, high = N * D / high, N * D / low
        hover = {"N": N, "D": D, "C": C, "L": L}
        look: dict[str, Any] = {"low": low, "high": high, "legend": False, **group}
        lines.append(Series("its minima", C, hover[what], kind="points", hover=hover, **look))
    return lines, bands


def _exponents(approach: Approach) -> str:
    a, b = (
        f"{getattr(approach, name):.3f}"
        + (" [{:.3f}, {:.3f}]".format(*approach.intervals[name]) if name in approach.intervals else "")
        for name in "ab"
    )
    level = f", {approach.level:.0%} intervals" if approach.intervals else ""
    return f"{approach.name}: N ∝ C^a, D ∝ C^b with a = {a}, b = {b}{level}."
