"""What was forecast at half time beside what came: a line for a run, a table for several."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from isoflop.fit.forecast import Forecast
from isoflop.record import Run

TAIL = 0.02
"""Of the run: what came is the mean training loss over this last part."""


def half_time_line(half_time: tuple[int, Forecast] | None, came: float | None) -> str | None:
    """For the terminal, at the end of a run; None where nothing was forecast or the run was cut short.

    >>> forecast = Forecast(2.412, 2.395, 2.429, 0.012, 0.8, 6000, "isoflop")
    >>> half_time_line((3000, forecast), 2.405)
    'isoflop: forecast at step 3,000: 2.412 (80%: 2.395 to 2.429) · came 2.405, 0.3% below · inside'
    """
    if half_time is None or came is None:
        return None
    step, forecast = half_time
    between = f"{forecast.level:.0%}: {forecast.low:.3f} to {forecast.high:.3f}"
    return f"isoflop: forecast at step {step:,}: {forecast.loss:.3f} ({between}) · came {came:.3f}, " + _beside(
        forecast.loss, forecast.low, forecast.high, came
    )


def forecast_table(runs: Iterable[Run]) -> Any:
    """A `rich.table.Table` of the runs that forecast at half time, or None where none did."""
    from rich import box
    from rich.table import Table

    rows = [row for run in runs if (row := _row(run)) is not None]
    if not rows:
        return None
    table = Table(title="Forecast at half time", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("at step", "final loss", "80% interval", "came", ""):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    table.caption = "training loss in nats per token · came: mean over the last 2% of the run"
    return table


def _row(run: Run) -> list[str] | None:
    total = run.planned.get("steps")
    if not total:
        return None
    made = [p for p in run.points if 2 * p.step >= total and p.extra.get("forecast_loss") is not None]
    last = [p for p in run.points if p.step > (1 - TAIL) * total and p.losses.get("train") is not None]
    if not made:
        return None
    point = made[0]
    loss, low, high = (float(point.extra[f"forecast_{name}"] or 0.0) for name in ("loss", "low", "high"))
    weight = sum(p.interval_steps for p in last)
    came = sum((p.losses["train"] or 0.0) * p.interval_steps for p in last) / weight if weight else None
    verdict = "" if came is None else _beside(loss, low, high, came)
    shown = "–" if came is None else f"{came:.3f}"
    return [run.name or run.run_id, f"{point.step:,}", f"{loss:.3f}", f"{low:.3f} to {high:.3f}", shown, verdict]


def _beside(loss: float, low: float, high: float, came: float) -> str:
    off = came / loss - 1
    where = "as forecast" if abs(off) < 5e-4 else f"{abs(off):.1%} {'above' if off > 0 else 'below'}"
    return f"{where} · {'inside' if low <= came <= high else 'outside the interval'}"
