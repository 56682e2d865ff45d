"""What `isoflop backtest` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from isoflop.show.summary import grid, screen

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
    fractions = list(next(iter(next(iter(table.values())).values())))
    heads = [head for fraction in fractions for head in (f"at {float(fraction):.0%}", "held", "spoke")]
    title = f"Error of the final loss, %: median / 9 of 10 within · held: by the {level:.0%} interval"
    rows = grid("dataset", "estimator", *heads, left=(0, 1), folded=(0, 1), title=title)
    sets = [name for name in next(iter(table.values())) if name != "all"]
    for dataset in [*sets, *(["all"] if len(sets) > 1 else [])]:
        for place, (estimator, scores) in enumerate(table.items()):
            cells = [part for fraction in fractions for part in _cells(scores[dataset][fraction])]
            style = "bold" if place == 0 else None
            rows.add_row("" if place else dataset, estimator, *cells, style=style, end_section=place == len(table) - 1)
    rows.caption = (
        f"{runs} runs, each replayed as it was logged · spoke: share of the runs that got a forecast; baselines are "
        "scored on those that isoflop's own forecast"
    )
    screen(40 + 30 * len(fractions)).print(rows)


def _cells(score: Score) -> tuple[str, str, str]:
    if not score.n or math.isnan(score.median):
        return "–", "–", f"{score.spoke:.0%}"
    return f"{_percent(score.median)} / {_percent(score.p90)}", f"{score.coverage:.0%}", f"{score.spoke:.0%}"


def _percent(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
