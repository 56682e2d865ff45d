"""Seeing a module's forward calls: on the live model, without a sync, a copy or a graph break inside compiled code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

Before = Callable[[tuple[Any, ...], dict[str, Any]], None]
After = Callable[[Any], None]
Signature = tuple[Any, ...]

_PLAIN = (
    int,
    float,
    complex,
    bool,
    str,
    bytes,
    type(None),
    torch.dtype,
    torch.device,
    torch.Size,
    Enum,
    slice,
)


class Uncountable(Exception):
    """Why a forward pass can't be replayed on the meta device."""


@dataclass(frozen=True)
class Shape:
    """What a meta replay needs of a tensor argument."""

    size: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    def meta(self) -> torch.Tensor:
        """An empty meta tensor like it."""
        tensor = torch.empty(self.size, dtype=self.dtype, device="meta")
        return tensor.requires_grad_(self.requires_grad)


@dataclass(frozen=True)
class Call:
    """One call of a module: which, and with arguments of which shapes."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def shapes(value: Any) -> Any:
    """Arguments with `Shape`s for tensors, nothing of the live step kept alive.

    Raises:
        Uncountable: an argument is an object that the replay could change (a cache, a graph …).
    """
    if isinstance(value, Mapping) and not isinstance(value, dict):
        value = dict(value)  # BatchEncoding, UserDict

    def leaf(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return Shape(tuple(item.shape), item.dtype, item.requires_grad)
        if isinstance(item, _PLAIN):
            return item
        if isinstance(item, Mapping):
            return {key: shapes(inner) for key, inner in item.items()}
        raise Uncountable(f"an argument of type {type(item).__name__} can't be copied to the meta device")

    return tree_map(leaf, value)


def metas(value: Any) -> Any:
    """The arguments of `shapes` as meta tensors."""
    return tree_map(lambda leaf: leaf.meta() if isinstance(leaf, Shape) else leaf, value)


def signature(value: Any) -> Signature:
    """A hashable key of a batch: the shapes of its tensors, in order. Costs a few µs and no sync."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return tuple([(key, signature(item)) for key, item in value.items() if item is not None])
    if isinstance(value, list | tuple):
        return tuple([signature(item) for item in value])
    if isinstance(value, bool | int | str):
        return (value,)
    return (type(value).__name__,)


def watch(module: nn.Module, before: Before, after: After | None = None) -> Callable[[], None]:
    """Call `before(args, kwargs)` ahead of each forward call of `module` and `after(output)` behind it.

    Only calls that train (`module.training`, gradients enabled) are seen. Returns what takes the watch off again.
    A module compiled in place (`module.compile()`) is wrapped from outside, for hooks would be compiled with it and
    a graph break in it is an error under `fullgraph=True`.
    """
    compiled = getattr(module, "_compiled_call_impl", None)
    if compiled is not None:

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            training = module.training and torch.is_grad_enabled()
            if training:
                before(args, kwargs)
            output = compiled(*args, **kwargs)
            if training and after is not None:
                after(output)
            return output

        module._compiled_call_impl = wrapped

        def restore() -> None:
            module._compiled_call_impl = compiled

        return restore

    @_not_compiled
    def pre_hook(hooked: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if hooked.training and torch.is_grad_enabled():
            before(args, kwargs)

    handles = [module.register_forward_pre_hook(pre_hook, with_kwargs=True)]
    if after is not None:
        behind = after

        @_not_compiled
        def post_hook(hooked: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if hooked.training and torch.is_grad_enabled():
                behind(output)

        handles.append(module.register_forward_hook(post_hook))

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def _not_compiled(function: Any) -> Any:
    # torch.compiler.disable(function) without its import of dynamo (1.7 s), needed by nobody who does not compile
    import sys

    if "torch._dynamo" in sys.modules:
        return torch.compiler.disable(function)
    function._torchdynamo_disable = True
    return function


class OutermostCalls:
    """The calls of a model's modules that no other of its modules made, from `start()` until its return is called.

    A LightningModule's `training_step` calls `self(x)`, or `self.encoder(x)` and then `self.decoder(z)`: those calls
    together are the forward pass. Compiled modules are seen from outside only.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[Call] = []
        self.outputs: list[torch.Tensor] = []
        self.problem: str | None = None
        self._model = model
        self._open: list[bool] = []  # the calls under way; False for one that is no forward pass

    def start(self) -> Callable[[], None]:
        """Listen; returns what ends it."""
        removers = [self._listen(module) for module in _reachable(self._model)]

        def stop() -> None:
            for remove in removers:
                remove()

        return stop

    def _listen(self, module: nn.Module) -> Callable[[], None]:
        def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            is_forward = not _redirected(module)
            if is_forward and not any(self._open):
                try:
                    self.calls.append(Call(module, shapes(args), shapes(kwargs)))
                except Uncountable as reason:
                    self.problem = str(reason)
            self._open.append(is_forward)

        def after(output: Any) -> None:
            is_forward = self._open.pop()
            if is_forward and not any(self._open):
                self.outputs += tensors_in(output)

        return watch(module, before, after)


def _reachable(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    if not hasattr(module, "_orig_mod") and getattr(module, "_compiled_call_impl", None) is None:
        for child in module.children():
            yield from _reachable(child)


def _redirected(module: nn.Module) -> bool:
    # Under DDP Lightning calls the module with `forward` swapped for `training_step` (its _ForwardRedirection)
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def tensors_in(output: Any) -> list[torch.Tensor]:
    """The tensors of a module's output: nested containers, Hugging Face's ModelOutput, plain dataclasses."""
    found: list[torch.Tensor] = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += tensors_in(dict(leaf))
        elif is_dataclass(leaf):
            found += tensors_in(dict(vars(leaf)))
    return found


def parameters_used_outside(loss: torch.Tensor, outputs: list[torch.Tensor]) -> int:
    """How many matrices the loss depends on other than through `outputs`: what the calls do not show.

    Walks the autograd graph from `loss` back to the outputs' nodes; 0 means that the calls were all there was.
    """
    stop = {output.grad_fn for output in outputs if output.grad_fn is not None}
    stack, seen, found = [loss.grad_fn], set(stop), 0
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
