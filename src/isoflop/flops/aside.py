"""Compiled calls in a step that is observed: the dispatch mode is off while they run, and they are measured apart.

Under a dispatch mode compiled code would run otherwise. What comes behind a compiled teacher is observed as before. The
backward pass of a compiled model is not: then all that it differentiates has to be measured calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch import nn

from isoflop.flops.calls import Call, described, frames, tensors_in
from isoflop.flops.counter import NOTHING, FlopCount, FlopCounter
from isoflop.flops.parameters import unwrap

Measure = Callable[[Call], "tuple[FlopCount, FlopCount] | None"]
"""FLOPs of a call's forward and backward pass; None where it can't be measured."""
COMPILED = "it is compiled, and what runs compiled shows no operators"


class StandsAside(FlopCounter):
    """A counter that can be taken off the dispatcher's stack, and put on it again."""

    measure: Measure | None = None
    over = False
    _on = False

    def __init__(self, on_operator: Callable[..., bool] | None = None) -> None:
        super().__init__(on_operator)
        self.apart = NOTHING
        """FLOPs of the compiled calls."""
        self.multiplies_with_gradients = False
        """Something that is not compiled does, in the forward pass."""
        self._frame: FrameType | None = None  # of dynamo's wrapper, whose call is under way
        self._call: tuple[Call, FlopCount, FlopCount] | None = None
        self._callbacks = 0  # that it has set
        self._differentiates = self._aside = False  # compiled calls have gradients; their backward pass is under way

    def meets(self, kind: str) -> None:
        """What can't be observed is about to run."""
        raise NotImplementedError

    @property
    def is_aside(self) -> bool:
        """A compiled call, or the backward pass of one, is under way: at a step's end, as another torch's wrapper sets
        its callback otherwise, and what came since was not seen.
        """
        return self._frame is not None or self._aside

    def stands_aside(self, frame: FrameType) -> bool:
        """Dynamo's wrapper is about to run compiled code, in this frame. False: it can't be measured apart."""
        if self._frame is not None:  # inside of another
            return True
        inside = torch._C._current_graph_task_id() != -1 or not self._is_on_top()
        unknown = "result" not in frame.f_code.co_varnames  # (of another torch than 2.13)
        call = None if inside or unknown or _compiles_backward() else _compiled_call(frame)
        found = None if call is None or self.measure is None else self.measure(call)
        if call is None or found is None:
            return False
        self._frame, self._callbacks, self._call = frame, 0, (call, *found)
        self._step_aside()
        return True

    def sets_callback(self, frame: FrameType) -> None:
        """Dynamo's wrapper sets its callback: once ahead of the compiled code, and once when all is over."""
        if frame is self._frame:
            self._callbacks += 1
            if self._callbacks == 2:
                self._frame = None
                self._come_back()
                self._returned(frame.f_locals)

    def _is_on_top(self) -> bool:
        depth = torch._C._len_torch_dispatch_stack()
        return depth > 0 and torch._C._get_dispatch_stack_at(depth - 1) is self

    def _step_aside(self) -> None:
        self._on = False
        torch._C._pop_torch_dispatch_stack(None)

    def _come_back(self) -> None:
        if not self.over:
            torch._C._push_on_torch_dispatch_stack(self)
            self._on = True

    def _returned(self, variables: dict[str, Any]) -> None:
        if self.over or self._call is None or "result" not in variables:  # an exception
            return
        (call, forward, backward), self._call = self._call, None
        self.apart += forward if call.gradients else forward._replace(no_grad=forward.model)
        self.follow("compiled", variables["args"], variables["kwargs"], variables["result"])
        passes: set[int] = set()

        def reached(*_: Any) -> None:
            number = torch._C._current_graph_task_id()
            if number not in passes and not self.over:
                passes.add(number)
                self.apart += backward

        nodes = [tensor.grad_fn for tensor in tensors_in(variables["result"]) if tensor.grad_fn is not None]
        for node in nodes:
            node.register_prehook(reached)
        self._differentiates = self._differentiates or bool(nodes)

    def follow(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """What was computed of what."""

    def backward_begins(self, create_graph: bool) -> None:
        """Compiled code of it must not meet the mode."""
        if self._differentiates and not self.over and self._is_on_top():
            if self.multiplies_with_gradients or create_graph:  # (a gradient's gradient is not measured)
                self.meets(COMPILED)
            else:
                self._aside = True
                self._step_aside()

    def backward_ends(self) -> None:
        """The opposite."""
        if self._aside:
            self._aside = False
            self._come_back()
            self.had_backward()

    def had_backward(self) -> None:
        """A backward pass that was not observed is over."""


def _compiles_backward() -> bool:
    """Whether compiled autograd is on, which compiles hooks on a graph's nodes."""
    compiler = sys.modules.get("torch._dynamo.compiled_autograd")
    return bool(getattr(compiler, "compiled_autograd_enabled", False) or torch._dynamo.config.compiled_autograd)


def _compiled_call(frame: FrameType) -> Call | None:
    """The call of a module that a frame of dynamo's wrapper is about to make, no other's part; None: another."""
    known: dict[str, Any] = frame.f_locals
    function, args, kwargs = known.get("fn"), known.get("args", ()), known.get("kwargs", {})
    inner = getattr(function, "__closure__", None) if getattr(function, "__name__", "") == "inner" else None
    called = getattr(inner[0].cell_contents if inner else function, "__self__", None)
    called = inner[0].cell_contents if inner and isinstance(inner[0].cell_contents, nn.Module) else called
    around: list[Any] = [each.f_locals.get("self") for each in frames() if each.f_code is nn.Module._call_impl.__code__]
    if not isinstance(called, nn.Module) or any(unwrap(each) is not unwrap(called) for each in around):
        return None
    call = described(unwrap(called), args, kwargs)
    return None if isinstance(call, str) else replace(call, gradients=torch.is_grad_enabled())


def is_optimizers(frame: FrameType) -> bool:
    """Whether an optimizer steps in this frame."""
    return frame.f_code.co_filename.endswith("torch/optim/optimizer.py")


def is_compiled(frame: FrameType) -> bool:
    """Whether this frame is about to call compiled code: dynamo's wrapper with the compiler in it."""
    ours = frame.f_code.co_filename.endswith("torch/_dynamo/eval_frame.py")
    return ours and callable(frame.f_locals.get("callback"))
