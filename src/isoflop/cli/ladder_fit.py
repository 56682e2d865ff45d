"""`isoflop ladder fit`: from a ladder's finished runs to what the run at the target should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.text import amount


def fit(
    runs: Annotated[list[str], typer.Argument(metavar="RUNS…", help="isoflop's records, folders or URLs with some.")],
    plan: Annotated[
        Path | None, typer.Option(metavar="PLAN.YAML", help="The plan: it names the runs and the target.")
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(parser=amount, metavar="FLOPS", help="Of the run that is to be sized (default: the plan's)."),
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="Which loss, `train` or eval/<name> (default: an evaluation that all runs have).")
    ] = None,
    level: Annotated[float, typer.Option(min=0.01, max=0.999, help="Of the intervals.")] = 0.9,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Fit a ladder: law, three approaches, N, D, batch and loss at the target, and whether one more rung pays."""
    from isoflop.ladder.fitting import fit_ladder_runs

    try:
        fitted = fit_ladder_runs(runs, plan=plan, target_flops=flops, loss=loss, level=level)
    except (ValueError, OSError) as error:
        typer.echo(f"isoflop ladder fit: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(fitted.as_dict(), allow_nan=False))
        return
    from isoflop.show.ladder_fit import print_ladder_fit

    print_ladder_fit(fitted)
