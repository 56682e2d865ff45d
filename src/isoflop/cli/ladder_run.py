"""`isoflop ladder run PLAN --train my_pkg:train`: trains a plan's runs, and tells how they went."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.text import pairs, reported, say, tell


def ladder_run(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="YAML of `isoflop ladder plan`.")],
    train: Annotated[
        str, typer.Option(metavar="MODULE:FUNCTION", help="Trains one run: module:function or file.py:function.")
    ],
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR|URL", help="A folder for each run's record; default: runs/<the plan's name>."),
    ] = None,
    engine: Annotated[str, typer.Option(help="ray, slurm or local.")] = "ray",
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at one time.")] = None,
    cpus_per_run: Annotated[int, typer.Option(min=1, help="Processors of each run.")] = 1,
    gpus_per_run: Annotated[float, typer.Option(min=0, help="Devices of each run.")] = 0.0,
    retries: Annotated[int, typer.Option(min=0, help="Further attempts at a run that fails.")] = 1,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="This run alone. Repeatable.")] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of Slurm: partition=gpu, time=120 (minutes), account=… Repeatable."),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Checkpoints and output; default: --out, of a URL runs/<its last part>."),
    ] = None,
) -> None:
    """Train the runs of a ladder; finished ones are skipped, stopped ones go on, failed ones are tried again.

    Exits with 1 unless each is at its planned end.
    """
    from isoflop.ladder import read_plan
    from isoflop.ladder.run import run_ladder
    from isoflop.show.ladder_run import Table, summary_lines

    try:
        with reported("ladder run", code=2):
            result = run_ladder(
                read_plan(plan),
                train,
                out or str(Path("runs") / plan.stem),
                engine=engine,
                workers=workers,
                cpus_per_run=cpus_per_run,
                gpus_per_run=gpus_per_run,
                retries=retries,
                only=only or (),
                slurm=pairs("--slurm", slurm),
                work=work,
                watch=Table,
            )
    except KeyboardInterrupt:
        tell("ladder run", "interrupted; the same command goes on.")
        raise typer.Exit(130) from None
    for line in summary_lines(result):
        say(line, indent=2)
    if not result.done:
        raise typer.Exit(1)
