"""Finished runs with a planted law L = E + A/N^alpha + B/D^beta: records of GPTs as files, and tables."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

E, A, B, ALPHA, BETA = 1.8, 400.0, 1500.0, 0.34, 0.36
VOCABULARY = 50_257
BUDGETS, AROUND = (1e17, 4e17, 1.6e18), (0.35, 0.6, 1.0, 1.7, 2.8)
"""FLOPs of the isoFLOP profiles, and their sizes over the best one."""


def loss_of(n: float, d: float) -> float:
    """The law; N counts the output head."""
    return E + A / n**ALPHA + B / d**BETA


def best_size(flops: float) -> float:
    """N of the least loss at C = 6·N·D (Hoffmann et al. 2022, eq. 4)."""
    g = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return g * (flops / 6) ** (BETA / (ALPHA + BETA))


def grid(noise: float, seed: int) -> Iterator[tuple[str, float, float, float, float]]:
    """Name, N, D, loss and budget of each run of the profiles."""
    generator = random.Random(seed)
    for flops in BUDGETS:
        for around in AROUND:
            n = best_size(flops) * around
            d = flops / 6 / n
            yield f"{flops:g}-{around:g}", n, d, loss_of(n, d) * math.exp(noise * generator.gauss(0, 1)), flops


def gpts(folder: Path) -> Path:
    """A folder of finished GPTs (layers = width / 64): of the small ones most parameters are the output head."""
    folder.mkdir(parents=True)
    for name, n, d, loss, flops in grid(0.001, 0):
        head = VOCABULARY * width_of(n)
        parameters = {"total": n, "trainable": n, "non_embedding": n - head, "non_embedding_with_head": n}
        whole = {key: int(value) for key, value in parameters.items()}
        write_record(folder, name, whole, [(i / 20, loss) for i in range(1, 21)], d, flops)
    return folder


def width_of(n: float) -> float:
    """The width w at which 12·(w/64)·w² + 50,257·w = N."""
    low, high = 1.0, 1e5
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if 12 / 64 * middle**3 + VOCABULARY * middle < n else (low, middle)
    return low


def table(path: Path) -> Path:
    """A CSV of N, D and loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(round(n), round(d), round(loss, 5)) for _, n, d, loss, _ in grid(0.002, 1)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("N", "D", "loss"), *rows])
    return path


def write_record(
    folder: Path,
    name: str,
    parameters: Mapping[str, int],
    losses: Sequence[tuple[float, float]],
    tokens: float,
    flops: float,
    steps: int = 1000,
    status: str = "completed",
    **header: Any,
) -> Path:
    """A record in the documented format.

    Args:
        folder: where it goes.
        name: of the run.
        parameters: N by convention.
        losses: part of the run done, and the training loss then.
        tokens: D at its planned end.
        flops: C there.
        steps: planned.
        status: "running" leaves it without an end.
        **header: further fields.
    """
    first = {"isoflop": 1, "run_id": name, "name": name, "created": "2026-01-01T00:00:00+00:00", "framework": "loop"}
    lines: list[dict[str, Any]] = [
        {"event": "header", **first, "parameters": parameters, "planned": {"steps": steps}, "counting": {}, **header}
    ]
    for part, loss in losses:
        step = round(part * steps)
        counts = {"tokens": int(tokens * part), "padding": 0, "loss_tokens": int(tokens * part)}
        times = {"time": 1.7e9 + step, "wall_time": float(step), "training_time": float(step)}
        point = {"event": "point", "attempt": 1, "step": step, **counts, "flops": int(flops * part)}
        lines.append({**point, "losses": {"train": loss}, "interval_steps": round(steps / len(losses)), **times})
    if status != "running":
        lines.append({"event": "end", "time": 1.7e9 + steps, "step": steps, "status": status})
    path = folder / f"isoflop-{name}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
