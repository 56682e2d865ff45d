"""Forecasts the loss at a run's planned end while it trains: feeds the estimator, asks the scheduler, costs little.

Runs on the rank that writes, at log steps only. The estimator is `isoflop.forecast.OnlineForecaster`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from isoflop.fit.runs import in_tail
from isoflop.forecast import (
    DEFAULT_PRIORS,
    FinalLoss,
    Forecast,
    Ladder,
    LrPlan,
    NoForecast,
    OnlineForecaster,
    Outcome,
    Priors,
    Reason,
    domain_of,
    history_of,
    ladder_of,
    learn_priors,
    scalars_of,
    size_of,
)
from isoflop.guard import Guard, declare
from isoflop.live.header import describe_model, describe_optimizer
from isoflop.live.options import Options
from isoflop.live.run_info import Setup
from isoflop.live.scheduler import UnknownFuture, future_learning_rates, number

FORECAST = declare("forecasting the loss", "no forecast of the final loss")

SHARE = 1e-3
"""Of the wall time, that refits may take in all."""
FIRST_COST = 0.004
"""Seconds that the first refit is expected to take."""
OFF_PLAN = 0.02
"""Of the peak: how far a learning rate may lie from its plan."""


class Forecasting:
    """One run's forecast.

    Args:
        options: `fit_on`, `history` and `lr_plan` of them.
        setup: plan, optimizer and scheduler of the run.
        guard: whose boundary "forecasting the loss" all of this is behind.
        planned: is told the learning rates of the whole run, for the record's header.
    """

    def __init__(self, options: Options, setup: Setup, guard: Guard, planned: Callable[[LrPlan], None]) -> None:
        self.last: Forecast | NoForecast | None = None
        """The newest answer; None before the first."""
        self.half_time: tuple[int, Forecast] | None = None
        """Step and forecast of the first refit in the second half of the run."""
        self.on = options.fit_on or "train"
        """The loss that is forecast."""
        self._options, self._setup, self._guard, self._planned = options, setup, guard, planned
        self._curve: OnlineForecaster | None = None
        self._restored: Mapping[str, Any] | None = None  # of the curve, until it is made
        self._ladder: Ladder | None = None
        self._plan: LrPlan | None = None
        self._unknown: dict[str, str] = {}
        self._asked = False
        self._rate: float | None = None
        self._spent, self._cost = 0.0, FIRST_COST
        self._told: set[str] = set()
        self._end = FinalLoss()
        self._until: int | None = None  # the planned end that all of this is about

    @property
    def curve(self) -> OnlineForecaster | None:
        """The estimator, fed up to the last log step; None before the first loss."""
        return self._curve

    @property
    def plan(self) -> LrPlan | None:
        """The learning rates of the whole run; None where they are not known, or not yet."""
        return self._plan

    def by_ladder(self, step: int) -> Forecast | None:
        """What the user's earlier sizes say of the loss at `step`, whatever this run did; None without a ladder."""
        curve = self._curve
        if self._ladder is None or self._plan is None or curve is None or not curve.N or not curve.batch_tokens:
            return None
        found = self._ladder.forecast(self._plan, N=curve.N, batch_tokens=curve.batch_tokens, step=step)
        return found if isinstance(found, Forecast) else None

    @property
    def scalars(self) -> dict[str, float]:
        """The newest forecast by the names of `isoflop.live.scalars.SCALARS`; empty where there is none."""
        return scalars_of(self.last) if isinstance(self.last, Forecast) else {}

    # -- log steps ---------------------------------------------------------------------------------------------

    def add(self, step: int, tokens: int | None, lr: Any, loss: float, count: int, about: About) -> None:
        """A loss of the kind that is fitted, the mean over `count` optimizer steps up to `step`.

        Args:
            step: optimizer steps done.
            tokens: D so far, less padding.
            lr: the learning rate of the step just done, a number or a tensor.
            loss: in nats per token.
            count: optimizer steps behind it.
            about: the run, for the first loss.
        """
        if not self._guard.open(FORECAST):
            return
        with self._guard.part(FORECAST):
            total = self._setup.total_steps
            self._follow(total)
            if total is not None and in_tail(step, total) and math.isfinite(loss):
                self._end = self._end.plus(loss)
            if not tokens:
                self._silent(NoForecast(Reason.TOKENS_UNKNOWN))
                return
            if self._curve is None:
                self._curve = self._make(about)
            self._rate = None if lr is None else number(lr)
            self._curve.add(step, tokens, self._rate, loss, count)

    def refit(self, step: int, wall_time: float) -> None:
        """Forecast anew, if all refits together stay under their share of the wall time (seconds)."""
        total = self._setup.total_steps
        if self._curve is None or not self._guard.open(FORECAST):
            return
        with self._guard.part(FORECAST):
            self._follow(total)
            if total is None:
                self._silent(NoForecast(Reason.END_UNKNOWN))
                return
            reserve = self._cost if 2 * step < total else 0.0  # half time shall have its forecast
            if step >= total - 1 or self._spent + self._cost + reserve > SHARE * wall_time:
                return
            began = time.perf_counter()
            if self._plan is None or self._off_plan(step):
                self._ask(step, total)
                if not self._asked:  # once a run; if it has to be done again and again, that counts
                    self._asked, began = True, time.perf_counter()
            answer = self._newest()
            took = time.perf_counter() - began
            self._spent += took
            self._cost = max(took, 0.8 * self._cost)  # silence comes quicker than a forecast
            self.last = answer
            if isinstance(answer, NoForecast):
                self._silent(answer)
            elif self.half_time is None and 2 * step >= total:
                self.half_time = (step, answer)

    def _follow(self, total: int | None) -> None:
        """A resumed run may have another planned end: what was forecast for the old one says nothing of it."""
        if self._until is not None and total != self._until:
            self.last = self.half_time = None
            self._end = FinalLoss()
        self._until = total

    def _silent(self, missing: NoForecast) -> None:
        self.last = missing
        if not missing.reason.temporary and missing.reason.value not in self._told:
            self._told.add(missing.reason.value)
            self._setup.tell(f"isoflop: no forecast of the final loss. {missing.message}")

    # -- the estimator and the plan ----------------------------------------------------------------------------

    def _make(self, about: About) -> OnlineForecaster:
        curve = OnlineForecaster(
            N=size_of(about.parameters),
            batch_tokens=about.batch_tokens,
            optimizer=(describe_optimizer(self._setup.optimizer) or {}).get("class"),
            domain=domain_of(about.parameters, describe_model(about.model)),
            priors=self._priors(),
        )
        if self._restored is not None:
            curve.load_state_dict(self._restored)
            self._restored = None
        return curve

    def _priors(self) -> Priors:
        """What ships, and the user's own finished runs; of two sizes or more these are a ladder."""
        if not self._options.history_paths:
            return DEFAULT_PRIORS
        own, problem = history_of(self._options.history_paths, self.on)
        if problem:
            self._guard.once("history= gives the forecast nothing: %s", problem)
            return DEFAULT_PRIORS
        self._ladder = ladder_of(own, DEFAULT_PRIORS)
        return learn_priors(own)

    def _newest(self) -> Forecast | NoForecast:
        """The curve's own forecast; with a ladder the joint one, which speaks from the start."""
        assert self._curve is not None
        if self._plan is None:
            return NoForecast(Reason.LR_UNKNOWN, self._unknown)
        own = self._curve.forecast(self._plan)
        N, batch = self._curve.N, self._curve.batch_tokens
        if self._ladder is None or N is None or batch is None:
            return own
        if isinstance(own, NoForecast) and not own.reason.temporary:
            return own
        return self._ladder.forecast(self._plan, N=N, batch_tokens=batch, run=self._curve)

    def _off_plan(self, step: int) -> bool:
        assert self._plan is not None
        # where the rate was read after the scheduler's step, it is the next step's
        near = self._plan.at([step, step + 1])
        return self._rate is not None and float(np.abs(near - self._rate).min()) > OFF_PLAN * self._plan.peak

    def _ask(self, step: int, total: int) -> None:
        """The plan of the whole run, by the scheduler; where its past was another the estimator has that as it was."""
        self._plan = None
        found = self._future(step, total, since=0)
        if isinstance(found, UnknownFuture):  # some know no past
            found = self._future(step, total)
        if isinstance(found, UnknownFuture):
            remedy = "" if self._setup.framework != "loop" or self._setup.scheduler else "scheduler= or "
            self._unknown = {"why": found.reason, "remedy": f"{remedy}lr_plan=, a function of the step"}
            return
        self._plan = found
        self._planned(found)

    def _future(self, step: int, total: int, since: int | None = None) -> LrPlan | UnknownFuture:
        setup, given = self._setup, self._options.lr_plan
        if setup.future_unknown and given is None:
            return UnknownFuture(setup.future_unknown)
        return future_learning_rates(
            given or setup.scheduler,
            total,
            step=step,
            optimizer=setup.optimizer,
            calls=setup.scheduler_calls,
            since=since,
        )

    # -- a checkpoint ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any] | None:
        """Plain values: a restored run forecasts the same, to the bit. None where forecasting has stepped aside."""
        if self._guard.open(FORECAST):
            with self._guard.part(FORECAST):  # its fault must not lose the run's counts
                return {
                    "on": self.on,
                    "curve": self._restored if self._curve is None else self._curve.state_dict(),
                    "rate": self._rate,
                    "last": _plain(self.last),
                    "half_time": None if self.half_time is None else [self.half_time[0], _plain(self.half_time[1])],
                    "spent": [self._spent, self._cost],
                    "told": sorted(self._told),
                    "end": list(self._end),
                    "until": self._until,
                }
        return None

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from `state_dict()`, before the first loss; with another `fit_on` the curve begins anew."""
        if not state or state["on"] != self.on or not self._guard.open(FORECAST):
            return
        with self._guard.part(FORECAST):
            self._restored = state["curve"]
            self._rate = None if state["rate"] is None else float(state["rate"])
            self.last = _answer(state["last"])
            half = state["half_time"]
            answer = None if half is None else _answer(half[1])
            self.half_time = (int(half[0]), answer) if isinstance(answer, Forecast) else None
            self._spent, self._cost = map(float, state["spent"])
            self._told = set(state["told"])
            self._end = FinalLoss(*map(float, state["end"][:3]))  # earlier versions had four sums
            self._until = state.get("until")  # not in states of earlier versions

    def tell_what_came(self) -> None:
        """At the end of a completed run: its half-time forecast beside what came."""
        if self._guard.open(FORECAST):
            with self._guard.part(FORECAST):
                line = half_time_line(self.half_time, self._end)
                if line is not None:
                    self._setup.tell(line)


@dataclass(frozen=True)
class About:
    """What is known of the run when its first loss comes.

    Attributes:
        model: for its configuration.
        parameters: N by convention.
        batch_tokens: tokens an optimizer step.
    """

    model: nn.Module | None
    parameters: Mapping[str, int | None]
    batch_tokens: float | None


def half_time_line(half_time: tuple[int, Forecast] | None, final: FinalLoss) -> str | None:
    """The forecast of half time beside the final loss, for the terminal; None without either.

    >>> forecast = Forecast(2.412, 2.395, 2.429, 0.012, 0.8, 6000, "isoflop")
    >>> half_time_line((3000, forecast), FinalLoss.of([2.405]))
    'isoflop: forecast at step 3,000: 2.412 (80%: 2.395 to 2.429) · final loss 2.405: 0.3% below · inside'
    """
    if half_time is None or final.mean is None:
        return None
    step, forecast = half_time
    between = f"{forecast.level:.0%}: {forecast.low:.3f} to {forecast.high:.3f}"
    outcome = Outcome(forecast, final.mean, final.error)
    return f"isoflop: forecast at step {step:,}: {forecast.loss:.3f} ({between}) · final loss {outcome}"


def _plain(answer: Forecast | NoForecast | None) -> dict[str, Any] | None:
    if isinstance(answer, NoForecast):
        return {"kind": "NoForecast", "reason": answer.reason.value, "details": dict(answer.details)}
    return None if answer is None else {"kind": "Forecast", **asdict(answer)}


def _answer(plain: Mapping[str, Any] | None) -> Forecast | NoForecast | None:
    """What `_plain` gave; None for a reason of an earlier version, which is asked again at the next refit."""
    kind = None if plain is None else plain["kind"]
    if plain is None or kind not in ("Forecast", "NoForecast"):
        return None
    if kind == "NoForecast":
        return NoForecast(Reason(plain["reason"]), plain["details"])  # type: ignore[call-arg]
    values: dict[str, Any] = {name: value for name, value in plain.items() if name != "kind"}
    return Forecast(**{**values, "basis": tuple(values["basis"])})
