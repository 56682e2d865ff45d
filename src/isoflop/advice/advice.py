"""`Advice`: why, how bad, the numbers with units and intervals, what to do about it, and what it rests on.

Every threshold of the advice, in one place; `thresholds=` changes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any


class Reason(str, Enum):
    """Why something is said. The value is the name in records and scalars."""

    FRONTIER = "frontier"
    TOO_LARGE = "model too large for its data"
    TOO_SMALL = "model too small for its data"
    PAST_EFFICIENT = "past the efficient stopping point"
    TARGET = "target out of reach"
    DIVERGING = "the loss diverges"
    OFF_CURVE = "off its own curve"
    PLATEAU = "the loss has stopped falling"
    BATCH_LARGE = "batch above the critical size"
    BATCH_SMALL = "batch far below the critical size"
    EPOCHS = "more epochs than repeated data is worth"
    OVERFITTING = "overfitting"
    SCHEDULE = "the learning rate does not end with the run"
    HARDWARE = "slower than this run was"


class Severity(IntEnum):
    """NOTE: a neutral fact; INFO: something could be had; WARNING: something is lost; CRITICAL: the run is."""

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
    >>> print(Quantity("time", 0.0022, "hours"))
    time = 7.92 seconds
    """

    name: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        shown = self._in_fitting_unit()
        unit = "" if shown.unit == "%" else f" {shown.unit}".rstrip()
        text = f"{shown.name} = {shown._short(shown.value)}{unit}"
        if shown.low is None or shown.high is None:
            return text
        return f"{text} [{shown._short(shown.low)}, {shown._short(shown.high)}]"

    def _in_fitting_unit(self) -> Quantity:
        if self.unit != "hours":
            return self
        seconds, unit = next(((s, unit) for s, unit in TIMES if 3600 * abs(self.value) >= s), TIMES[-1])
        low, high = (None if end is None else 3600 * end / seconds for end in (self.low, self.high))
        return Quantity(self.name, 3600 * self.value / seconds, unit, low, high)

    def _short(self, value: float) -> str:
        if self.unit == "%":
            return f"{100 * value:.3g}%"
        if self.unit.startswith("nats"):
            return nats(value) if abs(value) >= 0.0995 else f"{value:.2g}"
        return count(value)


def nats(loss: float) -> str:
    """A loss in a sentence; one that has exploded in few digits.

    >>> nats(2.4131), nats(-1e30)
    ('2.413', '-1e+30')
    """
    return f"{loss:.3f}" if abs(loss) < 1e6 else f"{loss:.3g}"


def duration(name: str, hours: float, low: float | None = None, high: float | None = None) -> Quantity:
    """In hours, or in minutes where it is less than one.

    >>> print(duration("time", 0.25))
    time = 15 minutes
    """
    if hours >= 1:
        return Quantity(name, hours, "hours", low, high)
    return Quantity(name, 60 * hours, "minutes", None if low is None else 60 * low, None if high is None else 60 * high)


@dataclass(frozen=True)
class Advice:
    """One piece of advice.

    Attributes:
        reason: why.
        severity: how bad.
        step: optimizer steps done when it was given.
        what: what was found, a sentence.
        do: what to do, a sentence; empty: nothing needs doing.
        numbers: what it was computed from; intervals at `level`.
        saves: what following it saves or buys: FLOPs, hours, loss.
        basis: what it rests on: own runs, this run's curve, papers, by name.
        probability: that what it says is so, given its basis; None: no such number.
        level: of the intervals.
        stops: whether `on_advice="stop"` ends the run for it.
    """

    reason: Reason
    severity: Severity
    step: int
    what: str
    do: str = ""
    numbers: tuple[Quantity, ...] = ()
    saves: tuple[Quantity, ...] = ()
    basis: tuple[str, ...] = ()
    probability: float | None = None
    level: float = 0.8
    stops: bool = False

    def __str__(self) -> str:
        """What the terminal shows: one line a thought, so that it reads in any width."""
        rests = f"Rests on: {'; '.join(self.basis)}."
        if self.severity is Severity.NOTE:
            return f"{self.what} {rests}"
        parts = [self.what]
        if self.numbers:
            parts.append(f"Numbers: {_listed(self.numbers, self.level)}.")
        if self.do:
            parts.append(f"Do: {self.do}")
        if self.saves:
            parts.append(f"Worth: {_listed(self.saves, self.level)}.")
        sure = "" if self.probability is None else f" Probability: {share(self.probability)}."
        parts.append(rests + sure)
        return "\n  ".join(parts)

    def markdown(self) -> str:
        """What TensorBoard's text tab shows."""
        lines = [f"**{self.reason.value}** · step {self.step:,} · {self.severity.name.lower()}", "", self.what, ""]
        rows = [*self.numbers, *self.saves]
        if rows:
            lines += ["| | value | interval |", "|---|---|---|"]
            for i, row in enumerate(rows):
                name, value = str(row).rsplit(" = ", 1)
                value, _, rest = value.partition(" [")
                worth = "worth: " if i >= len(self.numbers) else ""
                lines.append(f"| {worth}{name} | {value} | {'[' + rest if rest else '–'} |")
            lines.append("")
        if any(row.low is not None for row in rows):
            lines += [f"Intervals: {self.level:.0%}.", ""]
        lines += [f"**Do:** {self.do}", ""] if self.do else []
        if self.probability is not None:
            lines += [f"Probability {share(self.probability)}.", ""]
        return "\n".join([*lines, *(f"*Rests on: {'; '.join(self.basis)}.*" for _ in self.basis[:1])])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the record."""

        def plain(quantities: tuple[Quantity, ...]) -> list[Mapping[str, Any]]:
            kept = ("name", "value", "unit", "low", "high")
            return [
                {key: value for key in kept if (value := getattr(each, key)) not in (None, "")} for each in quantities
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


@dataclass(frozen=True)
class Missing:
    """No advice, for want of something.

    Attributes:
        what: what can't be judged.
        why: what is missing, and how to give it.
        quiet: not worth a line while the run goes on: time may mend it, or it is said elsewhere.
    """

    what: str
    why: str
    quiet: bool = False


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


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When something is said. Attributes:

    sure: probability that a warning needs: of a direction (too large, too small), of a batch beyond its bound.
    waste: extra compute over what the same loss would cost at the best size, from which a size is worth a warning.
        .2 is about a factor of 2 in N …
    waste_sure: … surely: the lower bound of a 70% interval. By the prior's width that takes D/N off by a factor of 7.
    frontier_steps: share of the planned run that must be left for advice about the rest of it.
    target: probability that the final loss misses the target.
    divergence: how far the loss must lie above its own best, in standard deviations of a logged loss …
    divergence_share: … and as a share of the best loss …
    divergence_span: … for this share of the steps done.
    off_curve: standard deviations between a logged loss and what was forecast for it …
    off_curve_share: … and the share of the loss. On 141 public curves of healthy runs 99.5% of pairs of forecasts miss
        by less than 4.2 standard deviations, and by less than 2.7%.
    plateau: share of the fall expected over the last doubling of tokens, below which the loss has stopped falling.
    in_a_row: log steps in a row at which a finding must stand before it is said.
    batch_large: B/B_crit above which compute is wasted: 2 is 2/3 of it (E/E_min = 1 + B/B_crit).
    batch_small: B/B_crit below which steps are wasted. Between .16 and .2 lies the batch of least loss.
    epoch_worth: worth of the next repeated token in new ones (Muennighoff et al. 2023) below which epochs are too many.
    overfitting: rise of an evaluation loss above its best, as a share of it (and beyond its scatter), that counts.
    schedule_over: how much longer than the run a decay may be planned: 25%, Hoffmann et al. 2022 (appendix B).
    slow: share of this run's own best speed …
    slow_hours: … where that would cost so much of the time that is left.
    stop_past_efficient: whether on_advice="stop" ends a run past its efficient stopping point too.
    """

    sure: float = 0.9
    waste: float = 0.2
    waste_sure: float = 0.85
    frontier_steps: float = 0.1
    target: float = 0.95
    divergence: float = 8.0
    divergence_share: float = 0.05
    divergence_span: float = 0.01
    off_curve: float = 5.0
    off_curve_share: float = 0.03
    plateau: float = 0.15
    in_a_row: int = 3
    batch_large: float = 2.0
    batch_small: float = 0.25
    epoch_worth: float = 0.25
    overfitting: float = 0.01
    schedule_over: float = 1.25
    slow: float = 0.7
    slow_hours: float = 0.1
    stop_past_efficient: bool = False
