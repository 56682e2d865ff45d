"""Rules on a run's own curves: its loss, its learning-rate schedule (Hoffmann et al. 2022, appendix B), its speed."""

from __future__ import annotations

import statistics

import numpy as np

from isoflop.advice.advice import Advice, Quantity, Reason, Severity, count, nats
from isoflop.advice.run_state import (
    Estimate,
    Expected,
    Situation,
    Thresholds,
    anything,
    falling_loss,
    rule,
    scatter,
)
from isoflop.laws.published import published

FEW = 8
"""Log steps below which a run's noise is not known."""
LOST = 0.05
"""Of the best loss: a rise by more is critical, and ends a run under `on_advice="stop"`."""
LATELY = 30
"""Log steps whose scatter is the noise: earlier ones scatter by the fall of the loss."""
LEAST_NOISE = 1e-3
"""Of the loss: the least noise of a logged loss."""
LAW = "besiroglu2024"
"""The law whose data term gives the fall over a doubling of tokens."""
FULL = 20.0
"""Tokens per parameter up to which a model is short of data."""
MOST_FALL = 0.05
"""Of the loss: small models on small data fall by less than the law, which was fitted from 1e9 tokens on."""
MOST_NATS = 100
"""Per token: beyond it a loss is no cross-entropy of a model that learns."""
FLAT = 0.02
"""Of the peak: a rate that changes by less over the run's last tenth has ended, or never decays."""
IDLE = 1e-3
"""Of the peak: a rate below it does nothing."""
DECAYED = 0.12
"""Of the peak: where a decay may end (Hoffmann et al.: a tenth)."""
SLOW_STEPS = 5
"""Log steps, each of which must be slow: a single validation or checkpoint in between does not count."""
OTHERS = "the data (order, duplicates, another mix), the precision and the gradient norm"
CHECK = f"the learning rate, {OTHERS}"


@rule("divergence", anything, at_once=True)
def diverging(run: Situation, thresholds: Thresholds) -> Advice | None:
    """NaN, or far above its own best for several log steps.

    Far: by more than `divergence` standard deviations of a logged loss and `divergence_share` of the best; the best is
    the lowest median of five log steps in a row, so that one lucky batch makes no benchmark. It has to last, for a
    share of the steps done: spikes of some tens of steps come and go, whatever the interval between log steps.
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
    if run.step < (run.warmup_steps or 0) or len(losses) < FEW or falling_loss(run):
        return None
    medians = np.median(np.lib.stride_tricks.sliding_window_view(losses, 5), axis=1)
    at = int(medians.argmin())
    lately = sum(step > (1 - thresholds.divergence_span) * run.step for step, _ in run.losses)
    best, now = float(medians[at]), losses[-max(thresholds.in_a_row, lately) :]
    sd = max(scatter(losses[-LATELY : -thresholds.in_a_row]), LEAST_NOISE * abs(best))
    far = best + max(thresholds.divergence * sd, thresholds.divergence_share * abs(best))
    if not (now > far).all():
        return None
    lost = bool((now > best + LOST * abs(best)).all())
    return Advice(
        Reason.DIVERGING,
        Severity.CRITICAL if lost else Severity.WARNING,
        run.step,
        f"The loss {'diverges' if lost else 'rises'}: {nats(float(np.median(now)))} nats per token, after "
        f"{nats(best)} around step {run.losses[at][0]:,}; a logged loss scatters by {sd:.2g}.",
        f"stop, go back to a checkpoint before step {run.losses[at][0]:,}, and lower the learning rate or skip the "
        f"data; look at {OTHERS} too.",
        (
            Quantity("loss", float(np.median(now)), "nats per token"),
            Quantity("best", best, "nats per token"),
            Quantity("scatter", sd, "nats per token"),
        ),
        basis=("this run's loss",),
        stops=lost,
    )


@rule("the curve", falling_loss, after_warmup=True)
def off_curve(run: Situation, thresholds: Thresholds) -> Advice | None:
    """Above what was forecast: twice by this run, at different steps, or by the ladder of the user's earlier sizes."""
    if run.by_ladder is not None and _beyond(run.by_ladder, thresholds):
        last, basis = run.by_ladder, "your earlier sizes (history=)"
        said, since = f"your earlier sizes put it at {nats(last.loss.mean)}", "compare with them"
    elif len(run.expected) == 2 and all(_beyond(each, thresholds) for each in run.expected):
        last = run.expected[-1]
        basis = f"this run's curve up to step {last.made_at:,}"
        said = f"{nats(last.loss.mean)} was forecast at step {last.made_at:,}"
        since = f"compare with the last checkpoint before step {last.made_at:,}"
    else:
        return None
    sd = _spread(last)
    return Advice(
        Reason.OFF_CURVE,
        Severity.WARNING,
        run.step,
        f"The loss has left its curve: {nats(last.came)} nats per token, where {said}, "
        f"{(last.came - last.loss.mean) / sd:.0f} standard deviations below.",
        f"look at {CHECK}; {since}.",
        (Quantity("loss", last.came, "nats per token"), _within("forecast", Estimate(last.loss.mean, sd))),
        basis=(basis,),
        level=0.95,
    )


def _spread(each: Expected) -> float:
    return max(float(np.hypot(each.loss.sd, each.noise)), 1e-12)


def _beyond(each: Expected, thresholds: Thresholds) -> bool:
    missed = each.came - each.loss.mean
    return missed > thresholds.off_curve * _spread(each) and missed > thresholds.off_curve_share * each.came


@rule("the plateau", falling_loss, after_warmup=True)
def plateau(run: Situation, thresholds: Thresholds) -> Advice | None:
    """Over the last doubling of tokens the loss fell by almost nothing, though more was to be expected.

    Expected by a forecast made before; and, while a model has seen fewer tokens than are optimal for its size, by
    Hoffmann's law: B/D^β·(2^β − 1), at most a twentieth of the loss.
    """
    if run.fell is None:
        return None
    expected, basis = run.fall, "this run's curve"
    if expected is not None and expected.mean < 4 * expected.sd:
        expected = None  # not a sure forecast
    by_law = _fall_by_law(run)
    if by_law is not None and (expected is None or expected.mean < by_law):
        expected, basis = Estimate(by_law, by_law / 4), f"this run's curve; B and β of {LAW}"
    if expected is None or run.fell.mean + 2 * run.fell.sd > thresholds.plateau * expected.mean:
        return None
    return Advice(
        Reason.PLATEAU,
        Severity.WARNING,
        run.step,
        f"The loss has stopped falling: it {'fell' if run.fell.mean >= 0 else 'rose'} by {nats(abs(run.fell.mean))} "
        f"nats per token over the last doubling of steps, where a fall of {nats(expected.mean)} was to be expected.",
        f"a model that learns falls on: look at {CHECK}; if the loss is as low as this data allows, stop.",
        (_within("fall", run.fell), _within("expected", expected)),
        basis=(basis,),
        level=0.95,
    )


def _fall_by_law(run: Situation) -> float | None:
    """What a doubling of tokens brings a model that has seen fewer than are optimal, nats per token."""
    if run.unlike or run.N is None or not run.tokens or run.loss is None or run.tokens > FULL * run.N:
        return None
    if not 0 < run.loss < MOST_NATS:  # no law is of such losses
        return None
    law = published(LAW).law
    assert law is not None
    B, beta = law.constants["B"], law.constants["beta"]
    fall = B * run.tokens**-beta * (2**beta - 1)
    return float(min(fall, MOST_FALL * run.loss))


def _within(name: str, estimate: Estimate) -> Quantity:
    mean, sd = estimate
    return Quantity(name, mean, "nats per token", mean - 2 * sd, mean + 2 * sd)


@rule("the schedule", anything, at_once=True, early=True)
def schedule(run: Situation, thresholds: Thresholds) -> Advice | None:
    """Cut off in the middle of its decay, over long before the end, or rising again after the decay."""
    if run.rates is None or not run.total_steps:
        return None
    steps = np.linspace(0, run.total_steps, 401)
    lr = run.rates.at(steps)
    if not lr.max() > 0:
        return None
    share = lr / lr.max()
    last, before = float(share[-1]), float(share[-41])
    top = int((share >= 0.999).argmax())
    lowest = top + int(share[top:].argmin())
    if last - float(share[lowest]) > 0.1 and float(share[lowest]) < 0.5:
        return _advice(
            run,
            f"The learning rate comes down to {share[lowest]:.0%} of its peak at step {steps[lowest]:,.0f} and rises "
            f"again to {last:.0%} before the run ends at step {run.total_steps:,}.",
            "set the schedule's length to the planned steps; if restarts are meant, end the run at the end of one.",
            share,
        )
    if before - last > FLAT and last > DECAYED:
        longer = _length(share)
        if longer < thresholds.schedule_over:
            return None
        return _advice(
            run,
            f"The learning-rate decay is cut off: at the planned end, step {run.total_steps:,}, the rate is still "
            f"{last:.0%} of its peak and falling; the decay is about {longer:.1f} times as long as the run.",
            f"unless it is meant to end there, set the schedule's length to {run.total_steps:,} steps: a decay more "
            "than 25% too long costs loss.",
            share,
        )
    idle = float(steps[share > IDLE][-1])
    if last <= IDLE and idle < 0.9 * run.total_steps:
        return _advice(
            run,
            f"The learning rate is below a thousandth of its peak from step {idle:,.0f} on; the "
            f"{run.total_steps - idle:,.0f} steps after it buy nothing.",
            f"set the schedule's length to {run.total_steps:,} steps, or end the run there.",
            share,
        )
    return None


def _length(share: np.ndarray) -> float:
    """Length of the whole decay over the run's, read as a cosine to a tenth from the peak's end on."""
    top = int(np.flatnonzero(share >= 0.999)[-1])
    done = (len(share) - 1 - top) / (len(share) - 1)
    progress = float(np.arccos(np.clip(2 * (share[-1] - 0.1) / 0.9 - 1, -1, 1))) / np.pi
    return 1 - done + done / max(progress, 1e-3)


def _advice(run: Situation, what: str, do: str, share: np.ndarray) -> Advice:
    numbers = (Quantity("learning rate at the end over its peak", float(share[-1]), "%"),)
    basis = ("the trainer's schedule", "Hoffmann et al. 2022, appendix B")
    return Advice(Reason.SCHEDULE, Severity.WARNING, run.step, what, do, numbers, basis=basis)


@rule("the hardware", anything, after_warmup=True)
def hardware(run: Situation, thresholds: Thresholds) -> Advice | None:
    """The last log steps, each, below a share of the run's best stretch."""
    recent = list(run.speeds)[-SLOW_STEPS:]
    if run.best_speed is None or len(recent) < SLOW_STEPS:
        return None
    if max(recent) >= thresholds.slow * run.best_speed:
        return None
    now = statistics.median(recent)
    saves: tuple[Quantity, ...] = ()
    hours = None if run.total_steps is None else run.hours(run.total_steps - run.step)
    if hours is not None:
        lost = hours * (run.best_speed / now - 1)
        if lost < thresholds.slow_hours:
            return None
        saves = (Quantity("time, if it stays so slow", lost, "hours"),)
    return Advice(
        Reason.HARDWARE,
        Severity.WARNING,
        run.step,
        f"Training runs at {now / run.best_speed:.0%} of the speed that this run has reached: {count(now)} tokens/s "
        f"per device now, {count(run.best_speed)} before.",
        "look at the data loader, a slow or throttled device, another job on the machine, longer sequences or padding.",
        (Quantity("now", now, "tokens/s per device"), Quantity("best", run.best_speed, "tokens/s per device")),
        saves=saves,
        basis=("this run's throughput",),
    )
