"""How well a law extrapolates: fitted to the runs below a budget, it predicts those above.

Trust, in one place: a law is trusted beyond its runs where it describes them, these determine all of its constants, at
least five larger runs were predicted within narrow intervals, and as many of them lie inside as the law's draws and as
chance alone explain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import exp, lgamma, log
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from isoflop.arrays import Array
from isoflop.fit.law_fit import LawFit, fit_law
from isoflop.fit.robust import LEAST_SCATTER, POOR, kept_rows
from isoflop.fit.runs import check_runs
from isoflop.fit.uncertainty import FEW, too_few
from isoflop.laws.forms import FORMS, HOFFMANN, compute_of

SURPRISING = 0.05
"""Probability of as few runs inside their intervals from which on it is no accident. By the draws it refutes the law:
all predictions share the constants' errors, so runs leave their intervals together. By a binomial distribution, which
knows nothing of that, it leaves open whether the law holds."""
TELLING = 5
"""Test runs below which all being inside says little: by chance 90% intervals hold 4 of 4 in two cases of three."""
PART, SAME = 0.7, 1.05
"""Share of the runs that are fitted to predict the larger; a factor of compute within which runs share a budget."""
DRAWS = 300
"""Its resamples: enough to tell whether a run lies inside its interval."""
MOST_PERCENT = 10.0
"""An error, over the loss, beyond which its size says nothing."""
WIDE = 0.05
"""Half of an interval over the loss beyond which it holds nearly anything: ten times the compute lower a loss by .1."""
LEANING = 0.75
"""Share of predictions on one side from which on that is said."""


@dataclass(frozen=True, eq=False)
class Extrapolation:
    """A law fitted to small runs, held against larger ones.

    Attributes:
        fit: of the runs up to `below`.
        free: constants that were fitted.
        below: FLOPs of the largest run that was fitted to.
        reach: the largest test budget over the largest fitted one.
        budget: of the test runs, FLOPs [m], the smallest first, like all that follows.
        loss: what they reached, nats per token [m].
        predicted: what the law expects [m].
        low, high: the prediction's interval at the fit's level, with the noise of single runs [m]; 0 and ∞ where there
            are too few runs to tell their noise, or these leave constants open.
        chance: of so few test runs inside their intervals, by the law's draws, the less likely of all of them and of
            those in the farther half of the way (in ln budget); None where there are no intervals.
        open: constants that the smaller runs, or all of them, do not determine.
        misfit: scatter of the runs about the law over what seeds alone give, of the smaller runs or of all, whichever
            is larger; None: too few runs to tell.
    """

    fit: LawFit
    free: int
    below: float
    reach: float
    budget: Array = field(repr=False)
    loss: Array = field(repr=False)
    predicted: Array = field(repr=False)
    low: Array = field(repr=False)
    high: Array = field(repr=False)
    chance: float | None
    open: tuple[str, ...] = ()
    misfit: float | None = None

    @cached_property
    def error(self) -> Array:
        """predicted/loss − 1 [m]."""
        return self.predicted / self.loss - 1

    @property
    def inside(self) -> float | None:
        """Share of the test runs inside their intervals; None where there are none."""
        return None if self.chance is None else float(np.mean((self.low <= self.loss) & (self.loss <= self.high)))

    @property
    def width(self) -> float:
        """Half of an interval over the loss, the median of the test runs."""
        return float(np.median((self.high - self.low) / self.loss)) / 2

    @property
    def few(self) -> bool:
        """Whether fewer test runs lie inside their intervals than chance alone explains."""
        m, level = len(self.loss), self.fit.level
        return self.inside is not None and at_most(round(self.inside * m), m, level) < SURPRISING

    @property
    def fails(self) -> bool:
        """Whether fewer test runs lie inside their intervals than the law's draws explain."""
        return self.chance is not None and self.chance < SURPRISING / 2

    @property
    def trusted(self) -> bool | None:
        """Whether the law describes the runs and predicts the larger ones; None: these can't tell."""
        if self.misfit is not None and self.misfit > POOR:
            return False
        if self.fails:
            return False
        unclear = self.open or self.chance is None or len(self.loss) < TELLING or self.few or self.width > WIDE
        return None if unclear else True

    @property
    def verdict(self) -> str:
        """That, in a sentence or two."""
        size, m = np.abs(self.error), len(self.loss)
        far = f"The test runs reach {self.reach:.3g} times the largest fitted C"
        if self.open:
            return f"The runs do not determine {', '.join(self.open)}: a prediction of the larger ones tests nothing"
        off = f"the law is off by {_percent(np.median(size))} in the median, {_percent(size.max())} at most"
        if self.misfit is not None and self.misfit > POOR:
            return (
                f"{far}, and there {off}; it does not describe the runs, or they are noisier than usual: it can't be "
                "trusted beyond them"
            )
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
            if self.few:
                return f"{far}, and it is open whether the law holds there: only {claim}"
            if m >= TELLING:
                return f"{far}, and intervals of ±{self.width:.0%} there test little: {claim}"
            return f"{far}, and there {off}, all that {m} run{'s' * (m > 1)} can show: too few to trust the law by"
        return f"{far}, and the law holds there: {claim}; beyond C = {self.budget.max():.3g} nothing was tested"


def at_most(k: int, n: int, p: float) -> float:
    """Probability of at most k of n events, each of probability p between 0 and 1 (scipy.stats takes .5 s to import).

    >>> round(at_most(4, 5, 0.9), 6), at_most(5, 5, 0.9)
    (0.40951, 1.0)
    """
    if k >= n:
        return 1.0
    logs = (lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) + i * log(p) + (n - i) * log(1 - p) for i in range(k + 1))
    return sum(map(exp, logs))


def _percent(size: float) -> str:
    return f"{size:.2%}" if size < MOST_PERCENT else f"more than {MOST_PERCENT:.0%}"


def fitted_up_to(C: Array) -> float:
    """FLOPs up to which runs are fitted, so that the larger ones may be predicted: `PART` of them, whole budgets.

    >>> fitted_up_to(np.repeat([1e18, 3e18, 1e19], 7))
    3e+18
    """
    below = SAME * float(np.quantile(C, PART, method="lower"))
    if below >= C.max():  # within the largest budget: that one is predicted
        below = min(below, float(C.max()) / SAME)
    return float(C[below >= C].max(initial=0.0)) or float(C.max())


def held_out(columns: Mapping[str, ArrayLike], fitted: LawFit) -> Extrapolation | str:
    """Hoffmann's law fitted to the smaller runs and held against the larger ones; or why that is not possible.

    Runs that the fit of all left out take no part.
    """
    level, convention = fitted.level, fitted.law.convention
    kept = kept_rows(len(np.asarray(columns["C"])), fitted.left_out)
    runs = {name: np.asarray(column, dtype=float)[kept] for name, column in columns.items()}
    C = runs["C"]
    below, least = fitted_up_to(C), len(HOFFMANN.constants) + FEW
    if (below >= C).sum() < least or (below < C).sum() < TELLING:
        return f"{len(C)} runs are too few: a test takes {least} to fit and {TELLING} larger ones to predict"
    try:
        found = extrapolation("hoffmann", runs, below, level=level, draws=DRAWS, convention=convention)
    except ValueError as error:
        return str(error)
    names = tuple(name for name in fitted.parameters if name in {*found.open, *fitted.undetermined})
    return replace(found, open=names, misfit=max(found.misfit or 0.0, fitted.misfit or 0.0))


def extrapolation(form: str, columns: Mapping[str, ArrayLike], below: float, **fit_options: Any) -> Extrapolation:
    """Fit a law to the runs up to a budget and predict those above it.

    Args:
        form: as in `fit_law`.
        columns: the law's variables, "loss" and "C" (FLOPs; else 6·N·D), one number a run.
        below: FLOPs of the largest run that is fitted to.
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
    names = FORMS[form].variables
    counts = fit_options.get("convention", "unknown")
    if "C" not in columns:
        both = check_runs(columns, ("N", "D"), convention=counts).variables
        columns = {**columns, "C": compute_of(both["N"], both["D"])}
    checked = check_runs(columns, tuple(dict.fromkeys((*names, "C"))), convention=counts)
    # in one order, whatever the file's and however C is rounded: draws go by row
    order = np.lexsort([checked.loss, *(checked.variables[name] for name in names)])
    runs, losses = {name: column[order] for name, column in checked.variables.items()}, checked.loss[order]
    budget = runs["C"]
    fitted = budget <= below
    free = len(FORMS[form].constants) - len(fit_options.get("fixed") or {})
    if fitted.all() or fitted.sum() < free:
        lack = "too few to predict" if fitted.all() else f"too few to fit {free} constants"
        raise ValueError(
            f"{fitted.sum()} of {len(budget)} runs have C ≤ {below:.4g}, {lack}: the budgets run from "
            f"{budget.min():.4g} to {budget.max():.4g}; choose below= between"
        )
    small = {name: runs[name][fitted] for name in names}
    fit = fit_law(form, {**small, "loss": losses[fitted]}, **fit_options)
    test = np.flatnonzero(~fitted)
    variables = {name: runs[name][test] for name in names}
    loss, low, high, chance = losses[test], np.zeros(len(test)), np.full(len(test), np.inf), None
    few = too_few(fit.n, free)
    left_open = () if few else tuple(name for name in fit.parameters if name in fit.undetermined)
    if not (few or left_open):
        drawn = FORMS[form].at(variables, {name: draws[:, None] for name, draws in fit.draws.items()})
        # residuals as new runs will have them: those of the fit, wider by the fitted constants, a seed's at least
        wide = fit.residuals * np.sqrt(fit.n / (fit.n - free))
        rng, scale = np.random.default_rng([fit_options.get("seed", 0), 1]), max(float(wide.std()), LEAST_SCATTER)
        noise = rng.choice(wide, drawn.shape) if wide.std() == scale else scale * rng.standard_normal(drawn.shape)
        expected = drawn / np.exp(noise)
        low, high = np.quantile(expected, [(1 - fit.level) / 2, (1 + fit.level) / 2], axis=0)
        hits, expected_hits = (low <= loss) & (loss <= high), (low <= expected) & (expected <= high)
        far = np.log(budget[test]) >= 0.5 * np.log(budget[fitted].max() * budget[test].max())
        # share of the draws by which no more runs lie inside their intervals
        chance = min(
            float(np.mean(expected_hits[:, part].mean(axis=1) <= hits[part].mean())) for part in (slice(None), far)
        )
    with np.errstate(over="ignore", invalid="ignore"):  # constants that the runs leave open
        predicted = fit.law.loss(**variables)
    rising = np.argsort(budget[test], kind="stable")
    return Extrapolation(
        fit,
        free,
        float(below),
        float(budget[test].max() / budget[fitted].max()),
        budget[test][rising],
        loss[rising],
        predicted[rising],
        low[rising],
        high[rising],
        chance,
        left_open,
        fit.misfit,
    )
