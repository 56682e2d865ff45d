"""The points of an imported run: its losses with the counts at their steps, thinned as isoflop's own record is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone

from isoflop.record.cadence import due
from isoflop.record.run import Point

from .counts import Counts
from .logged import Column, Logged, in_order
from .names import is_rate
from .track import Track, whole_at

TRAIN = "train"


def points_of(logged: Logged, losses: Mapping[str, Column], counts: Counts) -> tuple[Point, ...]:
    """The points by step: means of the training loss since the point before, evaluations as they are."""
    rates = _rates(logged)
    found: dict[int, Point] = {}
    if TRAIN in losses:
        for step, loss, covered, time in _thinned(losses[TRAIN], logged.averaged):
            found[step] = _point(step, {TRAIN: loss}, covered, time, counts, rates)
    for name, column in losses.items():
        if name == TRAIN:
            continue
        last = len(column)
        for index, (step, loss, time) in enumerate(column, 1):
            if due(index) or index == last:
                point = _point(step, {name: loss}, 0, time, counts, rates)
                found[step] = found[step].merged(point) if step in found else point
    return _with_batches([found[step] for step in sorted(found)], logged)


def _thinned(column: Column, averaged: bool) -> list[tuple[int, float, int, float]]:
    """(step, mean loss, optimizer steps in it, time) at the log steps that are due, and the last."""
    found: list[tuple[int, float, int, float]] = []
    total, count, since = 0.0, 0, 0
    last = len(column)
    for index, (step, loss, time) in enumerate(column, 1):
        total, count = total + loss, count + 1
        if due(index) or index == last:
            covered = max(step - since, 1) if averaged else count
            found.append((step, total / count if count > 1 else loss, covered, time))
            total, count, since = 0.0, 0, step
    return found


def _point(
    step: int, losses: dict[str, float], covered: int, time: float, counts: Counts, rates: Track | None
) -> Point:
    tokens, data = whole_at(counts.tokens, step), whole_at(counts.data_tokens, step)
    return Point(
        step=step,
        tokens=tokens,
        padding=None if tokens is None or data is None else max(tokens - data, 0),
        loss_tokens=whole_at(counts.loss_tokens, step),
        flops=whole_at(counts.flops, step),
        flops_6nd=whole_at(counts.flops_6nd, step),
        losses=losses,
        lr=None if rates is None else rates.at(step),
        interval_steps=covered,
        time=time if math.isfinite(time) and 0 <= time < 2.5e11 else None,
    )


def _rates(logged: Logged) -> Track | None:
    """Learning rates by step; of several parameter groups the first."""
    name = min(
        (one for one in logged.columns if is_rate(one)), key=lambda one: (one.startswith("lr-"), one), default=None
    )
    if name is None:
        return None
    tidy, _, _ = in_order(logged.columns[name])
    rows = [(step, value) for step, value, _ in tidy if math.isfinite(value) and value >= 0]
    if not rows:
        return None
    return _Between([step for step, _ in rows], [value for _, value in rows])


class _Between(Track):
    """Learning rates: on a line between those logged, unknown before the first and after the last."""

    def at(self, step: int) -> float | None:
        """The rate of a step."""
        return super().at(step) if step >= self._steps[0] else None


def _with_batches(points: list[Point], logged: Logged) -> tuple[Point, ...]:
    """Each with the mean tokens of a step: as logged, or since the point before."""
    if len(points) < 2:  # the end of a run: all its tokens are no batch
        return tuple(points)
    own = logged.columns.get("isoflop/batch_tokens")
    said = {} if own is None else dict(zip(own.steps, own.values, strict=True))
    result: list[Point] = []
    step, tokens = 0, 0
    for point in points:
        batch = said.get(point.step)
        if batch is None and point.tokens is not None and point.step > step and point.tokens >= tokens:
            batch = (point.tokens - tokens) / (point.step - step)
        result.append(point if batch is None or batch < 0 else replace(point, batch_tokens=batch))
        if point.tokens is not None:
            step, tokens = point.step, point.tokens
    return tuple(result)


def iso_time(seconds: float | None) -> str:
    """A unix time as records write it; empty where there is none."""
    if seconds is None or not 0 <= seconds < 2.5e11:
        return ""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
