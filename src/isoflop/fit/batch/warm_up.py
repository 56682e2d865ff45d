"""A batch that grows with the critical batch: start small, double when B_crit has; printed as a plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from isoflop.fit.batch.prior import critical_batch_by_tokens


@dataclass(frozen=True, slots=True)
class BatchStage:
    """One batch size of the plan.

    Attributes:
        start: tokens of the run before it.
        tokens: of this stage.
        batch: tokens a step.
        steps: tokens / batch.
    """

    start: float
    tokens: float
    batch: float

    @property
    def steps(self) -> float:
        """Optimizer steps of this stage."""
        return self.tokens / self.batch


@dataclass(frozen=True, slots=True)
class BatchWarmUp:
    """A plan, and what it brings against the last batch from the start.

    Attributes:
        stages: in order.
        steps: of the plan.
        constant_steps: of the last batch all along.
        tokens_saved: of the constant batch's tokens, the share that the plan does not need for the same loss.
    """

    stages: tuple[BatchStage, ...]
    steps: float
    constant_steps: float
    tokens_saved: float

    def __str__(self) -> str:
        lines = [f"{'from token':>16}  {'batch':>12}  {'steps':>12}"]
        lines += [f"{stage.start:>16,.0f}  {stage.batch:>12,.0f}  {stage.steps:>12,.0f}" for stage in self.stages]
        last = self.stages[-1].batch
        lines.append(
            f"{self.steps:,.0f} steps; {last:,.0f} from the start: {self.constant_steps:,.0f} steps, and "
            f"{self.tokens_saved:.1%} more of the compute. Raise the learning rate with the batch (Adam: about √2 a "
            "doubling), or leave it and let the batch take the place of decay"
        )
        return "\n".join(lines)


def plan_batch_warm_up(
    D: float,
    largest: float,
    *,
    critical: Callable[[float], float] | None = None,
    share: float = 0.25,
    smallest: float | None = None,
) -> BatchWarmUp:
    """Plan a run of D tokens: at each point the batch is `share` of B_crit, in halves of the largest.

    Args:
        D: tokens of the run.
        largest: the batch of its end, tokens a step: what the run's hardware and its end want.
        critical: B_crit in tokens after so many tokens; default: the prior, B_crit(D). A measured one: scale the prior,
            `lambda d: measured * critical_batch_by_tokens(d) / critical_batch_by_tokens(D_measured)`.
        share: of B_crit that a stage may begin with: .16 to .25 costs a fifth of the tokens at most.
        smallest: the first batch; default: largest/64.

    Raises:
        ValueError: D, largest or share is not positive, or smallest is above largest.
    """
    smallest = largest / 64 if smallest is None else smallest
    if not (0 < D < math.inf and 0 < smallest <= largest < math.inf and 0 < share < math.inf and largest <= D):
        raise ValueError(
            "expected positive D ≥ largest ≥ smallest in tokens and a positive share, got "
            f"D={D!r}, largest={largest!r}, smallest={smallest!r}, share={share!r}"
        )
    critical = critical or (lambda tokens: float(critical_batch_by_tokens(tokens)))
    doublings = math.floor(math.log2(largest / smallest) + 1e-9)
    batches = [largest / 2**i for i in range(doublings, -1, -1)]
    starts = [0.0]
    for batch in batches[1:]:
        starts.append(max(starts[-1], _reaches(critical, batch / share, D)))
    ends = [*starts[1:], D]
    stages = tuple(
        BatchStage(start, end - start, batch)
        for start, end, batch in zip(starts, ends, batches, strict=True)
        if end - start >= batch
    )
    grid = np.geomspace(D / 1e4, D, 400)
    middle, width = np.sqrt(grid[1:] * grid[:-1]), np.diff(grid)
    planned = np.array([next(s.batch for s in reversed(stages) if s.start <= d or s is stages[0]) for d in middle])
    crit = np.array([critical(float(d)) for d in middle])
    progress = (width / (1 + planned / crit)).sum() / (width / (1 + stages[-1].batch / crit)).sum()
    steps = sum(stage.steps for stage in stages)
    return BatchWarmUp(stages, steps, D / stages[-1].batch, float(1 - 1 / progress))


def _reaches(critical: Callable[[float], float], wanted: float, D: float) -> float:
    """Tokens after which B_crit is at `wanted`; D where it stays below, 0 where it starts above."""
    low, high = math.log(D) - 30.0, math.log(D)
    if critical(D) < wanted:
        return D
    if critical(math.exp(low)) >= wanted:
        return 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if critical(math.exp(middle)) < wanted else (low, middle)
    return math.exp(high)
