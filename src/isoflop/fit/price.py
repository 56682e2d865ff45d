"""Compute as money and time: FLOPs to GPU-hours to dollars, and back."""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.laws import quantities as check

HOUR = 3600.0
SMALLEST_PEAK, LARGEST_PEAK = 1e11, 1e17
"""FLOP/s of one device: below it is very likely in TFLOP/s, above it is no single device."""


@dataclass(frozen=True)
class Price:
    """What a device does in an hour, and what the hour costs. What is None is unknown, and so is all that needs it.

    Attributes:
        gpu: its name, for messages.
        peak_flops: FLOP/s, dense, in the dtype of the matmuls: `isoflop.flops.device.lookup_peak` has a table.
        mfu: model FLOPs over what the peak allows, 0 to 1 (Chowdhery et al. 2022, appendix B); .4 is usual for large
            dense models.
        usd_per_gpu_hour: dollars for an hour of one device.

    Raises:
        ValueError: a number out of range, or in another unit.

    >>> price = Price("H100 SXM", 989.4e12, 0.4, 2.5)
    >>> f"{price.gpu_hours(1e21):.0f} GPU-hours, {price.usd(1e21):.0f} dollars"
    '702 GPU-hours, 1755 dollars'
    """

    gpu: str | None = None
    peak_flops: float | None = None
    mfu: float = 0.4
    usd_per_gpu_hour: float | None = None

    def __post_init__(self) -> None:
        mfu = check.positive("mfu", self.mfu, "share of the peak")
        if mfu > 1:
            raise ValueError(f"mfu must be a share of the peak, from 0 to 1, got {mfu:g}: 0.4 for 40%")
        if self.peak_flops is not None:
            peak = check.positive("peak_flops", self.peak_flops, "FLOP/s")
            if not SMALLEST_PEAK <= peak <= LARGEST_PEAK:
                raise ValueError(
                    f"peak_flops must be the FLOP/s of one device, {SMALLEST_PEAK:g} to {LARGEST_PEAK:g}, got "
                    f"{peak:g}: multiply TFLOP/s by 1e12; give one device's peak, not a cluster's"
                )
        if self.usd_per_gpu_hour is not None:
            check.positive("usd_per_gpu_hour", self.usd_per_gpu_hour, "dollars per GPU-hour")

    def gpu_hours(self, flops: float) -> float | None:
        """Hours of one device for so many model FLOPs; None where the peak is unknown."""
        flops = check.positive("flops", flops, "FLOPs")
        return None if self.peak_flops is None else flops / (self.peak_flops * self.mfu * HOUR)

    def usd(self, flops: float) -> float | None:
        """Dollars for so many model FLOPs; None where the peak or the price is unknown."""
        hours = self.gpu_hours(flops)
        return None if hours is None or self.usd_per_gpu_hour is None else hours * self.usd_per_gpu_hour

    def days(self, flops: float, gpus: int) -> float | None:
        """Days on so many devices, at the same MFU; None where the peak is unknown."""
        hours, devices = self.gpu_hours(flops), check.positive("gpus", gpus, "devices")
        return None if hours is None else hours / devices / 24

    def flops_for(self, *, usd: float | None = None, gpu_hours: float | None = None) -> float:
        """Model FLOPs that so many dollars, or so many hours of one device, buy.

        Raises:
            ValueError: both or neither is given; the peak, or for dollars the price, is unknown.
        """
        if (usd is None) == (gpu_hours is None):
            raise ValueError(
                f"expected usd= or gpu_hours=, one of them, got {'both' if usd is not None else 'neither'}"
            )
        if usd is not None:
            if self.usd_per_gpu_hour is None:
                raise ValueError("dollars buy no FLOPs without a price: pass usd_per_gpu_hour=, or gpu_hours= instead")
            gpu_hours = check.positive("usd", usd, "dollars") / self.usd_per_gpu_hour
        hours = check.positive("gpu_hours", gpu_hours, "GPU-hours")  # type: ignore[arg-type]
        if self.peak_flops is None:
            raise ValueError(
                f"hours buy no FLOPs without the peak of {self.gpu or 'the device'}: pass peak_flops=, its FLOP/s in "
                f"the dtype of the matmuls (bfloat16, dense)"
            )
        return hours * HOUR * self.peak_flops * self.mfu

    def __str__(self) -> str:
        peak = "peak unknown" if self.peak_flops is None else f"{self.peak_flops / 1e12:.4g} TFLOP/s peak"
        price = "price unknown" if self.usd_per_gpu_hour is None else f"${self.usd_per_gpu_hour:g} per GPU-hour"
        return f"{self.gpu or 'GPU'}: {peak}, MFU {self.mfu:.0%}, {price}"
