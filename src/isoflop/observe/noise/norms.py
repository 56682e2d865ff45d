"""Squared norms of gradients as 0-dim tensors on their device: raw, and as Adam sees them. Nothing here waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

SECOND_MOMENTS = ("max_exp_avg_sq", "exp_avg_sq", "square_avg")
"""Where optimizers keep v: Adam's AMSGrad, Adam and its like, RMSprop."""
WARM_UP = 2.0
"""v is taken for settled after WARM_UP/(1 − β₂) steps: by then 86% of it is of the run's own gradients."""


class Denominator(NamedTuple):
    """What an Adam-like optimizer divides a parameter's gradient by: (√v + ε), over its group's rate."""

    v: torch.Tensor
    eps: float
    rate: float  # the group's learning rate over the largest group's


def raw_square(gradient: torch.Tensor) -> torch.Tensor:
    """|h|² in single precision, whatever the gradient's."""
    return torch.linalg.vector_norm(gradient, dtype=torch.float32).square()


def preconditioned_square(gradient: torch.Tensor, by: Denominator) -> torch.Tensor:
    """Σ h²·rate/(√v + ε): the squared norm in the metric that Adam steps in.

    v's bias correction is left out: a common factor, close to 1 once v has settled. One temporary of the gradient's
    size.
    """
    weight = by.v.sqrt().add_(by.eps).sqrt_()
    torch.div(gradient, weight, out=weight) if weight.dtype == gradient.dtype else weight.reciprocal_().mul_(gradient)
    return torch.linalg.vector_norm(weight, dtype=torch.float32).square() * by.rate


def raw_squares(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Σ|g|² over tensors, in few kernels."""
    return total([norm.square() for norm in torch._foreach_norm(list(gradients), 2, dtype=torch.float32)])


def total(scalars: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of 0-dim tensors; of several devices (a model laid out over some) on the first's."""
    device = scalars[0].device
    return torch.stack([scalar.to(device, torch.float32) for scalar in scalars]).sum()


def inner_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside of Accelerate's, Fabric's and Lightning's wrappers."""
    for name in ("optimizer", "_optimizer"):
        inner = getattr(optimizer, name, None)
        if inner is not None and hasattr(inner, "param_groups"):
            return inner
    return optimizer


def denominators(optimizer: Any, parameters: Sequence[nn.Parameter]) -> dict[int, Denominator]:
    """By id of the parameter, for those whose optimizer keeps v beside it in its shape."""
    optimizer = inner_optimizer(optimizer)
    groups = getattr(optimizer, "param_groups", None)
    if not groups:
        return {}
    rates = [group.get("lr") for group in groups]
    plain = [rate for rate in rates if isinstance(rate, float | int)]
    largest = max(plain, default=0.0)
    wanted = {id(parameter) for parameter in parameters}
    found: dict[int, Denominator] = {}
    for group, rate in zip(groups, rates, strict=True):
        # a rate kept as a tensor would have to be read, and during warm-up from 0 all may be 0
        relative = float(rate) / largest if len(plain) == len(groups) and largest > 0 else 1.0
        for parameter in group["params"]:
            v = second_moment(optimizer, parameter) if id(parameter) in wanted else None
            if v is not None:
                found[id(parameter)] = Denominator(v, float(group.get("eps", 1e-8)), relative)
    return found


def second_moment(optimizer: Any, parameter: nn.Parameter) -> torch.Tensor | None:
    """V of a parameter; None where the optimizer keeps none, or in another form (8 bits, factored)."""
    state = optimizer.state.get(parameter) or {}
    for name in SECOND_MOMENTS:
        v = state.get(name)
        if isinstance(v, torch.Tensor) and v.shape == parameter.shape and v.is_floating_point():
            return v
    return None


def keeps_second_moments(optimizer: Any) -> bool:
    """Whether an optimizer that has stepped keeps v for a parameter."""
    optimizer = inner_optimizer(optimizer)
    groups = getattr(optimizer, "param_groups", None) or []
    return any(second_moment(optimizer, parameter) is not None for group in groups for parameter in group["params"])


def settled(optimizer: Any) -> bool:
    """Whether v rests on the run's own gradients: `WARM_UP`/(1 − β₂) steps. Reads a tensor; for log steps."""
    optimizer = inner_optimizer(optimizer)
    for group in getattr(optimizer, "param_groups", None) or []:
        betas = group.get("betas")
        decay = float(betas[1]) if betas else float(group.get("alpha", 0.99))
        for parameter in group["params"]:
            if second_moment(optimizer, parameter) is not None:
                steps = float(optimizer.state[parameter].get("step", 0))
                return steps * (1 - decay) >= WARM_UP - 1e-6
    return False
