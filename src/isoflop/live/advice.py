"""Advises one run while it trains: builds the situation at log steps, and says what is new wherever it belongs.

Runs on the rank that writes. What it costs in all stays under a thousandth of the wall time, but for a small start.

One run's adviser: completes the situation with the run's past and its forecasts, and asks the evaluators.

The end of a run in a few lines: where the compute went, what the next run should be, what was not judged.

What the monitor knows of a run at a log step, as the advice wants it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from isoflop.advice.advice import Advice, Quantity, Severity, Thresholds, count
from isoflop.advice.adviser import EVALUATORS, PLANNED, Adviser
from isoflop.advice.own_runs import OwnRuns, frontier_of, learn_from, shape_warning
from isoflop.advice.run_state import Batch, Estimate, Evaluated, Expected, Situation, Track
from isoflop.advice.size_rules import BEST_SIZE, planned
from isoflop.flops.config_shape import shape_of, width_of
from isoflop.flops.parameters import Parameters, unwrap
from isoflop.flops.totals import Totals
from isoflop.forecast import Forecast, LrPlan, NoForecast, OnlineForecaster, domain_of, usable
from isoflop.guard import Guard, declare, warn
from isoflop.live.forecast import About, Forecasting
from isoflop.live.header import describe_model
from isoflop.live.noise import NoiseDriver
from isoflop.live.options import Options
from isoflop.live.run_info import Setup
from isoflop.live.sinks import FRONTIER, draw_frontier
from isoflop.record.reader import read_runs

Answer = Forecast | NoForecast | None
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


def closing_lines(
    run: Situation,
    flops: int | None,
    goodput: float | None,
    advice: Sequence[Advice],
    missing: Mapping[str, str],
    shape: Sequence[str] = (),
) -> list[str]:
    """Lines for the terminal; empty where tokens or parameters are unknown.

    Args:
        run: as it ended.
        flops: measured, all ranks.
        goodput: training time over wall time.
        advice: what still held.
        missing: what was not judged, and why.
        shape: why laws may not hold for a shape like the model's.
    """
    if run.N is None or not run.tokens:
        return []
    spent = [f"{count(run.tokens)} tokens through {count(run.N)} parameters (N with the head)"]
    if flops:
        spent.append(f"{count(flops)} FLOPs measured")
    if run.seconds:
        spent.append(str(Quantity("", run.seconds / 3600, "hours")).removeprefix(" = ") + " of training")
    if goodput is not None:
        spent.append(f"goodput {goodput:.0%}")
    lines = [f"isoflop: the run is over: {', '.join(spent)}."]
    # judged as done: what this compute could have bought, and so the next run's size
    done = replace(run, total_steps=run.step, tokens_per_step=run.tokens / max(run.step, 1))
    verdict = planned(done, Thresholds(waste=float("inf")))
    if isinstance(verdict, Advice) and verdict.numbers:  # without, it says that the size can't be judged
        lines.append(f"isoflop: for the next run: {verdict}")
    if shape:
        lines.append(f"isoflop: a note on the model's shape, no verdict: {'; '.join(shape)}.")
    held = [each for each in advice if each.severity >= Severity.INFO]
    if held:
        lines.append("isoflop: stood to the end: " + "; ".join(each.reason.value for each in held) + ".")
    if missing:
        lines.append("isoflop: not judged: " + "; ".join(f"{what} ({why})" for what, why in missing.items()) + ".")
    return lines


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


def situation(
    *,
    step: int,
    totals: Totals,
    parameters: Parameters | None,
    scalars: Mapping[str, float],
    training_time: float,
    loss: float | None,
    noise: NoiseDriver,
    whole: bool = True,
) -> Situation:
    """What the monitor knows at a log step, as the evaluators want it.

    Not `whole`: steps of the run were not counted, so its tokens and its hours are not known.
    """
    loss = loss if loss is not None else scalars.get("isoflop/loss")
    tokens = totals.data_tokens if whole else None
    processed = totals.tokens_known
    flops = totals.flops_known
    return Situation(
        step=step,
        # a model of embeddings alone has no place in laws of N
        N=None if parameters is None else parameters.non_embedding_with_head or None,
        N_non_embedding=None if parameters is None else parameters.non_embedding or None,
        tokens=None if tokens is None else float(tokens),
        tokens_per_step=tokens / step if tokens and step else None,
        flops=flops,
        flops_per_token=flops / processed if flops and processed else None,
        seconds=training_time if whole else None,
        loss=loss,
        batch_wanted=noise.option != "off",
        batch=_batch(noise, tokens, loss, scalars.get("isoflop/batch_tokens")),
    )


def _batch(noise: NoiseDriver, tokens: int | None, loss: float | None, processed: float | None) -> Batch | None:
    size = noise.batch or processed
    if noise.option == "off" or noise.critical is None or not tokens or not size:
        return None
    known = noise.beliefs(tokens, loss)
    scale = noise.noise_scale
    steps = 0 if scale is None else scale.measurements
    if not known[0].source.startswith("measured"):
        return Batch(size, noise.critical, None, known[0], steps, noise.measuring)
    return Batch(size, noise.critical, known[0] if noise.enough else None, known[1], steps, noise.measuring)
