"""`IsoFLOPMonitor` in real Trainers: evaluation, precision, compilation, loggers, manual optimization, second fits."""

from __future__ import annotations

import copy
import csv
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as package
import pytest
import pytorch_lightning
import torch

from isoflop.lightning import IsoFLOPMonitor
from isoflop.live import AXES
from isoflop.record import Run
from isoflop_lightning.callback import evaluation_name
from tiny import Rows, batches, losses, model, same_weights, the_run, totals, weights
from trainers import LIGHTNING_NOISE, lightning_module, lightning_trainer, unpickling

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_NOISE]

ROWS = Rows(64)


def fit(folder: Path, *, module: Any = None, rows: Rows = ROWS, watch: Any = None, **options: Any) -> Run:
    watch = watch or IsoFLOPMonitor()
    callbacks = [watch, *options.pop("callbacks", [])]
    trainer = lightning_trainer(package, folder, callbacks=callbacks, **options)
    module = lightning_module(package, model()) if module is None else module
    trainer.fit(module, batches(rows, 8))
    assert not watch.guard.aside
    return the_run(folder)


@pytest.mark.parametrize("of", [package, pytorch_lightning])
def test_both_packages_take_it(of: Any, tmp_path: Path) -> None:
    watch = IsoFLOPMonitor()
    trainer = lightning_trainer(of, tmp_path, callbacks=[watch])
    trainer.fit(lightning_module(of, model()), batches(ROWS, 8))
    run = the_run(tmp_path)
    assert totals(run) == ROWS.totals()
    assert (run.framework, run.planned["steps"], run.planned["accumulate"]) == ("lightning", 8, 1)
    assert run.optimizer is not None and (run.optimizer["class"], run.optimizer["lr"]) == ("AdamW", 0.01)
    assert run.points[-1].lr == 0.01


def test_tensorboard_has_at_a_checkpoint_what_the_record_has(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger, seen = TensorBoardLogger(tmp_path), {}

    class Looks(ModelCheckpoint):
        def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
            super()._save_checkpoint(trainer, filepath)
            events = EventAccumulator(logger.log_dir).Reload()
            seen[trainer.global_step] = [event.step for event in events.Scalars("isoflop_counts/flops")]

    saves = Looks(tmp_path / "saved", every_n_train_steps=4, save_top_k=-1)
    fit(tmp_path, callbacks=[saves], logger=logger, enable_checkpointing=True)
    assert seen == {4: [1, 3], 8: [1, 3, 5, 7]}  # as Lightning counts them


@pytest.mark.parametrize("accumulate", [1, 4])
def test_training_is_unchanged_to_the_bit(accumulate: int, tmp_path: Path) -> None:
    def trained(callbacks: list[Any]) -> dict[str, torch.Tensor]:
        net = model(dropout=0.2)
        trainer = lightning_trainer(
            package, tmp_path, max_steps=20, max_epochs=-1, accumulate_grad_batches=accumulate, callbacks=callbacks
        )
        trainer.fit(lightning_module(package, net), batches(ROWS, 8 // accumulate))
        assert trainer.global_step == 20
        return weights(net)

    assert same_weights(trained([]), trained([IsoFLOPMonitor()]))


def test_evaluation_in_between_is_recorded_and_not_counted(tmp_path: Path) -> None:
    seen: list[float] = []

    class Look(package.Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            if not trainer.sanity_checking:
                seen.append(trainer.callback_metrics["val_loss"].item())

    trainer = lightning_trainer(package, tmp_path, val_check_interval=3, callbacks=[IsoFLOPMonitor(), Look()])
    trainer.fit(lightning_module(package, model(), validate=True), batches(ROWS, 8), batches(Rows(24, seed=5), 8))
    run = the_run(tmp_path)
    assert totals(run) == ROWS.totals()
    assert losses(run, "eval/val") == pytest.approx(dict(zip((3, 6), seen, strict=True)))
    assert list(losses(run)) == [2, 4, 6, 8]
    assert [point.tokens for point in run.points] == [128 * point.step for point in run.points]
    last = run.points[-1]
    assert last.wall_time is not None and last.training_time is not None and last.training_time < last.wall_time


def test_two_validation_sets(tmp_path: Path) -> None:
    trainer = lightning_trainer(package, tmp_path, callbacks=[IsoFLOPMonitor()])
    sets = [batches(Rows(16, seed=5), 8), batches(Rows(16, seed=6), 8)]
    trainer.fit(lightning_module(package, model(), validate=True), batches(ROWS, 8), sets)
    names = {name for point in the_run(tmp_path).points for name in point.losses}
    assert names == {"train", "eval/val/dataloader_idx_0", "eval/val/dataloader_idx_1"}


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("val_loss", "val"),
        ("val_ce", "val"),
        ("valid/cross_entropy", "valid"),
        ("val_ema", None),
        ("val_face", None),
        ("valid/loss", "valid"),
        ("loss/val_c4", "val_c4"),
        ("eval_loss_books", "eval/books"),
        ("val_loss/dataloader_idx_1", "val/dataloader_idx_1"),
        ("train_loss", None),
        ("value_loss", None),  # of an actor and critic
        ("retrieval_loss", None),
        ("interval_loss", None),
        ("latest_loss", None),
        ("val_accuracy", None),
        ("isoflop/loss", None),
    ],
)
def test_which_metrics_are_losses_of_an_evaluation_set(metric: str, name: str | None) -> None:
    assert evaluation_name(metric) == name


@pytest.mark.parametrize(("metrics", "names"), [(("val_ce", "val_loss"), ["eval/val"]), (("val_ema",), [])])
def test_what_validation_logs_is_recorded_or_asked_for(
    metrics: tuple[str, ...], names: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def validate(self: Any, batch: Any, index: int) -> None:
        for i, name in enumerate(metrics):
            self.log(name, torch.tensor(float(i)))

    module = lightning_module(package, model(), validation_step=validate)
    trainer = lightning_trainer(package, tmp_path, callbacks=[IsoFLOPMonitor()])
    trainer.fit(module, batches(ROWS, 8), batches(Rows(16), 8))
    found = {name: loss for point in the_run(tmp_path).points for name, loss in point.losses.items()}
    assert [name for name in found if name != "train"] == names and found.get("eval/val") in (1.0, None)
    asked = [r.getMessage() for r in caplog.records if "of what validation logs (val_ema) nothing" in r.getMessage()]
    assert len(asked) == (not names)


def test_bfloat16(tmp_path: Path) -> None:
    run = fit(tmp_path, precision="bf16-mixed")
    assert totals(run) == ROWS.totals()
    assert (run.device["precision"], run.device["dtype"]) == ("bf16-mixed", "bfloat16")


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_inside(backend: str, tmp_path: Path) -> None:
    run = fit(tmp_path, module=lightning_module(package, torch.compile(model(), backend=backend)))
    assert totals(run) == ROWS.totals()
    assert run.model["class"].endswith("Module")


def test_a_model_compiled_as_one_graph_stays_one_graph(tmp_path: Path) -> None:
    net = torch.compile(model(), backend="eager", fullgraph=True)
    assert totals(fit(tmp_path, module=lightning_module(package, net))) == ROWS.totals()


def test_a_module_compiled_as_a_whole_falls_back_to_six_nd(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = torch.compile(lightning_module(package, model()), backend="eager")
    run = fit(tmp_path, module=module)
    expected = ROWS.totals()
    assert totals(run) == {**expected, "flops": expected["flops_6nd"], "flops_hardware": expected["flops_6nd"]}
    said = "the LightningModule is compiled as a whole; compile its model instead"
    assert caplog.text.count(said) == 1 and run.counting["reasons"] == {"6·N·D, N non-embedding": said}


def test_manual_optimization_with_two_optimizers(tmp_path: Path) -> None:
    """A GAN's two networks: Lightning counts two steps a batch, we count each batch once, as one update."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        one, two = self.optimizers()
        for optimizer in (one, two):
            loss = self.net(**batch)["loss"]
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return {"loss": loss.detach()}

    def configure_optimizers(self: Any) -> Any:
        halves = list(self.net.parameters())
        return [torch.optim.SGD(part, lr=0.01) for part in (halves[:3], halves[3:])]

    module = lightning_module(package, model(), training_step=training_step, configure_optimizers=configure_optimizers)
    module.automatic_optimization = False
    run = fit(tmp_path, module=module, log_every_n_steps=4)
    assert [point.step for point in run.points] == [4, 8, 12, 16]
    expected = ROWS.totals()
    assert totals(run) == {**expected, "flops": 2 * expected["flops"], "flops_hardware": 2 * expected["flops_hardware"]}
    assert {point.batch_tokens for point in run.points} == {expected["tokens"] / 8}
    by_hand = manual_losses()
    assert list(losses(run).values()) == pytest.approx([sum(by_hand[i : i + 2]) / 2 for i in (0, 2, 4, 6)], rel=1e-5)


def manual_losses() -> list[float]:
    net = model()
    halves = list(net.parameters())
    optimizers = [torch.optim.SGD(part, lr=0.01) for part in (halves[:3], halves[3:])]
    found = []
    for batch in batches(ROWS, 8):
        for optimizer in optimizers:
            loss = net(**batch)["loss"]
            net.zero_grad() if optimizer is None else optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(loss.item())
    return found


def test_without_a_logger(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = fit(tmp_path, logger=False)
    assert totals(run) == ROWS.totals()
    assert caplog.text.count("the Trainer has no logger: points go to the record alone, not to TensorBoard") == 1


def test_csv_logger(tmp_path: Path) -> None:
    fit(tmp_path)
    (path,) = tmp_path.rglob("metrics.csv")
    rows = [row for row in csv.DictReader(path.read_text().splitlines()) if row["isoflop/flops"]]
    assert [float(row["isoflop/flops"]) for row in rows] == [ROWS.totals()["flops"] / 4 * i for i in (1, 2, 3, 4)]
    assert not any(name in row for row in rows for name in AXES)  # pseudo-steps are for TensorBoard alone
    assert the_run(tmp_path).path == str(next(path.parent.glob("isoflop-*.jsonl")))


def test_a_logger_that_fails_takes_no_other_along(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(package.loggers.CSVLogger):  # type: ignore[misc,name-defined]
        def log_metrics(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("offline")

    fit(tmp_path, logger=[Failing(tmp_path / "failing"), package.loggers.CSVLogger(tmp_path / "csv")])
    (path,) = (tmp_path / "csv").rglob("metrics.csv")
    assert "isoflop/flops" in path.read_text()
    assert caplog.text.count("Failing failed (offline): no further scalars there") == 1


def test_tensorboard_logger(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(tmp_path, logger=package.loggers.TensorBoardLogger(tmp_path))
    (path,) = tmp_path.rglob("events.*")
    events = EventAccumulator(str(path.parent)).Reload()
    flops = events.Scalars("isoflop_counts/flops")
    assert [event.value for event in flops] == [ROWS.totals()["flops"] / 4 * i for i in (1, 2, 3, 4)]
    steps = [event.step for event in events.Scalars("isoflop/1000log10C_loss")]
    assert steps == [6771, 7072, 7248, 7373] and steps == sorted(set(steps))
    assert "isoflop_counts/tokens_per_param_non_embedding" in events.Tags()["scalars"]


def test_a_run_is_called_as_tensorboard_lists_it(tmp_path: Path) -> None:
    """Also where that logger is not the first, or has a folder below its version's."""
    csv, loggers = package.loggers.CSVLogger(tmp_path / "a"), package.loggers
    for folder, logger, name in (
        ("a", [csv, loggers.TensorBoardLogger(tmp_path / "a", "gpt", "wide", sub_dir="x")], "gpt/wide/x"),
        ("bare", loggers.TensorBoardLogger(tmp_path / "bare", "", ""), "bare"),
        ("csv", loggers.CSVLogger(tmp_path / "csv", "gpt"), "gpt/version_0"),
    ):
        assert fit(tmp_path / folder, logger=logger).name == name


def test_wandb_gets_flops_as_an_axis_and_no_pseudo_steps(tmp_path: Path) -> None:
    class Experiment:
        defined: list[Any]

        def define_metric(self, name: str, step_metric: str | None = None) -> None:
            self.defined.append((name, step_metric))

    class WandbLogger(package.loggers.CSVLogger):
        """What isoflop sees of the real one: its name, `experiment` and `log_metrics`."""

        logged: list[Any]

        @property
        def experiment(self) -> Any:
            return the_experiment

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            self.logged.append((step, metrics))

        def save(self) -> None: ...

    the_experiment = Experiment()
    the_experiment.defined = []
    logger = WandbLogger(tmp_path)
    logger.logged = []
    fit(tmp_path, logger=logger)
    assert ("isoflop/flops", None) in the_experiment.defined
    assert ("isoflop/loss", "isoflop/flops") in the_experiment.defined
    ours = [(step, metrics) for step, metrics in logger.logged if "isoflop/loss" in metrics]
    assert len(ours) == 4 and not any(set(metrics) & set(AXES) for _, metrics in ours)


def test_early_stopping_and_checkpoints_monitor_it(tmp_path: Path) -> None:
    stop = package.callbacks.EarlyStopping("isoflop/flops", mode="min", patience=1, check_on_train_epoch_end=True)
    save = package.callbacks.ModelCheckpoint(tmp_path / "c", monitor="isoflop/loss", every_n_train_steps=4)
    trainer = lightning_trainer(
        package, tmp_path, max_epochs=9, enable_checkpointing=True, callbacks=[IsoFLOPMonitor(), stop, save]
    )
    trainer.fit(lightning_module(package, model()), batches(ROWS, 8))
    assert trainer.current_epoch == 2  # FLOPs grow, so the second epoch is no better than the first
    assert save.best_model_score is not None and float(save.best_model_score) < 4
    assert the_run(tmp_path).status == "completed"


@pytest.mark.filterwarnings("ignore:The number of training batches .8. is smaller than the logging interval")
@pytest.mark.parametrize("where", ["an epoch's end", "a validation's end", "a scheduler"])
def test_what_monitors_isoflops_loss_finds_the_newest_between_log_steps(where: str, tmp_path: Path) -> None:
    """Epochs of 8 steps, a log step every 20: each look is at another value, and the first one finds one."""
    seen: list[float] = []

    class Stop(package.callbacks.EarlyStopping):
        def _evaluate_stopping_criteria(self, current: torch.Tensor) -> tuple[bool, str | None]:
            seen.append(float(current))
            return super()._evaluate_stopping_criteria(current)

    def configure(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        plateau.step = lambda metrics: seen.append(float(metrics))  # type: ignore[method-assign, assignment]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "isoflop/loss"}}

    stop = Stop("isoflop/loss", patience=2, min_delta=-1.0, check_on_train_epoch_end=where == "an epoch's end")
    scheduled = where == "a scheduler"
    trainer = lightning_trainer(
        package,
        tmp_path,
        max_epochs=3,
        log_every_n_steps=20,
        val_check_interval=4 if where == "a validation's end" else None,
        callbacks=[*([] if scheduled else [stop]), IsoFLOPMonitor()],
    )
    parts: dict[str, Any] = {"configure_optimizers": configure} if scheduled else {}
    module = lightning_module(package, model(), validate=where == "a validation's end", **parts)
    loaders = [batches(ROWS, 8), *([batches(Rows(16, seed=5), 8)] if where == "a validation's end" else [])]
    trainer.fit(module, *loaders)
    assert len(seen) == len(set(seen)) == (6 if where == "a validation's end" else 3)
    assert trainer.global_step == 24


class Forecasts(IsoFLOPMonitor):
    """Has a forecast from the fifth step on."""

    def _show(self, monitor: Any, trainer: Any) -> None:
        if monitor.steps >= 5:
            monitor._latest.scalars["isoflop/forecast_loss"] = 1.5
        super()._show(monitor, trainer)


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric")
@pytest.mark.parametrize("monitored", ["isoflop/forecast_loss", "isoflop/b_simple", "isoflop/mfu"])
@pytest.mark.parametrize("with_checkpoints", [False, True])
def test_a_metric_that_is_not_known_yet_decides_nothing(monitored: str, with_checkpoints: bool, tmp_path: Path) -> None:
    def configure(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        config = {"scheduler": plateau, "monitor": "isoflop/forecast_loss", "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": config}

    stop = package.callbacks.EarlyStopping(monitored, patience=0)
    save = package.callbacks.ModelCheckpoint(tmp_path / "c", monitor=monitored, save_top_k=1)
    net = lightning_module(package, model(), validate=True, configure_optimizers=configure)
    trainer = lightning_trainer(
        package,
        tmp_path,
        val_check_interval=2,
        enable_checkpointing=with_checkpoints,
        callbacks=[*([save] if with_checkpoints else []), IsoFLOPMonitor(), stop],
    )
    trainer.fit(net, batches(ROWS, 8), batches(Rows(16, seed=5), 8))
    assert trainer.global_step == 8 and trainer.optimizers[0].param_groups[0]["lr"] == 0.1
    assert "_validate_condition_metric" not in vars(stop) and trainer.lr_scheduler_configs[0].strict


def test_early_stopping_looks_at_a_forecast_once_there_is_one(tmp_path: Path) -> None:
    stop = package.callbacks.EarlyStopping("isoflop/forecast_loss", patience=9, stopping_threshold=2.0)
    trainer = lightning_trainer(package, tmp_path, val_check_interval=2, callbacks=[stop, Forecasts()])
    trainer.fit(lightning_module(package, model(), validate=True), batches(ROWS, 8), batches(Rows(16, seed=5), 8))
    assert trainer.global_step == 6  # of 8


def test_a_misspelt_metric_is_still_an_error(tmp_path: Path) -> None:
    stop = package.callbacks.EarlyStopping("isoflop/forcast_loss")
    trainer = lightning_trainer(package, tmp_path, val_check_interval=2, callbacks=[stop, IsoFLOPMonitor()])
    with pytest.raises(RuntimeError, match="forcast_loss"):
        trainer.fit(lightning_module(package, model(), validate=True), batches(ROWS, 8), batches(Rows(16), 8))


def test_fast_dev_run_does_nothing(tmp_path: Path) -> None:
    watch = IsoFLOPMonitor(record_dir=tmp_path)
    trainer = lightning_trainer(package, tmp_path, fast_dev_run=True, callbacks=[watch])
    trainer.fit(lightning_module(package, model()), batches(ROWS, 8))
    assert watch.monitor is None and not list(tmp_path.rglob("isoflop-*"))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_what_is_read_between_log_steps(accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor's value is asked for from our frames between log steps: on a GPU each would wait for the device."""
    from syncs import counted_syncs

    class Mark(package.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            found.mark(trainer.global_step)

    watch = IsoFLOPMonitor()
    options = {"log_every_n_steps": 4, "accumulate_grad_batches": accumulate, "callbacks": [watch, Mark()]}
    trainer = lightning_trainer(package, tmp_path, **options)
    with counted_syncs(monkeypatch) as found:
        trainer.fit(lightning_module(package, model()), batches(ROWS, 8 // accumulate))
    assert found.reads and set(found.steps()) <= {4, 8}, found.reads


def test_testing_with_a_checkpoint_does_not_turn_the_counts_back(tmp_path: Path) -> None:
    def test_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.net(**batch)["loss"])

    watch = IsoFLOPMonitor()
    folder = str(tmp_path / "c")  # Lightning 2.1 would put a Path into the checkpoint, which torch 2.6 refuses
    saver = package.callbacks.ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    trainer = lightning_trainer(package, tmp_path, enable_checkpointing=True, callbacks=[watch, saver])
    module = lightning_module(package, model(), test_step=test_step)
    trainer.fit(module, batches(ROWS, 8))
    path = tmp_path / "c" / "step=4.ckpt"
    trainer.test(module, batches(ROWS, 8), ckpt_path=path, verbose=False, **unpickling(trainer.test))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, batches(ROWS, 8))
    run = the_run(tmp_path)
    assert totals(run)["tokens"] == 128 * run.points[-1].step and run.points[-1].step > 8


def test_a_second_fit_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = IsoFLOPMonitor()
    trainer = lightning_trainer(package, tmp_path, callbacks=[watch])
    module = lightning_module(package, model())
    trainer.fit(module, batches(ROWS, 8))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, batches(ROWS, 8))
    run = the_run(tmp_path)
    assert totals(run) == {name: 2 * value for name, value in ROWS.totals().items()}
    assert [point.step for point in run.points] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert (run.status, run.attempts, run.problems) == ("completed", 2, ())
    assert "goes on from step" not in caplog.text


def test_a_callback_used_for_another_run_starts_anew(tmp_path: Path) -> None:
    watch = IsoFLOPMonitor()
    for name in "ab":
        fit(tmp_path / name, watch=watch)
        assert totals(the_run(tmp_path / name)) == ROWS.totals()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_a_copy_of_a_callback_used_for_another_run_starts_anew(copied: Any, tmp_path: Path) -> None:
    watch = IsoFLOPMonitor()
    fit(tmp_path / "a", watch=watch)
    fit(tmp_path / "b", watch=copied(watch))
    assert totals(the_run(tmp_path / "b")) == ROWS.totals()


def test_a_trainer_inside_of_a_trainer_with_its_callback_ends_the_outer_run(tmp_path: Path) -> None:
    watch = IsoFLOPMonitor()

    class Nests(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 4:
                fit(tmp_path / "inner", watch=watch)

    outer = fit(tmp_path / "outer", watch=watch, callbacks=[Nests()])
    assert (outer.status, outer.points[-1].step) == ("interrupted", 4)
    inner = the_run(tmp_path / "inner")
    assert inner.status == "completed" and totals(inner) == ROWS.totals()


def test_an_endless_run_has_no_planned_steps(tmp_path: Path) -> None:
    class Stop(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 4

    run = fit(tmp_path, max_epochs=-1, max_steps=-1, callbacks=[Stop()])
    assert run.planned["steps"] is None and run.end is not None
    assert run.end["step"] in (4, 8)


def test_an_interrupted_run_is_recorded_as_such(tmp_path: Path) -> None:
    class Fail(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        fit(tmp_path, callbacks=[Fail()])
    run = the_run(tmp_path)
    assert run.status == "interrupted" and run.end is not None
    assert (run.end["step"], run.end["tokens"]) == (5, 5 * 128)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_that_is_skipped_or_has_no_loss(tmp_path: Path) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx == 2 else self.net(**batch)["loss"]

    run = fit(tmp_path, module=lightning_module(package, model(), training_step=training_step))
    assert run.points[-1].tokens == 1024 and set(losses(run)) == {2, 4, 6, 8}


def test_the_terminals_line_and_how_to_silence_it(
    tmp_path: Path, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import logging

    fit(tmp_path / "a")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split(" · ")[0] for line in lines] == ["step 2", "step 4", "step 6", "step 8"]
    assert " · loss 3." in lines[0] and "tok/s/device" in lines[0] and "goodput" in lines[0]
    with caplog.at_level(logging.WARNING, "isoflop"):
        fit(tmp_path / "b")
    assert "tok/s" not in capsys.readouterr().out


FORWARD_BACKWARD = 3 * 2 * 16 * 64  # of a token, in the head below; its embedding needs none


class Pair:
    """A batch whose size no signature shows."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [("object", [8] * 5 + [32] * 6), ("texts", [8] * 5 + [32] * 6), ("trimmed", list(range(8, 20)))],
)
def test_flops_follow_the_calls_where_the_batch_does_not_tell_them(
    tmp_path: Path, kind: str, lengths: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    class Module(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Embedding(64, 16), torch.nn.Linear(16, 64))

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if kind == "object":
                return self.net(batch.tokens).sum()
            if kind == "texts":
                return self.net(torch.zeros(2, len(batch[0]), dtype=torch.long)).sum()
            return self.net(batch[:, : lengths[index]]).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

        def transfer_batch_to_device(self, batch: Any, *_: Any) -> Any:
            return batch

    full = torch.zeros(2, 32, dtype=torch.long)
    batches = {
        "object": [Pair(full[:, :length]) for length in lengths],
        "texts": [["a" * length] * 2 for length in lengths],
        "trimmed": [full] * len(lengths),
    }[kind]
    ours = IsoFLOPMonitor(tokens_fn=lambda batch: 1)
    trainer = lightning_trainer(package, tmp_path, callbacks=[ours])
    trainer.fit(Module(), torch.utils.data.DataLoader(batches, batch_size=None))
    assert ours.guard.aside == {}
    assert ours.monitor.totals.flops == sum(2 * length for length in lengths) * FORWARD_BACKWARD
    assert ("led to forward calls of different shapes" in caplog.text) is (kind == "trimmed")


def test_manual_optimization_that_returns_no_loss_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.optimizers().zero_grad()
        self.manual_backward(self.net(**batch)["loss"])
        self.optimizers().step()

    module = lightning_module(package, model(), training_step=training_step)
    module.automatic_optimization = False
    trainer = lightning_trainer(package, tmp_path, callbacks=[IsoFLOPMonitor(record_dir=tmp_path)], log_every_n_steps=2)
    trainer.fit(module, batches(Rows(16), 2))
    assert sum("training_step returns none" in record.message for record in caplog.records) == 1
