"""A twin of the live model on the meta device: the same code and shapes, no memory, no arithmetic.

What runs on the twin cannot touch the live model: parameters and buffers are new meta tensors (tied ones stay tied,
`requires_grad` is kept, a sharded one gets its whole shape), containers, generators and plain objects that modules
hold are copied, hooks are left out. The live model is never run, swapped or hooked for it, so a sharded or compiled
one can be measured too.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from isoflop.observe.calls import Uncountable
from isoflop.observe.parameters import full_shape, original_class, unwrap
from isoflop.observe.stand_ins import DequantizedLinear, write_out

_HOOKS = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
# A LightningModule logs through these: `self.log` in a forward would put the twin's loss into the live results
_LOGGING = ("_trainer", "_fabric")
# bitsandbytes' linear layers
_QUANTIZED = ("Linear4bit", "LinearNF4", "LinearFP4", "Linear8bitLt")
_LONG = 1000
"""A container with more items holds data: it is shared, not copied."""


def meta_tensor(tensor: torch.Tensor, floating: torch.dtype | None = None, device: str = "meta") -> torch.Tensor:
    """An empty tensor of the same shape, dtype and `requires_grad`; `floating`: dtype of a floating-point one."""
    if tensor.is_nested or tensor.layout != torch.strided:
        raise Uncountable("the model holds a sparse or nested tensor: a dense twin would be multiplied in full")
    dtype = tensor.dtype
    if getattr(tensor, "quant_state", None) is not None:
        dtype = torch.bfloat16  # what it is multiplied as; 4-bit weights lie packed in bytes
    if floating is not None and dtype.is_floating_point:
        dtype = floating
    twin = torch.empty(full_shape(tensor), dtype=dtype, device=device)
    return twin.requires_grad_(tensor.requires_grad)


class Twin:
    """`Twin(model)[module]` is the copy of `module`, any module inside `model`.

    `floating`: in that dtype. `written_out`: with attention and experts in plain torch, where the model has a choice.
    `device`: another than "meta" for fake tensors, under whose mode it is made then.
    """

    def __init__(
        self,
        model: nn.Module,
        floating: torch.dtype | None = None,
        written_out: bool = False,
        device: str = "meta",
    ) -> None:
        self.floating = floating
        self._device = device
        self._copies: dict[int, Any] = {}
        self._alive: list[Any] = []  # ids in _copies stay valid only while their objects live
        self.root = self._module(model)
        live = dict(unwrap(model).named_parameters())
        # by the live model's names: the twin has no wrappers of torch.compile and DDP in them
        self.parameters: dict[str, nn.Parameter] = {name: self._tensor(parameter) for name, parameter in live.items()}
        if written_out:
            for module in self.root.modules():
                write_out(module)

    def __getitem__(self, module: nn.Module) -> nn.Module:
        twin = self._copies.get(id(unwrap(module)))
        if twin is None:
            raise KeyError(f"{type(module).__name__} is not part of the model that was copied")
        return twin

    def _module(self, module: nn.Module) -> nn.Module:
        module = unwrap(module)
        if id(module) in self._copies:
            return self._copies[id(module)]
        if type(module).__name__ == "FullyShardedDataParallel":
            raise Uncountable("FullyShardedDataParallel (FSDP1) holds flat shards, not the model's shapes; use FSDP2")
        kind = original_class(module)
        if kind.__name__ in _QUANTIZED and isinstance(module, nn.Linear):
            kind = DequantizedLinear
        twin = kind.__new__(kind)
        self._remember(module, twin)
        state = dict(module.__dict__)
        for name in ("_parameters", "_buffers", "_modules"):
            held = state.pop(name, {})
            object.__setattr__(twin, name, {key: self._module_part(value) for key, value in held.items()})
        for name in _HOOKS:
            if name in state:
                hooks = state.pop(name)
                kept = {key: hook for key, hook in hooks.items() if requires_gradients(hook)}
                object.__setattr__(twin, name, type(hooks)(kept))
        state["_compiled_call_impl"] = None
        state.update(dict.fromkeys(_LOGGING & state.keys()))
        for name, value in state.items():
            if not _wraps_method(module, name, value):
                object.__setattr__(twin, name, self._attribute(value))
        return twin

    def _module_part(self, value: Any) -> Any:
        return self._module(value) if isinstance(value, nn.Module) else self._tensor(value)

    def _tensor(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self._copies:
            twin = meta_tensor(value, self.floating, self._device)
            if isinstance(value, nn.Parameter):
                twin = nn.Parameter(twin.detach(), requires_grad=value.requires_grad)
            self._remember(value, twin)
        return self._copies[id(value)]

    def _attribute(self, value: Any, in_object: bool = False) -> Any:
        """Copy of a plain attribute: modules and tensors become their twins, what a forward may change is copied."""
        if isinstance(value, nn.Module | torch.Tensor):
            return self._module_part(value)
        if id(value) in self._copies:
            return self._copies[id(value)]
        if isinstance(value, torch.device):
            return torch.device(self._device)  # torch.arange(…, device=self.device)
        if isinstance(value, torch.Generator):
            return value.clone_state()
        if isinstance(value, random.Random | np.random.Generator | np.random.RandomState):
            return copy.deepcopy(value)
        if isinstance(value, MethodType):
            return MethodType(value.__func__, self._attribute(value.__self__, in_object))
        if type(value) is partial:
            function, *arguments = (self._attribute(item, in_object) for item in (value.func, *value.args))
            return partial(function, *arguments, **self._attribute(value.keywords, in_object))
        if isinstance(value, dict | list | tuple | set | deque):
            return self._container(value, in_object) if len(value) <= _LONG else value
        # An object of a plain Python class, such as a cache or a running mean; not what that holds in turn, and none
        # that does something when it goes
        kind: Any = type(value)
        plain = kind.__new__ is object.__new__ and not hasattr(kind, "__del__")
        if in_object or not plain or type(getattr(value, "__dict__", None)) is not dict:
            return value
        twin = object.__new__(kind)
        self._remember(value, twin)
        twin.__dict__.update({key: self._attribute(item, True) for key, item in value.__dict__.items()})
        return twin

    def _container(self, value: Any, in_object: bool) -> Any:
        if isinstance(value, tuple):
            items = [self._attribute(item, in_object) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        twin = copy.copy(value)
        self._remember(value, twin)
        if isinstance(value, dict):
            for key, item in value.items():
                twin[key] = self._attribute(item, in_object)
        else:
            twin.clear()
            add = twin.add if isinstance(value, set) else twin.append
            for item in value:
                add(self._attribute(item, in_object))
        return twin

    def _remember(self, original: Any, twin: Any) -> None:
        self._copies[id(original)] = twin
        self._alive.append(original)


def requires_gradients(hook: Any) -> bool:
    """Hugging Face's and PEFT's hook behind a frozen model's embeddings: `output.requires_grad_(True)`.

    The one hook that FLOPs hang on, and it touches nothing else: without it reentrant checkpointing gives adapters no
    gradient, and with it the backward pass goes down to the embeddings.
    """
    return getattr(hook, "__qualname__", "").endswith(("make_inputs_require_grads", "make_inputs_require_grad"))


def _wraps_method(module: nn.Module, name: str, value: Any) -> bool:
    """Whether an instance's attribute is a wrapper around the class's method of that name: the twin has the method.

    So are a forward under autocast (accelerate), compiled (`model.forward = torch.compile(model.forward)`) or
    redirected (Lightning), and torchmetrics' update.
    """
    method = getattr(type(module), name, None)
    if not inspect.isfunction(method) or not callable(value) or isinstance(value, nn.Module):
        return False
    inner = inspect.unwrap(value)
    if getattr(inner, "__func__", inner) in (method, inspect.unwrap(method)):
        return True
    if isinstance(value, MethodType | partial) or name != "forward":
        return False
    raise Uncountable(f"{type(module).__name__}.forward is replaced by a function that can't be bound to a copy of it")


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Whatever runs inside draws no number from the generators that training draws from."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
