"""FLOPs of one operator: our formulas, torch's where they are right, and those that a user registers.

Convention: 1 multiply-add = 2 FLOPs; matrix products and convolutions count; element-wise operations, softmax,
normalisation and look-ups count 0, as in Kaplan et al. 2020 (table 1) and Chowdhery et al. 2022 (appendix B).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from isoflop.flops.attention import arguments_of, kernel_flops

aten = torch.ops.aten

Formula = Callable[..., int]
"""(*args, out_val, **kwargs) of the operator, with its tensors → FLOPs."""


def _convolution_backward(grad: Any, x: Any, weight: Any, *rest: Any, **_: Any) -> int:
    # As many as the forward pass for each gradient that is wanted; torch's formula takes a grouped convolution's
    # for a full one (pytorch#183405).
    transposed, wanted = rest[-4], rest[-1]
    positions = x if transposed else grad
    forward = 2 * positions.shape[0] * math.prod(positions.shape[2:]) * weight.numel()
    return int(forward * sum(wanted[:2]))


def _vector_product(matrix: Any, *_: Any, **__: Any) -> int:
    return int(2 * matrix.numel())


def _grouped_product(a: Any, b: Any, *_: Any, **__: Any) -> int:
    # (M, K) × (G, K, N): every row meets one group. (M, K) × (K, N), cut along K: the weights' gradient.
    # (G, M, K) × (K, N), cut along N. (G, M, K) × (G, K, N): a batch.
    groups = a.shape[0] if a.dim() == b.dim() == 3 else 1
    return int(2 * groups * a.shape[-2] * a.shape[-1] * b.shape[-1])


def _matrix_product(a: Any, b: Any, *_: Any, **__: Any) -> int:
    # (M, K) × (K, N); of a sparse matrix what it holds is multiplied alone
    if a.layout != torch.strided or b.layout != torch.strided:
        sparse, other = (a, b.shape[-1]) if a.layout != torch.strided else (b, a.shape[-2])
        held = sparse._values() if sparse.layout == torch.sparse_coo else sparse.values()
        return int(2 * held.numel() * other)
    return int(2 * a.shape[-2] * a.shape[-1] * b.shape[-1])


def _encoder_layer(x: Any, *rest: Any, **_: Any) -> int:
    # a whole layer, or its attention alone: each position meets every matrix, and in QKᵀ and AV every other
    weights = [part for part in rest if isinstance(part, torch.Tensor) and part.dim() == 2 and part.is_floating_point()]
    positions, length, width = math.prod(x.shape[:-1]), x.shape[-2], x.shape[-1]
    return int(2 * positions * (sum(weight.numel() for weight in weights) + 2 * length * width))


def _recurrent(x: Any, *rest: Any, backward: bool = False, **_: Any) -> int:
    # an LSTM's or GRU's layer, or all of them: each position meets every matrix
    weights = rest[0] if isinstance(rest[0], list | tuple) else rest[:2]
    products = 2 * math.prod(x.shape[:-1]) * sum(weight.numel() for weight in weights if weight.dim() >= 2)
    return int(2 * products if backward else products)


def _with_sum(product: Formula) -> Formula:
    """The formula of an operator that adds a product to its first argument."""
    return lambda _sum, *args, **kwargs: product(*args, **kwargs)


FORMULAS: dict[Any, Formula] = {
    aten.convolution_backward: _convolution_backward,
    aten.mm: _matrix_product,
    aten.addmm: _with_sum(_matrix_product),
    # torch has none for these
    aten.mv: _vector_product,
    aten.dot: _vector_product,
    aten.vdot: _vector_product,
    aten.addmv: _with_sum(_vector_product),
    aten.addr: lambda _sum, a, b, *_, **__: 2 * a.numel() * b.numel(),
    aten.addbmm: _with_sum(_grouped_product),
    aten._grouped_mm: _grouped_product,
    aten._scaled_grouped_mm: _grouped_product,
    aten._int_mm: _grouped_product,
    aten._sparse_addmm: _with_sum(_matrix_product),
    aten._weight_int8pack_mm: lambda a, b, *_, **__: 2 * a.shape[-2] * b.numel(),
    # Apple's and MKL-DNN's kernels take a whole layer
    aten.linear: lambda x, weight, *_, **__: 2 * x.numel() * weight.numel() // x.shape[-1],
    aten.linear_backward: lambda _x, grad, weight, wanted, **_: 2 * grad.numel() * weight.shape[-1] * sum(wanted[:2]),
    aten._transformer_encoder_layer_fwd: _encoder_layer,
    aten._native_multi_head_attention: lambda query, _key, _value, *args, **kw: _encoder_layer(query, *args, **kw),
}
"""Operators whose formula is ours: it goes before torch's."""
for _name in ("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn"):
    FORMULAS[getattr(aten, _name)] = _recurrent
    FORMULAS[getattr(aten, f"{_name}_backward")] = functools.partial(_recurrent, backward=True)
for _name in ("_scaled_mm_v2", "_scaled_grouped_mm_v2"):  # from torch 2.10 on
    if hasattr(aten, _name):
        FORMULAS[getattr(aten, _name)] = _grouped_product

_NAMED: dict[str, Formula] = {}
"""Formulas of the user's, by operator name."""

WITHOUT_PRODUCTS = {"aten", "prims", "c10d", "_c10d_functional", "_dtensor", "fsdp", "profiler", "inductor"}
"""Namespaces of torch's own operators, which multiply next to nothing where they have no formula …"""
HEAVY = {
    *("_trilinear", "_cdist_forward", "_fft_r2c", "_fft_c2r", "_fft_c2c", "_weight_int4pack_mm"),
}
"""… but for these."""

BATCHED_PRODUCTS = {aten.bmm, aten.baddbmm}


def register_flop_formula(operator: Any, formula: Formula) -> None:
    """Say what a custom operator computes (a fused attention or loss), where isoflop counts it 0 and names it.

    Args:
        operator: its qualified name, "my_library::my_attention", or the operator itself (`torch.ops.my_library.my_…`,
            or what `@torch.library.custom_op` made of a function). The backward pass, where it is an operator too,
            has a formula of its own.
        formula: called as the operator is, `formula(*args, out_val=result, **kwargs)`, with tensors that have shapes
            but maybe no values; returns FLOPs (1 multiply-add = 2). The last one registered counts.

    Raises:
        ValueError: neither a name with "::" nor an operator; or `formula` can't be called.

    >>> def cube_flops(x, *, out_val, **_):
    ...     return 2 * 2 * x.shape[-1] ** 3
    >>> register_flop_formula("my_library::cube", cube_flops)
    """
    if not callable(formula):
        raise ValueError(f"expected a function (*args, out_val, **kwargs) → FLOPs, got {formula!r}")
    name = operator if isinstance(operator, str) else operator_name(operator)
    if name is None or name.count("::") != 1 or not all(name.split("::")):
        raise ValueError(
            f'expected an operator or its qualified name ("library::operator"), got {operator!r}; a plain function is '
            "no operator: give it @torch.library.custom_op"
        )
    _NAMED[name.removesuffix(".default")] = formula


def operator_name(operator: Any) -> str | None:
    """The qualified name of an overload, a packet of them or a custom operator; None for anything else."""
    operator = getattr(operator, "_opoverload", operator)  # @torch.library.custom_op
    packet = getattr(operator, "overloadpacket", operator)
    name = getattr(packet, "_qualified_op_name", None)
    if name is not None:
        return str(name)
    name = getattr(packet, "_name", None)  # a higher-order operator
    return f"higher_order::{name}" if isinstance(packet, torch._ops.HigherOrderOperator) else None


def formula_of(packet: Any) -> Formula | None:
    """The formula of an operator (a packet of overloads): the user's, ours, torch's; None: it has none."""
    formula = _NAMED.get(getattr(packet, "_qualified_op_name", "")) or FORMULAS.get(packet)
    if formula is None:
        formula = flop_registry.get(packet)
        if takes_qkv(packet):
            formula = lambda *args, out_val=None, **kwargs: kernel_flops(packet, args, kwargs)[0]  # noqa: E731
        if formula is not None:
            FORMULAS[packet] = formula
    return formula


def counted_for_nothing(packet: Any, namespace: str) -> bool:
    """True if an operator without a formula may compute much: it is custom, or one of torch's heavy ones."""
    return namespace not in WITHOUT_PRODUCTS or packet.__name__ in HEAVY


def is_attention_kernel(packet: Any) -> bool:
    """True if an operator with a formula is a whole attention: two products of activations at once."""
    return any(word in str(packet) for word in ("attention", "flash_attn", "varlen_attn"))


@functools.cache
def takes_qkv(packet: Any) -> bool:
    """True if an operator of torch or another library is an attention whose schema names a query, a key and a value."""
    return is_attention_kernel(packet) and {"query", "key", "value"} <= set(arguments_of(packet))
