"""Groups of runs at equal compute: the loss of each at its best size, and the compute that it takes for the least one.

Each group has constants of its own in one fitted law (`fit_law(groups=…)`). At a budget C that the runs of all groups
reach, group g has the loss L_g(C) = min L_g(N, D) where C = 6·N·D, and reaches the least loss of all at C_g: C_g/C is
what it costs to be in that group. Both are computed draw by draw, so differences can be sure while intervals overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from isoflop.arrays import Array
from isoflop.fit.law_fit import LawFit
from isoflop.fit.robust import kept_rows
from isoflop.laws.forms import HOFFMANN, TRAINING_FLOPS
from isoflop.laws.optimum import Cost, hoffmann_at_budget, hoffmann_at_reducible
from isoflop.laws.quantities import interval

COST = Cost(TRAINING_FLOPS, 0.0)


@dataclass(frozen=True)
class GroupAt:
    """A group at one budget.

    Attributes:
        group: its label.
        N, D: parameters and tokens of its least loss at the budget.
        loss, loss_interval: that loss, nats per token.
        above, above_interval: that loss less the least of all groups', nats per token.
        factor, factor_interval: compute that it takes for that least loss, over the budget; infinite: it never does.
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
    """Groups at a budget C that the runs of all of them reach, the least loss first."""

    C: float
    level: float
    rows: tuple[GroupAt, ...]

    @property
    def sentence(self) -> str:
        """Which group has the least loss, and whether that is sure."""
        best, *others = self.rows
        unsure = [row.group for row in others if row.above_interval[0] <= 0]
        if unsure:
            return f"{best.group} has the least loss, but at {self.level:.0%} {', '.join(unsure)} may have it"
        return f"{best.group} has the least loss: at {self.level:.0%} each difference from it excludes 0"


def groups_at_equal_compute(
    fitted: LawFit, groups: Sequence[str], columns: Mapping[str, Sequence[float]]
) -> Groups | str:
    """Compare groups of runs at the largest compute that all of them reach.

    Args:
        fitted: L(N,D) = E + A/N^α + B/D^β, fitted with `groups`.
        groups: the label of each run [n], outliers among them.
        columns: "N" and "D" of these.

    Returns:
        The groups; or why they can't be compared.
    """
    if fitted.law.form.name != HOFFMANN.name:
        return "only Hoffmann's law has a best size at a budget"
    if fitted.law.draws is None or fitted.undetermined:
        return "the runs leave the groups' laws open"
    kept = kept_rows(len(groups), fitted.left_out)
    label, flops = np.asarray(groups)[kept], TRAINING_FLOPS * np.multiply(columns["N"], columns["D"])[kept]
    names = list(dict.fromkeys(label.tolist()))
    C = min(float(flops[label == name].max()) for name in names)
    if max(float(flops[label == name].min()) for name in names) > C:
        return "their runs have no compute in common"
    laws = {name: _constants(fitted, name) for name in names}
    sizes = {name: hoffmann_at_budget(law, C, COST) for name, law in laws.items()}
    losses = {name: HOFFMANN.at({"N": n, "D": d}, laws[name]) for name, (n, d) in sizes.items()}
    if not all(np.isfinite(values[0]) for values in losses.values()):
        return "a group's law has no best size: its exponents or constants are not positive"
    free = len(label) - len(fitted.parameters)
    if free < 1:
        return "as many constants as runs"
    few = (len(label) / free) ** 0.5
    order = sorted(names, key=lambda name: float(losses[name][0]))
    found = []
    for name in order:
        n, d = hoffmann_at_reducible(laws[name], losses[order[0]] - laws[name]["E"], COST)
        loss, above, factor = losses[name], losses[name] - losses[order[0]], TRAINING_FLOPS * n * d / C
        (best_n, best_d), span = sizes[name], partial(_widened, few=few, level=fitted.level)
        found.append(
            GroupAt(
                name, float(best_n[0]), float(best_d[0]),
                float(loss[0]), span(loss),
                float(above[0]), span(above),
                float(factor[0]), span(factor),
            )
        )  # fmt: skip
    return Groups(C, fitted.level, tuple(found))


def _widened(values: Array, few: float, level: float) -> tuple[float, float]:
    """The interval of draws [1 + draws], `few` times as far from the first value, which is the estimate.

    Resampled residuals scatter by (n − p)/n of the noise's variance where p constants were fitted to n runs.
    """
    low, high = interval(values[1:], level)
    if not np.isfinite(values[0]):  # it never reaches the loss
        return low, high
    return float(values[0] + few * (low - values[0])), float(values[0] + few * (high - values[0]))


def _constants(fitted: LawFit, group: str) -> Mapping[str, Array]:
    """The constants of a group's law and of its draws [1 + draws]."""
    found = {}
    for constant in fitted.law.form.constants:
        name = f"{constant}[{group}]" if f"{constant}[{group}]" in fitted.parameters else constant
        found[constant] = np.concatenate([[fitted.parameters[name]], fitted.draws[name]])
    return found
