"""What the steps of one run cost, by their signatures: observed as they run, measured apart, or by a formula.

A step is priced by its segments, a micro-batch each; where these do not determine it (a GAN's turns), as a whole; where
not even that does (a number of generated tokens, layers that are dropped at random), by the mean of what was observed.
Each way that was used is in `Costing.methods`. What is counted does not depend on the clock, so that equal runs have
equal totals.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.utils._pytree import tree_leaves

from isoflop.flops.apart import CAN_FORK, describe_error
from isoflop.flops.calls import Call, Signature, TookTooLong, Uncountable
from isoflop.flops.cost import MAX_KNOWN, RecentMean, Segment, StepCost, first_matrix, joined
from isoflop.flops.count import estimated
from isoflop.flops.counter import NOTHING, FlopCount
from isoflop.flops.measure import Measurement, measure_flops, measure_optimizer
from isoflop.flops.observe import Observation
from isoflop.flops.operators import APART, ESTIMATED, FORMULA, GIVEN, OBSERVED, SIX_ND
from isoflop.flops.parameters import Parameters, Uses, count_parameters, given_parameters
from isoflop.guard import pass_on

FREE = 64
"""Parts of steps that may be observed in any run …"""
SHARE = 53
"""… and further ones, one in so many, in step with no period of a loop: to observe a step takes some tenths of its time
more."""
COMPILED_OPTIMIZER = "compiled code of the optimizer"
NOTICED_LATE = "the model's layers changed between observed steps: until that was noticed, steps count as those before"
BESIDE = "compiled calls; beside them the step is observed"
APART_AT_MOST = 48
"""Shapes measured apart, .2 to 2 s each."""


class Costing:
    """FLOPs of the steps of one run. `say` gets a sentence wherever a user should know more."""

    def __init__(
        self,
        model: nn.Module | None,
        say: Callable[[str], None],
        flops_per_token: float | None = None,
        num_params: int | None = None,
    ) -> None:
        self.model = model
        self.methods: dict[str, str] = {}
        """Each method that was used → why not a better one, or what it leaves open."""
        self.uncounted: set[str] = set()
        """Heavy or custom operators that were counted 0."""
        self.flops_per_token: float | None = flops_per_token
        """Of the first batch that was counted; or as given."""
        # whole FLOPs a token: totals then do not depend on how a batch was split
        self.given = None if flops_per_token is None else max(1, round(flops_per_token))
        if self.given is not None:
            self.methods[GIVEN] = ""
        self.blocked: str | None = None
        """Why no step of this run can be observed."""
        self.problem = "no forward call of the model was seen"
        """Why the last step that came was not."""
        self.whole_steps = False
        """The same micro-batch costs another amount elsewhere in a step."""
        self.waiting: set[Signature] = set()
        """What came and was not observed from its beginning on."""
        self.observed = self.seen = 0
        """Parts of steps, observed and in all."""
        self.optimizer = NOTHING
        """The optimizer's FLOPs of one step, on average."""
        self._num_params = num_params
        self._say = say
        self._prices = StepCost()
        self._exact: set[Signature] = set()
        """Observed, not by a law."""
        self._partial: dict[Signature, FlopCount] = {}
        """Observed from the forward call on alone."""
        self._ahead: tuple[Signature, FlopCount] = ((), NOTHING)
        """The first step, observed from the forward call on: what ran before it without gradients."""
        self.has_heads: bool | None = None
        """Something runs before the model's forward call (a teacher); None: no step was seen from its beginning on."""
        self.varying: dict[Signature, RecentMean] = {}
        """Parts whose signature does not determine their cost."""
        self._optimizer = RecentMean()
        self._ahead_of = RecentMean()
        """What ran without gradients before the first training call of some steps, and is no part of their price."""
        self._unseen: FlopCount | None = None  # of the optimizers' steps that can't be observed
        self._group: int | None = None  # forward calls a backward pass
        self._beginnings: set[Signature] = set()  # of parts with several calls
        self._provisional: dict[Signature, tuple[int, FlopCount, int]] = {}
        """Parts that may be corrected: how many, what they were counted as, and how many of them as unknown."""
        self.now_known = 0
        """Of what `learn` corrected last, how many had been unknown."""
        self._apart: dict[Signature, FlopCount | str] = {}
        self._in_vain = ""
        """Why nothing more is measured apart: it took all of its time."""
        self._told: set[str] = set()
        self.parameters = self._parameters()

    def _parameters(self, uses: Uses | None = None) -> Parameters | None:
        if self._num_params is not None:
            return given_parameters(self._num_params)
        if self.model is None:
            return None
        try:
            return count_parameters(self.model, uses)
        except ValueError as error:
            self._say(str(error))
        except Exception as error:  # lazy parameters, not there before the first forward pass
            pass_on(error)
            self._say(f"the model's parameters can't be counted yet ({type(error).__name__}: {error})")
        return None

    # -- what is known -----------------------------------------------------------------------------------------

    @property
    def observes(self) -> bool:
        """True if steps can be observed, and one more is within the budget."""
        return (
            self.model is not None
            and self.given is None
            and self.blocked is None
            and self.observed < FREE + self.seen // SHARE
        )

    def wants(self, keys: Sequence[Signature]) -> bool:
        """True if what a step with these micro-batches so far costs is not known, and the last one begins a part."""
        parts = self.cut(keys)
        if self.model is None or self.given is not None or (len(keys) - 1) % self._size(keys):
            return False
        key = parts[-1]
        return key not in self._beginnings and key not in self._partial and self.lookup(key) is None

    def cut(self, keys: Sequence[Signature]) -> list[Signature]:
        """The parts that a step of these micro-batches is priced by."""
        size = self._size(keys)
        return [joined(keys[i : i + size]) for i in range(0, len(keys), size)]

    def _size(self, keys: Sequence[Signature]) -> int:
        return len(keys) if self.whole_steps else self._group or 1

    def is_final(self, key: Signature) -> bool:
        """True if the price of a part stays as it is."""
        known = key not in self._provisional and key not in self._partial and key not in self.varying
        return known and self.lookup(key) is not None

    @property
    def unsure(self) -> bool:
        """True if the masks of the next step are to be read, whatever that waits for."""
        return bool(self.waiting) or self.has_heads is None

    @property
    def one_by_one(self) -> bool:
        """True if each micro-batch has its price."""
        return not self.whole_steps and self._group in (None, 1)

    def lookup(self, key: Signature) -> FlopCount | None:
        """FLOPs of a part of a step without the optimizer's, if they are known."""
        if self.given is not None:
            return None
        if key in self.varying:
            return self.varying[key].mean
        found = self._prices.lookup(key)
        return found if found is not None or self.has_heads else self._partial.get(key)

    # -- observed ----------------------------------------------------------------------------------------------

    def learn(self, observation: Observation, keys: Sequence[Signature] | None = None) -> FlopCount:
        """Take what was observed. Returns the correction of what was counted before.

        Args:
            observation: it has ended without a problem.
            keys: of a trainer's step, which is one part; None: each micro-batch is one.
        """
        segments, self.now_known = observation.segments, 0
        self.observed += 1
        if keys is not None:
            segments = [_together(segments)._replace(keys=tuple(keys))]
        if observation.unread:  # a check that tells the attention in full alone
            for segment in segments:
                known = self._prices.lookup(key := joined(segment.keys))
                if known is not None and known.full != segment.whole.full and key not in self.varying:
                    self.waiting.add(key)
            return NOTHING
        if keys is None:
            found = {len(segment.keys) for segment in segments if segment.keys}
            self._group = self._group or max(found, default=None)
            if found - {self._group}:
                self._price_whole_steps("numbers of forward calls a backward pass differ")
            elif len(segments) > 1 and (any(map(self._conflicts, segments)) or _disagree(segments)):
                self._price_whole_steps("the same micro-batch costs another amount at another place of a step")
        if self.whole_steps:
            segments = [_together(segments)]
        for place, segment in enumerate(segments):
            self._learn_segment(segment, place == 0)
        self._use(OBSERVED, observation.uses, observation.without_formula)
        correction = observation.ahead
        if correction.model:
            self._ahead = joined(segments[0].keys), correction
            self._ahead_of.add(correction)
        if observation.optimizer_stepped or observation.unseen:
            correction += self._learn_optimizer(observation.optimizer + self._measured(observation.unseen))
        if observation.evaluated.calls and observation.evaluated.unused().hardware:
            self.note_change("calls in evaluation mode whose results no gradient needs are left out")
        complete = self.has_heads is False or segments[0].head is not None
        return sum((self._corrected(segment, complete) for segment in segments), correction)

    def _learn_optimizer(self, flops: FlopCount) -> FlopCount:
        """A step of the optimizer was observed; what to add, for it is going to be counted at the mean."""
        if len(self._optimizer) and flops != self.optimizer:
            self.varying.setdefault(("optimizer",), RecentMean())
            self.note_change("the optimizer's products differ from step to step: those not observed, their mean")
        self._optimizer.add(flops)
        self.optimizer = self._optimizer.mean
        return flops - self.optimizer

    def _measured(self, unseen: Sequence[Any]) -> FlopCount:
        """Steps of optimizers of which nothing shows what their compiled code multiplies, measured apart, once."""
        if unseen and self._unseen is None:
            try:
                self._unseen = sum(map(measure_optimizer, unseen), NOTHING)
                self.note_change("the optimizer's compiled step was measured apart, on the meta device")
            except Uncountable as reason:
                self._unseen = NOTHING
                self.uncounted.add(COMPILED_OPTIMIZER)
                self.note_change(f"{COMPILED_OPTIMIZER} shows no operators, counted 0 ({reason})")
                self._say(
                    f"{COMPILED_OPTIMIZER} shows no operators, and its matrix products are counted 0 ({reason}). To "
                    "count them, run the first steps with TORCH_COMPILE_DISABLE=1 and compare"
                )
        return self._unseen or NOTHING if unseen else NOTHING

    def ahead(self) -> FlopCount:
        """What to add for what is computed without gradients ahead of a step, and is not observed."""
        self.note_change("what is computed without gradients ahead of some steps: where not observed, its mean")
        return self._ahead_of.mean

    def differs(self, observation: Observation, keys: Sequence[Signature]) -> bool:
        """True if a trainer's step cost another amount than is known of its signature."""
        return not observation.unread and self._conflicts(_together(observation.segments)._replace(keys=tuple(keys)))

    def _price_whole_steps(self, why: str) -> None:
        if not self.whole_steps:
            self.whole_steps = True
            self._forget_prices()
            self.note_change(f"{why}: whole steps are looked up")

    def _conflicts(self, segment: Segment) -> bool:
        """True if something else is known of these calls."""
        key = joined(segment.keys)
        pairs = [(self._partial.get(key), segment.body)]
        if segment.head is not None or self.has_heads is False:
            pairs.append((self._prices.lookup(key), segment.whole))
        return any(known and (known.model, known.hardware) != (new.model, new.hardware) for known, new in pairs)

    def _learn_segment(self, segment: Segment, first: bool) -> None:
        key = joined(segment.keys)
        if len(self._beginnings) < MAX_KNOWN:
            self._beginnings.update(joined(segment.keys[:i]) for i in range(1, len(segment.keys)))
        if key in self.varying or self._conflicts(segment):  # the signature does not determine the cost: the mean
            if key not in self.varying:
                before = self._prices.lookup(key) if key in self._exact else None
                if before is None and not self.has_heads and not (segment.head or NOTHING).model:
                    before = self._partial.get(key)
                    self._provisional.pop(key, None)  # that step was counted as what it was
                self.varying[key] = RecentMean()
                if before is not None:
                    self.varying[key].add(before)
                self.note_change("steps of the same shapes cost different amounts: those not observed, their mean")
            self.varying[key].add(segment.whole)
            self.waiting.discard(key)
        elif segment.head is None and self.has_heads is not False:
            self._partial[key] = segment.body
            if self.has_heads and key not in self._exact:
                self.waiting.add(key)
        else:
            self._learn_price(key, segment.whole)
            if segment.head is not None:
                if first or segment.head.model:  # nothing between two micro-batches says nothing of a step's beginning
                    self._see_head(segment.head.model > 0)
                self.waiting.discard(key)

    def _learn_price(self, key: Signature, price: FlopCount) -> None:
        self._prices.learn(key, price)
        self._exact.add(key)

    def _see_head(self, found: bool) -> None:
        if self.has_heads is None and not found:  # what was seen from the forward call on is all there was
            for key, price in self._partial.items():
                self._learn_price(key, price)
                self._provisional.pop(key, None)
            self._partial.clear()
        elif self.has_heads is None:
            self.waiting.update(self._provisional)
        self.has_heads = self.has_heads or found

    def note_change(self, why: str) -> None:
        """The signatures do not tell all: say so once, in the record too."""
        told = self.methods.setdefault(OBSERVED, "")
        if why not in told:
            self.methods[OBSERVED] = f"{told}; {why}" if told else why

    # -- measured apart ----------------------------------------------------------------------------------------

    def measure(self, call: Call) -> None:
        """Measure a call apart from the training, once a shape."""
        key = call.key
        if key in self._apart or self.model is None or self.given is not None:
            return
        if len(self._apart) >= APART_AT_MOST:
            self._apart[key] = "more batch shapes than are measured apart"
            return
        measurement = self._measurement(self.model, call)
        if isinstance(measurement, str):
            self._apart[key] = measurement
        else:
            self._apart[key] = measurement.flops
            if self.methods.get(APART) == BESIDE:
                del self.methods[APART]
            why = f"{self.blocked}; counted are the model's forward calls and their backward passes, nothing beside"
            self._use(APART, measurement.uses, measurement.without_formula, why)

    def _measurement(self, model: nn.Module, call: Call) -> Measurement | str:
        """Or why it is not: no error of any kind may reach the call."""
        try:
            if not CAN_FORK:  # the user's code is not run in this process
                raise Uncountable("this system can't copy a process")
            if self._in_vain:
                raise Uncountable(self._in_vain)
            return measure_flops(model, call)
        except Exception as error:
            pass_on(error)
            if isinstance(error, TookTooLong):
                self._in_vain = str(error)
            return describe_error(error)

    def beside(self, call: Call) -> tuple[FlopCount, FlopCount] | None:
        """FLOPs of a compiled call's forward and backward pass in a step that is observed; None: not to be had."""
        operands = (*call.module.parameters(), *tree_leaves((call.args, call.kwargs)))
        trained = tuple(bool(getattr(operand, "requires_grad", False)) for operand in operands)
        inside = self.model is not None and any(call.module is module for module in self.model.modules())
        root = self.model if inside and self.model is not None else call.module
        found = []
        for gradients in (False, True)[: 1 + call.gradients]:
            key = (*call.key, gradients, trained)
            known = self._apart.get(key)
            if known is None and len(self._apart) < 2 * APART_AT_MOST:
                measurement = self._measurement(root, replace(call, gradients=gradients))
                if isinstance(measurement, str):
                    known = self._apart[key] = measurement
                else:
                    known = self._apart[key] = measurement.flops
                    self._use(APART, measurement.uses if inside else None, measurement.without_formula, BESIDE)
            if not isinstance(known, FlopCount):
                return None
            found.append(known)
        return found[0], found[-1] - found[0]

    def learn_calls(self, key: Signature, calls: Sequence[Call], problem: str | None) -> None:
        """These calls, which `measure` has seen, are all that a part of a step is known to compute."""
        found = [self._apart.get(call.key, "it was not measured") for call in calls]
        reasons = [part for part in found if isinstance(part, str)] + ([problem] if problem else [])
        if not calls or reasons:
            self._apart.setdefault(key, "; ".join(dict.fromkeys(reasons)) or self.blocked or "no call was seen")
        else:
            self._prices.learn(key, sum((part for part in found if isinstance(part, FlopCount)), NOTHING))

    # -- priced ------------------------------------------------------------------------------------------------

    def flops(self, key: Signature, processed: int | None) -> FlopCount | None:
        """FLOPs of a part of a step of `processed` tokens, in the best way there is; None: unknown."""
        known = self.lookup(key)
        if known is None and self.given is None:
            known = self._estimate(key)
        if known is not None:
            if processed and self.flops_per_token is None:
                self.flops_per_token = known.model / processed
            if self.has_heads is None and key in self._partial and key not in self.varying:
                self._is_provisional(key, known, waits=False)
            return known
        flops = self._by_formula(key, processed)
        if self.given is None and self.blocked is None:
            self._is_provisional(key, flops)
        return flops

    def _estimate(self, key: Signature) -> FlopCount | None:
        estimate = self._prices.estimate(key) or self._partial.get(key)
        if estimate is None:
            return None
        failed = self._apart.get(key)
        why = failed if isinstance(failed, str) else "more batch shapes than are observed"
        self.methods.setdefault(ESTIMATED, why)
        if self.observes:
            self._is_provisional(key, estimate)
        elif ESTIMATED not in self._told:
            self._told.add(ESTIMATED)
            self._say(f"{why}: FLOPs of these batches are estimated from the nearest length")
        return estimate

    def _is_provisional(self, key: Signature, counted: FlopCount | None, waits: bool = True) -> None:
        times, total, unknown = self._provisional.get(key, (0, NOTHING, 0))
        self._provisional[key] = times + 1, total + (counted or NOTHING), unknown + (counted is None)
        if waits:
            self.waiting.add(key)

    def _corrected(self, segment: Segment, complete: bool) -> FlopCount:
        """What to add to what was counted of a part, now that it was observed."""
        key = joined(segment.keys)
        price = self.lookup(key)
        if price is None:
            return NOTHING
        correction = NOTHING
        if key in self.varying and complete:
            correction = segment.whole - price  # it is going to be priced at the mean
        if key not in self._provisional:
            return correction
        self.waiting.discard(key)
        first, ahead = self._ahead
        if key == first and (segment.head or NOTHING).model >= ahead.model:  # it is going to be counted with a head
            correction -= ahead
            self._ahead = ((), NOTHING)
        return correction + self._settled(key, price)

    def _settled(self, key: Signature, price: FlopCount) -> FlopCount:
        """What to add to what was counted of a part provisionally."""
        times, counted, unknown = self._provisional.pop(key, (0, NOTHING, 0))
        self.now_known += unknown
        if not self._provisional:
            for method in {ESTIMATED, FORMULA, SIX_ND} - self._told:  # nothing is left that was counted that way
                self.methods.pop(method, None)
        return price * times - counted

    def settle_unheard(self, key: Signature) -> FlopCount:
        """Count steps whose calls were not seen like this one. Returns the correction of what was counted."""
        self.now_known, price = 0, self.lookup(key)
        if price is None or () not in self._provisional:
            return NOTHING
        self.note_change(
            "the first step, which did not call the model itself, is counted with the FLOPs of the next one"
        )
        return self._settled((), price)

    def _by_formula(self, key: Signature, processed: int | None) -> FlopCount | None:
        """As the user gave them, by the model's shape, or 6·N·D; None: not even that."""
        if processed is None:
            return None
        if self.given is not None:
            return FlopCount(self.given * processed, self.given * processed, 0)
        if self.model is None or self.parameters is None:
            return None
        matrix = first_matrix(key)
        flops, method = estimated(self.model, self.parameters, processed, None if matrix is None else matrix[1])
        if flops is None:
            return None
        apart = self._apart.get(key)
        reason = apart if isinstance(apart, str) else self.blocked or self.problem
        self.methods.setdefault(method, reason)
        for_good = self.blocked is not None
        if (method if for_good else reason) not in self._told and method not in self._told:
            self._told.add(method if for_good else reason)
            by = "as 6·N·D, which leaves attention and the output head out" if method == SIX_ND else f"by the {method}"
            until = "" if for_good else ". They are corrected as soon as a step like it can be counted while it runs"
            self._say(f"the step's FLOPs are taken {by}: {reason}{until}. Pass flops_per_token= to set them")
        return flops

    def forget(self) -> None:
        """The model has changed (layers frozen or thawed): count anew."""
        self._forget_prices()
        for of_shapes in (self._provisional, self._apart, self.waiting):
            of_shapes.clear()

    def _forget_prices(self) -> None:
        self._prices.forget()
        for of_shapes in (self.varying, self._exact, self._partial, self._beginnings):
            of_shapes.clear()

    def _use(self, method: str, uses: Uses | None, without_formula: Collection[str], reason: str = "") -> None:
        self.methods.setdefault(method, reason)
        if self.parameters is None or (uses is not None and uses.product):
            self.parameters = self._parameters(uses)
        if without_formula:
            names = ", ".join(sorted(without_formula))
            self.uncounted |= set(without_formula)
            self._say(
                f"operators without a FLOPs formula, counted 0: {names}. Say what they compute with "
                "isoflop.register_flop_formula, or pass flops_per_token="
            )
            self.methods[method] = f"without a FLOPs formula, counted 0: {names}"


def _disagree(segments: Sequence[Segment]) -> bool:
    """True if the same calls cost different amounts within a step."""
    costs = {(joined(part.keys), part.body.model, part.body.hardware) for part in segments}
    return len(costs) > len({key for key, *_ in costs})


def _together(segments: Sequence[Segment]) -> Segment:
    """A step as one segment."""
    first = segments[0]
    body = first.body + sum((part.whole for part in segments[1:]), NOTHING)
    return Segment(tuple(key for part in segments for key in part.keys), first.head, body)
