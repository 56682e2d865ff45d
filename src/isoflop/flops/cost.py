"""FLOPs by the signature of what goes in: counted once a shape, looked up afterwards.

Signatures that differ in sizes alone are a family. In a transformer FLOPs are a polynomial of the sizes that vary
(`Law`): five counted lengths give and confirm it, about eleven pairs in an encoder–decoder, and from then on nothing
between them is counted again. What follows no such law is counted once a shape.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import torch

from isoflop.flops.calls import Signature
from isoflop.flops.counter import NOTHING, FlopCount

MAX_KNOWN = 10_000
"""Signatures kept; the oldest are forgotten."""
KEPT = 64
"""Points kept to confirm a law with; every further one is checked against it."""

RECENT = 64
"""Observations that a mean is of."""
RARE = 1e-3
"""A run of equal costs that is rarer than this is a new phase (layers were added), not chance."""

Sizes = tuple[int, ...]


class Segment(NamedTuple):
    """A part of a step: what leads up to its forward calls, and these with their backward pass."""

    keys: tuple[Signature, ...]  # signatures of the forward calls
    head: FlopCount | None  # what ran since the backward pass before; None: it was not observed
    body: FlopCount

    @property
    def whole(self) -> FlopCount:
        """All of it that was observed."""
        return self.body + (self.head or NOTHING)


class RecentMean:
    """The `mean` cost of what differs without a sign, by what was observed last; of a new phase, by that alone.

    In whole FLOPs; nothing where nothing was observed.
    """

    def __init__(self) -> None:
        self._seen: deque[FlopCount] = deque(maxlen=RECENT)
        self.mean = NOTHING

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, cost: FlopCount) -> None:
        """One more observation."""
        self._seen.append(cost)
        run = next((i for i, other in enumerate(reversed(self._seen)) if other != cost), len(self._seen))
        share = (self._seen.count(cost) - run + 1) / (len(self._seen) - run + 2)
        if run >= 3 and share**run < RARE:
            self._seen = deque([cost] * run, maxlen=RECENT)
        self.mean = FlopCount(*(part // len(self._seen) for part in sum(self._seen, NOTHING)))


class StepCost:
    """FLOPs of (micro-)batches by signature, as far as they are known."""

    def __init__(self) -> None:
        self._known: dict[Signature, FlopCount] = {}
        self._families: dict[tuple[Any, int | None], _Family] = {}

    def lookup(self, key: Signature) -> FlopCount | None:
        """FLOPs of a batch with this signature; None: to be counted (and `learn`ed)."""
        count = self._known.get(key)
        if count is None and self._families:
            sizes, families = self._families_of(key)
            count = next((found for family in families if (found := family.predict(sizes)) is not None), None)
            if count is not None:
                self._keep(key, count)
        return count

    def learn(self, key: Signature, count: FlopCount) -> None:
        """Keep the count of a signature."""
        self._keep(key, count)
        sizes, structure = _sizes(key)
        # a family a batch size too: batches mostly are of one, and its law needs no proportion to the batch
        for name in ((structure, sizes[0]), (structure, None)) if sizes else ():
            if name in self._families or len(self._families) < MAX_KNOWN:
                self._families.setdefault(name, _Family()).learn(sizes, count)

    def estimate(self, key: Signature) -> FlopCount | None:
        """FLOPs by the law beyond its range, else by the nearest that was counted; None if nothing alike was."""
        sizes, families = self._families_of(key)
        found = [count for family in families if (count := family.predict(sizes, beyond=True)) is not None]
        return found[0] if found else families[-1].nearest(sizes) if families else None

    def _keep(self, key: Signature, count: FlopCount) -> None:
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[key] = count

    def forget(self) -> None:
        """The model has changed (layers frozen or thawed): count anew."""
        self._known.clear()
        self._families.clear()

    def _families_of(self, key: Signature) -> tuple[Sizes, list[_Family]]:
        sizes, structure = _sizes(key)
        names = ((structure, sizes[0]), (structure, None)) if sizes else ()
        return sizes, [family for name in names if (family := self._families.get(name)) is not None]


def _sizes(key: Signature) -> tuple[Sizes, Any]:
    """All sizes of the tensors in a signature, in order, and the signature without them."""
    sizes: list[int] = []

    def without_sizes(part: Any) -> Any:
        if not isinstance(part, tuple):
            return part
        # one small number by itself is an argument (a mode, a number of loops; `signature`), or a vector's size
        if _is_shape(part) and (len(part) > 1 or isinstance(part, torch.Size)):
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
            self._law.add(self._point(sizes), count)

    def predict(self, sizes: Sizes, beyond: bool = False) -> FlopCount | None:
        """The count that a measurement would give, where the law is certain; `beyond` that, while it isn't refuted."""
        if self._law is None or not self._tied(sizes):
            return None
        parts = (self._law.extrapolate if beyond else self._law.predict)(self._point(sizes))
        return None if parts is None else FlopCount(*parts)

    def nearest(self, sizes: Sizes) -> FlopCount:
        """In proportion to the tokens of what was measured nearest: batch times the sum of the lengths that vary."""
        points = [*self.measured, sizes]
        batch, *others = zip(*points, strict=True)
        lengths = [column for column in dict.fromkeys(others) if len(set(column)) > 1 and column != batch]
        tokens = [batch[i] * (sum(column[i] for column in lengths) if lengths else 1) for i in range(len(points))]

        def distance(i: int) -> tuple[float, int]:
            return sum(abs(c[i] - c[-1]) / max(1, c[i] + c[-1]) for c in lengths), abs(batch[i] - batch[-1])

        i = min(range(len(self.measured)), key=distance)
        scale = Fraction(tokens[-1], max(1, tokens[i]))
        return FlopCount(*(round(part * scale) for part in self.measured[points[i]]))

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
        self._law = Law(batch, values=len(NOTHING)) if 1 <= len(self._variables) - batch <= 2 else None
        if self._law is not None:
            for sizes, count in self.measured.items():
                self._law.add(self._point(sizes), count)


# -- the law -----------------------------------------------------------------------------------------------------------


class Equations:
    """Linear equations Σ termᵢ·unknownᵢ = value, for several values at once, solved exactly as they come in."""

    def __init__(self, values: int = 0) -> None:
        self._zeros = (0,) * values
        self._rows: dict[int, list[Fraction]] = {}
        """Reduced row echelon form by pivot: at most as many rows as unknowns, however many points there were."""

    @property
    def rank(self) -> int:
        """Number of independent equations."""
        return len(self._rows)

    def add(self, terms: Sequence[int], values: Sequence[int] = ()) -> bool:
        """Add an equation; False if it contradicts the others (and is left out)."""
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
    """Values that are polynomial in one or two lengths and, if `batch`, proportional to a batch size.

    A point is (S,) or (S, T), with a batch size (B, S) or (B, S, T), and f = B·(c + p·S + q·S²), or with two lengths
    B·(c + p·S + q·T + r·S² + s·S·T + t·T²): every product of matrices in a transformer is one of these terms. Two other
    kinds of cost must not be taken for one:

    - A window: f is another such polynomial beyond S = w, less than the first everywhere there. Whichever w: if the
      points up to it, or those beyond it, determine the law by themselves, the others can't follow it too. So for each
      w one side must determine it (`_wide`), which takes five lengths for three unknowns. Proven for one window a
      length; two that differ would have to meet the law by accident.
    - Chunks: f depends on ceil(S/c). At lengths that differ by multiples of c that is such a polynomial, so a law is
      trusted at steps of the measured lengths' common divisor only. Other lengths may meet one by accident. Not
      excluded, but rare: of the 122,304 choices of five lengths up to 16, c up to 8 and one of four f none was mistaken
      (with the three lengths that confirm p·S + q·S², 1 of 140 draws up to 20 was).
    """

    def __init__(self, batch: bool, values: int) -> None:
        self._batch = batch
        self._fit, self._spread = Equations(values), Equations()
        self._points: list[Sizes] = []
        self._low: Sizes = ()
        self._high: Sizes = ()
        self._step: Sizes = ()
        self._trusted: list[set[int] | None] | None = None
        """For each variable the values at which the law holds, None: all within range; None: no law as yet."""
        self._broken = False

    def add(self, point: Sizes, values: Sequence[int]) -> None:
        """Add a new measured point."""
        if self._broken:
            return
        rank, covered, terms = self._fit.rank, self._covers(point), self._terms(point)
        if not self._fit.add(terms, values):
            # beyond what was confirmed, a law may end (a window, a length between chunks) and hold where it did
            self._broken = True
            if covered:
                self._trusted = None
            return
        first, steps = (self._points or [point])[0], self._step or (0,) * len(point)
        self._low = tuple(map(min, self._low or point, point))
        self._high = tuple(map(max, self._high or point, point))
        self._step = tuple(math.gcd(step, x - x0) for step, x, x0 in zip(steps, point, first, strict=True))
        if len(self._points) < KEPT:
            self._points.append(point)
        if self._batch:
            self._spread.add([*terms, *(point[0] * term for term in terms)])
        # where all is confirmed a further point adds nothing but its range
        if self._fit.rank > rank or self._trusted is None or (any(self._trusted) and not covered):
            self._confirm()

    def predict(self, point: Sizes) -> list[int] | None:
        """The values that a measurement would give; None where that is not certain."""
        found = self._fit.values(self._terms(point)) if self._covers(point) else None
        if found is None or any(value.denominator != 1 for value in found):
            return None
        return [int(value) for value in found]

    def extrapolate(self, point: Sizes) -> list[int] | None:
        """By the law, as long as nothing contradicts it and one point confirms it."""
        found = None if self._broken or len(self._points) <= self._fit.rank else self._fit.values(self._terms(point))
        return None if found is None or min(found) < 0 else [round(value) for value in found]

    def _terms(self, point: Sizes) -> list[int]:
        batch, lengths = (point[0], point[1:]) if self._batch else (1, point)
        return [batch * a * b for a, b in combinations_with_replacement((1, *lengths), 2)]

    def _covers(self, point: Sizes) -> bool:
        return self._trusted is not None and all(
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
        wide = [i for i in range(int(self._batch), len(self._low)) if self._wide(i)]
        # no single point may be necessary: no other would have confirmed it
        if wide and all(self._determined_by([p for p in self._points if p is not left]) for left in self._points):
            narrow = {i for i in range(int(self._batch), len(self._low)) if i not in wide}
            self._trusted = [{p[i] for p in self._points} if i in narrow else None for i in range(len(self._low))]

    def _wide(self, i: int) -> bool:
        """True if for each w the points with xᵢ ≤ w or those with xᵢ > w determine the law by themselves."""
        upwards = sorted(self._points, key=lambda point: point[i])
        low, high = self._determined_by(upwards), self._determined_by(upwards[::-1])
        return low is not None and high is not None and low[i] <= high[i]

    def _determined_by(self, points: Sequence[Sizes]) -> Sizes | None:
        """The first of these points up to which they determine the law as all points do."""
        passed = Equations()
        for point in points:
            passed.add(self._terms(point))
            if passed.rank == self._fit.rank:
                return point
        return None


def joined(keys: Sequence[Signature]) -> Signature:
    """One signature for several: of one, itself."""
    return keys[0] if len(keys) == 1 else tuple(keys)
