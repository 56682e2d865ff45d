"""Backtests: the forecasts of finished runs at fractions of each, and their errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from isoflop.forecast.baselines import ESTIMATORS
from isoflop.forecast.curve import LossCurve
from isoflop.forecast.forecast import Earlier, Forecast
from isoflop.forecast.history import OWN
from isoflop.forecast.online import OnlineForecaster
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


def backtest(
    runs: Sequence[LossCurve],
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
    return {name: _by_dataset(runs, each, first, fractions) for name, each in replays.items()}


def priors_for(runs: Sequence[LossCurve], priors: str | Mapping[str, Priors]) -> dict[str, Priors]:
    """The priors for each organisation's runs.

    Raises:
        ValueError: for another text than the two of `backtest`.
    """
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


def priors_without(organisation: str, runs: Sequence[LossCurve]) -> Priors:
    """The priors that a user's run would have had: those that ship, and all their other finished runs."""
    return learn_priors([replace(run, organisation=OWN) for run in runs if run.organisation != organisation])


def replay(
    run: LossCurve, name: str, fractions: Sequence[float], priors: Priors, level: float = 0.8
) -> dict[float, Forecast | None]:
    """The forecasts of one run's end, by fraction of it; None where there was none."""
    estimator = ESTIMATORS[name].of(run, priors)
    forecasts: dict[float, Forecast | None] = {}
    seen, earlier = -math.inf, Earlier()
    for fraction in sorted(fractions):
        result = estimator.feed(run, fraction * run.total_steps, after=seen).forecast(run.plan, level=level)
        if isinstance(estimator, OnlineForecaster):
            result = earlier.check(result, fraction * run.total_steps)
        forecasts[fraction] = result if isinstance(result, Forecast) else None
        seen = fraction * run.total_steps
    return forecasts


Replays = Sequence[Mapping[float, Forecast | None]]


def _by_dataset(
    runs: Sequence[LossCurve], replays: Replays, first: Replays, fractions: Sequence[float]
) -> dict[str, dict[str, Score]]:
    """Scores by dataset and fraction; "all" is the mean over datasets."""
    sets = sorted({run.dataset for run in runs})
    table: dict[str, dict[str, Score]] = {name: {} for name in [*sets, *(["all"] if sets else [])]}
    for fraction in fractions:
        key = f"{fraction:g}"
        for name in sets:
            members = [i for i, run in enumerate(runs) if run.dataset == name]
            spoke = float(np.mean([replays[i][fraction] is not None for i in members]))
            scored = [i for i in members if first[i][fraction] is not None]
            table[name][key] = _score([(runs[i].final, replays[i][fraction]) for i in scored], spoke)
        if sets:
            table["all"][key] = _mean([table[name][key] for name in sets])
    return table


def _score(pairs: Sequence[tuple[float, Forecast | None]], spoke: float) -> Score:
    """Final losses with their forecasts."""
    made = [(final, forecast) for final, forecast in pairs if forecast is not None]
    if not made:
        return Score(math.nan, math.nan, math.nan, spoke, 0)
    errors = np.array([abs(100 * (forecast.loss / final - 1)) for final, forecast in made])
    held = [forecast.low <= final <= forecast.high for final, forecast in made]
    return Score(float(np.median(errors)), float(np.quantile(errors, 0.9)), float(np.mean(held)), spoke, len(made))


def _mean(scores: Sequence[Score]) -> Score:
    """Over datasets, each with the same weight; those without a forecast have no error to count."""
    known = [score for score in scores if score.n]
    median, p90, coverage = (
        sum(getattr(score, name) for score in known) / len(known) if known else math.nan
        for name in ("median", "p90", "coverage")
    )
    spoke = sum(score.spoke for score in scores) / len(scores)
    return Score(median, p90, coverage, spoke, sum(score.n for score in scores))
