"""`IsoFLOPCallback`: the Hugging Face Trainer's events → `isoflop.Monitor`. Holds no mathematics."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any
from weakref import finalize, ref

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from isoflop.flops.calls import watch
from isoflop.guard import Guard, hook
from isoflop.live.monitor import Monitor
from isoflop.live.options import Options
from isoflop_transformers.split import NO_TRAINER, SplitSteps, find_trainer
from isoflop_transformers.trainer import describe_training

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from isoflop.live.options import OptionsDict

_UNSEEN = "the run is not observed from here on"
_STEP = "Hugging Face: on_step_end"


class IsoFLOPCallback(TrainerCallback, ExportableState):
    """Counts a run's parameters, tokens and FLOPs, records loss against compute, writes TensorBoard by itself.

    Args:
        **options: `record_dir`, `log_every` and the others of `isoflop.live.options.Options`.

    Raises:
        ValueError, TypeError: an option that can't be.
    """

    def __init__(self, restored: dict[str, Any] | None = None, **options: Unpack[OptionsDict]) -> None:
        Options.of(**options)  # a wrong option is told here, before training
        self.options = options
        self.restored = restored
        """State from a checkpoint, until training begins; the Trainer sets it when it re-creates callbacks."""
        self.guard = Guard()
        self.monitor: Monitor | None = None
        """The `Monitor` of the run, from the start of training on."""
        self._unwatch = lambda: None
        self._evaluating = False
        self._split: SplitSteps | None = None

    # -- start and end -------------------------------------------------------------------------------------------

    @hook("Hugging Face: on_train_begin", _UNSEEN)
    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """The plan is known and a checkpoint is loaded."""
        self.guard.aside.clear()
        self._unwatch()
        if self.monitor is not None:
            self.monitor.finish(completed=False)  # a run that was interrupted: the Trainer has no hook for that
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
        weakly = ref(self)  # a class that knows its listeners must not keep an abandoned run alive

        def before(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            callback = weakly()
            if callback is not None and callback.monitor is not None and callback.guard.open(_STEP):
                callback.monitor.forward(model, args, kwargs)

        def after(output: Any) -> None:
            callback = weakly()
            if callback is not None and callback.monitor is not None:
                callback._look_at_loss(callback.monitor, output)

        def evaluating(begins: bool) -> None:
            callback = weakly()
            if callback is not None and callback.monitor is not None:
                callback.monitor.observer.pause(begins)

        self._unwatch = watch(model, before, after, evaluating)
        finalize(self, self._unwatch)
        self.monitor = monitor
        if monitor.options.noise_scale == "split":
            self._unsplit()
            trainer = find_trainer()
            if trainer is None:
                monitor.noise.refuse(NO_TRAINER)
            else:
                self._split = SplitSteps(trainer, monitor)
        monitor.start()

    @hook("Hugging Face: on_train_end", "the record has no end line")
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last point and the totals."""
        self._unwatch()
        self._unsplit()
        if self.monitor is not None:
            self.monitor.finish()

    def _unsplit(self) -> None:
        if self._split is not None:
            self._split.undo()
            self._split = None

    # -- a training step -----------------------------------------------------------------------------------------

    @hook("Hugging Face: the model's output", "a NaN loss that the Trainer filters out is not noticed")
    def _look_at_loss(self, monitor: Monitor, output: Any) -> None:
        loss = output.get("loss") if isinstance(output, dict) else None
        if isinstance(loss, torch.Tensor):
            # The Trainer logs a NaN loss as 0 (logging_nan_inf_filter); what it logs is believed unless these say NaN
            monitor.loss(loss if loss.dim() == 0 else loss.detach().mean())

    # Every rank calls `Monitor.step`, `log` and `sync` as often as the others, which wait there: what may fail is
    # behind a boundary of its own.

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An optimizer step is done; evaluation and saving may follow."""
        if self.monitor is not None:
            self._step(self.monitor, state, control)
            self._what_follows(self.monitor, control)

    @hook(_STEP, _UNSEEN)
    def _step(self, monitor: Monitor, state: Any, control: Any) -> None:
        monitor.step()
        every = None if monitor.options.log_every is None else monitor.log_every
        if (every is not None and state.global_step % every == 0) or state.global_step >= state.max_steps:
            control.should_log = True  # the last interval's loss would not be logged otherwise

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
        """The interval's mean loss, gathered over ranks by the Trainer."""
        if self.monitor is None or logs is None or "loss" not in logs or "learning_rate" not in logs:
            return  # not a log step: the totals of the end, or a call by the user's own code, perhaps on one rank
        self._log(self.monitor, logs)
        self._show(self.monitor, args, state, control)

    @hook("Hugging Face: on_log", "nothing more is recorded or shown")
    def _log(self, monitor: Monitor, logs: dict[str, Any]) -> None:
        monitor.log(float(logs["loss"]))

    @hook("Hugging Face: the log's history", "trainer_state.json does not show isoflop's scalars")
    def _show(self, monitor: Monitor, args: Any, state: Any, control: Any) -> None:
        if monitor.should_stop:
            control.should_training_stop = True
            control.should_save = str(getattr(args.save_strategy, "value", args.save_strategy)) != "no"
        if state.log_history:  # what `logs` becomes in trainer_state.json
            finite = {name: value for name, value in monitor.scalars.items() if math.isfinite(value)}
            state.log_history[-1].update(finite)

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
