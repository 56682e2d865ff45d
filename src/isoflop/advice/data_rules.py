"""Rules on the data: epochs beyond their worth, overfitting, and the batch against the critical size.

E/E_min = 1 + B/B_crit tokens, S/S_min = 1 + B_crit/B steps (McCandlish et al. 2018, eq. 2.11; Kaplan et al. 2020,
section 5.1). A batch is judged only where the measurement is sure and published fits over D do not contradict it.
B_crit grows as the loss falls: a batch is too large only if it still is so at the planned end, and too small if it is
already.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from isoflop.advice.advice import Advice, Missing, Quantity, Reason, Severity, count
from isoflop.advice.run_state import (
    Evaluated,
    Situation,
    Thresholds,
    falling_loss,
    pretraining,
    rule,
    scatter,
)
from isoflop.laws.forms import unique_tokens_needed
from isoflop.laws.published import published
from isoflop.noise.critical_batch import Belief, agree, change_batch, critical_batch_by_tokens

LAW = "muennighoff2023"
"""The law whose R_D* gives how fast epochs lose their worth."""
R_D_LOWEST, R_D_HIGHEST = 6.6, 95.0
"""Doubt: their 182 runs do not identify R_D*: another optimum, .13% better than the published one, has 95, and the
bootstrap runs from 6.6 upwards."""
RISING = 3
"""Evaluations in a row above the best one, while the training loss falls."""
LEVEL = 0.8
"""Of the intervals of critical batches."""


@rule("the epochs", pretraining, at_once=True, early=True)
def epochs(run: Situation, thresholds: Thresholds) -> Advice | None:
    """More epochs are planned than repeated data is worth: the next token's worth is exp(−R_D/R_D*) new ones.

    A warning only where the highest R_D* agrees.
    """
    D = run.planned_tokens
    if run.unique_tokens is None or D is None:
        return None
    law = published(LAW).law
    assert law is not None
    R_D = law.constants["R_D_star"]
    repeats = D / run.unique_tokens - 1
    worth = math.exp(-max(repeats, 0.0) / R_D)
    if worth >= thresholds.epoch_worth:
        return None
    surely = math.exp(-repeats / R_D_HIGHEST)
    useful = 1 + R_D * math.log(1 / thresholds.epoch_worth)
    return Advice(
        Reason.EPOCHS,
        Severity.WARNING if surely < thresholds.epoch_worth else Severity.INFO,
        run.step,
        f"{repeats + 1:.1f} epochs over {count(run.unique_tokens)} unique tokens are planned: at the end a repeated "
        f"token is worth {worth:.0%} of a new one.",
        f"bring more data, or stop after about {useful:.0f} epochs and spend the compute on a larger model.",
        (
            Quantity("epochs", repeats + 1),
            Quantity("worth of the last token", worth, "%", math.exp(-repeats / R_D_LOWEST), surely),
        ),
        basis=(f"Muennighoff et al. 2023: R_D* = {R_D:.1f}; their runs leave it open between 6.6 and 95 or more",),
        level=0.9,
    )


@rule("overfitting", falling_loss, at_once=True, after_warmup=True)
def overfitting(run: Situation, thresholds: Thresholds) -> Advice | None:
    """An evaluation loss that rises while the training loss falls, past the first epoch where the stock is known."""
    if run.unique_tokens is not None and (run.tokens or 0.0) <= run.unique_tokens:
        return None  # what is seen once can't be learnt by heart
    for name, points in run.evaluations.items():
        losses = [point.loss for point in points]
        if len(losses) <= RISING or not (np.diff(losses[-RISING - 1 :]) > 0).all():
            continue
        best = int(np.argmin(losses))
        least = max(thresholds.overfitting * losses[best], 4 * scatter(np.array(losses)))
        if losses[-1] - losses[best] < least:
            continue
        then = points[best].train
        if then is not None and run.loss is not None and run.loss < then:
            return _overfits(run, name, points[best], losses[-1])
    return None


def _overfits(run: Situation, name: str, best: Evaluated, now: float) -> Advice:
    """Kaplan et al. 2020's bound on unique tokens, D ≥ 5·10³·N^0.74 (eq. 4.4), explains, it does not trigger."""
    numbers = [
        Quantity("best evaluation loss", best.loss, "nats per token"),
        Quantity("now", now, "nats per token"),
        Quantity("training loss", run.loss or 0.0, "nats per token"),
        Quantity("training loss then", best.train or 0.0, "nats per token"),
    ]
    text = ""
    if run.unique_tokens is not None and run.N_non_embedding:
        needed = float(unique_tokens_needed(run.N_non_embedding))
        numbers.append(Quantity("unique tokens", run.unique_tokens, "tokens"))
        if needed > run.unique_tokens:
            text = (
                f" {count(run.N_non_embedding)} parameters want {count(needed)} unique tokens or more (Kaplan et al. "
                f"2020, eq. 4.4); there are {count(run.unique_tokens)}."
            )
    return Advice(
        Reason.OVERFITTING,
        Severity.WARNING,
        run.step,
        f"The loss on {name} has risen from {best.loss:.3f} to {now:.3f} nats per token since step {best.step:,}, "
        f"while the training loss fell: the model overfits.{text}",
        f"stop and keep the checkpoint of step {best.step:,}; the next run wants more data, fewer epochs, a smaller "
        "model or more regularisation.",
        tuple(numbers),
        basis=("this run's losses",),
    )


@rule("the batch", pretraining, subject="the batch size")
def batch(run: Situation, thresholds: Thresholds) -> Advice | Missing | None:
    """Above twice the critical size of the planned end, or below a quarter of the present one, surely."""
    if not run.batch_wanted:
        return None
    b, measured = run.batch, None if run.batch is None else run.batch.measured
    if b is None or measured is None:
        return _unmeasured(run)
    if run.warming_up or (run.left is not None and run.left < thresholds.frontier_steps):
        return None
    if not agree(measured, b.prior):
        return Missing(
            "the batch size",
            f"the measured critical batch ({_text(measured)}) and published fits ({_text(b.prior)}) are too far apart",
        )
    common: dict[str, Any] = {
        "step": run.step,
        "numbers": (
            Quantity("batch", b.tokens, "tokens"),
            Quantity("critical batch now", b.critical.value, "tokens", *b.critical.interval(LEVEL)),
            Quantity("measured", measured.value, "tokens"),
            Quantity("published fits", b.prior.value, "tokens"),
        ),
        "basis": ("this run's gradient noise scale", "published fits of B_crit over D"),
        "level": LEVEL,
    }
    later, fits_later = _later(b.critical, run), _later(b.prior, run)
    above = 0.0 if later is None else later.probability_below(b.tokens / thresholds.batch_large)
    if later and fits_later and above > thresholds.sure and b.tokens > fits_later.value:
        return _too_large(b.tokens, later, above, common)
    below = 1 - b.critical.probability_below(b.tokens / thresholds.batch_small)
    if below > thresholds.sure and b.tokens < b.prior.value:
        return _too_small(b.tokens, b.critical.value, below, common)
    return None


def _unmeasured(run: Situation) -> Missing:
    """Why the batch can't be judged."""
    b, what = run.batch, "the batch size"
    if b is None:
        return Missing(what, "the run's tokens are not known")
    if b.measurements or b.measuring:
        times = f"{b.measurements} step{'s' * (b.measurements != 1)}"
        why = f"the gradient noise scale was measured at {times}, which is not enough"
        return Missing(what, why, quiet=b.measuring)
    return Missing(what, "the gradient noise scale was not measured (docs/noise-scale.md says how)", quiet=True)


def _too_large(tokens: float, later: Belief, probability: float, common: dict[str, Any]) -> Advice:
    ratio, ends = tokens / later.value, later.interval(LEVEL)
    low, high = (_saved(tokens, end) for end in reversed(ends))
    numbers = (*common["numbers"], Quantity("critical batch at the planned end", later.value, "tokens", *ends))
    return Advice(
        Reason.BATCH_LARGE,
        Severity.WARNING,
        what=f"The batch is {ratio:.1f} times the critical size expected at the planned end: at least "
        f"{ratio / (1 + ratio):.0%} of the compute goes into gradients that agree already.",
        do=f"with about {count(later.value)} tokens a step the same loss takes fewer tokens and more steps; tune the "
        "learning rate again with the batch.",
        saves=(Quantity("compute of the rest", _saved(tokens, later.value), "%", low, high),),
        probability=probability,
        **{**common, "numbers": numbers},
    )


def _too_small(tokens: float, critical: float, probability: float, common: dict[str, Any]) -> Advice:
    doubled = change_batch(tokens, 2 * tokens, critical)
    return Advice(
        Reason.BATCH_SMALL,
        Severity.INFO,
        what=f"The batch is {tokens / critical:.2g} times the critical size: it could be larger at little cost in "
        "tokens.",
        do=f"if steps take as long on a batch of {count(2 * tokens)} tokens (more devices), double it: "
        f"{1 - doubled.steps:.0%} fewer steps for {doubled.tokens - 1:.0%} more tokens; tune the learning rate again "
        "with the batch.",
        probability=probability,
        **common,
    )


def _later(critical: Belief, run: Situation) -> Belief | None:
    """B_crit at the planned end: as much larger as published fits over D say."""
    if not run.tokens or not run.planned_tokens:
        return None
    now, then = critical_batch_by_tokens(np.array([run.tokens, run.planned_tokens]))
    return replace(critical, value=critical.value * max(float(then / now), 1.0))


def _saved(batch: float, critical: float) -> float:
    """Share of the compute that a batch of the critical size saves, E/E_min = 2."""
    return max(1 - change_batch(batch, critical, critical).tokens, 0.0)


def _text(belief: Belief) -> str:
    return f"{count(belief.value)} tokens, times or over {math.exp(belief.sigma):.1f}"
