"""Tiny decoders with hand counts, and `ZOO`: these and those of `zoo_others.py` and `zoo_mamba.py`.

The letters: d width, f feed-forward width, V vocabulary, L layers, H heads; rows = batch × length.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

import models
import zoo_mamba
import zoo_others
from hand import (
    RANK,
    Entry,
    Products,
    Sizes,
    attention,
    feed_forward,
    ids,
    layer_norm,
    linear,
    outside,
    self_attention,
    stack,
    weight,
)

D, F, V, L, H = 32, 80, 96, 2, 4
KV = D // 2  # grouped queries: two heads of four have keys and values of their own
POSITIONS = 64


def labelled(batch: int, length: int) -> dict[str, torch.Tensor]:
    tokens = ids(batch, length, V)
    return {"input_ids": tokens, "labels": tokens}


def head(batch: int, length: int, d: int = D, vocabulary: int = V) -> Products:
    return outside([weight(batch * length, d, vocabulary)])


def adapters(*shapes: tuple[int, int]) -> int:
    """Parameters of LoRA's adapters of layers with so many (inputs, outputs)."""
    return RANK * sum(inputs + outputs for inputs, outputs in shapes)


# -- GPT-2 and nanoGPT -------------------------------------------------------------------------------------------------


def gpt_products(batch: int, length: int, d: int, vocabulary: int) -> Products:
    """Q, K and V in one matrix."""
    rows = batch * length

    def layer(needs: str) -> Products:
        return [
            weight(rows, d, 3 * d, adapted=True, needs=needs),
            *attention(batch, length, length, d),
            weight(rows, d, d, adapted=True),
            *feed_forward(rows, d, 4 * d),
        ]

    return [*stack(L, layer), *head(batch, length, d, vocabulary)]


def gpt2(implementation: str) -> nn.Module:
    none = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    return models.gpt2(implementation, n_layer=L, n_embd=D, n_head=H, n_positions=POSITIONS, vocab_size=V, **none)


GPT2 = Entry(
    "gpt2",
    gpt2,
    labelled,
    lambda batch, length: gpt_products(batch, length, D, V),
    Sizes(
        body=L * (2 * layer_norm(D) + linear(D, 3 * D) + linear(D, D) + linear(D, 4 * D) + linear(4 * D, D))
        + layer_norm(D),
        tables=(V + POSITIONS) * D,
        head=V * D,
        tied=True,
    ),
    adapted=("attn.c_attn", "attn.c_proj"),
    adapters=L * adapters((D, 3 * D), (D, D)),
    packed=True,
)

NANO_GPT = Entry(
    "nanogpt",
    lambda implementation: models.TinyGPT(attention=implementation),
    lambda batch, length: {"tokens": ids(batch, length, 48), "targets": ids(batch, length, 48)},
    lambda batch, length: gpt_products(batch, length, 16, 48),
    Sizes(
        body=2 * (2 * layer_norm(16) + 3 * 16**2 + 16**2 + linear(16, 64) + linear(64, 16)) + layer_norm(16),
        tables=(48 + 32) * 16,
        head=48 * 16,
        tied=True,
    ),
    adapted=("qkv", "mix"),
    adapters=2 * adapters((16, 48), (16, 16)),
    masked=False,
)

# -- Llama and its kin -------------------------------------------------------------------------------------------------

PROJECTIONS = (".q_proj", ".k_proj", ".v_proj", ".o_proj")
SIZES: dict[str, Any] = {
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "num_key_value_heads": 2,
    "vocab_size": V,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def from_configuration(family: str, **overrides: Any) -> Any:
    def build(implementation: str) -> nn.Module:
        import transformers

        config = getattr(transformers, f"{family}Config")(**{**SIZES, **overrides}, attn_implementation=implementation)
        return getattr(transformers, f"{family}ForCausalLM")(config)

    return build


WINDOW = 8


def llama_products(
    batch: int,
    length: int,
    width: int = D,
    of_keys: int = KV,
    last: bool = True,
    windows: tuple[int | None, ...] = (None,) * L,
) -> Products:
    rows, each = batch * length, iter(windows)

    def layer(needs: str) -> Products:
        inner = feed_forward(rows, D, F, gated=True, last=last)
        return [*self_attention(batch, length, D, width, of_keys, needs, next(each)), *inner]

    return [*stack(L, layer), *head(batch, length)]


def projections(width: int = D, of_keys: int = KV) -> int:
    """Parameters of Q, K, V and O."""
    return 2 * D * width + 2 * D * of_keys


def of_adapters(width: int = D, of_keys: int = KV) -> int:
    return L * adapters((D, width), (D, of_keys), (D, of_keys), (width, D))


def llama(name: str, family: str, tied: bool, **overrides: Any) -> Entry:
    body = L * (projections() + 3 * D * F + 2 * D) + D
    return Entry(
        name,
        from_configuration(family, tie_word_embeddings=tied, **overrides),
        labelled,
        partial(llama_products, windows=(overrides.get("sliding_window"),) * L),
        Sizes(body, tables=V * D, head=V * D, tied=tied),
        adapted=PROJECTIONS,
        adapters=of_adapters(),
        packed=True,
    )


def gemma_2() -> Entry:
    """Heads wider than d / H, a norm behind each half layer, every second layer with a window."""
    width, of_keys = H * 16, 2 * 16
    return Entry(
        "gemma2",
        from_configuration("Gemma2", head_dim=16, sliding_window=WINDOW, query_pre_attn_scalar=16),
        labelled,
        lambda batch, length: llama_products(batch, length, width, of_keys, last=False, windows=(WINDOW, None)),
        Sizes(L * (projections(width, of_keys) + 3 * D * F + 4 * D) + D, tables=V * D, head=V * D, tied=True),
        adapted=PROJECTIONS,
        adapters=of_adapters(width, of_keys),
        packed=True,
        attentions=("eager",),  # transformers has no other for it (soft caps)
    )


# -- mixtures of experts: a router over all, `TOP` of EXPERTS for each token ------------------------------------------

EXPERTS, TOP, SHARED = 4, 2, 64
EXPERT = 3 * D * F


def moe_products(batch: int, length: int, shared: bool) -> Products:
    rows = batch * length

    def layer(needs: str) -> Products:
        experts = feed_forward(rows * TOP, D, F, gated=True, last=False)  # their outputs are weighted
        beside = [*feed_forward(rows, D, SHARED, gated=True, last=False), weight(rows, D, 1)] if shared else []
        return [*self_attention(batch, length, D, D, KV, needs), weight(rows, D, EXPERTS), *experts, *beside]

    return [*stack(L, layer), *head(batch, length)]


def moe(name: str, family: str, extra: int, shared: bool, **overrides: Any) -> Entry:
    """`extra`: parameters of a layer beside attention, router, experts and norms."""
    body = L * (projections() + EXPERTS * D + EXPERTS * EXPERT + 2 * D + extra) + D
    return Entry(
        name,
        from_configuration(family, tie_word_embeddings=False, num_experts_per_tok=TOP, **overrides),
        labelled,
        lambda batch, length: moe_products(batch, length, shared),
        Sizes(body, tables=V * D, head=V * D, idle=L * (EXPERTS - TOP) * EXPERT),
        adapted=PROJECTIONS,
        adapters=of_adapters(),
        packed=True,
    )


ZOO: list[Entry] = [
    GPT2,
    NANO_GPT,
    llama("llama", "Llama", tied=False),
    llama("llama-tied", "Llama", tied=True),
    llama("mistral-window", "Mistral", tied=False, sliding_window=WINDOW),
    gemma_2(),
    moe("mixtral", "Mixtral", extra=0, shared=False, num_local_experts=EXPERTS),
    moe(
        "qwen2-moe",
        "Qwen2Moe",
        extra=3 * D * SHARED + D + (D + 2 * KV),  # the shared expert, its gate, the biases of Q, K and V
        shared=True,
        num_experts=EXPERTS,
        moe_intermediate_size=F,
        shared_expert_intermediate_size=SHARED,
    ),
    *zoo_others.OTHERS,
    zoo_mamba.MAMBA,
    zoo_mamba.MAMBA_2,
]
