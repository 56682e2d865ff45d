"""Hoffmann et al.'s three approaches side by side, with a warning where they disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from isoflop.fit.approaches.approach import Approach, Interval, from_draws
from isoflop.fit.approaches.checks import Array, budget
from isoflop.fit.frontier.checks import level as level_of
from isoflop.fit.law import Law
from isoflop.fit.laws import TRAINING_FLOPS
from isoflop.fit.posterior import BudgetLine, Posterior

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
    below = BudgetLine(from_C, target.N, target.D * from_C / target.C, target.slope)
    high, low = posterior.sizes(target), posterior.sizes(below)
    a = (high - low) / math.log(target.C / from_C)
    b = (np.log(target.tokens(np.exp(high))) - np.log(below.tokens(np.exp(low)))) / math.log(target.C / from_C)
    draws = np.stack([high - a * at, a, np.log(target.tokens(np.exp(high))) - b * at, b], axis=1)
    middle = np.median(draws, axis=0)
    # a line through medians: exponents' medians, and prefactors that give the median sizes at the target
    middle[0] = np.median(high) - middle[1] * at
    middle[2] = math.log(float(target.tokens(math.exp(float(np.median(high)))))) - middle[3] * at
    return from_draws(name, middle[:2], middle[2:], draws, level, n=len(draws))
