"""What to know before a ladder is trained: little spend, far targets, odd designs, untested rules, few data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from isoflop.fit.approaches.bias import bias_on_grid
from isoflop.fit.frontier.allocation import short
from isoflop.fit.law import HOFFMANN, Law
from isoflop.fit.posterior import EXPONENT, REDUCIBLE
from isoflop.ladder.information import Problem, Rung, Worth
from isoflop.ladder.plan import PlannedRun
from isoflop.ladder.rules import FEWEST_STEPS, HIGHEST_RATE, Rule

FAR = 1e3
"""A factor of compute beyond which an extrapolation is spoken of."""
VAGUE = 2.0
"""A factor each way of N_opt's interval beyond which the ladder hardly says more than 20 tokens per parameter."""
BIASED = 0.05
"""Of N at the target: approach 2's own error, without noise, from which on it is spoken of."""
SMALL = 1e7
"""Parameters below which published exponents, ratios and rules have hardly been tested."""


def warnings_of(
    problem: Problem,
    rungs: Sequence[Rung],
    runs: Sequence[PlannedRun],
    rules: Mapping[str, Rule],
    worth: Worth,
    level: float,
    unique_tokens: float | None,
) -> tuple[str, ...]:
    """In sentences, what matters most first."""
    said = [*_too_little(worth, level), *_too_far(problem, rungs), *_bias(problem, rungs)]
    sizes = [float(run.parameters["non_embedding"]) for run in runs]
    budgets = [rung.budget for rung in rungs]
    for rule in dict.fromkeys(rules.values()):
        if (outside := rule.outside(sizes, budgets)) is not None:
            said.append(outside)
    if any(run.learning_rate >= HIGHEST_RATE for run in runs):
        said.append(
            f"the rate of {_of(runs, lambda run: run.learning_rate >= HIGHEST_RATE)} is cut at {HIGHEST_RATE:g}"
        )
    if any(run.steps < FEWEST_STEPS / 2 for run in runs):
        few = _of(runs, lambda run: run.steps < FEWEST_STEPS / 2)
        said.append(f"{few}: fewer than {FEWEST_STEPS // 2} steps even at one sequence a step: shorten --seq")
    if min(sizes) < SMALL:
        said.append(
            f"runs of {short(min(sizes))} to {short(max(sizes))} non-embedding parameters: published exponents and "
            "tokens per parameter come from larger ones, and the law may bend in between"
        )
    if unique_tokens is not None:
        said += _data(problem, runs, unique_tokens)
    return tuple(said)


def _too_little(worth: Worth, level: float) -> list[str]:
    reach = math.exp(float(stats.norm.ppf((1 + level) / 2)) * float(np.median(worth.size)))
    if reach < VAGUE:
        return []
    return [
        f"the spend is too low for an answer: N_opt is expected to within a factor of {reach:.1f} each way, and 20 "
        "tokens per parameter alone are about as good: spend more, or allow more runs (--max-runs)"
    ]


def _too_far(problem: Problem, rungs: Sequence[Rung]) -> list[str]:
    factor = problem.target.C / rungs[-1].budget
    if factor <= FAR:
        return []
    return [
        f"the target is {factor:,.0f} times the largest rung's compute: beyond about three orders of magnitude laws "
        "bend and rates miss, and intervals know of it by a prior alone; climb in two ladders"
    ]


def _bias(problem: Problem, rungs: Sequence[Rung]) -> list[str]:
    """Approach 2's error on this grid by laws whose exponents differ, at the target (Czech et al. 2026)."""
    N = np.array([size.N for rung in rungs for size in rung.sizes])
    C = np.array([rung.budget for rung in rungs for _ in rung.sizes])
    middle = problem.middle(rungs[-1].budget)
    worst = 0.0
    for alpha, beta, offset in ((0.3, 0.4, 1.0), (0.4, 0.3, 1.0), (EXPONENT, EXPONENT, 2.0), (EXPONENT, EXPONENT, 0.5)):
        size = middle * offset
        share = REDUCIBLE * 3.0
        A, B = share * beta / (alpha + beta), share * alpha / (alpha + beta)
        D = rungs[-1].budget / 6 / size
        law = Law(HOFFMANN, {"E": 1.8, "A": A * size**alpha, "B": B * D**beta, "alpha": alpha, "beta": beta})
        try:
            bias = bias_on_grid(law, C, N, budgets=[rung.budget for rung in rungs])
        except ValueError:
            return [
                "approach 2 will miss profiles of this ladder if the optimum lies a factor of 2 off 20 tokens per "
                "parameter: rely on the law (approach 3)"
            ]
        worst = max(worst, abs(math.log(bias.N_ratio_at(problem.target.C))))
    if worst < math.log1p(BIASED):
        return []
    return [
        f"approach 2's parabolas would be off by up to {math.expm1(worst):.0%} in N at the target on this grid, "
        "without any noise: wide profiles and optima off their middle are no parabolas (Czech et al. 2026). The law "
        "(approach 3) is not: believe it where they differ"
    ]


def _data(problem: Problem, runs: Sequence[PlannedRun], unique_tokens: float) -> list[str]:
    said = []
    repeated = [run for run in runs if run.tokens > unique_tokens]
    if repeated:
        epochs = max(run.tokens for run in repeated) / unique_tokens
        said.append(
            f"{len(repeated)} runs repeat the {short(unique_tokens)} tokens, up to {epochs:.1f} times: up to "
            "four epochs are nearly as good as new data (Muennighoff et al. 2023)"
        )
    needed = float(problem.target.tokens(problem.target.N))
    if needed > unique_tokens:
        said.append(
            f"the target wants about {short(needed)} tokens, {needed / unique_tokens:.1f} times the stock: its optimum "
            "is then a larger model than this ladder's law says (isoflop plan --unique-tokens)"
        )
    return said


def _of(runs: Sequence[PlannedRun], holds: Callable[[PlannedRun], bool]) -> str:
    names = [run.name for run in runs if holds(run)]
    return names[0] if len(names) == 1 else f"{len(names)} runs"
