"""What the user's earlier runs say of the best size: their isoFLOP minima join the prior's line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.fit.laws import TRAINING_FLOPS
from isoflop.fit.planning.map_line import MapLine, map_line
from isoflop.fit.planning.own_minima import own_minima
from isoflop.record import Run

SAME = 1.02
"""A factor of C within which runs count as of one budget."""
FINISHED = 0.98
"""Share of the planned steps that a finished run has made."""
TAIL = 0.05
"""Share of a run's points, the last ones, whose mean loss is its final loss."""


@dataclass(frozen=True)
class OwnRuns:
    """What was learnt.

    Attributes:
        line: N_opt(C) by the prior and the runs; None: they show no minimum.
        source: what the line rests on, for people.
        points: (N with the head, D, final loss) of each run used.
        left_out: why runs were not used.
    """

    line: MapLine | None = None
    source: str = ""
    points: tuple[tuple[float, float, float], ...] = ()
    left_out: tuple[str, ...] = ()


def learn_from(
    runs: Iterable[Run], *, loss: str = "train", tokenizer: str | None = None, data: str | None = None
) -> OwnRuns:
    """The isoFLOP minima of finished runs and the line through them.

    Args:
        runs: as read from their records.
        loss: which of their losses.
        tokenizer: of the run that learns; a run known to have another one is left out.
        data: likewise.
    """
    points, left_out = [], []
    for run in runs:
        why = _unlike(run, tokenizer, data)
        point = None if why else _point(run, loss)
        if point is None:
            left_out.append(
                f"{run.name or run.run_id}: {why or 'it has no final loss, no tokens or no parameter count'}"
            )
        else:
            points.append(point)
    if not points:
        return OwnRuns(left_out=tuple(left_out))
    N, D, L = (np.array(column) for column in zip(*points, strict=True))
    minima = own_minima({"N": N, "D": D, "loss": L}).minima if len(points) >= 3 else ()
    if not minima:
        return OwnRuns(points=tuple(points), left_out=tuple(left_out))
    C, best, sd = (np.array([getattr(m, key) for m in minima], dtype=float) for key in ("C", "N", "standard_error"))
    line = map_line(C, best, sd)
    source = f"{_number(len(minima), 'isoFLOP minimum', 'isoFLOP minima')} of {len(points)} runs of your own"
    return OwnRuns(line, f"{source}, shrunk towards published sweeps", tuple(points), tuple(left_out))


def frontier_of(points: Sequence[tuple[float, float, float]]) -> list[tuple[float, float]]:
    """The lower envelope of finished runs: (C in FLOPs, loss), losses falling as C grows."""
    runs = sorted((TRAINING_FLOPS * N * D, loss) for N, D, loss in points)
    return [
        (C, loss)
        for C, loss in runs
        if not any(other < loss for at, other in runs if at <= SAME * C)  # budgets are met in whole steps
    ]


def _unlike(run: Run, tokenizer: str | None, data: str | None) -> str | None:
    if run.status != "completed":
        return "it is not finished"
    planned, last = run.planned.get("steps"), run.points[-1].step if run.points else 0
    if planned and last < FINISHED * planned:  # stopped early: its learning rate has not come down
        return f"it ended at step {last:,} of {planned:,} planned"
    for what, theirs, ours in (("tokenizer", run.tokenizer, tokenizer), ("data", run.data, data)):
        if theirs and ours and theirs != ours:
            return f"another {what} ({theirs}, not {ours})"
    return None


def _point(run: Run, loss: str) -> tuple[float, float, float] | None:
    N = run.parameters.get("non_embedding_with_head")
    seen = [p for p in run.points if p.losses.get(loss) is not None and p.data_tokens]
    if not N or not seen:
        return None
    last = seen[-max(round(TAIL * len(seen)), 1) :]
    losses = [value for point in last if (value := point.losses[loss]) is not None]
    return float(N), float(seen[-1].data_tokens or 0), float(np.mean(losses))


def _number(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"
