"""Batch and peak learning rate of a run by published recipes, each with its source and the range it was fitted to.

The laws' constants are those of `isoflop.laws.papers`; the rates are of Adam's kind. A run is a mapping of N,
non-embedding parameters, D, tokens, C, FLOPs, and the model's width. And shapes beyond those that Kaplan et al. 2020
found to matter little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from isoflop.laws.papers import PowerLaw, published

GPT3_SIZE, GPT3_WIDTH, GPT3_RATE = 85e6, 768, 6e-4
"""GPT-3 Small (Brown et al. 2020, table 2.1). Its rate times 768/width gives the table's others within a third up to
width 4096, and likewise the rates that were tried out for byte-level GPTs of width 16 to 64 (`examples/demo.py`)."""
HIGHEST_RATE = 2e-2
"""Above it Adam's tiny models got worse in our trials, whatever a power law says."""
TOLERATED = 3.0
"""A factor beyond the fitted range up to which a recipe goes without a warning."""
WARMUP = 0.1
"""Share of steps at most; runs differ in length, and a fixed warm-up would cost the short ones (Porian et al. 2024)."""
WARMUP_STEPS = 2000
"""At most (Li et al. 2025)."""


@dataclass(frozen=True)
class Range:
    """What a recipe was fitted to: `low` to `high` of "N", non-embedding parameters, "D", tokens, or "C", FLOPs."""

    variable: Literal["N", "D", "C"]
    low: float
    high: float

    def of(self, runs: Sequence[Mapping[str, float]]) -> tuple[float, float]:
        """Least and most of the variable in runs, each with N, D and C."""
        values = [run[self.variable] for run in runs]
        return min(values), max(values)


@dataclass(frozen=True)
class Recipe:
    """A published rule for the peak rate, or for tokens a step."""

    name: str  # as on the command line
    decides: str  # "the rate" or "the batch"
    law: Callable[..., ArrayLike]  # of a run's quantities by name
    text: str  # the formula and its source
    fitted: Range | None = None  # its range; None: none is stated
    source: str = ""  # authors and year

    def value(self, run: Mapping[str, float]) -> float:
        """The rate, at most `HIGHEST_RATE`, or the batch of a run."""
        value = float(np.asarray(self.law(**run)))
        return min(value, HIGHEST_RATE) if self.decides == "the rate" else value

    def covers(self, runs: Sequence[Mapping[str, float]]) -> bool:
        """Whether runs lie in the range, or within `TOLERATED` of it."""
        if self.fitted is None:
            return True
        least, most = self.fitted.of(runs)
        return self.fitted.low / TOLERATED <= least and most <= self.fitted.high * TOLERATED


_PAPERS = {
    "steplaw": ("steplaw2025", "Step Law (Li et al. 2025)", Range("N", 59e6, 1e9)),
    "deepseek": ("deepseek2024", "DeepSeek LLM 2024, eq. 1", Range("C", 1e17, 2e19)),
    "porian": ("porian2024", "Porian et al. 2024 (by second sources)", Range("N", 5e6, 9e8)),
}


BATCH_OF_TOKENS = Range("D", 2e9, 1e11)
"""What Step Law's batch, which depends on D alone, was fitted to (Li et al. 2025)."""


def _rate(name: str) -> Recipe:
    entry, source, fitted = _PAPERS[name]
    law = published(entry).learning_rate_law
    assert law is not None
    of = ", N non-embedding" if "N" in law.exponents else ""
    return Recipe(name, "the rate", law, f"lr = {law}{of}, at most {HIGHEST_RATE:g}: {source}", fitted, source)


def _batch(name: str) -> Recipe:
    entry, source, fitted = _PAPERS[name]
    law = published(entry).batch_law
    assert law is not None
    fitted = BATCH_OF_TOKENS if name == "steplaw" else fitted
    return Recipe(name, "the batch", law, f"B = {law} tokens: {source}", fitted, source)


BY_WIDTH = Recipe(
    "width",
    "the rate",
    PowerLaw(GPT3_RATE * GPT3_WIDTH, {"width": -1}),
    f"lr = {GPT3_RATE:g}·{GPT3_WIDTH}/width, at most {HIGHEST_RATE:g}: GPT-3 Small's (Brown et al. 2020, table 2.1), "
    "moved with the width as µP moves Adam's (Yang et al. 2022, table 3)",
    source="GPT-3 (Brown et al. 2020)",
)
RATES = {"width": BY_WIDTH, **{name: _rate(name) for name in _PAPERS}}
"""Peak learning rates of Adam's kind."""
BATCHES = {name: _batch(name) for name in _PAPERS}
"""Tokens an optimizer step."""


def published_values(
    recipes: dict[str, Recipe], *, N: float, D: float, C: float, width: float | None
) -> dict[str, float]:
    """What the recipes whose range reaches a run say of it → by source.

    `width`: None: GPT-3's of that size, N ∝ width³ from 85M at 768.
    """
    run = {"N": N, "D": D, "C": C, "width": width or GPT3_WIDTH * (N / GPT3_SIZE) ** (1 / 3)}
    return {each.source: each.value(run) for each in recipes.values() if each.covers([run])}


def blended(recipes: dict[str, Recipe], run: Mapping[str, float]) -> float:
    """Geometric mean of what recipes say of a run, continuous in it.

    A recipe counts in full within what it was fitted to, half at `TOLERATED` times it, hardly a few times farther. One
    without a range, GPT-3's by width, counts in full below GPT-3 Small, where it alone was tried out, and above as much
    as the best of the others.
    """
    weights = {}
    for name, each in recipes.items():
        if each.fitted is not None:
            at = run[each.fitted.variable]
            far = max(math.log(each.fitted.low / at), math.log(at / each.fitted.high), 0.0) / math.log(TOLERATED)
            weights[name] = 1 / (1 + far**4)
    logs = {name: math.log(each.value(run)) for name, each in recipes.items()}
    widest = 1.0 if run["N"] < GPT3_SIZE else max(weights.values())  # of runs of GPT3_SIZE the same
    shares = {name: weights.get(name, widest) for name in recipes}
    return math.exp(sum(shares[name] * logs[name] for name in recipes) / sum(shares.values()))


# -- of the runs of a ladder -------------------------------------------------------------------------------------------

FEWEST_STEPS = 2000
"""Steps beyond warm-up that a run has at least: with fewer, warm-up and a batch too large for it are part of the loss
(Porian et al. 2024, sections 3.3 and 3.5), and it follows another law than the target."""


def _any_scale(**run: float) -> float:
    return blended(RATES, run)


BLENDED = Recipe(
    "auto",
    "the rate",
    _any_scale,
    f"geometric mean of the rules {', '.join(RATES)} (docs/ladder.md), at most {HIGHEST_RATE:g}; each counts less the "
    "farther a run lies beyond what it was fitted to",
)
"""Continuous in N, D, C and width: published rates differ by up to 5 times, and a switch between two rules within a
ladder, or between the ladder and its target, would look like a change of the law."""


def rate_rule(name: str) -> Recipe:
    """By name; "auto": `BLENDED`.

    Raises:
        ValueError: an unknown name.
    """
    return BLENDED if name == "auto" else _named("--lr-rule", RATES, name)


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


def batch_sequences(rule: Recipe, run: Mapping[str, float], length: int, most: float) -> int:
    """Sequences of `length` tokens a step: the rule's, in 1, 2, 3, 4, 6, 8, 12, 16 …, and at most so many."""
    wanted = max(1.0, min(rule.value(run) / length, most))
    power = 2 ** math.floor(math.log2(wanted))
    choices = [power, power * 3 // 2, power * 2] if power > 1 else [1, 2]
    return min((n for n in choices if n <= most or n == power), key=lambda n: abs(math.log(n / wanted)))


def all_steps(beyond: float) -> float:
    """Steps of a run that has so many beyond its warm-up."""
    return min(beyond / (1 - WARMUP), beyond + WARMUP_STEPS)


def warmup_of(steps: int) -> int:
    """Steps of warm-up."""
    return min(max(1, int(WARMUP * steps)), WARMUP_STEPS, steps - 1)


ASPECT_RATIO = (768 / 207, 4288 / 6)
"""d_model/n_layer: the shapes (n_layer, d_model) = (207, 768) and (6, 4288) between which section 3.2 names its largest
models; (6, 4288) is within 3% of the loss of (48, 1600), and a factor of 40 has a slight effect (caption of figure 5).
Doubt: the text states no range. The figure marks a narrower one, about 10 to 300, as "similar performance"."""

HEAD_DIMENSION = (16.0, 256.0)
"""d_model/n_head. Doubt: the ends of figure 5's runs (25M parameters, less than 2% more loss), read at second hand."""

LAYERS = 2
"""Fewer deviate from the common trend: caption of figure 6."""


def shape_warning(layers: int, width: int, heads: int) -> tuple[str, ...]:
    """Why a shape's loss may differ from that of others of its non-embedding size; empty where it should not.

    Inside these ranges the loss varies by a few percent at most; 1% is worth 22% of compute (Kaplan et al. 2020,
    section 3.1 and figure 5). Outside nothing is known from that paper: a warning, no verdict.

    Args:
        layers: n_layer, transformer blocks.
        width: d_model, of the residual stream.
        heads: n_head, query heads of an attention layer.

    >>> shape_warning(48, 1600, 25)
    ()
    >>> shape_warning(1, 512, 8)
    ('1 layer: models of fewer than 2 deviate from the trend of deeper ones (Kaplan et al. 2020, figure 6)',)
    """
    for name, value in (("layers", layers), ("width", width), ("heads", heads)):
        if not value >= 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}: pass the model's own number")
    reasons = [
        f"{name} = {value:.3g}: Kaplan et al. 2020 found the shape to matter little from {low:.3g} to {high:.3g}"
        for name, value, (low, high) in (
            ("aspect ratio d_model/n_layer", width / layers, ASPECT_RATIO),
            ("attention head dimension d_model/n_head", width / heads, HEAD_DIMENSION),
        )
        if not low <= value <= high
    ]
    if layers < LAYERS:
        few = f"{layers} layer: models of fewer than {LAYERS} deviate from the trend of deeper ones"
        reasons.append(f"{few} (Kaplan et al. 2020, figure 6)")
    return tuple(reasons)
