"""Options that commands share, amounts and pairs as users write them, curves to read, and the price of compute."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from isoflop.console import tell

if TYPE_CHECKING:
    from isoflop.fit.options import Price
    from isoflop.fit.table import Table
    from isoflop.forecast import LossCurve
    from isoflop.laws.forms import Convention
    from isoflop.record.run import Run


def number(unit: str, text: str, *names: str, **more: Any) -> Any:
    """An option that is a positive number as `amount` reads it."""
    return typer.Option(*names, metavar=unit, parser=amount, help=text, **more)


def share(least: float, most: float, expected: str) -> Any:
    """The parser of an option between two numbers, refused in words of its own."""

    def parsed(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise typer.BadParameter(f"expected {expected}; got {text}.")
        return value

    return parsed


AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Level = Annotated[
    float,
    typer.Option(
        metavar="LEVEL",
        parser=share(0.01, 0.999, "a level from 0.01 to 0.999, such as 0.8 for 80% intervals"),
        help="Level of the intervals, such as 0.8.",
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(help="Rows to take: 'epoch_outlier==0 and N>1e8' (column, comparison, value). Repeatable: all hold."),
]
Column = Annotated[
    list[str] | None,
    typer.Option(metavar="WHAT=COLUMN", help="Column of N, D, C or loss, such as N=params."),
]
Budgets = Annotated[
    str | None,
    typer.Option(metavar="FLOPS,…", help="Nominal budgets of isoFLOP profiles, for approach 2: 6e18,1e19."),
]
KeepOutliers = Annotated[
    bool, typer.Option("--keep-outliers", help="Use runs that lie far off the law too; default: left out and named.")
]
FinalLoss = Annotated[
    str | None,
    typer.Option(
        help="Loss of records: `train` or eval/<name> (default: an evaluation's); eval/val=eval/valid,… joins names."
    ),
]
CurveLoss = Annotated[
    str, typer.Option(help="Loss of records: `train`, eval/<name>, or names joined: eval/val=eval/valid,….")
]
CurveFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUNS",
        help="isoflop's records (.jsonl) or folders with some; folders with an index.csv and <dataset>/<run>.csv.",
    ),
]
OwnRuns = Annotated[
    list[str] | None,
    typer.Option(
        "--runs",
        help="Own finished runs: a CSV file, a record, a folder of records, or a URL of these. Repeatable.",
    ),
]
Counted = Annotated[
    str | None,
    typer.Option(
        "--n", help="Which parameters N of records counts (total, …); default: with the head, where all state it."
    ),
]
RunFiles = Annotated[
    list[str],
    typer.Argument(metavar="RUNS", help="isoflop's records (.jsonl), folders with some, or URLs; CSV files."),
]


def amount(text: str, least: float = 5e-324) -> float:
    """A positive number, with k, M, B or T as in `isoflop compare`; else Typer's refusal, which names the option."""
    from isoflop.logs.files import cell_number

    number = cell_number(str(text))  # some versions of Typer give an option's default, a number, to its parser too
    if number is None or not least <= number < math.inf:
        zero = "" if least else ", or 0"
        raise typer.BadParameter(f"expected a positive number, such as 2e11 or 200B (k, M, B, T){zero}; got {text!r}.")
    return number


HOURS = {"h": 1.0, "d": 24.0, "w": 168.0}
_HOURS = re.compile(r"(.*[\d.])\s*(?:(h|d|w)|(h)(?:ou)?rs?|(d)ays?|(w)(?:ee)?ks?)?", re.IGNORECASE)


def hours(text: str) -> float:
    """Hours: a positive number, or one of hours, days or weeks, such as 21d.

    >>> hours("36"), hours("2d"), hours("2 days"), hours("3w")
    (36.0, 48.0, 48.0, 504.0)
    """
    from isoflop.logs.files import cell_number

    parts = _HOURS.fullmatch(str(text).strip())
    unit = "" if parts is None else "".join(filter(None, parts.groups()[1:])).lower()
    found = None if parts is None else cell_number(parts[1])
    if found is None or not 0 < found < math.inf:
        raise typer.BadParameter(f"expected hours, days or weeks, such as 36, 21d or 3w; got {text!r}.")
    return found * HOURS.get(unit, 1.0)


def amount_or_none(text: str) -> float:
    """The same, or 0."""
    return amount(text, 0.0)


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


def pairs(option: str, texts: Sequence[str] | None) -> dict[str, str]:
    """NAME=VALUE of a repeatable option.

    Raises:
        ValueError: one is no pair, or a name comes with two values.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not (separator and name.strip() and value.strip()):
            raise ValueError(f"{option}: expected NAME=VALUE, got {text!r}")
        if found.setdefault(name.strip(), value.strip()) != value.strip():
            raise ValueError(f"{option}: expected {name.strip()} once, got {found[name.strip()]} and {value.strip()}")
    return found


def joined(where: Sequence[str] | None) -> str | None:
    """The conditions of each --where, all of which a row must fulfil."""
    return " and ".join(where) if where else None


def together(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of each parameter that is a data class of options as options of its own."""
    signature = inspect.signature(command, eval_str=True)
    parameters = signature.parameters.items()
    kinds: dict[str, Any] = {name: one.annotation for name, one in parameters if is_dataclass(one.annotation)}
    groups = {name: inspect.signature(kind, eval_str=True).parameters for name, kind in kinds.items()}

    @functools.wraps(command)
    def called(**given: Any) -> None:
        made = {name: kinds[name](**{one: given.pop(one) for one in inside}) for name, inside in groups.items()}
        command(**given, **made)

    options = [groups[name].values() if name in groups else [one] for name, one in parameters]
    called.__signature__ = signature.replace(parameters=list(chain(*options)))  # type: ignore[attr-defined]
    return called


@dataclass(frozen=True)
class RowOptions:
    """Which rows and columns of own runs are read: of a table by name, of records by what N counts and which loss."""

    column: Column = None
    where: Where = None
    n_convention: Counted = None
    loss: FinalLoss = None

    def of(self, command: str, runs: Sequence[str], wanted: Sequence[str] = ("N", "D", "loss")) -> Table:
        """A table of finished runs, for `command`, which tells on stderr what is left out or odd."""
        from isoflop.fit.table import read_table
        from isoflop.record import DEFAULT_N, location_of

        named = pairs("--column", self.column)
        places = [location_of(run) for run in runs]
        table = read_table(places, wanted, named, joined(self.where), self.n_convention, self.loss)
        for text in table.left_out:
            tell(command, f"left out: {text}")
        for text in (*table.doubts, *(table.unlike if command == "fit" else ())):  # an answer shows these itself
            tell(command, text)
        if not (self.n_convention or named.get("N")) and table.convention not in (DEFAULT_N, "unknown"):
            tell(command, f"N counts {table.convention}: not every run states {DEFAULT_N}")
        return table

    def of_own(self, command: str, runs: Sequence[str] | None, law: str | None) -> tuple[Table, Convention] | None:
        """The user's own runs, and which parameters their N counts; None where none are named.

        Raises:
            ValueError: options that need --runs without it, or --law beside it; what is wrong with the runs.
        """
        if not runs:
            given = {"--column": self.column, "--where": self.where, "--n": self.n_convention, "--loss": self.loss}
            if alone := [option for option, value in given.items() if value]:
                raise ValueError(f"{alone[0]} needs --runs, which it is about: name a CSV file or records")
            return None
        if law is not None:
            raise ValueError("expected --law or --runs, got both: leave one out")
        from isoflop.laws.forms import Convention

        if self.n_convention is not None and self.n_convention not in get_args(Convention):
            known = ", ".join(name for name in get_args(Convention) if name != "unknown")
            raise ValueError(f"--n: expected one of {known}; got {self.n_convention!r}")
        table = self.of(command, runs)
        return table, self.n_convention or table.convention  # type: ignore[return-value]


ROWS = RowOptions()


@dataclass
class Curves:
    """What was read."""

    published: list[LossCurve] = field(default_factory=list)  # runs of folders with an index.csv, all finished
    records: list[Run] = field(default_factory=list)  # isoflop's records
    problems: list[str] = field(default_factory=list)  # what could not be read, and why


def read(paths: Sequence[Path]) -> Curves:
    """Read files and folders.

    Raises:
        ValueError, OSError: a path that is not there, or nothing in any of them.
    """
    from isoflop.forecast import read_curves
    from isoflop.record.reader import read_runs

    found = Curves()
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: expected a record, or a folder with records or an index.csv; it does not exist")
        if (path / "index.csv").is_file():
            found.published.extend(read_curves(path))
        else:
            found.records.extend(read_runs(path, on_problem=found.problems.append))
    if not (found.published or found.records):
        raise ValueError(
            f"no runs in {', '.join(map(str, paths))}: expected isoflop's records (isoflop-*.jsonl), or a folder with "
            "an index.csv" + "".join(f"; {problem}" for problem in found.problems[:3])
        )
    return found


USUAL_MFU = 0.4
_COUNT_FIRST = re.compile(r"(\d+)(?:\s*[xX×*]\s*|\s+)(\S.*)")
_COUNT_LAST = re.compile(r"(\S.*?)\s*[xX×*]\s*(\d+)")


_SLICE = re.compile(r"((?:tpu[ -]?)?v?(\d\w*))-(\d+)", re.IGNORECASE)
PER_DEVICE = {"3": 1, "4": 2, "5p": 2, "5e": 1, "5litepod": 1, "6e": 1}
"""Cores or chips, as the number in a TPU slice's type counts them, of one device of the table (Google Cloud)."""


def devices_of(text: str) -> tuple[int, str]:
    """How many devices, and which: 64xH100, 64 H100, H100x64, or a slice of TPUs, v5e-16.

    Raises:
        ValueError: something else.

    >>> devices_of("64xH100"), devices_of("a100"), devices_of("H100x64"), devices_of("RTX 4090")
    ((64, 'H100'), (1, 'a100'), (64, 'H100'), (1, 'RTX 4090'))
    >>> devices_of("v5e-16"), devices_of("2 x v4-32")
    ((16, 'v5e'), (32, 'v4'))
    """
    from isoflop.flops.device import peak_by_short_name

    count, name = "1", text.strip()
    if found := _COUNT_FIRST.fullmatch(name):
        count, name = found.groups()
    elif peak_by_short_name(name) is None and (found := _COUNT_LAST.fullmatch(name)):
        name, count = found.groups()
    if int(count) < 1 or name.isdigit() or not name:
        raise ValueError(f"--devices: expected COUNTxDEVICE, such as 64xH100, got {text!r}")
    if (slices := _SLICE.fullmatch(name)) and (each := PER_DEVICE.get(slices[2].lower())):
        return int(count) * max(1, int(slices[3]) // each), slices[1]
    return int(count), name


Gpu = Annotated[str | None, typer.Option(help="Device, such as h100: its dense 16-bit peak is looked up.")]
Mfu = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        parser=share(0.001, 1.0, "a share of the peak from 0.001 to 1, such as 0.4 for 40%"),
        help=f"Share of the peak that training reaches; {USUAL_MFU:g} unless given.",
    ),
]
PeakRate = Annotated[
    float | None,
    number("TFLOPS", "Dense 16-bit TFLOP/s of one device that no datasheet is known for (see isoflop peak).", "--peak"),
]
ServedTokens = Annotated[
    float,
    typer.Option(
        metavar="TOKENS",
        parser=amount_or_none,
        help="Tokens to be served over the model's life: their FLOPs are part of the budget.",
        show_default=False,
    ),
]
UniqueTokens = Annotated[float | None, number("TOKENS", "Unique tokens available; a larger budget repeats them.")]
MaxHours = Annotated[
    float | None,
    typer.Option(
        metavar="HOURS",
        parser=hours,
        help="Time limit for training on --devices (36, 21d, 3w), without serving; alone it sets the budget.",
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(metavar="COUNTxDEVICE", help="Devices to train on (64xH100), for hours and price."),
]
Dollars = Annotated[float | None, number("USD", "Dollars for an hour of one device.", "--price")]


@dataclass(frozen=True)
class RateOptions:
    """What a device computes and costs in an hour, of which `of` makes the price of compute."""

    peak: PeakRate = None
    mfu: Mfu = None
    price: Dollars = None

    def of(self, gpu: str | None, option: str = "--gpu") -> Price | None:
        """The price of compute on the device that `option` names; None where none is.

        Raises:
            ValueError: a device that no datasheet is known for; a price or an MFU without a device.
        """
        if gpu is None and self.peak is None:
            for given, value, whose in (
                ("--price", self.price, "whose hour it is"),
                ("--mfu", self.mfu, "a share of whose peak it is"),
            ):
                if value is not None:
                    raise ValueError(f"{given} needs {option}, {whose}: add one, such as {option} h100")
            return None
        from isoflop.fit.options import Price

        share = USUAL_MFU if self.mfu is None else self.mfu
        if self.peak is not None:
            if not TFLOPS[0] <= self.peak <= TFLOPS[1]:
                raise ValueError(f"--peak: expected the TFLOP/s of one device, such as 312, got {self.peak:g}")
            return Price(gpu or "device", self.peak * 1e12, share, self.price)
        from difflib import get_close_matches

        from isoflop.flops.device import known_devices, peak_by_short_name

        found, known = peak_by_short_name(gpu or ""), known_devices()
        if found is None:
            short = {name.split(" ", 1)[1].lower(): name.split(" ", 1)[1] for name in known}
            near = [word for word in re.split(r"[-_\s]", gpu or "") if peak_by_short_name(word)]
            words = [word for name in short for word in (name, *name.split()) if peak_by_short_name(word)]
            near = near or get_close_matches((gpu or "").lower(), words, n=1)
            hint = f"; did you mean {short.get(near[0], near[0])!r}?" if near else "."
            raise ValueError(
                f"{option}: no datasheet is known for {gpu!r}{hint} Run `isoflop peak` on it and add --peak TFLOPS, "
                f"what it reaches in 16 bits, or give the budget as --flops. Known: {', '.join(known)}"
            )
        return Price(found.device, found.flops_per_second, share, self.price)


RATES = RateOptions()
TFLOPS = (0.1, 1e5)
"""TFLOP/s that one device may reach."""


def family_of_option(optimizer: str) -> str:
    """The optimizer's family (`isoflop.record.task`) by `--optimizer`.

    Raises:
        ValueError: another than adamw or muon.
    """
    families = {"adamw": "adam", "muon": "muon"}
    if optimizer not in families:
        raise ValueError(f"--optimizer: expected {' or '.join(families)}, got {optimizer!r}")
    return families[optimizer]


def allowed_flops(cost: Price | None, max_hours: float | None, count: int) -> float:
    """FLOPs that training may take in so many hours of `count` devices; infinite without a deadline."""
    if max_hours is None:
        return math.inf
    if cost is None:
        raise ValueError("--max-hours needs --devices, whose hours they are: add it, such as --devices 64xh100")
    return cost.flops_for(gpu_hours=max_hours * count)


def price_object(price: Price | None, flops: float) -> dict[str, float | None]:
    """For `--json`; empty where no device was named."""
    return {} if price is None else {"gpu_hours": price.gpu_hours(flops), "usd": price.usd(flops)}


def hours_and_dollars(price: Price, flops: float) -> tuple[str, str]:
    """GPU-hours, and dollars or "" where the hour has no price; small ones keep their digits."""
    hours, usd = price.gpu_hours(flops), price.usd(flops)
    return "" if hours is None else digits(hours), "" if usd is None else f"${digits(usd)}"


def digits(value: float) -> str:
    """Hours or dollars: three digits, and all before the point."""
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def describe_cost(price: Price | None, flops: float) -> str | None:
    """A sentence: GPU-hours and dollars; None without a price."""
    if price is None:
        return None
    hours, usd = hours_and_dollars(price, flops)
    return f"{hours} GPU-hours{f', {usd}' if usd else ''} ({describe(price)})" if hours else None


def describe(price: Price) -> str:
    """The price itself, without what is not known of it."""
    peak = "" if price.peak_flops is None else f": {price.peak_flops / 1e12:.4g} TFLOP/s peak"
    usd = "" if price.usd_per_gpu_hour is None else f", ${price.usd_per_gpu_hour:g} per GPU-hour"
    return f"{price.gpu or 'GPU'}{peak}, MFU {price.mfu:.0%}{usd}"
