"""The loss at the end of a run that is under way, with its interval; see docs/forecast.md."""

from isoflop.fit.forecast.baselines import ESTIMATORS
from isoflop.fit.forecast.curves import FinishedRun, read_curves
from isoflop.fit.forecast.joint import Ladder, fit_ladder
from isoflop.fit.forecast.learn import learn_priors
from isoflop.fit.forecast.online import Estimator, OnlineForecaster
from isoflop.fit.forecast.priors import DEFAULT_PRIORS, WEAK_PRIORS, Line, Priors
from isoflop.fit.forecast.replay import Score, backtest
from isoflop.fit.forecast.result import PASSING, Forecast, Silence
from isoflop.fit.forecast.schedule import LrPlan

__all__ = [
    "DEFAULT_PRIORS",
    "ESTIMATORS",
    "PASSING",
    "WEAK_PRIORS",
    "Estimator",
    "FinishedRun",
    "Forecast",
    "Ladder",
    "Line",
    "LrPlan",
    "OnlineForecaster",
    "Priors",
    "Score",
    "Silence",
    "backtest",
    "fit_ladder",
    "learn_priors",
    "read_curves",
]
