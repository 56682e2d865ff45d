"""The compute-optimal size and tokens against compute, by each approach, with published laws: Hoffmann et al., fig. 2."""

from __future__ import annotations

import numpy as np

from isoflop.fit.approaches.approach import Approach
from isoflop.fit.papers.published import Published
from isoflop.show.figures.axes import compute_axis, size_axis, tokens_axis
from isoflop.show.figures.figure import Array, Band, Figure, NoFigure, Role, Series
from isoflop.show.figures.study import BEYOND, Study
from isoflop.show.figures.words import parameters

ROLES: tuple[Role, ...] = ("approach 1", "approach 2", "approach 3")
TITLES = {"N": "Compute-optimal parameters", "D": "Compute-optimal tokens"}
KEYS = {"N": "optimal-parameters", "D": "optimal-tokens"}
POINTS = 60


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
            "Approach 1 reads every run where it stands: under learning rates that fall at the end it is biased."
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
