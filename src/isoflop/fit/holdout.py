"""How well a law extrapolates: fitted to the runs below a budget, it predicts those above.

What fitting below a budget and predicting above it found, printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from isoflop.arrays import Array
from isoflop.fit.fit_law import LawFit, fit_law
from isoflop.fit.runs import BadData, check_runs
from isoflop.fit.search import FEW
from isoflop.laws.forms import FORMS, TRAINING_FLOPS

_PRINTED = 12


@dataclass(frozen=True, eq=False)
class Extrapolation:
    """A law fitted to small runs, held against larger ones.

    Attributes:
        fit: of the runs up to `below`.
        by: what the runs were parted by.
        below: the largest value that was fitted to.
        rows: what each test run is called [m], the smallest budget first, like all that follows.
        budget: of the test runs, in the unit of `by` [m].
        loss: what they reached, nats per token [m].
        predicted: what the law expects [m].
        low, high: the prediction's interval at the fit's level, with the noise of single runs [m]; 0 and ∞ where there
            are too few runs to tell their noise.
        error: predicted/loss − 1 [m].
        reach: the largest test budget over the largest fitted one.
        median_error, largest_error: of |error|.
        inside: share of the test runs inside their intervals; None where there are none.
        trusted: whether the test runs, and those of the farther half of the way (in ln budget) by themselves, lie
            inside their intervals as often as the law's draws expect; None where they are too few to tell.
        verdict: in a sentence or two.
    """

    fit: LawFit
    by: str
    below: float
    rows: tuple[object, ...] = field(repr=False)
    budget: Array = field(repr=False)
    loss: Array = field(repr=False)
    predicted: Array = field(repr=False)
    low: Array = field(repr=False)
    high: Array = field(repr=False)
    error: Array = field(repr=False)
    reach: float
    median_error: float
    largest_error: float
    inside: float | None
    trusted: bool | None
    verdict: str

    def __str__(self) -> str:
        level = f"{self.fit.level:.0%}"
        lines = [
            f"{self.fit.law.form.text}   fitted to {self.fit.n} runs up to {self.by} = {self.below:.4g}, tested on "
            f"{len(self.loss)} above",
            f"  {'run':>10} {self.by:>10} {'measured':>9} {'predicted':>9}   {level + ' interval':17} {'error':>8}",
        ]
        shown = np.unique(np.linspace(0, len(self.loss) - 1, min(_PRINTED, len(self.loss))).round().astype(int))
        for i in shown:
            between = f"{self.low[i]:.4f} … {self.high[i]:.4f}" if self.inside is not None else "unknown"
            outside = "" if self.low[i] <= self.loss[i] <= self.high[i] else " outside"
            lines.append(
                f"  {self.rows[i]!s:>10.10} {self.budget[i]:>10.4g} {self.loss[i]:>9.4f} {self.predicted[i]:>9.4f}   "
                f"{between:17} {self.error[i]:>+8.2%}{outside}"
            )
        if len(shown) < len(self.loss):
            lines.append(f"  ({len(self.loss) - len(shown)} more runs between these)")
        inside = "" if self.inside is None else f"; {self.inside:.0%} inside the {level} interval"
        lines.append(f"  |error|: median {self.median_error:.2%}, largest {self.largest_error:.2%}{inside}")
        lines.append(f"  {self.verdict}")
        return "\n".join(lines + [f"  ! {warning}" for warning in self.fit.warnings])


SURPRISING = 0.05
"""Probability, by the draws, of as few runs inside their intervals from which on it is no accident. A binomial
distribution would not do: all predictions share the constants' errors, so runs leave their intervals together."""
TELLING = 5
"""Test runs below which all being inside says little: by chance 90% intervals hold 4 of 4 in two cases of three."""


def extrapolation(
    form: str, columns: Mapping[str, ArrayLike], below: float, *, by: str = "C", **fit_options: Any
) -> Extrapolation:
    """Fit a law to the runs up to a budget and predict those above it.

    Args:
        form: as in `fitting.fit_law`.
        columns: the law's variables and "loss", one number a run.
        below: the largest budget that is fitted to.
        by: the column that parts the runs. "C" needs none: without one it is 6·N·D FLOPs.
        fit_options: of `fitting.fit_law`; what it takes by run (`weights`, `groups`, `rows`) is for all runs.

    Raises:
        ValueError: no runs below or above, or fewer below than the law has free constants; `BadData` names row and
            column of a value that can't be.

    >>> N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e9, 7), np.geomspace(1e9, 1e11, 7)))
    >>> noise = np.random.default_rng(0).normal(0, 0.003, N.size)
    >>> loss = (1.7 + 400 / N**0.34 + 410 / D**0.28) * np.exp(noise)
    >>> result = extrapolation("hoffmann", {"N": N, "D": D, "loss": loss}, below=1e19)
    >>> result.fit.n, len(result.loss), result.trusted, bool(result.largest_error < 0.02)
    (28, 21, True, True)
    """
    if form not in FORMS:
        raise ValueError(f"expected one of the laws {', '.join(FORMS)}, got {form!r}")
    if not np.isfinite(below) or below <= 0:
        raise ValueError(f"below= expects a positive budget in the unit of {by!r}, got {below!r}")
    columns = dict(columns)
    if by not in columns and by == "C":
        if not {"N", "D"} <= set(columns):
            raise BadData(
                f"expected a column 'C' (FLOPs), or N and D for 6·N·D, got {', '.join(columns) or 'none'}; "
                "by= names another column"
            )
        both = check_runs(columns, ("N", "D"), rows=fit_options.get("rows")).variables
        columns["C"] = TRAINING_FLOPS * both["N"] * both["D"]
    names = FORMS[form].variables
    runs = check_runs(columns, tuple(dict.fromkeys((*names, by))), fit_options.get("weights"), fit_options.get("rows"))
    budget = runs.variables[by]
    fitted = budget <= below
    options, rows = _options(form, fit_options, fitted, runs.weights)
    _enough(fitted, runs.weights, budget, below, by, _constants(form, options))
    fit = fit_law(form, {name: runs.variables[name][fitted] for name in names} | {"loss": runs.loss[fitted]}, **options)

    test = np.flatnonzero(~fitted)
    test = test[np.argsort(budget[test], kind="stable")]
    variables = {name: runs.variables[name][test] for name in names}
    groups = fit_options.get("groups")
    labels = None if groups is None else [str(groups[i]) for i in test]
    predicted, drawn = _predict(form, fit, variables, labels)
    free = _constants(form, options)
    knows = fit.n >= free + FEW
    low, high = np.zeros(len(test)), np.full(len(test), np.inf)
    loss = runs.loss[test]
    inside = chance = None
    if knows:
        tails = [(1 - fit.level) / 2, (1 + fit.level) / 2]
        expected = drawn / np.exp(_noise(fit, free, drawn.shape, options.get("seed", 0)))
        quantiles = np.quantile(expected, tails, axis=0)
        low, high = quantiles[0], quantiles[1]
        inside = float(np.mean((low <= loss) & (loss <= high)))
        hits, expected_hits = (low <= loss) & (loss <= high), (low <= expected) & (expected <= high)
        far = np.log(budget[test]) >= 0.5 * np.log(budget[fitted].max() * budget[test].max())
        chance = min(_chance(hits, expected_hits), _chance(hits[far], expected_hits[:, far]))
    error = predicted / loss - 1
    reach = float(budget[test].max() / budget[fitted].max())
    trusted, verdict = _verdict(fit, free, error, inside, chance, reach, by, float(budget[test].max()))
    return Extrapolation(
        fit=fit,
        by=by,
        below=float(below),
        rows=tuple(rows[i] for i in test),
        budget=budget[test],
        loss=loss,
        predicted=predicted,
        low=low,
        high=high,
        error=error,
        reach=reach,
        median_error=float(np.median(np.abs(error))),
        largest_error=float(np.abs(error).max()),
        inside=inside,
        trusted=trusted,
        verdict=verdict,
    )


def _options(
    form: str, fit_options: Mapping[str, Any], fitted: Any, weights: Array
) -> tuple[dict[str, Any], list[object]]:
    """Options for the runs that are fitted, and what all runs are called."""
    rows = list(fit_options.get("rows") or range(1, len(fitted) + 1))
    options = dict(fit_options, rows=_pick(rows, fitted), weights=weights[fitted])
    groups = fit_options.get("groups")
    if groups is not None:
        if len(groups) != len(fitted):
            raise ValueError(f"groups= expects a label for each of {len(fitted)} runs, got {len(groups)}")
        options["groups"] = _pick(groups, fitted)
    return options, rows


def _constants(form: str, options: Mapping[str, Any]) -> int:
    """How many constants are fitted."""
    own = set(options.get("own") or ())
    groups = len({str(label) for label in options.get("groups") or [""]})
    fixed = len(options.get("fixed") or {})
    return sum(groups if name in own else 1 for name in FORMS[form].constants) - fixed


def _enough(fitted: Any, weights: Array, budget: Array, below: float, by: str, free: int) -> None:
    between = f"the budgets ({by}) run from {budget.min():.4g} to {budget.max():.4g}"
    if not fitted.any():
        raise ValueError(f"no run has {by} ≤ {below:.4g}, so there is nothing to fit: {between}; raise below=")
    if fitted.all():
        raise ValueError(f"no run has {by} > {below:.4g}, so there is nothing to predict: {between}; lower below=")
    count = int((fitted & (weights > 0)).sum())
    if count < free:
        raise ValueError(
            f"{count} runs have {by} ≤ {below:.4g}, too few to fit {free} constants: raise below=, or hold constants "
            "with fixed="
        )


def _pick(values: Sequence[Any], which: Any) -> list[Any]:
    return [value for value, taken in zip(values, which, strict=True) if taken]


def _predict(
    form: str, fit: LawFit, variables: Mapping[str, Array], labels: Sequence[str] | None
) -> tuple[Array, Array]:
    """L̂ of the test runs [m], and by each draw of the constants [draws, m]; a group's runs by its own constants."""
    points = list(variables.values())
    constants: dict[str, ArrayLike] = {}
    draws: dict[str, Array] = {}
    for name in FORMS[form].constants:
        if name in fit.parameters:
            constants[name], draws[name] = fit.parameters[name], fit.draws[name][:, None]
            continue
        own = [f"{name}[{label}]" for label in labels or ()]
        missing = next((label for label, key in zip(labels or (), own, strict=True) if key not in fit.parameters), None)
        if missing is not None:
            raise ValueError(f"no run of the group {missing!r} is small enough to fit its {name}: raise below=")
        constants[name] = np.array([fit.parameters[key] for key in own])
        draws[name] = np.column_stack([fit.draws[key] for key in own])
    function = FORMS[form].function
    return np.asarray(function(*points, **constants)), np.asarray(function(*points, **draws))


def _noise(fit: LawFit, free: int, shape: tuple[int, ...], seed: int) -> Array:
    """Residuals as new runs will have them: those of the fit drawn anew, wider by the constants that were fitted."""
    widen = np.sqrt(fit.n / (fit.n - free))
    return np.random.default_rng([seed, 1]).choice(fit.residuals * widen, size=shape)


def _chance(hits: Any, expected: Any) -> float:
    """Share of the draws by which no more runs lie inside their intervals."""
    return float(np.mean(expected.mean(axis=1) <= hits.mean()))


def _verdict(
    fit: LawFit,
    free: int,
    error: Array,
    inside: float | None,
    chance: float | None,
    reach: float,
    by: str,
    largest: float,
) -> tuple[bool | None, str]:
    far = f"The test runs reach {reach:.3g} times the largest fitted {by}"
    off = f"the law is off by {np.median(np.abs(error)):.2%} in the median, {np.abs(error).max():.2%} at most"
    if inside is None or chance is None:
        return None, (
            f"{far}, and there {off}; {fit.n} runs for {free} constants tell nothing of their noise, so there is "
            "no interval to hold that against"
        )
    count, m = round(inside * len(error)), len(error)
    if chance < SURPRISING / 2:  # the less likely of two counts
        side = "too high" if np.median(error) > 0 else "too low"
        share = np.mean(np.sign(error) == np.sign(np.median(error)))
        lean = f"; its predictions are {side} for {share:.0%} of them" if share > 0.75 else ""
        return False, (
            f"{far}, and the law can't be trusted that far: {count} of {m} runs lie inside intervals that claim "
            f"{fit.level:.0%}, and {off}{lean}"
        )
    if m < TELLING:
        return None, f"{far}, and there {off}, all that {m} run{'s' * (m > 1)} can tell: too few to trust the law by"
    return True, (
        f"{far}, and nothing there speaks against the law: {count} of {m} runs lie inside intervals that claim "
        f"{fit.level:.0%}, and {off}; beyond {by} = {largest:.3g} nothing was tested"
    )
