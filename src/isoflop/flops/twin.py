"""A twin of the live model on the meta device: the same code and shapes, no memory, no arithmetic.

What runs on the twin cannot touch the live model: parameters and buffers are new meta tensors (tied ones stay tied,
`requires_grad` is kept, a sharded one gets its whole shape), containers, generators and plain objects that modules
hold are copied. The live model is never run, swapped or hooked for it, so a sharded or compiled
one can be measured too.

Around a replay, `stand_ins` replaces functions that can't run on the meta device by the same mathematics in plain
torch, only where the library that holds them is loaded. What a user's forward keeps outside of the model is changed by
a replay: it belongs into a process of its own (`isoflop.flops.apart`).
"""

from __future__ import annotations

import copy
import inspect
import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MethodType, ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from isoflop.flops.attention import pairs_of_blocks
from isoflop.flops.calls import Uncountable
from isoflop.flops.parameters import full_shape, original_class, unwrap
from isoflop.flops.values import with_values


@contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """Around a replay of `model`, a twin."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.autocast, "__init__", _autocast))
        stack.enter_context(patch.object(torch, "is_autocast_enabled", _is_autocast_enabled))
        flex = sys.modules.get("torch.nn.attention.flex_attention")
        if flex is not None:
            # it refuses the meta device, and compiles itself
            stack.enter_context(
                patch.multiple(
                    flex,
                    _validate_device=lambda *_: None,
                    flex_attention_hop=_flex_attention,
                    _FLEX_ATTENTION_DISABLE_COMPILE_DEBUG=True,
                )
            )
        for home in {sys.modules.get(type(module).__module__) for module in model.modules()}:
            if home is not None and home.__name__.startswith("transformers"):
                references = _reference_implementations(home)
                if references:
                    stack.enter_context(patch.multiple(home, **references))
        yield


_AUTOCAST, _IS_AUTOCAST_ENABLED = torch.autocast.__init__, torch.is_autocast_enabled


def _autocast(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
    """`torch.autocast(x.device.type, …)`, as rotary embeddings begin: torch has none for meta, and FLOPs no dtype."""
    if device_type == "meta":
        _AUTOCAST(self, "cpu", enabled=False)
    else:
        _AUTOCAST(self, device_type, *args, **kwargs)


def _is_autocast_enabled(*device_type: str) -> bool:
    return device_type != ("meta",) and _IS_AUTOCAST_ENABLED(*device_type)


def _flex_attention(query: Any, key: Any, value: Any, _: Any, block_mask: Any, *__: Any, **___: Any) -> tuple[Any, ...]:
    """flex_attention with its block mask, (…, H, T, K), grouped queries or not."""
    groups = query.shape[-3] // key.shape[-3]
    key, value = (part.repeat_interleave(groups, dim=-3) if groups > 1 else part for part in (key, value))
    scores = query @ key.mT
    allowed = pairs_of_blocks(block_mask, query.shape[-2], key.shape[-2], "cpu")
    if allowed is not None:
        mask = with_values(torch.empty(allowed.shape, dtype=torch.bool, device="meta"), allowed)
        scores = torch.where(mask, scores, float("-inf"))
    return scores.softmax(-1) @ value, scores[..., 0], scores[..., 0]


def _reference_implementations(home: ModuleType) -> dict[str, Any]:
    """Plain torch of what Hugging Face replaces by an installed kernel (mamba_ssm, fla, causal_conv1d), by name."""
    found: dict[str, Any] = {}
    for name, function in vars(home).items():
        if not inspect.isfunction(function) or not hasattr(function, "__wrapped__"):
            continue
        reference = inspect.unwrap(function)
        if function.__code__.co_filename.endswith("hub_kernels.py") and reference.__module__ == home.__name__:
            found[name] = _selective_scan if name == "mamba_selective_scan" else reference
    return found


def _selective_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *_: Any,
    return_last_state: bool = False,
    **__: Any,
) -> Any:
    """Mamba's scan (Gu & Dao 2023, algorithm 2) for all positions at once: its one product is of the states with C.

    The reference goes from position to position in Python: minutes for a length of 2,048, on meta tensors too.
    hidden_states, dt (B, D, S); A (D, N); B, C (B, N, S).
    """
    dt = F.softplus(dt)[..., None]
    states = torch.exp(A[None, :, None] * dt) * dt * B.transpose(1, 2)[:, None] * hidden_states[..., None]
    out = states.transpose(1, 2).to(hidden_states.dtype) @ C.transpose(1, 2)[..., None].to(hidden_states.dtype)
    out = out.squeeze(-1).transpose(1, 2)
    return (out, states[:, :, -1]) if return_last_state else out


class DequantizedLinear(nn.Linear):
    """A layer with 4- or 8-bit weights: a product with all of them, in the input's dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


_HOOKS = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_TRAINING = {"use_cache": False}
"""As Hugging Face's Trainer has it: with a cache, documents that positions tell apart are not told apart."""
_WRITTEN_OUT = {"_attn_implementation_internal": "eager", "_experts_implementation_internal": "batched_mm"}
"""Hugging Face's attention and experts in plain torch, which multiply as flash_attention_2, hub kernels and grouped
products do: these need a GPU."""
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
        for module in self.root.modules():
            settings = getattr(vars(module).get("config"), "__dict__", {})
            other = {**(_TRAINING if device == "meta" else {}), **(_WRITTEN_OUT if written_out else {})}
            settings.update({name: value for name, value in other.items() if name in settings})

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
                kept = {key: hook for key, hook in hooks.items() if not _shards(hook)}
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
        """Copy of a plain attribute: modules and tensors become their twins; what a forward may change is copied."""
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


def _shards(hook: Any) -> bool:
    """True for a hook that gathers a sharded module's parameters, which the twin has whole.

    The user's and a library's hooks stay: they choose what is computed with (features, hidden states, a frozen model's
    embeddings that need a gradient).
    """
    home = str(getattr(inspect.unwrap(hook), "__module__", None) or type(hook).__module__)
    return home.startswith(("torch.distributed", "deepspeed", "accelerate"))


def _wraps_method(module: nn.Module, name: str, value: Any) -> bool:
    """True if an instance's attribute wraps the class's method of that name, which the twin has.

    Such are a forward under autocast (accelerate), compiled (`model.forward = torch.compile(model.forward)`) or
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
