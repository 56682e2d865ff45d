"""The online forecast: planted curves come back, states are exact, logging intervals exchangeable."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curves import BATCH, Planted, fed, feed
from isoflop.forecast import (
    DEFAULT_PRIORS,
    ESTIMATORS,
    Forecast,
    LrPlan,
    NoForecast,
    OnlineForecaster,
    Refusal,
    forecast_from,
    scalars_of,
)
from isoflop.record import Task

PEAK = 1e-3
PLANS = {
    "constant": LrPlan.constant(6000, PEAK, 200),
    "cosine": LrPlan.cosine(6000, PEAK, 200),
    "cosine to 0": LrPlan.cosine(6000, PEAK, 200, end=0.0),
    "linear to 0": LrPlan.linear(6000, PEAK, 200),
    "wsd": LrPlan.wsd(6000, PEAK, 200, 1200),
    "wsd, exponential": LrPlan.wsd(6000, PEAK, 200, 1200, end=0.1, shape="exponential"),
}


def spoken(result: Forecast | NoForecast) -> Forecast:
    assert isinstance(result, Forecast), result
    return result


@pytest.mark.parametrize("name", PLANS)
def test_the_end_of_a_planted_curve_is_forecast(name: str) -> None:
    run = Planted().run(PLANS[name])
    for fraction, most in ((0.3, 0.012), (0.6, 0.008), (0.9, 0.004)):
        forecast = spoken(fed(run, fraction).forecast(run.plan))
        assert abs(forecast.loss / run.final - 1) < most
        assert forecast.low < forecast.loss < forecast.high
        assert forecast.step == 6000 and forecast.level == 0.8 and forecast.estimator == "isoflop"


@settings(max_examples=25)
@given(
    E=st.floats(1.6, 3.0),
    height=st.floats(-0.35, 0.35),
    alpha=st.floats(0.35, 0.55),
    gain=st.floats(-0.15, 0.15),
    noise=st.floats(0.002, 0.1),
    plan=st.sampled_from(sorted(PLANS)),
    every=st.sampled_from([1, 10, 50]),
    seed=st.integers(0, 1000),
)
def test_laws_of_the_priors_are_recovered_within_three_scales(
    E: float, height: float, alpha: float, gain: float, noise: float, plan: str, every: int, seed: int
) -> None:
    law = Planted(E, 0.26 * np.exp(height), alpha, 0.22 * np.exp(gain), noise)
    run = law.run(PLANS[plan], every=every, seed=seed)
    forecaster = fed(run, 0.5)
    forecast = forecaster.forecast(run.plan)
    if isinstance(forecast, NoForecast):
        assert forecast.reason is Refusal.TOO_WIDE, forecast
        return
    assert abs(forecast.loss - run.final) < 4 * forecast.sd
    now = spoken(forecaster.forecast(run.plan, step=3000))
    # where it is now is known far better than where it ends
    assert now.sd < forecast.sd
    assert abs(now.loss - law.loss(run.plan, np.array([3000.0]))[0]) < 5 * now.sd


def test_the_interval_holds_what_it_says_on_planted_curves() -> None:
    rng = np.random.default_rng(3)
    held = []
    for seed in range(60):
        law = Planted(
            rng.uniform(1.8, 2.8), 0.26 * np.exp(0.25 * rng.normal()), 0.44 * np.exp(0.15 * rng.normal()),
            0.23 * np.exp(0.12 * rng.normal()), 0.03,
        )  # fmt: skip
        run = law.run(PLANS[sorted(PLANS)[seed % 6]], seed=seed, every=50)
        forecast = fed(run, 0.5).forecast(run.plan)
        if isinstance(forecast, Forecast):
            held.append(forecast.low <= run.final <= forecast.high)
    assert len(held) >= 55
    assert 0.7 <= np.mean(held) <= 1.0


@pytest.mark.parametrize("plan", ["cosine", "wsd"])
def test_the_same_curve_at_another_logging_interval_gives_the_same_forecast(plan: str) -> None:
    forecasts = [
        spoken(fed(Planted(noise=0.05).run(PLANS[plan], every=every), 0.5).forecast(PLANS[plan]))
        for every in (1, 7, 25, 60)
    ]
    for one in forecasts[1:]:
        assert one.low <= forecasts[0].loss <= one.high
        assert abs(one.loss - forecasts[0].loss) < 0.5 * one.sd
        assert one.sd == pytest.approx(forecasts[0].sd, rel=0.35)


def test_a_wider_level_is_a_wider_interval_and_the_loss_stays() -> None:
    forecaster = fed(Planted().run(PLANS["cosine"]), 0.5)
    narrow, wide = (spoken(forecaster.forecast(PLANS["cosine"], level=level)) for level in (0.5, 0.95))
    assert narrow.loss == wide.loss
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    with pytest.raises(ValueError, match="between 0 and 1; got 80"):
        forecaster.forecast(PLANS["cosine"], level=80)


def test_spikes_and_lost_losses_hardly_move_it() -> None:
    run = Planted().run(PLANS["cosine"], every=5)
    clean = spoken(fed(run, 0.5).forecast(run.plan))
    loss = run.loss.copy()
    loss[[310, 420, 550]] += 2.0
    spiked = spoken(fed(dataclasses.replace(run, loss=loss), 0.5).forecast(run.plan))
    assert abs(spiked.loss - clean.loss) < clean.sd
    holes = fed(run, 0.3)
    holes.add(1900, 1900 * BATCH, PEAK, float("nan"))
    feed(holes, run, 0.5, start=0.32)
    assert abs(spoken(holes.forecast(run.plan)).loss - clean.loss) < clean.sd


def test_a_run_that_ended_is_where_it_is() -> None:
    run = Planted().run(PLANS["cosine"])
    forecast = spoken(fed(run).forecast(run.plan))
    assert forecast.loss == pytest.approx(run.final, rel=2e-3)
    assert forecast.sd < 3e-3 * run.final


@pytest.mark.parametrize("name", [*ESTIMATORS])
def test_a_restored_state_forecasts_bit_by_bit_the_same(name: str) -> None:
    run = Planted().run(PLANS["cosine"])
    through, first = (ESTIMATORS[name](N=3e8, batch_tokens=BATCH) for _ in range(2))
    feed(through, run, 0.6)
    feed(first, run, 0.4)
    restored = ESTIMATORS[name](N=3e8, batch_tokens=BATCH)
    restored.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert restored.forecast(run.plan) == first.forecast(run.plan)
    feed(restored, run, 0.6, start=0.4)
    # two plans that are equal, not the same object
    again = LrPlan(run.plan.steps.copy(), run.plan.lr.copy())
    assert restored.forecast(again) == through.forecast(run.plan)
    assert restored.state_dict() == through.state_dict()


def test_the_state_stays_small_and_plain_over_ten_million_steps() -> None:
    forecaster = OnlineForecaster(N=1e9, batch_tokens=BATCH)
    rng = np.random.default_rng(0)
    sizes = []
    for step in np.unique(np.geomspace(1, 1e7, 30_000).astype(int)).tolist():
        forecaster.add(step, step * BATCH, float(rng.random()), 2 + float(rng.random()), 3)
        if step % 1000 < 3:
            sizes.append(len(json.dumps(forecaster.state_dict())))
    assert max(sizes) < 32_000


def test_probabilities_of_an_order() -> None:
    forecaster = fed(Planted().run(PLANS["cosine"]), 0.5)
    low = spoken(forecaster.forecast(PLANS["cosine"]))
    high = dataclasses.replace(low, loss=low.loss + 3 * low.sd)
    assert low.probability_below(low) == pytest.approx(0.5)
    assert low.probability_below(high) == pytest.approx(1 - high.probability_below(low))
    assert 0.9 < low.probability_below(high) < 1
    assert low.probability_below(low.high) == pytest.approx(0.9, abs=1e-6)
    mean, sd = low.normal
    assert mean == low.loss and sd > low.sd


def test_it_says_what_it_rests_on() -> None:
    run = Planted().run(PLANS["cosine"])
    text = " ".join(spoken(fed(run, 0.5).forecast(run.plan)).basis)
    assert "up to step 3,000" in text and "to step 6,000" in text and "public curves" in text
    other = spoken(fed(run, 0.6, optimizer="muon", N=None, task=Task(experts=True)).forecast(run.plan))
    text = " ".join(other.basis)
    assert "another optimizer" in text and "size or the batch is not known" in text and "this one has experts" in text
    assert other.sd > spoken(fed(run, 0.6).forecast(run.plan)).sd


def test_the_t_of_the_eighty_percent_interval() -> None:
    from scipy.special import stdtrit

    told = spoken(fed(Planted().run(PLANS["cosine"]), 0.5).forecast(PLANS["cosine"]))
    assert told.high - told.loss == pytest.approx(float(stdtrit(told.nu, 0.9)) * told.sd)
    logged = forecast_from(scalars_of(told))
    assert logged is not None and logged.sd == pytest.approx(told.sd)


def test_steps_that_go_back_and_rates_that_are_none_do_no_harm() -> None:
    run = Planted().run(PLANS["cosine"])
    clean, other = fed(run, 0.5), fed(run, 0.5)
    other.add(1000, 1000 * BATCH, 5.0, 9.9)
    assert other.state_dict() == clean.state_dict()
    unknown = OnlineForecaster(N=3e8, batch_tokens=BATCH)
    for step, loss in zip(run.steps.tolist(), run.loss.tolist(), strict=True):
        if step <= 3000:
            unknown.add(step, step * BATCH, None if step % 40 else float("nan"), loss, 20)
    assert spoken(unknown.forecast(run.plan)).loss == pytest.approx(spoken(clean.forecast(run.plan)).loss, rel=1e-9)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["wild", "flat", "zero", "negative", "spread", "rising", "lost"]),
    total=st.integers(3, 10**7),
    points=st.integers(1, 200),
    N=st.sampled_from([None, 1.0, 1e13, float("nan"), -1.0]),
    batch=st.sampled_from([None, 1.0, 1e9, 0.0]),
    seed=st.integers(0, 1000),
)
def test_whatever_it_is_fed_it_forecasts_or_says_why(
    kind: str, total: int, points: int, N: float | None, batch: float | None, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    steps = np.sort(rng.integers(0, 2 * total, points))
    loss = {
        "wild": rng.normal(size=points) * 10.0 ** rng.uniform(-3, 30),
        "flat": np.full(points, 3.0),
        "zero": np.zeros(points),
        "negative": -np.ones(points),
        "spread": np.exp(3 * rng.normal(size=points)),
        "rising": 3 + 1e-3 * steps,
        "lost": np.where(rng.random(points) < 0.3, np.nan, 2 + 1 / np.sqrt(steps + 1)),
    }[kind]
    plan = LrPlan.cosine(total, 10.0 ** rng.uniform(-9, 3), int(rng.uniform(0, 0.9) * total))
    forecaster = OnlineForecaster(N=N, batch_tokens=batch, optimizer=None)
    tokens = [0.0 * steps, 5e5 * steps, 1e9 * rng.random(points), np.nan * steps][seed % 4]
    for step, seen, value in zip(steps.tolist(), tokens.tolist(), loss.tolist(), strict=True):
        forecaster.add(step, seen, [None, float(plan.at(step)), float("nan")][seed % 3], value, int(rng.integers(0, 5)))
    for asked in (None, 0, 10**8):
        told = forecaster.forecast(plan, asked)
        if isinstance(told, Forecast):
            assert np.isfinite([told.loss, told.low, told.high]).all() and told.sd > 0
        else:
            assert told.reason and told.message


def test_models_below_the_priors_range_get_wider_intervals() -> None:
    widths = {N: OnlineForecaster(N=N)._far() for N in (25e6, 25e3, 1e9)}
    assert widths == pytest.approx({25e6: 1.0, 25e3: 1 + 3 * 0.4, 1e9: 1.0})
    assert OnlineForecaster()._far() == 1.0
    own = dataclasses.replace(DEFAULT_PRIORS, own_runs=3)  # of the user's: they are of such sizes
    assert OnlineForecaster(N=25e3, priors=own)._far() == 1.0
