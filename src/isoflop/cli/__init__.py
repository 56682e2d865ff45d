"""The rooms from the shell: `isoflop count`, `fit`, `plan`, `compare`, `laws`, `backtest`, `rank`, `ladder`."""

from __future__ import annotations

import sys

import typer

from isoflop.cli.backtest import backtest
from isoflop.cli.compare import compare
from isoflop.cli.count import count
from isoflop.cli.fit import fit
from isoflop.cli.ladder import ladder
from isoflop.cli.laws import laws
from isoflop.cli.plan import plan
from isoflop.cli.rank import rank

app = typer.Typer(
    name="isoflop",
    help="Scaling laws in your Trainer: where a run's compute goes and whether it is well spent.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (count, fit, plan, compare, laws, backtest, rank):
    app.command()(command)
app.add_typer(ladder)


@app.callback()
def main() -> None:
    """What holds for every command."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # × and ├ where the terminal's alphabet has none
