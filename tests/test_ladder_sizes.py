"""Families and sizes of a ladder: closed forms equal to the counter, real configurations, rules of batch and rate."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from isoflop.ladder import Family, Shape, family_of, size_grid
from isoflop.laws import BATCHES, RATES, batch_rule, rate_rule, warmup_of
from isoflop.laws.recipes import batch_sequences

GPT2_SMALL = {
    "model_type": "gpt2",
    "n_layer": 12,
    "n_embd": 768,
    "n_head": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}
LLAMA_7B = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}


def config(tmp_path: Path, found: dict[str, Any]) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(found))
    return path


def test_gpt2_small_and_llama_7b_have_the_parameters_that_are_published(tmp_path: Path):
    family = family_of(config(tmp_path, GPT2_SMALL))
    assert Shape(family, 12, 768, 12, 64).parameters["total"] == 124_439_808
    family = family_of(config(tmp_path, LLAMA_7B))
    assert (family.aspect, family.head_dim) == (128, 128)
    assert Shape(family, 32, 4096, 32, 128).parameters["total"] == 6_738_415_616


FAMILIES = [
    ("gpt2", {"n_layer": 3, "n_embd": 48, "n_head": 4, "n_positions": 32, "vocab_size": 96}),
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"num_key_value_heads": 2, "attention_bias": False, "tie_word_embeddings": True}),
    ("llama", {"num_key_value_heads": 2, "attention_bias": True}),
    ("olmo", {"attention_bias": True}),
    ("qwen2", {"num_key_value_heads": 2}),
    ("mistral", {"num_key_value_heads": 2}),
    ("olmo", {"num_key_value_heads": 4}),
]


@pytest.mark.parametrize(("kind", "more"), FAMILIES)
def test_the_closed_form_is_what_the_counter_finds(tmp_path: Path, kind: str, more: dict[str, Any]):
    """Of the very configuration that a plan carries for Hugging Face."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    import isoflop

    base = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 176,
        "vocab_size": 96,
        "max_position_embeddings": 32,
    }
    given = {"model_type": kind, **({} if kind == "gpt2" else base), **more}
    family = family_of(config(tmp_path, given))
    depth, width = (3, 48) if kind == "gpt2" else (2, 64)
    shape = Shape(family, depth, width, 4, width // 4)
    hf = dict(shape.config()["hf"])
    if kind in ("qwen2", "mistral"):
        hf["sliding_window"] = None
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**hf), attn_implementation="eager"
    )
    counted = isoflop.count(model, input_ids=torch.zeros(2, 32, dtype=torch.long))
    by_convention = counted.parameters.by_convention()
    for name, value in shape.parameters.items():
        assert by_convention[name] == value, name
    assert counted.model_flops == pytest.approx(shape.flops_per_token * 64, rel=1e-12)


@pytest.mark.parametrize(("name", "vocab", "least", "most"), [("gpt2", 256, 3e4, 5e5), ("llama", 32000, 1e7, 1e10)])
def test_sizes_are_real_configurations(name: str, vocab: int, least: float, most: float):
    grid = size_grid(family_of(name, vocab, 128), least, most)
    sizes = [shape.N for shape in grid]
    assert sizes == sorted(sizes) and least <= sizes[0] and sizes[-1] <= most
    assert all(low * 1.05 < high < low * 1.6 for low, high in pairwise(sizes))
    for shape in grid:
        assert shape.heads * shape.head_dim == shape.width and shape.head_dim % 2 == 0
        assert shape.heads % shape.key_value_heads == 0
        if shape.depth > 2:
            assert abs(math.log(shape.width / shape.depth / shape.family.aspect)) < math.log(1.26)


def test_a_configuration_keeps_what_is_no_matter_of_size(tmp_path: Path):
    given = LLAMA_7B | {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}
    small = size_grid(family_of(config(tmp_path, given)), 3e7, 1e8)[0].config()["hf"]
    assert small["rms_norm_eps"] == 1e-5 and small["rope_parameters"] == given["rope_parameters"]
    assert small["hidden_size"] < 4096 and "architectures" not in small


def test_the_known_gpt2_is_without_dropout():
    assert size_grid(family_of("gpt2"), 1e8, 2e8)[0].config()["hf"]["resid_pdrop"] == 0.0


def test_grouped_heads_stay_whole(tmp_path: Path):
    found = LLAMA_7B | {"num_key_value_heads": 8}
    for shape in size_grid(family_of(config(tmp_path, found)), 1e7, 1e9):
        assert shape.heads % shape.key_value_heads == 0


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"model_type": "mamba"}, "got model_type 'mamba': take the nearest known family"),
        (LLAMA_7B | {"num_local_experts": 8}, "expected a dense model, got num_local_experts = 8"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "expected a dense model"),
        (LLAMA_7B | {"mlp_bias": True}, "without mlp_bias"),
        ({"model_type": "llama", "hidden_size": "wide"}, "expected a whole number for 'num_hidden_layers'"),
        ("nowhere.json", "there is no nowhere.json"),
    ],
)
def test_a_model_that_is_not_known(tmp_path: Path, model: Any, said: str):
    source = config(tmp_path, model) if isinstance(model, dict) else model
    with pytest.raises(ValueError, match=said):
        family_of(source)


# -- rules -------------------------------------------------------------------------------------------------------------

SMALL = Shape(Family("gpt2", 50257, 1024, 64, 64, 4.0), 12, 768, 12, 64)
TINY = Shape(Family("gpt2", 256, 128, 64, 64, 4.0), 2, 32, 2, 16)


def test_rules_give_what_their_papers_print():
    run = SMALL.run(1e10, 1e19)
    assert RATES["steplaw"].value(run) == pytest.approx(1.79 * run["N"] ** -0.713 * 1e10**0.307)
    assert RATES["deepseek"].value(run) == pytest.approx(0.3118 * 1e19**-0.125, rel=1e-3)
    assert RATES["width"].value(run) == pytest.approx(6e-4)  # GPT-3 Small's own
    assert BATCHES["steplaw"].value(SMALL.run(1e11, 1e20)) == pytest.approx(0.58 * 1e11**0.571)


def test_rates_of_tiny_models_are_cut():
    assert RATES["steplaw"].value(TINY.run(1e7, 1e12)) == 0.02


def test_the_rate_by_default_is_continuous_from_a_ladder_to_its_target():
    grid = size_grid(family_of("llama"), 1e7, 1e11)
    runs = [shape.run(20 * shape.N, 120 * shape.N**2) for shape in grid]
    rates = [rate_rule("auto").value(run) for run in runs]
    for (one, rate), (other, next_rate) in pairwise(zip(runs, rates, strict=True)):
        assert abs(math.log(next_rate / rate)) < 0.8 * math.log(other["N"] / one["N"])
    for run, rate in zip(runs, rates, strict=True):
        every = [rule.value(run) for rule in RATES.values()]
        assert min(every) <= rate <= max(every)


def test_tiny_models_train_near_the_rate_that_was_tried_on_them():
    run = TINY.run(1e7, 1e12)
    assert rate_rule("auto").value(run) == pytest.approx(RATES["width"].value(run), rel=0.1)
    assert RATES["deepseek"].value(run) < 0.8 * RATES["width"].value(run)


def planned(*runs: tuple[float, float, float]) -> list[dict[str, float]]:
    """Runs of N non-embedding parameters, D tokens and C FLOPs."""
    return [dict(zip("NDC", run, strict=True)) for run in runs]


def test_one_rule_for_a_ladder_and_words_where_it_was_never_tested():
    large, tiny = (5e7, 1e9, 1e18), (1e5, 1e6, 1e12)
    assert RATES["steplaw"].covers(planned(large)) and not RATES["steplaw"].covers(planned(large, tiny))
    assert RATES["width"].covers(planned((1e3, 1e3, 1e10), (1e12, 1e13, 1e26)))
    assert RATES["deepseek"].covers(planned((1e3, 1e9, 1e17))) and not RATES["deepseek"].covers(planned(tiny))
    assert BATCHES["steplaw"].covers(planned(large)) and not BATCHES["steplaw"].covers(planned(tiny))
    with pytest.raises(ValueError, match="--lr-rule: expected one of auto, width"):
        rate_rule("best")
    with pytest.raises(ValueError, match="--batch-rule"):
        batch_rule("width")


@pytest.mark.parametrize("tokens", [2e5, 1e6, 1e8, 1e10, 1e12])
def test_batches_leave_steps_and_are_near_the_rule(tokens: float):
    most = tokens / 2200 / 128
    sequences = batch_sequences(BATCHES["steplaw"], TINY.run(tokens, 1e15), 128, most)
    wanted = max(min(0.58 * tokens**0.571 / 128, most), 1)
    assert sequences == 1 or sequences <= most
    assert sequences / wanted < 1.3 and wanted / sequences < 1.5


@pytest.mark.parametrize("steps", [2, 10, 1000, 10**6])
def test_warm_up_ends_before_the_run(steps: int):
    assert 1 <= warmup_of(steps) < steps
    assert warmup_of(steps) <= 2000


def test_an_unknown_family_names_what_every_command_can_do(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ValueError, match="--seq, or copy your sizes and vocab_size into a") as error:
        family_of(path)
    assert "--vocab" not in str(error.value), "`isoflop plan` has none"
