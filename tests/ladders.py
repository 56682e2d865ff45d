"""Records of a ladder whose runs follow a planted law: what a trainer under isoflop would have written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from isoflop.ladder import LadderPlan, PlannedRun
from isoflop.record import Point, RecordLog

LAW = {"E": 1.7, "A": 410.0, "B": 1100.0, "alpha": 0.34, "beta": 0.33}


def planted_loss(N: float, D: float) -> float:
    """Of `LAW`, nats per token."""
    return LAW["E"] + LAW["A"] / N ** LAW["alpha"] + LAW["B"] / D ** LAW["beta"]


def record_run(
    folder: Path,
    run: PlannedRun,
    noise: float = 0.0,
    share: float = 1.0,
    points: int = 24,
    law: Callable[[float, float], float] = planted_loss,
) -> None:
    """Write the record of a planned run that went to `share` of its steps; its losses are the law's on the way.

    `noise`: of the final loss's logarithm.
    """
    header = {"name": run.name, "parameters": dict(run.parameters), "planned": {"steps": run.steps}}
    log = RecordLog.create(folder, run.name, header)
    last = round(share * run.steps)
    for step in np.unique(np.geomspace(max(1, last // 50), last, points).astype(int)):
        tokens = int(step) * run.batch_tokens
        loss = float(law(run.parameters["non_embedding_with_head"], tokens) * np.exp(noise))
        losses = {"train": loss, "eval/val": loss} if step == last else {"train": loss}
        flops = round(run.flops * int(step) / run.steps)
        log.point(Point(step=int(step), tokens=tokens, padding=0, flops=flops, losses=losses))
    log.end(last, "completed" if share == 1.0 else "interrupted")
    log.close()


def record_ladder(
    folder: Path,
    plan: LadderPlan,
    noise: float = 0.002,
    seed: int = 0,
    law: Callable[[float, float], float] = planted_loss,
) -> None:
    """All runs of a plan."""
    rng = np.random.default_rng(seed)
    for run in plan.runs:
        record_run(folder, run, float(noise * rng.normal()), law=law)
