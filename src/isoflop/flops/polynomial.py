"""FLOPs as a polynomial of the sizes that vary: found exactly through measured points, confirmed, and used no further.

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
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations_with_replacement

KEPT = 64
"""Points kept to confirm a law with; every further one is checked against it."""

Point = tuple[int, ...]
"""(S,) or (S, T); with a batch size (B, S) or (B, S, T)."""


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
    """Values that are polynomial in one or two lengths and, if `batch`, proportional to a batch size."""

    def __init__(self, batch: bool, values: int) -> None:
        self._batch = batch
        self._fit, self._spread = Equations(values), Equations()
        self._points: list[Point] = []
        self._count = 0
        self._low: Point = ()
        self._high: Point = ()
        self._step: Point = ()
        self._trusted: list[set[int] | None] | None = None
        """For each variable the values at which the law holds, None: all within range; None: no law as yet."""
        self._broken = False

    def add(self, point: Point, values: Sequence[int]) -> None:
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
        self._count += 1
        self._extend(point)
        if len(self._points) < KEPT:
            self._points.append(point)
        if self._batch:
            self._spread.add([*terms, *(point[0] * term for term in terms)])
        # where all is confirmed a further point adds nothing but its range
        if self._fit.rank > rank or self._trusted is None or (any(self._trusted) and not covered):
            self._confirm()

    def predict(self, point: Point) -> list[int] | None:
        """The values that a measurement would give; None where that is not certain."""
        found = self._fit.values(self._terms(point)) if self._covers(point) else None
        if found is None or any(value.denominator != 1 for value in found):
            return None
        return [int(value) for value in found]

    def extrapolate(self, point: Point) -> list[int] | None:
        """By the law, as long as nothing contradicts it and one point confirms it."""
        if self._broken or self._count <= self._fit.rank:
            return None
        found = self._fit.values(self._terms(point))
        return None if found is None or min(found) < 0 else [round(value) for value in found]

    def _terms(self, point: Point) -> list[int]:
        batch, lengths = (point[0], point[1:]) if self._batch else (1, point)
        return [batch * a * b for a, b in combinations_with_replacement((1, *lengths), 2)]

    def _extend(self, point: Point) -> None:
        first = self._points[0] if self._points else point
        steps = self._step or (0,) * len(point)
        self._low = tuple(map(min, self._low or point, point))
        self._high = tuple(map(max, self._high or point, point))
        self._step = tuple(math.gcd(step, x - x0) for step, x, x0 in zip(steps, point, first, strict=True))

    def _covers(self, point: Point) -> bool:
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
        # no single point may be necessary: no other would have confirmed it
        if wide and all(self._determined_by([p for p in self._points if p is not left]) for left in self._points):
            narrow = set(lengths) - set(wide)
            self._trusted = [{p[i] for p in self._points} if i in narrow else None for i in range(len(self._low))]

    def _wide(self, i: int) -> bool:
        """True if for each w the points with xᵢ ≤ w or those with xᵢ > w determine the law by themselves."""
        upwards = sorted(self._points, key=lambda point: point[i])
        low, high = self._determined_by(upwards), self._determined_by(upwards[::-1])
        return low is not None and high is not None and low[i] <= high[i]

    def _determined_by(self, points: Sequence[Point]) -> Point | None:
        """The first of these points up to which they determine the law as all points do."""
        passed = Equations()
        for point in points:
            passed.add(self._terms(point))
            if passed.rank == self._fit.rank:
                return point
        return None
