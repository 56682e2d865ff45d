"""`IsoFLOPMonitor`: Lightning's hooks → `isoflop.Monitor`. Holds no mathematics."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from isoflop.flops.step import StepObserver
from isoflop.guard import UNKNOWN, Guard, declare, hook
from isoflop.live.monitor import COUNTING, Monitor
from isoflop.live.options import Options
from isoflop_lightning.trainer import Monitored, SplitStep, describe_trainer, metrics_of, progress_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from isoflop.live.options import OptionsDict

_END = declare("Lightning: a batch's end", UNKNOWN)
_STEP = declare("Lightning: a training step", "the run is not observed from here on")
_EVALUATION = re.compile(r"(?<![a-z])(val|valid|validation|eval|evaluation|dev|test)(?=loss|[^a-z]|$)")
_LOSS = re.compile(r"loss|(?<![a-z])(ce|nll|xent|cross[_-]?entropy)(?![a-z])")


_PACKAGES = [name for name in ("lightning.pytorch", "pytorch_lightning") if find_spec(name.split(".")[0])]
"""Two copies of one package: our callback is both's, whichever the user's Trainer comes from."""
if not _PACKAGES:
    raise ModuleNotFoundError("No module named 'lightning'", name="lightning")


class IsoFLOPMonitor(*(import_module(f"{name}.callbacks").Callback for name in _PACKAGES)):  # type: ignore[misc]
    """Counts a run's parameters, tokens and FLOPs, records loss against compute, shows it in the trainer's loggers.

    Args:
        **options: `record_dir`, `log_every` and the others of `isoflop.live.options.Options`.

    Raises:
        ValueError, TypeError: an option that can't be.

    Example:
        >>> trainer = Trainer(callbacks=[IsoFLOPMonitor()])  # doctest: +SKIP
    """

    def __init__(self, **options: Unpack[OptionsDict]) -> None:
        super().__init__()
        Options.of(**options)  # a wrong option is told here, before training
        self._options = options
        self._restored: dict[str, Any] | None = None
        self._split: SplitStep | None = None
        self._step_before = 0
        self._progress: Any = None
        """Of the optimizers: `completed` is the trainer's step."""
        self._saving = False
        self._monitored: Monitored | None = None
        self._watching: list[Any] = []  # what looks at our scalars where an epoch or an evaluation ends
        self._automatic = True
        self._module_class = ""
        self.guard = Guard()
        self.monitor: Monitor | None = None
        """The `Monitor` of the run, from the start of training on."""

    def __getstate__(self) -> dict[str, Any]:
        """What goes into another process or a copy: options and counts, not what observes this one's model."""
        state = self._restored if self.monitor is None else self.monitor.state_dict()
        own = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}  # the module's
        return {**own, **vars(type(self)(**self._options)), "_restored": state}

    # -- start and end -------------------------------------------------------------------------------------------

    @hook("Lightning: on_train_start", "the run is not observed from here on")
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Plan, loggers and folders are known, and a checkpoint is loaded."""
        if getattr(trainer, "fast_dev_run", False):
            return
        self.guard.aside.clear()
        self._module_class = module_class(pl_module)
        if self.monitor is not None:
            self.monitor.finish(completed=False)  # of a Trainer that this one runs inside of; else it has ended
        monitor = Monitor(pl_module, run=describe_trainer(trainer, self.guard), **self._options)
        # a second fit() goes on with the first, even if test(ckpt_path=…) has restored another state in between
        states = [self._restored, None if self.monitor is None else self.monitor.state_dict()]
        fitting = [state for state in states if state and state.get("steps") == trainer.global_step]
        earlier = fitting[0] if fitting else self._restored if trainer.global_step else None  # at 0: of another run
        if earlier:
            monitor.load_state_dict(earlier)
        monitor.expect(trainer.global_step)
        self._restored = None
        self._step_before = trainer.global_step
        self._progress = progress_of(trainer, pl_module)
        self._monitored = Monitored(trainer, self.guard)
        self._watching, self._automatic = self._monitored.watching, pl_module.automatic_optimization
        self._split = SplitStep(monitor) if monitor.options.noise_scale == "split" else None
        self.monitor = monitor
        monitor.start()

    @hook("Lightning: on_train_end", "the record has no end line")
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The last point and the totals."""
        if self._monitored is not None:
            self._monitored.undo()
        if self.monitor is not None:
            self._save_where_stopped(trainer)
            self.monitor.finish()

    @hook("Lightning: saving where advice stops", "no checkpoint of the step at which the run was stopped")
    def _save_where_stopped(self, trainer: Any) -> None:
        """A `ModelCheckpoint` that counts steps would leave the last of them unsaved. Every rank is here."""
        saver = trainer.checkpoint_callback
        if saver is None or self.monitor is None or not self.monitor.should_stop:
            return
        if getattr(saver, "_last_global_step_saved", None) != trainer.global_step:
            folder = Path(saver.dirpath or trainer.default_root_dir)
            trainer.save_checkpoint(folder / f"stopped-step={trainer.global_step}.ckpt")

    @hook("Lightning: on_exception", "the record has no end line")
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """An interrupted run is recorded as such."""
        if self._monitored is not None:
            self._monitored.undo()
        if self.monitor is not None:
            self.monitor.finish(completed=False)

    # -- a training step -----------------------------------------------------------------------------------------

    # Every rank calls `Monitor.step` and `sync` as often as the others, which wait there: what may fail before is
    # behind a boundary of its own.

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count the batch; for a new shape, observe the step."""
        monitor = self.monitor
        if monitor is None:
            return
        if self._saving:
            self._saving = False
            monitor.leave("checkpoint")
        monitor.batch(batch)
        if self._split is not None and monitor.observer.observation is None:
            self._begin_split(self._split, trainer, pl_module)

    @hook("splitting the step", "no step is split")
    def _begin_split(self, split: SplitStep, trainer: Any, pl_module: Any) -> None:
        split.begin(trainer, pl_module)

    @hook("Lightning: on_before_backward", "what is trained is not recognised by the loss")
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """See what the first loss is made by: its graph does not come with `on_train_batch_end`."""
        if self.monitor is not None:
            self.monitor.observer.tally.see(loss)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take the loss; if the optimizer has stepped, the step."""
        monitor, aside = self.monitor, self.guard.aside
        if monitor is None:
            return
        if _END not in aside:
            try:
                observer = monitor.observer
                if self._split is not None:
                    self._split.end(pl_module)
                if observer.outermost is not None or observer.observation is not None:
                    self._end_batch(observer)
                loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
                if not isinstance(loss, torch.Tensor):
                    self._miss_loss(monitor)
                elif self._automatic:  # a clone, which Lightning has divided by the number of accumulated batches
                    monitor.loss(loss, float(trainer.accumulate_grad_batches), True)
                else:
                    monitor.loss(loss)
            except Exception as error:
                self.guard.failed(_END, error)
        if _STEP not in aside:
            try:
                advance = self._progress.completed - self._step_before
                if advance > 0:
                    self._step_before += advance
                    updates = 1 if advance == 1 else -(-advance // max(len(trainer.optimizers), 1))
                    monitor.step(advance=advance, updates=updates)
                    if self._watching and trainer.is_last_batch:
                        monitor.log()  # the epoch's end looks at our scalars
                    if monitor.logged_at == monitor.steps:
                        self._show(monitor, trainer)
            except Exception as error:
                self.guard.failed(_STEP, error)

    @hook(COUNTING, UNKNOWN)
    def _end_batch(self, observer: StepObserver) -> None:
        observer.end_batch()

    def _miss_loss(self, monitor: Monitor) -> None:
        if not self._automatic:
            monitor.guard.once(
                "no training loss: training_step returns none, as manual optimization may. Return the loss from "
                "training_step to have it recorded, forecast and judged"
            )

    def _show(self, monitor: Monitor, trainer: Any) -> None:
        """Our scalars for what monitors a metric, and whether to end."""
        monitored = self._monitored if monitor.run.together else None
        scalars = monitor.scalars if monitored is None else monitored.of_all_ranks(monitor.scalars)
        metrics_of(trainer).update(zip(scalars, map(torch.scalar_tensor, scalars.values()), strict=True))
        if monitor.should_stop:
            trainer.should_stop = True  # Lightning keeps its min_steps and min_epochs

    # -- evaluation and checkpoints ------------------------------------------------------------------------------

    @hook("Lightning: on_validation_start", "goodput is wrong")
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Evaluation is no training time."""
        if self.monitor is not None and not trainer.sanity_checking:
            if self._watching and self.monitor.steps and self.monitor.logged_at != self.monitor.steps:
                self.monitor.log()  # the evaluation's end looks at our scalars
                self._show(self.monitor, trainer)
            self.monitor.enter("evaluation")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Record the losses that validation has logged."""
        if self.monitor is not None and not trainer.sanity_checking:
            self.monitor.leave("evaluation")
            self.monitor.sync()  # here every rank is; a metric may be logged on one alone
            self._record_evaluation(self.monitor, trainer)

    @hook("Lightning: on_validation_end", "losses of evaluation sets are not recorded")
    def _record_evaluation(self, monitor: Monitor, trainer: Any) -> None:
        metrics = [
            name
            for name in trainer.callback_metrics
            if _EVALUATION.search(name.lower()) and not name.startswith("isoflop/")
        ]
        # of a set that logs a loss and a cross-entropy the loss
        named = {evaluation_name(name): name for name in sorted(metrics, key=lambda name: "loss" in name.lower())}
        for evaluation, name in named.items():
            if evaluation is not None:
                monitor.evaluate(evaluation, trainer.callback_metrics[name])
        if metrics and not any(named):
            monitor.guard.once(
                "no evaluation loss: of what validation logs (%s) nothing is named a loss or a cross-entropy. Log it "
                "as val_loss, say, to have it recorded and judged",
                ", ".join(metrics[:4]),
            )

    @hook("Lightning: on_save_checkpoint", "goodput is wrong")
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Saving begins; there is no hook for its end but the next batch."""
        if self.monitor is not None:
            self._saving = True
            self.monitor.enter("checkpoint")

    def state_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint. Every rank is here: Lightning's saving is collective."""
        if self.monitor is None:
            return {}
        self.monitor.sync()
        return self._state(self.monitor) or {}

    @hook("Lightning: state_dict", "a resumed run counts from 0")
    def _state(self, monitor: Monitor) -> dict[str, Any]:
        state = monitor.state_dict()  # None if saving has stepped aside
        return {**state, "module": self._module_class} if state else {}

    @hook("Lightning: load_state_dict", "a resumed run counts from 0")
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Comes before `on_train_start`."""
        self._restored = state_dict


def module_class(pl_module: Any) -> str:
    """Where a checkpoint's LightningModule is defined, as `isoflop count` reads it: `module:Class`, `file.py:Class`."""
    kind = type(pl_module)
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    place = str(Path(main).resolve()) if kind.__module__ == "__main__" and main else kind.__module__
    return f"{place}:{kind.__qualname__}"


def evaluation_name(metric: str) -> str | None:
    """The evaluation set that a logged metric is the loss of, or None.

    >>> [evaluation_name(name) for name in ("val_loss", "val/c4_loss", "loss/valid", "train_loss", "value_loss")]
    ['val', 'val/c4', 'valid', None, None]
    >>> [evaluation_name(name) for name in ("val_ce", "val/cross_entropy", "dev-nll", "val_acc", "val_ema")]
    ['val', 'val', 'dev', None, None]
    """
    lowered = metric.lower()
    if not _LOSS.search(lowered) or "train" in lowered or "isoflop/" in lowered or not _EVALUATION.search(lowered):
        return None
    rest = _LOSS.sub("", lowered)
    for double in ("//", "__", "/_", "_/", "--"):
        rest = rest.replace(double, "/")
    return rest.strip("/_- ") or None
