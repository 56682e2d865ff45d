"""FLOPs of what runs inside a `with` block, counted at torch's dispatcher, matrix products and convolutions.

Convention: 1 multiply-add = 2 FLOPs; element-wise operations, softmax, normalisation and look-ups count 0, as in
Kaplan et al. 2020 (table 1) and Chowdhery et al. 2022 (appendix B). torch's own formulas are used where they are
right; `FORMULAS` holds ours. torch's `FlopCounterMode` itself is not used: it counts recomputation under activation
checkpointing as model FLOPs, SDPA on CPU as 0, and switches torch.compile off for good (pytorch#190286).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import flop_registry

from isoflop.observe.leaks import Made

aten = torch.ops.aten

Formula = Callable[..., int]
"""(*args, out_val, **kwargs) of the operator, with its tensors → FLOPs."""


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one forward and backward pass, exact integers.

    `model`: what the mathematics needs (Chowdhery et al. 2022: "model FLOPs"), attention in full.
    `hardware`: with what activation checkpointing computes again.
    `attention`: the part of `model` in products of two activations (QKᵀ, AV and their gradients); a causal mask
    would need half of it.
    """

    model: int
    hardware: int
    attention: int

    @property
    def causal(self) -> int:
        """Model FLOPs with attention counted half: what a causal kernel that skips the masked blocks computes."""
        return self.model - self.attention // 2

    def __add__(self, other: FlopCount) -> FlopCount:
        return FlopCount(self.model + other.model, self.hardware + other.hardware, self.attention + other.attention)

    def __mul__(self, times: int) -> FlopCount:
        return FlopCount(self.model * times, self.hardware * times, self.attention * times)


def attention_forward_flops(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    """FLOPs of QKᵀ and AV in full; query (…, H, T, K), key (…, H or fewer, S, K), value (…, S, V)."""
    *batch_heads, t, k = query.shape
    s, v = value.shape[-2], value.shape[-1]
    return 2 * math.prod(batch_heads) * t * s * (k + v)


def _sdpa_forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return attention_forward_flops(query, key, value)


def _sdpa_backward(_grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    # Two products for each of the forward's two. A fused kernel computes QKᵀ once more (2.5×, as torch's formula
    # for CUDA has it): that is recomputation, no model FLOPs.
    return 2 * attention_forward_flops(query, key, value)


def _convolution_backward(
    grad: Any,
    x: Any,
    weight: Any,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    *rest: Any,
    **_: Any,
) -> int:
    # As many as the forward pass for each gradient that is wanted; torch's formula takes a grouped convolution's
    # for a full one (pytorch#183405).
    positions = x if transposed else grad
    forward = 2 * positions.shape[0] * math.prod(positions.shape[2:]) * weight.numel()
    return int(forward * sum(rest[-1][:2]))


def _vector_product(matrix: Any, *_: Any, **__: Any) -> int:
    return int(2 * matrix.numel())


def _added_vector_product(_bias: Any, matrix: Any, *_: Any, **__: Any) -> int:
    return int(2 * matrix.numel())


def _grouped_product(a: Any, b: Any, *_: Any, **__: Any) -> int:
    # (M, K) × (G, K, N): every row meets one group. (M, K) × (K, N), cut along K: the weights' gradient.
    # (G, M, K) × (K, N), cut along N. (G, M, K) × (G, K, N): a batch.
    groups = a.shape[0] if a.dim() == b.dim() == 3 else 1
    return int(2 * groups * a.shape[-2] * a.shape[-1] * b.shape[-1])


FORMULAS: dict[Any, Formula] = {
    # torch has no formula for attention on CPU (pytorch#195460)
    aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward,
    aten._scaled_dot_product_flash_attention_backward: _sdpa_backward,
    aten._scaled_dot_product_efficient_attention_backward: _sdpa_backward,
    aten._scaled_dot_product_cudnn_attention_backward: _sdpa_backward,
    aten.convolution_backward: _convolution_backward,
    # torch has none for these
    aten.mv: _vector_product,
    aten.dot: _vector_product,
    aten.addmv: _added_vector_product,
    aten._grouped_mm: _grouped_product,
}
"""Operators whose formula is ours: it goes before torch's."""

_ATTENTION_KERNELS = {
    operator for operator in (*flop_registry, *FORMULAS) if "attention" in str(operator) and "flex" not in str(operator)
}
_WITHOUT_PRODUCTS = {"aten", "prims", "c10d", "_c10d_functional", "_dtensor", "fsdp", "profiler"}
"""Namespaces of torch's own operators: what has no formula there multiplies nothing to speak of."""
_BATCHED_PRODUCTS = {aten.bmm, aten.baddbmm}


class FlopCounter(TorchDispatchMode):
    """Counts the FLOPs of the operators that run inside it; changes nothing of what they compute.

    `on_operator(packet, args, kwargs, output, is_forward)`, if given, sees every operator (the parameters' tracer
    listens there); it may return True to say that the operator's operands hold a parameter. `made`, if given, gets a
    weak reference to every tensor that an operator returns.
    """

    def __init__(self, on_operator: Callable[..., bool] | None = None, made: Made | None = None) -> None:
        super().__init__()
        self._made = made
        self._on_operator = on_operator
        self.without_formula: set[str] = set()
        """Custom operators (a fused attention or loss), counted 0 because nobody has said what they compute."""
        self._model = 0
        self._recomputed = 0
        self._attention = 0

    @property
    def count(self) -> FlopCount:
        """What has been counted so far."""
        return FlopCount(self._model, self._model + self._recomputed, self._attention)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # questions about a tensor, which the dispatcher does not know
            return func(*args, **kwargs)
        if self._made is not None:
            args, kwargs = _without_values((args, kwargs))
        packet = func._overloadpacket
        formula = FORMULAS.get(packet) or flop_registry.get(packet)
        if formula is None and func._can_decompose():
            # a composite operator reaches us whole only without autograd; its parts are what has formulas
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        if formula is None and func.namespace not in _WITHOUT_PRODUCTS:
            self.without_formula.add(str(packet))
        out = func(*args, **kwargs)
        if self._made is not None:
            outputs = out if isinstance(out, tuple | list) else (out,)
            self._made += [ref(item) for item in outputs if isinstance(item, torch.Tensor)]
        in_backward = torch._C._current_graph_task_id() != -1
        on_parameter = self._on_operator is not None and self._on_operator(packet, args, kwargs, out, not in_backward)
        if formula is not None:
            flops = int(formula(*args, **kwargs, out_val=out))
            # inside a backward pass only checkpointing's second forward runs with gradients enabled
            again = in_backward and torch.is_grad_enabled()
            if again:
                self._recomputed += flops
            else:
                self._model += flops
            if packet in _ATTENTION_KERNELS:
                self._attention += 0 if again else flops
            elif packet in _BATCHED_PRODUCTS and not on_parameter:
                self._attention += _attention_part(packet, args, flops, in_backward, again)
        return out


def _without_values(args: Any) -> Any:
    """In a replay: a tensor that the live model keeps outside of itself (a table of angles) as a meta tensor.

    Only where it meets a meta tensor: what is computed of real ones alone may decide a branch (LayerDrop).
    """
    leaves, spec = tree_flatten(args)
    real = [isinstance(leaf, torch.Tensor) and not _is_meta(leaf) for leaf in leaves]
    if not any(real) or not any(isinstance(leaf, torch.Tensor) and _is_meta(leaf) for leaf in leaves):
        return args
    for i, leaf in enumerate(leaves):
        if real[i]:
            leaves[i] = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
    return tree_unflatten(leaves, spec)


def _is_meta(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "meta" or isinstance(tensor, FakeTensor)


def _attention_part(packet: Any, args: tuple[Any, ...], flops: int, in_backward: bool, again: bool) -> int:
    """FLOPs of a product of two activations and of its gradients, two products of the same size.

    Both are counted at the forward pass, where activations can still be told from weights. Reentrant checkpointing
    runs that without gradients, and only its second forward knows which operands need them.
    """
    operands = args[1:3] if packet is aten.baddbmm else args[:2]
    gradients = flops * sum(bool(operand.requires_grad) for operand in operands)
    if again:
        node = torch._C._current_autograd_node()
        return gradients if node is not None and "CheckpointFunction" in node.name() else 0
    return 0 if in_backward else flops + (gradients if torch.is_grad_enabled() else 0)
