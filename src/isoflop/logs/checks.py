"""What was read, held against itself: N, D, C and the loss must be possible together, in this world.

What is not is asked, and left out of the record until it is answered. What the user gave is not doubted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from isoflop.logs.counts import Counts
from isoflop.logs.files import number
from isoflop.logs.given import Answers
from isoflop.logs.logged import Logged
from isoflop.logs.losses import Losses
from isoflop.record.run import Point

ALL = ("params", "tokens", "flops")

FEWEST_PARAMETERS = 100_000  # Fewer are millions or billions, or a toy
FEWEST_TOKENS = 1_000_000
TOKENS_A_PARAMETER = (1e-3, 1e6)
"""Public runs lie between .02 and 1e4; outside N or D alone is in millions, or D counts samples or bytes of media."""
FLOPS_OVER_6ND = 3.0
"""Attention, the head and the conventions of N make less than this."""
TOKENS_A_SECOND = 1e10
FLOPS_A_SECOND = 1e21  # More than the largest cluster computes
UNTRAINED = 11.0  # Nats per token: ln V of the usual vocabularies, which a run that learned anything falls below


@dataclass(frozen=True)
class Doubt:
    """What can't be: which of `params`, `tokens`, `flops` and `loss`, in words, and the option that answers it."""

    of: tuple[str, ...]
    text: str
    answer: str


def doubts_of(
    logged: Logged, answers: Answers, losses: Losses, counts: Counts, points: Sequence[Point]
) -> tuple[Doubt, ...]:
    """What of a run can't be, one doubt a quantity; of what the user gave, or isoflop counted, nothing is doubted."""
    told = {"params": answers.parameters, "tokens": answers.tokens_per_step, "flops": answers.flops_per_token}
    given = {what for what, value in told.items() if value}
    given |= {what for what, how in counts.how.items() if how.startswith(("isoflop's own", "config.json"))}
    size = counts.parameters
    names = ("active", "non_embedding_with_head", "total", "non_embedding")
    N = next((size[name] for name in names if size.get(name)), None)
    how = counts.how.get("flops", "")
    found = [Doubt(("loss",), text, "") for text in losses.doubts]
    found += _impossible(N, given, "as logged" in how or "total_flos" in how, points[-1], logged.ends)
    if "tokens" not in given:
        found += _too_fast(N, points)
    found += _losses(losses, _vocabulary(logged), points)
    return tuple(replace(doubt, of=tuple(what for what in doubt.of if what not in given)) for doubt in found)


def _vocabulary(logged: Logged) -> float | None:
    config = logged.model
    found = number(config.get("vocab_size")) or number(logged.settings.get("vocab_size"))
    return found if found and found > 1 else None


def _impossible(N: int | None, given: set[str], logged_flops: bool, last: Point, ends: bool) -> Iterator[Doubt]:
    """N, D and C held against each other; `ends`: the point is the end of a run."""
    D, C = last.tokens, last.flops
    trusted = {"params", "tokens"} <= given
    rate = C / (6 * N * D) if logged_flops and N and D and C else None
    agree = rate is not None and 1 / FLOPS_OVER_6ND <= rate <= FLOPS_OVER_6ND
    if N is not None and N < FEWEST_PARAMETERS and "params" not in given and not agree:
        text = f"N is {N:,}, fewer than a model has, as if in millions"
        yield Doubt(ALL, text, "columns named with their unit (params_M, tokens_B), or --params 124M")
        return
    if ends and D is not None and D < FEWEST_TOKENS and "tokens" not in given and not agree:
        text = f"D is {D:,}, fewer tokens than a run has, as if in millions or billions"
        yield Doubt(("tokens", "flops"), text, "a column named with its unit (tokens_B), or cells such as 8.2B")
        return
    if N and D is not None and not trusted and not TOKENS_A_PARAMETER[0] <= D / N <= TOKENS_A_PARAMETER[1]:
        text = f"N {N:.3g} and D {D:.3g} make {D / N:.3g} tokens a parameter"
        yield Doubt(ALL, text, "--params 124M --tokens-per-step 524288")
        return
    if rate is not None and not agree and "flops" not in given:
        text = f"FLOPs {C:.3g} as logged are {rate:.3g} times 6·N·D with N {N:.3g}, D {D:.3g}: one of them is wrong"
        wrong = ("flops",) if trusted else ("tokens", "flops")
        yield Doubt(wrong, text, "--tokens-per-step 524288 --params 124M, or --flops-per-token")


def _too_fast(N: int | None, points: Sequence[Point]) -> Iterator[Doubt]:
    timed = [(point.time, point.tokens) for point in points if point.time is not None and point.tokens is not None]
    if len(timed) < 2:
        return
    seconds, tokens = timed[-1][0] - timed[0][0], timed[-1][1] - timed[0][1]
    if seconds <= 1.0 or tokens <= 0:
        return
    speed = tokens / seconds
    if speed > TOKENS_A_SECOND or speed * 6 * (N or 0) > FLOPS_A_SECOND:
        text = f"{speed:.3g} tokens a second is more than any cluster trains on"
        yield Doubt(("tokens", "flops"), text, "--tokens-per-step 524288")


def _losses(losses: Losses, vocabulary: float | None, points: Sequence[Point]) -> Iterator[Doubt]:
    highest = UNTRAINED if vocabulary is None else math.log(vocabulary) + 1
    for name in losses.columns:
        values = [value for point in points if (value := point.losses.get(name)) is not None]
        if not values or name in losses.units:
            continue
        if min(values) < 0:
            yield Doubt(("loss",), f"{name} falls to {min(values):.4g}: no cross-entropy is below 0", "--loss COLUMN")
        elif min(values) > highest:
            bound = f"ln {vocabulary:,.0f} + 1 = {highest:.4g}" if vocabulary else f"{highest:.4g}"
            text = f"{name} never falls below {min(values):.4g} nats, above {bound}: it may be a sum"
            yield Doubt(("loss",), f"{text}, a perplexity, or in bits", "--loss-unit bits (or ppl), or --loss COLUMN")
