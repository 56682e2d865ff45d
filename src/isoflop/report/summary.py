"""Tables of runs for the terminal: N by convention, tokens, compute by both counts, loss; half-time forecasts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from isoflop.console import grid
from isoflop.forecast import Outcome
from isoflop.live.passport import final_training_loss, half_time
from isoflop.record import Run

COLUMNS = (
    "N\ntotal",
    "N non-\nembed.",
    "N with\nhead",
    "D\ntokens",
    "D/N\n",
    "C\nmeasured",
    "C\n6ND",
    "loss\ntrain",
    "loss\neval",
    "MFU\n",
)
CAPTION = (
    "N parameters (D/N: with head) · D tokens processed less padding · C training FLOPs (6ND: N non-embedding) · "
    "loss in nats per token, as last recorded · MFU of the last interval · – unknown"
)


def print_summary(runs: Iterable[Run]) -> None:
    """Print a table of recorded runs, the smallest compute first; below it their forecasts at half time.

    Args:
        runs: as `isoflop.read_runs(folder)` gives them; one without a point gets a row of dashes.
    """
    from rich.console import Console

    runs = list(runs)
    # in a file or a narrow window whole numbers are worth more than the frame
    console = Console(width=max(Console().width, 110))
    console.print(summary_table(runs))
    forecasts = forecast_table(runs)
    if forecasts is not None:
        console.print(forecasts)


def summary_table(runs: Iterable[Run]) -> Any:
    """The table as a `rich.table.Table`."""
    table = grid("run", *COLUMNS, title="Where the compute went")
    for run in sorted(runs, key=lambda run: (run.points[-1].flops or 0) if run.points else 0):
        table.add_row(run.name or run.run_id, *_cells(run))
    table.caption = CAPTION
    return table


def _cells(run: Run) -> list[str]:
    last = run.points[-1] if run.points else None
    tokens, flops, flops_6nd = (last.data_tokens, last.flops, last.flops_6nd) if last else (None, None, None)
    with_head = run.parameters.get("non_embedding_with_head")
    mfu = [value for point in run.points if (value := point.extra.get("mfu")) is not None]
    return [
        count_cell(run.parameters.get("total")),
        count_cell(run.parameters.get("non_embedding")),
        count_cell(with_head),
        count_cell(tokens),
        f"{tokens / with_head:.3g}" if tokens is not None and with_head else "–",
        flops_cell(flops),
        flops_cell(flops_6nd),
        _loss(run, "train"),
        _loss(run, "eval/"),
        f"{mfu[-1]:.1%}" if mfu else "–",
    ]


def _loss(run: Run, prefix: str) -> str:
    for point in reversed(run.points):
        for name, loss in point.losses.items():
            if name.startswith(prefix):
                return "–" if loss is None else f"{loss:.3f}"
    return "–"


def count_cell(value: int | None) -> str:
    """A count with three digits and its letter; unknown is a dash."""
    if value is None:
        return "–"
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return str(value)


def flops_cell(value: int | None) -> str:
    """FLOPs; unknown is a dash."""
    return "–" if value is None else f"{value:.2e}"


def forecast_table(runs: Iterable[Run]) -> Any:
    """A `rich.table.Table` of the runs that forecast at half time, with their final losses; None where none did."""
    rows = [(run, *made) for run in runs if (made := half_time(run)) is not None]
    if not rows:
        return None
    table = grid("run", "at step", "forecast", "80% interval", "final loss", left=(0, 4), title="Forecast at half time")
    for run, step, forecast in rows:
        final = final_training_loss(run)
        outcome = "–" if final.mean is None else str(Outcome(forecast, final.mean, final.error))
        interval = f"{forecast.low:.3f} to {forecast.high:.3f}"
        table.add_row(run.name or run.run_id, f"{step:,}", f"{forecast.loss:.3f}", interval, outcome)
    table.caption = (
        "training loss in nats per token · final loss: mean over the last 5% of the run, ± its standard error"
    )
    return table
