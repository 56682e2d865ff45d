"""What a trainer logged comes back from its log with the tokens, FLOPs and losses of isoflop's own record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import Dataset

from isoflop import Monitor, import_runs, read_runs
from isoflop.lightning import IsoFLOPMonitor
from isoflop.logs import EVERY, Given, write_run
from isoflop.record import Run
from isoflop.transformers import IsoFLOPCallback
from models import llama, tokens
from tiny import Rows, batches, model, the_run
from trainers import LIGHTNING_NOISE, hf_trainer, lightning_module, lightning_trainer, plain_loop

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_NOISE]
ROWS = Rows(64)
COUNTS = ("tokens", "padding", "loss_tokens", "flops", "flops_6nd")
FLOAT32 = 1e-6


def imported(*paths: Path | str, given: Given | None = None, **options: Any) -> Run:
    """The one run that is found."""
    result = import_runs(paths, given, **options)
    assert result.problems == ()
    (run,) = result.runs
    return run


def assert_same(found: Run, own: Run, *, rel: float = 0.0, counts: tuple[str, ...] = COUNTS) -> None:
    """Each point of the own record is there, with its counts and losses."""
    assert [point.step for point in found.points] == [point.step for point in own.points]
    for one, other in zip(found.points, own.points, strict=True):
        assert one.interval_steps == other.interval_steps
        assert dict(one.losses) == pytest.approx(dict(other.losses), rel=rel, abs=0)
        for name in counts:
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=rel, abs=0), (one.step, name)


def same_size(found: Run, own: Run) -> None:
    for convention in ("non_embedding", "non_embedding_with_head"):
        assert found.parameters[convention] == own.parameters[convention]


# -- Hugging Face ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_by_hf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A Trainer's output folder, with TensorBoard's files, and isoflop's own record."""
    folder = tmp_path_factory.mktemp("hf")
    output, record = folder / "output", folder / "record"
    options = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    watch = IsoFLOPCallback(record_dir=record)
    data = {"evaluate_on": Rows(8, seed=5), "report_to": ["tensorboard"]}
    hf_trainer(model(), output, ROWS, [watch], **data, **options).train()
    return output, the_run(record)


def test_a_trainers_output_folder(trained_by_hf: tuple[Path, Run]) -> None:
    output, own = trained_by_hf
    found = imported(output)
    assert_same(found, own, counts=("tokens", "flops", "flops_6nd"))
    same_size(found, own)
    # the scalars are in the 1st, 2nd, 4th … of the Trainer's entries; between them counts are interpolated
    for one, other in zip(found.points, own.points, strict=True):
        assert one.step == 6 or (one.padding, one.loss_tokens) == (other.padding, other.loss_tokens)
    assert (found.status, found.framework, found.planned["steps"]) == ("completed", "transformers", 8)


def test_a_single_state(trained_by_hf: tuple[Path, Run]) -> None:
    output, own = trained_by_hf
    found = imported(output / "checkpoint-4" / "trainer_state.json")
    assert [point.step for point in found.points] == [2, 4] and found.status == "interrupted"
    assert found.points[0].flops == own.points[0].flops


def test_the_trainers_tensorboard(trained_by_hf: tuple[Path, Run]) -> None:
    output, own = trained_by_hf
    found = imported(output, kind="tensorboard")
    assert_same(found, own, rel=FLOAT32)
    same_size(found, own)
    assert any("float32" in note for note in found.extra["imported"]["notes"])


class Ids(Dataset[dict[str, torch.Tensor]]):
    """Sequences of 16 tokens without padding."""

    def __init__(self, count: int) -> None:
        self.ids = tokens(count, 16, 96)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


@pytest.fixture(scope="module")
def with_config(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """The output of a Trainer that knew nothing of isoflop: no scalar of it is in there; and what isoflop counted."""
    folder = tmp_path_factory.mktemp("hf-llama")
    output, record = folder / "output", folder / "record"
    watch = IsoFLOPCallback(record_dir=record)
    options = {"save_strategy": "steps", "save_steps": 4}
    trainer = hf_trainer(llama(), output, Ids(64), [watch], **options)
    trainer.train()
    for path in output.rglob("trainer_state.json"):
        state = json.loads(path.read_text())
        history = state["log_history"]
        state["log_history"] = [
            {name: value for name, value in entry.items() if not name.startswith("isoflop/")} for entry in history
        ]
        path.write_text(json.dumps(state))
    return output, the_run(record)


def test_tokens_from_total_flos_and_n_from_the_configuration(with_config: tuple[Path, Run]) -> None:
    output, own = with_config
    found = imported(output)
    assert_same(found, own, counts=("tokens", "padding", "flops_6nd"))
    assert found.parameters == own.parameters
    untied_head = own.parameters["non_embedding_with_head"]
    assert untied_head is not None
    assert [point.flops for point in found.points] == [6 * untied_head * (point.tokens or 0) for point in own.points]
    assert "without attention" in found.counting["method"]


def test_flops_measured_at_a_given_length(with_config: tuple[Path, Run]) -> None:
    output, own = with_config
    found = imported(output, given=Given(seq={EVERY: 16}))
    assert_same(found, own, counts=("tokens", "flops", "flops_6nd"))


def test_n_from_total_flos_and_given_tokens(with_config: tuple[Path, Run], tmp_path: Path) -> None:
    """Without a configuration; an untied head is in that N, and it is said."""
    output, own = with_config
    (tmp_path / "trainer_state.json").write_bytes((output / "checkpoint-8" / "trainer_state.json").read_bytes())
    found = imported(tmp_path, given=Given(tokens_per_step={EVERY: 128}))
    assert found.parameters == {"non_embedding": own.parameters["non_embedding_with_head"]}
    assert "untied output head" in str(found.parameters_method)


# -- Lightning ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_by_lightning(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    folder = tmp_path_factory.mktemp("lightning")

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = self.net(**batch)["loss"]
        self.log("train_loss", loss)
        return loss

    loggers = [pl.loggers.CSVLogger(folder / "csv"), pl.loggers.TensorBoardLogger(folder / "tensorboard")]
    callbacks = [IsoFLOPMonitor(record_dir=folder / "record"), pl.callbacks.LearningRateMonitor()]
    trainer = lightning_trainer(pl, folder, logger=loggers, callbacks=callbacks, val_check_interval=4)
    module = lightning_module(pl, model(), validate=True, training_step=training_step)
    trainer.fit(module, batches(ROWS, 8), batches(Rows(8, seed=5), 8))
    return folder, the_run(folder / "record")


def test_lightnings_csv_log(trained_by_lightning: tuple[Path, Run]) -> None:
    folder, own = trained_by_lightning
    found = imported(folder / "csv")
    assert_same(found, own)
    same_size(found, own)
    assert [point.lr for point in found.points] == [point.lr for point in own.points]


def test_lightnings_tensorboard_log(trained_by_lightning: tuple[Path, Run]) -> None:
    folder, own = trained_by_lightning
    found = imported(folder / "tensorboard")
    assert_same(found, own, rel=FLOAT32)
    same_size(found, own)


def test_lightnings_own_columns(trained_by_lightning: tuple[Path, Run], tmp_path: Path) -> None:
    """As if isoflop had not been there: the user says the rest."""
    import csv

    folder, own = trained_by_lightning
    (path,) = (folder / "csv").rglob("metrics.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    names = [name for name in rows[0] if not name.startswith("isoflop/")]
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    size = own.parameters["non_embedding"]
    found = imported(tmp_path, given=Given(params={EVERY: size}, tokens_per_step={EVERY: 128}))
    assert [point.step for point in found.points] == [point.step for point in own.points]
    assert [(point.tokens, point.flops_6nd) for point in found.points] == [
        (point.tokens, point.flops_6nd) for point in own.points
    ]
    logged = [float(row["train_loss"]) for row in rows if row["train_loss"]]
    assert [point.losses["train"] for point in found.points if "train" in point.losses] == logged
    assert [point.losses.get("eval/val") for point in found.points] == [
        point.losses.get("eval/val") for point in own.points
    ]


# -- a plain loop with another tool's logger ---------------------------------------------------------------------------


def loop(folder: Path, log: Any) -> Run:
    """A plain loop whose scalars go to `log(dict, step)`; returns isoflop's own record."""
    net = model()
    monitor = Monitor(net, record_dir=folder, log_every=2, total_steps=8)

    def after(step: int) -> None:
        if step % 2 == 0:
            log(dict(monitor.scalars), step)

    plain_loop(net, batches(ROWS, 8), monitor=monitor, after_step=after)
    monitor.close()
    return the_run(folder)


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path), "DISABLE_GIT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run = wandb.init(project="test", name="tiny", config={"model": {"layers": 1}})
    own = loop(tmp_path / "record", lambda scalars, step: run.log(scalars, step=step))
    run.finish()
    wandb.teardown()  # finish() of an offline run returns before its file is written to the end
    found = imported(tmp_path / "wandb")
    assert_same(found, own)
    same_size(found, own)
    assert (found.name, found.status) == ("tiny", "completed")


def test_mlflows_file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # in maintenance mode since 3.x; people have such folders
    client = mlflow.tracking.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    run_id = client.create_run("0", run_name="tiny").info.run_id

    def log(scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            client.log_metric(run_id, name, value, step=step)

    own = loop(tmp_path / "record", log)
    client.set_terminated(run_id)
    found = imported(tmp_path / "mlruns")
    assert_same(found, own)
    same_size(found, own)
    assert (found.name, found.status) == ("tiny", "completed")


def test_the_monitors_own_tensorboard(tmp_path: Path) -> None:
    own = loop(tmp_path / "record", lambda scalars, step: None)
    found = imported(tmp_path, kind="tensorboard")
    assert_same(found, own, rel=FLOAT32)


def test_what_isoflop_recorded_itself_is_counted_once(tmp_path: Path) -> None:
    """Its event files beside its record are left out, and an import of a copy of them counts beside it no more."""
    for run in (1, 2):
        with Monitor(num_params=1000, record_dir=tmp_path / "runs", log_every=1, run_name=f"r{run}") as monitor:
            for step in range(1, 13):
                monitor.step(2 + run / step, tokens=100)
    nothing = import_runs([tmp_path])
    assert nothing.imported == () and "isoflop's own records in it are read as they are" in "".join(nothing.problems)
    for i, events in enumerate(sorted((tmp_path / "runs").rglob("events.out.tfevents.*"))):
        (tmp_path / f"copy{i}").mkdir()
        shutil.copy(events, tmp_path / f"copy{i}")
    copies = import_runs([tmp_path])
    assert len(copies.imported) == 2
    for one in copies.imported:
        write_run(tmp_path / "imported", one.run)
    said: list[str] = []
    assert [run.framework for run in read_runs(tmp_path, on_problem=said.append)] == ["loop", "loop"]
    assert len(said) == 2 and all("counted once" in text for text in said)
    assert len(read_runs(tmp_path / "imported")) == 2  # without the originals they are runs like others


def test_runs_of_small_losses_are_no_copies_of_each_other(tmp_path: Path) -> None:
    """Two of a denoiser, whose losses differ by less than the digits that some loggers keep."""
    with Monitor(num_params=1000, record_dir=tmp_path / "runs", log_every=1) as monitor:
        for step in range(1, 13):
            monitor.step(1e-4 + 1e-5 / step, tokens=100)
    rows = "".join(f"{step},{9e-5 + 1e-5 / step}\n" for step in range(1, 13))
    (tmp_path / "other.csv").write_text("step,loss\n" + rows)
    for one in import_runs([tmp_path / "other.csv"]).imported:
        write_run(tmp_path / "runs", one.run)
    assert len(read_runs(tmp_path / "runs")) == 2
