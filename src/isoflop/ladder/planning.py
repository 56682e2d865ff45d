"""Plan a ladder: from a target and a spend to the runs that tell most within bounds, and to warnings about them."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec.structs
import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from isoflop.arrays import Array
from isoflop.fit.drifting_law import RATIO, known_line
from isoflop.fit.likelihood import NOISE, SHARED
from isoflop.fit.plan import expected_loss
from isoflop.fit.posterior import beyond
from isoflop.fit.runs import REPEATED
from isoflop.fit.table import read_table
from isoflop.ladder.design import DECAY, Bounds, Problem, Rung, Worth, best_design, even_grid, worth_of
from isoflop.ladder.plan import ExpectedInterval, LadderPlan, PlannedRun
from isoflop.ladder.sizes import Family, family_of
from isoflop.laws.quantities import short
from isoflop.laws.recipes import (
    FEWEST_STEPS,
    HIGHEST_RATE,
    Recipe,
    all_steps,
    batch_rule,
    batch_sequences,
    rate_rule,
    warmup_of,
)
from isoflop.record.paths import location_of
from isoflop.record.run import DEFAULT_N

LEAST_RUNS = 9
"""Three profiles of three sizes: the least that show five constants and their noise."""
DEARER = 0.22
"""Ln sd of N_opt that it may cost to keep all runs in the batch rule's range: as much as a third less spend."""
FAR = 1e3
"""A factor of compute beyond which an extrapolation is warned of."""
NARROWER = 0.9
"""Sd of ln N_opt after the ladder over that of 20 tokens per parameter, above which the ladder buys no size."""
SMALL = 1e7
"""Parameters below which published exponents, ratios and rules have hardly been tested."""
DESIGN = (
    "budgets and sizes of the least expected ln sd of N_opt at the target, by the covariance of the fit that "
    "`ladder fit` makes, averaged over laws with published exponents (Chaloner and Verdinelli 1995: Bayesian c-optimal)"
)
OWN_SCHEDULE = (
    "each run is trained from the start with its own schedule: warm-up, then decay (cosine or linear) that ends at its "
    "last step; losses on the way do not count (Hoffmann et al. 2022, section 3.1)"
)
BRANCHES = (
    f"the rate is constant after warm-up and decays to 0 in the last {DECAY:.0%} of a run's steps; shorter runs of a "
    "size branch off its longest one where their decay begins (Hägele et al. 2024, arXiv:2405.18392)"
)


def plan_ladder(
    flops: float,
    spend: float,
    model: str | Path = "gpt2",
    *,
    level: float = 0.8,
    min_runs: int | None = None,
    max_runs: int = Bounds.runs[1],
    max_sizes: int = Bounds.different,
    max_flops_per_run: float | None = None,
    sizes: tuple[float, float] | None = None,
    tokens_per_param: tuple[float, float] = Bounds.ratio,
    min_steps: int = FEWEST_STEPS,
    branches: bool = False,
    vocab_size: int | None = None,
    sequence_length: int | None = None,
    unique_tokens: float | None = None,
    lr_rule: str = "auto",
    batch_rule_name: str = "auto",
    history: Sequence[str | os.PathLike[str]] = (),
    optimizer: str = "adam",
) -> LadderPlan:
    """The runs that tell most about the compute-optimal size at a target.

    Args:
        flops: compute budget of the target run.
        spend: FLOPs of the whole ladder.
        model: a Hugging Face config.json, a folder with one, or a known family ("gpt2", "llama").
        level: of the expected intervals.
        min_runs, max_runs: how many; 9 at least, by default 12 where as many are allowed and fit.
        max_sizes: different sizes.
        max_flops_per_run: of the dearest.
        sizes: least and most parameters (with the head) of a run; default: what the budgets ask for.
        tokens_per_param: least and most D/N of a run.
        min_steps: of each run, beyond its warm-up.
        branches: whether shorter runs of a size branch off its longest one (warm-up–stable–decay).
        vocab_size, sequence_length: instead of the configuration's.
        unique_tokens: the stock of data; no run takes more than four epochs of it.
        lr_rule: "auto", or one of `recipes.RATES`.
        batch_rule_name: "auto", or one of `recipes.BATCHES`.
        history: records or tables of finished runs of the same kind, which the design counts on.
        optimizer: its family; what is known without a run is of AdamW, and wider for another ("muon").

    Raises:
        ValueError: numbers that can't be, an unknown model or rule, or no ladder within the bounds.
    """
    family = family_of(model, vocab_size, sequence_length)
    bounds = Bounds(
        runs=(min(Bounds.runs[0], max_runs) if min_runs is None else min_runs, max_runs),
        different=max_sizes,
        ratio=tokens_per_param,
        sizes=sizes,
        flops=math.inf if max_flops_per_run is None else max_flops_per_run,
        tokens=(
            all_steps(min_steps) * family.sequence_length,
            math.inf if unique_tokens is None else REPEATED * unique_tokens,
        ),
    )
    _check(flops, spend, level, bounds, min_steps)
    problem = ladder_problem(family, flops, spend, bounds, branches=branches, known=_known(history))
    batch = batch_rule(batch_rule_name)
    try:
        rungs = designed(problem, batch)
    except ValueError:
        if min_runs is not None or max_runs == LEAST_RUNS:
            raise
        problem = replace(problem, bounds=replace(bounds, runs=(LEAST_RUNS, max_runs)))
        rungs = designed(problem, batch)
    chosen = [s.run(rung.budget / s.flops_per_token, rung.budget) for rung in rungs for s in rung.sizes]
    rate = rate_rule(lr_rule)
    made = _runs(rungs, rate, batch, min_steps, branches)
    worth = worth_of(problem, rungs)
    even = even_grid(problem, len(made)) or even_grid(problem, len(made), ratio=2.0)
    return LadderPlan(
        target_flops=float(flops),
        spend_flops=float(spend),
        family=family.name,
        vocab_size=family.vocab_size,
        sequence_length=family.sequence_length,
        convention=DEFAULT_N,
        runs=made,
        level=level,
        expected=_expected(
            problem, worth, None if even is None else worth_of(problem, even), level, rungs[-1].budget, optimizer
        ),
        rules={
            "sizes": f"{family.name}: {family.source}",
            "learning_rate": rate.text,
            "batch": batch.text,
            "schedule": BRANCHES if branches else OWN_SCHEDULE,
            "design": DESIGN,
        },
        warnings=tuple(_warnings(problem, made, chosen, (rate, batch), worth, level, unique_tokens, optimizer)),
        unique_tokens=unique_tokens,
        history_runs=len(problem.known_N),
    )


def _check(flops: float, spend: float, level: float, bounds: Bounds, min_steps: int) -> None:
    for name, value in (("--flops", flops), ("--spend", spend)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: expected a positive number of FLOPs, got {value!r}")
    runs, sizes, ratio = bounds.runs, bounds.sizes or (1, math.inf), bounds.ratio
    wrong = None
    if spend >= flops:
        wrong = (
            f"--spend: expected less than the target's {flops:.3g} FLOPs, got {spend:.3g}: a ladder that costs as much "
            "as the run that it sizes saves nothing"
        )
    elif not 0 < level < 1:
        wrong = f"--level: expected a probability between 0 and 1, got {level!r}"
    elif not LEAST_RUNS <= runs[0] <= runs[1]:
        wrong = (
            f"--min-runs and --max-runs: expected 9 ≤ least ≤ most, got {runs[0]} and {runs[1]}: three profiles of "
            "three sizes are the least that show five constants and their noise"
        )
    elif bounds.different < 4:
        wrong = f"--max-sizes: expected 4 or more, got {bounds.different}: three budgets of three sizes share no less"
    elif not 0 < sizes[0] < sizes[1]:
        wrong = f"--sizes: expected the least and the most parameters, got {sizes[0]:g} and {sizes[1]:g}"
    elif not 0 < ratio[0] <= RATIO / 2 or not ratio[1] >= 2 * RATIO:
        wrong = (
            f"--tokens-per-param: expected at most {RATIO / 2:g} and at least {2 * RATIO:g}, about the {RATIO:g} of "
            f"published optima, got {ratio[0]:g} and {ratio[1]:g}"
        )
    elif min_steps < 1:
        wrong = f"--min-steps: expected 1 or more, got {min_steps}"
    if wrong:
        raise ValueError(wrong)


def _known(history: Sequence[str | os.PathLike[str]]) -> tuple[Array, Array]:
    """N and D of finished runs; of very many some, evenly by compute: the design's time grows by their third power."""
    if not history:
        return np.zeros(0), np.zeros(0)
    try:
        columns = read_table([location_of(path) for path in history], ("N", "D", "loss"), convention=DEFAULT_N).columns
    except ValueError as error:
        raise ValueError(f"--history: {error}") from None
    N, D = np.array(columns["N"]), np.array(columns["D"])
    order = np.argsort(N * D, kind="stable")
    taken = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), MOST_HISTORY)).round().astype(int))]
    return N[taken], D[taken]


MOST_HISTORY = 150
"""Finished runs that a design counts on: of a law's five constants more say next to nothing new."""


def ladder_problem(
    family: Family,
    flops: float,
    spend: float,
    bounds: Bounds | None = None,
    *,
    branches: bool = False,
    known: tuple[ArrayLike, ArrayLike] = ((), ()),
) -> Problem:
    """The problem that a design solves; `known`: parameters and tokens of finished runs."""
    bounds = bounds or Bounds(tokens=(all_steps(FEWEST_STEPS) * family.sequence_length, math.inf))
    N, D = (np.asarray(column, dtype=float) for column in known)
    problem = Problem(family, flops, spend, bounds, branches, N, D)
    assert problem.candidates  # raises where the spend is too little for any
    return problem


def designed(problem: Problem, batch: Recipe) -> tuple[Rung, ...]:
    """The best design whose runs lie in the batch rule's range; if that is `DEARER`, the best one outside."""
    free = best_design(problem)
    with suppress(ValueError):
        tested = best_design(replace(problem, bounds=replace(problem.bounds, batch=batch)))
        if worth_of(problem, tested).score < worth_of(problem, free).score + DEARER:
            return tested
    return free


def _runs(rungs: Sequence[Rung], rate: Recipe, batch: Recipe, min_steps: int, branches: bool) -> tuple[PlannedRun, ...]:
    """The planned runs; with `branches` those of a size share batch and rate, by their middle in logarithms."""
    chosen = [(k, rung.budget, shape) for k, rung in enumerate(rungs) for shape in rung.sizes]
    alike: dict[object, list[float]] = defaultdict(list)
    for k, budget, shape in chosen:
        alike[shape if branches else (k, shape)].append(budget)
    found: list[PlannedRun] = []
    for number, (k, budget, shape) in enumerate(chosen):
        budgets = alike[shape if branches else (k, shape)]
        typical = math.exp(float(np.log(budgets).mean()))
        length, middle = shape.family.sequence_length, shape.run(typical / shape.flops_per_token, typical)
        most = min(budgets) / shape.flops_per_token / all_steps(min_steps) / length
        batch_tokens = batch_sequences(batch, middle, length, most) * length
        steps = max(2, round(budget / shape.flops_per_token / batch_tokens))
        shortest = max(2, round(min(budgets) / shape.flops_per_token / batch_tokens))
        found.append(
            PlannedRun(
                name=f"{number:02d}-rung{k}-n{short(shape.N)}-d{short(steps * batch_tokens)}",
                rung=k,
                config=shape.config(),
                parameters=shape.parameters,
                tokens=steps * batch_tokens,
                batch_tokens=batch_tokens,
                steps=steps,
                warmup_steps=warmup_of(shortest),
                decay_steps=max(1, round(DECAY * steps)) if branches else None,
                learning_rate=float(f"{rate.value(middle):.3g}"),
                flops=steps * batch_tokens * shape.flops_per_token,
            )
        )
    longest: dict[float, PlannedRun] = {}
    for run in sorted(found, key=lambda run: run.steps):
        longest[run.parameters["total"]] = run
    trunks = [longest[run.parameters["total"]] if branches else run for run in found]
    return tuple(
        run if trunk is run else msgspec.structs.replace(run, branch_of=trunk.name)
        for run, trunk in zip(found, trunks, strict=True)
    )


def _expected(
    problem: Problem, planned: Worth, even: Worth | None, level: float, largest: float, optimizer: str
) -> dict[str, ExpectedInterval]:
    """Medians over laws; the loss as a factor of what it will be, for its level is the data's and the tokenizer's."""
    z = float(ndtri((1 + level) / 2))
    N, slope = problem.target.N, problem.target.slope
    own = math.hypot(NOISE * math.sqrt(1 + SHARED), beyond(problem.flops, largest))  # a run at the target scatters too
    D, known = float(problem.target.tokens(N)), math.exp(z * known_line(optimizer).at(problem.flops)[1])
    loss, of_loss, _ = expected_loss(N, D, level=level)

    def about(estimate: float, sd: Callable[[Worth], float], known: float | None) -> ExpectedInterval:
        factors = {"": math.exp(z * sd(planned)), "known_": known, "even_": even and math.exp(z * sd(even))}
        ends = {f"{whose}low": estimate / factor for whose, factor in factors.items() if factor}
        ends |= {f"{whose}high": estimate * factor for whose, factor in factors.items() if factor}
        return ExpectedInterval(estimate=estimate, **ends)

    return {
        "N_opt": about(N, lambda worth: float(np.median(worth.size)), known),
        "D_opt": about(D, lambda worth: slope * float(np.median(worth.size)), known**slope),
        "loss_relative": about(
            1.0,
            lambda worth: math.hypot(float(np.median(worth.loss)), own),
            None if loss is None or of_loss is None else of_loss[1] / loss,
        ),
    }


def _warnings(
    problem: Problem,
    runs: Sequence[PlannedRun],
    chosen: Sequence[Mapping[str, float]],
    rules: Sequence[Recipe],
    worth: Worth,
    level: float,
    unique_tokens: float | None,
    optimizer: str,
) -> Iterator[str]:
    """Reasons to rely less on a plan, the most severe first: the texts of the plan file."""
    after, known = float(np.median(worth.size)), known_line(optimizer).at(problem.flops)[1]
    beyond_warmup = [run.steps - run.warmup_steps for run in runs]
    if min(beyond_warmup) < FEWEST_STEPS:
        yield (
            f"runs of {min(beyond_warmup):,} to {max(beyond_warmup):,} steps beyond their warm-up: losses of so few "
            "follow the number of steps as much as N and D, and the intervals above do not know of it: expect far "
            f"wider ones. Published laws come from {FEWEST_STEPS:,} or more (--min-steps)"
        )
    if after > NARROWER * known:
        with_it, without = (math.exp(float(ndtri((1 + level) / 2)) * sd) for sd in (after, known))
        yield (
            f"the ladder buys little or nothing in size: N_opt is expected to × or ÷ {with_it:.2f} after it, and "
            f"{RATIO:g} tokens per parameter (isoflop plan) give × or ÷ {without:.2f} without a run. It buys the loss "
            f"of your own data, and a test whether {RATIO:g} tokens per parameter suit it and your recipe; for a "
            "better size spend more"
        )
    if (factor := problem.flops / max(run.flops for run in runs)) > FAR:
        yield (
            f"the target is {factor:,.0f} times the largest rung's compute: beyond about three orders of magnitude "
            "laws bend and rates miss, and intervals know of it by a prior alone; climb in two ladders"
        )
    for rule in rules:
        if rule.fitted is not None and not rule.covers(chosen):
            low, high = rule.fitted.of(chosen)
            unit = {"N": "non-embedding parameters", "D": "tokens", "C": "FLOPs"}[rule.fitted.variable]
            yield (
                f"{rule.decides}'s rule {rule.name!r} was fitted to {rule.fitted.low:.2g} to {rule.fitted.high:.2g} "
                f"{unit}, these runs have {low:.2g} to {high:.2g}: try its value, half and twice it on one small run "
                "first"
            )
    if cut := [run for run in runs if run.learning_rate >= HIGHEST_RATE]:
        names = cut[0].name if len(cut) == 1 else f"{len(cut)} runs"
        yield f"the rate of {names} is cut at {HIGHEST_RATE:g}"
    sizes = [run.parameters["non_embedding"] for run in runs]
    if min(sizes) < SMALL:
        yield (
            f"runs of {short(min(sizes))} to {short(max(sizes))} non-embedding parameters: published exponents and "
            "tokens per parameter come from larger ones, and the law may bend in between"
        )
    if unique_tokens is not None:
        yield from _data(problem, runs, unique_tokens)


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
