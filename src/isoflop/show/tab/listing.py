"""The list of runs as plain values. Standard library only: it is answered while NumPy and SciPy are still imported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from isoflop.record import Point
from isoflop.record.conventions import PREFERRED_N

from .store import Entry, Snapshot

MOST_TEXT = 300
"""Characters of a stranger's name or path."""


def runs_answer(snapshot: Snapshot, whole: bool = True) -> dict[str, Any]:
    """How much was read, and the list of the runs unless the browser has it."""
    told = {
        "version": snapshot.version,
        "listed": snapshot.listed,
        "found": snapshot.found,
        "read": len(snapshot.entries),
        "whole": snapshot.whole,
        "links": snapshot.links,
    }
    return told | {"runs": [_row(entry) for entry in snapshot.entries]} if whole else told


def _row(entry: Entry) -> dict[str, Any]:
    run, reading = entry.run, entry.reading
    row: dict[str, Any] = {
        "key": entry.key,
        "path": entry.path[:MOST_TEXT],
        "name": entry.path.rsplit("/", 1)[-1][:MOST_TEXT],
        "whole": reading.whole,
        "problem": reading.problem,
    }
    if run is None:
        return row
    last = run.points[-1] if run.points else None
    size = next((name for name in PREFERRED_N if run.parameters.get(name)), None)
    planned = run.planned.get("steps")
    return row | {
        "name": (run.name or run.run_id)[:MOST_TEXT],
        "run_id": run.run_id[:MOST_TEXT],
        "status": run.status,
        "N": size and run.parameters[size],
        "convention": size and size.replace("_", " "),
        "step": last and last.step,
        "planned": planned if isinstance(planned, int | float) and math.isfinite(planned) else None,
        "D": last and last.data_tokens,
        "C": last and last.flops,
        "losses": _losses(run.points),
        "created": run.created[:MOST_TEXT],
        "problems": len(run.problems),
        "advice": len(run.advice),
    }


def _losses(points: Sequence[Point]) -> dict[str, float]:
    """The last value of each loss."""
    last: dict[str, float] = {}
    for point in points:
        last.update({name[:MOST_TEXT]: value for name, value in point.losses.items() if value is not None})
    return last
