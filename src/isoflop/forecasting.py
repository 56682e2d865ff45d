"""Forecasts the loss at a run's planned end while it trains: feeds the estimator, asks the scheduler, keeps the cost low.

Runs on the rank that writes, at log steps only. The estimator is `isoflop.fit.forecast.OnlineForecaster`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from isoflop.fit.forecast import DEFAULT_PRIORS, Forecast, LearningRatePlan, OnlineForecaster, Silence
from isoflop.fit.forecast.records import priors_from
from isoflop.guard import Guard, declare
from isoflop.observe.parameters import Parameters
from isoflop.observe.schedule import LearningRates, UnknownFuture, future_learning_rates
from isoflop.observe.schedule_formulas import number
from isoflop.options import Options
from isoflop.setup import Setup

FORECAST = declare("forecasting the loss", "no forecast of the final loss")

SHARE = 1e-3
"""Of the wall time, that refits may take in all."""
FIRST_COST = 0.004
"""Seconds that the first refit is expected to take."""
OFF_PLAN = 0.02
"""Of the peak: how far a learning rate may lie from its plan."""
MOST_SEEN = 256
"""Learning rates kept of the past."""
TAIL = 0.02
"""Of the run: what came is the mean loss over this last part."""
PASSING = ("warm-up", "too few points", "interval too wide")
"""Reasons for silence that time may mend; others are told at once."""

Curve = OnlineForecaster | None


class Forecasting:
    """One run's forecast.

    Args:
        options: `fit_on`, `history` and `lr_plan` of them.
        setup: plan, optimizer and scheduler of the run.
        guard: whose boundary "forecasting the loss" all of this is behind.
        say: takes a line for the terminal.
        planned: is told the learning-rate plan in plain values, for the record's header.
    """

    def __init__(
        self,
        options: Options,
        setup: Setup,
        guard: Guard,
        say: Callable[[str], None],
        planned: Callable[[dict[str, Any]], None],
    ) -> None:
        self.last: Forecast | Silence | None = None
        """The newest answer; None before the first."""
        self.half_time: tuple[int, Forecast] | None = None
        """Step and forecast of the first refit in the second half of the run."""
        self.on = options.fit_on or "train"
        self._options, self._setup, self._guard, self._say, self._planned = options, setup, guard, say, planned
        self._curve: Curve = None
        self._state: Mapping[str, Any] | None = None  # of the curve, until it is made
        self._plan: LearningRatePlan | None = None
        self._unknown = ""
        self._seen: list[tuple[int, float]] = []  # step and learning rate
        self._stride = 1
        self._spent, self._cost = 0.0, FIRST_COST
        self._told: set[str] = set()
        self._end = (0.0, 0)  # sum and number of the losses in the run's last part

    @property
    def scalars(self) -> dict[str, float]:
        """The newest forecast by the names of `isoflop.show.scalars.SCALARS`; empty where there is none."""
        if not isinstance(self.last, Forecast):
            return {}
        names = {"forecast_loss": self.last.loss, "forecast_low": self.last.low, "forecast_high": self.last.high}
        return {f"isoflop/{name}": value for name, value in names.items()}

    # -- log steps ---------------------------------------------------------------------------------------------

    def loss(self, step: int, tokens: int | None, loss: float, count: int, model: Model) -> None:
        """A loss of the kind that is fitted, the mean over `count` optimizer steps up to `step`."""
        if self.on == "off" or not self._guard.open(FORECAST):
            return
        with self._guard.part(FORECAST):
            total = self._setup.total_steps
            if total is not None and step > (1 - TAIL) * total:
                self._end = (self._end[0] + loss * count, self._end[1] + count)
            if tokens is None:
                self._silent(Silence("tokens unknown", "the run's tokens are not counted"))
                return
            if self._curve is None:
                self._curve = self._make(model)
            self._curve.add(step, tokens, self._rate(step), loss, count)

    def refit(self, step: int, wall_time: float) -> None:
        """Forecast anew, if that keeps all refits together below their share of the wall time."""
        total = self._setup.total_steps
        if self._curve is None or not self._guard.open(FORECAST):
            return
        with self._guard.part(FORECAST):
            if total is None:
                self._silent(Silence("no planned end", "the run's length is not known: pass total_steps="))
                return
            if step >= total or self._spent + self._cost > SHARE * wall_time:
                return
            if self._plan is None or self._off(step):
                self._ask(step, total)
            began = time.perf_counter()
            answer = self._curve.forecast(self._plan) if self._plan else Silence("learning rate unknown", self._unknown)
            self._cost = time.perf_counter() - began
            self._spent += self._cost
            self.last = answer
            if isinstance(answer, Silence):
                self._silent(answer)
            elif self.half_time is None and 2 * step >= total:
                self.half_time = (step, answer)

    def came(self) -> float | None:
        """The loss that the run ended with: the mean over its last 2%; None before, and for a run cut short."""
        return self._end[0] / self._end[1] if self._end[1] else None

    def _silent(self, silence: Silence) -> None:
        self.last = silence
        if silence.reason not in PASSING and silence.reason not in self._told:
            self._told.add(silence.reason)
            self._say(f"isoflop: no forecast of the final loss: {silence.message}")

    # -- the estimator -----------------------------------------------------------------------------------------

    def _make(self, model: Model) -> OnlineForecaster:
        curve = OnlineForecaster(
            N=model.non_embedding,
            batch_tokens=model.batch_tokens,
            optimizer=model.optimizer,
            domain=model.domain,
            priors=self._priors(),
        )
        if self._state is not None:
            curve.load_state_dict(self._state)
            self._state = None
        return curve

    def _priors(self) -> Any:
        given = self._options.history
        if given is None:
            return DEFAULT_PRIORS
        paths: Sequence[Any] = [given] if isinstance(given, str | os.PathLike) else given
        priors, problem = priors_from(paths, DEFAULT_PRIORS)
        if problem:
            self._guard.once("history=: %s", problem)
        return priors

    # -- the learning rate -------------------------------------------------------------------------------------

    def _rate(self, step: int) -> float | None:
        """The rate now, kept for the plan's past."""
        groups = getattr(self._setup.optimizer, "param_groups", None)
        if not groups:
            return None
        rate = self.read_rate
        if rate is None:
            return None
        if not self._seen or step >= self._seen[-1][0] + self._stride:
            self._seen.append((step, rate))
            if len(self._seen) > MOST_SEEN:
                self._seen = [self._seen[0], *self._seen[2::2]]
                self._stride = 2 * self._stride if self._stride > 1 else (step - self._seen[0][0]) // len(self._seen)
        return rate

    read_rate: float | None = None
    """Learning rate of the step just done (the first parameter group's); set before `loss`."""

    def _off(self, step: int) -> bool:
        """Whether the rate has left its plan."""
        assert self._plan is not None
        rate = self.read_rate
        return rate is not None and abs(float(self._plan.at(step)) - rate) > OFF_PLAN * self._plan.peak

    def _ask(self, step: int, total: int) -> None:
        """The plan of the whole run: the past as it was, the future as the scheduler says."""
        self._plan = None
        found = self._future(step, total)
        if isinstance(found, UnknownFuture):
            self._unknown = f"the learning rate to come is unknown: {found.reason}{_remedy(self._setup)}"
            return
        future = LearningRatePlan(found.steps, found.lr)
        past = [(at, rate) for at, rate in self._seen if at <= step]
        whole = self._future(0, total)
        if isinstance(whole, LearningRates):
            plan = LearningRatePlan(whole.steps, whole.lr)
            joined = abs(float(plan.at(step + 1)) - float(future.at(step + 1))) <= OFF_PLAN * plan.peak
            if joined and all(abs(float(plan.at(at)) - rate) <= OFF_PLAN * plan.peak for at, rate in past):
                future, past = plan, []
        self._plan = future.spliced(*zip(*past, strict=True)) if past else future
        self._planned(_plain(self._plan, found.source))

    def _future(self, step: int, total: int) -> LearningRates | UnknownFuture:
        setup = self._setup
        if setup.future_unknown:
            return UnknownFuture(setup.future_unknown)
        scheduler = self._options.lr_plan or setup.scheduler
        return future_learning_rates(
            scheduler, total, step=step, optimizer=setup.optimizer, calls=setup.scheduler_calls
        )
