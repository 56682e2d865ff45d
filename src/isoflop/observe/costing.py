"""What a (micro-)batch costs: measured once a shape, else counted on a real step, estimated, or by a formula."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from torch import nn

from isoflop.observe.calls import Call, Signature, Uncountable
from isoflop.observe.cost import MAX_KNOWN, StepCost, first_matrix
from isoflop.observe.count import estimated
from isoflop.observe.counter import FlopCount
from isoflop.observe.measure import measure
from isoflop.observe.methods import ESTIMATED, FORMULA, GIVEN, MEASURED, SIX_ND, WATCHED
from isoflop.observe.parameters import Parameters, count_parameters, given_parameters
from isoflop.observe.uses import Uses
from isoflop.observe.watching import Watch

NOTHING = FlopCount(0, 0, 0)


class Costing:
    """FLOPs of batches by their signature, for one run.

    `lookup` while training; where it knows nothing, `take` the calls that a batch led to and ask for `flops` later.
    `whole`: a live step, should one have to be counted, shows all its FLOPs, not this rank's part of them.
    """

    def __init__(
        self,
        model: nn.Module | None,
        say: Callable[[str], None],
        flops_per_token: float | None = None,
        num_params: int | None = None,
        whole: bool = True,
    ) -> None:
        self.model = model
        self._whole = whole
        self.known = StepCost()
        self.methods: dict[str, str] = {}
        """Method → why, for each that was used."""
        self.uncounted: set[str] = set()
        """Heavy or custom operators that were counted 0."""
        self.flops_per_token: float | None = flops_per_token
        """Of the batch measured first; or as given."""
        # whole FLOPs a token: totals then do not depend on how a batch was split
        self.given = None if flops_per_token is None else max(1, round(flops_per_token))
        if self.given is not None:
            self.methods[GIVEN] = ""
        self._num_params = num_params
        self._say = say
        self.parameters = self._parameters()
        self._calls: dict[Signature, list[Call]] = {}
        self._uncountable: dict[Signature, str] = {}
        self._watch = Watch()
        # what batches that are still to be watched were taken for: signature → (how many, their FLOPs)
        self._provisional: dict[Signature, tuple[int, FlopCount]] = {}
        self._told: set[str] = set()

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
            self._say(f"the model's parameters can't be counted yet ({type(error).__name__}: {error})")
        return None

    # -- while a step runs -------------------------------------------------------------------------------------

    def lookup(self, key: Signature) -> FlopCount | None:
        """FLOPs of a batch, if they are known."""
        return None if self.given is not None else self.known.lookup(key)

    def wants(self, key: Signature) -> bool:
        """Whether the calls of a batch of unknown FLOPs are wanted."""
        nobody_can = self.given is not None or self.model is None
        return not nobody_can and key not in self._calls and key not in self._uncountable

    def take(self, key: Signature, calls: list[Call]) -> None:
        """The calls that a batch led to."""
        if self.wants(key):
            self._calls[key] = calls

    def give_up(self, key: Signature, reason: str, watch: bool = True) -> None:
        """A batch can't be measured on the meta device: the next one like it is counted as it runs."""
        if len(self._uncountable) >= MAX_KNOWN:
            self._uncountable.clear()
        self._uncountable[key] = reason
        if watch and self._whole and key[:1] != ("calls",):  # which are not known before they have been made
            self._watch.want(key)

    def begin(self, key: Signature) -> None:
        """A batch of unknown FLOPs begins."""
        self._watch.begin(key)

    def end(self) -> tuple[Signature, FlopCount, FlopCount] | None:
        """A batch is over. If it was watched: its signature, its FLOPs, and by how much totals so far are off."""
        watched = self._watch.end()
        if watched is None:
            return None
        key, counter = watched
        flops = counter.count
        self.known.learn(key, flops)
        self.methods.setdefault(WATCHED, self._uncountable.pop(key, ""))
        self._tell_uncounted(WATCHED, counter.without_formula)
        times, taken_for = self._provisional.pop(key, (0, NOTHING))
        if not self._provisional:
            for method in {FORMULA, SIX_ND} - self._told:  # nothing is left that was counted that way
                self.methods.pop(method, None)
        return key, flops, flops * times + taken_for * -1

    # -- after it ----------------------------------------------------------------------------------------------

    @property
    def to_measure(self) -> bool:
        """Whether `flops` will measure a shape, which may take seconds."""
        return bool(self._calls)

    def is_final(self, key: Signature) -> bool:
        """Whether what `flops` said of a batch will stay."""
        return self._watch.wanted.get(key, 0) <= 0

    def flops(self, key: Signature, processed: int | None, wall_time: float) -> FlopCount | None:
        """FLOPs of a batch of `processed` tokens, in the best way there is; None: unknown."""
        known = self.lookup(key)
        if known is None and key in self._calls:
            known = self._measure(key, processed, wall_time)
        if known is not None:
            return known
        return self.by_formula(processed, self._uncountable.get(key, "no forward call of the model was seen"), key)

    def _measure(self, key: Signature, processed: int | None, wall_time: float) -> FlopCount | None:
        assert self.model is not None
        calls = self._calls.pop(key)
        if not self.known.may_measure(wall_time):
            estimate = self.known.estimate(key)
            if estimate is not None:
                self._say(
                    "more batch shapes than can be measured in passing: FLOPs of further ones are estimated from the "
                    "nearest length"
                )
                self.methods[ESTIMATED] = "many batch shapes"
                return estimate
            self.give_up(key, "more batch shapes, or longer measurements, than training has the time for", watch=False)
            return None
        began = time.perf_counter()
        try:
            measurement = measure(self.model, calls)
        except Uncountable as reason:
            self.known.seconds += time.perf_counter() - began
            self.give_up(key, str(reason))
            return None
        self.known.learn(key, measurement.flops, time.perf_counter() - began)
        if MEASURED not in self.methods:
            self.parameters = self._parameters(measurement.uses)
        self.methods.setdefault(MEASURED, "")
        self._tell_uncounted(MEASURED, measurement.without_formula)
        if processed and self.flops_per_token is None:
            self.flops_per_token = measurement.flops.model / processed
        return measurement.flops

    def by_formula(self, processed: int | None, reason: str, key: Signature = ()) -> FlopCount | None:
        """FLOPs of `processed` tokens as the user gave them, by the model's shape, or 6·N·D; None: not even that."""
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
        self.methods.setdefault(method, reason)
        if not self.is_final(key):
            times, taken_for = self._provisional.get(key, (0, NOTHING))
            self._provisional[key] = (times + 1, taken_for + flops)
        elif method not in self._told:
            self._told.add(method)
            by = "as 6·N·D, which leaves attention and the output head out" if method == SIX_ND else f"by the {method}"
            self._say(f"the step's FLOPs are taken {by}: {reason}. Pass flops_per_token= to set them")
        return flops

    def forget(self) -> None:
        """The model has changed (layers frozen or thawed): measure anew."""
        self.known.forget()
        for of_shapes in (self._calls, self._uncountable, self._watch.wanted, self._provisional):
            of_shapes.clear()

    def _tell_uncounted(self, method: str, operators: Collection[str]) -> None:
        if operators:
            names = ", ".join(sorted(operators))
            self.uncounted |= set(operators)
            self._say(
                f"operators without a FLOPs formula, counted 0: {names}. Say what they compute with "
                "isoflop.register_flop_formula, or pass flops_per_token="
            )
            self.methods[method] = f"without a FLOPs formula, counted 0: {names}"
