"""The exact FLOPs of a step's forward and backward pass, measured on the model's meta twin."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from isoflop.observe.calls import Call, Uncountable, metas, tensors_in
from isoflop.observe.counter import FlopCount, FlopCounter
from isoflop.observe.leaks import Made, no_leaks
from isoflop.observe.twin import Twin, untouched_randomness
from isoflop.observe.uses import Uses, UseTracer


@dataclass(frozen=True)
class Measurement:
    """FLOPs of the calls, forward and backward, and what the forward passes used each parameter for."""

    flops: FlopCount
    uses: Uses
    without_formula: frozenset[str] = frozenset()
    """Custom operators that were counted 0."""

    def __add__(self, other: Measurement) -> Measurement:
        without_formula = self.without_formula | other.without_formula
        return Measurement(self.flops + other.flops, self.uses | other.uses, without_formula)


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
    with no_leaks() as made:
        outcome = _outcome(model, calls, made)
    if isinstance(outcome, str):
        raise Uncountable(outcome)
    return outcome


def _outcome(model: nn.Module, calls: Sequence[Call], made: Made) -> Measurement | str:
    """The measurement or why there is none; as a text, for an exception holds on to what its frames hold."""
    try:
        return _measure(model, calls, made)
    except Uncountable as reason:
        return str(reason)
    except Exception as error:  # a module that is not made of Python attributes (TorchScript, lazy parameters …)
        return f"{type(model).__name__} can't be copied to the meta device ({_said(error)})"


def _measure(model: nn.Module, calls: Sequence[Call], made: Made) -> Measurement:
    twins = (Twin(model), Twin(model, floating=torch.bfloat16))
    total: Measurement | None = None
    reason: Uncountable | None = None
    for call in calls:
        try:
            part = _replay(twins, call, made)
        except Uncountable as error:
            if any(True for _ in call.module.parameters()):
                raise
            reason = error  # a metric of the loss, which reads values: without a weight there is little to count
            continue
        total = part if total is None else total + part
    if total is None:
        assert reason is not None
        raise reason
    return total


def _replay(twins: tuple[Twin, Twin], call: Call, made: Made) -> Measurement:
    """Four ways, from the fastest: meta tensors; the same without the attention mask; fake tensors; these in bf16.

    Hugging Face's SDPA decoders look into the mask's values (_ignore_causal_mask_sdpa), or without one into the
    positions' (packed sequences); the same products run either way. Fake tensors tell them that they are traced. And
    the grouped products of its mixtures of experts have a meta kernel for bf16 alone.
    """
    unmasked = {**call.kwargs, "attention_mask": None} if "attention_mask" in call.kwargs else None
    reason = ""
    for twin, kwargs, mode in (
        (twins[0], call.kwargs, nullcontext()),
        (twins[0], unmasked, nullcontext()),
        (twins[0], call.kwargs, _fake_tensors()),
        (twins[1], call.kwargs, _fake_tensors()),
    ):
        if kwargs is None:
            continue
        try:
            with mode:
                return _forward_backward(twin, replace(call, kwargs=kwargs), made)
        except Exception as error:  # whatever a user's forward may raise on meta: the reason goes into the record
            if twin is twins[0]:
                reason = _said(error)
    raise Uncountable(f"{type(call.module).__name__} can't run on the meta device ({reason})")


@contextmanager
def _fake_tensors() -> Iterator[None]:
    from torch._subclasses import fake_tensor

    # it logs a failure with a traceback as an error; ours is caught and told in a sentence
    disabled, fake_tensor.log.disabled = fake_tensor.log.disabled, True
    try:
        with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        fake_tensor.log.disabled = disabled


def _forward_backward(twin: Twin, call: Call, made: Made) -> Measurement:
    tracer = UseTracer(twin.parameters)
    counter = FlopCounter(tracer, made)
    # The caller may stand inside autocast or no_grad; FLOPs know no dtype, and a backward pass is wanted
    with (
        untouched_randomness(),
        warnings.catch_warnings(),
        _eagerly(),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.device("meta"),
    ):
        warnings.simplefilter("ignore")  # the live model has said the same
        args, kwargs = metas(call.args, twin.floating), metas(call.kwargs, twin.floating)
        tracer.arguments(tensors_in((args, kwargs)))
        with counter:
            output = twin[call.module](*args, **kwargs)
            roots = [tensor for tensor in _differentiated(output) if tensor.requires_grad]
            if roots:
                torch.autograd.backward(roots, [torch.empty_like(root) for root in roots])
    return Measurement(counter.count, tracer.uses, frozenset(counter.without_formula))


def _differentiated(output: Any) -> list[torch.Tensor]:
    """The tensors that training differentiates: the loss where the model names one, else all it returns.

    (A part of a loss, or logits beside it, hang in the same graph, which is walked once whatever it is entered by.)
    """
    if isinstance(output, Mapping):
        loss = output.get("loss")
        if isinstance(loss, torch.Tensor):
            return [loss]
        # a cache hangs in the same graph: it would add nothing but time
        output = {key: value for key, value in output.items() if key != "past_key_values"}
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]


def _eagerly() -> AbstractContextManager[Any]:
    import sys

    if "torch._dynamo" in sys.modules:
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _said(error: Exception | None) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"
