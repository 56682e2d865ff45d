"""FLOPs of a (micro-)batch by its signature: measured once a shape, looked up afterwards.

Signatures that differ in sizes alone are a family. In a transformer FLOPs are a polynomial of the sizes that vary
(`isoflop.flops.polynomial`): five measured lengths give and confirm it, about eleven pairs in an encoder–decoder, and
from then on nothing between them is measured again. What follows no such law is measured once a shape, within a budget
of time; past it a new shape is estimated from the nearest one. What can't be measured is counted on a real step, or by
a formula. Each way that was used is in `Costing.methods`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from isoflop.flops.calls import Call, Signature, Uncountable
from isoflop.flops.clock import Clock
from isoflop.flops.config_shape import ESTIMATED, FORMULA, GIVEN, MEASURED, SIX_ND, WATCHED
from isoflop.flops.count import estimated
from isoflop.flops.counter import FlopCount
from isoflop.flops.measure import Watch, measure_flops
from isoflop.flops.parameters import Parameters, count_parameters, given_parameters
from isoflop.flops.polynomial import KEPT, Law
from isoflop.flops.uses import Uses

BUDGET_SECONDS = 30.0
"""Measuring takes 0.2–2 s a shape; a run with more shapes than this buys gets estimates …"""
BUDGET_SHARE = 0.002
"""… unless it is long enough that they cost less than this share of its wall time."""

MAX_KNOWN = 10_000
"""Signatures kept; those beyond are computed from the law or estimated each time."""

Sizes = tuple[int, ...]


class _Family:
    """Signatures of one structure: their measured FLOPs by all the sizes in them, in order, and the law, if any.

    Sizes that always move together (ids, mask and labels; labels one shorter) are one variable: by the first of them.
    """

    def __init__(self) -> None:
        self.measured: dict[Sizes, FlopCount] = {}
        self._law: Law | None = None
        self._origin: Sizes = ()
        self._ties: list[tuple[int, Fraction]] = []
        """For each size the variable that it moves with, and by how much: size − origin = ratio·(variable − origin)."""
        self._variables: list[int] = []

    def learn(self, sizes: Sizes, count: FlopCount) -> None:
        if self.measured.get(sizes) == count:
            return
        self.measured[sizes] = count
        if len(self.measured) > KEPT:
            del self.measured[next(iter(self.measured))]
        if not self._tied(sizes):
            self._find_variables()
        elif self._law is not None:
            self._law.add(self._point(sizes), _parts(count))

    def predict(self, sizes: Sizes) -> FlopCount | None:
        """The count that a measurement would give, where the law is certain."""
        parts = self._law.predict(self._point(sizes)) if self._law is not None and self._tied(sizes) else None
        return None if parts is None else FlopCount(*parts)

    def extrapolate(self, sizes: Sizes) -> FlopCount | None:
        parts = self._law.extrapolate(self._point(sizes)) if self._law is not None and self._tied(sizes) else None
        return None if parts is None else FlopCount(*parts)

    def nearest(self, sizes: Sizes) -> FlopCount:
        """In proportion to the tokens of what was measured nearest: batch times the sum of the lengths that vary."""
        points = [*self.measured, sizes]
        batch, *others = zip(*points, strict=True)
        lengths = [column for column in dict.fromkeys(others) if len(set(column)) > 1 and column != batch]

        def distance(i: int) -> tuple[float, int]:
            return sum(abs(c[i] - c[-1]) / max(1, c[i] + c[-1]) for c in lengths), abs(batch[i] - batch[-1])

        def tokens(i: int) -> int:
            return batch[i] * (sum(column[i] for column in lengths) if lengths else 1)

        i = min(range(len(self.measured)), key=distance)
        scale = Fraction(tokens(-1), max(1, tokens(i)))
        return FlopCount(*(round(part * scale) for part in _parts(self.measured[points[i]])))

    def _point(self, sizes: Sizes) -> Sizes:
        return tuple([sizes[i] for i in self._variables])

    def _tied(self, sizes: Sizes) -> bool:
        """True if the sizes move together as those measured do."""
        moved = [size - start for size, start in zip(sizes, self._origin, strict=False)]
        return bool(moved) and all(step == ratio * moved[i] for step, (i, ratio) in zip(moved, self._ties, strict=True))

    def _find_variables(self) -> None:
        self._origin = next(iter(self.measured))
        self._ties = []
        first: dict[tuple[Fraction, ...], tuple[int, int]] = {}
        for i, column in enumerate(zip(*self.measured, strict=True)):
            steps = [size - column[0] for size in column]
            unit = next((step for step in steps if step), 0)
            if not unit:
                self._ties.append((i, Fraction(0)))
                continue
            variable, its_unit = first.setdefault(tuple(Fraction(step, unit) for step in steps), (i, unit))
            self._ties.append((variable, Fraction(unit, its_unit)))
        self._variables = [variable for variable, _ in first.values()]
        # the first size of all is the batch's; where nothing else varies, it may as well be a length
        batch = self._variables[:1] == [0] and len(self._variables) > 1
        self._law = Law(batch, values=3) if 1 <= len(self._variables) - batch <= 2 else None
        if self._law is not None:
            for sizes, count in self.measured.items():
                self._law.add(self._point(sizes), _parts(count))


def _parts(count: FlopCount) -> tuple[int, int, int]:
    return count.model, count.hardware, count.attention


class StepCost:
    """FLOPs of (micro-)batches by signature, as far as they are known."""

    def __init__(self) -> None:
        self._known: dict[Signature, FlopCount] = {}
        self._families: dict[tuple[Any, int | None], _Family] = {}
        self.seconds = 0.0
        """Time that measuring has taken."""
        self.estimated = 0
        """Number of shapes with an estimate instead of a measurement."""

    def lookup(self, key: Signature) -> FlopCount | None:
        """FLOPs of a batch with this signature; None: to be measured (and `learn`ed)."""
        count = self._known.get(key)
        if count is None and self._families:
            sizes, families = self._families_of(key)
            count = next((found for family in families if (found := family.predict(sizes)) is not None), None)
            if count is not None and len(self._known) < MAX_KNOWN:
                self._known[key] = count
        return count

    def learn(self, key: Signature, count: FlopCount, seconds: float = 0.0) -> None:
        """Keep a measurement of a signature and the time that it took."""
        self.seconds += seconds
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[key] = count
        sizes, structure = _sizes(key)
        # a family a batch size too: batches mostly are of one, and its law needs no proportion to the batch
        for name in ((structure, sizes[0]), (structure, None)) if sizes else ():
            if name in self._families or len(self._families) < MAX_KNOWN:
                self._families.setdefault(name, _Family()).learn(sizes, count)

    def may_measure(self, wall_time: float) -> bool:
        """True if one more measurement is within the budget at this point of the run."""
        return self.seconds <= max(BUDGET_SECONDS, BUDGET_SHARE * wall_time)

    def estimate(self, key: Signature) -> FlopCount | None:
        """FLOPs by the law beyond its range, else by the nearest that was measured; None if nothing alike was."""
        sizes, families = self._families_of(key)
        if not families:
            return None
        self.estimated += 1
        count = next((found for family in families if (found := family.extrapolate(sizes)) is not None), None)
        if count is None:
            count = families[-1].nearest(sizes)
        if len(self._known) < MAX_KNOWN:
            self._known[key] = count
        return count

    def forget(self) -> None:
        """The model has changed (layers frozen or thawed): measure anew."""
        self._known.clear()
        self._families.clear()

    def _families_of(self, key: Signature) -> tuple[Sizes, list[_Family]]:
        sizes, structure = _sizes(key)
        names = ((structure, sizes[0]), (structure, None)) if sizes else ()
        return sizes, [family for name in names if (family := self._families.get(name)) is not None]


def _sizes(key: Signature) -> tuple[Sizes, Any]:
    """All sizes of the tensors in a signature, in order, and the signature without them."""
    sizes: list[int] = []
    calls = key[:1] == ("calls",)

    def without_sizes(part: Any) -> Any:
        if not isinstance(part, tuple):
            return part
        # one small number by itself is an argument (a mode, a number of loops; `signature`), or a vector's size
        if _is_shape(part) and (len(part) > 1 or calls or isinstance(part, torch.Size)):
            sizes.extend(part)
            return len(part)
        return tuple([without_sizes(item) for item in part])

    structure = without_sizes(key)
    return tuple(sizes), structure


def _is_shape(part: tuple[Any, ...]) -> bool:
    return bool(part) and all(type(size) is int for size in part)


def first_matrix(key: Any) -> tuple[int, ...] | None:
    """The first shape of two dimensions or more in a signature: (batch, length, …)."""
    if not isinstance(key, tuple):
        return None
    if len(key) >= 2 and _is_shape(key):
        return key
    return next((found for part in key if (found := first_matrix(part)) is not None), None)


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
        """Each method that was used → why not a better one."""
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
        self._calls: dict[Signature, list[Call]] = {}  # of batches that `flops` will measure
        self._uncountable: dict[Signature, str] = {}
        self.watch = Watch()
        # batches that are still to be watched: signature → (how many, the FLOPs that they were counted as)
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
        """True if the calls of a batch of unknown FLOPs are wanted."""
        countable = self.given is None and self.model is not None
        return countable and key not in self._calls and key not in self._uncountable

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
            self.watch.want(key)

    def end(self) -> tuple[Signature, FlopCount, FlopCount] | None:
        """A batch is over. If it was watched: its signature, its FLOPs, and the correction of the totals so far."""
        watched = self.watch.end()
        if watched is None:
            return None
        key, counter = watched
        flops = counter.count
        self.known.learn(key, flops)
        self.methods.setdefault(WATCHED, self._uncountable.pop(key, ""))
        self._report_uncounted(WATCHED, counter.without_formula)
        times, counted_as = self._provisional.pop(key, (0, NOTHING))
        if not self._provisional:
            for method in {FORMULA, SIX_ND} - self._told:  # nothing is left that was counted that way
                self.methods.pop(method, None)
        return key, flops, flops * times + counted_as * -1

    # -- after it ----------------------------------------------------------------------------------------------

    def is_final(self, key: Signature) -> bool:
        """True if `flops` of a batch will stay as it is."""
        return self.watch.wanted.get(key, 0) <= 0

    def flops(self, key: Signature, processed: int | None, clock: Clock) -> FlopCount | None:
        """FLOPs of a batch of `processed` tokens, in the best way there is; None: unknown."""
        known = self.lookup(key)
        if known is None and key in self._calls:
            with clock.phase("measuring"):  # which may take seconds
                known = self._measure(key, processed, clock.wall_time)
        if known is not None:
            return known
        return self.by_formula(processed, self._uncountable.get(key, "no forward call of the model was seen"), key)

    def _measure(self, key: Signature, processed: int | None, wall_time: float) -> FlopCount | None:
        assert self.model is not None
        calls = self._calls.pop(key)
        if not self.known.may_measure(wall_time):
            return self._estimate(key)
        began = time.perf_counter()
        try:
            measurement = measure_flops(self.model, calls)
        except Uncountable as reason:
            self.known.seconds += time.perf_counter() - began
            self.give_up(key, str(reason))
            return None
        self.known.learn(key, measurement.flops, time.perf_counter() - began)
        if MEASURED not in self.methods:
            self.parameters = self._parameters(measurement.uses)
        self.methods.setdefault(MEASURED, "")
        self._report_uncounted(MEASURED, measurement.without_formula)
        if processed and self.flops_per_token is None:
            self.flops_per_token = measurement.flops.model / processed
        return measurement.flops

    def _estimate(self, key: Signature) -> FlopCount | None:
        estimate = self.known.estimate(key)
        if estimate is None:
            self.give_up(key, "more batch shapes, or longer measurements, than training has the time for", watch=False)
            return None
        self._say(
            "more batch shapes than can be measured in passing: FLOPs of further ones are estimated from the nearest "
            "length"
        )
        self.methods[ESTIMATED] = "many batch shapes"
        return estimate

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
            times, counted_as = self._provisional.get(key, (0, NOTHING))
            self._provisional[key] = (times + 1, counted_as + flops)
        elif method not in self._told:
            self._told.add(method)
            by = "as 6·N·D, which leaves attention and the output head out" if method == SIX_ND else f"by the {method}"
            self._say(f"the step's FLOPs are taken {by}: {reason}. Pass flops_per_token= to set them")
        return flops

    def forget(self) -> None:
        """The model has changed (layers frozen or thawed): measure anew."""
        self.known.forget()
        for of_shapes in (self._calls, self._uncountable, self.watch.wanted, self._provisional):
            of_shapes.clear()

    def _report_uncounted(self, method: str, operators: Collection[str]) -> None:
        if operators:
            names = ", ".join(sorted(operators))
            self.uncounted |= set(operators)
            self._say(
                f"operators without a FLOPs formula, counted 0: {names}. Say what they compute with "
                "isoflop.register_flop_formula, or pass flops_per_token="
            )
            self.methods[method] = f"without a FLOPs formula, counted 0: {names}"
