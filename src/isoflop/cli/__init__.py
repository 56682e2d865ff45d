"""The rooms from the shell: `isoflop count`, `fit`, `plan`, `compare`, `laws`, `backtest`, `rank`, `import` …"""

from __future__ import annotations

import sys

import typer

from isoflop.cli.compare import compare, laws
from isoflop.cli.count import count
from isoflop.cli.demo import demo
from isoflop.cli.fit import fit
from isoflop.cli.forecasts import backtest, rank
from isoflop.cli.import_logs import import_
from isoflop.cli.ladder import ladder
from isoflop.cli.plan import plan
from isoflop.cli.report import passport, report

app = typer.Typer(
    name="isoflop",
    help="Scaling laws in your Trainer: where a run's compute goes and whether it is well spent.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, count, fit, plan, compare, laws, backtest, rank, report, passport):
    app.command()(command)
app.command("import")(import_)
app.add_typer(ladder)


@app.callback()
def main() -> None:
    """What holds for every command."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # × and ├ where the terminal's alphabet has none
