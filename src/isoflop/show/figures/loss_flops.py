"""Loss against compute of all runs, with the fitted frontier: Hoffmann et al. 2022, figure 2; Kaplan et al. 2020, 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from isoflop.show.figures.axes import compute_axis, loss_axis
from isoflop.show.figures.curve import RunCurve
from isoflop.show.figures.figure import Array, Band, Figure, NoFigure, Series
from isoflop.show.figures.frontier_line import frontier_line
from isoflop.show.figures.study import BEYOND, Study
from isoflop.show.figures.thin import points_each, thin
from isoflop.show.figures.words import counted, listed

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
