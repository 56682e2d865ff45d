"""Kernels that need a GPU count as the mathematics they compute: flex_attention, Mamba's scan, flash-attn, 4 bits."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

import isoflop
from isoflop.flops import Call, FlopCount, count_parameters, measure_flops, shapes
from models import gpt2, gpt2_forward_flops, llama, llama_forward_flops, tokens


def flops(model: nn.Module, *args: Any, **kwargs: Any) -> FlopCount:
    return measure_flops(model, Call(model, shapes(args), shapes(kwargs))).flops


# -- autocast ----------------------------------------------------------------------------------------------------------


class Rotary(nn.Module):
    """A product in float32 whatever the trainer's autocast says, and one in bfloat16, both on the input's device."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device_type=x.device.type, enabled=False):
            x = self.first(x.float())
        with torch.amp.autocast(x.device.type, dtype=torch.bfloat16):
            x = self.second(x)
        assert torch.is_autocast_enabled(x.device.type) is False
        return x


def test_autocast_on_the_inputs_device():
    before = torch.autocast.__init__, torch.is_autocast_enabled
    assert flops(Rotary(), torch.randn(4, 8)) == FlopCount(5 * 2 * 4 * 8 * 8, 5 * 2 * 4 * 8 * 8, 0)
    assert (torch.autocast.__init__, torch.is_autocast_enabled) == before
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the trainer's own stays on
        flops(Rotary(), torch.randn(4, 8))
        assert torch.is_autocast_enabled("cpu")


# -- flex_attention ----------------------------------------------------------------------------------------------------


class Flexible(nn.Module):
    """Attention with flex_attention, T positions, 4 heads of 8 that share 2 of keys and values."""

    def __init__(self, attention: Any, window: int | None = None) -> None:
        super().__init__()
        self.attention, self.window = attention, window
        self.q, self.kv = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor, block_mask: Any = None) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (4, 8)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (4, 8)).transpose(1, 2).chunk(2, 1)
        if self.window is not None:
            from torch.nn.attention.flex_attention import create_block_mask

            def near(b: Any, h: Any, i: Any, j: Any) -> Any:
                return (i - j < self.window) & (i >= j)

            t = x.shape[1]
            block_mask = create_block_mask(near, None, None, t, t, device=x.device)
        return self.attention(q, k, v, block_mask=block_mask, enable_gqa=True)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("window", [None, 16])
def test_flex_attention_meets_the_keys_of_its_window(window: int | None, compiled: bool):
    from torch.nn.attention import flex_attention as home

    before = dict(vars(home))
    attention = torch.compile(home.flex_attention, backend="eager") if compiled else home.flex_attention
    b, t = 2, 128
    products, in_attention = 2 * b * t * 2 * 32 * 32, 2 * (2 * b * t * (window or t) * 32)
    first = 2 * b * t * 2 * 32 * 32  # nobody wants the gradient of x
    counted = flops(Flexible(attention, window), torch.randn(b, t, 32))
    model = 3 * (products + in_attention) - first
    left_out = 3 * 2 * (2 * b * t * (t - (window or t)) * 32)
    assert counted == FlopCount(model, model, 3 * in_attention, left_out=left_out)
    changed = [name for name, value in before.items() if vars(home)[name] is not value]
    assert changed == []


def test_a_block_mask_as_an_argument():
    """Causal, and within documents of 48 and 80 tokens: Σ s² of 128²."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    document = (torch.arange(128) >= 48).int()
    causal = create_block_mask(lambda b, h, i, j: i >= j, None, None, 128, 128, device="cpu")
    packed = create_block_mask(
        lambda b, h, i, j: (i >= j) & (document[i] == document[j]), None, None, 128, 128, device="cpu"
    )
    model, x = Flexible(flex_attention), torch.randn(1, 128, 32)
    in_full, whole, apart = (isoflop.count(model, x, mask).flops for mask in (None, causal, packed))
    assert whole == in_full
    assert apart.attention * 128**2 == in_full.attention * (48**2 + 80**2)
    assert apart.full == in_full.model


# -- state-space models of Hugging Face -------------------------------------------------------------------------------


def mamba(kind: str) -> nn.Module:
    import transformers

    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "vocab_size": 48, "state_size": 4}
    return getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("kind", ["Mamba", "FalconMamba"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_scan_at_once_multiplies_as_the_scan_step_by_step(
    kind: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
):
    model = mamba(kind)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    ids = tokens(2, 12)
    at_once = flops(model, input_ids=ids, use_cache=False)
    monkeypatch.setattr("isoflop.flops.twin._reference_implementations", lambda home: {})
    assert flops(model, input_ids=ids, use_cache=False) == at_once
    assert at_once.attention == 0 and (at_once.hardware > at_once.model) == checkpointing


def test_kernels_of_other_libraries_are_left_out_of_a_replay(monkeypatch: pytest.MonkeyPatch):
    """As on a machine with mamba_ssm and causal_conv1d: their kernels can't run on meta tensors."""
    model, ids = mamba("Mamba"), tokens(2, 12)
    expected = flops(model, input_ids=ids, use_cache=False)
    home = sys.modules[type(model).__module__]

    def no_meta(*_: Any, **__: Any) -> Any:
        raise RuntimeError("expected a CUDA tensor")

    wrapped = home.mamba_selective_scan
    cells = dict(zip(wrapped.__code__.co_freevars, wrapped.__closure__, strict=True))
    monkeypatch.setattr(cells["implementation"], "cell_contents", no_meta)
    assert flops(model, input_ids=ids, use_cache=False) == expected
    assert home.mamba_selective_scan is wrapped


# -- attention implementations that need a GPU -------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "by_hand"), [(gpt2, gpt2_forward_flops), (llama, llama_forward_flops)])
@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention"])
def test_hugging_face_attention_that_cannot_run_here(build: Any, by_hand: Any, name: str):
    model, ids = build(), tokens(2, 16, 96)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation_internal = name
    mask = torch.ones_like(ids)
    mask[0, 12:] = 0
    expected = FlopCount(3 * by_hand(2, 16), 3 * by_hand(2, 16), 3 * 2 * 4 * 2 * 16**2 * 32)
    assert flops(model, input_ids=ids, labels=ids, attention_mask=mask) == expected
    assert model.config._attn_implementation_internal == name


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_documents_attend_to_themselves(implementation: str):
    """Positions that begin anew tell documents of 6 and 10 tokens apart: Σ s², less than 16²."""
    positions = torch.cat([torch.arange(6), torch.arange(10)])[None].expand(2, -1)
    call = shapes({"input_ids": tokens(2, 16, 96), "position_ids": positions}, values=True)
    left_out = 3 * 2 * 4 * 2 * (16**2 - 6**2 - 10**2) * 32
    model = llama(implementation)
    counted = measure_flops(model, Call(model, (), call)).flops
    assert counted.full == 3 * llama_forward_flops(2, 16)
    assert counted.left_out == left_out


# -- 4 and 8 bits ------------------------------------------------------------------------------------------------------


class Linear4bit(nn.Linear):
    """As bitsandbytes': two weights in a byte, their shape beside them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        shape = self.weight.shape
        self.weight = nn.Parameter(torch.zeros(shape.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
        self.weight.quant_state = type("QuantState", (), {"shape": shape})()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("expected a CUDA tensor")


class Adapted(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.first, self.base, self.adapter = nn.Linear(8, 16), base, nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.base(x) + self.adapter(x)


def test_four_bits_count_as_what_they_stand_for():
    whole, packed = nn.Linear(16, 6), Linear4bit(16, 6)
    whole.weight.requires_grad_(False)
    x = torch.randn(3, 8)
    expected, counted = (measure_flops(m, Call(m, shapes((x,)), {})) for m in (Adapted(whole), Adapted(packed)))
    assert counted.flops == expected.flops
    totals = [count_parameters(Adapted(base)).total for base in (whole, packed)]
    assert totals[0] == totals[1] == (8 * 16 + 16) + 2 * (16 * 6 + 6)


@pytest.mark.parametrize("name", ["qweight", "W_q", "weight_packed"])
def test_other_packings_are_refused_with_what_to_do(name: str):
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_buffer(name, torch.zeros(2, 4, dtype=torch.int32))
    with pytest.raises(ValueError, match=rf"packed quantised ones \(0.{name}\); pass num_params= and flops_per_token="):
        count_parameters(model)
