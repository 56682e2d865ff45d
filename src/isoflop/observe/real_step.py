"""FLOPs of a step that really runs: for a model whose forward needs values, which the meta device does not have."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from isoflop.observe.by_module import ModuleOwner
from isoflop.observe.calls import Call, Shape, Uncountable, tensors_in
from isoflop.observe.counter import FlopCounter, Formula, current_phase
from isoflop.observe.measure import Measurement, differentiated, eagerly, said
from isoflop.observe.twin import requires_gradients, untouched_randomness
from isoflop.observe.uses import UseTracer


class LiveCounter(FlopCounter):
    """Counts a live training step between `enter()` and `leave()`, which may lie in different hooks of a trainer.

    What nobody differentiates after a backward pass is no part of the step's model (an optimizer that multiplies
    matrices, a metric, the next batch's augmentation). Nothing is raised: `problem` says why there is no count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.problem: str | None = None
        self._entered = self._past_backward = self._recomputed = False
        self._first_node = 0

    def enter(self) -> bool:
        """Begin, unless somebody else listens at the dispatcher: two such modes must be left in the right order."""
        if torch._C._len_torch_dispatch_stack() > 0:
            self.problem = "another dispatch mode is on"
            return False
        self._first_node = torch.autograd._get_sequence_nr()
        self.__enter__()
        self._entered = True
        return True

    def leave(self) -> bool:
        """End; False if it is not our turn yet, since a mode entered after us is still on."""
        if not self._entered:
            return True
        top = torch._C._len_torch_dispatch_stack() - 1
        if top < 0 or torch._C._get_dispatch_stack_at(top) is not self:
            return False
        self.__exit__(None, None, None)
        self._entered = False
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if current_phase() != "forward":
            self._past_backward = True
        elif self._past_backward and not (torch.is_grad_enabled() and any(_trains(arg) for arg in args)):
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _note(
        self, packet: Any, formula: Formula | None, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        if self.problem is not None:
            return
        phase = current_phase()
        self._recomputed = self._recomputed or phase == "recomputed"
        if phase == "backward" and formula is not None and not self._recomputed:
            # (what reentrant checkpointing runs again is numbered anew by autograd's own threads)
            node = torch._C._current_autograd_node()
            if node is not None and node._sequence_nr() < self._first_node:
                self.problem = "the backward pass reaches into an earlier forward pass"
                return
        try:
            super()._note(packet, formula, args, kwargs, out)
        except Exception as error:  # a user's formula, an operand of an unknown kind: training goes on
            self.problem = f"{packet}: {type(error).__name__}: {error}"


def _trains(arg: Any) -> bool:
    return isinstance(arg, torch.Tensor) and arg.requires_grad


def run_once(model: nn.Module, call: Call, vocabulary: int | None = None) -> Measurement:
    """Run one forward and backward pass on a copy of `model`, with random inputs, and count.

    Args:
        model: one with weights; it is copied, and stays as it is.
        call: of which shapes.
        vocabulary: token ids are drawn below it.

    Raises:
        Uncountable: it does not run either, with the reason.
    """
    try:
        twin = copy.deepcopy(model)
        _drop_hooks(twin)
        module = dict(twin.named_modules())[next(name for name, m in model.named_modules() if m is call.module)]
        tracer = UseTracer(dict(twin.named_parameters()))
        device = next((parameter.device for parameter in twin.parameters()), torch.device("cpu"))
        # a GPU's backward pass runs in a thread with numbers of its own, by which no module can be told
        owner = ModuleOwner() if device.type == "cpu" else None
        counter = FlopCounter(tracer, owner=owner)
        with (
            untouched_randomness(),
            eagerly(),
            torch.enable_grad(),
            nullcontext() if owner is None else owner.listening(twin),
        ):
            torch.manual_seed(0)
            args, kwargs = (_real(part, vocabulary or 2, device) for part in (call.args, call.kwargs))
            tracer.arguments(tensors_in((args, kwargs)))
            with counter:
                roots = [
                    tensor
                    for tensor in differentiated(getattr(module, call.method)(*args, **kwargs))
                    if tensor.requires_grad
                ]
                if roots:
                    torch.autograd.backward(roots, [torch.ones_like(root) for root in roots])
    except Exception as error:  # whatever a user's forward may raise
        raise Uncountable(f"{type(call.module).__name__} does not run on these inputs ({said(error)})") from None
    return Measurement(
        counter.count,
        tracer.uses,
        frozenset(counter.without_formula),
        Counter(counter.by_operator),
        Counter(counter.by_module),
    )


def _drop_hooks(twin: nn.Module) -> None:
    """A user's hook on the live model (a recorder, a logger) must not see the copy; torch's own compute weights."""
    for module in twin.modules():
        for name in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
            hooks = getattr(module, name)
            for key, hook in list(hooks.items()):
                home = str(getattr(hook, "__module__", type(hook).__module__))
                if not home.startswith("torch.") and not requires_gradients(hook):
                    del hooks[key]


def _real(value: Any, vocabulary: int, device: torch.device, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _real(item, vocabulary, device, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_real(item, vocabulary, device, name) for item in value)
    if not isinstance(value, Shape):
        return value
    if "mask" in name:
        return torch.ones(value.size, dtype=value.dtype, device=device)
    if value.dtype.is_floating_point:
        return torch.randn(value.size, dtype=value.dtype, device=device)
    return torch.randint(vocabulary, value.size, dtype=value.dtype, device=device)
