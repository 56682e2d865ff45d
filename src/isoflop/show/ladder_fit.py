"""What `isoflop ladder fit` prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from isoflop.show.summary import screen

if TYPE_CHECKING:
    from rich.console import Console

    from isoflop.ladder.ladder_fit import Estimate, LadderFit
    from isoflop.ladder.leave_out import LeftOut
    from isoflop.ladder.worth import RungWorth


def print_ladder_fit(fit: LadderFit) -> None:
    """Print a ladder's fit for people; at most 80 columns but for sentences."""
    from isoflop.fit.frontier.allocation import short
    from isoflop.show.fit import print_approaches

    console = screen()
    runs = fit.finished.runs
    reach = fit.target_flops / max(run.flops for run in runs)
    console.print(
        f"[bold]at {fit.target_flops:.3g} FLOPs[/bold], {reach:,.3g} times the largest of {len(runs)} runs "
        f"({fit.finished.loss_name}), {fit.level:.0%} intervals",
        soft_wrap=True,
    )
    _row(console, "N", fit.N_opt, short, "parameters, with the head")
    _row(console, "D", fit.D_opt, short, "tokens")
    _row(console, "D/N", fit.tokens_per_param, lambda value: f"{value:.3g}", "tokens per parameter")
    _row(console, "batch", fit.batch, short, "tokens a step, by published rules")
    _row(console, "loss", fit.loss, lambda value: f"{value:.4f}", "nats per token, its noise included")
    for name, label in (("alpha", "α"), ("beta", "β"), ("a", "a")):
        if name in fit.exponents:
            what = "N ∝ C^a from the largest run on" if name == "a" else "at the largest budget"
            _row(console, label, fit.exponents[name], lambda value: f"{value:.3f}", what)
    if fit.approaches is not None:
        print_approaches(fit.approaches, fit.level)
    for reason in fit.without:
        console.print(f"! {reason}", style="yellow", soft_wrap=True, markup=False)
    if fit.left_out is not None:
        _print_check(console, fit.left_out)
    else:
        console.print("leave the largest rung out: too few runs are left below it")
    if fit.rung is not None:
        _print_rung(console, fit.rung, fit.target_flops)
    for line in (*fit.finished.left_out, *(f"{name}: no record" for name in fit.finished.missing)):
        console.print(f"left out: {line}", soft_wrap=True, markup=False)
    warnings = (*fit.warnings, *(fit.approaches.warnings if fit.approaches is not None else ()))
    for warning in warnings:
        console.print(f"! {warning}", style="yellow", soft_wrap=True, markup=False)


def _row(console: Console, label: str, value: Estimate, write: Callable[[float], str], what: str) -> None:
    text = f"{label:<6}{write(value.value):>9}  [{write(value.low)}, {write(value.high)}]"
    console.print(f"{text:<40} {what}", markup=False)


def _print_check(console: Console, check: LeftOut) -> None:
    console.print(
        f"largest rung left out and predicted from {check.fitted} runs up to 1/{check.reach:.3g} of its compute: "
        f"{check.inside} of {len(check.runs)} inside their {check.level:.0%} intervals: {check.verdict}",
        soft_wrap=True,
        markup=False,
    )
    for run in check.runs:
        mark = " " if run.inside else "!"
        console.print(
            f"  {mark} {run.name:<34.34} loss {run.loss:.4f}, expected {run.expected:.4f} "
            f"[{run.low:.4f}, {run.high:.4f}]",
            markup=False,
            soft_wrap=True,
        )


def _print_rung(console: Console, rung: RungWorth, target: float) -> None:
    from isoflop.fit.frontier.allocation import short

    verdict = "GO: train it" if rung.go else "STOP: train the target"
    sizes = ", ".join(short(size) for size in rung.sizes)
    console.print(
        f"one more rung ({sizes} parameters at {rung.budget:.3g} FLOPs each) costs {rung.cost:.3g} FLOPs; N's doubt "
        f"wastes {rung.waste:.3g} FLOPs of the target ({rung.waste / target:.2%}), after the rung "
        f"{rung.waste_after:.3g}: {verdict}",
        soft_wrap=True,
        markup=False,
    )
