"""`isoflop plan`: which size for a budget, by own runs, by a law, or by what is known of others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli import common
from isoflop.console import finite, picked, print_json, reported, say, tell

if TYPE_CHECKING:
    from isoflop.fit.options import Price
    from isoflop.fit.plan import Plan
    from isoflop.fit.table import Table
    from isoflop.ladder.recipe import TrainingRecipe


@common.together
def plan(
    flops: Annotated[float | None, common.number("FLOPS", "The budget in FLOPs, such as 1e21.")] = None,
    law: Annotated[str | None, typer.Option(metavar="NAME", help="A published law (`isoflop laws`).")] = None,
    runs: common.OwnRuns = None,
    rows: common.RowOptions = common.ROWS,
    keep_outliers: common.KeepOutliers = False,
    budgets: common.Budgets = None,
    tokens: Annotated[
        float | None, common.number("TOKENS", "Tokens to train on, fixed (100B); the size follows.")
    ] = None,
    inference_tokens: common.ServedTokens = 0.0,
    unique_tokens: common.UniqueTokens = None,
    gpu: common.Gpu = None,
    rates: common.RateOptions = common.RATES,
    budget_usd: Annotated[float | None, common.number("USD", "The budget in dollars; needs --gpu and --price.")] = None,
    gpu_hours: Annotated[
        float | None, common.number("HOURS", "The budget in hours of one device; needs --gpu.")
    ] = None,
    devices: common.Devices = None,
    max_hours: common.MaxHours = None,
    optimizer: Annotated[str, typer.Option(help="Optimizer of the recipe: adamw or muon.")] = "adamw",
    experts: Annotated[int, typer.Option(min=1, help="Experts of each MLP; 1: dense.")] = 1,
    top_k: Annotated[int, typer.Option(min=1, help="Experts that a token visits.")] = 1,
    model: Annotated[
        str, typer.Option(help="Family of the configuration: gpt2, llama, or a Hugging Face config.json.")
    ] = "llama",
    seq: Annotated[
        int | None, typer.Option(min=1, help="Tokens per sequence; default: the family's, at most 8192 of a file's.")
    ] = None,
    level: common.Level = 0.8,
    as_json: common.AsJson = False,
) -> None:
    """Parameters and tokens for a budget, with intervals, and how the answer moves with the law.

    What to train comes first, the law's own answer and what other laws say below it.

    Without --law and --runs, and with few runs: a line shrunk to what other families of models showed (about 20 tokens
    per parameter), which advised better than a raw fit to two small budgets.
    """
    from isoflop.fit.plan import plan as planned
    from isoflop.ladder.recipe import recipe_of
    from isoflop.laws.forms import TRAINING_FLOPS

    with reported("plan"):
        count, device = (1, gpu) if devices is None else common.devices_of(devices)
        if gpu is not None and devices is not None:
            raise ValueError("expected --gpu or --devices, got both: --devices says how many, too")
        if budgets is not None and not runs:
            raise ValueError("--budgets needs --runs, whose budgets they are: name a CSV file or records")
        cost = rates.of(device, "--gpu" if devices is None else "--devices")
        allowed = common.allowed_flops(cost, max_hours, count)
        budget = _budget(flops, cost, budget_usd, gpu_hours, allowed)
        own, convention = rows.of_own("plan", runs, law) or (None, "unknown")
        answer = planned(
            budget,
            law=law,
            own=None if own is None else {**own.columns, "C": own.C},
            tokens=tokens,
            inference_tokens=inference_tokens,
            unique_tokens=unique_tokens,
            training_flops=allowed,
            level=level,
            convention=convention,
            rows=None if own is None else own.rows,
            keep_outliers=keep_outliers,
            budgets=None if budgets is None else common.amounts("--budgets", budgets),
            labels=None if own is None else own.labels,
            optimizer=common.family_of_option(optimizer),
        )
        answer = replace(answer, doubts=(*answer.doubts, *(() if own is None else own.unlike)))
        recipe = recipe_of(
            answer.N,
            math.inf if budget is None else budget,
            tokens,
            served=inference_tokens,
            training=allowed,
            model=model,
            sequence_length=seq,
            optimizer=optimizer,
            experts=experts,
            top_k=top_k,
            convention=answer.convention,
            rate=answer.flops / (answer.N * answer.D) if runs else TRAINING_FLOPS,
            devices=count,
            **({} if own is None else _own_settings(own, answer)),
        )
        if recipe is not None and max_hours is not None and recipe.flops > (1 + 1e-3) * allowed:
            takes, most = common.digits(recipe.flops / allowed * max_hours), common.digits(max_hours)
            over = f"training takes {takes} of the {most} hours"
            answer = replace(answer, doubts=(over, *answer.doubts))
        late = budget is not None and allowed < (1 + 1e-9) * answer.flops and allowed < budget
        if late:
            limit = f"--max-hours limit training to {allowed:.3g} of the budget's {budget:.3g} FLOPs"
            answer = replace(answer, doubts=(limit, *answer.doubts))
        if (
            devices
            and cost is not None
            and recipe is not None
            and (time := cost.gpu_hours(recipe.flops) or 0) > YEAR * count
        ):
            slow = f"training takes {time / count / YEAR:,.3g} years on {count} × {cost.gpu}"
            answer = replace(answer, doubts=(*answer.doubts, slow))
        if recipe is None:
            tell("plan", f"no recipe: {model} has no configuration of about {answer.N:.3g} parameters")
    if as_json:
        of_recipe = None if recipe is None else recipe_as_object(recipe, answer, cost)
        print_json(as_object(answer, cost) | {"recipe": of_recipe})
        return
    if recipe is not None:
        _print_recipe(recipe, answer, cost, count)
    _print(answer, cost, recipe)


def _own_settings(own: Table, answer: Plan) -> dict[str, tuple[float, float] | None]:
    """Batches of own runs of about the plan's D, and peak rates of those of about its N."""
    from isoflop.fit.own_runs import range_about

    pairs = {"own_batches": (answer.D, "D", "batch_tokens"), "own_rates": (answer.N, "N", "learning_rate")}
    return {
        name: range_about(size, own.columns[what], own.settings[setting])
        for name, (size, what, setting) in pairs.items()
    }


def recipe_as_object(recipe: TrainingRecipe, answer: Plan, cost: Price | None = None) -> dict[str, Any]:
    """What `--json` prints of it; loss and price are those of its own N and D."""
    loss, between, _ = answer.loss_at(recipe.counted, recipe.tokens)
    names = {
        "D": "tokens",
        "batch_tokens": "batch",
        "warmup_steps": "warmup",
        "peak_lr": "rate",
        "lr_range": "rate_range",
    }
    return {
        "config": {key: value for key, value in recipe.shape.config().items() if key != "hf"},
        **picked(recipe, "N batch_range steps weight_decay timescale optimizer", total_parameters="total", **names),
        "L": loss,
        "L_interval": None if between is None else list(map(finite, between)),
        **common.price_object(cost, recipe.flops),
    }


SHOWN = 2
"""Doubts above a recipe; further ones stand below it."""
YEAR = 365.25 * 24
"""Hours."""
COUNTED_AS = {"total": "in all", "non_embedding": "without embedding and head"}
"""What a law's N counts, where that is not what a recipe's does."""


def _print_recipe(recipe: TrainingRecipe, answer: Plan, cost: Price | None, count: int) -> None:
    """What to train, in at most twelve lines, after what speaks against it."""
    from isoflop.ladder.recipe import MUON, MUON_GAIN
    from isoflop.laws.frontier import short

    shape = recipe.shape

    def ends(interval: tuple[float, float] | None, write: Callable[[float], str]) -> str:
        return "" if interval is None else " [{}, {}]".format(*map(write, interval))

    family = "GPT-2" if shape.family.gpt2 else shape.family.name.capitalize()
    kind = f"{shape.depth} layers, width {shape.width:,}, {shape.heads} heads, MLP {shape.mlp_width:,}"
    low, high = (answer.intervals or {}).get("N", (0.0, math.inf))
    sizes = ends((answer.intervals or {}).get("N"), short)
    if not low <= recipe.counted <= high:
        sizes = f" (without attention {short(answer.N)}{sizes})"
    sizes += f" at {answer.level:.0%}" if sizes and answer.level else ""
    if answer.convention in COUNTED_AS:
        counted = f"{short(recipe.counted)} parameters {COUNTED_AS[answer.convention]}"
        size = f"{counted}{sizes}, {short(recipe.N)} with the head"
    else:
        size = f"{short(recipe.N)} parameters with the head{sizes}"
    if recipe.experts > 1:
        kind += f" in {recipe.experts} experts of {recipe.expert_width:,}, top {recipe.top_k}"
        size = f"{short(recipe.N)} of {short(recipe.total)} parameters active"
    stock = answer.unique_tokens
    passes = None if stock is None else recipe.tokens / stock
    epochs = "" if passes is None else f"{passes:.0%} of" if passes <= 1 else f"{short(passes)} passes over"
    epochs = epochs and f", {epochs} {short(stock or 0)} unique ones"
    reach = "" if recipe.within else "; they come from runs of other sizes"
    muon = "Muon, its updates scaled to AdamW's size" if recipe.optimizer == MUON else ""
    rows = {"doubt": "; ".join(answer.doubts[:SHOWN])} if answer.doubts else {}
    rows |= {
        "model": f"{family}: {kind}, vocab {shape.family.vocab_size:,}",
        "size": size,
        "data": f"{short(recipe.tokens)} tokens, {short(recipe.tokens / recipe.N)} per parameter{epochs}",
        "batch": f"{short(recipe.batch)} tokens, {recipe.batch // shape.family.sequence_length:,} sequences of "
        f"{shape.family.sequence_length:,} ({_own(recipe.own_batches, short)}published rules: "
        f"{short(recipe.batch_range[0])} to {short(recipe.batch_range[1])}{reach})",
        "rate": "{:.2g} at its peak, {} ({}published rules{}: {:.2g} to {:.2g})".format(
            recipe.rate,
            muon or "AdamW",
            _own(recipe.own_rates, "{:.2g}".format),
            " of AdamW" if muon else "",
            *recipe.rate_range,
        ),
        "steps": f"{recipe.steps:,}, {recipe.warmup:,} linear warm-up; then cosine or linear decay to 0",
        "decay": f"weight decay λ = {recipe.weight_decay:g}; keep B/(η·λ·D) = {recipe.timescale:.2g} if batch or rate "
        "change",
    }
    loss, between, why = answer.loss_at(recipe.counted, recipe.tokens)
    level = f" at {answer.level:.0%}" if between else ""
    rows["loss"] = (
        f"unknown: {why}"
        if loss is None
        else f"{loss:.3f}{ends(between, '{:.3f}'.format)} nats per token{level}, of this size and data"
    )
    if cost is not None and (time := cost.gpu_hours(recipe.flops)) is not None:
        dollars, serving = cost.usd(recipe.flops), recipe.serving_flops
        where = f"{common.digits(time / count)} hours on {f'{count} ×' if count > 1 else 'one'} {cost.gpu}"
        rows["cost"] = f"{where} at {cost.mfu:.0%} MFU" + ("" if dollars is None else f": ${dollars:,.0f}")
        if serving:
            share = serving / (recipe.flops + serving)
            usd = "" if dollars is None else f", ${cost.usd(serving):,.0f} there"
            rows["serving"] = f"{short(recipe.served)} tokens: {share:.0%} of the FLOPs{usd}, if it reaches that MFU"
    if recipe.optimizer == MUON:
        rows["Muon"] = (
            "the same loss for {:g} to {:g} times less compute than AdamW's, by published comparisons; its best tokens "
            "per parameter are less known".format(*MUON_GAIN)
        )
    if recipe.experts > 1:
        rows["experts"] = _gain_of_experts(recipe)
    for name, text in rows.items():
        say(f"{name:8}{text}", indent=8)
    typer.echo()


def _own(ends: tuple[float, float] | None, write: Callable[[float], str]) -> str:
    """What own runs of about this size took, which comes before the rules."""
    return "" if ends is None else f"your runs of about this size: {' to '.join(dict.fromkeys(map(write, ends)))}; "


def _gain_of_experts(recipe: TrainingRecipe) -> str:
    """What the loss above, a dense model's, leaves out."""
    from isoflop.ladder.recipe import gain_of_experts

    gains = gain_of_experts(recipe.N, recipe.experts / recipe.top_k)
    said = "the loss is that of a dense model of the active size; "
    if gains is None:
        return f"{said}how much experts lower it at this size no public sweep says"
    return f"{said}these experts are worth one {gains[0]:.2g} to {gains[1]:.2g} times as large (Clark et al. 2022)"


def as_object(answer: Plan, cost: Price | None = None) -> dict[str, Any]:
    """The object that `--json` prints; null for what is unknown."""
    served = answer.inference_flops
    return {
        **picked(answer, "N D L flops level tokens_per_param inference_flops unique_tokens method"),
        **picked(answer, "", n_convention="convention"),
        "warnings": [*answer.doubts, *answer.notes],
        "intervals": {
            key: list(map(finite, (answer.intervals or {})[name]))
            for key, name in (("N", "N"), ("D", "D"), ("L", "loss"), ("flops", "flops"))
            if name in (answer.intervals or {})
        },
        "alternatives": [picked(row, "name N D L", n_convention="convention") for row in answer.alternatives],
        **common.price_object(cost, answer.flops),
        **{f"inference_{key}": value for key, value in common.price_object(cost if served else None, served).items()},
    }


def _print(answer: Plan, cost: Price | None, recipe: TrainingRecipe | None) -> None:
    """The law's own answer, whose it is, what to know, and what other laws say."""
    from isoflop.fit.alternatives import table_of

    if recipe is not None:
        fewer, smaller = recipe.tokens < 0.999 * answer.D, recipe.counted < answer.N
        why = "and has fewer tokens because" if fewer else "and is smaller because" if smaller else "where"
        say(
            "the law's own optimum. The model above is the nearest real configuration, "
            + (
                f"at the {recipe.flops_per_token / recipe.counted:.2g} FLOPs per parameter and token of your runs:"
                if recipe.flops_per_token > recipe.shape.flops_per_token
                else f"{why} attention takes {recipe.attention:.0%} of its FLOPs, which 6·N·D does not count:"
            ),
            indent=0,
        )
    typer.echo("\n".join(answer.lines()))
    for doubt in answer.doubts[SHOWN if recipe is not None else 0 :]:
        say(f"doubt: {doubt}")
    for what, each in (("", answer.flops), ("to serve, ", answer.inference_flops)):
        if each and (sentence := common.describe_cost(cost, each)) is not None:
            say(f"cost{'' if recipe is None else ' of this optimum'}: {what}{sentence}")
    say(f"by: {answer.method}")
    if recipe is not None:
        say(
            "batch B and peak rate η: geometric means of published rules (docs/scaling-laws.md), which weigh more the "
            "nearer their runs are; B/(η·λ·D) is the share of the run that AdamW averages its weights over"
        )
    for note in answer.notes:
        say(f"note: {note}")
    if answer.alternatives:
        typer.echo("\n".join(["", *table_of(answer.alternatives)]))


def _budget(
    flops: float | None, cost: Price | None, usd: float | None, gpu_hours: float | None, allowed: float
) -> float | None:
    """FLOPs of the budget; None: what training may take is all that is given."""
    given = {"--flops": flops, "--budget-usd": usd, "--gpu-hours": gpu_hours}
    named = [name for name, value in given.items() if value is not None]
    if not named and allowed < math.inf:
        return None
    if len(named) != 1:
        hint = "leave out all but one" if named else "add one, such as --flops 1e21"
        raise ValueError(
            f"expected a budget, one of {', '.join(given)}, or --devices with --max-hours; got "
            f"{' and '.join(named) or 'none'}: {hint}"
        )
    if flops is not None:
        return flops
    examples = {"--gpu": "--gpu h100"} if cost is None else {}
    if usd is not None and (cost is None or cost.usd_per_gpu_hour is None):
        examples["--price"] = "--price 2.5"
    if examples or cost is None:
        raise ValueError(f"{named[0]} needs {' and '.join(examples)}: add {' '.join(examples.values())}")
    return cost.flops_for(usd=usd, gpu_hours=gpu_hours)
