"""What each of Hoffmann et al.'s three approaches says: N_opt ∝ C^a and D_opt ∝ C^b with uncertainty, side by side.

C in FLOPs, N in parameters, D in tokens, L in nats per token, logarithms natural. Approach 1 is `isoflop.fit.envelope`,
approach 2 `isoflop.fit.profiles`; approach 3 follows from a fitted law (eq. 4), and so does the posterior's row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from isoflop.arrays import Array
from isoflop.console import Shown
from isoflop.fit.drifting_law import BudgetLine
from isoflop.fit.posterior import Posterior
from isoflop.laws.forms import TRAINING_FLOPS, Convention, Law
from isoflop.laws.quantities import check_level as level_of
from isoflop.laws.quantities import interval


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
        return f"{self.name} is left out: {self.reason}"


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
        number: 1, 2 or 3 of Hoffmann et al.; 0: the posterior.
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
    number: int = 0

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
    if np.isinf(dof):
        return NormalDist().inv_cdf(0.5 + level / 2)
    from scipy.special import stdtrit  # slow to import

    return float(stdtrit(dof, 0.5 + level / 2))


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
class ApproachComparison(Shown):
    """Approaches side by side at a budget of C FLOPs, and those that the runs do not allow; `str()` is a table."""

    C: float
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...]
    without: tuple[NoApproach, ...] = ()

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


def approaches_of(
    makers: Mapping[str, Callable[[], Approach]],
) -> tuple[tuple[Approach, ...], tuple[NoApproach, ...]]:
    """The approaches that runs allow, and why they do not allow the others: those whose maker raises ValueError."""
    found, without = [], []
    for name, make in makers.items():
        try:
            found.append(make())
        except ValueError as reason:
            without.append(NoApproach(name, str(reason)))
    return tuple(found), tuple(without)


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
        number=3,
    )


def _frontier(constants: Array, rate: float) -> Array:
    """(A, B, α, β) [rows, 4] → (ln N prefactor, a, ln D prefactor, b) [rows, 4]."""
    A, B, alpha, beta = constants.T
    a, b = beta / (alpha + beta), alpha / (alpha + beta)
    log_G = (np.log(alpha * A) - np.log(beta * B)) / (alpha + beta)
    return np.stack([log_G - a * np.log(rate), a, -log_G - b * np.log(rate), b], axis=1)


def compare_approaches(
    approaches: Sequence[Approach], C: float = CHINCHILLA, without: Sequence[NoApproach] = ()
) -> ApproachComparison:
    """Approaches in one table, with a warning where two intervals for a don't overlap.

    Args:
        approaches: at least one.
        C: FLOPs at which N and D are compared.
        without: approaches that the runs do not allow.

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
    return ApproachComparison(C, tuple(rows), tuple(pairs), tuple(warnings), tuple(without))


def _pair(x: Approach, y: Approach) -> Pair:
    (l1, h1), (l2, h2) = x.intervals["a"], y.intervals["a"]
    error = float(np.hypot(x.standard_errors["a"], y.standard_errors["a"]))
    gap = x.a - y.a
    z = gap / error if error > 0 else float(np.sign(gap)) * np.inf if gap else 0.0
    return Pair(x.name, y.name, float(z), 2 * NormalDist().cdf(-abs(z)), max(l1, l2) <= min(h1, h2))


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
