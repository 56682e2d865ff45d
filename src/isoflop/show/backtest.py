"""What `isoflop backtest` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isoflop.fit.forecast import Score

Scores = Mapping[str, Mapping[str, Mapping[str, "Score"]]]


def print_backtest(table: Scores, level: float, runs: int) -> None:
    """Print errors and coverage, the estimators under one another for each dataset.

    Args:
        table: estimator → dataset → fraction → score.
        level: of the intervals.
        runs: how many were replayed.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    fractions = list(next(iter(next(iter(table.values())).values())))
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    grid.title = f"Error of the final loss, %: median / 9 of 10 within · held: by the {level:.0%} interval"
    grid.add_column("dataset")
    grid.add_column("estimator")
    for fraction in fractions:
        grid.add_column(f"at {float(fraction):.0%}", justify="right", no_wrap=True)
        grid.add_column("held", justify="right", no_wrap=True)
        grid.add_column("spoke", justify="right", no_wrap=True)
    sets = [name for name in next(iter(table.values())) if name != "all"]
    for dataset in [*sets, *(["all"] if len(sets) > 1 else [])]:
        for place, (estimator, scores) in enumerate(table.items()):
            cells = [part for fraction in fractions for part in _cells(scores[dataset][fraction])]
            style = "bold" if place == 0 else None
            grid.add_row("" if place else dataset, estimator, *cells, style=style, end_section=place == len(table) - 1)
    grid.caption = (
        f"{runs} runs, each replayed as it was logged · spoke: share of the runs that got a forecast; baselines are "
        "scored on those that isoflop's own forecast"
    )
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 40 + 30 * len(fractions)))
    console.print(grid)


def _cells(score: Score) -> tuple[str, str, str]:
    if not score.n or math.isnan(score.median):
        return "–", "–", f"{score.spoke:.0%}"
    return f"{_percent(score.median)} / {_percent(score.p90)}", f"{score.coverage:.0%}", f"{score.spoke:.0%}"


def _percent(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
