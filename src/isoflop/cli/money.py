"""Compute as the user counts it: FLOPs, GPU-hours or dollars, by a device's datasheet peak and an MFU.

Also what `plan` and `compare` share of reading amounts and of printing at the terminal's width.
"""

from __future__ import annotations

import math
import shutil
import textwrap
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.fit.planning.cost import Price

if TYPE_CHECKING:
    from isoflop.observe.peaks import Peak

SUFFIXES = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
USUAL_MFU = 0.4


def amount(text: str) -> float:
    """A positive number, with k, M, B or T as in `isoflop compare`; else Typer's refusal, which names the option."""
    number = _number(text)
    if not number > 0:
        raise typer.BadParameter(f"expected a positive number, such as 2e11 or 200B; got {text!r}.")
    return number


def amount_or_none(text: str) -> float:
    """The same, or 0."""
    number = _number(text)
    if number < 0:
        raise typer.BadParameter(f"expected a positive number, such as 2e11 or 200B, or 0; got {text!r}.")
    return number


def _number(text: str) -> float:
    # Some versions of Typer give an option's default, a number, to its parser too
    bare = str(text).strip().replace(",", "").replace("_", "")
    factor = next((value for key, value in SUFFIXES.items() if bare[-1:].lower() == key.lower()), None)
    try:
        number = float(bare) if factor is None else float(bare[:-1]) * factor
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise typer.BadParameter(f"expected a number, such as 2e11 or 200B (k, M, B, T); got {text!r}.")
    return number


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


def say(text: str, indent: int = 4) -> None:
    """Print a line, broken between words at the terminal's width; what follows the first is indented."""
    width = max(shutil.get_terminal_size().columns, 40)
    rest = " " * indent
    typer.echo(textwrap.fill(text, width, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False))
