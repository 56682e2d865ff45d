"""Real configurations of a family: depth, width and heads by the field's aspect ratios, from 1e4 parameters up."""

from __future__ import annotations

import math
from functools import lru_cache

from isoflop.ladder.families import Family, Shape

LEAST_DEPTH, LEAST_WIDTH = 2, 16
"""Less is no transformer of this kind: one layer alone can't copy what it saw (Olsson et al. 2022)."""
TOLERATED = 1.25
"""A factor of the aspect ratio; loss moves by 3% over a factor of 40 (Kaplan et al. 2020, section 3.1)."""
APART = 1.12
"""Least factor between neighbouring sizes."""


def size_grid(family: Family, least: float, most: float) -> tuple[Shape, ...]:
    """Configurations from `least` to `most` parameters (with the head), smallest first.

    Widths are multiples of a head's; where two configurations nearly coincide the one nearer to the family's aspect
    ratio stays.
    """
    shapes: list[Shape] = []
    depth = LEAST_DEPTH
    while True:
        found = [shape for shape in _of_depth(family, depth) if size_of(shape) <= most]
        if not found and depth > LEAST_DEPTH:
            break
        shapes += [shape for shape in found if size_of(shape) >= least]
        depth += 1
    kept: list[Shape] = []
    for shape in sorted(shapes, key=size_of):
        if kept and size_of(shape) < APART * size_of(kept[-1]):
            if _off(shape) < _off(kept[-1]):
                kept[-1] = shape
        else:
            kept.append(shape)
    return tuple(kept)


def size_of(shape: Shape) -> int:
    """N with the head: what the ladder's laws count."""
    return shape.parameters["non_embedding_with_head"]


def nearest(grid: tuple[Shape, ...], N: float) -> Shape:
    """The configuration nearest to N in ln N."""
    return min(grid, key=lambda shape: abs(math.log(size_of(shape) / N)))


def _of_depth(family: Family, depth: int) -> list[Shape]:
    narrowest = LEAST_WIDTH if depth == LEAST_DEPTH else depth * family.aspect / TOLERATED
    widest = depth * family.aspect * TOLERATED
    found, width = [], LEAST_WIDTH
    while width <= widest:
        if width >= narrowest:
            heads = _heads(family, width)
            found.append(Shape(family, depth, width, heads, width // heads))
        width += _step(family, width)
    return found


def _step(family: Family, width: int) -> int:
    """To the next width: of about a tenth, in multiples that divide into heads and that hardware likes."""
    if width >= 8 * family.head_dim:
        return family.head_dim * (2 if width >= 32 * family.head_dim else 1)
    return 8 if width < 128 else 16 if width < 256 else 64


@lru_cache(maxsize=4096)
def _heads(family: Family, width: int) -> int:
    """As many as bring an even head dimension nearest to the family's, or to a quarter of the width where that is less.

    At least one; a multiple of the family's heads per key-value head where there are as many.
    """
    wanted = min(float(family.head_dim), max(16.0, width / 4))
    fit = [
        heads
        for heads in range(1, width // 2 + 1)
        if width % (2 * heads) == 0 and heads % min(family.query_groups, heads) == 0
    ]
    return min(fit, key=lambda heads: abs(math.log(width / heads / wanted)))


def _off(shape: Shape) -> float:
    return abs(math.log(shape.width / (shape.depth * shape.family.aspect)))
