"""The rooms from the shell: `isoflop count MODEL`."""

from __future__ import annotations

import sys

import typer

from isoflop.cli.count import count

app = typer.Typer(
    name="isoflop",
    help="Scaling laws in your Trainer: where a run's compute goes and whether it is well spent.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(count)


@app.callback()
def main() -> None:
    """Keep `count` a command of its own: with one command alone Typer would leave its name out."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # × and ├ where the terminal's alphabet has none
