"""The exact FLOPs of a step's forward and backward pass, measured on the model's meta twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from isoflop.observe.calls import Call, Uncountable, metas, tensors_in
from isoflop.observe.counter import FlopCount, FlopCounter
from isoflop.observe.twin import Twin, untouched_randomness
from isoflop.observe.uses import Uses, UseTracer


@dataclass(frozen=True)
class Measurement:
    """FLOPs of the calls, forward and backward, and what the forward passes used each parameter for."""

    flops: FlopCount
    uses: Uses


def measure(model: nn.Module, calls: Sequence[Call]) -> Measurement:
    """Replay forward calls and their backward passes on a meta twin of `model`, and count.

    Nothing is allocated or computed, the live model, its gradients, hooks, compiled code and random numbers stay
    as they are. FLOPs are those of the calls' own matrix products and convolutions, forward and backward.

    Args:
        model: the live model (sharded, compiled and wrapped ones are read, not run).
        calls: what the training step called, as `OutermostCalls` or a forward hook saw it.

    Raises:
        Uncountable: the code can't run without data (it branches on values, or a kernel has no meta version).
    """
    if not calls:
        raise Uncountable("no forward call of the model was seen in the training step")
    twin = Twin(model)
    flops, uses = FlopCount(0, 0, 0), Uses()
    for call in calls:
        count, used = _replay(twin, call)
        flops, uses = flops + count, uses | used
    return Measurement(flops, uses)


def _replay(twin: Twin, call: Call) -> tuple[FlopCount, Uses]:
    """Three ways, from the fastest: plain meta tensors; the same without the attention mask; fake tensors.

    Hugging Face's SDPA decoders look into the mask's values (_ignore_causal_mask_sdpa), or without one into the
    positions' (packed sequences); the same products run either way. Fake tensors tell them that they are traced.
    """
    unmasked = {**call.kwargs, "attention_mask": None} if "attention_mask" in call.kwargs else None
    reason: Exception | None = None
    for kwargs, mode in ((call.kwargs, nullcontext()), (unmasked, nullcontext()), (call.kwargs, _fake_tensors())):
        if kwargs is None:
            continue
        tracer = UseTracer(twin.parameters)
        try:
            with mode:
                return _forward_backward(twin[call.module], replace(call, kwargs=kwargs), tracer), tracer.uses
        except Exception as error:  # whatever a user's forward may raise on meta: the reason goes into the record
            reason = reason or error
    raise Uncountable(
        f"{type(call.module).__name__} can't run on the meta device ({type(reason).__name__}: {_first_line(reason)})"
    ) from reason


def _fake_tensors() -> AbstractContextManager[Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def _forward_backward(module: nn.Module, call: Call, tracer: UseTracer) -> FlopCount:
    counter = FlopCounter(tracer)
    # The caller may stand inside autocast or no_grad; FLOPs know no dtype, and a backward pass is wanted
    with (
        untouched_randomness(),
        _eagerly(),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.device("meta"),
    ):
        args, kwargs = metas(call.args), metas(call.kwargs)
        with counter:
            output = module(*args, **kwargs)
            roots = [tensor for tensor in _differentiated(output) if tensor.requires_grad]
            if roots:
                torch.autograd.backward(roots, [torch.empty_like(root) for root in roots])
    return counter.count


def _differentiated(output: Any) -> list[torch.Tensor]:
    """The tensors that training differentiates: the loss where the model returns one, else all it returns."""
    if isinstance(output, Mapping):
        loss = output.get("loss")
        if isinstance(loss, torch.Tensor):
            return [loss]
        # a cache or hidden states hang in the same graph: they would add nothing but time
        output = {key: value for key, value in output.items() if key != "past_key_values"}
    tensors = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
    scalars = [tensor for tensor in tensors if tensor.dim() == 0 and tensor.requires_grad]
    return scalars[:1] or tensors


def _eagerly() -> AbstractContextManager[Any]:
    import sys

    if "torch._dynamo" in sys.modules:
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _first_line(error: Exception | None) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else ""
