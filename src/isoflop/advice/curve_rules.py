"""Rules on a run's own curves: its loss, its speed."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from isoflop.advice.advice import Advice, Quantity, Reason, Severity, count, nats
from isoflop.advice.run_state import (
    Expected,
    Rule,
    Situation,
    Thresholds,
    anything,
    falling_loss,
    pretraining,
    rule,
    scatter,
)
from isoflop.forecast import Normal
from isoflop.laws.papers import published

FEW = 8
"""Log steps below which a run's noise is not known."""
LOST, BACK = 0.25, 1 / 3
"""Of the best loss, and of the way back to the highest one before it: a rise by more of both is critical, and ends a
run under `on_advice="stop"`. Data that is harder, slowly mixed in, raised a loss by 14 to 23%."""
RECOVERS, LEARNS = 0.5, 0.15
"""Of the height of a rise: a loss that still falls and came back by so much is a spike, or learns something new …"""
STILL = 0.05
"""… where the later half of the fall lies so much of what is left below the earlier one."""
OLD = 0.2
"""Of the steps: a rise that began longer ago, and whose later half lies below its earlier one, ends no run any more."""
AS_BEFORE = 1.5
"""A rise lasts no longer than this times the second longest that came back: data that comes in blocks, spikes."""
BLOWN_UP = 100.0
"""Likewise where the loss may rise: no adversary and no moving target raises one so far."""
EXPLODED, FAR, LASTS = 2.0, 10.0, 24
"""Times the first loss: of classes or tokens it is that of a model that knows nothing, and no healthy one comes to so
much but for a few of the first steps; so it lies far above it, or above it for so many steps."""
MAY_RISE = (
    "nothing, if this loss may rise (a reward, an accuracy, an adversary's, of values whose targets grow; "
    "task= says what is trained); else "
)
HELD = 0.5
"""Of a threshold, by which a finding that stands still does: until the loss is half-way back."""
REWARMED = 1.25
"""A factor between the rate now and that of the best loss, beyond which the loss may rise."""
SPIKES = 200
"""Steps after a resume, a twentieth of those done where that is more, in which a loss is held against that before."""
SKIPPED = 64
"""Steps without a change of any weight: a gradient scaler begins with some tens that it skips."""
BEGINNING, EARLY_STEPS, LATE_STEPS = 0.1, 200, 1000
"""Of the run, and steps at least, in which the loss of a model from scratch begins to fall; steps of an endless run."""
UNFALLEN = 0.01
"""Of the first loss: a lesser fall is none."""
AVERAGED = 5
"""Log steps whose mean is a loss without most of its noise."""
LOOKS = 4
"""At the last losses, half a block apart, over which a plateau is held against a curve."""
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
SLOW_STEPS = 5
"""Log steps, each of which must be slow: a single validation or checkpoint in between does not count."""
OTHERS = "the data (order, duplicates, another mix), the precision and the gradient norm"
CHECK = f"the learning rate, {OTHERS}"


@rule("the weights", anything, at_once=True, cause="loss")
def unchanged(run: Situation, thresholds: Thresholds) -> Advice | None:
    """No weight changes: steps that are not made, are all skipped, or are of other parameters."""
    since = run.unchanged_since
    if since is None or run.step - since < SKIPPED:
        return None
    losses = np.array([loss for step, loss in run.losses if step > since])
    half, sd = len(losses) // 2, scatter(losses[-LATELY:])
    if half > 1 and np.median(losses[:half]) - np.median(losses[half:]) > 4 * sd / half**0.5:
        return None  # something learns: these weights are not what is trained, or can't be seen to change
    return Advice(
        Reason.UNCHANGED,
        f"No weight of the model has changed in {run.step - since:,} steps, since step {since:,}: nothing is learnt.",
        "check whether the optimizer is stepped and holds this model's parameters, and whether a gradient scaler or a "
        "check for NaN skips all of its steps.",
        (Quantity("steps without a change", run.step - since),),
        basis=("the weights, compared at log steps",),
    )


@rule("divergence", anything, at_once=True, cause="loss")
def diverging(run: Situation, thresholds: Thresholds) -> Advice | None:
    """NaN, or far above its own best for several log steps.

    Far: by more than `divergence` standard deviations of a logged loss and `divergence_share` of the best; the best is
    the lowest median of five log steps in a row, so that one lucky batch makes no benchmark. It has to last, for a
    share of the steps done, and longer than rises that came back twice before: spikes of some tens of steps come and
    go, whatever the interval between log steps, and so do blocks of harder data. A loss that jumped and falls again may
    have met new data: that is no reason to stop. A rise that was found holds until half of that margin is left. However
    few log steps there are, a loss far above its first one is lost.
    """
    if run.nonfinite >= thresholds.in_a_row:
        last = run.losses[-1][0] if run.losses else 0
        since = f", since step {last:,}" if last else ""
        return Advice(
            Reason.DIVERGING,
            f"The training loss has been NaN or infinite for {run.nonfinite} log steps in a row{since}.",
            f"stop, {_back_to(last)}, and lower the learning rate; look at {OTHERS} too.",
            basis=("this run's loss",),
            stops=True,
            severity=Severity.CRITICAL,
        )
    if run.task.objective == "reinforcement" or falling_loss(run):
        return None
    losses, held = np.array([loss for _, loss in run.losses]), HELD if diverging.name in run.stands else 1.0
    now, first = losses[-thresholds.in_a_row :], run.first or next(iter(run.losses), None)
    early = len(losses) < FEW or run.step < (run.warmup_steps or 0)
    learnt = not early and first is not None and losses.min() < first[1]
    far = first is not None and len(now) == thresholds.in_a_row and 0 < EXPLODED * first[1] < now.min()
    if first and far and not learnt and _exploded(run, first, float(now.min())):
        falls = now.max() < losses.max() / 4
        return _risen_to(run, "rose and falls again" if falls else "diverges", not falls, now, first)
    if early:
        return None
    lowest = float(losses.min())
    if lowest <= 0 or now.min() <= (1 + held * thresholds.divergence_share) * lowest:
        return None  # about zero a loss has no best; and the best is the lowest, or above it
    medians = np.sort(np.lib.stride_tricks.sliding_window_view(losses, 5), axis=1)[:, 2]
    at = int(medians.argmin())
    lately = sum(step > (1 - thresholds.divergence_span) * run.step for step, _ in run.losses)
    best, now = float(medians[at]), losses[-max(thresholds.in_a_row, lately) :]
    known = losses[: at + AVERAGED] if at + AVERAGED >= FEW else losses[: -thresholds.in_a_row]
    sd = max(scatter(known[-LATELY:]), LEAST_NOISE * abs(best))  # a rise scatters by itself
    margin = held * max(thresholds.divergence * sd, thresholds.divergence_share * abs(best))
    if not (now > best + margin).all():
        return None
    steps = np.array([step for step, _ in run.losses])
    begin = len(losses) - int((losses > best + margin)[::-1].argmin() or len(losses))
    rise, half = losses[begin:] - best, (begin + len(losses)) // 2 - begin
    fallen, old = _fallen(rise, sd), run.step - steps[begin] > OLD * run.step
    falls = fallen > 0 or bool(old and np.median(rise[half:]) < (1 - STILL) * np.median(rise[:half]))
    if held == 1 and (
        fallen > RECOVERS or run.step - steps[begin] <= AS_BEFORE * _came_back(steps, losses, medians, margin)
    ):
        return None
    sure = run.task.falls
    fell = losses[: at + 1].max() - best
    if not sure and now.min() <= best + held * BACK * fell:
        return None
    back = (1.0 if run.task.tuned else BACK) * fell if sure else BLOWN_UP * losses[0]
    lost = bool(now.min() > best + max(LOST * best, back)) and fallen <= LEARNS and not (old and falls)
    if not lost and run.rates is not None:
        rate, then = run.rates.at([run.step, run.losses[at][0]])
        if rate > REWARMED * then:
            return None  # a rate that rises again raises the loss
    does = "diverges" if lost else "rose and falls again" if falls else "has risen"
    return _risen_to(run, does, lost, now, (run.losses[at][0], best), sd)


def _exploded(run: Situation, began: tuple[int, float], now: float) -> bool:
    """Whether a loss lies far above the first one, or clearly above it for long."""
    begin, first = began
    guesses = run.task.falls and not run.task.tuned and run.task.objective != "regression"
    limit = first * (EXPLODED if guesses else BLOWN_UP)
    since = next((step for step, loss in reversed(run.losses) if loss <= limit), begin)
    return now > max(limit, FAR * first) or (now > limit and run.step - since >= LASTS)


def _risen_to(
    run: Situation, does: str, lost: bool, now: np.ndarray, at: tuple[int, float], sd: float | None = None
) -> Advice:
    """A rise of the loss from its best, with the step of that."""
    (step, best), unit, loss = at, run.task.unit, float(np.median(now))
    unless = "" if lost else "if the data has changed there, nothing; else " if run.task.falls else MAY_RISE
    severity = Severity.CRITICAL if lost else Severity.WARNING if run.task.falls else Severity.INFO
    return Advice(
        Reason.DIVERGING,
        f"The loss {does}: {nats(loss, unit)}, after {nats(best)} around step {step:,}"
        f"{'' if sd is None else f'; a logged loss scatters by {sd:.2g}'}.",
        f"{unless}stop, {_back_to(0 if sd is None else step)}, and lower the learning rate or skip the data; look at "
        f"{OTHERS} too.",
        (
            Quantity("loss", loss, unit),
            Quantity("best", best, unit),
            *(() if sd is None else (Quantity("scatter", sd, unit),)),
        ),
        basis=("this run's loss",),
        stops=lost,
        severity=severity,
    )


def _back_to(step: int) -> str:
    """Where training is to go on after a loss that was last good at `step`; 0: it never was."""
    return f"go back to a checkpoint of step {step:,} or before" if step else "begin again"


def _fallen(rise: np.ndarray, sd: float) -> float:
    """Of the height that a rise has come to: the share that is gone again; 0 where it falls no more."""
    since = rise[int(rise.argmax()) :]
    half = (len(since) + 1) // 2
    if len(since) < 2 or np.median(since[:half]) - np.median(since[half:]) < max(STILL * since[-1], 2 * sd):
        return 0.0
    return float(1 - since[-1] / since[0])


def _came_back(steps: np.ndarray, losses: np.ndarray, medians: np.ndarray, margin: float) -> float:
    """Steps of the second longest time that the loss stayed so far above its best until then, and came back."""
    above = losses[5:] > np.minimum.accumulate(medians)[:-1] + margin
    edges = steps[5:][np.flatnonzero(np.diff(above, prepend=False))]  # begins and ends, in turn
    spans = np.sort(edges[1::2] - edges[: len(edges) // 2 * 2 : 2])
    return float(spans[-2]) if len(spans) > 1 else 0.0


@rule("the resume", falling_loss, at_once=True, cause="loss")
def resumed(run: Situation, thresholds: Thresholds) -> Advice | None:
    """The loss after a resume lies where it did not before: something of the run was not restored."""
    since = run.resumed_at
    if since is None or run.step > since + max(SPIKES, thresholds.divergence_span * 5 * since):
        return None
    known, new = ([loss for step, loss in run.losses if (step > since) is after] for after in (False, True))
    if len(known) < FEW or len(new) < 2 or min(known) <= 0:
        return None
    sd, before, now = scatter(np.array(known[-LATELY:])), statistics.median(known[-AVERAGED:]), min(new)
    if now <= before + max(thresholds.divergence * sd, thresholds.divergence_share * before):
        return None
    return Advice(
        Reason.RESUMED,
        f"The loss jumped at the resume of step {since:,}: {nats(before, run.task.unit)} before, {nats(now)} or more "
        "since.",
        "unless the data has changed there, check whether the weights, the optimizer's state, the step of the "
        "learning-rate schedule, and the place in the data were restored.",
        (
            Quantity("loss before", before, run.task.unit),
            Quantity("lowest since", now, run.task.unit),
            Quantity("scatter", sd, run.task.unit),
        ),
        basis=("this run's loss",),
    )


@rule("the curve", falling_loss, after_warmup=True, at_once=True, cause="loss")
def off_curve(run: Situation, thresholds: Thresholds) -> Advice | None:
    """Twice in a row above what this run's curve, or the ladder of the user's earlier sizes, lets expect."""
    found = _left(run, off_curve, thresholds, run.by_ladder)
    if found is None:
        return None
    basis, since = _curve_to(found), f"a checkpoint of step {found.made_at:,}"
    if not found.made_at:
        basis, since = "your earlier sizes (history=)", "them"
    do = f"look at {CHECK}; compare with {since}."
    return _away(run, found, Reason.OFF_CURVE, "The loss has left its curve", do, basis)


@rule("the curve, from above", pretraining, after_warmup=True, at_once=True, cause="loss")
def below_curve(run: Situation, thresholds: Thresholds) -> Advice | None:
    """Twice in a row far below what this run's curve lets expect.

    Not where an evaluation set has come half as far since: the model has learnt something.
    """
    found = _left(run, below_curve, thresholds, sign=-1)
    if found is None:
        return None
    for points in run.evaluations.values():
        before = [each.loss for each in points if each.step <= found.made_at]
        if before and before[-1] - points[-1].loss > -_missed(found)[1] / 2:
            return None
    do = (
        f"check whether the same batches come again since about step {found.made_at:,} (a data loader that is stuck or "
        "starts over), or the targets can be read from the inputs; nothing, if the data has changed there."
    )
    what = "The loss fell below what its curve can explain"
    return _away(run, found, Reason.BELOW_CURVE, what, do, _curve_to(found))


def _left(
    run: Situation, rule: Rule, thresholds: Thresholds, ladder: Expected | None = None, sign: int = 1
) -> Expected | None:
    """The curve that the loss has left most surely, to above it or (−1) below.

    One that was left is joined again half-way to it; standard deviations say little then, for they grow with time.
    """
    held, own = HELD if rule.name in run.stands else 1.0, () if run.rate_stepped else run.expected
    deviations, share = thresholds.off_curve if held == 1 else 1.0, (1.5 - sign / 2) * thresholds.off_curve_share
    found = None
    for each in own if ladder is None else (ladder, *own):
        (earlier, miss), came = _missed(each), each.came
        far = min(sign * earlier - held * share * came[0], sign * miss - held * share * came[1]) > 0
        if far and (deviation := _deviation(each, sign)) > deviations:
            found, deviations = each, deviation
    return found


def _missed(each: Expected) -> tuple[float, float]:
    """How far the two blocks lie above what was expected."""
    return each.came[0] - each.loss[0], each.came[1] - each.loss[1]


def _deviation(each: Expected, sign: int = 1) -> float:
    """By how many standard deviations both blocks lie above, or below, what was expected."""
    first, last = (max(math.hypot(each.sd, sd), 1e-12) for sd in each.noise)
    earlier, miss = _missed(each)
    return min(sign * earlier / first, sign * miss / last)


def _curve_to(each: Expected) -> str:
    return f"this run's curve up to step {each.made_at:,}"


def _away(run: Situation, each: Expected, reason: Reason, what: str, do: str, basis: str) -> Advice:
    unit, far = run.task.unit, max(_deviation(each), _deviation(each, -1))
    expected = Normal(each.loss[1], math.hypot(each.sd, each.noise[1]))
    return Advice(
        reason,
        f"{what}: {nats(each.came[1], unit)}, where {nats(each.loss[1])} was expected, {far:.0f} standard deviations "
        "off.",
        do,
        (Quantity("loss", each.came[1], unit), _within("expected", expected, unit)),
        basis=(basis,),
        level=0.95,
    )


@rule("the plateau", falling_loss, after_warmup=True, at_once=True, cause="loss")
def plateau(run: Situation, thresholds: Thresholds) -> Advice | None:
    """The loss stays where an earlier fit left it, though the fit lets a fall be expected; and no fit saw it rise.

    The surer, the fewer looks in a row: a healthy curve comes back after some.
    """
    now, worst = (0.0, None) if run.rate_stepped else _flattest(run.expected, thresholds)
    held = HELD if plateau.name in run.stands else 1.0
    if worst is None or now <= held * thresholds.plateau_looks[-1][1]:
        return None
    flat = [_flattest(look, thresholds)[0] for look in run.looks[:-1]] + [now]
    if not any(len(flat) >= n and min(flat[-n:]) > held * least for n, least in thresholds.plateau_looks):
        return None
    fell, fall = Normal(worst.then - worst.came[1], worst.noise[1]), Normal(worst.then - worst.loss[1], worst.sd)
    return _stopped(run, fell, fall, f"since step {worst.made_at:,}", _curve_to(worst))


def _flattest(expected: Sequence[Expected], thresholds: Thresholds) -> tuple[float, Expected | None]:
    """The fit that is missed most surely by a loss that stays; none where one saw it rise."""
    if any(_risen(each) for each in expected):
        return 0.0, None
    return max(((_flat(each, thresholds), each) for each in expected), key=lambda pair: pair[0], default=(0.0, None))


def _risen(each: Expected) -> bool:
    """Above the level at which the fit was made: a spike, or a rise; the other rules are of these."""
    least = LEAST_NOISE / 2 * abs(each.came[1])
    return any(
        came - loss > 1.2 * max(each.then - loss, 0.0) + 3 * noise + least
        for came, loss, noise in zip(each.came, each.loss, each.noise, strict=True)
    )


def _flat(each: Expected, thresholds: Thresholds) -> float:
    """Standard deviations by which the loss lies above the curve, where it fell by less than a share of the fall."""
    missed = _missed(each)
    for miss, loss in zip(missed, each.loss, strict=True):
        if not each.then > loss or miss < (1 - thresholds.plateau) * (each.then - loss):
            return 0.0
    return sum(missed) / 2 / max(math.hypot(each.sd, math.hypot(*each.noise) / 2), 1e-12)


@rule("learning at all", falling_loss, after_warmup=True, cause="loss")
def stuck(run: Situation, thresholds: Thresholds) -> Advice | None:
    """Over the last doubling of steps the loss fell by almost nothing, while the model is short of data.

    By Hoffmann's law: B/D^β·(2^β − 1), at most a twentieth of the loss. No curve needs to be fitted for it.
    """
    fell, fall = _doubling(run) or (Normal(0.0, 0.0), 0.0)
    if not fall or fell.mean + 2 * fell.sd > thresholds.stuck * fall:
        return None
    if fell.mean < -thresholds.divergence_share * (run.loss or 0.0):
        return None  # a rise is another matter
    return _stopped(run, fell, Normal(fall, fall / 4), "over the last doubling of steps", f"B and β of {LAW}")


@rule("the beginning", falling_loss, after_warmup=True, cause="loss")
def unfallen(run: Situation, thresholds: Thresholds) -> Advice | None:
    """A tenth of the run, and the loss of a model from scratch is what it was at its first log step."""
    least = LATE_STEPS if run.total_steps is None else max(EARLY_STEPS, BEGINNING * run.total_steps)
    if len(run.losses) < 2 * FEW or run.step < least or run.task.tuned:
        return None
    (at, first), losses, most = (
        run.losses[0],
        np.array([loss for _, loss in run.losses]),
        1 + thresholds.divergence_share,
    )
    if run.first is not None and first > EXPLODED * run.first[1]:  # it rose in the first interval, and came back
        (at, first), most = run.first, EXPLODED
    if at > BEGINNING * run.step or losses.min() <= 0:
        return None  # the run began before, or its loss has no level
    noise = 2 * scatter(losses[-LATELY:])
    lowest = float(np.median(np.lib.stride_tricks.sliding_window_view(losses, AVERAGED), axis=1).min())
    now = float(np.median(losses[-AVERAGED:]))
    if first - lowest + noise > UNFALLEN * first or now > most * first:
        return None
    return Advice(
        Reason.UNFALLEN,
        f"The loss has not fallen since the run began: {nats(first, run.task.unit)} at step {at:,}, {nats(now)} now.",
        f"{'' if run.task.falls else MAY_RISE}check whether the optimizer holds the parameters of this model, at the "
        "labels, the learning rate, and for layers whose outputs are all the same. Some tasks begin to fall late.",
        (
            Quantity("first loss", first, run.task.unit),
            Quantity("now", now, run.task.unit),
            Quantity("two standard deviations of a logged loss", noise, run.task.unit),
        ),
        basis=("this run's loss",),
        severity=Severity.WARNING if run.task.falls else Severity.INFO,
    )


def falls_on(run: Situation) -> bool:
    """Whether the loss falls: surely by some of what was to be expected, or beside curves that it was held against."""
    fell, fall = _doubling(run) or (Normal(0.0, 0.0), 0.0)
    if not fall:
        return any(run.looks)
    return fell.mean - 2 * fell.sd > Thresholds.stuck * fall


def _up_to(losses: Sequence[tuple[int, float]], step: float) -> list[float]:
    """The losses of the last twentieth of the steps up to `step`, `AVERAGED` of them at least."""
    end = bisect_right(losses, step, key=itemgetter(0))
    begin = bisect_right(losses, 0.95 * step, key=itemgetter(0))
    return [loss for _, loss in losses[max(min(begin, end - AVERAGED), 0) : end]]


def _stopped(run: Situation, fell: Normal, expected: Normal, since: str, basis: str) -> Advice:
    return Advice(
        Reason.PLATEAU,
        f"The loss has stopped falling: it {'fell' if fell.mean >= 0 else 'rose'} by "
        f"{nats(abs(fell.mean), run.task.unit)} {since}, where a fall of {nats(expected.mean)} was to be expected.",
        f"a model that learns falls on: look at {CHECK}; if the loss is as low as this data allows, stop.",
        (_within("fall", fell, run.task.unit), _within("expected", expected, run.task.unit)),
        basis=(basis,),
        level=0.95,
    )


def _doubling(run: Situation) -> tuple[Normal, float] | None:
    """By how much the loss fell over the last doubling of steps, and what a law expects of a model short of data.

    Nats per token. None: it has seen more tokens than are optimal, too few losses came, or they are no cross-entropy.
    """
    if run.task.unlike_pretraining or run.N is None or not run.tokens or run.loss is None or run.tokens > FULL * run.N:
        return None
    parts = [_up_to(run.losses, run.step / 2), _up_to(run.losses, run.step)]
    n = min(map(len, parts))
    if n < AVERAGED or min(map(min, parts)) <= 0 or not 0 < run.loss < MOST_NATS:  # no law is of such losses
        return None
    law = published(LAW).law
    assert law is not None
    B, beta = law.constants["B"], law.constants["beta"]
    fall = B * run.tokens**-beta * (2**beta - 1)
    sd = scatter(np.array([loss for _, loss in run.losses[-LATELY:]])) * (math.pi / n) ** 0.5  # of two medians
    fell = statistics.median(parts[0]) - statistics.median(parts[1])  # a spike is none of it
    return Normal(fell, sd), float(min(fall, MOST_FALL * run.loss))


def _within(name: str, estimate: Normal, unit: str) -> Quantity:
    mean, sd = estimate
    return Quantity(name, mean, unit, mean - 2 * sd, mean + 2 * sd)


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
        saves = (Quantity("time lost at this speed", lost, "hours"),)
    return Advice(
        Reason.HARDWARE,
        f"Training runs at {now / run.best_speed:.0%} of the speed that this run has reached: {count(now)} tokens/s "
        f"per device now, {count(run.best_speed)} before. Goodput does not show it: the steps themselves take longer.",
        "look at the data loader, a slow or throttled device, another job on the machine, longer sequences or padding.",
        (Quantity("now", now, "tokens/s per device"), Quantity("best", run.best_speed, "tokens/s per device")),
        saves=saves,
        basis=("this run's throughput",),
    )
