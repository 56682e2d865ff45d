"""Measures the gradient noise scale of one run, on as many steps as a small share of the training time pays for.

The same steps on every rank. What is measured is averaged over the run and compared with what published runs say of
the critical batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from isoflop.advice import Batch
from isoflop.flops.parameters import unwrap
from isoflop.flops.tokens import TokenCount
from isoflop.flops.totals import world_size
from isoflop.guard import Guard, declare, hook
from isoflop.live.log_step import LogStep, Part
from isoflop.live.run_info import RunInfo
from isoflop.noise.critical_batch import (
    RAW_BELOW,
    Belief,
    agree,
    beliefs,
    bytes_per_token,
    combine,
    measured_critical_batch,
    steps_over_minimum,
    tokens_over_minimum,
)
from isoflop.noise.estimator import (
    MAX_WAITING,
    WIDTH,
    Measured,
    NoiseScale,
    Number,
    RunningMoments,
    StepEstimate,
    Unusable,
    packed,
    read,
    result,
    unpacked,
)
from isoflop.noise.sources import HOOKS, Cadence, MicroBatches, StepTimes, choose_source, denominators, settled
from isoflop.noise.split import Unsplittable, batch_size, compare, halves, refusal

MEASURING = "measuring the noise scale"
SPLIT_EVERY = 32
"""Of split steps, whose rounding differs: they must not depend on the clock."""

ALONE = (
    "no gradient noise scale: one micro-batch a step on one device has no parts to compare "
    '(noise_scale="split": docs/noise-scale.md)'
)
UNSPLIT = (
    'no gradient noise scale: noise_scale="split" in a plain loop needs the batch to go through monitor.split: '
    "for part, share in monitor.split(batch): (share * loss_of(model(part))).backward()"
)
MIN_STEPS = 3  # before it is said that there is one part only: the first window may be a short one
MAX_UNUSABLE = 3
IN_VAIN = 60  # measurements without Adam's metric after which the raw one is the headline
ENOUGH = 20  # measurements before anything is worth a line


class Half(NamedTuple):
    """Half of a step's batch."""

    batch: Any
    share: float  # of the step's loss, where that is a mean over its tokens
    tokens: Number | None


class Noise(Part):
    """The noise scale of one run; every rank makes the same calls at the same steps.

    Most steps are not measured, and those cost nothing: `begin` is called only where the step is `armed`, and `step`
    only where it is `active` and `next_step` has come, or there were not as many micro-batches as `forwards`.

    Args:
        model: the model that is trained; None: the prior alone.
        run: optimizer, scaler, data-parallel size, where to say something.
        option: `noise_scale=`.
        speaks: whether this rank says what is missing.
    """

    name = "noise"
    boundary = declare("the critical batch", "no critical batch size")

    def __init__(self, model: nn.Module | None, run: RunInfo, option: str, speaks: bool) -> None:
        self.option = option
        self.guard: Guard = run.guard
        self.active = option != "off" and model is not None
        """Steps may be measured: nothing stands against it, as far as is known."""
        self.armed = False
        """This step is measured."""
        self.marked = 0
        """Micro-batches of the step that runs by `Monitor.accumulate`, less the forward calls in them."""
        self.forwards = -1
        """Of the last step that `step` was called for."""
        self.next_step: float = 0
        """The optimizer step after which `step` is to be called again."""
        self.raw, self.preconditioned = RunningMoments(), RunningMoments()
        """(|G|², tr Σ) of the measured steps; in Adam's metric."""
        self.cadence = Cadence(every=SPLIT_EVERY, fixed=True) if option == "split" else Cadence()
        self.reasons: dict[str, int] = {}
        """Why measured steps gave no value → how many."""
        self.batch: float | None = None
        """Tokens of the last measured step, all ranks, in the unit of B_simple."""
        self.critical: Belief | None = None
        """Of B_crit at the last log step."""
        self._run, self._speaks = run, speaks
        self._model = None if model is None else unwrap(model)
        self._token_bytes = bytes_per_token(self._model)
        self._source: MicroBatches | None = None
        self._chosen = not self.active
        self._waiting: list[Measured] = []
        self._rows: list[Measured] = []  # those that are being summed
        self._expected: int | None = None  # backward passes a step
        self._by_tokens = False
        self._settled = False
        self._may_split = self._compared = self._splitting = False
        self._keeps_v, self._in_vain = False, 0
        self._unmeasured = 0
        self._seconds = 0.0  # spent on the host since the last log step
        self._times = StepTimes()
        self._logged = (0, 0.0)  # updates and tokens of the last log step
        self._collected = (0, time.process_time())  # updates and CPU seconds likewise
        self._minimum = [0.0, 0.0]  # S_min and E_min so far
        self._told: set[str] = set()

    # -- while a step runs ---------------------------------------------------------------------------------------

    @hook(MEASURING, "no gradient noise scale")
    def begin(self, count: TokenCount | None, by_tokens: bool | None = None) -> None:
        """A micro-batch of a measured step goes in, with its tokens on this rank; None: unknown.

        `by_tokens`: its loss is its share of a mean over the step's tokens (True), or a mean of its own (False).
        """
        if by_tokens is not None:
            self._by_tokens = by_tokens
        if self._source is not None:
            self._source.begin(weight(count))

    def by_tokens(self) -> None:
        """The micro-batches' losses are shares of a mean over the step's tokens."""
        self._by_tokens = True

    @property
    def splits(self) -> bool:
        """Whether this step is to be split: opt-in, due, and without parts of its own."""
        return (
            self.option == "split"
            and self.armed
            and self._source is not None
            and self._source.problem is None
            and self._expected == 1
            and not self._splitting
            and world_size() == 1
        )

    @hook("splitting the step", "no step is split")
    def halves(
        self,
        batch: Any,
        count: Callable[[Any], TokenCount | None],
        losses: Callable[[list[Any]], Sequence[Any]] | None = None,
    ) -> list[Half] | None:
        """The batch of a step that is to be split, in two; None: this step is not.

        Args:
            batch: sequences along the first dimension of each tensor.
            count: tokens of a batch. Where labels differ their numbers are read here: the one wait outside of a log
                step, and on split steps alone.
            losses: of batches, for the one check that the halves' make up the whole's; None: no check.
        """
        if not self.splits or HOOKS in self.guard.aside:
            return None
        assert self._model is not None
        if not self._may_split:
            reason = refusal(self._model)
            if reason is not None:
                self.refuse(reason)
                return None
            self._may_split = True
        try:
            parts = halves(batch)
        except Unsplittable as error:
            self._say(f"a measured step is left out: {error}")
            self._disarm()
            return None
        weights = [weight(count(part)) for part in parts]
        sizes = [batch_size(part) or 0 for part in parts]
        known = [float(size if w is None else w) for w, size in zip(weights, sizes, strict=True)]
        if min(known) <= 0:  # a mean over no labels would be NaN
            self._disarm()
            return None
        shares = [value / sum(known) for value in known]
        if losses is not None and not self._compared:
            self._compared = True
            reason = compare(self._model, lambda: losses([batch, *parts]), shares[0])
            if reason is not None:
                self.refuse(reason)
                return None
        self._splitting = True
        return [Half(part, share, w) for part, share, w in zip(parts, shares, weights, strict=True)]

    def begin_half(self, half: Half, first: bool) -> None:
        """Where no forward call of the model is seen (Lightning): this half is on its way."""
        if self._source is not None and self.armed:
            (self._source.restart if first else self._source.begin)(half.tokens)

    def refuse(self, reason: str) -> None:
        """The step can't be split, or no longer: say why, once, and measure no more."""
        self._say(f"no gradient noise scale: {reason}")
        self.detach()

    @hook(MEASURING, "no gradient noise scale")
    def step(self, step: int, tokens: int | TokenCount | None, batches: int) -> None:
        """The optimizer has made its step number `step`; the next is made ready for.

        Args:
            step: it.
            tokens: of the step on this rank, where the user gave them.
            batches: its micro-batches.
        """
        if not self._chosen:
            self._choose()
        batches = 1 if self._splitting else batches
        was_split, self._splitting = self._splitting, False
        if self._source is None:
            return
        self._times.add(step, time.process_time(), self.armed)
        if self.armed:
            if self.option == "split" and self._run.framework == "loop" and batches == 1 and not was_split:
                self._unmeasured += world_size() == 1
                if self._unmeasured == MIN_STEPS:
                    self._say(UNSPLIT)
            given = weight(tokens) if isinstance(tokens, TokenCount) else tokens
            self._take(step, None if given is None else float(given))
            if was_split:
                self._by_tokens = True
        if self._expected is None or batches != self.forwards:
            self._expected = self.forwards = self._run.micro_batches = (
                batches  # until a measured step shows how many were backward
            )
        alone = batches > 0 and world_size() == 1 and self._expected < 2 and self.option != "split"
        if alone:
            self._unmeasured += 1
            self._run.notes = [ALONE] if self._unmeasured >= MIN_STEPS else []
        elif batches and len(self._waiting) < MAX_WAITING and self.cadence.due(step + 1):
            self._arm()
        self._sleep(step, math.inf if alone and self._unmeasured >= MIN_STEPS else 0)

    def _sleep(self, step: int, least: float = 0) -> None:
        """Until two steps before the next that may be measured: of these the first is timed, too."""
        every = self.cadence.every
        self.next_step = max(least, step + 1, (step // every + 1) * every - 2)

    def _arm(self) -> None:
        assert self._source is not None
        alone = self.option == "split" and world_size() == 1 and self._expected == 1
        parameters = list(self._source.parameters)
        by = denominators(self._run.optimizer, parameters) if self._settled else {}
        self._source.arm(2 if alone else self._expected or 0, by)
        self.armed = True

    def _disarm(self) -> None:
        self.armed = False
        if self._source is not None:
            self._source.disarm()

    def _take(self, step: int, tokens: float | None) -> None:
        source = self._source
        assert source is not None
        problem, parts = source.problem, source.parts
        measured = source.take(step, tokens)
        self.armed = False
        if problem is not None:
            self.refuse(problem)
        elif measured is not None:
            self._waiting.append(measured)
        elif 0 < parts < (self._expected or 0):
            self._expected = parts  # several forward passes a backward pass
        self._seconds += source.seconds

    def _choose(self) -> None:
        self._chosen = True
        assert self._model is not None
        chosen = choose_source(self._model, self.guard, self._scale, self._run.data_parallel)
        if isinstance(chosen, str):
            self.refuse(chosen)
        else:
            self._source = chosen

    def _scale(self) -> torch.Tensor | None:
        scaler = self._run.grad_scaler or getattr(self._run.optimizer, "scaler", None)
        if scaler is None or not scaler.is_enabled():
            return None
        assert self._source is not None
        scaled: torch.Tensor = scaler.scale(torch.ones((), device=self._source.parameters[0].device))
        return scaled

    def detach(self) -> None:
        """Take every hook away, and measure no more."""
        self._disarm()
        self._source, self._chosen, self.active = None, True, False

    # -- at a log step -------------------------------------------------------------------------------------------

    @property
    def nothing(self) -> list[float]:
        """A row without measurements, for sums between log steps: every sum over ranks is of one size."""
        return [0.0] * (2 + WIDTH * MAX_WAITING if world_size() > 1 else 2)

    @hook(MEASURING, "no gradient noise scale")
    def row(self) -> list[float]:
        """What was measured since the last log step, as numbers that add up over ranks; of several as many on each.

        The first two: CPU seconds that it took, and of the interval. One wait a device. Empty where steps are not
        measured, and no other ranks take part.
        """
        if world_size() == 1 and not (self._waiting or (self.active and self.next_step < math.inf)):
            return []
        interval = time.process_time() - self._collected[1]
        waiting, self._waiting, self._rows = self._waiting, [], []
        seconds, self._seconds, self._times.last = self._seconds, 0.0, None
        if waiting:
            seconds = max(seconds, self._times.cost() * len(waiting))
            if HOOKS not in self.guard.aside:
                self._rows = read(waiting)
        if world_size() == 1:
            return [seconds, interval]
        numbers = [seconds, interval, *packed(self._rows)]
        return numbers + self.nothing[len(numbers) :]

    @hook("the noise scale's averages", "no gradient noise scale")
    def fold(self, summed: Sequence[float], step: int) -> None:
        """Take what all ranks have measured: the sums of their rows."""
        ranks = world_size()
        seconds, interval = summed[0] / ranks, summed[1] / ranks
        (before, _), self._collected = self._collected, (step, time.process_time())
        if not self._rows and not (self.active and self.next_step < math.inf):
            return
        rows = self._rows if ranks == 1 else unpacked(summed[2:], self._rows, ranks)
        if not self.guard.aside.keys().isdisjoint((MEASURING, HOOKS)):
            self.detach()
        for row in rows:
            raw, preconditioned = result(row, self._by_tokens)
            if isinstance(raw, Unusable):
                self._unusable(raw)
                continue
            self.batch = raw.tokens
            self.raw.add(raw.gradient, raw.variance)
            if isinstance(preconditioned, StepEstimate):
                self.preconditioned.add(preconditioned.gradient, preconditioned.variance)
            self._in_vain += self._settled  # v has settled, but not of every parameter (several optimizers)
        if seconds or rows:
            self.cadence.adapt(seconds, len(rows), step - before, interval)
        if self._source is not None and not self._settled:
            found = settled(self._run.optimizer)
            self._keeps_v, self._settled = found is not None, bool(found)
        if rows:  # the cadence is another
            self._sleep(step)

    def _unusable(self, why: Unusable) -> None:
        count = self.reasons[why.name] = self.reasons.get(why.name, 0) + 1
        if why is Unusable.NOT_FINITE or count > MAX_UNUSABLE:
            return  # an overflow now and then is mixed precision's way
        unknown = not self._logged[1]  # the run's tokens; without them there is no scale, as is said once
        if why is Unusable.NO_TOKENS and unknown:
            return
        if count == MAX_UNUSABLE and self.raw.count < 10 * count:
            if why is Unusable.NOT_THE_SUM:
                self.raw, self.preconditioned = RunningMoments(), RunningMoments()
                self.detach()
            if not (unknown and self._logged[0]):
                self._say(f"no gradient noise scale from {count} of the measured steps: {why.value}")

    @property
    def noise_scale(self) -> NoiseScale | None:
        """The headline: Adam-preconditioned and averaged over the run; raw where the optimizer keeps no v."""
        return (self.preconditioned if self.is_preconditioned else self.raw).ratio()

    @property
    def is_preconditioned(self) -> bool:
        """Whether the headline is the Adam-preconditioned one."""
        return self.preconditioned.count > 0 or (self._keeps_v and self._in_vain < IN_VAIN)

    @property
    def measuring(self) -> bool:
        """Whether measurements may still come: nothing stands against them, as far as is known."""
        return self.active and (not self._chosen or self._unmeasured < MIN_STEPS or self.raw.count > 0)

    def log(self, step: LogStep) -> None:
        """Adds B_simple, B_crit, what the batch costs, and the batch against the critical one."""
        if self.option == "off":
            return
        preconditioned, raw = self.is_preconditioned, self.raw.ratio()
        scale = self.preconditioned.ratio() if preconditioned else raw
        found = step.scalars
        if scale is not None and scale.value is not None and scale.bounded:
            found |= {"isoflop/b_simple": scale.value, "isoflop/b_simple_high": scale.high}
        if scale is not None and scale.low > 0:
            found["isoflop/b_simple_low"] = scale.low
        if raw is not None and raw.value is not None:
            found["isoflop/b_simple_raw"] = raw.value
        tokens = step.totals.data_tokens
        before, self._logged = self._logged, (step.updates, float(tokens or 0))
        if not tokens:
            return
        known = beliefs(tokens, step.loss, scale, preconditioned, self._token_bytes)
        critical = self.critical = combine(known)
        measured = raw is not None  # else it is the published runs' alone, and no number of this run's
        if measured:
            found |= {"isoflop/b_crit": critical.value, "isoflop/b_crit_sigma": critical.sigma}
        steps, spent = step.updates - before[0], tokens - before[1]
        if steps > 0 and spent > 0:
            batch = self.batch or spent / steps
            self._minimum[0] += steps / steps_over_minimum(batch, critical.value)
            self._minimum[1] += spent / tokens_over_minimum(batch, critical.value)
            if measured:
                found["isoflop/batch_over_b_crit"] = batch / critical.value
                found["isoflop/s_min"], found["isoflop/e_min"] = self._minimum
        step.batch = self._judged(step, scale, known)

    def _judged(self, step: LogStep, scale: NoiseScale | None, known: Sequence[Belief]) -> Batch | None:
        """The batch against the critical one. A measurement counts once there are `ENOUGH`."""
        assert self.critical is not None
        count = 0 if scale is None else scale.measurements
        measured = known[0] if known[0].source.startswith("measured") else None
        prior = known[0] if measured is None else known[1]
        if count < ENOUGH:
            measured = None
        elif measured is not None and not agree(measured, prior):
            self._say(f"measured and published critical batch differ: {measured}; {prior}")
        size = self.batch or step.scalars.get("isoflop/batch_tokens")
        early = None
        if measured is None:  # as the last measured steps bound it from above, long before their averages are known
            for metric, moments, below in ((True, self.preconditioned, 1.0), (False, self.raw, RAW_BELOW)):
                if early is None and (bound := moments.bound()) is not None:
                    early = measured_critical_batch(bound[0] * below, bound[1], preconditioned=metric)
        return Batch(size, self.critical, measured, prior, early, count, self.measuring) if size else None

    # -- around --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The averages; after a log step or not: what waits for the next one is left out."""
        return {
            "raw": self.raw.state_dict(),
            "preconditioned": self.preconditioned.state_dict(),
            "cadence": self.cadence.state_dict(),
            "logged": list(self._logged),
            "collected": self._collected[0],
            "minimum": list(self._minimum),
            "reasons": dict(self.reasons),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.raw = RunningMoments.from_state(state["raw"])
        self.preconditioned = RunningMoments.from_state(state["preconditioned"])
        self.cadence.load_state_dict(state["cadence"])
        step, tokens = state["logged"]
        self._logged = (int(step), float(tokens))
        before = state["collected"]  # with a time in states of earlier versions
        self._collected = (int(before[0] if isinstance(before, list) else before), time.process_time())
        self._minimum = [float(value) for value in state["minimum"]]
        self.reasons = {str(name): int(count) for name, count in state["reasons"].items()}

    def _say(self, text: str) -> None:
        if self._speaks and text not in self._told:
            self._told.add(text)
            self._run.tell(f"isoflop: {text}")


def weight(count: TokenCount | None) -> Number | None:
    """W of a micro-batch: the labels that count in its loss, or where none were seen its tokens less padding."""
    if count is None:
        return None
    return count.processed - count.padding if count.loss_tokens is None else count.loss_tokens
