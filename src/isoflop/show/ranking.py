"""What `isoflop rank` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.show.summary import grid, screen

if TYPE_CHECKING:
    from isoflop.fit.forecast.ranking import Ranking


def print_ranking(ranking: Ranking) -> None:
    """Print the order of runs, and which of them can stop."""
    console = screen(110)
    best = "best" if ranking.keep == 1 else f"best {ranking.keep}"
    heads = ("run", "final loss", "80% interval", "below the next", f"among the {best}", "")
    table = grid(*heads, left=(0, 5), folded=(0, 5))
    for run in ranking.runs:
        forecast = run.forecast
        table.add_row(
            run.name,
            f"{forecast.loss:.4f}",
            f"{forecast.low:.4f} to {forecast.high:.4f}",
            "–" if run.before_next is None else _probability(run.before_next),
            _probability(run.among_best),
            "finished" if run.finished else "can stop" if run.can_stop else "",
        )
    for name, reason in ranking.silent.items():
        table.add_row(name, "–", "–", "–", "–", reason)
    console.print(table)
    if ranking.silent and ranking.runs:
        console.print(
            f"Orders and probabilities are among the {len(ranking.runs)} runs above that have a loss; "
            f"{len(ranking.silent)} without a forecast may end lower.",
            highlight=False,
        )
    stopping = ranking.can_stop
    if stopping:
        console.print(
            f"Can stop: {', '.join(stopping)}. With {ranking.sure:.0%} or more "
            + ("it does not end" if len(stopping) == 1 else "each of them does not end")
            + f" among the {best}.",
            highlight=False,
        )
    elif all(run.finished for run in ranking.runs):
        console.print("All of them are finished." if ranking.runs else "No run has a forecast.")
    else:
        console.print(f"None can stop: none is {ranking.sure:.0%} sure not to end among the {best}.", highlight=False)


def _probability(value: float) -> str:
    return ">99%" if value > 0.99 else "<1%" if value < 0.01 else f"{value:.0%}"
