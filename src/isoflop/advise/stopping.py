"""Past the efficient stopping point, and a target that will not be reached: what the rest of the run still buys."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import norm

from isoflop.advise.advice import Advice, Missing, Quantity, Reason, Severity, count
from isoflop.advise.frontier import EXPONENTS, LEVEL, law_at
from isoflop.advise.situation import Ending, Estimate, Rates, Situation
from isoflop.advise.thresholds import Thresholds
from isoflop.advise.waste import waste_of
from isoflop.fit.laws import TRAINING_FLOPS

KAPLAN_STOP = 0.077 / 0.76
"""α_N/α_S: how far above its converged loss compute-optimal training stops (Kaplan et al. 2020, section 6 and B.1)."""
DECAYED = 0.5
"""Share of the peak learning rate below which the decay counts as begun."""


def past_efficient(run: Situation, thresholds: Thresholds) -> Advice | Missing | None:
    """From here on a larger model gives more loss per FLOP: stop, or begin the decay.

    The tokens done already lie beyond D_opt(N), by so much that a larger model would have reached this loss with
    `waste` less compute. Then every further FLOP does worse than along the frontier (Hoffmann et al. 2022, eq. 4).
    """
    if run.N is None or not run.tokens:
        return Missing("the efficient stopping point", "parameters or tokens are unknown")
    if run.intent == "overtrain" or run.inference_tokens or run.warming_up:
        return None  # judged against serving by the frontier's own evaluator
    if run.left is None or run.left < thresholds.frontier_steps or run.unique_tokens is not None:
        return None
    C = TRAINING_FLOPS * run.N * run.tokens
    waste = waste_of(law_at(run.line, C), run.N, run.tokens)
    larger = float(np.mean(waste.N[1:] > run.N))
    if waste.at_least(thresholds.sure) < thresholds.waste or larger < thresholds.sure:
        return None
    assert run.total_steps is not None
    steps = run.total_steps - run.step
    saves = _rest(run, steps)
    now = run.decay_now() if not decaying(run.rates, run.step) else None
    numbers = [
        Quantity("tokens per parameter", run.tokens / run.N),
        Quantity("done", C, "FLOPs (6·N·D)"),
    ]
    if run.ending is not None:
        numbers.append(_loss("loss at the planned end", run.ending.loss))
        still = f"the rest buys {_gain(run.loss, run.ending)}" if run.loss is not None else ""
    else:
        still = ""
    if now is not None:
        numbers.append(_loss(f"loss if the decay began now, at step {now.step:,}", now.loss))
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
        f"{waste.saved(LEVEL)[0]:.0%} less compute" + (f", and {still}" if still else "") + ".",
        do + " If the small model is meant (cheap to serve), say so: inference_tokens= or intent='overtrain'.",
        tuple(numbers),
        saves=saves,
        basis=(
            run.line_source or "published sweeps: ln(D/N) ~ N(ln 20, .45), no run of yours",
            EXPONENTS,
            *(("this run's forecast",) if run.ending else ()),
        ),
        probability=larger,
        level=LEVEL,
        stops=True,
    )


def target(run: Situation, thresholds: Thresholds) -> Advice | Missing | None:
    """The forecast's interval lies above the target."""
    if run.target_loss is None:
        return None
    if run.ending is None:
        return Missing("whether the target will be reached", run.no_ending or "there is no forecast")
    loss = run.ending.loss
    missed = float(norm.sf(run.target_loss, loss.mean, max(loss.sd, 1e-12)))
    if missed < thresholds.target:
        return None
    assert run.total_steps is not None
    return Advice(
        Reason.TARGET,
        Severity.WARNING,
        run.step,
        f"The run will not reach the target of {run.target_loss:.3f} nats per token: it is on its way to "
        f"{loss.mean:.3f} at step {run.ending.step:,}.",
        "stop and change the plan, or train longer, with the learning rate's end moved along; or lower the target.",
        (_loss("loss at the planned end", loss),),
        saves=_rest(run, run.total_steps - run.step),
        basis=("this run's forecast",),
        probability=missed,
        level=LEVEL,
        stops=True,
    )


def decaying(rates: Rates | None, step: int) -> bool:
    """Whether the learning rate has come down from its peak already."""
    return rates is not None and float(np.interp(step, rates.steps, rates.lr)) < DECAYED * float(rates.lr.max())


def kaplan_stop(converged: float) -> Quantity:
    """The loss at which compute-optimal training of this size stops, by Kaplan et al. 2020. Shown; triggers nothing."""
    return Quantity("Kaplan's stopping loss", (1 + KAPLAN_STOP) * converged, "nats per token")


def _loss(name: str, loss: Estimate) -> Quantity:
    half = float(norm.ppf((1 + LEVEL) / 2)) * loss.sd
    return Quantity(name, loss.mean, "nats per token", loss.mean - half, loss.mean + half)


def _gain(loss: float | None, ending: Ending) -> str:
    assert loss is not None
    half = float(norm.ppf((1 + LEVEL) / 2)) * ending.loss.sd
    gain = loss - ending.loss.mean
    return f"{gain:.3f} nats per token [{gain - half:.3f}, {gain + half:.3f}]"


def _rest(run: Situation, steps: int) -> tuple[Quantity, ...]:
    saves = []
    if run.flops_per_token and run.tokens_per_step:
        saves.append(Quantity("compute", steps * run.tokens_per_step * run.flops_per_token, "FLOPs"))
    hours = run.hours(steps)
    if hours is not None and math.isfinite(hours):
        saves.append(Quantity("time", hours, "hours"))
        if run.price_per_hour:
            saves.append(Quantity("price", hours * run.price_per_hour))
    return tuple(saves)
