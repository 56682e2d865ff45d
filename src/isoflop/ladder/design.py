"""Design a ladder: the budgets and sizes that tell most about N_opt at the target, and the worth of one more rung.

**Design.** Bayesian c-optimal (Chaloner and Verdinelli 1995): it minimises the mean of ln sd(ln N_opt(C_target)) over
laws drawn from the prior, by the Gaussian approximation of the posterior that `ladder fit` computes. Rungs are whole
isoFLOP profiles: approach 2 finds its minima, and the largest rung can be left out and predicted. Left alone, such a
design puts its runs into the far corners of what it may choose; `Bounds` keep it to runs that people train.

**One more rung.** Value of information (Raiffa and Schlaifer 1961): the losses of a rung are unknown before it is
trained, but how much they narrow N_opt is known from its sizes and budget. A wrong size costs loss; in FLOPs, what less
compute the best size would take to reach that loss. A rung is worth it if it saves the target more than it costs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from isoflop.arrays import Array
from isoflop.fit.drifting_law import (
    CONSTANTS,
    RATIO,
    BudgetLine,
    Origin,
    best_size,
    gradient,
    least_loss,
    prior_laws,
    pulls,
    slopes,
)
from isoflop.fit.likelihood import NOISE, run_covariance
from isoflop.fit.posterior import Posterior
from isoflop.ladder.sizes import Family, Shape, size_grid
from isoflop.laws.quantities import short
from isoflop.laws.recipes import Recipe

LAWS = 32
"""Of the prior, over which a design's worth is averaged."""
DECAY = 0.2
"""Share of a run's steps in which its rate decays after a constant one (Hägele et al. 2024, arXiv:2405.18392, figure 4:
as good as a cosine). A shorter run that branches off a longer one of its size costs that share alone."""
SMALLEST, BODY = 1e4, 0.06
"""Parameters, and share of them that are no head, as of the smallest of Porian et al. 2024 (5M with a head of 4.8M)."""
SEVERAL = 5
"""Configurations to choose from, at least."""

Prior = tuple[Origin, Array, Array, Array, Array]
"""By the largest budget: origin, laws, gradients of ln N_opt and ln L at the target, the prior's information."""


@dataclass(frozen=True)
class Rung:
    """Runs of one budget, in FLOPs."""

    budget: float
    sizes: tuple[Shape, ...]


@dataclass(frozen=True)
class Bounds:
    """Limits of a ladder's runs.

    Attributes:
        runs: least and most.
        different: sizes at most: each needs its own configuration, and with `branches` its own long run.
        ratio: least and most tokens per parameter (with the head). No published sweep supports a law beyond 5 to 200.
        sizes: least and most parameters, with the head; None: what the spend asks for.
        flops: of a run at most.
        tokens: least and most of a run.
        batch: the rule whose range runs keep to; None: none.
    """

    runs: tuple[int, int] = (12, 16)
    different: int = 8
    ratio: tuple[float, float] = (5.0, 200.0)
    sizes: tuple[float, float] | None = None
    flops: float = math.inf
    tokens: tuple[float, float] = (0.0, math.inf)
    batch: Recipe | None = None

    def relaxed(self) -> Iterator[tuple[str, Bounds]]:
        """By option: the bounds without it."""
        yield "--max-sizes", replace(self, different=99)
        yield "--tokens-per-param", replace(self, ratio=(0.1 * self.ratio[0], 10 * self.ratio[1]))
        yield "--min-steps", replace(self, tokens=(0.0, self.tokens[1]))
        yield "--unique-tokens", replace(self, tokens=(self.tokens[0], math.inf))
        yield "--max-flops-per-run", replace(self, flops=math.inf)
        yield "--sizes", replace(self, sizes=None)
        yield "--min-runs and --max-runs", replace(self, runs=(9, 24))


@dataclass(frozen=True)
class Problem:
    """Target, limits and known runs of a design.

    Attributes:
        family: of the models.
        flops: of the target run.
        spend: FLOPs of all runs.
        bounds: of the runs.
        branches: whether shorter runs of a size branch off its longest one, whose rate is constant until its decay.
        known_N, known_D: parameters and tokens of finished runs.
    """

    family: Family
    flops: float
    spend: float
    bounds: Bounds = field(default_factory=Bounds)
    branches: bool = False
    known_N: Array = field(default_factory=lambda: np.zeros(0))
    known_D: Array = field(default_factory=lambda: np.zeros(0))
    priors: dict[float, Prior] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def candidates(self) -> tuple[Shape, ...]:
        """Configurations to choose from, smallest first: those that the user allows, or all that a rung may need.

        Raises:
            ValueError: too few.
        """
        f, sizes = self.family, self.bounds.sizes
        if sizes is not None:
            grid = size_grid(f, *sizes)
            reason = (
                f"--sizes: {len(grid)} configurations of {f.name} with {f.vocab_size:,} tokens lie between "
                f"{short(sizes[0])} and {short(sizes[1])} parameters (with the head); a ladder needs {SEVERAL}: widen "
                "the range"
            )
        else:
            least = max(SMALLEST, math.sqrt(self.spend / 1e5 / 120) / 10)
            grid = size_grid(f, least, math.sqrt(self.spend / 120) * 10)
            grid = tuple(s for s in grid if s.parameters["non_embedding"] > BODY * s.N)
            reason = (
                f"--spend: {self.spend:.3g} FLOPs are too few for models of {f.name} with {f.vocab_size:,} tokens: "
                "spend more (3% is a share, 3 are three FLOPs), or take a smaller tokenizer (--vocab 256: bytes)"
            )
        if len(grid) < SEVERAL:
            raise ValueError(reason)
        return grid

    @cached_property
    def target(self) -> BudgetLine:
        """The target's budget: ln D over ln N, straight around 20 tokens per parameter."""
        guess = max(math.sqrt(self.flops / 6 / RATIO), 8 * SMALLEST)  # no models below: the nearest line serves
        around = size_grid(self.family, guess / 8, guess * 8)
        N, rates = (np.array(column) for column in zip(*((s.N, s.flops_per_token) for s in around), strict=True))
        middle = min(around, key=lambda shape: abs(math.log(shape.N / guess)))
        slope = float(np.polyfit(np.log(N), np.log(rates), 1)[0]) if len(around) > 2 else 1.0
        return BudgetLine(self.flops, middle.N, self.flops / middle.flops_per_token, slope)

    @cached_property
    def _log_N(self) -> Array:
        return np.log([candidate.N for candidate in self.candidates])

    def middle(self, budget: float) -> float:
        """N of 20 tokens per parameter."""
        rates = np.array([candidate.flops_per_token for candidate in self.candidates])
        ratio = np.log(budget / rates) - self._log_N  # ln D/N falls with N
        return float(np.exp(np.interp(-math.log(RATIO), -ratio, self._log_N)))

    def allowed(self, budget: float, gap: float = 1.0) -> list[Shape]:
        """Sizes within the bounds for a budget, of those that are a factor of `gap` apart."""
        b = self.bounds
        found, least = [], 0.0
        for shape in self.candidates:
            if least > shape.N:
                continue
            least, D = gap * shape.N, budget / shape.flops_per_token
            if not (b.tokens[0] <= D <= b.tokens[1] and b.ratio[0] <= D / shape.N <= b.ratio[1]):
                continue
            if b.batch is None or b.batch.covers([shape.run(D, budget)]):
                found.append(shape)
        return found

    def cost(self, rungs: Sequence[Rung]) -> float:
        """FLOPs of all runs; what branches share is trained once."""
        if not self.branches:
            return sum(rung.budget * len(rung.sizes) for rung in rungs)
        spent: dict[Shape, list[float]] = {}
        for rung in rungs:
            for size in rung.sizes:
                spent.setdefault(size, []).append(rung.budget)
        return sum((1 - DECAY) * max(budgets) + DECAY * sum(budgets) for budgets in spent.values())


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
        origin, laws = Origin(N, RATIO * N), prior_laws(LAWS)
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
WIDTHS = (0.6, 1.0)
"""Of the bounds' range of sizes in logarithms, about the middle, that a rung takes up."""
GAPS = (1.0, 1.5, 2.0)
"""Factor between sizes that are chosen from: with wider ones more rungs share a size."""
SPACED = math.log(1.25)
"""Least ln between sizes of a rung: closer ones repeat a run, and tell nothing of the profile's form."""
BESIDE, NEAR = math.log(1.15), math.log(3)
"""A rung has sizes at least this far, in ln N, below and above its middle, and one as near to it."""
LEAST_A_RUNG = 3
"""Sizes: a parabola has three coefficients."""
LEAST_BELOW = 6
"""Runs below the largest rung, so that it can be left out and predicted: as many as constants and one more."""
SWEEPS = 3


Arrangement = tuple[tuple[int, ...], tuple[float, ...], float, float]
"""Sizes by rung, smallest rung first; budgets over the largest one; of `WIDTHS`; of `GAPS`."""


def _arranged(problem: Problem, arrangement: Arrangement) -> tuple[Rung, ...] | None:
    """Evenly spaced sizes that take the whole spend, or what the dearest run may; None where they do not suffice."""
    counts, shares, width, gap = arrangement
    top = problem.spend / sum(n * share for n, share in zip(counts, shares, strict=True))
    made: list[Rung] = []
    for _ in range(5 if problem.branches else 1):  # what branches save depends on the sizes, these on the budgets
        top = min(top, problem.bounds.flops)
        spread = [_spread(problem, top * share, n, width, gap) for n, share in zip(counts, shares, strict=True)]
        made = [Rung(top * share, sizes) for share, sizes in zip(shares, spread, strict=True) if sizes]
        if len(made) < len(counts):
            return None
        top *= problem.spend / problem.cost(made)
    return tuple(made) if _fits(problem, made) else None


def _spread(problem: Problem, budget: float, count: int, width: float, gap: float) -> tuple[Shape, ...]:
    """Sizes evenly spaced in ln N over the width; none where there are not as many."""
    allowed = problem.allowed(budget, gap)
    if len(allowed) < count:
        return ()
    logs, middle = np.log([c.N for c in allowed]), math.log(problem.middle(budget))
    low, high = (middle + width * (edge - middle) for edge in (logs[0], logs[-1]))
    taken: list[int] = []
    for at in np.linspace(low, high, count):
        taken.append(next(int(i) for i in np.argsort(np.abs(logs - at)) if i not in taken))
    row = tuple(allowed[i] for i in sorted(taken))
    return row if _brackets(row, middle) else ()


def _fits(problem: Problem, rungs: Sequence[Rung]) -> bool:
    return len(_sizes(rungs)) <= problem.bounds.different and problem.cost(rungs) <= 1.001 * problem.spend


def _sizes(rungs: Sequence[Rung]) -> list[Shape]:
    """Different ones, smallest first."""
    return sorted({size for rung in rungs for size in rung.sizes}, key=lambda size: size.N)


def _brackets(row: Sequence[Shape], middle: float) -> bool:
    """Whether a profile has sizes on both sides of its middle, ln N, and one near it: what approach 2 needs."""
    logs = np.log([size.N for size in row]) - middle
    return bool(logs.min() <= -BESIDE and logs.max() >= BESIDE and np.abs(logs).min() < NEAR)


def _arrangements(bounds: Bounds) -> Iterator[Arrangement]:
    """Even ones: the lower rungs alike, the top one as many sizes or fewer."""
    least, most = bounds.runs
    for rungs, lower, top in itertools.product(RUNGS, range(LEAST_A_RUNG, 8), range(LEAST_A_RUNG, 8)):
        below = (rungs - 1) * lower
        if top > lower + 1 or below < LEAST_BELOW or not least <= below + top <= most:
            continue
        for ratio, width, gap in itertools.product(RATIOS, WIDTHS, GAPS):
            if ratio ** (rungs - 1) <= SPAN * 1.01:
                yield (*[lower] * (rungs - 1), top), _even_shares(rungs, ratio), width, gap


def _even_shares(rungs: int, ratio: float) -> tuple[float, ...]:
    return tuple(ratio ** (k - rungs + 1) for k in range(rungs))


def _neighbours(arrangement: Arrangement) -> Iterator[Arrangement]:
    """One step away: a budget moved with all below it, another width or gap."""
    counts, shares, *_ = arrangement
    for k, factor, width, gap in itertools.product(range(1, len(counts)), (0.6, 1.0, 1 / 0.6), WIDTHS, GAPS):
        moved = (*(share * factor for share in shares[:k]), *shares[k:])
        if moved[0] * SPAN >= 0.99 and all(high >= 2 * low for low, high in itertools.pairwise(moved)):
            yield counts, moved, width, gap


def best_design(problem: Problem) -> tuple[Rung, ...]:
    """The rungs of the least score, smallest first.

    All even arrangements of rungs, ratios, widths and numbers of runs first; then the best one's budgets are moved and
    its sizes exchanged, one by one, while that helps.

    Raises:
        ValueError: no arrangement fits the spend and the bounds; the text names those that bind.
    """
    found = _scored(problem, _arrangements(problem.bounds))
    if not found:
        raise ValueError(_binding(problem))
    best = min(found)
    while (other := min(_scored(problem, _neighbours(best[1])))) < best:
        best = other
    score, _, rungs = best
    return _exchanged(problem, rungs, score)


def _scored(problem: Problem, arrangements: Iterator[Arrangement]) -> list[tuple[float, Arrangement, tuple[Rung, ...]]]:
    made = ((each, _arranged(problem, each)) for each in arrangements)
    return [(worth_of(problem, rungs).score, each, rungs) for each, rungs in made if rungs]


def _binding(problem: Problem) -> str:
    """Why nothing fits: the bounds without which something would."""

    def feasible(other: Problem) -> bool:
        try:
            return any(_arranged(other, each) for each in _arrangements(other.bounds))
        except ValueError:
            return False

    binding = [
        name
        for name, bounds in problem.bounds.relaxed()
        if bounds != problem.bounds and feasible(replace(problem, bounds=bounds))
    ]
    if feasible(replace(problem, spend=30 * problem.spend)):
        binding.insert(0, "--spend")
    least, most = problem.bounds.runs
    which = f"{' or '.join(binding)} binds: widen it" if binding else "several of them bind together: widen them"
    return f"no ladder of {least} to {most} runs for {problem.spend:.3g} FLOPs lies within the bounds: {which}"


def _exchanged(problem: Problem, rungs: tuple[Rung, ...], score: float) -> tuple[Rung, ...]:
    """Sizes replaced by better ones, in one rung or in all that have them, until nothing helps."""
    allowed = [problem.allowed(rung.budget) for rung in rungs]
    middles = [math.log(problem.middle(rung.budget)) for rung in rungs]

    def replaced(places: Sequence[int], old: Shape, new: Shape) -> tuple[Rung, ...] | None:
        made = list(rungs)
        for k in places:
            if old not in rungs[k].sizes:
                continue
            row = sorted({*rungs[k].sizes, new} - {old}, key=lambda size: size.N)
            spaced = np.diff(np.log([size.N for size in row])).min() >= SPACED
            if len(row) < len(rungs[k].sizes) or new not in allowed[k] or not spaced or not _brackets(row, middles[k]):
                return None
            made[k] = replace(rungs[k], sizes=tuple(row))
        return tuple(made) if tuple(made) != rungs and _fits(problem, made) else None

    def moves() -> Iterator[tuple[Sequence[int], Shape, Shape]]:
        for k, rung in enumerate(rungs):
            yield from (([k], *change) for change in itertools.product(rung.sizes, allowed[k]))
        for old, new in itertools.product(_sizes(rungs), allowed[-1]):
            if 0.4 < new.N / old.N < 2.5:
                yield range(len(rungs)), old, new

    for _ in range(SWEEPS):
        before = score
        for move in moves():
            if (made := replaced(*move)) and (value := worth_of(problem, made).score) < score - 1e-6:
                rungs, score = made, value
        if before - score < 1e-3:
            break
    return rungs


def even_grid(problem: Problem, runs: int, *, ratio: float = 3.0, width: float = 1.0) -> tuple[Rung, ...] | None:
    """IsoFLOP profiles chosen without a design, within the same bounds: budgets and sizes evenly spaced in logarithms.

    Budgets 3 apart (DeepSeek LLM 2024: eight from 1e17 to 3e20), about five sizes a budget, the same spend and runs.
    None where the sizes do not suffice.
    """
    rungs = max(3, round(runs / 5))
    counts = tuple(runs // rungs + (k < runs % rungs) for k in range(rungs))
    free = replace(problem, bounds=replace(problem.bounds, different=99), branches=False)
    return _arranged(free, (counts, _even_shares(rungs, ratio), width, 1.0))


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
    """The next rung of the greatest saving less cost; None where even the smallest would be as dear as the target."""
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
