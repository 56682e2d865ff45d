"""One run's adviser: completes the situation with the run's past and its forecasts, and asks the evaluators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from isoflop.advise.advice import Advice
from isoflop.advise.adviser import PLANNED, Adviser
from isoflop.advise.situation import Estimate, Situation
from isoflop.advise.thresholds import Thresholds
from isoflop.advise.track import Track
from isoflop.fit.forecast import Forecast, LearningRatePlan, OnlineForecaster, Silence

DECAY_NOW = 0.15
"""Steps of a decay that begins now, over the steps done: 10 to 20% is usual (Hägele et al. 2024)."""


class RunAdviser:
    """Fed with the situation at each log step.

    Args:
        thresholds: when something is said.
        failed: told of an evaluator that raised.
    """

    def __init__(
        self, thresholds: Thresholds | None = None, failed: Callable[[str, Exception], None] | None = None
    ) -> None:
        self.adviser = Adviser(thresholds, failed)
        self.track = Track()
        self._decayed: tuple[int, Forecast | Silence | None] = (0, None)

    def start(self, run: Situation) -> list[Advice]:
        """Judge the plan; after the first step, when the batch is known."""
        return self.adviser.start(run)

    def replanned(self) -> None:
        """The run has another planned end than was judged: what rested on the old one is forgotten."""
        self.adviser.forget(PLANNED)
        self.track.forget_forecasts()
        self._decayed = (0, None)

    def log(
        self, run: Situation, forecaster: OnlineForecaster | None = None, speed: float | None = None
    ) -> list[Advice]:
        """Judge a log step.

        Args:
            run: what is known of it; losses, expectations and speeds are filled in here.
            forecaster: fed up to this step.
            speed: tokens/s per device over the interval.

        Returns:
            What is new.
        """
        plan = run.rates

        def ahead(step: int) -> Estimate | None:
            if forecaster is None or plan is None:
                return None
            found = forecaster.forecast(plan, step)
            return Estimate(*found.normal) if isinstance(found, Forecast) else None

        self.track.loss(run.step, run.loss, ahead)
        self.track.speed(speed)
        track = self.track
        now = track.now()
        return self.adviser.look(
            replace(
                run,
                loss=now.mean if now is not None else run.loss,
                warmup_steps=run.warmup_steps if plan is None else plan.warmup_steps,
                losses=tuple(track.losses),
                nonfinite=track.nonfinite,
                expected=track.expected,
                fall=track.fall,
                fell=track.fell,
                speeds=tuple(track.speeds),
                best_speed=track.best_speed,
                decay_now=lambda: self._decay_now(forecaster, plan, run.step),
            )
        )

    def _decay_now(
        self, forecaster: OnlineForecaster | None, plan: LearningRatePlan | None, step: int
    ) -> Forecast | Silence | None:
        """Asked anew when the steps have grown by a tenth."""
        if step > 1.1 * self._decayed[0]:
            self._decayed = (step, decay_now(forecaster, plan, step))
        return self._decayed[1]

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"adviser": self.adviser.state_dict(), "track": self.track.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.adviser.load_state_dict(state["adviser"])
        self.track.load_state_dict(state["track"])


def decay_now(
    forecaster: OnlineForecaster | None, plan: LearningRatePlan | None, step: int
) -> Forecast | Silence | None:
    """The loss after a linear decay to 0 that begins now."""
    if forecaster is None or plan is None:
        return None
    steps = max(round(DECAY_NOW * step), 2)
    rate = float(plan.at(step))
    if not rate > 0:
        return None
    new = LearningRatePlan([step, step + steps], [rate, 0.0])  # type: ignore[arg-type]
    return forecaster.what_if(plan, new)
