"""`isoflop ladder plan`: which small runs to train, for a target and a spend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.text import AsJson, Level, amount, print_json, reported


def plan(
    flops: Annotated[float, typer.Option(parser=amount, metavar="FLOPS", help="Of the run that is to be sized.")],
    spend: Annotated[
        str, typer.Option(metavar="SHARE|FLOPS", help="Of the whole ladder: a share of --flops, such as 3%, or FLOPs.")
    ] = "3%",
    model: Annotated[
        str,
        typer.Option(metavar="CONFIG", help="A Hugging Face config.json or a folder with one; or gpt2 or llama."),
    ] = "gpt2",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="PLAN.YAML", help="Where the plan is written.")
    ] = None,
    min_runs: Annotated[
        int | None, typer.Option(help="Least number of runs, 9 or more (default: 12, or --max-runs).")
    ] = None,
    max_runs: Annotated[int, typer.Option(help="Most runs.")] = 16,
    max_flops_per_run: Annotated[
        float | None, typer.Option(parser=amount, metavar="FLOPS", help="Of the dearest run.")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(metavar="LEAST:MOST", help="Parameters of a run, with the head: 30k:500k.")
    ] = None,
    seq: Annotated[int | None, typer.Option(min=1, help="Tokens a sequence (default: the configuration's).")] = None,
    vocab: Annotated[
        int | None, typer.Option(min=2, help="Entries of the tokenizer (default: the configuration's).")
    ] = None,
    unique_tokens: Annotated[
        float | None, typer.Option(parser=amount, metavar="TOKENS", help="The stock of data.")
    ] = None,
    lr_rule: Annotated[str, typer.Option(help="auto, width, steplaw, deepseek or porian.")] = "auto",
    batch_rule: Annotated[str, typer.Option(help="auto, steplaw, deepseek or porian.")] = "auto",
    history: Annotated[
        list[Path] | None, typer.Option(help="Records of finished runs, which count as told already. Repeatable.")
    ] = None,
    level: Level = 0.9,
    as_json: AsJson = False,
) -> None:
    """Plan the runs that tell most about the compute-optimal size at a target, for what you would spend on them."""
    from isoflop.ladder.plan_file import write_plan
    from isoflop.ladder.planning import plan_ladder

    with reported("ladder plan"):
        made = plan_ladder(
            flops,
            _spend(spend, flops),
            model,
            level=level,
            min_runs=min_runs,
            max_runs=max_runs,
            max_flops_per_run=max_flops_per_run,
            sizes=None if sizes is None else _range(sizes),
            vocab_size=vocab,
            sequence_length=seq,
            unique_tokens=unique_tokens,
            lr_rule=lr_rule,
            batch_rule_name=batch_rule,
            history=history or (),
        )
        if output is not None:
            write_plan(made, output)
    if as_json:
        print_json(made.as_dict())
        return
    from isoflop.show.ladder import print_plan

    print_plan(made)
    if output is not None:
        typer.echo(f"written to {output}; next: isoflop ladder run {output} --train module:function")


def _spend(text: str, flops: float) -> float:
    """A share of the target ("3%") or FLOPs ("3e19").

    Raises:
        ValueError: neither.
    """
    bare = text.strip()
    expected = f"--spend: expected a share of --flops, such as 3%, or FLOPs, such as 3e19; got {text!r}"
    try:
        value = float(bare.removesuffix("%").replace("_", ""))
    except ValueError:
        raise ValueError(expected) from None
    if bare.endswith("%"):
        value *= flops / 100
    elif 0 < value < 1:
        raise ValueError(f"{expected}: write {100 * value:g}% for a share")
    return value


def _range(text: str) -> tuple[float, float]:
    least, separator, most = text.partition(":")
    if not separator:
        raise ValueError(f"--sizes: expected LEAST:MOST, such as 30k:500k, got {text!r}")
    try:
        return amount(least), amount(most)
    except typer.BadParameter as error:
        raise ValueError(f"--sizes: {error.message}") from None
