"""The estimator and its averages: unbiased on planted noise, intervals that cover, reasons where there is no value."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.noise import (
    DENSEST,
    FREE,
    MIN_MEASUREMENTS,
    SHARE,
    Cadence,
    RunningMoments,
    StepEstimate,
    StepTimes,
    Unusable,
    estimate_step,
    fieller,
)
from noise_truth import ratio_of

sizes = st.lists(st.integers(1, 10_000), min_size=2, max_size=8)


def estimated(tokens: list[Any], squares: list[float], whole: float, by_tokens: bool = False) -> Any:
    """The pair from each part's tokens w_j and squared norm |h_j|²."""
    sums = sum(tokens), sum(w * w for w in tokens), sum(1 / w for w in tokens)
    return estimate_step(len(tokens), math.fsum(squares), whole, *sums, by_tokens=by_tokens)


def expectation(tokens: list[int], by_tokens: bool, gradient: float, variance: float) -> tuple[list[float], float]:
    """E|h_j|² and E|g|² of parts with coefficients c_j: from the definition."""
    total = sum(tokens)
    c = [w / total if by_tokens else 1 / len(tokens) for w in tokens]
    squares = [cj**2 * (gradient + variance / w) for cj, w in zip(c, tokens, strict=True)]
    return squares, gradient + variance * sum(cj**2 / w for cj, w in zip(c, tokens, strict=True))


@given(tokens=sizes, by_tokens=st.booleans(), gradient=st.floats(1e-3, 1e3), b_simple=st.floats(1.0, 1e5))
def test_in_expectation_it_is_the_truth(tokens: list[int], by_tokens: bool, gradient: float, b_simple: float) -> None:
    variance = gradient * b_simple
    squares, whole = expectation(tokens, by_tokens, gradient, variance)
    found = estimated(tokens, squares, whole, by_tokens)
    if found is Unusable.IDENTICAL:
        assert b_simple / min(tokens) < 1e-3
        return
    assert isinstance(found, StepEstimate) and found.tokens == sum(tokens)
    # the loss of digits is that of |g|² against the difference
    digits = 1e-9 * whole / gradient
    assert found.gradient == pytest.approx(gradient, rel=max(1e-9, digits))
    assert found.variance == pytest.approx(
        variance, rel=max(1e-9, digits) + 1e-9 * whole * min(tokens) / variance + 1e-6
    )


def test_equal_parts_are_mccandlishs_pair() -> None:
    """Appendix A.1: |G|² = (B_b|G_b|² − B_s|G_s|²)/(B_b − B_s), S = (|G_s|² − |G_b|²)/(1/B_s − 1/B_b)."""
    small, big, parts = 64.0, 256.0, 4
    G_s, G_b = 3.7, 1.9  # mean |G|² of the parts, and of the whole
    found = estimated([small] * parts, [G_s / parts**2] * parts, G_b)
    assert isinstance(found, StepEstimate)
    assert found.gradient == pytest.approx((big * G_b - small * G_s) / (big - small))
    assert found.variance == pytest.approx((G_s - G_b) / (1 / small - 1 / big))


@pytest.mark.parametrize("by_tokens", [False, True])
def test_unbiased_on_drawn_gradients(by_tokens: bool) -> None:
    rng = np.random.default_rng(0)
    G, tokens = np.array([1.0, -0.5, 0.2]), np.array([3, 10, 30])
    c = tokens / tokens.sum() if by_tokens else np.full(3, 1 / 3)
    pairs = []
    for _ in range(10_000):
        h = c[:, None] * (G + rng.normal(size=(3, 3)) * 2 / np.sqrt(tokens)[:, None])
        found = estimated(tokens.tolist(), (h**2).sum(1).tolist(), (h.sum(0) ** 2).sum(), by_tokens)
        if isinstance(found, StepEstimate):  # but for one in 10^5, taken for identical by chance
            pairs.append((found.gradient, found.variance))
    assert len(pairs) >= 9_995
    gradient, variance = np.mean(pairs, axis=0)
    assert gradient == pytest.approx((G**2).sum(), rel=0.03) and variance == pytest.approx(12, rel=0.03)


@pytest.mark.parametrize(
    ("tokens", "squares", "whole", "why"),
    [
        ([100], [1.0], 1.0, Unusable.ONE_PART),
        ([100, 100], [math.nan, 1.0], 1.0, Unusable.NOT_FINITE),
        ([100, 100], [1.0, 1.0], math.inf, Unusable.NOT_FINITE),
        ([100, 100], [0.0, 0.0], 0.0, Unusable.ZERO),
        ([100, 100], [1.0, 1.0], 4.0, Unusable.IDENTICAL),
        ([100, 300], [1.0, 9.0], 16.0, None),
    ],
)
def test_no_value_and_why(tokens: list[float], squares: list[float], whole: float, why: Unusable | None) -> None:
    found = estimated(tokens, squares, whole)
    assert found is why or (why is None and isinstance(found, StepEstimate))
    by_tokens = estimated(tokens, squares, whole, True)
    assert by_tokens is (Unusable.IDENTICAL if why is None else why)  # parts of 1/4 and 3/4 of one gradient


def test_unknown_tokens_give_no_value() -> None:
    assert estimate_step(2, 1.0, 1.5, math.nan, math.nan, math.nan) is Unusable.NO_TOKENS
    assert estimate_step(2, 1.0, 1.5, 0.0, 0.0, math.inf) is Unusable.NO_TOKENS


def test_every_reason_is_a_sentence_for_the_reader() -> None:
    assert all(" " in why.value and why.value[0].islower() for why in Unusable)


# -- averages ----------------------------------------------------------------------------------------------------------


def test_the_mean_of_ratios_is_not_the_ratio_of_means() -> None:
    """Why numerator and denominator are averaged apart: planted 20, the mean of ratios is far off."""
    rng = np.random.default_rng(1)
    x, y = 1 + 0.6 * rng.normal(size=4000), 20 + rng.normal(size=4000)
    found = ratio_of(zip(x, y, strict=True))
    assert found is not None and found.value == pytest.approx(20, rel=0.03)
    assert abs(np.mean(y / x) / 20 - 1) > 0.2


@pytest.mark.parametrize("memory", [0.0, 1.0])
@pytest.mark.parametrize("n", [10, 20, 60])
def test_fiellers_interval_covers(n: int, memory: float) -> None:
    rng = np.random.default_rng(n)
    inside = 0
    for _ in range(1000):
        noise = rng.normal(size=(n, 2))
        moments = RunningMoments(memory)
        for a, b in noise:
            moments.add(1 + a, 12 + 3 * b - 2 * a)  # correlated, as |G|² and tr Σ are
        found = moments.ratio()
        assert found is not None
        inside += found.low <= 12 <= found.high
    assert 925 <= inside <= 975


def test_where_the_denominator_may_be_zero_there_is_no_upper_end() -> None:
    found = ratio_of([(1.0, 5.0), (-1.0, 5.1), (1.2, 4.9), (-0.8, 5.2), (0.4, 5.0), (-0.3, 5.1)])
    assert found is not None and not found.bounded and found.low > 0
    assert math.isinf(found.log_error)
    negative = ratio_of([(-1.0, 5.0), (-1.1, 5.1), (-0.9, 4.9), (-1.2, 5.2), (-0.8, 5.0)])
    assert negative is not None and negative.value is None and not negative.bounded


def test_few_measurements_give_none() -> None:
    pairs = [(1.0, 2.0)] * (MIN_MEASUREMENTS - 1)
    assert ratio_of(pairs) is None and ratio_of([*pairs, (1.1, 2.0)]) is not None


@given(
    st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0, 1), st.floats(0, 1), st.floats(-0.99, 0.99), st.floats(1.5, 4)
)
def test_fieller_solves_its_inequality(x: float, y: float, xx: float, yy: float, rho: float, q: float) -> None:
    xy = rho * math.sqrt(xx * yy)
    low, high = fieller(x, y, xx, yy, xy, q)
    assert 0 <= low <= y / x * (1 + 1e-9) and high >= y / x * (1 - 1e-9)
    for end in (low, high):
        if 0 < end < math.inf:
            left, right = (y - end * x) ** 2, q * q * (yy - 2 * end * xy + end * end * xx)
            assert left == pytest.approx(right, rel=1e-6, abs=1e-9 * (y * y + (end * x) ** 2))


def test_the_run_average_follows_the_run() -> None:
    """|G|² falls by four orders of magnitude: a plain mean would stay at the first steps' ratio."""
    plain, fading = RunningMoments(0.0), RunningMoments(1.0)
    for i in range(1, 401):
        gradient = 100.0 / i
        for moments in (plain, fading):
            moments.add(gradient, 1000.0)  # the true ratio is 10·i
    assert plain.ratio().value < fading.ratio().value < 4000  # type: ignore[union-attr, operator]
    assert fading.ratio().value > 1.5 * plain.ratio().value  # type: ignore[union-attr, operator]


def test_weights_of_the_run_average() -> None:
    moments = RunningMoments(1.0)
    values = [(3.0, 1.0), (1.0, 4.0), (1.0, 5.0), (9.0, 2.0), (6.0, 5.0)]
    for x, y in values:
        moments.add(x, y)
    w = np.arange(1, 6)
    x, y = np.array(values).T
    found = moments.ratio()
    assert found is not None and found.value == pytest.approx((w * y).sum() / (w * x).sum())


@pytest.mark.parametrize("nested", [False, True])
def test_state_goes_through_json(nested: bool) -> None:
    one = RunningMoments()
    for i in range(80):
        one.add(1 + 0.1 * (i % 7), 5 + 0.2 * (i % 5))
    state = json.loads(json.dumps(one.state_dict()))
    two = RunningMoments.from_state({"run": state, "window": [[1.0, 2.0]]} if nested else state)  # as of version 0.1.0
    for moments in (one, two):
        moments.add(1.3, 4.8)
    assert one.ratio() == two.ratio() is not None


def test_steps_far_above_the_noise_scale_bound_it_before_their_averages_do() -> None:
    """|G|² changes tenfold from step to step, the ratio by a third: five steps are enough. At B ≪ B_simple none is."""
    rng, held, silent = np.random.default_rng(0), [], []
    for _ in range(200):
        clear, noisy = RunningMoments(), RunningMoments()
        for i in range(5):
            x = 10 ** rng.uniform(0, 2)
            clear.add(x, 1000 * x * math.exp(rng.normal(0, 0.3)))
            noisy.add(rng.normal(1, 10), 1000.0)
            assert (clear.bound() is None) == (i < 4)
        bound = clear.bound()
        assert bound is not None
        held.append(bound[0] * math.exp(1.75 * bound[1]) > 1000)
        silent.append(noisy.bound() is None)
    assert np.mean(held) > 0.95 and np.mean(silent) > 0.9


# -- cadence -----------------------------------------------------------------------------------------------------------


def test_measuring_stays_within_its_share_after_the_first_ones() -> None:
    cadence, spent, measured = Cadence(), 0.0, []
    for step in range(1, 100_001):  # of .02 s; a measurement takes more than a step
        if cadence.due(step):
            measured.append(step)
        if step % 50 == 0:
            here = sum(at > step - 50 for at in measured)
            cadence.adapt(0.03 * here, here, 50, 1.0)
    spent = 0.03 * (len(measured) - FREE)
    assert measured[:FREE] == [DENSEST * i for i in range(1, FREE + 1)]  # whatever they take
    assert 0.4 * SHARE < spent / (0.02 * 100_000) < 1.1 * SHARE


def test_a_busy_machine_measures_the_same_steps() -> None:
    """Times that scatter by a fifth give the same powers of two nearly always."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        cadence = Cadence(count=FREE)
        cadence.adapt(0.01 * rng.uniform(0.9, 1.1), 5, 100, 1.0 * rng.uniform(0.9, 1.1))
        found.append(cadence.every)
    assert set(found) == {64}


def test_a_measurements_cost_is_what_its_steps_take_longer() -> None:
    times = StepTimes()
    assert times.cost() == 0.0
    now = 0.0
    for step in range(100):
        now += 0.5 if step == 50 else 0.013 if step % 4 == 0 else 0.010  # one step had an evaluation after it
        if step % 4 != 1:  # the step after a measured one goes by unseen
            times.add(step, now, step % 4 == 0)
    assert times.cost() == pytest.approx(0.003)
    times.last = None
    times.add(100, now + 100, True)  # the first after a pause does not count
    assert times.cost() == pytest.approx(0.003)


def test_a_fixed_cadence_does_not_look_at_the_clock() -> None:
    cadence = Cadence(every=16, fixed=True)
    cadence.adapt(10.0, 5, 100, 1.0)
    cadence.load_state_dict({"every": 3})
    assert cadence.every == 16 and [step for step in range(1, 50) if cadence.due(step)] == [16, 32, 48]
