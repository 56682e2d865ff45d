"""What a source has measured in one step: numbers that stay on their device until a log step reads and sums them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from isoflop.observe.noise.estimator import PartSums, StepEstimate, Unusable, estimate_step
from isoflop.observe.ranks import sum_over_ranks, world_size

Number = float | int | torch.Tensor

MAX_WAITING = 32
"""Measured steps that wait for a log step at most: the collective is of one size whatever a rank has measured."""
TOLERANCE = 0.05
"""Of the check that the parts add up to the step's gradient: far above bfloat16's rounding, far below a lost part."""


class Measured(NamedTuple):
    """One measured step on this rank; over ranks every field adds up.

    The check is the sum of one small parameter's gradient, a linear function: over the parts it must come to that of
    the step's gradient.
    """

    step: Number
    raw_squares: Number
    raw_whole: Number
    preconditioned_squares: Number  # NaN: not measured
    preconditioned_whole: Number
    parts: Number
    tokens: Number
    tokens_squared: Number
    inverse_tokens: Number
    check_parts: Number
    check_squares: Number
    check_whole: Number
    check_whole_squared: Number  # over ranks its mean, so that ranks that differ are noticed; NaN: ranks hold shards


@dataclass(frozen=True, slots=True)
class StepResult:
    """A measured step of all ranks: the estimates, or why there are none."""

    step: int
    raw: StepEstimate | Unusable
    preconditioned: StepEstimate | Unusable | None


def gather(waiting: Sequence[Measured], own: Sequence[float]) -> tuple[list[Measured], list[float]]:
    """Read what waits and sum it over ranks. A collective of a fixed size; every rank calls it at the same step.

    A step that some rank has not measured is left out.

    Args:
        waiting: at most `MAX_WAITING`.
        own: other numbers to sum along.
    """
    rows = read(waiting)
    ranks = world_size()
    if ranks == 1:
        return rows, list(own)
    width = 1 + len(Measured._fields)
    packed = [number for row in rows for number in (1.0, *map(float, row))]
    packed += [0.0] * (width * MAX_WAITING - len(packed))
    _, summed = sum_over_ranks([], [*packed, *own])  # NaN and infinity come through a sum as such
    together = []
    for i, row in enumerate(rows):
        here, step, *rest = summed[i * width : (i + 1) * width]
        if here == ranks and step == ranks * row.step:
            together.append(Measured(row.step, *rest))
    return together, summed[width * MAX_WAITING :]


def read(waiting: Sequence[Measured]) -> list[Measured]:
    """The numbers of measured steps, with one wait a device."""
    tensors = [value for row in waiting for value in row if isinstance(value, torch.Tensor)]
    values: dict[int, float] = {}
    for device in {tensor.device for tensor in tensors}:
        here = [tensor for tensor in tensors if tensor.device == device]
        read_out = torch.stack([tensor.detach().to(torch.float32).reshape(()) for tensor in here]).tolist()
        values.update(zip(map(id, here), read_out, strict=True))

    def number(value: Number) -> float:
        return values[id(value)] if isinstance(value, torch.Tensor) else value

    return [Measured(*map(number, row)) for row in waiting]


def result(row: Measured, by_tokens: bool) -> StepResult:
    """The estimates of a step that has been read and summed."""
    numbers = Measured(*map(float, row))
    step = int(numbers.step)
    if numbers.parts >= 2 and not math.isfinite(numbers.raw_squares + numbers.raw_whole):
        return StepResult(step, Unusable.NOT_FINITE, None)
    if numbers.parts >= 2 and not _adds_up(numbers):
        return StepResult(step, Unusable.NOT_THE_SUM, None)
    raw = _estimate(numbers, numbers.raw_squares, numbers.raw_whole, by_tokens)
    if math.isnan(numbers.preconditioned_squares + numbers.preconditioned_whole):
        return StepResult(step, raw, None)
    preconditioned = _estimate(numbers, numbers.preconditioned_squares, numbers.preconditioned_whole, by_tokens)
    return StepResult(step, raw, preconditioned)


def _adds_up(row: Measured) -> bool:
    allowed = TOLERANCE**2 * max(float(row.check_squares), 0.0)
    whole = float(row.check_whole)
    # the second: of a gradient that is not the same on every rank the mean alone would pass
    apart = float(row.check_whole_squared) - whole**2
    return (float(row.check_parts) - whole) ** 2 <= allowed and not apart > allowed


def _estimate(row: Measured, squares: Number, whole: Number, by_tokens: bool) -> StepEstimate | Unusable:
    parts = PartSums(
        float(row.parts),
        float(squares),
        float(row.tokens),
        float(row.tokens_squared),
        float(row.inverse_tokens),
        by_tokens,
    )
    return estimate_step(parts, float(whole))
