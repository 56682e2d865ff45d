"""Forecasts the loss at a run's planned end while it trains: feeds the estimator, asks the scheduler, costs little.

On the rank that writes, at log steps only. The estimator is `isoflop.forecast.OnlineForecaster`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from torch import nn

from isoflop.arrays import Array
from isoflop.fit.runs import in_tail
from isoflop.forecast import (
    DEFAULT_PRIORS,
    NO_PLAN,
    Earlier,
    FinalLoss,
    Forecast,
    Ladder,
    LrPlan,
    NoForecast,
    OnlineForecaster,
    Outcome,
    Priors,
    Refusal,
    final_step,
    history_of,
    ladder_of,
    learn_priors,
    scalars_of,
    size_of,
)
from isoflop.guard import declare
from isoflop.live.advice import one_peak
from isoflop.live.log_step import LogStep, Part
from isoflop.live.options import Options
from isoflop.live.recorder import describe_optimizer
from isoflop.live.run_info import RunInfo
from isoflop.live.scheduler import (
    OFF_PLAN,
    UnknownFuture,
    constant_so_far,
    future_learning_rates,
    named_learning_rates,
)

FORECAST = declare("forecasting the loss", "no forecast of the final loss")

SHARE = 1e-3
"""Of the training's CPU time, that refits may take in all."""
GIVEN_ONCE = "a forecast was given"
"""Among what was told."""
ASSUMING = "assumed"
"""Likewise: nobody says what the learning rate will be, and what is assumed."""
TOO_SHORT = f"Forecasts may take {SHARE:.1%} of a run's time, and this one was too short for the first."
GROUPS = 0.1
"""Of their peaks: how far apart the rates of parameter groups may go."""
FIRST_COST = 0.004
"""Seconds that the first refit is expected to take."""
GIVEN = 'lr_plan= as a function of the step or by name, such as lr_plan="cosine:warmup=2000,end=0.1"'
ASSUMED = (
    "isoflop: the learning rate to come is unknown. The forecast assumes that it stays as it is; its interval covers a "
    f"decay to 0 too. Pass {GIVEN}."
)


class ForecastPart(Part):
    """One run's forecast."""

    name = "forecast"
    boundary = FORECAST

    def __init__(self, options: Options, run: RunInfo, model: nn.Module | None = None) -> None:
        self.last: Forecast | NoForecast | None = None
        """The newest answer; None before the first."""
        self.half_time: tuple[int, Forecast] | None = None
        """Step and forecast of the first refit in the second half of the run."""
        self.on = options.fit_on or "train"
        """The loss that is forecast."""
        self.curve: OnlineForecaster | None = None
        """The estimator, fed up to the last log step; None before the first loss."""
        self.plan: LrPlan | None = None
        """The learning rates of the whole run; None where they are not known, or not yet."""
        self._options, self._run, self._model = options, run, model
        self._restored: Mapping[str, Any] | None = None  # of the curve, until it is made
        self._ladder: Ladder | None = None
        self._no_plan = NO_PLAN
        self._at: int | None = None  # where the final loss is read
        self._peaks: list[float] = []  # of the parameter groups
        self._asked = False  # the given schedule, once in a process
        self._spent, self._cost = 0.0, FIRST_COST
        self._told: set[str] = set()
        self._earlier, self._final = Earlier(), FinalLoss()
        self._until: int | None = None  # the planned end that all of this is about

    # -- log steps ---------------------------------------------------------------------------------------------

    def log(self, step: LogStep) -> None:
        """Take the interval's loss in, where that is what is forecast, and forecast anew where time allows."""
        total, loss = self._run.total_steps, step.loss
        if total != self._until:
            self._follow(total)
        if self.on == "train" and loss is not None:
            self._add(loss, step, step.step - step.before.steps)
        if not self._asked or self._options.lr_plan is not None:
            self._read_schedule(step, total)
        if self.curve is not None:
            self._refit(step, total)
        if isinstance(self.last, Forecast):
            step.scalars.update(scalars_of(self.last))
        step.forecaster, step.ladder, step.plan, step.forecast = self.curve, self._ladder, self.plan, self.last

    def evaluate(self, name: str, loss: float, step: LogStep) -> None:
        """Take the loss of an evaluation set in, where that is what is forecast."""
        if self.on == f"eval/{name}":
            self._follow(self._run.total_steps)
            self._add(loss, step, 1)

    def _add(self, loss: float, step: LogStep, count: int) -> None:
        """A loss of the kind that is fitted, the mean over `count` optimizer steps."""
        total, tokens = self._run.total_steps, step.totals.data_tokens
        # 2·step > total first, for it is cheap; of a loss that ends in NaN there is no final one
        if total is not None and 2 * step.step > total and in_tail(step.step, total):
            self._final = self._final.plus(loss) if math.isfinite(loss) else FinalLoss()
        if not tokens:
            if step.summed:
                self.last = NoForecast(Refusal.TOKENS_UNKNOWN)  # said where a batch is counted
            return
        if self.curve is None:
            self.curve = self._make(step)
        self.curve.add(step.step, tokens, step.lr, loss, count)

    def _refit(self, step: LogStep, total: int | None) -> None:
        """Forecast anew, if all refits together stay under their share of the time."""
        if total is None:
            self._silent(NoForecast(Refusal.END_UNKNOWN))
            return
        reserve = self._cost if 2 * step.step < total else 0.0  # half time shall have its forecast
        if step.step >= total - 1 or self._spent + self._cost + reserve > SHARE * step.busy_time:
            return
        began = time.thread_time()
        if self.plan is None or self.plan.assumed or self._off_plan(self.plan, step):
            self._ask(step, total)
        answer = self._newest(step.step)
        took = time.thread_time() - began
        self._spent += took
        self._cost = max(took, 0.8 * self._cost)  # silence comes quicker than a forecast
        self.last = answer
        if isinstance(answer, NoForecast):
            self._silent(answer)
            return
        if answer.rate_assumed and ASSUMING not in self._told:
            self._told.add(ASSUMING)
            self._run.tell(ASSUMED)
        self._told.add(GIVEN_ONCE)
        if self.half_time is None and 2 * step.step >= total:
            self.half_time = (step.step, answer)

    def _follow(self, total: int | None) -> None:
        """A resumed run may have another planned end: what was forecast for the old one says nothing of it."""
        if self._until is not None and total != self._until:
            self.last = self.half_time = self.plan = None
            self._asked, self._earlier, self._final = False, Earlier(), FinalLoss()
        self._until = total

    def _silent(self, missing: NoForecast) -> None:
        self.last = missing
        known = self._told - ({GIVEN_ONCE} if missing.reason is Refusal.LR_UNKNOWN else {GIVEN_ONCE, ASSUMING})
        if not missing.reason.temporary and not known:  # one line: a rise, then a jump, then a flat curve are one cause
            self._told.add(missing.reason.value)
            if missing.reason is not Refusal.NOT_FINITE:  # said where the first such loss was logged
                self._run.tell(f"isoflop: no forecast of the final loss. {missing.message}")

    def close(self, step: LogStep, completed: bool) -> None:
        """Print the half-way forecast of a completed run next to the actual loss, or why no forecast ever came."""
        line = half_time_line(self.half_time, self._final)
        if line is None and self.curve is not None and not self._told - {ASSUMING}:
            why = self.last.message if isinstance(self.last, NoForecast) else TOO_SHORT
            line = f"isoflop: the run ended before there was a forecast of its final loss. {why}"
        if line is not None and completed:
            self._run.tell(line)

    # -- the estimator and the plan ----------------------------------------------------------------------------

    def _make(self, step: LogStep) -> OnlineForecaster:
        sizes = {} if step.parameters is None else step.parameters.by_convention()
        named = describe_optimizer(self._run.optimizer) if one_peak(self._run.optimizer) else None
        curve = OnlineForecaster(
            N=size_of(sizes),
            batch_tokens=step.scalars.get("isoflop/batch_tokens"),
            optimizer=(named or {}).get("class"),
            task=self._run.task,
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
            self._run.guard.once("history= gives the forecast nothing: %s", problem)
            return DEFAULT_PRIORS
        self._ladder = ladder_of(own, DEFAULT_PRIORS)
        return learn_priors(own)

    def _newest(self, step: int) -> Forecast | NoForecast:
        """The curve's own forecast, if it is not far from earlier ones; with a ladder the joint one, from the start."""
        assert self.curve is not None
        self.curve.task = self._run.task  # the first loss may have shown what it is
        if self.plan is None:
            return self._no_plan
        groups = getattr(self._run.optimizer, "param_groups", ())
        if len(groups) > 1 and self._options.lr_plan is None and self._apart(groups):
            why = "the learning rates of the parameter groups follow different schedules"
            return NoForecast(Refusal.LR_UNKNOWN, {"why": why, "remedy": GIVEN})
        found = self._earlier.check(self.curve.forecast(self.plan, self._at), step)
        N, batch = self.curve.N, self.curve.batch_tokens
        helps = isinstance(found, Forecast) or found.reason.temporary
        if helps and self._ladder is not None and N is not None and batch is not None:
            found = self._ladder.forecast(self.plan, N=N, batch_tokens=batch, run=self.curve, step=self._at)
        # the final loss is called that of the last step
        return replace(found, step=self.plan.total_steps) if isinstance(found, Forecast) else found

    def _read_schedule(self, step: LogStep, total: int | None) -> None:
        """What the user gave is known from the first log step, however short the run: it is not a forecast's cost."""
        given = self._options.lr_plan
        if total is None or step.step >= total:
            return
        if not self._asked and (given is not None or self._run.scheduler is not None):
            self._asked = True
            self._ask(step, total)
            if given is not None and self.plan is None and self._no_plan.reason is Refusal.LR_UNKNOWN:
                self._silent(self._no_plan)  # what was given is wrong: there is time to mend it
        elif given is not None and self.plan is not None:
            self.plan = self.plan.scaled_to(*self._seen(step))  # its unit is known once its peak is seen

    def _seen(self, step: LogStep) -> tuple[Array, Array]:
        """Steps and learning rates so far."""
        if self.curve is not None:
            return self.curve.seen_rates()
        steps, rates = ([], []) if step.lr is None else ([step.step], [step.lr])
        return np.array(steps, dtype=float), np.array(rates, dtype=float)

    def _apart(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a group's rate, over its highest, is no longer near the first one's."""
        rates = [float(group.get("lr") or 0.0) for group in groups]
        before = self._peaks if len(self._peaks) == len(rates) else rates
        self._peaks = [max(pair) for pair in zip(rates, before, strict=True)]
        parts = [rate / peak for rate, peak in zip(rates, self._peaks, strict=True) if peak > 0]
        return any(abs(part - parts[0]) > GROUPS for part in parts)

    def _off_plan(self, plan: LrPlan, step: LogStep) -> NoForecast | None:
        """Whether the rate has left the plan; a given one anywhere in the last fifth, lest they cross."""
        steps, rates = (np.array([x], dtype=float) for x in (step.step, step.lr))  # NaN where it is not known
        if self._options.lr_plan is not None:
            steps, rates = self._seen(step)
        off = np.flatnonzero((plan.off(steps, rates) > OFF_PLAN) & (steps >= 0.8 * step.step))
        if not len(off):
            return None
        at = off[-1]
        details = {"step": steps[at], "rate": rates[at], "planned": float(plan.at(steps[at]))}
        return NoForecast(Refusal.LR_OFF_PLAN, details)

    def _ask(self, step: LogStep, total: int) -> None:
        """The plan of the whole run, by the scheduler; where its past was another the estimator has that as it was."""
        self._at = final_step(total, self.on)
        found = self._future(step, total, since=0)
        if isinstance(found, UnknownFuture):  # some know no past
            found = self._future(step, total)
        self.plan = found if isinstance(found, LrPlan) else None
        if isinstance(found, UnknownFuture):
            remedy = "" if self._run.framework != "loop" or self._run.scheduler else "scheduler= or "
            self._no_plan = NoForecast(Refusal.LR_UNKNOWN, {"why": found.reason, "remedy": remedy + GIVEN})
        elif self._options.lr_plan is not None and (off := self._off_plan(found, step)):
            self.plan, self._no_plan = None, off

    def _future(self, step: LogStep, total: int, since: int | None = None) -> LrPlan | UnknownFuture:
        run, given, seen = self._run, self._options.lr_plan, self._seen(step)
        if isinstance(given, str):
            return named_learning_rates(given, total, seen)
        if run.future_unknown and given is None:
            return UnknownFuture(run.future_unknown)
        found = future_learning_rates(
            given or run.scheduler,
            total,
            step=step.step,
            optimizer=run.optimizer,
            calls=run.scheduler_calls,
            since=since,
        )
        if isinstance(found, UnknownFuture) or not (given is not None or run.scheduler is None):
            return found
        if given is not None:
            return found.scaled_to(*seen)
        stays = "schedulefree" in type(run.optimizer).__name__.lower()  # that is its method
        return found if stays else constant_so_far(found, *seen)

    # -- a checkpoint ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values: a restored run forecasts the same, to the bit."""
        return {
            "on": self.on,
            "curve": self._restored if self.curve is None else self.curve.state_dict(),
            "last": _plain(self.last),
            "half_time": None if self.half_time is None else [self.half_time[0], _plain(self.half_time[1])],
            "spent": [self._spent, self._cost],
            "told": sorted(self._told),
            "end": list(self._final),
            "earlier": self._earlier.state,
            "until": self._until,
            "peaks": self._peaks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`, before the first loss; with another `fit_on` the curve begins anew."""
        if state["on"] != self.on:
            return
        self._restored = state["curve"]
        self.last = _answer(state["last"])
        half = state["half_time"]
        answer = None if half is None else _answer(half[1])
        self.half_time = (int(half[0]), answer) if isinstance(answer, Forecast) else None
        self._spent, self._cost = map(float, state["spent"])
        self._told = set(state["told"])
        self._final = FinalLoss(*map(float, state["end"][:3]))  # earlier versions had four sums
        self._earlier = Earlier(state.get("earlier", ()))
        self._until, self._peaks = state.get("until"), list(state.get("peaks", ()))  # not in states of earlier versions


def half_time_line(half_time: tuple[int, Forecast] | None, final: FinalLoss) -> str | None:
    """The forecast of half time beside the final loss, for the terminal; None without either.

    >>> forecast = Forecast(2.412, 2.395, 2.429, 0.012, 0.8, 6000, "isoflop")
    >>> half_time_line((3000, forecast), FinalLoss.of([2.405]))
    'isoflop: forecast at step 3,000: 2.412 (80%: 2.395 to 2.429) · final loss 2.405: 0.3% below, inside the interval'
    """
    if half_time is None or final.mean is None:
        return None
    step, forecast = half_time
    between = f"{forecast.level:.0%}: {forecast.low:.3f} to {forecast.high:.3f}"
    outcome = Outcome(forecast, final.mean, final.error)
    return f"isoflop: forecast at step {step:,}: {forecast.loss:.3f} ({between}) · final loss {outcome}"


def _plain(answer: Forecast | NoForecast | None) -> dict[str, Any] | None:
    if isinstance(answer, NoForecast):
        details = {name: value if isinstance(value, str) else float(value) for name, value in answer.details.items()}
        return {"kind": "NoForecast", "reason": answer.reason.value, "details": details}  # no scalars of NumPy
    return None if answer is None else {"kind": "Forecast", **asdict(answer)}


def _answer(plain: Mapping[str, Any] | None) -> Forecast | NoForecast | None:
    """What `_plain` gave; None for a reason of an earlier version, which is asked again at the next refit."""
    kind = None if plain is None else plain["kind"]
    if plain is None or kind not in ("Forecast", "NoForecast"):
        return None
    if kind == "NoForecast":
        return NoForecast(Refusal(plain["reason"]), plain["details"])  # type: ignore[call-arg]
    values: dict[str, Any] = {name: value for name, value in plain.items() if name != "kind"}
    return Forecast(**{**values, "basis": tuple(values["basis"])})
