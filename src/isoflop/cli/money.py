"""Compute as the user counts it: FLOPs, GPU-hours or dollars, by a device's datasheet peak and an MFU."""

from __future__ import annotations

from typing import Annotated

import typer

from isoflop.fit.cost import Price

Gpu = Annotated[str | None, typer.Option(help="Device, such as h100: its dense 16-bit peak is looked up.")]
Mfu = Annotated[float, typer.Option(min=0.001, max=1.0, help="Share of the peak that training reaches.")]
Dollars = Annotated[float | None, typer.Option("--price", help="Dollars for an hour of one device.")]


def price_of(gpu: str | None, mfu: float, usd_per_gpu_hour: float | None) -> Price | None:
    """The price of compute; None where no device was named.

    Raises:
        ValueError: a device that no datasheet is known for; a price without a device.
    """
    if gpu is None:
        if usd_per_gpu_hour is not None:
            raise ValueError("--price needs --gpu, whose hour it is")
        return None
    from isoflop.observe.peaks import known_devices, peak_by_short_name

    peak = peak_by_short_name(gpu)
    if peak is None:
        raise ValueError(f"--gpu: no datasheet is known for {gpu!r}; expected one of {', '.join(known_devices())}")
    return Price(peak.device, peak.flops_per_second, mfu, usd_per_gpu_hour)


def describe_cost(price: Price | None, flops: float) -> str | None:
    """A sentence: GPU-hours and dollars; None without a price."""
    hours = None if price is None else price.gpu_hours(flops)
    if price is None or hours is None:
        return None
    usd = price.usd(flops)
    dollars = "" if usd is None else f", ${usd:,.0f}"
    return f"{hours:,.0f} GPU-hours{dollars} ({price})"
