"""What a Lightning Trainer knows of the run (plan, precision, folders, loggers), and what of it is changed meanwhile.

`SplitStep`, for `noise_scale="split"`: on a measured step `training_step` runs on halves of its batch. Two backward
passes inside of `training_step` would be wrong, for Lightning sets gradients to zero after it: the first half's runs in
the module's `on_before_backward`, the second's is Lightning's own.

`Monitored`: callbacks that monitor a scalar of ours which is not known yet, as a forecast at first, let training go on.
Without the metric `EarlyStopping`, `ModelCheckpoint` and a scheduler on a plateau end the run with an error. With NaN,
or a number that stays the same, `EarlyStopping` stops it and the scheduler lowers the rate; `ModelCheckpoint` takes NaN
for the worst there is.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from isoflop.flops.totals import rank, sum_over_ranks, world_size
from isoflop.guard import Guard, attempt, declare, pass_on
from isoflop.live.log_step import CHARTS, SCALARS, TAGS, AxisPoint
from isoflop.live.monitor import Monitor
from isoflop.live.run_info import RunInfo, steps_of_epoch
from isoflop.live.scheduler import Calls, by_batch, by_epoch
from isoflop.live.sinks import summary

LOGGERS = declare("Lightning's loggers", "no further scalars in the trainer's loggers")


def describe_trainer(trainer: Any, guard: Guard) -> RunInfo:
    """Read the run's plan from a Trainer that is about to train. Every rank calls it."""
    loggers = list(trainer.loggers)
    if not loggers:
        guard.once("the Trainer has no logger: points go to the record alone, not to TensorBoard")
    folder = trainer.log_dir or trainer.default_root_dir  # a collective: asked for on every rank
    bar = getattr(trainer, "progress_bar_callback", None)
    scheduler, calls, unknown = _scheduler(trainer)
    schedules = [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs]
    sampler = (
        trainer.strategy.distributed_sampler_kwargs if hasattr(trainer.strategy, "distributed_sampler_kwargs") else None
    )
    together = trainer.world_size == world_size()  # else each process of the user's own group has a Trainer for itself
    module = trainer.lightning_module
    return RunInfo(
        framework="lightning",
        guard=guard,
        record_dir=Path(folder),
        log_every=trainer.log_every_n_steps or 50,
        together=together,
        lockstep=together and getattr(module, "automatic_optimization", False),
        run_name=_run_name(loggers),
        total_steps=_total_steps(trainer),
        epoch_steps=steps_of_epoch(attempt(lambda: trainer.train_dataloader), trainer.accumulate_grad_batches),
        optimizer=trainer.optimizers[0] if trainer.optimizers else None,
        schedule=", ".join(schedules) or None,
        scheduler=scheduler,
        scheduler_calls=calls,
        future_unknown=unknown,
        accumulate=trainer.accumulate_grad_batches,
        dtype=_dtype(str(trainer.precision)),
        precision=str(trainer.precision),
        grad_scaler=getattr(trainer.precision_plugin, "scaler", None),
        data_parallel=(sampler or {}).get("num_replicas"),
        sinks=[LoggersSink(trainer, loggers, guard)] if loggers else [],
        say=print if bar is None else bar.print,
    )


class _Step:
    """`trainer.global_step` as Lightning's own progress has it."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    @property
    def completed(self) -> int:
        return int(self._trainer.global_step)


def progress_of(trainer: Any, pl_module: Any) -> Any:
    """What counts the optimizers' steps as `completed`; `trainer.global_step` goes through ten properties to it."""
    loop = trainer.fit_loop.epoch_loop
    if pl_module.automatic_optimization:
        total = attempt(lambda: loop.automatic_optimization.optim_progress.optimizer.step.total)
    else:
        total = attempt(lambda: loop.manual_optimization.optim_step_progress.total)
    return total if getattr(total, "completed", None) == trainer.global_step else _Step(trainer)


def _total_steps(trainer: Any) -> int | None:
    steps = trainer.estimated_stepping_batches
    return None if math.isinf(steps) or steps < 0 else int(steps)


def _scheduler(trainer: Any) -> tuple[Any, Calls | None, str | None]:
    """The scheduler of the first optimizer, when Lightning steps it, or why that can't be told."""
    if len(trainer.optimizers) > 1:
        return None, None, f"the module has {len(trainer.optimizers)} optimizers, whose steps the Trainer adds up"
    configs = trainer.lr_scheduler_configs
    if len(configs) > 1:
        return None, None, f"the module has {len(configs)} learning-rate schedulers"
    if not configs:
        return None, None, None
    config, batches, accumulate = configs[0], trainer.num_training_batches, trainer.accumulate_grad_batches
    if not trainer.lightning_module.automatic_optimization:
        return config.scheduler, None, None  # the module steps it itself
    if config.interval == "step":
        return config.scheduler, by_batch(batches, accumulate, config.frequency), None
    if math.isinf(batches):
        return None, None, "the scheduler is stepped once an epoch, and an epoch's length is unknown"
    return config.scheduler, by_epoch(-(-int(batches) // accumulate), config.frequency), None


def _run_name(loggers: Sequence[Any]) -> str | None:
    """The run's folder as TensorBoard lists it, whose logger may be the second; else by the first logger."""
    for logger in [*filter(_is_tensorboard, loggers), *loggers[:1]]:
        below = attempt(lambda logger=logger: os.path.relpath(logger.log_dir, logger.save_dir))
        if below and not below.startswith("."):
            return Path(below).as_posix()
    parts = [str(part) for each in loggers[:1] for part in (each.name, each.version) if part not in (None, "")]
    return "/".join(parts) or None


def _dtype(precision: str) -> torch.dtype | None:
    if precision.startswith(("bf16", "16")):
        return torch.bfloat16 if precision.startswith("bf16") else torch.float16
    return {"32-true": torch.float32, "64-true": torch.float64}.get(precision)


class LoggersSink:
    """All of the trainer's loggers, against the ordinary step; TensorBoard's also against compute.

    One that fails is left out from then on. TensorBoard gets many quick log steps at once: its writer's thread is woken
    seldom, and a file is read in seconds at the earliest.
    """

    boundary = LOGGERS
    SEND_EVERY, MOST = 1.0, 64
    """Seconds, and log steps, that TensorBoard waits for at most."""

    def __init__(self, trainer: Any, loggers: Sequence[Any], guard: Guard) -> None:
        self._trainer, self._guard = trainer, guard
        self._held: list[tuple[float, int, Mapping[str, float], Sequence[AxisPoint]]] = []
        self._sent = -math.inf
        for logger in loggers:
            attempt(_prepare, logger)
        self._loggers = {logger: attempt(_event_file, logger) for logger in loggers}

    def write(self, step: int, scalars: Mapping[str, float], axes: Sequence[AxisPoint]) -> None:
        """Log to each, at the step that Lightning itself gives what it logs now (it counts from 0)."""
        own = getattr(self._trainer.fit_loop.epoch_loop, "_batches_that_stepped", step)
        now = time.monotonic()
        self._held.append((time.time(), own, scalars, axes))
        send = len(self._held) >= self.MOST or now - self._sent >= self.SEND_EVERY
        for logger, file in [*self._loggers.items()]:
            if file is None or send:
                try:
                    self._write(logger, file, self._held[-1:] if file is None else self._held)
                except Exception as error:
                    pass_on(error)
                    del self._loggers[logger]
                    if not self._loggers:
                        raise
                    self._guard.once("%s failed (%s): no further scalars there", type(logger).__name__, error)
        if send:
            self._held, self._sent = [], now

    def _write(self, logger: Any, file: Any, steps: Sequence[Any]) -> None:
        for at, own, scalars, axes in steps:
            if file is not None:
                if scalars:  # one event for all of the step: an event each costs ten times as much
                    file.add_summary(summary(scalars), own, at)
                for point in axes:
                    file.add_summary(summary({point.tag: point.value}), point.step, at)
            elif _is_tensorboard(logger):
                if scalars:
                    logger.log_metrics({TAGS.get(name, name): value for name, value in scalars.items()}, step=own)
                for point in axes:
                    logger.experiment.add_scalar(point.tag, point.value, point.step)
            elif scalars:
                logger.log_metrics(dict(scalars), step=own)

    def text(self, step: int, tag: str, markdown: str) -> None:
        """For TensorBoard's text tab."""
        for logger in self._loggers:
            if _is_tensorboard(logger):
                logger.experiment.add_text(tag, markdown, step)

    def flush(self) -> None:
        """Write what is held to the files."""
        for logger, file in self._loggers.items():
            if file is not None:
                self._write(logger, file, self._held)
                file.flush()
        self._held = []

    def close(self) -> None:
        """Write what is held; the loggers are the trainer's."""
        self.flush()
        for logger in self._loggers:
            logger.save()


def _event_file(logger: Any) -> Any:
    """Where Lightning's own TensorBoardLogger writes its events; None: another logger, or one that was changed."""
    plain = type(logger).log_metrics.__module__.startswith(("lightning.", "pytorch_lightning."))
    if not _is_tensorboard(logger) or not plain or getattr(logger, "_prefix", None):
        return None
    writer = logger.experiment
    return getattr(writer, "file_writer", None) if type(writer).__module__.startswith("torch.") else None


def _is_tensorboard(logger: Any) -> bool:
    return any(kind.__name__ == "TensorBoardLogger" for kind in type(logger).__mro__)


def _prepare(logger: Any) -> None:
    """Charts in TensorBoard; let W&B draw the loss against FLOPs: its own x-axes need no pseudo-steps."""
    if _is_tensorboard(logger):
        logger.experiment.add_custom_scalars(CHARTS)
    if type(logger).__name__ == "WandbLogger":
        logger.experiment.define_metric("isoflop/flops")
        logger.experiment.define_metric("isoflop/loss", step_metric="isoflop/flops")


MANUAL = 'noise_scale="split" needs automatic optimization: in a step that calls backward itself use monitor.split'


class SplitStep:
    """Splits steps of one LightningModule; `begin` before a step, `end` after it."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def begin(self, trainer: Any, pl_module: Any) -> None:
        """A step that may be split begins."""
        noise = self._monitor.noise
        if noise.splits and not pl_module.automatic_optimization:
            noise.refuse(MANUAL)
        elif noise.splits:
            self._original = pl_module.training_step
            pl_module.training_step = lambda batch, *args, **kwargs: self._step(trainer, pl_module, batch, args, kwargs)

    def _step(self, trainer: Any, pl_module: Any, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.end(pl_module)  # a closure that is called again (LBFGS) gets the whole

        def losses(batches: list[Any]) -> list[Any]:
            pl_module.log = pl_module.log_dict = lambda *_, **__: None
            try:
                return [loss_of(self._original(each, *args, **kwargs)) for each in batches]
            finally:
                for name in ("log", "log_dict"):
                    vars(pl_module).pop(name, None)

        noise = self._monitor.noise
        parts = noise.halves(batch, self._monitor.observer.count, losses)
        if parts is None:
            return self._original(batch, *args, **kwargs)
        noise.begin_half(parts[0], first=True)
        one, two = (self._original(half.batch, *args, **kwargs) for half in parts)
        first, own = loss_of(one) * parts[0].share, pl_module.on_before_backward

        def on_before_backward(loss: torch.Tensor) -> None:
            # an error in the backward pass of the first half is training's own, and goes its way
            vars(pl_module).pop("on_before_backward", None)
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            (first if scaler is None else scaler.scale(first)).backward()
            noise.begin_half(parts[1], first=False)
            own(loss)

        pl_module.on_before_backward = on_before_backward
        together = loss_of(two) * parts[1].share + first.detach()
        return {**two, "loss": together} if isinstance(two, dict) else together

    def end(self, pl_module: Any) -> None:
        """The step is over."""
        for name in ("training_step", "on_before_backward"):
            vars(pl_module).pop(name, None)


def loss_of(outputs: Any) -> Any:
    """The loss that `training_step` returned."""
    return outputs["loss"] if isinstance(outputs, dict) else outputs


class Monitored:
    """Callbacks and schedulers of a Trainer that monitor a scalar of ours, until `undo`."""

    def __init__(self, trainer: Any, guard: Guard) -> None:
        watching = [*trainer.callbacks, *trainer.lr_scheduler_configs]
        self.watching = [each for each in watching if getattr(each, "monitor", None) in SCALARS]
        self._strict = [each for each in self.watching if getattr(each, "reduce_on_plateau", False) and each.strict]
        for each in self._strict:
            each.strict = False
        for each in self.watching:
            if hasattr(each, "_validate_condition_metric"):
                each._validate_condition_metric = _validates(each, guard)
            if hasattr(each, "_monitor_candidates"):
                each._monitor_candidates = _candidates(each)

    def of_all_ranks(self, scalars: Mapping[str, float]) -> dict[str, float]:
        """The scalars with those that are monitored as the first rank knows them, which alone has forecasts.

        Every rank calls it: `EarlyStopping` asks all of them, or none.
        """
        names = sorted({each.monitor for each in self.watching})
        if not names:
            return {**scalars}
        _, values = sum_over_ranks([], [scalars.get(name, math.nan) if rank() == 0 else 0.0 for name in names])
        known = {name: value for name, value in zip(names, values, strict=True) if not math.isnan(value)}
        return {**{name: value for name, value in scalars.items() if name not in names}, **known}

    def undo(self) -> None:
        """Leave them as they were."""
        for each in self._strict:
            each.strict = True
        for each in self.watching:
            for name in ("_validate_condition_metric", "_monitor_candidates"):
                vars(each).pop(name, None)
        self.watching.clear()  # in place: the callback has it, too
        self._strict = []


def _validates(stop: Any, guard: Guard) -> Any:
    validates = stop._validate_condition_metric

    def validates_known(metrics: Mapping[str, Any]) -> Any:
        if stop.monitor in metrics:
            return validates(metrics)
        guard.once("%s is not known yet: %s looks at it once it is", stop.monitor, type(stop).__name__)
        return False

    return validates_known


def _candidates(save: Any) -> Any:
    candidates = save._monitor_candidates
    return lambda trainer: {save.monitor: torch.tensor(math.nan), **candidates(trainer)}


def metrics_of(trainer: Any) -> dict[str, Any]:
    """What callbacks monitor: the dictionary itself, for the trainer, if asked, computes all that the module logs."""
    metrics = getattr(getattr(trainer, "_logger_connector", None), "_callback_metrics", None)
    found: dict[str, Any] = trainer.callback_metrics if metrics is None else metrics
    return found
