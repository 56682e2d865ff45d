"""During a replay, what can't run on the meta device is taken over: kernels by the same mathematics written out.

Only functions are replaced, for the length of a `with` block, and only where the library that holds them is loaded.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn


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
                    flex_attention_hop=_attention_in_full,
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


def _attention_in_full(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple[Any, Any, Any]:
    """flex_attention: whatever its masks leave out, attention counts in full. (…, H, T, K), grouped queries or not."""
    groups = query.shape[-3] // key.shape[-3]
    key, value = (part.repeat_interleave(groups, dim=-3) if groups > 1 else part for part in (key, value))
    scores = query @ key.mT
    return scores.softmax(-1) @ value, scores[..., 0], scores[..., 0]


def _reference_implementations(home: ModuleType) -> dict[str, Any]:
    """Hugging Face wraps a reference in plain torch by whatever kernel is installed (mamba_ssm, fla, causal_conv1d)."""
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
    """What a layer with 4- or 8-bit weights computes: a product with all of them, in the input's dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (…, in) to (…, out)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


def write_out(module: nn.Module) -> None:
    """Let a copy of a Hugging Face module choose attention and experts that plain torch can compute on meta.

    flash_attention_2, hub kernels and grouped products need a GPU; `eager` and `batched_mm` multiply the same.
    """
    config = vars(module).get("config")
    if config is None:
        return
    for name, plain in (("_attn_implementation_internal", "eager"), ("_experts_implementation_internal", "batched_mm")):
        if name in vars(config):
            vars(config)[name] = plain
