"""What other counters say: exactly what they say of a real step on a CPU, and why."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import isoflop
from hand import Entry, adapt, checkpointed
from isoflop.flops import Call, Opinion, opinions, shapes, tensors_in
from zoo import ZOO

BATCH = 2
BY_NAME = {entry.name: entry for entry in ZOO}
pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),
    # fvcore's import and its tracing, where the tests do them themselves
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"),
]


def built(name: str, attention: str | None = None) -> tuple[Entry, Any, dict[str, torch.Tensor]]:
    entry = BY_NAME[name]
    torch.manual_seed(0)
    model = entry.build(attention or entry.attentions[-1]).train()
    return entry, model, entry.inputs(BATCH, entry.lengths[0])


def call_of(model: nn.Module, inputs: dict[str, Any]) -> Call:
    return Call(model, (), shapes(inputs))


def asked(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Opinion]:
    call = call_of(model, inputs)
    return {opinion.counter.split()[0]: opinion for opinion in opinions(model, call, isoflop.count(model, **inputs))}


@pytest.fixture
def no_fvcore(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tracing takes longer than the rest."""
    monkeypatch.setattr("isoflop.flops.count.by_fvcore", lambda *_: (0, {}))


without_fvcore = pytest.mark.usefixtures("no_fvcore")


# -- FlopCounterMode ---------------------------------------------------------------------------------------------------

REAL = [
    pytest.param("gpt2", "eager", None, marks=pytest.mark.slow),
    ("gpt2", "sdpa", None),
    ("gpt2", "sdpa", "reentrant"),
    ("mixtral", "sdpa", None),  # in fp32, while the fake tensors are bf16
    pytest.param("t5", "sdpa", None, marks=pytest.mark.slow),
    ("mamba", "none", None),
]


@without_fvcore
@pytest.mark.parametrize(("name", "attention", "checkpointing"), REAL)
def test_flop_counter_mode_says_the_same_of_a_real_step_on_a_cpu(name: str, attention: str, checkpointing: str | None):
    from torch.utils.flop_counter import FlopCounterMode

    _, model, inputs = built(name, attention)
    model = checkpointed(model, checkpointing)
    with FlopCounterMode(display=False) as theirs:
        output = model(**inputs)
        output["loss" if "loss" in output else "logits"].sum().backward()
    found = asked(model, inputs)["torch"]
    assert found.flops == theirs.get_total_flops()
    assert not any(reason.startswith("everything else") for reason in found.reasons)


@without_fvcore
def test_recomputation_and_attention_are_told_apart():
    entry, model, inputs = built("gpt2", "sdpa")
    found = asked(checkpointed(model, "reentrant"), inputs)["torch"]
    in_attention = 3 * 2 * 2 * 2 * BATCH * 16 * 16 * 32  # of 2 layers: 2 products forward, 4 backward
    again = 2 * 2 * BATCH * 16 * (4 + 8) * 32 * 32  # of 2 layers: Q, K, V, O and the feed-forward
    assert found.reasons == (
        "activation checkpointing's second forward pass is counted: +1.57e6",
        "scaled_dot_product_attention has no formula there for a CPU (pytorch#195460): −393,216",
    )
    assert (found.flops, found.ours) == (found.ours - in_attention + again, entry.training_flops(BATCH, 16))


@without_fvcore
def test_a_grouped_convolution():
    convolution = nn.Conv1d(8, 8, 3, padding=1, groups=4)
    found = asked(convolution, {"input": torch.ones(2, 8, 10, requires_grad=True)})["torch"]
    forward = 2 * (8 * 2 * 3) * 2 * 10
    assert (found.flops, found.ours) == (forward * (1 + 5), 3 * forward)  # backward: 2 · (1 + groups) / 2
    assert found.difference == 1.0
    assert "pytorch#183405): +5,760" in found.reasons[0]


class Flexible(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        out: torch.Tensor = flex_attention(*self.qkv(x).unsqueeze(1).chunk(3, -1))
        return out


@without_fvcore
def test_flex_attention_does_not_run_under_it():
    import torch.nn.attention.flex_attention

    found = asked(Flexible(), {"x": torch.zeros(2, 8, 16)})["torch"]
    assert found.flops is None and "FlexAttention does not support backward on CPU" in found.reasons[0]


# -- fvcore ------------------------------------------------------------------------------------------------------------


class Tensors(nn.Module):
    """A Hugging Face model as fvcore can trace it."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensors_in(self.model(**dict(zip(self.names, tensors, strict=True)), use_cache=False)))


@pytest.mark.parametrize(
    "name", ["gpt2", "mamba", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mixtral", "t5", "whisper"))]
)
def test_fvcore_says_the_same_of_real_tensors(name: str):
    from fvcore.nn import FlopCountAnalysis

    _, model, inputs = built(name)
    flops = asked(model, inputs)["fvcore"].flops
    real = FlopCountAnalysis(Tensors(model, list(inputs)), tuple(inputs.values()))
    real.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    assert flops == 2 * real.total()


@pytest.mark.parametrize("checkpointing", [pytest.param("modern", marks=pytest.mark.slow), "reentrant"])
def test_fvcore_counts_no_recomputation(checkpointing: str):
    entry, model, inputs = built("llama", "eager")
    mask = {"attention_mask": torch.ones_like(inputs["input_ids"])}
    found = asked(checkpointed(model, checkpointing), {**inputs, **mask})["fvcore"]
    assert found.flops == found.ours == entry.forward_flops(BATCH, 16)
    assert (found.difference, found.reasons) == (0.0, ())


# -- Hugging Face ------------------------------------------------------------------------------------------------------


IN_SHORT = {("llama", True), ("mamba", False)}
EXPLAINED = [
    pytest.param(entry.name, lora, marks=() if (entry.name, lora) in IN_SHORT else pytest.mark.slow)
    for entry in ZOO
    for lora in (False, True)
    if entry.name != "nanogpt"
]


@without_fvcore
@pytest.mark.parametrize(("name", "lora"), EXPLAINED)
def test_total_flos_is_the_trainers(name: str, lora: bool):
    from transformers import Trainer

    entry, model, inputs = built(name)
    model = adapt(model, entry.adapted) if lora else model
    assert asked(model, inputs)["Hugging"].flops == Trainer.floating_point_ops(SimpleNamespace(model=model), inputs)  # type: ignore[arg-type]


@without_fvcore
def test_total_flos_by_hand():
    _, model, inputs = built("mixtral")
    d, ffw, experts, rows, layers = 32, 80, 4, BATCH * 16, 2
    found = asked(model, inputs)["Hugging"]
    in_attention = layers * 3 * 2 * 2 * BATCH * 16 * 16 * d
    idle = 6 * rows * layers * (experts - 2) * 3 * d * ffw
    norms = 6 * rows * (2 * layers + 1) * d
    assert found.flops == found.ours + idle - in_attention + norms
    assert found.reasons == (
        "all experts count, not the active: +5.90e6",
        "attention's products are left out: −393,216",
        "everything else: +30,720",
    )
    assert idle == 5_898_240
    assert (in_attention, norms) == (393_216, 30_720)


@without_fvcore
def test_without_token_ids_nothing_is_counted():
    _, model, _ = built("gpt2")
    found = asked(model, {"inputs_embeds": torch.zeros(2, 16, 32, requires_grad=True)})["Hugging"]
    assert found.flops == 0
    assert found.reasons[0].startswith("input_ids is not among the inputs: nothing is counted: −")


@without_fvcore
def test_a_plain_model_is_none_of_hugging_faces():
    _, model, inputs = built("nanogpt")
    found = asked(model, inputs)["Hugging"]
    assert (found.flops, found.difference) == (None, None)
    assert found.reasons == ("TinyGPT has no num_parameters: the Trainer's total_flos stays 0",)


# -- all of them -------------------------------------------------------------------------------------------------------


class Choosy(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = super().forward(x)
        return y if float(y.sum()) > 0 else -y


def test_whatever_fails_is_a_reason():
    model = Choosy(4, 5)
    call = call_of(model, {"x": torch.zeros(3, 4)})
    counted = isoflop.count(model, torch.zeros(3, 4))  # on one real step
    fvcore, theirs, huggingface = opinions(model, call, counted)
    assert fvcore.flops is theirs.flops is huggingface.flops is None
    assert theirs.ours == counted.model_flops == 240
    assert theirs.reasons[0].startswith("it depends on values, which ") and fvcore.reasons[0]
    nothing = opinions(object(), call, counted)  # type: ignore[arg-type]
    assert all(opinion.flops is None and opinion.reasons for opinion in nothing)


def test_a_model_without_weights_is_enough():
    with torch.device("meta"):
        _, model, inputs = built("llama", "sdpa")
    on_meta = asked(model, {name: tensor.to("meta") for name, tensor in inputs.items()})
    _, model, inputs = built("llama", "sdpa")
    assert on_meta == asked(model, inputs)


def test_the_live_model_stays_as_it_is():
    _, model, inputs = built("gpt2")
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    random, held = torch.get_rng_state(), _fakes()  # kept alive: what other tests left may be collected meanwhile
    found = asked(torch.compile(model, backend="eager"), inputs)
    assert found == asked(model, inputs)
    assert torch.equal(torch.get_rng_state(), random)
    after = model.state_dict(keep_vars=True)
    assert before.keys() == after.keys()
    assert all(id(after[name]) == key and torch.equal(after[name], value) for name, (key, value) in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    gc.collect()
    assert not _fakes().keys() - held.keys()


def _fakes() -> dict[int, torch.Tensor]:
    from torch._subclasses.fake_tensor import FakeTensor

    return {id(item): item for item in gc.get_objects() if issubclass(type(item), FakeTensor)}
