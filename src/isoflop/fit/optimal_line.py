"""N_opt ∝ C^a and D_opt ∝ C^b, each a line in logarithms with its uncertainty: what an approach to sizes finds.

C in FLOPs, N in parameters, D in tokens, L in nats per token, logarithms natural.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from isoflop.arrays import Array
from isoflop.laws.forms import Convention
from isoflop.laws.quantities import interval

Interval = tuple[float, float]


def column(name: str, values: ArrayLike, meaning: str, where: str = "") -> Array:
    """A column of positive finite numbers [n]; ValueError names row (from 1) and column of one that is not."""
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


MEANINGS = {"C": "training FLOPs", "N": "parameters", "D": "tokens", "L": "losses in nats per token"}


def columns_of(**given: ArrayLike) -> list[Array]:
    """C, N, D and L of the same runs, each [n]; ValueError: as `column`, or of different lengths."""
    table = {name: column(name, values, MEANINGS[name]) for name, values in given.items()}
    if len({len(values) for values in table.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in table.items())
        raise ValueError(f"expected columns of one length, got {lengths}")
    return [*table.values()]


def quantile(level: float, dof: float = math.inf) -> float:
    """Standard errors to either side that hold `level` of Student's t of a whole number of degrees of freedom.

    By Newton's method from the normal distribution's, which is less: the share within is concave. (scipy.special takes
    .2 s to import.)

    >>> round(quantile(0.9), 4), round(quantile(0.9, 1), 4), round(quantile(0.9, 8), 4)
    (1.6449, 6.3138, 1.8595)
    """
    t = NormalDist().inv_cdf(0.5 + level / 2)
    if math.isinf(dof):
        return t
    height = 2 * math.exp(math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2)) / math.sqrt(dof * math.pi)
    for _ in range(100):
        step = (level - _within(t, round(dof))) / (height * (1 + t * t / dof) ** (-(dof + 1) / 2))
        t += step
        if step < 1e-13 * t:
            break
    return t


def _within(t: float, dof: int) -> float:
    """Probability of Student's t within ±t (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    angle, odd = math.atan(t / math.sqrt(dof)), dof % 2
    term, total = math.cos(angle) ** odd, 0.0
    for k in range(1 + odd, dof, 2):
        total += term
        term *= k / (k + 1) * math.cos(angle) ** 2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


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
class Line:
    """ln y = intercept + slope·ln C.

    Attributes:
        intercept, slope: of the line.
        covariance: of both [2, 2]; None: nothing estimates it.
        dof: degrees of freedom behind that; infinite: normal.
        draws: of both [draws, 2]; intervals are then their percentiles.
    """

    intercept: float
    slope: float
    covariance: Array | None = field(default=None, repr=False, compare=False)
    dof: float = math.inf
    draws: Array | None = field(default=None, repr=False, compare=False)

    def at(self, C: float) -> float:
        """The value at C FLOPs: prefactors of steep lines are too small for a float."""
        return math.exp(self.intercept + self.slope * math.log(C))

    def interval(self, one: float, log_C: float, level: float) -> Interval:
        """Of one·intercept + log_C·slope."""
        at = np.array([one, log_C])
        if self.draws is not None:
            return interval(self.draws @ at, level)
        assert self.covariance is not None
        reach = quantile(level, self.dof) * math.sqrt(max(at @ self.covariance @ at, 0.0))
        value = float(at @ [self.intercept, self.slope])
        return value - reach, value + reach


def fitted_line(log_C: Array, y: Array, sd: Array, dof: float) -> Line:
    """A line through y, ln N or ln D [n], by least squares, with the larger of two standard errors.

    One comes from the scatter about the line (n − 2 degrees of freedom), the other from the points' own noise `sd` [n],
    of `dof` degrees of freedom, carried through the fit: scatter of three points is poor evidence, and noise says
    nothing of curvature.
    """
    centre, n = float(log_C.mean()), len(y)
    X = np.stack([np.ones_like(log_C), log_C - centre], axis=1)
    inverse = np.asarray(np.linalg.inv(X.T @ X), dtype=np.float64)
    solve = inverse @ X.T
    at, slope = solve @ y
    covariance = (solve * sd**2) @ solve.T
    if n > 2:
        scattered = float(((y - X @ [at, slope]) ** 2).sum()) / (n - 2) * inverse
        if scattered[1, 1] >= covariance[1, 1]:
            covariance, dof = scattered, n - 2
    shift = np.array([[1.0, -centre], [0.0, 1.0]])
    return Line(float(at - slope * centre), float(slope), shift @ covariance @ shift.T, float(dof))


def drawn_line(intercept: float, slope: float, draws: Array | None) -> Line:
    """A line with draws of (intercept, slope) [draws, 2]; None: there are none."""
    return Line(float(intercept), float(slope), None if draws is None else np.cov(draws.T), draws=draws)


@dataclass(frozen=True)
class Approach:
    """N_opt and D_opt as power laws of C, by one approach.

    Attributes:
        name: what found it.
        number: 1, 2 or 3 of Hoffmann et al.; 0: the posterior.
        N, D: lines in ln C.
        level: of every interval here.
        minima: the points that the power laws go through; none for approach 3.
        warnings: what was left out or is doubtful.
        n: rows, runs or draws that it rests on.
        convention: which parameters N counts.
    """

    name: str
    number: int
    N: Line
    D: Line
    level: float
    minima: tuple[Minimum, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()
    n: int = 0
    convention: Convention = "unknown"

    @property
    def a(self) -> float:
        """N_opt ∝ C^a."""
        return self.N.slope

    @property
    def b(self) -> float:
        """D_opt ∝ C^b."""
        return self.D.slope

    @property
    def lines(self) -> dict[str, Line]:
        """Those with an uncertainty, by their exponent's letter."""
        return {name: line for name, line in (("a", self.N), ("b", self.D)) if line.covariance is not None}

    @property
    def standard_errors(self) -> dict[str, float]:
        """Of a and b; empty: not estimated."""
        return {name: math.sqrt(line.covariance[1, 1]) for name, line in self.lines.items()}  # type: ignore[index]

    @property
    def intervals(self) -> dict[str, Interval]:
        """Of a and b; empty: not estimated."""
        return {name: line.interval(0.0, 1.0, self.level) for name, line in self.lines.items()}

    def allocate(self, C: float) -> tuple[float, float]:
        """Optimal parameters and tokens for C FLOPs, each by its own power law; ValueError: C is not positive."""
        C = budget(C)
        return self.N.at(C), self.D.at(C)

    def allocate_intervals(self, C: float) -> tuple[Interval, Interval] | None:
        """Intervals of optimal parameters and tokens at C FLOPs; None: not estimated."""
        if len(self.lines) < 2:
            return None
        log_C = math.log(budget(C))
        N, D = (np.exp(line.interval(1.0, log_C, self.level)).tolist() for line in (self.N, self.D))
        return tuple(N), tuple(D)


def budget(C: float) -> float:
    """A budget in FLOPs, positive."""
    return float(column("C", [C], "training FLOPs")[0])
