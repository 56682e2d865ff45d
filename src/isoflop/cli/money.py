"""Compute as the user counts it: FLOPs, GPU-hours or dollars, by a device's datasheet peak and an MFU."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.text import amount
from isoflop.fit.planning.cost import Price

if TYPE_CHECKING:
    from isoflop.observe.peaks import Peak

USUAL_MFU = 0.4

Gpu = Annotated[str | None, typer.Option(help="Device, such as h100: its dense 16-bit peak is looked up.")]
Mfu = Annotated[
    float | None,
    typer.Option(min=0.001, max=1.0, help=f"Share of the peak that training reaches; {USUAL_MFU:g} unless given."),
]
Dollars = Annotated[
    float | None, typer.Option("--price", metavar="USD", parser=amount, help="Dollars for an hour of one device.")
]


def price_of(gpu: str | None, mfu: float | None, usd_per_gpu_hour: float | None) -> Price | None:
    """The price of compute; None where no device was named.

    Raises:
        ValueError: a device that no datasheet is known for; a price or an MFU without a device.
    """
    if gpu is None:
        for option, value, whose in (
            ("--price", usd_per_gpu_hour, "whose hour it is"),
            ("--mfu", mfu, "a share of whose peak it is"),
        ):
            if value is not None:
                raise ValueError(f"{option} needs --gpu, {whose}: add one, such as --gpu h100")
        return None
    from isoflop.observe.peaks import known_devices

    peak, known = _peak(gpu), known_devices()
    if peak is None:
        short = {name.split(" ", 1)[1].lower(): name.split(" ", 1)[1] for name in known}
        near = get_close_matches(gpu.lower(), [*short, *(word for name in short for word in name.split())], n=1)
        hint = f"; did you mean {short.get(near[0], near[0])!r}?" if near else "."
        raise ValueError(f"--gpu: no datasheet is known for {gpu!r}{hint} Expected one of {', '.join(known)}")
    return Price(peak.device, peak.flops_per_second, USUAL_MFU if mfu is None else mfu, usd_per_gpu_hour)


def _peak(gpu: str) -> Peak | None:
    """The peak by a short name ("h100") or a whole one, with the vendor, as the messages list them."""
    from isoflop.observe.peaks import known_devices, peak_by_short_name

    whole = {name.lower(): name.split(" ", 1)[1] for name in known_devices()}
    return peak_by_short_name(whole.get(" ".join(gpu.lower().split()), gpu))


def hours_and_dollars(price: Price, flops: float) -> tuple[str, str]:
    """GPU-hours, and dollars or "" where the hour has no price; small ones keep their digits."""
    hours, usd = price.gpu_hours(flops), price.usd(flops)
    return "" if hours is None else _digits(hours), "" if usd is None else f"${_digits(usd)}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def describe_cost(price: Price | None, flops: float) -> str | None:
    """A sentence: GPU-hours and dollars; None without a price."""
    if price is None:
        return None
    hours, usd = hours_and_dollars(price, flops)
    return f"{hours} GPU-hours{f', {usd}' if usd else ''} ({describe(price)})" if hours else None


def describe(price: Price) -> str:
    """The price itself, without what is not known of it."""
    return str(price).removesuffix(", price unknown")
