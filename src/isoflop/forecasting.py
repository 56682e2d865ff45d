"""Forecasts the loss at a run's planned end while it trains: feeds the estimator, asks the scheduler, costs little.

Runs on the rank that writes, at log steps only. The estimator is `isoflop.fit.forecast.OnlineForecaster`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from isoflop.entries import describe_model, describe_optimizer
from isoflop.fit.forecast import DEFAULT_PRIORS, Forecast, LearningRatePlan, OnlineForecaster, Priors, Silence
from isoflop.fit.forecast.ranking import scalars_of
from isoflop.fit.forecast.records import domain_of, priors_from, size_of
from isoflop.guard import Guard, declare
from isoflop.observe.schedule import TOLERANCE, LearningRates, UnknownFuture, future_learning_rates
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


class Forecasting:
    """One run's forecast.

    Args:
        options: `fit_on`, `history` and `lr_plan` of them.
        setup: plan, optimizer and scheduler of the run.
        guard: whose boundary "forecasting the loss" all of this is behind.
        planned: is told the learning rates of the whole run, for the record's header.
    """

    def __init__(
        self, options: Options, setup: Setup, guard: Guard, planned: Callable[[LearningRatePlan], None]
    ) -> None:
        self.last: Forecast | Silence | None = None
        """The newest answer; None before the first."""
        self.half_time: tuple[int, Forecast] | None = None
        """Step and forecast of the first refit in the second half of the run."""
        self.on = options.fit_on or "train"
        """The loss that is forecast."""
        self._options, self._setup, self._guard, self._planned = options, setup, guard, planned
        self._curve: OnlineForecaster | None = None
        self._restored: Mapping[str, Any] | None = None  # of the curve, until it is made
        self._plan: LearningRatePlan | None = None
        self._unknown = ""
        self._asked = False
        self._spliced = False  # of a past as it was logged, which the scheduler does not tell
        self._before: LearningRatePlan | None = None  # the plan of a checkpoint
        self._seen: list[tuple[int, float]] = []  # steps and their learning rates
        self._rate: float | None = None
        self._spent, self._cost = 0.0, FIRST_COST
        self._told: set[str] = set()
        self._end = (0.0, 0)  # sum and number of the losses in the run's last part

    @property
    def scalars(self) -> dict[str, float]:
        """The newest forecast by the names of `isoflop.show.scalars.SCALARS`; empty where there is none."""
        return scalars_of(self.last) if isinstance(self.last, Forecast) else {}

    @property
    def came(self) -> float | None:
        """The loss that the run ended with: the mean over its last 2%; None before."""
        return self._end[0] / self._end[1] if self._end[1] else None

    # -- log steps ---------------------------------------------------------------------------------------------

    def loss(self, kind: str, step: int, tokens: int | None, loss: float | None, count: int, about: About) -> None:
        """A loss, the mean over `count` optimizer steps up to `step`; of another kind than is fitted: nothing.

        Args:
            kind: "train" or "eval/<name>".
            step: optimizer steps done.
            tokens: D so far, less padding.
            loss: in nats per token.
            count: optimizer steps behind it.
            about: the run, for the first one.
        """
        if kind != self.on or loss is None or not self._guard.open(FORECAST):
            return
        with self._guard.part(FORECAST):
            total = self._setup.total_steps
            if total is not None and step > (1 - TAIL) * total:
                self._end = (self._end[0] + loss * count, self._end[1] + count)
            if not tokens:
                self._silent(Silence("tokens unknown", "its tokens are not counted"))
                return
            if self._curve is None:
                self._curve = self._make(about)
            self._curve.add(step, tokens, self._rate, loss, count)

    def rate(self, step: int, lr: Any) -> None:
        """The learning rate of the step just done: a number or a tensor."""
        if lr is None or self.on == "off" or not self._guard.open(FORECAST):
            return
        with self._guard.part(FORECAST):
            self._rate = number(lr)
            seen = self._seen
            if len(seen) < 2 or step - seen[-1][0] >= (seen[-1][0] - seen[0][0]) / MOST_SEEN:
                seen.append((step, self._rate))
            if len(seen) > MOST_SEEN:
                del seen[1:-1:2]

    def refit(self, step: int, wall_time: float) -> None:
        """Forecast anew, if all refits together stay under their share of the wall time (seconds)."""
        total = self._setup.total_steps
        if self._curve is None or not self._guard.open(FORECAST):
            return
        with self._guard.part(FORECAST):
            if total is None:
                self._silent(Silence("no planned end", "its length is not known; pass total_steps="))
                return
            if step >= total - 1 or self._spent + self._cost > SHARE * wall_time:
                return
            began = time.perf_counter()
            if self._plan is None or self._off_plan(step):
                self._ask(step, total)
                if not self._asked:  # once a run; if it has to be done again and again, that counts
                    self._asked, began = True, time.perf_counter()
            answer = self._curve.forecast(self._plan) if self._plan else Silence("learning rate unknown", self._unknown)
            self._cost = time.perf_counter() - began
            self._spent += self._cost
            self.last = answer
            if isinstance(answer, Silence):
                self._silent(answer)
            elif self.half_time is None and 2 * step >= total:
                self.half_time = (step, answer)

    def _silent(self, silence: Silence) -> None:
        self.last = silence
        if silence.reason not in PASSING and silence.reason not in self._told:
            self._told.add(silence.reason)
            self._setup.tell(f"isoflop: no forecast of this run's final loss: {silence.message}")

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
        if not self._options.history_paths:
            return DEFAULT_PRIORS
        priors, problem = priors_from(self._options.history_paths, DEFAULT_PRIORS, self.on)
        if problem:
            self._guard.once("history= gives the forecast nothing: %s", problem)
        return priors

    def _off_plan(self, step: int) -> bool:
        assert self._plan is not None
        return self._rate is not None and not _on(self._plan, step, self._rate)

    def _ask(self, step: int, total: int) -> None:
        """The plan of the whole run: the future as the scheduler says, the past as it was."""
        before, self._plan, self._spliced = self._before, None, False
        self._before = None
        ahead = self._future(step, total)
        if isinstance(ahead, UnknownFuture):
            remedy = "" if self._setup.framework != "loop" or self._setup.scheduler else "scheduler= or "
            self._unknown = f"{ahead.reason}. Pass {remedy}lr_plan=, a function of the step, to get one"
            return
        if before is not None and before.total_steps == total and _agree(before, ahead):
            self._plan, self._spliced = before, True  # the past as the checkpoint has it
            return
        whole = self._future(step, total, since=0)
        if isinstance(whole, LearningRates) and whole.lr.max() > 0:
            plan = LearningRatePlan(whole.steps, whole.lr)
            if all(_on(plan, at, rate) for at, rate in self._seen):
                self._plan = plan
        if self._plan is None:
            past = [(at, rate) for at, rate in self._seen if at <= step]
            steps, rates = zip(*past, strict=True) if past else ((), ())
            self._plan = LearningRatePlan(np.array([*steps, *ahead.steps]), np.array([*rates, *ahead.lr]))
            self._spliced = True
        self._planned(self._plan)

    def _future(self, step: int, total: int, since: int | None = None) -> LearningRates | UnknownFuture:
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

    def state_dict(self) -> dict[str, Any]:
        """Plain values: a restored run forecasts the same, to the bit."""
        return {
            "on": self.on,
            "curve": self._restored if self._curve is None else self._curve.state_dict(),
            "last": _plain(self.last),
            "half_time": None if self.half_time is None else [self.half_time[0], _plain(self.half_time[1])],
            "plan": plan_in_full(self._plan) if self._plan is not None and self._spliced else None,
            "seen": [list(pair) for pair in self._seen],
            "spent": [self._spent, self._cost],
            "told": sorted(self._told),
            "end": list(self._end),
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
        plan = state["plan"]
        self._before = None if plan is None else LearningRatePlan(np.array(plan["steps"]), np.array(plan["lr"]))
        self._seen = [(int(step), float(rate)) for step, rate in state["seen"]]
        self._rate = self._seen[-1][1] if self._seen else None
        self._spent, self._cost = map(float, state["spent"])
        self._told = set(state["told"])
        self._end = (float(state["end"][0]), int(state["end"][1]))


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


def plan_for_record(plan: LearningRatePlan) -> dict[str, Any]:
    """A plan in plain values, thinned to some hundred knots: {"steps", "lr"}."""
    keep = np.arange(len(plan.steps))
    if len(keep) > MOST_SEEN:
        keep = np.unique(np.linspace(0, len(keep) - 1, MOST_SEEN).round().astype(int))
    return plan_in_full(LearningRatePlan(plan.steps[keep], plan.lr[keep]))


def plan_in_full(plan: LearningRatePlan) -> dict[str, Any]:
    """A plan in plain values, from which it is made again to the bit: {"steps", "lr"}."""
    return {"steps": [int(step) for step in plan.steps], "lr": [float(rate) for rate in plan.lr]}


def _on(plan: LearningRatePlan, step: int, rate: float) -> bool:
    """Whether a rate is the plan's; where it was read after the scheduler's step, it is the next step's."""
    return bool(np.min(np.abs(plan.at([step, step + 1]) - rate)) <= OFF_PLAN * plan.peak)


def _agree(plan: LearningRatePlan, ahead: LearningRates) -> bool:
    return bool(np.abs(plan.at(ahead.steps) - ahead.lr).max() <= 2 * TOLERANCE * plan.peak)


def _plain(answer: Forecast | Silence | None) -> dict[str, Any] | None:
    return None if answer is None else {"kind": type(answer).__name__, **asdict(answer)}


def _answer(plain: Mapping[str, Any] | None) -> Forecast | Silence | None:
    if plain is None:
        return None
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in plain.items() if key != "kind"
    }
    return Forecast(**values) if plain["kind"] == "Forecast" else Silence(**values)
