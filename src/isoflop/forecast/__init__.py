"""The loss at the end of a run that is under way, with its interval; see docs/forecast.md."""

from isoflop.forecast.backtest import Score, backtest
from isoflop.forecast.baselines import ESTIMATORS
from isoflop.forecast.curve import FinishedRun, read_curves
from isoflop.forecast.lr_plan import LrPlan
from isoflop.forecast.online import PASSING, Estimator, Forecast, OnlineForecaster, Silence
from isoflop.forecast.priors import DEFAULT_PRIORS, WEAK_PRIORS, Line, Priors, learn_priors
from isoflop.forecast.sizes import Ladder, fit_ladder

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
