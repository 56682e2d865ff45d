"""Faults and healthy runs of kinds that strangers train: what is reported, what is no fault, and in which unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import isoflop
from isoflop.advice import (
    RULES,
    Advice,
    Adviser,
    Evaluated,
    Expected,
    Missing,
    Reason,
    Severity,
    Situation,
    Thresholds,
)
from isoflop.advice.run_state import sized
from isoflop.forecast import LrPlan, NoForecast, OnlineForecaster, Refusal, forecast_of
from isoflop.live.run_info import steps_of_epoch
from isoflop.record.task import Task

NAMELESS = Task(modality="other")
"""Layers in a row: their loss may be a classifier's, an adversary's or a policy's."""
THRESHOLDS = Thresholds()
FALLING = [(10 * i, 2.5 + 20 / (i + 4)) for i in range(1, 51)]


def judged(name: str, **known: Any) -> Any:
    losses = known.pop("losses", FALLING)
    run = {"step": losses[-1][0], "loss": losses[-1][1], "losses": losses, "total_steps": 1000, "warmup_steps": 0}
    return RULES[name](Situation(**{**run, **known}), THRESHOLDS)


class Net(nn.Sequential):
    """Two layers on vectors."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def trained(folder: Path, act: Any, steps: int = 400, loss: Any = None, **options: Any) -> Any:
    """A plain loop of `steps`; `act(optimizer, step)` takes the place of the optimizer's step."""
    torch.manual_seed(0)
    net, told = Net(), []
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    options = {"total_steps": steps, "log_every": 10, "on_advice": told.append, **options}
    monitor = isoflop.Monitor(net, optimizer=optimizer, record_dir=folder, **options)
    for step in range(1, steps + 1):
        x = torch.randn(16, 4)
        found = nn.functional.cross_entropy(net(x), x[:, :3].argmax(1))
        found.backward()
        act(optimizer, step)
        optimizer.zero_grad()
        monitor.step(found.detach() if loss is None else loss(step, found.item()))
        if monitor.should_stop:
            break
    monitor.close()
    return monitor, told


def stepped(optimizer: Any, step: int) -> None:
    optimizer.step()


# -- weights ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("from_step", [1, 200])
def test_steps_that_are_not_made_are_reported(from_step: int, tmp_path: Path) -> None:
    """A forgotten `optimizer.step()`, or a scaler that skips all steps from some step on."""
    _, told = trained(tmp_path, lambda optimizer, step: optimizer.step() if step < from_step else None)
    found = [advice for advice in told if advice.reason is Reason.UNCHANGED]
    assert len(found) == 1 and found[0].step <= from_step + 150 and not found[0].stops
    assert "No weight of the model has changed in" in found[0].what


def test_a_loss_that_falls_is_learnt_somewhere() -> None:
    """By weights that are not of this model, or a replayed curve."""
    level = [(10 * i, 2.5 + 0.03 * math.sin(7 * i)) for i in range(1, 60)]
    falls = [(step, loss + 20 / (step / 10 + 4)) for step, loss in level]
    assert judged("the weights", losses=level, unchanged_since=200) is not None
    assert judged("the weights", losses=falls[:30], unchanged_since=50) is None


def past_versions(optimizer: Any, step: int) -> None:
    """As kernels of others write: `data` counts up no version."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.data -= 1e-2 * parameter.grad


@pytest.mark.parametrize("act", [stepped, past_versions])
def test_weights_that_change_are_seen_to(act: Any, tmp_path: Path) -> None:
    _, told = trained(tmp_path, act)
    assert told == []


# -- losses that are no numbers ---------------------------------------------------------------------------------------
def test_batches_without_a_loss_that_the_loop_skips_end_no_run(tmp_path: Path) -> None:
    """Every seventh batch is NaN, so is each interval's plain mean; weights and other losses are fine."""
    lost = lambda step, loss: torch.tensor(math.nan if step % 7 == 0 else loss)  # noqa: E731
    monitor, _ = trained(tmp_path, stepped, loss=lost, on_advice="stop")
    assert monitor.steps == 400 and monitor.advice == ()
    monitor, _ = trained(tmp_path / "all", stepped, loss=lambda step, loss: math.nan, on_advice="stop")
    assert monitor.steps == 30 and monitor.should_stop


# -- what may rise ----------------------------------------------------------------------------------------------------
RISEN = [*FALLING, *((510 + 10 * i, 4.6 + 0.001 * (-1) ** i) for i in range(30))]


def test_a_rise_is_a_divergence_where_the_loss_is_known_to_fall() -> None:
    told = judged("divergence", losses=RISEN)
    assert told.stops and told.severity is Severity.CRITICAL and "The loss diverges: 4.599" in told.what
    assert "nats per token" in told.what


@pytest.mark.parametrize("task", [NAMELESS, Task(objective="headless"), Task(modality="image")])
def test_a_rise_of_an_unknown_loss_stops_nothing_and_has_no_unit(task: Task) -> None:
    """A generator's against its discriminator, values whose targets grow, a term whose weight grows."""
    told = judged("divergence", losses=RISEN, task=task)
    assert not told.stops and told.severity is Severity.INFO
    assert "The loss has risen" in told.what and "if this loss may rise" in told.do and "nats" not in str(told)
    part = [*FALLING, *((510 + 10 * i, 3.5 + 0.001 * (-1) ** i) for i in range(30))]
    assert judged("divergence", losses=part, task=task) is None and judged(
        "divergence", losses=part
    )  # a sixth of the way
    exploded = [*FALLING, *((510 + 10 * i, 5e4) for i in range(30))]
    assert judged("divergence", losses=exploded, task=task).stops


def test_harder_data_that_is_mixed_in_slowly_stops_nothing() -> None:
    """23% over 400 steps, then as before; a loss that goes a third of the way back to its first one is lost."""
    mixed = [*FALLING, *((510 + 10 * i, FALLING[-1][1] * (1 + 0.23 * min(i / 40, 1))) for i in range(60))]
    told = judged("divergence", losses=mixed)
    assert told.severity is Severity.WARNING and not told.stops and "if the data has changed there" in told.do


def test_fine_tuning_whose_data_become_harder_stops_nothing() -> None:
    losses = [(10 * i, 0.9 + 0.4 / i) for i in range(1, 51)] + [(510 + 10 * i, 1.2) for i in range(30)]
    assert not judged("divergence", losses=losses, task=Task(start="finetuning")).stops


def test_a_finding_that_comes_and_goes_is_not_given_again_as_it_worsens() -> None:
    """Once within a tenth of the run, however often it turns from a warning to a critical one and back."""
    adviser, told = Adviser(), []
    for step in range(10, 1000, 10):
        level = 4.9 if step % 40 < 30 else 2.5
        told += adviser.log(
            Situation(step=step, total_steps=10_000, loss=2.5 + 20 / (step / 10 + 4) if step < 500 else level)
        )
    assert len([advice for advice in told if advice.reason is Reason.DIVERGING]) <= 1


# -- nothing is learnt ------------------------------------------------------------------------------------------------
FLAT = [(10 * i, math.log(10) + 0.002 * math.sin(9 * i)) for i in range(1, 31)]


@pytest.mark.parametrize(
    ("losses", "known", "severity"),
    [
        (FLAT, {"task": Task(objective="classification")}, Severity.WARNING),
        (FLAT, {"task": NAMELESS}, Severity.INFO),
        (FLAT, {"task": Task(objective="classification", start="finetuning")}, None),
        (FLAT, {"task": Task(objective="reinforcement")}, None),
        (FLAT, {"total_steps": 10_000}, None),  # it may come
        ([(step + 5000, loss) for step, loss in FLAT], {}, None),  # begun before
        (FALLING, {}, None),
        ([(10 * i, 2.3 + 0.2 * math.sin(9 * i)) for i in range(1, 31)], {}, None),  # too noisy to be known
    ],
)
def test_a_loss_that_never_fell(losses: Any, known: dict[str, Any], severity: Severity | None) -> None:
    """Dead units, labels of other rows, parameters that nobody trains."""
    told = judged("the beginning", losses=losses, **known)
    assert (told and told.severity) == severity


def test_a_loss_that_never_fell_is_not_called_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, stepped, steps=150, loss=lambda step, loss: 2.3)
    assert "loss (it ended at 2.300, where it began: 2.300)" in capsys.readouterr().out


def test_own_runs_that_say_too_little_are_not_asked_for() -> None:
    run = Situation(step=10, total_steps=1000, N=1e4, tokens=1e4, tokens_per_step=1e3)
    assert sized(run).endswith("history= takes your own runs of three sizes")
    assert sized(replace(run, own_flops=(1e9, 1e12))).endswith("; your own runs say too little")


def test_a_run_without_a_log_step_is_not_called_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, stepped, steps=3, total_steps=100_000, task="pretraining", num_params=10**9)
    end = capsys.readouterr().out
    assert "fine:" not in end and "not judged: size and batch (no log step came)" in end


def test_no_plateau_is_claimed_where_none_was_looked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without tokens there is no curve to hold the loss against."""
    trained(tmp_path, stepped)
    text = capsys.readouterr().out
    assert "fine: loss (no divergence)" in text and "a vocabulary" not in text and "its vocabulary" not in text


# -- epochs, targets, decay, resumes ----------------------------------------------------------------------------------
@pytest.mark.parametrize(("planned", "said"), [(3000, True), (1200, False), (90, False)])
def test_epochs_of_the_trainers_data_set(planned: int, said: bool) -> None:
    """30, 12 and less than one; the rows may be drawn anew each time, so that it is no warning."""
    known = {"step": 50, "total_steps": planned, "tokens": 5e6, "tokens_per_step": 1e5, "N": 1e6, "epoch_steps": 100}
    told = judged("the epochs", **known)
    assert bool(told) is said and (not said or told.severity is Severity.INFO)
    assert not said or ("30 epochs over 10M tokens of data" in told.what and "drawn anew" in told.do)
    assert judged("the epochs", **{**known, "unique_tokens": 1e9}) is None


def test_a_stream_has_no_epochs() -> None:
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(range(64))

        def __len__(self) -> int:
            return 64

    loader = torch.utils.data.DataLoader(list(range(64)), batch_size=8)
    assert steps_of_epoch(loader, 1) == 8 and steps_of_epoch(loader, 3) == 3
    for other in (torch.utils.data.DataLoader(Stream(), batch_size=8), [1, 2], None):
        assert steps_of_epoch(other, 1) is None


@pytest.mark.parametrize(("low", "plan", "said"), [(2.2, True, True), (1.5, True, False), (2.2, False, False)])
def test_a_target_that_even_a_wide_forecast_misses(low: float, plan: bool, said: bool) -> None:
    """Not by a rate to come that is assumed."""
    wide = forecast_of(2.5, 2.5 - low, level=0.8, step=1000, estimator="")
    rates = LrPlan.linear(1000, 1e-3, 10) if plan else None
    known = {"target_loss": 1.2, "forecast": NoForecast(Refusal.TOO_WIDE, {"half": 0.2, "most": 0.1}, wide)}
    told = judged("the target", rates=rates, **known)
    assert isinstance(told, Advice) is said and isinstance(told, Missing) is not said


@pytest.mark.parametrize(("loss", "said"), [(0.02, True), (0.4, False), (0.0, False), (-0.3, False)])
def test_a_loss_that_no_text_has(loss: float, said: bool) -> None:
    """Targets that are the inputs, or batches that come again."""
    told = judged("the level", loss=loss)
    assert bool(told) is said and judged("the level", loss=loss, task=Task(objective="classification")) is None
    assert not said or "0.020 nats per token" in told.what


@pytest.mark.parametrize(
    ("rate", "decay", "decoupled", "said"),
    [
        (1e-2, 10.0, True, True),
        (1e-3, 10.0, True, True),  # a small GPT ends at 4.8 with it, at 2.8 with 0.01
        (1e-2, 0.1, True, False),
        (3e-3, 3.2, True, False),
        (1e-2, 10.0, False, False),
    ],
)
def test_a_weight_decay_that_forgets_at_once(rate: float, decay: float, decoupled: bool, said: bool) -> None:
    told = judged("the weight decay", peak_rate=rate, weight_decay=decay, decoupled=decoupled)
    assert bool(told) is said and (not said or f"takes {rate * decay:.0%} off each weight at each step" in told.what)


@pytest.mark.parametrize(("after", "said"), [(3.6, True), (2.86, False)])
def test_a_resume_with_other_weights(after: float, said: bool) -> None:
    """Though the loss falls again and is no divergence."""
    new = [(510 + 10 * i, after - 0.01 * i) for i in range(4)]
    told = judged("the resume", losses=[*FALLING, *new], resumed_at=500)
    assert bool(told) is said and judged("the resume", losses=[*FALLING, *new]) is None
    later = [(800 + 10 * i, after) for i in range(4)]
    assert judged("the resume", losses=[*FALLING, *later], resumed_at=500) is None


def curve(steps: int, **faults: Any) -> tuple[OnlineForecaster, list[Any], Adviser]:
    """A planted curve under advice, with its batch, loss and rate by step."""
    adviser, rng, forecaster, told = Adviser(), np.random.default_rng(1), OnlineForecaster(N=1e8), []
    batch, more, rate = (faults.get(name, default) for name, default in FAULTS.items())
    tokens = 0.0
    for step in range(20, steps + 1, 20):
        tokens += 20 * batch(step)
        loss = 2 + 10 * step**-0.3 + more(step) + 0.01 * float(rng.normal())
        forecaster.add(step, tokens, rate(step), loss, 20)
        told += adviser.log(Situation(step=step, total_steps=steps, loss=loss), forecaster)
    return forecaster, told, adviser


FAULTS = {"batch": lambda step: 5e5, "more": lambda step: 0.0, "rate": lambda step: 1e-3}


def test_a_batch_that_shrinks_leaves_its_curve_unnamed() -> None:
    """The noise of a smaller batch raises the loss: that was the user's choice."""
    shrinks = {"more": lambda step: 0.15 * (1 - math.exp(-max(step - 3000, 0) / 100))}
    assert any(advice.reason is Reason.OFF_CURVE for advice in curve(4000, **shrinks)[1])
    told = curve(4000, **shrinks, batch=lambda step: 5e5 if step <= 3000 else 6e4)[1]
    assert not any(advice.reason is Reason.OFF_CURVE for advice in told)


def test_batches_that_come_again_lower_the_loss_below_its_curve() -> None:
    """A shard that is learnt by heart; not what an evaluation set confirms, a small fall, or a task of few classes."""
    repeats = {"more": lambda step: -1.2 * (1 - math.exp(-max(step - 3000, 0) / 400))}
    (told,) = (advice for advice in curve(4000, **repeats)[1])
    assert told.reason is Reason.BELOW_CURVE and told.severity is Severity.WARNING and not told.stops
    assert 3000 < told.step < 3400 and "the same batches come again" in told.do
    decays = {"rate": lambda step: 1e-3 * min(1.0, max(4000 - step, 0) / 1000)}
    small = {"more": lambda step: -0.12 * (1 - math.exp(-max(step - 3000, 0) / 400))}
    assert curve(4000)[1] == [] and curve(4000, **small)[1] == [] and curve(4000, **decays)[1] == []
    lower = Expected(3000, 3.0, (2.99, 2.98), 0.02, (2.7, 2.6), (0.01, 0.01))
    assert judged("the curve, from above", expected=[lower]) is not None
    assert judged("the curve, from above", expected=[lower], rate_stepped=True) is None
    assert judged("the curve, from above", expected=[lower], task=Task(objective="classification")) is None
    for later, found in ((2.75, False), (3.05, True)):
        points = {"val": [Evaluated(2900, 3.1), Evaluated(3900, later)]}
        assert (judged("the curve, from above", expected=[lower], evaluations=points) is not None) is found


STAY = {
    Reason.BELOW_CURVE: lambda step: -1.2 * (1 - math.exp(-max(step - 3000, 0) / 400)),
    Reason.PLATEAU: lambda step: 10 * 3000**-0.3 - 10 * step**-0.3 if step > 3000 else 0.0,
    Reason.OFF_CURVE: lambda step: 0.15 * (1 - math.exp(-max(step - 3000, 0) / 400)),
}


@pytest.mark.parametrize("reason", STAY)
def test_a_curve_that_was_left_is_not_joined_again_by_a_fit_of_the_fault(reason: Reason) -> None:
    """Fits from before the fault are kept as long as it lasts, four times as many steps here; and no longer."""
    over = {"more": lambda step: STAY[reason](step) if step < 6000 else 0.0}
    for faults, stands in (({"more": STAY[reason]}, True), (over, False)):
        _, told, adviser = curve(12_000, **faults)
        assert reason in {advice.reason for advice in told}
        assert (reason in {advice.reason for advice in adviser.current}) is stands, stands
        assert (reason in {advice.reason for advice in adviser.gone}) is not stands, stands


def test_a_learning_rate_of_zero_ends_no_advice() -> None:
    """Without progress there is no slope to fit."""
    rests = {"more": lambda step: 10 * 1000**-0.3 - 10 * step**-0.3 if step > 1000 else 0.0}
    forecaster, *_ = curve(6000, **rests, rate=lambda step: max(1 - step / 1000, 0.0) * 1e-3)
    found = forecaster.forecast(LrPlan(np.array([0.0, 1000.0, 6000.0]), np.array([1e-3, 0.0, 0.0])))
    assert isinstance(found, NoForecast) and found.reason is Refusal.STUCK


# -- a loss that explodes, stays up, or is on its way back ------------------------------------------------------------
EXPLODES = {"steps": 300, "total_steps": 400, "on_advice": "stop"}


def explodes(step: int, loss: float) -> float:
    """A first loss of ln V, then far above it, without NaN, and slowly back."""
    return 5.5 if step <= 6 else min(5.5 + 3 * (step - 6), 400.0) - max(step - 150, 0)


@pytest.mark.parametrize(("log_every", "by"), [(50, 150), (10, 40), (2, 32)])
def test_an_explosion_in_the_first_steps_ends_the_run(log_every: int, by: int, tmp_path: Path, capsys: Any) -> None:
    options: Any = {**EXPLODES, "log_every": log_every, "task": "pretraining"}
    monitor, _ = trained(tmp_path, stepped, loss=explodes, **options)
    assert monitor.should_stop and monitor.steps <= by
    end = " ".join(capsys.readouterr().out.split())
    assert (
        "Verdict: the loss ended at " in end
        and "above its best of " in end
        and "still active at the end: the loss div" in end
    )
    assert "fine: loss" not in end and "plateau" not in end


def early(now: Sequence[float], first: float = 5.5, every: int = 10, **known: Any) -> Any:
    return judged("divergence", losses=[(every * (i + 1), loss) for i, loss in enumerate([first, *now])], **known)


def test_a_loss_far_above_its_first_one_is_lost_however_few_log_steps_there_are() -> None:
    told = early([22.0, 84.0, 193.0])
    assert told.stops and told.severity is Severity.CRITICAL and "The loss diverges: 84.000 nats" in told.what
    assert early([22.0, 84.0, 193.0], warmup_steps=100).stops
    assert early([12.0, 13.0, 12.5]).stops and early([60.0, 70.0, 90.0], every=1).stops
    assert early([12.0, 13.0, 12.5], every=1) is None  # the first steps of a high rate without a warm-up
    assert early([22.0, 84.0]) is None and early([9.0, 9.0, 10.0]) is None
    again = early([100.0, 480.0, 110.0, 100.0, 90.0])
    assert not again.stops and "rose and falls again" in again.what


@pytest.mark.parametrize(
    "task", [NAMELESS, Task(start="finetuning"), Task(objective="regression"), Task(objective="headless")]
)
def test_a_first_loss_that_may_be_a_lucky_one_is_no_measure(task: Task) -> None:
    assert early([2.0, 2.5, 2.2], first=0.1, task=task) is None and early([22.0, 34.0, 23.0], first=0.1, task=task)
    assert early([9.0, 9.0, 9.0], first=0.1, task=Task(objective="reinforcement")) is None


def test_the_scatter_of_a_rise_hides_no_rise() -> None:
    """Level with level, but each log step of the rise far from the next."""
    noisy = [*FALLING, *((510 + 10 * i, 4.6 + 1.2 * (-1) ** (i // 2)) for i in range(30))]
    assert judged("divergence", losses=noisy) is not None


def test_a_fault_that_stays_is_not_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rise near the margin, and one that came most of its way back: both are advised on once and stand."""
    wave = lambda step: 0.05 * math.sin(0.9 * step)  # noqa: E731
    for name, risen in (("labels", lambda s: 0.5 - 0.1 * s / 400), ("back", lambda s: 0.4 + 900 * math.exp(-s / 40))):
        level = lambda step, loss: 2 + 40 / (step + 10) + wave(step) + (risen(step - 400) if step > 400 else 0)  # noqa: B023, E731
        _, told = trained(tmp_path / name, stepped, steps=800, loss=level, task="pretraining")
        end = capsys.readouterr().out
        assert len([advice for advice in told if advice.reason is Reason.DIVERGING]) == 1, name
        assert "still active at the end: the loss has risen." in end and "no longer active" not in end
        assert "the loss ended at 2." in end and "above its best of 2.1" in end and "fine: loss" not in end
