"""The batch against the critical size: E/E_min = 1 + B/B_crit tokens, S/S_min = 1 + B_crit/B steps.

McCandlish et al. 2018, eq. 2.11; Kaplan et al. 2020, section 5.1. Said only where the measurement is sure and published
fits over D do not contradict it.
"""

from __future__ import annotations

import math

from scipy.stats import norm

from isoflop.advise.advice import Advice, Missing, Quantity, Reason, Severity, count
from isoflop.advise.situation import Estimate, Situation
from isoflop.advise.thresholds import Thresholds

LEVEL = 0.8
APART = 2.0
"""Standard deviations between measurement and prior beyond which neither is believed."""


def batch(run: Situation, thresholds: Thresholds) -> Advice | Missing | None:
    """Above twice or below a quarter of the critical size, surely."""
    if run.batch is None:
        return Missing("the batch size", run.no_batch or "the gradient noise scale was not measured")
    if run.batch.measured is None:
        return Missing("the batch size", run.no_batch or "published fits alone do not tell it for this run")
    if run.warming_up or (run.left or 0.0) < thresholds.frontier_steps:
        return None
    b, measured = run.batch, run.batch.measured
    apart = abs(measured.mean - b.prior.mean) / math.hypot(measured.sd, b.prior.sd)
    if apart > APART:
        return Missing(
            "the batch size",
            f"the measured critical batch ({_text(measured)}) and published fits ({_text(b.prior)}) differ by "
            f"{apart:.1f} standard deviations",
        )
    log_B = math.log(b.tokens)
    above = _probability(log_B - math.log(thresholds.batch_large), b.critical)
    below = 1 - _probability(log_B - math.log(thresholds.batch_small), b.critical)
    ratio = math.exp(log_B - b.critical.mean)
    half = float(norm.ppf((1 + LEVEL) / 2)) * b.critical.sd
    numbers = (
        Quantity("batch", b.tokens, "tokens"),
        Quantity(
            "critical batch",
            math.exp(b.critical.mean),
            "tokens",
            math.exp(b.critical.mean - half),
            math.exp(b.critical.mean + half),
        ),
        Quantity("measured", math.exp(measured.mean), "tokens"),
        Quantity("published fits", math.exp(b.prior.mean), "tokens"),
    )
    basis = (f"gradient noise scale, {b.source or 'measured'}", "published fits of B_crit over D")
    if above > thresholds.sure and _probability(log_B, b.prior) > 0.5:
        low, high = (_overhead(log_B - b.critical.mean + sign * half) for sign in (-1, 1))
        return Advice(
            Reason.BATCH_LARGE,
            Severity.WARNING,
            run.step,
            f"The batch is {ratio:.1f} times the critical size: {_overhead(math.log(ratio)):.0%} of the compute goes "
            f"into gradients that agree already.",
            f"with about {count(math.exp(b.critical.mean))} tokens a step the same loss takes fewer tokens and more "
            "steps; tune the learning rate again with the batch.",
            numbers,
            saves=(Quantity("compute", _overhead(math.log(ratio)), "%", low, high),),
            basis=basis,
            probability=above,
            level=LEVEL,
        )
    if below > thresholds.sure and _probability(log_B, b.prior) < 0.5:
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


def _probability(log_tokens: float, critical: Estimate) -> float:
    """That B_crit lies below."""
    return float(norm.cdf(log_tokens, critical.mean, critical.sd))


def _overhead(log_ratio: float) -> float:
    return 1 / (1 + math.exp(-log_ratio))


def _text(estimate: Estimate) -> str:
    return f"{count(math.exp(estimate.mean))} tokens, times or over {math.exp(estimate.sd):.1f}"
