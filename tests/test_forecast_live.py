"""The forecast in a running Monitor: fed at log steps, shown, saved, restored; silent, and why, where it must be."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as S

import isoflop
from isoflop.flops import Totals
from isoflop.forecast import (
    Forecast,
    LrPlan,
    NoForecast,
    OnlineForecaster,
    Outcome,
    Refusal,
    curve_of,
    final_step,
    finished_runs,
    history_of,
    size_of,
)
from isoflop.lightning import IsoFLOPMonitor
from isoflop.live import Interval, LogStep, Options, RunInfo
from isoflop.live import forecast as forecasting
from isoflop.record import Task, task_words
from isoflop.transformers import IsoFLOPCallback
from tiny import Rows, batches, model, same_weights, the_run, weights
from trainers import LIGHTNING_NOISE, hf_trainer, lightning_module, lightning_trainer

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_NOISE]
TOTAL, TOKENS, PEAK = 2_000, 500_000, 1e-3
FORECASTS = ("forecast_loss", "forecast_low", "forecast_high")


@pytest.fixture(autouse=True)
def refits_at_every_log_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What trains here takes milliseconds, of which a thousandth is no refit."""
    monkeypatch.setattr(forecasting, "SHARE", math.inf)


def planted(step: int, seed: int = 0) -> float:
    """A run's loss at a constant rate, with a logged interval's noise."""
    noise = np.random.default_rng(10_000 * seed + step).normal()
    return 2.5 + 1.2 * (step / 100) ** -0.5 + 0.004 * float(noise)


def steady(optimizer: Any) -> Any:
    return S.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))


def train(
    folder: Path,
    *,
    first: int = 1,
    last: int = TOTAL,
    state: dict[str, Any] | None = None,
    make: Callable[[Any], Any] | None = steady,
    between: Callable[[int, Any, Any], None] = lambda step, monitor, optimizer: None,
    loss: Callable[[int], float] = planted,
    finish: bool = True,
    optimizer: Any = None,
    **options: Any,
) -> tuple[Any, list[str]]:
    """A plain loop of planted losses; the monitor, and what it told."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = (optimizer or torch.optim.AdamW)([weight], lr=PEAK)
    scheduler = None if make is None else make(optimizer)
    defaults = {"num_params": 10**8, "flops_per_token": 6e8, "total_steps": TOTAL, "log_every": 20}
    told: list[str] = []
    monitor = isoflop.Monitor(
        None, optimizer=optimizer, scheduler=scheduler, record_dir=folder, **{**defaults, **options}
    )
    monitor.run.say = told.append
    if state is not None:
        monitor.load_state_dict(state)
        for _ in range(first - 1):
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
    for step in range(first, last + 1):
        optimizer.step()
        monitor._begin()
        if scheduler is not None:
            scheduler.step()
        monitor.step(loss(step), tokens=TOKENS)
        between(step, monitor, optimizer)
    if finish:
        monitor.close()
    return monitor, told


def log_step(step: int, lr: float, loss: float, busy_time: float = 0.0) -> LogStep:
    """One of a run that logs every step."""
    before, totals = Interval(step - 1), Totals(processed=step * TOKENS)
    values = {"totals": totals, "loss": loss, "lr": lr, "busy_time": busy_time}
    return LogStep(step=step, updates=step, before=before, **values)


def about(told: list[str]) -> list[str]:
    """(The last line of a run names its record, in a folder of any name.)"""
    return [line for line in told if "forecast" in line.partition(" Record: ")[0]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A planted run from its first step to its last, and the forecast after each."""
    folder, seen = tmp_path_factory.mktemp("whole"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecasting, "SHARE", math.inf)
        monitor, told = train(folder, between=lambda step, monitor, _: seen.update({step: monitor.forecast}))
    return SimpleNamespace(folder=folder, seen=seen, monitor=monitor, told=told)


def test_a_planted_run_is_forecast_and_shown_everywhere(whole: SimpleNamespace) -> None:
    seen, monitor = whole.seen, whole.monitor
    half = seen[TOTAL // 2]
    assert isinstance(half, Forecast) and half.step == TOTAL
    end = 2.5 + 1.2 * (TOTAL / 100) ** -0.5
    assert half.low < end < half.high and half.loss == pytest.approx(end, rel=0.01)
    assert isinstance(seen[40], NoForecast) and seen[40].reason.temporary
    assert seen[19] is None
    run = the_run(whole.folder)
    at_half = next(point for point in run.points if point.step == TOTAL // 2)
    assert [at_half.extra[name] for name in FORECASTS] == [half.loss, half.low, half.high]
    assert "forecast_loss" not in next(point for point in run.points if point.step == 40).extra
    assert monitor.scalars["isoflop/forecast_loss"] == monitor.forecast.loss
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole.folder))
    events.Reload()
    for name in FORECASTS:
        values = {event.step: event.value for event in events.Scalars(f"isoflop/{name}")}
        assert values[TOTAL // 2] == pytest.approx(at_half.extra[name], rel=1e-6)
    final = monitor._forecast._final
    assert final.mean == pytest.approx(end, rel=0.005) and 0 < final.error < 0.002
    (line,) = about(whole.told)
    assert line.startswith(
        f"isoflop: forecast at step 1,000: {half.loss:.3f} (80%: {half.low:.3f} to {half.high:.3f}) · final loss "
        f"{Outcome(half, final.mean, final.error)}"
    )
    assert line.endswith(", inside the interval")


def test_losses_that_agree_by_chance_tell_no_error(whole: SimpleNamespace) -> None:
    half = whole.seen[TOTAL // 2]
    assert str(Outcome(half, half.loss, 2e-4)).startswith(f"{half.loss:.3f}: as forecast")
    assert str(Outcome(half, half.loss, 2e-3)).startswith(f"{half.loss:.3f} ± 0.002: as forecast")


def test_the_record_holds_the_plan_so_that_others_can_forecast_the_run(tmp_path: Path) -> None:
    def falling(optimizer: Any) -> Any:
        return S.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 50) * (1 - s / TOTAL))

    train(tmp_path, last=800, make=falling)
    run = the_run(tmp_path)
    assert run.planned["steps"] == TOTAL and run.planned["schedule"] == "LambdaLR"
    plan = curve_of(run).plan
    assert plan.total_steps == TOTAL
    for step in (10, 49, 60, 800, 1500, 2000):
        assert float(plan.at(step)) == pytest.approx(PEAK * min(1, step / 50) * (1 - (step - 1) / TOTAL), rel=0.02)
    curve = curve_of(run)
    assert (curve.N, curve.batch_tokens, curve.optimizer) == (10**8, TOKENS, "AdamW")
    assert curve.steps[-1] == 800 and curve.tokens[-1] == 800 * TOKENS and not curve.task.experts


def test_a_restored_run_forecasts_the_same_to_the_bit(tmp_path: Path, whole: SimpleNamespace) -> None:
    first, _ = train(tmp_path / "parts", last=1_000, finish=False)
    state = json.loads(json.dumps(first.state_dict()))
    parts: dict[int, Any] = {}
    _, told = train(
        tmp_path / "parts",
        first=1_001,
        state=state,
        between=lambda step, monitor, _: parts.update({step: monitor.forecast}),
    )
    assert parts == {step: whole.seen[step] for step in parts}
    assert isinstance(parts[1_001], Forecast) and len({id(forecast) for forecast in parts.values()}) > 10
    (line,) = about(told)
    assert "forecast at step 1,000" in line  # made before the checkpoint


def test_a_plan_whose_past_was_another_survives_a_checkpoint(tmp_path: Path) -> None:
    """The rate was halved by hand on the way: only the log knows of the time before."""

    def halve(step: int, monitor: Any, optimizer: Any) -> None:
        if step == 700:
            optimizer.param_groups[0]["lr"] = PEAK / 2

    whole: dict[int, Any] = {}
    parts: dict[int, Any] = {}
    options: dict[str, Any] = {"lr_plan": lambda step: PEAK / 2}  # as it is from now on
    train(
        tmp_path / "a",
        make=None,
        last=1_500,
        between=lambda *at: (halve(*at), whole.update({at[0]: at[1].forecast})),
        **options,
    )
    first, _ = train(tmp_path / "b", make=None, last=1_000, between=halve, finish=False, **options)
    state = json.loads(json.dumps(first.state_dict()))
    train(
        tmp_path / "b",
        first=1_001,
        last=1_500,
        state=state,
        make=lambda o: halve(700, None, o),  # as the optimizer's own checkpoint would
        between=lambda step, monitor, _: parts.update({step: monitor.forecast}),
        **options,
    )
    assert isinstance(parts[1_500], Forecast)
    assert parts == {step: whole[step] for step in parts}


def test_a_state_of_an_earlier_version_restores(tmp_path: Path) -> None:
    monitor, _ = train(tmp_path, last=100)
    state = monitor.state_dict()
    del state["forecast"]
    other, _ = train(tmp_path / "other", first=101, last=600, state=state)
    assert other.steps == 600 and "restoring" not in str(other.guard.aside)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": None}, "The run's length is not known: pass total_steps=, or max_steps to a Trainer."),
        (
            {"make": lambda o: S.ReduceLROnPlateau(o, patience=10**6), "loop": True},
            "The learning rate to come is unknown: ReduceLROnPlateau sets the learning rate by losses still to come. "
            f"Pass {forecasting.GIVEN}.",
        ),
        (
            {"make": None, "hidden": True},
            "The learning rate to come is unknown: the optimizer has a scheduler that was not passed to isoflop. Pass "
            f"scheduler= or {forecasting.GIVEN}.",
        ),
    ],
)
def test_what_time_does_not_mend_is_told_once(tmp_path: Path, options: Any, message: str) -> None:
    options = dict(options)
    hidden, plateau = options.pop("hidden", False), options.pop("loop", False)

    def between(step: int, monitor: Any, optimizer: Any) -> None:
        if hidden and step == 1:
            S.StepLR(optimizer, 10**6)

    if plateau:
        options["make"] = lambda o: type("ReduceLROnPlateau", (), {"step": lambda self: None})()
    monitor, told = train(tmp_path, last=600, between=between, **options)
    assert about(told) == [f"isoflop: no forecast of the final loss. {message}"]
    assert isinstance(monitor.forecast, NoForecast) and not any(name in monitor.scalars for name in FORECASTS)
    assert not monitor.guard.aside


def test_a_given_schedule_is_known_before_there_is_time_for_a_forecast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasting, "SHARE", 0.0)
    monitor, _ = train(tmp_path / "a", last=20, make=lambda o: S.CosineAnnealingLR(o, 4 * TOTAL))
    assert "SCHEDULE" in {each.reason.name for each in monitor.advice} and monitor.forecast is None
    assert the_run(tmp_path / "a").planned["learning_rates"]["steps"][-1] == TOTAL
    options = {"make": None, "between": by_hand, "lr_plan": "linear:warmup=50,end=0", "log_every": 1}
    monitor, _ = train(tmp_path / "b", last=60, **options)  # its unit is what was seen
    assert monitor._forecast.plan.peak == pytest.approx(PEAK, rel=0.05)
    monitor, _ = train(tmp_path / "c", last=60, **options, optimizer=lambda *_, **__: SimpleNamespace(
        param_groups=[{}], step=lambda: None))  # fmt: skip
    assert not any("learning rate" in str(each) for each in monitor.advice)


def test_a_method_without_schedule_keeps_its_rate_by_plan(tmp_path: Path) -> None:
    method = type("AdamWScheduleFree", (torch.optim.AdamW,), {})
    monitor, told = train(tmp_path, make=None, optimizer=method, lr_plan=None, last=1_000)
    assert isinstance(monitor.forecast, Forecast) and not monitor.forecast.rate_assumed and not about(told)


def test_a_rise_and_a_jump_are_one_line(tmp_path: Path) -> None:
    """Three refusals of one cause, each with other words, came in a row."""
    met: set[str] = set()

    def harder(step: int) -> float:
        return planted(step) + (0.0 if step < 400 else 0.002 * (step - 400) if step < 600 else 2.0)

    def between(step: int, monitor: Any, optimizer: Any) -> None:
        if isinstance(monitor.forecast, NoForecast) and not monitor.forecast.reason.temporary:
            met.add(monitor.forecast.reason.name)

    _, told = train(tmp_path, last=800, loss=harder, between=between)
    assert len(met) > 1 and len([line for line in told if "no forecast of the final loss" in line]) == 1


def decaying(step: int) -> float:
    return PEAK * min(1.0, step / 50) * (1 - max(step - 50, 0) / (TOTAL - 50))


def by_hand(step: int, monitor: Any, optimizer: Any) -> None:
    optimizer.param_groups[0]["lr"] = decaying(step + 1)


@pytest.mark.parametrize("plan", [decaying, lambda step: decaying(step) / PEAK, "linear:warmup=50,end=0"])
def test_a_rate_set_by_hand_is_followed_with_a_plan(tmp_path: Path, plan: Any) -> None:
    """A function of the step, one of the fraction of the peak, and a name come to one plan."""
    told_of, told = train(tmp_path, last=1_000, make=None, between=by_hand, lr_plan=plan)
    assert isinstance(told_of.forecast, Forecast) and not told_of.forecast.rate_assumed and not about(told)
    assert told_of._forecast.plan.at([500, 1_500, TOTAL]) == pytest.approx(
        [decaying(500), decaying(1_500), 0], abs=2e-2 * PEAK
    )
    assert "learning_rates" in the_run(tmp_path).planned


@pytest.mark.parametrize("plan", ["cosine:warmup=50,end=0", "linear:warmup=50,end=0.3", "constant:warmup=50"])
def test_a_plan_that_the_rates_contradict_is_none(tmp_path: Path, plan: str) -> None:
    """Its end is wrong, not its beginning: silent from the first fiftieth of the peak on, also where the two cross."""
    seen: dict[int, Any] = {}

    def between(step: int, monitor: Any, optimizer: Any) -> None:
        by_hand(step, monitor, optimizer)
        seen[step] = monitor.forecast

    monitor, told = train(tmp_path, last=1_500, make=None, between=between, lr_plan=plan)
    late = [seen[step] for step in range(800, 1_501, 20)]
    assert {getattr(each, "reason", None) for each in late} == {Refusal.LR_OFF_PLAN}
    assert len([line for line in about(told) if "pass the plan that it follows now" in line]) == 1
    torch.save(monitor.state_dict(), tmp_path / "state.pt")  # values of Python alone
    assert torch.load(tmp_path / "state.pt", weights_only=True)["forecast"]["last"]["kind"] == "NoForecast"


def test_a_name_without_its_warm_up_holds_after_it(tmp_path: Path) -> None:
    """The peak is not that of the warm-up's first rates, nor is there advice on it."""
    monitor, _ = train(tmp_path, last=1_000, make=None, between=by_hand, lr_plan="linear:end=0", log_every=10)
    plan = monitor._forecast.plan
    assert isinstance(monitor.forecast, Forecast) and plan.peak == pytest.approx(PEAK, rel=0.05)
    assert not any("learning rate" in str(advice) for advice in monitor.advice)


def test_a_plan_that_does_not_fit_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run too short for a forecast would end without the reason."""
    monkeypatch.setattr("isoflop.live.forecast.SHARE", 0.0)
    _, told = train(tmp_path, last=20, make=None, lr_plan=f"cosine:warmup={2 * TOTAL},end=0", finish=False)
    (line,) = about(told)
    assert "does not fit into the run" in line


def grouped(rates: tuple[float, ...]) -> Callable[..., Any]:
    return lambda weight, lr: torch.optim.AdamW(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    )


def test_groups_of_different_schedules_have_no_forecast(tmp_path: Path) -> None:
    """The first group's rate stays, the others' fall: it does not stand for the run."""
    apart = [lambda step: 1.0, lambda step: 1 - step / TOTAL, lambda step: 1 - step / TOTAL]
    monitor, told = train(
        tmp_path, last=1_000, make=lambda o: S.LambdaLR(o, apart), optimizer=grouped((PEAK, PEAK, PEAK))
    )
    assert isinstance(monitor.forecast, NoForecast) and monitor.forecast.reason is Refusal.LR_UNKNOWN
    assert len([line for line in about(told) if "groups follow different schedules" in line]) == 1


def test_groups_of_rates_far_apart_have_no_peak_to_compare(tmp_path: Path) -> None:
    """As with muP: one schedule, and rates that a width decides."""
    monitor, _ = train(tmp_path, last=1_000, optimizer=grouped((30 * PEAK, PEAK, PEAK / 30)))
    assert isinstance(monitor.forecast, Forecast)
    assert any("no real learning rate" in text for text in monitor.forecast.basis)


def test_a_forecast_shows_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between refits the last forecast stands: terminal, record, report and tab state the step that it was made at."""

    def stop(step: int, monitor: Any, optimizer: Any) -> None:
        if step == 1_000:
            monkeypatch.setattr(forecasting, "SHARE", 0.0)

    monitor, told = train(tmp_path, last=1_200, between=stop, finish=False)
    assert monitor.forecast.as_of == 1_000
    assert told[-1].startswith("step 1,200 ·") and told[-1].endswith("(as of step 1,000)")
    assert not any("step 1,000 ·" in line and "as of" in line for line in told)


def test_a_rate_that_moved_by_another_hand_is_unknown(tmp_path: Path) -> None:
    monitor, told = train(tmp_path, last=1_000, make=None, between=by_hand)
    assert isinstance(monitor.forecast, NoForecast) and monitor.forecast.reason is Refusal.LR_UNKNOWN
    (line,) = about(told)
    assert line.endswith(f"no scheduler was passed to isoflop. Pass scheduler= or {forecasting.GIVEN}.")
    assert not any("assumes that it stays" in line for line in told)  # nothing that is taken back
    assert "learning_rates" not in the_run(tmp_path).planned


def test_a_rate_that_has_stayed_is_said_to_be_assumed(tmp_path: Path) -> None:
    """The interval holds the end of a run that stays at its rate and that of one that decays to 0 after all."""

    def warm(step: int, monitor: Any, optimizer: Any) -> None:
        optimizer.param_groups[0]["lr"] = PEAK * min(1.0, (step + 1) / 50)

    monitor, told = train(tmp_path / "a", last=1_000, make=None, between=warm, target_loss=1.0)
    known, _ = train(tmp_path / "known", last=1_000, make=None, between=warm, lr_plan="constant:warmup=50")
    assumed, constant = monitor.forecast, known.forecast
    assert assumed.rate_assumed and not constant.rate_assumed
    assert assumed.loss == pytest.approx(constant.loss, rel=1e-3) and assumed.high == pytest.approx(
        constant.high, rel=1e-3
    )
    decays = monitor._forecast.curve.forecast(monitor._forecast.plan.decayed(1_000), final_step(TOTAL, "train"))
    assert assumed.low == decays.low < constant.low
    assert len([line for line in told if "assumes that it stays" in line]) == 1
    assert "learning_rates" not in the_run(tmp_path / "a").planned
    assert not any(advice.reason.value == "target out of reach" for advice in monitor.advice)


def test_off_says_and_does_nothing(tmp_path: Path) -> None:
    monitor, told = train(tmp_path, last=600, fit_on="off")
    assert monitor.forecast is None and not about(told)


def test_an_evaluations_loss_is_forecast_where_that_is_wanted(tmp_path: Path) -> None:
    def evaluate(step: int, monitor: Any, optimizer: Any) -> None:
        if step % 25 == 0:
            monitor.evaluate("c4", planted(step, 1) + 1)
            monitor.evaluate("other", 7.0)

    monitor, _ = train(tmp_path, last=1_500, fit_on="eval/c4", between=evaluate)
    assert isinstance(monitor.forecast, Forecast)
    assert monitor.forecast.loss == pytest.approx(3.5 + 1.2 * (TOTAL / 100) ** -0.5, rel=0.01)


def test_refits_stay_under_their_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasting, "SHARE", 1e-3)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(forecasting.time, "thread_time", lambda: clock.now)
    made: list[float] = []

    class Costly(forecasting.OnlineForecaster):
        def forecast(self, *args: Any, **kwargs: Any) -> Any:
            clock.now += 0.005
            made.append(clock.now)
            return super().forecast(*args, **kwargs)

    monkeypatch.setattr(forecasting, "OnlineForecaster", Costly)
    run = RunInfo(total_steps=TOTAL, optimizer=SimpleNamespace(param_groups=[{"lr": PEAK}]))
    part = forecasting.ForecastPart(Options(), run)
    for step in range(1, TOTAL):
        part.log(log_step(step, PEAK, planted(step), busy_time=step / 10))
    assert len(made) * 0.005 <= 1e-3 * TOTAL / 10
    assert len(made) >= 30  # and not far under it


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    part = forecasting.ForecastPart(Options(), RunInfo())
    sizes = []
    for step in range(1, 40_001):
        part.log(log_step(step, PEAK / step, planted(step % 977 + 1)))
        if step in (10_000, 40_000):
            sizes.append(len(json.dumps(part.state_dict())))
    assert sizes[1] < 1.5 * sizes[0]


# -- the user's own finished runs --------------------------------------------------------------------------------------


def test_history_sharpens_the_forecast_of_a_further_run(tmp_path: Path) -> None:
    for seed in range(1, 5):
        train(tmp_path / f"old-{seed}", loss=lambda step, seed=seed: planted(step, seed), fit_on="off")
    alone, _ = train(tmp_path / "alone", last=500)
    helped, _ = train(tmp_path / "helped", last=500, history=[tmp_path / f"old-{seed}" for seed in range(1, 5)])
    assert isinstance(alone.forecast, Forecast) and isinstance(helped.forecast, Forecast)
    assert helped.forecast.high - helped.forecast.low < alone.forecast.high - alone.forecast.low
    assert any("updated with 4 finished runs of your own" in text for text in helped.forecast.basis)


def test_a_ladder_of_earlier_sizes_speaks_from_the_start(tmp_path: Path) -> None:
    def of_size(N: int) -> Callable[[int], float]:
        return lambda step: planted(step, N % 97) + 0.8 * (N / 1e8) ** -0.3 - 0.8

    sizes = (10**7, 3 * 10**7, 10**8)
    for N in sizes:
        train(tmp_path / f"N{N}", loss=of_size(N), num_params=N, fit_on="off")
    N, seen = 3 * 10**8, {}
    ladder = [tmp_path / f"N{size}" for size in sizes]
    train(
        tmp_path / "new",
        loss=of_size(N),
        num_params=N,
        history=ladder,
        between=lambda step, monitor, _: seen.update({step: monitor.forecast}),
    )
    end = 2.5 + 1.2 * (TOTAL / 100) ** -0.5 + 0.8 * (N / 1e8) ** -0.3 - 0.8
    for step in (40, 500, 1500):
        forecast = seen[step]
        assert isinstance(forecast, Forecast) and forecast.estimator == "joint"
        assert abs(forecast.loss - end) < 0.02 and forecast.low - 0.01 < end < forecast.high + 0.01
    assert seen[1500].high - seen[1500].low < seen[40].high - seen[40].low
    assert any(text.startswith("3 finished runs: ") and "N30000000" in text for text in seen[40].basis)


def test_history_that_gives_nothing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path / "cut", last=300, finish=False, fit_on="off")
    with caplog.at_level(logging.WARNING, "isoflop"):
        monitor, _ = train(tmp_path / "run", last=500, history=tmp_path / "cut")
    (said,) = [record.getMessage() for record in caplog.records if "history" in record.getMessage()]
    assert said == (
        "isoflop: history= gives the forecast nothing: no finished run to learn from (cut: it is not finished)"
    )
    assert isinstance(monitor.forecast, Forecast)


def test_what_can_not_be_learnt_from_says_why(tmp_path: Path) -> None:
    train(tmp_path / "short", last=1_000, fit_on="off")
    train(tmp_path / "few", log_every=400, fit_on="off")
    _, problems = finished_runs(isoflop.read_runs(tmp_path))
    assert sorted(problems) == [
        "few: 5 points with a loss 'train'; at least 12 are needed",
        "short: it ended at step 1,000 of 2,000 planned",
    ]
    _, problem = history_of([tmp_path / "nowhere"])
    assert problem is not None and "no such file" in problem


# -- the trainers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_lightnings_scheduler_is_asked_and_training_is_the_same(tmp_path: Path, interval: str) -> None:
    import lightning.pytorch as package

    def configure(self: Any) -> Any:
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.01)
        scheduler = S.CosineAnnealingLR(optimizer, 64 if interval == "step" else 4, 1e-4)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    rates: list[float] = []

    class Watch(package.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    ended = []
    for callback in (IsoFLOPMonitor(), None):
        net = model()
        callbacks = [Watch(), *([callback] if callback else [])]
        trainer = lightning_trainer(package, tmp_path / interval, callbacks=callbacks, max_epochs=4)
        trainer.fit(lightning_module(package, net, configure_optimizers=configure), batches(Rows(128), 8))
        ended.append(weights(net))
        if callback is not None:
            driver = callback.monitor._forecast
    assert same_weights(*ended)
    assert rates[:64] == rates[64:]
    assert driver.plan is not None and driver.plan.total_steps == 64
    np.testing.assert_allclose(driver.plan.at(np.arange(1, 65)), rates[:64], rtol=1e-9)


def test_lightning_with_two_optimizers_has_no_forecast(tmp_path: Path) -> None:
    import lightning.pytorch as package

    def configure(self: Any) -> Any:
        groups = list(self.net.parameters())
        return [torch.optim.SGD(groups[:1], lr=0.1), torch.optim.SGD(groups[1:], lr=0.1)]

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = self.net(**batch)["loss"]
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    callback = IsoFLOPMonitor()
    trainer = lightning_trainer(package, tmp_path, callbacks=[callback], max_epochs=2)
    module = lightning_module(package, model(), configure_optimizers=configure, training_step=step)
    module.automatic_optimization = False
    trainer.fit(module, batches(Rows(128), 8))
    assert callback.monitor is not None
    assert callback.monitor.forecast == NoForecast(
        Refusal.LR_UNKNOWN,
        {"why": "the module has 2 optimizers, whose steps the Trainer adds up", "remedy": forecasting.GIVEN},
    )


def test_the_hugging_face_trainers_scheduler_is_asked(tmp_path: Path) -> None:
    callback = IsoFLOPCallback()
    trainer = hf_trainer(
        model(),
        tmp_path,
        Rows(512),
        [callback],
        lr_scheduler_type="cosine",
        warmup_steps=4,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    assert callback.monitor is not None
    plan = callback.monitor._forecast.plan
    assert plan is not None and plan.total_steps == 32
    logged = {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry}
    assert len(logged) > 10
    for step, rate in logged.items():
        assert float(plan.at(step)) == pytest.approx(rate, rel=1e-9)


def test_fine_tuning_and_experts_are_told_to_the_estimator() -> None:

    dense = {"total": 100, "trainable": 100, "non_embedding": 80, "active": 100}
    flags = {
        "causal": True,
        "masked": True,
        "finetuning causal": False,
        "causal image": False,
        "masked audio": False,
        "contrastive": False,
        "reinforcement": False,
    }
    for words, spoken in flags.items():
        curve = OnlineForecaster(task=Task(**task_words(words)))
        found = curve.forecast(LrPlan.constant(100, 1.0))
        assert isinstance(found, NoForecast) and (found.reason is not Refusal.OUTSIDE_PRIORS) is spoken
    assert size_of({**dense, "active": 60}) == 40 and size_of({}) is None


@pytest.mark.parametrize(("share", "why"), [(math.inf, "bins of loss"), (0.0, "too short for the first")])
def test_a_run_that_ends_before_its_first_forecast_says_why(
    share: float, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasting, "SHARE", share)
    _, told = train(tmp_path, last=120, total_steps=120)
    (line,) = about(told)
    assert line.startswith("isoflop: the run ended before there was a forecast of its final loss. ") and why in line
