"""`Advice`: why, how severe, the numbers with units and intervals, what to do, and what it is based on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum, IntEnum
from typing import Any


class Reason(str, Enum):
    """Why advice is given. The value is for people, the name in small letters for records."""

    FRONTIER = "frontier"
    TOO_LARGE = "model too large for its data"
    TOO_SMALL = "model too small for its data"
    PAST_EFFICIENT = "past the efficient stopping point"
    TARGET = "target out of reach"
    DIVERGING = "the loss diverges"
    OFF_CURVE = "off its own curve"
    BELOW_CURVE = "below what its own curve can explain"
    PLATEAU = "the loss has stopped falling"
    UNFALLEN = "the loss has not fallen since the run began"
    UNCHANGED = "no weight changes"
    RESUMED = "the loss jumped at the resume"
    TOO_LOW = "a loss lower than text allows"
    BATCH_LARGE = "batch above the critical size"
    BATCH_SMALL = "batch far below the critical size"
    EPOCHS = "more epochs than repeated data is worth"
    OVERFITTING = "overfitting"
    SCHEDULE = "the learning rate does not end with the run"
    RATE_HIGH = "learning rate far above what works"
    RATE_LOW = "learning rate far below what works"
    DECAY_HIGH = "weight decay far above what works"
    OFFSET = "an evaluation set drifts from the training data"
    HARDWARE = "slower than this run was"


class Severity(IntEnum):
    """NOTE: a neutral fact; INFO: an opportunity; WARNING: a loss; CRITICAL: the run is lost."""

    NOTE = 0
    INFO = 1
    WARNING = 2
    CRITICAL = 3


TIMES = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
"""Seconds of a unit of time, the largest first."""


@dataclass(frozen=True)
class Quantity:
    """A number with its unit and, where it was estimated, its interval.

    >>> print(Quantity("N", 2.9e9, "parameters", 1.6e9, 5.1e9))
    N = 2.9B parameters [1.6B, 5.1B]
    >>> print(Quantity("time", 0.25, "hours"))
    time = 15 minutes
    >>> print(Quantity("time", 1 / 60, "hours"))
    time = 1 minute
    """

    name: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = f" {self.interval_text}" if self.interval_text else ""
        return f"{self.name} = {self.value_text}{interval}"

    @property
    def value_text(self) -> str:
        """The value with its unit; hours in the unit of time that fits."""
        value, unit = self._short(self.value), self._scale()[1]
        unit = unit.removesuffix("s") if self.unit == "hours" and value == "1" else unit
        return value if unit == "%" else f"{value} {unit}".rstrip()

    @property
    def interval_text(self) -> str:
        """The interval in brackets; "": there is none."""
        return "" if self.low is None or self.high is None else f"[{self._short(self.low)}, {self._short(self.high)}]"

    def _scale(self) -> tuple[float, str]:
        """What values are multiplied with, and the unit then."""
        if self.unit != "hours":
            return 1.0, self.unit
        seconds, unit = next(((s, unit) for s, unit in TIMES if 3600 * abs(self.value) >= s), TIMES[-1])
        return 3600 / seconds, unit

    def _short(self, value: float) -> str:
        if self.unit == "%":
            return f"{100 * value:.3g}%"
        if self.unit.startswith("nats"):
            return nats(value) if abs(value) >= 0.0995 else f"{value:.2g}"
        return count(self._scale()[0] * value)


@dataclass(frozen=True)
class Advice:
    """One piece of advice.

    Attributes:
        reason: why.
        what: what was found, a sentence.
        do: what to do, a sentence; empty: nothing needs doing.
        numbers: what it was computed from; intervals at `level`.
        saves: what following it saves: FLOPs, hours, loss.
        basis: what it is based on: own runs, this run's curve, papers, by name.
        probability: that it is right, given its basis; None: no such number.
        level: of the intervals.
        stops: whether `on_advice="stop"` ends the run for it.
        severity: how severe.
        step: optimizer steps done when it was given.
    """

    reason: Reason
    what: str
    do: str = ""
    numbers: tuple[Quantity, ...] = ()
    saves: tuple[Quantity, ...] = ()
    basis: tuple[str, ...] = ()
    probability: float | None = None
    level: float = 0.8
    stops: bool = False
    severity: Severity = Severity.WARNING
    step: int = 0

    @property
    def title(self) -> str:
        """The reason in short; a rise is no divergence as long as it may be meant."""
        risen = self.reason is Reason.DIVERGING and self.severity < Severity.CRITICAL
        return "the loss has risen" if risen else self.reason.value

    def __str__(self) -> str:
        """The terminal's message: what was found, what to do and what that saves, what it is based on."""
        based = f"Based on: {'; '.join(self.basis)}."
        if self.severity is Severity.NOTE:
            return f"{self.what} {based}"
        lines = [self.what]
        if self.do:
            saves = f" Saves: {_listed(self.saves, self.level)}." if self.saves else ""
            lines.append(f"Do: {self.do}{saves}")
        sure = "" if self.probability is None else f" Probability: {share(self.probability)}."
        return "\n  ".join([*lines, based + sure])

    def markdown(self) -> str:
        """The text of TensorBoard's text tab, with the numbers as a table."""
        lines = [f"**{self.title}** · step {self.step:,} · {self.severity.name.lower()}", "", self.what, ""]
        rows = [("", row) for row in self.numbers] + [("saves: ", row) for row in self.saves]
        if rows:
            lines += ["| | value | interval |", "|---|---|---|"]
            lines += [f"| {mark}{row.name} | {row.value_text} | {row.interval_text or '–'} |" for mark, row in rows]
            lines.append("")
        if any(row.interval_text for _, row in rows):
            lines += [f"Intervals: {self.level:.0%}.", ""]
        if self.do:
            lines += [f"**Do:** {self.do}", ""]
        if self.probability is not None:
            lines += [f"Probability {share(self.probability)}.", ""]
        if self.basis:
            lines.append(f"*Based on: {'; '.join(self.basis)}.*")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the record."""

        def plain(quantities: tuple[Quantity, ...]) -> list[dict[str, Any]]:
            return [
                {key: value for key, value in asdict(each).items() if value not in (None, "")} for each in quantities
            ]

        return {
            "reason": self.reason.name.lower(),
            "severity": self.severity.name.lower(),
            "step": self.step,
            "what": self.what,
            "do": self.do,
            "numbers": plain(self.numbers),
            "saves": plain(self.saves),
            "basis": list(self.basis),
            "probability": self.probability,
            "level": self.level,
        }

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> Advice:
        """The inverse of `as_dict`; who was given it is not asked again whether the run is to stop."""
        rows = {name: tuple(Quantity(**each) for each in known[name]) for name in ("numbers", "saves")}
        reason, severity = Reason[known["reason"].upper()], Severity[known["severity"].upper()]
        return cls(**{**known, **rows, "reason": reason, "severity": severity, "basis": tuple(known["basis"])})


@dataclass(frozen=True)
class Missing:
    """No advice, because something is missing.

    Attributes:
        what: what can't be judged.
        why: what is missing, and how to give it.
        quiet: not worth a line while the run goes on: time may provide it, or another line says it.
    """

    what: str
    why: str
    quiet: bool = False


def nats(loss: float, unit: str = "") -> str:
    """A loss in a sentence; one that is small or has exploded in few digits.

    >>> nats(2.4131, "nats per token"), nats(80144.915), nats(-1e30), nats(1.234e-5)
    ('2.413 nats per token', '80,145', '-1e+30', '1.2e-05')
    """
    size = abs(loss)
    digits = ".2g" if 0 < size < 0.00995 else ".3f" if size < 1e3 else ",.0f" if size < 1e6 else ".3g"
    return f"{loss:{digits}} {unit}".rstrip()


def count(value: float) -> str:
    """Three digits: 73.2B, 1.5e+21, 0.034.

    >>> count(2.9e9), count(20), count(0.0341), count(1e21), count(float("inf"))
    ('2.9B', '20', '0.0341', '1e+21', 'without bound')
    """
    if value == float("inf"):
        return "without bound"
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if limit * 0.9995 <= abs(value) < 1e15:
            return f"{value / (1e3 if letter == 'k' else limit):.3g}{letter}"
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e4 else f"{value:.3g}"


def share(value: float) -> str:
    """A probability or a share: never 100% where it is less.

    >>> share(0.914), share(0.9999), share(0.0002)
    ('91%', 'over 99%', 'under 1%')
    """
    return "over 99%" if value > 0.99 else "under 1%" if value < 0.01 else f"{value:.0%}"


def _listed(quantities: tuple[Quantity, ...], level: float) -> str:
    text = ", ".join(map(str, quantities))
    return f"{text} ({level:.0%} intervals)" if any(each.low is not None for each in quantities) else text
