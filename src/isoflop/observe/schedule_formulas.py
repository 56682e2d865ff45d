"""What a learning-rate scheduler of torch will do, in closed form: rates at any of its own steps, none of them taken.

The first parameter group's rate stands for the run's. `epoch` is a scheduler's own count of steps (`last_epoch`).
Only the classes named here are known, and subclasses that leave their `get_lr` and `step` alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import lr_scheduler as torch_schedulers

Array = NDArray[np.float64]
Formula = Callable[[Any, Array], Array]

MOST_CALLS = 20_000
"""Steps that are taken one by one, at most, where a scheduler has no closed form: a tenth of a second, once a run."""


class Unknown(ValueError):
    """The scheduler's future can't be told; the text says why."""


def scheduled_rates(scheduler: Any, epochs: Array) -> Array:
    """The learning rate that a scheduler sets at some of its own steps.

    Args:
        scheduler: of torch, or a subclass that changes no rate. It is read, never stepped or written to; functions
            given to `LambdaLR` and `MultiplicativeLR` are called.
        epochs: values of its `last_epoch`, rising, whole numbers ≥ 0.

    Raises:
        Unknown: no formula for this class.
    """
    kind = known_class(scheduler)
    if kind is None:
        raise Unknown(why_unknown(scheduler))
    return np.asarray(_FORMULAS[kind](scheduler, np.asarray(epochs, dtype=float)), dtype=float)


def known_class(scheduler: Any) -> type | None:
    """The class whose formula holds for a scheduler, or None."""
    for kind in type(scheduler).__mro__:
        if kind in _FORMULAS:
            same = all(getattr(type(scheduler), name) is getattr(kind, name) for name in ("get_lr", "step"))
            return kind if same else None
    return None


def why_unknown(scheduler: Any) -> str:
    """Why there is no formula for a scheduler."""
    name = type(scheduler).__name__
    if "plateau" in name.lower() or name == "GreedyLR":
        return f"{name} sets the learning rate by losses still to come"
    return f"{name} is no scheduler of torch, so what it will do can't be told without stepping it"


def number(value: Any) -> float:
    """A rate as a float; optimizers that are captured in a graph hold a tensor."""
    return float(value.item()) if isinstance(value, torch.Tensor) else float(value)


# -- one formula a class, from torch/optim/lr_scheduler.py ---------------------------------------------------------


def _base(scheduler: Any) -> float:
    return number(scheduler.base_lrs[0])


def _lambda(s: Any, e: Array) -> Array:
    return _base(s) * np.array([number(s.lr_lambdas[0](int(epoch))) for epoch in e])


def _multiplicative(s: Any, e: Array) -> Array:
    last = int(e[-1]) if len(e) else 0
    if last > 10 * MOST_CALLS:
        raise Unknown(f"MultiplicativeLR has to be asked step by step, and {last:,} steps are too many")
    factors = np.array([1.0, *(number(s.lr_lambdas[0](epoch)) for epoch in range(1, last + 1))])
    return _base(s) * np.cumprod(factors)[e.astype(int)]


def _step(s: Any, e: Array) -> Array:
    return _base(s) * s.gamma ** (e // s.step_size)


def _multi_step(s: Any, e: Array) -> Array:
    return _base(s) * s.gamma ** np.searchsorted(sorted(s.milestones.elements()), e, side="right")


def _constant(s: Any, e: Array) -> Array:
    return _base(s) * np.where(e >= s.total_iters, 1.0, s.factor)


def _linear(s: Any, e: Array) -> Array:
    done = np.minimum(e, s.total_iters) / max(s.total_iters, 1)
    return _base(s) * (s.start_factor + (s.end_factor - s.start_factor) * done)


def _exponential(s: Any, e: Array) -> Array:
    return _base(s) * s.gamma**e


def _polynomial(s: Any, e: Array) -> Array:
    return _base(s) * (1 - np.minimum(e, s.total_iters) / max(s.total_iters, 1)) ** s.power


def _cosine(s: Any, e: Array) -> Array:
    return s.eta_min + (_base(s) - s.eta_min) * (1 + np.cos(math.pi * e / s.T_max)) / 2


def _warm_restarts(s: Any, e: Array) -> Array:
    if s.T_mult == 1:
        position, length = e % s.T_0, np.full_like(e, s.T_0)
    else:
        ends = [float(s.T_0)]
        while len(e) and ends[-1] <= e[-1]:
            ends.append(ends[-1] + s.T_0 * float(s.T_mult) ** len(ends))
        cycle = np.searchsorted(ends, e, side="right")
        position = e - np.array([0.0, *ends])[cycle]
        length = s.T_0 * float(s.T_mult) ** cycle
    return s.eta_min + (_base(s) - s.eta_min) * (1 + np.cos(math.pi * position / length)) / 2


def _one_cycle(s: Any, e: Array) -> Array:
    if len(e) and e[-1] > s.total_steps:
        raise Unknown(f"OneCycleLR was planned for {s.total_steps:,} steps and would raise after these")
    group = s.optimizer.param_groups[0]
    rates, start = np.empty_like(e), 0.0
    open_ = np.ones(len(e), dtype=bool)
    for index, phase in enumerate(s._schedule_phases):
        here = open_ & ((e <= phase["end_step"]) | (index == len(s._schedule_phases) - 1))
        first, last = number(group[phase["start_lr"]]), number(group[phase["end_lr"]])
        done = (e[here] - start) / (phase["end_step"] - start)
        if s._anneal_func_type == "cos":
            rates[here] = last + (first - last) / 2 * (np.cos(math.pi * done) + 1)
        else:
            rates[here] = first + (last - first) * done
        open_ &= ~here
        start = phase["end_step"]
    return rates


def _cyclic(s: Any, e: Array) -> Array:
    cycle = np.floor(1 + e / s.total_size)
    x = 1 + e / s.total_size - cycle
    height = np.where(x <= s.step_ratio, x / s.step_ratio, (x - 1) / (s.step_ratio - 1))
    base, top = _base(s), number(s.max_lrs[0])
    scale = np.array([s.scale_fn(float(c)) for c in (cycle if s.scale_mode == "cycle" else e)])
    return base + (top - base) * height * scale


def _sequential(s: Any, e: Array) -> Array:
    # at a milestone the next one starts from its own step 0, in closed form
    begins = np.array([0, *s._milestones], dtype=float)
    part = np.searchsorted(begins, e, side="right") - 1
    rates = np.empty_like(e)
    for index in np.unique(part):
        if index and known_class(s._schedulers[index]) is torch_schedulers.MultiplicativeLR:
            raise Unknown("MultiplicativeLR inside SequentialLR goes on from a rate that is not its own")
        here = part == index
        rates[here] = scheduled_rates(s._schedulers[index], e[here] - begins[index])
    return rates


def _chained(s: Any, e: Array) -> Array:
    ahead = e[-1] if len(e) else 0
    if all(_is_factor(part, ahead) for part in s._schedulers):
        rates = np.full_like(e, _base(s._schedulers[0]))
        for part in s._schedulers:
            rates *= scheduled_rates(part, e) / _base(part)
        return rates
    return _stepped(s, e)


def _is_factor(scheduler: Any, ahead: float) -> bool:
    """Whether up to a step it only multiplies the rate it finds, by what does not depend on that rate."""
    kind = known_class(scheduler)
    if kind is torch_schedulers.CosineAnnealingLR:
        return bool(scheduler.eta_min == 0 and ahead <= scheduler.T_max)
    return kind in _FACTORS and _base(scheduler) != 0


def _stepped(scheduler: Any, e: Array) -> Array:
    """A copy of a chain, on an optimizer without parameters, stepped from where the original is."""
    now = epoch_of(scheduler)
    if now is None or any(known_class(part) is None for part in scheduler._schedulers):
        unknown = [part for part in scheduler._schedulers if known_class(part) is None]
        raise Unknown(why_unknown(unknown[0]) if unknown else "the chained schedulers are not at the same step")
    if len(e) and e[-1] - now > MOST_CALLS:
        chain = ", ".join(type(part).__name__ for part in scheduler._schedulers)
        raise Unknown(f"{chain}, chained, have no closed form, and {e[-1] - now:,.0f} steps are too many to try out")
    groups = [
        {key: _detached(value) for key, value in group.items() if key != "params"}
        for group in scheduler.optimizer.param_groups
    ]

    def step() -> None:
        """Wrapped as schedulers want an optimizer's `step` to be."""

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    defaults = dict(scheduler.optimizer.defaults)
    alone = SimpleNamespace(param_groups=groups, defaults=defaults, step=step, _opt_called=True)
    try:
        twin = copy.deepcopy(scheduler, {id(scheduler.optimizer): alone})
    except Exception as error:  # whatever the user's function objects hold
        raise Unknown(f"a chained scheduler can't be copied ({type(error).__name__}: {error})") from error
    rates = {now: number(groups[0]["lr"])}
    for epoch in range(now + 1, int(e[-1]) + 1 if len(e) else 0):
        twin.step()
        rates[epoch] = number(groups[0]["lr"])
    return np.array([rates.get(int(epoch), math.nan) for epoch in e])


def _detached(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else copy.copy(value)


def epoch_of(scheduler: Any) -> int | None:
    """How many steps a scheduler has made; None where its parts don't agree."""
    if hasattr(scheduler, "last_epoch"):
        return int(scheduler.last_epoch)
    counts = {epoch_of(part) for part in getattr(scheduler, "_schedulers", ())}
    return counts.pop() if len(counts) == 1 else None


_FORMULAS: dict[type, Formula] = {
    torch_schedulers.LambdaLR: _lambda,
    torch_schedulers.MultiplicativeLR: _multiplicative,
    torch_schedulers.StepLR: _step,
    torch_schedulers.MultiStepLR: _multi_step,
    torch_schedulers.ConstantLR: _constant,
    torch_schedulers.LinearLR: _linear,
    torch_schedulers.ExponentialLR: _exponential,
    torch_schedulers.PolynomialLR: _polynomial,
    torch_schedulers.CosineAnnealingLR: _cosine,
    torch_schedulers.CosineAnnealingWarmRestarts: _warm_restarts,
    torch_schedulers.OneCycleLR: _one_cycle,
    torch_schedulers.CyclicLR: _cyclic,
    torch_schedulers.SequentialLR: _sequential,
    torch_schedulers.ChainedScheduler: _chained,
}
_FACTORS = {
    torch_schedulers.StepLR,
    torch_schedulers.MultiStepLR,
    torch_schedulers.ConstantLR,
    torch_schedulers.LinearLR,
    torch_schedulers.ExponentialLR,
    torch_schedulers.PolynomialLR,
    torch_schedulers.MultiplicativeLR,
}
