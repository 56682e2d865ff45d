"""Off the frontier: the planned size and data against the compute-optimal ones, before the first step and at log steps.

The line N_opt(C) is the prior's (ln D/N ~ N(ln 20, .45), a ~ N(.50, .06)) or the posterior of the user's own runs. What
a size k times the optimum wastes follows from Hoffmann's law with the exponents of Besiroglu et al. 2024.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isoflop.advise.advice import Advice, Missing, Quantity, Reason, Severity, count, duration
from isoflop.advise.situation import Situation
from isoflop.advise.thresholds import Thresholds
from isoflop.advise.waste import Array, Waste, waste_of
from isoflop.fit.frontier.allocation import interval
from isoflop.fit.law import Law
from isoflop.fit.planning.alternatives import line_law
from isoflop.fit.planning.map_line import PriorLine
from isoflop.fit.posterior import Posterior
from isoflop.record.conventions import DEFAULT_N

DRAWS = 101
EXPONENTS = "exponents of Besiroglu et al. 2024"
LEVEL = 0.8
BEST_SIZE = "N of least compute"
"""Name of the number that `isoflop/n_opt` shows."""
FAR = 20.0
"""A factor between the ends of the best size's interval beyond which it is not named."""


def law_at(line: Posterior | None, C: float) -> Law:
    """A law whose optimum at C FLOPs is the line's, with few draws: these are computed beside training."""
    law = line_law(line or PriorLine(), C, DEFAULT_N)
    assert law.draws is not None
    middle = slice(len(next(iter(law.draws.values()))) // (2 * DRAWS), None, len(law.draws["A"]) // DRAWS)
    return replace(law, draws={name: values[middle] for name, values in law.draws.items()})


def planned(run: Situation, thresholds: Thresholds) -> Advice | Missing:
    """One neutral line; a warning only where the waste is clear and can't be meant."""
    D = run.planned_tokens
    if run.N is None or not D:
        what = "the model's parameters are" if run.N is None else "the planned tokens are"
        return Missing("whether the size fits the data", f"{what} unknown (total_steps=, tokens_fn=, num_params=)")
    if run.unlike and run.line is None:
        return Missing("whether the size fits the data", run.unlike)
    line = run.line or PriorLine()
    C = line.flops(run.N, D)
    formula = f"C = {C / (run.N * D):.3g}·N·D"
    waste = waste_of(law_at(run.line, C), run.N, D, run.inference_tokens or 0.0)
    numbers = _numbers(run, D, Quantity(formula, C, "FLOPs"), waste)
    saved, low, high = waste.saved(LEVEL)
    basis = (run.line_source or "published sweeps: ln(D/N) ~ N(ln 20, .45), no run of yours", EXPONENTS)
    larger = float(np.mean(waste.N[1:] < run.N))  # probability that the model is larger than it should be
    low_N, high_N = interval(waste.N[1:], LEVEL)
    if run.line is None and high_N > FAR * low_N:
        text = (
            f"{count(D / run.N)} tokens per parameter: N = {count(run.N)} with the head, D = {count(D)} tokens, "
            f"{formula} = {count(C)} FLOPs. Published sweeps, of 1e17 FLOPs and more, do not tell which size is best "
            "so far away; three of your own sizes at one budget do (history=)."
        )
        return Advice(Reason.FRONTIER, Severity.NOTE, run.step, text, basis=basis[:1])
    serving = ", serving included," if run.inference_tokens else ""
    less = f"The same loss{serving} would cost {saved:.0%} [{low:.0%}, {high:.0%}] less compute"
    neutral = Advice(
        Reason.FRONTIER,
        Severity.NOTE,
        run.step,
        f"{count(D / run.N)} tokens per parameter: N = {count(run.N)} with the head, D = {count(D)} tokens, "
        f"{formula} = {count(C)} FLOPs. {less} at {_range(waste.N)} parameters and {_range(waste.D)} tokens.",
        numbers=numbers,
        basis=basis,
        level=LEVEL,
    )
    least = waste.at_least(thresholds.waste_sure)
    repeats = run.unique_tokens is not None and run.unique_tokens < max(D, float(waste.D[0]))
    if least < thresholds.waste or repeats or (run.left or 0.0) < thresholds.frontier_steps:
        return neutral  # with repeated data the law of single epochs does not tell the waste
    if larger < thresholds.sure and 1 - larger < thresholds.sure:
        return neutral
    too_large = larger >= 0.5
    if not too_large and run.intent == "overtrain" and run.inference_tokens is None:
        return neutral
    served = f" and serve {count(run.inference_tokens)} tokens" if run.inference_tokens else ""
    if too_large:
        do = (
            f"train about {count(waste.N[0])} parameters on {count(waste.D[0])} tokens instead{served}, or this model "
            f"on more tokens."
        )
    else:
        do = f"train about {count(waste.N[0])} parameters on {count(waste.D[0])} tokens instead{served}." + (
            ""
            if run.inference_tokens
            else " If the small model is meant (cheap to serve), say so: inference_tokens= or intent='overtrain'."
        )
    return Advice(
        Reason.TOO_LARGE if too_large else Reason.TOO_SMALL,
        Severity.WARNING,
        run.step,
        f"The model is too {'large' if too_large else 'small'} for its data: {count(D / run.N)} tokens per parameter. "
        f"{less}, at least {1 - 1 / (1 + least):.0%} ({thresholds.waste_sure:.0%} sure).",
        do,
        numbers,
        saves=_saves(run, waste),
        basis=basis,
        probability=larger if too_large else 1 - larger,
        level=LEVEL,
    )


def _range(values: Array) -> str:
    low, high = interval(values[1:], LEVEL)
    return f"{count(float(values[0]))} [{count(low)}, {count(high)}]"


def _numbers(run: Situation, D: float, C: Quantity, waste: Waste) -> tuple[Quantity, ...]:
    assert run.N is not None
    best = [Quantity("N", run.N, "parameters"), Quantity("D", D, "tokens"), C]
    ratio = waste.D / waste.N
    for name, values, unit in (
        (BEST_SIZE, waste.N, "parameters"),
        ("D of least compute", waste.D, "tokens"),
        ("its D/N", ratio, "tokens per parameter"),
    ):
        best.append(Quantity(name, float(values[0]), unit, *interval(values[1:], LEVEL)))
    return tuple(best)


def _saves(run: Situation, waste: Waste) -> tuple[Quantity, ...]:
    part = waste.saved(LEVEL)
    name = "compute to train and serve" if run.inference_tokens else "compute"
    saves = [Quantity(name, waste.cost * part[0], "FLOPs", *(waste.cost * each for each in part[1:]))]
    whole = None if run.total_steps is None else run.hours(run.total_steps)
    if whole is not None and not run.inference_tokens:  # of hours that are served nothing is known
        saves.append(duration("time", whole * part[0], *(whole * each for each in part[1:])))
        if run.price_per_hour:
            price = whole * run.price_per_hour
            saves.append(Quantity("price", price * part[0], "", *(price * each for each in part[1:])))
    return tuple(saves)
