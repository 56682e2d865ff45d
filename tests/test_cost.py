"""FLOPs by batch shape: a closed law where there is one, measurements and said estimates where there is none."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isoflop.flops import (
    ESTIMATED,
    GIVEN,
    OBSERVED,
    Call,
    FlopCount,
    StepCost,
    StepObserver,
    measure_flops,
    shapes,
    signature,
    tensors_in,
)
from isoflop.flops.cost import RecentMean
from models import TinyGPT, tokens

# limits of `isoflop.flops.cost` and of the points that a law keeps
MAX_KNOWN, KEPT = 10_000, 64


def key(batch: int, length: int) -> Any:
    return signature({"input_ids": torch.empty(batch, length, device="meta")})


def pair(batch: int, length: int, labels: int) -> Any:
    """As T5's batches: the mask as long as the ids."""
    sizes = {"input_ids": (batch, length), "attention_mask": (batch, length), "labels": (batch, labels)}
    return signature({name: torch.empty(size, device="meta") for name, size in sizes.items()})


def dense(batch: int, length: int, p: int = 7, q: int = 3) -> FlopCount:
    return FlopCount(*(batch * length * (p * i + q * length) for i in (3, 4, 1)))


def alike(flops: int) -> FlopCount:
    """One number for all three, the least that a law is checked by."""
    return FlopCount(flops, flops, flops)


# -- the law -----------------------------------------------------------------------------------------------------------


def test_five_measured_lengths_give_every_other_one_of_a_real_model():
    model, cost = TinyGPT(), StepCost()

    def measured(batch: int, length: int) -> FlopCount:
        ids = tokens(batch, length)
        return measure_flops(model, Call(model, shapes((ids, ids)), {})).flops

    for batch, length in ((2, 5), (2, 32), (2, 16), (2, 11), (2, 24)):
        assert cost.lookup(key(batch, length)) is None
        cost.learn(key(batch, length), measured(batch, length))
    for batch, length in ((2, 5), (2, 31)):
        assert cost.lookup(key(batch, length)) == measured(batch, length)
    for batch, length in ((1, 9), (4, 30), (1, 20)):  # another batch size is another share, until three confirm it
        assert cost.lookup(key(batch, length)) is None
        cost.learn(key(batch, length), measured(batch, length))
    for batch, length in ((4, 12), (3, 29)):
        assert cost.lookup(key(batch, length)) == measured(batch, length)


@settings(max_examples=60, derandomize=True)
@given(
    st.integers(0, 10**12),
    st.integers(0, 10**9),
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 64)), min_size=5, max_size=12, unique=True),
    st.integers(1, 8),
    st.integers(1, 64),
)
def test_whatever_is_predicted_is_exact(p: int, q: int, shown: list[tuple[int, int]], batch: int, length: int):
    cost = StepCost()
    for b, s in shown:
        cost.learn(key(b, s), dense(b, s, p, q))
    found = cost.lookup(key(batch, length))
    assert found is None or found == dense(batch, length, p, q)
    assert all(cost.lookup(key(b, s)) == dense(b, s, p, q) for b, s in shown)


def test_a_law_holds_between_the_lengths_that_confirmed_it_and_on_their_grid():
    cost = StepCost()
    for length in (64, 128, 256, 320, 448):
        cost.learn(key(2, length), dense(2, length))
    assert cost.lookup(key(2, 192)) == dense(2, 192)
    assert cost.lookup(key(2, 100)) is None  # a model that pads to chunks of 64 would be another
    assert cost.lookup(key(2, 512)) is None  # a sliding window may begin there
    assert cost.lookup(key(5, 192)) is None  # in-batch negatives cost B²
    cost.learn(key(2, 512), dense(2, 512))
    cost.learn(key(2, 101), dense(2, 101))
    assert cost.lookup(key(2, 511)) == dense(2, 511)


@pytest.mark.parametrize(
    "law",
    [
        lambda b, s: alike(b * s**3),
        lambda b, s: alike(b * (s + -s % 64)),  # padded to chunks, like Mamba2
        lambda b, s: alike(b * s * min(s, 100)),  # a sliding window
        lambda b, s: alike(b * b * s),  # in-batch negatives
        lambda b, s: alike(b * s + b * b),
        lambda b, s: alike(b * s + s),  # class names encoded once a batch
    ],
)
def test_what_does_not_follow_the_law_is_refused(law: Any):
    cost = StepCost()
    shown = [(1, 50), (2, 90), (3, 130), (4, 260), (1, 70), (2, 199), (3, 85), (6, 240)]
    for batch, length in shown:
        cost.learn(key(batch, length), law(batch, length))
    assert all(cost.lookup(key(batch, length)) is None for batch in range(1, 7) for length in (51, 89, 131, 200, 239))
    assert all(cost.lookup(key(batch, length)) == law(batch, length) for batch, length in shown)  # known is known


def test_four_lengths_are_not_enough_and_other_arguments_are_another_family():
    cost = StepCost()
    for length in (4, 12, 5, 8):
        cost.learn(key(2, length), dense(2, length))
    assert cost.lookup(key(2, 6)) is None
    cost.learn(key(2, 10), dense(2, 10))
    assert cost.lookup(key(2, 6)) == dense(2, 6)
    assert cost.lookup((*key(2, 6), ("labels", (2, 6)))) is None


def test_a_classifier_on_the_pooled_output_costs_a_constant_beside():
    cost = StepCost()
    for length in (4, 12, 5, 8, 10):
        cost.learn(key(3, length), alike(3 * (1000 + 7 * length + length**2)))
    assert cost.lookup(key(3, 7)) == alike(3 * (1000 + 7 * 7 + 7**2))


def test_sizes_that_move_together_are_one():
    def shifted(length: int) -> Any:
        frames = torch.empty(2, 80, 4 * length + 3, device="meta")
        return signature((frames, torch.empty(2, length, device="meta"), torch.empty(2, length - 1, device="meta")))

    cost = StepCost()
    for length in (4, 12, 5, 8, 10):
        cost.learn(shifted(length), dense(2, length - 1))
    assert cost.lookup(shifted(7)) == dense(2, 6)
    apart = (*shifted(7)[:2], torch.Size((2, 7)))
    assert cost.lookup(apart) is None
    cost.learn(apart, dense(2, 7))  # the sizes do not move together, then: what was concluded is given up
    assert cost.lookup(shifted(9)) is None


def test_a_mode_is_no_size():
    cost = StepCost()
    for mode in (1, 2, 3, 5, 6):
        cost.learn(signature((torch.empty(2, 8, device="meta"), mode)), alike(mode))
    assert cost.lookup(signature((torch.empty(2, 8, device="meta"), 4))) is None


def test_many_different_lengths_follow_no_law():
    cost = StepCost()
    generator = random.Random(0)
    for _ in range(40):
        crops = tuple((2, generator.randrange(1, 99)) for _ in range(4))
        assert cost.lookup(crops) is None
        cost.learn(crops, alike(sum(s for _, s in crops)))


# -- two lengths -------------------------------------------------------------------------------------------------------


def planted(batch: int, length: int, labels: int) -> FlopCount:
    s, t = length, labels
    return FlopCount(*(batch * (i + 3 * s + 5 * t + 7 * s * s + 11 * i * s * t + 13 * t * t) for i in (0, 4, 1)))


def run(f: Any, key: Any, shown: list[tuple[int, ...]]) -> int:
    """Train on batches of these sizes; how many were measured. What is predicted must be what would be measured."""
    cost, measured = StepCost(), 0
    for sizes in shown:
        found = cost.lookup(key(*sizes))
        if found is None:
            measured += 1
            cost.learn(key(*sizes), f(*sizes))
        else:
            assert found == f(*sizes), (shown, sizes)
    return measured


def test_an_encoder_decoder_is_measured_at_eleven_pairs():
    generator = random.Random(0)
    corners = [(8, s, t) for s in (10, 100) for t in (5, 40)]
    shown = [(8, generator.randint(10, 100), generator.randint(5, 40)) for _ in range(200)]
    assert run(planted, pair, corners + shown) == 11
    assert run(planted, pair, shown) == 20  # as their ranges become known
    other_batches = [(b, s, t) for (_, s, t), b in zip(shown, [8, 4, 6, 2] * 50, strict=True)]
    assert run(planted, pair, other_batches) == 21


def test_labels_beside_a_spectrogram_of_one_length():
    def whisper(batch: int, labels: int) -> Any:
        sizes = {"input_features": (batch, 80, 3000), "labels": (batch, labels)}
        return signature({name: torch.empty(size, device="meta") for name, size in sizes.items()})

    shown = [(8, t) for t in (5, 90, 33, 12, 61, *range(5, 91))]
    assert run(lambda b, t: planted(b, 3000, t), whisper, shown) == 5


def test_predicted_is_what_t5_would_be_measured_at():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 24}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0))
    generator = random.Random(0)

    def measured(batch: int, length: int, labels: int) -> FlopCount:
        ids = {"input_ids": tokens(batch, length, 24), "labels": tokens(batch, labels, 24)}
        return measure_flops(model, Call(model, (), shapes(ids))).flops

    corners = [(3, s, t) for s in (4, 50) for t in (3, 20)]
    inside = [(3, generator.randint(4, 50), generator.randint(3, 20)) for _ in range(10)]
    assert run(measured, pair, corners + inside) == 11


# -- costs that a law could be mistaken for ----------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False), st.sampled_from(["chunks", "window", "both"]), st.sampled_from([12, 40, 512]))
def test_chunks_and_windows_are_never_predicted_wrongly(draw: random.Random, kind: str, longest: int):
    constant, p, q, r, t = (draw.choice((0, 1, draw.randint(2, 99))) for _ in range(5))
    chunk, window = draw.randint(2, longest // 2), draw.randint(1, longest)
    batches = [draw.randint(1, 8) for _ in range(draw.randint(1, 3))]
    grid = draw.choice((1, 1, 4))

    def f(batch: int, length: int) -> FlopCount:
        chunks = -(-length // chunk)
        ends = (1 + r) * chunks + t * chunks**2 if kind != "window" else 0
        banded = (1 + r) * length * min(length, window) if kind != "chunks" else 0
        return alike(batch * (constant + p * length + q * length**2 + ends + banded))

    run(f, key, [(draw.choice(batches), grid * draw.randint(1, longest // grid)) for _ in range(40)])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False), st.sampled_from(["chunks", "window", "cross window", "contrastive", "none"]))
def test_nor_those_of_two_lengths(draw: random.Random, kind: str):
    chunk, window = draw.randint(2, 8), draw.randint(1, 16)
    batches = [draw.randint(1, 6) for _ in range(draw.randint(1, 3))]

    def f(b: int, s: int, t: int) -> FlopCount:
        others = {
            "chunks": b * t * -(-s // chunk),
            "window": b * s * min(s, window),
            "cross window": b * t * min(s, window),
            "contrastive": b * b,
            "none": 0,
        }
        return alike(planted(b, s, t).model + others[kind])

    run(f, pair, [(draw.choice(batches), draw.randint(1, 16), draw.randint(1, 9)) for _ in range(60)])


# -- estimates ---------------------------------------------------------------------------------------------------------


def test_an_estimate_is_in_proportion_to_the_nearest_length():
    cost = StepCost()
    cost.learn(key(2, 10), FlopCount(2000, 2200, 20))
    assert cost.estimate(key(4, 11)) == FlopCount(4400, 4840, 44)
    assert cost.estimate(("another", (2, 10))) is None
    cost.forget()
    assert cost.lookup(key(2, 10)) is None and cost.estimate(key(4, 11)) is None


def test_past_the_budget_a_known_law_goes_before_the_nearest_length():
    cost = StepCost()
    for length in (4, 5, 8, 10):
        cost.learn(key(2, length), dense(2, length))
    assert cost.estimate(key(2, 16)) == dense(2, 16)
    assert cost.estimate(key(4, 16)) == FlopCount(*(part * 64 // 20 for part in dense(2, 10)))
    cost.learn(key(2, 6), FlopCount(1, 1, 1))  # no law
    assert cost.estimate(key(2, 20)) == FlopCount(*(2 * part for part in dense(2, 10)))


def test_an_estimate_is_from_the_nearest_in_all_lengths():
    cost = StepCost()
    for length, labels, flops in ((10, 50, 600), (10, 10, 20), (50, 10, 180)):
        cost.learn(pair(2, length, labels), alike(flops))
    assert cost.estimate(pair(2, 11, 49)) == alike(600)  # ten a token
    assert cost.estimate(pair(4, 60, 12)) == alike(432)  # three a token
    assert cost.estimate(pair(2, 500, 500)) is not None
    assert cost.estimate(pair(0, 0, 0)) == alike(0)


def test_memory_is_bounded():
    cost = StepCost()
    for length in (1, 2, 9, 50, MAX_KNOWN + 100):
        cost.learn(key(1, length), dense(1, length))
    for length in range(1, MAX_KNOWN + 100):
        assert cost.lookup((("input_ids", (1, length)),)) is not None
    assert len(cost._known) == MAX_KNOWN
    for length in range(2 * KEPT):
        cost.learn(key(2, length), alike(length**3))
    assert len(cost._known) == MAX_KNOWN
    assert cost.lookup(key(2, 2 * KEPT - 1)) == alike((2 * KEPT - 1) ** 3)
    assert max(len(family.measured) for family in cost._families.values()) <= KEPT


# -- the step ----------------------------------------------------------------------------------------------------------


def observe(observer: StepObserver, model: nn.Module, *args: Any, **kwargs: Any) -> FlopCount | None:
    """One step: the forward call, its backward pass, and what was counted of it."""
    observer.forward(model, args, kwargs)
    for output in tensors_in(model(*args, **kwargs))[-1:]:
        output.sum().backward()
    observer.settle()
    if observer.due:
        observer.observe_next()
    totals, _, _ = observer.drain()
    if totals.without_flops:
        return None
    return FlopCount(totals.flops, totals.flops_hardware, totals.flops_attention)


@pytest.fixture
def steps() -> Iterator[Callable[..., StepObserver]]:
    """Makes a `StepObserver`; none observes when the test ends."""
    made: list[StepObserver] = []

    def make(*args: Any, **kwargs: Any) -> StepObserver:
        made.append(StepObserver(*args, **kwargs))
        return made[-1]

    yield make
    for observer in made:
        observer.end_observing()


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_run_of_many_lengths_observes_few(said: list[str], steps: Any):
    model = TinyGPT()
    observer = steps(model, say=said.append)
    lengths = [5, 32, 16, 10, 24, *range(5, 33)]
    for length in lengths:
        ids = tokens(2, length)
        forward, attention = model.forward_flops(2, length)
        assert observe(observer, model, ids, ids) == FlopCount(3 * forward, 3 * forward, 3 * attention)
    assert observer.costing.observed == 5 + 3  # the lengths that the law needs, and steps 8, 13 and 21
    assert (said, observer.costing.methods) == ([], {OBSERVED: ""})
    assert observer.costing.parameters.method == "by use in a traced forward pass"


def test_past_the_budget_nothing_is_observed_and_it_is_said(said: list[str], steps: Any):
    """One number of steps for all runs, whatever the clock says: equal runs have equal totals."""
    model, totals = TinyGPT(), []
    lengths = [length for length in range(2, 33) if length % 3]
    random.Random(0).shuffle(lengths)
    for _ in range(2):
        observer, total = steps(model, say=said.append), 0
        observer.costing.observed = 60
        observer.costing._prices.learn(signature((tokens(2, 4),)), FlopCount(1000, 1000, 10))
        for length in lengths[:12]:
            total += observe(observer, model, tokens(2, length)).model
        assert observer.costing.observed <= 64 and ESTIMATED in observer.costing.methods
        totals.append(total)
        observer.end_observing()
    assert totals[0] == totals[1]
    why, what = said[0].split(": ")
    assert why == "more batch shapes than are observed"
    assert what == "FLOPs of these batches are estimated from the nearest length"


@pytest.mark.parametrize("beside", [{}, {"text": ["a"]}, {"source": "c4"}])
def test_texts_beside_the_tokens_do_not_make_every_step_be_listened_to(beside: dict[str, Any], steps: Any):
    def listened(batch: Any) -> list[int]:
        model = TinyGPT()
        observer, found = steps(model, say=lambda text: None), []
        for step in range(1, 41):
            observer.batch(batch)
            if observer.observation is not None or observer.outermost is not None:
                found.append(step)
            model(tokens(2, 8))[0].sum().backward()
            observer.end_batch()
            observer.settle()
        return found

    assert listened({"input_ids": tokens(2, 8), **beside}) == [1, 2, 3, 5, 8, 13, 21, 34]
    assert listened(["a text", "another"]) == list(range(1, 41))


def test_freezing_one_layer_for_another_is_noticed(said: list[str], steps: Any):
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5), nn.Linear(5, 6))
    observer, ids = steps(model, say=said.append), tokens(2, 8, 9)
    first, second = 2 * 16 * 4 * 5, 2 * 16 * 5 * 6
    model[1].requires_grad_(False)
    model[0].requires_grad_(False)
    observer.look_for_frozen_layers()
    assert observe(observer, model, ids).model == first + 2 * second
    model[1].requires_grad_(True)
    model[2].requires_grad_(False)  # as many as before train
    assert observe(observer, model, ids).model == 2 * first + 2 * second  # each step is observed, so far
    observer.look_for_frozen_layers()
    assert observe(observer, model, ids).model == 2 * first + 2 * second


def test_a_mean_is_taken_when_something_is_observed_and_not_at_each_step(monkeypatch: pytest.MonkeyPatch):
    seen = RecentMean()
    assert seen.mean == FlopCount(0, 0, 0)
    for i in range(90):
        seen.add(FlopCount(i % 4, 0, 0))
    monkeypatch.delattr(FlopCount, "__add__")
    assert len(seen) == 64 and seen.mean == FlopCount(1, 0, 0)


def test_flops_per_token_given(said: list[str], steps: Any):
    model = TinyGPT()
    observer = steps(model, say=said.append, flops_per_token=1e6 + 0.4, num_params=10)
    assert observe(observer, model, tokens(2, 8)) == FlopCount(16 * 10**6, 16 * 10**6, 0)
    assert (list(observer.costing.methods), observer.costing.parameters.total, said) == ([GIVEN], 10, [])


def test_no_tokens_in_the_batch_is_said_once_and_unknown(said: list[str], steps: Any):
    model = nn.Linear(4, 4)
    observer = steps(model, say=said.append)
    assert not observer.holds_counts
    assert observe(observer, model, torch.randn(3, 4)) is not None  # FLOPs are measured all the same
    assert said == [
        "expected token ids in the batch (input_ids, a tensor of integers, or a tuple that begins with one), got a "
        "tuple of (Tensor (3, 4) of float32). Without tokens there are no tokens/s, tokens per parameter, forecast, "
        "noise scale, or advice on size and batch: pass tokens_fn=lambda batch: batch[0].numel(), if these are its "
        "tokens"
    ]


def test_a_model_that_is_not_called_is_said(said: list[str], steps: Any):
    observer = steps(TinyGPT(), say=said.append)
    observer.settle()
    assert said == ["no tokens were seen: the model given to the Monitor was not called; pass step(tokens=…)"]
    totals, _, _ = observer.drain()
    assert (totals.tokens_known, totals.flops_known) == (None, None)
