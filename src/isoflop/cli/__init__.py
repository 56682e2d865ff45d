"""The rooms from the shell: `isoflop count`, `fit`, `plan` …; a command's module is imported when it is run."""

from __future__ import annotations

import importlib
import re
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": ("report.demo", "Open four finished runs in TensorBoard."),
    "tab": ("report.tab", "Open runs in TensorBoard's tab Scaling."),
    "count": ("count.count", "Count a model's parameters and a training step's FLOPs."),
    "peak": ("count.peak", "Measure the FLOP/s of matrix products on this device."),
    "plan": ("plan.plan", "Find size, tokens and loss for a compute budget."),
    "fit": ("fit.fit", "Fit a scaling law to finished runs."),
    "compare": ("compare.compare", "Compare uses of compute by the loss that a law expects."),
    "laws": ("compare.laws", "List published scaling laws with source and validity."),
    "import": ("import_logs.import_", "Import logs of other trainers and trackers as records."),
    "backtest": ("forecasts.backtest", "Replay finished runs, and score their forecasts."),
    "rank": ("forecasts.rank", "Order runs by the loss that they will end with."),
    "ladder": ("ladder.ladder", "Plan small runs that size a large one; train and fit them."),
    "report": ("report.report", "Make one HTML file of runs: figures, fits, advice, data."),
    "figure": ("report.figure", "Draw one figure of runs as PDF, SVG or PNG."),
    "passport": ("report.passport", "Print what a run cost and reached, for its model card."),
}
"""Module and object below `isoflop.cli`, and the line in the list of commands."""


def _light(parameter: Any) -> Any:
    """The parameter, whose value goes past Typer 0.29's check where it is as asked: the check loads pydantic (.1 s)."""
    if not hasattr(parameter, "get_runtime_param") or "process_value" in vars(parameter):
        return parameter
    checked, described = parameter.process_value, parameter.type_descriptor
    several, parser = parameter.multiple or parameter.nargs == -1, getattr(described.parameter_info, "parser", None)

    def value_of(ctx: Any, value: Any) -> Any:
        kind, given = described.annotation, value is not None
        texts = kind == list[str] and several and given and all(isinstance(each, str) for each in value)
        as_asked = not given or value is parameter.default or texts or (kind is str and isinstance(value, str))
        if (parameter.required and not value) or not (as_asked or (parser and not several)):
            return checked(ctx, value)
        if several:
            value = list(value) if given else ()
        elif parser and given:
            value = parser(value)
        return value if parameter.callback is None else parameter.callback(ctx, parameter, value)

    parameter.process_value = value_of
    return parameter


class Commands(TyperGroup):
    """Lists commands without importing them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {name: TyperCommand(name, help=text) for name, (_, text) in COMMANDS.items()}

    def get_help_option(self, ctx: Any) -> Any:
        """Typer's."""
        return _light(super().get_help_option(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself, imported now."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is None or name not in COMMANDS:
            return name, command, rest
        module, _, attribute = COMMANDS[name][0].partition(".")
        found = getattr(importlib.import_module(f"isoflop.cli.{module}"), attribute)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False, rich_markup_mode=None)
            alone.command(name, cls=Once)(found)
            found = alone
        return name, _with_nouns(typer.main.get_command(found)), rest


NOUNS = {"where": "CONDITION", "n_convention": "CONVENTION", "loss": "LOSS", "gpu": "DEVICE", "delta": "NUMBER"}
NOUNS |= dict.fromkeys(("level", "mfu", "sure"), "SHARE") | dict.fromkeys(("runs", "history"), "RUNS")
KINDS = {"int": "NUMBER", "float": "NUMBER", "path": "PATH", "str": "NAME", "text": "NAME"}
"""What help calls an option's value: by the option's name, else by its type."""


class Once(TyperCommand):
    """Refuses an option of one value that is given twice, where click takes the last one in silence."""

    def get_help_option(self, ctx: Any) -> Any:
        """Typer's."""
        return _light(super().get_help_option(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Click's, after a look at which options come several times."""
        for parameter, times in Counter(self.make_parser(ctx).parse_args(args=list(args))[2]).items():
            one_value = parameter.param_type_name == "option" and not (parameter.multiple or parameter.is_flag)  # type: ignore[attr-defined]
            if times > 1 and one_value:
                ctx.fail(f"{parameter.opts[0]} is given {times} times: expected it once")
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = re.sub(r"^Input should be (a valid )?", "expected ", error.message)
            raise


def _with_nouns(command: Any) -> Any:
    """The command with nouns in its help, where Typer has types such as <str>."""
    for below in getattr(command, "commands", {}).values():
        _with_nouns(below)
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            parameter.display_type = lambda ctx: None  # Typer 0.29 adds <list[str]> to RUNS…
        elif parameter.metavar is None and not (parameter.is_flag or parameter.count):
            kind = str(getattr(parameter, "type", None) or parameter.display_type(None)).lower()
            nouns = (noun for name, noun in KINDS.items() if name in kind)
            parameter.metavar = NOUNS.get(parameter.name, next(nouns, None))
        _light(parameter)
    return command


app = typer.Typer(
    name="isoflop",
    cls=Commands,
    help="Scaling laws in your Trainer: where a run's compute goes and whether it is well spent.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help, in half the time
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from isoflop import __version__

        typer.echo(f"isoflop {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version, and exit.")
    ] = False,
) -> None:
    """What holds for every command."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # × and ├ where the terminal's alphabet has none
