"""A twin of the live model on the meta device: the same code and shapes, no memory, no arithmetic.

What runs on the twin cannot touch the live model: parameters and buffers are new meta tensors (tied ones stay tied,
`requires_grad` is kept, a sharded one gets its whole shape), lists and dicts that modules hold are copied, hooks are
left out. The live model is never run, swapped or hooked for it, so a sharded or compiled one can be measured too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from isoflop.observe.parameters import full_shape

_HOOKS = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def meta_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A meta tensor of the same shape, dtype and `requires_grad`."""
    twin = torch.empty(full_shape(tensor), dtype=tensor.dtype, device="meta")
    return twin.requires_grad_(tensor.requires_grad)


class Twin:
    """`Twin(model)[module]` is the copy of `module`, any module inside `model`."""

    def __init__(self, model: nn.Module) -> None:
        self._copies: dict[int, Any] = {}
        self._alive: list[Any] = []  # ids in _copies stay valid only while their objects live
        self.root = self._module(model)
        self.parameters: dict[str, nn.Parameter] = dict(self.root.named_parameters())

    def __getitem__(self, module: nn.Module) -> nn.Module:
        copy = self._copies.get(id(getattr(module, "_orig_mod", module)))
        if copy is None:
            raise KeyError(f"{type(module).__name__} is not part of the model that was copied")
        return copy

    def _module(self, module: nn.Module) -> nn.Module:
        module = getattr(module, "_orig_mod", module)  # torch.compile's wrapper: the twin runs eagerly
        if id(module) in self._copies:
            return self._copies[id(module)]
        copy = module.__class__.__new__(module.__class__)
        self._remember(module, copy)
        state = dict(module.__dict__)
        for name in ("_parameters", "_buffers", "_modules"):
            held = state.pop(name, {})
            object.__setattr__(copy, name, {key: self._module_part(value) for key, value in held.items()})
        for name in _HOOKS:
            if name in state:
                object.__setattr__(copy, name, type(state.pop(name))())
        state.pop("forward", None)  # a wrapped forward (autocast, liger …) is bound to the live module
        state["_compiled_call_impl"] = None
        for name, value in state.items():
            object.__setattr__(copy, name, self._attribute(value))
        return copy

    def _module_part(self, value: Any) -> Any:
        return self._module(value) if isinstance(value, nn.Module) else self._tensor(value)

    def _tensor(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self._copies:
            twin = meta_tensor(value)
            if isinstance(value, nn.Parameter):
                twin = nn.Parameter(twin.detach(), requires_grad=value.requires_grad)
            self._remember(value, twin)
        return self._copies[id(value)]

    def _attribute(self, value: Any, depth: int = 0) -> Any:
        """Copy of a plain attribute: modules of the tree and tensors become their twins, containers are copied."""
        if isinstance(value, nn.Module):
            return self._copies.get(id(value), value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, MethodType) and id(value.__self__) in self._copies:
            return MethodType(value.__func__, self._copies[id(value.__self__)])
        if depth < 2:
            if type(value) is dict:
                return {key: self._attribute(item, depth + 1) for key, item in value.items()}
            if type(value) in (list, tuple, set):
                return type(value)(self._attribute(item, depth + 1) for item in value)
        return value

    def _remember(self, original: Any, copy: Any) -> None:
        self._copies[id(original)] = copy
        self._alive.append(original)


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Whatever runs inside draws no number from the generators that training draws from."""
    import random

    import numpy as np

    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
