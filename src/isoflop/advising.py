"""Advises one run while it trains: builds the situation at log steps, and says what is new wherever it belongs.

Runs on the rank that writes. What it costs in all stays under a thousandth of the wall time, but for a small start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from isoflop.advise import Advice, Reason, Severity, Situation
from isoflop.advise.adviser import EVALUATORS
from isoflop.advise.closing import closing_lines
from isoflop.advise.own_runs import OwnRuns, frontier_of, learn_from
from isoflop.advise.run_adviser import RunAdviser
from isoflop.advise.situation import Batch
from isoflop.forecasting import Forecasting
from isoflop.guard import Guard, declare, logger
from isoflop.noise import NoiseDriver
from isoflop.observe.parameters import Parameters
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
    """

    def __init__(
        self,
        options: Options,
        setup: Setup,
        guard: Guard,
        forecasting: Forecasting,
        put: Callable[[Advice], None],
    ) -> None:
        self.wants_stop = False
        """A new piece of advice asks for the run's end."""
        self.run_id: str | None = None
        """Of this run's own record, which is no earlier run."""
        self.own = OwnRuns()
        self._options, self._setup, self._guard = options, setup, guard
        self._forecasting, self._put = forecasting, put
        self._judge = RunAdviser(options.thresholds, self._evaluator_failed)
        self._spent = 0.0
        self._started = False
        self._told_missing = False
        self._until: int | None = None  # the planned end that was judged
        self._evaluations: dict[str, list[tuple[int, float]]] = {}
        self.scalars: dict[str, float] = {}
        """What stays the same over the run: `isoflop/n_opt`."""

    @property
    def current(self) -> tuple[Advice, ...]:
        """What holds now."""
        return self._judge.adviser.current

    def evaluation(self, name: str, step: int, loss: float) -> None:
        """The loss of an evaluation set; of many the middle ones go."""
        points = self._evaluations.setdefault(name, [])
        points.append((step, loss))
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
            if not self._started and known.tokens_per_step:
                self._started = True
                self._read_history()
                self._draw_frontier()
                began = time.perf_counter()  # once, however long it takes to read
                known = self._whole(run)
                self._say(self._judge.start(known))
            elif self._until is not None and known.total_steps != self._until:  # resumed with another plan
                self._judge.replanned()
                self._say(self._judge.start(known))
            self._until = known.total_steps
            late = self._spent > FREE + SHARE * wall_time
            if not late:
                self._say(self._judge.log(known, self._forecasting.curve, speed))
                self._tell_missing(known)
            self._spent += time.perf_counter() - began

    def close(self, run: Situation, totals: Totals, goodput: float | None) -> list[str]:
        """Lines for the end of the run: where the compute went, what the next run should be."""
        lines: list[str] = []
        if self._guard.open(ADVICE):
            with self._guard.part(ADVICE):
                lines = closing_lines(self._whole(run), totals.flops_known, goodput, self.current, self._missing())
        return lines

    # -- inside ------------------------------------------------------------------------------------------------

    def _whole(self, run: Situation) -> Situation:
        options = self._options
        return replace(
            run,
            total_steps=self._setup.total_steps,
            rates=self._forecasting.plan,
            forecast=self._forecasting.last,
            line=self.own.line,
            line_source=self.own.source,
            inference_tokens=options.inference_tokens,
            unique_tokens=options.unique_tokens,
            target_loss=options.target_loss,
            intent=options.intent or "optimal",
            unlike=next((UNLIKE[kind] for kind in UNLIKE if kind in self._domain()), ""),
            price_per_hour=options.price_per_hour,
            evaluations=self._evaluations,
        )

    def _domain(self) -> frozenset[str]:
        curve = self._forecasting.curve
        return frozenset() if curve is None else curve.domain

    def _read_history(self) -> None:
        if not self._options.history_paths or not self._guard.open(HISTORY):
            return
        with self._guard.part(HISTORY):
            setup = self._setup
            runs = read_runs(*self._options.history_paths, on_problem=lambda text: None)
            runs = [run for run in runs if run.run_id != self.run_id]
            self.own = learn_from(runs, loss=self._forecasting.on, tokenizer=setup.tokenizer, data=setup.data)
            if self.own.left_out:
                shown = "; ".join(self.own.left_out[:3])
                more = f"; and {len(self.own.left_out) - 3} more" if len(self.own.left_out) > 3 else ""
                setup.tell(f"isoflop: earlier runs left out: {shown}{more}")

    def _draw_frontier(self) -> None:
        frontier = frontier_of(self.own.points)
        if frontier and self._setup.tensorboard is not None and self._guard.open(FRONTIER):
            with self._guard.part(FRONTIER):
                draw_frontier(self._setup.tensorboard, frontier)

    def _say(self, new: list[Advice]) -> None:
        for advice in new:
            if advice.severity >= Severity.WARNING:
                logger.warning("isoflop: %s", advice)
            else:
                self._setup.tell(f"isoflop: {advice}")
            best = next((each for each in advice.numbers if each.name == "N of least compute"), None)
            if best is not None and advice.reason in (Reason.FRONTIER, Reason.TOO_LARGE, Reason.TOO_SMALL):
                self.scalars["isoflop/n_opt"] = best.value
            self._put(advice)
            self._act(advice)

    def _act(self, advice: Advice) -> None:
        action = self._options.on_advice
        if callable(action):
            if self._guard.open(CALLBACK):
                with self._guard.part(CALLBACK):
                    self.wants_stop |= action(advice) == "stop"
        elif action == "stop" and advice.stops:
            self.wants_stop = True
            logger.warning("isoflop: on_advice='stop' ends the run: %s", advice.reason.value)

    def _missing(self) -> Mapping[str, str]:
        return self._judge.adviser.missing

    def _tell_missing(self, run: Situation) -> None:
        """Once, a tenth into the run: what can't be judged, and why; what is quiet waits for the run's end."""
        if self._told_missing or run.warming_up or (run.left or 1.0) > 0.9:
            return
        self._told_missing = True
        for what, why in self._judge.adviser.missing_aloud.items():
            self._setup.tell(f"isoflop: no advice on {what}: {why}")

    def _evaluator_failed(self, name: str, error: Exception) -> None:
        self._guard.failed(JUDGING[name], error)

    # -- a checkpoint ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "judge": self._judge.state_dict(),
            "started": self._started,
            "told_missing": self._told_missing,
            "until": self._until,
            "evaluations": {name: [list(p) for p in points] for name, points in self._evaluations.items()},
            "spent": self._spent,
            "scalars": dict(self.scalars),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`. The history is read again: records may have been added."""
        self._judge.load_state_dict(state["judge"])
        self._told_missing = bool(state["told_missing"])
        self._until = state.get("until")  # not in states of earlier versions
        self._evaluations = {
            name: [(int(step), float(loss)) for step, loss in points] for name, points in state["evaluations"].items()
        }
        self._spent = float(state["spent"])
        self.scalars = {name: float(value) for name, value in state["scalars"].items()}
        if state["started"]:
            self._started = True
            self._read_history()


def situation(
    *,
    step: int,
    totals: Totals,
    parameters: Parameters | None,
    scalars: Mapping[str, float],
    training_time: float,
    loss: float | None,
    noise: NoiseDriver,
) -> Situation:
    """What the monitor knows at a log step, as the evaluators want it."""
    loss = loss if loss is not None else scalars.get("isoflop/loss")
    tokens = totals.data_tokens
    processed = totals.tokens_known
    flops = totals.flops_known
    return Situation(
        step=step,
        N=None if parameters is None else parameters.non_embedding_with_head,
        N_non_embedding=None if parameters is None else parameters.non_embedding,
        tokens=None if tokens is None else float(tokens),
        tokens_per_step=tokens / step if tokens and step else None,
        flops_per_token=flops / processed if flops and processed else None,
        seconds=training_time,
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
