"""FLOPs by formula: of one operator (ours, torch's where they are right, those that a user registers), and published
ones of a transformer, by its shape.

Convention: 1 multiply-add = 2 FLOPs; matrix products and convolutions count; element-wise operations, softmax,
normalisation and look-ups count 0, as in Kaplan et al. 2020 (table 1) and Chowdhery et al. 2022 (appendix B).

Each published formula gives the training FLOPs of one token in a sequence of `length` tokens: forward and backward, the
backward pass twice the forward, exact in integers. Causal masks halve nothing, except in Kaplan's. They are used where
a model cannot be measured; `GIVEN` … `SIX_ND` name the ways to a step's FLOPs, the best first.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from isoflop.flops.attention import arguments_of, kernel_flops
from isoflop.guard import attempt

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
HEAVY = {"_trilinear", "_cdist_forward", "_fft_r2c", "_fft_c2r", "_fft_c2c", "_weight_int4pack_mm"}
DECOMPOSES = re.compile(r"_?linalg_(?!check_errors|vector_norm|cross|diagonal)|cholesky_|lu_|triangular_|geqrf|ormqr")
"""… but for these: decompositions and solvers cost as much as products of their matrices."""

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


def real_products(packet: Any, output: Any) -> int:
    """Multiply-adds of real numbers in one of an operator's: of complex numbers 4; a user's formula says it all."""
    is_theirs = getattr(packet, "_qualified_op_name", "") in _NAMED
    return 4 if isinstance(output, torch.Tensor) and output.is_complex() and not is_theirs else 1


def counted_for_nothing(packet: Any, namespace: str) -> bool:
    """True if an operator without a formula may compute much: it is custom, or one of torch's heavy ones."""
    name = packet.__name__
    return namespace not in WITHOUT_PRODUCTS or name in HEAVY or DECOMPOSES.match(name) is not None


def is_attention_kernel(packet: Any) -> bool:
    """True if an operator with a formula is a whole attention: two products of activations at once."""
    return any(word in str(packet) for word in ("attention", "flash_attn", "varlen_attn"))


@functools.cache
def takes_qkv(packet: Any) -> bool:
    """True if an operator of torch or another library is an attention whose schema names a query, a key and a value."""
    return is_attention_kernel(packet) and {"query", "key", "value"} <= set(arguments_of(packet))


GIVEN = "flops_per_token given by the user"
OBSERVED = "observed in training"
APART = "measured apart from the training, on the meta device"
MEASURED = "measured on the meta device"
WATCHED = "measured on one real step"
ESTIMATED = "estimated from the nearest counted length"
FORMULA = "formula 6·N + 12·L·H·Q·T per token (PaLM, appendix B)"
SIX_ND = "6·N·D, N non-embedding"


def _positive(**sizes: Any) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
            raise ValueError(f"expected {name} to be a positive integer, got {size!r}")


@dataclass(frozen=True, kw_only=True)
class TransformerShape:
    """Sizes that attention's FLOPs depend on: L layers of H heads, each with queries of Q numbers."""

    layers: int
    heads: int
    head_dim: int

    def __post_init__(self) -> None:
        _positive(layers=self.layers, heads=self.heads, head_dim=self.head_dim)

    @property
    def attention_width(self) -> int:
        """All heads' queries side by side (Kaplan's d_attn)."""
        return self.heads * self.head_dim


def six_n(params: int) -> int:
    """6N: two FLOPs a parameter forward, four backward; attention left out.

    Args:
        params: N; non-embedding in Kaplan et al. 2020 (sec. 2.1), total in Hoffmann et al. 2022 (table A4).

    >>> six_n(85_056_000)
    510336000
    """
    _positive(params=params)
    return 6 * params


def kaplan(non_embedding: int, shape: TransformerShape, length: int) -> int:
    """3 · (2N + 2·n_layer·n_ctx·d_attn): Kaplan et al. 2020, table 1 and eq. 2.2 (where d_attn = d_model).

    Its attention is half of QKᵀ and AV in full, and so right for a causal mask that is made use of. The head's
    product is left out, for N has no embedding.
    """
    _positive(non_embedding=non_embedding, length=length)
    return 3 * (2 * non_embedding + 2 * shape.layers * length * shape.attention_width)


def palm(params: int, shape: TransformerShape, length: int) -> int:
    """6N + 12·L·H·Q·T: Chowdhery et al. 2022, appendix B.

    Args:
        params: N, total in the paper; of a mixture of experts what a token passes through. With the matrices alone
            (non-embedding and head) the formula is exact: an untied embedding, a position table, a bias or a norm
            multiplies nothing.
        shape: layers, heads and their dimension.
        length: T, tokens a sequence.

    >>> palm(124_439_808, TransformerShape(layers=12, heads=12, head_dim=64), length=1024)
    859885056
    """
    _positive(params=params, length=length)
    L, H, Q, T = shape.layers, shape.heads, shape.head_dim, length
    return 6 * params + 12 * L * H * Q * T


_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "head_dim": ("head_dim", "d_kv", "kv_channels"),
    "width": ("hidden_size", "n_embd", "d_model", "dim"),
    "vocabulary": ("vocab_size",),
}
"""Names of a size in Hugging Face's configurations, nanoGPT's and their like."""

_NOT_PLAIN = re.compile(
    r"mamba|ssm|rwkv|retnet|hyena|lstm|lru_|recurrent|d_state|state_size|state_dim|time_step|(^|_)conv\d*_|linear_"
    r"|hybrid|per_layer|block_types|swa_|sliding_attention_heads|lora_rank|qk_\w*head_dim|v_head_dim"  # several kinds
    r"|encoder_layers|decoder_layers|cross_attention|qformer|perceiver|resampler|logit_scale_init"  # several stacks
    r"|hidden_groups|cycles|mem_len|prompt_length|entity_|_size_global|block_sizes"  # N or T used otherwise
    r"|attention_window|random_blocks|block_per_row|landmarks|num_hash|lsh_|indexer|index_topk|lambda_std|pos_att_type"
    r"|bottleneck|[qkv]_groups|image_size|patch_size|mel_bins|sampling_rate|vision_config|audio_config"  # or no tokens
)
"""Settings, or parts of a `model_type`, that a plain transformer does not have (transformers 5.23 was read)."""

_PLAIN_LAYERS = {"attention", "full_attention", "sliding_attention", "chunked_attention"}
"""Layers with attention; a window is a mask, which halves nothing here."""


def shape_of(config: Any) -> TransformerShape | None:
    """A model's shape by its configuration: an object or a dict with Hugging Face's or nanoGPT's names.

    None unless it is plainly a decoder or an encoder of one stack over tokens, with attention in every layer: no
    encoder–decoder, state-space, convolutional or hybrid model, none with sizes missing or differing by layer, and
    none that uses its parameters or tokens more than once. Of a model with a `text_config`, the text's: there
    parameters of an image or audio tower belong in no N that goes with it.

    >>> shape_of({"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257})
    TransformerShape(layers=12, heads=12, head_dim=64)
    >>> shape_of({"model_type": "mamba", "num_hidden_layers": 24, "hidden_size": 768, "vocab_size": 50280}) is None
    True
    """
    # a user's properties may raise, and transformers' do where a size differs by layer
    found = attempt(_shape_and_width, config)
    return None if found is None else found[0]


def width_of(config: Any) -> int | None:
    """d_model of a model whose `shape_of` is known; None where it is not.

    >>> width_of({"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257})
    768
    """
    found = attempt(_shape_and_width, config)
    return None if found is None else found[1]


def _shape_and_width(config: Any) -> tuple[TransformerShape, int] | None:
    text = _get(config, "text_config")
    settings = config if text is None else text
    if not (_is_plain(config) and _is_plain(settings)):
        return None
    found = {size: [v for name in names if (v := _get(settings, name)) is not None] for size, names in _NAMES.items()}
    if not all(found[size] for size in ("layers", "heads", "width", "vocabulary")):
        return None
    layers, heads, width = (found[size][0] for size in ("layers", "heads", "width"))
    if not found["head_dim"] and width % heads:
        return None
    return TransformerShape(layers=layers, heads=heads, head_dim=(*found["head_dim"], width // heads)[0]), width


def _is_plain(config: Any) -> bool:
    settings = config if isinstance(config, Mapping) else vars(config)
    said = [str(name) for name, value in settings.items() if value] + [str(_get(config, "model_type"))]
    return (
        not _get(config, "is_encoder_decoder")
        and set(_get(config, "layer_types") or ()) <= _PLAIN_LAYERS
        and not any(_NOT_PLAIN.search(name) for name in said)
    )


def _get(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
