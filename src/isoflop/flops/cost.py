"""FLOPs of a (micro-)batch by its signature: measured once a shape, a look-up afterwards.

Signatures that differ in sizes alone are a family. In a transformer FLOPs are a polynomial of the sizes that vary (see
`polynomial`): five measured lengths give and confirm it, about eleven pairs in an encoder–decoder, and from then on
nothing between them is measured again. Whatever follows no such law is measured once a shape, within a budget of time;
past it a new shape is estimated from the nearest one, and that is said.

A polynomial through measured points, exactly: found, confirmed, and trusted no further than it was confirmed.

f = B·(c + p·S + q·S²), or with two lengths B·(c + p·S + q·T + r·S² + s·S·T + t·T²): every product of matrices in a
transformer is one of these terms. Two other kinds of cost must not be taken for one:

- A window: f is another such polynomial beyond S = w, less than the first everywhere there. Whichever w: if the points
  up to it, or those beyond it, determine the law by themselves, the others can't follow it too. So for each w one side
  must determine it (`_wide`), which takes five lengths for three unknowns. Proven for one window a length; two that
  differ would have to meet the law by accident.
- Chunks: f depends on ceil(S/c). At lengths that differ by multiples of c that is such a polynomial, so a law is
  trusted at steps of the measured lengths' common divisor only. Other lengths may meet one by accident. Not excluded,
  but rare: of the 122,304 choices of five lengths up to 16, c up to 8 and one of four f none was mistaken.

There is no shorter law to try first: p·S + q·S² would be confirmed by three lengths, and mistook chunks in 1 of 140
draws of lengths up to 20. Two more cost little, since the shortest and the longest have to be met first anyway.

Counting a live training step where its model can't be measured on the meta device: which, when, and until when.

What a (micro-)batch costs: measured once a shape, else counted on a real step, estimated, or by a formula.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import nn

from isoflop.flops.calls import Call, Signature, Uncountable
from isoflop.flops.clock import Clock
from isoflop.flops.config_shape import ESTIMATED, FORMULA, GIVEN, MEASURED, SIX_ND, WATCHED
from isoflop.flops.count import estimated
from isoflop.flops.counter import FlopCount
from isoflop.flops.measure import LiveCounter, eagerly, measure
from isoflop.flops.parameters import Parameters, Uses, count_parameters, given_parameters

KEPT = 64
"""Points kept to confirm a law with; every further one is checked against it."""


class Equations:
    """Linear equations Σ termᵢ·unknownᵢ = value, for several values at once, solved as they come in."""

    def __init__(self, values: int = 0) -> None:
        self._zeros = (0,) * values
        self._rows: dict[int, list[Fraction]] = {}
        """Reduced row echelon form by pivot: at most as many rows as unknowns, however many points there were."""

    @property
    def rank(self) -> int:
        """How many of the equations said something new."""
        return len(self._rows)

    def add(self, terms: Sequence[int], values: Sequence[int] = ()) -> bool:
        """Take an equation in; False if it contradicts the others (and is left out)."""
        row = self._reduce(terms, values)
        pivot = next((i for i in range(len(terms)) if row[i]), None)
        if pivot is None:
            return not any(row)
        row = [entry / row[pivot] for entry in row]
        for other in self._rows.values():
            other[:] = _less(other, other[pivot], row)
        self._rows[pivot] = row
        return True

    def values(self, terms: Sequence[int]) -> list[Fraction] | None:
        """The values for these terms, where the equations determine them."""
        row = self._reduce(terms, self._zeros)
        return None if any(row[: len(terms)]) else [-entry for entry in row[len(terms) :]]

    def _reduce(self, terms: Sequence[int], values: Sequence[int]) -> list[Fraction]:
        row = [Fraction(entry) for entry in (*terms, *values)]
        for pivot, other in self._rows.items():
            row = _less(row, row[pivot], other)
        return row


def _less(row: list[Fraction], factor: Fraction, other: list[Fraction]) -> list[Fraction]:
    """Row − factor·other; most of a reduced row is 0, and fractions are slow."""
    return [a - factor * b if b else a for a, b in zip(row, other, strict=True)] if factor else row


class Law:
    """Values, polynomial in one or two lengths and (if `batch`) proportional to a batch size.

    A point is (S,) or (S, T); with `batch` (B, S) or (B, S, T).
    """

    def __init__(self, batch: bool, values: int) -> None:
        self._batch = batch
        self._fit, self._spread = Equations(values), Equations()
        self._points: list[tuple[int, ...]] = []
        self._count = 0
        self._low: tuple[int, ...] = ()
        self._high: tuple[int, ...] = ()
        self._step: tuple[int, ...] = ()
        self._trusted: list[set[int] | None] | None = None
        """For each variable the values at which the law holds, None: all within range; None: no law as yet."""
        self._broken = False

    def add(self, point: tuple[int, ...], values: Sequence[int]) -> None:
        """Take a new measured point in."""
        if self._broken:
            return
        rank, covered = self._fit.rank, self._covers(point)
        if not self._fit.add(self._terms(point), values):
            # beyond what was confirmed, a law may end (a window, a length between chunks) and hold where it did
            self._broken = True
            if covered:
                self._trusted = None
            return
        self._count += 1
        self._low = tuple(map(min, self._low or point, point))
        self._high = tuple(map(max, self._high or point, point))
        first = self._points[0] if self._points else point
        steps = self._step or (0,) * len(point)
        self._step = tuple(math.gcd(step, x - x0) for step, x, x0 in zip(steps, point, first, strict=True))
        if len(self._points) < KEPT:
            self._points.append(point)
        if self._batch:
            terms = self._terms(point)
            self._spread.add([*terms, *(point[0] * term for term in terms)])
        # where all is confirmed a further point adds nothing but its range
        if self._fit.rank > rank or self._trusted is None or (any(self._trusted) and not covered):
            self._confirm()

    def predict(self, point: tuple[int, ...]) -> list[int] | None:
        """What a measurement would give; None where that is not certain."""
        found = self._fit.values(self._terms(point)) if self._covers(point) else None
        if found is None or any(value.denominator != 1 for value in found):
            return None
        return [int(value) for value in found]

    def extrapolate(self, point: tuple[int, ...]) -> list[int] | None:
        """By the law, as long as nothing contradicts it and one point confirms it."""
        if self._broken or self._count <= self._fit.rank:
            return None
        found = self._fit.values(self._terms(point))
        return None if found is None or min(found) < 0 else [round(value) for value in found]

    def _terms(self, point: tuple[int, ...]) -> list[int]:
        batch, lengths = (point[0], point[1:]) if self._batch else (1, point)
        return [batch * a * b for a, b in combinations_with_replacement((1, *lengths), 2)]

    def _covers(self, point: tuple[int, ...]) -> bool:
        if self._trusted is None:
            return False
        return all(
            low <= x <= high and (x - low) % (step or 1) == 0 and (only is None or x in only)
            for x, low, high, step, only in zip(point, self._low, self._high, self._step, self._trusted, strict=True)
        )

    def _confirm(self) -> None:
        """Trust the law as far as the points tell it from others.

        A batch's share may be B², as in a contrastive loss, or a constant: the points must tell B·polynomial from
        B²·polynomial, which is that all those terms are independent on them. A length with too few values for `_wide`
        (padded to four sizes, say) is trusted at these, provided that the other one is wide.
        """
        self._trusted = None
        if self._batch and self._spread.rank < 2 * self._fit.rank:
            return
        lengths = range(int(self._batch), len(self._low))
        wide = [i for i in lengths if self._wide(i)]
        # nothing may hang on one point alone: no other would have confirmed it
        if wide and all(self._all_said_by([p for p in self._points if p is not left_out]) for left_out in self._points):
            narrow = set(lengths) - set(wide)
            self._trusted = [{p[i] for p in self._points} if i in narrow else None for i in range(len(self._low))]

    def _wide(self, i: int) -> bool:
        """Whether for each w the points with xᵢ ≤ w or those with xᵢ > w determine the law by themselves."""
        upwards = sorted(self._points, key=lambda point: point[i])
        low, high = self._all_said_by(upwards), self._all_said_by(upwards[::-1])
        return low is not None and high is not None and low[i] <= high[i]

    def _all_said_by(self, points: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
        """The first of these points by which they have said all that all points say."""
        passed = Equations()
        for point in points:
            passed.add(self._terms(point))
            if passed.rank == self._fit.rank:
                return point
        return None


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
        """What a measurement would give, where a law says it for certain."""
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
        """Whether the sizes move together as those measured do."""
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


class StepCost:
    """What a (micro-)batch of a signature costs, as far as it is known."""

    def __init__(self) -> None:
        self._known: dict[Signature, FlopCount] = {}
        self._families: dict[tuple[Any, int | None], _Family] = {}
        self.seconds = 0.0
        self.estimated = 0
        """How many shapes got an estimate rather than a measurement."""

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
        """Keep what was measured for a signature, and what it took."""
        self.seconds += seconds
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[key] = count
        sizes, structure = _sizes(key)
        # a family a batch size too: batches mostly are of one, and its law needs nothing of how FLOPs go with another
        for name in ((structure, sizes[0]), (structure, None)) if sizes else ():
            if name in self._families or len(self._families) < MAX_KNOWN:
                self._families.setdefault(name, _Family()).learn(sizes, count)

    def may_measure(self, wall_time: float) -> bool:
        """Whether one more measurement is within the budget at this point of the run."""
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


def _parts(count: FlopCount) -> tuple[int, int, int]:
    return count.model, count.hardware, count.attention


def _sizes(key: Signature) -> tuple[Sizes, Any]:
    """All sizes of the tensors in a signature, in order, and what else there is to it."""
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


MOST = 256
"""Signatures: to listen costs as much as to measure, 40 µs an operator."""
ATTEMPTS = 3
"""A (micro-)batch that is not followed by its own backward pass tells nothing; after so many it never will."""


class Watch:
    """Listens to one (micro-)batch of each signature that is `wanted`, from `begin` to `end`."""

    def __init__(self) -> None:
        self.wanted: dict[Signature, int] = {}
        """Signature → attempts left."""
        self._live: tuple[Signature, LiveCounter, AbstractContextManager[Any]] | None = None

    @property
    def live(self) -> bool:
        """Whether a batch is being listened to."""
        return self._live is not None

    def want(self, key: Signature) -> None:
        """Watch the next batch of this signature, unless that can't be done without touching the training.

        Compiled code would have to run as it was written, which takes more memory and rounds otherwise.
        """
        if key not in self.wanted and len(self.wanted) < MOST and not _something_is_compiled():
            self.wanted[key] = ATTEMPTS

    def begin(self, key: Signature) -> bool:
        """A (micro-)batch of this signature begins. Returns whether one is being watched."""
        if self._live is not None or self.wanted.get(key, 0) <= 0:
            return self._live is not None
        self.wanted[key] -= 1
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return False
        counter, eager = LiveCounter(), eagerly()
        eager.__enter__()
        if counter.enter():
            self._live = key, counter, eager
            return True
        eager.__exit__(None, None, None)
        return False

    def end(self) -> tuple[Signature, LiveCounter] | None:
        """The batch and its backward pass are over. Returns what was counted, if it is a whole step."""
        if self._live is None:
            return None
        key, counter, eager = self._live
        if not counter.leave():
            return None
        self._live = None
        eager.__exit__(None, None, None)
        phases = {phase for _, phase in counter.by_operator}
        if counter.problem is not None or "backward" not in phases:
            return None
        self.wanted[key] = 0
        return key, counter


def _something_is_compiled() -> bool:
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and dynamo.counters["frames"]["total"] > 0


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

    def begin(self, key: Signature) -> bool:
        """A batch of unknown FLOPs begins. True: it is counted as it runs, until `end`."""
        return self._watch.begin(key)

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

    @property
    def watching(self) -> bool:
        """Whether a batch is being counted as it runs."""
        return self._watch.live

    # -- after it ----------------------------------------------------------------------------------------------

    def is_final(self, key: Signature) -> bool:
        """Whether what `flops` said of a batch will stay."""
        return self._watch.wanted.get(key, 0) <= 0

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
