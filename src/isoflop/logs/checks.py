"""What was read, held against itself: N, D, C and the loss must be possible together, in this world.

What is not is asked, and left out of the record until it is answered. What the user gave is not doubted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from isoflop.record.run import Point

FEWEST_PARAMETERS = 1000
"""Fewer are millions or billions."""
TOKENS_A_PARAMETER = (1e-3, 1e6)
"""Public runs lie between .02 and 1e4; outside N or D alone is in millions, or D counts samples or bytes of media."""
FLOPS_OVER_6ND = 3.0
"""Attention, the head and the conventions of N make less than this."""
TOKENS_A_SECOND = 1e10
FLOPS_A_SECOND = 1e21
"""More than the largest cluster computes."""
UNTRAINED = 11.0
"""Nats per token: ln V of the usual vocabularies, which a run that learned anything falls below."""


@dataclass(frozen=True)
class Doubt:
    """What can't be: which of `params`, `tokens`, `flops` and `loss`, in words, and the option that answers it."""

    of: tuple[str, ...]
    text: str
    answer: str


@dataclass(frozen=True)
class Claims:
    """What is claimed of a run.

    Attributes:
        size: N, with the output head where that is known.
        given: of `params`, `tokens`, `flops` those that the user gave, or that isoflop counted itself.
        logged_flops: whether C was logged, not computed from N and D.
        vocabulary: tokens in the vocabulary.
        units: of losses that are not in nats.
    """

    size: int | None
    given: frozenset[str]
    logged_flops: bool
    vocabulary: float | None
    units: Mapping[str, str]


def doubts_of(claims: Claims, points: Sequence[Point]) -> Iterator[Doubt]:
    """What of a run can't be, one doubt a quantity."""
    last = points[-1]
    N, D, C = claims.size, last.tokens, last.flops
    trusted = {"params", "tokens"} <= claims.given
    if N is not None and N < FEWEST_PARAMETERS and "params" not in claims.given:
        text = f"N is {N:,}, fewer than a model has, as if in millions"
        yield Doubt(
            ("params", "tokens", "flops"), text, "a column's name that tells the unit (params_M, tokens_B), --params"
        )
        N = D = None
    if N and D is not None and not trusted and not TOKENS_A_PARAMETER[0] <= D / N <= TOKENS_A_PARAMETER[1]:
        text = f"N {N:.3g} and D {D:.3g} make {D / N:.3g} tokens a parameter"
        yield Doubt(("params", "tokens", "flops"), text, "--params 124M --tokens-per-step 524288")
        D = None
    if N and D and C and claims.logged_flops and "flops" not in claims.given:
        rate = C / (6 * N * D)
        if not 1 / FLOPS_OVER_6ND <= rate <= FLOPS_OVER_6ND:
            text = f"FLOPs {C:.3g} as logged are {rate:.3g} times 6·N·D with N {N:.3g}, D {D:.3g}: one of them is wrong"
            wrong = ("flops",) if trusted else ("tokens", "flops")
            yield Doubt(wrong, text, "--tokens-per-step 524288 --params 124M, or --flops-per-token")
    yield from _too_fast(claims, points)
    yield from _losses(claims, points)


def _too_fast(claims: Claims, points: Sequence[Point]) -> Iterator[Doubt]:
    timed = [point for point in points if point.time is not None and point.tokens is not None]
    if len(timed) < 2 or "tokens" in claims.given:
        return
    first, last = timed[0], timed[-1]
    seconds = (last.time or 0.0) - (first.time or 0.0)
    tokens = (last.tokens or 0) - (first.tokens or 0)
    if seconds <= 1.0 or tokens <= 0:
        return
    speed = tokens / seconds
    if speed > TOKENS_A_SECOND or speed * 6 * (claims.size or 0) > FLOPS_A_SECOND:
        yield Doubt(
            ("tokens", "flops"),
            f"{speed:.3g} tokens a second is more than any cluster trains on",
            "--tokens-per-step 524288",
        )


def _losses(claims: Claims, points: Sequence[Point]) -> Iterator[Doubt]:
    highest = UNTRAINED if claims.vocabulary is None else math.log(claims.vocabulary) + 1
    names = dict.fromkeys(name for point in points for name in point.losses if name not in claims.units)
    for name in names:
        values = [value for point in points if (value := point.losses.get(name)) is not None]
        if not values:
            continue
        if min(values) < 0:
            yield Doubt(("loss",), f"{name} falls to {min(values):.4g}: no cross-entropy is below 0", "--loss COLUMN")
        elif min(values) > highest:
            bound = f"ln {claims.vocabulary:,.0f} + 1 = {highest:.4g}" if claims.vocabulary else f"{highest:.4g}"
            text = f"{name} never falls below {min(values):.4g} nats, above {bound}: it may be a sum"
            yield Doubt(("loss",), f"{text}, a perplexity, or in bits", "--loss-unit bits (or ppl), or --loss COLUMN")
