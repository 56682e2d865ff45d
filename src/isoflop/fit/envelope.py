"""Approach 1 of Hoffmann et al. 2022 (section 3.1): the envelope of training curves.

At each of many budgets the run that has the least loss when it has used that many FLOPs; then N_opt ∝ C^a and
D_opt ∝ C^b by lines in logarithms. Runs are read where they stand: under a learning-rate schedule a run that isn't at
its end is worse than one planned to end there, so give curves of several lengths, or of a constant rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.arrays import Array
from isoflop.fit.approaches import Approach, Minimum, column, from_draws
from isoflop.laws.forms import Convention
from isoflop.laws.quantities import check_level as level_of

BUDGETS = 1500
"""Hoffmann et al. 2022, section 3.1."""
DRAWS = 400
FEWEST = 3
"""Sizes that must lead in turn: through two any line goes, and resampled runs repeat it."""
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Curve:
    """One run's training curve.

    Attributes:
        N: parameters.
        flops: training FLOPs so far, increasing [points].
        loss: nats per token [points].
        tokens: tokens so far [points]; None: flops/(6N).
    """

    N: float
    flops: ArrayLike
    loss: ArrayLike
    tokens: ArrayLike | None = None


def loss_envelope(
    curves: Sequence[Curve],
    *,
    points: int = BUDGETS,
    margin: float = 2.0,
    level: float = 0.9,
    seed: int = 0,
    convention: Convention = "unknown",
) -> Approach:
    """Approach 1: the exponents of the compute-optimal size and tokens from training curves.

    A budget whose best run is the largest or the smallest that reaches it is left out: the best size may lie beyond.
    So is one whose optimum, by the line itself, comes within `margin` of the smallest or largest size of all. Noise of
    a few thousandths in ln L moves the best run by whole sizes, and cut off at the ends this flattens the line: with 25
    planted runs over a factor of 1000 in N and noise of .003, a = .476 for .5 where the runs' edges alone count, .494
    with a margin of 1, .500 with 2.
    Intervals come from resampling the runs: neighbouring budgets share a run, so their scatter says nothing.

    Args:
        curves: training curves, at least three sizes. Average noisy losses over bins before: a minimum over many noisy
            curves lies too low.
        points: budgets, log-spaced from the least to the most FLOPs of any curve.
        margin: a factor of N, at least 1.
        level: of the intervals.
        seed: of the resampling.
        convention: which parameters N counts.

    Returns:
        The exponents and prefactors, `minima` at the budgets that are kept; no intervals where too few of the resampled
        sets of runs have an envelope.

    Raises:
        ValueError: a curve with values that aren't positive or FLOPs that don't increase, one size only; or no opinion:
            fewer than three sizes lead in turn, or the best size or its tokens fall as compute grows.
    """
    level, warnings = level_of(level), []
    N = column("N", [c.N for c in curves], "parameters", " (a row for each curve)")
    if len(np.unique(N)) < 2:
        raise ValueError(f"expected curves of several sizes in column N, got {N[0]:.6g} in all {len(N)}")
    if points < 2:
        raise ValueError(f"expected at least two budgets, got points={points!r}")
    if not margin >= 1:
        raise ValueError(f"expected a margin of at least 1, got {margin!r}: it is a factor of N")
    logs = [_logs(i, c) for i, c in enumerate(curves)]
    at = np.linspace(min(f[0] for f, _, _ in logs), max(f[-1] for f, _, _ in logs), points)
    # infinite where a curve doesn't reach
    losses = np.array([np.interp(at, f, y, left=np.inf, right=np.inf) for f, y, _ in logs])
    tokens = np.array([np.interp(at, f, t) for f, _, t in logs])
    best, inside = _envelope(np.log(N), losses)
    edges = _edges(at, np.log(N), losses)
    sizes = len(np.unique(N[best[inside]]))
    if sizes < FEWEST:
        raise ValueError(_too_few(sizes, edges))
    warnings += edges
    line_N, line_D, kept = _lines(at, np.log(N), tokens, best, inside, margin)
    ends = int((inside & ~kept).sum())
    sizes = len(np.unique(N[best[kept]]))
    if ends:
        warnings.append(
            f"{ends} of {points} budgets are left out: their optimum lies within a factor {margin:g} of the smallest "
            "or the largest size"
        )
    if sizes < FEWEST:
        raise ValueError(_too_few(sizes, warnings))
    if not 0 < line_N[1] < 1:
        raise ValueError(
            f"expected a best size that grows with compute, and slower than it, got a = {line_N[1]:.2f} from {sizes} "
            "sizes that lead in turn: add sizes, or longer curves"
        )
    columns = np.arange(points)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(DRAWS):
        runs = np.unique(rng.integers(len(N), size=len(N)))
        drawn, within = _envelope(np.log(N[runs]), losses[runs])
        if len(np.unique(N[runs][drawn[within]])) >= 2:
            again = _lines(at, np.log(N[runs]), tokens[runs], drawn, within, margin)
            draws.append(np.concatenate(again[:2]))
    if len(draws) < DRAWS / 2:
        warnings.append(f"no intervals: {DRAWS - len(draws)} of {DRAWS} resampled sets of runs have no envelope")
    compared = np.isfinite(losses).sum(axis=0)
    minima = tuple(
        Minimum(float(C), float(n), float(d), float(loss), int(k))
        for C, n, d, loss, k in zip(
            np.exp(at[kept]),
            N[best[kept]],
            np.exp(tokens[best, columns][kept]),
            np.exp(losses[best, columns][kept]),
            compared[kept],
            strict=True,
        )
    )
    return from_draws(
        "approach 1 (envelope)",
        line_N,
        line_D,
        np.array(draws) if len(draws) >= DRAWS / 2 else None,
        level,
        minima=minima,
        warnings=tuple(warnings),
        n=len(N),
        convention=convention,
        number=1,
    )


def _too_few(sizes: int, left_out: list[str]) -> str:
    return (
        f"{sizes} sizes between the smallest and the largest lead in turn, {FEWEST} are needed: add sizes, or "
        f"longer curves ({'; '.join(left_out)})"
    )


def _logs(i: int, curve: Curve) -> tuple[Array, Array, Array]:
    """Logarithms: ln FLOPs, ln loss and ln tokens of a curve [points], checked."""
    where = f" of curve {i + 1}"
    flops, loss = column("flops", curve.flops, "training FLOPs", where), column("loss", curve.loss, "losses", where)
    tokens = flops / (6 * curve.N) if curve.tokens is None else column("tokens", curve.tokens, "tokens", where)
    if not len(flops) == len(loss) == len(tokens):
        raise ValueError(f"expected columns of one length{where}, got {len(flops)}, {len(loss)} and {len(tokens)}")
    back = np.flatnonzero(np.diff(flops) <= 0)
    if back.size:
        raise ValueError(
            f"row {back[0] + 2}, column 'flops'{where}: expected more FLOPs than the row before, got "
            f"{flops[back[0] + 1]:g}"
        )
    return np.log(flops), np.log(loss), np.log(tokens)


def _envelope(log_N: Array, losses: Array) -> tuple[NDArray[np.intp], Mask]:
    """Best run of each budget, and whether runs both smaller and larger than it reach that budget."""
    best = losses.argmin(axis=0)
    smallest, largest = _range(log_N, losses)
    return best, (log_N[best] > smallest) & (log_N[best] < largest)


def _range(log_N: Array, losses: Array) -> tuple[Array, Array]:
    """Smallest and largest size that reaches each budget; ∞ and −∞ where none does."""
    reached = np.isfinite(losses)
    smallest = np.where(reached, log_N[:, None], np.inf).min(axis=0)
    return smallest, np.where(reached, log_N[:, None], -np.inf).max(axis=0)


def _edges(at: Array, log_N: Array, losses: Array) -> list[str]:
    """Which budgets are left out, in words."""
    smallest, largest = _range(log_N, losses)
    size = log_N[losses.argmin(axis=0)]
    alone = smallest >= largest
    told = []
    for why, where in (
        ("fewer than two sizes reach them", alone),
        ("the smallest size is the best", ~alone & (size <= smallest)),
        ("the largest size is the best", ~alone & (size >= largest)),
    ):
        C = np.exp(at[where])
        if C.size:
            told.append(f"{C.size / len(at):.0%} of the budgets, {C[0]:.3g} to {C[-1]:.3g} FLOPs, left out: {why}")
    return told


def _lines(
    at: Array, log_N: Array, tokens: Array, best: NDArray[np.intp], inside: Mask, margin: float
) -> tuple[Array, Array, Mask]:
    """(ln prefactor, exponent) of N and of D, and the budgets that they rest on: inside and away from the ends."""
    kept = inside
    for _ in range(3):
        columns = np.flatnonzero(kept)
        X = np.stack([np.ones(len(columns)), at[columns]], axis=1)
        y = np.stack([log_N[best[columns]], tokens[best[columns], columns]], axis=1)
        N, D = np.linalg.lstsq(X, y, rcond=None)[0].T
        size = N[0] + N[1] * at
        central = inside & (size > log_N.min() + np.log(margin)) & (size < log_N.max() - np.log(margin))
        if len(np.unique(log_N[best[central]])) < 2 or (central == kept).all():
            break
        kept = central
    return N, D, kept


BINS = 60
"""Of a curve, even in ln C; losses are averaged in each. A minimum over many noisy curves lies too low: of 100 planted
runs with 1e5 losses each and noise of .01, a = .552 for .513 by a smoother of two points, .514 [.510, .517] by bins."""
SHORTEST = 8
"""Points of a curve that is looked at."""


def envelope_of(runs: Iterable[tuple[float, Array, Array, Array]], level: float, convention: Convention) -> Approach:
    """Approach 1 with intervals.

    Args:
        runs: parameters; FLOPs, losses and tokens [points] of each, as recorded: NaN where unknown.
        level: of the intervals.
        convention: which parameters these are.

    Raises:
        ValueError: no envelope, or one that nothing bounds: why.
    """
    curves = []
    for N, C, loss, tokens in runs:
        good = np.isfinite(C) & (C > 0) & np.isfinite(loss) & (loss > 0) & np.isfinite(tokens) & (tokens > 0)
        rises = np.flatnonzero(good)[np.diff(C[good], prepend=0.0) > 0]
        if len(rises) >= SHORTEST:
            curves.append(Curve(N, *averaged(C[rises], loss[rises], tokens[rises])))
    if not curves:
        raise ValueError(f"curves of several sizes, each with {SHORTEST} points of this loss, are needed")
    found = loss_envelope(curves, level=level, convention=convention)
    if not found.intervals:  # steps between two or three sizes
        raise ValueError("; ".join(found.warnings[-2:]))
    return found


def averaged(C: Array, loss: Array, tokens: Array, bins: int = BINS) -> tuple[Array, Array, Array]:
    """Means over bins even in ln C: of FLOPs and tokens geometric ones."""
    x = np.log(C)
    place = np.minimum(((x - x[0]) / (x[-1] - x[0]) * bins).astype(int), bins - 1)
    number = np.bincount(place, minlength=bins)
    some = number > 0

    def mean(values: Array) -> Array:
        return np.asarray(np.bincount(place, values, minlength=bins)[some] / number[some])

    return np.exp(mean(x)), mean(loss), np.exp(mean(np.log(tokens)))
