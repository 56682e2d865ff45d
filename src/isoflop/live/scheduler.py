"""The learning rates that a scheduler will set up to the run's end: torch's own formulas, on a copy.

The live scheduler and optimizer are read, never stepped or written to. The first parameter group's rate stands for the
run's. `epoch` is a scheduler's own count of steps (`last_epoch`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.optim import lr_scheduler as torch_schedulers

from isoflop.arrays import Array
from isoflop.flops.totals import world_size
from isoflop.forecast import LrPlan
from isoflop.guard import pass_on

Calls = Callable[[Array], Array]
"""Optimizer steps done (whole numbers) → steps that the scheduler has made by then."""

STAYS = 1e-4
"""Of the peak: a rate that has come down by more since its warm-up is planned by somebody."""
FEWEST_KNOTS = 256
MOST_KNOTS = 4_096
TOLERANCE = 1e-3
"""Of the peak: how far the line between two knots may lie from the rate in between."""
OFF_PLAN = 0.02
"""Of the peak: how far a learning rate may lie from its plan."""
MOST_CALLS = 20_000
"""Steps that a copy takes, at most, where there is no closed form: some tenths of a second, once a run."""


class Unknown(ValueError):
    """The scheduler's future can't be told; the text says why."""


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

    The functions of a `LambdaLR` are called, a few thousand times at most. Exact at the knots; between them within
    0.1% of the peak.

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
        pass_on(error)
        return UnknownFuture(f"asking {_name(scheduler)} failed ({type(error).__name__}: {error})")
    if not np.isfinite(lr).all() or (lr < 0).any():
        return UnknownFuture(f"{source} gives a rate that is negative or not finite")
    if len(steps) < 2 or not lr.max() > 0:
        return UnknownFuture(f"{source} gives no rates above 0 for two steps or more")
    return LrPlan(steps, lr)


def named_learning_rates(text: str, total_steps: int, seen: tuple[Array, Array]) -> LrPlan | UnknownFuture:
    """The plan that `lr_plan=` names, its peak by the rates seen."""
    try:
        return LrPlan.named(text, total_steps).scaled_to(*seen)
    except ValueError as error:
        return UnknownFuture(f"lr_plan={text!r} does not fit into the run: {str(error).rstrip('.')}")


def constant_so_far(plan: LrPlan, steps: Array, lr: Array) -> LrPlan | UnknownFuture:
    """A rate that nobody plans: assumed to stay as long as it has not moved since its warm-up, else unknown."""
    if len(steps) == 0:
        return replace(plan, assumed=True)
    peak, now = float(lr.max()), float(lr[-1])
    after = lr[int(np.argmax(lr >= (1 - STAYS) * peak)) :]
    if peak > 0 and float(after.min()) < (1 - STAYS) * peak:
        return UnknownFuture(f"it went from {peak:.3g} to {now:.3g}, and no scheduler was passed to isoflop")
    return replace(plan.spliced(steps, lr), assumed=True)


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
        several = "no scheduler is known, and there are several optimizers"
        raise Unknown(
            several if isinstance(optimizer, list | tuple) else "neither a scheduler nor an optimizer is known"
        )
    if groups[0].get("lr") is None:
        raise Unknown("the optimizer sets its rate itself")
    if "initial_lr" in groups[0]:  # every scheduler of torch leaves it there
        raise Unknown("the optimizer has a scheduler that was not passed to isoflop")
    now = number(groups[0]["lr"])
    return lambda steps: np.full(len(steps), now)


def _function(rate: Callable[[int], float]) -> Calls:
    return lambda steps: np.array([number(rate(int(step))) for step in steps])


def _asked(scheduler: Any, step: int, optimizer: Any, calls: Calls | None) -> Calls:
    name, rates = _name(scheduler), _rates(scheduler)
    now = _epoch_of(scheduler)
    calls = calls or _calls_seen(name, now, step)
    groups = getattr(optimizer, "param_groups", None) or scheduler.optimizer.param_groups
    found, planned = number(groups[0]["lr"]), float(rates(np.array([float(now)]))[0])
    if abs(found - planned) > 1e-3 * max(abs(found), abs(planned)):
        raise Unknown(
            f"the optimizer's learning rate is {found:.4g} where {name} would set {planned:.4g}: something else sets it"
        )
    done = float(calls(np.array([step]))[0])

    def rate(steps: Array) -> Array:
        # the k-th optimizer step uses what the scheduler set after k − 1 of them
        epochs, where = np.unique(np.maximum(0.0, now + calls(steps - 1) - done), return_inverse=True)
        return rates(epochs)[where]

    return rate


def _calls_seen(name: str, now: int, step: int) -> Calls:
    """Where nobody says how often the scheduler is stepped: by how often it has been."""
    for factor in (1, world_size()):  # Accelerate steps it once a process
        if abs(now - factor * step) <= max(2, factor * step // 50):
            return lambda done: factor * done
    raise Unknown(f"{name} has been stepped {now:,} times in {step:,} optimizer steps, so when it will be is unknown")


def _name(scheduler: Any) -> str:
    return getattr(scheduler, "__name__", None) or type(scheduler).__name__


def _epoch_of(scheduler: Any) -> int:
    return int(scheduler.last_epoch) if hasattr(scheduler, "last_epoch") else _epoch_of(scheduler._schedulers[0])


def number(value: Any) -> float:
    """A rate as a float; optimizers that are captured in a graph hold a tensor."""
    return float(value.item()) if isinstance(value, torch.Tensor) else float(value)


# -- torch's formulas, on a copy -----------------------------------------------------------------------------------

_OF_THE_EPOCH = (torch_schedulers.LambdaLR, torch_schedulers.CyclicLR, torch_schedulers.OneCycleLR)
"""Whose `get_lr` looks at no rate that was set before."""


def _rates(scheduler: Any) -> Calls:
    """What gives the rates at some of a scheduler's own steps, which rise; both may raise `Unknown`."""
    _check(scheduler)
    if isinstance(scheduler, torch_schedulers.SequentialLR):
        return _in_sequence(scheduler)
    twin = copy.copy(scheduler)
    twin.optimizer, twin._get_lr_called_within_step = _alone(scheduler.optimizer), True
    formula: Callable[[], Any]
    if isinstance(twin, torch_schedulers.CosineAnnealingWarmRestarts):
        formula = partial(_restarting, twin)
    elif hasattr(twin, "_get_closed_form_lr") and getattr(twin, "total_iters", None) != 0:  # with 0, it divides by them
        formula = twin._get_closed_form_lr
    elif isinstance(twin, _OF_THE_EPOCH):
        formula = twin.get_lr
    else:
        return _chained(scheduler) if hasattr(twin, "_schedulers") else _stepped(scheduler)

    def rates(epochs: Array) -> Array:
        if isinstance(twin, torch_schedulers.OneCycleLR) and epochs[-1] > twin.total_steps:
            raise Unknown(f"OneCycleLR was planned for {twin.total_steps:,} steps and would raise after these")
        found = np.empty_like(epochs)
        for index, twin.last_epoch in enumerate(epochs.astype(int).tolist()):
            found[index] = number(formula()[0])
        return found

    return rates


def _check(scheduler: Any) -> None:
    """Torch's classes are known, and subclasses that leave `get_lr` and `step` alone."""
    name, known = type(scheduler).__name__, (kind for kind in type(scheduler).__mro__ if kind in _KNOWN)
    if "plateau" in name.lower() or name == "GreedyLR":
        raise Unknown(f"{name} sets the learning rate by losses still to come")
    kind = next(known, None)
    if kind is None or any(getattr(type(scheduler), n) is not getattr(kind, n) for n in ("get_lr", "step")):
        raise Unknown(f"{name} is no scheduler of torch, so its future rates can't be read without stepping it")


_KNOWN = {kind for kind in vars(torch_schedulers).values() if isinstance(kind, type)} - {
    object,
    torch_schedulers.LRScheduler,
    torch_schedulers.ReduceLROnPlateau,
}


def _restarting(twin: Any) -> Any:
    twin.step(twin.last_epoch)
    return twin.get_last_lr()


def _in_sequence(scheduler: Any) -> Calls:
    # at a milestone the next one starts from its own step 0, in closed form
    parts, begins = scheduler._schedulers, np.array([0, *scheduler._milestones], dtype=float)
    if any(isinstance(part, torch_schedulers.MultiplicativeLR) for part in parts[1:]):
        raise Unknown("MultiplicativeLR inside SequentialLR goes on from a rate that is not its own")
    rates = [_rates(part) for part in parts]

    def of_its_part(epochs: Array) -> Array:
        found, which = np.empty_like(epochs), np.searchsorted(begins, epochs, side="right") - 1
        for index in np.unique(which):
            found[which == index] = rates[index](epochs[which == index] - begins[index])
        return found

    return of_its_part


def _chained(scheduler: Any) -> Calls:
    """The parts' product, as long as each only multiplies the rate it finds by what does not depend on that rate."""
    parts = scheduler._schedulers
    for part in parts:
        _check(part)

    def rates(epochs: Array) -> Array:
        if not all(_is_factor(part, epochs[-1]) for part in parts):
            return step_by_step(epochs)
        product = np.prod([_rates(part)(epochs) / number(part.base_lrs[0]) for part in parts], axis=0)
        return np.asarray(number(parts[0].base_lrs[0]) * product)

    step_by_step = _stepped(scheduler)
    return rates


def _is_factor(scheduler: Any, ahead: float) -> bool:
    if isinstance(scheduler, torch_schedulers.CosineAnnealingLR) and (scheduler.eta_min or ahead > scheduler.T_max):
        return False
    return hasattr(scheduler, "_get_closed_form_lr") and number(scheduler.base_lrs[0]) != 0


def _stepped(scheduler: Any) -> Calls:
    """A deep copy, on an optimizer without parameters, stepped from where the original is."""
    parts = getattr(scheduler, "_schedulers", None)
    has = f"{_name(scheduler)} has" if parts is None else f"{', '.join(map(_name, parts))}, chained, have"
    alone, now = _alone(scheduler.optimizer), _epoch_of(scheduler)
    try:
        twin = copy.deepcopy(scheduler, {id(scheduler.optimizer): alone})
    except Exception as error:  # whatever the user's function objects hold
        pass_on(error)
        raise Unknown(f"{has} no closed form and can't be copied ({type(error).__name__}: {error})") from error
    seen = [number(alone.param_groups[0]["lr"])]

    def rates(epochs: Array) -> Array:
        ahead = (epochs - now).astype(int)
        if ahead[-1] > MOST_CALLS:
            raise Unknown(f"{has} no closed form, and {ahead[-1]:,} steps are too many to try out")
        if ahead[0] < 0:
            raise Unknown(f"{has} no closed form, so the rates before step {now:,} are unknown")
        while len(seen) <= ahead[-1]:
            twin.step()
            seen.append(number(alone.param_groups[0]["lr"]))
        return np.array(seen)[ahead]

    return rates


def _alone(optimizer: Any) -> Any:
    """A stand-in for an optimizer without its parameters; `step` is marked as schedulers want it."""
    groups = [{**group, "params": []} for group in optimizer.param_groups]
    for group in groups:
        for name, value in group.items():
            group[name] = value.detach().clone() if isinstance(value, torch.Tensor) else value
    step = SimpleNamespace(_wrapped_by_lr_sched=True)
    return SimpleNamespace(param_groups=groups, defaults=dict(optimizer.defaults), step=step, _opt_called=True)


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
