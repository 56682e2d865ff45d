"""Batch, learning rate and warm-up of a planned run: named rules with their source, and where they are untested."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
OUTSIDE = 3.0
"""A factor beyond the fitted range up to which a rule goes without a warning."""


@dataclass(frozen=True)
class Rule:
    """A named rule.

    Attributes:
        name: as on the command line.
        decides: "the rate" or "the batch".
        value: (shape, tokens, FLOPs) to the value: a peak rate, or tokens a step.
        text: the formula and its source.
        variable: what its fitted range is of: "N", non-embedding parameters, or "C", FLOPs.
        low, high: the range; None: none is stated.
    """

    name: str
    decides: str
    value: Callable[[Shape, float, float], float]
    text: str
    variable: str = "N"
    low: float | None = None
    high: float | None = None

    def outside(self, sizes: Sequence[float], budgets: Sequence[float]) -> str | None:
        """What to say where runs lie beyond the range by more than a factor `OUTSIDE`; None: nothing.

        Args:
            sizes: non-embedding parameters of the runs.
            budgets: their FLOPs.
        """
        values = sizes if self.variable == "N" else budgets
        if self.low is None or self.high is None:
            return None
        if min(values) >= self.low / OUTSIDE and max(values) <= self.high * OUTSIDE:
            return None
        unit = "non-embedding parameters" if self.variable == "N" else "FLOPs"
        return (
            f"{self.decides}'s rule {self.name!r} was fitted to {self.low:.2g} to {self.high:.2g} {unit}, these runs "
            f"have {min(values):.2g} to {max(values):.2g}: try its value, half and twice it on one small run first"
        )


def _width(shape: Shape, tokens: float, flops: float) -> float:
    return GPT3_RATE * GPT3_WIDTH / shape.width


def _published(law: PowerLaw | None) -> Callable[[Shape, float, float], float]:
    """A published power law of non-embedding parameters N, tokens D or FLOPs C."""
    assert law is not None
    return lambda shape, tokens, flops: float(law(N=shape.parameters["non_embedding"], D=tokens, C=flops))


RATES = {
    "width": Rule(
        "width",
        "the rate",
        _width,
        f"lr = {GPT3_RATE:g}·{GPT3_WIDTH}/width, at most {HIGHEST_RATE:g}: GPT-3 Small's (Brown et al. 2020, table "
        "2.1), moved with the width as µP moves Adam's (Yang et al. 2022, table 3)",
    ),
    "steplaw": Rule(
        "steplaw",
        "the rate",
        _published(published("steplaw2025").learning_rate_law),
        f"lr = 1.79·N^−0.713·D^0.307, N non-embedding, at most {HIGHEST_RATE:g}: Step Law (Li et al. 2025)",
        low=59e6,
        high=1e9,
    ),
    "deepseek": Rule(
        "deepseek",
        "the rate",
        _published(published("deepseek2024").learning_rate_law),
        f"lr = 0.3118·C^−0.125, at most {HIGHEST_RATE:g}: DeepSeek LLM 2024, eq. 1",
        "C",
        1e17,
        2e19,
    ),
    "porian": Rule(
        "porian",
        "the rate",
        _published(published("porian2024").learning_rate_law),
        f"lr = 3.7·N^−0.36, at most {HIGHEST_RATE:g}: Porian et al. 2024 (by second sources)",
        low=5e6,
        high=9e8,
    ),
}
"""Peak learning rates of Adam's kind."""
BATCHES = {
    "steplaw": Rule(
        "steplaw",
        "the batch",
        _published(published("steplaw2025").batch_law),
        "B = 0.58·D^0.571 tokens: Step Law (Li et al. 2025)",
        low=59e6,
        high=1e9,
    ),
    "deepseek": Rule(
        "deepseek",
        "the batch",
        _published(published("deepseek2024").batch_law),
        "B = 0.292·C^0.3271 tokens: DeepSeek LLM 2024, eq. 1",
        "C",
        1e17,
        2e19,
    ),
    "porian": Rule(
        "porian",
        "the batch",
        _published(published("porian2024").batch_law),
        "B = 0.7576·N^0.703 tokens: Porian et al. 2024 (by second sources)",
        low=5e6,
        high=9e8,
    ),
}
"""Tokens an optimizer step."""


def rate_rule(name: str, sizes: Sequence[float], budgets: Sequence[float]) -> Rule:
    """By name; "auto": Step Law where all sizes (non-embedding) lie in its range or near, else by width alone.

    One rule for the whole ladder: a change of rules between runs would look like a change of the law.

    Raises:
        ValueError: an unknown name.
    """
    if name == "auto":
        return RATES["width"] if RATES["steplaw"].outside(sizes, budgets) else RATES["steplaw"]
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
    length = shape.family.sequence_length
    wanted = min(rule.value(shape, tokens, flops), tokens / FEWEST_STEPS) / length
    power = 2 ** max(0, math.floor(math.log2(max(wanted, 1.0))))
    choices = [power, power * 3 // 2, power * 2] if power > 1 else [1, 2]
    most = max(1.0, tokens / FEWEST_STEPS / length)
    return min((n for n in choices if n <= most or n == choices[0]), key=lambda n: abs(math.log(n / max(wanted, 1.0))))


def warmup_of(steps: int) -> int:
    """Steps of warm-up."""
    return min(max(1, int(WARMUP * steps)), WARMUP_STEPS, steps - 1)
