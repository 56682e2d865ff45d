"""The rows of isoFLOP profiles: checked, and sorted into their budgets."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from isoflop.fit.approaches.checks import Array, Rows, column


def columns(C: ArrayLike, N: ArrayLike, D: ArrayLike, L: ArrayLike) -> tuple[Array, Array, Array, Array]:
    """The four columns, checked (`isoflop_profiles`)."""
    meanings = {"C": "training FLOPs", "N": "parameters", "D": "tokens", "L": "losses in nats per token"}
    table = [column(name, v, meanings[name]) for name, v in zip("CNDL", (C, N, D, L), strict=True)]
    if len({len(v) for v in table}) > 1:
        lengths = ", ".join(f"{name} {len(v)}" for name, v in zip("CNDL", table, strict=True))
        raise ValueError(f"expected columns of one length, got {lengths}")
    C, N, D, L = table
    # 6 for dense models; Kaplan's N without the head of a tiny model reaches 100
    ratio = C / (N * D)
    wrong = np.flatnonzero((ratio < 0.5) | (ratio > 1000))
    if wrong.size:
        raise ValueError(
            f"row {wrong[0] + 1}, columns 'C', 'N', 'D': expected about 6 FLOPs per parameter and token, got "
            f"C/(N·D) = {ratio[wrong[0]]:.3g}: are N and D plain counts (not millions), and C in FLOPs?"
        )
    if np.ptp(np.log(N)) < 1e-6:
        raise ValueError(f"expected several sizes in column N, got {N[0]:.6g} in all {len(N)} rows")
    return C, N, D, L


def group(C: Array, budgets: ArrayLike | None, tolerance: float) -> tuple[list[tuple[float, Rows]], int]:
    """Rows of each budget, by budget, and how many belong to none (`isoflop_profiles`)."""
    if not tolerance > 1:
        raise ValueError(f"expected a tolerance above 1, got {tolerance!r}: it is a factor of C, 1.25 for ±25%")
    log_C, reach = np.log(C), np.log(tolerance)
    if budgets is not None:
        known = np.unique(column("budgets", budgets, "FLOPs"))
        distance = np.abs(log_C[:, None] - np.log(known))
        nearest = np.where(distance.min(axis=1) <= reach, distance.argmin(axis=1), -1)
        found = [(float(b), np.flatnonzero(nearest == i)) for i, b in enumerate(known)]
        return found, int((nearest < 0).sum())
    order = np.argsort(log_C)
    parts = np.split(order, np.flatnonzero(np.diff(log_C[order]) > reach) + 1)
    for rows in parts:
        if np.ptp(log_C[rows]) > 2 * reach:
            raise ValueError(
                f"expected budgets apart by more than a factor {tolerance:g}, got FLOPs that run on from "
                f"{C[rows].min():.3g} to {C[rows].max():.3g}: pass budgets=, or a smaller tolerance"
            )
    return [(float(np.exp(log_C[rows].mean())), rows) for rows in parts], 0
