"""Design a ladder: the budgets and sizes that tell most about N_opt at the target, and the worth of one more rung.

**Design.** Bayesian c-optimal (Chaloner and Verdinelli 1995): it minimises the mean of ln sd(ln N_opt(C_target)) over
laws drawn from the prior, by the Gaussian approximation of the posterior that `ladder fit` computes. Rungs are whole
isoFLOP profiles: approach 2 finds its minima, and the largest rung can be left out and predicted.

**One more rung.** Value of information (Raiffa and Schlaifer 1961): the losses of a rung are unknown before it is
trained, but how much they narrow N_opt is known from its sizes and budget. A wrong size costs loss; in FLOPs, what less
compute the best size would take to reach that loss. A rung is worth it if it saves the target more than it costs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from isoflop.arrays import Array
from isoflop.fit.drifting_law import (
    CONSTANTS,
    BudgetLine,
    Origin,
    best_size,
    gradient,
    least_loss,
    prior_laws,
    pulls,
    slopes,
)
from isoflop.fit.posterior import NOISE, Posterior, run_covariance
from isoflop.ladder.sizes import Shape

LAWS = 32
"""Of the prior, over which a design's worth is averaged."""
WIDEST = 8.0
"""Largest or smallest size of a budget over its middle: D/N of .3 to 1,300. Beyond, the law is hardly tested."""


Prior = tuple[Origin, Array, Array, Array, Array]
"""By the largest budget: origin, laws, gradients of ln N_opt and ln L at the target, the prior's information."""


@dataclass(frozen=True)
class Rung:
    """Runs of one budget, in FLOPs."""

    budget: float
    sizes: tuple[Shape, ...]


@dataclass(frozen=True)
class Problem:
    """Target, limits and known runs of a design.

    Attributes:
        target: the budget's line at the target.
        candidates: configurations, smallest first.
        spend: FLOPs of all runs.
        fewest, most: number of runs.
        dearest: FLOPs of one run at most.
        tokens: of one run at most.
        known_N, known_D: parameters and tokens of finished runs.
    """

    target: BudgetLine
    candidates: tuple[Shape, ...]
    spend: float
    fewest: int
    most: int
    dearest: float = math.inf
    tokens: float = math.inf
    known_N: Array = field(default_factory=lambda: np.zeros(0))
    known_D: Array = field(default_factory=lambda: np.zeros(0))
    priors: dict[float, Prior] = field(default_factory=dict, repr=False)

    @cached_property
    def _log_N(self) -> Array:
        return np.log([candidate.N for candidate in self.candidates])

    def middle(self, budget: float) -> float:
        """N of 20 tokens per parameter."""
        rates = np.array([candidate.flops_per_token for candidate in self.candidates])
        ratio = np.log(budget / rates) - self._log_N  # ln D/N falls with N
        return float(np.exp(np.interp(-math.log(20.0), -ratio, self._log_N)))

    def allowed(self, budget: float) -> list[Shape]:
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
    """Expected standard deviations after the runs of a design and the known ones."""
    N = np.array([size.N for rung in rungs for size in rung.sizes])
    D = np.array([rung.budget / size.flops_per_token for rung in rungs for size in rung.sizes])
    origin, laws, of_size, of_loss, prior = _prior_at(problem, max(rung.budget for rung in rungs))
    N, D = np.append(N, problem.known_N), np.append(D, problem.known_D)
    whiten = np.linalg.inv(np.linalg.cholesky(run_covariance(N, D, NOISE)))
    rows = whiten @ slopes(laws, origin.x(N), origin.y(D))
    covariance = np.linalg.inv(rows.swapaxes(1, 2) @ rows + prior)
    return Worth(*(np.sqrt(np.einsum("ri,rij,rj->r", g, covariance, g)) for g in (of_size, of_loss)))


def _prior_at(problem: Problem, top: float) -> Prior:
    """The prior by the largest budget, kept by that rounded to a factor of 1.22."""
    rounded = math.exp(round(math.log(top) / 0.2) * 0.2)
    if rounded not in problem.priors:
        N = problem.middle(rounded)
        origin, laws = Origin(N, 20 * N), prior_laws(LAWS)
        of_size = gradient(lambda rows: best_size(rows, origin, problem.target), laws)
        of_loss = gradient(lambda rows: least_loss(rows, origin, problem.target), laws)
        prior = gradient(pulls, laws)
        information = prior.swapaxes(1, 2) @ prior + 1e-6 * np.eye(CONSTANTS)
        problem.priors[rounded] = origin, laws, of_size, of_loss, information
    return problem.priors[rounded]


RUNGS = (3, 4, 5)
RATIOS = (2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0, 30.0)
"""Budget over the next smaller one's."""
SPAN = 1000.0
"""Largest budget over the smallest at most: published ladders span 500 to 2,000 (Hoffmann et al. 2022; Llama 3 2024;
Porian et al. 2024), and a law over more scales than that is hardly one law."""
WIDTHS = (3.0, 4.0, 6.0, WIDEST)
"""Largest or smallest size of a rung over its middle."""
SPACED = math.log(1.3)
"""Least ln between sizes of a rung: closer ones repeat a run, and tell nothing of the profile's form."""
BESIDE, NEAR = 1.15, math.log(3)
"""A rung has sizes at least this factor below and above its middle, and one within the ln of 3 of it."""
LEAST_A_RUNG = 3
"""Sizes: a parabola has three coefficients."""
LEAST_BELOW = 6
"""Runs below the largest rung, so that it can be left out and predicted: as many as constants and one more."""
SWEEPS = 3


def best_design(problem: Problem) -> tuple[Rung, ...]:
    """The rungs of the least score, smallest first.

    All arrangements of rungs, ratios, widths and numbers of runs first, their sizes evenly spaced; then the best one's
    rungs are moved and its sizes exchanged, one by one, while that helps.

    Raises:
        ValueError: no arrangement fits the spend, the sizes and the limits.
    """
    found: list[tuple[float, tuple[Rung, ...]]] = []
    for counts, ratio, width in itertools.product(_counts(problem), RATIOS, WIDTHS):
        if ratio ** (len(counts) - 1) > SPAN * 1.01:
            continue
        rungs = _arranged(problem, counts, ratio, width)
        if rungs is not None:
            found.append((worth_of(problem, rungs).score, rungs))
    if not found:
        raise ValueError(
            f"no ladder of {problem.fewest} to {problem.most} runs fits {problem.spend:.3g} FLOPs with these sizes and "
            "limits: raise the spend, allow smaller models (--sizes) or more tokens (--unique-tokens)"
        )
    score, rungs = min(found, key=lambda item: item[0])
    score, rungs = _moved(problem, rungs, score)
    return _exchanged(problem, rungs, score)


def _counts(problem: Problem) -> list[tuple[int, ...]]:
    """Sizes by rung, smallest rung first: the lower rungs alike, the top one as many or fewer."""
    found = []
    for rungs, lower, top in itertools.product(RUNGS, range(LEAST_A_RUNG, 8), range(LEAST_A_RUNG, 8)):
        runs = (rungs - 1) * lower + top
        if problem.fewest <= runs <= problem.most and top <= lower + 1 and (rungs - 1) * lower >= LEAST_BELOW:
            found.append((*([lower] * (rungs - 1)), top))
    return found


def _arranged(problem: Problem, counts: tuple[int, ...], ratio: float, width: float) -> tuple[Rung, ...] | None:
    return _built(problem, counts, tuple(ratio ** (k - len(counts) + 1) for k in range(len(counts))), width)


def _built(
    problem: Problem, counts: tuple[int, ...], shares: tuple[float, ...], width: float
) -> tuple[Rung, ...] | None:
    """Rungs that take the whole spend, or as much of it as the dearest run may; None where sizes do not suffice."""
    top = problem.spend / sum(n * share for n, share in zip(counts, shares, strict=True))
    top = min(top, problem.dearest)
    made = []
    for n, share in zip(counts, shares, strict=True):
        sizes = _evenly(problem, top * share, n, width)
        if sizes is None:
            return None
        made.append(Rung(top * share, sizes))
    return tuple(made)


def _evenly(problem: Problem, budget: float, count: int, width: float) -> tuple[Shape, ...] | None:
    """Sizes evenly spaced in ln N, from middle/width to middle·width; None where there are not as many."""
    middle, allowed = problem.middle(budget), problem.allowed(budget)
    if len(allowed) < count or middle / BESIDE < allowed[0].N or middle * BESIDE > allowed[-1].N:
        return None
    logs = np.log([c.N for c in allowed])
    wanted = np.linspace(max(math.log(middle / width), logs[0]), min(math.log(middle * width), logs[-1]), count)
    taken: list[int] = []
    for at in wanted:
        free = [i for i in np.argsort(np.abs(logs - at)) if i not in taken]
        taken.append(int(free[0]))
    return tuple(allowed[i] for i in sorted(taken))


def _moved(problem: Problem, rungs: tuple[Rung, ...], score: float) -> tuple[float, tuple[Rung, ...]]:
    """Budgets nearer or farther apart and sizes moved from rung to rung, one step at a time, while that helps."""
    while True:
        best = None
        for counts, shares, width in _neighbours(problem, rungs):
            other = _built(problem, counts, shares, width)
            if other is not None and (new := worth_of(problem, other).score) < score - 1e-3:
                best, score = other, new
        if best is None:
            return score, rungs
        rungs = best


def _neighbours(problem: Problem, rungs: tuple[Rung, ...]) -> list[tuple[tuple[int, ...], tuple[float, ...], float]]:
    """Numbers of sizes, shares of the largest budget, and width of arrangements one step away."""
    counts = np.array([len(rung.sizes) for rung in rungs])
    shares = tuple(rung.budget / rungs[-1].budget for rung in rungs)
    widest = max(math.sqrt(rung.sizes[-1].N / rung.sizes[0].N) for rung in rungs)
    unit = np.eye(len(rungs), dtype=int)
    found = []
    for width in (min(WIDTHS, key=lambda width: abs(width - widest)), WIDTHS[-1]):
        for k, one in enumerate(unit):
            for change in (-one, one, *(other - one for other in np.delete(unit, k, axis=0))):
                found.append((tuple((counts + change).tolist()), shares, width))
        for k, factor in itertools.product(range(len(rungs) - 1), (0.6, 1 / 0.6)):
            # the gap above rung k, all rungs below it with it
            moved = tuple(share * factor if i <= k else share for i, share in enumerate(shares))
            found.append((tuple(counts.tolist()), moved, width))
    return [
        (new, share, width)
        for new, share, width in found
        if min(new) >= LEAST_A_RUNG
        and problem.fewest <= sum(new) <= problem.most
        and sum(new[:-1]) >= LEAST_BELOW
        and share[0] * SPAN >= 0.99
        and all(high >= 2 * low for low, high in itertools.pairwise(share))
    ]


def _exchanged(problem: Problem, rungs: tuple[Rung, ...], score: float) -> tuple[Rung, ...]:
    """Each run's size replaced by the best other one of its budget, run by run, until nothing helps."""
    allowed = [problem.allowed(rung.budget) for rung in rungs]
    middles = [problem.middle(rung.budget) for rung in rungs]
    sizes = [list(rung.sizes) for rung in rungs]

    def scored() -> float:
        made = [Rung(rung.budget, tuple(row)) for rung, row in zip(rungs, sizes, strict=True)]
        return worth_of(problem, made).score

    for _ in range(SWEEPS):
        before = score
        for k, row in enumerate(sizes):
            for i, own in enumerate(row):
                best = own
                for other in allowed[k]:
                    if any(abs(math.log(other.N / row[j].N)) < SPACED for j in range(len(row)) if j != i):
                        continue
                    row[i] = other
                    if _brackets(row, middles[k]) and (new := scored()) < score - 1e-6:
                        best, score = other, new
                row[i] = best
        if before - score < 1e-3:
            break
    return tuple(
        Rung(rung.budget, tuple(sorted(row, key=lambda size: size.N))) for rung, row in zip(rungs, sizes, strict=True)
    )


def _brackets(row: list[Shape], middle: float) -> bool:
    """Whether a profile has sizes on both sides of its middle and one near it: what approach 2 needs."""
    logs = np.log([size.N for size in row]) - math.log(middle)
    beside = math.log(BESIDE)
    return bool(logs.min() <= -beside and logs.max() >= beside and np.abs(logs).min() < NEAR)


def even_grid(problem: Problem, runs: int, *, ratio: float = 3.0, width: float = 4.0) -> tuple[Rung, ...] | None:
    """IsoFLOP profiles chosen without a design: budgets and sizes evenly spaced in logarithms.

    Budgets 3 apart (DeepSeek LLM 2024: eight from 1e17 to 3e20) and sizes from a quarter to four times the optimum
    expected (Hoffmann et al. 2022, figure 3; Porian et al. 2024), about five sizes a budget, the same spend and runs.
    None where the sizes do not suffice.
    """
    rungs = max(3, round(runs / 5))
    counts = [runs // rungs + (k < runs % rungs) for k in range(rungs)]
    return _arranged(problem, tuple(counts), ratio, width)


WORTH_RATIOS = (1.5, 2.0, 3.0, 5.0, 10.0, 20.0)
"""Budgets of the next rung that are compared, over the largest one."""
SIZES = (0.25, 1.0, 4.0)
"""Of its runs over the optimum to be expected there."""
MOST = 0.5
"""Of the target's budget, for a single run of the rung."""


@dataclass(frozen=True)
class RungWorth:
    """One more rung.

    Attributes:
        waste_flops: FLOPs that the target run is expected to waste, as N_opt is uncertain.
        waste_flops_after: the same after the rung.
        cost_flops: of the rung.
        budget: FLOPs of each of its runs.
        sizes: their parameters.
        narrower: sd of ln N_opt after it over that before.
    """

    waste_flops: float
    waste_flops_after: float
    cost_flops: float
    budget: float
    sizes: tuple[float, ...]
    narrower: float

    @property
    def saved_flops(self) -> float:
        """FLOPs that it is expected to save the target run."""
        return self.waste_flops - self.waste_flops_after

    @property
    def go(self) -> bool:
        """Whether it saves more than it costs."""
        return self.saved_flops > self.cost_flops


def worth_of_a_rung(posterior: Posterior, target: BudgetLine, N: Array, D: Array) -> RungWorth | None:
    """The next rung of the greatest saving less cost; None where even the smallest would be as dear as the target.

    Args:
        posterior: of the runs.
        target: budget line of the target run.
        N, D: parameters and tokens of the runs.
    """
    waste = _expected_waste(posterior, target)
    found = []
    for ratio in WORTH_RATIOS:
        line = target.at(posterior.largest * ratio)
        if line.C > MOST * target.C:
            break
        sizes = float(np.exp(np.median(posterior.sizes(line)))) * np.array(SIZES)
        narrower = _narrower(posterior, target, N, D, sizes, line.tokens(sizes))
        after = waste * narrower**2  # the waste is of second order in ln N
        found.append(RungWorth(waste, after, len(SIZES) * line.C, line.C, tuple(sizes.tolist()), narrower))
    return max(found, key=lambda rung: rung.saved_flops - rung.cost_flops) if found else None


def _expected_waste(posterior: Posterior, target: BudgetLine) -> float:
    """FLOPs that a run of the median N_opt is expected to waste at the target."""
    N = math.exp(float(np.median(posterior.sizes(target))))
    own, least = posterior.losses(N, float(target.tokens(N))), posterior.least(target)
    more = target.at(1.1 * target.C)
    fall = (least - posterior.least(more)) / math.log(1.1)  # of ln L per ln C along the frontier
    return float(target.C * np.mean(np.maximum(own - least, 0.0) / np.maximum(fall, 1e-6)))


def _narrower(posterior: Posterior, target: BudgetLine, N: Array, D: Array, new_N: Array, new_D: Array) -> float:
    """Standard deviation of ln N_opt after runs over that before, by the Gaussian of the posterior's draws."""
    theta, origin = posterior.mode[None], posterior.origin
    covariance = np.cov(posterior.draws.T)
    g = gradient(lambda rows: best_size(rows, origin, target), theta)[0]
    both_N, both_D = np.append(new_N, N), np.append(new_D, D)
    k = len(new_N)
    # what runs of one size share is known in part from the runs that there are: the new ones' own part counts
    own = run_covariance(both_N, both_D, float(np.median(posterior.noise)))
    conditional = own[:k, :k] - own[:k, k:] @ np.linalg.solve(own[k:, k:], own[k:, :k])
    rows = slopes(theta, origin.x(new_N), origin.y(new_D))[0]
    information = rows.T @ np.linalg.solve(conditional, rows)
    after = np.linalg.inv(np.linalg.inv(covariance) + information)
    return float(math.sqrt((g @ after @ g) / (g @ covariance @ g)))
