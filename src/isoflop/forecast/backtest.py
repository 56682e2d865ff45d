"""Replays finished runs: what would have been forecast at a fraction of each, and how wrong it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.forecast.baselines import ESTIMATORS
from isoflop.forecast.curve import FinishedRun
from isoflop.forecast.online import Forecast
from isoflop.forecast.priors import DEFAULT_PRIORS, WEAK_PRIORS, Priors, learn_priors

FRACTIONS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Score:
    """How an estimator did at one fraction of the runs of one set.

    Attributes:
        median, p90: of |error of the final loss|, %; NaN where nothing was forecast.
        coverage: share of the intervals that held the final loss.
        spoke: share of the runs with a forecast.
        n: runs scored.
    """

    median: float
    p90: float
    coverage: float
    spoke: float
    n: int


Table = dict[str, dict[str, dict[str, Score]]]


@dataclass(frozen=True)
class Replay:
    """One run's forecasts: by fraction, the forecast or None, and what came."""

    run: FinishedRun
    forecasts: Mapping[float, Forecast | None]

    def error(self, fraction: float) -> float | None:
        """Relative error, signed, %."""
        forecast = self.forecasts[fraction]
        return None if forecast is None else 100 * (forecast.loss / self.run.final - 1)


def backtest(
    runs: Sequence[FinishedRun],
    estimators: Sequence[str] = ("isoflop",),
    fractions: Sequence[float] = FRACTIONS,
    priors: Literal["leave-one-organisation-out", "default"] | Mapping[str, Priors] = "leave-one-organisation-out",
    level: float = 0.8,
) -> Table:
    """Errors and coverage by estimator, dataset ("all": the mean over datasets) and fraction ("0.25").

    Baselines are scored on the runs that the first estimator forecast, so that silence gives it no advantage.

    Args:
        runs: finished runs.
        estimators: names in `ESTIMATORS`, the first decides which runs are scored.
        fractions: of the run that is seen.
        priors: learnt from the runs of other organisations, or those that ship; or by organisation.
        level: probability of the intervals.

    Raises:
        ValueError: for an unknown estimator or fraction.
    """
    for name in estimators:
        if name not in ESTIMATORS:
            raise ValueError(f"Unknown estimator {name!r}; there are {', '.join(ESTIMATORS)}.")
    if not all(0 < f < 1 for f in fractions):
        raise ValueError(f"Fractions of a run lie between 0 and 1; got {list(fractions)}.")
    chosen = priors_for(runs, priors)
    replays = {
        name: [replay(run, name, fractions, chosen[run.organisation], level) for run in runs] for name in estimators
    }
    first = replays[estimators[0]] if estimators else []
    return {name: _table(each, first, fractions) for name, each in replays.items()}


def priors_for(runs: Sequence[FinishedRun], priors: str | Mapping[str, Priors]) -> dict[str, Priors]:
    """The priors for each organisation's runs."""
    if isinstance(priors, Mapping):
        return dict(priors)
    names = sorted({run.organisation for run in runs})
    if priors == "default":
        return {name: DEFAULT_PRIORS for name in names}
    if priors != "leave-one-organisation-out":
        raise ValueError(f'priors is "leave-one-organisation-out" or "default"; got {priors!r}.')
    return {
        name: learn_priors([run for run in runs if run.organisation != name], WEAK_PRIORS, own=False) for name in names
    }


def replay(run: FinishedRun, name: str, fractions: Sequence[float], priors: Priors, level: float = 0.8) -> Replay:
    """The forecasts of one run's end at fractions of it."""
    estimator = ESTIMATORS[name].of(run, priors)
    forecasts: dict[float, Forecast | None] = {}
    seen = -math.inf
    for fraction in sorted(fractions):
        until = fraction * run.total_steps
        estimator.feed(run, until, after=seen)
        seen = until
        result = estimator.forecast(run.plan, level=level)
        forecasts[fraction] = result if isinstance(result, Forecast) else None
    return Replay(run, forecasts)


def _table(replays: list[Replay], first: list[Replay], fractions: Sequence[float]) -> dict[str, dict[str, Score]]:
    sets = sorted({replay.run.dataset for replay in replays})
    table: dict[str, dict[str, Score]] = {}
    for dataset in sets:
        table[dataset] = {
            f"{fraction:g}": _score(
                [
                    (replay, lead.forecasts[fraction] is not None)
                    for replay, lead in zip(replays, first, strict=True)
                    if replay.run.dataset == dataset
                ],
                fraction,
            )
            for fraction in fractions
        }
    for key in (f"{fraction:g}" for fraction in fractions):
        scores = [table[dataset][key] for dataset in sets]
        median, p90, coverage, spoke = (
            _mean([getattr(score, name) for score in scores]) for name in ("median", "p90", "coverage", "spoke")
        )
        table.setdefault("all", {})[key] = Score(median, p90, coverage, spoke, sum(score.n for score in scores))
    return table


def _mean(values: list[float]) -> float:
    fine = [value for value in values if not math.isnan(value)]
    return sum(fine) / len(fine) if fine else math.nan


def _score(rows: list[tuple[Replay, bool]], fraction: float) -> Score:
    scored = [(replay, replay.forecasts[fraction]) for replay, counts in rows if counts]
    said = [(replay, forecast) for replay, forecast in scored if forecast is not None]
    spoke = sum(replay.forecasts[fraction] is not None for replay, _ in rows) / len(rows)
    if not said:
        return Score(math.nan, math.nan, math.nan, spoke, 0)
    errors = np.array([abs(replay.error(fraction) or 0.0) for replay, _ in said])
    held = [forecast.low <= replay.run.final <= forecast.high for replay, forecast in said]
    return Score(float(np.median(errors)), float(np.quantile(errors, 0.9)), float(np.mean(held)), spoke, len(said))
