"""How well a law extrapolates: fitted to the runs below a budget, it predicts those above."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.arrays import Array
from isoflop.fit.law_fit import LawFit, fit_law
from isoflop.fit.runs import BadData, check_runs
from isoflop.fit.uncertainty import too_few
from isoflop.laws.forms import FORMS, compute_of

SURPRISING = 0.05
"""Probability, by the draws, of as few runs inside their intervals from which on it is no accident. A binomial
distribution would not do: all predictions share the constants' errors, so runs leave their intervals together."""
TELLING = 5
"""Test runs below which all being inside says little: by chance 90% intervals hold 4 of 4 in two cases of three."""
LEANING = 0.75
"""Share of predictions on one side from which on that is said."""


@dataclass(frozen=True, eq=False)
class Extrapolation:
    """A law fitted to small runs, held against larger ones.

    Attributes:
        fit: of the runs up to `below`.
        free: constants that were fitted.
        by: the column that parted the runs.
        below: the largest value that was fitted to.
        reach: the largest test budget over the largest fitted one.
        budget: of the test runs, in the unit of `by` [m], the smallest first, like all that follows.
        loss: what they reached, nats per token [m].
        predicted: what the law expects [m].
        low, high: the prediction's interval at the fit's level, with the noise of single runs [m]; 0 and ∞ where there
            are too few runs to tell their noise.
        chance: of so few test runs inside their intervals, by the law's draws, the less likely of all of them and of
            those in the farther half of the way (in ln budget); None where there are no intervals.
    """

    fit: LawFit
    free: int
    by: str
    below: float
    reach: float
    budget: Array = field(repr=False)
    loss: Array = field(repr=False)
    predicted: Array = field(repr=False)
    low: Array = field(repr=False)
    high: Array = field(repr=False)
    chance: float | None

    @cached_property
    def error(self) -> Array:
        """predicted/loss − 1 [m]."""
        return self.predicted / self.loss - 1

    @property
    def inside(self) -> float | None:
        """Share of the test runs inside their intervals; None where there are none."""
        return None if self.chance is None else float(np.mean((self.low <= self.loss) & (self.loss <= self.high)))

    @property
    def trusted(self) -> bool | None:
        """Whether test runs lie inside their intervals as often as the draws expect; None: too few runs to tell."""
        if self.chance is None:
            return None
        if self.chance < SURPRISING / 2:  # the less likely of two counts
            return False
        return None if len(self.loss) < TELLING else True

    @property
    def verdict(self) -> str:
        """That, in a sentence or two."""
        size, m = np.abs(self.error), len(self.loss)
        far = f"The test runs reach {self.reach:.3g} times the largest fitted {self.by}"
        off = f"the law is off by {np.median(size):.2%} in the median, {size.max():.2%} at most"
        if self.inside is None:
            return (
                f"{far}, and there {off}; {self.fit.n} runs for {self.free} constants do not show their noise, so "
                "there is no interval to hold that against"
            )
        claim = f"{round(self.inside * m)} of {m} runs lie inside intervals that claim {self.fit.level:.0%}, and {off}"
        if self.trusted is False:
            side = "too high" if np.median(self.error) > 0 else "too low"
            share = np.mean(np.sign(self.error) == np.sign(np.median(self.error)))
            lean = f"; its predictions are {side} for {share:.0%} of them" if share > LEANING else ""
            return f"{far}, and the law can't be trusted that far: {claim}{lean}"
        if self.trusted is None:
            return f"{far}, and there {off}, all that {m} run{'s' * (m > 1)} can show: too few to trust the law by"
        return f"{far}, and the law holds there: {claim}; beyond {self.by} = {self.budget.max():.3g} nothing was tested"


def extrapolation(
    form: str, columns: Mapping[str, ArrayLike], below: float, *, by: str = "C", **fit_options: Any
) -> Extrapolation:
    """Fit a law to the runs up to a budget and predict those above it.

    Args:
        form: as in `fit_law`.
        columns: the law's variables and "loss", one number a run.
        below: the largest budget that is fitted to.
        by: the column that parts the runs. "C" needs none: without one it is 6·N·D FLOPs.
        fit_options: of `fit_law`, but those that it takes by run.

    Raises:
        ValueError: no runs below or above, or fewer below than the law has free constants; `BadData` names row and
            column of a value that can't be.

    >>> N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e9, 7), np.geomspace(1e9, 1e11, 7)))
    >>> noise = np.random.default_rng(0).normal(0, 0.003, N.size)
    >>> loss = (1.7 + 400 / N**0.34 + 410 / D**0.28) * np.exp(noise)
    >>> result = extrapolation("hoffmann", {"N": N, "D": D, "loss": loss}, below=1e19)
    >>> result.fit.n, len(result.loss), result.trusted, bool(np.abs(result.error).max() < 0.02)
    (28, 21, True, True)
    """
    if form not in FORMS:
        raise ValueError(f"expected one of the laws {', '.join(FORMS)}, got {form!r}")
    if not np.isfinite(below) or below <= 0:
        raise ValueError(f"below= expects a positive budget in the unit of {by!r}, got {below!r}")
    names = FORMS[form].variables
    runs = check_runs(_with_compute(columns, by), tuple(dict.fromkeys((*names, by))))
    budget = runs.variables[by]
    fitted = budget <= below
    free = len(FORMS[form].constants) - len(fit_options.get("fixed") or {})
    _check_parts(fitted, budget, below, by, free)
    fit = fit_law(
        form, {name: runs.variables[name][fitted] for name in names} | {"loss": runs.loss[fitted]}, **fit_options
    )
    test = np.flatnonzero(~fitted)
    test = test[np.argsort(budget[test], kind="stable")]
    variables = {name: runs.variables[name][test] for name in names}
    loss, low, high, chance = runs.loss[test], np.zeros(len(test)), np.full(len(test), np.inf), None
    if not too_few(fit.n, free):
        drawn = FORMS[form].at(variables, {name: draws[:, None] for name, draws in fit.draws.items()})
        expected = drawn / np.exp(_noise(fit, free, drawn.shape, fit_options.get("seed", 0)))
        low, high = np.quantile(expected, [(1 - fit.level) / 2, (1 + fit.level) / 2], axis=0)
        hits, expected_hits = (low <= loss) & (loss <= high), (low <= expected) & (expected <= high)
        far = np.log(budget[test]) >= 0.5 * np.log(budget[fitted].max() * budget[test].max())
        chance = min(_chance(hits, expected_hits), _chance(hits[far], expected_hits[:, far]))
    return Extrapolation(
        fit=fit,
        free=free,
        by=by,
        below=float(below),
        reach=float(budget[test].max() / budget[fitted].max()),
        budget=budget[test],
        loss=loss,
        predicted=fit.law.loss(**variables),
        low=low,
        high=high,
        chance=chance,
    )


def _with_compute(columns: Mapping[str, ArrayLike], by: str) -> Mapping[str, ArrayLike]:
    """The columns, with 6·N·D where compute parts the runs and is not given."""
    if by in columns or by != "C":
        return columns
    if not {"N", "D"} <= set(columns):
        raise BadData(
            f"expected a column 'C' (FLOPs), or N and D for 6·N·D, got {', '.join(columns) or 'none'}; "
            "by= names another column"
        )
    both = check_runs(columns, ("N", "D")).variables
    return {**columns, "C": compute_of(both["N"], both["D"])}


def _check_parts(fitted: NDArray[np.bool_], budget: Array, below: float, by: str, free: int) -> None:
    between = f"the budgets ({by}) run from {budget.min():.4g} to {budget.max():.4g}"
    if not fitted.any():
        raise ValueError(f"no run has {by} ≤ {below:.4g}, so there is nothing to fit: {between}; raise below=")
    if fitted.all():
        raise ValueError(f"no run has {by} > {below:.4g}, so there is nothing to predict: {between}; lower below=")
    if fitted.sum() < free:
        raise ValueError(
            f"{fitted.sum()} runs have {by} ≤ {below:.4g}, too few to fit {free} constants: raise below=, or hold "
            "constants with fixed="
        )


def _noise(fit: LawFit, free: int, shape: tuple[int, ...], seed: int) -> Array:
    """Residuals as new runs will have them: those of the fit drawn anew, wider by the constants that were fitted."""
    widen = np.sqrt(fit.n / (fit.n - free))
    return np.random.default_rng([seed, 1]).choice(fit.residuals * widen, size=shape)


def _chance(hits: NDArray[np.bool_], expected: NDArray[np.bool_]) -> float:
    """Share of the draws by which no more runs lie inside their intervals."""
    return float(np.mean(expected.mean(axis=1) <= hits.mean()))
