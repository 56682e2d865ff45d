"""The batch against the critical size: E/E_min = 1 + B/B_crit tokens, S/S_min = 1 + B_crit/B steps.

McCandlish et al. 2018, eq. 2.11; Kaplan et al. 2020, section 5.1. Said only where the measurement is sure and published
fits over D do not contradict it.
"""

from __future__ import annotations

import math

from isoflop.advise.advice import Advice, Missing, Quantity, Reason, Severity, count
from isoflop.advise.situation import Situation
from isoflop.advise.thresholds import Thresholds
from isoflop.fit.batch import Belief, agree

LEVEL = 0.8


def batch(run: Situation, thresholds: Thresholds) -> Advice | Missing | None:
    """Above twice or below a quarter of the critical size, surely."""
    if not run.batch_wanted:
        return None
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
    if run.warming_up or (run.left or 0.0) < thresholds.frontier_steps:
        return None
    b, measured = run.batch, run.batch.measured
    if not agree(measured, b.prior):
        return Missing(
            "the batch size",
            f"the measured critical batch ({_text(measured)}) and published fits ({_text(b.prior)}) are too far apart",
        )
    above = b.critical.probability_below(b.tokens / thresholds.batch_large)
    below = 1 - b.critical.probability_below(b.tokens / thresholds.batch_small)
    ratio = b.tokens / b.critical.value
    ends = b.critical.interval(LEVEL)
    numbers = (
        Quantity("batch", b.tokens, "tokens"),
        Quantity("critical batch", b.critical.value, "tokens", *ends),
        Quantity("measured", measured.value, "tokens"),
        Quantity("published fits", b.prior.value, "tokens"),
    )
    basis = ("this run's gradient noise scale", "published fits of B_crit over D")
    if above > thresholds.sure and b.tokens > b.prior.value:
        low, high = (_overhead(b.tokens / end) for end in reversed(ends))
        return Advice(
            Reason.BATCH_LARGE,
            Severity.WARNING,
            run.step,
            f"The batch is {ratio:.1f} times the critical size: {_overhead(ratio):.0%} of the compute goes "
            f"into gradients that agree already.",
            f"with about {count(b.critical.value)} tokens a step the same loss takes fewer tokens and more "
            "steps; tune the learning rate again with the batch.",
            numbers,
            saves=(Quantity("compute", _overhead(ratio), "%", low, high),),
            basis=basis,
            probability=above,
            level=LEVEL,
        )
    if below > thresholds.sure and b.tokens < b.prior.value:
        steps, tokens = (1 + 0.5 / ratio) / (1 + 1 / ratio), (1 + 2 * ratio) / (1 + ratio)
        return Advice(
            Reason.BATCH_SMALL,
            Severity.INFO,
            run.step,
            f"The batch is {ratio:.2g} times the critical size: it could be larger at little cost in tokens.",
            f"if steps take as long on a batch of {count(2 * b.tokens)} tokens (more devices), double it: "
            f"{1 - steps:.0%} fewer steps for {tokens - 1:.0%} more tokens; tune the learning rate again with the "
            "batch.",
            numbers,
            basis=basis,
            probability=below,
            level=LEVEL,
        )
    return None


def _overhead(ratio: float) -> float:
    return ratio / (1 + ratio)


def _text(belief: Belief) -> str:
    return f"{count(belief.value)} tokens, times or over {math.exp(belief.sigma):.1f}"
