"""Past the efficient stopping point, and a target that will not be reached: what the rest of the run still buys."""

from __future__ import annotations

import math

import numpy as np

from isoflop.advise.advice import Advice, Missing, Quantity, Reason, Severity, count, duration
from isoflop.advise.frontier import EXPONENTS, LEVEL, law_at
from isoflop.advise.situation import Situation
from isoflop.advise.thresholds import Thresholds
from isoflop.advise.waste import waste_of
from isoflop.fit.forecast import PASSING, Forecast, LrPlan
from isoflop.fit.laws_kaplan import ALPHA_N_STEPS, ALPHA_S
from isoflop.fit.planning.map_line import PriorLine

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
        return Missing(what, ending.message, quiet=ending.reason in PASSING)
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
