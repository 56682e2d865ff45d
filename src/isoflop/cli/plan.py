"""`isoflop plan`: which size for a budget, by own runs, by a law, or by what is known of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.money import Dollars, Gpu, Mfu, describe_cost, price_of

if TYPE_CHECKING:
    from isoflop.fit.cost import Price
    from isoflop.fit.plan_result import Plan


def plan(
    flops: Annotated[float | None, typer.Option(help="The budget in FLOPs, such as 1e21.")] = None,
    law: Annotated[str | None, typer.Option(metavar="NAME", help="A published law (`isoflop laws`).")] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option(help="Own finished runs: a CSV file, a record, a folder of records. Repeatable."),
    ] = None,
    where: Annotated[str | None, typer.Option(help="Rows of --runs to take, as in `isoflop fit`.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Tokens to train on, fixed; the size follows.")] = None,
    inference_tokens: Annotated[float, typer.Option(min=0, help="Tokens to be served over the model's life.")] = 0.0,
    unique_tokens: Annotated[float | None, typer.Option(help="Unique tokens there are; more are repeated.")] = None,
    gpu: Gpu = None,
    mfu: Mfu = 0.4,
    price: Dollars = None,
    budget_usd: Annotated[float | None, typer.Option(help="The budget in dollars; needs --gpu and --price.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="The budget in hours of one device; needs --gpu.")] = None,
    level: Annotated[float, typer.Option(min=0.01, max=0.999, help="Of the intervals.")] = 0.8,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Parameters and tokens for a budget, with intervals, and how the answer moves with the law.

    Without --law and --runs, and with few runs: a line shrunk to what other families of models showed (about 20 tokens
    per parameter), which advised better than a raw fit to two small budgets.
    """
    from isoflop.fit.plan import plan as planned

    try:
        cost = price_of(gpu, mfu, price)
        budget = _budget(flops, cost, budget_usd, gpu_hours)
        own = None
        if runs:
            from isoflop.fit.table import read_table

            own = read_table(runs, ("N", "D", "loss"), where=where).columns
        answer = planned(
            budget,
            law=law,
            own=own,
            tokens=tokens,
            inference_tokens=inference_tokens,
            unique_tokens=unique_tokens,
            level=level,
        )
    except (ValueError, OSError) as error:
        typer.echo(f"isoflop plan: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(as_object(answer, cost), allow_nan=False))
        return
    typer.echo(str(answer))
    sentence = describe_cost(cost, answer.total_flops)
    if sentence is not None:
        typer.echo(f"cost: {sentence}")


def as_object(answer: Plan, cost: Price | None = None) -> dict[str, Any]:
    """The object that `--json` prints; null for what is unknown."""
    result: dict[str, Any] = {
        "N": answer.N,
        "D": answer.D,
        "L": answer.L,
        "flops": answer.flops,
        "intervals": {
            name: [_finite(end) for end in answer.intervals[name]]
            for name in ("N", "D", "L", "flops")
            if answer.intervals is not None and name in answer.intervals
        },
        "level": answer.level,
        "tokens_per_param": answer.tokens_per_param,
        "n_convention": answer.convention,
        "inference_flops": answer.inference_flops,
        "method": answer.method,
        "warnings": list(answer.notes),
        "alternatives": [
            {"name": row.name, "N": row.N, "D": row.D, "L": row.L, "n_convention": row.convention}
            for row in answer.alternatives
        ],
    }
    if cost is not None:
        result["gpu_hours"] = cost.gpu_hours(answer.total_flops)
        result["usd"] = cost.usd(answer.total_flops)
    return result


def _finite(value: float) -> float | None:
    return float(value) if abs(value) < float("inf") else None


def _budget(flops: float | None, cost: Price | None, usd: float | None, gpu_hours: float | None) -> float:
    given = {"--flops": flops, "--budget-usd": usd, "--gpu-hours": gpu_hours}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(f"expected a budget, one of {', '.join(given)}; got {' and '.join(named) or 'none'}")
    if flops is not None:
        return flops
    if cost is None:
        raise ValueError(f"{named[0]} needs --gpu{' and --price' if usd is not None else ''}")
    return cost.flops_for(usd=usd, gpu_hours=gpu_hours)
