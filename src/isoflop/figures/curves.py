"""Curves of runs: loss against steps, L(N,S), with forecasts of the runs under way; batch against the critical batch.

The batch figure follows McCandlish et al. 2018 and Kaplan et al. 2020, section 5.1. `run_series`, `broken` and
`ends_series` make the series of runs in other figures too; `by_group` colours them by group: a column of a table, what
an import kept of each run, or its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from isoflop.arrays import Array
from isoflop.figures.figure import Axis, Band, Figure, NoFigure, Series
from isoflop.figures.study import Study, loss_axis, tokens_axis
from isoflop.figures.text import Indices, counted, listed, name_of, points_each, thin
from isoflop.fit.runs import RunCurve, said
from isoflop.forecast import Forecast, OnlineForecaster, curve_of, logged_forecast
from isoflop.noise.critical_batch import VALID, prior_critical_batch

LEARNING_CURVES = ("learning-curves", "Learning curves, and where they will end")
AHEAD = 24
"""Steps at which a run under way is forecast."""
FORECAST = 12
"""Runs under way that are forecast, the newest: each costs the time of reading its curve once more."""
FORECAST_LEVEL = 0.8
"""Of forecasts, as everywhere in isoflop."""

BATCH = ("batch", "Batch against the critical batch")
BATCH_LEVEL, BATCH_INTERVAL, Z = 0.95, "95% interval", 1.959964
"""Of beliefs about a batch, as everywhere in isoflop; standard deviations of that interval."""
BANDS = 3
"""Runs whose intervals are drawn; of more they hide one another."""
POINTS = 40
BESIDE = 3.0
"""Times the median of the runs' highest losses, up to which losses are drawn: a diverged run's are a thousand times."""


# -- series of runs ----------------------------------------------------------------------------------------------------


def run_series(
    study: Study, curve: RunCurve, known: Indices, x: Array, y: Array, hover: Mapping[str, Array], **options: Any
) -> Series:
    """A run's points at the indices `known`, thinned to `most`, in its shade; `options` are fields of `Series`.

    Hover columns that are x or y stay the same array, which plotly then need not be sent twice; those without a number
    are left out.
    """
    kept = known[thin(x[known], y[known], options.pop("most", points_each(len(study.curves))))]
    at, values = x[kept], y[kept]
    columns = {name: at if column is x else values if column is y else column[kept] for name, column in hover.items()}
    N = curve.size(study.convention)
    shown: dict[str, Any] = {"N": N} if N else {}
    shown |= {name: column for name, column in columns.items() if np.isfinite(column).any()}
    kind: Any = "line" if len(kept) > 1 else "points"
    name = options.pop("name", curve.name)
    return Series(name, at, values, kind=kind, hover=shown, **_of_run(study, curve), **options)


def _of_run(study: Study, curve: RunCurve) -> dict[str, Any]:
    if curve.run_id in study.unsound:
        return {"run_id": curve.run_id, "role": "out"}
    return {"run_id": curve.run_id, "shade": study.shade[curve.run_id]}


def legend_entry(name: str, **look: Any) -> Series:
    """An entry of the legend alone."""
    return Series(name, np.empty(0), np.empty(0), **look)


def unsound(study: Study) -> tuple[tuple[Series, ...], tuple[str, ...]]:
    """The legend's entry of the runs that are drawn in grey, and a note that names them."""
    if not study.unsound:
        return (), ()
    names = {curve.run_id: curve.name for curve in study.curves}
    said = {end.run_id for end in study.ends if end.left_out}  # with the reason, in another note
    told = "; ".join(name_of(names[run]) + ("" if run in said else f" ({why})") for run, why in study.unsound.items())
    return (legend_entry("left out of the fit, or diverged", role="out"),), (f"In grey: {told}",)


def loss_series(study: Study, x_of: Callable[[RunCurve], Array]) -> tuple[list[Series], list[str]]:
    """The loss of each run against x, and the names of those that lack a loss with an x."""
    found, missing = [], []
    for curve in study.curves:
        x = x_of(curve)
        known = np.flatnonzero(curve.known(study.loss, x))
        loss = curve.losses.get(study.loss, np.full(len(x), np.nan))
        if np.isfinite(loss[known]).any():
            hover = {"D": curve.tokens, "C": study.flops(curve), "L": loss}
            found.append(run_series(study, curve, known, x, loss, hover))
        else:
            missing.append(curve.name)
    return found, missing


def smoothed(study: Study, share: float) -> Study:
    """A study with each training loss as the mean over the last `share` of the steps up to it.

    So its end at 5% is the final loss that laws are fitted to (`fit.runs.at_end`). What was fitted stays.
    """
    curves = []
    for curve in study.curves:
        loss = curve.losses.get("train", np.empty(0))
        known = np.flatnonzero(np.isfinite(loss))
        sums, steps = np.concatenate([[0.0], np.cumsum(loss[known])]), curve.step[known]
        first, means = np.searchsorted(steps, (1 - share) * steps), loss.copy()
        means[known] = (sums[1:] - sums[first]) / (np.arange(len(known)) + 1 - first)
        curves.append(replace(curve, losses={**curve.losses, "train": means}) if len(loss) else curve)
    made = replace(study)
    vars(made).update({**vars(study), "curves": tuple(curves)})
    return made


def axis_of_losses(study: Study, curves: Sequence[Series]) -> tuple[Axis, tuple[str, ...]]:
    """The axis of these curves, ended where one that diverged would leave the others no room; and a note then."""
    highest = {each.name: float(each.y[np.isfinite(each.y)].max()) for each in curves}
    most = BESIDE * float(np.median(list(highest.values()) or [np.inf]))
    above = [f"{name_of(name)} ({value:.3g})" for name, value in highest.items() if value > most]
    axis = loss_axis(study)
    return (replace(axis, high=most), (f"Higher than drawn: {listed(above)}",)) if above else (axis, ())


def broken(study: Study, x_of: Callable[[RunCurve], Array]) -> tuple[Series, ...]:
    """Crosses where losses stopped being numbers, at the last one before."""
    found: list[tuple[float, float, str]] = []
    for curve in study.curves:
        at = np.flatnonzero(curve.known(study.loss, x_of(curve)))
        loss = curve.losses.get(study.loss, np.empty(0))[at] if len(at) else np.empty(0)
        for i in np.flatnonzero(np.isfinite(loss[:-1]) & ~np.isfinite(loss[1:])):
            found.append((x_of(curve)[at[i]], loss[i], curve.name))
    if not found:
        return ()
    x, y, names = zip(*found, strict=True)
    L, called = np.array(y), "the loss became NaN or infinite"
    return (Series(called, np.array(x), L, "bad", "points", labels=names, hover={"L": L}),)


def ends_series(study: Study, at: Sequence[int], x: Array, y: Array, name: str = "", **options: Any) -> Series:
    """The counted ends `at` as points, each in its run's shade; `options` are further fields of `Series`."""
    hover = {"N": study.columns["N"], "D": study.columns["D"], "C": study.C, "L": study.columns["loss"]}
    options = {
        "kind": "points",
        "labels": tuple(study.counted[i].name for i in at),
        "hover": {name: column[list(at)] for name, column in hover.items()},
        "ends": tuple(at),
        "shades": study.counted_shades[list(at)],
        **options,
    }
    return Series(name or counted(len(at), "finished run", "finished runs"), x, y, **options)


# -- learning curves ---------------------------------------------------------------------------------------------------


def learning_curves(study: Study) -> Figure | NoFigure:
    """A curve for each run; of those under way the forecast and its interval up to the planned end."""
    curves, missing = loss_series(study, _steps)
    if not curves and any(study.loss in curve.losses for curve in study.curves):
        return NoFigure(*LEARNING_CURVES, "the records hold the ends of runs alone, without their steps")
    if not curves:
        why = "a table of finished runs has no curves" if not study.curves else f"no record has {said(study.loss)}"
        return NoFigure(*LEARNING_CURVES, why if study.ends else "there are no runs")
    live = [curve for curve in study.curves if curve.run.status == "running"]
    ahead = {curve.name: _forecast(study, curve) for curve in live[-FORECAST:] if curve.name not in missing}
    drawn = [each for each in ahead.values() if not isinstance(each, str)]
    series = [*curves, *(line for line, _ in drawn)]
    if all(each.kind == "points" for each in series):
        return _of_training(study)
    silent = [f"{name_of(name)}: {why}" for name, why in ahead.items() if isinstance(why, str)]
    grey, named = unsound(study)
    sizes = {curve.size(study.convention) for curve in study.curves} - {None}
    of = counted(len(sizes), "size", "sizes") if sizes else "unknown size"
    notes = {
        f"{counted(len(curves), 'run', 'runs')} of {of}, as logged": True,
        f"Dashed: forecast up to the planned end, with its {FORECAST_LEVEL:.0%} interval, from the curve so far, the "
        "learning rates to come and what public runs have shown": drawn,
        f"Forecast: the {FORECAST} newest of {len(live)} runs under way": len(live) > FORECAST,
        "No forecast of " + "; ".join(silent): silent,
        f"{counted(len(missing), 'run', 'runs')} without {said(study.loss)} by step: {listed(missing)}": missing,
    }
    axis, above = axis_of_losses(study, curves)
    return Figure(
        *LEARNING_CURVES,
        Axis("S, optimizer steps"),
        axis,
        (*series, *grey, *broken(study, _steps)),
        tuple(band for _, bands in drawn for band in bands),
        shades=study.sizes(),
        notes=(*(note for note, holds in notes.items() if holds), *named, *above),
    )


def _steps(curve: RunCurve) -> Array:
    """Steps of a run's points; unknown of the end of a run, which an import records as step 1."""
    is_end = "imported" in curve.run.extra and len(curve.step) == 1 and curve.step[0] <= 1
    return np.full(1, np.nan) if is_end else curve.step


def _of_training(study: Study) -> Figure | NoFigure:
    """The training curves of runs that were evaluated once."""
    if study.loss == "train":
        return NoFigure(*LEARNING_CURVES, "no run has more than one point")
    trained = learning_curves(replace(study, loss="train"))
    once = f"The training loss: no run has more than one point of {said(study.loss)}."
    return replace(trained, notes=(once, *trained.notes)) if isinstance(trained, Figure) else trained


def _forecast(study: Study, curve: RunCurve) -> tuple[Series, list[Band]] | str:
    """The loss up to the planned end; the forecast that the run logged where there is none now; or the reason why."""
    try:
        run = curve_of(curve, study.loss)
    except ValueError as reason:
        return _as_logged(study, curve) or str(reason)
    forecaster = OnlineForecaster.of(run).feed(run)
    now, end = float(run.steps[-1]), float(run.total_steps)
    told = [forecaster.forecast(run.plan, round(step)) for step in np.geomspace(min(now + 1, end), end, AHEAD)]
    if not isinstance(told[-1], Forecast):
        return _as_logged(study, curve) or told[-1].message.rstrip(".")
    known = [(each.step, each.loss, each.low, each.high) for each in told if isinstance(each, Forecast)]
    S, L, low, high = np.array(known, dtype=float).T
    of_run, hover = _of_run(study, curve), {"S": S, "L": L, "low": low, "high": high}
    line = Series(f"{curve.name}: forecast", S, L, dashed=True, legend=False, hover=hover, **of_run)
    return line, [Band(f"{FORECAST_LEVEL:.0%} interval", S, low, high, role="run", **of_run)]


def _as_logged(study: Study, curve: RunCurve) -> tuple[Series, list[Band]] | None:
    """The last forecast in the record, of the planned end."""
    last, planned = logged_forecast(curve.step, curve.extra), curve.run.planned.get("steps")
    if study.loss != "train" or not isinstance(planned, int | float) or last is None:
        return None
    S, L, low, high = np.array([[float(planned)], [last.loss], [last.low], [last.high]])
    look: dict[str, Any] = {"kind": "points", "dashed": True, "legend": False, **_of_run(study, curve)}
    hover = {"S": S, "L": L, "low": low, "high": high}
    name = f"{curve.name}: forecast at step {last.as_of:,}"
    return Series(name, S, L, low=low, high=high, hover=hover, **look), []


# -- batch -------------------------------------------------------------------------------------------------------------


def batch(study: Study) -> Figure | NoFigure:
    """Tokens a step of each run, its critical batch as measured, and that of published runs."""
    own = [line for curve in study.curves if (line := _batch_series(study, curve, curve.batch))]
    if not own:
        return NoFigure(*BATCH, "no record says how many tokens its runs took a step")
    measured = [curve for curve in study.curves if np.isfinite(curve.extra.get("b_crit", np.nan)).any()]
    critical, bands = [], []
    for curve in measured:
        look = {"name": f"{curve.name}: B_crit", "dashed": True, "legend": False}
        if line := _batch_series(study, curve, curve.extra["b_crit"], **look):
            critical.append(line)
            if "b_crit_sigma" in curve.extra and len(measured) <= BANDS:
                bands += _batch_band(study, curve, curve.extra["b_crit"], curve.extra["b_crit_sigma"])
    D = np.concatenate([each.x for each in (*own, *critical)])
    prior, around = _published_batch(float(np.nanmin(D)), float(np.nanmax(D)))
    notes = [
        "Solid: tokens processed a step. Beyond the critical batch a loss costs more tokens: E/E_min = 1 + B/B_crit",
        f"Dashed: B_crit of {counted(len(measured), 'run', 'runs')}, by the gradient noise scale where it was measured "
        f"and published runs{f'; band: {BATCH_INTERVAL}' if bands else ''}"
        if measured
        else "No run has a critical batch of its own in its record",
        f"Published: B_crit(D) of language models, known from {VALID[0]:.0e} to {VALID[1]:.0e} tokens; "
        f"{BATCH_INTERVAL}, wider outside",
    ]
    axes, drawn = (tokens_axis(), Axis("tokens a step", "tokens")), (prior, *own, *critical)
    return Figure(*BATCH, *axes, drawn, (around, *bands), shades=study.sizes(), notes=tuple(notes))


def _batch_series(study: Study, curve: RunCurve, values: Array, **options: Any) -> Series | None:
    known = np.flatnonzero(np.isfinite(values) & (values > 0) & np.isfinite(curve.tokens) & (curve.tokens > 0))
    if not len(known):
        return None
    hover = {"D": curve.tokens, "B": values, **({"L": curve.losses[study.loss]} if study.loss in curve.losses else {})}
    options["most"] = points_each(3 * len(study.curves))
    return run_series(study, curve, known, curve.tokens, values, hover, **options)


def _batch_band(study: Study, curve: RunCurve, value: Array, sigma: Array) -> list[Band]:
    known = np.flatnonzero(np.isfinite(value) & np.isfinite(sigma) & (curve.tokens > 0))
    kept = known[thin(curve.tokens[known], value[known], points_each(3 * len(study.curves)))]
    D, reach = curve.tokens[kept], np.exp(Z * sigma[kept])
    band = Band(BATCH_INTERVAL, D, value[kept] / reach, value[kept] * reach, role="run", **_of_run(study, curve))
    return [band] if len(kept) else []


def _published_batch(least: float, most: float) -> tuple[Series, Band]:
    D = np.geomspace(least, max(most, least * 1.01), POINTS)
    known = [prior_critical_batch(float(each)) for each in D]
    low, high = np.array([each.interval(BATCH_LEVEL) for each in known]).T
    look: dict[str, Any] = {"role": "published", "group": "published"}
    line = Series("B_crit(D), published runs", D, np.array([each.value for each in known]), dashed=True, **look)
    return line, Band(BATCH_INTERVAL, D, low, high, **look)


NONE = "no group"
MOST = 8
"""Groups that colours tell apart."""


def by_group(figure: Figure, study: Study, column: str) -> Figure:
    """A figure with a colour and an entry in the legend for each group, instead of shades by size.

    Args:
        figure: one of the study's.
        study: whose ends state their groups (`RunEnd.kinds`).
        column: the group.

    Raises:
        ValueError: no run has the column, it has too many values, or the figure does not show single runs.
    """
    of = {end: dict(end.kinds).get(column, "") or NONE for end in study.ends}
    groups = sorted({*of.values()} - {NONE})
    if not groups:
        known = dict.fromkeys(name for end in study.ends for name, _ in end.kinds)
        raise ValueError(f"--group: expected a column of the runs ({', '.join(known) or 'none'}), got {column!r}")
    if len(groups) > MOST:
        raise ValueError(f"--group: expected at most {MOST} groups, {column} has {len(groups)}: {listed(groups)}")
    every = [*groups, *([NONE] if NONE in of.values() else [])]
    by_run = {end.run_id: group for end, group in of.items()}
    series = [each for one in figure.series for each in _coloured(one, every, by_run, [of[e] for e in study.counted])]
    shown = [name for name in every if any(each.role == "group" and each.group == name for each in series)]
    if not shown:
        raise ValueError(f"--group: {figure.key} does not draw single runs by colour")
    entries = [legend_entry(name, role="group", number=every.index(name), group=name) for name in shown]
    return replace(figure, series=(*series, *entries), shades=None, notes=(*figure.notes, f"Colours: {column}"))


def _coloured(
    one: Series, groups: list[str], by_run: Mapping[str | None, str], counted: list[str]
) -> tuple[Series, ...]:
    """A series of a run in its group's colour; one of several runs split by group; another as it is."""
    if one.role == "run" and one.run_id is not None:
        group = by_run.get(one.run_id, NONE)
        return (replace(one, role="group", shade=None, number=groups.index(group), group=group, legend=False),)
    if one.role == "out" and one.run_id is not None:
        return (replace(one, legend=False),)
    if one.role != "run" or one.shades is None or not one.ends:
        return (one,)
    mine = np.array([counted[i] for i in one.ends])
    found = []
    for number, group in enumerate(groups):
        at = np.flatnonzero(mine == group)
        if len(at):
            hover = {
                name: values[at] if isinstance(values, np.ndarray) else values for name, values in one.hover.items()
            }
            labels = tuple(one.labels[i] for i in at)
            part = replace(one, x=one.x[at], y=one.y[at], hover=hover, labels=labels, ends=(), shades=None)
            found.append(replace(part, role="group", number=number, group=group, legend=False))
    return tuple(found)
