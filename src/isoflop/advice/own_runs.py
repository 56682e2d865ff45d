"""What the user's earlier runs say of the best size and of the least loss at a budget: by `isoflop.fit.posterior`.

Whether a transformer's shape lies outside what Kaplan et al. 2020 tried and found to matter little.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from isoflop.fit.posterior import Posterior, posterior_of_runs
from isoflop.fit.runs import final_loss, unfinished
from isoflop.laws.forms import compute_of
from isoflop.record.run import DEFAULT_N, Run
from isoflop.record.task import Task, task_of

SAME = 1.02
"""A factor of C within which runs count as of one budget."""
FEWEST = 8
"""Own runs whose law names a least loss."""
BEYOND = 30.0
"""A factor of compute over the largest own run to which the least loss is told."""
LEVEL, WIDEST = 0.8, 0.025
"""An 80% half-width above this fraction of the loss is no frontier, as it is no forecast."""


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
        posterior: of the runs' law; None: no runs.
        points: the runs used.
        left_out: why runs were not used.
    """

    posterior: Posterior | None = None
    points: tuple[OwnRun, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def line(self) -> Posterior | None:
        """N_opt(C) by the runs and the prior; None: the runs say little of it."""
        return self.posterior if self.posterior is not None and self.posterior.telling else None

    @property
    def flops(self) -> tuple[float, float] | None:
        """Of the smallest and the largest run; None: no runs."""
        spent = [point.C for point in self.points]
        return (min(spent), max(spent)) if spent else None

    @property
    def source(self) -> str:
        """What the best size is based on, for people; "": no own runs."""
        n = f"{len(self.points)} run{'s' * (len(self.points) > 1)} of your own"
        if self.line is not None:
            return f"{n}, shrunk towards published sweeps"
        return (
            f"published sweeps: about 20 tokens per parameter; {n} say little of the best size" if self.points else ""
        )

    def least_loss(self, N: float, D: float) -> float | None:
        """Nats per token of the best size and tokens at the compute of N parameters on D tokens.

        None: too few runs, too far from them, or not sure enough.
        """
        if self.posterior is None or len(self.points) < FEWEST:
            return None
        C = self.posterior.flops(N, D)
        if not min(point.C for point in self.points) <= C <= BEYOND * self.posterior.largest:
            return None
        drawn = np.exp(self.posterior.least(self.posterior.line(C)))
        low, middle, high = np.quantile(drawn, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
        return float(middle) if (high - low) / 2 <= WIDEST * middle else None


def learn_from(
    runs: Iterable[Run],
    *,
    loss: str = "train",
    tokenizer: str | None = None,
    data: str | None = None,
    task: Task | None = None,
    itself: str | None = None,
) -> OwnRuns:
    """The law of finished runs.

    Args:
        runs: as read from their records.
        loss: which of their losses.
        tokenizer: of the run that learns; a run known to have another one is left out.
        data: likewise.
        task: likewise; None: not compared.
        itself: run_id of the run that learns, which is none of them.
    """
    points, left_out = [], []
    for run in runs:
        if run.run_id == itself:
            continue
        why = _unlike(run, tokenizer, data, task)
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
    return OwnRuns(posterior_of_runs(N, D, C, L), tuple(points), tuple(left_out))


def frontier_of(points: Sequence[OwnRun]) -> list[tuple[float, float]]:
    """The lower envelope of finished runs: (C in FLOPs, loss), losses falling as C grows."""
    runs = sorted((run.C, run.loss) for run in points)
    return [
        (C, loss)
        for C, loss in runs
        if not any(other < loss for at, other in runs if at <= SAME * C)  # budgets are met in whole steps
    ]


def _unlike(run: Run, tokenizer: str | None, data: str | None, task: Task | None) -> str | None:
    if why := unfinished(run, run.points[-1].step if run.points else 0):
        return why
    if task is not None and (why := task.differs(task_of(run.task, run.parameters, run.model))):
        return why
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


ASPECT_RATIO = (768 / 207, 4288 / 6)
"""d_model/n_layer: the shapes (n_layer, d_model) = (207, 768) and (6, 4288) between which section 3.2 names its largest
models; (6, 4288) is within 3% of the loss of (48, 1600), and a factor of 40 has a slight effect (caption of figure 5).
Doubt: the text states no range. The figure marks a narrower one, about 10 to 300, as "similar performance"."""

FEED_FORWARD_RATIO = (0.5, 10.0)
"""d_ff/d_model. Doubt: read off figure 5 (50M parameters) at second hand: below 2% more loss from 0.5 to 8, about 5% at
20, 8% at 40; the text states no range. Their feed-forward layers have no gate."""

HEAD_DIMENSION = (16.0, 256.0)
"""d_model/n_head. Doubt: the ends of figure 5's runs (25M parameters, less than 2% more loss), read at second hand."""

LAYERS = 2
"""Fewer deviate from the common trend: caption of figure 6."""


def shape_warning(layers: int, width: int, heads: int, feed_forward: int | None = None) -> tuple[str, ...]:
    """Why a shape's loss may differ from that of others of its non-embedding size; empty where it should not.

    Inside these ranges the loss varies by a few percent at most; 1% is worth 22% of compute (Kaplan et al. 2020,
    section 3.1 and figure 5). Outside nothing is known from that paper: a warning, no verdict.

    Args:
        layers: n_layer, transformer blocks.
        width: d_model, of the residual stream.
        heads: n_head, query heads of an attention layer.
        feed_forward: d_ff, inner width of the feed-forward layer; None: not looked at.

    Raises:
        ValueError: a number that is not positive.

    >>> shape_warning(48, 1600, 25, 6400)
    ()
    >>> shape_warning(1, 512, 8)
    ('1 layer: fewer than 2 deviate from the trend of deeper models (Kaplan et al. 2020, figure 6)',)
    """
    for name, value in (("layers", layers), ("width", width), ("heads", heads), ("feed_forward", feed_forward)):
        if value is not None and not value >= 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}: pass the model's own number")
    ratios = [
        ("aspect ratio d_model/n_layer", width / layers, ASPECT_RATIO),
        ("attention head dimension d_model/n_head", width / heads, HEAD_DIMENSION),
    ]
    if feed_forward is not None:
        ratios.append(("feed-forward ratio d_ff/d_model", feed_forward / width, FEED_FORWARD_RATIO))
    reasons = [
        f"{name} = {value:.3g}: Kaplan et al. 2020 found the shape to matter little from {low:.3g} to {high:.3g}"
        for name, value, (low, high) in ratios
        if not low <= value <= high
    ]
    if layers < LAYERS:
        reasons.append(
            f"{layers} layer: fewer than {LAYERS} deviate from the trend of deeper models "
            f"(Kaplan et al. 2020, figure 6)"
        )
    return tuple(reasons)
