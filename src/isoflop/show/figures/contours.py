"""Loss over size and tokens by the fitted law, with the runs and the frontier: Hoffmann et al. 2022, figure 4."""

from __future__ import annotations

import numpy as np

from isoflop.show.figures.axes import size_axis, tokens_axis
from isoflop.show.figures.figure import Array, Axis, Contours, Figure, NoFigure, Series
from isoflop.show.figures.frontier_line import frontier_line
from isoflop.show.figures.loss_flops import ends_series
from isoflop.show.figures.study import Study

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
