"""What a Lightning Trainer knows of the run: plan, precision, folders, loggers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from isoflop.guard import Guard, attempt, declare, pass_on
from isoflop.live.run_info import RunInfo, steps_of_epoch
from isoflop.live.scalars import CHARTS, TAGS, AxisPoint
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
    return RunInfo(
        framework="lightning",
        guard=guard,
        record_dir=Path(folder),
        log_every=trainer.log_every_n_steps or 50,
        together=True,
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
    if not loggers:
        return None
    parts = [str(part) for part in (loggers[0].name, loggers[0].version) if part not in (None, "")]
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
