"""Advises one run while it trains: describes the run at each log step, and says what is new.

On the rank that writes. What it costs in all stays under a thousandth of the CPU time, but for a small start.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from isoflop.advice import (
    BEST_SIZE,
    RULES,
    Advice,
    Adviser,
    Evaluated,
    Missing,
    Severity,
    Situation,
    falling_loss,
    nats,
    offsets,
    recipe_line,
)
from isoflop.advice.curve_rules import FEW
from isoflop.fit.own_runs import OwnRuns, Profile, frontier_of, learn_from
from isoflop.flops.operators import shape_of, width_of
from isoflop.flops.parameters import unwrap
from isoflop.forecast import Forecast, NoForecast, Refusal, usable
from isoflop.guard import attempt, declare, warn
from isoflop.laws import published_names
from isoflop.laws.recipes import shape_warning
from isoflop.live.log_step import LogStep, Part
from isoflop.live.options import Options
from isoflop.live.recorder import describe_optimizer
from isoflop.live.run_info import RunInfo, look_again
from isoflop.live.sinks import BATCH, SIZE, closing_lines, frontier_points
from isoflop.record.reader import read_runs
from isoflop.record.task import Task, family_of

published_names()  # reads their file with the module, as code is read: in a training there may be no file handle left
ADVICE = declare("advising", "no further advice")
HISTORY = declare("reading the earlier runs", "advice is based on published sweeps alone")
CALLBACK = declare("on_advice", "your function is not called again")
JUDGING = {name: declare(f"judging {name}", f"no advice on {name}") for name in RULES}

ANOTHER_PLAN = 1.25
"""A factor of the planned tokens beyond which the size is judged anew."""
OFFSET = "isoflop/offset/"
"""Scalars of evaluation sets: their loss less the training loss, the middle one of the last five."""
RISEN = {Refusal.CHANGE_POINT, Refusal.DIVERGING}
"""Why there is no forecast where the loss rose."""
FEW_OFFSETS = 3
"""Evaluations after the first descent that such a scalar needs."""
ONE_RATE = 3.0
"""A factor between the rates of parameter groups from which the first one's does not stand for the run."""
SHARE, FREE = 1e-3, 0.1
"""Of the training's CPU time, and seconds besides, that forecasts and dear rules may take; others judge each look."""


def one_peak(optimizer: Any) -> bool:
    """Whether one rate stands for all parameter groups: those above 0 lie within a factor `ONE_RATE`."""
    groups = attempt(getattr, optimizer, "param_groups", None) or ()
    rates = [float(group["lr"]) for group in groups if group.get("lr")]
    return not rates or max(rates) <= ONE_RATE * min(rates)


class AdvicePart(Part):
    """One run's advice."""

    name = "advice"
    boundary = ADVICE

    def __init__(self, options: Options, run: RunInfo, model: nn.Module | None = None) -> None:
        self.own = OwnRuns()
        """What the user's earlier runs say."""
        self._options, self._run, self._guard, self._model = options, run, run.guard, model
        self._judge = Adviser(options.thresholds, lambda name, error: run.guard.failed(JUDGING[name], error))
        self._spent = 0.0
        self._started = False
        self._own_profile: Profile | None = None
        self._weights = WeightWatch(model)
        self._config = None if model is None else attempt(getattr, unwrap(model), "config", None)
        self._width = None if self._config is None else attempt(width_of, self._config)
        self._by_hand = run.framework == "loop"  # nobody but the loop can end the run
        self._settings = describe_optimizer(run.optimizer) or {}
        self._highest = 0.0
        self._unchanged: int | None = None  # step since which no weight has changed
        self._said_task: dict[str, Any] | None = None
        self._judged: tuple[float | None] | None = None  # planned tokens that the size was judged at
        self._told_missing = False
        self._until: int | None = None  # the planned end that was judged
        self._evaluations: dict[str, list[Evaluated]] = {}
        self._evaluated = self._looked_at = 0  # losses of them, and at the last look
        self._broken: dict[str, Evaluated] = {}  # the last one, where it is no number
        self._scalars: dict[str, float] = {}
        """`isoflop/n_opt`; `isoflop/frontier_loss` and `isoflop/excess_loss` where own runs determine a law."""

    @property
    def current(self) -> tuple[Advice, ...]:
        """Active advice, most severe first."""
        return self._judge.current

    @property
    def missing(self) -> tuple[Missing, ...]:
        """What can't be judged → why."""
        return self._judge.missing

    # -- log steps ---------------------------------------------------------------------------------------------

    def log(self, step: LogStep) -> None:
        """Feed the step in; where the run is to be judged as it stands, say what is new and act on it."""
        self._highest = max(self._highest, step.lr or 0.0)
        if first := not self._started:
            self._start(step)
            if step.whole and not step.before.steps and step.first_loss is not None and usable(step.first_loss):
                self._judge.track.first = 1, step.first_loss
        total, scalars = self._run.total_steps, step.scalars
        seen = step.plan, total, step.forecast, self._evaluated, total is not None and step.step >= total
        loss, speed = scalars.get("isoflop/loss", step.loss), scalars.get("isoflop/tokens_per_second_per_device")
        judge = self._judge.feed(step.step, loss, speed, *seen)
        for points in self._evaluations.values():
            if points[-1].step > step.before.steps:  # inside of the interval, whose loss is known only now
                points[-1] = points[-1]._replace(train=self._judge.track.level(points[-1].step))
        if judge:
            self._look(step, first)
        if self.own.posterior is not None:
            self._hold_against_frontier(step)
        if self._scalars:
            scalars.update(self._scalars)

    def _look(self, step: LogStep, first: bool) -> None:
        began, dear = time.thread_time(), self._spent <= FREE + SHARE * step.busy_time
        self._looked_at = self._evaluated
        self._unchanged = self._weights.unchanged_since(step.step)
        run = self._situation(step)
        if self._until is not None and run.total_steps != self._until:  # resumed with another plan
            self._judge.replanned()
        self._until = run.total_steps
        planned, before, new = run.planned_tokens, self._judged, []
        # a batch that grows, or a plan made longer, asks for another judgement of the size
        if before is None or (planned and not (before[0] and 1 / ANOTHER_PLAN < planned / before[0] < ANOTHER_PLAN)):
            self._judged, new = (planned,), self._judge.start(run)
        ladder = None if step.ladder is None else partial(_by_ladder, step)
        new += self._judge.look(run, step.forecaster, ladder, dear)
        if dear and not first:  # the first judgement pays for imports
            self._spent += time.thread_time() - began
        if not self._told_missing:
            self._tell_missing(run)
        step.advice, step.stop = tuple(new), any([self._say(advice) for advice in new])

    def _start(self, step: LogStep) -> None:
        """Once in a process, however long it takes: the task and earlier runs."""
        self._started = True
        if self._said_task is None:
            self._run.task = look_again(
                self._run.task, step, self._model, self._run.accumulate or self._run.micro_batches
            )
            self._said_task = self._run.task.as_dict()
            recipe = recipe_line(self._situation(step))
            optimizer = str(self._settings.get("class", ""))
            task = self._run.task.shown(optimizer if family_of([optimizer]) == self._run.task.optimizer else "")
            notes = self._run.notes if step.totals.tokens_known else ()  # of tokens alone there is a noise scale
            self._run.tell(f"isoflop: {'; '.join(filter(None, (task, recipe, *notes)))}.")
        elif step.before.steps:
            self._run.tell(f"isoflop: resumed from step {step.before.steps:,}.")
        self._read_history(self._options.fit_on or "train", self._run.run_id)
        self._run.draw(step.step, frontier_points(frontier_of(self.own.points)))

    def evaluate(self, name: str, loss: float, step: LogStep) -> None:
        """The loss of an evaluation set; of many the middle ones go."""
        if not usable(loss):
            self._broken[name] = Evaluated(step.step, loss)
            return
        self._broken.pop(name, None)
        points = self._evaluations.setdefault(name, [])
        self._evaluated += 1
        points.append(Evaluated(step.step, loss, self._judge.track.level(step.step)))
        if len(points) > 64:
            del points[1:-8:2]
        if len(apart := offsets(points)) >= FEW_OFFSETS:
            self._scalars[f"{OFFSET}{name}"] = float(np.median(apart[-5:]))

    def close(self, step: LogStep, completed: bool) -> None:
        """Judge evaluations that came since the last log step; print where the compute went and what the next run
        should be.
        """
        if self._started and self._evaluated != self._looked_at:
            self._look(step, first=False)
        if step.step:
            ends = {name: [*self._evaluations.get(name, ()), last] for name, last in self._broken.items()}
            losses = tuple(self._judge.track.losses)
            run = replace(self._situation(step), evaluations=self._evaluations | ends, losses=losses)
            missing = self.missing if self._started else [Missing(what, "no log step came") for what in (SIZE, BATCH)]
            known = run, step, self.current, self._judge.gone, missing, self._shape()
            lines = closing_lines(
                *known, self._loss_unjudged(step), self._judge.track.final, self._ended(run), completed
            )
            lines[-1] += "" if self._run.record is None else f" Record: {self._run.record}"
            for line in lines:
                self._run.tell(line)

    def _loss_unjudged(self, step: LogStep) -> str:
        """Why the loss can't be judged; "": it can."""
        if self._judge.track.nonfinite or (step.loss is not None and not usable(step.loss)):
            return "the last training loss is no finite number"
        if self._broken:
            return f"the last loss on {', '.join(self._broken)} is no finite number"
        if len(self._judge.track.losses) < FEW:
            return f"fewer than {FEW} log steps"
        if self._judge.track.lowest <= 0:
            return "it falls below 0: no cross-entropy"
        if isinstance(step.forecast, NoForecast) and step.forecast.reason in RISEN:
            rise = step.forecast.details.get("jump", step.forecast.details.get("rise"))
            if isinstance(rise, float) and rise > 0:
                return f"it rose by {nats(rise, self._run.task.unit)} where the learning rate does not explain it"
        (_, first), (final, _) = self._judge.track.losses[0], self._judge.track.ends()
        return f"it ended at {nats(final)}, where it began: {nats(first)}" if final > 0.99 * first else ""

    def _ended(self, run: Situation) -> str:
        """Where the loss ended above its best; "": it did not, or may."""
        track = self._judge.track
        if falling_loss(run) or track.nonfinite or not 0 < track.lowest < math.inf:
            return ""
        final, best = track.ends()
        return "" if best is None else f"ended at {nats(final)}, above its best of {nats(best[1])} (step {best[0]:,})"

    # -- what is judged ----------------------------------------------------------------------------------------

    def _situation(self, step: LogStep) -> Situation:
        """The run as the rules see it. Of a run that was counted in part, tokens and hours are not known."""
        options, parameters, totals = self._options, step.parameters, step.totals
        tokens, flops = totals.data_tokens if step.whole else None, totals.flops_known
        # a model of embeddings alone has no place in laws of N
        N = None if parameters is None else parameters.non_embedding_with_head or None
        peak = self._highest if step.plan is None else step.plan.peak  # unknown of a plan's shape alone
        return Situation(
            step=step.step,
            total_steps=self._run.total_steps,
            N=N,
            N_non_embedding=None if parameters is None else parameters.non_embedding or None,
            tokens=None if tokens is None else float(tokens),
            tokens_per_step=tokens / step.step if tokens and step.step else None,
            flops=flops,
            flops_per_token=flops / totals.processed if flops and totals.tokens_known else None,
            seconds=step.training_time if step.whole else None,
            price_per_hour=options.price_per_hour,
            task=self._run.task,
            own_flops=self.own.flops,
            own_rates=None if N is None else self.own.rates(N),
            own_profile=self._own_profile,
            width=self._width,
            peak_rate=peak if self._highest and one_peak(self._run.optimizer) else None,
            weight_decay=self._settings.get("weight_decay"),
            decoupled="adamw" in str(self._settings.get("class")).lower(),
            line=self.own.line,
            line_source=self.own.source,
            inference_tokens=options.inference_tokens,
            unique_tokens=options.unique_tokens,
            epoch_steps=self._run.epoch_steps,
            target_loss=options.target_loss,
            intent=options.intent or "optimal",
            loss=step.scalars.get("isoflop/loss", step.loss),
            unchanged_since=self._unchanged,
            looks=tuple(self._judge.track.looks),
            forecast=step.forecast,
            forecast_of=options.fit_on or "train",
            rates=step.plan,
            batch=step.batch if tokens else None,
            batch_wanted=options.noise_scale != "off",
            evaluations=self._evaluations,
        )

    def _read_history(self, loss: str, run_id: str | None) -> None:
        paths = self._options.history_paths
        if not paths or HISTORY in self._guard.aside:
            return
        with self._guard.part(HISTORY):
            self.own = learn_from(
                read_runs(*paths, on_problem=lambda text: None),
                loss="train" if loss == "off" else loss,
                tokenizer=self._run.tokenizer,
                data=self._run.data,
                task=self._run.task,
                itself=run_id,
            )
            self._own_profile = self.own.profile
            if self.own.left_out:
                shown = "; ".join(self.own.left_out[:3])
                more = f"; and {len(self.own.left_out) - 3} more" if len(self.own.left_out) > 3 else ""
                self._run.tell(f"isoflop: earlier runs left out: {shown}{more}")

    def _hold_against_frontier(self, step: LogStep) -> None:
        """At the compute so far; the loss is of the kind that the own runs were fitted on."""
        run = self._situation(step)
        for name in ("isoflop/frontier_loss", "isoflop/excess_loss"):
            self._scalars.pop(name, None)
        least = self.own.least_loss(run.N, run.tokens) if run.N and run.tokens else None
        if least is None:
            return
        self._scalars["isoflop/frontier_loss"] = least
        loss = run.loss
        if run.forecast_of.startswith("eval/"):
            evaluated = self._evaluations.get(run.forecast_of.removeprefix("eval/"))
            loss = evaluated[-1].loss if evaluated and evaluated[-1].step == run.step else None
        if loss is not None and math.isfinite(loss):
            self._scalars["isoflop/excess_loss"] = loss - least

    # -- what is said ------------------------------------------------------------------------------------------

    def _say(self, advice: Advice) -> bool:
        """Print a new piece of advice and act on it; True: the run is to end."""
        if advice.severity >= Severity.WARNING:
            warn("%s", advice)
        elif advice.severity > Severity.NOTE or self.own.line is not None:  # what others' sweeps say is in the record
            self._run.tell(f"isoflop: {advice}")
        best = next((each for each in advice.numbers if each.name == BEST_SIZE), None)
        if best is not None:
            self._scalars["isoflop/n_opt"] = best.value
        action = self._options.on_advice
        if callable(action):
            stop = False
            if CALLBACK not in self._guard.aside:
                with self._guard.part(CALLBACK):
                    stop = bool(action(advice) == "stop")
            return stop
        if action == "stop" and advice.stops:
            ends = "monitor.should_stop is now True, break out of the loop" if self._by_hand else "the run ends"
            warn("on_advice='stop': %s (%s)", ends, advice.reason.value)
            return True
        return False

    def _tell_missing(self, run: Situation) -> None:
        """Once, a tenth into the run: what can't be judged, and why; what is quiet waits for the run's end."""
        if run.warming_up or run.left is None or run.left > 0.9:
            return
        self._told_missing = True
        for each in self.missing:
            if not each.quiet:
                self._run.tell(f"isoflop: no advice on {each.what}: {each.why}")

    def _shape(self) -> tuple[str, ...]:
        """Where the configuration tells layers, width and heads."""
        shape, width = None if self._config is None else shape_of(self._config), self._width
        if shape is None or width is None or self._run.task.unlike_pretraining:
            return ()
        return shape_warning(shape.layers, width, shape.heads)

    # -- a checkpoint ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What was said and what it rests on."""
        return {
            "judge": self._judge.state_dict(),
            "told_missing": self._told_missing,
            "until": self._until,
            "evaluations": {name: [list(point) for point in points] for name, points in self._evaluations.items()},
            "broken": {name: [point.step, point.loss] for name, point in self._broken.items()},
            "spent": self._spent,
            "scalars": dict(self._scalars),
            "task": self._said_task,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`. At the first log step the history is read again: records may have been added."""
        self._judge.load_state_dict(state["judge"])
        self._told_missing = bool(state["told_missing"])
        self._until = state["until"]
        self._evaluations = {
            name: [Evaluated(int(step), float(loss), train) for step, loss, train in points]
            for name, points in state["evaluations"].items()
        }
        self._broken = {name: Evaluated(*point) for name, point in state.get("broken", {}).items()}
        self._spent = float(state["spent"])
        self._scalars = {name: float(value) for name, value in state["scalars"].items()}
        if (said := state.get("task")) is not None:  # a resumed run's first loss says nothing of where it began
            self._said_task, self._run.task = said, Task.from_dict(said)


def _by_ladder(step: LogStep, at: int) -> Forecast | NoForecast | None:
    """What the user's earlier sizes say of the loss at step `at`, whatever this run did; None without a ladder."""
    curve, plan = step.forecaster, step.plan
    if step.ladder is None or plan is None or curve is None or not curve.N or not curve.batch_tokens:
        return None
    return step.ladder.forecast(plan, N=curve.N, batch_tokens=curve.batch_tokens, step=at)


# -- whether training changes any weight -------------------------------------------------------------------------------

TENSORS, ELEMENTS = 32, 4096
"""Whose values are compared, and of each the first ones."""


class WeightWatch:
    """Whether any weight that trains has changed between log steps.

    In-place writes count up a tensor's version, which costs nothing to read. Where no version has moved the values are
    compared as well, for kernels of others write past it: then nothing can be seen, and nothing is concluded.

    Args:
        model: that is trained, wrapped or not; None: nothing is seen.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._watched: list[nn.Parameter] = []
        self._versions: list[int] = []
        self._moves = 0  # the one whose version has moved
        self._since: int | None = None
        self._values: list[torch.Tensor] = []

    def unchanged_since(self, step: int) -> int | None:
        """Step since which no weight has changed; None: some has, or it can't be seen. On one rank, without a sum."""
        moves = self._moves
        if moves < len(self._watched) and self._watched[moves]._version != self._versions[moves]:
            self._versions[moves] = self._watched[moves]._version
            self._since = None
            return None
        return None if self._model is None else attempt(self._compare, self._model, step)

    def _compare(self, model: nn.Module, step: int) -> int | None:
        watched = [each for each in model.parameters() if each.requires_grad]
        versions = [each._version for each in watched]
        same = len(watched) == len(self._watched) and all(map(lambda a, b: a is b, watched, self._watched))
        before, self._watched, self._versions = self._versions, watched, versions
        moved = [i for i, version in enumerate(versions) if not same or version != before[i]]
        if moved or not watched:
            self._moves, self._since = next(iter(moved), 0), None
            return None
        values = _values(watched)
        if self._since is None:
            self._since, self._values = step, values
            return None
        if not all(map(torch.equal, values, self._values)):
            self._model = None  # written past the version
            self._since = None
        return self._since


def _values(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    """Some of this rank's values."""
    some = parameters[:: -(-len(parameters) // TENSORS)]
    shards = (each.to_local() if hasattr(each, "to_local") else each for each in some)
    return [shard.detach().reshape(-1)[:ELEMENTS].clone() for shard in shards]
