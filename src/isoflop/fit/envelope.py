"""Approach 1 of Hoffmann et al. 2022 (section 3.1): the envelope of training curves.

At each of many budgets the run that has the least loss when it has used that many FLOPs; then N_opt ∝ C^a and
D_opt ∝ C^b by lines in logarithms. Runs are read where they stand: under a learning-rate schedule a run that isn't at
its end is worse than one planned to end there, so give curves of several lengths, or of a constant rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array
from isoflop.fit.optimal_line import Approach, Minimum, drawn_line
from isoflop.laws.forms import Convention
from isoflop.laws.quantities import check_level

BUDGETS = 1500
"""Hoffmann et al. 2022, section 3.1."""
DRAWS = 400
FEWEST = 3
"""Sizes that must lead in turn: through two any line goes, and resampled runs repeat it."""
BINS = 60
"""Of a curve, even in ln C; losses are averaged in each. A minimum over many noisy curves lies too low: of 100 planted
runs with 1e5 losses each and noise of .01, a = .552 for .513 by a smoother of two points, .514 [.510, .517] by bins."""
SHORTEST = 8
"""Points of a curve that is looked at."""
OPEN = 0.15
"""Standard error of a from which on an envelope says nothing: a is known to .09 before any run."""
MARGIN = 2.0
"""A factor of N. A budget whose optimum, by the line itself, comes within it of the smallest or largest size is left
out: noise of a few thousandths in ln L moves the best run by whole sizes, and cut off at the ends this flattens the
line. With 25 planted runs over a factor of 1000 in N and noise of .003, a = .476 for .5 where the runs' edges alone
count, .494 with a margin of 1, .500 with 2."""
Mask = NDArray[np.bool_]


def loss_envelope(
    runs: Iterable[tuple[float, Array, Array, Array]], *, level: float = 0.9, convention: Convention = "unknown"
) -> Approach:
    """Approach 1: the exponents of the compute-optimal size and tokens from training curves.

    A budget whose best run is the largest or the smallest that reaches it is left out: the best size may lie beyond.
    Intervals come from resampling the runs: neighbouring budgets share a run, so their scatter says nothing.

    Args:
        runs: parameters; training FLOPs, losses in nats per token and tokens [points] of each. Points without a
            positive number in all three, or with no more FLOPs than before, do not count.
        level: of the intervals.
        convention: which parameters these are.

    Raises:
        ValueError: no opinion: fewer than three sizes lead in turn, the best size falls as compute grows, or nothing
            bounds the exponent.
    """
    kept_runs = [(N, *points) for N, *columns in runs if (points := _averaged(*columns)) is not None]
    sizes = np.unique([N for N, *_ in kept_runs])
    if not len(sizes):
        raise ValueError(f"curves of several sizes, each with {SHORTEST} points of this loss, are needed")
    if len(sizes) < 2:
        raise ValueError(f"expected curves of several sizes, got {sizes[0]:.6g} parameters in all {len(kept_runs)}")
    at = np.linspace(min(x[0] for _, x, _, _ in kept_runs), max(x[-1] for _, x, _, _ in kept_runs), BUDGETS)
    every = _Envelope(
        at,
        np.log([N for N, *_ in kept_runs]),
        # infinite where a curve doesn't reach
        np.array([np.interp(at, x, y, left=np.inf, right=np.inf) for _, x, y, _ in kept_runs]),
        np.array([np.interp(at, x, t) for _, x, _, t in kept_runs]),
    )
    warnings = every.edges()
    every.check(every.inside, warnings)
    (line_N, line_D), kept = every.lines()
    if ends := int((every.inside & ~kept).sum()):
        warnings.append(
            f"{ends} of {BUDGETS} budgets are left out: their optimum lies within a factor {MARGIN:g} of the smallest "
            "or the largest size"
        )
    every.check(kept, warnings)
    if not 0 < line_N[1] < 1:
        raise ValueError(
            f"expected a best size that grows with compute, and slower than it, got a = {line_N[1]:.2f} from "
            f"{every.leading(kept)} sizes that lead in turn: add sizes, or longer curves"
        )
    rng, n = np.random.default_rng(0), len(kept_runs)
    resamples = (every.some(np.unique(rng.integers(n, size=n))) for _ in range(DRAWS))
    draws = np.array([some.lines()[0] for some in resamples if some.leading(some.inside) >= 2])
    if len(draws) < DRAWS / 2:  # steps between two or three sizes
        told = f"{DRAWS - len(draws)} of {DRAWS} resampled sets of runs have no envelope"
        raise ValueError("; ".join([*warnings[-1:], f"no intervals: {told}"]))
    if draws[:, 0, 1].std() > OPEN:
        raise ValueError("the envelope of these curves leaves the exponent open: too few sizes lead in turn")
    best, columns = every.best[kept], np.flatnonzero(kept)
    table = np.exp([at[kept], every.log_N[best], every.tokens[best, columns], every.losses[best, columns]]).T.tolist()
    compared = np.isfinite(every.losses).sum(axis=0)[kept].tolist()
    return Approach(
        "approach 1 (envelope)",
        1,
        drawn_line(line_N[0], line_N[1], draws[:, 0]),
        drawn_line(line_D[0], line_D[1], draws[:, 1]),
        check_level(level),
        tuple(Minimum(C, N, D, L, count) for (C, N, D, L), count in zip(table, compared, strict=True)),
        tuple(warnings),
        n,
        convention,
    )


def _averaged(C: Array, loss: Array, tokens: Array) -> tuple[Array, Array, Array] | None:
    """Ln FLOPs, loss and tokens, means over bins even in ln C [bins]; None: too few points."""
    C, loss, tokens = (np.asarray(x, dtype=float) for x in (C, loss, tokens))
    good = np.isfinite(C) & (C > 0) & np.isfinite(loss) & (loss > 0) & np.isfinite(tokens) & (tokens > 0)
    rises = np.flatnonzero(good)[np.diff(np.maximum.accumulate(C[good]), prepend=0.0) > 0]
    if len(rises) < SHORTEST:
        return None
    x = np.log(C[rises])
    place = np.minimum(((x - x[0]) / (x[-1] - x[0]) * BINS).astype(int), BINS - 1)
    number = np.bincount(place)
    columns = (x, loss[rises], np.log(tokens[rises]))
    log_C, mean, log_D = (np.bincount(place, y)[number > 0] / number[number > 0] for y in columns)
    return log_C, np.log(mean), log_D


class _Envelope:
    """Of runs [n] the `best` at each budget, and whether runs both smaller and larger reach it (`inside`) [points].

    `at`: ln C of the budgets; `log_N` [n]; `losses`, ∞ where a run doesn't reach, and `tokens` in logarithms
    [n, points].
    """

    def __init__(self, at: Array, log_N: Array, losses: Array, tokens: Array) -> None:
        self.at, self.log_N, self.losses, self.tokens = at, log_N, losses, tokens
        self.best = losses.argmin(axis=0)
        reached, size = np.isfinite(losses), log_N[self.best]
        self.below = size > np.where(reached, log_N[:, None], np.inf).min(axis=0)
        self.above = size < np.where(reached, log_N[:, None], -np.inf).max(axis=0)
        self.inside: Mask = self.below & self.above

    def some(self, runs: NDArray[np.intp]) -> _Envelope:
        """Of these runs alone."""
        return _Envelope(self.at, self.log_N[runs], self.losses[runs], self.tokens[runs])

    def leading(self, kept: Mask) -> int:
        """How many sizes are the best at some of the budgets."""
        return len(np.unique(self.log_N[self.best[kept]]))

    def check(self, kept: Mask, left_out: Sequence[str]) -> None:
        """ValueError unless enough sizes lead in turn."""
        if (sizes := self.leading(kept)) < FEWEST:
            raise ValueError(
                f"{sizes} size{'s' * (sizes != 1)} between the smallest and the largest lead{'s' * (sizes == 1)} in "
                f"turn, {FEWEST} are needed: add sizes, or longer curves ({'; '.join(left_out)})"
            )

    def edges(self) -> list[str]:
        """Which compute is left out, in words."""
        alone = ~self.below & ~self.above
        told = []
        for why, where in (
            ("fewer than two sizes come so far", alone),
            ("the smallest size is the best: add smaller ones", ~alone & ~self.below),
            ("the largest size is the best: add larger ones", ~alone & ~self.above),
        ):
            C = np.exp(self.at[where])
            if C.size:
                told.append(f"between {C[0]:.3g} and {C[-1]:.3g} FLOPs {why}")
        return told

    def lines(self) -> tuple[Array, Mask]:
        """(ln prefactor, exponent) of N and of D [2, 2], and the budgets that they rest on: inside, away from ends."""
        kept = self.inside
        low, high = self.log_N.min() + np.log(MARGIN), self.log_N.max() - np.log(MARGIN)
        for _ in range(3):
            columns = np.flatnonzero(kept)
            X = np.stack([np.ones(len(columns)), self.at[columns]], axis=1)
            best = self.best[columns]
            y = np.stack([self.log_N[best], self.tokens[best, columns]], axis=1)
            found = np.linalg.lstsq(X, y, rcond=None)[0].T
            size = found[0, 0] + found[0, 1] * self.at
            central = self.inside & (size > low) & (size < high)
            if self.leading(central) < 2 or (central == kept).all():
                break
            kept = central
        return found, kept
