"""Tables of runs for the terminal: N by convention, tokens, compute by both counts, loss; half-time forecasts."""

from __future__ import annotations

from collections.abc import Iterable

from isoflop.console import cell, grid, screen
from isoflop.forecast import Outcome
from isoflop.laws import short
from isoflop.live.passport import final_training_loss, half_time
from isoflop.record import Run

COLUMNS = "N total|N non- embed.|N with head|D tokens|D/N |C measured|C 6ND|loss train|loss eval|MFU "
CAPTION = (
    "N parameters (D/N: with head) · D tokens processed less padding · C training FLOPs (6ND: N non-embedding) · "
    "loss in nats per token, as last recorded · MFU of the last interval · – unknown"
)


def print_summary(runs: Iterable[Run]) -> None:
    """Print a table of recorded runs, the smallest compute first; below it their forecasts at half time.

    Args:
        runs: as `isoflop.read_runs(folder)` gives them; one without a point gets a row of dashes.
    """
    runs = list(runs)
    # in a file or a narrow window whole numbers are worth more than the frame
    console = screen(110)
    table = grid("run", *COLUMNS.replace(" ", "\n").split("|"), title="Where the compute went")
    for run in sorted(runs, key=lambda run: (run.points[-1].flops or 0) if run.points else 0):
        table.add_row(run.name or run.run_id, *_cells(run))
    table.caption = CAPTION
    console.print(table)
    halves = grid(
        "run",
        "at step",
        "forecast",
        "80% interval",
        "final loss",
        left=(0, 4),
        title="First forecast after half time",
    )
    for run, (step, forecast) in ((run, made) for run in runs if (made := half_time(run)) is not None):
        final = final_training_loss(run)
        outcome = "–" if final.mean is None else str(Outcome(forecast, final.mean, final.error))
        interval = f"{forecast.low:.3f} to {forecast.high:.3f}"
        halves.add_row(run.name or run.run_id, f"{step:,}", f"{forecast.loss:.3f}", interval, outcome)
    halves.caption = (
        "training loss in nats per token · final loss: mean over the last 5% of the run, ± its standard error"
    )
    if halves.row_count:
        console.print(halves)


def _cells(run: Run) -> list[str]:
    last = run.points[-1] if run.points else None
    tokens, flops, flops_6nd = (getattr(last, name, None) for name in ("data_tokens", "flops", "flops_6nd"))
    total, bare, with_head = map(run.parameters.get, ("total", "non_embedding", "non_embedding_with_head"))
    losses = {name.partition("/")[0]: loss for point in run.points for name, loss in point.losses.items()}
    mfu = [value for point in run.points if (value := point.extra.get("mfu")) is not None]
    return [
        *(cell(value, short) for value in (total, bare, with_head, tokens)),
        cell(tokens / with_head if tokens is not None and with_head else None, ".3g"),
        cell(flops, ".2e"),
        cell(flops_6nd, ".2e"),
        cell(losses.get("train"), ".3f"),
        cell(losses.get("eval"), ".3f"),
        cell(mfu[-1] if mfu else None, ".1%"),
    ]
