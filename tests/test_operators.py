"""Formulas of single operators, ours beside the arithmetic by hand, and those that a user registers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import isoflop
from isoflop.flops import (
    OBSERVED,
    Call,
    FlopCount,
    FlopCounter,
    formula_of,
    measure_flops,
    operator_name,
    operators,
    register_flop_formula,
    shapes,
)

aten = torch.ops.aten


def count(function: Any, *args: torch.Tensor) -> int:
    with FlopCounter() as counter:
        function(*args)
    return counter.count.model


def t(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def test_products_that_torch_has_no_formula_for():
    assert count(torch.mv, t(3, 5), t(5)) == 2 * 3 * 5
    assert count(torch.dot, t(5), t(5)) == count(torch.vdot, t(5), t(5)) == 2 * 5
    assert count(torch.addmv, t(3), t(3, 5), t(5)) == 2 * 3 * 5
    assert count(torch.addbmm, t(3, 4), t(2, 3, 5), t(2, 5, 4)) == 2 * 2 * 3 * 5 * 4
    assert count(torch.addr, t(3, 4), t(3), t(4)) == 2 * 3 * 4
    int8 = [torch.empty(32, 16, dtype=torch.int8, device="meta"), torch.empty(16, 8, dtype=torch.int8, device="meta")]
    assert count(torch._int_mm, *int8) == 2 * 32 * 16 * 8


def test_a_product_of_complex_numbers_is_four_of_real_ones(monkeypatch: pytest.MonkeyPatch):
    def complex_(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.complex64, requires_grad=True)

    x, spectrum = complex_(3, 5), complex_(4, 5, 2)  # as of an S4's or a Fourier neural operator's modes
    assert count(lambda: (x @ complex_(5, 4)).abs().sum().backward()) == 3 * 4 * 2 * 3 * 5 * 4
    assert count(lambda: torch.einsum("bx,xio->bio", x, spectrum.permute(1, 0, 2)).detach()) == 4 * 2 * 3 * 5 * 8
    monkeypatch.setattr(operators, "_NAMED", {})
    register_flop_formula("aten::mm", lambda *args, out_val, **kwargs: 7)  # a user's says it all
    assert count(torch.mm, x, complex_(5, 4)) == 7


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_position_meets_every_matrix_of_a_recurrent_layer(both_ways: bool):
    layers = nn.LSTM(8, 6, 2, bidirectional=both_ways)
    with FlopCounter() as counter:
        layers(torch.randn(5, 3, 8, requires_grad=True))[0].sum().backward()
    matrices = sum(parameter.numel() for parameter in layers.parameters() if parameter.dim() == 2)
    assert counter.count.model == 3 * 2 * 5 * 3 * matrices and not counter.without_formula
    cudnn = operators.FORMULAS[aten._cudnn_rnn_backward]
    assert cudnn(t(5, 3, 8), [t(24, 8), t(24, 6), t(24)], out_val=None) == 2 * 2 * 5 * 3 * (24 * 8 + 24 * 6)


@pytest.fixture(scope="module")
def flash_attn() -> Any:
    """Operators with the schemas of Dao-AILab's flash-attn (their arguments up to what matters here)."""
    library = torch.library.Library("flash_attn", "FRAGMENT")
    qkv, rest = (
        "Tensor q, Tensor k, Tensor v",
        "float dropout_p, bool causal, int window_size_left, int window_size_right",
    )
    library.define(f"_flash_attn_forward({qkv}, {rest}) -> Tensor")
    library.define(f"_flash_attn_backward(Tensor dout, {qkv}, Tensor out, {rest}) -> Tensor")
    bounds = "Tensor cu_seqlens_q, Tensor cu_seqlens_k, int max_seqlen_q, int max_seqlen_k"
    library.define(f"_flash_attn_varlen_forward({qkv}, {bounds}, {rest}) -> Tensor")
    yield torch.ops.flash_attn
    library._destroy()


@pytest.mark.parametrize("width", [4, 7])
@pytest.mark.parametrize("window, keys", [((-1, -1), 8), ((2, 0), 3), ((20, 0), 8)])
def test_flash_attention_of_dao_ailab(flash_attn: Any, width: int, window: tuple[int, int], keys: int):
    """(B, T, H, K), as its operators have it; QKᵀ and AV forward, twice that backward; a window's keys alone."""
    query, key = t(2, 8, 6, width), t(2, 8, 3, width)
    products = 2 * (2 * 2 * 6 * 8 * keys * width)
    assert formula_of(flash_attn._flash_attn_forward)(query, key, key, 0.0, True, *window) == products
    backward = formula_of(flash_attn._flash_attn_backward)
    assert backward(query, query, key, key, query, 0.0, True, *window) == 2 * products


def test_packed_documents_of_flash_attention(flash_attn: Any):
    """Documents of 5 and 11 tokens in a row of 16, with a window of 8 or none; bounds without values: the longest."""
    query, bounds = t(16, 4, 8), torch.tensor([0, 5, 16], dtype=torch.int32)
    formula = formula_of(flash_attn._flash_attn_varlen_forward)
    pair = 2 * 4 * (8 + 8)
    ends = bounds, bounds, 11, 11, 0.0, True
    assert formula(query, query, query, *ends, -1, -1) == pair * (5 * 5 + 11 * 11)
    assert formula(query, query, query, *ends, 7, 0) == pair * (5 * 5 + 11 * 8)
    assert formula(query, query, query, bounds.to("meta"), *ends[1:], -1, -1) == pair * 16 * 11


@pytest.mark.parametrize("name", ["_flash_attention", "_efficient_attention", "flex_attention"])
def test_fused_attention_counts_four_products_backward(name: str):
    """torch counts a fifth, QKᵀ computed again; layouts differ: (B, T, H, K), flex (B, H, T, K)."""
    q = t(2, 4, 16, 8) if name == "flex_attention" else t(2, 16, 4, 8)
    products = 2 * (2 * 2 * 4 * 16 * 16 * 8)
    if name == "flex_attention":
        home = torch.ops.higher_order
        assert formula_of(home.flex_attention)(q, q, q) == products
        assert formula_of(home.flex_attention_backward)(q, q, q, q, None, q) == 2 * products
        return
    forward, backward = getattr(aten, f"{name}_forward"), getattr(aten, f"{name}_backward")
    efficient = [None] if name == "_efficient_attention" else []  # a bias
    assert formula_of(forward)(q, q, q, *efficient, None, None, None, None, out_val=q) == products
    rest = [None, q, None] if efficient else [q, None, None]
    assert formula_of(backward)(q, q, q, q, *rest, None, None, None, out_val=q) == 2 * products
    # two packed sequences of 16 in one row, given by their bounds
    q = t(1, 32, 4, 8) if efficient else t(32, 4, 8)
    bounds = torch.tensor([0, 16, 32], device="meta", dtype=torch.int32)
    assert formula_of(forward)(q, q, q, *efficient, bounds, bounds, 16, 16, out_val=q) == products
    assert formula_of(backward)(q, q, q, q, *rest[:2], bounds, bounds, 16, 16, out_val=q) == 2 * products


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("rows", [False, True])
def test_a_sparse_matrix_multiplies_what_it_holds(rows: bool):
    graph = torch.sparse_coo_tensor(torch.tensor([[0, 1, 3], [2, 0, 3]]), torch.ones(3), (4, 4)).coalesce()
    graph = graph.to_sparse_csr() if rows else graph
    for product in (torch.sparse.mm, torch.matmul):
        x = torch.randn(4, 5, requires_grad=True)
        assert count(lambda x, product=product: product(graph, x).sum().backward(), x) == 2 * 2 * 3 * 5


def test_an_encoder_s_layer_in_one_operator_as_in_many():
    layer, x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), torch.randn(4, 6, 16)
    many = count(layer, x)
    with torch.no_grad():
        assert count(layer, x) == many == 2 * 24 * (4 * 16 * 16 + 2 * 16 * 32) + 4 * 24 * 6 * 16
        assert count(layer.self_attn, x, x, x) == 2 * 24 * 4 * 16 * 16 + 4 * 24 * 6 * 16


def test_heavy_operators_without_a_formula_are_named():
    with FlopCounter() as counter:
        torch.fft.fft(torch.randn(8))
        torch.nn.functional.bilinear(torch.randn(2, 3), torch.randn(2, 4), torch.randn(5, 3, 4))
        torch.relu(torch.randn(3)).cumsum(0)
    assert counter.without_formula == {"aten::_fft_r2c", "aten::_trilinear"}
    x = torch.eye(4)
    with FlopCounter() as counter:
        torch.linalg.eigh(x), torch.linalg.solve_triangular(x, x, upper=True), torch.matrix_exp(x)
        torch.linalg.vector_norm(x), torch.linalg.cross(x[:, :3], x[:, 1:])
    assert counter.without_formula == {
        f"aten::{name}" for name in ("_linalg_eigh", "linalg_solve_triangular", "linalg_matrix_exp")
    }


def test_higher_order_operators_count_what_is_inside():
    """torch.cond's branches and the like reach a dispatch mode whole."""
    from torch._higher_order_ops.wrap import wrap

    with FlopCounter() as counter:
        wrap(lambda x, y: x @ y, t(2, 3), t(3, 4))
    assert counter.count.model == 2 * 2 * 3 * 4


# -- a user's formula --------------------------------------------------------------------------------------------------


@pytest.fixture
def cube() -> Any:
    """`isoflop_test::cube`, an operator of a library: x³ as two products, with an operator for its backward pass."""
    names = dict(operators._NAMED)

    @torch.library.custom_op("isoflop_test::cube", mutates_args=())
    def cube(x: torch.Tensor) -> torch.Tensor:
        return x @ x @ x

    @torch.library.custom_op("isoflop_test::cube_backward", mutates_args=())
    def cube_backward(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return grad + x

    cube.register_fake(torch.empty_like)
    cube_backward.register_fake(lambda grad, x: torch.empty_like(x))
    cube.register_autograd(
        lambda ctx, grad: cube_backward(grad, ctx.saved_tensors[0]),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
    )
    yield cube
    operators._NAMED.clear()
    operators._NAMED.update(names)


class Cubes(nn.Module):
    def __init__(self, cube: Any) -> None:
        super().__init__()
        self.cube = cube
        self.words = nn.Embedding(10, 4)
        self.layer = nn.Linear(4, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.cube(self.layer(self.words(ids)).flatten(0, 1))


def cube_flops(x: Any, *, out_val: Any, **_: Any) -> int:
    assert out_val.shape == x.shape
    return 2 * 2 * x.shape[0] ** 3


def cube_backward_flops(grad: Any, x: Any, *, out_val: Any, **_: Any) -> int:
    return 6 * 2 * x.shape[0] ** 3


LINEAR = 3 * (2 * 4 * 4 * 4)


@pytest.mark.filterwarnings("ignore:.*prototype")
@pytest.mark.parametrize("as_what", ["name", "custom operator", "packet", "overload"])
def test_a_registered_formula_counts_forward_and_backward(cube: Any, as_what: str):
    call = Call(model := Cubes(cube), shapes((torch.zeros(1, 4, dtype=torch.long),)), {})
    before = measure_flops(model, call)
    assert before.flops.model == LINEAR
    assert before.without_formula == {"isoflop_test::cube", "isoflop_test::cube_backward"}
    packet = torch.ops.isoflop_test.cube
    name = {"name": "isoflop_test::cube", "custom operator": cube, "packet": packet, "overload": packet.default}
    register_flop_formula(name[as_what], cube_flops)
    half = measure_flops(model, call)
    assert half.flops.model == LINEAR + 2 * 2 * 64 and half.without_formula == {"isoflop_test::cube_backward"}
    isoflop.register_flop_formula("isoflop_test::cube_backward", cube_backward_flops)
    whole = measure_flops(model, call)
    assert whole.flops == FlopCount(LINEAR + 16 * 64, LINEAR + 16 * 64, 0) and not whole.without_formula


@pytest.mark.filterwarnings("ignore:.*prototype")
def test_a_run_names_what_it_did_not_count(cube: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, "isoflop")
    model = Cubes(cube)
    with isoflop.Monitor(model, record_dir=tmp_path, log_every=1) as monitor:
        for _ in range(3):
            model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
            monitor.step()
    (run,) = isoflop.read_runs(tmp_path)
    names = ["isoflop_test::cube", "isoflop_test::cube_backward"]
    assert run.counting["uncounted"] == names and run.counting["method"] == OBSERVED
    said = [record.getMessage() for record in caplog.records if "without a FLOPs formula" in record.getMessage()]
    assert said == [
        f"isoflop: operators without a FLOPs formula, counted 0: {', '.join(names)}. Say what they compute with "
        "isoflop.register_flop_formula, or pass flops_per_token="
    ]


def test_the_last_formula_counts_and_goes_before_ours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(operators, "_NAMED", {})
    for value in (5, 7):
        register_flop_formula("aten::mm", lambda *_, value=value, **__: value)
    assert count(torch.mm, t(2, 3), t(3, 4)) == 7


@pytest.mark.parametrize(
    ("operator", "formula", "text"),
    [
        (len, cube_flops, "expected an operator or its qualified name"),
        ("cube", cube_flops, "or its qualified name (\"library::operator\"), got 'cube'"),
        ("a::", cube_flops, "expected an operator or its qualified name"),
        ("lib::cube", 12, r"expected a function (*args, out_val, **kwargs) → FLOPs, got 12"),
    ],
)
def test_what_is_no_operator(operator: Any, formula: Any, text: str):
    with pytest.raises(ValueError) as caught:
        register_flop_formula(operator, formula)
    assert text in str(caught.value)


def test_names():
    assert operator_name(aten.mm) == operator_name(aten.mm.default) == "aten::mm"
    assert operator_name(torch.ops.higher_order.flex_attention) == "higher_order::flex_attention"
    assert operator_name(len) is None
    assert formula_of(aten.relu) is None
