"""The loss at the end of a run that is under way, with its interval; see docs/forecast.md."""

# ruff: noqa: F401

from isoflop.forecast.backtest import ESTIMATORS, SURE, Ranking, Score, backtest, priors_for, priors_without, rank
from isoflop.forecast.curve import Kernel, LossCurve, falls, final_step, path, usable
from isoflop.forecast.forecast import (
    NO_PLAN,
    Earlier,
    FinalLoss,
    Forecast,
    NoForecast,
    Outcome,
    Refusal,
    forecast_from,
    forecast_of,
    logged_forecast,
    scalars_of,
)
from isoflop.forecast.history import curve_of, finished_runs, history_of, ladder_of, read_curves, size_of
from isoflop.forecast.lr_plan import LrPlan
from isoflop.forecast.online import Estimator, Fit, OnlineForecaster
from isoflop.forecast.posterior import Normal
from isoflop.forecast.priors import DEFAULT_PRIORS, WEAK_PRIORS, Line, Priors, learn_priors
from isoflop.forecast.sizes import Ladder, fit_ladder
