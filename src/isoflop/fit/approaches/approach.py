"""What each of Hoffmann et al.'s three approaches returns: N_opt ∝ C^a and D_opt ∝ C^b, with their uncertainty.

C in FLOPs, N in parameters, D in tokens, L in nats per token, logarithms natural.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from isoflop.fit.approaches.checks import Array, budget
from isoflop.fit.frontier.allocation import interval
from isoflop.fit.law import Convention

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
