"""Hoffmann et al.'s three approaches and the posterior side by side: N_opt ∝ C^a and D_opt ∝ C^b by each.

Approach 1 (Hoffmann et al. 2022, section 3.1), the envelope of training curves, is here: at each of many budgets the
run that has the least loss when it has used that many FLOPs, then lines in logarithms. Runs are read where they stand:
under a learning-rate schedule a run that isn't at its end is worse than one planned to end there, so give curves of
several lengths, or of a constant rate. Approach 2 is `isoflop.fit.profiles`; approach 3 follows from a fitted law
(eq. 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.arrays import Array
from isoflop.fit.drifting_law import BudgetLine
from isoflop.fit.optimal_line import Approach, Interval, Minimum, budget, drawn_line
from isoflop.fit.posterior import Posterior
from isoflop.fit.profiles import isoflop_profiles
from isoflop.laws.forms import TRAINING_FLOPS, Convention, Law, typical_rate
from isoflop.laws.quantities import check_level

BUDGETS = 1500
"""Hoffmann et al. 2022, section 3.1."""
DRAWS = 400
FEWEST = 3
"""Sizes that must lead in turn: through two any line goes, and resampled runs repeat it."""
BINS = 60
"""Of a curve, even in ln C; losses are averaged in each. A minimum over many noisy curves lies too low: of 100 planted
runs with 1e5 losses each and noise of .01, a = .552 for .513 by a smoother of two points, .514 [.510, .517] by bins."""
FOREMOST = 64
"""Runs of each budget that resampled sets choose from: one has none of them with a probability of e^-64."""
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
        by_size, reached = np.argsort(log_N, kind="stable"), np.isfinite(losses)
        by_loss = np.argsort(losses, axis=0, kind="stable")[:FOREMOST].copy()  # (a view would hold all of it)
        ends = (runs[np.argsort(~reached[runs], axis=0, kind="stable")[:FOREMOST]] for runs in (by_size, by_size[::-1]))
        self._orders = (by_loss, *ends)
        self._take(np.ones(len(log_N), dtype=bool))

    def _take(self, present: Mask) -> None:
        """The foremost of these runs [n] at each budget."""
        columns = np.arange(len(self.at))
        first = [order[present[order].argmax(axis=0), columns] for order in self._orders]
        best, smallest, largest = (np.where(np.isfinite(self.losses[i, columns]), self.log_N[i], np.nan) for i in first)
        self.best = first[0]
        self.below, self.above = best > smallest, best < largest
        self.inside: Mask = self.below & self.above
        self.sizes = self.log_N[present]

    def some(self, runs: NDArray[np.intp]) -> _Envelope:
        """Of these runs alone."""
        present = np.zeros(len(self.log_N), dtype=bool)
        present[runs] = True
        some = copy(self)
        some._take(present)
        return some

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
        low, high = self.sizes.min() + np.log(MARGIN), self.sizes.max() - np.log(MARGIN)
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


POSTERIOR = "posterior (law with prior)"
CHINCHILLA = 5.76e23
"""FLOPs of Gopher and Chinchilla: Hoffmann et al. 2022, section 4."""
FEWEST_DRAWS = 20
"""Draws with a frontier, below which approach 3 has no intervals."""


@dataclass(frozen=True)
class NoApproach:
    """An approach that these runs do not allow, and the reason."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} is left out: {self.reason}"


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
class ApproachComparison:
    """Approaches side by side at a budget of C FLOPs, and those that the runs do not allow."""

    C: float
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...]
    without: tuple[NoApproach, ...] = ()


def side_by_side(
    columns: tuple[Array, Array, Array, Array],
    law: Law | str,
    *,
    posterior: tuple[Posterior, BudgetLine] | str | None = None,
    curves: Iterable[tuple[float, Array, Array, Array]] | None = None,
    budgets: ArrayLike | None = None,
    level: float = 0.9,
    convention: Convention = "unknown",
) -> tuple[tuple[Approach, ...], tuple[NoApproach, ...]]:
    """The approaches that runs allow, and why they do not allow the others.

    Args:
        columns: C, N, D and losses of the finished runs, each [n].
        law: fitted to them; or why there is none.
        posterior: of the runs, and the line of the budget asked for; or why there is none. None: not asked.
        curves: as `loss_envelope` takes them; None: approach 1 is not asked.
        budgets: nominal budgets of the isoFLOP profiles; None: by the runs' compute.
        level: of the intervals.
        convention: which parameters N counts.
    """
    found: list[Approach] = []
    without: list[NoApproach] = []

    def ask(name: str, approach: Callable[[], Approach]) -> None:
        try:
            found.append(approach())
        except ValueError as reason:
            without.append(NoApproach(name, str(reason)))

    def by_profiles() -> Approach:
        if (runs := len(columns[0])) < 3:
            raise ValueError(f"several sizes at each of two budgets are needed, got {runs} run{'s' * (runs != 1)}")
        return isoflop_profiles(*columns, budgets=budgets, level=level, convention=convention)

    if isinstance(posterior, tuple):
        found.append(posterior_approach(*posterior, level))
    elif posterior is not None:
        without.append(NoApproach("posterior", posterior))
    if curves is not None:
        ask("approach 1 (envelope)", lambda: loss_envelope(curves, level=level, convention=convention))
    ask("approach 2 (isoFLOP minima)", by_profiles)
    if isinstance(law, str):
        without.append(NoApproach("approach 3 (parametric)", law))
    else:
        ask("approach 3 (parametric)", lambda: approach_3(law, level, typical_rate(*columns[:3])))
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
    if law.form.name != "hoffmann":
        raise ValueError(f"expected a law of Hoffmann's form, got {law.form.name}: {law.form.text}")
    names = ("A", "B", "alpha", "beta")
    point = np.array([[float(law.constants[name]) for name in names]])
    if not (np.isfinite(point) & (point > 0)).all():
        told = ", ".join(f"{name}={value:g}" for name, value in zip(names, point[0], strict=True))
        raise ValueError(f"expected positive A, B, α and β, got {told}: this law has no compute-optimal size")
    here = _frontier(point, flops_per_param_token)[0]
    draws: Array | None = None
    warnings: list[str] = []
    if law.draws is None:
        warnings.append("the law has no draws of its constants: no intervals")
    else:
        drawn = np.stack([law.draws[name] for name in names], axis=1)
        good = drawn[(np.isfinite(drawn) & (drawn > 0)).all(axis=1)]
        if len(good) < len(drawn):
            warnings.append(f"{len(drawn) - len(good)} of {len(drawn)} draws have no compute-optimal size: left out")
        if len(good) < FEWEST_DRAWS:
            warnings.append(f"no intervals: {len(good)} draws have a compute-optimal size")
        else:
            draws = _frontier(good, flops_per_param_token)
    N, D = (drawn_line(here[i], here[i + 1], None if draws is None else draws[:, i : i + 2]) for i in (0, 2))
    return Approach(
        "approach 3 (parametric)",
        3,
        N,
        D,
        check_level(level),
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


def posterior_approach(posterior: Posterior, target: BudgetLine, level: float) -> Approach:
    """The posterior's law as power laws through its optima at the largest budget and at the target."""
    at = math.log(target.C)
    below = target.at(posterior.largest if 1.5 * posterior.largest < target.C else target.C / 10)
    lines = []
    high, low = posterior.sizes(target), posterior.sizes(below)
    for up, down in (
        (high, low),
        (np.log(target.tokens(np.exp(high))), np.log(below.tokens(np.exp(low)))),
    ):
        slope = (up - down) / math.log(target.C / below.C)
        # the exponent's median, and a prefactor that gives the median size at the target
        middle = float(np.median(slope))
        lines.append(drawn_line(float(np.median(up)) - middle * at, middle, np.stack([up - slope * at, slope], axis=1)))
    return Approach(POSTERIOR, 0, lines[0], lines[1], level, n=len(high))


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
    rows, pairs, warnings = [], [], []
    for i, x in enumerate(approaches):
        (N, D), ends = x.allocate(C), x.allocate_intervals(C) or (None, None)
        rows.append(Row(x.name, x.a, x.intervals.get("a"), x.b, x.intervals.get("b"), N, ends[0], D, ends[1]))
        warnings += [f"{x.name}: {told}" for told in x.warnings]
        for y in approaches[i + 1 :]:
            if x.convention != y.convention and "unknown" not in (x.convention, y.convention):
                warnings.append(
                    f"{x.name} counts N as {x.convention}, {y.name} as {y.convention}: their exponents differ "
                    "for that alone"
                )
            if "a" not in x.intervals or "a" not in y.intervals:
                continue
            (l1, h1), (l2, h2) = x.intervals["a"], y.intervals["a"]
            error = math.hypot(x.standard_errors["a"], y.standard_errors["a"])
            z = (x.a - y.a) / max(error, 1e-300)
            pairs.append(Pair(x.name, y.name, z, 2 * NormalDist().cdf(-abs(z)), max(l1, l2) <= min(h1, h2)))
            if not pairs[-1].overlap:
                warnings.append(
                    f"{x.name} and {y.name} disagree: a = {x.a:.3f} ({l1:.3f}–{h1:.3f}) against {y.a:.3f} "
                    f"({l2:.3f}–{h2:.3f}), z = {z:.1f}, p = {pairs[-1].p:.2g}"
                )
    return ApproachComparison(C, tuple(rows), tuple(pairs), tuple(warnings), tuple(without))
