"""An allocation of compute: parameters, tokens, the loss they give, and the intervals of what is uncertain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from isoflop.fit.frontier.solve import Array
from isoflop.fit.law import Convention

Intervals = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Allocation:
    """So many parameters, so many tokens, and what they give.

    Attributes:
        N: parameters, of the law's convention.
        D: training tokens, repeated ones included.
        loss: nats per token.
        flops: training FLOPs.
        tokens_per_param: D/N.
        intervals: (low, high) by attribute, for what the law's draws leave uncertain; None where it has no draws.
        level: of the intervals.
        inference_flops: what serving the tokens asked for costs.
        unique_tokens: the stock, where one was given.
        convention: which parameters N counts.
        notes: what to know before relying on it.
    """

    N: float
    D: float
    loss: float
    flops: float
    tokens_per_param: float
    intervals: Intervals | None = None
    level: float | None = None
    inference_flops: float = 0.0
    unique_tokens: float | None = None
    convention: Convention = "unknown"
    notes: tuple[str, ...] = ()

    @property
    def total_flops(self) -> float:
        """Training and inference FLOPs."""
        return self.flops + self.inference_flops

    @property
    def epochs(self) -> float | None:
        """Passes over the stock of unique tokens; None where none was given."""
        return None if self.unique_tokens is None else max(1.0, self.D / self.unique_tokens)

    def __str__(self) -> str:
        counted = "" if self.convention == "unknown" else f", {self.convention.replace('_', ' ')}"
        lines = [
            ("N", "N", f"parameters{counted}"),
            ("D", "D", "tokens"),
            ("D/N", "tokens_per_param", "tokens per parameter"),
            ("loss", "loss", "nats per token"),
            ("FLOPs", "flops", "to train"),
        ]
        if self.inference_flops:
            lines += [("", "inference_flops", "to serve"), ("", "total_flops", "in all")]
        if self.unique_tokens is not None:
            lines += [("epochs", "epochs", f"over {short(self.unique_tokens)} unique tokens")]
        return "\n".join([*(self._line(*line) for line in lines), *(f"note: {note}" for note in self.notes)])

    def _line(self, label: str, name: str, unit: str) -> str:
        show = {"N": short, "D": short, "loss": "{:.4f}".format, "tokens_per_param": "{:.3g}".format}.get(
            name, "{:.3g}".format
        )
        text = f"{label:<7}{show(getattr(self, name)):>9}  {unit}"
        if self.intervals is None or self.level is None or name not in self.intervals:
            return text
        low, high = self.intervals[name]
        return f"{text}  [{show(low)}, {show(high)}] {self.level:.0%}"


def interval(values: Array, level: float) -> tuple[float, float]:
    """Percentiles (1 ± level)/2 of draws; NaN draws, which have no answer, are left out, infinite ones count."""
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan"), float("nan")
    ends = [(1 - level) / 2, (1 + level) / 2]
    if np.isfinite(values).all():
        low, high = np.quantile(values, ends)
    else:  # between a number and infinity there is nothing to interpolate
        low, high = np.quantile(values, ends, method="inverted_cdf")
    return float(low), float(high)


def short(count: float) -> str:
    """A count in three digits: 73.2B."""
    for limit, letter in ((1e15, "Q"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if limit * 0.9995 <= count < 1e18:
            return f"{count / limit:.3g}{letter}"
    return f"{count:.3g}"
