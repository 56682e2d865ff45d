"""The header of a run's record: model, optimizer, device, versions and how FLOPs are counted."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from isoflop.flops.device import Device
from isoflop.flops.parameters import original_class, unwrap
from isoflop.flops.step import StepObserver
from isoflop.flops.totals import world_size
from isoflop.guard import attempt
from isoflop.live.options import Options
from isoflop.live.run_info import RunInfo
from isoflop.record.paths import Location, last_name
from isoflop.record.provenance import git_state, library_versions
from isoflop.record.task import PLAIN

CONVENTION = "1 multiply-add = 2 FLOPs; matrix products and convolutions, forward and backward, attention in full"
UNITS = "nats per loss token, as the trainer reports it"


def run_header(
    run: RunInfo,
    observer: StepObserver,
    device: Device | None,
    options: Options,
    model: nn.Module | None,
    record_dir: Location,
) -> dict[str, Any]:
    """Fields of `isoflop.record.Run`, as they are known after the first optimizer step."""
    parameters = observer.costing.parameters
    return {
        "name": run.run_name or last_name(record_dir),
        "framework": run.framework,
        "model": attempt(describe_model, model) or {"class": None},
        "parameters": {} if parameters is None else parameters.by_convention(),
        "parameters_method": None if parameters is None else parameters.method,
        "optimizer": attempt(describe_optimizer, run.optimizer),
        "task": run.task.as_dict(),
        "planned": run.planned,
        "tokenizer": run.tokenizer,
        "data": run.data,
        "git": attempt(git_state),
        "versions": attempt(library_versions) or {},
        "device": {
            "name": None if device is None else device.name,
            "dtype": None if device is None else device.dtype,
            "precision": run.precision,
            "peak_flops": None if device is None else device.peak,
            "peak_source": None if device is None else device.peak_source,
            "world_size": world_size(),
            "data_parallel": run.data_parallel or world_size(),
        },
        "counting": describe_counting(observer),
        "loss_units": {"train": UNITS if run.task.loss == PLAIN else run.task.loss},
        "options": options.given(),
    }


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
    kind = original_class(model)
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "config": attempt(_configuration, model)}


def _configuration(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None:
        config = getattr(model, "hparams", None)
    to_dict = getattr(config, "to_diff_dict", None) or getattr(config, "to_dict", None)
    return to_dict() if callable(to_dict) else config


def describe_optimizer(optimizer: Any) -> dict[str, Any] | None:
    """Class and settings of the first parameter group."""
    groups = attempt(getattr, optimizer, "param_groups", None)  # of an optimizer of the user's own making
    if not groups:
        return None
    wrapped = getattr(optimizer, "optimizer", optimizer)  # Accelerate's and Fabric's wrappers
    numbers = {key: each.item() for key, each in groups[0].items() if isinstance(each, torch.Tensor) and not each.dim()}
    settings = {key: each for key, each in groups[0].items() if key != "params"}
    return {"class": type(wrapped).__name__, **settings, **numbers}
