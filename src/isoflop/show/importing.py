"""What `isoflop import` did, as a table, and how each number was obtained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.show.summary import count_cell, flops_cell, grid, screen

if TYPE_CHECKING:
    from isoflop.record.importing import Imported

ROWS = 40
"""Runs shown; the others are counted."""


def print_imported(done: Sequence[tuple[Imported, Path, str]]) -> None:
    """Print the runs and the notes on them, each note once.

    Args:
        done: runs, their records, and `written`, `updated` or `unchanged`.
    """
    from rich.markup import escape

    if not done:
        return
    console = screen(110)
    heads = ("run", "from", "N", "tokens", "FLOPs", "steps", "points", "loss", "record")
    table = grid(*heads, left=(0, 1, 8), folded=range(9))
    for one, _, action in done[:ROWS]:
        last, parameters = one.run.points[-1], one.run.parameters
        size = parameters.get("non_embedding") or parameters.get("total")
        steps = "–" if one.ends else f"{last.step:,}"
        cells = (one.run.name, one.kind, count_cell(size), count_cell(last.tokens), flops_cell(last.flops), steps)
        table.add_row(*map(escape, (*cells, f"{len(one.run.points):,}", _losses(one), action)))
    console.print(table)
    if len(done) > ROWS:
        console.print(f"… and {len(done) - ROWS} more runs")
    for note, runs in _notes(done):
        of = "" if runs == len(done) else f" ({runs} of {len(done)} runs)"
        console.print(f"  {note}{of}", markup=False, soft_wrap=True)
    folder = done[0][1].parent
    actions = [action for _, _, action in done]
    counted = ", ".join(f"{actions.count(name)} {name}" for name in dict.fromkeys(actions))
    console.print(f"{counted}: isoflop fit {folder}", markup=False, soft_wrap=True)


def _notes(done: Sequence[tuple[Imported, Path, str]]) -> list[tuple[str, int]]:
    found: dict[str, int] = {}
    for one, _, _ in done:
        for note in dict.fromkeys(one.notes):
            found[note] = found.get(note, 0) + 1
    return sorted(found.items(), key=lambda item: -item[1])[:30]


def _losses(one: Imported) -> str:
    last: dict[str, float | None] = {}
    for point in one.run.points:
        last.update(point.losses)
    shown = [
        f"{'' if name == 'train' else name + ' '}{'–' if loss is None else f'{loss:.4g}'}"
        for name, loss in last.items()
    ]
    return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "")
