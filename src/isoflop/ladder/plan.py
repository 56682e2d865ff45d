"""A ladder's plan: its runs, and what it is expected to tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from isoflop.record.conventions import PREFERRED_N

PLAN_VERSION = 1
"""Of the file's layout; a reader refuses another."""
CONVENTIONS = PREFERRED_N
"""Counts of N that every run states (`isoflop.observe.parameters`)."""


class PlanError(ValueError):
    """A plan that can't be read; the text names the field, what was expected and what came."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of the ladder, trained from the start with a learning-rate schedule that ends at its own last step.

    Attributes:
        name: unique in the plan, fit for a folder's name.
        rung: which budget it belongs to, 0 the smallest.
        config: the model: "family", "depth", "width", "heads", "head_dim", "mlp_width", "vocab_size",
            "sequence_length", "tied" … (`isoflop.ladder.sizes`), plain values only.
        parameters: N by convention (`CONVENTIONS`).
        tokens: D, a whole number of steps: steps · batch_tokens.
        batch_tokens: tokens of an optimizer step, a whole number of sequences.
        steps: optimizer steps.
        warmup_steps: of them with a rising learning rate.
        learning_rate: peak, of Adam's kind of optimizer.
        flops: model FLOPs of its training, forward and backward, attention in full.
        seed: of its weights and its order of data.
    """

    name: str
    rung: int
    config: Mapping[str, Any]
    parameters: Mapping[str, int]
    tokens: int
    batch_tokens: int
    steps: int
    warmup_steps: int
    learning_rate: float
    flops: float
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values: what the YAML holds, and what `train(config)` is called with."""
        return _plain(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the design is expected to tell of one quantity at the target, before a FLOP is spent.

    Attributes:
        estimate: by what is known before the ladder.
        low, high: the interval that the ladder's fit is expected to give about it, at the plan's level.
        even_low, even_high: the same for an even grid of sizes and budgets with the same spend and number of runs.
    """

    estimate: float
    low: float
    high: float
    even_low: float | None = None
    even_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class LadderPlan:
    """The runs that tell most about the target for the spend.

    Attributes:
        target_flops: budget of the run that is sized.
        spend_flops: what the ladder may cost; `flops` is what its runs cost.
        family: of the models, such as "gpt2" or "llama".
        vocab_size: entries of the tokenizer.
        sequence_length: tokens.
        convention: which parameters N counts in `expected` and in fits.
        runs: smallest rung first.
        level: of the expected intervals.
        expected: by quantity, "N_opt", "D_opt" and "loss" (nats per token).
        rules: by what they decide ("sizes", "learning_rate", "batch", "schedule", "design"): the rule and its source.
        warnings: what to know before relying on it.
        unique_tokens: the stock of data; None: unlimited.
        history_runs: finished runs whose information the design counts on.
    """

    target_flops: float
    spend_flops: float
    family: str
    vocab_size: int
    sequence_length: int
    convention: str
    runs: tuple[PlannedRun, ...]
    level: float
    expected: Mapping[str, Expected]
    rules: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    unique_tokens: float | None = None
    history_runs: int = 0

    @property
    def flops(self) -> float:
        """Training FLOPs of all runs."""
        return math.fsum(run.flops for run in self.runs)

    def as_dict(self) -> dict[str, Any]:
        """Plain values: the object in the YAML file and of `--json`."""
        return {"version": PLAN_VERSION, **_plain(asdict(self))}


def _plain(value: Any) -> Any:
    """Without tuples and numpy's numbers, which YAML's safe dialect does not know."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value
