"""What fitting below a budget and predicting above it found, printed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from isoflop.fit.fitting.fit_law import LawFit
from isoflop.fit.fitting.newton import Array

_PRINTED = 12


@dataclass(frozen=True, eq=False)
class Extrapolation:
    """A law fitted to small runs, held against larger ones.

    Attributes:
        fit: of the runs up to `below`.
        by: what the runs were parted by.
        below: the largest value that was fitted to.
        rows: what each test run is called [m], the smallest budget first, like all that follows.
        budget: of the test runs, in the unit of `by` [m].
        loss: what they reached, nats per token [m].
        predicted: what the law expects [m].
        low, high: the prediction's interval at the fit's level, with the noise of single runs [m]; 0 and ∞ where there
            are too few runs to tell their noise.
        error: predicted/loss − 1 [m].
        reach: the largest test budget over the largest fitted one.
        median_error, largest_error: of |error|.
        inside: share of the test runs inside their intervals; None where there are none.
        trusted: whether the test runs, and those of the farther half of the way (in ln budget) by themselves, lie
            inside their intervals as often as the law's draws expect; None where they are too few to tell.
        verdict: in a sentence or two.
    """

    fit: LawFit
    by: str
    below: float
    rows: tuple[object, ...] = field(repr=False)
    budget: Array = field(repr=False)
    loss: Array = field(repr=False)
    predicted: Array = field(repr=False)
    low: Array = field(repr=False)
    high: Array = field(repr=False)
    error: Array = field(repr=False)
    reach: float
    median_error: float
    largest_error: float
    inside: float | None
    trusted: bool | None
    verdict: str

    def __str__(self) -> str:
        level = f"{self.fit.level:.0%}"
        lines = [
            f"{self.fit.law.form.text}   fitted to {self.fit.n} runs up to {self.by} = {self.below:.4g}, tested on "
            f"{len(self.loss)} above",
            f"  {'run':>10} {self.by:>10} {'measured':>9} {'predicted':>9}   {level + ' interval':17} {'error':>8}",
        ]
        shown = np.unique(np.linspace(0, len(self.loss) - 1, min(_PRINTED, len(self.loss))).round().astype(int))
        for i in shown:
            between = f"{self.low[i]:.4f} … {self.high[i]:.4f}" if self.inside is not None else "unknown"
            outside = "" if self.low[i] <= self.loss[i] <= self.high[i] else " outside"
            lines.append(
                f"  {self.rows[i]!s:>10.10} {self.budget[i]:>10.4g} {self.loss[i]:>9.4f} {self.predicted[i]:>9.4f}   "
                f"{between:17} {self.error[i]:>+8.2%}{outside}"
            )
        if len(shown) < len(self.loss):
            lines.append(f"  ({len(self.loss) - len(shown)} more runs between these)")
        inside = "" if self.inside is None else f"; {self.inside:.0%} inside the {level} interval"
        lines.append(f"  |error|: median {self.median_error:.2%}, largest {self.largest_error:.2%}{inside}")
        lines.append(f"  {self.verdict}")
        return "\n".join(lines + [f"  ! {warning}" for warning in self.fit.warnings])
