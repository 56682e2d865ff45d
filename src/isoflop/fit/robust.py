"""Runs that a law does not describe: single outliers, and fits that are poor as a whole.

A run that diverged, a typing error, an evaluation on other data: its residual is many times the scatter of the others,
and it says nothing of sizes. Where all runs scatter far more than seeds do, the law itself is at fault, or the table
holds several laws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array

Labels = Mapping[str, Sequence[str]] | None
"""Cells of other columns of runs, which may tell kinds, each [n]."""
OUTLYING, LARGE, FAR = 6.0, 0.06, 20.0
"""Of the scatter of the others: a run beyond is left out if it is off by `LARGE` in ln L, or by `FAR` scatters. Three
of Hoffmann et al. 2022's 240 runs, read off a figure, lie 7 to 11 times the scatter off, by 3 to 5%: they stay."""
LEAST_SCATTER = 1e-3
"""Of ln L: seeds alone give more (Porian et al. 2024)."""
MOST = 0.2
"""Share of the runs beyond which they are no outliers: then the law does not describe the runs."""
POOR = 3.0
"""Scatter over that of seeds from which on a fit is poor."""
CHANCE = 0.01
"""Probability from which on it is no chance that outliers have something in common."""
APART = 0.6
"""Scatter within the groups of a column, over that of all, below which the column explains it: recipes that differ as
much as Porian et al. 2024's leave .54."""
FEWEST_OF_KIND = 12
"""Runs of each kind from which on kinds may have slopes of their own."""


@dataclass(frozen=True)
class Outlier:
    """A run that a fit left out: which row (from 0), its loss and what the law expects, nats per token."""

    row: int
    loss: float
    expected: float


def scatter(residuals: Array, constants: float = 0.0) -> float:
    """Standard deviation of ln L by the median of |r|, those left out that a fit of `constants` passes through."""
    size = np.sort(np.abs(residuals))
    return max(1.4826 * float(np.median(size[min(round(constants), len(size) - 1) :])), LEAST_SCATTER)


def outlying(residuals: Array, spread: Array | float) -> NDArray[np.bool_]:
    """Which residuals of ln L are outliers beside a scatter; none where they are many [n]."""
    size = np.abs(residuals)
    far = (size > OUTLYING * spread) & ((size > LARGE) | (size > FAR * spread))
    return far if far.mean() <= MOST else np.zeros(len(far), dtype=bool)


FEWEST_APART = 3
"""Outliers from which on they may be of another kind than the other runs, or have something in common."""


def describe_apart(found: Sequence[Outlier], labels: Mapping[str, Sequence[str]], *quantities: Array) -> str:
    """That outliers are runs of a kind of which others lie with the law: they follow a law of their own, and are no
    outliers; "": they are of no such kind.

    Args:
        found: outliers of a fit.
        labels: cells of other columns, each [n]. One whose kinds lie one after the other by a quantity is no kind; one
            whose kinds share no size is: labs take sizes of their own.
        quantities: N, D, C …, each [n].
    """
    rows = {run.row for run in found}
    for name, cells in labels.items() if len(rows) >= FEWEST_APART else ():
        if any(_steps(cells, quantity) for quantity in quantities):
            continue
        theirs = dict.fromkeys(cells[row] for row in sorted(rows))
        members = sum(cell in theirs for cell in cells)
        if members <= len(cells) / 2 and members / 2 <= len(rows) < members:
            which = ", ".join(f"{cell!r}" for cell in list(theirs)[:3]) + ", …" * (len(theirs) > 3)
            return (
                f"{len(rows)} of the {members} runs of {name} {which} lie far off the law of the others, and none is "
                f"left out for it: the kinds of {name!r} follow several laws. Take one kind (--where), or fit each "
                f"apart (`isoflop fit --group {name}`)"
            )
    return ""


def together(out: NDArray[np.bool_], columns: Mapping[str, Array]) -> str:
    """The column whose high values are those of the outliers (`out` [n]), three or more; "": none.

    Such runs are no accidents: the law does not know of what they have in common.
    """
    k = int(out.sum())
    for name, values in columns.items() if k >= FEWEST_APART else ():
        beside = int((values >= values[out].min()).sum())  # runs at least so far out, outliers or not
        if math.comb(beside, k) < CHANCE * math.comb(len(out), k):
            return name
    return ""


def describe_together(k: int, name: str) -> str:
    """That outliers stay in the fit, for people."""
    return (
        f"{k} runs lie beyond {OUTLYING:g} times the scatter of the others, all of high {name}: they are kept, "
        "for the law does not describe what they have in common"
    )


def seed_noise(loss: Array) -> Array:
    """Standard deviation of losses between seeds, nats per token: .005 up to L = 3, .1 from L = 6, a power law between.

    The numbers in Porian et al. 2024's code (`get_noise_for_loss`), read as thresholds on the loss.
    """
    return np.exp(np.interp(np.log(loss), np.log([3.0, 6.0]), np.log([0.005, 0.1])))


def misfit_of(spread: float, loss: Array) -> float:
    """A scatter of ln L over what seeds alone give at these losses."""
    return spread / float(np.median(seed_noise(loss) / loss))


def kept_rows(n: int, left_out: Sequence[Outlier]) -> NDArray[np.intp]:
    """Rows of n runs without the outliers."""
    return np.delete(np.arange(n), [run.row for run in left_out])


def describe_outliers(found: Sequence[Outlier], called: Sequence[object]) -> str:
    """Which runs are left out, for people."""
    named = "; ".join(f"{called[run.row]}: loss {run.loss:.4g}, {run.expected:.4g} by the law" for run in found[:5])
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    are = "runs are left out: they lie" if len(found) > 1 else "run is left out: it lies"
    return f"{len(found)} {are} beyond {OUTLYING:g} times the scatter of the others ({named}{more})"


def describe_misfit(spread: float, ratio: float, groups: Sequence[str] = (), far: str = "") -> str:
    """That a law does not describe the runs, for people; `groups`: columns that explain it; `far`: a condition."""
    said = (
        f"the law does not describe the runs, or they are noisier than usual: residuals scatter by {spread:.1%}, "
        f"{ratio:.0f} times the {spread / ratio:.1%} that seeds usually give; its constants and intervals are not to "
        "be trusted"
    )
    if groups:
        return (
            f"{said}. Runs of one {groups[0]!r} lie together: name one with --where, or fit them apart: isoflop fit "
            f"--group {groups[0]!r}"
        )
    if far:
        return f"{said}. The runs that lie farthest from the optimum scatter most: leave them out with --where '{far}'"
    return said


FAR_FROM_OPTIMUM = (2.0, 5.0, 200.0, 500.0)
"""Tokens per parameter below or above which runs may lie where no law of N and D holds."""
FEWEST_LEFT, NEARER = 0.5, 0.5
"""Share of the runs that a condition must leave, and their scatter over that of all below which it is worth naming."""


def far_runs(residuals: Array, N: Array, D: Array) -> str:
    """The condition on D/N whose runs scatter less than `NEARER` times all; "": none does, or it leaves too few."""
    ratio, whole = D / N, float(np.sqrt(np.mean(residuals**2)))
    for bound in FAR_FROM_OPTIMUM:
        near = ratio > bound if bound < min(FAR_FROM_OPTIMUM[2:]) else ratio < bound
        if FEWEST_LEFT <= near.mean() < 1 and np.sqrt(np.mean(residuals[near] ** 2)) < NEARER * whole:
            return f"D/N{'>' if bound < min(FAR_FROM_OPTIMUM[2:]) else '<'}{bound:g}"
    return ""


def telling_kinds(labels: Mapping[str, Sequence[str]], *quantities: Array) -> dict[str, Sequence[str]]:
    """Columns that are no function of a run's size, tokens or compute: one of budgets or widths is no kind.

    Not of its loss: corpora may differ by more than all sizes do. `quantities`: N, D, C …, each [n].
    """
    return {name: cells for name, cells in labels.items() if not any(_follows(cells, q) for q in quantities)}


def _steps(cells: Sequence[str], quantity: Array) -> bool:
    """Whether the kinds of a column lie one after the other by a quantity: bands of sizes or budgets."""
    ranked = np.array(cells)[np.argsort(quantity, kind="stable")]
    return int((ranked[1:] != ranked[:-1]).sum()) == len(set(cells)) - 1


def _follows(cells: Sequence[str], quantity: Array) -> bool:
    """Whether a column is a function of a quantity: of its steps, or of its values where these come several times."""
    order = np.argsort(quantity, kind="stable")
    ranked, values = np.array(cells)[order], quantity[order]
    if _steps(cells, quantity):
        return True
    parts = np.split(ranked, np.flatnonzero(np.diff(np.log(values)) > SAME_VALUE) + 1)
    return len(parts) <= len(cells) / 2 and all(len(set(part)) == 1 for part in parts)


SAME_VALUE = 1e-3
"""Of the logarithm of a quantity, within which runs share it."""


def explaining(
    residuals: Array, slope: Array, labels: Mapping[str, Sequence[str]], quantities: Sequence[Array]
) -> list[str]:
    """Columns that explain residuals: with a level for each group of runs, or also slopes, they scatter much less. The
    best first.

    Args:
        residuals: of ln L [n].
        slope: of ln L by the law's constants [n, constants]: these may move with the levels, to first order.
        labels: cells by column, each [n].
        quantities: N, D, C …, each [n], which a column must not follow, and on which a group may depend otherwise.
    """

    def left(design: Array) -> float:
        fitted, _, rank, _ = np.linalg.lstsq(design, residuals, rcond=1e-10)
        return float(np.sqrt(((residuals - design @ fitted) ** 2).sum() / max(len(residuals) - rank, 1)))

    logs = [np.log(quantity / np.median(quantity)) for quantity in quantities]
    trends = np.stack([np.ones(len(residuals)), *logs], axis=1)
    whole, found = left(slope), []
    for name, cells in telling_kinds(labels, *quantities).items():
        levels = np.array(cells)[:, None] == np.array(list(dict.fromkeys(cells)))
        if not 1 < levels.shape[1] <= len(residuals) / 4:
            continue
        within = left(np.column_stack([slope, levels]))
        if levels.sum(axis=0).min() >= FEWEST_OF_KIND:
            own = (levels[:, :, None] * trends[:, None]).reshape(len(residuals), -1)
            within = min(within, left(np.column_stack([slope, own])))
        if within < APART * whole:
            found.append((within, name))
    return [name for _, name in sorted(found)]
