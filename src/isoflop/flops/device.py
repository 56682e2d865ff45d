"""The device that a run computes on, its dtype, and the peak that its datasheet promises (`data/peaks.toml`).

Unknown is None, never a guess. Only what describes a live model imports torch.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    import torch
    from torch import nn

DTYPES = ("float32", "tf32", "float16", "bfloat16", "float8", "float4")
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
            rates = dict(zip(DTYPES, tflops, strict=False))
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
    for sheet in DATASHEETS:
        if re.fullmatch(sheet.pattern, device_name.strip(), re.IGNORECASE | re.ASCII):
            return sheet.peak(_column(dtype))
    return None


def _column(dtype: str) -> str:
    """The table's name of a dtype's rate; a scale (float8_e8m0fnu) is no operand."""
    kind = re.match(r"(float8)_e[45]m|(float4)_e2m1", dtype := dtype.removeprefix("torch."))
    return dtype if kind is None else kind[1] or kind[2]


def peak_by_short_name(name: str) -> Peak | None:
    """Dense 16-bit peak of what people call "h100", "A100-80GB" or "rtx 4090", or of a name as the device reports it.

    Of several variants the first in the table (SXM). Gigabytes change no peak, nor does the socket of a device that the
    table has without one.

    >>> peak_by_short_name("h100").device
    'NVIDIA H100 SXM'
    >>> peak_by_short_name("A100 40GB PCIe").device
    'NVIDIA A100'
    >>> peak_by_short_name("V100").dtype  # which has no bfloat16
    'float16'
    """
    if peak := lookup_peak(name, "bfloat16") or lookup_peak(name, "float16"):
        return peak
    words = _words(re.sub(r"\b\d+ ?gb\b", "", name.lower()))
    if not any(map(str.isdigit, "".join(words))):  # "max" is no device
        return None
    for sheet in DATASHEETS:
        mine, model = _words(sheet.device), "".join(_words(sheet.model))
        parts = {"".join(mine[i:j]) for i in range(len(mine)) for j in range(i + 1, len(mine) + 1)}
        bare = "".join(word for word in words if word not in SOCKETS)
        peak = sheet.peak("bfloat16") or sheet.peak("float16")
        if peak is not None and ("".join(words) in parts or bare == model):
            return peak
    return None


SOCKETS = ("sxm", "pcie", "oam")


def _words(name: str) -> list[str]:
    """Of a device's name, in lower case; a socket without its version."""
    return [re.sub(r"^sxm\d$", "sxm", word) for word in re.split(r"[-_\s()]+", name.lower()) if word]


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


def model_device(model: nn.Module | None, dtype: torch.dtype | None, peak_flops: float | str | None) -> Device:
    """Describe the device that a model computes on; called during its forward pass.

    Args:
        model: its first parameter tells; None: the CPU.
        dtype: of its matrix products, where the trainer knows; None: autocast's, or the parameters'.
        peak_flops: the user's `peak_flops=`, preferred to the table; "measured": what `isoflop peak` has measured here.
    """
    import torch

    parameter = None if model is None else next(iter(model.parameters()), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    dtype = dtype or _wrappers_dtype(model)
    if dtype is None and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    if dtype is None:
        dtype = torch.float32 if parameter is None else parameter.dtype
    return _describe(device_name(device), device, _shares(model, dtype), peak_flops)


def _shares(model: nn.Module | None, dtype: torch.dtype) -> dict[str, float]:
    """The dtypes that layers multiply in, each with its share of the layers' weights; the rest is in `dtype`."""
    from torch import nn

    from isoflop.flops.parameters import has_shape

    sizes: dict[str, int] = {}
    own, engine = str(dtype).removeprefix("torch."), _engine_dtype()
    for module in () if model is None else model.modules():
        low = _low_dtype(module, engine)
        if low is not None or isinstance(module, nn.Linear):  # Transformer Engine's fused layers have several matrices
            size = sum(p.numel() for p in module.parameters(recurse=False) if has_shape(p) and p.dim() >= 2)
            sizes[low or own] = sizes.get(low or own, 0) + size
    total = sum(sizes.values())
    return {kind: size / total for kind, size in sizes.items() if size} if total else {own: 1.0}


def _engine_dtype() -> str | None:
    """What Transformer Engine multiplies in now: within its autocast in float8, or in NVFP4 by its recipe."""
    for name in ("transformer_engine.pytorch.quantization", "transformer_engine.pytorch.fp8"):
        manager = getattr(sys.modules.get(name), "FP8GlobalStateManager", None)
        if manager is not None and (manager.is_fp8_enabled() or _accelerates() == "fp8"):
            recipe = manager.get_fp8_recipe() if hasattr(manager, "get_fp8_recipe") else None
            return "float4" if "NVFP4" in type(recipe).__name__ else "float8"
    return None


def _low_dtype(module: nn.Module, engine: str | None) -> str | None:
    """The dtype of a layer that multiplies in fewer than 16 bits: torchao's and Transformer Engine's; else None."""
    kind = type(module)
    if kind.__module__.startswith("transformer_engine."):
        return engine
    name = kind.__name__.lower()
    if name.startswith("nvfp4"):
        return "float4"
    if name.startswith("mx"):  # its configuration tells the elements' dtype
        return "float4" if "4" in str(getattr(getattr(module, "config", None), "elem_dtype", "float8_e8")) else "float8"
    return "float8" if name.startswith("float8") else None


def _accelerates() -> str:
    """Accelerate's mixed precision, "" where it is not used."""
    state = getattr(sys.modules.get("accelerate.state"), "AcceleratorState", None)
    return "" if state is None else str(state._shared_state.get("_mixed_precision", ""))


def _wrappers_dtype(model: nn.Module | None) -> torch.dtype | None:
    """The dtype that Fabric's or Accelerate's wrapper will compute in: its autocast begins after our hook."""
    import torch

    fabrics = getattr(getattr(model, "_strategy", None), "precision", None)
    precision = str(getattr(fabrics, "precision", "")) or (
        _accelerates() if hasattr(model, "_original_forward") else ""
    )
    if precision.startswith(("bf16", "fp8")):  # beside float8 layers accelerate computes in bfloat16
        return torch.bfloat16
    return torch.float16 if precision.startswith(("16", "fp16")) else None


def _describe(name: str, device: torch.device, shares: dict[str, float], peak_flops: float | str | None) -> Device:
    import torch

    tf32 = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    kinds: dict[str, float] = {}
    for dtype, share in shares.items():
        product = "tf32" if tf32 and dtype == "float32" else dtype
        if product == "tf32" and lookup_peak(name, product) is None:  # torch may use TF32, but the device has none
            product = "float32"
        kinds[product] = kinds.get(product, 0.0) + share
    dtypes = " and ".join(kinds)
    if peak_flops is not None and peak_flops != MEASURED_PEAK:
        return Device(name, device.type, dtypes, float(peak_flops), "peak_flops given by the user")
    find = lookup_peak if peak_flops is None else measured_peak
    peaks = {dtype: peak for dtype in kinds if (peak := find(name, dtype)) is not None}
    if len(peaks) < len(kinds):
        return Device(name, device.type, dtypes, None, None)
    first = next(iter(peaks.values()))
    if len(kinds) == 1:
        return Device(name, device.type, dtypes, first.flops_per_second, first.source)
    # the time of a step is the sum of its parts' times
    rate = 1 / sum(share / peaks[dtype].flops_per_second for dtype, share in kinds.items())
    told = ", ".join(f"{share:.0%} in {dtype}" for dtype, share in kinds.items())
    return Device(name, device.type, dtypes, rate, f"{first.source}; weighted by the layers' weights: {told}")


# -- what a device reaches ---------------------------------------------------------------------------------------------

MEASURED_PEAK = "measured"
"""`peak_flops="measured"`."""


def measure_rates(device: torch.device, seconds: float = 1.0) -> dict[str, float]:
    """The highest rate of a product of two square matrices, FLOP/s by the names in `DTYPES` that the device takes.

    It is less than a datasheet's peak. Sizes double from 256 on, until one product takes a fifth of `seconds`, which a
    dtype may take about, or the memory is used up.
    """
    import torch

    precision = torch.get_float32_matmul_precision()
    kinds = {
        "float32": (torch.float32, "highest"),
        "tf32": (torch.float32, "high"),
        "float16": (torch.float16, precision),
        "bfloat16": (torch.bfloat16, precision),
        "float8": (torch.float8_e4m3fn, precision),
    }
    if device.type != "cuda":
        del kinds["tf32"], kinds["float8"]
    rates: dict[str, float] = {}
    try:
        for name, (dtype, multiplied) in kinds.items():
            torch.set_float32_matmul_precision(multiplied)
            size, took = 256, 0.0
            while took < seconds / 5 and size <= 2**15:
                try:
                    took = _seconds_a_product(device, dtype, size, seconds / 10)
                except (RuntimeError, NotImplementedError):  # no kernel, or no memory
                    break
                rates[name] = max(rates.get(name, 0.0), 2 * size**3 / took)
                size *= 2
    finally:
        torch.set_float32_matmul_precision(precision)
    return rates


def _seconds_a_product(device: torch.device, dtype: torch.dtype, size: int, seconds: float) -> float:
    """Time of one product of some that take about `seconds`."""
    import torch
    from torch.utils.benchmark import Timer

    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype).t()  # float8 is multiplied so alone
    one = torch.ones((), device=device)
    low = "torch._scaled_mm(a, b, one, one, out_dtype=torch.bfloat16)"
    timer = Timer(
        low if dtype.itemsize == 1 else "a @ b",
        globals={"torch": torch, "a": a, "b": b, "one": one},
        num_threads=torch.get_num_threads(),
    )
    return timer.blocked_autorange(min_run_time=seconds).mean


def store_measured(device: torch.device, rates: dict[str, float]) -> Path:
    """Keep the rates of a device for `peak_flops="measured"`; returns the file.

    Raises:
        OSError: it can't be written.
    """
    path, known = _measured_file(), _measured()
    known[device_name(device)] = rates
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return path


def measured_peak(name: str, dtype: str) -> Peak | None:
    """What `isoflop peak` measured on this machine for a device's name and a dtype; None where it did not."""
    rates, dtype = _measured().get(name), _column(dtype)
    rate = rates.get(dtype) if isinstance(rates, dict) else None
    if not isinstance(rate, int | float) or not rate > 0:
        return None
    return Peak(name, dtype, float(rate), "measured by `isoflop peak` on this machine, not a datasheet's")


def _measured_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isoflop" / "peaks.json"


def _measured() -> dict[str, Any]:
    try:
        found = json.loads(_measured_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # no file, another's, no home
        return {}
    return found if isinstance(found, dict) else {}


def device_name(device: torch.device) -> str:
    """As torch reports it; a CPU's model is not reported: "cpu"."""
    if device.type in ("cuda", "xpu"):
        import torch

        return str(torch.get_device_module(device).get_device_name(device))
    if device.type == "xla":
        # Google Cloud's accelerator type ("v5litepod-8"), which torch_xla itself reads here
        return os.environ.get("TPU_ACCELERATOR_TYPE") or os.environ.get("ACCELERATOR_TYPE") or "xla"
    return device.type
