"""FLOPs of a (micro-)batch by its signature: measured once a shape, a look-up afterwards.

For a dense transformer FLOPs are B·S·(p + q·S) in batch B and length S: two measured lengths give p and q, a third
that fits exactly confirms them, and from then on no length between them is measured again. Whatever does not follow
that law is measured once a shape, within a budget of time; past it a new shape is estimated from the nearest one, and
that is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from isoflop.observe.calls import Signature
from isoflop.observe.counter import FlopCount

BUDGET_SECONDS = 30.0
"""Measuring takes 0.2–2 s a shape; a run with more shapes than this buys gets estimates …"""
BUDGET_SHARE = 0.002
"""… unless it is long enough that they cost less than this share of its wall time."""

MAX_KNOWN = 10_000
"""Signatures kept; those beyond are computed from the law or estimated each time."""


@dataclass
class _Family:
    """Signatures that differ in batch size and length alone: (B, S) → measured FLOPs."""

    measured: dict[tuple[int, int], FlopCount] = field(default_factory=dict)
    law: tuple[tuple[Fraction, Fraction], ...] | None = None

    def learn(self, batch: int, length: int, count: FlopCount) -> None:
        self.measured[batch, length] = count
        by_length = {s: (b, c) for (b, s), c in self.measured.items()}
        if len(by_length) < 3:
            return
        (s1, (b1, c1)), (s2, (b2, c2)) = list(by_length.items())[:2]
        law = []
        for one, two in zip(_parts(c1), _parts(c2), strict=True):
            per1, per2 = Fraction(one, b1 * s1), Fraction(two, b2 * s2)
            q = (per1 - per2) / (s1 - s2)
            law.append((per1 - q * s1, q))
        self.law = tuple(law)
        if any(self._by_law(b, s) != c for (b, s), c in self.measured.items()):
            self.law = None

    def predict(self, batch: int, length: int) -> FlopCount | None:
        """By the law, where it has been confirmed: between the measured lengths (longer ones may meet a window) and
        at multiples of what divides them all (a model that pads to chunks follows a law at whole chunks alone).
        """
        lengths = [s for _, s in self.measured]
        if self.law is None or not min(lengths) <= length <= max(lengths) or length % math.gcd(*lengths):
            return None
        return self._by_law(batch, length)

    def _by_law(self, batch: int, length: int) -> FlopCount | None:
        if self.law is None:
            return None
        values = [batch * length * (p + q * length) for p, q in self.law]
        if any(value.denominator != 1 for value in values):
            return None
        return FlopCount(*(int(value) for value in values))

    def estimate(self, batch: int, length: int) -> FlopCount:
        by_law = self._by_law(batch, length)
        if by_law is not None:
            return by_law
        (b, s), count = min(self.measured.items(), key=lambda item: abs(item[0][1] - length))
        return FlopCount(*(round(Fraction(part * batch * length, b * s)) for part in _parts(count)))


class StepCost:
    """What a (micro-)batch of a signature costs, as far as it is known."""

    def __init__(self) -> None:
        self._known: dict[Signature, FlopCount] = {}
        self._families: dict[Any, _Family] = {}
        self.seconds = 0.0
        self.estimated = 0
        """How many shapes got an estimate rather than a measurement."""

    def lookup(self, key: Signature) -> FlopCount | None:
        """FLOPs of a batch with this signature; None: to be measured (and `learn`ed)."""
        count = self._known.get(key)
        if count is None:
            count = self._by_law(key)
            if count is not None and len(self._known) < MAX_KNOWN:
                self._known[key] = count
        return count

    def learn(self, key: Signature, count: FlopCount, seconds: float = 0.0) -> None:
        """Keep what was measured for a signature, and what it took."""
        self._known[key] = count
        self.seconds += seconds
        template, sizes = _template(key)
        if sizes is not None:
            self._families.setdefault(template, _Family()).learn(*sizes, count)

    def may_measure(self, wall_time: float) -> bool:
        """Whether one more measurement is within the budget at this point of the run."""
        return self.seconds <= max(BUDGET_SECONDS, BUDGET_SHARE * wall_time)

    def estimate(self, key: Signature) -> FlopCount | None:
        """FLOPs by the nearest measured length; None where nothing alike was measured."""
        template, sizes = _template(key)
        family = self._families.get(template)
        if family is None or sizes is None:
            return None
        self.estimated += 1
        count = family.estimate(*sizes)
        if len(self._known) < MAX_KNOWN:
            self._known[key] = count
        return count

    def forget(self) -> None:
        """The model has changed (layers frozen or thawed): measure anew."""
        self._known.clear()
        self._families.clear()

    def _by_law(self, key: Signature) -> FlopCount | None:
        if not self._families:
            return None
        template, sizes = _template(key)
        family = self._families.get(template)
        return None if family is None or sizes is None else family.predict(*sizes)


def _parts(count: FlopCount) -> tuple[int, int, int]:
    return count.model, count.hardware, count.attention


def _template(key: Signature) -> tuple[Any, tuple[int, int] | None]:
    """The signature with its batch size and length replaced by letters, and (B, S); None where it has none."""
    first = first_matrix(key)
    if first is None:
        return key, None
    batch, length = first[0], first[1]

    def replace(part: Any) -> Any:
        if isinstance(part, tuple):
            if part and all(type(size) is int for size in part):
                letters = ["B" if size == batch and i == 0 else size for i, size in enumerate(part)]
                return tuple("S" if size == length and i > 0 else size for i, size in enumerate(letters))
            return tuple(replace(item) for item in part)
        return part

    return replace(key), (batch, length)


def first_matrix(key: Any) -> tuple[int, ...] | None:
    """The first shape of two dimensions or more in a signature: (batch, length, …)."""
    if not isinstance(key, tuple):
        return None
    if len(key) >= 2 and all(type(size) is int for size in key):
        return key
    return next((found for part in key if (found := first_matrix(part)) is not None), None)
