"""L(N,S): loss against optimizer steps of runs of each size, with the forecast of where runs under way will end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isoflop.figures.by_compute import broken, run_hover
from isoflop.figures.figure import Axis, Band, Figure, NoFigure, Series
from isoflop.figures.study import Study, loss_axis
from isoflop.figures.text import Indices, counted, listed, name_of, points_each, thin
from isoflop.fit.runs import RunCurve, said
from isoflop.forecast import Forecast, OnlineForecaster, curve_of

KEY, TITLE = "learning-curves", "Learning curves, and where they will end"
AHEAD = 24
"""Steps at which a run under way is forecast."""
MOST = 12
"""Runs under way that are forecast, the newest: each costs the time of reading its curve once more."""
LEVEL = 0.8
"""Of forecasts, as everywhere in isoflop."""


def learning_curves(study: Study) -> Figure | NoFigure:
    """A curve for each run; of those under way the forecast and its interval up to the planned end."""
    series, bands, silent, missing = [], [], [], []
    most = points_each(len(study.curves))
    live = [curve for curve in study.curves if curve.run.status != "completed"]
    newest = {curve.run_id for curve in live[-MOST:]}
    for curve in study.curves:
        known = np.flatnonzero(curve.known(study.loss, curve.step))
        if not np.isfinite(curve.losses.get(study.loss, np.empty(0))[known]).any():
            missing.append(curve.name)
            continue
        series.append(_curve(study, curve, known, most))
        if curve.run_id not in newest:
            continue
        ahead = _forecast(study, curve)
        if isinstance(ahead, str):
            silent.append(f"{name_of(curve.name)}: {ahead}")
        else:
            series.append(ahead[0])
            bands += ahead[1]
    if not series:
        why = "a table of finished runs has no curves" if not study.curves else f"no record has {said(study.loss)}"
        return NoFigure(KEY, TITLE, why if study.ends else "there are no runs")
    if all(each.kind == "points" for each in series):
        if study.loss == "train":
            return NoFigure(KEY, TITLE, "no run has more than one point")
        trained = learning_curves(replace(study, loss="train"))
        once = f"The training loss: no run has more than one point of {said(study.loss)}."
        return replace(trained, notes=(once, *trained.notes)) if isinstance(trained, Figure) else trained
    forecast = any(each.dashed for each in series)
    series += broken(study, lambda curve: curve.step)
    drawn = len(study.curves) - len(missing)
    sizes = {curve.size(study.convention) for curve in study.curves} - {None}
    notes = [f"{counted(drawn, 'run', 'runs')} of {counted(len(sizes), 'size', 'sizes')}, as logged."]
    if not sizes:
        notes = [f"{counted(drawn, 'run', 'runs')} of unknown size, as logged."]
    if forecast:
        notes.append(
            f"Dashed: forecast up to the planned end, with its {LEVEL:.0%} interval, from the curve so far, the "
            "learning rates to come and what public runs have shown."
        )
    if live and len(newest) < len(live):
        notes.append(f"Forecast: the {len(newest)} newest of {len(live)} runs under way.")
    if silent:
        notes.append("No forecast of " + "; ".join(silent) + ".")
    if missing:
        notes.append(f"{counted(len(missing), 'run', 'runs')} without {said(study.loss)}: {listed(missing)}.")
    return Figure(
        KEY,
        TITLE,
        Axis("S, optimizer steps"),
        loss_axis(study),
        tuple(series),
        tuple(bands),
        shades=study.sizes(),
        notes=tuple(notes),
    )


def _curve(study: Study, curve: RunCurve, known: Indices, most: int) -> Series:
    loss, C = curve.losses[study.loss], study.flops(curve)
    kept = known[thin(curve.step[known], loss[known], most)]
    y = loss[kept]
    return Series(
        curve.name,
        curve.step[kept],
        y,
        run_id=curve.run_id,
        shade=study.shade(curve.run_id),
        kind="line" if len(kept) > 1 else "points",
        hover=run_hover(study, curve.size(study.convention), curve.tokens[kept], C[kept], y),
    )


def _forecast(study: Study, curve: RunCurve) -> tuple[Series, list[Band]] | str:
    """The way to the planned end and its interval; as the run logged it where that can't be told again; or why not."""
    shade = study.shade(curve.run_id)
    try:
        run = curve_of(curve, study.loss)
    except ValueError as reason:
        return _as_logged(study, curve) or str(reason)
    forecaster = OnlineForecaster.of(run).feed(run)
    now, end = float(run.steps[-1]), float(run.total_steps)
    told = [forecaster.forecast(run.plan, round(step)) for step in np.geomspace(min(now + 1, end), end, AHEAD)]
    said = [each for each in told if isinstance(each, Forecast)]
    if not isinstance(told[-1], Forecast):
        return _as_logged(study, curve) or told[-1].message.rstrip(".")
    S, L, low, high = (
        np.array([getattr(each, name) for each in said], dtype=float) for name in ("step", "loss", "low", "high")
    )
    line = Series(
        f"{curve.name}: forecast",
        S,
        L,
        run_id=curve.run_id,
        shade=shade,
        dashed=True,
        legend=False,
        hover={"S": S, "L": L, "low": low, "high": high},
    )
    return line, [Band(f"{LEVEL:.0%} interval", S, low, high, role="run", run_id=curve.run_id, shade=shade)]


def _as_logged(study: Study, curve: RunCurve) -> tuple[Series, list[Band]] | None:
    """The last forecast in the record, of the planned end."""
    values = [curve.extra.get(name) for name in ("forecast_loss", "forecast_low", "forecast_high")]
    planned = curve.run.planned.get("steps")
    if study.loss != "train" or any(value is None for value in values) or not isinstance(planned, int | float):
        return None
    table = np.array(values, dtype=float)
    at = np.flatnonzero(np.isfinite(table).all(axis=0))
    if not len(at):
        return None
    loss, low, high = table[:, at[-1:]]
    series = Series(
        f"{curve.name}: forecast at step {curve.step[at[-1]]:,.0f}",
        np.array([float(planned)]),
        loss,
        run_id=curve.run_id,
        shade=study.shade(curve.run_id),
        kind="points",
        dashed=True,
        low=low,
        high=high,
        legend=False,
        hover={"S": float(planned), "L": loss, "low": low, "high": high},
    )
    return series, []
