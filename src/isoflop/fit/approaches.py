"""What each of Hoffmann et al.'s three approaches returns: N_opt ∝ C^a and D_opt ∝ C^b, with their uncertainty.

C in FLOPs, N in parameters, D in tokens, L in nats per token, logarithms natural.

What the approaches ask of their input.

Approach 1 of Hoffmann et al. 2022 (section 3.1): the envelope of training curves.

At each of many budgets the run that has the least loss when it has used that many FLOPs; then N_opt ∝ C^a and
D_opt ∝ C^b by lines in logarithms. Runs are read where they stand: under a learning-rate schedule a run that isn't at
its end is worse than one planned to end there, so give curves of several lengths, or of a constant rate.

The rows of isoFLOP profiles: checked, and sorted into their budgets.

The least loss of one isoFLOP profile: by a parabola, or by an Akima interpolant; for many noisy copies at once.

Approach 2 of Hoffmann et al. 2022 (section 3.2): isoFLOP profiles.

At each budget the size with the least loss; then N_opt ∝ C^a and D_opt ∝ C^b by a line through these in logarithms.
Its parabolas are biased wherever profiles aren't parabolas: `isoflop.fit.approaches.bias`.

Hoffmann et al.'s three approaches side by side, with a warning where they disagree.

Approach 1 of recorded runs: their curves averaged, then the envelope of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import Akima1DInterpolator
from scipy.special import ndtr, ndtri, stdtrit

from isoflop.arrays import Array
from isoflop.fit.drifting_law import BudgetLine
from isoflop.fit.posterior import Posterior
from isoflop.laws.forms import TRAINING_FLOPS, Convention, Law
from isoflop.laws.quantities import check_level as level_of
from isoflop.laws.quantities import interval

Rows = NDArray[np.intp]


def column(name: str, values: ArrayLike, meaning: str, where: str = "") -> Array:
    """A column of positive finite numbers [n].

    Raises:
        ValueError: a value that is not; the message names row (from 1) and column.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not array.size:
        raise ValueError(
            f"column {name!r}{where}: expected {meaning} in a list that isn't empty, got shape {array.shape}"
        )
    bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
    if bad.size:
        more = f" (and {bad.size - 1} more rows)" if bad.size > 1 else ""
        raise ValueError(
            f"row {bad[0] + 1}, column {name!r}{where}: expected a positive number of {meaning}, got {array[bad[0]]:g}"
            f"{more}; leave the row out or correct it"
        )
    return array


def budget(C: float) -> float:
    """A budget in FLOPs, positive."""
    return float(column("C", [C], "training FLOPs")[0])


Interval = tuple[float, float]


@dataclass(frozen=True)
class NoApproach:
    """An approach that these runs do not allow, and the reason."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} has no opinion: {self.reason}"


@dataclass(frozen=True)
class Minimum:
    """The size with the least loss at one budget.

    Attributes:
        C, N, D, L: budget, size, tokens and loss there.
        sizes: distinct sizes compared at this budget.
        standard_error: of ln N; None: not estimated.
        interval: of N, at the approach's level; None: not estimated.
    """

    C: float
    N: float
    D: float
    L: float
    sizes: int
    standard_error: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True)
class Approach:
    """N_opt = N_prefactor·C^a and D_opt = D_prefactor·C^b.

    Attributes:
        name: which approach.
        a, b: exponents.
        N_prefactor, D_prefactor: optimal parameters and tokens at C = 1 FLOP.
        standard_errors: of "a", "b", "log_N_prefactor", "log_D_prefactor"; empty: not estimated.
        intervals: of "a", "b", "N_prefactor", "D_prefactor" at `level`; empty: not estimated.
        level: of every interval here.
        minima: the points that the power laws go through; none for approach 3.
        warnings: what was left out or is doubtful.
        n: rows, runs or draws that it rests on.
        convention: which parameters N counts.
        covariances: of (ln prefactor, exponent), of N and of D, each [2, 2].
        dof: degrees of freedom of the standard errors; infinite: normal.
    """

    name: str
    a: float
    b: float
    N_prefactor: float
    D_prefactor: float
    standard_errors: Mapping[str, float]
    intervals: Mapping[str, Interval]
    level: float
    minima: tuple[Minimum, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()
    n: int = 0
    convention: Convention = "unknown"
    covariances: tuple[Array, Array] | None = field(default=None, repr=False, compare=False)
    dof: float = np.inf

    def allocate(self, C: float) -> tuple[float, float]:
        """Optimal parameters and tokens for a budget of C FLOPs, each by its own power law.

        Raises:
            ValueError: C is not positive.
        """
        C = budget(C)
        # in logs: prefactors of steep laws are tiny
        log_C = np.log(C)
        N = np.exp(np.log(self.N_prefactor) + self.a * log_C)
        D = np.exp(np.log(self.D_prefactor) + self.b * log_C)
        return float(N), float(D)

    def allocate_intervals(self, C: float) -> tuple[Interval, Interval] | None:
        """Intervals of optimal parameters and tokens at C FLOPs, at `level`; None: not estimated."""
        if self.covariances is None:
            return None
        at = np.array([1.0, np.log(budget(C))])
        reach = quantile(self.level, self.dof)
        N, D = (
            around(value, reach * float(np.sqrt(max(at @ covariance @ at, 0.0))))
            for value, covariance in zip(self.allocate(C), self.covariances, strict=True)
        )
        return N, D


def quantile(level: float, dof: float = np.inf) -> float:
    """Standard errors to either side that hold `level` of Student's t."""
    return float(ndtri(0.5 + level / 2) if np.isinf(dof) else stdtrit(dof, 0.5 + level / 2))


def around(value: float, reach: float) -> Interval:
    """Interval of a positive quantity whose logarithm is known to ± reach."""
    return value * float(np.exp(-reach)), value * float(np.exp(reach))


@dataclass(frozen=True)
class Line:
    """y = intercept + slope·ln C; covariance of (intercept, slope) [2, 2], None where nothing estimates it."""

    intercept: float
    slope: float
    covariance: Array | None
    dof: float


def line(log_C: Array, y: Array, sd: Array | None, sd_dof: float = np.inf) -> Line:
    """A line by least squares, with the larger of two standard errors.

    One comes from the scatter about the line (n − 2 degrees of freedom), the other from the points' own noise carried
    through the fit: scatter of three points is poor evidence, and noise says nothing of curvature.

    Args:
        log_C: ln C [n].
        y: ln N or ln D [n].
        sd: noise of y [n], if known.
        sd_dof: degrees of freedom behind sd.
    """
    centre = float(log_C.mean())
    X = np.stack([np.ones_like(log_C), log_C - centre], axis=1)
    inverse = np.asarray(np.linalg.inv(X.T @ X), dtype=np.float64)
    solve = inverse @ X.T
    theta = solve @ y
    candidates: list[tuple[Array, float]] = []
    dof = float(len(y) - 2)
    if dof > 0:
        residuals = y - X @ theta
        candidates.append((float(residuals @ residuals) / dof * inverse, dof))
    if sd is not None:
        candidates.append(((solve * sd**2) @ solve.T, sd_dof))
    shift = np.array([[1.0, -centre], [0.0, 1.0]])
    best = max(candidates, key=lambda c: float(c[0][1, 1]), default=None)
    covariance, dof_used = (None, np.inf) if best is None else (shift @ best[0] @ shift.T, best[1])
    return Line(float(theta[0] - theta[1] * centre), float(theta[1]), covariance, float(dof_used))


def from_lines(name: str, N: Line, D: Line, level: float, **others: Any) -> Approach:
    """An approach from its two lines; `others` are further fields of `Approach`."""
    errors: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    for letter, exponent, fit in (("N", "a", N), ("D", "b", D)):
        if fit.covariance is None:
            continue
        reach = quantile(level, fit.dof)
        errors[exponent] = float(np.sqrt(fit.covariance[1, 1]))
        errors[f"log_{letter}_prefactor"] = float(np.sqrt(fit.covariance[0, 0]))
        intervals[exponent] = (fit.slope - reach * errors[exponent], fit.slope + reach * errors[exponent])
        prefactor = float(np.exp(fit.intercept))
        intervals[f"{letter}_prefactor"] = around(prefactor, reach * errors[f"log_{letter}_prefactor"])
    covariances = None if N.covariance is None or D.covariance is None else (N.covariance, D.covariance)
    prefactors = float(np.exp(N.intercept)), float(np.exp(D.intercept))
    return Approach(
        name, N.slope, D.slope, *prefactors, errors, intervals, level, covariances=covariances, dof=N.dof, **others
    )


def from_draws(name: str, N: Array, D: Array, draws: Array | None, level: float, **others: Any) -> Approach:
    """An approach from (ln prefactor, exponent) of N and of D, and draws of these four [draws, 4] (None: none)."""
    errors: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    covariances = None
    if draws is not None:
        keys = ("log_N_prefactor", "a", "log_D_prefactor", "b")
        errors = {key: float(draws[:, i].std(ddof=1)) for i, key in enumerate(keys)}
        for i, key in enumerate(keys):
            low, high = interval(draws[:, i], level)
            is_log = key.startswith("log_")
            intervals[key.removeprefix("log_")] = (float(np.exp(low)), float(np.exp(high))) if is_log else (low, high)
        covariances = (np.cov(draws[:, :2].T), np.cov(draws[:, 2:].T))
    prefactors = float(np.exp(N[0])), float(np.exp(D[0]))
    a, b = float(N[1]), float(D[1])
    return Approach(name, a, b, *prefactors, errors, intervals, level, covariances=covariances, **others)


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


def envelope(
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
    )


def _too_few(sizes: int, left_out: list[str]) -> str:
    return (
        f"expected an envelope on which at least {FEWEST} sizes between the smallest and the largest lead in turn, got "
        f"{sizes} ({'; '.join(left_out)}): add sizes, or longer curves"
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


def _envelope(log_N: Array, losses: Array) -> tuple[Rows, Mask]:
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
        ("one size or none reaches them", alone),
        ("the best run is the smallest that reaches them", ~alone & (size <= smallest)),
        ("the best run is the largest that reaches them", ~alone & (size >= largest)),
    ):
        C = np.exp(at[where])
        if C.size:
            told.append(f"{C.size} of {len(at)} budgets from {C[0]:.3g} to {C[-1]:.3g} FLOPs are left out: {why}")
    return told


def _lines(
    at: Array, log_N: Array, tokens: Array, best: Rows, inside: Mask, margin: float
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
                f"{C[rows].min():.3g} to {C[rows].max():.3g}: name the nominal budgets (budgets=, "
                "--budgets), such as 6e18,1e19"
            )
    return [(float(np.exp(log_C[rows].mean())), rows) for rows in parts], 0


Method = Literal["parabola", "akima"]
NEEDED = {"parabola": 3, "akima": 4}
"""Distinct sizes: a parabola has three coefficients; Akima's slopes look two intervals to either side."""


def one_per_size(x: Array, loss: Array) -> Rows:
    """Rows of the least loss of each size, by size: as Porian et al. 2024 (sweeps leave several runs of a size).

    Sizes that differ by less than 1e-6 relative are one: an interpolant would swing between them.
    """
    order = np.argsort(x, kind="stable")
    group = np.empty(len(x), dtype=np.intp)
    group[order] = np.r_[0, np.cumsum(np.diff(x[order]) > 1e-6)]
    by_loss = np.lexsort((loss, group))
    return by_loss[np.r_[True, np.diff(group[by_loss]) > 0]]


def parabola(x: Array, loss: Array) -> tuple[Array, Array, Array]:
    """Least squares of loss = c₀ + c₁x + c₂x² (Hoffmann et al. 2022, section 3.2).

    Args:
        x: ln N [n].
        loss: [n] or [n, copies].

    Returns:
        Vertex in ln N, its loss, and c₂, each [copies] or scalar: no vertex is refused here, see `refused`.
    """
    centre, width = x.mean(), max(float(np.ptp(x)), 1e-12)
    u = (x - centre) / width
    c0, c1, c2 = np.linalg.lstsq(np.stack([np.ones_like(u), u, u * u], axis=1), loss, rcond=None)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = -c1 / (2 * c2)
        least = c0 + c1 * vertex / 2
    return centre + width * vertex, least, c2 / width**2


def akima(x: Array, loss: Array) -> tuple[Array, Array]:
    """The least value of an Akima interpolant of ln loss over ln N (Porian et al. 2024), exact: by its cubics' roots.

    Args:
        x: ln N [n], increasing.
        loss: [n] or [n, copies].

    Returns:
        ln N and loss there, each [copies] or scalar; at an end of x where the loss still falls towards it.
    """
    y = np.log(loss)
    copies = y.reshape(len(x), -1)
    c3, c2, c1, c0 = Akima1DInterpolator(x, copies).c
    length = np.diff(x)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        # minimum of the cubic: the root of 3c₃t² + 2c₂t + c₁ with a positive second derivative, 2√disc: stable form
        disc = np.sqrt(c2 * c2 - 3 * c3 * c1)
        t = np.where(c2 > 0, -c1 / (c2 + disc), (-c2 + disc) / (3 * c3))
    t = np.where((t >= 0) & (t <= length), t, 0.0)
    value = np.concatenate([c0 + t * (c1 + t * (c2 + t * c3)), copies[-1:]])
    place = np.concatenate([x[:-1, None] + t, np.full((1, copies.shape[1]), x[-1])])
    best = value.argmin(axis=0)
    columns = np.arange(copies.shape[1])
    return place[best, columns].reshape(y.shape[1:]), np.exp(value[best, columns]).reshape(y.shape[1:])


def refused(x: Array, loss: Array, method: Method) -> str | None:
    """Why this profile has no minimum to speak of; None: it has one."""
    if not len(x):
        return "no run lies near it"
    rows = one_per_size(x, loss)
    sizes = len(rows)
    if sizes < NEEDED[method]:
        return f"it has {sizes} size{'s' * (sizes != 1)}, a minimum by {method} needs {NEEDED[method]}"
    if method == "parabola":
        vertex, _, curvature = parabola(x, loss)
        if curvature <= 0:
            return "its parabola opens downwards"
    else:
        vertex, _ = akima(x[rows], loss[rows])
    if vertex <= x.min():
        return f"its loss is least at or below the smallest size, {np.exp(x.min()):.3g} parameters: add smaller ones"
    if vertex >= x.max():
        return f"its loss is least at or above the largest size, {np.exp(x.max()):.3g} parameters: add larger ones"
    return None


def resampled(x: Array, loss: Array, sd: Array, method: Method, copies: int, rng: np.random.Generator) -> Array:
    """Minima in ln N of noisy copies of a profile, those inside the grid only [≤ copies].

    Args:
        x: ln N [n].
        loss: [n].
        sd: noise of the losses [n], nats per token.
        method: parabola or Akima.
        copies: how many.
        rng: for the noise.
    """
    if method == "akima":
        rows = one_per_size(x, loss)
        x, loss, sd = x[rows], loss[rows], sd[rows]
    noisy = loss[:, None] + sd[:, None] * rng.standard_normal((len(x), copies))
    noisy = np.maximum(noisy, 1e-3 * loss[:, None])
    if method == "akima":
        vertex, _ = akima(x, noisy)
        inside = np.ones(copies, dtype=bool)
    else:
        vertex, _, curvature = parabola(x, noisy)
        inside = curvature > 0
    return vertex[inside & (vertex > x.min()) & (vertex < x.max())]


COPIES = 1000
"""Noisy copies of a profile, as many as Porian et al. 2024 draw."""


PRIOR = 4
"""Degrees of freedom that the typical budget lends to each: few residuals alone tell little of their variance."""


def seed_noise(loss: Array) -> Array:
    """Standard deviation of losses between seeds, nats per token: .005 up to L = 3, .1 from L = 6, a power law between.

    The numbers in Porian et al. 2024's code (`get_noise_for_loss`), read as thresholds on the loss.
    """
    return np.exp(np.interp(np.log(loss), np.log([3.0, 6.0]), np.log([0.005, 0.1])))


def isoflop_profiles(
    C: ArrayLike,
    N: ArrayLike,
    D: ArrayLike,
    L: ArrayLike,
    *,
    budgets: ArrayLike | None = None,
    tolerance: float = 1.25,
    minimum: Method = "parabola",
    noise: float | None = None,
    level: float = 0.9,
    seed: int = 0,
    convention: Convention = "unknown",
) -> Approach:
    """Approach 2: the exponents of the compute-optimal size and tokens from isoFLOP profiles.

    A parabola is fitted to L over ln N through all rows of a budget. An Akima interpolant goes through ln L over ln N
    of the best run of each size.

    The minima's intervals come from copies of each profile with noise added to its losses, as Porian et al. 2024 do:
    resampling the runs instead would leave holes in grids of five to ten sizes, and an interpolant has no residuals.
    The exponents' standard errors are the larger of what this noise and what the scatter about the line say.

    Args:
        C: training FLOPs [n].
        N: parameters [n].
        D: tokens [n].
        L: losses, nats per token [n].
        budgets: nominal budgets; rows go to the nearest in ln C, those farther than `tolerance` from it are left out.
            None: ln C is split at gaps wider than `tolerance`.
        tolerance: a factor of C.
        minimum: "parabola" or "akima".
        noise: standard deviation of a loss in nats per token. None: for parabolas their residuals, each budget's drawn
            towards the median of all; for Akima, or where there are no residuals, `seed_noise`.
        level: of the intervals.
        seed: of the noise.
        convention: which parameters N counts.

    Returns:
        The exponents, prefactors and minima; budgets without a minimum are left out and named in `warnings`.

    Raises:
        ValueError: a column with values that aren't positive, columns of different lengths, units mixed up, budgets
            that run into each other, fewer than two budgets with a minimum.
    """
    found = profile_minima(
        C, N, D, L, budgets=budgets, tolerance=tolerance, minimum=minimum, noise=noise, level=level, seed=seed
    )
    minima, reasons, warnings, sd_dof = found.minima, found.reasons, list(found.warnings), found.dof
    if len(minima) < 2:
        told = "; ".join(reasons) or f"all rows have about {minima[0].C:.3g} FLOPs"
        raise ValueError(f"expected at least two budgets with a minimum, got {len(minima)}: {told}")
    if len(minima) == 2:
        warnings.append("two budgets: nothing tells whether the minima lie on a line")
    at = np.log([m.C for m in minima])
    spread = np.array([m.standard_error for m in minima])
    sizes, tokens = np.log([m.N for m in minima]), np.log([m.D for m in minima])
    return from_lines(
        f"approach 2 ({'parabola' if minimum == 'parabola' else 'Akima'})",
        line(at, sizes, spread, sd_dof),
        line(at, tokens, spread, sd_dof),
        level_of(level),
        minima=minima,
        warnings=(*warnings, *reasons),
        n=found.rows,
        convention=convention,
    )


@dataclass(frozen=True)
class ProfileMinima:
    """The sizes of least loss at the budgets that show one; why others don't, and what is odd about the rows.

    `dof`: degrees of freedom behind the noise. `rows`: in the profiles.
    """

    minima: tuple[Minimum, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    dof: float
    rows: int


def profile_minima(
    C: ArrayLike,
    N: ArrayLike,
    D: ArrayLike,
    L: ArrayLike,
    *,
    budgets: ArrayLike | None = None,
    tolerance: float = 1.25,
    minimum: Method = "parabola",
    noise: float | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> ProfileMinima:
    """The minima alone, of one budget too. Arguments and errors as `isoflop_profiles`."""
    level, warnings = level_of(level), []
    if minimum not in ("parabola", "akima"):
        raise ValueError(f'expected minimum "parabola" or "akima", got {minimum!r}')
    C, N, D, L = columns(C, N, D, L)
    groups, left = group(C, budgets, tolerance)
    if left:
        warnings.append(f"{left} of {len(C)} rows left out: more than a factor {tolerance:g} from the nearest budget")
    kept: list[tuple[float, Rows]] = []
    reasons = []
    for value, rows in groups:
        why = refused(np.log(N[rows]), L[rows], minimum)
        if why is None:
            kept.append((value, rows))
        else:
            reasons.append(f"the budget {value:.3g} FLOPs is left out: {why}")
    sd, sd_dof = _noise(noise, minimum, [(np.log(N[rows]), L[rows]) for _, rows in kept])
    rng = np.random.default_rng(seed)
    minima = []
    for (value, rows), s in zip(kept, sd, strict=True):
        found = _minimum(value, C[rows], N[rows], D[rows], L[rows], s, minimum, quantile(level, sd_dof), rng)
        if isinstance(found, Minimum):
            minima.append(found)
        else:
            reasons.append(f"the budget {value:.3g} FLOPs is left out: {found}")
    rows_used = sum(len(rows) for _, rows in kept)
    return ProfileMinima(tuple(minima), tuple(reasons), tuple(warnings), sd_dof, rows_used)


def _noise(noise: float | None, method: Method, profiles: list[tuple[Array, Array]]) -> tuple[list[Array], float]:
    """Standard deviations of each profile's losses, and the degrees of freedom behind them."""
    if noise is not None:
        if not (np.isfinite(noise) and noise >= 0):
            raise ValueError(f"expected the noise of a loss in nats per token, got {noise!r}")
        return [np.full(len(loss), float(noise)) for _, loss in profiles], np.inf
    dof = sum(len(x) - 3 for x, _ in profiles)
    if method == "akima" or dof <= 0:
        return [seed_noise(loss) for _, loss in profiles], np.inf
    own = np.array([len(x) - 3 for x, _ in profiles])
    squares = np.array([float(((np.polynomial.Polynomial.fit(x, y, 2)(x) - y) ** 2).sum()) for x, y in profiles])
    typical = float(np.median(squares[own > 0] / own[own > 0]))
    variance = (squares + PRIOR * typical) / (own + PRIOR)
    return [np.full(len(y), np.sqrt(v)) for (_, y), v in zip(profiles, variance, strict=True)], float(dof)


def _minimum(
    budget: float,
    C: Array,
    N: Array,
    D: Array,
    L: Array,
    sd: Array,
    method: Method,
    reach: float,
    rng: np.random.Generator,
) -> Minimum | str:
    """The minimum of one profile; or why noise hides it."""
    x, best = np.log(N), one_per_size(np.log(N), L)
    vertex, least = parabola(x, L)[:2] if method == "parabola" else akima(x[best], L[best])
    draws = resampled(x, L, sd, method, COPIES, rng)
    if len(draws) < COPIES / 2:
        return f"noise of {np.median(sd):.2g} nats per token moves its minimum off the grid more often than not"
    size = float(np.exp(vertex))
    # FLOPs per parameter and token of the sizes around: 6 where C = 6ND
    rate = np.exp(np.interp(vertex, x[best], np.log(C / (N * D))[best]))
    # wider by the copies that were lost off the grid: as Porian et al.
    error = float(draws.std()) * COPIES / len(draws)
    tokens = float(budget / (rate * size))
    return Minimum(budget, size, tokens, float(least), len(best), error, around(size, reach * error))


POSTERIOR = "posterior (law with prior)"
CHINCHILLA = 5.76e23
"""FLOPs of Gopher and Chinchilla: Hoffmann et al. 2022, section 4."""


@dataclass(frozen=True)
class Row:
    """One approach at the comparison's budget; an interval that wasn't estimated is None."""

    name: str
    a: float
    a_interval: Interval | None
    b: float
    b_interval: Interval | None
    N: float
    N_interval: Interval | None
    D: float
    D_interval: Interval | None


@dataclass(frozen=True)
class Pair:
    """Two approaches' exponents a.

    Attributes:
        first, second: names.
        z: (a₁ − a₂)/√(se₁² + se₂²), as if independent. Fits of the same runs aren't: their errors share a sign, and z
            is then too small.
        p: of |z|, two-sided, normal.
        overlap: whether the intervals for a do.
    """

    first: str
    second: str
    z: float
    p: float
    overlap: bool


@dataclass(frozen=True)
class Comparison:
    """Approaches side by side at a budget of C FLOPs; `str()` is a table."""

    C: float
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        head = ("approach", "a", "b", f"N at {self.C:.3g}", f"D at {self.C:.3g}")
        table = [head]
        for row in self.rows:
            cells = (
                _cell(row.a, row.a_interval, ".3f"),
                _cell(row.b, row.b_interval, ".3f"),
                _cell(row.N, row.N_interval, ".3g"),
                _cell(row.D, row.D_interval, ".3g"),
            )
            table.append((row.name, *cells))
        widths = [max(len(r[i]) for r in table) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in table]
        return "\n".join([*lines, *(f"warning: {w}" for w in self.warnings)])


def _cell(value: float, interval: Interval | None, form: str) -> str:
    return f"{value:{form}}" + (f" ({interval[0]:{form}}–{interval[1]:{form}})" if interval else "")


def approach_3(law: Law, level: float = 0.9, flops_per_param_token: float = TRAINING_FLOPS) -> Approach:
    """Approach 3 as an `Approach`: a = β/(α+β), b = α/(α+β), G = (αA/βB)^{1/(α+β)} with C = 6·N·D.

    Hoffmann et al. 2022, eq. 4. Draws whose constants aren't positive have no frontier: they are left out, and said.

    Args:
        law: of Hoffmann's form; without draws there are no intervals.
        level: of the intervals.
        flops_per_param_token: C/(N·D) of the runs whose compute it is laid beside.

    Raises:
        ValueError: another form, or constants that aren't positive.
    """
    level = level_of(level)
    if law.form.name != "hoffmann":
        raise ValueError(f"expected a law of Hoffmann's form, got {law.form.name}: {law.form.text}")
    names = ("A", "B", "alpha", "beta")
    point = np.array([[float(law.constants[name]) for name in names]])
    if not (np.isfinite(point) & (point > 0)).all():
        told = ", ".join(f"{name}={value:g}" for name, value in zip(names, point[0], strict=True))
        raise ValueError(f"expected positive A, B, α and β, got {told}: this law has no compute-optimal size")
    N, D = np.split(_frontier(point, flops_per_param_token)[0], 2)
    draws, warnings = None, []
    if law.draws is None:
        warnings.append("the law has no draws of its constants: no intervals")
    else:
        constants = np.stack([np.asarray(law.draws[name], dtype=float) for name in names], axis=1)
        good = (np.isfinite(constants) & (constants > 0)).all(axis=1)
        if good.sum() < len(good):
            warnings.append(f"{len(good) - good.sum()} of {len(good)} draws have no compute-optimal size: left out")
        if good.sum() >= 20:
            draws = _frontier(constants[good], flops_per_param_token)
        else:
            warnings.append(f"no intervals: {good.sum()} draws have a compute-optimal size")
    return from_draws(
        "approach 3 (parametric)",
        N,
        D,
        draws,
        level,
        warnings=tuple(warnings),
        n=0 if draws is None else len(draws),
        convention=law.convention,
    )


def _frontier(constants: Array, rate: float) -> Array:
    """(A, B, α, β) [rows, 4] → (ln N prefactor, a, ln D prefactor, b) [rows, 4]."""
    A, B, alpha, beta = constants.T
    a, b = beta / (alpha + beta), alpha / (alpha + beta)
    log_G = (np.log(alpha * A) - np.log(beta * B)) / (alpha + beta)
    return np.stack([log_G - a * np.log(rate), a, -log_G - b * np.log(rate), b], axis=1)


def compare_approaches(approaches: Sequence[Approach], C: float = CHINCHILLA) -> Comparison:
    """Approaches in one table, with a warning where two intervals for a don't overlap.

    Args:
        approaches: at least one.
        C: FLOPs at which N and D are compared.

    Raises:
        ValueError: no approach, intervals at different levels, or C not positive.
    """
    C = budget(C)
    if not approaches:
        raise ValueError("expected at least one approach, got none")
    levels = sorted({x.level for x in approaches if x.intervals})
    if len(levels) > 1:
        raise ValueError(f"expected intervals at one level, got {' and '.join(f'{v:g}' for v in levels)}")
    rows, warnings = [], []
    for x in approaches:
        at = x.allocate_intervals(C)
        N, D = x.allocate(C)
        N_interval, D_interval = at if at is not None else (None, None)
        rows.append(Row(x.name, x.a, x.intervals.get("a"), x.b, x.intervals.get("b"), N, N_interval, D, D_interval))
        warnings += [f"{x.name}: {told}" for told in x.warnings]
    pairs = []
    for i, x in enumerate(approaches):
        for y in approaches[i + 1 :]:
            if x.convention != y.convention and "unknown" not in (x.convention, y.convention):
                warnings.append(
                    f"{x.name} counts N as {x.convention}, {y.name} as {y.convention}: their exponents differ "
                    "for that alone"
                )
            if "a" not in x.intervals or "a" not in y.intervals:
                continue
            pair = _pair(x, y)
            pairs.append(pair)
            if not pair.overlap:
                (l1, h1), (l2, h2) = x.intervals["a"], y.intervals["a"]
                warnings.append(
                    f"{x.name} and {y.name} disagree: a = {x.a:.3f} ({l1:.3f}–{h1:.3f}) against {y.a:.3f} "
                    f"({l2:.3f}–{h2:.3f}), z = {pair.z:.1f}, p = {pair.p:.2g}"
                )
    return Comparison(C, tuple(rows), tuple(pairs), tuple(warnings))


def _pair(x: Approach, y: Approach) -> Pair:
    (l1, h1), (l2, h2) = x.intervals["a"], y.intervals["a"]
    error = float(np.hypot(x.standard_errors["a"], y.standard_errors["a"]))
    gap = x.a - y.a
    z = gap / error if error > 0 else float(np.sign(gap)) * np.inf if gap else 0.0
    return Pair(x.name, y.name, float(z), float(2 * ndtr(-abs(z))), max(l1, l2) <= min(h1, h2))


def posterior_approach(posterior: Posterior, target: BudgetLine, level: float, name: str = POSTERIOR) -> Approach:
    """The posterior's law as power laws through its optima at the largest budget and at the target."""
    at = math.log(target.C)
    from_C = posterior.largest if 1.5 * posterior.largest < target.C else target.C / 10
    below = target.at(from_C)
    high, low = posterior.sizes(target), posterior.sizes(below)
    a = (high - low) / math.log(target.C / from_C)
    b = (np.log(target.tokens(np.exp(high))) - np.log(below.tokens(np.exp(low)))) / math.log(target.C / from_C)
    draws = np.stack([high - a * at, a, np.log(target.tokens(np.exp(high))) - b * at, b], axis=1)
    middle = np.median(draws, axis=0)
    # a line through medians: exponents' medians, and prefactors that give the median sizes at the target
    middle[0] = np.median(high) - middle[1] * at
    middle[2] = math.log(float(target.tokens(math.exp(float(np.median(high)))))) - middle[3] * at
    return from_draws(name, middle[:2], middle[2:], draws, level, n=len(draws))


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
    found = envelope(curves, level=level, convention=convention)
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
