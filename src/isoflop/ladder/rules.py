"""Which published recipe sets the batch and the learning rate of a ladder's runs, and their values there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from isoflop.ladder.sizes import Shape
from isoflop.laws.recipes import BATCHES, BY_WIDTH, HIGHEST_RATE, RATES, WARMUP, WARMUP_STEPS, Recipe

FEWEST_STEPS = 2000
"""Steps beyond warm-up that a run has at least: with fewer, warm-up and a batch too large for it are part of the loss
(Porian et al. 2024, sections 3.3 and 3.5), and it follows another law than the target."""
Planned = tuple[Shape, float, float]
"""A run: its size, tokens D and FLOPs C."""


def quantities(run: Planned) -> dict[str, float]:
    """N without embeddings, D and C."""
    shape, D, C = run
    return {"N": float(shape.parameters["non_embedding"]), "D": D, "C": C}


def covers(rule: Recipe, runs: Sequence[Planned]) -> bool:
    """Whether runs lie in a rule's range or near it."""
    return rule.covers([quantities(run) for run in runs])


def rate_rule(name: str, runs: Sequence[Planned]) -> Recipe:
    """By name; "auto": Step Law where all runs lie in its range or near, else by width alone.

    One rule for the whole ladder: a change of rules between runs would look like a change of the law.

    Raises:
        ValueError: an unknown name.
    """
    if name == "auto":
        return RATES["steplaw"] if covers(RATES["steplaw"], runs) else BY_WIDTH
    return _named("--lr-rule", RATES, name)


def batch_rule(name: str) -> Recipe:
    """By name; "auto" is Step Law's, which depends on D alone and stays near measured optima down to 1e6 tokens.

    Raises:
        ValueError: an unknown name.
    """
    return BATCHES["steplaw"] if name == "auto" else _named("--batch-rule", BATCHES, name)


def _named(option: str, rules: dict[str, Recipe], name: str) -> Recipe:
    if name not in rules:
        raise ValueError(f"{option}: expected one of auto, {', '.join(rules)}; got {name!r}")
    return rules[name]


def _value(rule: Recipe, shape: Shape, tokens: float, flops: float) -> float:
    return rule.value(**quantities((shape, tokens, flops)), width=shape.width)


def peak_rate(rule: Recipe, shape: Shape, tokens: float, flops: float) -> float:
    """Peak learning rate, in three digits."""
    return float(f"{min(_value(rule, shape, tokens, flops), HIGHEST_RATE):.3g}")


def batch_sequences(rule: Recipe, shape: Shape, tokens: float, flops: float, most: float) -> int:
    """Sequences an optimizer step: the rule's, in 1, 2, 3, 4, 6, 8, 12, 16 …, and at most so many."""
    wanted = max(1.0, min(_value(rule, shape, tokens, flops) / shape.family.sequence_length, most))
    power = 2 ** math.floor(math.log2(wanted))
    choices = [power, power * 3 // 2, power * 2] if power > 1 else [1, 2]
    return min((n for n in choices if n <= most or n == power), key=lambda n: abs(math.log(n / wanted)))


def all_steps(beyond: float) -> float:
    """Steps of a run that has so many beyond its warm-up."""
    return min(beyond / (1 - WARMUP), beyond + WARMUP_STEPS)
