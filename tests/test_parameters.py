"""N in every convention, against counts by hand and published ones, by use and by module type."""

from __future__ import annotations

from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import isoflop
from isoflop.flops import Call, Parameters, StepObserver, count_parameters, measure_flops, shapes, unwrap
from models import TinyGPT, gpt2, llama, tokens


def by_use(model: nn.Module, *args: Any, **kwargs: Any) -> Parameters:
    counted = count_parameters(model, measure_flops(model, Call(model, shapes(args), shapes(kwargs))).uses)
    assert counted.method == "by use in a traced forward pass"
    return counted


def by_type(model: nn.Module) -> Parameters:
    counted = count_parameters(model)
    assert counted.method == "by module type"
    return counted


def three(counted: Parameters) -> tuple[int, int | None, int | None]:
    return counted.total, counted.non_embedding, counted.non_embedding_with_head


# -- published ones --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2_small() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
    model.tie_weights()  # transformers 5.0 leaves them untied on the meta device
    return model


@pytest.fixture(scope="module")
def llama_7b() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig())


GPT2_SMALL = (124_439_808, 85_056_000, 123_653_376)
LLAMA_7B = (6_738_415_616, 6_476_271_616, 6_607_343_616)


def test_gpt2_small(gpt2_small: nn.Module):
    assert three(by_type(gpt2_small)) == GPT2_SMALL
    assert three(by_use(gpt2_small, input_ids=tokens(1, 8))) == GPT2_SMALL


def test_llama_2_7b(llama_7b: nn.Module):
    assert three(by_type(llama_7b)) == LLAMA_7B
    assert three(by_use(llama_7b, input_ids=tokens(1, 8))) == LLAMA_7B


def test_trainable_active_and_six_nd(gpt2_small: nn.Module):
    counted = by_type(gpt2_small)
    assert counted.trainable == counted.active == counted.total
    assert counted.six_nd(1000) == 6 * 85_056_000 * 1000
    assert counted.six_nd(None) is None
    assert list(counted.by_convention()) == ["total", "trainable", "non_embedding", "non_embedding_with_head", "active"]


# -- tied, untied, and names that lie ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_hugging_face_models_tied_and_untied(tied: bool):
    for build in (gpt2, llama):
        model = build(tie_word_embeddings=tied)
        with_head = 96 * 32
        found = three(by_use(model, input_ids=tokens(2, 8)))
        assert found == three(by_type(model))
        assert found[0] == sum(parameter.numel() for parameter in model.parameters())
        assert found[2] == found[1] + with_head


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("positions", ["table", "added"])
def test_a_plain_module(tied: bool, positions: str):
    model = TinyGPT(tied=tied, positions=positions)
    body, head = model.block_parameters(), 48 * 16
    counted = by_use(model, tokens(2, 8), tokens(2, 8))
    assert counted.non_embedding == body
    assert counted.non_embedding_with_head == body + head
    assert counted.total == body + head * (1 if tied else 2) + 32 * 16
    if positions == "table":  # module types cannot tell an nn.Parameter that is only added
        assert three(by_type(model)) == three(counted)


class NamesThatLie(nn.Module):
    """An `embed_tokens` that multiplies, and a plain parameter that is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head_weights = nn.Parameter(torch.randn(20, 6))
        self.embed_tokens = nn.Linear(6, 6, bias=False)
        self.wte = nn.Linear(6, 7)
        self.position_embeddings = nn.Linear(7, 20, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.position_embeddings(self.wte(self.embed_tokens(F.embedding(x, self.lm_head_weights))))


def test_use_counts_and_names_do_not():
    counted = by_use(NamesThatLie(), tokens(2, 4, 20))
    body = 36 + (42 + 7)
    assert three(counted) == (120 + body + 140, body, body + 140)


def test_a_model_as_wide_as_its_vocabulary():
    model = TinyGPT(vocabulary=16, width=16, tied=False)
    body = model.block_parameters()
    assert three(by_use(model, tokens(2, 8, 16))) == (body + 2 * 256 + 32 * 16, body, body + 256)


def test_a_body_as_wide_as_its_position_table_has_no_head():
    """GPT-2 medium without a head: 1024 wide, 1024 positions."""
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(n_layer=1, n_embd=32, n_head=2, n_positions=32, vocab_size=96, bos_token_id=0, eos_token_id=0)
    counted = by_use(GPT2Model(config), input_ids=tokens(2, 8))
    assert counted.non_embedding == counted.non_embedding_with_head == counted.total - (96 + 32) * 32


def test_frozen_and_lora_like_layers():
    class LoRA(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 8)
            self.base, self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.words(x)
            return self.base(x) + self.b(self.a(x))

    model = LoRA()
    model.words.requires_grad_(False)
    model.base.requires_grad_(False)
    counted = by_use(model, tokens(2, 4, 20))
    assert (counted.total, counted.trainable, counted.non_embedding) == (160 + 72 + 32, 32, 72 + 32)


class Probe(nn.Module):
    """A frozen TinyGPT without gradients: "teacher" or "average" beside a trained one, "backbone" of a trained head."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role, self.frozen = role, TinyGPT().requires_grad_(False)
        self.trained = nn.Linear(48, 3, bias=False) if role == "backbone" else TinyGPT()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.role == "average":
            return self.trained(ids, ids)[0]
        with torch.no_grad():
            given = self.frozen(ids, ids)[0]
        return self.trained(given) if self.role == "backbone" else (self.trained(ids, ids)[0] - given).pow(2).mean()


def test_a_teacher_and_an_average_are_no_part_of_n_but_a_backbone_is():
    alone = by_use(TinyGPT(), tokens(2, 8), tokens(2, 8))
    assert alone.non_embedding is not None
    taught, probed = (by_use(Probe(role), tokens(2, 8)) for role in ("teacher", "backbone"))
    assert (taught.total, taught.non_embedding, taught.active) == (2 * alone.total, alone.non_embedding, alone.total)
    averaged = by_use(Probe("average"), tokens(2, 8))
    assert (averaged.non_embedding, averaged.active) == (taught.non_embedding, taught.active)
    assert (probed.non_embedding, probed.active) == (alone.non_embedding + 3 * 48, alone.total + 3 * 48)


def test_shared_layers_count_once():
    layer = nn.Linear(6, 6)
    model = nn.Sequential(nn.Embedding(9, 6), *[layer] * 4)
    assert three(by_use(model, tokens(2, 4, 9))) == (54 + 42, 42, 42)
    assert by_type(model).total == 54 + 42


# -- wrapped, sharded, quantised ---------------------------------------------------------------------------------------


def test_wrappers_and_compiled_children_change_nothing():
    model = TinyGPT()
    plain = by_use(model, tokens(2, 8))
    assert by_use(torch.compile(model, backend="eager"), tokens(2, 8)) == plain
    assert by_use(nn.DataParallel(model), tokens(2, 8)) == plain
    assert unwrap(nn.DataParallel(torch.compile(model, backend="eager"))) is model
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    model.out = torch.compile(model.out, backend="eager")
    assert by_use(model, tokens(2, 8)) == plain


def test_quantised_and_sharded_parameters_have_their_whole_shape():
    four_bit = nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    four_bit.quant_state = SimpleNamespace(shape=torch.Size([8, 8]))  # bitsandbytes: two numbers a byte
    zero_3 = nn.Parameter(torch.zeros(0))
    zero_3.ds_shape = (5, 7)  # DeepSpeed
    model = nn.Module()
    model.a, model.b, model.c = four_bit, zero_3, nn.Parameter(torch.zeros(3))
    assert (by_type(model).total, by_type(model).trainable) == (64 + 35 + 3, 35 + 3)


def test_num_params_given_stands_for_every_convention():
    given = StepObserver(None, say=print, num_params=7).costing.parameters
    assert given is not None and set(given.by_convention().values()) == {7}


# -- mixtures of experts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["batched_mm", "grouped_mm"])
def test_mixtral_active_parameters(implementation: str):
    from transformers import MixtralConfig, MixtralForCausalLM

    d, ffw, vocabulary, layers, experts, active = 32, 64, 96, 2, 4, 2
    config = MixtralConfig(
        vocab_size=vocabulary,
        hidden_size=d,
        intermediate_size=ffw,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=experts,
        num_experts_per_tok=active,
    )
    config._experts_implementation = implementation
    model = MixtralForCausalLM(config).to(torch.bfloat16)
    attention, router, expert = 2 * d * d + 2 * d * (d // 2), experts * d, 3 * d * ffw
    body = layers * (attention + router + experts * expert + 2 * d) + d
    idle = layers * (experts - active) * expert
    total = body + 2 * vocabulary * d
    expected = Parameters(total, total, body, body + vocabulary * d, total - idle, "by use in a traced forward pass")
    assert by_type(model).by_convention() == expected.by_convention()
    assert by_use(model, input_ids=tokens(2, 8)) == expected


D, INNER, E = 64, 96, 8
DECODER = {
    "hidden_size": D,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "pad_token_id": 0,
}
TWO = {"num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
NLLB = {
    **{
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in [("layers", 2), ("ffn_dim", INNER), ("layerdrop", 0.0)]
    },
    "encoder_sparse_step": 2,
    "decoder_sparse_step": 2,
    "d_model": D,
    "vocab_size": 128,
}
MIXTURES: list[tuple[str, str, dict[str, Any], int]] = [
    # prefix and suffix of the classes, settings, parameters of the experts that a token does not pass
    ("Qwen3Moe", "ForCausalLM", {**TWO, "num_experts": E, "moe_intermediate_size": 32}, 2 * 6 * 3 * D * 32),
    ("Olmoe", "ForCausalLM", {**TWO, "num_experts": E}, 2 * 6 * 3 * D * INNER),
    ("Phimoe", "ForCausalLM", {**TWO, "num_local_experts": E}, 2 * 6 * 3 * D * INNER),
    # the class of its experts is GraniteMoeSharedExperts
    (
        "GraniteMoeShared",
        "ForCausalLM",
        {**TWO, "num_local_experts": E, "shared_intermediate_size": 32},
        2 * 6 * 3 * D * INNER,
    ),
    (
        "DeepseekV2",
        "ForCausalLM",
        {
            **{**TWO, **LATENT, "n_routed_experts": E, "n_group": 2, "topk_group": 1, "num_key_value_heads": 4},
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
        6 * 3 * D * 32,
    ),
    (
        "Ernie4_5_Moe",
        "ForCausalLM",
        {"moe_num_experts": E, "moe_k": 2, "moe_intermediate_size": 32, "moe_layer_start_index": 1},
        6 * 3 * D * 32,
    ),
    ("HunYuanMoEV1", "ForCausalLM", {"num_experts": E, "moe_topk": 2, "head_dim": 16}, 2 * 6 * 3 * D * INNER),
    # a list that holds a dropout too, and a router that takes two by design; layers with biases
    ("NllbMoe", "ForConditionalGeneration", {**NLLB, "num_experts": E}, 2 * 6 * (2 * D * INNER + D + INNER)),
]


of_transformers_5 = pytest.mark.skipif(
    int(version("transformers").partition(".")[0]) < 5,
    reason="transformers 4 lacks some of these, or reads values in them",
)


@of_transformers_5
@pytest.mark.parametrize(("prefix", "suffix", "settings", "idle"), MIXTURES, ids=[prefix for prefix, *_ in MIXTURES])
def test_active_parameters_by_many_names(prefix: str, suffix: str, settings: dict[str, Any], idle: int):
    import transformers

    settings = settings if "d_model" in settings else {**DECODER, **settings}
    with torch.device("meta"):
        model = getattr(transformers, prefix + suffix)(getattr(transformers, f"{prefix}Config")(**settings))
    counted = by_use(model, input_ids=tokens(1, 8), labels=tokens(1, 8))
    assert counted.active is not None and counted.total - counted.active == idle


@of_transformers_5
def test_made_up_choices_of_experts_are_named():
    from transformers import NllbMoeConfig, NllbMoeForConditionalGeneration

    with torch.device("meta"):
        model = NllbMoeForConditionalGeneration(NllbMoeConfig(**NLLB, num_experts=E))
    counted = isoflop.count(model, input_ids=tokens(1, 8), labels=tokens(1, 8))
    assert [note.partition(":")[0] for note in counted.notes] == ["tokens choose their experts in turn"]


@of_transformers_5
def test_experts_that_are_computed_densely_are_named():
    """Llama 4 in transformers multiplies every token by all experts."""
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    moe = {
        "num_local_experts": E,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": INNER,
        "interleave_moe_layer_step": 1,
    }
    with torch.device("meta"):
        model = Llama4ForCausalLM(Llama4TextConfig(**DECODER, **moe, head_dim=16))
    counted = isoflop.count(model, input_ids=tokens(1, 8))
    assert [note[:59] for note in counted.notes] == ["experts are computed for 8.0× as many tokens as choose them"]
    assert counted.parameters.total - counted.parameters.active == 2 * 7 * 3 * D * INNER


# -- what cannot be counted --------------------------------------------------------------------------------------------

NOTHING = "expected a model with parameters, got ReLU with none; pass num_params= to count FLOPs as 6·N·D without them"


def test_a_model_without_parameters():
    with pytest.raises(ValueError) as caught:
        count_parameters(nn.ReLU())
    assert str(caught.value) == NOTHING
    said: list[str] = []
    assert StepObserver(nn.ReLU(), say=said.append).costing.parameters is None
    assert said == [NOTHING]


def test_lazy_parameters_are_counted_when_they_are_there():
    said: list[str] = []
    model = nn.LazyLinear(3)
    observer = StepObserver(model, say=said.append)
    assert observer.costing.parameters is None
    assert said[0].startswith("the model's parameters can't be counted yet")
