"""Records with a planted law, made in memory, for the tests of figures: finished, live, broken, incomplete."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from isoflop.record import Point, Run

LAW = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
"""Besiroglu et al. 2024's."""
BATCH = 500_000
RATE = 6.5
"""FLOPs per parameter and token as the records measured them."""


def planted_run(
    name: str,
    N: float,
    D: float,
    points: int = 40,
    noise: float = 0.0,
    seed: int = 0,
    status: str = "completed",
    until: float = 1.0,
    **fields: Any,
) -> Run:
    """A run whose loss at every point is the law's at its tokens so far: as if cooled at each."""
    total = int(max(D / BATCH, 200))
    steps = np.unique(
        [*np.geomspace(10, 0.97 * total, points - 3).astype(int), *(total * part // 100 for part in (98, 99, 100))]
    )
    rng = np.random.default_rng(seed)
    plan = ([0, total // 50, total], [0.0, 3e-4, 3e-5])
    rows = []
    for step in steps[steps <= until * total]:
        tokens = round(D * step / total)
        loss = LAW["E"] + LAW["A"] / N ** LAW["alpha"] + LAW["B"] / tokens ** LAW["beta"]
        rows.append(
            Point(
                step=int(step),
                tokens=tokens,
                padding=0,
                flops=round(RATE * N * tokens),
                losses={"train": float(loss * np.exp(noise * rng.standard_normal()))},
                lr=float(np.interp(step, *plan)),
                batch_tokens=BATCH,
                interval_steps=10,
            )
        )
    sizes = {"total": round(1.2 * N), "non_embedding": round(0.9 * N), "non_embedding_with_head": round(N)}
    header: dict[str, Any] = {
        "run_id": name.replace(" ", "-"),
        "name": name,
        "created": f"2026-01-01T00:00:{seed % 60:02d}Z",
        "parameters": sizes,
        "optimizer": {"class": "AdamW"},
        "planned": {
            "steps": total,
            "learning_rates": {"steps": plan[0], "lr": plan[1]},
        },
        "status": status,
        "points": tuple(rows),
    }
    return Run(**{**header, **fields})


def sweep(
    budgets: tuple[float, ...] = (1e18, 1e19, 1e20, 1e21), sizes: int = 6, noise: float = 0.0, points: int = 40
) -> list[Run]:
    """isoFLOP profiles: at each budget sizes over a factor of 16 around the law's best."""
    runs = []
    for i, C in enumerate(budgets):
        best = optimal_size(C)
        for j, k in enumerate(np.geomspace(0.25, 4, sizes)):
            N = best * k
            runs.append(planted_run(f"{C:.0e} {k:.2f}", N, C / (6 * N), points, noise, seed=100 * i + j))
    return runs


def optimal_size(C: float) -> float:
    """N of the least loss at C = 6·N·D by the planted law (Hoffmann et al. 2022, eq. 4)."""
    alpha, beta = LAW["alpha"], LAW["beta"]
    return float((alpha * LAW["A"] / (beta * LAW["B"])) ** (1 / (alpha + beta)) * (C / 6) ** (beta / (alpha + beta)))


def with_nan_losses(run: Run, last: int = 3, spike_at: int | None = None) -> Run:
    """Its last losses are no numbers; one before is, where asked for."""
    points = list(run.points)
    for i in (*range(len(points) - last, len(points)), *(() if spike_at is None else (spike_at,))):
        points[i] = replace(points[i], losses={"train": float("nan")})
    return replace(run, points=tuple(points))


def without(run: Run, *names: str) -> Run:
    """Without a count: "flops", "tokens", or "N"."""
    gone = {name: None for name in names if name != "N"}
    points = tuple(replace(point, **gone) for point in run.points)
    return replace(run, points=points, parameters={} if "N" in names else run.parameters)
