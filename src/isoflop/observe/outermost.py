"""The forward calls that a training step consists of, and whether the loss depends on anything beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from isoflop.observe.calls import Call, Uncountable, attach, shapes, tensors_in


class OutermostCalls:
    """The calls of a model's modules that no other of its modules made, from `start()` until its return is called.

    A LightningModule's `training_step` calls `self(x)`, or `self.encoder(x)` and then `self.decoder(z)`: those calls
    together are the forward pass. Compiled modules are seen from outside only. Metrics (modules without parameters
    and without a differentiable output) are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[Call] = []
        self.inputs: list[Any] = []
        """Autograd nodes of what went into the calls; nodes, for tensors would keep the logits' memory."""
        self.outputs: list[Any] = []
        """… and of what came out."""
        self.problem: str | None = None
        self._model = model
        self._open: list[_Open] = []

    def start(self) -> Callable[[], None]:
        """Listen; returns what ends it."""
        removers = [self._listen(module) for module in _reachable(self._model)]

        def stop() -> None:
            for remove in removers:
                remove()

        return stop

    def _listen(self, module: nn.Module) -> Callable[[], None]:
        # These hooks stand on the live model: nothing may be raised in them. Inside a graph that is being compiled
        # (a compiled function that calls the module) they must be nothing at all: a break there can be an error.
        def pre_hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not torch.compiler.is_compiling():
                self._before(module, args, kwargs)

        def post_hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not torch.compiler.is_compiling():
                self._after(module, output)

        return attach(module, pre_hook, post_hook, always=True)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        opened = _Open(module, forward=not _redirected(module))
        outermost = opened.forward and not any(other.forward for other in self._open)
        self._open.append(opened)
        if outermost and module.training and torch.is_grad_enabled():
            try:
                opened.inputs = _nodes((args, kwargs))
                opened.call = Call(module, shapes(args), shapes(kwargs))
            except Uncountable as reason:
                opened.problem = str(reason)
            except Exception as error:
                opened.problem = f"the arguments can't be read ({type(error).__name__}: {error})"

    def _after(self, module: nn.Module, output: Any) -> None:
        while self._open:
            done = self._open.pop()
            if done.module is module:
                break
        else:
            return
        try:
            # what passes a call unchanged (a dropout at rest) was computed outside
            outputs = [node for node in _nodes(output) if node not in done.inputs]
        except Exception as error:
            outputs, done.problem = [], f"the output can't be read ({type(error).__name__}: {error})"
        if (done.call is None and done.problem is None) or not (outputs or any(True for _ in module.parameters())):
            return
        if done.call is not None:
            self.calls.append(done.call)
        self.problem = self.problem or done.problem
        self.inputs += done.inputs
        self.outputs += outputs


@dataclass(eq=False)
class _Open:
    """A call under way; `forward` is False for one that is no forward pass."""

    module: nn.Module
    forward: bool
    call: Call | None = None
    problem: str | None = None
    inputs: list[Any] = field(default_factory=list)


def _nodes(value: Any) -> list[Any]:
    return [tensor.grad_fn for tensor in tensors_in(value) if tensor.grad_fn is not None]


def _reachable(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    if not hasattr(module, "_orig_mod") and getattr(module, "_compiled_call_impl", None) is None:
        for child in module.children():
            yield from _reachable(child)


def _redirected(module: nn.Module) -> bool:
    # Under DDP Lightning calls the module with `forward` swapped for `training_step` (its _ForwardRedirection).
    # Others swap it too (torch.compile's wrapper, autocast), and that is a forward pass.
    return "_ForwardRedirection" in getattr(vars(module).get("forward"), "__qualname__", "")


def parameters_used_outside(loss: torch.Tensor, outputs: Sequence[Any], inputs: Sequence[Any] = ()) -> int:
    """How many matrices the loss depends on other than through the calls that were seen; 0: the calls were all.

    Args:
        loss: what `backward` will be called on.
        outputs: autograd nodes of what the calls returned (`OutermostCalls.outputs`): the walk from the loss back
            through the graph does not enter the calls.
        inputs: … and of what went into them: it goes on from there, since between two calls there may be a product
            too (a tied head by hand between the model and `nn.CrossEntropyLoss`).
    """
    seen = set(outputs)
    stack, found = [loss.grad_fn, *inputs], 0
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # AccumulateGrad: a leaf
        if variable is not None and variable.dim() >= 2:
            found += 1
        stack += [following for following, _ in node.next_functions]
    return found
