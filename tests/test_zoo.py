"""The zoo: what `measure` counts of real architectures equals a count by hand, FLOP for FLOP, and so does N.

`hand.py` says how one counts by hand, `zoo.py`, `zoo_others.py` and `zoo_mamba.py` what is counted.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from torch import nn

from hand import Entry, adapt, checkpointed, count, linear
from isoflop.flops import Call, Measurement, Uncountable, count_parameters, measure_flops, shapes
from zoo import ZOO
from zoo_further import FURTHER, UNCOUNTABLE
from zoo_mamba import mamba2_products, mamba_products

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")

BATCH = 2
BY_NAME = {entry.name: entry for entry in ZOO}
NAMES = list(BY_NAME)
VARIANTS = {"llama-tied", "mistral-window", "bert-classifier"}
"""Like another entry but for one thing: in every way with `make slow` alone, seconds are dear."""


def measured(model: nn.Module, **inputs: Any) -> Measurement:
    return measure_flops(model, Call(model, (), shapes(inputs, values=True)))


def built(entry: Entry, attention: str | None = None) -> nn.Module:
    torch.manual_seed(0)
    return entry.build(attention or entry.attentions[-1])


def slow_if(condition: Any) -> Any:
    return pytest.mark.slow if condition else ()


def other_kind(name: str, checkpointing: str | None, lora: bool) -> bool:
    """Of two kinds of checkpointing one is for `make slow`: the quick suite takes them in turn, LoRA the other one."""
    return checkpointing == ("reentrant", "modern")[(NAMES.index(name) + lora) % 2]


# -- the table ---------------------------------------------------------------------------------------------------------

EVERY_WAY = [
    pytest.param(
        entry.name,
        attention,
        checkpointing,
        id=f"{entry.name}-{attention}-{checkpointing}",
        marks=slow_if(
            other_kind(entry.name, checkpointing, lora=False)
            or (checkpointing and (attention != entry.attentions[-1] or entry.name in VARIANTS))
        ),
    )
    for entry in ZOO
    for attention in entry.attentions
    for checkpointing in (None, "reentrant", "modern")
]


@pytest.mark.parametrize(("name", "attention", "checkpointing"), EVERY_WAY)
def test_full_training(name: str, attention: str, checkpointing: str | None):
    entry, length = BY_NAME[name], BY_NAME[name].lengths[0]
    model = checkpointed(built(entry, attention), checkpointing)
    found = measured(model, **entry.inputs(BATCH, length))
    assert found.flops == count(entry.products(BATCH, length), checkpointing=checkpointing)
    assert found.flops.model == entry.training_flops(BATCH, length)
    assert found.without_formula == frozenset()
    assert count_parameters(model, found.uses) == entry.sizes.parameters()


ADAPTED = [
    pytest.param(
        name,
        checkpointing,
        id=f"{name}-{checkpointing}",
        marks=slow_if(other_kind(name, checkpointing, lora=True) or (checkpointing and name in VARIANTS)),
    )
    for name in NAMES
    for checkpointing in (None, "reentrant", "modern")
    # reentrant checkpointing gives a frozen TinyGPT's adapters no gradient, and no hook helps it
    if (name, checkpointing) != ("nanogpt", "reentrant")
]


@pytest.mark.parametrize(("name", "checkpointing"), ADAPTED)
def test_lora(name: str, checkpointing: str | None):
    entry, length = BY_NAME[name], BY_NAME[name].lengths[0]
    model = checkpointed(adapt(built(entry), entry.adapted), checkpointing)
    found = measured(model, **entry.inputs(BATCH, length))
    hooked = checkpointing is not None and name != "nanogpt"
    products = entry.products(BATCH, length)
    assert found.flops == count(products, lora=True, checkpointing=checkpointing, inputs_require_grad=hooked)
    assert count_parameters(model, found.uses) == entry.sizes.parameters(entry.adapters)


# what module types alone get wrong: tables that are nn.Parameters, and those whose values are sinusoids
BY_TYPE = {"vit": {"non_embedding", "non_embedding_with_head"}}


@pytest.mark.parametrize("name", NAMES)
def test_parameters_by_type(name: str):
    model, expected = built(BY_NAME[name]), BY_NAME[name].sizes.parameters().by_convention()
    by_type = count_parameters(model).by_convention()
    assert {key for key in expected if by_type[key] != expected[key]} == BY_TYPE.get(name, set())


def test_two_classes_are_no_head_though_there_are_two_token_types():
    entry = BY_NAME["bert-classifier"]
    model: Any = built(entry)
    model.num_labels, model.classifier = 2, nn.Linear(model.config.hidden_size, 2)
    inputs = {**BY_NAME["bert"].inputs(1, 16), "labels": torch.zeros(1, dtype=torch.long)}
    counted = count_parameters(model, measured(model, **inputs).uses)
    body = entry.sizes.body - 3 * (model.config.hidden_size + 1)
    assert (counted.non_embedding, counted.non_embedding_with_head) == (body, body)


def test_biases_of_experts_are_no_embeddings():
    further, experts, top = FURTHER["gpt-oss"], 4, 2
    model: Any = further.build()
    d, ffw, vocabulary = further.settings["hidden_size"], further.settings["intermediate_size"], model.config.vocab_size
    counted = count_parameters(model, measured(model, **further.inputs()).uses)
    assert counted.non_embedding == counted.total - 2 * vocabulary * d
    expert = linear(d, 2 * ffw) + linear(ffw, d)
    assert counted.active == counted.total - further.settings["num_hidden_layers"] * (experts - top) * expert


# -- the same however it is called -------------------------------------------------------------------------------------


def other_shape(entry: Entry, batch: int) -> bool:
    """Of two shapes beside that of `test_full_training` one is for `make slow`, in turn."""
    return len(entry.lengths) > 1 and (batch == 3) == NAMES.index(entry.name) % 2


SHAPES = [
    pytest.param(
        entry.name,
        batch,
        length,
        id=f"{entry.name}-{batch}-{length}",
        marks=slow_if(entry.name in VARIANTS or other_shape(entry, batch)),
    )
    for entry in ZOO
    for batch, length in ([(1, 7), (3, 24)] if len(entry.lengths) > 1 else [(1, entry.lengths[0])])
]


@pytest.mark.parametrize(("name", "batch", "length"), SHAPES)
def test_batches_and_lengths(name: str, batch: int, length: int):
    entry = BY_NAME[name]
    assert measured(built(entry), **entry.inputs(batch, length)).flops == count(entry.products(batch, length))


@pytest.mark.parametrize("length", [1, 8, 13])
def test_chunks(length: int):
    entry = BY_NAME["mamba2"]
    assert measured(built(entry), **entry.inputs(1, length)).flops == count(entry.products(1, length))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_and_padding_change_nothing(name: str):
    entry, length = BY_NAME[name], BY_NAME[name].lengths[0]
    model, inputs = built(entry), entry.inputs(BATCH, length)
    expected = count(entry.products(BATCH, length))
    padded = dict(inputs)
    if entry.masked:
        padded["attention_mask"] = torch.ones_like(inputs["input_ids"])
        padded["attention_mask"][0, length // 2 :] = 0
    with torch.autocast("cpu", torch.bfloat16):
        assert measured(model, **padded).flops == expected
    if entry.packed:
        positions = (torch.arange(length) % (length // 2)).expand(BATCH, length)
        apart = measured(model, **inputs, position_ids=positions).flops
        assert apart.full == expected.full
        if expected.left_out == 0:
            assert 2 * apart.attention == expected.attention


@pytest.mark.parametrize("products", [mamba_products, mamba2_products])
def test_padding_of_a_state_space_model(products: Any):
    """It computes some positions that it cuts off: of 512 that makes under 0.02%, even in so small a model."""
    asked, done = (count(products(1, 512, padded)).model for padded in (False, True))
    assert asked < done < 1.0002 * asked


# -- a second opinion of the hand counts themselves --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [None, "reentrant", "modern"])
@pytest.mark.parametrize("name", NAMES)
def test_torchs_counter_sees_as_much_in_a_real_step(name: str, checkpointing: str | None, lora: bool):
    """It is right with attention written out and experts in a batch; it counts what is computed again, too."""
    from torch.utils.flop_counter import FlopCounterMode

    if name.startswith("mamba") and not lora:
        pytest.skip("torch takes a grouped convolution's backward pass for a full one (pytorch#183405)")
    if (name, checkpointing, lora) == ("nanogpt", "reentrant", True):
        pytest.skip("nothing would train")
    entry, length = BY_NAME[name], BY_NAME[name].lengths[0]
    model: Any = built(entry, entry.attentions[0])
    model = checkpointed(adapt(model, entry.adapted) if lora else model, checkpointing)
    if entry.sizes.idle:
        model.set_experts_implementation("batched_mm")
    with FlopCounterMode(display=False) as counter:
        output = model(**entry.inputs(BATCH, length))
        (output[1] if isinstance(output, tuple) else output.loss).backward()
    hooked = lora and checkpointing is not None and name != "nanogpt"
    products = entry.products(BATCH, length)
    expected = count(products, lora=lora, checkpointing=checkpointing, inputs_require_grad=hooked)
    left_out = expected.left_out * (4 if checkpointing else 3) // 3
    assert counter.get_total_flops() == expected.hardware + left_out


# -- fvcore's opinion of further architectures: TorchScript's trace against torch's dispatcher ------------------------

PRODUCTS = {"conv", "linear", "matmul", "addmm", "bmm", "einsum"}


class Positional(nn.Module):
    """fvcore traces with positional tensors."""

    def __init__(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.tensors = [key for key, value in inputs.items() if isinstance(value, torch.Tensor)]
        self.others = {key: value for key, value in inputs.items() if key not in self.tensors}

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.tensors, tensors, strict=True)), **self.others).loss


def by_fvcore(model: Any, inputs: dict[str, Any]) -> int:
    """FLOPs of the forward pass's products: fvcore counts multiply-adds, in a TorchScript trace of a real run."""
    from fvcore.nn import FlopCountAnalysis

    if isinstance(getattr(model.config, "num_experts_per_tok", None), int):
        model.set_experts_implementation("batched_mm")  # it does not know the grouped product
    tensors = tuple(value for value in inputs.values() if isinstance(value, torch.Tensor))
    analysis = FlopCountAnalysis(Positional(model, inputs), tensors)
    analysis.unsupported_ops_warnings(False).tracer_warnings("none")
    return round(2 * sum(flops for operator, flops in analysis.by_operator().items() if operator in PRODUCTS))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", FURTHER)
def test_agrees_with_fvcore(name: str):
    further = FURTHER[name]
    model, inputs = further.build(), further.inputs()
    found = measured(model, **inputs)
    # a backward pass costs two forward ones, but for gradients of what is no activation
    assert found.flops.full == 3 * by_fvcore(model, inputs) - further.unneeded
    assert found.flops.model == found.flops.hardware
    assert found.without_formula == frozenset()


@pytest.mark.parametrize("name", UNCOUNTABLE)
def test_what_needs_its_datas_values_says_so(name: str):
    further = UNCOUNTABLE[name]
    with pytest.raises(Uncountable) as caught:
        measured(further.build(), **further.inputs())
    assert str(caught.value).startswith(f"{further.model} can't run on the meta device (")


class Encoder(nn.Module):
    """A block with attention written out (fvcore counts fused attention 0), after a grouped and a plain convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv1d(6, 32, kernel_size=4, stride=4)
        self.mixing = nn.Conv1d(32, 32, kernel_size=3, padding=1, groups=8)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mixing(self.patches(x)).transpose(1, 2)
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, 4, 8).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(torch.matmul(q, k.transpose(2, 3)) / math.sqrt(8), dim=-1)
        x = x + self.out(torch.matmul(weights, v).transpose(1, 2).reshape(b, t, d))
        return x + self.down(torch.relu(self.up(x)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_forward_flops_are_twice_fvcores_multiply_adds() -> None:
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    model, x = Encoder().requires_grad_(False), torch.randn(2, 6, 64)
    forward_alone = measure_flops(model, Call(model, shapes((x,)), {})).flops
    assert forward_alone.model == 2 * FlopCountAnalysis(model, x).total() > 0


def test_backward_is_twice_the_forward_less_the_inputs_gradient() -> None:
    model, x = Encoder(), torch.randn(2, 6, 64)
    both = measure_flops(model, Call(model, shapes((x,)), {})).flops.model
    forward = measure_flops(model.requires_grad_(False), Call(model, shapes((x,)), {})).flops.model
    first = 2 * (6 * 4 * 32) * 2 * 16  # nobody needs the gradient of x
    assert both == 3 * forward - first
