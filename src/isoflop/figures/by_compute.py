"""Loss against compute of all runs, with the fitted frontier: Hoffmann et al. 2022, figure 2; Kaplan et al. 2020, 1.

The compute-optimal frontier of a law as lines with bands: loss, N and D against C, within the runs and beyond.

The compute-optimal size and tokens against compute, by each approach, beside published laws: Hoffmann et al., 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isoflop.arrays import Array
from isoflop.figures.figure import Band, Figure, NoFigure, Role, Series
from isoflop.figures.study import BEYOND, Study, compute_axis, loss_axis, size_axis, tokens_axis
from isoflop.figures.text import counted, listed, parameters, points_each, thin
from isoflop.fit.approaches import Approach
from isoflop.fit.runs import RunCurve
from isoflop.laws.forms import TRAINING_FLOPS, Law
from isoflop.laws.frontier import optimal_allocation
from isoflop.laws.published import Published

POINTS = 60


@dataclass(frozen=True, eq=False)
class FrontierLine:
    """By C [points]: the optimum's value, and the ends of its interval by the law's draws.

    `values`, `low`, `high` by "loss", "N", "D"; `low` and `high` are empty where the law has no draws.
    """

    C: Array
    values: dict[str, Array]
    low: dict[str, Array]
    high: dict[str, Array]


def frontier_line(
    law: Law, least: float, most: float, level: float, points: int = POINTS, rate: float = TRAINING_FLOPS
) -> FrontierLine:
    """The frontier between two budgets.

    Args:
        law: of N and D.
        least, most: training FLOPs.
        level: of the intervals.
        points: evenly spaced in ln C.
        rate: FLOPs per parameter and token, C/(N·D), of the runs that it is drawn with.

    Raises:
        ValueError: the law has no optimum there.
    """
    C = np.geomspace(least, most, points)
    best = [optimal_allocation(law, float(each), level=level, flops_per_param_token=rate) for each in C]
    names = ("loss", "N", "D")
    values = {name: np.array([getattr(each, name) for each in best]) for name in names}
    ends = [
        {name: np.array([each.intervals[name][i] for each in best if each.intervals]) for name in names} for i in (0, 1)
    ]
    drawn = all(each.intervals for each in best)
    return FrontierLine(C, values, ends[0] if drawn else {}, ends[1] if drawn else {})


KEY, TITLE = "loss-flops", "Loss against training compute"


def loss_flops(study: Study) -> Figure | NoFigure:
    """Curves of all runs, their ends, the least loss that compute buys by the law fitted to the ends."""
    curves, without = run_curves(study)
    ends = end_points(study)
    if not curves and not ends:
        return NoFigure(KEY, TITLE, "no run has both a loss and its compute: " + (without or "there are no runs"))
    fitted, bands, notes = fitted_frontier(study)
    return Figure(
        KEY,
        TITLE,
        compute_axis(study),
        loss_axis(study),
        (*curves, *ends, *fitted, *broken(study, study.flops)),
        bands,
        shades=study.sizes(),
        notes=tuple(text for text in (*notes, study.left_out, without) if text),
    )


def run_curves(study: Study) -> tuple[tuple[Series, ...], str]:
    """A line for each run; and which runs have none, and why."""
    found, missing = [], []
    most = points_each(len(study.curves))
    for curve in study.curves:
        C = study.flops(curve)
        known = np.flatnonzero(curve.known(study.loss, C))
        if not np.isfinite(curve.losses.get(study.loss, np.empty(0))[known]).any():
            missing.append(curve.name)
            continue
        loss = curve.losses[study.loss]
        kept = known[thin(C[known], loss[known], most)]
        x, y = C[kept], loss[kept]
        found.append(
            Series(
                curve.name,
                x,
                y,
                run_id=curve.run_id,
                shade=study.shade(curve.run_id),
                kind="line" if len(kept) > 1 else "points",
                hover=run_hover(study, curve.size(study.convention), curve.tokens[kept], x, y),
            )
        )
    if not missing:
        return tuple(found), ""
    which = counted(len(missing), "run is", "runs are")
    need = "a loss with measured FLOPs, or with tokens and parameters"
    return tuple(found), f"{which} not drawn, for want of {need}: {listed(missing)}."


def broken(study: Study, x_of: Callable[[RunCurve], Array]) -> tuple[Series, ...]:
    """Crosses where losses stopped being numbers, at the last one before."""
    x, y, names = [], [], []
    for curve in study.curves:
        at = np.flatnonzero(curve.known(study.loss, x_of(curve)))
        loss = curve.losses.get(study.loss, np.empty(0))[at] if len(at) else np.empty(0)
        first = np.flatnonzero(np.isfinite(loss[:-1]) & ~np.isfinite(loss[1:]))
        x += list(x_of(curve)[at[first]])
        y += list(loss[first])
        names += [curve.name] * len(first)
    if not x:
        return ()
    many = Series("the loss became NaN or infinite", np.array(x), np.array(y), "bad", "points", labels=tuple(names))
    return (replace(many, hover={"L": many.y}),)


def run_hover(study: Study, N: float | None, D: Array, C: Array, L: Array) -> dict[str, Array | float]:
    """The columns that a reader sees over a run."""
    known: dict[str, Array | float] = {} if N is None else {"N": N}
    if np.isfinite(D).any():
        known["D"] = D
    return {**known, "C": C, "L": L}


def end_points(study: Study) -> tuple[Series, ...]:
    """Ends of tables' rows, which have no curve."""
    at = [i for i, end in enumerate(study.counted) if end.run_id is None]
    return (ends_series(study, at, study.C[at], study.columns["loss"][at]),) if at else ()


def ends_series(study: Study, at: Sequence[int], x: Array, y: Array, **others: Any) -> Series:
    """Counted ends as points, each in its run's shade.

    Args:
        study: of the runs.
        at: which of the counted ends.
        x, y: of each.
        others: further fields of `Series`.
    """
    shades = dict(zip(map(id, study.ends), study.shades, strict=True))
    return Series(
        counted(len(at), "finished run", "finished runs"),
        x,
        y,
        kind="points",
        shades=np.array([shades[id(study.counted[i])] for i in at]),
        labels=tuple(study.counted[i].name for i in at),
        hover={
            "N": study.columns["N"][at],
            "D": study.columns["D"][at],
            "C": study.C[at],
            "L": study.columns["loss"][at],
        },
        **others,
    )


def fitted_frontier(study: Study) -> tuple[tuple[Series, ...], tuple[Band, ...], tuple[str, ...]]:
    """The frontier's line within the runs and beyond, its band, and what to say of them."""
    if not any(end.N for end in study.ends):
        return (), (), ("No frontier: it is a law of N, and no run tells its parameters.",)
    if study.law is None or study.fit is None:
        return (), (), (f"No frontier: {study.refused}.",)
    C = study.C
    far = 1.0 if study.doubts else BEYOND
    lines, bands = [], []
    pieces = [("least loss by the fitted law", float(C.min()), float(C.max()), False)]
    if far > 1:
        pieces.append(("the same, beyond the runs", float(C.max()), float(C.max()) * far, True))
    for name, least, most, dashed in pieces:
        line = frontier_line(study.law, least, most, study.level, rate=study.rate)
        lines.append(
            Series(
                name,
                line.C,
                line.values["loss"],
                role="fit",
                dashed=dashed,
                hover={"N": line.values["N"], "D": line.values["D"], "C": line.C, "L": line.values["loss"]},
                group="fit",
            )
        )
        if line.low:
            bands.append(Band(f"{study.level:.0%} interval", line.C, line.low["loss"], line.high["loss"], group="fit"))
    notes = [
        f"Frontier: L(N,D) = E + A/N^α + B/D^β fitted to {counted(study.fit.n, 'finished run', 'finished runs')}, at "
        f"the best N and D for C = {study.rate:.3g}·N·D; band: {study.level:.0%} interval by {study.draws:,} "
        "resamples of the runs."
    ]
    if study.doubts:
        notes.append("It is not drawn beyond the runs: " + "; ".join(study.doubts) + ".")
    else:
        notes.append(f"Dashed: extrapolated, up to {BEYOND:g} times the compute of the largest run.")
    return tuple(lines), tuple(bands), tuple(notes)


ROLES: tuple[Role, ...] = ("approach 1", "approach 2", "approach 3")
TITLES = {"N": "Compute-optimal parameters", "D": "Compute-optimal tokens"}
KEYS = {"N": "optimal-parameters", "D": "optimal-tokens"}


def optimal_parameters(study: Study) -> Figure | NoFigure:
    """N_opt against C."""
    return _optimal(study, "N")


def optimal_tokens(study: Study) -> Figure | NoFigure:
    """D_opt against C."""
    return _optimal(study, "D")


def _optimal(study: Study, what: str) -> Figure | NoFigure:
    key, title = KEYS[what], TITLES[what]
    if study.nothing:
        return NoFigure(key, title, study.nothing)
    least, most = float(study.C.min()), float(study.C.max())
    series, bands = [], []
    for approach in study.approaches:
        lines, band = _approach(study, approach, what, least, most)
        series += lines
        bands += band
    published = [_published(each, number, what, least, most * BEYOND) for number, each in enumerate(study.published)]
    notes = [
        *(_exponents(approach) for approach in study.approaches),
        *(f"{text}." for text in study.without),
        *(f"{approach.name}: {text}." for approach in study.approaches for text in approach.warnings),
    ]
    if any(each.name.startswith(ROLES[0]) for each in study.approaches):
        notes.append(
            "Approach 1 reads every run where it stands: rates that fall at the end, and noise of the losses, bias it."
        )
    if not study.approaches:
        notes.insert(0, "Published laws alone: these runs determine no frontier of their own.")
    if any(each.n_convention != study.convention for each in study.published):
        conventions = "; ".join(f"{each.name}: {parameters(each.n_convention)}" for each in study.published)
        notes.append(f"Published laws count N each in its own way ({conventions}); they are not converted.")
    at = np.arange(len(study.counted))
    runs = Series(
        "finished runs",
        study.C,
        study.columns[what],
        role="guide",
        kind="points",
        labels=tuple(study.counted[i].name for i in at),
        hover={"N": study.columns["N"], "D": study.columns["D"], "C": study.C, "L": study.columns["loss"]},
    )
    return Figure(
        key,
        title,
        compute_axis(study),
        size_axis(study) if what == "N" else tokens_axis(),
        (runs, *published, *series),
        tuple(bands),
        notes=tuple(notes),
    )


def _approach(
    study: Study, approach: Approach, what: str, least: float, most: float
) -> tuple[list[Series], list[Band]]:
    role = next(role for role in ROLES if approach.name.startswith(role))
    far = 1.0 if study.doubts and role == "approach 3" else BEYOND
    lines, bands = [], []
    for low, high, dashed in ((least, most, False), (most, most * far, True)):
        if high <= low:
            continue
        C = np.geomspace(low, high, POINTS)
        N, D = np.array([approach.allocate(float(each)) for each in C]).T
        name = approach.name.replace("approach 3 (parametric)", "approach 3 (fitted law)")
        lines.append(
            Series(
                name,
                C,
                N if what == "N" else D,
                role=role,
                dashed=dashed,
                legend=not dashed,
                hover={"N": N, "D": D, "C": C},
                group=role,
            )
        )
        ends = [approach.allocate_intervals(float(each)) for each in C]
        if all(each is not None for each in ends):
            chosen = np.array([each["ND".index(what)] for each in ends if each is not None])
            bands.append(Band(f"{study.level:.0%} interval", C, chosen[:, 0], chosen[:, 1], role, group=role))
    if approach.minima and role == "approach 2":
        lines.append(_minima(approach, role, what))
    return lines, bands


def _minima(approach: Approach, role: Role, what: str) -> Series:
    N, D, C, L = (np.array([getattr(each, name) for each in approach.minima]) for name in ("N", "D", "C", "L"))
    low, high = np.array([each.interval or (np.nan, np.nan) for each in approach.minima]).T
    y = N if what == "N" else D
    return Series(
        "its minima",
        C,
        y,
        role=role,
        kind="points",
        low=low if what == "N" else N * D / high,
        high=high if what == "N" else N * D / low,
        legend=False,
        hover={"N": N, "D": D, "C": C, "L": L},
        group=role,
    )


def _published(each: Published, number: int, what: str, least: float, most: float) -> Series:
    C: Array = np.geomspace(least, most, POINTS)
    N, D = each.allocate(C)
    return Series(
        each.name,
        C,
        N if what == "N" else D,
        role="published",
        number=number,
        dashed=True,
        hover={"N": N, "D": D, "C": C},
    )


def _exponents(approach: Approach) -> str:
    def with_interval(value: float, interval: tuple[float, float] | None) -> str:
        return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")

    a = with_interval(approach.a, approach.intervals.get("a"))
    b = with_interval(approach.b, approach.intervals.get("b"))
    level = f", {approach.level:.0%} intervals" if approach.intervals else ""
    return f"{approach.name}: N ∝ C^a, D ∝ C^b with a = {a}, b = {b}{level}."
