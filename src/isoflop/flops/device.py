"""The device that a run computes on, its dtype, and the peak that its datasheet promises (`data/peaks.toml`).

Unknown is None, never a guess. Only what describes a live model imports torch.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    import torch
    from torch import nn

DTYPES = ("float32", "tf32", "float16", "bfloat16", "float8")
"""Columns of the table. "float32" is without TF32: ask for "tf32" where torch multiplies float32 in it."""

NO_PEAK = (
    "no datasheet peak is known for %s in %s, so there is no MFU; "
    "pass peak_flops= (dense FLOP/s of one device) to get it"
)
"""Of a device's name and dtype."""


@dataclass(frozen=True)
class Peak:
    """Peak of one device in one dtype.

    `device` is the name in the table, not the one asked for; `dtype` one of `DTYPES`; `source` the vendor's document
    and what was done to its figure.
    """

    device: str
    dtype: str
    flops_per_second: float
    source: str


@dataclass(frozen=True)
class Datasheet:
    """A row of the table: `pattern` of the name that is reported, TFLOP/s by dtype, nan where there is none."""

    device: str
    model: str
    pattern: str
    tflops: dict[str, float]
    source: str

    def peak(self, dtype: str) -> Peak | None:
        """The peak in a dtype, None where the device has no such rate."""
        rate = self.tflops.get(dtype, math.nan)
        # rounded, because 16.4 * 1e12 is not 16.4e12
        return None if math.isnan(rate) else Peak(self.device, dtype, float(round(rate * 1e12)), self.source)


def _read_datasheets() -> Iterator[Datasheet]:
    text = files("isoflop").joinpath("data", "peaks.toml").read_text(encoding="utf-8")
    for vendor in tomllib.loads(text)["vendors"]:
        for model, pattern, tflops, source in vendor["devices"]:
            rates = dict(zip(DTYPES, tflops, strict=True))
            yield Datasheet(f"{vendor['name']} {model}", model, f"{vendor['prefix']}({pattern})", rates, source)


DATASHEETS = tuple(_read_datasheets())
"""The table; read with the module, for a run may have no more file descriptors later."""


def lookup_peak(device_name: str, dtype: str) -> Peak | None:
    """Dense peak of a device in a dtype.

    Args:
        device_name: as `torch.cuda.get_device_name()` reports it; for a TPU JAX's device_kind or Google's
            accelerator type. Upper or lower case.
        dtype: one of `DTYPES`, or torch's name of it ("torch.bfloat16", "torch.float8_e4m3fn").

    Returns:
        The peak in FLOP/s with its source, or None if the device, or its rate in this dtype, is unknown.

    >>> lookup_peak("NVIDIA H100 80GB HBM3", "bfloat16").flops_per_second
    989400000000000.0
    >>> print(lookup_peak("NVIDIA H100 NVL", "bfloat16").source)
    NVIDIA H100 Tensor Core GPU datasheet: figures printed with sparsity, halved
    >>> lookup_peak("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "bfloat16") is None  # no datasheet has a slice
    True
    >>> lookup_peak("Tesla T4", "bfloat16") is None  # Turing emulates it
    True
    """
    dtype = dtype.removeprefix("torch.")
    if dtype.startswith(("float8_e4m3", "float8_e5m2")):
        dtype = "float8"
    name = device_name.strip()
    for sheet in DATASHEETS:
        if re.fullmatch(sheet.pattern, name, re.IGNORECASE | re.ASCII):
            return sheet.peak(dtype)
    return None


def peak_by_short_name(name: str) -> Peak | None:
    """Dense 16-bit peak of what people call "h100" or "rtx 4090": of several variants the first in the table (SXM).

    >>> peak_by_short_name("h100").device
    'NVIDIA H100 SXM'
    >>> peak_by_short_name("V100").dtype  # which has no bfloat16
    'float16'
    """
    wanted = name.lower().replace("-", "").replace(" ", "")
    for sheet in DATASHEETS:
        words = sheet.model.lower().replace("(", "").split()
        parts = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
        peak = sheet.peak("bfloat16") or sheet.peak("float16")
        if wanted in parts and peak is not None:
            return peak
    return None


def known_devices() -> list[str]:
    """Names of the devices in the table, for messages and documentation."""
    return [sheet.device for sheet in DATASHEETS]


@dataclass(frozen=True)
class Device:
    """Device of one process; `peak` in dense FLOP/s, None where unknown."""

    name: str
    type: str
    dtype: str
    peak: float | None
    peak_source: str | None


def model_device(model: nn.Module | None, dtype: torch.dtype | None, peak_flops: float | None) -> Device:
    """Describe the device that a model computes on; called during its forward pass.

    Args:
        model: its first parameter tells; None: the CPU.
        dtype: of its matrix products, where the trainer knows; None: autocast's, or the parameters'.
        peak_flops: the user's `peak_flops=`, preferred to the table.
    """
    import torch

    parameter = None if model is None else next(iter(model.parameters()), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    dtype = torch.float8_e4m3fn if _multiplies_in_float8(model) else dtype or _wrappers_dtype(model)
    if dtype is None and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    if dtype is None:
        dtype = torch.float32 if parameter is None else parameter.dtype
    return _describe(_device_name(device), device, dtype, peak_flops)


def _multiplies_in_float8(model: nn.Module | None) -> bool:
    """True if layers replaced by torchao's (`Float8Linear`) or Transformer Engine's fp8 autocast multiply."""
    if model is None:
        return False
    engine = sys.modules.get("transformer_engine.pytorch.fp8")
    manager = getattr(engine, "FP8GlobalStateManager", None)
    kinds = {type(module) for module in model.modules()}
    if manager is not None and any(kind.__module__.startswith("transformer_engine.") for kind in kinds):
        return bool(manager.is_fp8_enabled())
    return any(kind.__name__.lower().startswith("float8") for kind in kinds)


def _wrappers_dtype(model: nn.Module | None) -> torch.dtype | None:
    """The dtype that Fabric's or Accelerate's wrapper will compute in: its autocast begins after our hook."""
    import torch

    fabrics = getattr(getattr(model, "_strategy", None), "precision", None)
    precision = str(getattr(fabrics, "precision", ""))
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is not None and hasattr(model, "_original_forward"):
        precision = precision or str(accelerate.AcceleratorState._shared_state.get("_mixed_precision", ""))
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith(("16", "fp16")) else None


def _describe(name: str, device: torch.device, dtype: torch.dtype, peak_flops: float | None) -> Device:
    import torch

    product = str(dtype).removeprefix("torch.")
    if device.type == "cuda" and dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        product = "tf32"
    if peak_flops is not None:
        return Device(name, device.type, product, float(peak_flops), "peak_flops given by the user")
    peak = lookup_peak(name, product)
    if peak is None and product == "tf32":  # torch may use TF32, but the device has none
        product = "float32"
        peak = lookup_peak(name, product)
    rate, source = (None, None) if peak is None else (peak.flops_per_second, peak.source)
    return Device(name, device.type, product, rate, source)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    if device.type == "xla":
        # Google Cloud's accelerator type ("v5litepod-8"), which torch_xla itself reads here
        return os.environ.get("TPU_ACCELERATOR_TYPE") or os.environ.get("ACCELERATOR_TYPE") or "xla"
    return device.type
