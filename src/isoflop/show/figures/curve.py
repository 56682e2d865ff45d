"""A run as columns of numbers, which is what figures are made from: read from its points once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from isoflop.record import Point, Run
from isoflop.show.figures.figure import Array


@dataclass(frozen=True, eq=False)
class RunCurve:
    """A run's points as arrays of one length; NaN where unknown.

    Attributes:
        run: the record without its points.
        step, tokens, flops, batch: optimizer steps, D, measured FLOPs, tokens processed a step.
        lr, count: learning rate, and optimizer steps averaged into the training loss.
        losses: by name, nats per token.
        nonfinite: by name of the loss, where it was recorded and was no number.
        extra: the record's further scalars (`forecast_loss`, `b_crit` …) by name.
    """

    run: Run
    step: Array
    tokens: Array
    flops: Array
    batch: Array
    lr: Array
    count: Array
    losses: Mapping[str, Array]
    nonfinite: Mapping[str, Array] = field(default_factory=dict)
    extra: Mapping[str, Array] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """Of the record."""
        return self.run.run_id

    @property
    def name(self) -> str:
        """For people."""
        return self.run.name or self.run.run_id

    def size(self, convention: str) -> float | None:
        """N of a convention; None: unknown."""
        N = self.run.parameters.get(convention)
        return float(N) if N else None

    def known(self, loss: str, x: Array) -> Array:
        """Where the loss was recorded, a number or not, and x is known [points]."""
        if loss not in self.losses:
            return np.zeros(len(self.step), dtype=bool)
        recorded = np.isfinite(self.losses[loss]) | self.nonfinite.get(loss, np.zeros(len(self.step), dtype=bool))
        return np.asarray(recorded & np.isfinite(x) & (x > 0))


def curve_of_run(run: Run) -> RunCurve:
    """The columns of a run's points."""
    points = run.points
    names = dict.fromkeys(name for point in points for name in point.losses)
    extra = dict.fromkeys(name for point in points for name in point.extra)
    nonfinite = {
        name: np.array([name in point.nonfinite for point in points], dtype=bool)
        for name in names
        if any(name in point.nonfinite for point in points)
    }
    return RunCurve(
        replace(run, points=()),
        step=np.array([point.step for point in points], dtype=float),
        tokens=_column(points, "data_tokens"),
        flops=_column(points, "flops"),
        batch=_column(points, "batch_tokens"),
        lr=_column(points, "lr"),
        count=_column(points, "interval_steps"),
        losses={name: _items([point.losses.get(name) for point in points]) for name in names},
        nonfinite=nonfinite,
        extra={name: _items([point.extra.get(name) for point in points]) for name in extra},
    )


def _column(points: Sequence[Point], name: str) -> Array:
    return _items([getattr(point, name) for point in points])


def _items(values: Sequence[float | None]) -> Array:
    return np.array([np.nan if value is None else float(value) for value in values], dtype=float)
