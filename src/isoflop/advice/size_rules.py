"""Rules on the size of a run: the planned N and D, the efficient stopping point, a target that will be missed.

The line N_opt(C) is the prior's (ln D/N ~ N(ln 20, .45), a ~ N(.50, .06)) or the posterior of the user's own runs. The
waste of a size k times the optimum follows from Hoffmann's law with the exponents of Besiroglu et al. 2024.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from isoflop.advice.advice import Advice, Missing, Quantity, Reason, Severity, count, nats, share
from isoflop.advice.run_state import LEAST_FLOPS, OWN_REACH, Situation, Thresholds, anything, rule, sized
from isoflop.arrays import Array
from isoflop.fit.alternatives import line_law
from isoflop.fit.drifting_law import MUON_RATIO, PriorLine
from isoflop.fit.posterior import Posterior
from isoflop.forecast import Forecast, LrPlan, NoForecast
from isoflop.laws.forms import ALPHA_N_STEPS, ALPHA_S, Law
from isoflop.laws.frontier import Waste, interval, waste_of
from isoflop.record.run import DEFAULT_N

DRAWS = 101
LEVEL = 0.8
PRIOR = "published scaling sweeps (about 20 tokens per parameter, ±57%), none of your own runs"
EXPONENTS = "exponents of Besiroglu et al. 2024"
BEST_SIZE = "N of least compute"
"""Name of the number that `isoflop/n_opt` shows."""
FAR = 20.0
"""A factor between the ends of the best size's interval beyond which it is not named."""
NARROW = 1e-3
"""Relative width of the best size's interval below which it lies on the edge of a search."""
KAPLAN_STOP = ALPHA_N_STEPS / ALPHA_S
"""α_N/α_S: how far above its converged loss compute-optimal training stops (Kaplan et al. 2020, section 6 and B.1)."""
TARGET_FROM = 0.25
"""Of the planned run: how well forecasts hold was measured from there on."""
SURE_IF_WIDE = 0.99
"""Probability that a target is missed by a forecast that is too wide to be shown."""
CLOSE = 0.3
"""ln of the factor below the best size within which there is no waste whatever the exponents."""
DECAYED = 0.5
"""Share of the peak learning rate below which the decay counts as begun."""
Part = tuple[float, float | None, float | None]
"""A share with its interval."""
MEANT = " If the small model is meant (cheap to serve), say so: inference_tokens= or intent='overtrain'."


def law_at(line: Posterior | PriorLine, C: float) -> Law:
    """A law whose optimum at C FLOPs is the line's, with few draws: these are computed beside training."""
    law = line_law(line, C, DEFAULT_N)
    assert law.draws is not None
    middle = slice(len(next(iter(law.draws.values()))) // (2 * DRAWS), None, len(law.draws["A"]) // DRAWS)
    return replace(law, draws={name: values[middle] for name, values in law.draws.items()})


@rule(
    "the frontier", sized, of_plan=True, of_end=True, at_once=True, early=True, subject="whether the size fits the data"
)
def planned(run: Situation, thresholds: Thresholds) -> Advice | Missing:
    """One neutral line; a warning only where the waste is clear and can't be meant."""
    N, D = run.N, run.planned_tokens
    if N is None or not D:
        what, option = ("the planned tokens are", "tokens_fn=") if N else ("the model's parameters are", "num_params=")
        if N and run.total_steps is None:
            option = "total_steps=, or max_steps of a Trainer"
        unknown = N is not None and run.tokens_per_step is None  # said where a batch is counted
        return Missing("whether the size fits the data", f"{what} unknown ({option})", quiet=unknown)
    C = run.sizes.flops(N, D)
    waste = waste_of(law_at(run.sizes, C), N, D, run.inference_tokens or 0.0)
    low_N, high_N = interval(waste.N[1:], LEVEL)
    saved, low, high = waste.saved(LEVEL)
    wide = not 1 + NARROW < high_N / low_N < (math.inf if run.line else FAR)
    if wide or _beyond(run, waste) or (low == high and saved > 0):
        why = "published sweeps do not determine the best size so far away; three of your own sizes do (history=)"
        return Missing("whether the size fits the data", why, quiet=True)
    ratio, formula = f"{count(D / N)} tokens per parameter", f"C = {C / (N * D):.3g}·N·D"
    plan = f"{ratio}: N = {count(N)} with the head, D = {count(D)} tokens, {formula} = {count(C)} FLOPs."
    serving = ", serving included," if run.inference_tokens else ""
    less = f"The same loss{serving} would cost {share(saved)} [{share(low)}, {share(high)}] less compute"
    neutral = Advice(
        Reason.FRONTIER,
        f"{plan} {less} at {_range(waste.N)} parameters and {_range(waste.D)} tokens.",
        numbers=(
            Quantity("N", N, "parameters"),
            Quantity("D", D, "tokens"),
            Quantity(formula, C, "FLOPs"),
            _estimate(BEST_SIZE, waste.N, "parameters"),
            _estimate("D of least compute", waste.D, "tokens"),
            _estimate("its D/N", waste.D / waste.N, "tokens per parameter"),
        ),
        basis=(*_basis(run), EXPONENTS),
        level=LEVEL,
        severity=Severity.NOTE,
    )
    larger = float(np.mean(waste.N[1:] < N))
    if not _clear(run, waste, larger, thresholds):
        return neutral
    saves = _saves(run, waste.cost, run.total_steps or 0, waste.saved(LEVEL))
    if run.inference_tokens:  # hours of serving are not known
        saves = tuple(replace(each, name="compute to train and serve") for each in saves[:1])
    too_large, least = larger >= 0.5, waste.at_least(thresholds.waste_sure)
    served = f" and serve {count(run.inference_tokens)} tokens" if run.inference_tokens else ""
    instead = f"train about {count(waste.N[0])} parameters on {count(waste.D[0])} tokens instead{served}"
    return replace(
        neutral,
        reason=Reason.TOO_LARGE if too_large else Reason.TOO_SMALL,
        severity=Severity.WARNING,
        what=f"The model is too {'large' if too_large else 'small'} for its data: {ratio}. {less}, at least "
        f"{share(1 - 1 / (1 + least))} ({thresholds.waste_sure:.0%} sure).",
        do=f"{instead}, or this model on more tokens." if too_large else f"{instead}.{'' if served else MEANT}",
        saves=saves,
        probability=larger if too_large else 1 - larger,
    )


def _beyond(run: Situation, waste: Waste) -> bool:
    """Whether the cheapest way to the same loss is far smaller than any run of a published sweep."""
    return run.line is None and 6 * float(waste.N[0] * waste.D[0]) * OWN_REACH < LEAST_FLOPS


def _clear(run: Situation, waste: Waste, larger: float, thresholds: Thresholds) -> bool:
    """Whether a size surely wastes compute, in a known direction, by a law that holds, and can't be meant."""
    if waste.at_least(thresholds.waste_sure) < thresholds.waste:
        return False
    if run.stock is not None and run.stock < max(run.planned_tokens or 0.0, float(waste.D[0])):
        return False  # the law is of single epochs
    meant = larger < 0.5 and run.intent == "overtrain" and run.inference_tokens is None
    return max(larger, 1 - larger) >= thresholds.sure and not meant


def _basis(run: Situation) -> tuple[str, ...]:
    if run.line_source or run.task.optimizer in (None, "adam"):
        return (run.line_source or PRIOR,)
    return (
        f"{PRIOR}; they are of AdamW, and with Muon a public ladder found {MUON_RATIO:g}: the interval is wider here",
    )


def _range(values: Array) -> str:
    low, high = interval(values[1:], LEVEL)
    return f"{count(float(values[0]))} [{count(low)}, {count(high)}]"


def _estimate(name: str, values: Array, unit: str) -> Quantity:
    return Quantity(name, float(values[0]), unit, *interval(values[1:], LEVEL))


def _saves(run: Situation, compute: float | None, steps: int, part: Part = (1.0, None, None)) -> tuple[Quantity, ...]:
    """Compute, time and price of so many steps, or a part of them with its interval; what is not known is left out."""
    hours = run.hours(steps)
    price = None if hours is None or not run.price_per_hour else hours * run.price_per_hour
    rows = (("compute", compute, "FLOPs"), ("time", hours, "hours"), ("price", price, ""))
    return tuple(
        Quantity(name, whole * part[0], unit, *(None if end is None else whole * end for end in part[1:]))
        for name, whole, unit in rows
        if whole is not None and math.isfinite(whole)
    )


@rule(
    "the stopping point",
    sized,
    of_end=True,
    after_warmup=True,
    early=True,
    subject="the efficient stopping point",
    dear=True,
)
def past_efficient(run: Situation, thresholds: Thresholds) -> Advice | Missing | None:
    """From here on a larger model gives more loss per FLOP: stop, or begin the decay.

    The tokens done already lie beyond D_opt(N), by so much that a larger model would have reached this loss with
    `waste` less compute. Then every further FLOP does worse than along the frontier (Hoffmann et al. 2022, eq. 4).
    """
    if run.N is None or not run.tokens:
        return Missing("the efficient stopping point", "parameters or tokens are unknown", quiet=True)
    if run.intent == "overtrain" or run.inference_tokens:
        return None  # judged against serving by `planned`
    if run.total_steps is None or run.nonfinite:
        return None
    if run.stock is not None and run.stock < run.tokens:
        return None  # the law is of single epochs
    C = run.sizes.flops(run.N, run.tokens)
    if math.log(run.N) > run.sizes.at(C)[0] - CLOSE:
        return None  # cheap to see, and the rule
    waste = waste_of(law_at(run.sizes, C), run.N, run.tokens)
    larger = float(np.mean(waste.N[1:] > run.N))
    if waste.at_least(thresholds.waste_sure) < thresholds.waste or larger < thresholds.sure or _beyond(run, waste):
        return None
    ending = run.forecast if isinstance(run.forecast, Forecast) else None
    still = ""
    if ending is not None and run.loss is not None and run.forecast_of == "train":
        gain, low, high = (run.loss - loss for loss in (ending.loss, ending.high, ending.low))
        still = f", and the rest buys {gain:.3f} nats per token [{low:.3f}, {high:.3f}]"
    return Advice(
        Reason.PAST_EFFICIENT,
        f"Past the efficient stopping point: {count(run.N)} parameters have seen {count(run.tokens)} tokens; a model "
        f"of about {count(waste.N[0])} parameters would have reached this loss with {share(waste.saved(LEVEL)[0])} "
        f"less compute{still}.",
        _remedy(run) + MEANT,
        (
            Quantity("tokens per parameter", run.tokens / run.N),
            Quantity("done", C, f"FLOPs ({C / (run.N * run.tokens):.3g}·N·D)"),
            *_losses_ahead(run, ending),
        ),
        saves=_rest(run, run.total_steps),
        basis=(*_basis(run), EXPONENTS, *(("this run's forecast",) if ending is not None else ())),
        probability=larger,
        level=LEVEL,
        stops=thresholds.stop_past_efficient,
        severity=Severity.INFO,
    )


def _remedy(run: Situation) -> str:
    if run.rates is None:
        return "stop here, or train a larger model; if the learning rate has not decayed yet, decay it first."
    if decaying(run.rates, run.step):
        return "let the decay that has begun finish, or stop; the next run should be larger."
    return "start the learning-rate decay now, over the next 10 to 20% of the steps done, instead of going on."


def _losses_ahead(run: Situation, ending: Forecast | None) -> list[Quantity]:
    """Losses at the planned end, after a decay that begins now, and where Kaplan et al. would stop."""
    numbers = [] if ending is None else [_loss(run, f"loss{_whose(run)} at the planned end", ending)]
    now = None if decaying(run.rates, run.step) else run.decay_now()
    if isinstance(now, Forecast):
        numbers.append(_loss(run, f"loss{_whose(run)} if the decay began now, at step {now.step:,}", now))
    converged = run.converged()
    if isinstance(converged, Forecast):
        name = f"loss{_whose(run)} at which Kaplan et al. 2020 would stop"
        numbers.append(_loss(run, name, converged, factor=1 + KAPLAN_STOP))
    return numbers


@rule("the target", anything, of_end=True)
def target(run: Situation, thresholds: Thresholds) -> Advice | Missing | None:
    """The forecast's interval lies above the target."""
    ending, what, sure = run.forecast, "whether the target will be reached", thresholds.target
    if run.target_loss is None:
        return None
    if ending is None:
        return Missing(what, "there is no forecast yet", quiet=True)
    unknown = None if isinstance(ending, Forecast) else Missing(what, ending.message, quiet=ending.reason.temporary)
    if isinstance(ending, NoForecast) and run.rates is not None and not run.rates.assumed:
        ending, sure = ending.wide, SURE_IF_WIDE
    if not isinstance(ending, Forecast):
        return unknown
    if ending.rate_assumed:
        return Missing(what, "the learning rate to come is only assumed to stay as it is; pass lr_plan=")
    if (run.left or 0.0) > 1 - TARGET_FROM:
        return unknown
    missed = 1 - ending.probability_below(run.target_loss)
    if missed < sure:
        return unknown
    assert run.total_steps is not None
    return Advice(
        Reason.TARGET,
        f"The run will not reach the target of {nats(run.target_loss, run.task.unit)}{_whose(run)}: the forecast is "
        f"{nats(ending.loss)} [{nats(ending.low)}, {nats(ending.high)}] at step {ending.step:,}.",
        "stop and change the plan, or train longer, with the learning rate's end moved along; or lower the target.",
        (_loss(run, f"loss{_whose(run)} at the planned end", ending),),
        saves=_rest(run, run.total_steps),
        basis=("this run's forecast",),
        probability=missed,
        level=LEVEL,
        stops=True,
    )


def decaying(rates: LrPlan | None, step: int) -> bool:
    """Whether the learning rate has come down from its peak already."""
    return rates is not None and step > rates.warmup_steps and float(rates.at(step)) < DECAYED * rates.peak


def _whose(run: Situation) -> str:
    return "" if run.forecast_of == "train" else f" on {run.forecast_of}"


def _loss(run: Situation, name: str, at: Forecast, factor: float = 1.0) -> Quantity:
    return Quantity(name, factor * at.loss, run.task.unit, factor * at.low, factor * at.high)


def _rest(run: Situation, total_steps: int) -> tuple[Quantity, ...]:
    """What the rest of the planned run costs."""
    steps, flops = total_steps - run.step, (run.tokens_per_step or 0.0) * (run.flops_per_token or 0.0)
    return _saves(run, steps * flops if flops else None, steps)
