"""`IsoFLOPCallback`: the Hugging Face Trainer's events → `isoflop.Monitor`. Holds no mathematics.

Behind it, what the Trainer knows of the run (plan, precision, folders, tracking tools), and what of it is changed:
`SplitSteps`, for `noise_scale="split"`, calls its `training_step` with halves on measured steps.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import finalize

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import DefaultFlowCallback, ExportableState

from isoflop.flops.calls import put, watch
from isoflop.flops.totals import sum_over_ranks, world_size
from isoflop.guard import Guard, attempt, declare, hook
from isoflop.live.monitor import SETTLING, Monitor
from isoflop.live.options import Options
from isoflop.live.run_info import RunInfo, steps_of_epoch
from isoflop.live.scheduler import by_epoch
from isoflop.live.sinks import TensorBoardSink

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from isoflop.live.options import OptionsDict

_OURS = "isoflop/"
NO_TRAINER = 'the Trainer was not found: noise_scale="split" needs transformers.Trainer.train() to be what trains'
_STEP = declare("Hugging Face: on_step_end", "the run is not observed from here on")
_OUTPUT = declare("Hugging Face: the model's output", "a NaN loss that the Trainer filters out is not noticed")


class IsoFLOPCallback(TrainerCallback, ExportableState):
    """Counts a run's parameters, tokens and FLOPs, records loss against compute, writes TensorBoard by itself.

    Args:
        **options: `record_dir`, `log_every` and the others of `isoflop.live.options.Options`.

    Raises:
        ValueError, TypeError: an option that can't be.
    """

    def __init__(self, restored: dict[str, Any] | None = None, **options: Unpack[OptionsDict]) -> None:
        self._own_interval = Options.of(**options).log_every is not None  # a wrong option is told here, before training
        self.options = options
        self.restored = restored
        """State from a checkpoint, until training begins; the Trainer sets it when it re-creates callbacks."""
        self.guard = Guard()
        self.monitor: Monitor | None = None
        """The `Monitor` of the run, from the start of training on."""
        self._unbegun: Monitor | None = None  # no step of it has begun yet
        self._unwatch: Callable[[], None] = _nothing
        self._unended: finalize[Any, Any] | None = None
        self._evaluating = False
        self._split: SplitSteps | None = None
        self._shown = self._shown_at = 0  # log steps in the trainer's own log, and the last of them

    def __getstate__(self) -> dict[str, Any]:
        """What goes into another process or a copy: options and counts, not what observes this one's model."""
        state = None if self.monitor is None else self.monitor.state_dict()
        fresh = vars(type(self)(restored=state or self.restored, **self.options))
        return {**vars(self), **fresh}

    # -- start and end -------------------------------------------------------------------------------------------

    @hook("Hugging Face: on_train_begin", "the run is not observed from here on")
    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """The plan is known and a checkpoint is loaded."""
        self.guard.aside.clear()
        self.interrupted()
        name = type(self).__name__
        stored = state.stateful_callbacks.get(name)
        # without an entry the Trainer's next save raises a KeyError when the checkpoint it resumed had none
        state.stateful_callbacks.setdefault(name, self.state())
        monitor = Monitor(model, run=describe_training(args, state, kwargs, self.guard), **self.options)
        if state.global_step:
            stored = stored[0] if isinstance(stored, list) and stored else stored
            restored = self.restored or (stored or {}).get("attributes", {}).get("restored")
            if restored is not None:
                monitor.load_state_dict(restored)
            monitor.expect(state.global_step)
        self.restored = None
        self.monitor = monitor
        # by methods that are kept weakly: a class that knows its listeners must not keep an abandoned run alive
        self._unwatch = watch(model, monitor.forward, self._look_at_loss, monitor.observer.evaluates)
        finalize(self, self._unwatch)
        self._unended = finalize(self, _interrupt, monitor, os.getpid())  # as late as at the process's end
        trainer = find_trainer()
        if trainer is not None:
            self._go_before_reporters(trainer.callback_handler)
        strategy = getattr(args.logging_strategy, "value", args.logging_strategy)
        if strategy == "no" and self.options.get("log_every") is None:
            self.guard.once(
                'logging_strategy="no": the Trainer logs no loss, so the record gets one point, at the end. Pass '
                "log_every= for more"
            )
        if monitor.options.noise_scale == "split":
            if trainer is None:
                monitor.noise.refuse(NO_TRAINER)
            else:
                self._split = SplitSteps(trainer, monitor)
        if trainer is not None:
            see_first_loss(trainer, monitor.observer.tally.see)
        monitor.start()
        self._unbegun = monitor

    @hook("Hugging Face: on_train_end", "the record has no end line")
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last point and the totals."""
        if self._unended is not None:
            self._unended.detach()
        self._unwatch()
        self._unsplit()
        if self.monitor is not None:
            self.monitor.finish()

    def interrupted(self) -> None:
        """Training has ended in an exception, or another one begins."""
        self._unwatch()
        self._unsplit()
        if self._unended is not None:
            self._unended()

    def _go_before_reporters(self, handler: Any) -> None:
        """Let what reports get our scalars with the trainer's own log, and what prints that log leave them out.

        TensorBoard's own writer has no need of them, for the event files have them by their own names.
        """
        others = [each for each in handler.callbacks if not (isinstance(each, _Relay) and each.callback is self)]
        first = [each for each in others if isinstance(each, DefaultFlowCallback)]
        first += [each for each in others if type(each).__name__ == "TensorBoardCallback"]
        last = [each for each in others if type(each).__name__.endswith(("PrinterCallback", "ProgressCallback"))]
        between = [each for each in others if each not in first and each not in last]
        # a new list, for the Trainer is going through the old one
        handler.callbacks = [*first, _Relay(self, adds=True), *between, _Relay(self, adds=False), *last]

    def _unsplit(self) -> None:
        if self._split is not None:
            self._split.undo()
            self._split = None

    # -- a training step -----------------------------------------------------------------------------------------

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first step is observed from here on: a generation or a reference's call may come before the model's."""
        monitor, self._unbegun = self._unbegun, None
        if monitor is not None:
            with monitor.guard.part(SETTLING):
                monitor.observer.observe_next()

    def _look_at_loss(self, output: Any) -> None:
        if self.monitor is None or _OUTPUT in self.guard.aside:
            return
        try:
            loss = output.get("loss") if isinstance(output, dict) else None
            if isinstance(loss, torch.Tensor):
                # The Trainer logs a NaN loss as 0 (logging_nan_inf_filter); it is believed unless these say NaN. On the
                # CPU they wait to be read: the Trainer has the mean, and here nobody looks for more than a NaN
                loss = loss if loss.dim() == 0 else loss.detach().mean()
                self.monitor.observer.tally.add_loss(loss.data if loss.is_cpu else loss, 1.0, loss.is_cpu)
        except Exception as error:
            self.guard.failed(_OUTPUT, error)

    # Every rank calls `Monitor.step`, `log` and `sync` as often as the others, which wait there: what may fail is
    # behind a boundary of its own.

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An optimizer step is done; evaluation and saving may follow."""
        monitor = self.monitor
        if monitor is None:
            return
        if _STEP not in self.guard.aside:
            try:
                monitor.step()
                if self._own_interval and state.global_step % monitor.log_every == 0:
                    control.should_log = True
                elif state.global_step >= state.max_steps and not control.should_log:
                    control.should_log = not self._log_the_end(args, monitor)
            except Exception as error:
                self._unwatch()
                self.guard.failed(_STEP, error)
        if control.should_save or control.should_evaluate:
            self._what_follows(monitor, control)

    def _log_the_end(self, args: Any, monitor: Monitor) -> bool:
        """The last interval, which the Trainer itself does not log: its log stays what it is without us."""
        if getattr(args.logging_strategy, "value", args.logging_strategy) == "epoch":
            return True  # it comes with the epoch's end
        loss = attempt(mean_loss, monitor.run.together)
        if loss is not None:
            monitor.log(loss)
        return loss is not None

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluation and saving by epoch follow."""
        if self.monitor is not None:
            self._what_follows(self.monitor, control)

    def _what_follows(self, monitor: Monitor, control: Any) -> None:
        if control.should_save:
            monitor.sync()  # rank 0 alone is asked for its state; here are all ranks
        if control.should_evaluate:
            self._enter_evaluation(monitor)
        elif control.should_save:
            monitor.enter("checkpoint")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """The interval's mean loss, gathered over ranks by the Trainer. Called by a `_Relay` first."""
        if self.monitor is None or logs is None or "loss" not in logs or "learning_rate" not in logs:
            return  # not a log step: the totals of the end, or a call by the user's own code, perhaps on one rank
        self._log(self.monitor, logs)
        if self._shown_at != state.global_step == self.monitor.steps:  # else of a training that is not observed
            self._shown_at = state.global_step
            self._show(self.monitor, args, state, control, logs)
            self._draw_against_flops()

    @hook("Hugging Face: on_log", "nothing more is recorded or shown")
    def _log(self, monitor: Monitor, logs: dict[str, Any]) -> None:
        monitor.log(float(logs["loss"]))

    @hook("Hugging Face: the trainer's log", "reporters and trainer_state.json do not get isoflop's scalars")
    def _show(self, monitor: Monitor, args: Any, state: Any, control: Any, logs: dict[str, Any]) -> None:
        if monitor.should_stop:
            control.should_training_stop = True
            control.should_save = str(getattr(args.save_strategy, "value", args.save_strategy)) != "no"
        finite = {name: value for name, value in monitor.scalars.items() if math.isfinite(value)}
        logs.update(finite)
        self._shown += 1
        last = state.global_step >= state.max_steps
        if state.log_history and (last or self._shown.bit_count() == 1):  # the 1st, 2nd, 4th …
            state.log_history[-1].update(finite)  # trainer_state.json holds it, anew in each checkpoint

    @hook("Weights & Biases", "no loss against FLOPs there")
    def _draw_against_flops(self) -> None:
        if self._shown == 1:
            flops_axis_in_wandb()

    # -- evaluation and checkpoints ------------------------------------------------------------------------------

    def _enter_evaluation(self, monitor: Monitor) -> None:
        if not self._evaluating:
            self._evaluating = True
            monitor.enter("evaluation")

    @hook("Hugging Face: on_prediction_step", "goodput is wrong")
    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An evaluation step: of several sets, each but the first begins without another sign."""
        if self.monitor is not None:
            self._enter_evaluation(self.monitor)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Record the losses of the evaluation sets."""
        if self.monitor is None:
            return
        self._evaluating = False
        self.monitor.leave("evaluation")
        self.monitor.sync()
        self._record_evaluation(self.monitor, metrics or {})
        if control.should_save:
            self.monitor.enter("checkpoint")

    @hook("Hugging Face: on_evaluate", "losses of evaluation sets are not recorded")
    def _record_evaluation(self, monitor: Monitor, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            if name.startswith("eval_") and name.endswith("loss"):
                monitor.evaluate(name.removeprefix("eval_").removesuffix("loss").strip("_") or "eval", value)

    @hook("Hugging Face: on_save", "goodput is wrong")
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint has been saved."""
        if self.monitor is not None:
            self.monitor.leave("checkpoint")

    def state(self) -> dict[str, Any]:
        """Plain values for `trainer_state.json`; called on rank 0 when it saves."""
        plain = {key: value for key, value in self.options.items() if isinstance(value, int | float | str)}
        plain |= {key: os.fspath(value) for key, value in self.options.items() if isinstance(value, os.PathLike)}
        return {"args": plain, "attributes": {"restored": self._state()}}

    @hook("Hugging Face: state", "a resumed run counts from 0")
    def _state(self) -> dict[str, Any] | None:
        return None if self.monitor is None else self.monitor.state_dict()


class _Relay(TrainerCallback):
    """A place in the Trainer's list of callbacks: from here on its log has our scalars, or has them no longer."""

    def __init__(self, callback: IsoFLOPCallback, adds: bool) -> None:
        self.callback, self._adds = callback, adds

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Before the reporters, or after them."""
        if self._adds:
            self.callback.on_log(args, state, control, logs, **kwargs)
        else:
            logs = {} if logs is None else logs
            for name in [name for name in logs if name.startswith(_OURS)]:
                del logs[name]


def _nothing() -> None:
    """Stands for what is to be undone where nothing was done."""


def _telling_its_end(loop: Any, ours: type[IsoFLOPCallback] = IsoFLOPCallback) -> Any:
    """The Trainer has no hook for an exception, which its search for a batch size may catch, or a notebook."""

    @wraps(loop)
    def _inner_training_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return loop(self, *args, **kwargs)
        except BaseException:  # also Ctrl-C; raised on
            for callback in getattr(getattr(self, "callback_handler", None), "callbacks", ()):
                if isinstance(callback, ours):
                    attempt(callback.interrupted)
            raise

    return _inner_training_loop


put(Trainer, "_inner_training_loop", _telling_its_end)


def _interrupt(monitor: Monitor, process: int) -> None:
    """End an abandoned run; a forked child has its parent's exit functions."""
    if os.getpid() == process:
        attempt(monitor.finish, False)


# -- the Trainer -------------------------------------------------------------------------------------------------------


def find_trainer() -> Any:
    """The Trainer that calls us: a callback is not given it. None where there is none."""
    frame = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None


def see_first_loss(trainer: Any, see: Callable[[Any], None]) -> None:
    """Show the first loss that is trained on, with its graph; from then on the Trainer's method is as it was."""
    compute, before = trainer.compute_loss, vars(trainer).get("compute_loss")

    @wraps(compute)
    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        found = compute(*args, **kwargs)
        loss = found[0] if isinstance(found, tuple) else found
        if getattr(loss, "requires_grad", False) and vars(trainer).get("compute_loss") is compute_loss:
            del trainer.compute_loss
            vars(trainer).update({} if before is None else {"compute_loss": before})
            attempt(see, loss)
        return found

    trainer.compute_loss = compute_loss


class SplitSteps:
    """Takes the place of a Trainer's `training_step` and `compute_loss` until `undo`."""

    def __init__(self, trainer: Any, monitor: Monitor) -> None:
        self._trainer, self._monitor = trainer, monitor
        self._step, self._loss = trainer.training_step, trainer.compute_loss
        self._share: float | None = None
        self._before = {name: each for name, each in vars(trainer).items() if name in ("training_step", "compute_loss")}
        trainer.training_step, trainer.compute_loss = self._training_step, self._compute_loss

    def undo(self) -> None:
        """Leave the Trainer as it was."""
        for name in ("training_step", "compute_loss"):
            vars(self._trainer).pop(name, None)
        vars(self._trainer).update(self._before)

    def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        found = self._loss(*args, **kwargs)
        if self._share is None:
            return found
        return (found[0] * self._share, *found[1:]) if isinstance(found, tuple) else found * self._share

    def _training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None, *rest: Any) -> Any:
        def losses(batches: list[Any]) -> list[Any]:
            return [self._loss(model, self._trainer._prepare_inputs(each)) for each in batches]

        parts = self._monitor.noise.halves(inputs, self._monitor.observer.count, losses)
        if parts is None:
            return self._step(model, inputs, num_items_in_batch, *rest)
        summed: Any = 0
        for half in parts:
            # with the step's number of labels a half's loss is its share already
            self._share = half.share if num_items_in_batch is None else None
            summed = self._step(model, half.batch, num_items_in_batch, *rest) + summed
        self._share = None
        return summed


def describe_training(args: Any, state: Any, given: Mapping[str, Any], guard: Guard) -> RunInfo:
    """Read the run's plan from `TrainingArguments`, `TrainerState` and what callbacks are given."""
    output, folder = Path(args.output_dir), _tensorboard_folder(args)
    name, scheduler = getattr(args, "run_name", None), given.get("lr_scheduler")
    together = args.world_size == world_size()  # else each process of the user's own group has a Trainer for itself
    run = RunInfo(
        framework="transformers",
        guard=guard,
        record_dir=output,
        log_every=max(1, int(state.logging_steps or 1)),
        logs_itself=True,
        together=together,
        lockstep=together,
        run_name=output.resolve().name if name in (None, "", args.output_dir) else name,  # some versions put that there
        own=None if folder == output else "",
        events=folder,
        total_steps=state.max_steps if state.max_steps and state.max_steps > 0 else None,
        epoch_steps=steps_of_epoch(given.get("train_dataloader"), args.gradient_accumulation_steps),
        optimizer=given.get("optimizer"),
        schedule=None if scheduler is None else str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        scheduler=scheduler,
        scheduler_calls=None if scheduler is None else by_epoch(1),  # once an optimizer step
        accumulate=args.gradient_accumulation_steps,
        dtype=torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None,
        precision="bf16" if args.bf16 else "fp16" if args.fp16 else None,
        trainer=tuple(type(each).__name__ for each in (find_trainer(), args) if each is not None),
        label_smoothing=float(getattr(args, "label_smoothing_factor", 0) or 0),
        tokenizer=_tokenizer_name(given.get("processing_class")),
        data=_dataset_name(given.get("train_dataloader")),
    )
    if state.is_world_process_zero:
        run.sinks.append(TensorBoardSink(folder, run))
    return run


def _tokenizer_name(tokenizer: Any) -> str | None:
    if tokenizer is None:
        return None
    return getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__


def _dataset_name(loader: Any) -> str | None:
    dataset = getattr(loader, "dataset", None)
    info = getattr(dataset, "info", None)
    return getattr(info, "dataset_name", None) or (None if dataset is None else type(dataset).__name__)


def _tensorboard_folder(args: Any) -> Path:
    """The Trainer's own TensorBoard folder, where it writes one; else the output folder."""
    folder = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if folder:
        return Path(folder).expanduser()
    # its name holds the second at which the Trainer's callback was called, just before ours
    runs = [path for path in Path(args.output_dir, "runs").glob("*") if path.is_dir()]
    if "tensorboard" in (args.report_to or []) and runs:
        return max(runs, key=lambda path: path.stat().st_mtime_ns)
    return Path(args.output_dir)


def mean_loss(together: bool) -> float:
    """What the Trainer would log now: the mean over the steps since its last log. Every rank of its calls it."""
    trainer, frame = find_trainer(), sys._getframe()
    total = getattr(trainer, "_tr_loss", None)
    while total is None:  # before 5.0 it is a variable of the training loop
        total, frame = frame.f_locals.get("tr_loss"), frame.f_back  # type: ignore[assignment]
    (mean,) = sum_over_ranks([], [float(total) / world_size()])[1] if together else [float(total)]
    return mean / (trainer.state.global_step - trainer._globalstep_last_logged)


def flops_axis_in_wandb() -> None:
    """Let the Trainer's W&B run draw the loss against FLOPs; what the Trainer logs is "train/…" there."""
    run = getattr(sys.modules.get("wandb"), "run", None)
    if run is not None:
        run.define_metric("train/isoflop/loss", step_metric="train/isoflop/flops")
