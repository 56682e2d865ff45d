"""Groups of runs at one compute: the least loss L_g of each group g there, and the compute at which g has the least.

One estimator, of ln L_g at C with its error, by what holds of the runs:

**By the law**, where it describes each group's runs: min L_g(N, D) on the budget, times the mean of what the runs near
that optimum have over the law. A law that is off at the edge of its runs is corrected there; the mean's error counts.

**By isoFLOP minima**, where the law does not describe them: at each budget a parabola in ln N through ln L of the sizes
near the best, its vertex ± what the residuals of all budgets and seeds give; between budgets ln L is a line in ln C.

Neither: the groups are not compared. Draws of all groups give differences: which group has the least loss is said for
all pairs of groups together, so that equal groups are called different at most as often as the level states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.arrays import Array
from isoflop.console import listed
from isoflop.fit.law_fit import LawFit
from isoflop.fit.profiles import TOLERANCE, Rows, group, one_per_size
from isoflop.fit.robust import POOR, kept_rows, misfit_of, scatter, seed_noise
from isoflop.laws.forms import HOFFMANN, TRAINING_FLOPS
from isoflop.laws.optimum import Cost, hoffmann_at_budget, hoffmann_at_reducible
from isoflop.laws.quantities import interval

DRAWS = 4000
NEAR_C, NEAR_N, FEWEST_NEAR = 4.0, 4.0, 3
"""Factors of compute and of size about a group's optimum, and the fewest runs there that correct the law."""
WINDOW, FEWEST_SIZES, WIDEST = 0.04, 4, 100.0
"""Of ln L above the best of a budget, up to which sizes belong to its parabola; the fewest of them; and the factor of
size beyond which these are no profile."""
NEAR_BUDGETS, FALLING = 10.0, 4
"""A factor of compute within which budgets share their noise; minima by which the loss falls with compute."""
SAME = 1.02
"""A factor of compute within which a budget is the same: where a group has one alone, its loss is not carried over."""
FARTHEST = 4.0
"""A factor of compute beyond the one compared, up to which a group's own fall of the loss is carried on."""


@dataclass(frozen=True)
class GroupAt:
    """A group at one budget.

    Attributes:
        group: its label.
        N, D: parameters and tokens of its least loss at the budget.
        loss, loss_interval: that loss, nats per token.
        above, above_interval: that loss less the least of all groups', nats per token; of all pairs together.
        factor, factor_interval: compute that it takes for that least loss, over the budget; infinite: it never does, or
            beyond what its runs tell.
    """

    group: str
    N: float
    D: float
    loss: float
    loss_interval: tuple[float, float]
    above: float
    above_interval: tuple[float, float]
    factor: float
    factor_interval: tuple[float, float]


@dataclass(frozen=True)
class Groups:
    """Groups at a budget C that the runs of all of them reach, the least loss first; `by`: the law, or minima."""

    C: float
    level: float
    rows: tuple[GroupAt, ...]
    by: str

    @property
    def unsure(self) -> tuple[str, ...]:
        """Groups that may have the least loss beside the first."""
        return tuple(row.group for row in self.rows[1:] if row.above_interval[0] <= 0)


@dataclass(frozen=True)
class _Least:
    """A group's least loss at C: size, tokens, ln L [1 + draws], and compute over C that a loss takes, by draw."""

    N: float
    D: float
    log_loss: Array
    law: Mapping[str, Array] | None = None
    fall: Array | float = 0.0
    rate: float = TRAINING_FLOPS

    def factor(self, target: Array, C: float) -> Array:
        """Compute at which it has the losses `target` [1 + draws], over C."""
        if self.law is not None:  # the law, moved to the runs near its optimum
            off = np.exp(self.log_loss) - HOFFMANN.at({"N": self.N, "D": self.D}, self.law)
            n, d = hoffmann_at_reducible(self.law, target - off - self.law["E"], Cost(self.rate, 0.0))
            return np.asarray(self.rate * n * d / C)
        far = np.exp((self.log_loss - np.log(target)) / self.fall)
        return np.where(far > FARTHEST, np.inf, far)


def groups_at_equal_compute(
    fitted: LawFit, groups: Sequence[str], columns: Mapping[str, Sequence[float]], C: Sequence[float] = ()
) -> Groups | str:
    """Compare groups of runs at the largest compute that all of them reach.

    Args:
        fitted: L(N,D) = E + A/N^α + B/D^β, fitted with `groups`.
        groups: the label of each run [n], outliers among them.
        columns: "N", "D" and "loss" of these.
        C: training FLOPs of these; default: 6·N·D.

    Returns:
        The groups; or why they can't be compared.
    """
    if fitted.law.form.name != HOFFMANN.name:
        return "only Hoffmann's law has a best size at a budget"
    kept = kept_rows(len(groups), fitted.left_out)
    N, D, L = (np.asarray(columns[name], dtype=float)[kept] for name in ("N", "D", "loss"))
    flops = np.asarray(C, dtype=float)[kept] if len(C) else TRAINING_FLOPS * N * D
    label = np.asarray(groups)[kept]
    runs = {name: np.flatnonzero(label == name) for name in dict.fromkeys(label.tolist())}
    if max(float(flops[rows].min()) for rows in runs.values()) > min(float(flops[r].max()) for r in runs.values()):
        return "their runs have no compute in common"
    table = np.stack([flops, N, D, L], axis=1)
    by, found = "law", _by_law(fitted, table, runs)
    if isinstance(found, str):
        why, by, found = found, "minima", _by_minima(table, runs)
        if isinstance(found, str):
            return f"{why}; {found}"
    at, least = found
    return _compared(at, least, fitted.level, by)


def _compared(C: float, least: Mapping[str, _Least], level: float, by: str) -> Groups:
    order = sorted(least, key=lambda name: float(least[name].log_loss[0]))
    losses = {name: np.exp(each.log_loss) for name, each in least.items()}
    pairs = len(order) * (len(order) - 1) / 2
    rows, best = [], losses[order[0]]
    for name in order:
        loss, above, factor = losses[name], losses[name] - best, least[name].factor(best, C)
        rows.append(
            GroupAt(
                name, least[name].N, least[name].D,
                float(loss[0]), interval(loss[1:], level),
                float(above[0]), interval(above[1:], 1 - (1 - level) / max(pairs, 1.0)),
                float(factor[0]), interval(factor[1:], level),
            )
        )  # fmt: skip
    return Groups(C, level, tuple(rows), by)


def _by_law(fitted: LawFit, table: Array, runs: Mapping[str, Rows]) -> tuple[float, dict[str, _Least]] | str:
    """At the least of the groups' largest compute; or why the law does not tell."""
    if fitted.law.draws is None or fitted.undetermined:
        return "the runs leave the groups' laws open"
    free = len(table) - len(fitted.parameters)
    if free < 1:
        return "as many constants as runs"
    flops, N, D, L = table.T
    poor = [name for name, rows in runs.items() if misfit_of(scatter(fitted.residuals[rows]), L[rows]) > POOR]
    if poor:
        return f"the law does not describe the runs of {listed(poor)}"
    laws = {name: _constants(fitted, name) for name in runs}
    rates = {name: Cost(float(np.median(flops[rows] / (N[rows] * D[rows]))), 0.0) for name, rows in runs.items()}
    most = min(float(flops[rows].max()) for rows in runs.values())
    for C in sorted({*flops[(flops <= most) & (flops >= most / NEAR_BUDGETS**2)].tolist()}, reverse=True):
        best = {name: [float(each[0]) for each in hoffmann_at_budget(laws[name], C, rates[name])] for name in runs}
        if all(
            _among(n, N[rows]) and _among(d, D[rows]) for (n, d), rows in zip(best.values(), runs.values(), strict=True)
        ):
            break
    else:
        return "their best sizes lie beyond their runs"
    few, rng, found = (len(table) / free) ** 0.5, np.random.default_rng(0), {}
    for name, rows in runs.items():
        n, d = best[name]
        near = (np.abs(np.log(N[rows] / n)) < math.log(NEAR_N)) & (np.abs(np.log(flops[rows] / C)) < math.log(NEAR_C))
        off = -fitted.residuals[rows][near] if near.sum() >= FEWEST_NEAR else np.zeros(1)
        noise = max(scatter(fitted.residuals), float(off.std()), float(np.median((seed_noise(L) / L)[rows])))
        drawn = np.log(HOFFMANN.at({"N": n, "D": d}, laws[name]))
        drawn = drawn[0] + few * (drawn - drawn[0]) + off.mean()
        drawn[1:] += noise / math.sqrt(len(off)) * rng.standard_normal(len(drawn) - 1)
        found[name] = _Least(n, d, drawn, laws[name], rate=rates[name].train)
    return C, found


def _among(value: float, values: Array) -> bool:
    """Whether it is a number between the least and the largest."""
    return bool(values.min() <= value <= values.max())


@dataclass(frozen=True)
class _Minimum:
    """Of one budget: ln C, ln N, ln D and ln L there, its error over the noise, and squares of residuals that are free.

    The squares are over those of seeds.
    """

    log_C: float
    log_N: float
    log_D: float
    y: float
    spread: float
    squares: float
    free: int


def _by_minima(table: Array, runs: Mapping[str, Rows]) -> tuple[float, dict[str, _Least]] | str:
    """At the largest compute up to which all groups have isoFLOP minima; or why there are none."""
    minima = {name: _minima(table[rows]) for name, rows in runs.items()}
    if none := [name for name, found in minima.items() if not found]:
        return f"{listed(none)}: no budget has {FEWEST_SIZES} sizes with the least loss among them, not at an end"
    log_C = min(found[-1].log_C for found in minima.values())
    rng, least = np.random.default_rng(0), {}
    near = [m for found in minima.values() for m in found if abs(m.log_C - log_C) < math.log(NEAR_BUDGETS)]
    free = sum(m.free for m in near)
    over_seeds = max(1.0, math.sqrt(sum(m.squares for m in near) / max(free, 1)))
    for name, found in minima.items():
        x, log_N, log_D, y, spread = np.array([(m.log_C, m.log_N, m.log_D, m.y, m.spread) for m in found]).T
        share = np.array([np.interp(log_C, x, own) for own in np.eye(len(x))])  # of the budgets beside, in a line
        beyond, apart = log_C - float(share @ x), np.ptp(x[share > 0])
        few = np.argsort(np.abs(x - log_C))[:FALLING]
        fall = -float(np.polyfit(x[few], y[few], 1)[0]) if len(few) > 1 else math.nan
        if abs(beyond) > (math.log(SAME) if math.isnan(fall) else math.log(TOLERANCE)) or apart > math.log(NEAR_C):
            return f"{name} has no budget of about {math.exp(log_C):.2g} FLOPs with a least loss"
        level = float(share @ y) - (0.0 if math.isnan(fall) else fall * beyond)
        noise = over_seeds * float(seed_noise(np.exp(level)) / np.exp(level))
        drawn = rng.standard_t(free, DRAWS) if free else rng.standard_normal(DRAWS)
        log_loss = level + noise * float(np.linalg.norm(share * spread)) * np.append(0.0, drawn)
        least[name] = _Least(float(np.exp(share @ log_N)), float(np.exp(share @ log_D)), log_loss, fall=fall)
    return math.exp(log_C), least


def _minima(table: Array) -> list[_Minimum]:
    """Of the budgets of one group, by compute."""
    C, N, D, L = table.T
    try:
        budgets = group(C, None)[0]
    except ValueError:  # compute that runs on
        return []
    found = []
    for budget, rows in budgets:
        rows = rows[one_per_size(np.log(N[rows]), L[rows])]
        rows = rows[np.argsort(N[rows])]
        x, y = np.log(N[rows]), np.log(L[rows])
        best = int(np.argmin(y))
        if len(rows) < FEWEST_SIZES or best in (0, len(rows) - 1):
            continue
        near = np.flatnonzero(y < y[best] + WINDOW)
        first, last = int(near[0]), int(near[-1])
        while last - first + 1 < FEWEST_SIZES or best in (first, last):  # the nearer neighbour joins
            left = first > 0 and (last == len(x) - 1 or x[best] - x[first - 1] < x[last + 1] - x[best])
            first, last = (first - 1, last) if left else (first, last + 1)
        u, y = x[first : last + 1] - x[best], y[first : last + 1]
        design = np.stack([np.ones_like(u), u, u * u], axis=1)
        c = np.linalg.lstsq(design, y, rcond=None)[0]
        vertex = -c[1] / (2 * c[2]) if c[2] > 0 else math.inf
        if not u[0] < vertex < u[-1] or np.ptp(u) > math.log(WIDEST):
            continue
        at = np.array([1.0, vertex, vertex**2])
        spread = math.sqrt(float(at @ np.linalg.pinv(design.T @ design) @ at))
        free = len(u) - 3
        squares = float((((y - design @ c) / (seed_noise(np.exp(y)) / np.exp(y))) ** 2).sum())
        log_D = float(np.interp(x[best] + vertex, x, np.log(D[rows])))
        found.append(_Minimum(math.log(budget), float(x[best] + vertex), log_D, float(c @ at), spread, squares, free))
    return found


def _constants(fitted: LawFit, group: str) -> Mapping[str, Array]:
    """The constants of a group's law and of its draws [1 + draws]."""
    found = {}
    for constant in fitted.law.form.constants:
        name = f"{constant}[{group}]" if f"{constant}[{group}]" in fitted.parameters else constant
        found[constant] = np.concatenate([[fitted.parameters[name]], fitted.draws[name]])
    return found
