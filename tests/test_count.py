"""`isoflop.count`: numbers equal to counts by hand, by module too; its fallbacks; nothing of the live model changed."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import isoflop
from isoflop.cli import app
from isoflop.flops import (
    FORMULA,
    MEASURED,
    SIX_ND,
    WATCHED,
    Call,
    FlopCount,
    ModuleCount,
    Shape,
    StepCount,
    Uncountable,
    count_measured,
    count_otherwise,
    measure_flops,
    palm,
    run_once,
    shape_of,
    shapes,
)
from models import TinyGPT, gpt2, gpt2_forward_flops, llama, llama_forward_flops, tokens

B, T = 2, 16


# -- equal to the hand count -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "by_hand"), [(gpt2, gpt2_forward_flops), (llama, llama_forward_flops)])
def test_a_hugging_face_model(build: Any, by_hand: Any):
    model = build()
    counted = isoflop.count(model, input_ids=tokens(B, T, 96))
    forward = by_hand(B, T)
    assert counted.flops == FlopCount(3 * forward, 3 * forward, 3 * 2 * 4 * B * T**2 * 32)
    assert counted.model_flops == 3 * forward
    assert counted.parameters.total == model.num_parameters()
    without = counted.parameters.non_embedding
    assert without is not None and counted.six_nd == 6 * without * B * T
    assert (counted.method, counted.reason, counted.estimate, counted.uncounted) == (MEASURED, "", None, ())
    assert counted.tokens == B * T
    assert sum(counted.by_operator.values()) == 3 * forward


def test_gpt2_small_on_the_meta_device():
    with torch.device("meta"):
        model = gpt2(n_layer=12, n_embd=768, n_head=12, n_positions=1024, vocab_size=50257)
    counted = isoflop.count(model, torch.empty(1, 1024, dtype=torch.int64, device="meta"))
    assert counted.parameters.total == 124_439_808
    assert counted.model_flops == 3 * gpt2_forward_flops(1, 1024, 12, 768, 50257) == 874_944_921_600
    assert all(parameter.is_meta for parameter in model.parameters())


def test_the_doctest_of_a_linear_layer_with_an_input_that_is_differentiated():
    counted = isoflop.count(nn.Linear(4, 5), torch.empty(3, 4, requires_grad=True))
    assert counted.model_flops == 3 * 2 * 3 * 4 * 5
    assert (counted.tokens, counted.six_nd) == (None, None)  # floats are no tokens


def test_a_compiled_model_and_one_with_compiled_parts():
    expected = 3 * TinyGPT().forward_flops(B, T)[0]
    model = TinyGPT()
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")  # type: ignore[assignment]
    for whole in (torch.compile(TinyGPT(), backend="eager"), model):
        counted = isoflop.count(whole, tokens(B, T), tokens(B, T))  # type: ignore[arg-type]
        assert counted.model_flops == expected
        assert_sums(counted)
        assert "_orig_mod" not in rows(counted)


def test_operators_without_a_formula_are_named():
    @torch.library.custom_op("isoflop_test_count::fused", mutates_args=())
    def fused(x: torch.Tensor) -> torch.Tensor:
        return x @ x.T

    fused.register_fake(lambda x: x.new_empty(x.shape[0], x.shape[0]))

    class Fused(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x), fused(x)

    counted = isoflop.count(Fused(4, 5), torch.empty(3, 4))
    assert counted.uncounted == ("isoflop_test_count::fused",)
    assert counted.model_flops == 240


# -- by module ---------------------------------------------------------------------------------------------------------


def every(module: ModuleCount) -> Iterator[ModuleCount]:
    yield module
    for part in module.parts:
        yield from every(part)


def rows(counted: StepCount) -> dict[str, ModuleCount]:
    """Path of names → row."""
    found: dict[str, ModuleCount] = {}

    def walk(module: ModuleCount, path: str) -> None:
        found[path] = module
        for part in module.parts:
            walk(part, f"{path}.{part.name}".lstrip("."))

    assert counted.modules is not None
    walk(counted.modules, "")
    return found


def assert_sums(counted: StepCount) -> None:
    """The tree says what the whole count says, and no module less than its parts."""
    root, flops = counted.modules, counted.flops
    assert root is not None and flops is not None
    by_phase: Counter[str] = Counter()
    for (_, phase), value in counted.by_operator.items():
        by_phase[phase] += value
    assert root.forward == by_phase["forward"]
    assert root.model == by_phase["forward"] + by_phase["backward"] == flops.model
    assert root.hardware == sum(by_phase.values()) == flops.hardware
    assert root.parameters == counted.parameters.total
    for module in every(root):
        for field in ("parameters", "forward", "model", "hardware"):
            assert getattr(module, field) >= sum(getattr(part, field) for part in module.parts), (module.name, field)


class Again(nn.Module):
    """One layer called twice, and once more under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        self.more = nn.Sequential(self.layer, nn.ReLU())

    def forward(self, x: torch.Tensor) -> Any:
        return self.more(self.layer(self.layer(x)))


def mamba() -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 96}
    return MambaForCausalLM(MambaConfig(**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0))


def checkpointed(model: Any, reentrant: bool) -> nn.Module:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "gpt2": (gpt2, (tokens(B, T, 96),)),
    "gpt2 without a tied head": (lambda: gpt2(tie_word_embeddings=False), (tokens(B, T, 96),)),
    "llama": (llama, (tokens(B, T, 96),)),
    "llama, reentrant": (lambda: checkpointed(llama(), True), (tokens(B, T, 96),)),
    "llama, modern": (lambda: checkpointed(llama(), False), (tokens(B, T, 96),)),
    "TinyGPT": (TinyGPT, (tokens(B, T), tokens(B, T))),
    "TinyGPT, reentrant": (lambda: TinyGPT(checkpointing="reentrant"), (tokens(B, T), tokens(B, T))),
    "TinyGPT, modern": (lambda: TinyGPT(checkpointing="modern"), (tokens(B, T), tokens(B, T))),
    "mamba": (mamba, (tokens(B, T, 96),)),
    "a shared layer": (Again, (torch.empty(3, 4),)),
}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("name", MODELS)
def test_the_tree_adds_up(name: str):
    build, args = MODELS[name]
    model = build()
    counted = isoflop.count(model, *args)
    assert counted.method == MEASURED
    assert_sums(counted)
    assert counted.flops is not None
    assert (counted.flops.hardware > counted.flops.model) == ("reentrant" in name or "modern" in name)


@pytest.mark.parametrize("kind", [None, "reentrant", "modern"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_by_module_and_by_operator_agree_in_every_phase(kind: str | None, attention: str):
    model = TinyGPT(checkpointing=kind, attention=attention)
    measured = measure_flops(model, Call(model, shapes((tokens(B, T), tokens(B, T))), {}), by_module=True)
    totals: list[Counter[str]] = [Counter(), Counter()]
    for total, counts in zip(totals, (measured.by_module, measured.by_operator), strict=True):
        for (_, phase), value in counts.items():
            total[phase] += value
    assert totals[0] == totals[1]
    assert set(totals[0]) == {"forward", "backward"} | ({"recomputed"} if kind else set())
    # every product of a block's layer has two gradients of its size, wherever the backward pass runs it
    for layer in ("qkv", "mix", "up", "down"):
        name = f"blocks.0.{layer}"
        assert measured.by_module[name, "backward"] == 2 * measured.by_module[name, "forward"] > 0
    assert measured.by_module["out", "recomputed"] == 0  # the head is not checkpointed
    assert not measure_flops(model, Call(model, shapes((tokens(B, T),)), {})).by_module  # not asked for


def test_llamas_modules_by_hand():
    rest = rows(isoflop.count(llama(), tokens(B, T, 96)))
    d, n = 32, B * T
    head, mlp, attention = rest["lm_head"], rest["model.layers.0–1.mlp"], rest["model.layers.0–1.self_attn"]
    assert (head.forward, head.model, head.hardware) == (2 * n * 96 * d, 6 * n * 96 * d, 6 * n * 96 * d)
    assert mlp.forward == 2 * 2 * n * 3 * d * 80
    assert attention.forward == 2 * (2 * n * 3 * d * d + 4 * B * T**2 * d)
    assert attention.model == 3 * attention.forward
    assert (mlp.parameters, mlp.count, mlp.kind) == (2 * 3 * d * 80, 2, "LlamaMLP")
    assert rest["model.embed_tokens"].forward == rest["model.norm"].model == 0


def test_what_is_shared_counts_with_the_first():
    tied = rows(isoflop.count(gpt2(), tokens(B, T, 96)))
    assert (tied["transformer.wte"].parameters, tied["lm_head"].parameters) == (96 * 32, 0)
    assert tied["lm_head"].forward == 2 * B * T * 96 * 32  # but computes where it is called
    again = rows(isoflop.count(Again(), torch.empty(3, 4)))
    assert (again[""].parameters, again["layer"].parameters, again["more"].parameters) == (16, 16, 0)
    assert again["layer"].forward == 3 * 2 * 3 * 4 * 4 and again["more"].model == 0


def test_alike_neighbours_are_one_row_added_up():
    layers = [nn.Linear(4, 4) for _ in range(5)]
    layers[3] = nn.Linear(4, 4, bias=False)
    root = isoflop.count(nn.Sequential(*layers), torch.empty(3, 4)).modules
    assert root is not None
    # the first has no gradient of its input
    assert [(part.name, part.count, part.forward) for part in root.parts] == [
        ("0", 1, 96),
        ("1–2", 2, 192),
        ("3", 1, 96),
        ("4", 1, 96),
    ]
    assert [part.parameters for part in root.parts] == [20, 40, 16, 20]


def test_rows_inside_of_alike_rows_are_added_up_too():
    deep = rows(isoflop.count(llama(num_hidden_layers=3), tokens(B, T, 96)))
    one = rows(isoflop.count(llama(num_hidden_layers=1), tokens(B, T, 96)))
    for path, row in one.items():
        if path.startswith("model.layers.0."):
            many = deep[path.replace("layers.0.", "layers.0–2.")]
            assert (many.count, many.model, many.parameters) == (3, 3 * row.model, 3 * row.parameters)


def test_named_modules_stay_apart_however_alike():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twins = nn.ModuleDict({"one": nn.Linear(4, 4), "two": nn.Linear(4, 4)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.twins["one"](x)
            y: torch.Tensor = self.twins["two"](x)
            return y

    tree = isoflop.count(Both(), torch.zeros(2, 4)).modules
    assert tree is not None
    (twins,) = tree.parts
    assert [(part.name, part.forward, part.count) for part in twins.parts] == [("one", 64, 1), ("two", 64, 1)]


# -- fallbacks ---------------------------------------------------------------------------------------------------------


class Branching(TinyGPT):
    """Its forward looks at a value."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        x = self.words(ids)
        assert float(x.abs().max()) < 100
        return self.out(x)


class OnAGpu(TinyGPT):
    """Its forward needs a GPU."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        raise RuntimeError("Found no NVIDIA driver on your system")


class Picky(TinyGPT):
    """Its forward does not like its inputs."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        raise ValueError("expected a batch with labels")


CONFIG = SimpleNamespace(n_layer=2, n_head=2, n_embd=16, vocab_size=48)


def test_a_branch_on_values_takes_a_real_step():
    counted = isoflop.count(Branching(), tokens(B, T))
    head = 2 * B * T * 16 * 48
    assert counted.flops == FlopCount(3 * head, 3 * head, 0)
    assert counted.method == WATCHED
    assert "Branching can't run on the meta device (it depends on values" in counted.reason
    assert "test_count.py:" in counted.reason  # where
    assert_sums(counted)
    assert rows(counted)["out"].model == 3 * head


@pytest.mark.parametrize("kind", ["reentrant", "modern"])
def test_a_real_step_counts_what_the_meta_device_does(kind: str):
    model = TinyGPT(checkpointing=kind)
    call = Call(model, shapes((tokens(B, T), tokens(B, T))), {})
    real, meta = run_once(model, call, 48), measure_flops(model, call, by_module=True)
    assert (real.flops, real.uses, real.by_module) == (meta.flops, meta.uses, meta.by_module)  # of other kernels


def test_a_real_step_keeps_the_hooks_that_compute():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.utils.spectral_norm(nn.Linear(4, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert float(x.abs().sum()) > 0
            return self.layer(x)

    counted = isoflop.count(Normed(), torch.empty(3, 4))
    assert counted.method == WATCHED
    # beside the layer's own product: a step of power iteration and uᵀWv (Miyato et al. 2018, algorithm 1)
    assert rows(counted)[""].forward == 2 * 3 * 4 * 5 + 3 * 2 * 4 * 5 + 2 * 5
    assert_sums(counted)


def test_a_real_step_gets_ids_below_the_vocabulary_and_masks_of_ones():
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(3, 4)

        def forward(self, batch: dict[str, torch.Tensor], scale: Any) -> torch.Tensor:
            assert batch["ids"].max() == 2 and batch["attention_mask"].all() and batch["x"].std() > 0 and scale == 2
            return self.embed(batch["ids"]) @ batch["x"]

    ids, x = torch.zeros(5, 20, dtype=torch.int64), torch.zeros(4, 6)
    counted = isoflop.count(Looks(), {"ids": ids, "attention_mask": ids, "x": x}, 2)
    assert (counted.method, counted.model_flops) == (WATCHED, 2 * 2 * 100 * 4 * 6)


def test_without_a_gpu_its_formula():
    model = OnAGpu()
    model.config = CONFIG  # type: ignore[assignment]
    counted = isoflop.count(model, tokens(B, T))
    n = counted.parameters.non_embedding_with_head
    assert n is not None
    assert counted.estimate == counted.model_flops == (6 * n + 12 * 2 * 2 * 8 * T) * B * T
    assert (counted.method, counted.flops, counted.modules) == (FORMULA, None, None)
    assert "Found no NVIDIA driver" in counted.reason


def test_without_a_shape_six_nd():
    counted = isoflop.count(OnAGpu(), tokens(B, T))
    assert (counted.method, counted.flops) == (SIX_ND, None)
    assert counted.parameters.non_embedding is not None
    assert counted.estimate == counted.six_nd == 6 * counted.parameters.non_embedding * B * T


def test_a_step_that_is_too_large_is_not_run(monkeypatch: pytest.MonkeyPatch):
    model = Branching()
    model.config = CONFIG  # type: ignore[assignment]
    for limit in ("RUN_AT_MOST", "RUN_AT_MOST_PARAMETERS"):
        with monkeypatch.context() as patch:
            patch.setattr(f"isoflop.flops.count.{limit}", 100)
            counted = isoflop.count(model, tokens(B, T))
        assert counted.method == FORMULA
        assert counted.reason.endswith("too large to be run for real")
    assert isoflop.count(model, tokens(B, T)).method == WATCHED


def test_a_model_without_weights_is_not_run():
    with torch.device("meta"):
        model = Branching()
    counted = isoflop.count(model, tokens(B, T))
    assert (counted.method, counted.flops) == (SIX_ND, None)
    built = count_otherwise(model, Call(model, shapes((tokens(B, T),)), {}), "because", Branching)
    assert (built.method, built.reason) == (WATCHED, "because")


@pytest.mark.parametrize("config", [None, CONFIG])
def test_wrong_inputs_are_an_error_and_no_estimate(config: Any, monkeypatch: pytest.MonkeyPatch):
    model = Picky()
    model.config = config
    with pytest.raises(
        Uncountable, match=r"Picky does not run on these inputs \(ValueError: expected a batch with lab"
    ):
        isoflop.count(model, tokens(B, T))
    monkeypatch.setattr("isoflop.flops.count.RUN_AT_MOST", 0)
    with pytest.raises(Uncountable, match=r"can't run on the meta device \(ValueError: expected a batch with labels"):
        isoflop.count(model, tokens(B, T))


def test_no_formula_fits_what_eats_no_tokens():
    class Image(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("CUDA error: no kernel image is available")

    with pytest.raises(Uncountable, match="CUDA error"):
        isoflop.count(Image(3, 4, 3), torch.empty(1, 3, 8, 8))


def test_only_on_the_meta_device():
    model = Branching()
    with pytest.raises(Uncountable, match="it depends on values"):
        count_measured(model, Call(model, shapes((tokens(B, T),)), {}))


# -- what can't be counted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qweight", "weight_packed", "W_q"])
def test_packed_weights_are_refused(name: str):
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].register_buffer(name, torch.zeros(8, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match=rf"expected weights that show their size, got packed .* \(0\.{name}\)"):
        isoflop.count(model, torch.empty(2, 8))


class Linear4bit(nn.Linear):
    """As bitsandbytes has it: the weight in bytes, two numbers each, and its shape beside it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        packed = torch.zeros((inputs * outputs + 1) // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.weight.quant_state = SimpleNamespace(shape=(outputs, inputs))  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("its kernel was called")


def test_four_bit_weights_count_in_full():
    def build(kind: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), kind(8, 6), nn.Linear(6, 4))

    packed, full = build(Linear4bit), build(nn.Linear)
    full[1].weight.requires_grad_(False)  # type: ignore[operator, union-attr, index]
    ours, expected = (isoflop.count(model, torch.empty(3, 4)) for model in (packed, full))
    assert ours.flops == expected.flops
    assert ours.parameters == expected.parameters
    assert rows(ours)["1"].parameters == 8 * 6 + 6
    assert_sums(ours)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.eye(4).to_sparse(),), "an argument is a sparse or nested tensor"),
        ((object(),), "an argument of type object can't be copied to the meta device"),
    ],
)
def test_inputs_that_cant_be_described(args: Any, message: str):
    with pytest.raises(ValueError, match=message):
        isoflop.count(nn.Linear(4, 4), *args)


def test_a_model_without_parameters():
    with pytest.raises(ValueError, match="expected a model with parameters, got ReLU with none"):
        isoflop.count(nn.ReLU(), torch.empty(3))


# -- tokens ------------------------------------------------------------------------------------------------------------

IDS, IMAGE = Shape((2, 16), torch.int64, False), Shape((2, 3, 8, 8), torch.float32, False)
FRAMES = Shape((2, 80, 16), torch.float32, False)


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((IDS,), {}, (32, 16)),
        ((), {"input_ids": IDS, "labels": Shape((2, 4), torch.int64, False)}, (32, 16)),
        ((), {"labels": Shape((2, 4), torch.int64, False), "idx": IDS}, (32, 16)),  # whatever it is called
        ((), {"inputs_embeds": FRAMES}, (160, 80)),
        (({"input_ids": IDS}, 0), {}, (32, 16)),
        (((IDS, IDS), 0), {}, (32, 16)),
        ((IMAGE, IDS), {}, (None, None)),
        ((), {"labels": Shape((2,), torch.int64, False), "pixel_values": IMAGE}, (None, None)),
        ((), {"decoder_input_ids": IDS, "input_features": FRAMES}, (None, None)),  # frames are no tokens
        ((Shape((16,), torch.int64, False),), {}, (16, 16)),
    ],
)
def test_the_positions_of_a_call(args: Any, kwargs: Any, expected: Any):
    class Anything(nn.Linear):
        """Takes whatever it is given, can't be measured, and has a shape that PaLM's formula needs the length for."""

        config = CONFIG

        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            raise RuntimeError("no meta kernel")

    with torch.device("meta"):
        model = Anything(4, 5)
    call = Call(model, args, kwargs)
    if expected == (None, None):
        with pytest.raises(Uncountable):
            count_otherwise(model, call, "because")
        return
    positions, length = expected
    counted = count_otherwise(model, call, "because")
    N = counted.parameters.active_matrices
    assert N is not None and counted.method == FORMULA
    assert counted.tokens == positions
    assert counted.estimate == palm(N, shape_of(CONFIG), length) * positions


# -- the live model ----------------------------------------------------------------------------------------------------


class Busy(nn.Module):
    """All that a forward pass may change: statistics, counters, random numbers, caches."""

    def __init__(self, branches: bool) -> None:
        super().__init__()
        self.branches = branches
        self.embed, self.norm, self.drop = nn.Embedding(9, 4), nn.BatchNorm1d(T), nn.Dropout(0.5)
        self.out = nn.Linear(4, 9)
        self.calls = 0
        self.seen: list[Any] = []

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x = self.drop(self.norm(self.embed(ids)))
        if self.branches:
            assert x.isfinite().all()
        self.seen.append(x)
        return self.out(x) * random.random() * np.random.rand()


@pytest.mark.parametrize("branches", [False, True])
def test_the_live_model_is_left_as_it_is(branches: bool):
    model = Busy(branches)
    model.out.weight.grad = torch.ones(9, 4)
    gradient, called = model.out.weight.grad, []
    model.out.register_forward_hook(lambda *_: called.append(1))
    model.eval()
    before = copy.deepcopy(model.state_dict())
    hooks = {name: (len(part._forward_hooks), len(part._forward_pre_hooks)) for name, part in model.named_modules()}
    random_before = (random.getstate(), torch.get_rng_state(), np.random.get_state())
    counted = isoflop.count(model, tokens(B, T, 9))
    assert counted.method == (WATCHED if branches else MEASURED)
    assert counted.model_flops == 3 * 2 * B * T * 4 * 9
    assert random.getstate() == random_before[0]
    assert torch.equal(torch.get_rng_state(), random_before[1])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), random_before[2], strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {
        name: (len(part._forward_hooks), len(part._forward_pre_hooks)) for name, part in model.named_modules()
    } == hooks
    assert model.out.weight.grad is gradient and torch.equal(gradient, torch.ones(9, 4))
    assert model.embed.weight.grad is None
    assert (model.calls, model.seen, model.training) == (0, [], False)
    assert called == []


# -- images before the text --------------------------------------------------------------------------------------------


def vision_language(kind: str) -> Any:
    import transformers

    text = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 200,
    }
    sides = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "llava":
        vision = transformers.CLIPVisionConfig(**sides, image_size=32, patch_size=8, projection_dim=32)
        return transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**text), vision_config=vision, image_token_id=100
        )
    rotary = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    return transformers.Qwen2VLConfig(
        text_config={**text, "rope_parameters": rotary, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 4, "hidden_size": 64, "patch_size": 4, "mlp_ratio": 2},
        image_token_id=100,
        vision_start_token_id=101,
        video_token_id=102,
    )


def test_images_in_isoflop_count(tmp_path: Path):
    """LLaVA: 16 places for an image's patches before the text, by the model's own code."""
    from transformers import LlavaForConditionalGeneration

    config = vision_language("llava")
    config.save_pretrained(tmp_path)
    done = CliRunner().invoke(app, ["count", str(tmp_path), "--images", "2", "--batch", "2", "--seq", "8", "--json"])
    printed = json.loads(done.stdout)
    ids = torch.zeros(2, 2 * 16 + 8, dtype=torch.long)
    ids[:, :32] = 100
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    expected = isoflop.count(model, input_ids=ids, labels=ids, pixel_values=torch.empty(4, 3, 32, 32))
    assert printed["method"] == "measured on the meta device"
    assert printed["flops"]["model"] == expected.flops.model
    assert printed["flops"]["6nd"] == 6 * expected.parameters.non_embedding * ids.numel()


def test_images_of_any_size(tmp_path: Path):
    """Qwen2-VL: 32 pixels are 8 × 8 patches, four of which are a token."""
    vision_language("qwen").save_pretrained(tmp_path)
    options = ["--images", "1", "--image-size", "32", "--seq", "8", "--json"]
    printed = json.loads(CliRunner().invoke(app, ["count", str(tmp_path), *options]).stdout)
    assert printed["method"] == "measured on the meta device"
    d, side, tokens = 64, 32, 8 * 8 // 4 + 8
    layer = 2 * d * d + 2 * d * (d // 2) + 3 * d * 96
    text = tokens * (6 * (2 * layer + d * 200) + 2 * 3 * 4 * tokens * d)
    block = 64 * (2 * (4 * side**2 + 2 * side * 2 * side) + 4 * 64 * side)
    merger = 16 * 2 * ((4 * side) ** 2 + 4 * side * d)
    patches = 64 * 2 * (3 * 2 * 4 * 4) * side  # whose pixels need no gradient
    assert printed["flops"]["model"] == text + 3 * (2 * block + merger) + 2 * patches


def test_images_for_a_model_without(tmp_path: Path):
    from transformers import GPT2Config

    GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32).save_pretrained(tmp_path)
    done = CliRunner().invoke(app, ["count", str(tmp_path), "--images", "1"])
    assert done.exit_code != 0 and "places for images" in done.stderr
