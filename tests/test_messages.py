"""What a user is told when something is missing or wrong: the words, each once; and training goes on unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as package
import numpy as np
import pytest
import torch
from torch import nn

import isoflop
from isoflop.lightning import IsoFLOPMonitor
from isoflop.record import read_runs
from isoflop.transformers import IsoFLOPCallback
from report_files import write
from study_runs import planted_run
from tiny import Rows, batches, losses, model, same_weights, the_run, totals, weights
from trainers import LIGHTNING_NOISE, hf_trainer, lightning_module, lightning_trainer, plain_loop

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_NOISE]

ROWS = Rows(64)
Weights = dict[str, torch.Tensor]
Train = Callable[..., Weights]


def with_loop(folder: Path, net: nn.Module, rows: Any, *, observed: bool = True, **options: Any) -> Weights:
    options = {"record_dir": folder, "log_every": 2, **options}
    monitor = isoflop.Monitor(net, **options) if observed else None
    plain_loop(net, batches(rows, 8), monitor=monitor)
    if monitor is not None:
        monitor.close()
    return weights(net)


def with_lightning(folder: Path, net: nn.Module, rows: Any, *, observed: bool = True, **options: Any) -> Weights:
    callbacks = [IsoFLOPMonitor(**options)] if observed else []
    lightning_trainer(package, folder, callbacks=callbacks).fit(lightning_module(package, net), batches(rows, 8))
    return weights(net)


def with_transformers(folder: Path, net: nn.Module, rows: Any, *, observed: bool = True, **options: Any) -> Weights:
    callbacks = [IsoFLOPCallback(**options)] if observed else []
    hf_trainer(net, folder, rows, callbacks).train()
    return weights(net)


WAYS = pytest.mark.parametrize("train", [with_loop, with_lightning, with_transformers])


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What isoflop said."""
    return [record.getMessage() for record in caplog.records if record.name == "isoflop"]


# -- the batch and the model -------------------------------------------------------------------------------------------


class Images(Rows):
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixels": self.ids[index].float(), "labels": self.labels[index].clamp(0)}


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(16, 32)

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layer(pixels)
        return {"loss": nn.functional.cross_entropy(logits, labels[:, 0]), "logits": logits}


@WAYS
def test_no_tokens_in_the_batch(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    found = train(tmp_path, Classifier(), Images(60))  # the last batch is a smaller one
    assert messages(caplog) == [
        "isoflop: expected token ids in the batch (input_ids, a tensor of integers, or a tuple that begins with one), "
        "got a mapping of pixels: Tensor (8, 16) of float32, labels: Tensor (8, 16) of int64. Without tokens there are "
        "no tokens/s, tokens per parameter, forecast, noise scale, or advice on size and batch: pass "
        'tokens_fn=lambda batch: batch["labels"].numel(), if these are its tokens'
    ]
    printed = capsys.readouterr().out
    assert not any(text in printed for text in ("no forecast", "no advice", "tokens of the parts", "no gradient"))
    assert len([line for line in printed.splitlines() if line.startswith("isoflop: the run is over")]) == 1
    run = the_run(tmp_path)
    last = run.points[-1]
    assert (last.tokens, last.padding, last.loss_tokens, last.flops_6nd) == (None, None, None, None)
    assert (
        last.flops == 60 * 2 * 2 * 16 * 32
    )  # forward, and of the backward pass the weights' half: measured all the same
    assert list(losses(run)) == [2, 4, 6, 8]
    assert same_weights(found, train(tmp_path, Classifier(), Images(60), observed=False))


@WAYS
def test_tokens_fn_tells_them(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, Classifier(), Images(64), tokens_fn=lambda batch: batch["pixels"].numel())
    assert messages(caplog) == [] and totals(the_run(tmp_path))["tokens"] == 1024


@WAYS
def test_a_tokens_fn_that_fails(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = train(tmp_path, model(), ROWS, tokens_fn=lambda batch: batch["tokens"].numel())
    assert messages(caplog) == [
        "isoflop: counting the batch failed (KeyError: 'tokens') and is turned off: tokens and FLOPs are unknown from "
        "here on. Training goes on."
    ]
    assert totals(the_run(tmp_path))["tokens"] is None
    assert same_weights(found, train(tmp_path, model(), ROWS, observed=False))


def test_a_model_without_parameters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Bare(nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids.float().mean()

    net, outside = Bare(), nn.Parameter(torch.ones(()))
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=2) as monitor:
        for batch in batches(ROWS, 8):
            (net(batch["input_ids"]) * outside).backward()
            monitor.step(1.0)
    said = messages(caplog)
    assert said[0] == (
        "isoflop: expected a model with parameters, got Bare with none; pass num_params= to count FLOPs as 6·N·D "
        "without them"
    )
    assert len(said) == len(set(said)) <= 2
    run = the_run(tmp_path)
    assert run.points[-1].tokens == 1024 and run.points[-1].flops_6nd is None and run.status == "completed"


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
def test_a_lightning_module_without_parameters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        return None

    def configure_optimizers(self: Any) -> None:
        return None

    module = lightning_module(
        package, nn.Identity(), training_step=training_step, configure_optimizers=configure_optimizers
    )
    module.automatic_optimization = False
    lightning_trainer(package, tmp_path, callbacks=[IsoFLOPMonitor()]).fit(module, batches(ROWS, 8))
    assert sum("expected a model with parameters, got Module with none" in text for text in messages(caplog)) == 1
    assert not any("is turned off" in text for text in messages(caplog))


def test_the_monitors_model_is_not_the_one_that_is_called(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = model()
    with isoflop.Monitor(model(), record_dir=tmp_path, log_every=2) as monitor:
        plain_loop(net, batches(ROWS, 8), monitor=monitor)
    said = "isoflop: no tokens were seen: the model given to the Monitor was not called; pass step(tokens=…)"
    assert messages(caplog).count(said) == 1
    assert totals(the_run(tmp_path))["tokens"] is None


def test_a_forward_pass_that_needs_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Branches(type(model())):  # type: ignore[misc]
        def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
            if input_ids.sum().item() > -1:
                return super().forward(input_ids, attention_mask, labels)
            return None

    torch.manual_seed(1)
    found = with_loop(tmp_path, Branches(), ROWS)
    assert messages(caplog) == []  # the second step was counted as it ran, and the first put right
    assert totals(the_run(tmp_path)) == ROWS.totals()
    assert same_weights(found, with_loop(tmp_path / "b", model(), ROWS, observed=False))


# -- the loss ----------------------------------------------------------------------------------------------------------


class Bad(nn.Module):
    """A model whose loss is NaN or infinite at the third batch, with whole gradients."""

    def __init__(self, bad: float) -> None:
        super().__init__()
        self.inner, self.calls, self.bad = model(), 0, bad

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
        out = self.inner(input_ids, attention_mask, labels)
        self.calls += 1
        if self.calls == 3:
            out["loss"] = out["loss"] * 0 + self.bad
        return out


@WAYS
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(train: Train, bad: float, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = train(tmp_path, Bad(bad), ROWS)
    (said,) = messages(caplog)
    assert said == (
        f"isoflop: the training loss is {bad} in the interval that ends at step 4; recorded as null. Training goes on"
    )
    run = the_run(tmp_path)
    assert [point.nonfinite for point in run.points] == [{}, {"train": str(bad)}, {}, {}]
    assert [loss is None for loss in losses(run).values()] == [False, True, False, False]
    assert totals(run) == ROWS.totals()
    assert same_weights(found, train(tmp_path, Bad(bad), ROWS, observed=False))


def test_an_evaluation_loss_that_is_not_finite(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with isoflop.Monitor(record_dir=tmp_path, num_params=1) as monitor:
        monitor.step(1.0, tokens=1)
        monitor.evaluate("books", torch.tensor(math.nan))
    assert "isoflop: the loss of evaluation set books is nan; it is recorded as null" in messages(caplog)
    assert the_run(tmp_path).points[-1].nonfinite == {"eval/books": "nan"}


# -- the record --------------------------------------------------------------------------------------------------------


@WAYS
def test_a_folder_that_cannot_be_written(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    found = train(tmp_path, model(), ROWS, record_dir=tmp_path / "file" / "runs")
    said = [text for text in messages(caplog) if "writing the record" in text]
    assert len(said) == 1
    start = "isoflop: writing the record failed (RecordError: Expected a folder that can be made and written, but "
    assert said[0].startswith(start)
    assert said[0].endswith(
        "Set record_dir= to another folder.) and is turned off: no further points are recorded. Training goes on."
    )
    assert not read_runs(tmp_path)
    assert same_weights(found, train(tmp_path, model(), ROWS, observed=False))


def test_a_record_of_another_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = isoflop.Monitor(model(), record_dir=tmp_path, log_every=2)
    plain_loop(first._model, batches(Rows(32), 8), monitor=first)
    state = first.state_dict()
    first.recorder._log.close()  # type: ignore[union-attr]  # as the end of the process does
    net = Bad(0.0)
    second = isoflop.Monitor(net, record_dir=tmp_path, log_every=2)
    second.load_state_dict(state)
    plain_loop(net, batches(Rows(32), 8), monitor=second)
    second.close()
    (said,) = messages(caplog)
    assert said.startswith("isoflop: Expected a record of model class 'test_messages.Bad', but ")
    assert "is of 'tiny.TinyLM'. Set record_dir= to another folder, or resume the checkpoint of that model." in said
    assert "The run goes on from step 4 in a record of its own: " in said
    old, new = sorted(read_runs(tmp_path), key=lambda run: len(run.points) and run.points[-1].step)
    assert old.points[-1].step == 4 and new.parent == {"run_id": old.run_id, "step": 4}
    assert [point.step for point in new.points] == [6, 8]


def test_a_branch_of_a_finished_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = model()
    state: dict[str, Any] = {}
    monitor = isoflop.Monitor(net, record_dir=tmp_path, log_every=2)
    plain_loop(
        net,
        batches(ROWS, 8),
        monitor=monitor,
        after_step=lambda step: state.update(monitor.state_dict()) if step == 4 else None,
    )
    monitor.close()
    again = isoflop.Monitor(net, record_dir=tmp_path, log_every=2)
    again.load_state_dict(state)
    plain_loop(net, batches(Rows(16), 8), monitor=again)
    again.close()
    (said,) = messages(caplog)
    assert "completed at step 8; going on from step 4 is a branch, which needs a record of its own." in said


# -- loggers, devices, options -----------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("kind", ["cpu", "npu"])
def test_an_unknown_device_has_no_mfu(
    train: Train, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is no line of its own on a CPU, whose MFU nobody asks for."""
    device = SimpleNamespace(name=f"some {kind}", type=kind, dtype="float32", peak=None, peak_source=None)
    monkeypatch.setattr("isoflop.live.monitor.model_device", lambda *_: device)
    train(tmp_path, model(), ROWS)
    assert messages(caplog) == (kind != "cpu") * [
        "isoflop: no datasheet peak is known for some npu in float32, so there is no MFU; pass peak_flops= (dense "
        "FLOP/s of one device) to get it"
    ]
    assert "mfu" not in the_run(tmp_path).points[-1].extra


@WAYS
def test_peak_flops_gives_mfu(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, model(), ROWS, peak_flops=1e12)
    run = the_run(tmp_path)
    assert not [record for record in caplog.records if record.name == "isoflop"]
    last = run.points[-1].extra
    assert last["mfu"] == pytest.approx(last["tflops_per_device"])


@pytest.mark.parametrize("made", [isoflop.Monitor, IsoFLOPMonitor, IsoFLOPCallback])
@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        (
            {"log_evry": 5},
            TypeError,
            "isoflop has no option log_evry; did you mean log_every? Its options are record_dir, log_every, tokens_fn",
        ),
        ({"log_every": 0}, ValueError, "log_every= expects a whole number of at least 1, got 0"),
        ({"log_every": 2.5}, ValueError, "log_every= expects a whole number of at least 1, got 2.5"),
        ({"log_every": True}, ValueError, "log_every= expects a whole number of at least 1, got True"),
        ({"peak_flops": -1}, ValueError, "peak_flops= expects a positive number or 'measured', got -1"),
        ({"peak_flops": "312e12"}, ValueError, "peak_flops= expects a positive number or 'measured', got '312e12'"),
        ({"flops_per_token": math.nan}, ValueError, "flops_per_token= expects a positive number, got nan"),
        ({"num_params": "7B"}, ValueError, "num_params= expects a whole number of at least 1, got '7B'"),
        ({"tokens_fn": 3}, ValueError, "tokens_fn= expects a function of a batch, got 3"),
        ({"record_dir": 3}, ValueError, "record_dir= expects a path or a URL, got 3"),
    ],
)
def test_options_that_cannot_be(made: Any, options: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as error:
        made(**options)
    assert str(error.value).startswith(said)


def test_total_steps_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="total_steps= expects a whole number of at least 1, or None, got '100'"):
        isoflop.Monitor(total_steps="100")


MODEL = torch.nn.Linear(4, 4)
RUNS = [planted_run("one", 1e8, 2e9)]
MISTAKEN: dict[str, tuple[Callable[[], object], str]] = {
    "a path to count": (lambda: isoflop.count("config.json"), "expects a torch.nn.Module .*got 'config.json'"),
    "a class to count": (lambda: isoflop.count(torch.nn.Linear), "got the class Linear"),
    "an array to count": (lambda: isoflop.count(MODEL, np.ones((2, 4))), "type ndarray .* pass tensors"),
    "a folder for a record": (lambda: isoflop.read_run("."), "got a folder .*`read_runs` reads folders"),
    "runs as columns": (lambda: isoflop.fit_law("hoffmann", RUNS), r"columns by name.*study\(runs\)\.fit"),
    "a word as budget": (lambda: isoflop.plan("lots"), "number of FLOPs, got 'lots'"),
    "no budget": (lambda: isoflop.plan(None), "flops expects a budget in FLOPs, such as 1e21, got None"),
    "a number for a law": (lambda: isoflop.optimal_allocation(1e21, 1e21), "expects a published name or a Law"),
    "a path for runs": (lambda: isoflop.study("runs"), r"read_runs\(…\) gives them, got 'runs'"),
    "a path to report": (lambda: isoflop.write_report("runs", "a.html"), r"read_runs\(…\) gives them, got 'runs'"),
    "no page": (lambda: isoflop.write_report(RUNS, None), "expects the path of a page, such as report.html"),
    "a name to watch": (lambda: isoflop.Monitor("gpt2"), "model expects a torch.nn.Module .*got 'gpt2'"),
    "an optimizer's name": (lambda: isoflop.Monitor(MODEL, optimizer="adam"), "expects a torch.optim.Optimizer"),
    "a schedule's name": (lambda: isoflop.Monitor(MODEL, scheduler="cosine"), "by name: lr_plan="),
    "a number for a task": (lambda: isoflop.Monitor(MODEL, task=3), "task= expects words such as"),
}


@pytest.mark.parametrize("mistake", MISTAKEN)
def test_an_argument_of_another_kind_is_answered_with_what_is_expected(mistake: str) -> None:
    call, text = MISTAKEN[mistake]
    with pytest.raises(ValueError, match=text):
        call()


def test_one_path_or_a_list_of_paths_and_a_name_for_a_law_are_understood(tmp_path: Path) -> None:
    path = write(tmp_path / "runs", RUNS[0])
    assert len(isoflop.read_runs([path])) == len(isoflop.read_runs(str(tmp_path))) == 1
    assert isoflop.import_runs(str(tmp_path / "nothing")).problems == (f"{tmp_path / 'nothing'} does not exist",)
    named = isoflop.optimal_allocation("besiroglu2024", 1e21)
    assert named == isoflop.optimal_allocation(isoflop.published("besiroglu2024").law, 1e21)
    assert isoflop.write_report(isoflop.read_runs(path), str(tmp_path / "page.html")) == [tmp_path / "page.html"]
