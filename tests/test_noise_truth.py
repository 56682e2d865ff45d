"""The sources against exact per-sequence gradients on a tiny GPT, weights frozen at a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from isoflop.guard import Guard
from isoflop.noise import MicroBatches, halves, read, result
from noise_truth import (
    LENGTH,
    POOL,
    Truth,
    gpt,
    loss_of,
    measure,
    metric,
    pair,
    per_sequence,
    pool,
    ratio_of,
    train,
    truth,
)

WINDOWS, MEASURED = 50, 12
DATA = pool()


def draw(generator: torch.Generator, sequences: int) -> torch.Tensor:
    return DATA[torch.randint(POOL, (sequences,), generator=generator)]


def windows_that_hold(pairs: Sequence[tuple[float, float]], b_simple: float) -> int:
    """Of `WINDOWS` intervals, each of `MEASURED` steps: those with the truth inside."""
    windows = [ratio_of(pairs[i : i + MEASURED]) for i in range(0, len(pairs), MEASURED)]
    assert len(windows) == WINDOWS
    return sum(window is not None and window.low <= b_simple <= window.high for window in windows)


@pytest.fixture(scope="module")
def early() -> tuple[nn.Module, Truth]:
    """A model after 60 steps, whose weights stay, and its exact noise scale."""
    model = gpt()
    train(model, DATA, 60)
    return model, truth(per_sequence(model, DATA))


@pytest.mark.parametrize(
    ("steps", "sizes"),
    [
        pytest.param(30, (8, 8), marks=pytest.mark.slow),
        (100, (4, 4, 4, 4)),
        pytest.param(300, (8, 8), marks=pytest.mark.slow),
        pytest.param(1000, (16, 16), marks=pytest.mark.slow),
    ],
)
def test_the_truth_is_inside_the_interval_and_the_value_near_it(steps: int, sizes: tuple[int, ...]) -> None:
    model = gpt(layers=2)
    optimizer = train(model, DATA, steps)
    gradients = per_sequence(model, DATA)
    exact = {"raw": truth(gradients).b_simple, "preconditioned": truth(gradients, metric(model, optimizer)).b_simple}
    assert abs(exact["preconditioned"] / exact["raw"] - 1) > 0.03  # two different things are measured
    generator = torch.Generator().manual_seed(steps)
    source = MicroBatches(list(model.parameters()), Guard())
    results = [
        measure(model, [draw(generator, size) for size in sizes], optimizer, source=source)
        for _ in range(WINDOWS * MEASURED)
    ]
    for kind, b_simple in exact.items():
        pairs = [pair(step[kind == "preconditioned"]) for step in results]
        inside = windows_that_hold(pairs, b_simple)
        assert inside >= 43, (kind, inside)
        over_240 = ratio_of(pairs[:240])
        assert over_240 is not None and over_240.value == pytest.approx(b_simple, rel=0.1), kind


@pytest.mark.parametrize("decay", [0.95, 0.999])
@pytest.mark.parametrize("kind", ["never met", "not met for 400 steps", "no gradient in the whole tensor"])
def test_a_row_without_second_moments_does_not_outweigh_the_model(kind: str, decay: float) -> None:
    """An embedding's row whose token appears in the measured step first, or anew: the noise scale hardly moves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(64, 16), nn.Linear(16, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, decay))
    train(model, DATA.clamp(max=50), 60, optimizer=optimizer)
    plain = [DATA[:8].clamp(max=50), DATA[8:16].clamp(max=50)]
    new = [plain[0].clone(), plain[1]]
    new[0][0, 3] = 60
    v = optimizer.state[model[0].weight]["exp_avg_sq"]
    assert not v[60].any()
    if kind == "not met for 400 steps":
        v[60] = v[0] * decay**400
    if kind == "no gradient in the whole tensor":
        v.zero_()
    (_, before), (_, after) = (measure(model, batches, optimizer) for batches in (plain, new))
    assert pair(after)[0] == pytest.approx(pair(before)[0], rel=0.25)
    assert pair(after)[1] == pytest.approx(pair(before)[1], rel=0.25)


@pytest.mark.parametrize("by_tokens", [True, False])
def test_parts_of_different_sizes(by_tokens: bool, early: tuple[nn.Module, Truth]) -> None:
    """Micro-batches of 1 to 7 sequences, in a mean over tokens and in a mean of means."""
    model, exact = early
    generator = torch.Generator().manual_seed(5)
    source = MicroBatches(list(model.parameters()), Guard())
    pairs = []
    for _ in range(WINDOWS * MEASURED):
        sizes = torch.randint(1, 8, (3,), generator=generator).tolist()
        found = measure(model, [draw(generator, n) for n in sizes], by_tokens=by_tokens, source=source)
        pairs.append(pair(found[0]))
    gradient, variance = torch.tensor(pairs).double().mean(0).tolist()
    assert gradient == pytest.approx(exact.gradient, rel=0.05)
    assert variance == pytest.approx(exact.variance, rel=0.05)
    assert windows_that_hold(pairs, exact.b_simple) >= 43


def test_the_equal_formula_on_unequal_parts_would_be_wrong(early: tuple[nn.Module, Truth]) -> None:
    """The test above can fail: the other weighting misses the truth by more than its tolerance."""
    model, exact = early
    generator = torch.Generator().manual_seed(5)
    source = MicroBatches(list(model.parameters()), Guard())
    pairs = []
    for _ in range(200):
        source.arm(2, {})
        for n in (2, 14):
            source.begin(n * LENGTH)
            (n / 16 * loss_of(model, draw(generator, n))).backward()
        measured = source.take(1)
        model.zero_grad()
        assert measured is not None
        pairs.append(pair(result(read([measured])[0], by_tokens=False)[0]))
    assert torch.tensor(pairs).double().mean(0)[0].item() < 0.7 * exact.gradient


def test_sequences_of_different_lengths(early: tuple[nn.Module, Truth]) -> None:
    """Labels masked at random ends: tr Σ of a token is E|s − len·G|²/E len, s a sequence's summed gradient."""
    model, _ = early
    lengths = torch.randint(4, LENGTH + 1, (POOL,), generator=torch.Generator().manual_seed(2))
    masks = torch.arange(LENGTH) < lengths[:, None]
    sums = torch.stack(
        [
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(
                        loss_of(model, DATA[i : i + 1], masks[i : i + 1]) * int(lengths[i]), list(model.parameters())
                    )
                ]
            )
            for i in range(POOL)
        ]
    ).double()
    mean_length = lengths.double().mean()
    gradient = sums.mean(0) / mean_length
    variance = ((sums - lengths[:, None] * gradient) ** 2).sum(1).mean() / mean_length
    generator = torch.Generator().manual_seed(9)
    source = MicroBatches(list(model.parameters()), Guard())
    pairs = []
    for _ in range(400):
        chosen = [torch.randint(POOL, (8,), generator=generator) for _ in range(2)]
        step = measure(
            model, [DATA[c] for c in chosen], masks=[masks[c] for c in chosen], by_tokens=True, source=source
        )
        pairs.append(pair(step[0]))
    found = ratio_of(pairs)
    assert found is not None and found.value == pytest.approx(float(variance / (gradient**2).sum()), rel=0.1)


def test_tied_weights_against_the_gram_matrix() -> None:
    """The head is the embedding: its gradient comes in one piece, both uses summed."""
    model = gpt()
    batches = [DATA[:4], DATA[4:8]]
    gradients = per_sequence(model, DATA[:8])
    parts = torch.stack([gradients[:4].mean(0), gradients[4:].mean(0)]) / 2
    source = MicroBatches(list(model.parameters()), Guard())
    source.arm(2, {})
    for batch in batches:
        source.begin(4 * LENGTH)
        (loss_of(model, batch) / 2).backward()
    measured = source.take(1)
    assert measured is not None
    assert float(measured.raw_squares) == pytest.approx(float((parts**2).sum()), rel=1e-5)
    assert float(measured.raw_whole) == pytest.approx(float((parts.sum(0) ** 2).sum()), rel=1e-5)


def test_halves_have_the_gradient_of_the_whole() -> None:
    model = gpt()
    loss_of(model, DATA[:7]).backward()
    whole = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for half in halves(DATA[:7]):
        (len(half) / 7 * loss_of(model, half)).backward()
    for before, p in zip(whole, model.parameters(), strict=True):
        assert p.grad is not None and torch.allclose(before, p.grad, rtol=1e-4, atol=1e-7)
