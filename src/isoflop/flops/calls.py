"""The forward calls that a training step consists of, by the shapes of their arguments.

They are seen on the live model without a sync, a copy, or a graph break inside compiled code.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from enum import Enum
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from isoflop.flops.values import LARGEST, with_values

Before = Callable[[tuple[Any, ...], dict[str, Any]], None]
After = Callable[[Any], None]
Signature = tuple[Any, ...]

_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, Enum, slice)


class Uncountable(Exception):
    """The reason why a forward pass can't be replayed on the meta device."""


@dataclass(frozen=True)
class Shape:
    """A tensor argument without its values."""

    size: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    values: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """Those of integers, on the CPU, where a count depends on them: documents, windows, places of images."""

    def meta(self, floating: torch.dtype | None = None, device: str = "meta") -> torch.Tensor:
        """An empty tensor of this shape; `floating`: dtype of a floating-point one instead of its own."""
        dtype = floating if floating is not None and self.dtype.is_floating_point else self.dtype
        tensor = torch.empty(self.size, dtype=dtype, device=device)
        return with_values(tensor.requires_grad_(self.requires_grad), self.values)


@dataclass(frozen=True)
class Call:
    """One call of a module with arguments of these shapes; `method` if it is not called as a whole."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    method: str = "__call__"


def shapes(value: Any, values: bool = False) -> Any:
    """Arguments with `Shape`s for tensors, nothing of the live step kept alive; `values`: with those of integers.

    Raises:
        Uncountable: an argument is an object that the replay could change (a cache, a graph …).
    """
    if isinstance(value, Mapping) and not isinstance(value, dict):
        value = dict(value)  # BatchEncoding, UserDict

    def leaf(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            if item.is_nested or item.layout != torch.strided:
                raise Uncountable("an argument is a sparse or nested tensor: a dense twin would be multiplied in full")
            kept = values and not (item.is_meta or item.is_floating_point()) and item.numel() <= LARGEST
            own = item.detach().cpu() if kept else None
            return Shape(tuple(item.shape), item.dtype, item.requires_grad, own)
        if isinstance(item, _PLAIN):
            return item
        if isinstance(item, Mapping):
            return {key: shapes(inner, values) for key, inner in item.items()}
        if type(item).__name__ == "BlockMask":
            return item if values else None  # flex_attention's; without it attention counts in full
        raise Uncountable(f"an argument of type {type(item).__name__} can't be copied to the meta device")

    found = tree_map(leaf, value)
    mask = found.get("attention_mask") if isinstance(found, dict) else None
    if isinstance(mask, Shape) and mask.values is not None and len(mask.size) == 2 and bool((mask.values <= 1).all()):
        found["attention_mask"] = replace(
            mask, values=torch.ones_like(mask.values)
        )  # padding is computed like the rest
    return found


def metas(value: Any, floating: torch.dtype | None = None, device: str = "meta") -> Any:
    """The arguments of `shapes` as meta tensors; `floating`: see `Shape.meta`."""

    def leaf(item: Any) -> Any:
        if isinstance(item, torch.device):
            return torch.device(device)
        if type(item).__name__ == "BlockMask":
            return item.to(device)
        return item.meta(floating, device) if isinstance(item, Shape) else item

    return tree_map(leaf, value)


def signature(value: Any, top: bool = True) -> Signature:
    """A hashable key of a batch: the shapes of its tensors, in order. Costs a few µs and no sync.

    Numbers and strings belong to it where they may be arguments of the call (a mode, a number of loops). In a list
    or deeper they are data (names, row numbers), with which every batch would have a key of its own.
    """
    if isinstance(value, torch.Tensor):
        return value.shape
    parts: list[Any] = []
    if isinstance(value, Mapping):
        for key, item in value.items():
            if item is not None:
                parts.append((key, item.shape if isinstance(item, torch.Tensor) else _item(item, top)))
        return tuple(parts)
    if isinstance(value, list | tuple):
        top = top and isinstance(value, tuple)
        told = top
        for item in value:
            tensor = isinstance(item, torch.Tensor)
            told = told or tensor or isinstance(item, Mapping | list | tuple)
            parts.append(item.shape if tensor else _item(item, top))
        if told:
            return tuple(parts)
    return (type(value).__name__,)


def _item(value: Any, top: bool) -> Signature:
    # a large number is data (tokens in the batch, a row): with it every batch would have a key of its own
    mode = isinstance(value, bool | str) or (isinstance(value, int) and abs(value) < 16)
    return (value,) if top and mode else signature(value, False)


def is_opaque(key: Any) -> bool:
    """True if a signature holds something whose size it can't see: a text to tokenise, an object with tensors."""
    if not isinstance(key, tuple):
        return False
    if len(key) == 1 and isinstance(key[0], str):
        return key[0] not in ("int", "float", "bool", "NoneType")
    return any(is_opaque(part) for part in key)


def sizes(value: Any) -> Signature:
    """A hashable key of a call's arguments as `shapes` gives them."""
    if isinstance(value, Shape):
        return value.size
    if isinstance(value, Mapping):
        return tuple([(key, sizes(item)) for key, item in value.items()])
    if isinstance(value, list | tuple):
        return tuple([sizes(item) for item in value])
    return (repr(value),)


def watch(module: nn.Module, before: Before, after: After | None = None) -> Callable[[], None]:
    """Call `before(args, kwargs)` ahead of each forward call of `module` and `after(output)` behind it.

    Only calls that train (`module.training`, gradients enabled) are seen. Returns the function that ends it.
    A module compiled in place (`module.compile()`) is wrapped from outside, for hooks would be compiled with it and
    a graph break in it is an error under `fullgraph=True`.
    """

    def pre_hook(hooked: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # a deep copy of the module (a teacher, an average of weights) has the hook too
        if hooked is module and hooked.training and torch.is_grad_enabled():
            before(args, kwargs)

    def post_hook(hooked: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if after is not None and hooked is module and hooked.training and torch.is_grad_enabled():
            after(output)

    return attach(module, _not_compiled(pre_hook), None if after is None else _not_compiled(post_hook))


def attach(module: nn.Module, pre_hook: Any, post_hook: Any = None, always: bool = False) -> Callable[[], None]:
    """Add hooks to a module, or around the call of one compiled in place; returns the function that removes them.

    `always`: the hook behind the call is called, with None, after an exception too.
    """
    compiled = getattr(module, "_compiled_call_impl", None)
    if compiled is not None:

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            pre_hook(module, args, kwargs)
            output = None
            try:
                output = compiled(*args, **kwargs)
            except BaseException:  # as always_call hooks do: whatever ended the call, and it is raised on
                if post_hook is not None and always:
                    post_hook(module, args, None)
                raise
            if post_hook is not None:
                post_hook(module, args, output)
            return output

        module._compiled_call_impl = wrapped

        def restore() -> None:
            module._compiled_call_impl = compiled

        return restore

    handles = [module.register_forward_pre_hook(_picklable(pre_hook), with_kwargs=True)]
    if post_hook is not None:
        handles.append(module.register_forward_hook(_picklable(post_hook), always_call=always))

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


_HOOKS: WeakValueDictionary[str, Any] = WeakValueDictionary()
_NUMBERS = itertools.count()


def _picklable(hook: Any) -> Any:
    """Let `torch.save(model)` go on working while the hook is on: pickle finds it as `calls.hook_<n>`.

    It must stay a plain function, for dynamo looks into anything else. Loaded again, it does nothing: `attach` ties a
    hook to one module, and in another process `__getattr__` below stands in.
    """
    hook.__name__ = hook.__qualname__ = f"hook_{next(_NUMBERS)}"
    hook.__module__ = __name__
    _HOOKS[hook.__name__] = hook
    return hook


def _no_hook(*_: Any) -> None:
    pass


def __getattr__(name: str) -> Any:
    if name.startswith("hook_"):
        return _HOOKS.get(name, _no_hook)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _not_compiled(function: Any) -> Any:
    # torch.compiler.disable(function) without its import of dynamo (1.7 s), needed by nobody who does not compile
    import sys

    if "torch._dynamo" in sys.modules:
        return torch.compiler.disable(function)
    function._torchdynamo_disable = True
    return function


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


class OutermostCalls:
    """Calls of a model's modules that no other of its modules made: together they are the forward pass.

    A LightningModule's `training_step` calls `self(x)`, or `self.encoder(x)` and then `self.decoder(z)`. Compiled
    modules are seen from outside only. Metrics (modules without parameters and without a differentiable output) are
    left out.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[Call] = []
        self.inputs: list[Any] = []
        """Autograd nodes of the calls' inputs; nodes, for tensors would keep the logits' memory."""
        self.outputs: list[Any] = []
        """Autograd nodes of their outputs."""
        self.problem: str | None = None
        self._model = model
        self._open: list[_Open] = []

    def start(self) -> Callable[[], None]:
        """Begin to collect calls; returns the function that ends it."""
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
    """Number of matrices that the loss depends on other than through the calls that were seen.

    Args:
        loss: `backward` will be called on it.
        outputs: autograd nodes of the calls' outputs (`OutermostCalls.outputs`): the walk from the loss back through
            the graph does not enter the calls.
        inputs: those of their inputs: the walk goes on from there, since between two calls there may be a product too
            (a tied head by hand between the model and `nn.CrossEntropyLoss`).
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
