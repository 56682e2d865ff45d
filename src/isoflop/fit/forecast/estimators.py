"""The estimators by name, ours first; each is built with the same arguments and has `add` and `forecast`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from isoflop.fit.forecast.baselines import Hoffmann, Kaplan, LastValue, MomentumLaw, PowerLaw
from isoflop.fit.forecast.multi_power import MultiPowerLaw
from isoflop.fit.forecast.online import OnlineForecaster
from isoflop.fit.forecast.priors import Priors
from isoflop.fit.forecast.result import Forecast, Silence
from isoflop.fit.forecast.schedule import LearningRatePlan


class Estimator(Protocol):
    """What an estimator does: takes losses, forecasts, is saved and restored."""

    def add(self, step: int, tokens: float, lr: float | None, loss: float, count: int = 1) -> None:
        """One logged loss."""

    def forecast(
        self, plan: LearningRatePlan | None, step: int | None = None, level: float = 0.8
    ) -> Forecast | Silence:
        """The loss at a step of the plan, or why there is none."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""


class Make(Protocol):
    """The arguments that every estimator takes."""

    def __call__(
        self,
        *,
        N: float | None = None,
        batch_tokens: float | None = None,
        optimizer: str | None = "adamw",
        domain: Mapping[str, bool] | None = None,
        priors: Priors = ...,
        warmup_steps: int | None = None,
    ) -> Estimator:
        """An estimator for one run."""


ESTIMATORS: Mapping[str, Make] = {
    kind.name: kind for kind in (OnlineForecaster, LastValue, PowerLaw, Kaplan, Hoffmann, MomentumLaw, MultiPowerLaw)
}
"""By name; "multi-power-law" is slow and in no default."""
FAST = tuple(name for name in ESTIMATORS if name != "multi-power-law")
