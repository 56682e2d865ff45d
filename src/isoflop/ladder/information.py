"""What a design is asked for, and what it is expected to tell: the covariance of the ladder's fit, before any run.

The posterior's Gaussian approximation (`posterior`) for laws drawn from the prior (`belief.prior_laws`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from isoflop.fit.posterior import (
    CONSTANTS,
    NOISE,
    Array,
    BudgetLine,
    Origin,
    best_size,
    gradient,
    least_loss,
    prior_laws,
    pulls,
    scatter,
    slopes,
)

LAWS = 32
"""Of the prior, over which a design's worth is averaged."""
WIDEST = 8.0
"""Largest or smallest size of a budget over its middle: D/N of .3 to 1,300. Beyond, the law is hardly tested."""


@dataclass(frozen=True)
class Candidate:
    """A size that can be trained: N with the head, training FLOPs a token, and its place in the grid."""

    N: float
    flops_per_token: float
    index: int


@dataclass(frozen=True)
class Rung:
    """Runs of one budget, in FLOPs."""

    budget: float
    sizes: tuple[Candidate, ...]


@dataclass(frozen=True)
class Problem:
    """What is asked of a design.

    Attributes:
        target: the budget's line at the target.
        candidates: sizes, smallest first.
        spend: FLOPs of all runs.
        fewest, most: runs.
        dearest: FLOPs of one run at most.
        tokens: of one run at most.
        known_N, known_D: runs that are there already.
    """

    target: BudgetLine
    candidates: tuple[Candidate, ...]
    spend: float
    fewest: int
    most: int
    dearest: float = math.inf
    tokens: float = math.inf
    known_N: Array = field(default_factory=lambda: np.zeros(0))
    known_D: Array = field(default_factory=lambda: np.zeros(0))
    seen: dict[float, tuple[Origin, Array, tuple[Array, Array, Array]]] = field(default_factory=dict, repr=False)

    @cached_property
    def _log_N(self) -> Array:
        return np.log([candidate.N for candidate in self.candidates])

    def middle(self, budget: float) -> float:
        """N of 20 tokens per parameter."""
        rates = np.array([candidate.flops_per_token for candidate in self.candidates])
        ratio = np.log(budget / rates) - self._log_N  # ln D/N falls with N
        return float(np.exp(np.interp(-math.log(20.0), -ratio, self._log_N)))

    def allowed(self, budget: float) -> list[Candidate]:
        """Sizes for a budget: those within the widest grid about its middle, with the data that there are."""
        middle = self.middle(budget)
        return [
            c
            for c in self.candidates
            if abs(math.log(c.N / middle)) <= math.log(WIDEST) + 0.1 and budget / c.flops_per_token <= self.tokens
        ]


@dataclass(frozen=True)
class Worth:
    """Standard deviations to expect at the target, by law: of ln N_opt and of ln L there."""

    size: Array
    loss: Array

    @property
    def score(self) -> float:
        """Mean ln sd of N_opt: the less the better."""
        return float(np.log(self.size).mean())


def worth_of(problem: Problem, rungs: Sequence[Rung]) -> Worth:
    """What a design is expected to tell, with the known runs."""
    N = np.array([size.N for rung in rungs for size in rung.sizes])
    D = np.array([rung.budget / size.flops_per_token for rung in rungs for size in rung.sizes])
    top = max((rung.budget for rung in rungs), default=6 * float((problem.known_N * problem.known_D).max(initial=1.0)))
    origin, laws, gradients = _seen_from(problem, top)
    N, D = np.append(N, problem.known_N), np.append(D, problem.known_D)
    return _worth(origin, laws, gradients, N, D)


def _worth(origin: Origin, laws: Array, gradients: tuple[Array, Array, Array], N: Array, D: Array) -> Worth:
    of_size, of_loss, prior = gradients
    whiten = np.linalg.inv(np.linalg.cholesky(scatter(N, D))) / NOISE
    rows = whiten @ slopes(laws, origin.x(N), origin.y(D))
    covariance = np.linalg.inv(rows.swapaxes(1, 2) @ rows + prior)
    spread = [np.sqrt(np.einsum("ri,rij,rj->r", g, covariance, g)) for g in (of_size, of_loss)]
    return Worth(spread[0], spread[1])


def _seen_from(problem: Problem, top: float) -> tuple[Origin, Array, tuple[Array, Array, Array]]:
    """Origin, laws, and what does not depend on the runs: gradients at the target and the prior's information.

    Kept by the largest budget, rounded to a factor of 1.22.
    """
    rounded = math.exp(round(math.log(top) / 0.2) * 0.2)
    if rounded not in problem.seen:
        problem.seen[rounded] = _see(problem, rounded)
    return problem.seen[rounded]


def _see(problem: Problem, top: float) -> tuple[Origin, Array, tuple[Array, Array, Array]]:
    N = problem.middle(top)
    origin, laws = Origin(N, 20 * N), prior_laws(LAWS)
    of_size = gradient(lambda rows: best_size(rows, origin, problem.target), laws)
    of_loss = gradient(lambda rows: least_loss(rows, origin, problem.target), laws)
    prior = gradient(pulls, laws)
    information = prior.swapaxes(1, 2) @ prior + 1e-6 * np.eye(CONSTANTS)
    return origin, laws, (of_size, of_loss, information)
