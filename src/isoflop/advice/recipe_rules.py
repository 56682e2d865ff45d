"""Rules on a run's recipe: its peak learning rate against published recipes and the user's own runs, its schedule.

And the line at the start that shows published batch, rate, warm-up and weight decay beside the run's own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from isoflop.advice.advice import Advice, Missing, Quantity, Reason, Severity, count
from isoflop.advice.run_state import OWN_REACH, Situation, Thresholds, anything, rule, sized
from isoflop.forecast import LrPlan
from isoflop.laws.recipes import BATCHES, HIGHEST_RATE, RATES, TOLERATED, Recipe, published_values, warmup_of

TIMESCALE, TIMESCALE_POWER = 1.084, -0.527
"""τ = B/(η·λ·D) = 1.084·(D/N)^−.527 (Bergsma et al. 2025, arXiv:2505.13738; the exponent read at second hand, the
factor from memory): AdamW's timescale over the run, which gives the weight decay λ."""
DECAYS = (0.01, 0.3)
"""Between what published runs take: beyond, that formula is none of theirs and nothing is shown."""
FORGETS = 100
"""Steps over which AdamW's weights are an average, 1/(η·λ), up to which little is learnt; of published runs it is
hundreds at least (DCLM 7B: 10,000)."""
ADAM = (None, "adam")
TRIALS = "trials with tiny models: above .02 Adam got worse at every size"
_FITTED = [each.fitted for each in RATES.values() if each.fitted and each.fitted.variable == "N"]
SIZES = min(each.low for each in _FITTED) / TOLERATED, max(each.high for each in _FITTED) * TOLERATED
"""Between these a recipe was fitted to models of that size; its rate falls with N, whatever the run's length."""
FLAT = 0.02
"""Of the peak: a rate that changes by less over the run's last tenth has ended, or never decays."""
IDLE = 1e-3
"""Of the peak: a rate below it does nothing."""
DECAYED = 0.12
"""Of the peak: where a decay may end (Hoffmann et al.: a tenth)."""


def _adam(run: Situation) -> str:
    """The domain of learning rates: Adam's, of models that are trained from scratch on token losses."""
    if run.task.optimizer not in ADAM or run.task.tuned or run.task.experts:
        return "published learning rates are of Adam and dense models from scratch"
    likely = run.task.objective in (None, "causal", "masked", "seq2seq") and run.task.modality in (None, "text")
    return "" if likely else "published learning rates are of language models"


def _peak_known(run: Situation) -> bool:
    """Of a rate that a loop sets by hand only the highest so far is known: it may still warm up."""
    return run.warmup_steps is not None if run.rates is None else not run.rates.assumed


def _published(recipes: dict[str, Recipe], run: Situation, anywhere: bool = False) -> dict[str, float]:
    """What recipes that reach the run say of it; or all of them: beyond their range they differ, and so do runs."""
    N, D = run.N_non_embedding or run.N, run.planned_tokens
    if anywhere:
        recipes = {name: replace(each, fitted=None) for name, each in recipes.items()}
    return published_values(recipes, N=N, D=D, C=6 * N * D, width=run.width) if N and D else {}


@rule("the learning rate", _adam, at_once=True, early=True)
def learning_rate(run: Situation, thresholds: Thresholds) -> Advice | None:
    """The peak rate lies far outside of what own runs of about this size, or published recipes, take.

    Own runs come first: within their rates, times or over `thresholds.rate`, nothing is said.
    """
    peak, off = run.peak_rate, thresholds.rate
    if not peak:
        return None
    fits = SIZES[0] <= (run.N_non_embedding or run.N or 0) <= SIZES[1] and not run.task.unlike_pretraining
    if run.own_rates is not None:
        (low, high), whose, where = run.own_rates, "your own finished runs of about this size", "of your own runs"
    elif rates := _published(RATES, run, anywhere=True) if fits or not sized(run) else {}:
        low, high, whose, where = min(rates.values()), max(rates.values()), ", ".join(rates), "that recipes publish"
    elif peak > off * HIGHEST_RATE:  # so high for any size
        low, high, whose, where = 0.0, HIGHEST_RATE, TRIALS, "that worked in trials with tiny models"
    else:
        return None
    if low / off <= peak <= high * off:
        return None
    above, known = peak > high, _peak_known(run)
    if not above and (not known or (run.own_rates is None and sized(run))):
        return None  # how low a rate suits runs shorter than any published is not known
    most = f"{count(peak / high)} times the highest" if above else f"{peak / low:.2g} of the lowest"
    middle = math.sqrt(low * high) if low else high
    return Advice(
        Reason.RATE_HIGH if above else Reason.RATE_LOW,
        f"The {'peak' if known else 'highest'} learning rate{'' if known else ' so far'}, {peak:.3g}, is {most} "
        f"({high if above else low:.2g}) {where}.",
        f"try about {middle:.1g} in a short run, and compare the losses after its warm-up.",
        (
            Quantity("peak learning rate" if known else "highest learning rate so far", peak),
            Quantity(f"middle of those that worked, times or over {off:g}", middle, "", low / off, high * off),
        ),
        basis=(whose,),
    )


@rule("the weight decay", anything, of_plan=True, at_once=True)
def weight_decay(run: Situation, thresholds: Thresholds) -> Advice | None:
    """AdamW's weights are an average over the last 1/(η·λ) steps: none of a run is so few."""
    rate, decay = run.peak_rate, run.weight_decay
    if not (run.decoupled and rate and decay) or rate * decay * FORGETS < 0.999:
        return None
    usual = decay <= DECAYS[1]
    if usual and not _adam(run):
        return None  # the rule on the learning rate is of so high a one
    return Advice(
        Reason.DECAY_HIGH,
        f"A weight decay of {decay:g} at a learning rate of {rate:.2g} takes {rate * decay:.0%} off each weight at "
        f"each step: what was learnt more than about {max(1 / (rate * decay), 1):.0f} steps ago is forgotten.",
        "lower the learning rate."
        if usual
        else f"take a weight decay of {DECAYS[0]} to {DECAYS[1]}, as published runs do.",
        (Quantity("weight decay", decay), Quantity("learning rate", rate)),
        basis=("AdamW's update; Wang and Aitchison 2024, arXiv:2405.13698",),
    )


def rate_unjudged(run: Situation) -> str:
    """Why the peak learning rate was not held against rates that work at this size; "": it was."""
    if why := _adam(run) or ("" if run.own_rates else sized(run)):
        return why
    if not run.peak_rate or not _peak_known(run):
        unknown = "no one peak of all parameters is known (lr_plan=)"
        return unknown if run.total_steps else "the planned end is not known (total_steps=)"
    return "" if run.own_rates or _published(RATES, run) else "no published rate reaches this size"


@rule("own sizes", anything, of_plan=True, at_once=True)
def own_sizes(run: Situation, thresholds: Thresholds) -> Advice | Missing | None:
    """The model is as large (small) as sizes that did clearly worse than the user's best of one budget, or beyond them.

    Where own runs determine a line, that judges instead.
    """
    own = run.own_profile
    if run.line is not None or own is None or run.N is None:
        return None
    over = 6 * run.N * (run.planned_tokens or 0.0) / own.C
    if not 1 / OWN_REACH <= over <= OWN_REACH:
        return None
    scaled = run.N / math.sqrt(over)  # the best size grows about with the root of the compute
    if own.low < scaled < own.high:
        return None
    if own.low and math.isfinite(own.high):
        where = f"between {count(own.low)} and {count(own.high)}"
    else:
        where = f"above {count(own.low)}" if own.low else f"below {count(own.high)}"
    large = scaled >= own.high
    return Advice(
        Reason.TOO_LARGE if large else Reason.TOO_SMALL,
        f"Of your own {own.sizes} sizes at {count(own.C)} FLOPs {count(own.best)} parameters did best, clearly better "
        f"than {count(own.high if large else own.low)}: at that budget the best lies {where}; this model has "
        f"{count(run.N)} for {count(over * own.C)} FLOPs.",
        f"train about {count(own.best * math.sqrt(over))} parameters instead, your best size scaled with the root of "
        "the compute, or compare the two in short runs.",
        (Quantity("N", run.N, "parameters"), Quantity("best own size", own.best, "parameters")),
        basis=(f"{own.sizes} runs of your own",),
        severity=Severity.INFO,
    )


def recipe_line(run: Situation) -> str:
    """Published batch, peak rate, warm-up, weight decay and tokens for a run, its own in brackets; "": none reaches it.

    For pretraining from scratch with Adam at the scale of published sweeps.
    """
    N, D, steps = run.N, run.planned_tokens, run.total_steps
    rates, batches = _published(RATES, run), _published(BATCHES, run)
    if sized(run) or run.line or run.task.optimizer not in ADAM or not (N and D and steps and rates and batches):
        return ""
    own_batch, rate = D / steps, math.sqrt(min(rates.values()) * max(rates.values()))
    peak = run.peak_rate if _peak_known(run) else None
    decay = (own_batch / D) / ((peak or rate) * TIMESCALE * (D / N) ** TIMESCALE_POWER)
    parts = [
        _part("batch", batches, own_batch, " tokens"),
        _part("peak rate", rates, peak),
        f"warm-up {warmup_of(steps):,} steps" + (f" (yours {run.warmup_steps:,})" if run.warmup_steps else ""),
        f"{count(20 * N)} tokens (yours {count(D)})",
    ]
    if DECAYS[0] <= decay <= DECAYS[1]:
        yours = "" if run.weight_decay is None else f" (yours {run.weight_decay:g})"
        parts.insert(-1, f"weight decay {decay:.1g}{yours}")
    return f"published recipes for {count(N)} parameters: {', '.join(parts)}; `isoflop plan` gives the reasons"


def _part(name: str, values: dict[str, float], own: float | None, unit: str = "") -> str:
    low, high = min(values.values()), max(values.values())
    text = count if unit else "{:.2g}".format
    between = text(low) if high < 1.01 * low else f"{text(low)} to {text(high)}"
    return f"{name} {between}{unit}" + (f" (yours {text(own)})" if own else "")


@rule("the schedule", anything, of_end=True, at_once=True, early=True)
def schedule(run: Situation, thresholds: Thresholds) -> Advice | None:
    """Cut off in the middle of its decay, over long before the end, rising again after it, or warming up to the end."""
    plan, total = run.rates, run.total_steps
    if plan is None or not total or not (found := _fault(plan, total, thresholds.schedule_over)):
        return None
    what, do, last = found
    numbers = (Quantity("learning rate at the end over its peak", last, "%"),)
    basis = ("the trainer's schedule", "Hoffmann et al. 2022, appendix B")
    return Advice(Reason.SCHEDULE, what, do, numbers, basis=basis)


@lru_cache(maxsize=4)  # a plan is one object as long as it holds
def _fault(rates: LrPlan, total: int, over: float) -> tuple[str, str, float] | None:
    """What is wrong with a schedule, what to do, and its last rate over its peak."""
    steps = np.linspace(0, total, 401)
    lr = rates.at(steps)
    if not lr.max() > 0:
        return None
    share = lr / lr.max()
    last, before = float(share[-1]), float(share[-41])
    top = int((share >= 0.999).argmax())
    lowest = top + int(share[top:].argmin())
    idle = float(steps[share > IDLE][-1])
    left = last - (before - last) / (0.1 * total)  # one step later: a decay to 0 in four steps ends with a quarter
    powers = np.diff(np.log(np.maximum(share[[-81, -41, -1]], IDLE))) / np.diff(np.log([0.8, 0.9, 1.0]))
    endless = abs(powers + 0.5).max() < 0.02  # with the inverse root of the steps (Vaswani et al. 2017)
    if last - float(share[lowest]) > 0.1 and float(share[lowest]) < 0.5:
        what = (
            f"The learning rate comes down to {share[lowest]:.0%} of its peak at step {steps[lowest]:,.0f} and rises "
            f"again to {last:.0%} before the run ends at step {total:,}."
        )
        do = "set the schedule's length to the planned steps; if restarts are meant, end the run at the end of one."
    elif before - last > FLAT and left > DECAYED and not endless and (longer := _length(share)) >= over:
        what = (
            f"The learning-rate decay is cut off: at the planned end, step {total:,}, the rate is still "
            f"{last:.0%} of its peak and falling; the decay is about {longer:.1f} times as long as the run."
        )
        do = (
            f"unless it is meant to end there, set the schedule's length to {total:,} steps: a decay more "
            "than 25% too long costs loss."
        )
    elif last <= IDLE and idle < 0.9 * total:
        what = (
            f"The learning rate is below a thousandth of its peak from step {idle:,.0f} on; the "
            f"{total - idle:,.0f} steps after it buy nothing."
        )
        do = f"set the schedule's length to {total:,} steps, or end the run there."
    elif top == len(share) - 1 and before < 1 - FLAT:
        what = f"The learning rate still rises at the planned end, step {total:,}: the warm-up is longer than the run."
        do = "end the warm-up in the first tenth of the run and the decay with it; nothing, if rates are tried out."
    else:
        return None
    return what, do, last


def _length(share: np.ndarray) -> float:
    """Length of the whole decay over the run's, read as a cosine to a tenth from the peak's end on."""
    top = int(np.flatnonzero(share >= 0.999)[-1])
    done = (len(share) - 1 - top) / (len(share) - 1)
    progress = float(np.arccos(np.clip(2 * (share[-1] - 0.1) / 0.9 - 1, -1, 1))) / np.pi
    return 1 - done + done / max(progress, 1e-3)
