"""`Monitor` in a plain loop, with Accelerate and with Fabric: compiled models, tokens by hand, checkpoints, misuse."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from torch import nn

import isoflop
from isoflop.flops import TokenCount
from isoflop.record import read_runs
from tiny import Rows, batches, losses, model, same_weights, the_run, totals, weights
from trainers import LIGHTNING_NOISE, plain_loop

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_NOISE]

ROWS = Rows(64)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_training_is_unchanged_to_the_bit(accumulate: int, tmp_path: Path) -> None:
    def trained(observed: bool) -> dict[str, torch.Tensor]:
        net = model(dropout=0.2)
        monitor = isoflop.Monitor(net, record_dir=tmp_path, log_every=3) if observed else None
        plain_loop(net, batches(Rows(160), 8 // accumulate), monitor=monitor, accumulate=accumulate)
        return weights(net)

    assert same_weights(trained(False), trained(True))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_model(when: str, fullgraph: bool, tmp_path: Path) -> None:
    """The Monitor may be given the model before it is compiled, or what torch.compile returned."""
    torch._dynamo.reset()
    net: Any = model()
    compiled = torch.compile(net, backend="eager", fullgraph=fullgraph)
    with isoflop.Monitor(net if when == "before" else compiled, record_dir=tmp_path, log_every=2) as monitor:
        plain_loop(compiled, batches(ROWS, 8), monitor=monitor)
    assert totals(the_run(tmp_path)) == ROWS.totals()


def test_a_model_that_is_compiled_in_place(tmp_path: Path) -> None:
    net = model()
    net.compile(backend="eager", fullgraph=True)
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=2) as monitor:
        plain_loop(net, batches(ROWS, 8), monitor=monitor)
    assert totals(the_run(tmp_path)) == ROWS.totals()


def test_autocast_on_cpu(tmp_path: Path) -> None:
    net = model()
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=2) as monitor, torch.autocast("cpu", torch.bfloat16):
        plain_loop(net, batches(ROWS, 8), monitor=monitor)
    run = the_run(tmp_path)
    assert totals(run) == ROWS.totals() and run.device["dtype"] == "bfloat16"


def test_evaluation_is_not_counted(tmp_path: Path) -> None:
    net = model()
    monitor = isoflop.Monitor(net, record_dir=tmp_path, log_every=2)

    def evaluate(step: int) -> None:
        if step % 3 == 0:
            with monitor.evaluating(), torch.no_grad():
                net.eval()
                loss = sum(net(**batch)["loss"] for batch in batches(Rows(16, seed=5), 8)) / 2
                net.train()
            monitor.evaluate("held out", loss)

    plain_loop(net, batches(ROWS, 8), monitor=monitor, after_step=evaluate)
    monitor.close()
    run = the_run(tmp_path)
    assert totals(run) == ROWS.totals()
    assert list(losses(run, "eval/held out")) == [3, 6] and list(losses(run)) == [2, 4, 6, 8]


def test_runs_in_one_folder_keep_their_own_charts_and_passports(tmp_path: Path) -> None:
    """Each is called in its record as TensorBoard lists it; one that is resumed goes on where it was."""
    folder = tmp_path / "sweep"

    def train(name: str | None, state: dict[str, Any] | None = None) -> dict[str, Any]:
        with isoflop.Monitor(num_params=10, record_dir=folder, log_every=2, run_name=name) as monitor:
            if state:
                monitor.load_state_dict(state)
            for _ in range(2):
                monitor.step(2.5, tokens=100)
            state = monitor.state_dict()
            for _ in range(2):
                monitor.step(2.5, tokens=100)
            return state

    (folder / "seed").mkdir(parents=True)  # where its checkpoints will be
    states = [train(name) for name in (None, "wide/2", "wide/2", "seed", "sweep", None, "../../out")]
    assert listed_by_tensorboard(tmp_path) == {
        *("sweep", "sweep/wide-2", "sweep/wide-2-2", "sweep/seed", "sweep/sweep-2", "sweep/sweep-3", "sweep/out")
    }
    runs = read_runs(folder)
    assert len(runs) == 7 and all(path.parent == folder for path in folder.rglob("*.jsonl"))
    for run in runs:
        own = folder / run.name if run.name != "sweep" else folder
        assert json.loads((own / "isoflop-passport.json").read_text())["run_id"] == run.run_id
        assert len(list(own.glob("events.out.tfevents.*"))) == 1
    train("wide/2", states[1])  # that run went beyond step 2: this is a branch
    assert {run.name for run in read_runs(folder)} - {run.name for run in runs} == {"wide-2-3"}
    ended = folder / "wide-2-3" / "isoflop-passport.json"
    assert json.loads(ended.read_text())["name"] == "wide-2-3"


@pytest.mark.parametrize(("name", "called"), [("数" * 100, "数" * 46), (7, "7"), ("a\ud800\nb", "a-b")])
def test_names_that_no_folder_can_have(name: Any, called: str, tmp_path: Path) -> None:
    """They cost the record and TensorBoard's events."""
    with isoflop.Monitor(num_params=10, record_dir=tmp_path, log_every=2, run_name=name) as monitor:
        for _ in range(2):
            monitor.step(2.5, tokens=100)
    assert the_run(tmp_path).name == called
    assert {"isoflop-passport.json", "isoflop-passport.md"} < {path.name for path in (tmp_path / called).iterdir()}
    assert any(path.name.startswith("events.out") for path in (tmp_path / called).iterdir())


def test_runs_of_one_name_that_begin_together_keep_apart(tmp_path: Path) -> None:
    """Seeds in parallel: neither has written an event yet."""
    two = [isoflop.Monitor(num_params=10, record_dir=tmp_path, log_every=2, run_name="seed") for _ in range(2)]
    for monitor in (*two, *two):
        monitor.step(2.5, tokens=100)
    for monitor in two:
        monitor.close()
    assert {run.name for run in read_runs(tmp_path)} == listed_by_tensorboard(tmp_path) == {"seed", "seed-2"}


def listed_by_tensorboard(folder: Path) -> set[str]:
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    return set(multiplexer.Reload().Runs())


def test_tokens_by_hand_without_a_model(tmp_path: Path) -> None:
    with isoflop.Monitor(record_dir=tmp_path, log_every=2, num_params=1000, flops_per_token=7000) as monitor:
        for _ in range(4):
            monitor.step(2.5, tokens=TokenCount(100, 10, 50))
    run = the_run(tmp_path)
    assert totals(run) == {
        "tokens": 400,
        "padding": 40,
        "loss_tokens": 200,
        "flops": 2_800_000,
        "flops_hardware": 2_800_000,
        "flops_6nd": 2_400_000,
    }
    assert losses(run) == {2: 2.5, 4: 2.5}


def test_tokens_by_hand_go_before_what_the_model_was_given(tmp_path: Path) -> None:
    net = model()
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for batch in batches(Rows(16), 8):
            net(**batch)["loss"].backward()
            monitor.step(tokens=64)
    assert totals(the_run(tmp_path))["tokens"] == 128
    assert totals(the_run(tmp_path))["flops"] == Rows(16).totals()["flops"]  # the model computed them all the same


def test_losses_may_be_numbers_or_tensors(tmp_path: Path) -> None:
    with isoflop.Monitor(record_dir=tmp_path, log_every=2, num_params=1) as monitor:
        for loss in (1, 2.0, torch.tensor(3.0, requires_grad=True), torch.tensor([5.0], dtype=torch.bfloat16)):
            monitor.step(loss, tokens=1)
    assert losses(the_run(tmp_path)) == {2: 1.5, 4: 4.0}


def test_planned_steps_end_with_a_point(tmp_path: Path) -> None:
    net = model()
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=3, total_steps=8) as monitor:
        plain_loop(net, batches(ROWS, 8), monitor=monitor)
    run = the_run(tmp_path)
    assert [point.step for point in run.points] == [3, 6, 8] and run.planned["steps"] == 8


def test_an_error_in_the_loop_is_an_interrupted_run(tmp_path: Path) -> None:
    net = model()

    def fail(step: int) -> None:
        if step == 5:
            raise RuntimeError("out of memory")

    with (
        pytest.raises(RuntimeError, match="out of memory"),
        isoflop.Monitor(net, record_dir=tmp_path, log_every=2) as monitor,
    ):
        plain_loop(net, batches(ROWS, 8), monitor=monitor, after_step=fail)
    run = the_run(tmp_path)
    assert run.status == "interrupted" and run.end is not None
    assert (run.end["step"], run.end["tokens"], run.points[-1].tokens) == (5, 640, 640)


@pytest.mark.parametrize(
    ("ends", "status"),
    [(None, "completed"), (ValueError("CUDA error"), "interrupted"), (StopIteration(), "completed")],
)
@pytest.mark.parametrize("around", [False, True])
def test_closed_in_a_finally(ends: Exception | None, status: str, around: bool, tmp_path: Path) -> None:
    """Also where all of the training runs while an earlier error is handled."""

    def train() -> None:
        net = torch.nn.Embedding(9, 4)
        monitor = isoflop.Monitor(net, record_dir=tmp_path, total_steps=100, log_every=2)
        try:
            for _ in range(4):
                net(torch.zeros(2, 4, dtype=torch.long)).sum().backward()
                monitor.step(1.0)
            if ends is not None:
                raise ends
        finally:
            monitor.close()

    try:
        if around:
            raise ImportError("flash attention")
        train()
    except ImportError:
        with contextlib.suppress(ValueError, StopIteration):
            train()
    except (ValueError, StopIteration):
        pass
    assert the_run(tmp_path).status == status


class Stubborn(torch.nn.Embedding):
    """Whatever is asked of it beside its parameters raises."""

    def __getattr__(self, name: str) -> Any:
        if name in ("config", "hparams", "loss_type"):
            raise RuntimeError("no settings")
        return super().__getattr__(name)


def test_a_model_whose_configuration_raises_costs_nothing_else(tmp_path: Path, caplog: Any) -> None:
    net = Stubborn(9, 4)
    with isoflop.Monitor(net, record_dir=tmp_path, total_steps=4, log_every=2, noise_scale="split") as monitor:
        for _ in range(4):
            for part, share in monitor.split(torch.zeros(2, 4, dtype=torch.long)):
                (share * net(part).sum()).backward()
            monitor.step(1.0)
    record = the_run(tmp_path)
    assert not monitor.guard.aside and record.status == "completed" and record.points[-1].tokens == 4 * 8
    assert record.model["class"].endswith("Stubborn") and record.model["config"] is None


def _raises(self: Any, *_: Any, **__: Any) -> Any:
    raise KeyError("the user's own")


@pytest.mark.parametrize("method", ["__getattr__", "named_parameters", "named_modules", "children", "parameters"])
def test_a_model_that_cannot_be_asked_is_trained_and_its_loss_recorded(
    method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Attributes and methods that raise: from the construction of the Monitor on nothing of it reaches the loop."""

    def weight_alone(self: nn.Module, name: str) -> Any:
        return vars(self)["_parameters"][name]

    net = nn.Linear(4, 4)
    overridden = weight_alone if method == "__getattr__" else _raises
    net.__class__ = type("Closed", (nn.Linear,), {method: overridden})
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1, total_steps=2) as monitor:
        for _ in range(2):
            net(torch.ones(2, 4)).sum().backward()
            monitor.step(2.5)
    run = the_run(tmp_path)
    assert losses(run) == {1: 2.5, 2: 2.5} and run.status == "completed"
    assert sum("is turned off" in record.getMessage() for record in caplog.records) <= 1


def test_after_close_the_model_is_as_it_was(tmp_path: Path) -> None:
    net = model()
    monitor = isoflop.Monitor(net, record_dir=tmp_path)
    plain_loop(net, batches(Rows(16), 8), monitor=monitor)
    monitor.close()
    assert not net._forward_pre_hooks and not net._forward_hooks
    plain_loop(net, batches(Rows(16), 8), monitor=monitor)  # more calls do nothing
    assert monitor.totals.processed == 256


def test_memory_does_not_grow_when_step_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("isoflop.flops.step.MAX_PENDING", 10)
    net = model()
    monitor = isoflop.Monitor(net, record_dir=tmp_path)
    for _ in range(3):
        for batch in batches(ROWS, 8):
            net(**batch)
    assert len(monitor.observer._pending) <= 10
    assert caplog.text.count("10 forward passes came without an optimizer step: call monitor.step() after each") == 1
    monitor.step()
    monitor.close()
    assert monitor.totals.processed == 3 * 1024


def test_accelerates_own_checkpoints(tmp_path: Path) -> None:
    from accelerate import Accelerator

    def start() -> tuple[Any, ...]:
        accelerator = Accelerator(cpu=True)
        net = model()
        parts = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), lr=0.01), batches(ROWS, 8))
        monitor = isoflop.Monitor(parts[0], optimizer=parts[1], record_dir=tmp_path / "record", log_every=2)
        accelerator.register_for_checkpointing(monitor)
        return accelerator, monitor, *parts

    accelerator, monitor, net, optimizer, loader = start()
    for step, batch in enumerate(loader, 1):
        accelerator.backward(loss := net(**batch)["loss"])
        optimizer.step()
        monitor.step(loss)
        if step == 3:
            accelerator.save_state(str(tmp_path / "state"))
        if step == 5:
            break
    monitor.recorder._log.close()  # type: ignore[union-attr]  # as the end of the process does
    accelerator, monitor, net, optimizer, loader = start()
    accelerator.load_state(str(tmp_path / "state"))
    for batch in accelerator.skip_first_batches(loader, 3):
        accelerator.backward(loss := net(**batch)["loss"])
        optimizer.step()
        monitor.step(loss)
    monitor.close()
    run = the_run(tmp_path)
    assert totals(run) == ROWS.totals()
    assert [point.step for point in run.points] == [2, 4, 6, 8] and run.attempts == 2


def test_fabrics_own_checkpoints(tmp_path: Path) -> None:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)

    def start() -> tuple[Any, ...]:
        net = model()
        net, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), lr=0.01))
        monitor = isoflop.Monitor(net, optimizer=optimizer, record_dir=tmp_path / "record", log_every=2)
        return net, optimizer, monitor

    data = list(batches(ROWS, 8))
    net, optimizer, monitor = start()
    for step, batch in enumerate(data[:5], 1):
        fabric.backward(loss := net(**batch)["loss"])
        optimizer.step()
        monitor.step(loss)
        if step == 3:
            fabric.save(tmp_path / "state.ckpt", {"net": net, "optimizer": optimizer, "monitor": monitor})
    monitor.recorder._log.close()  # type: ignore[union-attr]  # as the end of the process does
    net, optimizer, monitor = start()
    fabric.load(tmp_path / "state.ckpt", {"net": net, "optimizer": optimizer, "monitor": monitor})
    for batch in data[3:]:
        fabric.backward(loss := net(**batch)["loss"])
        optimizer.step()
        monitor.step(loss)
    monitor.close()
    run = the_run(tmp_path)
    assert totals(run) == ROWS.totals() and run.attempts == 2
    assert run.model["class"] == "tiny.TinyLM"


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_learning_rate_is_that_of_the_step_whatever_becomes_of_the_optimizer(wrapped: bool, tmp_path: Path) -> None:
    """It is read ahead of each step; a state that is loaded on the way puts other groups into the optimizer."""
    net = model()
    inner = torch.optim.SGD(net.parameters(), lr=1.0)
    optimizer: Any = inner
    if wrapped:  # as Accelerate does
        groups = property(lambda self: inner.param_groups)
        optimizer = type("Wrapper", (), {"optimizer": inner, "param_groups": groups})()
    used = {}
    with isoflop.Monitor(net, optimizer=optimizer, record_dir=tmp_path, log_every=5) as monitor:
        for step, batch in enumerate(batches(Rows(160), 8), 1):
            used[step] = inner.param_groups[0]["lr"]
            net(**batch)["loss"].backward()
            inner.zero_grad()
            if step in (7, 13):
                inner.load_state_dict(inner.state_dict())
            inner.param_groups[0]["lr"] = 1 / (step + 1)  # as a scheduler would
            monitor.step(2.5)
            assert monitor.logged_now is (step % 5 == 0)
    points = the_run(tmp_path).points
    assert {point.step: point.lr for point in points} == {step: used[step] for step in (5, 10, 15, 20)}


def test_an_optimizer_of_the_users_own_making_costs_the_learning_rate_alone(tmp_path: Path) -> None:
    class Closed:
        @property
        def param_groups(self) -> Any:
            raise RuntimeError("no groups")

    net = model()
    for optimizer in (Closed(), type("Bare", (), {"param_groups": [{}], "state": {}})(), object()):
        folder = tmp_path / type(optimizer).__name__
        with isoflop.Monitor(net, optimizer=optimizer, record_dir=folder, log_every=2, noise_scale="off") as monitor:
            plain_loop(net, batches(Rows(16), 4), monitor=monitor)
        assert not monitor.guard.aside and totals(the_run(folder))["tokens"]


def test_what_is_read_between_log_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor's value is asked for from our frames between log steps: on a GPU each would wait for the device."""
    from syncs import counted_syncs

    net = model()
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=4) as monitor, counted_syncs(monkeypatch) as found:
        plain_loop(net, batches(ROWS, 8), monitor=monitor, after_step=lambda step: found.mark(step))
    assert set(found.steps()) <= {4, 8} and found.steps()


def test_a_step_for_each_micro_batch_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the optimizer's own count; one call for each optimizer step, and steps that a scaler passes over, are fine."""

    def train(calls_each: int, passed_over: range = range(0), each: int = 4, lost: int = 0) -> list[str]:
        caplog.clear()
        net = model()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        with isoflop.Monitor(net, optimizer=optimizer, record_dir=tmp_path, log_every=4) as monitor:
            for i, batch in enumerate(batches(Rows(320), 8), 1):
                loss = net(**batch)["loss"]
                loss.backward()
                if i % each == 0 and i not in passed_over:
                    optimizer.step()
                    optimizer.zero_grad()
                if i % (each // calls_each) == 0:
                    monitor.step(loss)
                if i == lost:
                    optimizer.state.clear()
        return [text for text in caplog.messages if "micro-batch" in text]

    (warning,) = train(calls_each=4)
    assert "was called 8 times while the optimizer made 2 steps" in warning
    assert len(train(calls_each=5, each=5)) == 1  # the first log step is before the optimizer's first
    assert train(calls_each=1) == train(calls_each=1, passed_over=range(17)) == []
    assert train(calls_each=1, each=1, passed_over=range(5, 12)) == train(calls_each=1, each=1, lost=7) == []


ENDS = [
    ("pass", 4, "completed", "the run is over"),
    ("pass", 9, "interrupted", "was interrupted at step 4 of 9"),
    ("raise SystemError", 4, "interrupted", "was interrupted at step 4 of 4"),
    ("pass", None, "interrupted", "was interrupted at step 4:"),
    ("raise SystemExit(1)", None, "interrupted", "was interrupted at step 4:"),
    ("monitor.close()", 9, "completed", "ended at step 4 of 9"),
]
"""How a script ends, `total_steps=`; how its record says so, and the closing line."""
SCRIPT = f"""
import os, isoflop, isoflop.live.monitor, torch.utils.tensorboard  # once for all
for i, (end, total, *_) in enumerate({ENDS}):
    if not os.fork():
        break
    os.wait()
else:
    raise SystemExit
for stream in (1, 2):
    os.dup2(os.open(f"{{i}}.{{stream}}", os.O_CREAT | os.O_WRONLY), stream)
monitor = isoflop.Monitor(num_params=10, total_steps=total, log_every=2, record_dir=str(i))
for _ in range(4):
    monitor.step(2.5, tokens=100)
if not os.fork():
    raise SystemExit  # a child's end is not the run's
os.wait()
exec(end)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of scripts that have ended, each a process of its own: outputs, and a folder of records each."""
    folder = tmp_path_factory.mktemp("ended")
    (folder / "train.py").write_text(SCRIPT)
    subprocess.run([sys.executable, "train.py"], cwd=folder, timeout=100, check=True)
    return folder


@pytest.mark.parametrize("i", range(len(ENDS)), ids=lambda i: "-".join(map(str, ENDS[i][:2])))
def test_a_script_that_does_not_close_ends_its_record(i: int, ended: Path) -> None:
    _, total, status, words = ENDS[i]
    printed, warned = ((ended / f"{i}.{stream}").read_text() for stream in (1, 2))
    run = the_run(ended / str(i))
    assert run.status == status and [point.step for point in run.points] == [2, 4], warned
    assert printed.count(words) == 1 and f"Record: {run.path}\n" in printed.replace(" Record: ", f" Record: {ended}/")
    assert ("nothing says whether the run was done" in warned) is (total is None)
