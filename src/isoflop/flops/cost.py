"""FLOPs by the signature of what goes in: counted once a shape, looked up afterwards.

Signatures that differ in sizes alone are a family. In a transformer FLOPs are a polynomial of the sizes that vary
(`isoflop.flops.polynomial`): five counted lengths give and confirm it, about eleven pairs in an encoder–decoder, and
from then on nothing between them is counted again. What follows no such law is counted once a shape.
"""

from __future__ import annotations

from dataclasses import astuple, fields
from fractions import Fraction
from typing import Any

import torch

from isoflop.flops.calls import Signature
from isoflop.flops.counter import FlopCount
from isoflop.flops.polynomial import KEPT, Law

MAX_KNOWN = 10_000
"""Signatures kept; the oldest are forgotten."""

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
        self._law = Law(batch, values=len(fields(FlopCount))) if 1 <= len(self._variables) - batch <= 2 else None
        if self._law is not None:
            for sizes, count in self.measured.items():
                self._law.add(self._point(sizes), _parts(count))


def _parts(count: FlopCount) -> tuple[int, ...]:
    return astuple(count)


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
        if not families:
            return None
        count = next((found for family in families if (found := family.extrapolate(sizes)) is not None), None)
        return families[-1].nearest(sizes) if count is None else count

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
