"""`IsoFLOPCallback` in real Trainers, given as `callbacks=[IsoFLOPCallback()]` and nothing else."""

from __future__ import annotations

import gc
import json
import logging
import math
import pickle
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from isoflop.live import AXES, SCALARS
from isoflop.record import Run, read_runs
from isoflop.transformers import IsoFLOPCallback
from tiny import VOCABULARY, WIDTH, Rows, losses, model, same_weights, the_run, totals, weights
from trainers import hf_arguments, hf_trainer

ROWS = Rows(64)


def train(folder: Path, net: nn.Module | None = None, *, watch: Any = None, rows: Any = ROWS, **options: Any) -> Run:
    watch = watch or IsoFLOPCallback()
    callbacks = [watch, *options.pop("callbacks", [])]
    resume = options.pop("resume", None)
    hf_trainer(model() if net is None else net, folder, rows, callbacks, **options).train(resume_from_checkpoint=resume)
    assert not watch.guard.aside
    return the_run(folder)


def events_below(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = [path for path in folder.rglob("events.*")]
    assert len({path.parent for path in found}) == 1, "one run in TensorBoard, not two"
    return EventAccumulator(str(found[0].parent)).Reload()


@pytest.mark.parametrize("accumulate", [1, 4])
def test_training_is_unchanged_to_the_bit(accumulate: int, tmp_path: Path) -> None:
    def trained(callbacks: list[Any]) -> dict[str, torch.Tensor]:
        net = model(dropout=0.2)
        sizes = {"per_device_train_batch_size": 8 // accumulate, "gradient_accumulation_steps": accumulate}
        hf_trainer(net, tmp_path, ROWS, callbacks, max_steps=20, **sizes).train()
        return weights(net)

    assert same_weights(trained([]), trained([IsoFLOPCallback()]))


def test_what_the_record_says_of_the_run(tmp_path: Path) -> None:
    run = train(tmp_path)
    assert (run.framework, run.status) == ("transformers", "completed")
    rates = run.planned.pop("learning_rates")
    assert run.planned == {"steps": 8, "schedule": "constant", "accumulate": 1} and set(rates["lr"]) == {0.01}
    assert run.optimizer is not None and run.optimizer["class"] == "AdamW" and run.optimizer["lr"] == 0.01
    assert run.points[-1].lr == 0.01
    assert run.model["class"] == "tiny.TinyLM" and run.data == "Rows"


@pytest.mark.parametrize("report_to", ["none", ["tensorboard"]])
def test_tensorboard_with_or_without_the_trainers_own_writer(report_to: Any, tmp_path: Path) -> None:
    train(tmp_path, report_to=report_to)
    events = events_below(tmp_path)
    assert ("train/loss" in events.Tags()["scalars"]) == (report_to != "none")
    flops = events.Scalars("isoflop_counts/flops")
    assert [(event.step, event.value) for event in flops] == [
        (step, ROWS.totals()["flops"] / 8 * step) for step in (2, 4, 6, 8)
    ]
    for tag in AXES:
        steps = [event.step for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []
        assert steps == sorted(set(steps))
    assert [event.step for event in events.Scalars("isoflop/1000log10C_loss")] == [6771, 7072, 7248, 7373]


def test_runs_of_one_output_folder_are_called_as_tensorboard_lists_them(tmp_path: Path) -> None:
    """A script that is run again has a curve of its own; its passport lies beside its checkpoints."""
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    for name in (None, None, str(tmp_path / "llama"), "wide"):
        hf_trainer(model(), tmp_path / "llama", ROWS, [IsoFLOPCallback()], run_name=name).train()
    names = {"llama", "llama-2", "llama-3", "wide"}
    assert {run.name for run in read_runs(tmp_path)} == names
    listed = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload().Runs()
    assert set(listed) == {"llama", *(f"llama/{name}" for name in names - {"llama"})}
    assert json.loads((tmp_path / "llama" / "isoflop-passport.json").read_text())["name"] == "wide"


def test_tensorboard_has_each_log_step_at_once(tmp_path: Path) -> None:
    """A process that is killed closes no file, and a resumed one does not write earlier steps again."""
    from transformers import TrainerCallback

    seen: dict[int, list[int]] = {}

    class Looks(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            events = events_below(tmp_path)
            seen[state.global_step] = [event.step for event in events.Scalars("isoflop_counts/flops")]

    train(tmp_path, callbacks=[Looks()], save_strategy="steps", save_steps=3)
    assert seen == {3: [2], 6: [2, 4, 6], 8: [2, 4, 6, 8]}


@pytest.mark.parametrize("strategy", ["steps", "epoch", "no"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainers_history_is_what_it_is_without(strategy: str, accumulate: int, tmp_path: Path) -> None:
    """But for few entries with the scalars, of which `isoflop import` makes a run; and it is JSON."""

    def history(folder: str, callbacks: list[Any]) -> list[dict[str, Any]]:
        def refuse(text: str) -> None:
            raise AssertionError(f"{text} is no JSON")

        sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulate, "num_train_epochs": 1}
        saving = {"save_strategy": "steps", "save_steps": 8, "logging_strategy": strategy, "logging_steps": 3}
        trainer = hf_trainer(model(), tmp_path / folder, Rows(32 * accumulate), callbacks, **sizes, **saving)
        trainer.train()
        for step in (8, 16):
            text = (tmp_path / folder / f"checkpoint-{step}" / "trainer_state.json").read_text()
            json.loads(text, parse_constant=refuse)
        return [
            {k: v for k, v in each.items() if "_per_second" not in k and "runtime" not in k}
            for each in trainer.state.log_history
        ]

    found = history("with", [IsoFLOPCallback()])
    ours = [each["step"] for each in found if any(name.startswith("isoflop/") for name in each)]
    assert ours == {"steps": [3, 6, 12], "epoch": [16], "no": []}[strategy]
    assert not any(name.startswith("isoflop/") and name not in SCALARS for each in found for name in each)
    without = [{name: each[name] for name in each if not name.startswith("isoflop/")} for each in found]
    assert without == history("without", [])
    run = the_run(tmp_path / "with")
    assert [point.step for point in run.points] == {"steps": [3, 6, 9, 12, 15, 16], "epoch": [16], "no": [16]}[strategy]
    steps = {point.step: point.losses["train"] * point.interval_steps for point in run.points}  # type: ignore[operator]
    digits = {"abs": 5e-5} if transformers.__version__ < "5" else {}  # transformers 4 rounds what it logs to four
    assert sum(steps.values()) / 16 == pytest.approx(found[-1]["train_loss"], rel=1e-5, **digits)


def test_evaluation_in_between_is_recorded_and_not_counted(tmp_path: Path) -> None:
    sets = {"books": Rows(24, seed=5), "code": Rows(24, seed=6)}
    trainer = hf_trainer(
        model(), tmp_path, ROWS, [IsoFLOPCallback()], sets, eval_strategy="steps", eval_steps=3, logging_steps=3
    )
    trainer.train()
    run = the_run(tmp_path)
    assert totals(run) == ROWS.totals()
    assert [point.tokens for point in run.points] == [128 * point.step for point in run.points]
    history = trainer.state.log_history
    for name in sets:
        seen = {entry["step"]: entry[f"eval_{name}_loss"] for entry in history if f"eval_{name}_loss" in entry}
        assert losses(run, f"eval/{name}") == seen and list(seen)[:2] == [3, 6]  # and at the end, from 5.10 on
    assert list(losses(run)) == [3, 6, 8]


def test_load_best_model_at_end(tmp_path: Path) -> None:
    trainer = hf_trainer(
        model(),
        tmp_path,
        ROWS,
        [IsoFLOPCallback()],
        Rows(24, seed=5),
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="best",
        metric_for_best_model="eval_loss",
        load_best_model_at_end=True,
    )
    trainer.train()
    assert totals(the_run(tmp_path)) == ROWS.totals()
    state = json.loads(next(tmp_path.glob("checkpoint-*/trainer_state.json")).read_text())
    stored = state["stateful_callbacks"]["IsoFLOPCallback"]["attributes"]["restored"]
    assert stored["totals"]["processed"] == 128 * state["global_step"]


class NotANumber(nn.Module):
    """Its loss is NaN at one batch; the gradient, and with it the training, stays whole."""

    def __init__(self, at: int, bad: float) -> None:
        super().__init__()
        self.inner, self.calls, self.at, self.bad = model(), 0, at, bad

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
        out = self.inner(input_ids, attention_mask, labels)
        self.calls += self.training
        if self.calls == self.at:
            out["loss"] = out["loss"] * 0 + self.bad
        return out


@pytest.mark.parametrize("filtered", [True, False])
def test_a_loss_that_is_not_a_number_is_noticed(
    filtered: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(tmp_path, NotANumber(3, math.nan), logging_nan_inf_filter=filtered)
    nan = {"train": "nan"}
    # without the filter the Trainer's own sum stays NaN to the end
    assert [point.nonfinite for point in run.points] == ([{}, nan, {}, {}] if filtered else [{}, nan, nan, nan])
    assert all((losses(run)[point.step] is None) == bool(point.nonfinite) for point in run.points)
    said = "the training loss is nan in the interval that ends at step 4; recorded as null. Training goes on"
    assert caplog.text.count("the training loss is") == caplog.text.count(said) == 1
    assert totals(run) == ROWS.totals()


def test_a_checkpoint_that_was_saved_without_us(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"save_strategy": "steps", "save_steps": 3}
    net = model()
    hf_trainer(net, tmp_path, ROWS, [], max_steps=3, **options).train()
    run = train(tmp_path, model(), resume=True, **options)
    assert (tmp_path / "checkpoint-6").exists() and (tmp_path / "checkpoint-8").exists()
    assert [point.step for point in run.points] == [4, 6, 8]
    assert run.points[-1].tokens == 5 * 128
    said = "training goes on from step 3, but the checkpoint holds isoflop's counts up to step 0"
    assert caplog.text.count(said) == 1


@pytest.mark.parametrize("restores", [False, True])
def test_a_resumed_run_goes_on(restores: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {
        "save_strategy": "steps",
        "save_steps": 4,
        "restore_callback_states_from_checkpoint": restores,
    }

    class Interrupt(Exception):
        pass

    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise Interrupt

    with pytest.raises(Interrupt):
        train(tmp_path, callbacks=[Stop()], **options)
    gc.collect()  # in a new process the interrupted run's record would be nobody's
    run = train(tmp_path, resume=True, **options)
    assert totals(run) == ROWS.totals()
    assert [point.step for point in run.points] == [2, 4, 6, 8] and run.attempts == 2
    assert "goes on from step" not in caplog.text


def test_an_interrupted_trainer_trains_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A notebook's way: interrupt, then `train(resume_from_checkpoint=True)` on the same Trainer."""
    from transformers import TrainerCallback

    class Interrupt(TrainerCallback):
        armed = True

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5 and self.armed:
                self.armed = False
                raise KeyboardInterrupt

    watch = IsoFLOPCallback()
    callbacks = [watch, Interrupt()]
    trainer = hf_trainer(model(), tmp_path, ROWS, callbacks, save_strategy="steps", save_steps=4)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train(resume_from_checkpoint=True)
    run = the_run(tmp_path)
    assert totals(run) == ROWS.totals()
    assert (run.attempts, run.status, run.problems) == (2, "completed", ())
    assert not trainer.model._forward_pre_hooks and not trainer.model._forward_hooks


def test_bfloat16_and_torch_compile(tmp_path: Path) -> None:
    run = train(tmp_path, bf16=True, torch_compile=True, torch_compile_backend="aot_eager")
    assert totals(run) == ROWS.totals()
    assert (run.device["dtype"], run.model["class"]) == ("bfloat16", "tiny.TinyLM")


def test_a_model_compiled_in_place_as_one_graph(tmp_path: Path) -> None:
    net = model()
    net.compile(backend="eager", fullgraph=True)
    assert totals(train(tmp_path, net)) == ROWS.totals()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_model_in_torch_compiles_wrapper(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    plain = train(tmp_path / "plain", GPT2LMHeadModel(config))
    net = torch.compile(GPT2LMHeadModel(config), backend="eager")
    compiled = train(tmp_path / "compiled", net, remove_unused_columns=False)
    assert totals(compiled) == totals(plain) and compiled.model == plain.model
    assert plain.points[-1].loss_tokens == int((ROWS.labels[:, 1:] != -100).sum())


def test_what_reports_gets_the_scalars_with_the_trainers_own_log(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """A reporter of one's own and MLflow's, W&B's axis; what prints the log leaves them out."""
    from transformers import TrainerCallback

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    logged: list[dict[str, Any]] = []

    class Reporter(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            logged.append(dict(logs))

    defined: list[Any] = []
    fake = SimpleNamespace(define_metric=lambda *names, **how: defined.append((names, how)))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=fake))
    mlflow = pytest.importorskip("mlflow")
    train(tmp_path, callbacks=[Reporter()], report_to=["mlflow"])
    flops = [ROWS.totals()["flops"] / 8 * step for step in (2, 4, 6, 8)]
    assert [entry["isoflop/flops"] for entry in logged[:4]] == flops and "train_runtime" in logged[4]
    assert not any(set(entry) & set(AXES) for entry in logged)
    client = mlflow.MlflowClient()
    run = client.search_runs([client.get_experiment_by_name("Default").experiment_id])[0].info.run_id
    assert [each.value for each in client.get_metric_history(run, "isoflop/flops")] == flops
    assert defined == [(("train/isoflop/loss",), {"step_metric": "train/isoflop/flops"})]
    assert "'loss'" in (printed := capsys.readouterr().out) and "isoflop/" not in printed


def test_copies_and_pickles_carry_options_and_counts(tmp_path: Path) -> None:
    """As for processes that are spawned: what observes this process's model stays here."""
    watch = IsoFLOPCallback(log_every=3)
    assert pickle.loads(pickle.dumps(watch)).options == {"log_every": 3}
    train(tmp_path, watch=watch)
    for copy in (pickle.loads(pickle.dumps(watch)), deepcopy(watch)):
        assert copy.monitor is None and copy.restored["steps"] == 8


class RaisesInAnObservedStep(torch.optim.SGD):
    """In the step of this number."""

    def __init__(self, net: nn.Module, error: BaseException, at: int) -> None:
        super().__init__(net.parameters(), lr=0.1)
        self.error, self.at, self.steps = error, at, 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        if self.steps == self.at:
            raise self.error
        return super().step(closure)


@pytest.mark.parametrize("at", [1, 2, 3, 6])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("of the user's own")])
def test_an_exception_in_the_optimizers_step(error: BaseException, at: int, tmp_path: Path) -> None:
    """A notebook keeps the Trainer, and the exception's frames; what trains then is as without isoflop."""
    net = model()
    trainer = hf_trainer(net, tmp_path, ROWS, [IsoFLOPCallback()])
    trainer.optimizer = RaisesInAnObservedStep(net, error, at)
    with pytest.raises(type(error)) as kept:
        trainer.train()
    assert kept.value is error and torch._C._len_torch_dispatch_stack() == 0
    if at > 1:
        run = the_run(tmp_path)
        assert run.status == "interrupted" and run.points[-1].step == at - 1


def test_a_batch_size_that_is_searched_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer catches "out of memory", here as the optimizer makes its state, and begins again."""
    monkeypatch.setattr("accelerate.utils.memory.time", SimpleNamespace(sleep=lambda _: None), raising=False)
    found, modes = [], []
    for callbacks in ([IsoFLOPCallback(record_dir=tmp_path / "record")], []):
        net = model()

        class Searches(transformers.Trainer):
            def create_optimizer(self, *_: Any) -> Any:
                modes.append(torch._C._len_torch_dispatch_stack())
                at = 1 if self._train_batch_size > 5 else 0
                self.optimizer = RaisesInAnObservedStep(self.model, RuntimeError("CUDA out of memory."), at)
                return self.optimizer

        arguments = hf_arguments(tmp_path / "out", auto_find_batch_size=True)
        Searches(net, arguments, train_dataset=ROWS, callbacks=callbacks).train()
        found.append(weights(net))
    assert same_weights(*found) and not any(modes) and len(modes) > 2
    assert totals(the_run(tmp_path / "record")) == ROWS.totals()


@pytest.mark.parametrize("accumulate", [1, 4])
def test_what_is_read_between_log_steps(accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor's value is asked for from our frames between log steps: on a GPU each would wait for the device."""
    from transformers import TrainerCallback

    from syncs import counted_syncs

    class Mark(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found.mark(state.global_step)

    sizes = {"per_device_train_batch_size": 8 // accumulate, "gradient_accumulation_steps": accumulate}
    with counted_syncs(monkeypatch) as found:
        train(tmp_path, logging_steps=4, callbacks=[Mark()], **sizes)
    assert found.reads and set(found.steps()) <= {4, 8}, [r for r in found.reads if r[0] not in (4, 8)]


def test_own_interval(tmp_path: Path) -> None:
    run = train(tmp_path, watch=IsoFLOPCallback(log_every=3), logging_steps=100)
    assert [point.step for point in run.points] == [3, 6, 8]


def test_a_users_own_log_call_is_no_log_step(tmp_path: Path) -> None:
    from transformers import Trainer

    from trainers import hf_arguments

    class Talkative(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            self.log({"loss": 99.0})
            return loss

    trainer = Talkative(model(), hf_arguments(tmp_path), train_dataset=ROWS, callbacks=[IsoFLOPCallback()])
    trainer.train()
    run = the_run(tmp_path)
    assert list(losses(run)) == [2, 4, 6, 8] and all(loss is not None and loss < 5 for loss in losses(run).values())


def test_the_terminals_line_and_how_to_silence_it(tmp_path: Path, capsys: Any, caplog: Any) -> None:
    train(tmp_path / "a")
    assert [line.split(" · ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("step ")] == [
        "step 2",
        "step 4",
        "step 6",
        "step 8",
    ]
    with caplog.at_level(logging.WARNING, "isoflop"):
        train(tmp_path / "b")
    assert "tok/s" not in capsys.readouterr().out


class _CallsWithoutGradientsFirst(transformers.Trainer):
    """As TRL's KTO: other completions go through the model ahead of its training call; each step has its own length."""

    def compute_loss(self, model: nn.Module, inputs: Any, *rest: Any, **more: Any) -> Any:
        inputs = {name: value[:, : 8 + self.state.global_step] for name, value in inputs.items()}
        with torch.no_grad():
            model(**{name: value.flip(0) for name, value in inputs.items()})
        return super().compute_loss(model, inputs, *rest, **more)


def test_a_first_step_is_counted_from_its_beginning_on(tmp_path: Path) -> None:
    _CallsWithoutGradientsFirst(
        model(),
        hf_arguments(tmp_path, max_steps=3, per_device_train_batch_size=4),
        train_dataset=Rows(12),
        callbacks=[IsoFLOPCallback(record_dir=tmp_path / "record")],
    ).train()
    each = 2 * (11 * WIDTH * WIDTH + VOCABULARY * WIDTH)  # a token's products, but for those of attention
    forward = [4 * (length * each + 4 * length * length * WIDTH) for length in (8, 9, 10)]
    assert totals(the_run(tmp_path / "record"))["flops"] == 4 * sum(forward)  # twice forward, and backward


@pytest.mark.parametrize("options", [{}, {"noise_scale": "split"}])
def test_methods_that_a_user_put_on_the_trainer_stay(options: dict[str, Any], tmp_path: Path) -> None:
    """In a Trainer's own dictionary, as tools that patch one do; training once more has them too."""
    trainer, called = hf_trainer(model(), tmp_path, ROWS, [IsoFLOPCallback(**options)]), []
    for name in ("compute_loss", "training_step"):
        theirs = getattr(trainer, name)

        def mine(*args: Any, name: str = name, theirs: Any = theirs, **kwargs: Any) -> Any:
            called.append(name)
            return theirs(*args, **kwargs)

        setattr(trainer, name, mine)
    before = dict(vars(trainer))
    for _ in range(2):
        called.clear()
        trainer.train()
        assert set(called) == {"compute_loss", "training_step"}
        assert all(vars(trainer)[name] is before[name] for name in ("compute_loss", "training_step"))
