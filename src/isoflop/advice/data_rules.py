"""Repeated data: epochs beyond what they are worth, too few unique tokens for the size, the gap to evaluation.

The batch against the critical size: E/E_min = 1 + B/B_crit tokens, S/S_min = 1 + B_crit/B steps.

McCandlish et al. 2018, eq. 2.11; Kaplan et al. 2020, section 5.1. Said only where the measurement is sure and published
fits over D do not contradict it. B_crit grows as the loss falls: a batch is too large only if it still is so at the
planned end, and too small if it is already.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from isoflop.advice.advice import Advice, Missing, Quantity, Reason, Severity, Thresholds, count
from isoflop.advice.run_state import Situation, noise
from isoflop.laws.forms import unique_tokens_needed
from isoflop.laws.published import published
from isoflop.noise.critical_batch import Belief, agree, change_batch, critical_batch_by_tokens

LAW = "muennighoff2023"
"""Whose R_D* says how fast epochs lose their worth."""
R_D_LOWEST, R_D_HIGHEST = 6.6, 95.0
"""Doubt: their 182 runs do not identify R_D*: another optimum, .13% better than the published one, has 95, and the
bootstrap runs from 6.6 upwards."""
RISING = 3
"""Evaluations in a row above the best one, while the training loss falls."""


def epochs(run: Situation, thresholds: Thresholds) -> Advice | None:
    """More epochs are planned than repeated data is worth: the next token's worth is exp(−R_D/R_D*) new ones.

    A warning only where the highest R_D* agrees.
    """
    D = run.planned_tokens
    if run.unique_tokens is None or D is None or (run.left or 0.0) < thresholds.frontier_steps:
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


def overfitting(run: Situation, thresholds: Thresholds) -> Advice | None:
    """An evaluation loss that rises while the training loss falls, past the first epoch where the stock is known.

    Beside it Kaplan et al. 2020's bound on unique tokens, D ≥ 5·10³·N^0.74 (eq. 4.4): it explains, it does not trigger.
    """
    if run.warming_up:
        return None
    first_epoch = run.unique_tokens is not None and (run.tokens or 0.0) <= run.unique_tokens
    if first_epoch:
        return None  # what is seen once is not learnt by heart: another cause, told by the curve's evaluators
    for name, points in run.evaluations.items():
        if len(points) < RISING + 1:
            continue
        losses = [point.loss for point in points]
        best = min(range(len(losses)), key=losses.__getitem__)
        rising = all(a < b for a, b in zip(losses[-RISING - 1 : -1], losses[-RISING:], strict=True))
        rise, scatter = losses[-1] - losses[best], noise(np.array(losses))
        if not rising or rise < max(thresholds.overfitting * losses[best], 4 * scatter):
            continue
        then = points[best].train
        if then is None or run.loss is None or run.loss >= then:
            continue
        numbers = [
            Quantity("best evaluation loss", losses[best], "nats per token"),
            Quantity("now", losses[-1], "nats per token"),
            Quantity("training loss", run.loss, "nats per token"),
            Quantity("training loss then", then, "nats per token"),
        ]
        text = ""
        if run.unique_tokens is not None and run.N_non_embedding:
            needed = float(unique_tokens_needed(run.N_non_embedding))
            numbers.append(Quantity("unique tokens", run.unique_tokens, "tokens"))
            if needed > run.unique_tokens:
                text = (
                    f" {count(run.N_non_embedding)} parameters want {count(needed)} unique tokens or more (Kaplan et "
                    f"al. 2020, eq. 4.4); there are {count(run.unique_tokens)}."
                )
        return Advice(
            Reason.OVERFITTING,
            Severity.WARNING,
            run.step,
            f"The loss on {name} has risen from {losses[best]:.3f} to {losses[-1]:.3f} nats per token since step "
            f"{points[best].step:,}, while the training loss fell: the model overfits.{text}",
            f"stop and keep the checkpoint of step {points[best].step:,}; the next run wants more data, fewer epochs, "
            "a smaller model or more regularisation.",
            tuple(numbers),
            basis=("this run's losses",),
        )
    return None


LEVEL = 0.8


def batch(run: Situation, thresholds: Thresholds) -> Advice | Missing | None:
    """Above twice the critical size of the planned end, or below a quarter of the present one, surely."""
    if not run.batch_wanted:
        return None
    if run.unlike:
        return Missing("the batch size", run.unlike)
    if run.batch is None:
        return Missing("the batch size", "the run's tokens are not known")
    if run.batch.measured is None:
        measured_at, more = run.batch.measurements, run.batch.measuring
        if measured_at or more:
            found = f"{measured_at} step{'s' * (measured_at != 1)}"
            why = f"the gradient noise scale was measured at {found}, not enough to tell it"
            return Missing("the batch size", why, quiet=more)
        return Missing(
            "the batch size", "the gradient noise scale was not measured (docs/noise-scale.md says how)", quiet=True
        )
    if run.warming_up or (run.left is not None and run.left < thresholds.frontier_steps):
        return None
    b, measured = run.batch, run.batch.measured
    if not agree(measured, b.prior):
        return Missing(
            "the batch size",
            f"the measured critical batch ({_text(measured)}) and published fits ({_text(b.prior)}) are too far apart",
        )
    ends = b.critical.interval(LEVEL)
    numbers = (
        Quantity("batch", b.tokens, "tokens"),
        Quantity("critical batch now", b.critical.value, "tokens", *ends),
        Quantity("measured", measured.value, "tokens"),
        Quantity("published fits", b.prior.value, "tokens"),
    )
    basis = ("this run's gradient noise scale", "published fits of B_crit over D")
    later, fits_later = _later(b.critical, run), _later(b.prior, run)
    above = 0.0 if later is None else later.probability_below(b.tokens / thresholds.batch_large)
    below = 1 - b.critical.probability_below(b.tokens / thresholds.batch_small)
    if later and fits_later and above > thresholds.sure and b.tokens > fits_later.value:
        ratio, at_end = b.tokens / later.value, later.interval(LEVEL)
        low, high = (_saved(b.tokens, end) for end in reversed(at_end))
        return Advice(
            Reason.BATCH_LARGE,
            Severity.WARNING,
            run.step,
            f"The batch is {ratio:.1f} times the critical size that is to be expected at the planned end: at least "
            f"{ratio / (1 + ratio):.0%} of the compute goes into gradients that agree already.",
            f"with about {count(later.value)} tokens a step the same loss takes fewer tokens and more steps; tune the "
            "learning rate again with the batch.",
            (*numbers, Quantity("critical batch at the planned end", later.value, "tokens", *at_end)),
            saves=(Quantity("compute of the rest", _saved(b.tokens, later.value), "%", low, high),),
            basis=basis,
            probability=above,
            level=LEVEL,
        )
    if below > thresholds.sure and b.tokens < b.prior.value:
        ratio, doubled = b.tokens / b.critical.value, change_batch(b.tokens, 2 * b.tokens, b.critical.value)
        return Advice(
            Reason.BATCH_SMALL,
            Severity.INFO,
            run.step,
            f"The batch is {ratio:.2g} times the critical size: it could be larger at little cost in tokens.",
            f"if steps take as long on a batch of {count(2 * b.tokens)} tokens (more devices), double it: "
            f"{1 - doubled.steps:.0%} fewer steps for {doubled.tokens - 1:.0%} more tokens; tune the learning rate "
            "again with the batch.",
            numbers,
            basis=basis,
            probability=below,
            level=LEVEL,
        )
    return None


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
