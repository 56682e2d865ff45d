"""The runs that tell most for a spend: budgets and sizes that make the fit's own covariance smallest at the target.

A Bayesian c-optimal design (Chaloner and Verdinelli 1995): it minimises ln sd(ln N_opt(C_target)), averaged over laws
from the prior. Rungs are whole isoFLOP profiles: approach 2 has its minima, and the largest rung can be left out.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from isoflop.ladder.information import WIDEST, Candidate, Problem, Rung, worth_of

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
    shares = tuple(ratio ** (k - len(counts) + 1) for k in range(len(counts)))
    return _built(problem, counts, shares, width)


def _built(
    problem: Problem, counts: tuple[int, ...], shares: tuple[float, ...], width: float
) -> tuple[Rung, ...] | None:
    """Rungs that take the whole spend, or as much of it as the dearest run may; None where sizes do not suffice."""
    top = problem.spend / sum(n * share for n, share in zip(counts, shares, strict=True))
    top = min(top, problem.dearest)
    made = []
    for n, share in zip(counts, shares, strict=True):
        sizes = evenly(problem, top * share, n, width)
        if sizes is None:
            return None
        made.append(Rung(top * share, sizes))
    return tuple(made)


def evenly(problem: Problem, budget: float, count: int, width: float) -> tuple[Candidate, ...] | None:
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
    counts = tuple(len(rung.sizes) for rung in rungs)
    shares = tuple(rung.budget / rungs[-1].budget for rung in rungs)
    wide = [math.sqrt(rung.sizes[-1].N / rung.sizes[0].N) for rung in rungs]
    found = []
    for width in (min(WIDTHS, key=lambda w: abs(w - max(wide))), WIDTHS[-1]):
        for k in range(len(rungs)):
            for change in (-1, 1):
                found.append(((*counts[:k], counts[k] + change, *counts[k + 1 :]), shares, width))
            for other in range(len(rungs)):
                if other != k:
                    moved = list(counts)
                    moved[k], moved[other] = moved[k] - 1, moved[other] + 1
                    found.append((tuple(moved), shares, width))
        for k in range(len(rungs) - 1):
            for factor in (0.6, 1 / 0.6):
                # the gap above rung k, all rungs below it with it
                found.append((counts, tuple(s * factor if i <= k else s for i, s in enumerate(shares)), width))
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


def _brackets(row: list[Candidate], middle: float) -> bool:
    """Whether a profile has sizes on both sides of its middle and one near it: what approach 2 needs."""
    logs = np.log([size.N for size in row]) - math.log(middle)
    beside = math.log(BESIDE)
    return bool(logs.min() <= -beside and logs.max() >= beside and np.abs(logs).min() < NEAR)


def even_grid(problem: Problem, runs: int, *, ratio: float = 3.0, width: float = 4.0) -> tuple[Rung, ...] | None:
    """What one would choose without a design: isoFLOP profiles, budgets and sizes evenly spaced in logarithms.

    Budgets 3 apart (DeepSeek LLM 2024: eight from 1e17 to 3e20) and sizes from a quarter to four times the optimum
    expected (Hoffmann et al. 2022, figure 3; Porian et al. 2024), about five sizes a budget, the same spend and runs.
    None where the sizes do not suffice.
    """
    rungs = max(3, round(runs / 5))
    counts = [runs // rungs + (k < runs % rungs) for k in range(rungs)]
    return _arranged(problem, tuple(counts), ratio, width)
