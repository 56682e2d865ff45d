"""What the commands share: amounts and NAME=VALUE pairs read, numbers and lines printed at the terminal's width."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Sequence

import typer

SUFFIXES = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


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


def amounts(option: str, text: str) -> list[float]:
    """Positive numbers between commas.

    Raises:
        ValueError: something else.
    """
    found = []
    for part in text.split(","):
        try:
            found.append(amount(part))
        except typer.BadParameter:
            raise ValueError(f"{option}: expected positive numbers between commas, got {part!r} in {text!r}") from None
    return found


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


def pairs(option: str, texts: Sequence[str] | None) -> dict[str, str]:
    """NAME=VALUE of a repeatable option.

    Raises:
        ValueError: one is no pair.
    """
    found = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not (separator and name.strip() and value.strip()):
            raise ValueError(f"{option}: expected NAME=VALUE, got {text!r}")
        found[name.strip()] = value.strip()
    return found


def finite(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return float(value) if math.isfinite(value) else None


def say(text: str, indent: int = 4) -> None:
    """Print a line, broken between words at the terminal's width; what follows the first is indented."""
    width = max(shutil.get_terminal_size().columns, 40)
    rest = " " * indent
    typer.echo(textwrap.fill(text, width, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False))
