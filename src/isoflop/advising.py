"""Advises one run while it trains: builds the situation at log steps, and says what is new wherever it belongs.

Runs on the rank that writes. What it costs in all stays under a thousandth of the wall time, but for a small start.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from isoflop.advise import Advice, Severity, Situation
from isoflop.advise.adviser import EVALUATORS
from isoflop.advise.closing import closing_lines
from isoflop.advise.frontier import BEST_SIZE
from isoflop.advise.own_runs import OwnRuns, frontier_of, learn_from
from isoflop.advise.run_adviser import RunAdviser
from isoflop.advise.situation import Evaluated
from isoflop.entries import describe_model
from isoflop.fit.forecast.bins import usable
from isoflop.fit.forecast.records import domain_of
from isoflop.fit.frontier.shape import shape_warning
from isoflop.forecasting import About, Forecasting
from isoflop.guard import Guard, declare, warn
from isoflop.observe.parameters import unwrap
from isoflop.observe.shape import shape_of, width_of
from isoflop.observe.tally import Totals
from isoflop.options import Options
from isoflop.record import read_runs
from isoflop.setup import Setup
from isoflop.show.frontier import FRONTIER, draw_frontier

ADVICE = declare("advising", "no further advice")
HISTORY = declare("reading the earlier runs", "advice rests on published sweeps alone")
CALLBACK = declare("on_advice", "your function is not called again")
JUDGING = {name: declare(f"judging {name}", f"no advice on {name}") for name in EVALUATORS}

UNLIKE = {
    "moe": "published sweeps are of dense models, and this one has experts: pass history= of your own runs",
    "finetuning": "published sweeps are of training from scratch, and this is fine-tuning",
}
ANOTHER_PLAN = 1.25
"""A factor of the planned tokens beyond which the size is judged anew."""
SHARE, FREE = 1e-3, 0.1
"""Of the wall time, and seconds besides, that judging a run may take."""


class Advising:
    """One run's advice.

    Args:
        options: the user's.
        setup: the run's plan.
        guard: whose boundaries these are.
        forecasting: the run's forecasts.
        put: takes a new piece of advice to the record and to TensorBoard.
        about: what the model is.
        run_id: of this run's record.
    """

    def __init__(
        self,
        options: Options,
        setup: Setup,
        guard: Guard,
        forecasting: Forecasting,
        put: Callable[[Advice], None],
        about: Callable[[], About],
        run_id: Callable[[], str | None],
    ) -> None:
        self.wants_stop = False
        """A new piece of advice asks for the run's end."""
        self.own = OwnRuns()
        self._options, self._setup, self._guard = options, setup, guard
        self._forecasting, self._put, self._about, self._run_id = forecasting, put, about, run_id
        self._judge = RunAdviser(options.thresholds, self._evaluator_failed)
        self._spent = 0.0
        self._started = False
        self._judged: tuple[float | None] | None = None  # planned tokens that the size was judged at
        self._kinds: dict[str, bool] | None = None
        self._told_missing = False
        self._until: int | None = None  # the planned end that was judged
        self._evaluations: dict[str, list[Evaluated]] = {}
        self.scalars: dict[str, float] = {}
        """`isoflop/n_opt`; `isoflop/frontier_loss` and `isoflop/excess_loss` where own runs determine a law."""

    @property
    def current(self) -> tuple[Advice, ...]:
        """What holds now."""
        return self._judge.adviser.current

    def evaluation(self, name: str, step: int, loss: float) -> None:
        """The loss of an evaluation set; of many the middle ones go."""
        if not usable(loss):
            return
        now = self._judge.track.now()
        points = self._evaluations.setdefault(name, [])
        points.append(Evaluated(step, loss, None if now is None else now.mean))
        if len(points) > 64:
            del points[1:-8:2]

    def log(self, run: Situation, speed: float | None, wall_time: float) -> None:
        """A log step.

        Args:
            run: what the monitor knows; options, forecast and past are filled in here.
            speed: tokens/s per device over the interval.
            wall_time: seconds since the run began.
        """
        if not self._guard.open(ADVICE):
            return
        with self._guard.part(ADVICE):
            began = time.perf_counter()
            known = self._whole(run)
            if not self._started:
                self._started = True
                self._read_history()
                self._draw_frontier()
                began = time.perf_counter()  # once, however long it takes to read
                known = self._whole(run)
            if self._until is not None and known.total_steps != self._until:  # resumed with another plan
                self._judge.replanned()
            self._until = known.total_steps
            if self._plan_changed(known.planned_tokens):
                self._say(self._judge.start(known))
            self._hold_against_frontier(known)
            late = self._spent > FREE + SHARE * wall_time
            if not late:
                self._say(self._judge.log(known, self._forecasting.curve, speed, self._forecasting.by_ladder))
                self._tell_missing(known)
            self._spent += time.perf_counter() - began

    def close(self, run: Situation, totals: Totals, goodput: float | None) -> list[str]:
        """Lines for the end of the run: where the compute went, what the next run should be."""
        lines: list[str] = []
        if self._guard.open(ADVICE):
            with self._guard.part(ADVICE):
                lines = closing_lines(
                    self._whole(run), totals.flops_known, goodput, self.current, self._missing(), self._shape()
                )
        return lines

    # -- inside ------------------------------------------------------------------------------------------------

    def _whole(self, run: Situation) -> Situation:
        options = self._options
        return replace(
            run,
            total_steps=self._setup.total_steps,
            rates=self._forecasting.plan,
            forecast=self._forecasting.last,
            forecast_of=self._forecasting.on,
            line=self.own.line,
            line_source=self.own.source,
            inference_tokens=options.inference_tokens,
            unique_tokens=options.unique_tokens,
            target_loss=options.target_loss,
            intent=options.intent or "optimal",
            unlike=next((text for kind, text in UNLIKE.items() if (self._domain() or {}).get(kind)), ""),
            price_per_hour=options.price_per_hour,
            evaluations=self._evaluations,
        )

    def _shape(self) -> tuple[str, ...]:
        """Where the configuration tells layers, width and heads."""
        model = self._about().model
        config = None if model is None else getattr(unwrap(model), "config", None)
        shape, width = (None, None) if config is None else (shape_of(config), width_of(config))
        return () if shape is None or width is None else shape_warning(shape.layers, width, shape.heads)

    def _domain(self) -> dict[str, bool] | None:
        """Of the model itself, not of the forecast: that may be off, or wait for an evaluation."""
        if self._kinds is None:
            about = self._about()
            if about.parameters:
                self._kinds = domain_of(about.parameters, describe_model(about.model))
        return self._kinds

    def _plan_changed(self, tokens: float | None) -> bool:
        """A batch that grows, or a plan made longer, asks for another judgement of the size."""
        before = None if self._judged is None else self._judged[0]
        if self._judged is not None and (
            tokens is None or (before is not None and 1 / ANOTHER_PLAN < tokens / before < ANOTHER_PLAN)
        ):
            return False
        self._judged = (tokens,)
        return True

    def _read_history(self) -> None:
        if not self._options.history_paths or not self._guard.open(HISTORY):
            return
        with self._guard.part(HISTORY):
            setup = self._setup
            runs = read_runs(*self._options.history_paths, on_problem=lambda text: None)
            on = self._forecasting.on
            self.own = learn_from(
                runs,
                loss="train" if on == "off" else on,
                tokenizer=setup.tokenizer,
                data=setup.data,
                domain=self._domain(),
                itself=self._run_id(),
            )
            if self.own.left_out:
                shown = "; ".join(self.own.left_out[:3])
                more = f"; and {len(self.own.left_out) - 3} more" if len(self.own.left_out) > 3 else ""
                setup.tell(f"isoflop: earlier runs left out: {shown}{more}")

    def _draw_frontier(self) -> None:
        frontier = frontier_of(self.own.points)
        if frontier and self._setup.tensorboard is not None and self._guard.open(FRONTIER):
            with self._guard.part(FRONTIER):
                draw_frontier(self._setup.tensorboard, frontier)

    def _hold_against_frontier(self, run: Situation) -> None:
        """At the compute so far; the loss is of the kind that the own runs were fitted on."""
        for name in ("isoflop/frontier_loss", "isoflop/excess_loss"):
            self.scalars.pop(name, None)
        if run.N is None or not run.tokens:
            return
        least = self.own.least_loss(run.N, run.tokens)
        if least is None:
            return
        self.scalars["isoflop/frontier_loss"] = least
        loss = run.loss
        if run.forecast_of.startswith("eval/"):
            evaluated = self._evaluations.get(run.forecast_of.removeprefix("eval/"))
            loss = evaluated[-1].loss if evaluated and evaluated[-1].step == run.step else None
        if loss is not None and math.isfinite(loss):
            self.scalars["isoflop/excess_loss"] = loss - least

    def _say(self, new: list[Advice]) -> None:
        for advice in new:
            if advice.severity >= Severity.WARNING:
                warn("%s", advice)
            else:
                self._setup.tell(f"isoflop: {advice}")
            best = next((each for each in advice.numbers if each.name == BEST_SIZE), None)
            if best is not None:
                self.scalars["isoflop/n_opt"] = best.value
            self._put(advice)
            self._act(advice)

    def _act(self, advice: Advice) -> None:
        action = self._options.on_advice
        if callable(action):
            if self._guard.open(CALLBACK):
                with self._guard.part(CALLBACK):
                    began = time.perf_counter()
                    try:
                        if action(advice) == "stop":
                            self.wants_stop = True
                    finally:
                        self._spent -= time.perf_counter() - began  # the user's own time, not judging's
        elif action == "stop" and advice.stops:
            self.wants_stop = True
            warn("on_advice='stop' ends the run: %s", advice.reason.value)

    def _missing(self) -> Mapping[str, str]:
        return self._judge.adviser.missing

    def _tell_missing(self, run: Situation) -> None:
        """Once, a tenth into the run: what can't be judged, and why; what is quiet waits for the run's end."""
        if self._told_missing or run.warming_up or run.left is None or run.left > 0.9:
            return
        self._told_missing = True
        for what, why in self._judge.adviser.missing_aloud.items():
            self._setup.tell(f"isoflop: no advice on {what}: {why}")

    def _evaluator_failed(self, name: str, error: Exception) -> None:
        self._guard.failed(JUDGING[name], error)

    # -- a checkpoint ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any] | None:
        """Plain values; None where advising has stepped aside."""
        if self._guard.open(ADVICE):
            with self._guard.part(ADVICE):  # its fault must not lose the run's counts
                return {
                    "judge": self._judge.state_dict(),
                    "told_missing": self._told_missing,
                    "until": self._until,
                    "evaluations": {name: [list(p) for p in points] for name, points in self._evaluations.items()},
                    "spent": self._spent,
                    "scalars": dict(self.scalars),
                }
        return None

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from `state_dict()`. At the first log step the history is read again: records may have been added."""
        if not state or not self._guard.open(ADVICE):
            return
        with self._guard.part(ADVICE):
            self._judge.load_state_dict(state["judge"])
            self._told_missing = bool(state["told_missing"])
            self._until = state["until"]
            self._evaluations = {
                name: [Evaluated(int(step), float(loss), train) for step, loss, train in points]
                for name, points in state["evaluations"].items()
            }
            self._spent = float(state["spent"])
            self.scalars = {name: float(value) for name, value in state["scalars"].items()}
