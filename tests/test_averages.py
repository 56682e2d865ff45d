"""A loss logged as its mean since the start: recognised by its noise, not forecast, taken back by an import."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from curves import BATCH, Planted, fed
from isoflop.averages import looks_averaged, running_mean
from isoflop.forecast import Forecast, LossCurve, LrPlan, NoForecast, OnlineForecaster, Refusal, read_curves
from isoflop.logs import Given, import_runs

PLAN = LrPlan.cosine(6000, 1e-3, 300)
CURVES = Path(__file__).parents[2] / "shared" / "data" / "curves"
STEPS = np.arange(1.0, 6001)


def since_start(loss: np.ndarray) -> np.ndarray:
    return np.cumsum(loss) / STEPS


def exponential(loss: np.ndarray, keep: float = 0.98) -> np.ndarray:
    kept = np.convolve(loss, (1 - keep) * keep ** np.arange(1000))[: len(loss)]
    return kept / (1 - keep**STEPS)


def logged(of: Callable[[np.ndarray], np.ndarray], seed: int, every: int = 10, digits: int = 5) -> LossCurve:
    """A run whose log holds what `of` makes of the losses of all its steps."""
    _, loss = Planted(noise=0.05).seen(PLAN, seed)
    values = np.round(of(loss)[every - 1 :: every], digits)
    run, steps = Planted().run(PLAN), STEPS[every - 1 :: every]
    return dataclasses.replace(
        run, steps=steps, tokens=steps * BATCH, lr=PLAN.at(steps), loss=values, count=None, final_loss=None
    )


@pytest.mark.parametrize("every", [1, 10, 50])
@pytest.mark.parametrize("seed", range(4))
def test_a_mean_since_the_start_has_no_forecast_and_one_line_says_why(seed: int, every: int) -> None:
    run = logged(since_start, seed, every)
    reasons = [fed(run, part).forecast(PLAN) for part in (0.5, 0.75)]
    assert all(isinstance(reason, NoForecast) for reason in reasons)  # else too wide
    found = [reason for reason in reasons if isinstance(reason, NoForecast) and reason.reason is Refusal.AVERAGED]
    if every == 50 and not found:
        return  # 40% of these are not, by three quarters
    assert found and not found[0].reason.temporary and "its mean since the last log" in found[0].message


def test_a_steep_fall_to_a_floor_is_no_mean() -> None:
    """As toy tasks train: real runs of these looked like means, short ones by what bends within some steps."""
    for seed, length in itertools.product(range(8), (1, 10)):
        noise = np.random.default_rng(seed).normal(0, 1, 80)
        steps = np.arange(2.0, 161, 2)
        fall = 1 / (1 + np.exp((steps - 18) / 6))
        loss = 1.13 + 2.4 * fall + 0.15 * np.exp(-steps / 60) + noise * (0.004 + 0.008 * np.exp(-steps / 60))
        for part in (0.3, 0.5, 0.75, 1.0):
            seen = steps <= part * 160
            assert not looks_averaged(length * steps[seen], loss[seen], 512.0 / length), (seed, length, part)


def test_hundreds_of_steps_are_not_judged() -> None:
    """What is learnt within ten steps of 160 bends as no smooth curve of ln t does."""
    for seed in range(8):
        steps = np.arange(1.0, 161)
        loss = (2.7 / (1 + np.exp((steps - 25) / 5)) + 0.02) * np.random.default_rng(seed).normal(1, 0.01, 160)
        assert not looks_averaged(steps, loss, 512.0)


@pytest.mark.parametrize(
    "of", [lambda loss: loss, exponential, lambda loss: 2.9 + 3.9 * STEPS**-0.25, lambda loss: 3 + np.exp(-STEPS / 900)]
)
def test_losses_of_steps_and_averages_over_a_window_are_no_means_since_the_start(
    of: Callable[[np.ndarray], np.ndarray],
) -> None:
    for seed in range(8):
        run = logged(of, seed)
        for part in (0.25, 0.5, 0.75, 1.0):
            seen = run.steps <= part * 6000
            assert not looks_averaged(run.steps[seen], run.loss[seen], BATCH)
    assert isinstance(fed(logged(lambda loss: loss, 0), 0.5).forecast(PLAN), Forecast)


@pytest.mark.skipif(not CURVES.exists(), reason=f"no public curves at {CURVES}")
def test_no_public_curve_is_taken_for_one_and_every_organisations_means_are_found() -> None:
    """264 curves as they are; and of their shapes, with noise at every step, the means of two in three at least."""
    missed: dict[str, list[bool]] = {}
    for run in read_curves(CURVES):
        batch, rng = run.batch_tokens or BATCH, np.random.default_rng(run.total_steps)
        bins = OnlineForecaster.of(run)
        for part in (0.25, 0.5, 0.75, 1.0):
            seen = bins.feed(run, part * run.total_steps, after=bins.last_step).columns(run.plan.warmup_steps)
            assert not running_mean(seen["step"], seen["loss"], batch), (run.name, part)
        if run.name.endswith(("0", "1", "2")):  # a part of them, for time
            steps = np.arange(1.0, min(run.total_steps, 20_000) + 1)
            curve = np.polynomial.Polynomial.fit(np.log(run.steps / run.total_steps), run.loss, 4)
            smooth = curve(np.log(np.maximum(steps / steps[-1], run.steps[0] / run.total_steps)))
            means = np.cumsum(smooth + 0.045 * (524_288 / batch) ** 0.5 * rng.normal(size=len(steps))) / steps
            missed.setdefault(run.organisation, []).append(not looks_averaged(steps, means, batch))
    assert {name: round(float(np.mean(each)), 2) for name, each in missed.items() if np.mean(each) > 0.35} == {}


def test_an_import_asks_and_takes_the_mean_back(tmp_path: Path) -> None:
    _, loss = Planted(noise=0.2).seen(PLAN, 3)
    means = since_start(loss)
    rows = [f"{step},{means[step - 1]!r},{3 + 1 / step}" for step in range(10, 6001, 10)]
    path = tmp_path / "run.csv"
    path.write_text("\n".join(["step,train_loss,val_loss", *rows]).replace("np.float64(", "").replace(")", ""))
    told = {"params": {"": 3e8}, "tokens_per_step": {"": BATCH}}
    asked = import_runs([path], Given(**told))
    (question,) = asked.questions
    assert "mean since the start" in question and "--loss-unit train=mean" in question
    answered = import_runs([path], Given(**told, loss_unit={"train": "mean", "eval/val": "nats"}))
    assert answered.questions == () and any(
        "by differences" in note for note in answered.runs[0].extra["imported"]["notes"]
    )
    points = answered.runs[0].points
    found = np.array([point.losses["train"] for point in points])
    assert found[-300:] == pytest.approx(loss.reshape(-1, 10).mean(1)[-300:], abs=1e-8)
    assert points[-1].interval_steps == 10 and points[-1].losses["eval/val"] == pytest.approx(3 + 1 / 6000)
    denied = import_runs([path], Given(**told, loss_unit={"train": "nats"}))
    assert denied.questions == () and denied.runs[0].points[-1].losses["train"] == pytest.approx(means[-1])


@pytest.mark.parametrize("loss", [np.zeros, np.ones, lambda n: np.r_[1e38, np.ones(n - 1)], lambda n: -np.arange(n)])
def test_a_log_without_noise_is_no_mean_and_no_error(loss: Callable[[int], np.ndarray]) -> None:
    steps = np.unique(np.geomspace(100, 5000, 60).round())
    assert not running_mean(steps, loss(len(steps)).astype(float), 32768.0)
