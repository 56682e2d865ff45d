"""The batch against the critical size: E/E_min = 1 + B/B_crit tokens, S/S_min = 1 + B_crit/B steps.

McCandlish et al. 2018, eq. 2.11; Kaplan et al. 2020, section 5.1. Said only where the measurement is sure and published
fits over D do not contradict it. B_crit grows as the loss falls: a batch is too large only if it still is so at the
planned end, and too small if it is already.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from isoflop.advise.advice import Advice, Missing, Quantity, Reason, Severity, count
from isoflop.advise.situation import Situation
from isoflop.advise.thresholds import Thresholds
from isoflop.fit.batch import Belief, agree, change_batch, critical_batch_by_tokens

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
