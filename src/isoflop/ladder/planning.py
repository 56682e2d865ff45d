"""Plan a ladder: from a target and a spend to the runs that tell most, and to warnings about them.

Approach 2 is biased without any noise, as isoFLOP profiles are no parabolas (Czech et al. 2026, arXiv:2603.22339). On
an isoFLOP curve of Hoffmann's law, L − E ∝ β·e^{−αu} + α·e^{βu} with u = ln(N/N_opt), whatever the budget. So a grid
that sits alike around every optimum moves every minimum by the same factor: the prefactor is biased, a isn't. A grid
whose offset drifts with the budget biases a too. To lowest order a dense centred grid of half-width h in ln N moves the
minimum by h²(α − β)/10. With α = β an offset δ in ln N moves it by α²δ(δ²/3 − h²/35): it grows with the offset from
about .3 of the half-width on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from isoflop.arrays import Array
from isoflop.fit.approaches import approach_3
from isoflop.fit.drifting_law import EXPONENT, REDUCIBLE, BudgetLine
from isoflop.fit.posterior import BEYOND, NOISE, SHARED
from isoflop.fit.profiles import group, parabola, refused
from isoflop.fit.table import read_table
from isoflop.ladder.design import Problem, Rung, Worth, best_design, even_grid, worth_of
from isoflop.ladder.plan import Expected, LadderPlan, PlannedRun
from isoflop.ladder.rules import FEWEST_STEPS, batch_rule, batch_sequences, peak_rate, rate_rule
from isoflop.ladder.sizes import Family, Shape, family_of, size_grid
from isoflop.laws.forms import HOFFMANN, Law
from isoflop.laws.quantities import short
from isoflop.laws.recipes import HIGHEST_RATE, Recipe, warmup_of
from isoflop.record.paths import location_of
from isoflop.record.run import DEFAULT_N


def parabola_bias(law: Law, C: Array, N: Array, budgets: Sequence[float]) -> tuple[Array, Array]:
    """The bias of approach 2 on noise-free losses of a grid of runs.

    Args:
        law: of Hoffmann's form.
        C: training FLOPs of the runs [n]; each is moved to its profile's budget.
        N: parameters [n].
        budgets: of the profiles.

    Returns:
        FLOPs of the budgets that have a minimum, and ln of the size found over the true optimum there.
    """
    frontier = approach_3(law)
    at, log_ratio = [], []
    for value, rows in group(C, budgets, 1.25)[0]:
        x, loss = np.log(N[rows]), law.loss(N=N[rows], D=value / (6 * N[rows]))
        if refused(x, loss, "parabola") is None:
            at.append(value)
            log_ratio.append(float(parabola(x, loss)[0]) - math.log(frontier.allocate(value)[0]))
    return np.array(at), np.array(log_ratio)


FAR = 1e3
"""A factor of compute beyond which an extrapolation is warned of."""
VAGUE = 2.0
"""A factor each way of N_opt's interval beyond which the ladder hardly says more than 20 tokens per parameter."""
BIASED = 0.05
"""Of N at the target: approach 2's own error, without noise, from which on it is warned of."""
SMALL = 1e7
"""Parameters below which published exponents, ratios and rules have hardly been tested."""


def warnings_of(
    problem: Problem,
    rungs: Sequence[Rung],
    runs: Sequence[PlannedRun],
    rules: Iterable[Recipe],
    worth: Worth,
    level: float,
    unique_tokens: float | None,
) -> Iterator[str]:
    """Reasons to rely less on a plan, the most severe first: the texts of the plan file."""
    reach = math.exp(float(stats.norm.ppf((1 + level) / 2)) * float(np.median(worth.size)))
    if reach >= VAGUE:
        yield (
            f"the spend is too low for an answer: N_opt is expected to within a factor of {reach:.1f} each way, and 20 "
            "tokens per parameter alone are about as good: spend more, or allow more runs (--max-runs)"
        )
    if (factor := problem.target.C / rungs[-1].budget) > FAR:
        yield (
            f"the target is {factor:,.0f} times the largest rung's compute: beyond about three orders of magnitude "
            "laws bend and rates miss, and intervals know of it by a prior alone; climb in two ladders"
        )
    yield from _bias(problem, rungs)
    sizes = [float(run.parameters["non_embedding"]) for run in runs]
    for rule in rules:
        if not rule.covers(sizes, [rung.budget for rung in rungs]):
            yield _untested(rule, sizes, [rung.budget for rung in rungs])
    if cut := [run for run in runs if run.learning_rate >= HIGHEST_RATE]:
        yield f"the rate of {_names(cut)} is cut at {HIGHEST_RATE:g}"
    if few := [run for run in runs if run.steps < FEWEST_STEPS / 2]:
        yield f"{_names(few)}: fewer than {FEWEST_STEPS // 2} steps even at one sequence a step: shorten --seq"
    if min(sizes) < SMALL:
        yield (
            f"runs of {short(min(sizes))} to {short(max(sizes))} non-embedding parameters: published exponents and "
            "tokens per parameter come from larger ones, and the law may bend in between"
        )
    if unique_tokens is not None:
        yield from _data(problem, runs, unique_tokens)


def _bias(problem: Problem, rungs: Sequence[Rung]) -> Iterator[str]:
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
        at, log_ratio = parabola_bias(law, C, N, [rung.budget for rung in rungs])
        if len(at) < 2:
            yield (
                "approach 2 will miss profiles of this ladder if the optimum lies a factor of 2 off 20 tokens per "
                "parameter: rely on the law (approach 3)"
            )
            return
        at_target = np.polyval(np.polyfit(np.log(at), log_ratio, 1), math.log(problem.target.C))
        worst = max(worst, abs(float(at_target)))
    if worst >= math.log1p(BIASED):
        yield (
            f"approach 2's parabolas would be off by up to {math.expm1(worst):.0%} in N at the target on this grid, "
            "without any noise: wide profiles and optima off their middle are no parabolas (Czech et al. 2026). The "
            "law (approach 3) is not: believe it where they differ"
        )


def _untested(rule: Recipe, sizes: Sequence[float], budgets: Sequence[float]) -> str:
    assert rule.fitted is not None
    unit = "non-embedding parameters" if rule.fitted.variable == "N" else "FLOPs"
    values = rule.fitted.of(sizes, budgets)
    return (
        f"{rule.decides}'s rule {rule.name!r} was fitted to {rule.fitted.low:.2g} to {rule.fitted.high:.2g} {unit}, "
        f"these runs have {min(values):.2g} to {max(values):.2g}: try its value, half and twice it on one small run "
        "first"
    )


def _data(problem: Problem, runs: Sequence[PlannedRun], unique_tokens: float) -> Iterator[str]:
    if repeated := [run for run in runs if run.tokens > unique_tokens]:
        epochs = max(run.tokens for run in repeated) / unique_tokens
        yield (
            f"{len(repeated)} runs repeat the {short(unique_tokens)} tokens, up to {epochs:.1f} times: up to "
            "four epochs are nearly as good as new data (Muennighoff et al. 2023)"
        )
    if (needed := float(problem.target.tokens(problem.target.N))) > unique_tokens:
        yield (
            f"the target wants about {short(needed)} tokens, {needed / unique_tokens:.1f} times the stock: its optimum "
            "is then a larger model than this ladder's law says (isoflop plan --unique-tokens)"
        )


def _names(runs: Sequence[PlannedRun]) -> str:
    return runs[0].name if len(runs) == 1 else f"{len(runs)} runs"


SMALLEST, BODY = 1e4, 0.06
"""Parameters, and share of them that are no head, as of the smallest of Porian et al. 2024 (5M with a head of 4.8M)."""
FEWEST, MOST = 12, 16
"""Runs by default; 9 are possible, but hardly show noise or a wrong form of the law."""
REPEATED = 4.0
"""Epochs up to which repeated tokens are nearly as good as new ones (Muennighoff et al. 2023, figure 5)."""
DESIGN = (
    "budgets and sizes of the least expected ln sd of N_opt at the target, by the covariance of the fit that "
    "`ladder fit` makes, averaged over laws with published exponents (Chaloner and Verdinelli 1995: Bayesian c-optimal)"
)
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
        flops: compute budget of the target run.
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
        history: records or tables of finished runs of the same kind, which the design counts on.

    Raises:
        ValueError: numbers that can't be, an unknown model or rule, or no ladder that fits.
    """
    min_runs = min(FEWEST, max_runs) if min_runs is None else min_runs
    _check(flops, spend, level, min_runs, max_runs, sizes)
    family = family_of(model, vocab_size, sequence_length)
    known_N, known_D = _known(history)
    problem = ladder_problem(
        family,
        flops,
        spend,
        runs=(min_runs, max_runs),
        sizes=sizes,
        max_flops_per_run=max_flops_per_run,
        unique_tokens=unique_tokens,
        known=(known_N, known_D),
    )
    rungs = best_design(problem)
    runs, rules = _runs(rungs, lr_rule, batch_rule_name)
    worth, even = worth_of(problem, rungs), even_grid(problem, len(runs))
    even_worth = None if even is None else worth_of(problem, even)
    return LadderPlan(
        target_flops=float(flops),
        spend_flops=float(spend),
        family=family.name,
        vocab_size=family.vocab_size,
        sequence_length=family.sequence_length,
        convention=DEFAULT_N,
        runs=runs,
        level=level,
        expected=_expected(problem, worth, even_worth, level, rungs[-1].budget),
        rules={
            "sizes": f"{family.name}: {family.source}",
            **{name: rule.text for name, rule in rules.items()},
            "schedule": SCHEDULE,
            "design": DESIGN,
        },
        warnings=tuple(warnings_of(problem, rungs, runs, rules.values(), worth, level, unique_tokens)),
        unique_tokens=unique_tokens,
        history_runs=len(known_N),
    )


def _known(history: Sequence[str | os.PathLike[str]]) -> tuple[Array, Array]:
    """N and D of finished runs."""
    if not history:
        return np.zeros(0), np.zeros(0)
    try:
        columns = read_table([location_of(path) for path in history], ("N", "D", "loss"), convention=DEFAULT_N).columns
    except ValueError as error:
        raise ValueError(f"--history: {error}") from None
    return np.array(columns["N"]), np.array(columns["D"])


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
    """Configurations to choose from: those that the user allows, or all that a rung may need."""
    if sizes is not None:
        grid = size_grid(family, *sizes)
        if len(grid) < 5:
            raise ValueError(
                f"--sizes: {len(grid)} configurations of {family.name} with {family.vocab_size:,} tokens lie between "
                f"{short(sizes[0])} and {short(sizes[1])} parameters (with the head); a ladder needs 5: widen the range"
            )
        return grid
    grid = size_grid(family, max(SMALLEST, math.sqrt(spend / 1e5 / 120) / 10), math.sqrt(spend / 120) * 10)
    grid = tuple(s for s in grid if s.parameters["non_embedding"] > BODY * s.N)
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
    known: tuple[ArrayLike, ArrayLike] = ((), ()),
) -> Problem:
    """The problem that a design solves. Arguments as `plan_ladder`."""
    grid = _grid(family, spend, sizes)
    return Problem(
        target=target_line(family, flops),
        candidates=grid,
        spend=spend,
        fewest=runs[0],
        most=runs[1],
        dearest=math.inf if max_flops_per_run is None else max_flops_per_run,
        tokens=math.inf if unique_tokens is None else REPEATED * unique_tokens,
        known_N=np.asarray(known[0], dtype=float),
        known_D=np.asarray(known[1], dtype=float),
    )


def target_line(family: Family, flops: float) -> BudgetLine:
    """A family's sizes at a budget: ln D over ln N, straight around 20 tokens per parameter."""
    guess = max(math.sqrt(flops / 120), 8 * SMALLEST)  # below it there are no models: the nearest line serves
    around = size_grid(family, guess / 8, guess * 8)
    N, rates = (np.array(column) for column in zip(*((s.N, s.flops_per_token) for s in around), strict=True))
    middle = min(around, key=lambda shape: abs(math.log(shape.N / guess)))
    slope = float(np.polyfit(np.log(N), np.log(rates), 1)[0]) if len(around) > 2 else 1.0
    return BudgetLine(flops, middle.N, flops / middle.flops_per_token, slope)


def _runs(rungs: Sequence[Rung], lr_rule: str, batch_name: str) -> tuple[tuple[PlannedRun, ...], dict[str, Recipe]]:
    chosen = [(k, rung.budget, shape) for k, rung in enumerate(rungs) for shape in rung.sizes]
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


def _run(number: int, rung: int, budget: float, shape: Shape, rate: Recipe, batch: Recipe) -> PlannedRun:
    tokens = budget / shape.flops_per_token
    batch_tokens = batch_sequences(batch, shape, tokens, budget) * shape.family.sequence_length
    steps = max(2, round(tokens / batch_tokens))
    return PlannedRun(
        name=f"{number:02d}-rung{rung}-n{short(shape.N)}-d{short(steps * batch_tokens)}",
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
    N, slope = problem.target.N, problem.target.slope
    reach = math.log(problem.target.C / largest)
    own = math.hypot(NOISE * math.sqrt(1 + SHARED), BEYOND * max(reach, 0.0))  # a run at the target scatters too

    def about(estimate: float, sd: Callable[[Worth], float]) -> Expected:
        factor, wide = math.exp(z * sd(planned)), None if even is None else math.exp(z * sd(even))
        return Expected(
            estimate=estimate,
            low=estimate / factor,
            high=estimate * factor,
            even_low=None if wide is None else estimate / wide,
            even_high=None if wide is None else estimate * wide,
        )

    return {
        "N_opt": about(N, lambda worth: float(np.median(worth.size))),
        "D_opt": about(float(problem.target.tokens(N)), lambda worth: slope * float(np.median(worth.size))),
        "loss_relative": about(1.0, lambda worth: math.hypot(float(np.median(worth.loss)), own)),
    }
