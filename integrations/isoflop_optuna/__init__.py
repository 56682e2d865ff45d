"""isoflop for Optuna: `create_study(pruner=ForecastPruner())`, `report(trial, monitor)` in the objective."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import TrialState

from isoflop.forecast import SURE, Forecast, forecast_from, rank, scalars_of

__all__ = ["ForecastPruner", "report"]

ATTRIBUTE = "isoflop"
"""User attribute of a trial that holds its newest forecast."""


class ForecastPruner(optuna.pruners.BasePruner):
    """Prunes a trial when its loss at the planned end is forecast to be above the best's, and that is sure enough.

    It compares what trials are forecast to end with, not their losses at one step: a slow schedule or a large model is
    not taken for a bad one. A trial without a forecast, and one with nothing to compare with, goes on.

    Args:
        keep: how many trials are wanted in the end.
        sure: prune when with this probability the trial is not among them.

    Raises:
        ValueError: `keep` below 1, `sure` not between ½ and 1.

    Example:
        >>> study = optuna.create_study(pruner=ForecastPruner())  # doctest: +SKIP
    """

    def __init__(self, keep: int = 1, sure: float = SURE) -> None:
        rank({}, keep=keep, sure=sure)  # a wrong argument is told here
        self._keep, self._sure = keep, sure

    def prune(self, study: optuna.study.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether to end `trial`, by the newest forecasts of it and of the trials that run or were completed."""
        mine = forecast_of(trial)
        if mine is None:
            return False
        others = study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE))
        forecasts = {other.number: forecast_of(other) for other in others} | {trial.number: mine}
        known = {str(number): forecast for number, forecast in forecasts.items() if forecast is not None}
        return str(trial.number) in rank(known, keep=self._keep, sure=self._sure).can_stop


def forecast_of(trial: optuna.trial.FrozenTrial) -> Forecast | None:
    """The forecast that was reported last for a trial."""
    held = trial.user_attrs.get(ATTRIBUTE)
    return forecast_from(held, int(held.get("step", 0))) if isinstance(held, dict) else None


def report(trial: optuna.trial.Trial, watched: Any) -> None:
    """Tell a trial its newest forecast; then ask `trial.should_prune()`.

    Args:
        trial: the running trial.
        watched: an `isoflop.Monitor`, or an `IsoFLOPMonitor` or `IsoFLOPCallback`, which hold one. Without a forecast
            yet nothing is told.

    Raises:
        TypeError: `watched` is none of these.
    """
    monitor = watched if hasattr(watched, "forecast") else getattr(watched, "monitor", watched)
    if monitor is None:
        return  # a callback before training begins
    if not hasattr(monitor, "forecast"):
        raise TypeError(f"report() expects a Monitor, IsoFLOPMonitor or IsoFLOPCallback, got {type(watched).__name__}")
    if isinstance(monitor.forecast, Forecast):
        trial.set_user_attr(ATTRIBUTE, {**scalars_of(monitor.forecast), "step": monitor.forecast.step})
