"""A table of runs for the terminal: N by convention, compute by both counts, tokens, loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from isoflop.console import grid
from isoflop.record.run import Run


def print_summary(runs: Iterable[Run]) -> None:
    """Print a table of recorded runs, the smallest compute first; below it what was forecast at half time.

    Args:
        runs: as `isoflop.read_runs(folder)` gives them; one without a point gets a row of dashes.
    """
    from rich.console import Console

    from isoflop.forecast.outcome import forecast_table

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
        table.add_row(*summary_row(run))
    table.caption = CAPTION
    return table


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


def summary_row(run: Run) -> list[str]:
    """One run's cells; unknown is a dash."""
    last = run.points[-1] if run.points else None
    tokens = None if last is None else last.data_tokens
    with_head = run.parameters.get("non_embedding_with_head")
    return [
        run.name or run.run_id,
        count_cell(run.parameters.get("total")),
        count_cell(run.parameters.get("non_embedding")),
        count_cell(with_head),
        count_cell(tokens),
        f"{tokens / with_head:.3g}" if tokens is not None and with_head else "–",
        flops_cell(None if last is None else last.flops),
        flops_cell(None if last is None else last.flops_6nd),
        _loss(run, "train"),
        _loss(run, "eval/"),
        _share(run, "mfu"),
    ]


def _loss(run: Run, prefix: str) -> str:
    for point in reversed(run.points):
        for name, loss in point.losses.items():
            if name.startswith(prefix):
                return "–" if loss is None else f"{loss:.3f}"
    return "–"


def _share(run: Run, name: str) -> str:
    values = [value for point in run.points if (value := point.extra.get(name)) is not None]
    return f"{values[-1]:.1%}" if values else "–"


def count_cell(value: int | None) -> str:
    """A count as papers write it; unknown is a dash."""
    if value is None:
        return "–"
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return str(value)


def flops_cell(value: int | None) -> str:
    """FLOPs; unknown is a dash."""
    return "–" if value is None else f"{value:.2e}"
