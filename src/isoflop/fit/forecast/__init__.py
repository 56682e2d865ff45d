"""The loss at the end of a run that is under way, with its interval; see docs/forecast.md."""

from isoflop.fit.forecast.curves import FinishedRun, read_curves
from isoflop.fit.forecast.estimators import ESTIMATORS, FAST, Estimator
from isoflop.fit.forecast.learn import learn_priors
from isoflop.fit.forecast.online import OnlineForecaster
from isoflop.fit.forecast.priors import DEFAULT_PRIORS, Line, Priors
from isoflop.fit.forecast.replay import Score, backtest
from isoflop.fit.forecast.result import Forecast, Silence
from isoflop.fit.forecast.schedule import LearningRatePlan

__all__ = [
    "DEFAULT_PRIORS",
    "ESTIMATORS",
    "FAST",
    "Estimator",
    "FinishedRun",
    "Forecast",
    "LearningRatePlan",
    "Line",
    "OnlineForecaster",
    "Priors",
    "Score",
    "Silence",
    "backtest",
    "learn_priors",
    "read_curves",
]
