"""`isoflop ladder fit`: from a ladder's finished runs to what the run at the target should be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.text import AsJson, FinalLoss, Level, amount, print_json, reported


def fit(
    runs: Annotated[list[str], typer.Argument(metavar="RUNS…", help="isoflop's records, folders or URLs with some.")],
    plan: Annotated[
        Path | None, typer.Option(metavar="PLAN.YAML", help="The plan: it names the runs and the target.")
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(parser=amount, metavar="FLOPS", help="Of the run that is to be sized (default: the plan's)."),
    ] = None,
    loss: FinalLoss = None,
    level: Level = 0.9,
    as_json: AsJson = False,
) -> None:
    """Fit a ladder: law, three approaches, N, D, batch and loss at the target, and whether one more rung pays."""
    from isoflop.ladder.fitting import fit_ladder_runs

    with reported("ladder fit"):
        fitted = fit_ladder_runs(runs, plan=plan, target_flops=flops, loss=loss, level=level)
    if as_json:
        print_json(fitted.as_dict())
        return
    from isoflop.show.ladder_fit import print_ladder_fit

    print_ladder_fit(fitted)
