"""Figures against compute: loss of all runs with the fitted frontier, and the compute-optimal size and tokens.

Hoffmann et al. 2022, figures 2 and 3; Kaplan et al. 2020, figure 1; beside published laws, as in Porian et al. 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from isoflop.arrays import Array
from isoflop.figures.curves import broken, ends_series, loss_series
from isoflop.figures.figure import Axis, Band, Figure, NoFigure, Role, Series
from isoflop.figures.study import BEYOND, Study, compute_axis, loss_axis, size_axis, tokens_axis
from isoflop.figures.text import counted, law_label, listed, parameters
from isoflop.fit.approaches import Approach
from isoflop.fit.runs import RunCurve
from isoflop.laws import Law, Published, optimal_allocation
from isoflop.laws.forms import TRAINING_FLOPS

LOSS_FLOPS = ("loss-flops", "Loss against training compute")
OPTIMAL = {
    "N": ("optimal-parameters", "Compute-optimal parameters"),
    "D": ("optimal-tokens", "Compute-optimal tokens"),
}
ROLES: tuple[Role, ...] = ("approach 1", "approach 2", "approach 3")
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

    @property
    def hover(self) -> dict[str, Array | float]:
        """Columns for the reader."""
        return {"N": self.values["N"], "D": self.values["D"], "C": self.C, "L": self.values["loss"]}


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
        return NoFigure(
            *LOSS_FLOPS,
            "no run has both a loss and its compute: " + (without if missing else "there are no runs"),
        )
    ends = [ends_series(study, rows, study.C[rows], study.columns["loss"][rows])] if rows else []
    fitted, bands, notes = _fitted_frontier(study)
    return Figure(
        *LOSS_FLOPS,
        compute_axis(study),
        loss_axis(study),
        (*curves, *ends, *fitted, *broken(study, study.flops)),
        bands,
        shades=study.sizes(),
        notes=(*notes, *([study.left_out] if study.left_out else []), *([without] if missing else [])),
    )


def _fitted_frontier(study: Study) -> tuple[tuple[Series, ...], tuple[Band, ...], tuple[str, ...]]:
    """The frontier's line within the runs and beyond, its band, and notes on them."""
    if not any(end.N for end in study.ends):
        return (), (), ("No frontier: it is a law of N, and no run states its parameters.",)
    if study.law is None or study.fit is None:
        return (), (), (f"No frontier: {study.refused}.",)
    largest = float(study.C.max())
    pieces = [("least loss by the fitted law", float(study.C.min()), largest, False)]
    pieces += [] if study.doubts else [("the same, beyond the runs", largest, largest * BEYOND, True)]
    lines, bands = [], []
    for name, least, most, dashed in pieces:
        line = frontier_line(study.law, least, most, study.level, rate=study.rate)
        lines.append(
            Series(name, line.C, line.values["loss"], role="fit", dashed=dashed, hover=line.hover, group="fit")
        )
        if line.low:
            bands.append(Band(f"{study.level:.0%} interval", line.C, line.low["loss"], line.high["loss"], group="fit"))
    notes = (
        f"Frontier: L(N,D) = E + A/N^α + B/D^β fitted to {counted(study.fit.n, 'finished run', 'finished runs')}, at "
        f"the best N and D for C = {study.rate:.3g}·N·D; band: {study.level:.0%} interval by {study.draws:,} "
        "resamples of the runs.",
        "It is not drawn beyond the runs: " + "; ".join(study.doubts) + "."
        if study.doubts
        else f"Dashed: extrapolated, up to {BEYOND:g} times the compute of the largest run.",
    )
    return tuple(lines), tuple(bands), notes


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


def loss_against(study: Study, axis: str, loss: str = "") -> Figure | NoFigure:
    """The curves of all runs against another axis, or of another loss, without a law.

    Args:
        study: of the runs.
        axis: of `X_AXES`.
        loss: `train` or eval/<name>; "": the study's.
    """
    label, unit, values = X_AXES[axis]
    shown = replace(study, loss=loss or study.loss)
    curves, missing = loss_series(shown, lambda curve: values(shown, curve))
    if not curves:
        return NoFigure(*LOSS_FLOPS, f"no run has this loss with its {label}")
    crosses = broken(shown, lambda curve: values(shown, curve))
    notes = [f"Not drawn, without this loss or axis: {listed(missing)}."] if missing else []
    return Figure(
        *LOSS_FLOPS, Axis(label, unit), loss_axis(shown), (*curves, *crosses), shades=shown.sizes(), notes=tuple(notes)
    )


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
    least, most = float(study.C.min()), float(study.C.max())
    runs = ends_series(
        study, range(len(study.counted)), study.C, study.columns[what], "finished runs", role="guide", shades=None
    )
    C: Array = np.geomspace(least, most * BEYOND, POINTS)
    published = [_published(each, number, what, C) for number, each in enumerate(study.published)]
    drawn = [_approach(study, approach, what, least, most) for approach in study.approaches]
    return Figure(
        *OPTIMAL[what],
        compute_axis(study),
        size_axis(study) if what == "N" else tokens_axis(),
        (runs, *published, *(line for lines, _ in drawn for line in lines)),
        tuple(band for _, bands in drawn for band in bands),
        notes=_optimal_notes(study),
    )


def _optimal_notes(study: Study) -> tuple[str, ...]:
    notes = [
        *(_exponents(approach) for approach in study.approaches),
        *(f"{text}." for text in study.without),
        *(f"{approach.name}: {text}." for approach in study.approaches for text in approach.warnings),
    ]
    if any(each.number == 1 for each in study.approaches):
        notes.append(
            "Approach 1 reads every run where it stands: rates that fall at the end, and noise of the losses, bias it."
        )
    if not study.approaches:
        notes.insert(0, "Published laws alone: these runs determine no frontier of their own.")
    if any(each.n_convention != study.convention for each in study.published):
        conventions = "; ".join(f"{law_label(each)}: {parameters(each.n_convention)}" for each in study.published)
        notes.append(f"Published laws count N each in its own way ({conventions}); they are not converted.")
    return tuple(notes)


def _approach(
    study: Study, approach: Approach, what: str, least: float, most: float
) -> tuple[list[Series], list[Band]]:
    role = ROLES[approach.number - 1]
    name = "approach 3 (fitted law)" if role == "approach 3" else approach.name
    pieces = [(least, most, False)] if most > least else []
    pieces += [] if study.doubts and role == "approach 3" else [(most, most * BEYOND, True)]
    lines, bands = [], []
    for low, high, dashed in pieces:
        C = np.geomspace(low, high, POINTS)
        N, D = np.array([approach.allocate(float(each)) for each in C]).T
        optimum = {"N": N, "D": D}
        lines.append(
            Series(
                name,
                C,
                optimum[what],
                role=role,
                dashed=dashed,
                legend=not dashed,
                hover={**optimum, "C": C},
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
    return Series(
        "its minima",
        C,
        N if what == "N" else D,
        role=role,
        kind="points",
        low=low if what == "N" else N * D / high,
        high=high if what == "N" else N * D / low,
        legend=False,
        hover={"N": N, "D": D, "C": C, "L": L},
        group=role,
    )


def _published(each: Published, number: int, what: str, C: Array) -> Series:
    N, D = each.allocate(C)
    optimum = {"N": N, "D": D}
    hover = {**optimum, "C": C}
    return Series(law_label(each), C, optimum[what], role="published", number=number, dashed=True, hover=hover)


def _exponents(approach: Approach) -> str:
    def with_interval(value: float, interval: tuple[float, float] | None) -> str:
        return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")

    a = with_interval(approach.a, approach.intervals.get("a"))
    b = with_interval(approach.b, approach.intervals.get("b"))
    level = f", {approach.level:.0%} intervals" if approach.intervals else ""
    return f"{approach.name}: N ∝ C^a, D ∝ C^b with a = {a}, b = {b}{level}."
