"""What `isoflop fit` prints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from isoflop.show.summary import grid, screen

if TYPE_CHECKING:
    from isoflop.fit.approaches.compare import Comparison
    from isoflop.fit.fitting.fit_law import LawFit


def print_fit(fitted: LawFit, taken: Mapping[str, str]) -> None:
    """Print a fitted law for people.

    Args:
        fitted: the fit.
        taken: which columns of the table were what.
    """
    from rich.text import Text

    console = screen()
    read = ", ".join(what if what == name else f"{what} from {name}" for what, name in taken.items())
    n = f"{fitted.n} run{'s' if fitted.n > 1 else ''}"
    console.print(Text.assemble((fitted.law.form.text, "bold"), f"   fitted to {n} ({read})"))
    table = grid("", "value", "standard error", f"{fitted.level:.0%}", folded=range(4))
    for name, value in fitted.parameters.items():
        low, high = fitted.intervals[name]
        known = math.isfinite(high)
        error = f"{fitted.standard_errors[name]:.3g}" if known else "unknown"
        table.add_row(name, f"{value:.5g}", error, f"{low:.4g} … {high:.4g}" if known else "unknown")
    console.print(table)
    off = sorted(abs(residual) for residual in fitted.residuals)
    loss = "Σ|ln L̂ − ln L|" if fitted.delta == 0 else f"Σ Huber(ln L̂ − ln L), δ = {fitted.delta:g}"
    console.print(
        f"{loss} = {fitted.objective:.6g} · half of the runs within {off[len(off) // 2]:.2%} of the law, nine in ten "
        f"within {off[int(0.9 * (len(off) - 1))]:.2%}",
    )
    for warning in fitted.warnings:
        console.print(Text(f"! {warning}", style="yellow"), soft_wrap=True)


def print_approaches(compared: Comparison, level: float) -> None:
    """Print what the approaches say of the frontier, for people; at most 80 columns.

    Args:
        compared: approaches at one budget.
        level: of their intervals.
    """
    from isoflop.fit.frontier.allocation import short

    def cell(value: float, interval: tuple[float, float] | None, write: Callable[[float], str]) -> str:
        return write(value) + (f" ({write(interval[0])}–{write(interval[1])})" if interval else "")

    heads = (f"{level:.0%} intervals", "a in N ∝ C^a", f"N at {compared.C:.2g} FLOPs", "D there")
    table = grid(*heads, left=range(4), folded=())
    for row in compared.rows:
        a = cell(row.a, row.a_interval, lambda value: f"{value:.2f}")
        N, D = cell(row.N, row.N_interval, short), cell(row.D, row.D_interval, short)
        table.add_row(row.name.split(" (")[0], a, N, D)
    screen().print(table)
