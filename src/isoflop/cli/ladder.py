"""`isoflop ladder plan`, `run` and `fit`: plan small runs, train them, and size the large run by them."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli import Once, common
from isoflop.console import grid, print_json, reported, say, screen, tell
from isoflop.laws.quantities import percent, short

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from isoflop.fit.options import Price
    from isoflop.fit.trust import LeftOut
    from isoflop.ladder.attempt import Job, RunState
    from isoflop.ladder.design import RungWorth
    from isoflop.ladder.fit import LadderFit
    from isoflop.ladder.plan import LadderPlan
    from isoflop.ladder.run import LadderRun

ladder = typer.Typer(
    name="ladder",
    help="Small runs that size a large one: plan them, run them, fit their law.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@ladder.command(cls=Once)
def fit(
    runs: Annotated[list[str], typer.Argument(metavar="RUNS", help="isoflop's records, folders or URLs with some.")],
    plan: Annotated[
        Path | None, typer.Option(metavar="PLAN.YAML", help="The plan: it names the runs and the target.")
    ] = None,
    flops: Annotated[
        float | None, common.number("FLOPS", "Compute budget of the target run (default: the plan's).")
    ] = None,
    loss: common.FinalLoss = None,
    level: common.Level = 0.8,
    as_json: common.AsJson = False,
) -> None:
    """Fit a ladder: law, three approaches, N, D, batch and loss at the target, and whether one more rung pays."""
    from isoflop.ladder.fit import fit_ladder_runs

    with reported("ladder fit"):
        if table := next((each for each in runs if each.lower().endswith((".csv", ".tsv", ".parquet"))), ""):
            raise ValueError(f"expected records, got a table ({table}): `isoflop fit` and `plan --runs` take tables")
        fitted = fit_ladder_runs(runs, plan=plan, target_flops=flops, loss=loss, level=level)
    if as_json:
        print_json(fitted.as_dict())
    else:
        print_ladder_fit(fitted)


@ladder.command(cls=Once)
@common.together
def plan(
    flops: Annotated[
        float | None, common.number("FLOPS", "Compute budget of the target run; or --devices with --max-hours.")
    ] = None,
    spend: Annotated[
        str,
        typer.Option(
            metavar="SHARE|FLOPS|USD",
            help="Budget of the ladder: a share of --flops (3%), FLOPs, or dollars (600usd).",
        ),
    ] = "3%",
    model: Annotated[
        str,
        typer.Option(metavar="CONFIG", help="A Hugging Face config.json or a folder with one; or gpt2 or llama."),
    ] = "gpt2",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="PLAN.YAML", help="File to write the plan to.")
    ] = None,
    min_runs: Annotated[
        int | None, typer.Option(help="Least number of runs, 9 or more (default: 12, or --max-runs).")
    ] = None,
    max_runs: Annotated[int, typer.Option(help="Most runs.")] = 16,
    max_flops_per_run: Annotated[float | None, common.number("FLOPS", "Most FLOPs that one run may take.")] = None,
    sizes: Annotated[
        str | None, typer.Option(metavar="LEAST:MOST", help="Parameters of a run, with the head: 30k:500k.")
    ] = None,
    max_sizes: Annotated[int, typer.Option(help="Most different sizes.")] = 8,
    tokens_per_param: Annotated[
        str, typer.Option(metavar="LEAST:MOST", help="D/N of a run; published sweeps support no law beyond 5:200.")
    ] = "5:200",
    min_steps: Annotated[int, typer.Option(help="Steps of each run beyond its warm-up.")] = 2000,
    branches: Annotated[
        bool, typer.Option("--branches", help="Warm-up, stable, decay: shorter runs branch off a size's longest one.")
    ] = False,
    seq: Annotated[int | None, typer.Option(min=1, help="Tokens a sequence (default: the configuration's).")] = None,
    vocab: Annotated[
        int | None, typer.Option(min=2, help="Entries of the tokenizer (default: the configuration's).")
    ] = None,
    unique_tokens: Annotated[float | None, common.number("TOKENS", "Unique tokens available.")] = None,
    lr_rule: Annotated[str, typer.Option(help="auto, width, steplaw, deepseek or porian.")] = "auto",
    batch_rule: Annotated[str, typer.Option(help="auto, steplaw, deepseek or porian.")] = "auto",
    history: Annotated[
        list[Path] | None,
        typer.Option(
            "--history",
            "--runs",
            help="Finished runs that the design counts on: records, or a table (as --runs of `plan`).",
        ),
    ] = None,
    devices: common.Devices = None,
    max_hours: common.MaxHours = None,
    optimizer: Annotated[str, typer.Option(help="adamw or muon: what is known without a run is of AdamW.")] = "adamw",
    rates: common.RateOptions = common.RATES,
    level: common.Level = 0.8,
    as_json: common.AsJson = False,
) -> None:
    """Plan the runs that tell most about the compute-optimal size at a target, for what you would spend on them."""
    from isoflop.ladder.plan import write_plan
    from isoflop.ladder.planning import plan_ladder

    with reported("ladder plan"):
        count, device = (1, None) if devices is None else common.devices_of(devices)
        cost = rates.of(device, "--devices")
        allowed = common.allowed_flops(cost, max_hours, count)
        if flops is None and max_hours is None:
            raise ValueError("expected a target: its --flops, or --devices with --max-hours")
        flops = min(math.inf if flops is None else flops, allowed)
        made = plan_ladder(
            flops,
            _spend(spend, flops, cost),
            model,
            level=level,
            min_runs=min_runs,
            max_runs=max_runs,
            max_flops_per_run=max_flops_per_run,
            sizes=None if sizes is None else _range("--sizes", sizes),
            max_sizes=max_sizes,
            tokens_per_param=_range("--tokens-per-param", tokens_per_param),
            min_steps=min_steps,
            branches=branches,
            vocab_size=vocab,
            sequence_length=seq,
            unique_tokens=unique_tokens,
            lr_rule=lr_rule,
            batch_rule_name=batch_rule,
            history=history or (),
            optimizer=common.family_of_option(optimizer),
        )
        if output is not None:
            write_plan(made, output)
    if as_json:
        print_json(made.as_dict() | common.price_object(cost, made.flops))
        return

    print_plan(made)
    if cost is not None:
        dearest, hours = max(run.flops for run in made.runs), cost.gpu_hours(made.flops)
        text = f"cost: {common.describe_cost(cost, made.flops)}"
        if count > 1 and hours is not None:
            text += f", {common.digits(hours / count)} hours where all {count} are busy"
        each, dollars = common.hours_and_dollars(cost, dearest)
        text += f"; the dearest run {each} GPU-hours{f', {dollars}' if dollars else ''}"
        text += (
            ""
            if rates.mfu is not None
            else ". Small models seldom reach such an MFU: pass one that is measured (--mfu)"
        )
        say(text)
    if output is not None:
        typer.echo(f"written to {output}; next: isoflop ladder run {output} --train module:function")


def _spend(text: str, flops: float, cost: Price | None) -> float:
    """A share of the target ("3%"), FLOPs ("3e19"), or at a price of compute dollars ("600usd").

    Raises:
        ValueError: neither.
    """
    bare, dollars = text.strip().lower(), text.strip().lower().endswith("usd")
    if dollars and (cost is None or cost.usd_per_gpu_hour is None):
        raise ValueError(f"--spend: {text} needs --devices and --price: add them, such as --devices 8xH100 --price 3")
    expected = f"--spend: expected a share of --flops, such as 3%, or FLOPs, such as 3e19; got {text!r}"
    try:
        value = float(bare.removesuffix("%").removesuffix("usd").replace("_", "").replace(",", ""))
    except ValueError:
        raise ValueError(expected) from None
    if bare.endswith("%"):
        value *= flops / 100
    elif dollars and cost is not None:
        value = cost.flops_for(usd=value)
    elif 0 < value < 1:
        raise ValueError(f"{expected}: write {100 * value:g}% for a share")
    return value


def _range(option: str, text: str) -> tuple[float, float]:
    least, separator, most = text.partition(":")
    if not separator:
        raise ValueError(f"{option}: expected LEAST:MOST, such as 30k:500k, got {text!r}")
    try:
        return common.amount(least), common.amount(most)
    except typer.BadParameter as error:
        raise ValueError(f"{option}: {error.message}") from None


@ladder.command(cls=Once)
def run(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="YAML of `isoflop ladder plan`.")],
    train: Annotated[
        str, typer.Option(metavar="MODULE:FUNCTION", help="Trains one run: module:function or file.py:function.")
    ],
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR|URL", help="Folder for the runs' records; default: runs/<the plan's name>."),
    ] = None,
    engine: Annotated[str, typer.Option(help="ray, slurm or local.")] = "ray",
    workers: Annotated[int | None, typer.Option(min=1, help="Runs to train at the same time.")] = None,
    cpus_per_run: Annotated[int, typer.Option(min=1, help="Processors of each run.")] = 1,
    gpus_per_run: Annotated[float, typer.Option(min=0, help="Devices of each run.")] = 0.0,
    retries: Annotated[int, typer.Option(min=0, help="Retries of a run that fails.")] = 1,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Train this run only. Repeatable.")] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Slurm option: partition=gpu, time=120 (minutes) … Repeatable."),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Checkpoints and output; default: --out, of a URL runs/<its last part>."),
    ] = None,
) -> None:
    """Train the runs of a ladder; finished ones are skipped, stopped ones go on, failed ones are tried again.

    Exits with 1 unless each is at its planned end.
    """
    from isoflop.ladder.plan import read_plan
    from isoflop.ladder.run import run_ladder

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
                slurm=common.pairs("--slurm", slurm),
                work=work,
                watch=following,
            )
    except KeyboardInterrupt:
        tell("ladder run", "interrupted; run the same command again to go on.")
        raise typer.Exit(130) from None
    for line in summary_lines(result):
        say(line, indent=2)
    if not result.done:
        raise typer.Exit(1)


def _sentence(console: Console, text: object, style: str | None = None) -> None:
    console.print(str(text), style=style, soft_wrap=True, markup=False)


def _warn(console: Console, text: object) -> None:
    _sentence(console, f"! {text}", "yellow")


def print_plan(plan: LadderPlan) -> None:
    """Print a plan for people; at most 80 columns."""
    from isoflop.ladder.planning import MOST_HISTORY

    console = screen()
    top = max(run.flops for run in plan.runs)
    sizes = len({run.parameters[plan.convention] for run in plan.runs})
    console.print(
        f"[bold]{len(plan.runs)} runs of {plan.family}[/bold] in {sizes} sizes for {plan.flops:.3g} FLOPs, "
        f"{percent(plan.flops / plan.target_flops)} of the target's {plan.target_flops:.3g} "
        f"({plan.target_flops / top:,.0f} times the largest run)",
        soft_wrap=True,
    )
    branches = any(run.branch_of for run in plan.runs)
    shape, more = ("shape", ["from"]) if branches else ("layers·width", [])
    table = grid("FLOPs", shape, "N", "D", "D/N", "batch", "steps", "rate", *more, left=(), folded=())
    before = -1
    for run in plan.runs:
        N = run.parameters[plan.convention]
        digits, exponent = f"{run.learning_rate:.1e}".split("e")
        table.add_row(
            f"{run.flops:.2e}".replace("e+", "e") if run.rung != before else "",
            f"{run.config['depth']}·{run.config['width']}",
            short(N),
            short(run.tokens),
            f"{run.tokens / N:.3g}",
            short(run.batch_tokens),
            f"{run.steps:,}",
            f"{digits}e{int(exponent)}",
            *([f"{run.first_step:,}"] if branches else []),
        )
        before = run.rung
    console.print(table)
    if branches:
        text = "a run from a step on branches off there from the longest of its size, and costs its own steps alone"
        _sentence(console, f"{text}: {plan.flops:.3g} FLOPs in all, {sum(r.flops for r in plan.runs):.3g} one by one")
    console.print(f"expected at {plan.target_flops:.3g} FLOPs ({plan.level:.0%}), before a FLOP is spent:")
    rows: dict[str, Callable[[float], str]] = {"N_opt": "× or ÷ {:.2f}".format, "D_opt": "× or ÷ {:.2f}".format}
    for name, write in (rows | {"loss_relative": lambda factor: f"within {factor - 1:.1%}"}).items():
        if (e := plan.expected.get(name)) is None:
            continue
        text = "loss on your data" if name == "loss_relative" else f"{name[0]} {short(e.estimate)}"
        ends = "" if name == "loss_relative" else f" [{short(e.low)}, {short(e.high)}]"
        even, known = (None if high is None else write(high / e.estimate) for high in (e.even_high, e.known_high))
        text = f"  {text} {write(e.high / e.estimate)}{ends}" + (f"   an even grid: {even}" if even else "")
        if name == "loss_relative":
            text += "   published alone: unknown" + (f" (on Chinchilla's data {known})" if known else "")
        elif known:
            text += f"   published alone: {known}"
        _sentence(console, text)
    if plan.history_runs:
        _sentence(console, f"  these count on {plan.history_runs:,} finished runs of --history, {MOST_HISTORY} at most")
    _sentence(console, "N counts all parameters but the embeddings, with the head; batch in tokens. By:")
    for what, rule in plan.rules.items():
        _sentence(console, f"  {what.replace('_', ' ')}: {rule}")
    for warning in plan.warnings:
        _warn(console, warning)


def print_ladder_fit(fit: LadderFit) -> None:
    """Print a ladder's fit for people; at most 80 columns but for sentences."""
    from isoflop.cli.fit import print_approaches

    console = screen()
    for line in fit.lines():
        console.print(line, markup=False, soft_wrap=True)
    compared = fit.approaches
    print_approaches(compared, fit.level)
    for reason in compared.without:
        _warn(console, reason)
    if fit.check.left_out is None:
        console.print("leave the largest rung out: too few runs are left below it")
    else:
        _print_check(console, fit.check.left_out)
    if fit.rung is not None:
        _print_rung(console, fit.rung, fit.target_flops)
    for line in (*fit.finished.left_out, *(f"{name}: no record" for name in fit.finished.missing)):
        _sentence(console, f"left out: {line}")
    for warning in (*fit.warnings, *compared.warnings):
        _warn(console, warning)


def _print_check(console: Console, check: LeftOut) -> None:
    _sentence(
        console,
        f"largest rung left out and predicted from {check.fitted_runs} runs up to 1/{check.reach:.3g} of its compute: "
        f"{check.inside} of {len(check.runs)} inside their {check.level:.0%} intervals: {check.verdict.value}",
    )
    for run in check.runs:
        mark = " " if run.inside else "!"
        text = f"  {mark} {run.name:<34.34} loss {run.loss:.4f}, expected {run.expected:.4f}"
        _sentence(console, f"{text} [{run.low:.4f}, {run.high:.4f}]")


def _print_rung(console: Console, rung: RungWorth, target: float) -> None:
    sizes = ", ".join(short(size) for size in rung.sizes)
    _sentence(
        console,
        f"uncertainty in N costs the target run about {rung.waste_flops:.3g} FLOPs ({rung.waste_flops / target:.2%}), "
        f"after one more rung {rung.waste_flops_after:.3g}; the rung ({sizes} parameters at {rung.budget:.3g} FLOPs "
        f"each) costs {rung.cost_flops:.3g}, {'less' if rung.go else 'more'} than it saves",
    )


SHARE = 0.02  # of the time is spent looking, at most
LINES = 15  # rows of a ladder with more runs: those under way and those that failed
_STYLES = {"finished": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "waiting": "dim"}


@contextmanager
def following(jobs: Sequence[Job]) -> Iterator[Callable[[str], None]]:
    """Show a ladder on stderr while its runs are trained: a table, or where that is no terminal a line for each run.

    Gives the function that is told a run's name when no further attempt at it is made.
    """
    from rich.console import Console
    from rich.live import Live

    from isoflop.ladder.attempt import state_of

    console = Console(stderr=True)
    states = {job.name: state_of(job) for job in jobs}
    over = {name for name, state in states.items() if state.stage == "finished"}
    every = 1 + len(jobs) // 100  # of many runs, so many lines at most, and those that fail
    due = 0.0

    def look(names: Collection[str]) -> None:
        states.update({job.name: state_of(job) for job in jobs if job.name in names})

    def table() -> Table:
        nonlocal due
        if (began := time.monotonic()) >= due:
            look(states.keys() - over)
            due = began + (time.monotonic() - began) / SHARE
        return states_table(list(states.values()))

    def ended(name: str) -> None:
        over.add(name)
        look([name])
        if not console.is_terminal and (states[name].stage != "finished" or len(over) % every == 0):
            text = f"{len(over)}/{len(jobs)} {name}: {states[name].stage}{_at(states[name])}"
            console.print(text, highlight=False, soft_wrap=True)

    if not console.is_terminal:
        yield ended
        return
    with Live(console=console, get_renderable=table, refresh_per_second=1, transient=True):
        yield ended


def states_table(states: Sequence[RunState]) -> Table:
    """The runs' states as a table; of many runs, those that are under way or failed."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", caption=counts(states), caption_justify="left")
    table.add_column("run")
    table.add_column("state")
    for name in ("step", "", "loss", "attempts"):
        table.add_column(name, justify="right")
    shown = states if len(states) <= LINES else [state for state in states if state.stage in ("running", "failed")]
    for state in shown[-LINES:]:
        table.add_row(
            state.name,
            f"[{_STYLES[state.stage]}]{state.stage}[/]",
            f"{state.step:,}",
            f"{state.step / state.steps:.0%}",
            "" if state.loss is None else f"{state.loss:.4f}",
            str(state.attempts or ""),
        )
    return table


def counts(states: Sequence[RunState]) -> str:
    """How many runs are in which state.

    >>> counts([])
    'no runs'
    """
    found: Counter[str] = Counter(state.stage for state in states)
    return ", ".join(f"{found[stage]:,} {stage}" for stage in _STYLES if found[stage]) or "no runs"


def summary_lines(result: LadderRun) -> Iterator[str]:
    """What is told when a ladder's runs are over: how many are finished, and of the others why not."""
    skipped = sum(state.stage == "finished" for state in result.before)
    resumed = [before.name for before in result.before if before.stage != "finished" and before.step]
    known = f" ({skipped:,} of them before)" if skipped else ""
    yield f"{counts(result.states)}{known}" + (f"; {len(resumed):,} went on from where they were" if resumed else "")
    for state in result.of("failed", "stopped", "waiting"):
        yield f"{state.name}: {state.stage}{_at(state)} after {state.attempts} attempts"
        for line in (state.error or "").splitlines()[-4:]:
            yield f"    {line}"
    for state in result.of("running"):
        yield f"{state.name}: another process is training it; skipped"


def _at(state: RunState) -> str:
    loss = "" if state.loss is None else f", loss {state.loss:.4f}"
    return f" at step {state.step:,} of {state.steps:,}{loss}"
