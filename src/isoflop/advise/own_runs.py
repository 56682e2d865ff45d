"""What the user's earlier runs say of the best size: their isoFLOP minima join the prior's line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from isoflop.advise.own_frontier import OwnFrontier, own_frontier
from isoflop.fit.ends import final_loss, unfinished
from isoflop.fit.forecast.records import domain_of
from isoflop.fit.laws import compute_of
from isoflop.fit.planning.map_line import MapLine, map_line
from isoflop.fit.planning.own_minima import own_minima
from isoflop.record import Run
from isoflop.record.conventions import DEFAULT_N

SAME = 1.02
"""A factor of C within which runs count as of one budget."""
KINDS = {"moe": "a mixture of experts", "finetuning": "fine-tuning"}


class OwnRun(NamedTuple):
    """A finished run: parameters with the head, tokens, final loss in nats per token, FLOPs as measured or 6·N·D."""

    N: float
    D: float
    loss: float
    C: float


@dataclass(frozen=True)
class OwnRuns:
    """What was learnt.

    Attributes:
        line: N_opt(C) by the prior and the runs; None: they show no minimum.
        source: what the line rests on, for people.
        points: the runs used.
        frontier: the least loss by their law; None: they do not determine one.
        left_out: why runs were not used.
    """

    line: MapLine | None = None
    source: str = ""
    points: tuple[OwnRun, ...] = ()
    frontier: OwnFrontier | None = None
    left_out: tuple[str, ...] = ()


def learn_from(
    runs: Iterable[Run],
    *,
    loss: str = "train",
    tokenizer: str | None = None,
    data: str | None = None,
    domain: Mapping[str, bool] | None = None,
    itself: str | None = None,
) -> OwnRuns:
    """The isoFLOP minima of finished runs and the line through them.

    Args:
        runs: as read from their records.
        loss: which of their losses.
        tokenizer: of the run that learns; a run known to have another one is left out.
        data: likewise.
        domain: likewise whether it has experts or is fine-tuning, as `domain_of` says; None: not compared.
        itself: run_id of the run that learns, which is none of them.
    """
    points, left_out = [], []
    for run in runs:
        if run.run_id == itself:
            continue
        why = _unlike(run, tokenizer, data, domain)
        point = None if why else _point(run, loss)
        if point is None:
            left_out.append(
                f"{run.name or run.run_id}: {why or 'it has no final loss, no tokens or no parameter count'}"
            )
        else:
            points.append(point)
    if not points:
        return OwnRuns(left_out=tuple(left_out))
    N, D, L, C = np.array(points, dtype=float).T
    frontier = own_frontier(N, D, L, C)
    found = own_minima({"N": N, "D": D, "loss": L, "C": C}) if len(points) >= 3 else None
    if found is None or not found.minima:
        return OwnRuns(points=tuple(points), frontier=frontier, left_out=tuple(left_out))
    budgets, best, sd = (
        np.array([getattr(m, key) for m in found.minima], dtype=float) for key in ("C", "N", "standard_error")
    )
    line = map_line(budgets, best, sd, found.flops_per_param_token)
    source = f"{_number(len(found.minima), 'isoFLOP minimum', 'isoFLOP minima')} of {len(points)} runs of your own"
    return OwnRuns(line, f"{source}, shrunk towards published sweeps", tuple(points), frontier, tuple(left_out))


def frontier_of(points: Sequence[OwnRun]) -> list[tuple[float, float]]:
    """The lower envelope of finished runs: (C in FLOPs, loss), losses falling as C grows."""
    runs = sorted((run.C, run.loss) for run in points)
    return [
        (C, loss)
        for C, loss in runs
        if not any(other < loss for at, other in runs if at <= SAME * C)  # budgets are met in whole steps
    ]


def _unlike(run: Run, tokenizer: str | None, data: str | None, domain: Mapping[str, bool] | None) -> str | None:
    if why := unfinished(run, run.points[-1].step if run.points else 0):
        return why
    if domain is not None:
        theirs = domain_of(run.parameters, run.model)
        for kind, text in KINDS.items():
            if theirs.get(kind, False) != domain.get(kind, False):
                return f"{text}, and this one not" if theirs.get(kind) else f"not {text}, and this one is"
    for what, its, ours in (("tokenizer", run.tokenizer, tokenizer), ("data", run.data, data)):
        if its and ours and its != ours:
            return f"another {what} ({its}, not {ours})"
    return None


def _point(run: Run, loss: str) -> OwnRun | None:
    N = run.parameters.get(DEFAULT_N)
    seen = [p for p in run.points if p.losses.get(loss) is not None and p.data_tokens]
    final = final_loss(run.points, loss)
    if not N or final is None:
        return None
    D = float(seen[-1].data_tokens or 0)
    return OwnRun(float(N), D, final, float(compute_of(N, D, seen[-1].flops or np.nan)))


def _number(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"
