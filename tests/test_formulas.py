"""Published FLOPs formulas: the papers' own tables, their errors against measured counts, laws, shapes of configs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from isoflop.flops import (
    Call,
    FlopCount,
    Parameters,
    TransformerShape,
    count_parameters,
    kaplan,
    measure_flops,
    palm,
    shape_of,
    shapes,
    six_n,
)
from models import TinyGPT, gpt2, llama, tokens
from published_formulas import DecoderShape, hoffmann_appendix_f, hoffmann_params, hoffmann_table_a4, megatron


def decoder(layers: int, width: int, ffw: int, heads: int, head_dim: int, **others: Any) -> DecoderShape:
    sizes = {"layers": layers, "width": width, "ffw": ffw, "heads": heads, "head_dim": head_dim, "vocabulary": 32_000}
    return DecoderShape(**{**sizes, **others})


GPT2_SMALL = decoder(12, 768, 3072, 12, 64, vocabulary=50_257)
CHINCHILLA_73M = decoder(10, 640, 2560, 10, 64)
LLAMA_7B = decoder(32, 4096, 11_008, 32, 128, gated=True)
LLAMA_8B = decoder(32, 4096, 14_336, 32, 128, vocabulary=128_256, gated=True, kv_heads=8)


# -- Hoffmann et al. 2022, table A4: exact FLOPs over 6ND, 2048 tokens a sequence --------------------------------------

TABLE_A4 = [  # shape, N in millions as the paper names it, the paper's ratio, what the text of appendix F gives
    (CHINCHILLA_73M, 73, 1.03, 1.58),
    (decoder(20, 1024, 4096, 16, 64), 305, 1.10, 1.32),
    (decoder(24, 1280, 5120, 10, 128), 552, 1.08, 1.23),
    (decoder(26, 1792, 7168, 14, 128), 1100, 1.04, 1.15),
    (decoder(28, 2048, 8192, 16, 128), 1600, 1.03, 1.12),
    (decoder(40, 3584, 14_336, 28, 128), 6800, 0.99, 1.03),
]


@pytest.mark.parametrize(("shape", "millions", "ratio", "by_the_text"), TABLE_A4)
def test_hoffmann_table_a4(shape: DecoderShape, millions: int, ratio: float, by_the_text: float):
    params = hoffmann_params(shape)
    assert params / 1e6 == pytest.approx(millions, rel=0.04)
    # 26 layers: 1.0447, which the paper prints as 1.04
    assert round(hoffmann_table_a4(shape, 2048) / six_n(params), 2) == ratio
    assert round(hoffmann_appendix_f(shape, 2048) / six_n(params), 2) == by_the_text


def test_the_text_of_appendix_f_over_the_printed_73_million():
    assert round(hoffmann_appendix_f(CHINCHILLA_73M, 2048) / six_n(73_000_000), 2) == 1.60


# -- errors against the measured count ---------------------------------------------------------------------------------


def build_gpt2_small() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config())


def settings_of(shape: DecoderShape) -> dict[str, int]:
    return {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "intermediate_size": shape.ffw,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads or shape.heads,
        "vocab_size": shape.vocabulary,
    }


def build_chinchilla_73m() -> nn.Module:
    """Two matrices feed-forward, no position table, no bias, tied: what Nemotron's code builds."""
    from transformers import NemotronConfig, NemotronForCausalLM

    shape = CHINCHILLA_73M
    config = NemotronConfig(**settings_of(shape), head_dim=shape.head_dim, tie_word_embeddings=True)
    return NemotronForCausalLM(config)


def build_llama(shape: DecoderShape) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**settings_of(shape)))


BUILDS: dict[str, tuple[Callable[[], nn.Module], DecoderShape, int]] = {
    "GPT-2": (build_gpt2_small, GPT2_SMALL, 1024),
    "Chinchilla-73M": (build_chinchilla_73m, CHINCHILLA_73M, 2048),
    "Llama-7B": (lambda: build_llama(LLAMA_7B), LLAMA_7B, 4096),
    "Llama-8B": (lambda: build_llama(LLAMA_8B), LLAMA_8B, 8192),
    "Llama-8B, 128k": (lambda: build_llama(LLAMA_8B), LLAMA_8B, 131_072),
}

ERRORS = {  # percent; as many decimals as FLOPS.md prints
    "6N non-embedding": ("-40", "-49", "-16", "-28", "-83"),
    "6N total": ("-13", "-27", "-12", "-17", "-81"),
    "Kaplan": ("-34", "-35", "-8.7", "-17", "-42"),
    "Hoffmann appendix F": ("+27", "+22", "+1.8", "+5.6", "+1.7"),
    "PaLM": ("+0.6", "+0", "+1.7", "+5.4", "+1.3"),
    "causal half": ("-6.6", "-14", "-7", "-11", "-41"),
}


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[FlopCount, Parameters, TransformerShape | None]]:
    """Each model's FLOPs for one sequence, its parameters and what its configuration says of its shape."""
    found = {}
    for name, (build, _, length) in BUILDS.items():
        with torch.device("meta"):
            model = build()
            ids = torch.empty(1, length, dtype=torch.long)
        measurement = measure_flops(model, Call(model, shapes(()), shapes({"input_ids": ids, "use_cache": False})))
        found[name] = (measurement.flops, count_parameters(model, measurement.uses), shape_of(model.config))
    return found


@pytest.mark.parametrize("formula", ERRORS)
@pytest.mark.parametrize("model", BUILDS)
def test_error_against_the_measured_count(measured: Any, model: str, formula: str):
    _, shape, length = BUILDS[model]
    flops, params, _ = measured[model]
    estimate = {
        "6N non-embedding": six_n(params.non_embedding) * length,
        "6N total": six_n(params.total) * length,
        "Kaplan": kaplan(params.non_embedding, shape, length) * length,
        "Hoffmann appendix F": hoffmann_appendix_f(shape, length) * length,
        "PaLM": palm(params.total, shape, length) * length,
        "causal half": flops.causal,
    }[formula]
    printed = ERRORS[formula][list(BUILDS).index(model)]
    decimals = len(printed.partition(".")[2])
    assert f"{100 * (estimate / flops.model - 1):+.{decimals}f}" == printed


@pytest.mark.parametrize("model", BUILDS)
def test_palm_with_matrices_alone_is_exact(measured: Any, model: str):
    _, shape, length = BUILDS[model]
    flops, params, read = measured[model]
    assert (read.layers, read.heads, read.head_dim) == (shape.layers, shape.heads, shape.head_dim)
    matrices = shape.layers * shape.layer_matrices + shape.vocabulary * shape.width
    assert palm(matrices, shape, length) * length == flops.model
    # norms and biases are among the non-embedding parameters
    assert palm(params.non_embedding_with_head, read, length) * length == pytest.approx(flops.model, rel=2e-3)


@pytest.mark.parametrize("model", ["GPT-2", "Chinchilla-73M"])
def test_megatron_is_exact_on_a_gpt(measured: Any, model: str):
    _, shape, length = BUILDS[model]
    assert megatron(shape, length, recomputed=False) * length == measured[model][0].model


@pytest.mark.parametrize("checkpointing", ["reentrant", "modern"])
def test_megatron_with_recomputation_is_the_hardware_count_under_checkpointing(checkpointing: str):
    model = TinyGPT(checkpointing=checkpointing)
    ids = tokens(3, 32)
    flops = measure_flops(model, Call(model, shapes((ids, ids)), shapes({}))).flops
    shape = decoder(2, 16, 64, 2, 8, vocabulary=48)
    assert megatron(shape, 32, recomputed=False) * ids.numel() == flops.model
    # torch's newer checkpointing stops when it has what backward needs: before each block's last product
    spared = shape.layers * 2 * shape.ffw * shape.width if checkpointing == "modern" else 0
    assert (megatron(shape, 32, recomputed=True) - spared) * ids.numel() == flops.hardware


# -- laws --------------------------------------------------------------------------------------------------------------

sizes = st.integers(1, 10_000)


@st.composite
def gpts(draw: st.DrawFn) -> DecoderShape:
    """As Megatron and GPT-2 have them: heads as wide as the model, a feed-forward of 4 times that."""
    heads, head_dim = draw(st.integers(1, 128)), draw(st.integers(1, 256))
    h = heads * head_dim
    return decoder(draw(st.integers(1, 200)), h, 4 * h, heads, head_dim, vocabulary=draw(st.integers(1, 300_000)))


@st.composite
def decoders(draw: st.DrawFn) -> DecoderShape:
    shape = decoder(*(draw(sizes) for _ in range(5)), vocabulary=draw(sizes))
    return replace(shape, kv_heads=draw(st.none() | sizes), gated=draw(st.booleans()))


def by_hand(shape: DecoderShape, s: int) -> tuple[int, int]:
    """One GPT's forward pass of a sequence, 2mnk over each product: (layers, head)."""
    h, a, k = shape.width, shape.heads, shape.head_dim
    qkv, scores, values, out = 2 * s * h * 3 * h, a * 2 * s * k * s, a * 2 * s * s * k, 2 * s * h * h
    up, down = 2 * s * h * 4 * h, 2 * s * 4 * h * h
    return shape.layers * (qkv + scores + values + out + up + down), 2 * s * h * shape.vocabulary


@given(gpts(), sizes)
def test_megatron_and_palm_equal_the_hand_count_of_a_gpt(shape: DecoderShape, length: int):
    layers, head = by_hand(shape, length)
    assert megatron(shape, length, recomputed=False) * length == 3 * (layers + head)
    assert megatron(shape, length, recomputed=True) * length == 4 * layers + 3 * head
    matrices = shape.layers * 12 * shape.width**2 + shape.vocabulary * shape.width
    assert palm(matrices, shape, length) * length == 3 * (layers + head)


@given(gpts(), sizes)
def test_megatron_as_the_papers_print_it(shape: DecoderShape, s: int):
    l, h, V = shape.layers, shape.width, shape.vocabulary  # noqa: E741
    eq_3 = 96 * l * h**2 * (1 + s / (6 * h) + V / (16 * l * h))
    eq_7 = 72 * l * h**2 * (1 + s / (6 * h) + V / (12 * l * h))
    assert megatron(shape, s, recomputed=True) == pytest.approx(eq_3, rel=1e-12)
    assert megatron(shape, s, recomputed=False) == pytest.approx(eq_7, rel=1e-12)


@given(decoders(), sizes)
def test_hoffmann_over_a_sequence_line_by_line(shape: DecoderShape, s: int):
    """Appendix F's own list, for the decoder it describes."""
    shape = replace(shape, kv_heads=None, gated=False)
    d, width, vocabulary = shape.width, shape.head_dim * shape.heads, shape.vocabulary
    attention = (
        2 * 3 * s * d * width  # key, query and value projections
        + 2 * s * s * width  # key @ query logits
        + 3 * shape.heads * s * s  # softmax
        + 2 * s * s * width  # softmax @ query reductions
        + 2 * s * width * d  # final linear
    )
    dense = 2 * s * (d * shape.ffw + d * shape.ffw)
    embeddings, logits = 2 * s * vocabulary * d, 2 * s * d * vocabulary
    assert hoffmann_appendix_f(shape, s) * s == 3 * (embeddings + shape.layers * (attention + dense) + logits)
    assert hoffmann_table_a4(shape, s) * s == 3 * shape.layers * (attention + dense)


@given(decoders(), sizes, sizes, sizes)
def test_all_are_affine_in_the_length_and_above_six_n(shape: DecoderShape, params: int, a: int, b: int):
    for formula in (
        lambda length: kaplan(params, shape, length),
        lambda length: palm(params, shape, length),
        lambda length: hoffmann_appendix_f(shape, length),
        lambda length: hoffmann_table_a4(shape, length),
    ):
        assert formula(a + b) - formula(a) == formula(2 * b) - formula(b)
        assert isinstance(formula(a), int)
    attention = palm(params, shape, a) - six_n(params)
    assert attention == 2 * (kaplan(params, shape, a) - six_n(params)) > 0


@given(decoders(), sizes)
def test_a_head_for_every_query_is_the_same_as_no_sharing(shape: DecoderShape, length: int):
    every, unsaid = replace(shape, kv_heads=shape.heads), replace(shape, kv_heads=None)
    assert hoffmann_appendix_f(every, length) == hoffmann_appendix_f(unsaid, length)
    assert hoffmann_params(every) == hoffmann_params(unsaid)


# -- bad arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: six_n(0), "expected params to be a positive integer, got 0"),
        (lambda: six_n(1.5), "expected params to be a positive integer, got 1.5"),
        (lambda: six_n(True), "expected params to be a positive integer, got True"),
        (lambda: kaplan(-1, GPT2_SMALL, 8), "expected non_embedding to be a positive integer, got -1"),
        (lambda: palm(1, GPT2_SMALL, 0), "expected length to be a positive integer, got 0"),
        (lambda: palm(None, GPT2_SMALL, 8), "expected params to be a positive integer, got None"),
        (lambda: hoffmann_appendix_f(GPT2_SMALL, 0), "expected length to be a positive integer, got 0"),
        (lambda: hoffmann_table_a4(GPT2_SMALL, -8), "expected length to be a positive integer, got -8"),
        (lambda: megatron(GPT2_SMALL, 0, recomputed=True), "expected length to be a positive integer, got 0"),
        (lambda: TransformerShape(layers=2, heads=0, head_dim=4), "expected heads to be a positive integer, got 0"),
        (lambda: decoder(1, 8, 0, 2, 4), "expected ffw to be a positive integer, got 0"),
        (lambda: decoder(1, 8, 8, 2, 4, kv_heads=0), "expected kv_heads to be a positive integer, got 0"),
    ],
)
def test_bad_sizes(call: Callable[[], Any], message: str):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("shape", "weights", "heads"),
    [
        (LLAMA_7B, 202_375_168, 4096),
        (replace(GPT2_SMALL, ffw=3071), 7_076_352, 768),
        (replace(GPT2_SMALL, kv_heads=4), 6_291_456, 768),
        (decoder(1, 768, 3840, 12, 32, vocabulary=9), 7_077_888, 384),  # as many as a GPT, half the attention
    ],
)
def test_megatron_is_for_a_gpt(shape: DecoderShape, weights: int, heads: int):
    with pytest.raises(ValueError) as caught:
        megatron(shape, 8, recomputed=False)
    h = shape.width
    assert str(caught.value) == (
        f"Megatron's formula expects layers of 12·width² = {12 * h * h} weights and heads that together are as wide as "
        f"the model ({h}), got {weights} and {heads}; use palm"
    )


def test_megatron_holds_for_a_gated_feed_forward_of_eight_thirds():
    shape = decoder(2, 12, 32, 3, 4, gated=True)
    assert megatron(shape, 8, recomputed=False) == megatron(replace(shape, ffw=48, gated=False), 8, recomputed=False)


# -- shapes of configurations ------------------------------------------------------------------------------------------

NAMES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 96}
TWO_FOUR_EIGHT = TransformerShape(layers=2, heads=4, head_dim=8)


class Moody:
    """Like transformers' configurations whose sizes differ by layer: asking for one raises."""

    def __str__(self) -> str:
        return "one that raises"  # the same in each process of the suite

    @property
    def num_hidden_layers(self) -> int:
        raise RuntimeError("ask each layer")


def test_shape_of_models():
    assert shape_of(gpt2().config) == shape_of(llama().config) == TWO_FOUR_EIGHT
    assert shape_of(gpt2().config.to_dict()) == shape_of(llama().config.to_dict()) == TWO_FOUR_EIGHT


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (NAMES, TWO_FOUR_EIGHT),
        ({"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 96, "block_size": 64}, TWO_FOUR_EIGHT),
        ({**NAMES, "head_dim": 16}, TransformerShape(layers=2, heads=4, head_dim=16)),
        ({**NAMES, "head_dim": None}, TWO_FOUR_EIGHT),
        ({**NAMES, "_commit_hash": "c0ffee", "add_cross_attention": False}, TWO_FOUR_EIGHT),
        ({**NAMES, "hidden_size": 33, "head_dim": 8}, TWO_FOUR_EIGHT),
        ({"text_config": NAMES, "image_token_id": 3}, TWO_FOUR_EIGHT),
        ({**NAMES, "layer_types": ["full_attention", "sliding_attention"]}, TWO_FOUR_EIGHT),
        ({**NAMES, "model_type": "qwen2", "is_encoder_decoder": False, "num_experts_per_tok": 2}, TWO_FOUR_EIGHT),
    ],
)
def test_shape_of(config: dict[str, Any], expected: TransformerShape):
    assert shape_of(config) == expected
    nested = {key: SimpleNamespace(**value) if isinstance(value, dict) else value for key, value in config.items()}
    assert shape_of(SimpleNamespace(**nested)) == expected


@pytest.mark.parametrize(
    "config",
    [
        None,
        7,
        {},
        Moody(),
        *({**NAMES, name: None} for name in NAMES),
        *({name: value for name, value in NAMES.items() if name != missing} for missing in NAMES),
        {**NAMES, "num_attention_heads": [4, 8]},
        {**NAMES, "num_hidden_layers": 0},
        {**NAMES, "hidden_size": 33},
        {**NAMES, "head_dim": 0},
        {**NAMES, "is_encoder_decoder": True},
        {**NAMES, "encoder_layers": 2},
        {**NAMES, "model_type": "mamba2"},
        {**NAMES, "mamba_d_state": 16},
        {**NAMES, "ssm_state_size": 16},
        {**NAMES, "kv_lora_rank": 512},
        {**NAMES, "num_hidden_groups": 1},
        {**NAMES, "patch_size": 16},
        {**NAMES, "layer_types": ["full_attention", "linear_attention"]},
        {"text_config": {**NAMES, "model_type": "mamba"}},
        {"text_config": NAMES, "is_encoder_decoder": True},
    ],
    ids=str,
)
def test_unknown_is_none(config: Any):
    assert shape_of(config) is None
    if isinstance(config, dict):
        assert shape_of(SimpleNamespace(**config)) is None


@pytest.mark.parametrize(
    "name", ["T5", "Bart", "Whisper", "Mamba", "Jamba", "DeepseekV3", "Albert", "ViT", "Qwen3Next"]
)
def test_unknown_architectures(name: str):
    import transformers

    config = getattr(transformers, f"{name}Config")()
    assert shape_of(config) is None
    assert shape_of(config.to_dict()) is None
