"""Published FLOPs formulas, for a model that cannot be measured and for a comparison with one that can.

Each gives the training FLOPs of one token in a sequence of `length` tokens: forward and backward, the backward pass
twice the forward, 1 multiply-add = 2 FLOPs. Times a batch's tokens, they are its model FLOPs (with `recomputed`:
hardware FLOPs). Causal masks halve nothing, except in Kaplan's formula. All are exact in integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def _positive(**sizes: Any) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
            raise ValueError(f"expected {name} to be a positive integer, got {size!r}")


@dataclass(frozen=True, kw_only=True)
class TransformerShape:
    """What attention costs depend on: L layers of H heads, each with queries of Q numbers."""

    layers: int
    heads: int
    head_dim: int

    def __post_init__(self) -> None:
        _positive(layers=self.layers, heads=self.heads, head_dim=self.head_dim)

    @property
    def attention_width(self) -> int:
        """All heads' queries side by side (Kaplan's d_attn)."""
        return self.heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class DecoderShape(TransformerShape):
    """A dense decoder: `width` (d_model, h), `ffw` (the feed-forward's hidden width), `vocabulary` (V).

    `kv_heads`: heads of keys and values where queries share them, else None. `gated`: the feed-forward has three
    matrices (SwiGLU), not two.
    """

    width: int
    ffw: int
    vocabulary: int
    kv_heads: int | None = None
    gated: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        _positive(width=self.width, ffw=self.ffw, vocabulary=self.vocabulary, kv_heads=kv_heads)

    @property
    def layer_matrices(self) -> int:
        """Parameters of one layer's matrices: queries, keys, values, output, feed-forward."""
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        attention = 2 * self.width * self.head_dim * (self.heads + kv_heads)
        return attention + (3 if self.gated else 2) * self.width * self.ffw


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


def hoffmann_appendix_f(shape: DecoderShape, length: int) -> int:
    """Hoffmann et al. 2022 as the text of appendix F has it: the look-up of a token counted as a matrix product.

    The paper sums over a sequence; this is that sum divided by its length. Grouped queries and gated feed-forwards,
    which the paper does not know, count by their own sizes.
    """
    embeddings_and_logits = 2 * (2 * shape.vocabulary * shape.width)
    return 3 * embeddings_and_logits + hoffmann_table_a4(shape, length)


def hoffmann_table_a4(shape: DecoderShape, length: int) -> int:
    """Hoffmann et al. 2022, what table A4 was made with: appendix F without embeddings and final logits.

    The paper does not say so: we found that this alone, over 6 · `hoffmann_params`, gives all six of the table's
    ratios (1.03 … 0.99). The text's sum gives 1.58 … 1.03.
    """
    _positive(length=length)
    projections_and_dense = 2 * shape.layer_matrices
    logits_and_reduction = 2 * (2 * length * shape.attention_width)
    softmax = 3 * shape.heads * length
    return 3 * shape.layers * (projections_and_dense + logits_and_reduction + softmax)


def hoffmann_params(shape: DecoderShape) -> int:
    """N of Hoffmann et al. 2022, table A4: matrices, a tied embedding, and a projection of relative positions a layer.

    The last, d × (heads · key size), is Transformer-XL's (Dai et al. 2019), as in Gopher (Rae et al. 2021).
    """
    relative_positions = shape.width * shape.attention_width
    return shape.vocabulary * shape.width + shape.layers * (shape.layer_matrices + relative_positions)


def megatron(shape: DecoderShape, length: int, *, recomputed: bool) -> int:
    """Narayanan et al. 2021 (arXiv:2104.04473), eq. 3, over B·s tokens.

    Args:
        shape: a GPT, with 12h² weights in a layer: 4h² of attention, a feed-forward of 4h.
        length: s, tokens a sequence.
        recomputed: True, the paper's: every layer's forward pass runs twice (activation recomputation in full),
            96·B·s·l·h²·(1 + s/6h + V/16lh). False: 72·B·s·l·h²·(1 + s/6h + V/12lh), model FLOPs, as in Korthikanti
            et al. 2022 (arXiv:2205.05198).

    Raises:
        ValueError: the layers have more or fewer weights, for which the formula is wrong.
    """
    _positive(length=length)
    l, h, s, V = shape.layers, shape.width, length, shape.vocabulary  # noqa: E741
    if shape.layer_matrices != 12 * h * h or shape.attention_width != h:
        raise ValueError(
            f"Megatron's formula expects layers of 12·width² = {12 * h * h} weights and heads that together are as "
            f"wide as the model ({h}), got {shape.layer_matrices} and {shape.attention_width}; use palm"
        )
    passes = 4 if recomputed else 3
    return passes * (24 * l * h * h + 4 * l * s * h) + 3 * (2 * h * V)
