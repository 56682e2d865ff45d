"""What goes into a run's record: the header, so that it can be compared with others years later, and the points."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from isoflop.flops.clock import Clock
from isoflop.flops.device import Device
from isoflop.flops.parameters import Parameters, original_class, unwrap
from isoflop.flops.step import StepObserver
from isoflop.flops.totals import Totals, world_size
from isoflop.live.options import Options
from isoflop.live.run_info import Setup
from isoflop.record.paths import Location, last_name
from isoflop.record.provenance import git_state, library_versions
from isoflop.record.run import Point

CONVENTION = "1 multiply-add = 2 FLOPs; matrix products and convolutions, forward and backward, attention in full"

RATES = ("tokens_per_second_per_device", "tflops_per_device", "mfu", "forecast_loss", "forecast_low", "forecast_high")
BATCH = ("b_simple", "b_simple_low", "b_simple_high", "b_simple_raw", "b_crit", "b_crit_sigma", "batch_over_b_crit")
MINIMA = ("s_min", "e_min")
"""Scalars that a point keeps, as logged last."""


def run_header(
    setup: Setup,
    observer: StepObserver,
    device: Device | None,
    options: Options,
    model: nn.Module | None,
    record_dir: Location,
) -> dict[str, Any]:
    """Fields of `isoflop.record.Run`, as they are known after the first optimizer step."""
    parameters = observer.costing.parameters
    return {
        "name": setup.run_name or last_name(record_dir),
        "framework": setup.framework,
        "model": describe_model(model),
        "parameters": {} if parameters is None else parameters.by_convention(),
        "parameters_method": None if parameters is None else parameters.method,
        "optimizer": describe_optimizer(setup.optimizer),
        "planned": run_plan(setup),
        "tokenizer": setup.tokenizer,
        "data": setup.data,
        "git": git_state(),
        "versions": library_versions(),
        "device": {
            "name": None if device is None else device.name,
            "dtype": None if device is None else device.dtype,
            "precision": setup.precision,
            "peak_flops": None if device is None else device.peak,
            "peak_source": None if device is None else device.peak_source,
            "world_size": world_size(),
            "data_parallel": setup.data_parallel or world_size(),
        },
        "counting": describe_counting(observer),
        "loss_units": {"train": "nats per loss token, as the trainer reports it"},
        "options": options.given(),
    }


def run_plan(setup: Setup) -> dict[str, Any]:
    """`Run.planned` as it is known before the first forecast."""
    schedule = setup.schedule or (None if setup.scheduler is None else type(setup.scheduler).__name__)
    return {"steps": setup.total_steps, "schedule": schedule, "accumulate": setup.accumulate}


def run_point(
    step: int,
    totals: Totals,
    parameters: Parameters | None,
    scalars: Mapping[str, float],
    lr: Any,
    clock: Clock,
) -> Point:
    """A point of the record as the run stands, without losses; `scalars` as last logged, `lr` a number or tensor."""
    return Point(
        step=step,
        tokens=totals.tokens_known,
        padding=None if totals.without_tokens else totals.padding,
        loss_tokens=totals.loss_tokens_known,
        flops=totals.flops_known,
        flops_hardware=None if totals.without_flops else totals.flops_hardware,
        flops_6nd=None if parameters is None else parameters.six_nd(totals.tokens_known),
        lr=None if lr is None else float(lr),
        batch_tokens=scalars.get("isoflop/batch_tokens"),
        interval_steps=0,
        time=time.time(),
        wall_time=clock.wall_time,
        training_time=clock.training_time,
        extra={name: scalars[f"isoflop/{name}"] for name in (*RATES, *BATCH, *MINIMA) if f"isoflop/{name}" in scalars},
    )


def describe_counting(observer: StepObserver) -> dict[str, Any]:
    """How the FLOPs of this run are counted."""
    return {
        "method": "; ".join(observer.costing.methods) or None,
        "reasons": {method: reason for method, reason in observer.costing.methods.items() if reason},
        "uncounted": sorted(observer.costing.uncounted),
        "convention": CONVENTION,
        "flops_per_token": observer.costing.flops_per_token,
    }


def describe_model(model: nn.Module | None) -> dict[str, Any]:
    """Class and configuration of a model."""
    if model is None:
        return {"class": None}
    model = unwrap(model)
    config = getattr(model, "config", None)
    if config is None:
        config = getattr(model, "hparams", None)
    to_dict = getattr(config, "to_diff_dict", None) or getattr(config, "to_dict", None)
    kind = original_class(model)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "config": to_dict() if callable(to_dict) else config,
    }


def describe_optimizer(optimizer: Any) -> dict[str, Any] | None:
    """Class and settings of the first parameter group."""
    groups = getattr(optimizer, "param_groups", None)
    if not groups:
        return None
    wrapped = getattr(optimizer, "optimizer", optimizer)  # Accelerate's and Fabric's wrappers
    settings = {key: _number(value) for key, value in groups[0].items() if key != "params"}
    return {"class": type(wrapped).__name__, **settings}


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) and value.dim() == 0 else value
