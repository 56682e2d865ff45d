"""`isoflop plan`: which size for a budget, by own runs, by a law, or by what is known of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from isoflop.cli.common import (
    AsJson,
    Column,
    Dollars,
    Gpu,
    KeepOutliers,
    Level,
    Mfu,
    Where,
    amount,
    amount_or_none,
    describe_cost,
    finite,
    pairs,
    price_of,
    print_json,
    reported,
    say,
    tell_read,
)

if TYPE_CHECKING:
    from isoflop.fit.alternatives import Alternative
    from isoflop.fit.options import Price
    from isoflop.fit.plan import Plan
    from isoflop.fit.table import Table
    from isoflop.laws.forms import Convention


Runs = Annotated[
    list[str] | None,
    typer.Option(help="Own finished runs: a CSV file, a record, a folder of records, or a URL of these. Repeatable."),
]
Counted = Annotated[
    str | None,
    typer.Option(
        "--n",
        help="Which parameters N of --runs counts: total, non_embedding, non_embedding_with_head (default, where all "
        "records state it).",
    ),
]

COUNTED = {"non_embedding": "non-emb.", "non_embedding_with_head": "non-emb. + head"}


def plan(
    flops: Annotated[
        float | None, typer.Option(metavar="FLOPS", parser=amount, help="The budget in FLOPs, such as 1e21.")
    ] = None,
    law: Annotated[str | None, typer.Option(metavar="NAME", help="A published law (`isoflop laws`).")] = None,
    runs: Runs = None,
    column: Column = None,
    where: Where = None,
    n_convention: Counted = None,
    keep_outliers: KeepOutliers = False,
    tokens: Annotated[
        float | None,
        typer.Option(metavar="TOKENS", parser=amount, help="Tokens to train on, fixed (100B); the size follows."),
    ] = None,
    inference_tokens: Annotated[
        float,
        typer.Option(
            metavar="TOKENS",
            parser=amount_or_none,
            help="Tokens to be served over the model's life: their FLOPs are part of the budget.",
            show_default=False,
        ),
    ] = 0.0,
    unique_tokens: Annotated[
        float | None,
        typer.Option(metavar="TOKENS", parser=amount, help="Unique tokens there are; more are repeated."),
    ] = None,
    gpu: Gpu = None,
    mfu: Mfu = None,
    price: Dollars = None,
    budget_usd: Annotated[
        float | None,
        typer.Option(metavar="USD", parser=amount, help="The budget in dollars; needs --gpu and --price."),
    ] = None,
    gpu_hours: Annotated[
        float | None,
        typer.Option(metavar="HOURS", parser=amount, help="The budget in hours of one device; needs --gpu."),
    ] = None,
    level: Level = 0.8,
    as_json: AsJson = False,
) -> None:
    """Parameters and tokens for a budget, with intervals, and how the answer moves with the law.

    Without --law and --runs, and with few runs: a line shrunk to what other families of models showed (about 20 tokens
    per parameter), which advised better than a raw fit to two small budgets.
    """
    from isoflop.fit.plan import plan as planned

    with reported("plan"):
        cost = price_of(gpu, mfu, price)
        budget = _budget(flops, cost, budget_usd, gpu_hours)
        own, convention = read_own(runs, column, where, n_convention, law) or (None, "unknown")
        answer = planned(
            budget,
            law=law,
            own=None if own is None else {**own.columns, "C": own.C},
            tokens=tokens,
            inference_tokens=inference_tokens,
            unique_tokens=unique_tokens,
            level=level,
            convention=convention,
            rows=None if own is None else own.rows,
            keep_outliers=keep_outliers,
        )
    if as_json:
        print_json(as_object(answer, cost))
    else:
        _print(answer, cost)


def read_own(
    runs: list[str] | None,
    column: Sequence[str] | None,
    where: str | None,
    n_convention: str | None,
    law: str | None,
) -> tuple[Table, Convention] | None:
    """The user's own runs, and which parameters their N counts; None where none are named.

    Raises:
        ValueError: options that need --runs without it, or --law beside it; what is wrong with the runs.
    """
    if not runs:
        for option, value in (("--column", column), ("--where", where), ("--n", n_convention)):
            if value:
                raise ValueError(f"{option} needs --runs, which it is about: name a CSV file or records")
        return None
    if law is not None:
        raise ValueError("expected --law or --runs, got both: leave one out")
    from isoflop.fit.table import read_table
    from isoflop.laws.forms import Convention
    from isoflop.record.paths import location_of

    if n_convention is not None and n_convention not in get_args(Convention):
        known = ", ".join(name for name in get_args(Convention) if name != "unknown")
        raise ValueError(f"--n: expected one of {known}; got {n_convention!r}")
    sources = [location_of(run) for run in runs]
    table = read_table(sources, ("N", "D", "loss"), pairs("--column", column), where, n_convention)
    tell_read("plan", table, n_convention or pairs("--column", column).get("N"))
    return table, n_convention or table.convention  # type: ignore[return-value]


def as_object(answer: Plan, cost: Price | None = None) -> dict[str, Any]:
    """The object that `--json` prints; null for what is unknown."""
    result: dict[str, Any] = {
        "N": answer.N,
        "D": answer.D,
        "L": answer.L,
        "flops": answer.flops,
        "intervals": {
            name: [finite(end) for end in answer.intervals[name]]
            for name in ("N", "D", "L", "flops")
            if answer.intervals is not None and name in answer.intervals
        },
        "level": answer.level,
        "tokens_per_param": answer.tokens_per_param,
        "n_convention": answer.convention,
        "inference_flops": answer.inference_flops,
        "unique_tokens": answer.unique_tokens,
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


def _print(answer: Plan, cost: Price | None) -> None:
    sentence = describe_cost(cost, answer.total_flops)
    for line in str(replace(answer, alternatives=())).split("\n"):
        if line.startswith("by: ") and sentence is not None:
            say(f"cost: {sentence}")
        if line.startswith(("by: ", "note: ")):
            say(line)
        else:
            typer.echo(line)  # a row of the table: its gaps stay
    _print_others(answer.alternatives)


def _print_others(rows: Sequence[Alternative]) -> None:
    """At most 80 columns."""
    from isoflop.laws.frontier import short

    if not rows:
        return
    typer.echo(f"\n{'others':33}{'N':>7}{'D':>7}{'D/N':>9}{'loss':>7}  N counts")
    for row in rows:
        loss = "" if row.L is None else f"{row.L:.3f}"
        counts = COUNTED.get(row.convention, row.convention)
        typer.echo(f"{row.name:33}{short(row.N):>7}{short(row.D):>7}{row.tokens_per_param:>9.3g}{loss:>7}  {counts}")


def _budget(flops: float | None, cost: Price | None, usd: float | None, gpu_hours: float | None) -> float:
    given = {"--flops": flops, "--budget-usd": usd, "--gpu-hours": gpu_hours}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        hint = "leave out all but one" if named else "add one, such as --flops 1e21"
        raise ValueError(f"expected a budget, one of {', '.join(given)}; got {' and '.join(named) or 'none'}: {hint}")
    if flops is not None:
        return flops
    needed = {"--gpu": cost, "--price": cost and cost.usd_per_gpu_hour} if usd is not None else {"--gpu": cost}
    missing = [name for name, value in needed.items() if value is None]
    if missing or cost is None:
        example = " ".join({"--gpu": "--gpu h100", "--price": "--price 2.5"}[name] for name in missing)
        raise ValueError(f"{named[0]} needs {' and '.join(missing)}: add {example}")
    return cost.flops_for(usd=usd, gpu_hours=gpu_hours)
