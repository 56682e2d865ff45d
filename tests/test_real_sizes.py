"""Published models at their real sizes, on the meta device: FLOPs and parameters equal the count by hand."""

from __future__ import annotations

from typing import Any

import pytest

import isoflop
from hand import count
from isoflop.flops import TransformerShape
from published_formulas import DecoderShape, megatron_bridge, nanochat, olmo_core
from real_sizes import DECODERS, REAL, Decoder

CHEAP = {"gpt-oss 20B", "LLaVA 1.5 7B"}
"""One of each kind; the others with `make slow`."""

TOTALS = {  # as the models' authors and the files' headers have them
    "Llama 3.1 8B": 8_030_261_248,
    "Llama 3.1 70B": 70_553_706_496,
    "Llama 3.1 405B": 405_853_388_800,
    "Qwen3 0.6B": 596_049_920,
    "Qwen3 32B": 32_762_123_264,
    "Qwen3 30B-A3B": 30_532_122_624,
    "gpt-oss 20B": 20_914_757_184,
    "gpt-oss 120B": 116_829_156_672,
    "Whisper large-v3": 1_543_490_560,
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in CHEAP else pytest.mark.slow) for n in REAL])
def test_equals_the_count_by_hand(name: str):
    real = REAL[name]
    model: Any = real.build()
    counted = isoflop.count(model, **real.tensors(model))
    assert counted.method == "measured on the meta device"
    assert counted.flops == count(real.products)
    assert counted.parameters == real.sizes.parameters()
    assert counted.uncounted == ()


@pytest.mark.parametrize("name", TOTALS)
def test_hand_counts_of_parameters_are_the_published_totals(name: str):
    assert REAL[name].sizes.parameters().total == TOTALS[name]


# -- what trainers print for these models ------------------------------------------------------------------------------


def matrices(shape: Decoder) -> int:
    """What a token is multiplied with: no biases, norms and tables; with the head."""
    _, top, _ = shape.experts or (0, 0, 0)
    idle = shape.sizes.idle + shape.L * top * shape.expert_biases
    norms = shape.L * (2 * shape.d + shape.biases) + shape.d
    return shape.sizes.body + shape.sizes.head - idle - norms


@pytest.mark.parametrize("name", DECODERS)
def test_formulas_of_trainers_give_our_count(name: str):
    shape, length = DECODERS[name], REAL[name].inputs["input_ids"][1]
    ours = count(REAL[name].products)
    plain = TransformerShape(layers=shape.L, heads=shape.H, head_dim=shape.K)
    assert nanochat(matrices(shape), plain, length, shape.windows or [None] * shape.L) * length == ours.model
    assert olmo_core(matrices(shape), plain, length) * length == ours.full
    many, top, width = shape.experts or (0, 0, 0)
    as_megatron = DecoderShape(
        layers=shape.L,
        heads=shape.H,
        head_dim=shape.K,
        width=shape.d,
        ffw=shape.f,
        vocabulary=shape.V,
        kv_heads=shape.G,
        gated=True,
    )
    theirs = megatron_bridge(as_megatron, length, (top, width), dense=0 if shape.experts else None)
    router = 6 * shape.L * shape.d * many  # which it leaves out
    causal_in_full = ours.full - (ours.attention + ours.left_out) // 2  # it knows no window here
    assert (theirs + router) * length == causal_in_full


def test_what_nanochat_prints_for_its_speedrun():
    """d20: 560,988,160 parameters, 3.491758e+09 FLOPs a token (github.com/karpathy/nanochat, discussion 1)."""
    layers, width, vocabulary = 20, 1280, 65_536
    body, table = layers * 12 * width**2, vocabulary * width
    assert body + 2 * table == 560_988_160
    shape = TransformerShape(layers=layers, heads=10, head_dim=128)
    assert f"{nanochat(body + table, shape, 2048, [None] * layers):e}" == "3.491758e+09"
