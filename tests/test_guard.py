"""Whatever fails inside isoflop costs one warning that names it; training ends with the same weights, to the bit."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as package
import pytest
import torch

import isoflop
import trainers
from isoflop.advice import RULES
from isoflop.guard import BOUNDARIES
from isoflop.lightning import IsoFLOPMonitor
from isoflop.record import Point, read_run
from isoflop.transformers import IsoFLOPCallback
from tiny import Rows, batches, earlier_runs, model, same_weights, weights
from trainers import LIGHTNING_NOISE, hf_trainer, lightning_module, lightning_trainer, plain_loop, unpickling

LIGHTNINGS_OWN = "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"
pytestmark = [pytest.mark.filterwarnings(text) for text in (*LIGHTNING_NOISE, LIGHTNINGS_OWN)]

Weights = dict[str, torch.Tensor]
ROWS, HELD_OUT = Rows(64), Rows(16, seed=5)


class Broken(Exception):
    pass


# -- training with everything that a boundary is crossed for ----------------------------------------------------------


def lightning_run(folder: Path, observed: bool, resumed: bool = False, fails: bool = False) -> Weights:
    class Fail(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if fails and trainer.global_step == 6:
                raise KeyError("the user's own")

    net = model(dropout=0.1)
    saver = package.callbacks.ModelCheckpoint(folder / "c", every_n_train_steps=4, save_top_k=-1, filename="{step}")
    callbacks = [*([IsoFLOPMonitor()] if observed else []), saver, Fail()]
    trainer = lightning_trainer(
        package,
        folder,
        val_check_interval=3,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
        max_epochs=2,
        callbacks=callbacks,
    )
    path = folder / "c" / "step=8.ckpt" if resumed else None
    loaders = batches(ROWS, 8), batches(HELD_OUT, 8)
    trainer.fit(lightning_module(package, net, validate=True), *loaders, ckpt_path=path, **unpickling(trainer.fit))
    return weights(net)


def lightning_resumed(folder: Path, observed: bool) -> Weights:
    return lightning_run(folder, observed, resumed=True)


def lightning_fails(folder: Path, observed: bool) -> Weights:
    with pytest.raises(KeyError, match="the user's own"):
        lightning_run(folder, observed, fails=True)
    return {}


def transformers_run(folder: Path, observed: bool, resumed: bool = False) -> Weights:
    net = model(dropout=0.1)
    trainer = hf_trainer(
        net,
        folder,
        ROWS,
        [IsoFLOPCallback()] if observed else [],
        HELD_OUT,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=4,
    )
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4") if resumed else None)
    return weights(net)


def transformers_resumed(folder: Path, observed: bool) -> Weights:
    return transformers_run(folder, observed, resumed=True)


def loop(folder: Path, observed: bool) -> Weights:
    net = model(dropout=0.1)
    monitor = isoflop.Monitor(net, record_dir=folder, log_every=2) if observed else None

    def between(step: int) -> None:
        if monitor is not None:
            with monitor.evaluating():
                monitor.evaluate("held out", 2.0)

    plain_loop(net, batches(ROWS, 8), monitor=monitor, after_step=between)
    if monitor is not None:
        monitor.close()
    return weights(net)


def told(advice: Any) -> None:
    """What a user does with advice."""


def advised_loop(folder: Path, observed: bool) -> Weights:
    """With earlier runs to learn from and a function that is called."""
    if observed:
        earlier_runs(folder / "earlier")
    net = model(dropout=0.1)
    options: dict[str, Any] = {"history": folder / "earlier", "on_advice": told}
    monitor = isoflop.Monitor(net, record_dir=folder, log_every=2, total_steps=8, **options) if observed else None
    plain_loop(net, batches(ROWS, 8), monitor=monitor)
    if monitor is not None:
        monitor.close()
    return weights(net)


def planned_loop(folder: Path, observed: bool) -> Weights:
    """As long as it takes for a thousandth of it to be a refit: time is told to be so."""
    net = model(dropout=0.1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    options: dict[str, Any] = {"record_dir": folder, "log_every": 2, "total_steps": 16}
    monitor = isoflop.Monitor(net, optimizer=optimizer, **options) if observed else None
    if monitor is not None:
        monitor._clock._before["cpu"] = 1e6
    plain_loop(net, batches(ROWS, 8), monitor=monitor, optimizer=optimizer)
    if monitor is not None:
        monitor.close()
    return weights(net)


def branching_loop(folder: Path, observed: bool) -> Weights:
    """A model that can't be measured on the meta device."""

    class Branches(type(model())):  # type: ignore[misc]
        def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
            assert input_ids.sum().item() >= 0
            return super().forward(input_ids, attention_mask, labels)

    torch.manual_seed(0)
    net = Branches()
    monitor = isoflop.Monitor(net, record_dir=folder, log_every=2) if observed else None
    plain_loop(net, batches(ROWS, 8), monitor=monitor)
    if monitor is not None:
        monitor.close()
    return weights(net)


def accumulating_loop(folder: Path, observed: bool, **options: Any) -> Weights:
    """With a noise scale to measure."""
    net = model(dropout=0.1)
    monitor = isoflop.Monitor(net, record_dir=folder, log_every=4, **options) if observed else None
    plain_loop(net, batches(ROWS, 2), monitor=monitor, accumulate=2)
    if monitor is not None:
        monitor.close()
    return weights(net)


def loop_of_ranks(folder: Path, observed: bool) -> Weights:
    """As one of several ranks, whose sums are its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isoflop.live.ranks.world_size", lambda: 2)
        return loop(folder, observed)


def splitting_loop(folder: Path, observed: bool) -> Weights:
    net = model()
    monitor = isoflop.Monitor(net, record_dir=folder, log_every=4, noise_scale="split")
    trainers.splitting_loop(net, batches(Rows(320), 8), monitor, torch.optim.SGD(net.parameters(), 0.1), observed)
    return weights(net)


Scenario = Callable[[Path, bool], Weights]

# -- how each boundary is broken: what trains, and what raises inside --------------------------------------------------

BREAK: dict[str, list[tuple[Scenario, str]]] = {
    "writing the record": [
        (loop, "isoflop.record.RecordLog.point"),
        (loop, "isoflop.live.recorder.open_record"),
        (loop, "isoflop.live.monitor.run_header"),
        (loop, "isoflop.record.RecordLog.end"),
        (loop, "isoflop.live.recorder.point_of"),
        (lightning_run, "isoflop.live.recorder.Recorder.state_dict"),
        (transformers_resumed, "isoflop.live.recorder.Recorder.load_state_dict"),
    ],
    "the passport": [(loop, "isoflop.live.passport.write_passport")],
    "forecasting the loss": [
        (loop, "isoflop.live.forecast.OnlineForecaster.add"),
        (loop, "isoflop.live.forecast.half_time_line"),
        (planned_loop, "isoflop.live.forecast.future_learning_rates"),
        (planned_loop, "isoflop.live.forecast.OnlineForecaster.forecast"),
        (lightning_run, "isoflop.live.forecast.OnlineForecaster.state_dict"),
        (lightning_resumed, "isoflop.live.forecast.OnlineForecaster.load_state_dict"),
        (transformers_resumed, "isoflop.live.forecast.OnlineForecaster.load_state_dict"),
    ],
    "TensorBoard": [
        (loop, "isoflop.live.sinks.TensorBoardSink.write"),
        (transformers_run, "isoflop.live.sinks.TensorBoardSink.close"),
    ],
    "advising": [
        (loop, "isoflop.live.advice.Adviser.look"),
        (advised_loop, "isoflop.live.advice.Adviser.start"),
        (loop, "isoflop.live.advice.closing_lines"),
        (lightning_run, "isoflop.live.advice.Adviser.state_dict"),
        (lightning_resumed, "isoflop.live.advice.Adviser.load_state_dict"),
    ],
    "recognising the task": [(loop, "isoflop.live.monitor.describe_task")],
    "reading the earlier runs": [(advised_loop, "isoflop.live.advice.learn_from")],
    "on_advice": [(advised_loop, "test_guard.told")],
    **{f"judging {name}": [(advised_loop, f"evaluator {name}")] for name in RULES},
    "computing the scalars": [(loop, "isoflop.live.log_step.interval_scalars")],
    "showing the log step": [
        (loop, "isoflop.live.log_step.ComputeAxes.points"),
        (lightning_resumed, "isoflop.live.log_step.ComputeAxes.load_state_dict"),
    ],
    "the terminal's line": [(loop, "isoflop.live.sinks.interval_line")],
    "starting": [(loop, "isoflop.flops.totals.Clock.start")],
    "seeing the model": [(loop, "isoflop.flops.batch_tokens.tables_of")],
    "counting the batch": [
        (loop, "isoflop.flops.batch_tokens.find_sequences"),
        (lightning_run, "isoflop.flops.step.signature"),
        (lightning_run, "isoflop.flops.step.StepObserver.batch"),
        (lightning_run, "isoflop.flops.observe.Observation.start"),
        (lightning_run, "isoflop.flops.cost.StepCost.learn"),
        (transformers_run, "isoflop.flops.step.signature"),
    ],
    "adding the loss": [(loop, "isoflop.flops.totals.Tally.add_loss")],
    "logging": [
        (loop, "body of isoflop.live.monitor.Monitor._log"),
    ],
    "evaluation losses": [(lightning_run, "isoflop.live.monitor.as_float")],
    "the clock": [(lightning_run, "body of isoflop.live.monitor.Monitor.enter")],
    "reading the counts": [(loop, "isoflop.flops.totals.Tally.drain")],
    "summing over ranks": [(loop_of_ranks, "isoflop.live.ranks.sum_over_ranks")],
    "ending the run": [(loop, "isoflop.live.noise.Noise.detach")],
    "saving the state": [(lightning_run, "isoflop.flops.totals.Clock.state_dict")],
    "restoring from the checkpoint": [
        (lightning_resumed, "isoflop.flops.totals.Clock.load_state_dict"),
        (transformers_resumed, "isoflop.flops.totals.Clock.load_state_dict"),
    ],
    "following the trainer's step": [(lightning_run, "body of isoflop.live.monitor.Monitor.expect")],
    "settling the step": [
        (loop, "isoflop.flops.step.StepObserver.settle"),
        (loop, "isoflop.flops.cost.StepCost.learn"),
    ],
    "measuring the noise scale": [
        (accumulating_loop, "isoflop.live.noise.choose_source"),
        (accumulating_loop, "isoflop.noise.sources.MicroBatches.begin"),
    ],
    "the noise scale's hooks": [
        (accumulating_loop, "isoflop.noise.sources.raw_square"),
        (accumulating_loop, "isoflop.noise.sources.raw_squares"),
    ],
    "the noise scale's averages": [(accumulating_loop, "isoflop.live.noise.result")],
    "the critical batch": [(accumulating_loop, "isoflop.noise.critical_batch.prior_critical_batch")],
    "splitting the step": [(splitting_loop, "isoflop.live.noise.halves")],
    "seeing which ranks share a batch": [(loop, "isoflop.live.run_info.data_parallel_ranks")],
    "seeing the device": [(loop, "isoflop.live.monitor.model_device")],
    "Lightning's loggers": [
        (lightning_run, "isoflop_lightning.trainer.LoggersSink.write"),
        (lightning_run, "isoflop_lightning.trainer.LoggersSink.close"),
    ],
    "Lightning: on_train_start": [(lightning_run, "isoflop_lightning.callback.describe_trainer")],
    "Lightning: on_train_end": [(lightning_run, "isoflop.live.monitor.Monitor.finish")],
    "Lightning: saving where advice stops": [
        (lightning_run, "body of isoflop_lightning.callback.IsoFLOPMonitor._save_where_stopped")
    ],
    "Lightning: on_exception": [(lightning_fails, "isoflop.live.monitor.Monitor.finish")],
    "Lightning: a training step": [
        (lightning_run, "isoflop.live.monitor.Monitor.step"),
    ],
    "Lightning: on_before_backward": [
        (lightning_run, "body of isoflop_lightning.callback.IsoFLOPMonitor.on_before_backward")
    ],
    "Lightning: a batch's end": [
        (lightning_run, "isoflop.live.monitor.Monitor.loss"),
    ],
    "Lightning: on_validation_start": [
        (lightning_run, "body of isoflop_lightning.callback.IsoFLOPMonitor.on_validation_start")
    ],
    "Lightning: on_validation_end": [(lightning_run, "isoflop_lightning.callback.evaluation_name")],
    "Lightning: on_save_checkpoint": [
        (lightning_run, "body of isoflop_lightning.callback.IsoFLOPMonitor.on_save_checkpoint")
    ],
    "Lightning: state_dict": [(lightning_run, "isoflop.live.monitor.Monitor.state_dict")],
    "Lightning: load_state_dict": [
        (lightning_resumed, "body of isoflop_lightning.callback.IsoFLOPMonitor.load_state_dict")
    ],
    "Weights & Biases": [(transformers_run, "isoflop_transformers.callback.flops_axis_in_wandb")],
    "Hugging Face: on_train_begin": [(transformers_run, "isoflop_transformers.callback.describe_training")],
    "Hugging Face: on_train_end": [(transformers_run, "isoflop.live.monitor.Monitor.finish")],
    "Hugging Face: the model's output": [(transformers_run, "isoflop.flops.totals.Tally.add_loss")],
    "Hugging Face: on_step_end": [(transformers_run, "isoflop.live.monitor.Monitor.step")],
    "Hugging Face: on_log": [(transformers_run, "isoflop.live.monitor.Monitor.log")],
    "Hugging Face: the trainer's log": [
        (transformers_run, "body of isoflop_transformers.callback.IsoFLOPCallback._show")
    ],
    "Hugging Face: on_prediction_step": [
        (transformers_run, "body of isoflop_transformers.callback.IsoFLOPCallback.on_prediction_step")
    ],
    "Hugging Face: on_evaluate": [(transformers_run, "isoflop.live.monitor.Monitor.evaluate")],
    "Hugging Face: on_save": [(transformers_run, "body of isoflop_transformers.callback.IsoFLOPCallback.on_save")],
    "Hugging Face: state": [(transformers_run, "isoflop.live.monitor.Monitor.state_dict")],
}


WORKS = {"points", "end", "tokens", "flops", "loss", "scalars", "terminal"}
"""Parts of a run of which each scenario leaves a trace, see `working`."""
UNSEEN = WORKS - {"end"}
LOSES: dict[str, set[str]] = {
    "writing the record": {"points", "end", "tokens", "flops", "loss"},
    "TensorBoard": {"scalars"},
    "Lightning's loggers": {"scalars"},
    "the terminal's line": {"terminal"},
    "splitting the step": {"loss"},  # its scenario gives none
    "seeing the model": {"tokens", "flops"},
    "counting the batch": {"tokens", "flops"},
    "settling the step": {"tokens", "flops"},
    "adding the loss": {"loss"},
    "reading the counts": {"tokens", "flops", "loss"},
    "summing over ranks": {"tokens", "flops"},
    "Lightning: a batch's end": {"tokens", "flops", "loss"},
    "logging": {"scalars", "terminal"},
    "computing the scalars": {"terminal"},  # which then has nothing to show
    "showing the log step": {"scalars", "terminal"},
    "ending the run": {"end"},
    "Lightning: on_train_start": WORKS,
    "Lightning: on_train_end": {"end"},
    "Lightning: on_exception": {"end"},
    "Lightning: a training step": WORKS,
    "Hugging Face: on_train_begin": WORKS,
    "Hugging Face: on_train_end": {"end"},
    "Hugging Face: on_step_end": WORKS,
    "Hugging Face: on_log": UNSEEN,
}
"""What of it is missing when a boundary has stepped aside; of the others nothing."""


def raiser(*_: Any, **__: Any) -> Any:
    raise Broken("on purpose")


def break_it(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    if target.startswith("evaluator "):
        name = target.removeprefix("evaluator ")
        monkeypatch.setitem(RULES, name, replace(RULES[name], judge=raiser))
        return
    if not target.startswith("body of "):
        monkeypatch.setattr(target, raiser)
        return
    module, kind, method = target.removeprefix("body of ").rsplit(".", 2)
    owner = getattr(__import__(module, fromlist=[kind]), kind)
    guarded = getattr(owner, method)
    cells = dict(zip(guarded.__code__.co_freevars, guarded.__closure__, strict=True))
    monkeypatch.setattr(cells["function"], "cell_contents", raiser)


TOGETHER = [f"judging {name}" for name in RULES][1:]
"""Boundaries of one kind, broken in one run; the first of them is broken alone too."""
CASES = [(name, scenario, target) for name in BREAK if name not in TOGETHER for scenario, target in BREAK[name]]


def test_each_boundary_can_be_broken() -> None:
    assert set(BREAK) == set(BOUNDARIES), "a new boundary needs a way to break it, in BREAK"


@pytest.fixture(scope="module")
def unobserved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Scenario], tuple[Path, Weights]]:
    """What a scenario ends with without isoflop; and, for the resumed ones, a folder with checkpoints that have it."""
    done: dict[Scenario, tuple[Path, Weights]] = {}

    def get(scenario: Scenario) -> tuple[Path, Weights]:
        if scenario not in done:
            folder = tmp_path_factory.mktemp("unobserved")
            if scenario is lightning_resumed:
                lightning_run(folder, observed=True)
            if scenario is transformers_resumed:
                transformers_run(folder, observed=True)
            done[scenario] = (folder, scenario(folder, False))
        return done[scenario]

    return get


def working(folder: Path, printed: str) -> set[str]:
    """Which parts have done their work, by what they left behind."""
    found = {"terminal"} if re.search(r"step \d+ ·", printed) else set()
    paths = sorted(folder.rglob("isoflop-*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    for run in [read_run(path) for path in paths[-1:]]:
        last = run.points[-1] if run.points else Point(step=0)
        found |= {"end"} if run.end else set()
        found |= {name for name in ("tokens", "flops", "wall_time") if getattr(last, name) is not None}
        found |= {"loss"} if any(point.losses.get("train") is not None for point in run.points) else set()
        found |= {"points"} if len(run.points) > 1 else set()
    if "end" not in found:
        gc.collect()  # what waits for an event file is written when its Monitor is gone
    shown = [*folder.rglob("events.*"), *folder.rglob("metrics.csv")]
    return found | ({"scalars"} if any(b"isoflop/" in path.read_bytes() for path in shown) else set())


def warning_of(name: str) -> str:
    return f"isoflop: {name} failed (Broken: on purpose) and is turned off: {BOUNDARIES[name]}. Training goes on."


@pytest.mark.parametrize(("name", "scenario", "target"), CASES, ids=[f"{name}: {where}" for name, _, where in CASES])
def test_a_failure_inside_costs_one_warning(
    name: str,
    scenario: Scenario,
    target: str,
    unobserved: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, expected = unobserved(scenario)
    break_it(monkeypatch, target)
    resumes = scenario in (lightning_resumed, transformers_resumed)
    found = scenario(folder if resumes else tmp_path, True)
    assert same_weights(found, expected)
    said = [record.getMessage() for record in caplog.records if "is turned off" in record.getMessage()]
    assert said == [warning_of(name)]
    left = working(folder if resumes else tmp_path, capsys.readouterr().out)
    assert WORKS - LOSES.get(name, set()) <= left, "parts that should have gone on have not"


def test_rules_that_all_fail_cost_a_warning_each(
    unobserved: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in TOGETHER:
        break_it(monkeypatch, BREAK[name][0][1])
    assert same_weights(advised_loop(tmp_path, True), unobserved(advised_loop)[1])
    said = [text for record in caplog.records if "is turned off" in (text := record.getMessage())]
    assert sorted(said) == sorted(warning_of(name) for name in TOGETHER)
    assert working(tmp_path, capsys.readouterr().out) >= WORKS


def test_what_was_not_summed_is_unknown_and_not_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isoflop.flops.totals.Tally.drain", raiser)
    loop(tmp_path, True)
    (path,) = tmp_path.glob("isoflop-*.jsonl")
    assert {(point.tokens, point.flops, point.flops_6nd) for point in read_run(path).points} == {(None, None, None)}


def test_the_cause_is_told_at_debug_level(tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("isoflop.live.log_step.interval_scalars", raiser)
    with caplog.at_level(logging.DEBUG, "isoflop"):
        loop(tmp_path, True)
    (record,) = [record for record in caplog.records if record.levelno == logging.DEBUG and record.name == "isoflop"]
    assert record.exc_info is not None and record.exc_info[0] is Broken


@pytest.mark.parametrize(
    ("part", "call"), [("isoflop.flops.step.copy_at", 2), ("isoflop.flops.step.StepObserver.settle", 5)]
)
def test_what_was_not_counted_is_unknown_and_not_less(part: str, call: int, tmp_path: Path, monkeypatch: Any) -> None:
    """A count that stopped half-way must not stand in the record as if it were the whole."""
    owner, _, method = part.rpartition(".")
    module, _, kind = owner.rpartition(".")
    holder = getattr(__import__(module, fromlist=[kind]), kind)
    original, calls = getattr(holder, method), SimpleNamespace(count=0)

    def once(*args: Any, **kwargs: Any) -> Any:
        calls.count += 1
        return raiser() if calls.count == call else original(*args, **kwargs)

    monkeypatch.setattr(part, once)
    loop(tmp_path, True)
    from tiny import the_run

    points = the_run(tmp_path).points
    assert [point.tokens for point in points if point.step <= 4] == [128 * p.step for p in points if p.step <= 4]
    assert points[-1].step == 8 and points[-1].tokens is None and points[-1].flops is None
    assert points[-1].losses["train"] is not None
