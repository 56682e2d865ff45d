"""`plan_ladder`: a target and a spend to the runs that tell most, as configurations that can be trained."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from isoflop.fit.frontier.allocation import short
from isoflop.fit.posterior import BEYOND, NOISE, SHARED, BudgetLine
from isoflop.ladder.design import best_design, even_grid
from isoflop.ladder.families import Family, Shape, family_of
from isoflop.ladder.finished import FinishedRun, read_finished
from isoflop.ladder.information import Candidate, Problem, Rung, Worth, worth_of
from isoflop.ladder.plan import Expected, LadderPlan, PlannedRun
from isoflop.ladder.rules import Rule, batch_rule, batch_sequences, peak_rate, rate_rule, warmup_of
from isoflop.ladder.sizes import nearest, size_grid, size_of
from isoflop.ladder.warnings import warnings_of
from isoflop.record.conventions import DEFAULT_N

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
