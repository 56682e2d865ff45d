"""Off the frontier: the planned size and data against the compute-optimal ones, before the first step and at log steps.

The line N_opt(C) is the prior's (ln D/N ~ N(ln 20, .45), a ~ N(.50, .06)) or the posterior of the user's own runs. What
a size k times the optimum wastes follows from Hoffmann's law with the exponents of Besiroglu et al. 2024.

Past the efficient stopping point, and a target that will not be reached: what the rest of the run still buys.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from isoflop.advice.advice import Advice, Missing, Quantity, Reason, Severity, Thresholds, count, duration
from isoflop.advice.run_state import Situation
from isoflop.arrays import Array
from isoflop.fit.plan import PriorLine, line_law
from isoflop.fit.posterior import Posterior
from isoflop.forecast import Forecast, LrPlan
from isoflop.laws.forms import ALPHA_N_STEPS, ALPHA_S, Law
from isoflop.laws.frontier import Waste, interval, waste_of
from isoflop.record.run import DEFAULT_N

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


KAPLAN_STOP = ALPHA_N_STEPS / ALPHA_S
"""α_N/α_S: how far above its converged loss compute-optimal training stops (Kaplan et al. 2020, section 6 and B.1)."""
CLOSE = 0.3
"""ln of the factor below the best size within which nothing is worth saying whatever the exponents."""
DECAYED = 0.5
"""Share of the peak learning rate below which the decay counts as begun."""


def past_efficient(run: Situation, thresholds: Thresholds) -> Advice | Missing | None:
    """From here on a larger model gives more loss per FLOP: stop, or begin the decay.

    The tokens done already lie beyond D_opt(N), by so much that a larger model would have reached this loss with
    `waste` less compute. Then every further FLOP does worse than along the frontier (Hoffmann et al. 2022, eq. 4).
    """
    if run.N is None or not run.tokens:
        return Missing("the efficient stopping point", "parameters or tokens are unknown")
    if run.unlike and run.line is None:
        return Missing("the efficient stopping point", run.unlike)
    if run.intent == "overtrain" or run.inference_tokens or run.warming_up:
        return None  # judged against serving by the frontier's own evaluator
    if run.left is None or run.left < thresholds.frontier_steps:
        return None
    if run.unique_tokens is not None and run.unique_tokens < run.tokens:
        return None  # the law is of single epochs
    line = run.line or PriorLine()
    C = line.flops(run.N, run.tokens)
    if math.log(run.N) > line.at(C)[0] - CLOSE:
        return None  # cheap to see, and the rule
    waste = waste_of(law_at(run.line, C), run.N, run.tokens)
    larger = float(np.mean(waste.N[1:] > run.N))
    if waste.at_least(thresholds.waste_sure) < thresholds.waste or larger < thresholds.sure:
        return None
    assert run.total_steps is not None
    steps = run.total_steps - run.step
    saves = _rest(run, steps)
    now = run.decay_now() if not decaying(run.rates, run.step) else None
    numbers = [
        Quantity("tokens per parameter", run.tokens / run.N),
        Quantity("done", C, f"FLOPs ({C / (run.N * run.tokens):.3g}·N·D)"),
    ]
    still, whose = "", _whose(run)
    if isinstance(run.forecast, Forecast):
        numbers.append(_loss(f"loss{whose} at the planned end", run.forecast))
        if run.loss is not None and run.forecast_of == "train":
            still = f", and the rest buys {_gain(run.loss, run.forecast)}"
    if isinstance(now, Forecast):
        numbers.append(_loss(f"loss{whose} if the decay began now, at step {now.step:,}", now))
    converged = run.converged()
    if isinstance(converged, Forecast):
        numbers.append(_kaplan(converged, whose))
    if run.rates is None:
        do = "stop here, or train a larger model; if the learning rate has not decayed yet, decay it first."
    elif decaying(run.rates, run.step):
        do = "let the decay that has begun finish, or stop; the next run should be larger."
    else:
        do = "start the learning-rate decay now, over the next 10 to 20% of the steps done, instead of going on."
    return Advice(
        Reason.PAST_EFFICIENT,
        Severity.INFO,
        run.step,
        f"Past the efficient stopping point: {count(run.N)} parameters have seen {count(run.tokens)} tokens; a model "
        f"of about {count(waste.N[0])} parameters would have reached this loss with "
        f"{waste.saved(LEVEL)[0]:.0%} less compute{still}.",
        do + " If the small model is meant (cheap to serve), say so: inference_tokens= or intent='overtrain'.",
        tuple(numbers),
        saves=saves,
        basis=(
            run.line_source or "published sweeps: ln(D/N) ~ N(ln 20, .45), no run of yours",
            EXPONENTS,
            *(("this run's forecast",) if isinstance(run.forecast, Forecast) else ()),
        ),
        probability=larger,
        level=LEVEL,
        stops=thresholds.stop_past_efficient,
    )


def target(run: Situation, thresholds: Thresholds) -> Advice | Missing | None:
    """The forecast's interval lies above the target."""
    if run.target_loss is None:
        return None
    ending = run.forecast
    if not isinstance(ending, Forecast):
        what = "whether the target will be reached"
        if ending is None:
            return Missing(what, "there is no forecast yet", quiet=True)
        return Missing(what, ending.message, quiet=ending.reason.temporary)
    missed = 1 - ending.probability_below(run.target_loss)
    if missed < thresholds.target:
        return None
    assert run.total_steps is not None
    whose = _whose(run)
    return Advice(
        Reason.TARGET,
        Severity.WARNING,
        run.step,
        f"The run will not reach the target of {run.target_loss:.3f} nats per token{whose}: it is on its way to "
        f"{ending.loss:.3f} at step {ending.step:,}.",
        "stop and change the plan, or train longer, with the learning rate's end moved along; or lower the target.",
        (_loss(f"loss{whose} at the planned end", ending),),
        saves=_rest(run, run.total_steps - run.step),
        basis=("this run's forecast",),
        probability=missed,
        level=LEVEL,
        stops=True,
    )


def decaying(rates: LrPlan | None, step: int) -> bool:
    """Whether the learning rate has come down from its peak already."""
    return rates is not None and step > rates.warmup_steps and float(rates.at(step)) < DECAYED * rates.peak


def _kaplan(converged: Forecast, whose: str) -> Quantity:
    """Shown beside it, triggers nothing."""
    stop, low, high = ((1 + KAPLAN_STOP) * loss for loss in (converged.loss, converged.low, converged.high))
    return Quantity(f"loss{whose} at which Kaplan et al. 2020 would stop", stop, "nats per token", low, high)


def _whose(run: Situation) -> str:
    return "" if run.forecast_of == "train" else f" on {run.forecast_of}"


def _loss(name: str, at: Forecast) -> Quantity:
    return Quantity(name, at.loss, "nats per token", at.low, at.high)


def _gain(loss: float, ending: Forecast) -> str:
    return f"{loss - ending.loss:.3f} nats per token [{loss - ending.high:.3f}, {loss - ending.low:.3f}]"


def _rest(run: Situation, steps: int) -> tuple[Quantity, ...]:
    saves = []
    if run.flops_per_token and run.tokens_per_step:
        saves.append(Quantity("compute", steps * run.tokens_per_step * run.flops_per_token, "FLOPs"))
    hours = run.hours(steps)
    if hours is not None and math.isfinite(hours):
        saves.append(duration("time", hours))
        if run.price_per_hour:
            saves.append(Quantity("price", hours * run.price_per_hour))
    return tuple(saves)
