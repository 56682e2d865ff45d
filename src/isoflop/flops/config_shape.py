"""Published FLOPs formulas, and a transformer's shape by its configuration to put into them.

Each formula gives the training FLOPs of one token in a sequence of `length` tokens: forward and backward, the backward
pass twice the forward, 1 multiply-add = 2 FLOPs, exact in integers. Causal masks halve nothing, except in Kaplan's.
They are used where a model cannot be measured; `GIVEN` … `SIX_ND` name the ways to a step's FLOPs, the best first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isoflop.guard import attempt

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
