"""What the commands share: options, amounts and pairs read; errors, JSON and lines printed."""

from __future__ import annotations

import json
import math
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.record.conventions import DEFAULT_N

if TYPE_CHECKING:
    from isoflop.fit.fitting.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Level = Annotated[float, typer.Option(min=0.01, max=0.999, help="Of the intervals: 0.8 for 80%.")]
Where = Annotated[
    str | None,
    typer.Option(help="Rows to take: 'epoch_outlier==0 and N>1e8' (column, comparison, value)."),
]
Column = Annotated[
    list[str] | None,
    typer.Option(metavar="WHAT=COLUMN", help="Which column is N, D, C or loss, where it can't be guessed."),
]
Budgets = Annotated[
    str | None,
    typer.Option(metavar="FLOPS,…", help="Nominal budgets of isoFLOP profiles, for approach 2: 6e18,1e19."),
]
FinalLoss = Annotated[
    str | None, typer.Option(help="Of records: which loss, `train` or eval/<name> (default: an evaluation's).")
]
CurveLoss = Annotated[str, typer.Option(help="Of records: which loss, `train` or eval/<name>.")]
CurveFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUNS…",
        help="isoflop's records (.jsonl) or folders with some; folders with an index.csv and <dataset>/<run>.csv.",
    ),
]
RunFiles = Annotated[
    list[str],
    typer.Argument(metavar="RUNS…", help="isoflop's records (.jsonl), folders with some, or URLs; CSV files."),
]
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


def tell(command: str, text: object) -> None:
    """Print a line on stderr in a command's name."""
    typer.echo(f"isoflop {command}: {text}", err=True)


@contextmanager
def reported(command: str, *more: type[Exception], code: int = 1) -> Iterator[None]:
    """End the command with one line on stderr where the block raises ValueError, OSError or one of `more`."""
    faults: tuple[type[Exception], ...] = (ValueError, OSError, *more)
    try:
        yield
    except faults as error:
        tell(command, error)
        raise typer.Exit(code) from None


def print_json(values: Mapping[str, Any]) -> None:
    """Print the one JSON object of `--json`."""
    typer.echo(json.dumps(values, allow_nan=False))


def finite(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return float(value) if math.isfinite(value) else None


def say(text: str, indent: int = 4) -> None:
    """Print a line, broken between words at the terminal's width; what follows the first is indented."""
    width = max(shutil.get_terminal_size().columns, 40)
    rest = " " * indent
    typer.echo(textwrap.fill(text, width, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False))


def tell_read(command: str, table: Table, asked: str | None) -> None:
    """Which records a table leaves out, and that its N is not the default one, on stderr.

    Args:
        command: that read it.
        table: as read.
        asked: the convention or column of N that the user named.
    """
    for text in table.left_out:
        tell(command, f"left out: {text}")
    if asked is None and table.convention not in (DEFAULT_N, "unknown"):
        tell(command, f"N counts {table.convention}: not every run states {DEFAULT_N}")
