"""What the user's earlier runs say of the best size, the least loss at a budget, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from isoflop.fit.drifting_law import PriorLine, known_line
from isoflop.fit.posterior import Posterior, posterior_of_runs
from isoflop.fit.runs import curve_of_run, end_of_curve
from isoflop.laws.forms import compute_of
from isoflop.record.run import DEFAULT_N, Run
from isoflop.record.task import Task, task_of

SAME = 1.02
"""A factor of C within which runs count as of one budget."""
BUDGET = 1.1
"""A factor of C, or of N·D, within which runs of several sizes are an isoFLOP profile: attention makes small models'
measured FLOPs differ where 6·N·D is alike."""
CLEAR = 0.02
"""Of ln L: a size of one budget is clearly worse than another; five times a finished run's noise."""
FEWEST_SIZES, NEAR = 3, 4.0
"""Own runs that say something together; and the factor of N within which their learning rates say something."""
FEWEST = 8
"""Own runs whose law names a least loss."""
BEYOND = 30.0
"""A factor of compute over the largest own run to which the least loss is told."""
LEVEL, WIDEST = 0.8, 0.025
"""An 80% half-width above this fraction of the loss is no frontier, as it is no forecast."""


class OwnRun(NamedTuple):
    """A finished run: parameters with the head, tokens, final loss in nats per token, FLOPs as measured or 6·N·D.

    `rate`: the highest learning rate; NaN: not recorded.
    """

    N: float
    D: float
    loss: float
    C: float
    rate: float = math.nan


class Profile(NamedTuple):
    """Runs of one budget of `C` FLOPs: how many `sizes`, the `best` N, and ends between which the best size lies there.

    The ends are the nearest sizes that are clearly worse; 0 and inf where there is none.
    """

    C: float
    sizes: int
    best: float
    low: float
    high: float


@dataclass(frozen=True)
class OwnRuns:
    """What was learnt.

    Attributes:
        posterior: of the runs' law; None: no runs.
        points: the runs used.
        left_out: why runs were not used.
    """

    posterior: Posterior | None = None
    points: tuple[OwnRun, ...] = ()
    left_out: tuple[str, ...] = ()

    @cached_property
    def line(self) -> Posterior | None:
        """N_opt(C) by the runs and the prior; None: the runs say little of it."""
        return self.posterior if self.posterior is not None and self.posterior.telling else None

    @cached_property
    def flops(self) -> tuple[float, float] | None:
        """Of the smallest and the largest run; None: no runs."""
        spent = [point.C for point in self.points]
        return (min(spent), max(spent)) if spent else None

    @cached_property
    def source(self) -> str:
        """What the best size is based on, for people; "": no own runs."""
        n = f"{len(self.points)} run{'s' * (len(self.points) > 1)} of your own"
        if self.line is not None:
            return f"{n}, shrunk towards published sweeps"
        return (
            f"published sweeps: about 20 tokens per parameter; {n} do not determine the best size"
            if self.points
            else ""
        )

    def rates(self, N: float) -> tuple[float, float] | None:
        """Least and highest peak rate of runs of about N parameters; None: fewer than `FEWEST_SIZES`."""
        return range_about(N, [p.N for p in self.points], [p.rate for p in self.points])

    @cached_property
    def profile(self) -> Profile | None:
        """The largest budget with three sizes or more; None: no such, or no size of it is clearly worse than the best.

        It needs no law: runs too small or too short for one still show which size did best at their budget.
        """
        for largest in sorted(self.points, key=lambda p: -p.C):
            of_one = [p for p in self.points if _of_one_budget(p, largest)]
            losses = {p.N: p.loss for p in sorted(of_one, key=lambda p: -p.loss)}
            if len(losses) < FEWEST_SIZES:
                continue
            best = min(losses, key=lambda N: losses[N])
            worse = [N for N, loss in losses.items() if math.log(loss / losses[best]) > CLEAR]
            low = max((N for N in worse if best > N), default=0.0)
            high = min((N for N in worse if best < N), default=math.inf)
            return Profile(largest.C, len(losses), best, low, high) if worse else None
        return None

    def least_loss(self, N: float, D: float) -> float | None:
        """Nats per token of the best size and tokens at the compute of N parameters on D tokens.

        None: too few runs, too far from them, or not sure enough.
        """
        if self.posterior is None or len(self.points) < FEWEST:
            return None
        C = self.posterior.flops(N, D)
        if not min(point.C for point in self.points) <= C <= BEYOND * self.posterior.largest:
            return None
        drawn = np.exp(self.posterior.least(self.posterior.line(C)))
        low, middle, high = np.quantile(drawn, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
        return float(middle) if (high - low) / 2 <= WIDEST * middle else None


def range_about(size: float, sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float] | None:
    """Least and highest known value of runs within a factor of `NEAR` of a size; None: fewer than `FEWEST_SIZES`."""
    known = [value for each, value in zip(sizes, values, strict=True) if value > 0 and 1 / NEAR < each / size < NEAR]
    return (min(known), max(known)) if len(known) >= FEWEST_SIZES else None


def known_of(runs: Iterable[Run]) -> PriorLine:
    """What is known without runs, of the optimizers that these name."""
    families = {task_of(run.task, run.parameters, run.model).optimizer for run in runs} - {None, "adam"}
    return known_line(next(iter(sorted(filter(None, families))), None))


def learn_from(
    runs: Iterable[Run],
    *,
    loss: str = "train",
    tokenizer: str | None = None,
    data: str | None = None,
    task: Task | None = None,
    itself: str | None = None,
) -> OwnRuns:
    """The law of finished runs.

    Args:
        runs: as read from their records.
        loss: which of their losses.
        tokenizer: of the run that learns; a run known to have another one is left out.
        data: likewise.
        task: likewise; None: not compared.
        itself: run_id of the run that learns, which is none of them.
    """
    points, left_out = [], []
    for run in runs:
        if run.run_id == itself:
            continue
        end = end_of_curve(curve_of_run(run), loss, DEFAULT_N)
        if (why := end.left_out or _unlike(run, tokenizer, data, task)) or not (end.N and end.D and end.loss):
            left_out.append(f"{end.name}: {why}")
            continue
        rate = max((p.lr for p in run.points if p.lr is not None), default=math.nan)
        C = float(compute_of(end.N, end.D, end.flops or np.nan))
        points.append(OwnRun(end.N, end.D, end.loss, C, rate))
    if not points:
        return OwnRuns(left_out=tuple(left_out))
    N, D, L, C, _ = np.array(points, dtype=float).T
    return OwnRuns(posterior_of_runs(N, D, C, L), tuple(points), tuple(left_out))


def _of_one_budget(one: OwnRun, other: OwnRun) -> bool:
    ratios = one.C / other.C, one.N * one.D / (other.N * other.D)
    return any(1 / BUDGET < ratio < BUDGET for ratio in ratios)


def frontier_of(points: Sequence[OwnRun]) -> list[tuple[float, float]]:
    """The lower envelope of finished runs: (C in FLOPs, loss), losses falling as C grows."""
    runs = sorted((run.C, run.loss) for run in points)
    return [
        (C, loss)
        for C, loss in runs
        if not any(other < loss for at, other in runs if at <= SAME * C)  # budgets are met in whole steps
    ]


def _unlike(run: Run, tokenizer: str | None, data: str | None, task: Task | None) -> str:
    """Why a run says nothing of these; "": it does."""
    if task is not None and (why := task.differs(task_of(run.task, run.parameters, run.model))):
        return why
    for what, its, ours in (("tokenizer", run.tokenizer, tokenizer), ("data", run.data, data)):
        if its and ours and its != ours:
            return f"another {what} ({its}, not {ours})"
    return ""
