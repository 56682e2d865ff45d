"""`plan_ladder`: a target and a spend to the runs that tell most, as configurations that can be trained.

How far approach 2 is off before any noise: its parabolas stand for profiles that aren't parabolas.

Czech et al. 2026 (arXiv:2603.22339). On an isoFLOP curve of Hoffmann's law, L − E ∝ β·e^{−αu} + α·e^{βu} with
u = ln(N/N_opt), whatever the budget. So a grid that sits alike around every optimum moves every minimum by the same
factor: the prefactor is biased, a isn't. A grid whose offset drifts with the budget biases a too. To lowest order a
dense centred grid of half-width h in ln N moves the minimum by h²(α − β)/10. With α = β an offset δ in ln N moves it by
α²δ(δ²/3 − h²/35): it grows with the offset from about .3 of the half-width on.

What to know before a ladder is trained: little spend, far targets, odd designs, untested rules, few data.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from isoflop.arrays import Array
from isoflop.fit.approaches import approach_3, column, group, parabola, refused
from isoflop.fit.posterior import BEYOND, EXPONENT, NOISE, REDUCIBLE, SHARED, BudgetLine
from isoflop.ladder.design import Candidate, Problem, Rung, Worth, best_design, even_grid, worth_of
from isoflop.ladder.finished import FinishedRun, read_finished
from isoflop.ladder.plan import Expected, LadderPlan, PlannedRun
from isoflop.ladder.rules import (
    FEWEST_STEPS,
    HIGHEST_RATE,
    Rule,
    batch_rule,
    batch_sequences,
    peak_rate,
    rate_rule,
    warmup_of,
)
from isoflop.ladder.sizes import Family, Shape, family_of, nearest, size_grid, size_of
from isoflop.laws.forms import HOFFMANN, Law
from isoflop.laws.frontier import short
from isoflop.record.run import DEFAULT_N


@dataclass(frozen=True)
class ParabolaBias:
    """What approach 2 would give on noise-free losses of a law, against the law.

    Attributes:
        a, true_a: exponent found and β/(α+β).
        N_prefactor, true_N_prefactor: optimal parameters at C = 1 FLOP.
        budgets: FLOPs of the profiles that have a minimum [budgets].
        N_ratio: size found over the true optimum, by profile [budgets].
        warnings: budgets that were left out.
        sentence: the bias in words.
    """

    a: float
    true_a: float
    N_prefactor: float
    true_N_prefactor: float
    budgets: Array = field(compare=False)
    N_ratio: Array = field(compare=False)
    warnings: tuple[str, ...]
    sentence: str

    @property
    def a_bias(self) -> float:
        """Exponent found less the true one."""
        return self.a - self.true_a

    def N_ratio_at(self, C: float) -> float:
        """Size that approach 2's power law names at C FLOPs, over the true optimum."""
        return float(np.exp(np.log(self.N_prefactor / self.true_N_prefactor) + self.a_bias * np.log(C)))


def bias_on_grid(
    law: Law, C: ArrayLike, N: ArrayLike, budgets: ArrayLike | None = None, tolerance: float = 1.25
) -> ParabolaBias:
    """The bias of approach 2 on a grid of runs as it is, by a law fitted to them.

    Args:
        law: of Hoffmann's form.
        C: training FLOPs of the runs [n]; each is moved to its profile's budget.
        N: parameters [n].
        budgets, tolerance: how runs belong to profiles, as in `isoflop_profiles`.

    Raises:
        ValueError: columns that aren't positive or differ in length, fewer than two budgets with a minimum.
    """
    C, N = column("C", C, "training FLOPs"), column("N", N, "parameters")
    if len(C) != len(N):
        raise ValueError(f"expected columns of one length, got C {len(C)}, N {len(N)}")
    groups, _ = group(C, budgets, tolerance)
    return _bias_bias(law, [(value, np.full(len(rows), value), N[rows]) for value, rows in groups])


def _bias_bias(law: Law, profiles: list[tuple[float, Array, Array]]) -> ParabolaBias:
    frontier = approach_3(law)
    at, found, warnings = [], [], []
    for value, C, N in profiles:
        x, loss = np.log(N), law.loss(N=N, D=C / (6 * N))
        why = refused(x, loss, "parabola")
        if why is None:
            at.append(value)
            found.append(float(parabola(x, loss)[0]))
        else:
            warnings.append(f"the budget {value:.3g} FLOPs is left out: {why}")
    if len(set(at)) < 2:
        raise ValueError(f"expected at least two budgets with a minimum, got {len(at)}: {'; '.join(warnings)}")
    budgets = np.array(at)
    a, log_prefactor = np.polyfit(np.log(budgets), found, 1)
    ratio = np.exp(found) / np.array([frontier.allocate(C)[0] for C in at])
    worst = int(np.abs(np.log(ratio)).argmax())
    off = ratio[worst] - 1
    sentence = (
        f"without any noise, approach 2's parabolas on this grid would give a = {a:.4f} where the law has "
        f"{frontier.a:.4f} ({a - frontier.a:+.4f}), and an N_opt up to {abs(off):.2%} too "
        f"{'large' if off > 0 else 'small'} (at {budgets[worst]:.3g} FLOPs)"
    )
    return ParabolaBias(
        float(a),
        frontier.a,
        float(np.exp(log_prefactor)),
        frontier.N_prefactor,
        budgets,
        ratio,
        tuple(warnings),
        sentence,
    )


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


SMALLEST, BODY = 1e4, 0.06
"""Parameters, and share of them that are no head, as of the smallest of Porian et al. 2024 (5M with a head of 4.8M)."""
FEWEST, MOST = 12, 16
"""Runs, where the user says nothing; 9 could do, but leave little to tell noise and a wrong form by."""
REPEATED = 4.0
"""Epochs up to which repeated tokens are nearly as good as new ones (Muennighoff et al. 2023, figure 5)."""
SCHEDULE = (
    "each run is trained from the start with its own schedule: warm-up, then decay (cosine or linear) that ends at its "
    "last step; losses on the way do not count (Hoffmann et al. 2022, section 3.1)"
)


def plan_ladder(
    flops: float,
    spend: float,
    model: str | Path = "gpt2",
    *,
    level: float = 0.9,
    min_runs: int | None = None,
    max_runs: int = MOST,
    max_flops_per_run: float | None = None,
    sizes: tuple[float, float] | None = None,
    vocab_size: int | None = None,
    sequence_length: int | None = None,
    unique_tokens: float | None = None,
    lr_rule: str = "auto",
    batch_rule_name: str = "auto",
    history: Sequence[str | os.PathLike[str]] = (),
) -> LadderPlan:
    """The runs that tell most about the compute-optimal size at a target.

    Args:
        flops: of the run that is to be sized.
        spend: FLOPs of the whole ladder.
        model: a Hugging Face config.json, a folder with one, or a known family ("gpt2", "llama").
        level: of the expected intervals.
        min_runs, max_runs: how many; 9 at least, by default 12 where as many are allowed.
        max_flops_per_run: of the dearest.
        sizes: least and most parameters (with the head) of a run; default: what the budgets ask for.
        vocab_size, sequence_length: instead of the configuration's.
        unique_tokens: the stock of data; no run takes more than four epochs of it.
        lr_rule: "auto", or one of `rules.RATES`.
        batch_rule_name: "auto", or one of `rules.BATCHES`.
        history: records of finished runs of the same kind, which count as told already.

    Raises:
        ValueError: numbers that can't be, an unknown model or rule, or no ladder that fits.
    """
    min_runs = min(FEWEST, max_runs) if min_runs is None else min_runs
    _check(flops, spend, level, min_runs, max_runs, sizes)
    family = family_of(model, vocab_size, sequence_length)
    known = _known(history)
    problem, grid = ladder_problem(
        family,
        flops,
        spend,
        runs=(min_runs, max_runs),
        sizes=sizes,
        max_flops_per_run=max_flops_per_run,
        unique_tokens=unique_tokens,
        known=known,
    )
    rungs = best_design(problem)
    runs, rules = _runs(grid, rungs, lr_rule, batch_rule_name)
    expected_by = worth_of(problem, rungs)
    even = even_grid(problem, len(runs))
    return LadderPlan(
        target_flops=float(flops),
        spend_flops=float(spend),
        family=family.name,
        vocab_size=family.vocab_size,
        sequence_length=family.sequence_length,
        convention=DEFAULT_N,
        runs=runs,
        level=level,
        expected=_expected(
            problem, expected_by, None if even is None else worth_of(problem, even), level, rungs[-1].budget
        ),
        rules={"sizes": f"{family.name}: {family.source}", **{k: rule.text for k, rule in rules.items()}}
        | {"schedule": SCHEDULE, "design": _DESIGN},
        warnings=warnings_of(problem, rungs, runs, rules, expected_by, level, unique_tokens),
        unique_tokens=unique_tokens,
        history_runs=len(known),
    )


def _known(history: Sequence[str | os.PathLike[str]]) -> tuple[FinishedRun, ...]:
    if not history:
        return ()
    found = read_finished(history, convention=DEFAULT_N)
    if not found.runs:
        reasons = "".join(f"\n  {reason}" for reason in found.left_out)
        raise ValueError(f"--history: expected records of finished runs, got none that counts{reasons}")
    return found.runs


_DESIGN = (
    "budgets and sizes of the least expected ln sd of N_opt at the target, by the covariance of the fit that "
    "`ladder fit` makes, averaged over laws with published exponents (Chaloner and Verdinelli 1995: Bayesian c-optimal)"
)


def _check(flops: float, spend: float, level: float, fewest: int, most: int, sizes: tuple[float, float] | None) -> None:
    for name, value in (("--flops", flops), ("--spend", spend)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: expected a positive number of FLOPs, got {value!r}")
    if spend >= flops:
        raise ValueError(
            f"--spend: expected less than the target's {flops:.3g} FLOPs, got {spend:.3g}: a ladder that costs as much "
            "as the run that it sizes saves nothing"
        )
    if not 0 < level < 1:
        raise ValueError(f"--level: expected a probability between 0 and 1, got {level!r}")
    if not 9 <= fewest <= most:
        raise ValueError(
            f"--min-runs and --max-runs: expected 9 ≤ least ≤ most, got {fewest} and {most}: three profiles of three "
            "sizes are the least that show five constants and their noise"
        )
    if sizes is not None and not 0 < sizes[0] < sizes[1]:
        raise ValueError(f"--sizes: expected the least and the most parameters, got {sizes[0]:g} and {sizes[1]:g}")


def _grid(family: Family, spend: float, sizes: tuple[float, float] | None) -> tuple[Shape, ...]:
    """Configurations to choose from: those that the user allows, or all that a rung may want."""
    if sizes is not None:
        grid = size_grid(family, *sizes)
        if len(grid) < 5:
            raise ValueError(
                f"--sizes: {len(grid)} configurations of {family.name} with {family.vocab_size:,} tokens lie between "
                f"{short(sizes[0])} and {short(sizes[1])} parameters (with the head); a ladder needs 5: widen the range"
            )
        return grid
    grid = size_grid(family, max(SMALLEST, math.sqrt(spend / 1e5 / 120) / 10), math.sqrt(spend / 120) * 10)
    grid = tuple(s for s in grid if s.parameters["non_embedding"] > BODY * size_of(s))
    if len(grid) < 5:
        raise ValueError(
            f"--spend: {spend:.3g} FLOPs are too few for models of {family.name} with {family.vocab_size:,} tokens: "
            "spend more (3% is a share, 3 are three FLOPs), or take a smaller tokenizer (--vocab 256: bytes)"
        )
    return grid


def ladder_problem(
    family: Family,
    flops: float,
    spend: float,
    *,
    runs: tuple[int, int] = (FEWEST, MOST),
    sizes: tuple[float, float] | None = None,
    max_flops_per_run: float | None = None,
    unique_tokens: float | None = None,
    known: Sequence[FinishedRun] = (),
) -> tuple[Problem, tuple[Shape, ...]]:
    """What is asked of a design, and the configurations that its candidates stand for. Arguments as `plan_ladder`."""
    grid = _grid(family, spend, sizes)
    problem = Problem(
        target=target_line(family, flops),
        candidates=tuple(Candidate(float(size_of(s)), s.flops_per_token, i) for i, s in enumerate(grid)),
        spend=spend,
        fewest=runs[0],
        most=runs[1],
        dearest=math.inf if max_flops_per_run is None else max_flops_per_run,
        tokens=math.inf if unique_tokens is None else REPEATED * unique_tokens,
        known_N=np.array([run.N for run in known]),
        known_D=np.array([run.D for run in known]),
    )
    return problem, grid


def target_line(family: Family, flops: float) -> BudgetLine:
    """A family's sizes at a budget: ln D over ln N, straight around 20 tokens per parameter."""
    guess = max(math.sqrt(flops / 120), 8 * SMALLEST)  # below it there are no models: the nearest line serves
    around = [shape for shape in size_grid(family, guess / 8, guess * 8)]
    N = np.array([float(size_of(shape)) for shape in around])
    rates = np.array([shape.flops_per_token for shape in around])
    middle = nearest(tuple(around), guess)
    slope = float(np.polyfit(np.log(N), np.log(rates), 1)[0]) if len(around) > 2 else 1.0
    return BudgetLine(flops, float(size_of(middle)), flops / middle.flops_per_token, slope)


def _runs(
    grid: tuple[Shape, ...], rungs: Sequence[Rung], lr_rule: str, batch_name: str
) -> tuple[tuple[PlannedRun, ...], dict[str, Rule]]:
    chosen = [(k, rung.budget, grid[size.index]) for k, rung in enumerate(rungs) for size in rung.sizes]
    sizes = [float(shape.parameters["non_embedding"]) for _, _, shape in chosen]
    rules = {
        "learning_rate": rate_rule(lr_rule, sizes, [rung.budget for rung in rungs]),
        "batch": batch_rule(batch_name),
    }
    runs = tuple(
        _run(number, k, budget, shape, rules["learning_rate"], rules["batch"])
        for number, (k, budget, shape) in enumerate(chosen)
    )
    return runs, rules


def _run(number: int, rung: int, budget: float, shape: Shape, rate: Rule, batch: Rule) -> PlannedRun:
    tokens = budget / shape.flops_per_token
    batch_tokens = batch_sequences(batch, shape, tokens, budget) * shape.family.sequence_length
    steps = max(2, round(tokens / batch_tokens))
    return PlannedRun(
        name=f"{number:02d}-rung{rung}-n{short(size_of(shape))}-d{short(steps * batch_tokens)}",
        rung=rung,
        config=shape.config(),
        parameters=shape.parameters,
        tokens=steps * batch_tokens,
        batch_tokens=batch_tokens,
        steps=steps,
        warmup_steps=warmup_of(steps),
        learning_rate=peak_rate(rate, shape, tokens, budget),
        flops=steps * batch_tokens * shape.flops_per_token,
    )


def _expected(
    problem: Problem, planned: Worth, even: Worth | None, level: float, largest: float
) -> dict[str, Expected]:
    """Medians over laws; the loss as a factor of what it will be, for its level is the data's and the tokenizer's."""
    z = float(stats.norm.ppf((1 + level) / 2))

    def about(estimate: float, sd: float, even_sd: float | None) -> Expected:
        reach = math.exp(z * sd)
        if even_sd is None:
            return Expected(estimate=estimate, low=estimate / reach, high=estimate * reach)
        wide = math.exp(z * even_sd)
        return Expected(
            estimate=estimate,
            low=estimate / reach,
            high=estimate * reach,
            even_low=estimate / wide,
            even_high=estimate * wide,
        )

    size, even_size = float(np.median(planned.size)), None if even is None else float(np.median(even.size))
    # a run at the target scatters too
    reach = math.log(problem.target.C / largest)
    own = math.hypot(NOISE * math.sqrt(1 + SHARED), BEYOND * max(reach, 0.0))
    loss = math.hypot(float(np.median(planned.loss)), own)
    even_loss = None if even is None else math.hypot(float(np.median(even.loss)), own)
    slope = problem.target.slope
    N = problem.target.N
    return {
        "N_opt": about(N, size, even_size),
        "D_opt": about(float(problem.target.tokens(N)), slope * size, None if even_size is None else slope * even_size),
        "loss_relative": about(1.0, loss, even_loss),
    }
