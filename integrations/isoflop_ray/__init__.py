"""isoflop for Ray Tune: `RunConfig(stop=ForecastStopper())`, with `tune.report(monitor.scalars)` in the trainable."""

from __future__ import annotations

from typing import Any

from ray.tune.stopper import Stopper

from isoflop.forecast import SURE, Forecast, forecast_from, rank

__all__ = ["ForecastStopper"]


class ForecastStopper(Stopper):
    """Stops a trial when its loss at the planned end is forecast to be above the best's, and that is sure enough.

    The trainable reports `monitor.scalars`, which hold the forecast and its interval once there is one. A trial
    without a forecast, and one with nothing to compare with, goes on. Ray does not tell a stopper of trials that
    fail: the last forecast of one stays among those that the others are compared with.

    It stops a trial that with the probability `sure` (between ½ and 1) is not among the `keep` (1 or more) that are
    wanted in the end; ValueError: other numbers.

    Example:
        >>> tune.Tuner(train, run_config=tune.RunConfig(stop=ForecastStopper()))  # doctest: +SKIP
    """

    def __init__(self, keep: int = 1, sure: float = SURE) -> None:
        rank({}, keep=keep, sure=sure)  # a wrong argument is told here
        self._keep, self._sure = keep, sure
        self._forecasts: dict[str, Forecast] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether to stop the trial that reports `result`."""
        forecast = forecast_from(result)
        if forecast is None:
            return False
        self._forecasts[trial_id] = forecast
        stop = trial_id in rank(self._forecasts, keep=self._keep, sure=self._sure).can_stop
        if stop:
            del self._forecasts[trial_id]
        return stop

    def stop_all(self) -> bool:
        """Trials end one by one."""
        return False
