"""Rules on the data: epochs beyond their worth, overfitting, and the batch against the critical size.

E/E_min = 1 + B/B_crit tokens, S/S_min = 1 + B_crit/B steps (McCandlish et al. 2018, eq. 2.11; Kaplan et al. 2020,
section 5.1). A batch is judged only where the measurement is sure and published fits over D do not contradict it.
B_crit grows as the loss falls: a batch is too large only if it still is so at the planned end, and too small if it is
already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from isoflop.advice.advice import Advice, Missing, Quantity, Reason, Severity, count, nats, share
from isoflop.advice.run_state import (
    Batch,
    Evaluated,
    Situation,
    Thresholds,
    falling_loss,
    pretraining,
    rule,
    scatter,
)
from isoflop.laws.forms import hoffmann_optimal_parameters, unique_tokens_needed
from isoflop.laws.papers import published
from isoflop.noise.critical_batch import Belief, agree, change_batch, combine, critical_batch_by_tokens

LAW = "muennighoff2023"
"""The law whose R_D* gives how fast epochs lose their worth."""
R_D_LOWEST, R_D_HIGHEST = 6.6, 95.0
"""Doubt: their 182 runs do not identify R_D*: another optimum, .13% better than the published one, has 95, and the
bootstrap runs from 6.6 upwards."""
RISING = 3
"""Evaluations in a row above the best one, while the training loss falls."""
LEVEL = 0.8
"""Of the intervals of critical batches."""
STABLE, STABLE_SD = (0.95, 0.5), 0.5
"""A rate above this share of its peak for this share of the run is held stable; ln B_crit is less sure there."""
RAMP_FROM, RAMP_LEFT = 8.0, 0.3
"""A batch so many times the critical size of now is worth a ramp, where this share of the run is left."""
EARLY_FROM = 50
"""Steps before which no bound is believed: while a tiny GPT learnt the frequency of its letters, in its first 16 steps,
single steps had a noise scale of 20 to 100 tokens, and of 500 to 50,000 up to step 60."""
LOWEST = 0.1
"""Nats per token: a quarter of what Hoffmann et al.'s E, 1.69 nats, is per byte."""
FEW_OFFSETS = 8
"""Evaluations that tell whether an offset drifts."""


@rule("the epochs", pretraining, of_end=True, at_once=True, early=True)
def epochs(run: Situation, thresholds: Thresholds) -> Advice | None:
    """More epochs are planned than repeated data is worth: the next token's worth is exp(−R_D/R_D*) new ones.

    A warning only where the highest R_D* agrees, and the user says how many tokens are unique.
    """
    if run.unique_tokens is None and run.epoch_steps is None:
        return None
    D, unique = run.planned_tokens, run.stock
    if unique is None or D is None:
        return None
    law = published(LAW).law
    assert law is not None
    R_D = law.constants["R_D_star"]
    repeats = D / unique - 1
    worth = math.exp(-max(repeats, 0.0) / R_D)
    if worth >= thresholds.epoch_worth:
        return None
    surely = math.exp(-repeats / R_D_HIGHEST)
    useful = 1 + R_D * math.log(1 / thresholds.epoch_worth)
    # parameters beyond those that the unique tokens support lose their worth faster than epochs do
    constants = {name: law.constants[name] for name in ("A", "B", "alpha", "beta")}
    excess = (run.N or math.inf) / float(hoffmann_optimal_parameters(unique, **constants)) - 1
    grows = math.exp(-max(excess, 0.0) / law.constants["R_N_star"]) >= thresholds.epoch_worth
    larger = " and spend the compute on a larger model" if grows else ""
    known = run.unique_tokens is not None
    drawn = "rows that are drawn anew each time (random windows), few on purpose, or a run that early stopping ends"
    drawn = "" if known else f"; nothing for {drawn}"
    return Advice(
        Reason.EPOCHS,
        f"{count(repeats + 1)} epochs over {count(unique)} {'unique tokens' if known else 'tokens of data'} are "
        f"planned: at the end a repeated token is worth {share(worth)} of a new one.",
        f"bring more data, or stop after about {useful:.0f} epochs{larger}{drawn}.",
        (
            Quantity("epochs", repeats + 1),
            Quantity("worth of the last token", worth, "%", math.exp(-repeats / R_D_LOWEST), surely),
        ),
        basis=(f"Muennighoff et al. 2023: R_D* = {R_D:.1f}; their runs leave it open between 6.6 and 95 or more",),
        level=0.9,
        severity=Severity.WARNING if known and surely < thresholds.epoch_worth else Severity.INFO,
    )


@rule("overfitting", falling_loss, at_once=True, after_warmup=True, cause="evaluations")
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
        if then is None:  # it fell too fast for a level
            then = min([loss for step, loss in run.losses if step <= points[best].step][-RISING:], default=None)
        if then is not None and run.loss is not None and run.loss < then:
            return _overfits(run, name, points[best]._replace(train=then), losses[-1])
    return None


def _overfits(run: Situation, name: str, best: Evaluated, now: float) -> Advice:
    """Kaplan et al. 2020's bound on unique tokens, D ≥ 5·10³·N^0.74 (eq. 4.4), explains, it does not trigger."""
    numbers = [
        Quantity("best evaluation loss", best.loss, run.task.unit),
        Quantity("now", now, run.task.unit),
        Quantity("training loss", run.loss or 0.0, run.task.unit),
        Quantity("training loss then", best.train or 0.0, run.task.unit),
    ]
    text = ""
    if run.unique_tokens is not None and run.N_non_embedding:
        needed = float(unique_tokens_needed(run.N_non_embedding))
        numbers.append(Quantity("unique tokens", run.unique_tokens, "tokens"))
        want = f"{count(run.N_non_embedding)} parameters (non-embedding) want {count(needed)} unique tokens or more"
        if needed > run.unique_tokens:
            text = f" {want} (Kaplan et al. 2020, eq. 4.4); there are {count(run.unique_tokens)}."
    return Advice(
        Reason.OVERFITTING,
        f"The loss on {name} has risen from {nats(best.loss)} to {nats(now, run.task.unit)} since step {best.step:,}, "
        f"while the training loss fell: the model overfits.{text}",
        f"stop and keep the checkpoint of step {best.step:,}; the next run wants more data, fewer epochs, a smaller "
        "model or more regularisation.",
        tuple(numbers),
        basis=("this run's losses",),
    )


@rule("the level", pretraining)
def too_low(run: Situation, thresholds: Thresholds) -> Advice | None:
    """A loss that no text has."""
    if run.loss is None or not 0 < run.loss < LOWEST:
        return None
    return Advice(
        Reason.TOO_LOW,
        f"The loss is {nats(run.loss, run.task.unit)}, lower than text allows: the targets can be read from the "
        "inputs, or the data are memorised.",
        "check whether the targets are shifted by one token, whether a token sees the ones after it, and whether the "
        "same batches come again; nothing, if the data are synthetic, or few on purpose.",
        (Quantity("loss", run.loss, run.task.unit),),
        basis=("Hoffmann et al. 2022: of 1.69 nats per token, about 0.4 per byte, web text cannot be predicted",),
    )


def offsets(points: Sequence[Evaluated]) -> list[float]:
    """An evaluation set's loss less the training loss of the time, where both are known."""
    return [point.loss - point.train for point in points if point.train is not None]


@rule("the offset", falling_loss, after_warmup=True, cause="evaluations")
def offset(run: Situation, thresholds: Thresholds) -> Advice | None:
    """The offset of an evaluation set to the training loss moves; it stays as it is in Kaplan et al. 2020, figure 8.

    Not where data is repeated: there it grows by what is learnt by heart.
    """
    if run.evaluations and run.stock is not None and (run.tokens or 0.0) > run.stock:
        return None
    for name, points in run.evaluations.items():
        known = offsets(points)
        if len(known) < FEW_OFFSETS:
            continue
        quarter = len(known) // 4
        before, lately = known[quarter : 2 * quarter + 2], known[-RISING:]
        then, now, sd = float(np.median(before)), float(np.median(lately)), float(np.std(before))
        least = max(thresholds.offset * abs(points[-1].loss), 3 * sd)
        if min(abs(each - then) for each in lately) > least:
            return Advice(
                Reason.OFFSET,
                f"The loss on {name} lay {f'{then:+.3f} {run.task.unit}'.rstrip()} from the training loss and lies "
                f"{now:+.3f} now: "
                "the offset of a set stays as it is while both learn from the same data.",
                "check whether the training data has changed (its order, its mix), or the evaluation.",
                (Quantity("offset before", then, run.task.unit), Quantity("offset now", now, run.task.unit)),
                basis=("this run's losses", "Kaplan et al. 2020, figure 8"),
                severity=Severity.INFO,
            )
    return None


@rule("the batch", pretraining, early=True, subject="the batch size")
def batch(run: Situation, thresholds: Thresholds) -> Advice | Missing | None:
    """Above twice the critical size of the planned end, or below a quarter of the present one, surely."""
    if not run.batch_wanted:
        return None
    b = run.batch
    found = None if b is None else b.measured or b.early
    early = run.warming_up or run.step < EARLY_FROM
    if b is None or (b.measured is None and (found is None or early or not agree(found, b.prior))):
        return _unmeasured(b)
    assert found is not None
    if run.warming_up:
        return None
    if not agree(found, b.prior):
        here, there = (
            f"{count(each.value)} tokens, times or over {math.exp(each.sigma):.1f}" for each in (found, b.prior)
        )
        return Missing(
            "the batch size", f"the measured critical batch ({here}) and published fits ({there}) are too far apart"
        )
    critical = _widened(b.critical if b.measured else combine([found, b.prior]), run)
    base = _of_batch(b, critical, found)
    ramp = _ramp(run, b.tokens, critical, thresholds, base)
    if ramp and not b.measured:
        return ramp
    later, fits_later = _later(critical, run), _later(b.prior, run)
    if later and fits_later:
        surely, possible = (each.probability_below(b.tokens / thresholds.batch_large) for each in (later, fits_later))
        if surely > thresholds.sure and possible > 1 - thresholds.sure:
            return _too_large(b.tokens, later, replace(base, probability=surely))
    if ramp:
        return ramp
    below = 1 - critical.probability_below(b.tokens / thresholds.batch_small)
    if b.measured and below > thresholds.sure and b.tokens < b.prior.value:
        return _too_small(b.tokens, critical.value, replace(base, probability=below))
    return None if b.measured else _unmeasured(b)


def _of_batch(b: Batch, critical: Belief, found: Belief) -> Advice:
    """Advice on the batch, its words to be filled in."""
    numbers = (
        Quantity("batch", b.tokens, "tokens"),
        Quantity("critical batch now", critical.value, "tokens", *critical.interval(LEVEL)),
        Quantity("measured", found.value, "tokens"),
        Quantity("published fits", b.prior.value, "tokens"),
    )
    basis = ("this run's gradient noise scale", "published fits of B_crit over D")
    return Advice(Reason.BATCH_LARGE, "", numbers=numbers, basis=basis, level=LEVEL)


def _widened(critical: Belief, run: Situation) -> Belief:
    """E/E_min = 1 + B/B_crit fails under warm-up–stable–decay (arXiv:2601.05034): wider there."""
    if run.rates is None or not run.total_steps:
        return critical
    share = np.asarray(run.rates.at(np.linspace(0, run.total_steps, 101))) / max(run.rates.peak, 1e-300)
    stable = (share > STABLE[0]).mean() > STABLE[1] and share[-1] < STABLE[0]
    return replace(critical, sigma=math.hypot(critical.sigma, STABLE_SD)) if stable else critical


def _ramp(run: Situation, tokens: float, critical: Belief, thresholds: Thresholds, base: Advice) -> Advice | None:
    """A batch that is far above the critical size now, and over the run costs more than one that grows with it.

    At B = B_crit(D) all the way E/E_min = 2; at a constant B it is 1 + B·mean(1/B_crit(D)) over the tokens to come.
    """
    if not run.tokens or not run.planned_tokens or run.planned_tokens <= run.tokens:
        return None
    if (run.left or 0.0) < RAMP_LEFT:
        return None
    D = np.linspace(run.tokens, run.planned_tokens, 200)
    shrinking = float((critical_batch_by_tokens(run.tokens) / critical_batch_by_tokens(D)).mean())
    surely = critical.probability_below(tokens * shrinking / (1 + 2 * thresholds.batch_now))
    now = critical.probability_below(tokens / RAMP_FROM)
    if min(surely, now) <= thresholds.sure:
        return None
    low, high = critical.interval(LEVEL)
    cost, least, most = ((1 + tokens * shrinking / at) / 2 for at in (critical.value, high, low))
    first = 2 ** round(math.log2(critical.value))
    growth = math.log(critical_batch_by_tokens(4.0) / critical_batch_by_tokens(2.0)) / math.log(2)
    at = [run.tokens * 2 ** (k / growth) for k in range(1, 5)]
    steps = ", ".join(count(each) for each in at if each < run.planned_tokens)
    grow = f" and double it at {steps} tokens" if steps else ""
    return replace(
        base,
        what=f"The batch of {count(tokens)} tokens is {_times(tokens / critical.value)} times the critical size of "
        f"now; held constant it takes {_times(cost, least, most)} times the tokens of a batch that grows with it.",
        do=f"begin with about {count(first)} tokens a step{grow}; tune the learning rate again with the batch. In a "
        "decay, double the batch and divide the rate by √2 in place of halving the rate (Seesaw, arXiv:2510.14717).",
        numbers=(*base.numbers, Quantity("tokens over those of a batch that grows", cost, "", least, most)),
        probability=min(surely, now),
    )


def _unmeasured(b: Batch | None) -> Missing:
    """Why the batch can't be judged."""
    why, quiet = "the gradient noise scale was not measured, see docs/noise-scale.md", True
    if b is None:
        why = "the run's tokens are not known"
    elif b.measurements or b.measuring:
        why, quiet = "the gradient noise scale was measured at too few steps", b.measuring
    return Missing("the batch size", why, quiet)


def _too_large(tokens: float, later: Belief, base: Advice) -> Advice:
    ratio, ends = tokens / later.value, later.interval(LEVEL)
    low, high = (_saved(tokens, end) for end in reversed(ends))
    return replace(
        base,
        what=f"The batch is {_times(ratio, tokens / ends[1], tokens / ends[0])} times the critical size expected at "
        f"the planned end: {share(ratio / (1 + ratio))} of the compute there, and more before, goes into gradients "
        "that agree already.",
        do=f"with about {count(later.value)} tokens a step the same loss takes fewer tokens and more steps; tune the "
        "learning rate again with the batch.",
        saves=(Quantity("compute of the rest", _saved(tokens, later.value), "%", low, high),),
        numbers=(*base.numbers, Quantity("critical batch at the planned end", later.value, "tokens", *ends)),
    )


def _too_small(tokens: float, critical: float, base: Advice) -> Advice:
    doubled = change_batch(tokens, 2 * tokens, critical)
    return replace(
        base,
        reason=Reason.BATCH_SMALL,
        severity=Severity.INFO,
        what=f"The batch is {tokens / critical:.2g} times the critical size: it could be larger at little cost in "
        "tokens.",
        do=f"if steps take as long on a batch of {count(2 * tokens)} tokens (more devices), double it: "
        f"{1 - doubled.steps:.0%} fewer steps for {doubled.tokens - 1:.0%} more tokens; tune the learning rate again "
        "with the batch.",
    )


def _later(critical: Belief, run: Situation) -> Belief | None:
    """B_crit at the planned end: as much larger as published fits over D say."""
    if not run.tokens or not run.planned_tokens:
        return None
    now, then = critical_batch_by_tokens(np.array([run.tokens, run.planned_tokens]))
    return replace(critical, value=critical.value * max(float(then / now), 1.0))


def _times(*factors: float) -> str:
    """A factor in two digits, then its interval."""
    first, *ends = (count(float(f"{each:.2g}")) for each in factors)
    return f"{first} [{', '.join(ends)}]" if ends else first


def _saved(batch: float, critical: float) -> float:
    """Share of the compute that a batch of the critical size saves, E/E_min = 2."""
    return max(1 - change_batch(batch, critical, critical).tokens, 0.0)
