"""One run's adviser: completes the situation with the run's past and its forecasts, and asks the evaluators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from isoflop.advise.advice import Advice
from isoflop.advise.adviser import PLANNED, Adviser
from isoflop.advise.situation import Estimate, Expected, Situation
from isoflop.advise.thresholds import Thresholds
from isoflop.advise.track import Track
from isoflop.fit.forecast import Forecast, LrPlan, OnlineForecaster, Silence

Answer = Forecast | Silence | None
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
        self._asked: dict[str, tuple[int, Answer]] = {}

    def start(self, run: Situation) -> list[Advice]:
        """Judge the plan; after the first step, when the batch is known."""
        return self.adviser.start(run)

    def replanned(self) -> None:
        """The run has another planned end than was judged: what rested on the old one is forgotten."""
        self.adviser.forget(PLANNED)
        self.track.forget_forecasts()
        self._asked.clear()

    def log(
        self,
        run: Situation,
        forecaster: OnlineForecaster | None = None,
        speed: float | None = None,
        ladder: Callable[[int], Forecast | None] = lambda step: None,
    ) -> list[Advice]:
        """Judge a log step.

        Args:
            run: what is known of it; losses, expectations and speeds are filled in here.
            forecaster: fed up to this step.
            speed: tokens/s per device over the interval.
            ladder: step → what earlier sizes say of the loss there.

        Returns:
            What is new.
        """
        plan = run.rates

        def ahead(step: int) -> Estimate | None:
            if forecaster is None or plan is None or run.forecast_of != "train":
                return None  # what is compared with it is the training loss
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
                by_ladder=self._by_ladder(ladder, run.step, now) if run.forecast_of == "train" else None,
                fall=track.fall,
                fell=track.fell,
                speeds=tuple(track.speeds),
                best_speed=track.best_speed,
                decay_now=lambda: self._ask("decay", run.step, lambda: decay_now(forecaster, plan, run.step)),
                converged=lambda: self._ask(
                    "end", run.step, lambda: forecaster.converged(plan) if forecaster else None
                ),
            )
        )

    def _by_ladder(self, ladder: Callable[[int], Forecast | None], step: int, now: Estimate | None) -> Expected | None:
        """In between, what was said then stands for now."""
        found = None if now is None else self._ask("the ladder", step, lambda: ladder(step))
        if now is None or not isinstance(found, Forecast):
            return None
        return Expected(step, 0, Estimate(*found.normal), now.mean, now.sd)

    def _ask(self, what: str, step: int, ask: Callable[[], Answer]) -> Answer:
        """Asked anew when the steps have grown by a tenth."""
        if step > 1.1 * self._asked.get(what, (0, None))[0]:
            self._asked[what] = (step, ask())
        return self._asked[what][1]

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"adviser": self.adviser.state_dict(), "track": self.track.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.adviser.load_state_dict(state["adviser"])
        self.track.load_state_dict(state["track"])


def decay_now(forecaster: OnlineForecaster | None, plan: LrPlan | None, step: int) -> Answer:
    """The loss after a linear decay to 0 that begins now."""
    if forecaster is None or plan is None:
        return None
    steps = max(round(DECAY_NOW * step), 2)
    rate = float(plan.at(step))
    if not rate > 0:
        return None
    new = LrPlan([step, step + steps], [rate, 0.0])  # type: ignore[arg-type]
    return forecaster.what_if(plan, new)
