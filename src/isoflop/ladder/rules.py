"""Batch, learning rate and warm-up of planned runs by named rules, each with its source and the range it was fitted to.

The laws' constants are those of `isoflop.laws.published`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from isoflop.ladder.sizes import Shape
from isoflop.laws.published import PowerLaw, published

GPT3_WIDTH, GPT3_RATE = 768, 6e-4
"""GPT-3 Small (Brown et al. 2020, table 2.1). Its rate times 768/width gives the table's others within a third up to
width 4096, and likewise the rates that were tried out for byte-level GPTs of width 16 to 64 (`examples/demo.py`)."""
HIGHEST_RATE = 2e-2
"""Above it Adam's tiny models got worse in our trials, whatever a power law says."""
FEWEST_STEPS = 400
"""Steps that a run has at least: warm-up and decay need some, so small budgets get smaller batches."""
WARMUP = 0.1
"""Share of steps at most; runs differ in length, and a fixed warm-up would cost the short ones (Porian et al. 2024)."""
WARMUP_STEPS = 2000
"""At most (Li et al. 2025)."""
TOLERATED = 3.0
"""A factor beyond the fitted range up to which a rule goes without a warning."""


@dataclass(frozen=True)
class Range:
    """What a rule was fitted to: `low` to `high` of "N", non-embedding parameters, or of "C", training FLOPs."""

    variable: Literal["N", "C"]
    low: float
    high: float

    def of(self, sizes: Sequence[float], budgets: Sequence[float]) -> Sequence[float]:
        """The values of the range's variable: non-embedding parameters, or FLOPs of the runs."""
        return sizes if self.variable == "N" else budgets


@dataclass(frozen=True)
class Rule:
    """A named rule for the peak rate, or for tokens a step.

    Attributes:
        name: as on the command line.
        decides: "the rate" or "the batch".
        law: of non-embedding parameters N, tokens D and FLOPs C; None: `GPT3_RATE` moved with the width.
        text: the formula and its source.
        fitted: its range; None: none is stated.
    """

    name: str
    decides: str
    law: PowerLaw | None
    text: str
    fitted: Range | None = None

    def value(self, shape: Shape, tokens: float, flops: float) -> float:
        """The rate or the batch of a run."""
        if self.law is None:
            return GPT3_RATE * GPT3_WIDTH / shape.width
        return float(self.law(N=shape.parameters["non_embedding"], D=tokens, C=flops))

    def covers(self, sizes: Sequence[float], budgets: Sequence[float]) -> bool:
        """Whether runs of these non-embedding parameters and FLOPs lie in the range, or within `TOLERATED` of it."""
        if self.fitted is None:
            return True
        values = self.fitted.of(sizes, budgets)
        return self.fitted.low / TOLERATED <= min(values) and max(values) <= self.fitted.high * TOLERATED


_PAPERS = {
    "steplaw": ("steplaw2025", "Step Law (Li et al. 2025)", Range("N", 59e6, 1e9)),
    "deepseek": ("deepseek2024", "DeepSeek LLM 2024, eq. 1", Range("C", 1e17, 2e19)),
    "porian": ("porian2024", "Porian et al. 2024 (by second sources)", Range("N", 5e6, 9e8)),
}


def _rate(name: str) -> Rule:
    entry, source, fitted = _PAPERS[name]
    law = published(entry).learning_rate_law
    assert law is not None
    of = ", N non-embedding" if "N" in law.exponents else ""
    return Rule(name, "the rate", law, f"lr = {law}{of}, at most {HIGHEST_RATE:g}: {source}", fitted)


def _batch(name: str) -> Rule:
    entry, source, fitted = _PAPERS[name]
    law = published(entry).batch_law
    assert law is not None
    return Rule(name, "the batch", law, f"B = {law} tokens: {source}", fitted)


BY_WIDTH = Rule(
    "width",
    "the rate",
    None,
    f"lr = {GPT3_RATE:g}·{GPT3_WIDTH}/width, at most {HIGHEST_RATE:g}: GPT-3 Small's (Brown et al. 2020, table 2.1), "
    "moved with the width as µP moves Adam's (Yang et al. 2022, table 3)",
)
RATES = {"width": BY_WIDTH, **{name: _rate(name) for name in _PAPERS}}
"""Peak learning rates of Adam's kind."""
BATCHES = {name: _batch(name) for name in _PAPERS}
"""Tokens an optimizer step."""


def rate_rule(name: str, sizes: Sequence[float], budgets: Sequence[float]) -> Rule:
    """By name; "auto": Step Law where all sizes (non-embedding) lie in its range or near, else by width alone.

    One rule for the whole ladder: a change of rules between runs would look like a change of the law.

    Raises:
        ValueError: an unknown name.
    """
    if name == "auto":
        return RATES["steplaw"] if RATES["steplaw"].covers(sizes, budgets) else BY_WIDTH
    return _named("--lr-rule", RATES, name)


def batch_rule(name: str) -> Rule:
    """By name; "auto" is Step Law's, which depends on D alone and stays near measured optima down to 1e6 tokens.

    Raises:
        ValueError: an unknown name.
    """
    return BATCHES["steplaw"] if name == "auto" else _named("--batch-rule", BATCHES, name)


def _named(option: str, rules: dict[str, Rule], name: str) -> Rule:
    if name not in rules:
        raise ValueError(f"{option}: expected one of auto, {', '.join(rules)}; got {name!r}")
    return rules[name]


def peak_rate(rule: Rule, shape: Shape, tokens: float, flops: float) -> float:
    """Peak learning rate, in three digits."""
    return float(f"{min(rule.value(shape, tokens, flops), HIGHEST_RATE):.3g}")


def batch_sequences(rule: Rule, shape: Shape, tokens: float, flops: float) -> int:
    """Sequences an optimizer step: the rule's, in 1, 2, 3, 4, 6, 8, 12, 16 …, leaving the run `FEWEST_STEPS` steps."""
    most = max(1.0, tokens / FEWEST_STEPS / shape.family.sequence_length)
    wanted = max(1.0, min(rule.value(shape, tokens, flops) / shape.family.sequence_length, most))
    power = 2 ** math.floor(math.log2(wanted))
    choices = [power, power * 3 // 2, power * 2] if power > 1 else [1, 2]
    return min((n for n in choices if n <= most or n == power), key=lambda n: abs(math.log(n / wanted)))


def warmup_of(steps: int) -> int:
    """Steps of warm-up."""
    return min(max(1, int(WARMUP * steps)), WARMUP_STEPS, steps - 1)
