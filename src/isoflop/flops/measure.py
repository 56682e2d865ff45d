"""Count the exact FLOPs of forward and backward passes without training: on the model's meta twin, or on a copy.

`measure_flops` replays a call of a training step on the meta device, without memory or arithmetic. A forward that
needs values cannot run there: `run_once` runs a copy on random inputs. Both happen in a forked process (`apart`),
which holds a copy of everything: what the user's code does to its state stays there.
"""

from __future__ import annotations

import copy
import math
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from isoflop.flops.apart import CAN_FORK, SECONDS, Result, describe_error, run_apart
from isoflop.flops.calls import Call, Shape, Uncountable, metas, tensors_in
from isoflop.flops.counter import FlopCount, FlopCounter, ModuleOwner, Phase
from isoflop.flops.parameters import Uses, UseTracer, unwrap
from isoflop.flops.totals import world_size
from isoflop.flops.twin import optimizer_to_meta, stand_ins, to_meta
from isoflop.flops.values import IN_TURN, LARGEST, RANDOM, Values, WrittenOut
from isoflop.guard import pass_on


@dataclass(frozen=True)
class Measurement:
    """FLOPs of a call, forward and backward, and what the forward pass used each parameter for."""

    flops: FlopCount
    uses: Uses
    without_formula: frozenset[str] = frozenset()  # heavy or custom operators that were counted 0
    by_operator: Counter[tuple[str, Phase]] = field(default_factory=Counter)  # FLOPs by operator ("aten.mm") and phase
    by_module: Counter[tuple[str, Phase]] = field(default_factory=Counter)
    """FLOPs by the name of the module that computed them, its parts not included, and phase; if asked for."""
    in_turn: bool = False  # where the choice of experts depends on values, the tokens chose in turn
    drawn: bool = False  # random numbers decided what was computed, or may have


def measure_flops(model: nn.Module, call: Call, by_module: bool = False) -> Measurement:
    """Replay a forward call and its backward pass on the meta device, and count.

    It happens in a process of its own, or on a copy where the system can't fork one: nothing is allocated or computed,
    and the live model and all that its code changes stay as they are. FLOPs are those of the call's own matrix products
    and convolutions. A kernel that needs a GPU has no shapes alone; the same products written out in plain torch have.

    Args:
        model: the live model (sharded, compiled and wrapped ones are read, not run).
        call: of a module in it, as `OutermostCalls` or a forward hook saw it.
        by_module: count FLOPs by module too.

    Raises:
        Uncountable: the code can't run without data (it branches on values, or a kernel has no meta version).
    """
    end = time.monotonic() + SECONDS
    reasons: list[str] = []
    for written_out in (False, True):
        found = on_a_copy(model, call, partial(_replay, written_out, by_module), end - time.monotonic())
        if isinstance(found, Measurement):
            return found
        reasons.append(found)
    raise Uncountable(f"{type(call.module).__name__} can't run on the meta device ({reasons[0]})")


def measure_optimizer(optimizer: Any, seconds: float = 20.0) -> FlopCount:
    """FLOPs of an optimizer's step, replayed as it was written (not compiled) on the meta device, in a process apart.

    Raises:
        Uncountable: it asks for values, takes longer than `seconds`, talks to other ranks; or no process can be forked.
    """
    if not CAN_FORK:
        raise Uncountable("this system can't copy a process")
    if world_size() > 1:
        raise Uncountable("ranks share it")
    return run_apart(partial(_step, optimizer), seconds)


def _step(optimizer: Any) -> FlopCount:
    optimizer_to_meta(optimizer)
    with torch.device("meta"), Values(), eagerly(), FlopCounter() as counter:
        optimizer.step()
    flops = counter.count.model
    return FlopCount(flops, flops, 0, optimizer=flops)


def _replay(written_out: bool, by_module: bool, model: nn.Module, call: Call) -> Measurement | str:
    """Turn a model to the meta device and run a call there; the reason where it does not run."""
    try:
        parameters = to_meta(model, written_out)
    except Uncountable:
        raise
    except Exception as error:  # a module that is not made of Python attributes (TorchScript, lazy parameters …)
        pass_on(error)
        text = f"{type(model).__name__} can't be copied to the meta device ({describe_error(error)})"
        raise Uncountable(text) from None
    root, draws = unwrap(model), _draws()
    try:
        # the caller may be inside autocast; FLOPs know no dtype
        with (
            warnings.catch_warnings(),
            torch.autocast("cpu", enabled=False),
            torch.device("meta"),
            stand_ins(root),
            WrittenOut(),
            Values() as values,
        ):
            warnings.simplefilter("ignore")  # the live model has given the same warnings
            args, kwargs = metas((call.args, unpadded(call.kwargs)))
            meta = replace(call, module=unwrap(call.module), args=args, kwargs=kwargs)
            found = _count(meta, root, parameters, by_module)
            drawn = RANDOM in values.decided or draws != _draws()
            return replace(found, in_turn=IN_TURN in values.decided, drawn=drawn)
    except Exception as error:  # whatever a user's forward may raise on meta: the reason goes into the record
        pass_on(error)
        return describe_error(error)


def unpadded(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs in which code looks for padding, with values that show none: padding is computed like the rest.

    A mask's numbers above 1 are documents'; an image that is 0 everywhere would be padding.
    """

    def whole(name: str, value: Any) -> Any:
        if not isinstance(value, Shape) or math.prod(value.size) > LARGEST:
            return value
        mask = name == "attention_mask" and len(value.size) == 2
        if not (mask and (value.values is None or bool((value.values <= 1).all()))) and name != "pixel_values":
            return value
        return replace(value, values=torch.ones(value.size, dtype=value.dtype, device="cpu"))

    return {name: whole(name, value) for name, value in inputs.items()}


def _draws() -> tuple[Any, ...]:
    """The states of Python's and NumPy's random numbers."""
    return random.getstate(), repr(np.random.get_state(legacy=False))


def _count(call: Call, root: nn.Module, parameters: dict[str, nn.Parameter], by_module: bool) -> Measurement:
    """Run a call whose arguments are tensors, of a module inside `root`, and its backward pass."""
    tracer = UseTracer(parameters)
    tracer.arguments(tensors_in((call.args, call.kwargs)))
    owner = ModuleOwner() if by_module else None
    if owner is not None:
        owner.attach(root)
    counter = FlopCounter(tracer, owner)
    with eagerly(), torch.set_grad_enabled(call.gradients), counter:
        forward_backward(call)
    uncounted = frozenset(counter.without_formula)
    return Measurement(counter.count, tracer.uses, uncounted, counter.by_operator, counter.by_module)


def forward_backward(call: Call) -> None:
    """Run a call whose arguments are tensors, and the backward pass from what training differentiates."""
    output = getattr(call.module, call.method)(*call.args, **call.kwargs)
    roots = [tensor for tensor in differentiated(output) if tensor.requires_grad]
    if roots:
        torch.autograd.backward(roots, [torch.ones_like(root) for root in roots])


def differentiated(output: Any) -> list[torch.Tensor]:
    """The tensors that training differentiates: the loss where the model names one, else all it returns.

    (A part of a loss, or logits beside it, are in the same graph, which is walked once from whatever root.)
    """
    if isinstance(output, Mapping):
        loss = output.get("loss")
        if isinstance(loss, torch.Tensor):
            return [loss]
        # a cache is in the same graph: it would add nothing but time; states beside logits are no part of a loss
        aside = _ASIDE if isinstance(output.get("logits"), torch.Tensor) else ("past_key_values",)
        output = {key: value for key, value in output.items() if not key.endswith(aside)}
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]


_ASIDE = ("past_key_values", "_outputs", "hidden_state", "hidden_states", "attentions")


def eagerly() -> AbstractContextManager[Any]:
    """torch.compile's functions run as they were written; the compiled code is used again afterwards."""
    if "torch._dynamo" in sys.modules:
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


# -- a copy on random inputs -------------------------------------------------------------------------------------------


def run_once(model: nn.Module, call: Call, vocabulary: int | None = None) -> Measurement:
    """Run one forward and backward pass on a copy of `model`, with random inputs, and count.

    Args:
        model: one with weights; it is copied, and stays as it is.
        call: of which shapes.
        vocabulary: token ids are drawn below it.

    Raises:
        Uncountable: it does not run either, with the reason.
    """
    return on_a_copy(model, call, partial(_run, vocabulary or 2), accelerator=True)


def _run(vocabulary: int, model: nn.Module, call: Call) -> Measurement:
    try:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            args, kwargs = (_random(part, vocabulary, device) for part in (call.args, call.kwargs))
            call = replace(call, args=args, kwargs=kwargs)
            # a GPU's backward pass runs in a thread with numbers of its own, which name no module
            return _count(call, model, dict(model.named_parameters()), by_module=device.type == "cpu")
    except Exception as error:  # whatever a user's forward may raise
        pass_on(error)
        raise Uncountable(
            f"{type(call.module).__name__} does not run on these inputs ({describe_error(error)})"
        ) from None


def _random(value: Any, vocabulary: int, device: torch.device, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _random(item, vocabulary, device, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_random(item, vocabulary, device, name) for item in value)
    if not isinstance(value, Shape):
        return value
    if "mask" in name:
        return torch.ones(value.size, dtype=value.dtype, device=device)
    if value.values is not None and bool((value.values != value.values.flatten()[:1]).any()):
        return value.values.to(device)  # places of images, positions; not what stands for any ids
    if value.dtype.is_floating_point:
        return torch.randn(value.size, dtype=value.dtype, device=device)
    return torch.randint(vocabulary, value.size, dtype=value.dtype, device=device)


def on_a_copy(
    model: nn.Module,
    call: Call,
    act: Callable[[nn.Module, Call], Result],
    seconds: float = SECONDS,
    accelerator: bool = False,
) -> Result:
    """What `act(model, call)` returns, which may do to them what it likes; `accelerator`: it computes on theirs."""
    if CAN_FORK and not (accelerator and any(parameter.device.type != "cpu" for parameter in model.parameters())):
        return run_apart(lambda: act(model, call), seconds)
    try:
        copied = copy.deepcopy((model, call))
    except Exception as error:  # whatever a user's objects may raise
        raise Uncountable(f"{type(model).__name__} can't be copied ({describe_error(error)})") from None
    return act(*copied)
