"""Repeated data: epochs beyond what they are worth, too few unique tokens for the size, the gap to evaluation."""

from __future__ import annotations

import math

import numpy as np

from isoflop.advise.advice import Advice, Quantity, Reason, Severity, count
from isoflop.advise.curve import noise
from isoflop.advise.situation import Situation
from isoflop.advise.thresholds import Thresholds
from isoflop.fit.laws_kaplan import unique_tokens_needed
from isoflop.fit.papers.published import published

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
