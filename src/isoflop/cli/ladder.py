"""`isoflop ladder …`: plan small runs, run them, and learn from them what the large one should be."""

from __future__ import annotations

import typer

from isoflop.cli.ladder_fit import fit
from isoflop.cli.ladder_plan import plan
from isoflop.cli.ladder_run import ladder_run

ladder = typer.Typer(
    name="ladder",
    help="Small runs that size a large one: plan them, run them, fit their law.",
    no_args_is_help=True,
    add_completion=False,
)
for command in (plan, fit):
    ladder.command()(command)
ladder.command("run")(ladder_run)
