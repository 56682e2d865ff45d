"""The device a run computes on, in which dtype, and the peak that its datasheet promises."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import torch
from torch import nn

from isoflop.observe.peaks import lookup_peak


@dataclass(frozen=True)
class Device:
    """Device of one process; `peak` in dense FLOP/s, None where unknown."""

    name: str
    type: str
    dtype: str
    peak: float | None
    peak_source: str | None


def model_device(model: nn.Module | None, dtype: torch.dtype | None, peak_flops: float | None) -> Device:
    """Describe the device that a model computes on, as it stands in its forward pass.

    Args:
        model: its first parameter tells; None: the CPU.
        dtype: of its matrix products, where the trainer knows; None: autocast's, or the parameters'.
        peak_flops: the user's `peak_flops=`.
    """
    parameter = None if model is None else next(iter(model.parameters()), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    held = torch.float32 if parameter is None else parameter.dtype
    dtype = dtype or _wrappers_dtype(model) or compute_dtype(device.type, held)
    return describe_device(device, dtype, peak_flops)


def _wrappers_dtype(model: nn.Module | None) -> torch.dtype | None:
    """The dtype that Fabric's or Accelerate's wrapper will compute in: its autocast begins behind our hook."""
    fabrics = getattr(getattr(model, "_strategy", None), "precision", None)
    precision = str(getattr(fabrics, "precision", ""))
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is not None and hasattr(model, "_original_forward"):
        precision = precision or str(accelerate.AcceleratorState._shared_state.get("_mixed_precision", ""))
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith(("16", "fp16")) else None


def describe_device(device: torch.device, dtype: torch.dtype, peak_flops: float | None) -> Device:
    """Describe the device that a model lies on.

    Args:
        device: of the model's parameters.
        dtype: of its matrix products.
        peak_flops: the user's `peak_flops=`, which goes before the table.
    """
    name = _device_name(device)
    product_dtype = str(dtype).removeprefix("torch.")
    if device.type == "cuda" and dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        product_dtype = "tf32"
    if peak_flops is not None:
        return Device(name, device.type, product_dtype, float(peak_flops), "peak_flops given by the user")
    peak = lookup_peak(name, product_dtype)
    if peak is None and product_dtype == "tf32":  # torch may use TF32, but the device has none
        product_dtype = "float32"
        peak = lookup_peak(name, product_dtype)
    if peak is None:
        return Device(name, device.type, product_dtype, None, None)
    return Device(name, device.type, product_dtype, peak.flops_per_second, peak.source)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "xla":
        # Google Cloud's accelerator type ("v5litepod-8"), which torch_xla itself reads here
        return os.environ.get("TPU_ACCELERATOR_TYPE") or os.environ.get("ACCELERATOR_TYPE") or "xla"
    return device.type


def compute_dtype(device_type: str, parameter_dtype: torch.dtype) -> torch.dtype:
    """The dtype of matrix products here and now: autocast's where it is on, else the parameters'."""
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return parameter_dtype
