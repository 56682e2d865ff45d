"""What was forecast at half time beside what came: a line for a run, a table for several."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from isoflop.fit.runs import at_end, unfinished
from isoflop.forecast.online import Forecast
from isoflop.record.run import Run


class Came(NamedTuple):
    """Sums over the losses of a run's last part: what it ended with, and how well that can be read off.

    >>> came = Came().with_(2.40).with_(2.42).with_(2.41)
    >>> f"{came.loss:.3f} ± {came.error:.3f}"
    '2.410 ± 0.006'
    """

    weight: float = 0.0  # log steps
    total: float = 0.0
    squares: float = 0.0
    points: float = 0.0

    def with_(self, loss: float) -> Came:
        """One more loss; each log step counts alike, as in `isoflop.fit.runs.final_loss`."""
        return Came(self.weight + 1, self.total + loss, self.squares + loss * loss, self.points + 1)

    @property
    def loss(self) -> float | None:
        """The mean; None where there is none."""
        return self.total / self.weight if self.weight else None

    @property
    def error(self) -> float:
        """Standard error of the mean, by the scatter of the losses; 0 where fewer than three can't tell."""
        if self.points < 3 or not self.weight:
            return 0.0
        mean = self.total / self.weight
        variance = max(0.0, self.squares / self.weight - mean * mean)  # `mean**2` would raise beyond 1e154
        return math.sqrt(variance / (self.points - 1))

    def __str__(self) -> str:
        """With its error, where that is known."""
        if self.loss is None:
            return "–"
        return f"{self.loss:.3f}" + (f" ± {self.error:.3f}" if self.error else "")


def half_time_line(half_time: tuple[int, Forecast] | None, came: Came) -> str | None:
    """For the terminal, at the end of a run; None where nothing was forecast or the run was cut short.

    >>> forecast = Forecast(2.412, 2.395, 2.429, 0.012, 0.8, 6000, "isoflop")
    >>> half_time_line((3000, forecast), Came().with_(2.405))
    'isoflop: forecast at step 3,000: 2.412 (80%: 2.395 to 2.429) · came 2.405: 0.3% below · inside'
    """
    if half_time is None or came.loss is None:
        return None
    step, forecast = half_time
    between = f"{forecast.level:.0%}: {forecast.low:.3f} to {forecast.high:.3f}"
    beside = _beside(forecast.loss, forecast.low, forecast.high, came)
    return f"isoflop: forecast at step {step:,}: {forecast.loss:.3f} ({between}) · came {came}: {beside}"


def forecast_table(runs: Iterable[Run]) -> Any:
    """A `rich.table.Table` of the runs that forecast at half time, or None where none did."""
    from isoflop.console import grid

    rows = [row for run in runs if (row := _row(run)) is not None]
    if not rows:
        return None
    heads = ("run", "at step", "final loss", "80% interval", "came", "")
    table = grid(*heads, left=(0, 5), title="Forecast at half time")
    for cells in rows:
        table.add_row(*cells)
    table.caption = "training loss in nats per token · came: mean over the last 5% of the run, ± its standard error"
    return table


def _row(run: Run) -> list[str] | None:
    total = run.planned.get("steps")
    if not total:
        return None
    made = [p for p in run.points if 2 * p.step >= total and p.extra.get("forecast_loss") is not None]
    if not made:
        return None
    point = made[0]
    loss, low, high = (float(point.extra[f"forecast_{name}"] or 0.0) for name in ("loss", "low", "high"))
    came = _came(run)
    verdict = "" if came.loss is None else _beside(loss, low, high, came)
    return [run.name or run.run_id, f"{point.step:,}", f"{loss:.3f}", f"{low:.3f} to {high:.3f}", str(came), verdict]


def _came(run: Run) -> Came:
    """The training losses that the final loss is the mean of; none of a run that did not come to its end."""
    came = Came()
    if unfinished(run, run.points[-1].step):
        return came
    known = [(p.step, loss) for p in run.points if (loss := p.losses.get("train")) is not None and p.data_tokens]
    for (_, loss), counts in zip(known, at_end([step for step, _ in known], "train"), strict=True):
        came = came.with_(loss) if counts else came
    return came


def _beside(loss: float, low: float, high: float, came: Came) -> str:
    """How far what came is from the forecast, and whether the interval held it, as well as that can be read off."""
    assert came.loss is not None
    off = came.loss / loss - 1
    where = "as forecast" if abs(off) < 5e-4 else f"{abs(off):.1%} {'above' if off > 0 else 'below'}"
    inside = low - came.error <= came.loss <= high + came.error
    return f"{where} · {'inside' if inside else 'outside the interval'}"
