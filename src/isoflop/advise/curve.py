"""Off its own curve: a loss that diverges, that has stopped falling, or that leaves what was forecast for it."""

from __future__ import annotations

import numpy as np

from isoflop.advise.advice import Advice, Quantity, Reason, Severity
from isoflop.advise.situation import Estimate, Situation
from isoflop.advise.thresholds import Thresholds
from isoflop.fit.papers.published import published

FEW = 8
"""Log steps below which a run's noise is not known."""
LEAST_NOISE = 1e-3
"""Of the loss: no logged loss is surer than that."""
LAW = "besiroglu2024"
"""Whose data term says what a doubling of tokens brings."""
FULL = 20.0
"""Tokens per parameter up to which a model is short of data."""
MOST_FALL = 0.05
"""Of the loss: small models on small data fall by less than the law, which was fitted from 1e9 tokens on."""
OTHERS = "the data (order, duplicates, another mix), the precision and the gradient norm"
CHECK = f"the learning rate, {OTHERS}"


def diverging(run: Situation, thresholds: Thresholds) -> Advice | None:
    """NaN, or far above its own best for several log steps.

    Far: by more than `divergence` standard deviations of a logged loss and `divergence_share` of the best; the best is
    the lowest median of five log steps in a row, so that one lucky batch makes no benchmark.
    """
    if run.nonfinite >= thresholds.in_a_row:
        return Advice(
            Reason.DIVERGING,
            Severity.CRITICAL,
            run.step,
            f"The training loss has been NaN or infinite for {run.nonfinite} log steps in a row.",
            f"stop, go back to a checkpoint before it, and lower the learning rate; look at {OTHERS} too.",
            basis=("this run's loss",),
            stops=True,
        )
    losses = np.array([loss for _, loss in run.losses])
    if run.step < (run.warmup_steps or 0) or len(losses) < FEW:
        return None
    medians = np.median(np.lib.stride_tricks.sliding_window_view(losses, 5), axis=1)
    at = int(medians.argmin())
    best, now = float(medians[at]), losses[-thresholds.in_a_row :]
    sd = max(noise(losses), LEAST_NOISE * abs(best))
    far = best + max(thresholds.divergence * sd, thresholds.divergence_share * abs(best))
    if not (now > far).all():
        return None
    return Advice(
        Reason.DIVERGING,
        Severity.CRITICAL,
        run.step,
        f"The loss diverges: {float(np.median(now)):.3f} nats per token, after {best:.3f} around step "
        f"{run.losses[at][0]:,}; a logged loss scatters by {sd:.2g}.",
        f"stop, go back to a checkpoint before step {run.losses[at][0]:,}, and lower the learning rate or skip the "
        f"data; look at {OTHERS} too.",
        (
            Quantity("loss", float(np.median(now)), "nats per token"),
            Quantity("best", best, "nats per token"),
            Quantity("scatter", sd, "nats per token"),
        ),
        basis=("this run's loss",),
        stops=True,
    )


def off_curve(run: Situation, thresholds: Thresholds) -> Advice | None:
    """Above what was forecast for this step: two forecasts, made at different steps, agree that something is wrong."""
    if not run.expected:
        return None
    beyond = []
    for each in run.expected:
        sd = float(np.hypot(each.loss.sd, each.noise))
        beyond.append((each.came - each.loss.mean) / max(sd, 1e-12))
    missed = min((each.came - each.loss.mean) / each.came for each in run.expected)
    if len(beyond) < 2 or min(beyond) < thresholds.off_curve or missed < thresholds.off_curve_share:
        return None
    last = run.expected[-1]
    half = 2 * float(np.hypot(last.loss.sd, last.noise))
    return Advice(
        Reason.OFF_CURVE,
        Severity.WARNING,
        run.step,
        f"The loss has left its curve: {last.came:.3f} nats per token, where {last.loss.mean:.3f} was forecast at step "
        f"{last.made_at:,}, {beyond[-1]:.0f} standard deviations below.",
        f"look at {CHECK}; compare with the last checkpoint before step {last.made_at:,}.",
        (
            Quantity("loss", last.came, "nats per token"),
            Quantity("forecast", last.loss.mean, "nats per token", last.loss.mean - half, last.loss.mean + half),
        ),
        basis=(f"this run's curve up to step {last.made_at:,}",),
        level=0.95,
    )


def plateau(run: Situation, thresholds: Thresholds) -> Advice | None:
    """Over the last doubling of tokens the loss fell by almost nothing, though more was to be expected.

    Expected by a forecast made before; and, while a model has seen fewer tokens than are optimal for its size, by
    Hoffmann's law: B/D^β·(2^β − 1), at most a twentieth of the loss.
    """
    if run.fell is None or run.warming_up:
        return None
    expected, basis = run.fall, "this run's curve"
    if expected is not None and expected.mean < 4 * expected.sd:
        expected = None  # not a sure forecast
    lawful = _lawful_fall(run)
    if lawful is not None and (expected is None or expected.mean < lawful):
        expected, basis = Estimate(lawful, lawful / 4), f"this run's curve; B and β of {LAW}"
    if expected is None or run.fell.mean + 2 * run.fell.sd > thresholds.plateau * expected.mean:
        return None
    return Advice(
        Reason.PLATEAU,
        Severity.WARNING,
        run.step,
        f"The loss has stopped falling: it fell by {run.fell.mean:.3f} nats per token over the last doubling of "
        f"tokens, where {expected.mean:.3f} was to be expected.",
        f"a model that learns falls on: look at {CHECK}; if the loss is as low as this data allows, stop.",
        (
            _within("fall", run.fell),
            _within("expected", expected),
        ),
        basis=(basis,),
        level=0.95,
    )


def _lawful_fall(run: Situation) -> float | None:
    """What a doubling of tokens brings a model that has seen fewer than are optimal, nats per token."""
    if run.unlike or run.N is None or not run.tokens or run.loss is None or run.tokens > FULL * run.N:
        return None
    law = published(LAW).law
    assert law is not None
    B, beta = law.constants["B"], law.constants["beta"]
    fall = B * run.tokens**-beta * (2**beta - 1)
    return float(min(fall, MOST_FALL * run.loss))


def _within(name: str, estimate: Estimate) -> Quantity:
    mean, sd = estimate
    return Quantity(name, mean, "nats per token", mean - 2 * sd, mean + 2 * sd)


def noise(losses: np.ndarray) -> float:
    """Standard deviation of a logged loss about its trend, by second differences (median absolute deviation)."""
    second = np.diff(losses, 2)
    return float(1.4826 * np.median(np.abs(second - np.median(second))) / np.sqrt(6)) if len(second) else 0.0
