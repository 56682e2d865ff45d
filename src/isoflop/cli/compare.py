"""`isoflop compare 100B:200B 2x50B:300B`: which use of compute a law expects the least loss of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.money import Dollars, Gpu, Mfu, describe_cost, price_of

if TYPE_CHECKING:
    from isoflop.fit.cost import Price
    from isoflop.fit.options import Comparison

DEFAULT_LAW = "chinchilla-refit"


def compare(
    options: Annotated[
        list[str], typer.Argument(metavar="[COUNTx]N:D…", help="Runs × parameters : tokens, such as 2x50B:300B.")
    ],
    law: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"A law with a loss.  [default: {DEFAULT_LAW}]")
    ] = None,
    runs: Annotated[
        list[Path] | None, typer.Option(help="Own finished runs, to which the law is fitted first. Repeatable.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="Rows of --runs to take, as in `isoflop fit`.")] = None,
    gpu: Gpu = None,
    mfu: Mfu = 0.4,
    price: Dollars = None,
    level: Annotated[float, typer.Option(min=0.01, max=0.999, help="Of the intervals.")] = 0.8,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Compare uses of compute: FLOPs, expected loss with its interval, distance from the frontier, the best named."""
    from isoflop.fit.options import compare_options
    from isoflop.fit.published import published

    try:
        cost = price_of(gpu, mfu, price)
        if runs and law is not None:
            raise ValueError("expected --law or --runs, got both")
        chosen: Any = published(law or DEFAULT_LAW)
        if runs:
            from isoflop.fit.fitting import fit_law
            from isoflop.fit.table import read_table

            table = read_table(runs, ("N", "D", "loss"), where=where)
            fitted = fit_law("hoffmann", table.columns, rows=table.rows)
            for warning in fitted.warnings:
                typer.echo(f"isoflop compare: {warning}", err=True)
            chosen = fitted.law
        compared = compare_options(options, chosen, level=level)
    except (ValueError, OSError) as error:
        typer.echo(f"isoflop compare: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(as_object(compared, cost), allow_nan=False))
        return
    typer.echo(str(compared))
    for row in compared.rows if cost is not None else ():
        typer.echo(f"{row.option!s:16}{describe_cost(cost, row.flops)}")


def as_object(compared: Comparison, cost: Price | None = None) -> dict[str, Any]:
    """The object that `--json` prints."""
    return {
        "options": [
            {
                "option": str(row.option),
                "count": row.option.count,
                "N": row.option.N,
                "D": row.option.D,
                "flops": row.flops,
                "loss": row.loss,
                "interval": None if row.interval is None else list(row.interval),
                "excess_loss": row.excess_loss,
                "compute_factor": row.compute_factor if row.compute_factor < float("inf") else None,
                "optimal_N": row.best_N,
                "optimal_D": row.best_D,
                **({} if cost is None else {"gpu_hours": cost.gpu_hours(row.flops), "usd": cost.usd(row.flops)}),
            }
            for row in compared.rows
        ],
        "best": str(compared.best),
        "sure": compared.sure,
        "reason": compared.sentence,
        "level": compared.level,
        "law": compared.law,
    }
