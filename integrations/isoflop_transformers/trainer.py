"""What the Hugging Face Trainer knows of the run (plan, precision, folders, tracking tools), and what of it is changed.

`SplitSteps`, for `noise_scale="split"`: its `training_step`, called with halves on measured steps.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from isoflop.flops.totals import sum_over_ranks, world_size
from isoflop.guard import Guard
from isoflop.live.monitor import Monitor
from isoflop.live.run_info import RunInfo, steps_of_epoch
from isoflop.live.scheduler import by_epoch
from isoflop.live.sinks import TensorBoardSink

NO_TRAINER = 'the Trainer was not found: noise_scale="split" needs transformers.Trainer.train() to be what trains'


def find_trainer() -> Any:
    """The Trainer that calls us: a callback is not given it. None where there is none."""
    trainer = sys.modules["transformers"].Trainer
    frame = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, trainer):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None


class SplitSteps:
    """Takes the place of a Trainer's `training_step` and `compute_loss` until `undo`."""

    def __init__(self, trainer: Any, monitor: Monitor) -> None:
        self._trainer, self._monitor = trainer, monitor
        self._step, self._loss = trainer.training_step, trainer.compute_loss
        self._share: float | None = None
        trainer.training_step, trainer.compute_loss = self._training_step, self._compute_loss

    def undo(self) -> None:
        """Leave the Trainer as it was."""
        for name in ("training_step", "compute_loss"):
            vars(self._trainer).pop(name, None)

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
    scheduler = given.get("lr_scheduler")
    together = args.world_size == world_size()  # else each process of the user's own group has a Trainer for itself
    return RunInfo(
        framework="transformers",
        guard=guard,
        record_dir=output,
        log_every=max(1, int(state.logging_steps or 1)),
        logs_itself=True,
        together=together,
        lockstep=together,
        run_name=getattr(args, "run_name", None) or output.resolve().name,
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
        sinks=[TensorBoardSink(folder)] if state.is_world_process_zero else [],
    )


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
