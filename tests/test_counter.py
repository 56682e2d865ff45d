"""FLOPs operator by operator: 2mnk by hand, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from isoflop.flops import Call, FlopCount, FlopCounter, formula_of, measure_flops, shapes
from models import TinyGPT, tokens

sizes = st.integers(1, 7)


def count(function: Any, *args: torch.Tensor, backward: bool = True) -> FlopCount:
    with FlopCounter() as counter:
        out = function(*args)
        if backward:
            out.sum().backward()
    return counter.count


def leaf(*shape: int, device: str = "meta") -> torch.Tensor:
    return torch.randn(*shape, device=device, requires_grad=True)


@given(sizes, sizes, sizes)
def test_a_product_is_2mnk_and_its_backward_twice_that(m: int, k: int, n: int):
    assert count(torch.mm, leaf(m, k), leaf(k, n)) == FlopCount(6 * m * n * k, 6 * m * n * k, 0)
    assert count(torch.mm, leaf(m, k), leaf(k, n), backward=False).model == 2 * m * n * k
    assert count(F.linear, leaf(m, k), leaf(n, k), leaf(n)).model == 6 * m * n * k


@given(sizes, sizes, sizes, sizes)
def test_products_of_two_activations_are_attention_where_a_softmax_is_between(b: int, m: int, k: int, n: int):
    flops = 6 * b * m * n * k
    assert count(torch.bmm, leaf(b, m, k), leaf(b, k, n)) == FlopCount(flops, flops, 0)
    assert count(torch.baddbmm, leaf(b, m, n), leaf(b, m, k), leaf(b, k, n)) == FlopCount(flops, flops, 0)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return F.dropout((torch.baddbmm(mask, q, k) / 2).float().softmax(-1)) @ v

    def linear(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (q @ k / 2 + mask).relu() @ v

    operands = leaf(b, m, k), leaf(b, k, n), leaf(b, n, k), torch.zeros(b, m, n, device="meta")
    assert count(attention, *operands) == FlopCount(2 * flops, 2 * flops, 2 * flops)
    assert count(linear, *operands) == FlopCount(2 * flops, 2 * flops, 0)
    # a softmax over what a weight made (a router, a head) makes no attention of what follows
    weight = leaf(k, n)
    routed = count(lambda x, v: (x @ weight).softmax(-1) @ (v @ weight), leaf(b, m, k), leaf(b, n, k))
    assert routed.attention == 0


def test_a_gradient_that_nobody_wants_is_not_computed():
    assert count(torch.mm, torch.randn(2, 3), leaf(3, 5, device="cpu")).model == 2 * 2 * (2 * 3 * 5)
    assert count(torch.bmm, torch.randn(4, 2, 3), leaf(4, 3, 5, device="cpu")).model == 2 * 4 * 2 * 2 * 3 * 5
    softmaxed = count(lambda q, k: torch.bmm(q, k).softmax(-1), torch.randn(4, 2, 3), leaf(4, 3, 5, device="cpu"))
    assert softmaxed.attention == 2 * 4 * 2 * 2 * 3 * 5


@given(sizes, sizes)
def test_products_with_a_vector(m: int, k: int):
    assert count(torch.mv, leaf(m, k), leaf(k), backward=False).model == 2 * m * k
    assert count(torch.dot, leaf(k), leaf(k), backward=False).model == 2 * k
    assert count(torch.addmv, leaf(m), leaf(m, k), leaf(k), backward=False).model == 2 * m * k


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_grouped_and_transposed(groups: int, transposed: bool):
    kind = nn.ConvTranspose1d if transposed else nn.Conv1d
    layer = kind(8, 16, 3, groups=groups, device="meta")
    positions = 10 if transposed else 8  # each meets every weight of its group once
    forward = 2 * 2 * positions * 8 * 16 // groups * 3
    assert count(layer, leaf(2, 8, 10)).model == 3 * forward
    assert count(layer, torch.randn(2, 8, 10, device="meta")).model == 2 * forward


def test_grouped_products_of_experts():
    rows, groups, k, n = 24, 3, 16, 32
    x = torch.randn(rows, k, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weights = torch.randn(groups, k, n, dtype=torch.bfloat16, device="meta", requires_grad=True)
    ends = torch.tensor([8, 16, 24], dtype=torch.int32, device="meta")
    assert count(lambda: torch._grouped_mm(x, weights, offs=ends) * 1).model == 3 * 2 * rows * k * n


def test_what_counts_nothing():
    x = leaf(4, 6, device="cpu")
    norm = nn.LayerNorm(6)
    assert count(lambda x: F.dropout(norm(F.gelu(x)).softmax(-1)), x) == FlopCount(0, 0, 0)
    assert count(nn.Embedding(9, 4), torch.zeros(3, dtype=torch.long)) == FlopCount(0, 0, 0)


@pytest.mark.parametrize("gradients", [True, False])
def test_attention_on_the_cpu_where_torch_counts_nothing(gradients: bool):
    q, k, v = (torch.randn(2, 3, length, width) for length, width in ((5, 8), (7, 8), (7, 8)))
    for tensor in (q, k, v):
        tensor.requires_grad_(gradients)
    forward = 2 * 2 * 3 * 5 * 7 * (8 + 8)
    flops = count(F.scaled_dot_product_attention, q, k, v, backward=gradients)
    assert flops == FlopCount(*[forward * (3 if gradients else 1)] * 3)
    with FlopCounterMode(display=False) as theirs:
        F.scaled_dot_product_attention(q, k, v)
    assert theirs.get_total_flops() == 0  # pytorch#195460: where this fails, our formula can go


def test_causal_counts_attention_half():
    assert FlopCount(100, 120, 40).causal == 80
    assert FlopCount(1, 2, 3) + FlopCount(4, 5, 6) == FlopCount(5, 7, 9)
    assert FlopCount(1, 2, 3) * 4 == FlopCount(4, 8, 12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_real_step_on_the_cpu_counts_as_on_meta(attention: str):
    model = TinyGPT(attention=attention, dropout=0.1)
    x, y = tokens(3, 16), tokens(3, 16, seed=1)
    with FlopCounter() as counter:
        model(x, y)[1].backward()
    forward, in_attention = model.forward_flops(3, 16)
    # outside of a trace nobody knows a stacked weight from an activation; here there is none
    assert counter.count == FlopCount(3 * forward, 3 * forward, 3 * in_attention)
    assert measure_flops(model, Call(model, shapes((x, y)), {})).flops == counter.count
    with FlopCounterMode(display=False) as theirs:
        model(x, y)[1].backward()
    assert theirs.get_total_flops() == 3 * forward - (3 * in_attention if attention == "sdpa" else 0)


@pytest.mark.parametrize("activation", [F.silu, F.mish])
def test_an_operator_with_a_kernel_of_its_own_is_not_taken_apart(activation: Any):
    """Its parts round otherwise: silu_backward is in every Llama."""
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def slope() -> torch.Tensor:
        return torch.autograd.grad(activation(x).square().sum(), x)[0]

    with FlopCounter():
        counted = slope()
    assert torch.equal(counted, slope())


def test_layers_whose_kernel_takes_them_whole():
    """As on Apple's devices, and wherever a linear layer reaches the counter in one operator."""
    x, weight = torch.randn(2, 5, 8), torch.randn(3, 8)
    with torch.inference_mode(), FlopCounter() as counter:
        F.linear(x, weight)
    assert counter.count.model == 2 * 10 * 8 * 3
    backward = formula_of(torch.ops.aten.linear_backward)
    assert backward is not None
    grad = torch.randn(2, 5, 3)
    assert backward(x, grad, weight, [True, True, False], out_val=None) == 2 * 2 * 10 * 8 * 3
    assert backward(x, grad, weight, [False, True, True], out_val=None) == 2 * 10 * 8 * 3


def test_counting_changes_nothing():
    model, x, y = TinyGPT(), tokens(2, 8), tokens(2, 8, seed=1)
    plain = model(x, y)[1]
    with FlopCounter():
        assert torch.equal(model(x, y)[1], plain)


@pytest.mark.filterwarnings("ignore:.*prototype")
def test_custom_operators_are_named():
    @torch.library.custom_op("isoflop_test::fused", mutates_args=())
    def fused(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b

    fused.register_fake(lambda a, b: a.new_empty(a.shape[0], b.shape[1]))
    fused.register_autograd(lambda ctx, grad: (grad, grad), setup_context=lambda ctx, inputs, output: None)

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer(x)
            return fused(x, x)

    model = Fused()
    measured = measure_flops(model, Call(model, shapes((torch.randn(4, 4),)), {}))
    assert measured.without_formula == {"isoflop_test::fused"}
    assert measured.flops.model == 2 * 2 * 4 * 4 * 4
