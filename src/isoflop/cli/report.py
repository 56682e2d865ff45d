"""`isoflop report RUNS… -o report.html`: runs in one file for the browser; `isoflop passport RUN`: for a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.common import AsJson, Budgets, Column, FinalLoss, Level, RunFiles, Where, amounts, pairs
from isoflop.console import reported, tell


def report(
    runs: RunFiles,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page; the other files are named after it.")
    ] = Path("report.html"),
    column: Column = None,
    where: Where = None,
    n_convention: Annotated[
        str | None,
        typer.Option(
            "--n", help="Which parameters N counts (total, non_embedding, …; default: one that all runs tell)."
        ),
    ] = None,
    loss: FinalLoss = None,
    budgets: Budgets = None,
    level: Level = 0.9,
    pdf: Annotated[bool, typer.Option("--pdf", help="Each figure as report-<figure>.pdf beside the page.")] = False,
    svg: Annotated[bool, typer.Option("--svg", help="The same as SVG.")] = False,
    png: Annotated[bool, typer.Option("--png", help="The same as PNG.")] = False,
    latex: Annotated[
        bool, typer.Option("--latex", help="The tables as report.tex, with report.bib of the papers used.")
    ] = False,
) -> None:
    """Make a report of runs: one HTML file with figures, fits, advice, data and what a paper must state.

    It opens in any browser and asks for nothing from outside. Runs that train still are shown, not fitted.
    """
    from datetime import datetime, timezone

    from isoflop.record import COUNTS, location_of
    from isoflop.report.page import write_report
    from isoflop.report.report import make_report
    from isoflop.report.runs import read_sources

    formats = tuple(name for name, wanted in (("pdf", pdf), ("svg", svg), ("png", png)) if wanted)
    with reported("report"):
        if n_convention is not None and n_convention not in COUNTS:
            raise ValueError(f"--n: expected one of {', '.join(COUNTS)}, got {n_convention!r}")
        nominal = None if budgets is None else amounts("--budgets", budgets)
        sources = read_sources([location_of(run) for run in runs], pairs("--column", column), where)
        for problem in sources.problems:
            tell("report", f"left out: {problem}")
        made = make_report(sources, loss=loss, convention=n_convention, level=level, budgets=nominal)
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
        for path in write_report(made, output, formats=formats, latex=latex, made=now):
            typer.echo(path)


def passport(
    run: Annotated[str, typer.Argument(metavar="RUN", help="isoflop's record (.jsonl), or its URL.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Write isoflop-passport.json and .md there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a run's passport for its model card: parameters, tokens, FLOPs and their method, hours, MFU, losses."""
    from isoflop.live.passport import markdown, write_passport
    from isoflop.live.passport import passport as passport_of
    from isoflop.record import location_of, read_run

    with reported("passport"):
        read = read_run(location_of(run))
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            for path in write_passport(read, output):
                typer.echo(path)
            return
    known = passport_of(read)
    typer.echo(json.dumps(known) if as_json else markdown(known))
