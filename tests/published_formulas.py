"""FLOPs formulas of papers and of trainers that nothing but tests needs.

They are independent hand counts that measured FLOPs are compared with. As in `isoflop.flops.operators` each gives
the training FLOPs of one token in a sequence of `length` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isoflop.flops import TransformerShape


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
            raise ValueError(f"expected {name} to be a positive integer, got {size!r}")


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


def nanochat(matrices: int, shape: TransformerShape, length: int, windows: Sequence[int | None]) -> int:
    """What nanochat's `estimate_flops` prints (2025): attention in each layer over min(window, T) keys.

    `matrices`: all parameters but embeddings and scalars, so with the head; `windows`: None is no window.
    """
    met = sum(min(length, window or length) for window in windows)
    return 6 * matrices + 12 * shape.heads * shape.head_dim * met


def olmo_core(non_embedding: int, shape: TransformerShape, length: int) -> int:
    """OLMo-core's `num_flops_per_token` (2024): all but the token table, so with the head; no window, no mask."""
    return nanochat(non_embedding, shape, length, [None] * shape.layers)


def megatron_bridge(
    shape: DecoderShape, length: int, experts: tuple[int, int] = (0, 0), shared: int = 0, dense: int | None = None
) -> int:
    """Megatron-Bridge's `transformer_flops` (2025), for grouped queries: the causal half of attention, no router.

    `experts`: those a token passes, and their width; `shared`: width of the shared one; `dense`: layers without
    experts, all if None.
    """
    top, width = experts
    kv_heads = shape.heads if shape.kv_heads is None else shape.kv_heads
    projections = shape.layers * 2 * shape.width * shape.head_dim * (shape.heads + kv_heads)
    core = shape.layers * shape.attention_width * length  # QKᵀ and AV, each half
    dense = shape.layers if dense is None else dense
    inner = dense * shape.ffw + (shape.layers - dense) * (top * width + shared)
    return 6 * (projections + core + (3 if shape.gated else 2) * shape.width * inner + shape.width * shape.vocabulary)
