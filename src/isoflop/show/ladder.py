"""What `isoflop ladder plan` and `isoflop ladder fit` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.show.summary import grid, screen

if TYPE_CHECKING:
    from rich.console import Console

    from isoflop.ladder.plan import Expected, LadderPlan


def print_plan(plan: LadderPlan) -> None:
    """Print a plan for people; at most 80 columns."""
    from isoflop.fit.frontier.allocation import short

    console = screen()
    top = max(run.flops for run in plan.runs)
    console.print(
        f"[bold]{len(plan.runs)} runs of {plan.family}[/bold] for {plan.flops:.3g} FLOPs, "
        f"{100 * plan.flops / plan.target_flops:.2g}% of the target's {plan.target_flops:.3g} "
        f"({plan.target_flops / top:,.0f} times the largest run)",
        soft_wrap=True,
    )
    table = grid("FLOPs", "layers·width", "N", "D", "D/N", "batch", "steps", "rate", left=(), folded=())
    before = -1
    for run in plan.runs:
        N = run.parameters[plan.convention]
        config = run.config
        table.add_row(
            f"{run.flops:.2e}".replace("e+", "e") if run.rung != before else "",
            "·".join(str(config[key]) for key in ("depth", "width")),
            short(N),
            short(run.tokens),
            f"{run.tokens / N:.3g}",
            short(run.batch_tokens),
            f"{run.steps:,}",
            _rate(run.learning_rate),
        )
        before = run.rung
    console.print(table)
    console.print(f"expected at {plan.target_flops:.3g} FLOPs ({plan.level:.0%}), before a FLOP is spent:")
    for name, label in (("N_opt", "N"), ("D_opt", "D")):
        if name in plan.expected:
            _print_expected(console, label, plan.expected[name], short)
    if "loss_relative" in plan.expected:
        e = plan.expected["loss_relative"]
        even = "" if e.even_high is None else f"   an even grid: {100 * (e.even_high - 1):.1f}%"
        console.print(f"  loss to within {100 * (e.high - 1):.1f}%{even}")
    console.print("N counts all parameters but the embeddings, with the head; batch in tokens. By:", soft_wrap=True)
    for what, rule in plan.rules.items():
        console.print(f"  {what.replace('_', ' ')}: {rule}", soft_wrap=True)
    for warning in plan.warnings:
        console.print(f"! {warning}", style="yellow", soft_wrap=True, markup=False)


def _rate(value: float) -> str:
    """0.0018 as 1.8e-3."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def _print_expected(console: Console, label: str, e: Expected, short: object) -> None:
    write = short  # a count in three digits
    text = f"  {label} {write(e.estimate)} × or ÷ {e.high / e.estimate:.2f}"  # type: ignore[operator]
    text += f" [{write(e.low)}, {write(e.high)}]"  # type: ignore[operator]
    if e.even_high is not None:
        text += f"   an even grid: × or ÷ {e.even_high / e.estimate:.2f}"
    console.print(text, markup=False)
