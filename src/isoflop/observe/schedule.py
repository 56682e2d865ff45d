"""The learning rates that a run's scheduler will set up to its end, asked without touching scheduler or optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.fit.forecast.schedule import LrPlan
from isoflop.observe.ranks import world_size
from isoflop.observe.schedule_formulas import (
    Array,
    Unknown,
    epoch_of,
    known_class,
    number,
    scheduled_rates,
    why_unknown,
)

Calls = Callable[[Array], Array]
"""Optimizer steps done (whole numbers) → steps that the scheduler has made by then."""

FEWEST_KNOTS = 256
MOST_KNOTS = 4_096
TOLERANCE = 1e-3
"""Of the peak: how far the line between two knots may lie from the rate in between."""


@dataclass(frozen=True)
class UnknownFuture:
    """No future can be told; `reason` is a half-sentence for the user."""

    reason: str


def future_learning_rates(
    scheduler: Any,
    total_steps: int,
    *,
    step: int = 0,
    optimizer: Any = None,
    calls: Calls | None = None,
    since: int | None = None,
) -> LrPlan | UnknownFuture:
    """Ask a scheduler for the learning rates of the optimizer steps `step + 1` to `total_steps`.

    Neither scheduler nor optimizer is stepped or written to; the functions of a `LambdaLR` are called, a few thousand
    times at most. Exact at the knots; between them within 0.1% of the peak.

    Args:
        scheduler: of torch (`LambdaLR` with any function, so all of Hugging Face's; the other classes of
            `torch.optim.lr_scheduler`), Accelerate's wrapper around one, a function of the optimizer step → rate,
            or None: the rate stays what it is.
        total_steps: planned optimizer steps.
        step: optimizer steps done.
        optimizer: whose first parameter group's rate it is; needed where there is no scheduler.
        calls: where the scheduler is not stepped once an optimizer step (`by_epoch`).
        since: begin after this step instead of now: with the rates of the past, if the scheduler was the same then.

    Returns:
        The plan, whose first knot is the step after now (or `since`); step k's rate is what the k-th optimizer step
        uses. Or why it is unknown.
    """
    if total_steps <= step:
        return UnknownFuture(f"no step is left of the planned {total_steps:,}")
    scheduler = getattr(scheduler, "scheduler", None) or scheduler  # Accelerate's wrapper
    try:
        if scheduler is None:
            rate, source = _constant(optimizer), "no scheduler: the rate stays as it is"
        elif not hasattr(scheduler, "step") and callable(scheduler):
            rate, source = _function(scheduler), "the function given"
        else:
            rate, source = _asked(scheduler, step, optimizer, calls), _name(scheduler)
        with np.errstate(all="ignore"):  # what is not finite is seen below
            steps, lr = _knots(rate, (step if since is None else since) + 1, total_steps)
    except Unknown as reason:
        return UnknownFuture(str(reason))
    except Exception as error:  # a user's function
        return UnknownFuture(f"asking {_name(scheduler)} failed ({type(error).__name__}: {error})")
    if not np.isfinite(lr).all() or (lr < 0).any():
        return UnknownFuture(f"{source} gives a rate that is negative or not finite")
    if len(steps) < 2 or not lr.max() > 0:
        return UnknownFuture(f"{source} gives no rates above 0 for two steps or more")
    return LrPlan(steps, lr)


def by_epoch(steps_per_epoch: int, every: int = 1) -> Calls:
    """A scheduler that is stepped at the end of every `every`-th epoch."""
    return lambda done: done // steps_per_epoch // every


def by_batch(batches_per_epoch: float, accumulate: int, every: int) -> Calls:
    """Lightning's `interval="step"` with a `frequency`: after an optimizer step whose batch index it divides.

    Args:
        batches_per_epoch: micro-batches; may be inf.
        accumulate: micro-batches an optimizer step; the last window of an epoch may be shorter.
        every: the frequency, in batches of the epoch.
    """
    if every == 1:
        return lambda done: done
    common = np.lcm(accumulate, every)  # in batches
    if np.isinf(batches_per_epoch):
        return lambda done: done * accumulate // common
    batches = int(batches_per_epoch)
    steps = -(-batches // accumulate)
    full = batches // common + int(batches % accumulate != 0 and batches % every == 0)

    def calls(done: Array) -> Array:
        epochs, rest = np.divmod(done, steps)
        return epochs * full + rest * accumulate // common

    return calls


# -- who answers ---------------------------------------------------------------------------------------------------


def _constant(optimizer: Any) -> Calls:
    groups = getattr(optimizer, "param_groups", None)
    if not groups:
        raise Unknown("neither a scheduler nor an optimizer is known")
    if "initial_lr" in groups[0]:  # every scheduler of torch leaves it there
        raise Unknown("the optimizer has a scheduler that isoflop was not told of")
    now = number(groups[0]["lr"])
    return lambda steps: np.full(len(steps), now)


def _function(rate: Callable[[int], float]) -> Calls:
    return lambda steps: np.array([number(rate(int(step))) for step in steps])


def _asked(scheduler: Any, step: int, optimizer: Any, calls: Calls | None) -> Calls:
    if known_class(scheduler) is None:
        raise Unknown(why_unknown(scheduler))
    now = epoch_of(scheduler)
    if now is None:
        raise Unknown(f"the parts of {_name(scheduler)} are not at the same step")
    calls = calls or _calls_seen(scheduler, now, step)
    groups = getattr(optimizer, "param_groups", None) or scheduler.optimizer.param_groups
    found, planned = number(groups[0]["lr"]), float(scheduled_rates(scheduler, np.array([float(now)]))[0])
    if abs(found - planned) > 1e-3 * max(abs(found), abs(planned)):
        raise Unknown(
            f"the optimizer's learning rate is {found:.4g} where {_name(scheduler)} would set {planned:.4g}: "
            "something else sets it"
        )
    done = float(calls(np.array([step]))[0])
    # the k-th optimizer step uses what the scheduler set after k − 1 of them
    return lambda steps: _at(scheduler, np.maximum(0.0, now + calls(steps - 1) - done))


def _at(scheduler: Any, epochs: Array) -> Array:
    different, where = np.unique(epochs, return_inverse=True)
    return scheduled_rates(scheduler, different)[where]


def _calls_seen(scheduler: Any, now: int, step: int) -> Calls:
    """Where nobody says how often the scheduler is stepped: by how often it has been."""
    for factor in (1, world_size()):  # Accelerate steps it once a process
        if abs(now - factor * step) <= max(2, factor * step // 50):
            return lambda done: factor * done
    raise Unknown(
        f"{_name(scheduler)} has been stepped {now:,} times in {step:,} optimizer steps, so when it will be is unknown"
    )


def _name(scheduler: Any) -> str:
    return getattr(scheduler, "__name__", None) or type(scheduler).__name__


# -- knots ---------------------------------------------------------------------------------------------------------


def _knots(rate: Calls, first: int, last: int) -> tuple[Array, Array]:
    """Steps between which the rate is a straight line, to within the tolerance: halves what is not."""
    if last - first < 2 * FEWEST_KNOTS:
        steps = np.arange(first, last + 1, dtype=float)
        return steps, rate(steps)
    uniform = np.linspace(first, last, FEWEST_KNOTS)
    close = first + np.geomspace(1, last - first, FEWEST_KNOTS)  # a warm-up is short
    steps = np.unique(np.rint(np.concatenate([uniform, close])))
    lr = rate(steps)
    open_ = np.diff(steps) > 1  # intervals still to be looked into
    while open_.any():
        left = np.flatnonzero(open_)
        begin, width = steps[left], np.diff(steps)[left]
        inner = np.unique(np.concatenate([np.floor(begin + width * part) for part in (0.25, 0.5, 0.75)]))
        inner = inner[~np.isin(inner, steps)]
        found = rate(inner)
        wrong = np.abs(found - np.interp(inner, steps, lr)) > TOLERANCE * max(lr.max(), found.max(initial=0.0))
        bad = np.unique(np.searchsorted(steps, inner[wrong]) - 1)
        keep = np.isin(np.searchsorted(steps, inner) - 1, bad)
        steps, order = np.unique(np.concatenate([steps, inner[keep]]), return_index=True)
        lr = np.concatenate([lr, found[keep]])[order]
        if len(steps) > MOST_KNOTS:
            raise Unknown("the learning rate changes too often to be followed")
        open_ = np.isin(steps[:-1], inner[keep]) | np.isin(steps[1:], inner[keep])
        open_ &= np.diff(steps) > 1
    return steps, lr
