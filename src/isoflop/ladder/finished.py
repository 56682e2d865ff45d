"""Finished runs of a ladder from their records; of the others, why they are left out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePath

from isoflop.fit.runs import final_loss, unfinished
from isoflop.ladder.plan import LadderPlan
from isoflop.laws.forms import compute_of
from isoflop.record.paths import check_location, location_of
from isoflop.record.reader import read_runs
from isoflop.record.run import DEFAULT_N, Point, Run


@dataclass(frozen=True)
class FinishedRun:
    """A run that counts: `N` as the ladder counts it, `D` tokens, `flops` of its training, final `loss` in nats.

    `curve`: FLOPs, tokens and training loss on the way; None: not recorded.
    """

    name: str
    N: float
    D: float
    flops: float
    loss: float
    curve: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Finished:
    """Runs that count, the name of their loss, why others don't, and planned runs of which nothing was found."""

    runs: tuple[FinishedRun, ...]
    loss_name: str
    left_out: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def read_finished(
    paths: Iterable[str | os.PathLike[str]],
    *,
    plan: LadderPlan | None = None,
    loss: str | None = None,
    convention: str = DEFAULT_N,
) -> Finished:
    """Read records.

    Args:
        paths: records, folders with some, or URLs of either.
        plan: whose runs they are; those that it does not name are left out.
        loss: `train` or eval/<name>; default: an evaluation that all finished runs have, else the training loss.
        convention: which parameters N counts.

    Raises:
        ValueError: a path does not exist.
        RecordError: a URL needs a package that is not installed, or is of no known kind.
    """
    sources = [location_of(path) for path in paths]
    for source in sources:
        check_location(source)
        if not isinstance(source, str) and not source.exists():
            raise ValueError(f"expected a record or a folder with records, got {source}, which does not exist")
    left_out: list[str] = []
    candidates: list[tuple[str, Run]] = []
    seen: set[str] = set()
    known = None if plan is None else {run.name for run in plan.runs}
    for run in read_runs(*sources, on_problem=left_out.append):
        name = _name(run, known)
        why = None if known is None or name in known else "the plan does not name it"
        why = why or unfinished(run, run.points[-1].step if run.points else 0) or None
        if why is None and known is not None and name in seen:
            why = "another record of it is finished too"
        if why is None:
            seen.add(name)
            candidates.append((name, run))
        else:
            left_out.append(f"{name}: {why}")
    chosen = loss or _common([run for _, run in candidates])
    runs = []
    for name, run in candidates:
        found = _final(name, run, chosen, convention)
        if isinstance(found, str):
            left_out.append(f"{name}: {found}")
            seen.discard(name)
        else:
            runs.append(found)
    missing = () if plan is None else tuple(run.name for run in plan.runs if run.name not in seen)
    runs.sort(key=lambda run: (run.flops, run.N))
    return Finished(tuple(runs), chosen, tuple(left_out), missing)


def _name(run: Run, known: set[str] | None) -> str:
    """The planned name that the record carries, as its own or as its folder's; else its own."""
    places = PurePath(run.path).parts[-4:-1] if run.path else ()
    if known is not None:
        for name in (run.name, *reversed(places)):
            if name in known:
                return name
    return run.name or run.run_id


def _common(runs: list[Run]) -> str:
    names = [set(name for point in run.points for name in _losses(point)) for run in runs]
    shared = sorted(set.intersection(*names)) if names else []
    return next((name for name in shared if name.startswith("eval/")), "train")


def _losses(point: Point) -> dict[str, float]:
    return {name: value for name, value in point.losses.items() if value is not None}


def _final(name: str, run: Run, loss: str, convention: str) -> FinishedRun | str:
    N = run.parameters.get(convention)
    if not N:
        return f"its record counts no {convention} parameters"
    diverged = run.points[-1].nonfinite.get(loss) if run.points else None
    if diverged:
        return f"its loss ended as {diverged}"
    points = [point for point in run.points if loss in _losses(point) and point.data_tokens]
    value = final_loss(run.points, loss)
    if value is None or not points:
        there = ", ".join(sorted({each for point in run.points for each in _losses(point)})) or "none"
        return f"it has no loss {loss!r} with tokens; its losses: {there}"
    end = run.points[-1]
    D, flops = end.data_tokens or points[-1].data_tokens or 0, end.flops or points[-1].flops
    if not (math.isfinite(value) and value > 0):
        return f"expected a positive loss, got {value!r}"
    return FinishedRun(name, float(N), float(D), float(compute_of(N, D, flops or math.nan)), value, _curve(run))


def _curve(run: Run) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]] | None:
    rows: list[tuple[float, float, float]] = []
    for point in run.points:
        value = _losses(point).get("train")
        if value is None or not (value > 0 and point.flops and point.data_tokens):
            continue
        if not rows or point.flops > rows[-1][0]:
            rows.append((float(point.flops), float(point.data_tokens), value))
    if len(rows) < 2:
        return None
    flops, tokens, losses = zip(*rows, strict=True)
    return flops, tokens, losses
