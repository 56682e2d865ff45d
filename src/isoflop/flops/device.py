"""The device a run computes on, in which dtype, and the peak that its datasheet promises.

Peak FLOP/s of accelerators by device name and dtype, each with the datasheet that it comes from.

Convention: 1 multiply-add = 2 FLOPs; dense (where a vendor prints figures with 2:4 sparsity they are halved
here, and the source says so); at the vendor's rated boost clock; per device as torch sees it (one GCD of an
MI250X, one core of a TPU v3); the rate that a matmul of that dtype runs at, accumulating in float32.

A peak is what the vendor prints, not a bound: a GeForce that boosts beyond its rated clock passes it (RTX
5090: 254 TFLOP/s measured in bfloat16, 209.5 rated), an L4 under its 72 W limit stays far below (71 of 121).

Unknown is None, never a guess. That includes what only resembles a listed device: laptop GPUs, MIG slices,
vGPUs, "Ti" and "D" variants, and parts made for one customer (A100-SXM-64GB).
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Peak:
    """Peak of one device in one dtype.

    `device` is the name in this table, not the one asked for; `dtype` one of `DTYPES`; `source` the vendor's
    document and what was done to its figure.
    """

    device: str
    dtype: str
    flops_per_second: float
    source: str


DTYPES = ("float32", "tf32", "float16", "bfloat16", "float8")
"""Columns of the tables. "float32" is without TF32: ask for "tf32" where torch multiplies float32 in it."""

_TFLOPS = tuple[float | None, float | None, float | None, float | None, float | None]
_Row = tuple[str, str, _TFLOPS, str]
"""Device, pattern of the name that is reported, TFLOP/s in the order of DTYPES, source.

A pattern matches the whole name less the vendor, so that A10 is not A100, L4 not L40, and whatever is
appended ("MIG 1g.10gb", "Laptop GPU", "Ti") makes the device unknown.

Doubt: Google's pages were read; the other vendors' documents are cited from reprints of their tables and from
memory, and checked against clock × units and against matmuls that others measured (quoted below from
github.com/zzc0721/torch-performance-test-data and github.com/xzwgit/gpu-flops-bench). A measurement says what
a datasheet means; it is never the peak itself.
"""

_HALVED = "figures printed with sparsity, halved"
_V100 = "NVIDIA V100 Tensor Core GPU datasheet: dense (Volta has no sparsity)"
_A100 = "NVIDIA A100 Tensor Core GPU datasheet: dense column, SXM and PCIe alike"
_A800 = "NVIDIA A800 Tensor Core GPU datasheet: dense column, SXM and PCIe alike"
_H100 = "NVIDIA H100 Tensor Core GPU Architecture whitepaper: dense figures as printed"
_H200 = f"NVIDIA H200 Tensor Core GPU datasheet: {_HALVED}"
_H800 = f"NVIDIA H800 Tensor Core GPU datasheet: {_HALVED}"
_GH200 = f"NVIDIA GH200 Grace Hopper Superchip datasheet: {_HALVED}"
_HGX = f"NVIDIA HGX platform page and Blackwell datasheet, one of eight GPUs: {_HALVED}"
_NVL72 = f"NVIDIA GB200 NVL72 and GB300 NVL72 datasheets, one of 72 GPUs: {_HALVED}"
_GA102 = "NVIDIA Ampere GA102 GPU Architecture whitepaper: dense, float32 accumulate"
_AD102 = "NVIDIA Ada GPU Architecture whitepaper: dense, float32 accumulate"
_GB202 = "NVIDIA RTX Blackwell GPU Architecture whitepaper: dense, float32 accumulate"

# Names: torch.cuda.get_device_name, and the NVIDIA driver's README, "Supported NVIDIA GPU Products".
_NVIDIA: tuple[_Row, ...] = (
    # -- Data centre. bfloat16 is emulated on Volta and Turing: None.
    ("V100 SXM2", r"(Tesla )?V100-SXM2-(16|32)GB", (15.7, None, 125.0, None, None), _V100),
    ("V100 PCIe", r"(Tesla )?V100-PCIE-(16|32)GB", (14.0, None, 112.0, None, None), _V100),
    ("V100S PCIe", r"(Tesla )?V100S-PCIE-32GB", (16.4, None, 130.0, None, None), _V100),
    ("T4", r"(Tesla )?T4", (8.1, None, 65.0, None, None),
     "NVIDIA T4 Tensor Core GPU datasheet: dense (Turing has no sparsity)"),
    ("A10", r"A10", (31.2, 62.5, 125.0, 125.0, None), "NVIDIA A10 Tensor Core GPU datasheet: dense column"),
    # Not an A10: half of its tensor rate per SM, as a GeForce. Doubt in float32: TechPowerUp's 31.52 assumes
    # 72 SMs; the device reports 80, and 80 × 256 FLOPs × 1.71 GHz = 35.0. Measured: 34.7 (tf32), 69.5 (bf16).
    ("A10G", r"A10G", (35.0, 35.0, 70.0, 70.0, None), "NVIDIA A10G datasheet for Amazon EC2: dense column"),
    ("A30", r"A30", (10.3, 82.0, 165.0, 165.0, None), "NVIDIA A30 Tensor Core GPU datasheet: dense column"),
    ("A40", r"A40", (37.4, 74.8, 149.7, 149.7, None), "NVIDIA A40 datasheet: dense column"),
    ("A100", r"A100(-(SXM4?|PCIE)-(40|80)GB| 80GB PCIe( LC)?)", (19.5, 156.0, 312.0, 312.0, None), _A100),
    # An A100 with a slower NVLink. "A800 40GB Active" has a datasheet of its own, not looked at: unknown.
    ("A800", r"A800(-(SXM4|PCIE)-(40|80)GB| 80GB PCIe( LC)?)", (19.5, 156.0, 312.0, 312.0, None), _A800),
    ("H100 SXM", r"H100 80GB HBM3", (66.9, 494.7, 989.4, 989.4, 1978.9), _H100),
    # 80 GB of HBM2e is the PCIe card only. "NVIDIA H100" alone is another part, on no datasheet: unknown.
    ("H100 PCIe", r"H100 (PCIe|80GB HBM2e)", (51.2, 378.0, 756.0, 756.0, 1513.0), _H100),
    # The first datasheet (2023) printed a pair of cards; later editions print one, as here.
    ("H100 NVL", r"H100 NVL", (60.0, 417.5, 835.5, 835.5, 1670.5),
     f"NVIDIA H100 Tensor Core GPU datasheet: {_HALVED}"),
    # Doubt: from reprints of the datasheet; an H100 with slower NVLink and float64. H800 NVL: none seen.
    ("H800 SXM", r"H800", (67.0, 494.5, 989.5, 989.5, 1979.0), _H800),
    ("H800 PCIe", r"H800 PCIe", (51.0, 378.0, 756.5, 756.5, 1513.0), _H800),
    # Doubt: NVIDIA publishes no datasheet, these are the figures that partners print. 148 agrees with 142
    # measured; 44 in float32 would need 2.2 GHz of its 78 SMs. H20-3e and H20 NVL16: none seen.
    ("H20", r"H20", (44.0, 74.0, 148.0, 148.0, 296.0),
     "NVIDIA H20 product brief, as reprinted by partners: dense"),
    ("H200 SXM", r"H200", (67.0, 494.5, 989.5, 989.5, 1979.0), _H200),
    ("H200 NVL", r"H200 NVL", (60.0, 417.5, 835.5, 835.5, 1670.5), _H200),
    ("GH200", r"GH200 (120GB|480GB|144GB? HBM3e)", (67.0, 494.5, 989.5, 989.5, 1979.0), _GH200),
    # tf32: eight GPUs have 18 PFLOP/s sparse; the per-GPU column of the Blackwell datasheet rounds it to 2.2.
    ("B200", r"B200", (75.0, 1125.0, 2250.0, 2250.0, 4500.0), _HGX),
    ("B300", r"B300( SXM6 AC)?", (75.0, 1125.0, 2250.0, 2250.0, 4500.0), _HGX),
    # Doubt: a GB200 NVL4 carries the same name as the NVL72's GPU and may be rated lower.
    ("GB200", r"GB200", (80.0, 1250.0, 2500.0, 2500.0, 5000.0), _NVL72),
    ("GB300", r"GB300", (80.0, 1250.0, 2500.0, 2500.0, 5000.0), _NVL72),
    # -- Ada and workstation cards keep the full rate with float32 accumulate, unlike a GeForce with the same
    # chip: 71 (L4), 269 (L40S), 123 (RTX A6000) were measured; half the rate would be 61, 183, 77. The L40 is
    # printed at half the rate of the L40S, at nearly the same clock.
    ("L4", r"L4", (30.3, 60.0, 121.0, 121.0, 242.5), f"NVIDIA L4 Tensor Core GPU datasheet: {_HALVED}"),
    ("L40", r"L40", (90.5, 90.5, 181.05, 181.05, 362.0), "NVIDIA L40 datasheet: dense column"),
    # Doubt: 362.05 is printed, but half of the sparse 733 beside it, and half of float8, is 366.5.
    ("L40S", r"L40S", (91.6, 183.0, 362.05, 362.05, 733.0), "NVIDIA L40S datasheet: dense column"),
    ("RTX A6000", r"RTX A6000", (38.7, 77.4, 154.8, 154.8, None), _GA102),
    # -- GeForce: 16-bit figures with float32 accumulate, as torch multiplies; float16 accumulate doubles
    # them. float8 is printed for both, and kernels reach either (RTX 4090: 330 or 661 printed, 354 measured;
    # RTX 5090: 419 or 838 printed, 774 measured). Which one is the peak depends on the kernel: None.
    ("GeForce RTX 3090", r"GeForce RTX 3090", (35.6, 35.6, 71.0, 71.0, None), _GA102),
    ("GeForce RTX 4090", r"GeForce RTX 4090", (82.6, 82.6, 165.2, 165.2, None), _AD102),
    ("GeForce RTX 5090", r"GeForce RTX 5090", (104.8, 104.8, 209.5, 209.5, None), _GB202),
)  # fmt: skip

_MI200 = "AMD Instinct MI200 series data sheets: dense"
_MI300 = "AMD Instinct MI300A, MI300X and MI325X data sheets: dense column"
_MI350 = "AMD Instinct MI350X and MI355X GPU data sheets: dense column"

# Names: libdrm's amdgpu.ids. float32 is the matrix cores' rate, which is IEEE float32 and what rocBLAS uses.
# "VF" is a virtual machine's view of a whole card (304 or 256 CUs were seen). Doubt: a card that is
# partitioned into several devices (DPX, CPX) keeps its name; the peak is then too high by their number.
_AMD: tuple[_Row, ...] = (
    ("MI210", r"MI210", (45.3, None, 181.0, 181.0, None), _MI200),
    # torch sees two devices a card, whose figures are 95.7 and 383.0. "MI250X/MI250" may be either: unknown.
    ("MI250X (one GCD)", r"MI250X", (47.85, None, 191.5, 191.5, None),
     f"{_MI200}; halved for one of two GCDs"),
    ("MI300A", r"MI300A", (122.6, 490.3, 980.6, 980.6, 1961.2), _MI300),
    ("MI300X", r"MI300X( OAM| VF)?", (163.4, 653.7, 1307.4, 1307.4, 2614.9), _MI300),
    ("MI325X", r"MI325X( VF)?", (163.4, 653.7, 1307.4, 1307.4, 2614.9), _MI300),
    # TF32 is emulated from CDNA 4 on: None. Doubt: AMD's pages round the rest to 2.3 and 2.5, 4.6 and 5.0
    # PFLOP/s; these are 256 CUs × 4096 (float8: 8192) FLOPs × 2.2 and 2.4 GHz.
    ("MI350X", r"MI350X( VF)?", (144.2, None, 2306.9, 2306.9, 4613.7), _MI350),
    ("MI355X", r"MI355X( VF)?", (157.3, None, 2516.6, 2516.6, 5033.2), _MI350),
)  # fmt: skip

_CLOUD_TPU = "Google Cloud TPU documentation, peak compute per chip"

# Names: JAX's device_kind ("TPU v5 lite") and Google Cloud's accelerator type ("v5litepod-8"). XLA multiplies
# float32 in bfloat16 passes and Google prints no float32 figure: None. A chip without megacore (v3, TPU7x) is
# two devices (jax.experimental.pallas.tpu.ChipVersion), hence the halves; a v4 or v5p chip is one.
_GOOGLE: tuple[_Row, ...] = (
    ("TPU v3 (one core)", r"(TPU )?v3(-\d+)?", (None, None, None, 61.5, None),
     f"{_CLOUD_TPU}, TPU v3: 123 TFLOP/s; halved for one of two cores"),
    ("TPU v4", r"(TPU )?v4(-\d+)?", (None, None, None, 275.0, None), f"{_CLOUD_TPU}, TPU v4"),
    ("TPU v5e", r"TPU v5 lite|(TPU )?v5(e|litepod)(-\d+)?", (None, None, None, 197.0, None),
     f"{_CLOUD_TPU}, TPU v5e"),
    # Doubt: v5p and v6e have no float8 units; Google's table repeats the bfloat16 rate for them.
    ("TPU v5p", r"TPU v5|(TPU )?v5p(-\d+)?", (None, None, None, 459.0, 459.0), f"{_CLOUD_TPU}, TPU7x page"),
    ("TPU v6e", r"TPU v6 lite|(TPU )?v6e(-\d+)?", (None, None, None, 918.0, 918.0),
     f"{_CLOUD_TPU}, TPU7x page"),
    ("TPU7x (one of two devices)", r"TPU ?v?7x(-\d+)?", (None, None, None, 1153.5, 2307.0),
     f"{_CLOUD_TPU}, TPU7x page: 2307 and 4614 TFLOP/s; halved for one of two devices"),
)  # fmt: skip

# Vendor, its part of the reported name (older drivers leave "NVIDIA" out), rows.
_VENDORS = (
    ("NVIDIA", r"(NVIDIA )?", _NVIDIA),
    ("AMD Instinct", r"AMD Instinct ", _AMD),
    ("Google", r"", _GOOGLE),
)


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
    >>> lookup_peak("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "bfloat16") is None  # no datasheet knows a slice
    True
    >>> lookup_peak("Tesla T4", "bfloat16") is None  # Turing emulates it
    True
    """
    dtype = dtype.removeprefix("torch.")
    if dtype.startswith(("float8_e4m3", "float8_e5m2")):
        dtype = "float8"
    if dtype not in DTYPES:
        return None
    name = device_name.strip()
    for vendor, prefix, rows in _VENDORS:
        for device, pattern, tflops, source in rows:
            if re.fullmatch(f"{prefix}({pattern})", name, re.IGNORECASE | re.ASCII):
                rate = tflops[DTYPES.index(dtype)]
                if rate is None:
                    return None
                # rounded, because 16.4 * 1e12 is not 16.4e12
                return Peak(f"{vendor} {device}", dtype, float(round(rate * 1e12)), source)
    return None


def peak_by_short_name(name: str) -> Peak | None:
    """Dense 16-bit peak of what people call "h100" or "rtx 4090": of several variants the first in the table (SXM).

    >>> peak_by_short_name("h100").device
    'NVIDIA H100 SXM'
    >>> peak_by_short_name("V100").dtype  # which has no bfloat16
    'float16'
    """
    wanted = name.lower().replace("-", "").replace(" ", "")
    for vendor, _, rows in _VENDORS:
        for device, _, tflops, source in rows:
            words = device.lower().replace("(", "").split()
            parts = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
            if wanted in parts:
                for dtype in ("bfloat16", "float16"):
                    rate = tflops[DTYPES.index(dtype)]
                    if rate is not None:
                        return Peak(f"{vendor} {device}", dtype, float(round(rate * 1e12)), source)
    return None


def known_devices() -> list[str]:
    """Names of the devices in the table, for messages and documentation."""
    return [f"{vendor} {device}" for vendor, _, rows in _VENDORS for device, *_ in rows]


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
