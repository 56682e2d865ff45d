"""Advice in a running Monitor: in the terminal, the record and TensorBoard, acted on, and learnt from earlier runs."""

from __future__ import annotations

import json
import logging
import math
import random
import re
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as package
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import isoflop
from isoflop.advice import Advice, Adviser, Reason, Severity, Situation
from isoflop.advice.adviser import Track
from isoflop.fit import learn_from
from isoflop.fit.own_runs import frontier_of
from isoflop.forecast import Forecast
from isoflop.lightning import IsoFLOPMonitor
from isoflop.live import advice as advising
from isoflop.record import Point, RecordLog, Task, read_runs
from isoflop.transformers import IsoFLOPCallback
from tiny import Rows, TinyLM, batches, model
from trainers import LIGHTNING_NOISE, hf_trainer, lightning_module, lightning_trainer, plain_loop
from workers import run as on_ranks

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_NOISE]


@pytest.fixture(autouse=True)
def judged_at_every_log_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What trains here takes milliseconds, of which a thousandth is nothing."""
    monkeypatch.setattr(advising, "SHARE", math.inf)
    monkeypatch.setattr("isoflop.live.forecast.SHARE", math.inf)


def planted(step: int) -> float:
    return 2.5 + 1.2 * (step / 100) ** -0.5 + 0.004 * float(np.random.default_rng(step).normal())


def train(folder: Path, *, last: int = 2000, first: int = 1, state: Any = None, **options: Any) -> isoflop.Monitor:
    """A run of planted losses at 20 tokens per parameter and 3e17 FLOPs, one log step in 20."""
    N = options.get("num_params", 50_000_000)
    options = {"num_params": N, "flops_per_token": 6.0 * N, "log_every": 20, "record_dir": folder, **options}
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=options.pop("lr", 1e-3))
    total = options.pop("total_steps", 2000)
    options.setdefault("lr_plan", "constant")
    loss = options.pop("loss", planted)
    monitor = isoflop.Monitor(None, optimizer=optimizer, total_steps=total, **options)
    if state is not None:
        monitor.load_state_dict(state)
    for step in range(first, last + 1):
        monitor.step(loss(step), tokens=N // 100)
        if monitor.should_stop:
            break
    return monitor


def advice_lines(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("isoflop-*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["event"] == "advice"]


def texts(folder: Path) -> list[str]:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors("isoflop/advice/text_summary")]


# -- where it appears ------------------------------------------------------------------------------------------------
def test_it_is_said_once_recorded_and_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Advice] = []
    monitor = train(tmp_path, target_loss=2.4, on_advice=told.append)
    standing = {advice.reason for advice in monitor.advice}
    monitor.close()
    said = [record.getMessage() for record in caplog.records if "will not reach" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("isoflop: The run will not reach the target of 2.400 nats per token")
    assert [advice.reason for advice in told] == [Reason.FRONTIER, Reason.TARGET]
    assert standing == {Reason.FRONTIER, Reason.TARGET}
    assert [line["reason"] for line in advice_lines(tmp_path)] == ["frontier", "target"]
    recorded = advice_lines(tmp_path)[1]
    assert recorded["step"] < 1000 and recorded["severity"] == "warning"
    assert recorded["numbers"][0]["low"] < recorded["numbers"][0]["value"] < recorded["numbers"][0]["high"]
    shown = texts(tmp_path)
    assert len(shown) == 2 and "**Do:** stop and change the plan" in shown[1]
    assert read_runs(tmp_path)[0].problems == ()


def test_a_healthy_run_prints_three_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.WARNING, "isoflop")
    logging.getLogger("isoflop").setLevel(logging.INFO)
    try:
        with train(tmp_path, target_loss=2.9) as monitor:
            assert {advice.reason for advice in monitor.advice} == {Reason.FRONTIER}
    finally:
        logging.getLogger("isoflop").setLevel(logging.NOTSET)
    assert not caplog.records
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if not line.startswith("step ")]
    assert len(lines) <= 3, lines
    (advice,) = read_runs(tmp_path)[0].advice
    assert advice["what"].startswith("20 tokens per parameter: N = 50M with the head, D = 1B tokens")
    assert "isoflop: the run is over: 1B tokens through 50M parameters (N with the head), 3e+17 FLOPs stated" in printed
    assert "isoflop: training from scratch: a model with AdamW" in printed
    fine = "size (20 tokens per parameter), learning rate (peak 0.001), loss (no divergence, no plateau)"
    batch = "batch (the gradient noise scale was not measured, see docs/noise-scale.md)"
    assert f"Verdict: fine: {fine}; target of 2.900 reached: 2.773; not judged: {batch}." in printed


def test_a_loop_on_one_device_prints_three_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """No peak of a CPU, no noise scale of one micro-batch, no forecast of so few steps: none has a line of its own."""
    net, logger = model(), logging.getLogger("isoflop")
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    logger.setLevel(logging.INFO)
    try:
        with isoflop.Monitor(net, optimizer=optimizer, record_dir=tmp_path, log_every=4, total_steps=32) as monitor:
            plain_loop(net, batches(Rows(4 * 32), 4), monitor=monitor, optimizer=optimizer)
    finally:
        logger.setLevel(logging.NOTSET)
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("step ")]
    assert not caplog.records and len(lines) <= 3, lines
    assert "has no parts to compare" in lines[0] and "the gradient noise scale was not measured" in lines[-1]


def test_what_a_small_short_run_is_not_judged_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, num_params=50_000, last=200, total_steps=200).close()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "the run is over" in line]
    assert "Verdict: fine: loss (no divergence, no plateau); not judged: size and learning rate (published" in line
    assert "history=" in line and "batch (" in line


@pytest.mark.parametrize(("embedding", "judged"), [(1e-3, True), (0.3, False)])
def test_a_rate_of_one_part_is_not_held_against_recipes(tmp_path: Path, embedding: float, judged: bool) -> None:
    """As some recipes have it: the table's rate is hundreds of times the others'."""
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": [parameters[0]], "lr": embedding}, {"params": [parameters[1]]}], lr=1e-3)
    monitor = isoflop.Monitor(
        None, optimizer=optimizer, total_steps=2000, num_params=50_000_000, flops_per_token=3e8, log_every=20,
        record_dir=tmp_path, lr_plan="constant")  # fmt: skip
    told: list[str] = []
    monitor.run.say = told.append
    for step in range(1, 101):
        monitor.step(planted(step), tokens=500_000)
    monitor.close()
    assert not any("learning rate" in each.reason.value for each in monitor.advice)
    assert ("learning rate (no one peak" not in told[-1]) is judged, told


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"n_layer": 1, "n_head": 2, "n_embd": 128, "vocab_size": 64}, "1 layer: models of fewer than 2 deviate"),
        ({"n_layer": 2, "n_head": 2, "n_embd": 64, "vocab_size": 64}, None),
        ({"n_layer": 2, "n_embd": 64}, None),
    ],
)
def test_an_unusual_shape_is_noted_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, int], said: str | None
) -> None:
    net = model()
    net.config = config  # type: ignore[assignment]
    logging.getLogger("isoflop").setLevel(logging.INFO)
    try:
        with isoflop.Monitor(net, record_dir=tmp_path, log_every=2, total_steps=4) as monitor:
            for batch in batches(Rows(16), 4):
                loss = net(**batch)["loss"]
                loss.backward()
                monitor.step(loss.detach())
    finally:
        logging.getLogger("isoflop").setLevel(logging.NOTSET)
    printed = capsys.readouterr().out
    assert "isoflop: the run is over" in printed
    assert ("the model's shape, not judged" in printed) == (said is not None)
    assert said is None or said in printed


def test_after_a_resume_it_is_not_said_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitor = train(tmp_path, last=1000, target_loss=2.4)
    state = json.loads(json.dumps(monitor.state_dict()))
    assert any("will not reach" in record.getMessage() for record in caplog.records)
    caplog.clear()
    again = train(tmp_path, first=1001, last=1500, state=state, target_loss=2.4)
    assert not any("will not reach" in record.getMessage() for record in caplog.records)
    assert Reason.TARGET in {advice.reason for advice in again.advice}


def test_a_resume_with_another_planned_end_is_judged_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = train(tmp_path, last=2000, target_loss=2.4)
    state = json.loads(json.dumps(monitor.state_dict()))
    caplog.clear()
    capsys.readouterr()
    again = train(tmp_path, first=2001, last=2020, total_steps=4000, state=state, target_loss=2.4)
    said = next(advice.what for advice in again.advice if advice.reason is Reason.FRONTIER)
    assert said.startswith("40 tokens per parameter: N = 50M with the head, D = 2B tokens")
    assert Reason.TARGET not in {advice.reason for advice in again.advice}
    for step in range(2021, 4001):
        again.step(planted(step), tokens=500)
        forecast = again.forecast
        assert not isinstance(forecast, Forecast) or forecast.step == 4000
    assert [r.getMessage().splitlines()[0] for r in caplog.records if "will not reach" in r.getMessage()]
    again.close()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "forecast at step" in line]
    assert int(line.split("step ")[1].split(":")[0].replace(",", "")) >= 2000
    assert "final loss 2.69" in line  # of its own last 5%, not those of the old plan's too


def test_its_own_record_is_no_earlier_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, last=100, history=tmp_path).close()
    assert "earlier runs left out" not in capsys.readouterr().out


def test_an_evaluation_that_rises_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parameters: dict[str, Any] = {"num_params": 50_000, "flops_per_token": 3e5, "log_every": 20}
    monitor = isoflop.Monitor(None, record_dir=tmp_path, total_steps=2000, unique_tokens=10_000, **parameters)
    for step in range(1, 1001):
        monitor.step(planted(step), tokens=500)
        if step % 100 == 0:
            monitor.evaluate("held out", 3.0 - 0.1 * step / 100 if step <= 300 else 2.7 + 0.05 * step / 100)
    assert Reason.OVERFITTING in {advice.reason for advice in monitor.advice}
    monitor.close()
    printed = capsys.readouterr().out
    assert "advice still active at the end: " in printed and "overfitting" in printed
    assert "loss (no divergence" not in printed  # fine it is not


def test_a_jump_without_a_forecast_is_not_called_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the weights drawn anew: it comes back too soon for advice, and no fit of a curve had time."""
    monkeypatch.setattr(advising, "FREE", -math.inf)

    def jumps(step: int) -> float:
        return planted(step) + (1.2 * math.exp((2500 - step) / 20) + 0.1 if step > 2500 else 0.0)

    train(tmp_path, loss=jumps, last=2800, total_steps=3500).close()
    printed = capsys.readouterr().out
    assert "loss (no divergence" not in printed and "advice" not in printed, printed
    assert "loss (it rose by " in printed and "where the learning rate does not explain it" in printed


def test_a_run_that_an_error_ends_is_not_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(KeyError),
        isoflop.Monitor(None, record_dir=tmp_path, total_steps=600, num_params=50_000) as monitor,
    ):
        for step in range(1, 101):
            monitor.step(planted(step), tokens=500)
        raise KeyError("a user's")
    assert "isoflop: the run was interrupted at step 100 of 600: 50k tokens" in capsys.readouterr().out


def test_an_evaluation_behind_the_last_step_is_judged_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The third rise comes when training has ended, as the last evaluation of most runs does."""
    monitor = isoflop.Monitor(
        None, record_dir=tmp_path, total_steps=600, num_params=50_000, flops_per_token=3e5, log_every=20
    )
    for step in range(1, 601):
        monitor.step(planted(step), tokens=500)
        if step % 100 == 0:
            monitor.evaluate("held out", (3.0, 2.8, 2.6, 2.7, 2.9, 3.2)[step // 100 - 1])
    assert Reason.OVERFITTING not in {advice.reason for advice in monitor.advice}
    monitor.close()
    printed = capsys.readouterr().out
    assert "advice still active at the end: " in printed and "loss (no divergence" not in printed
    assert "overfitting" in [advice["reason"] for advice in isoflop.read_runs(tmp_path)[0].advice]


def closing(capsys: pytest.CaptureFixture[str]) -> str:
    """The lines of the run's end."""
    printed = capsys.readouterr().out
    return printed[printed.index("isoflop: the run is over") :]


def test_a_rate_that_was_warned_about_is_not_fine_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, lr=0.06).close()
    end = closing(capsys)
    assert "advice still active at the end: learning rate far above what works" in end
    assert "learning rate (peak" not in end and "3e+17 FLOPs stated" in end


def test_a_run_that_ends_in_nan_is_not_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = train(tmp_path, last=1000, loss=lambda step: planted(step) if step < 1950 else math.nan)
    monitor.evaluate("val", 2.9)
    for step in range(1001, 2001):
        monitor.step(planted(step) if step < 1975 else math.nan, tokens=500_000)
    monitor.evaluate("val", math.nan)
    monitor.close()
    end = closing(capsys)
    assert "val nan at step 2,000 (2.900 at step 1,000)" in end and "no divergence" not in end
    assert "loss (the last training loss is no finite number)" in end and "final loss" not in end


def test_losses_of_one_step_have_a_level_without_a_warning() -> None:
    """A counter that stands still, as under a trainer that repeats a step; warnings are errors here."""
    track = Track()
    for loss in (2.51, 2.5, 2.49, 2.5, 2.5):
        track.add(100, loss, None)
    assert track.level(100) == pytest.approx(2.5)


def test_a_divergence_that_went_back_is_in_the_last_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, loss=lambda step: planted(step) + (3.0 if 600 < step <= 800 else 0.0)).close()
    end = closing(capsys)
    assert re.search(r"advice no longer active at the end: .*the loss diverges \(step [67]\d\d\)", end)
    assert "no divergence" not in end


@pytest.mark.parametrize(
    ("target", "said"), [(1.0, "target of 1.000 not reached: 3."), (4.0, "target of 4.000 reached: 3.")]
)
def test_the_end_says_whether_the_target_was_reached(
    target: float, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, num_params=50_000, last=200, total_steps=200, target_loss=target).close()
    assert said in closing(capsys)


@pytest.mark.parametrize(("steps", "log_every", "compared"), [(150, 10, True), (50, 10, False), (3000, 20, True)])
def test_an_evaluation_beside_the_training_loss_of_its_moment(
    steps: int, log_every: int, compared: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first descent, from 5.2 to 2.7 nats, is no part of an offset of +.04."""
    parameters: dict[str, Any] = {"num_params": 50_000, "flops_per_token": 3e5, "log_every": log_every}
    monitor = isoflop.Monitor(None, record_dir=tmp_path, total_steps=steps, **parameters)
    noise = random.Random(1)
    for step in range(1, steps + 1):
        loss = 2.2 + 2.7 * math.exp(-step / 12) + 1.2 * step**-0.3
        monitor.step(loss + noise.gauss(0, 0.01), tokens=500)
        if step % 50 == 0:
            monitor.evaluate("val", loss + 0.04)
    offset = monitor.scalars.get("isoflop/offset/val")
    monitor.close()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "the run is over" in line]
    if not compared:
        assert offset is None and f"val {loss + 0.04:.3f} at step 50." in line
        return
    found = re.search(r"val (\S+) \((\S+) above the training loss of (\S+)\)", line)
    assert found is not None and float(found[1]) == round(loss + 0.04, 3)
    assert abs(float(found[2]) - 0.04) < 0.025 and abs(float(found[3]) - loss) < 0.025
    assert (offset is None) if steps < 200 else abs(offset - 0.04) < 0.01


def test_an_evaluations_ladder_is_not_held_against_the_training_loss() -> None:
    """With `fit_on="eval/…"` the earlier sizes' losses are of another kind."""
    adviser = Adviser()
    put_at = Forecast(1.0, 0.99, 1.01, 0.01, 0.8, 2000, "joint")

    def log(step: int, of: str) -> list[Advice]:
        run = Situation(step=step, total_steps=2000, loss=planted(step), forecast_of=of)
        return adviser.log(run, ladder=lambda step: put_at)

    assert not any(log(step, "eval/val") for step in range(20, 1000, 20))
    said = [advice.reason for step in range(1000, 2000, 20) for advice in log(step, "train")]
    assert said == [Reason.OFF_CURVE]


@pytest.mark.parametrize(("off", "said"), [(0.0, []), (0.15, [Reason.OFF_CURVE])])
def test_a_ladder_is_asked_for_the_steps_that_the_mean_is_of_and_not_for_a_runs_beginning(
    off: float, said: list[Reason]
) -> None:
    """A mean of five log steps lags behind a steep fall; and at the beginning a ladder lets expect too little."""
    adviser, asked = Adviser(), []

    def curve(step: float) -> float:
        return 1.5 + 20 / step**0.6

    def ladder(step: int) -> Forecast:
        asked.append(step)
        loss = curve(step) * (0.9 if step < 600 else 1.0)
        return Forecast(loss, loss - 0.03, loss + 0.03, 0.02, 0.8, step, "joint")

    found = []
    for step in range(100, 3001, 100):
        run = Situation(step=step, total_steps=3000, loss=curve(step) + off)
        found += adviser.log(run, ladder=ladder)
    assert [advice.reason for advice in found] == said
    assert min(asked) >= 600


# -- acting on it ----------------------------------------------------------------------------------------------------
def test_a_plain_loop_is_asked_to_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitor = train(tmp_path, loss=lambda step: math.nan if step > 500 else planted(step), on_advice="stop")
    assert monitor.should_stop and monitor.steps == 560  # the third log step without a number
    assert monitor.advice[0].severity is Severity.CRITICAL
    assert "monitor.should_stop is now True, break out of the loop (the loss diverges)" in caplog.text
    monitor.close()
    (run,) = read_runs(tmp_path)
    assert run.status == "interrupted"


def test_a_loop_that_goes_on_to_its_planned_end_is_completed(tmp_path: Path) -> None:
    monitor = isoflop.Monitor(None, record_dir=tmp_path, total_steps=60, log_every=5, on_advice="stop")
    for step in range(1, 61):
        monitor.step(math.nan if step > 10 else planted(step), tokens=500)
    assert monitor.should_stop
    monitor.close()
    (run,) = read_runs(tmp_path)
    assert run.status == "completed"


def test_a_function_may_end_the_run(tmp_path: Path) -> None:
    monitor = train(tmp_path, on_advice=lambda advice: "stop" if advice.reason is Reason.FRONTIER else None)
    assert monitor.should_stop and monitor.steps == 20


def test_what_a_function_answers_can_be_anything(tmp_path: Path) -> None:
    monitor = train(tmp_path, last=100, on_advice=lambda advice: np.array(["stop", "go"]))
    assert not monitor.should_stop and monitor.guard.aside.keys() == {"on_advice"}


def test_warn_never_stops(tmp_path: Path) -> None:
    assert not train(tmp_path, loss=lambda step: math.nan, last=500).should_stop


class Diverges(TinyLM):
    """NaN from the fifth training step on."""

    steps = 0

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> dict[str, torch.Tensor]:
        out = super().forward(input_ids, attention_mask, labels)
        if self.training and torch.is_grad_enabled() and not out["logits"].is_meta:
            self.steps += 1
            if self.steps > 4 and "loss" in out:
                out["loss"] = out["loss"] * math.nan
        return out


def test_lightning_stops_and_keeps_min_steps(tmp_path: Path) -> None:
    for minimum, expected in ((None, 10), (16, 16)):
        watcher = IsoFLOPMonitor(on_advice="stop")
        trainer = lightning_trainer(
            package, tmp_path / str(minimum), callbacks=[watcher], min_steps=minimum, min_epochs=0
        )
        torch.manual_seed(0)
        trainer.fit(lightning_module(package, Diverges()), batches(Rows(192), 8))
        assert watcher.monitor is not None and not watcher.guard.aside
        assert trainer.global_step == expected


def test_lightning_saves_the_step_it_stops_at(tmp_path: Path) -> None:
    saver = package.callbacks.ModelCheckpoint(tmp_path / "c", every_n_train_steps=1000)
    trainer = lightning_trainer(
        package, tmp_path, callbacks=[IsoFLOPMonitor(on_advice="stop"), saver], enable_checkpointing=True
    )
    torch.manual_seed(0)
    trainer.fit(lightning_module(package, Diverges()), batches(Rows(192), 8))
    saved = [path.name for path in (tmp_path / "c").iterdir()]
    assert saved == [f"stopped-step={trainer.global_step}.ckpt"]


def test_hugging_face_stops_and_saves(tmp_path: Path) -> None:
    watcher = IsoFLOPCallback(on_advice="stop")
    torch.manual_seed(0)
    trainer = hf_trainer(Diverges(), tmp_path, Rows(192), [watcher], save_strategy="steps", save_steps=1000)
    trainer.train()
    assert not watcher.guard.aside
    assert trainer.state.global_step == 10
    assert (tmp_path / "checkpoint-10").is_dir()


def stops_at(folder: Path) -> int:
    net = model()
    # one rank alone has the bad loss
    bad = torch.distributed.get_rank() == 1
    monitor = isoflop.Monitor(net, record_dir=folder, log_every=2, total_steps=50, on_advice="stop")
    for step, batch in enumerate(batches(Rows(200), 4)):
        loss = net(**batch)["loss"]
        loss.backward()
        monitor.step(loss.detach() * (math.nan if bad and step >= 4 else 1.0))
        if monitor.should_stop:
            break
    return monitor.steps


def test_two_ranks_stop_at_the_same_step(tmp_path: Path) -> None:
    assert on_ranks(stops_at, tmp_path, ranks=2) == [10, 10]


# -- earlier runs ----------------------------------------------------------------------------------------------------
def earlier(folder: Path, *, ratio: float = 5.0, budgets: tuple[float, ...] = (1e12, 4e12)) -> Path:
    """IsoFLOP sets whose least loss lies at `ratio` tokens per parameter."""
    for C in budgets:
        best = math.sqrt(C / 6 / ratio)
        for k in (0.25, 0.5, 1.0, 2.0, 4.0):
            N, loss = round(best * k), 2 + 3 * (C / 1e12) ** -0.1 + 0.1 * math.log(k) ** 2
            write(folder, f"C{C / 1e12:g}e12-k{k}", N, round(C / 6 / N), loss)
    return folder


def write(
    folder: Path,
    name: str,
    N: int,
    D: int,
    loss: float,
    status: Any = "completed",
    flops: int | None = None,
    **header: Any,
) -> None:
    parameters = {"non_embedding_with_head": N, **header.pop("parameters", {})}
    log = RecordLog.create(folder, name, {"name": name, "parameters": parameters, **header})
    log.point(Point(step=100, tokens=D, padding=0, losses={"train": loss}, flops=flops))
    log.end(100, status)
    log.close()


def test_the_users_own_sizes_move_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # of four budgets: ten runs of two leave the prior of 20 at the target some weight (12.4 tokens per parameter)
    runs = earlier(tmp_path / "runs", ratio=10.0, budgets=(1e12, 1.6e12, 2.5e12, 4e12))
    own = learn_from(read_runs(runs))
    assert own.line is not None
    planted = 4e12 / 6 / math.exp(2 * own.line.at(4e12)[0])  # tokens per parameter, 20 without the runs
    assert planted == pytest.approx(10, rel=0.2)
    logging.getLogger("isoflop").setLevel(logging.INFO)
    try:
        # 20 tokens per parameter are twice what is best here: said to be off, by runs of one's own
        monitor = train(tmp_path / "new", history=runs, num_params=50_000)
        monitor.close()
    finally:
        logging.getLogger("isoflop").setLevel(logging.NOTSET)
    assert "Based on: 20 runs of your own" in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path / "new"))
    events.Reload()
    drawn = events.Scalars("isoflop/1000log10C_frontier")
    assert drawn[0].step == 12_000 and drawn[-1].step == pytest.approx(12_602, abs=2)
    assert drawn[0].value == pytest.approx(5.0) and drawn[-1].value < 4.7
    assert monitor.scalars["isoflop/n_opt"] > 50_000


def test_what_is_unlike_is_left_out_with_the_reason(tmp_path: Path) -> None:
    runs = earlier(tmp_path)
    write(runs, "killed", 1000, 1000, 9.0, status="interrupted")
    write(runs, "bytes", 1000, 1000, 9.0, tokenizer="bytes")
    log = RecordLog.create(runs, "empty", {"name": "empty"})
    log.end(1, "completed")
    log.close()
    write(runs, "stopped", 1000, 1000, 9.0, planned={"steps": 200})
    write(runs, "experts", 1000, 1000, 9.0, parameters={"total": 8000, "active": 2000})
    write(runs, "me", 1000, 1000, 9.0)
    own = learn_from(read_runs(runs), tokenizer="gpt2", task=Task(), itself="me")
    assert len(own.points) == 10
    assert sorted(own.left_out) == [
        "bytes: another tokenizer (bytes, not gpt2)",
        "empty: it has no loss 'train' with its tokens",
        "experts: a mixture of experts, and this one not",
        "killed: it was interrupted",
        "stopped: it ended at step 100 of 200 planned",
    ]


def test_the_frontier_is_drawn_against_the_compute_that_was_measured(tmp_path: Path) -> None:
    for i in (1, 2):
        write(tmp_path, f"run{i}", 1000, 20_000 * i, 3.0 - 0.1 * i, flops=200_000_000 * i)
    own = learn_from(read_runs(tmp_path))
    assert frontier_of(own.points) == [(2e8, 2.9), (4e8, 2.8)]
    for i in (1, 2):
        write(tmp_path / "uncounted", f"run{i}", 1000, 20_000 * i, 3.0 - 0.1 * i)
    uncounted = learn_from(read_runs(tmp_path / "uncounted"))
    assert frontier_of(uncounted.points) == [(1.2e8, 2.9), (2.4e8, 2.8)]


def test_a_run_does_not_learn_from_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("isoflop").setLevel(logging.INFO)
    try:
        train(tmp_path, last=200, history=tmp_path)
    finally:
        logging.getLogger("isoflop").setLevel(logging.NOTSET)
    assert "left out" not in capsys.readouterr().out


def test_a_run_that_was_stopped_early_is_no_finished_one(tmp_path: Path) -> None:
    write(tmp_path, "cut", 1000, 5000, 3.0, planned={"steps": 200})
    write(tmp_path, "whole", 1000, 5000, 3.0, planned={"steps": 100})
    own = learn_from(read_runs(tmp_path))
    assert len(own.points) == 1 and own.left_out == ("cut: it ended at step 100 of 200 planned",)


def test_a_few_runs_of_one_size_say_nothing(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path, f"run{i}", 1000, 20_000, 3.0 + i)
    own = learn_from(read_runs(tmp_path))
    assert own.line is None and len(own.points) == 3


# -- what a plan is judged by ----------------------------------------------------------------------------------------
def test_steps_that_were_not_counted_leave_the_size_unjudged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """isoflop came into a run that was half done: the tokens before are not in its sums."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    options: dict[str, Any] = {"num_params": 50_000, "flops_per_token": 3e5, "log_every": 20, "record_dir": tmp_path}
    monitor = isoflop.Monitor(None, optimizer=torch.optim.SGD([parameter], lr=0.1), total_steps=2000, **options)
    monitor.expect(1000)
    for step in range(1001, 1101):
        monitor.step(planted(step), tokens=500)
    assert monitor.advice == () and "too large" not in caplog.text
    again = isoflop.Monitor(None, optimizer=torch.optim.SGD([parameter], lr=0.1), total_steps=2000, **options)
    again.load_state_dict(monitor.state_dict())
    for step in range(1101, 1201):
        again.step(planted(step), tokens=500)
    assert again.advice == () and "too large" not in caplog.text


def test_a_batch_that_grows_is_judged_again(tmp_path: Path) -> None:
    told: list[Advice] = []
    options: dict[str, Any] = {"num_params": 10**9, "flops_per_token": 6e9, "log_every": 20, "record_dir": tmp_path}
    monitor = isoflop.Monitor(None, total_steps=2000, on_advice=told.append, **options)
    for step in range(1, 1201):
        monitor.step(planted(step), tokens=10**6 if step <= 100 else 2 * 10**7)
    assert [advice.reason for advice in told] == [Reason.TOO_LARGE]
    assert [advice.reason for advice in monitor.advice] == [Reason.FRONTIER]  # taken back


@pytest.mark.parametrize("fit_on", ["train", "off", "eval/c4"])
def test_what_published_sweeps_do_not_know_is_not_judged_by_them(
    tmp_path: Path, fit_on: str, capsys: pytest.CaptureFixture[str]
) -> None:
    net = model()
    next(net.parameters()).requires_grad_(False)
    monitor = isoflop.Monitor(net, record_dir=tmp_path, log_every=2, total_steps=50, fit_on=fit_on)
    for batch in batches(Rows(32), 4):
        loss = net(**batch)["loss"]
        loss.backward()
        monitor.step(loss.detach())
    assert monitor.advice == ()
    monitor.close()
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "fine-tuning" in each]
    assert line.startswith("isoflop: fine-tuning")


def test_a_forecast_of_an_evaluation_loss_is_not_held_against_the_training_loss(tmp_path: Path) -> None:
    """The training loss lies 20% above what is evaluated: nothing has left its curve."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    options: dict[str, Any] = {"num_params": 50_000, "flops_per_token": 3e5, "log_every": 20, "record_dir": tmp_path}
    optimizer = torch.optim.AdamW([parameter], lr=1e-3)
    monitor = isoflop.Monitor(None, optimizer=optimizer, total_steps=2000, fit_on="eval/c4", **options)
    for step in range(1, 1501):
        monitor.step(1.2 * planted(step), tokens=500)
        if step % 20 == 0:
            monitor.evaluate("c4", planted(step))
        assert Reason.OFF_CURVE not in {advice.reason for advice in monitor.advice}
    assert monitor.forecast is not None


# -- the frontier by one's own runs ----------------------------------------------------------------------------------
def own_law(N: float, D: float) -> float:
    return 1.5 + 40 / N**0.34 + 130 / D**0.37


def ladder(folder: Path, budgets: tuple[float, ...]) -> Path:
    for C in budgets:
        for k in (0.25, 0.5, 1.0, 2.0, 4.0):
            N = round(math.sqrt(C / 6 / 20) * k)
            write(folder, f"C{C:.0e}-k{k}".replace("+", ""), N, round(C / 6 / N), own_law(N, C / 6 / N))
    return folder


def test_the_loss_is_held_against_the_law_of_ones_own_runs(tmp_path: Path) -> None:
    runs = ladder(tmp_path / "runs", (5e10, 2e11, 8e11))
    law = lambda step: own_law(5e4, 500 * step) + 0.02  # noqa: E731
    monitor = train(tmp_path / "new", history=runs, loss=law, num_params=50_000)
    C = 6 * 5e4 * 1e6
    N = np.geomspace(1e3, 1e7, 2000)
    least = float(own_law(N, C / 6 / N).min())  # type: ignore[arg-type, attr-defined]
    assert monitor.scalars["isoflop/frontier_loss"] == pytest.approx(least, abs=0.01)
    expected = monitor.scalars["isoflop/loss"] - monitor.scalars["isoflop/frontier_loss"]
    assert monitor.scalars["isoflop/excess_loss"] == pytest.approx(expected) and expected > 0.015


def test_there_is_no_frontier_loss_where_the_runs_do_not_tell(tmp_path: Path) -> None:
    few = ladder(tmp_path / "few", (2e11,))
    far = ladder(tmp_path / "far", (5e6, 2e7, 8e7))
    for history in (few, far, None):
        monitor = train(tmp_path / f"new{history and history.name}", history=history, last=200)
        assert not {"isoflop/frontier_loss", "isoflop/excess_loss"} & set(monitor.scalars)


def test_a_model_of_embeddings_alone_has_no_size_to_judge(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    embedding = torch.nn.Embedding(5, 5)
    monitor = isoflop.Monitor(embedding, total_steps=40, record_dir=tmp_path, log_every=10)
    for step in range(1, 41):
        embedding(torch.zeros(2, 4, dtype=torch.long)).sum().backward()
        monitor.step(planted(step), tokens=500)
    monitor.close()
    assert not monitor.guard.aside
    assert "is turned off" not in caplog.text


def test_a_run_that_waits_for_its_device_has_time_for_forecasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of training in which the thread's CPU idles: its forecasts may take a thousandth of the hours."""
    ahead, real = [0.0], time.monotonic
    monkeypatch.setattr("isoflop.live.forecast.SHARE", 1e-3)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 100, 1) * (1 - step / 2500))
    sizes: dict[str, Any] = {"num_params": 10**8, "flops_per_token": 6e8, "total_steps": 2000, "log_every": 20}
    late = set()
    with isoflop.Monitor(None, optimizer=optimizer, scheduler=scheduler, record_dir=tmp_path, **sizes) as monitor:
        monitor._clock._now = lambda: real() + ahead[0]
        for step in range(1, 2001):
            optimizer.step()
            scheduler.step()
            ahead[0] += 10.0
            monitor.step(2.4 + 9 * step**-0.35 + random.Random(step).gauss(0, 0.01), tokens=500_000)
            if step > 1000 and isinstance(monitor.forecast, Forecast):
                late.add(monitor.forecast.loss)
    assert len(late) >= 10
