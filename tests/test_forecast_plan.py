"""Learning-rate plans: builders, functions, what is spliced, and what they do to the loss."""

from __future__ import annotations

import math

import numpy as np
import pytest

from isoflop.forecast import Kernel, LrPlan, falls, path

TOTAL, PEAK, WARMUP = 1000, 2e-3, 100


def test_builders_against_their_formulas() -> None:
    steps = np.arange(0, TOTAL + 1.0)
    part = np.clip((steps - WARMUP) / (TOTAL - WARMUP), 0, 1)
    rise = np.minimum(steps / WARMUP, 1)
    late = np.clip((steps - 800) / 200, 0, 1)
    table = {
        "constant": (LrPlan.constant(TOTAL, PEAK, WARMUP), np.ones_like(steps)),
        "linear": (LrPlan.linear(TOTAL, PEAK, WARMUP, end=0.2), 1 - 0.8 * part),
        "cosine": (LrPlan.cosine(TOTAL, PEAK, WARMUP), 0.1 + 0.45 * (1 + np.cos(np.pi * part))),
        "wsd": (LrPlan.wsd(TOTAL, PEAK, WARMUP, 200), 1 - late),
        "wsd sqrt": (LrPlan.wsd(TOTAL, PEAK, WARMUP, 200, shape="sqrt"), 1 - np.sqrt(late)),
        "wsd exponential": (LrPlan.wsd(TOTAL, PEAK, WARMUP, 200, 0.1, "exponential"), 0.1**late),
        "wsd cosine": (LrPlan.wsd(TOTAL, PEAK, WARMUP, 200, 0.0, "cosine"), 0.5 * (1 + np.cos(np.pi * late))),
    }
    for name, (plan, expected) in table.items():
        assert plan.at(steps) == pytest.approx(PEAK * rise * expected, abs=PEAK * (0.02 if "sqrt" in name else 2e-4)), (
            name
        )
        assert plan.total_steps == TOTAL and plan.peak == PEAK
        assert abs(plan.warmup_steps - WARMUP) <= 1


def test_a_plan_without_warm_up_starts_at_its_peak() -> None:
    plan = LrPlan.cosine(TOTAL, PEAK)
    assert plan.warmup_steps == 0 and plan.at(0) == PEAK


def test_what_is_no_plan_is_said() -> None:
    for steps, lr, message in (
        ([0, 1], [1.0], "one learning rate each"),
        ([0, 0], [1.0, 1.0], "ascend"),
        ([0, 1], [1.0, -1.0], "not negative"),
        ([0, 1], [0.0, 0.0], "not all 0"),
        ([0, 1], [1.0, math.nan], "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            LrPlan(np.array(steps, dtype=float), np.array(lr))
    with pytest.raises(ValueError, match="warm-up must end before"):
        LrPlan.constant(100, 1.0, 100)
    with pytest.raises(ValueError, match="decay_steps=0"):
        LrPlan.wsd(100, 1.0, 10, 0)
    with pytest.raises(ValueError, match="'step'"):
        LrPlan.wsd(100, 1.0, 10, 20, shape="step")


def test_spliced_is_the_past_as_seen_and_the_plan_from_there() -> None:
    plan = LrPlan.linear(100, 1.0)
    joined = plan.spliced([0, 50], [0.5, 0.5])
    assert joined.at([0, 25, 50]) == pytest.approx(0.5)
    assert joined.at([51, 80, 100]) == pytest.approx(plan.at([51, 80, 100]))
    assert joined.total_steps == 100


@pytest.mark.parametrize("seen", [[100], [50, 100], [50, 100, 1080], [120]])
def test_rates_that_were_seen_at_the_end_or_beyond_it_are_no_part_of_a_plan(seen: list[int]) -> None:
    """A trainer whose counter went back behind the run's end leaves such."""
    plan = LrPlan.linear(100, 1.0)
    joined = plan.spliced(seen, [0.5] * len(seen))
    assert joined.total_steps == 100 and joined.at([51, 100]) == pytest.approx(plan.at([51, 100]))


def test_effective_steps_and_falls_against_a_plain_sum() -> None:
    """The nodes of a path stand for a sum over every step."""
    kernel = Kernel(0.65, 100.0)
    for plan in (
        LrPlan.cosine(4000, 3e-4, 300),
        LrPlan.wsd(4000, 3e-4, 300, 900),
        LrPlan(np.array([0.0, 300, 2000, 2001, 4000]), np.array([0.0, 1, 1, 0.3, 0.3])),
    ):
        road = path(plan, 300, 4000.0)
        steps = np.arange(0, 4001.0)
        shape = plan.at(steps) / plan.peak
        x = np.concatenate([[0], np.cumsum((shape[1:] + shape[:-1]) / 2)])
        asked = np.array([500.0, 1999, 2500, 3500, 4000])
        assert road.x(asked) == pytest.approx(x[asked.astype(int)], rel=1e-3)
        drops = -np.diff(shape[300:] ** kernel.p)
        for step, fall in zip(asked.astype(int).tolist(), falls(road, (kernel,), asked)[0].tolist(), strict=True):
            lag = np.maximum(x[step] - x[301:], 0)
            assert fall == pytest.approx(float(drops @ (lag / (lag + kernel.T))), abs=6e-3)


def test_a_constant_rate_has_no_falls() -> None:
    plan = LrPlan.constant(1000, 1.0, 10)
    assert not falls(path(plan, 10, 1000.0), (Kernel(1, 50),), np.array([500.0, 1000])).any()


def test_a_plan_by_name_is_the_one_with_its_constants() -> None:
    steps = np.array([50, 300, 900, 1200, 1800, 2000])
    for text, plan in {
        "cosine:warmup=100,end=0.1": LrPlan.cosine(2000, 1.0, 100, 0.1),
        "linear: warmup=100, end=0": LrPlan.linear(2000, 1.0, 100),
        "wsd:warmup=100,decay=400,end=0.2": LrPlan.wsd(2000, 1.0, 100, 400, 0.2),
        "wsd:decay=0.2,end=0": LrPlan.wsd(2000, 1.0, 0, 400),
        "constant:warmup=100": LrPlan.constant(2000, 1.0, 100),
        "cosine:end=0.1,steps=1500": LrPlan.cosine(1500, 1.0, 0, 0.1),  # nanoGPT's lr_decay_iters
    }.items():
        assert LrPlan.named(text, 2000).at(steps) == pytest.approx(plan.at(steps), abs=1e-4)
        assert LrPlan.named(text, 2000).total_steps == 2000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosin:end=0", "expected a schedule named cosine, linear, wsd, constant"),
        ("cosine:warmup=100", "cosine needs end"),
        ("cosine:end=6e-5,min_lr=1", "got 'min_lr=1'"),
        ("cosine:end=10%", "got 'end=10%'"),
        ("linear:end=3", "end as a fraction of the peak"),
        ("wsd:end=0", "wsd needs decay"),
        ("cosine:warmup=3000,end=0", "The warm-up must end before the run does"),
    ],
)
def test_a_name_that_is_no_plan_is_said(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LrPlan.named(text, 2000)


def test_a_plan_takes_the_unit_of_the_rates_seen() -> None:
    plan, seen = LrPlan.cosine(2000, 1.0, 100), np.array([50.0, 500, 900])
    assert plan.scaled_to(seen, 3e-4 * plan.at(seen)).peak == pytest.approx(3e-4)
    assert plan.scaled_to(seen[:0], seen[:0]) is plan
    past = np.array([2.0, 2.0, float(plan.at(900))])  # another past; it is on the plan now
    assert plan.scaled_to(seen, past) is plan
    given = LrPlan.cosine(2000, 3e-3, 100)  # and the user has set 1.0 by hand since: its peak was 3e-3 all the same
    left = np.append(given.at(seen), 1.0)
    assert given.scaled_to(np.append(seen, 1000.0), left) is given
