"""When there is no forecast: each reason, and what it tells the user."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from curves import BATCH, Planted, fed, feed
from isoflop.forecast import (
    DEFAULT_PRIORS,
    Earlier,
    Forecast,
    LossCurve,
    LrPlan,
    NoForecast,
    OnlineForecaster,
    Refusal,
    learn_priors,
)
from isoflop.record import Task

PLAN = LrPlan.cosine(6000, 1e-3, 400)


def silent(forecaster: OnlineForecaster, plan: LrPlan | None = PLAN) -> NoForecast:
    result = forecaster.forecast(plan)
    assert isinstance(result, NoForecast), result
    return result


def changed(**columns: np.ndarray) -> LossCurve:
    return dataclasses.replace(Planted().run(PLAN), **columns)


def test_without_the_coming_learning_rate() -> None:
    reason = silent(fed(changed(), 0.5), None)
    assert reason.reason is Refusal.LR_UNKNOWN and "Pass the learning-rate plan" in reason.message


def test_in_the_warm_up() -> None:
    reason = silent(fed(changed(), 0.1))
    assert reason.reason is Refusal.WARM_UP and "800 steps" in reason.message and "600 are done" in reason.message
    assert silent(OnlineForecaster()).reason is Refusal.WARM_UP


def test_with_too_few_points() -> None:
    run = Planted().run(PLAN, every=750)
    reason = silent(fed(run, 0.5))
    assert reason.reason is Refusal.TOO_FEW_POINTS and "4 of the 5" in reason.message


def test_a_learning_rate_that_left_its_plan_and_one_that_came_back() -> None:
    run = changed()
    left = dataclasses.replace(run, lr=np.where(run.steps > 2500, 0.3 * run.lr, run.lr))
    reason = silent(fed(left, 0.5))
    assert reason.reason is Refusal.LR_OFF_PLAN and "At step 3,000" in reason.message
    # the plan that it follows is all it needs, whatever was before
    assert isinstance(fed(left, 0.5).forecast(LrPlan(left.steps, left.lr)), Forecast)
    was_off = dataclasses.replace(run, lr=np.where(run.steps < 1000, 0.5 * run.lr, run.lr))
    assert isinstance(fed(was_off, 0.5).forecast(PLAN), Forecast)


def test_a_plan_that_rises_again() -> None:
    steps, lr = np.array([0.0, 400, 3000, 3400, 6000]), np.array([0.0, 1e-3, 2e-4, 1e-3, 0.0])
    plan = LrPlan(steps, lr)
    reason = silent(fed(Planted().run(plan), 0.4), plan)
    assert reason.reason is Refusal.LR_RISES and "rises again" in reason.message


def test_a_loss_that_is_lost_or_climbs() -> None:
    forecaster = fed(changed(), 0.5)
    forecaster.add(3001, 3001 * BATCH, None, float("nan"))
    forecaster.add(3002, 3002 * BATCH, None, float("inf"))
    reason = silent(forecaster)
    assert reason.reason is Refusal.NOT_FINITE and "not finite were logged last, 2 in a row" in reason.message
    run = changed()
    climbing = dataclasses.replace(run, loss=run.loss + np.maximum(run.steps - 2300, 0) * 6e-4)
    reason = silent(fed(climbing, 0.5))
    assert reason.reason in (Refusal.DIVERGING, Refusal.CHANGE_POINT)


@pytest.mark.parametrize("by", [0.15, -0.15, 0.6])
def test_a_jump_is_a_change_point_and_no_fit(by: float) -> None:
    run = changed()
    jumped = dataclasses.replace(run, loss=run.loss + by * (run.steps > 2000))
    reason = silent(fed(jumped, 0.5))
    assert reason.reason is Refusal.CHANGE_POINT and "nats" in reason.message


@pytest.mark.parametrize("level", [np.log(50_257), 7.5])
def test_a_loss_that_does_not_fall_is_stuck(level: float) -> None:
    """At ln of the vocabulary from the first step on, or where it learnt how often each token comes and no more."""
    run = changed()
    noise = 0.02 * np.random.default_rng(0).normal(size=len(run.steps))
    early = 3 * np.exp(-run.steps / 50) * (level < 10)
    for fraction in (0.2, 0.5, 0.9):
        assert silent(fed(dataclasses.replace(run, loss=level + early + noise), fraction)).reason is Refusal.STUCK


def test_after_an_early_shelf_forecasts_resume_as_the_line_says() -> None:
    """Small models learn how often tokens come, stay there for a while, and go on."""
    run = Planted().run(LrPlan.cosine(6000, 1e-3, 100))
    shelf = dataclasses.replace(run, loss=np.where(run.steps < 900, run.loss[run.steps < 900][-1], run.loss))
    reason = silent(fed(shelf, 0.15))
    assert reason.reason is Refusal.STUCK and "resume" in reason.message
    found = fed(shelf, 0.8).forecast(run.plan)
    assert isinstance(found, Forecast) and found.low < run.final < found.high


def test_a_forecast_far_from_an_earlier_one_is_none() -> None:
    """A slow divergence from half time on: the loss bends up by 5% until the end, and never jumps."""
    run = Planted().run(LrPlan.constant(20_000, 1e-3, 400))
    drift = 1 + 0.1 * np.clip(run.steps / 20_000 - 0.5, 0, None)
    answers, earlier = [], Earlier()
    forecaster = OnlineForecaster(N=3e8, batch_tokens=BATCH)
    bent = dataclasses.replace(run, loss=run.loss * drift)
    for part in np.arange(0.05, 0.96, 0.05):
        forecaster.feed(bent, part * 20_000, after=forecaster.last_step)
        answers.append(earlier.check(forecaster.forecast(run.plan), part * 20_000))
    spoke = [isinstance(answer, Forecast) for answer in answers]
    assert all(spoke[2:10]) and not any(spoke[16:])
    assert answers[-1].reason is Refusal.DRIFTED and "far outside" in answers[-1].message


def test_a_falling_learning_rate_is_no_change_point() -> None:
    two = LrPlan(np.array([0.0, 400, 2400, 2401, 6000]), np.array([0.0, 1e-3, 1e-3, 2e-4, 2e-4]))
    run = Planted().run(two)
    forecast = fed(run, 0.5).forecast(two)
    assert isinstance(forecast, Forecast)
    assert forecast.loss == pytest.approx(run.final, abs=2 * forecast.sd)


def test_a_change_of_batch() -> None:
    run = changed()
    tokens = np.cumsum(np.where(run.steps > 1500, 2.0, 1.0)) * 20 * BATCH
    reason = silent(fed(dataclasses.replace(run, tokens=tokens), 0.5))
    assert reason.reason is Refusal.BATCH_CHANGED and "500,000 to 1,000,000" in reason.message


def test_an_interval_too_wide_to_be_of_use() -> None:
    wide = dataclasses.replace(DEFAULT_PRIORS, gain=dataclasses.replace(DEFAULT_PRIORS.gain, within=1.5))
    reason = silent(fed(changed(), 0.2, priors=wide))
    assert reason.reason is Refusal.TOO_WIDE and "±2.5%" in reason.message


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        (Task(start="finetuning"), "fine-tuning"),
        (Task(modality="image"), "image"),
        (Task(objective="reinforcement"), "reinforcement learning"),
        (Task(modality="other"), "other data than text"),
        (Task(objective="headless"), "without an output"),
    ],
)
def test_other_tasks_need_own_runs(task: Task, kind: str) -> None:
    reason = silent(fed(changed(), 0.5, task=task))
    assert reason.reason is Refusal.OUTSIDE_PRIORS and kind in reason.message
    causal, masked = (fed(changed(), 0.5, task=Task(objective=each)).forecast(PLAN) for each in ("causal", "masked"))
    assert isinstance(causal, Forecast) and isinstance(masked, Forecast) and masked.sd > 1.05 * causal.sd
    assert "this is a masked model" in masked.basis[-1]
    own = learn_priors([Planted().run(PLAN, seed=seed) for seed in range(3)])
    assert isinstance(fed(changed(), 0.5, task=task, priors=own).forecast(PLAN), Forecast)


def test_silence_lifts_when_its_reason_is_gone() -> None:
    run = changed()
    forecaster = fed(run, 0.1)
    assert isinstance(forecaster.forecast(PLAN), NoForecast)
    feed(forecaster, run, 0.5, start=0.1)
    assert isinstance(forecaster.forecast(PLAN), Forecast)


@pytest.mark.parametrize("reason", Refusal)
def test_each_reason_has_a_stable_name_and_a_text_of_its_numbers(reason: Refusal) -> None:
    numbers = dict.fromkeys(("needed", "now", "n", "half", "most", "step", "rate", "planned", "rise", "jump"), 2.0)
    numbers |= dict.fromkeys(("then", "since", "expected", "loss", "mean", "low", "high"), 2.0)
    words = dict.fromkeys(("why", "remedy", "kind"), "words")
    told = NoForecast(reason, {**numbers, **words, "before": 1e5, "after": 2e5})
    assert reason == reason.value and str(told) == f"no forecast ({reason.value}): {told.message}"
    assert told.message.endswith(".") and "{" not in told.message
