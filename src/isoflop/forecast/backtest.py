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
Replay = dict[float, "Forecast | None"]


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
    sets = sorted({run.dataset for run in runs})
    table: Table = {}
    first: list[Replay] = []
    for name in estimators:
        replays = [replay(run, name, fractions, chosen[run.organisation], level) for run in runs]
        first = first or replays
        scores = {
            key: {
                f"{f:g}": _score([each for each in zip(runs, replays, first, strict=True) if each[0].dataset == key], f)
                for f in fractions
            }
            for key in sets
        }
        if sets:
            scores["all"] = {f"{f:g}": _mean([scores[key][f"{f:g}"] for key in sets]) for f in fractions}
        table[name] = scores
    return table


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


def replay(run: LossCurve, name: str, fractions: Sequence[float], priors: Priors, level: float = 0.8) -> Replay:
    """The forecasts of one run's end, by fraction of it; None where there was none."""
    estimator = ESTIMATORS[name].of(run, priors)
    forecasts: Replay = {}
    seen, earlier = -math.inf, Earlier()
    for fraction in sorted(fractions):
        result = estimator.feed(run, fraction * run.total_steps, after=seen).forecast(run.plan, run.final_step, level)
        if isinstance(estimator, OnlineForecaster):
            result = earlier.check(result, fraction * run.total_steps)
        forecasts[fraction] = result if isinstance(result, Forecast) else None
        seen = fraction * run.total_steps
    return forecasts


def _score(replays: Sequence[tuple[LossCurve, Replay, Replay]], fraction: float) -> Score:
    """Runs with their forecasts, and those that decide which are scored."""
    spoke = float(np.mean([mine[fraction] is not None for _, mine, _ in replays]))
    made = [
        (run.final, forecast)
        for run, mine, first in replays
        if first[fraction] is not None and (forecast := mine[fraction]) is not None
    ]
    if not made:
        return Score(math.nan, math.nan, math.nan, spoke, 0)
    errors = np.array([abs(100 * (forecast.loss / final - 1)) for final, forecast in made])
    held = [forecast.low <= final <= forecast.high for final, forecast in made]
    return Score(float(np.median(errors)), float(np.quantile(errors, 0.9)), float(np.mean(held)), spoke, len(made))


def _mean(scores: Sequence[Score]) -> Score:
    """Over datasets, each with the same weight; those without a forecast have no error to count."""
    known = [(s.median, s.p90, s.coverage) for s in scores if s.n]
    median, p90, coverage = np.mean(known, axis=0).tolist() if known else [math.nan] * 3
    return Score(median, p90, coverage, float(np.mean([s.spoke for s in scores])), sum(s.n for s in scores))
