"""FLOPs by batch shape: a closed law where there is one, measurements and said estimates where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isoflop.observe.calls import Call, shapes, signature
from isoflop.observe.cost import BUDGET_SECONDS, MAX_KNOWN, StepCost
from isoflop.observe.counter import FlopCount
from isoflop.observe.measure import measure
from isoflop.observe.step import GIVEN, MEASURED, SIX_ND, StepObserver
from models import TinyGPT, tokens


def key(batch: int, length: int) -> Any:
    return signature({"input_ids": torch.empty(batch, length, device="meta")})


def dense(batch: int, length: int, p: int = 7, q: int = 3) -> FlopCount:
    return FlopCount(*(batch * length * (p * i + q * length) for i in (3, 4, 1)))


# -- the law -----------------------------------------------------------------------------------------------------------


def test_three_measured_lengths_give_every_other_one_of_a_real_model():
    model, cost = TinyGPT(), StepCost()

    def measured(batch: int, length: int) -> FlopCount:
        ids = tokens(batch, length)
        return measure(model, [Call(model, shapes((ids, ids)), {})]).flops

    for batch, length in ((2, 5), (1, 32), (3, 16)):
        assert cost.lookup(key(batch, length)) is None
        cost.learn(key(batch, length), measured(batch, length))
    for batch, length in ((2, 5), (7, 5), (1, 6), (4, 31), (100, 17)):
        assert cost.lookup(key(batch, length)) == measured(batch, length)


@settings(max_examples=60)
@given(
    st.integers(0, 10**12),
    st.integers(0, 10**9),
    st.lists(st.tuples(st.integers(1, 64), st.integers(1, 4096)), min_size=3, max_size=6, unique_by=lambda s: s[1]),
    st.integers(1, 64),
    st.integers(1, 4096),
)
def test_whatever_is_predicted_is_exact(p: int, q: int, shown: list[tuple[int, int]], batch: int, length: int):
    cost = StepCost()
    for b, s in shown:
        cost.learn(key(b, s), dense(b, s, p, q))
    found = cost.lookup(key(batch, length))
    assert found is None or found == dense(batch, length, p, q)
    assert cost.lookup(key(batch, shown[0][1])) == dense(batch, shown[0][1], p, q)


def test_a_law_holds_between_the_lengths_that_confirmed_it_and_on_their_grid():
    cost = StepCost()
    for length in (64, 128, 192):
        cost.learn(key(2, length), dense(2, length))
    assert cost.lookup(key(5, 128)) == dense(5, 128)
    assert cost.lookup(key(2, 100)) is None  # a model that pads to chunks of 64 would be another
    assert cost.lookup(key(2, 256)) is None  # a sliding window may begin there
    cost.learn(key(2, 256), dense(2, 256))
    cost.learn(key(2, 101), dense(2, 101))
    assert cost.lookup(key(9, 211)) == dense(9, 211)


@pytest.mark.parametrize(
    "law",
    [
        lambda b, s: FlopCount(*[b * s**3] * 3),
        lambda b, s: FlopCount(*[b * (s + -s % 64)] * 3),  # padded to chunks, like Mamba2
        lambda b, s: FlopCount(*[b * s * min(s, 100)] * 3),  # a sliding window
        lambda b, s: FlopCount(*[b * b * s] * 3),  # in-batch negatives
    ],
)
def test_what_does_not_follow_the_law_is_refused(law: Any):
    cost = StepCost()
    for batch, length in ((1, 50), (2, 90), (3, 130), (4, 260)):
        cost.learn(key(batch, length), law(batch, length))
    assert cost.lookup(key(5, 200)) is None
    assert cost.lookup(key(2, 90)) == law(2, 90)  # known is known


def test_two_lengths_are_not_enough_and_other_arguments_are_another_family():
    cost = StepCost()
    for length in (4, 8):
        cost.learn(key(2, length), dense(2, length))
    assert cost.lookup(key(2, 6)) is None
    cost.learn(key(2, 5), dense(2, 5))
    assert cost.lookup(key(2, 6)) == dense(2, 6)
    assert cost.lookup((*key(2, 6), ("labels", (2, 6)))) is None


# -- the budget --------------------------------------------------------------------------------------------------------


def test_measuring_has_a_budget_and_estimates_come_after():
    cost = StepCost()
    assert cost.may_measure(0.0)
    cost.learn(key(2, 10), FlopCount(2000, 2200, 20), seconds=BUDGET_SECONDS + 1)
    assert not cost.may_measure(100.0)
    assert cost.may_measure((BUDGET_SECONDS + 1) / 0.002 + 1)
    assert cost.estimate(key(4, 11)) == FlopCount(4400, 4840, 44)  # in proportion to the tokens of the nearest length
    assert cost.estimated == 1
    assert cost.lookup(key(4, 11)) == FlopCount(4400, 4840, 44)
    assert cost.estimate(("another", (2, 10))) is None
    cost.forget()
    assert cost.lookup(key(2, 10)) is None and cost.estimate(key(4, 11)) is None


def test_past_the_budget_a_known_law_goes_before_the_nearest_length():
    cost = StepCost()
    for length in (4, 5, 8):
        cost.learn(key(2, length), dense(2, length))
    assert cost.estimate(key(2, 16)) == dense(2, 16)


def test_memory_is_bounded():
    cost = StepCost()
    for length in (1, 2, MAX_KNOWN + 100):
        cost.learn(key(1, length), dense(1, length))
    for length in range(1, MAX_KNOWN + 100):
        assert cost.lookup((("input_ids", (1, length)),)) is not None
    assert len(cost._known) <= MAX_KNOWN


# -- the step ----------------------------------------------------------------------------------------------------------


def observe(observer: StepObserver, model: nn.Module, *args: Any, **kwargs: Any) -> FlopCount | None:
    observer.forward(model, args, kwargs)
    observer.settle()
    totals, _, _ = observer.drain()
    if totals.without_flops:
        return None
    return FlopCount(totals.flops, totals.flops_hardware, totals.flops_attention)


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_run_of_many_lengths_measures_few(said: list[str], monkeypatch: pytest.MonkeyPatch):
    measured = []
    monkeypatch.setattr(
        "isoflop.observe.step.measure", lambda model, calls: measured.append(calls) or measure(model, calls)
    )
    model = TinyGPT()
    observer = StepObserver(model, say=said.append)
    lengths = [5, 32, 16, *range(5, 33)]
    for length in lengths:
        ids = tokens(2, length)
        forward, attention = model.forward_flops(2, length)
        assert observe(observer, model, ids, ids) == FlopCount(3 * forward, 3 * forward, 3 * attention)
    assert len(measured) == 3
    assert (said, observer.methods) == ([], {MEASURED: ""})
    assert observer.parameters.method == "by use in a traced forward pass"


def test_past_the_budget_nothing_is_measured_and_it_is_said(said: list[str]):
    model = TinyGPT()
    observer = StepObserver(model, say=said.append)
    observer._cost.seconds = BUDGET_SECONDS + 1
    ids = tokens(2, 8)
    assert observe(observer, model, ids).model == 6 * model.block_parameters() * 16
    assert said == [
        "the step's FLOPs are taken as 6·N·D, which leaves attention and the output head out: more batch shapes, or "
        "longer measurements, than training has the time for. Pass flops_per_token= to set them"
    ]
    assert list(observer.methods) == [SIX_ND]


@pytest.mark.parametrize("beside", [{}, {"text": ["a"]}, {"source": "c4"}])
def test_texts_beside_the_tokens_do_not_make_every_step_be_listened_to(beside: dict[str, Any]):
    observer = StepObserver(TinyGPT(), say=lambda text: None)
    wanted = []
    for _ in range(40):
        wanted.append(observer.batch({"input_ids": tokens(2, 8), **beside}))
        if wanted[-1]:
            observer.calls([Call(observer.model, shapes((tokens(2, 8),)), {})])
        observer.settle()
    assert [i for i, listened in enumerate(wanted, 1) if listened] == [1, 2, 3, 5, 8, 13, 21, 34]
    texts_alone = StepObserver(TinyGPT(), say=lambda text: None)
    assert all(texts_alone.batch(["a text", "another"]) for _ in range(40))


def test_what_can_not_be_measured_is_tried_once_a_shape_and_costs_budget(said: list[str]):
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.layer = nn.Embedding(9, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer(self.words(x))
            return x if x.sum() > 0 else -x

    model = Branches()
    observer = StepObserver(model, say=said.append)
    for _ in range(3):
        assert observe(observer, model, tokens(2, 8, 9)) == FlopCount(6 * 20 * 16, 6 * 20 * 16, 0)
    assert observer._cost.seconds > 0
    assert len(said) == 1 and "Branches can't run on the meta device" in said[0]
    assert "Branches" in observer.methods[SIX_ND]


def test_freezing_one_layer_for_another_is_noticed(said: list[str]):
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5), nn.Linear(5, 6))
    observer, ids = StepObserver(model, say=said.append), tokens(2, 8, 9)
    first, second = 2 * 16 * 4 * 5, 2 * 16 * 5 * 6
    model[1].requires_grad_(False)
    model[0].requires_grad_(False)
    observer.look_for_frozen_layers()
    assert observe(observer, model, ids).model == first + 2 * second
    model[1].requires_grad_(True)
    model[2].requires_grad_(False)  # as many as before train
    assert observe(observer, model, ids).model == first + 2 * second  # not before a log step
    observer.look_for_frozen_layers()
    assert observe(observer, model, ids).model == 2 * first + 2 * second


def test_flops_per_token_given(said: list[str]):
    model = TinyGPT()
    observer = StepObserver(model, say=said.append, flops_per_token=1e6 + 0.4, num_params=10)
    assert observe(observer, model, tokens(2, 8)) == FlopCount(16 * 10**6, 16 * 10**6, 0)
    assert (list(observer.methods), observer.parameters.total, said) == ([GIVEN], 10, [])


def test_no_tokens_in_the_batch_is_said_once_and_unknown(said: list[str]):
    model = nn.Linear(4, 4)
    observer = StepObserver(model, say=said.append)
    assert not observer.holds_counts
    assert observe(observer, model, torch.randn(3, 4)) is not None  # FLOPs are measured all the same
    assert said == [
        "expected token ids in the batch (input_ids, a tensor of integers, or a tuple that begins with one), got a "
        "tuple of (Tensor (3, 4) of float32); tokens, and what is computed from them, stay unknown: pass tokens_fn="
    ]


def test_a_model_that_is_not_called_is_said(said: list[str]):
    observer = StepObserver(TinyGPT(), say=said.append)
    observer.settle()
    assert said == ["no tokens were seen: the model given to the Monitor was not called; pass step(tokens=…)"]
    totals, _, _ = observer.drain()
    assert (totals.tokens_known, totals.flops_known) == (None, None)
