"""The frontier of the user's finished runs as a TensorBoard run of its own, drawn under every run on the same axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from isoflop.guard import declare
from isoflop.show.axes import ComputeAxes

FRONTIER = declare("drawing the frontier", "TensorBoard does not show the frontier of earlier runs")
NAME = "_frontier"
"""Folder beside the run's event file; TensorBoard shows it as a run."""
BETWEEN = 20
"""Points drawn between two runs, straight in ln C."""


def draw_frontier(folder: Path, frontier: Sequence[tuple[float, float]]) -> None:
    """Write the frontier's event file.

    Args:
        folder: of the run; the frontier goes into its `_frontier`.
        frontier: (FLOPs, loss in nats per token) by FLOPs, at least two.
    """
    from torch.utils.tensorboard import SummaryWriter

    target = folder / NAME
    if len(frontier) < 2 or target.exists():
        return
    writer, axes = SummaryWriter(str(target)), ComputeAxes()
    for (C0, L0), (C1, L1) in pairwise(frontier):
        for i in range(BETWEEN + 1):
            part = i / BETWEEN
            C = math.exp(math.log(C0) + part * math.log(C1 / C0))
            for point in axes.points(int(C), L0 + part * (L1 - L0)):
                writer.add_scalar(point.tag, point.value, point.step)
    writer.close()
