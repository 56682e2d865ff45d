"""Runs unlike those that the priors were learnt from: other units, other recipes as history, jumps of either sign."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from curves import Planted, fed
from isoflop.forecast import Forecast, LossCurve, LrPlan, NoForecast, Refusal, backtest, learn_priors

PLAN = LrPlan.cosine(6000, 1e-3, 300)
SHORT_DECAY = LrPlan.wsd(6000, 1e-3, 300, 600)


def late_insight(loss: np.ndarray) -> np.ndarray:
    """A loss that falls by a fiftieth of what a language model's does."""
    return loss[-1] + 1.0 + 0.02 * (loss - loss[-1])


@pytest.mark.parametrize(
    "unit",
    [lambda loss: 8 * loss, np.exp, lambda loss: loss / 8, late_insight],
    ids=["sum", "ppl", "mean of 8", "flat"],
)
def test_a_loss_that_falls_unlike_all_known_gets_no_narrow_interval_before_its_decay(
    unit: Callable[[np.ndarray], np.ndarray],
) -> None:
    """A sum over micro-batches, a perplexity: the gain of the decay is then as unknown as the unit."""
    run = Planted(C=0.3).run(PLAN)
    strange = dataclasses.replace(run, loss=unit(run.loss), final_loss=float(unit(np.append(run.loss, run.final))[-1]))
    for part in (0.2, 0.3, 0.4):
        found, known = fed(strange, part).forecast(PLAN), fed(run, part).forecast(PLAN)
        assert isinstance(known, Forecast) and known.low < run.final < known.high
        if isinstance(found, Forecast):
            assert found.low < strange.final < found.high
            assert any("badly" in text for text in found.basis)


@pytest.mark.parametrize(
    "more",
    [
        lambda t: 1.5 * np.exp(-t / 900),
        lambda t: 3.0 * np.exp(-t / 500),
        lambda t: 0.8 * np.exp(-t / 1500),
        lambda t: -0.1 / (1 + np.exp(-np.log(t / 1500) / 0.15)),
    ],
    ids=["start of 1.5 nats", "of 3", "a slow one", "late insight"],
)
def test_a_curve_of_another_form_is_not_forecast_surely(more: Callable[[np.ndarray], np.ndarray]) -> None:
    """By how far its last part lies off what the form expected, its residuals, its exponent and height."""
    run = Planted().run(PLAN)
    end = run.final + float(more(np.array([6000.0]))[0])
    strange = dataclasses.replace(run, loss=run.loss + more(run.steps), final_loss=end)
    for part in (0.2, 0.3, 0.4, 0.5, 0.6, 0.75):
        found = fed(strange, part).forecast(PLAN)
        if isinstance(found, Forecast):
            assert found.low < end < found.high, part
    doubted = [text for part in (0.6, 0.75) for text in getattr(fed(strange, part).forecast(PLAN), "basis", ())]
    sound = [text for part in (0.6, 0.75) for text in getattr(fed(run, part).forecast(PLAN), "basis", ())]
    assert any("badly" in text for text in doubted) and not any("badly" in text for text in sound)


def test_a_batch_that_grew_before_the_window_is_a_change_of_batch_and_tokens_not_counted_before_are_none() -> None:
    """The form counts steps of one size since the start; a count that begins amid the run has a first loss."""
    run = Planted().run(LrPlan.cosine(20_000, 1e-3, 300))
    grown = np.interp(run.steps, [0, 1500, 20_000], [0, 0.25 * 1500 * 5e5, 5e5 * 18_500])
    reason = fed(dataclasses.replace(run, tokens=grown), 0.5).forecast(run.plan)
    assert isinstance(reason, NoForecast) and reason.reason is Refusal.BATCH_CHANGED
    late = run.steps > 2000
    kept = {name: getattr(run, name)[late] for name in ("steps", "lr", "loss", "count")}
    found = fed(dataclasses.replace(run, tokens=run.tokens[late] - 1e9, **kept), 0.5).forecast(run.plan)
    assert isinstance(found, Forecast) and found.low < run.final < found.high


@pytest.mark.parametrize("by", [-0.25, 0.25])
@pytest.mark.parametrize("at", [0.3, 0.42])
def test_a_jump_is_stated_with_its_sign_and_size(by: float, at: float) -> None:
    """A late one too, as at the begin of an epoch: a drop is not called a rise."""
    run = Planted().run(PLAN)
    reason = fed(dataclasses.replace(run, loss=run.loss + by * (run.steps > at * 6000)), 0.5).forecast(PLAN)
    assert isinstance(reason, NoForecast) and reason.reason is Refusal.CHANGE_POINT
    assert float(reason.details["jump"]) == pytest.approx(by, rel=0.3)


def finished(world: Planted) -> list[LossCurve]:
    return [world.run(LrPlan.linear(3000 + 500 * i, 1e-3, 300), seed=i) for i in range(8)]


@pytest.mark.parametrize(
    "other",
    [
        Planted(E=2.9, A=0.45, alpha=0.55, C=0.08),
        Planted(A=0.16, alpha=0.35, C=0.38),
    ],
)
def test_a_history_of_another_recipe_neither_moves_nor_narrows_the_interval(other: Planted) -> None:
    """Decays of its eight runs give a half or the double: the run's own curve shows that it is not of them."""
    run = Planted().run(PLAN, seed=11)
    alone = fed(run, 0.4).forecast(PLAN)
    foreign, own = (fed(run, 0.4, priors=learn_priors(finished(world))).forecast(PLAN) for world in (other, Planted()))
    assert isinstance(alone, Forecast) and isinstance(foreign, Forecast) and isinstance(own, Forecast)
    assert foreign.low < run.final < foreign.high and foreign.sd > 0.95 * alone.sd
    assert own.low < run.final < own.high and own.sd < 0.95 * alone.sd


def test_a_forecast_and_the_final_loss_are_of_the_same() -> None:
    """Without a stated final loss that is the mean of the last twentieth, in which a short decay is under way."""
    runs = [Planted().run(SHORT_DECAY, N=1e8 * (1 + i), seed=i, name=str(i)) for i in range(6)]
    logged = [dataclasses.replace(run, final_loss=None) for run in runs]
    assert logged[0].final > runs[0].final + 0.01 and logged[0].final_step == 5850 and runs[0].final_step == 6000
    for each in (runs, logged):
        (score,) = (cells["0.9"] for cells in [backtest(each, fractions=[0.9], priors="default")["isoflop"]["planted"]])
        assert score.coverage == 1


def test_a_plan_can_be_called() -> None:
    assert PLAN(300) == pytest.approx(1e-3) and LrPlan.named("Cosine: Warmup=300, end=0.1", 6000).warmup_steps == 300


def scaled(k: int, steps: int = 6000) -> LossCurve:
    """A run of 2^k times the parameters and batch; its loss is one curve times a level, with a drop after half time."""
    run = Planted(C=0.4).run(LrPlan.cosine(steps, 1e-3, 300), N=3e8 * 2.0**k, seed=k + 5)
    level, drop = 1 - 0.1 * k, 0.04 * np.clip(2 * run.steps / steps - 1, 0, 1)
    batch = 5e5 * 2.0**k
    return dataclasses.replace(
        run,
        loss=level * (run.loss - drop),
        final_loss=level * (run.final - 0.04),
        batch_tokens=batch,
        tokens=run.steps * batch,
    )


def test_finished_runs_of_like_schedule_and_tokens_per_parameter_show_the_end() -> None:
    """Curves over their final losses are one curve, whatever its form; from two such runs on, and from no others."""
    target, kin, others = scaled(2), [scaled(k) for k in (-1, 0, 1)], [scaled(k, 12_000) for k in (-1, 0, 1)]
    beside = fed(target, 0.5, priors=learn_priors(kin)).forecast(target.plan)
    alone = fed(target, 0.5, priors=dataclasses.replace(learn_priors(kin), runs=())).forecast(target.plan)
    assert isinstance(beside, Forecast) and isinstance(alone, Forecast)
    assert beside.basis[-1] == "3 finished runs of like schedule and tokens per parameter"
    assert abs(beside.loss - target.final) < 0.6 * abs(alone.loss - target.final)
    assert beside.low < target.final < beside.high and not alone.low < target.final
    for history in (kin[:1], others):
        found = fed(target, 0.5, priors=learn_priors(history)).forecast(target.plan)
        assert isinstance(found, NoForecast) or "like schedule" not in found.basis[-1]
