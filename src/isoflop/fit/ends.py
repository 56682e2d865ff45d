"""Whether a recorded run came to its end, so that its last loss is a final one."""

from __future__ import annotations

from isoflop.record import Run

ENDED = 0.98
"""Share of its planned steps that a run must have done: one that was stopped before has no final loss."""
TAIL = 0.05
"""Share of a run's points, the last ones, whose mean training loss is its final loss."""


def unfinished(run: Run, last_step: int) -> str:
    """Why a run has no final loss; "": it has.

    Args:
        run: its record; the points are not looked at.
        last_step: optimizer steps done.
    """
    if run.status != "completed":
        return "it is not finished"
    planned = run.planned.get("steps")
    if isinstance(planned, int | float) and 0 < last_step < ENDED * planned:
        return f"it ended at step {last_step:,} of {planned:,} planned"
    return ""
