"""Tiny state-space models with hand counts. See `zoo.py`."""

from __future__ import annotations

from typing import Any

from hand import Entry, Products, Sizes, ids, linear, outside, scan, stack, weight
from zoo_others import ENDS, D, L, V, adapters, from_configuration

# -- Mamba (Gu & Dao 2023): Hugging Face's path without kernels --------------------------------------------------------

INNER, STATE, KERNEL, STEP = 2 * D, 8, 4, 2


def causal_convolution(batch: int, length: int, channels: int, padded: bool) -> Products:
    """Depthwise. It is computed over KERNEL − 1 positions more, which are cut off: `padded` counts these too."""
    positions = length + (KERNEL - 1 if padded else 0)
    return [weight(batch * positions, KERNEL, channels)]


def mamba_products(batch: int, length: int, padded: bool = True) -> Products:
    rows = batch * length

    def layer(needs: str) -> Products:
        return [
            weight(rows, D, 2 * INNER, adapted=True, needs=needs),
            *causal_convolution(batch, length, INNER, padded),
            weight(rows, INNER, STEP + 2 * STATE),
            weight(rows, STEP, INNER),
            scan(2 * rows * INNER * STATE),  # the state times C
            weight(rows, INNER, D, last=True),
        ]

    return [*stack(L, layer), *outside([weight(rows, D, V)])]


def entry(name: str, products: Any, sizes: Sizes, projected: int, **settings: Any) -> Entry:
    """A model whose layers project their input to so many channels."""
    shared = {"hidden_size": D, "state_size": STATE, "num_hidden_layers": L, "conv_kernel": KERNEL, "vocab_size": V}
    kind = name.capitalize()
    return Entry(
        name,
        from_configuration(f"{kind}Config", f"{kind}ForCausalLM", **shared, **settings, **ENDS),
        lambda batch, length: {"input_ids": ids(batch, length, V), "labels": ids(batch, length, V)},
        products,
        sizes,
        ("in_proj",),
        adapters(L, (D, projected)),
        attentions=("none",),
    )


MAMBA = entry(
    "mamba",
    mamba_products,
    Sizes(
        L
        * (
            2 * D * INNER
            + linear(KERNEL, INNER)
            + INNER * (STEP + 2 * STATE)
            + linear(STEP, INNER)
            + INNER * STATE  # A
            + INNER  # D
            + INNER * D
            + D
        )
        + D,
        tables=V * D,
        head=V * D,
        tied=True,
    ),
    2 * INNER,
    time_step_rank=STEP,
)

# -- Mamba2 (Dao & Gu 2024): in chunks; the last one is filled up ------------------------------------------------------

HEAD, CHUNK, GROUPS = 16, 8, 2
HEADS = INNER // HEAD
CHANNELS_2 = INNER + 2 * GROUPS * STATE


def mamba2_products(batch: int, length: int, padded: bool = True) -> Products:
    rows, chunks = batch * length, -(-length // CHUNK)
    filled = batch * chunks * CHUNK if padded else rows

    def layer(needs: str) -> Products:
        return [
            weight(rows, D, INNER + CHANNELS_2 + HEADS, adapted=True, needs=needs),
            *causal_convolution(batch, length, CHANNELS_2, padded),
            scan(2 * filled * CHUNK * HEADS * STATE),  # C Bᵀ within a chunk
            scan(2 * filled * CHUNK * HEADS * HEAD),  # times x
            scan(2 * filled * HEADS * HEAD * STATE),  # Bᵀ x: a chunk's state
            scan(2 * batch * HEADS * (chunks + 1) ** 2 * HEAD * STATE),  # from chunk to chunk
            scan(2 * filled * HEADS * HEAD * STATE),  # C times the state before the chunk
            weight(rows, INNER, D, last=True),
        ]

    return [*stack(L, layer), *outside([weight(rows, D, V)])]


MAMBA_2 = entry(
    "mamba2",
    mamba2_products,
    Sizes(
        L
        * (
            D * (INNER + CHANNELS_2 + HEADS)
            + linear(KERNEL, CHANNELS_2)
            + 3 * HEADS  # A, D and the step's bias
            + INNER  # the gated norm
            + INNER * D
            + D
        )
        + D,
        tables=V * D,
        head=V * D,
    ),
    INNER + CHANNELS_2 + HEADS,
    num_heads=HEADS,
    head_dim=HEAD,
    n_groups=GROUPS,
    chunk_size=CHUNK,
)
