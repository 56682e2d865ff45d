"""Fit a law to finished runs, the global optimum of Huber's loss on ln L, with its uncertainty.

One pipeline for every law: the runs as a problem (`problem`), priors (`prior`), the optimum (`search`),
draws and what the runs do not tell (`uncertainty`). Only residuals and their derivatives depend on the form.

Groups of runs may have constants of their own in one fitted law (`fit_law(groups=…)`): `isoflop.fit.groups`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.arrays import Array
from isoflop.console import Shown
from isoflop.fit.posterior import outliers_of
from isoflop.fit.prior import prior_of
from isoflop.fit.problem import TERMS, is_of, problem_of
from isoflop.fit.robust import (
    MOST,
    POOR,
    Outlier,
    describe_apart,
    describe_misfit,
    describe_outliers,
    describe_together,
    explaining,
    far_runs,
    misfit_of,
    outlying,
    scatter,
    together,
)
from isoflop.fit.runs import Runs, check_runs
from isoflop.fit.search import BOUNDS, Objective, Optimum, optimum
from isoflop.fit.uncertainty import Gap, Progress, Unknown, draw, influence, nothing, too_few, unknown
from isoflop.laws.forms import FORMS, TRAINING_FLOPS, Convention, Law
from isoflop.laws.quantities import interval
from isoflop.logs.files import cell_number
from isoflop.logs.names import EPOCHS, UNIQUE, fact_of
from isoflop.lookup import need

DELTA = 1e-3
"""Hoffmann et al. 2022, section 3.3."""
LEAST_ABSOLUTE, SMALL_DELTA = "lad", 1e-6
"""Least absolute deviations, and the δ of Huber's loss that they start from and are drawn with."""
MOST_DRAWS = 400
"""Of laws that are no sums of powers: some milliseconds each."""
FITTED = (*TERMS, *(name for name, form in FORMS.items() if name not in TERMS and set(form.constants) <= set(BOUNDS)))
"""Laws that `fit_law` fits."""


@dataclass(frozen=True)
class LawFit(Shown):
    """A law fitted to runs.

    Attributes:
        law: with the fitted constants and draws of them (of the first group, where groups have constants of their own;
            no draws where constants are not identified).
        parameters: constants by name; "E[c4]" is a group's own.
        standard_errors: standard deviations of the draws; infinite where nothing can be said.
        intervals: percentile intervals of the draws, at `level`; from 0 to infinity where nothing can be said.
        level: of the intervals.
        covariance: of the draws, in the order of `parameters`; fixed ones have none (0).
        objective: Σ w·huber(ln L̂ − ln L), or Σ w·|ln L̂ − ln L|.
        delta: of Huber's loss; 0: absolute deviations.
        n: runs fitted.
        residuals: ln L̂ − ln L of these [n].
        warnings: what the runs do not tell, and what is odd about them.
        draws: of all constants, each [draws].
        influence: leave one out: () → change of each free constant [n, free] in standard errors, when a run is left
            out.
        unknown: constants that the runs leave open, and why.
        undetermined: those of which nothing can be said: their values are accidents of the search.
        left_out: runs that lie far off the law.
        misfit: scatter of the residuals over what seeds alone give; None: too few runs to tell.
        poor: that the law does not describe the runs, and which of them to leave out; "": it does.
        of_form: the warnings that are about the law's form, as another law may describe the runs.
    """

    law: Law
    parameters: Mapping[str, float]
    standard_errors: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    level: float
    covariance: Array = field(repr=False)
    objective: float
    delta: float
    n: int
    residuals: Array = field(repr=False)
    warnings: tuple[str, ...]
    draws: Mapping[str, Array] = field(repr=False)
    influence: Callable[[], Array] = field(repr=False)
    unknown: tuple[Unknown, ...] = ()
    undetermined: frozenset[str] = frozenset()
    left_out: tuple[Outlier, ...] = ()
    misfit: float | None = None
    poor: str = ""
    of_form: tuple[str, ...] = ()

    @property
    def distances(self) -> tuple[float, float]:
        """Distances from the law, |L/L̂ − 1|, within which half of the runs lie, and nine in ten."""
        half, nine = np.quantile(np.abs(np.expm1(-self.residuals)), [0.5, 0.9], method="higher")
        return float(half), float(nine)  # (residuals are ln L̂ − ln L)

    def __str__(self) -> str:
        lines = [f"{self.law.form.text}   n = {self.n}, objective {self.objective:.6g}"]
        for name, value in self.parameters.items():
            if name in self.undetermined:
                lines.append(f"  {name:8} not determined")
                continue
            low, high = self.intervals[name]
            error = f"± {self.standard_errors[name]:<10.3g} {self.level:.0%}: {low:.4g} … {high:.4g}"
            lines.append(f"  {name:8} {value:<12.6g} {error}")
        return "\n".join(lines + [f"  ! {warning}" for warning in self.warnings])


def fit_law(
    form: str,
    columns: Mapping[str, ArrayLike],
    *,
    weights: ArrayLike | None = None,
    delta: float | str = DELTA,
    fixed: Mapping[str, float] | None = None,
    priors: Mapping[str, tuple[float, float]] | None = None,
    groups: Sequence[str] | None = None,
    own: Sequence[str] = (),
    level: float = 0.9,
    draws: int = 1000,
    seed: int = 0,
    convention: Convention = "unknown",
    rows: Sequence[object] | None = None,
    keep_outliers: bool = False,
    labels: Mapping[str, Sequence[str]] | None = None,
    progress: Progress = nothing,
) -> LawFit:
    """Fit a law.

    Args:
        form: one of `FITTED` (`isoflop.laws.FORMS` has their formulas).
        columns: the law's variables and "loss" (nats per token), one number a run.
        weights: of the runs; default: all alike.
        delta: of Huber's loss on ln L̂ − ln L; "lad": least absolute deviations.
        fixed: constants held at a value.
        priors: (mean, standard deviation) of a Gaussian by constant, such as "alpha" or "E", or by "ln A" for one on a
            logarithm. They are weighed against the runs by the noise that these show (`isoflop.fit.prior`).
        groups: a label a run (its dataset, its family) …
        own: … and the constants of which each group has its own.
        level: of the intervals.
        draws: of the constants, for errors and intervals.
        seed: of the draws.
        convention: which parameters the column N counts.
        rows: what to call each row in messages.
        keep_outliers: fit all runs; default: those that lie far off the law (`isoflop.fit.robust`) are left out, named.
        labels: other columns of the runs, which may explain why one law does not describe them all.
        progress: told now and then what share of the work is done, 0 to 1.

    Raises:
        ValueError: a law that can't be fitted; `BadData` names row and column of a value that can't be.

    >>> N, D = np.meshgrid([1e7, 1e8, 1e9], [1e9, 1e10, 1e11])
    >>> loss = 1.7 + 400 / N**0.34 + 410 / D**0.28
    >>> fit = fit_law("hoffmann", {"N": N.ravel(), "D": D.ravel(), "loss": loss.ravel()}, draws=50)
    >>> {name: round(value, 4) for name, value in fit.parameters.items()}
    {'E': 1.7, 'A': 400.0, 'alpha': 0.34, 'B': 410.0, 'beta': 0.28}
    """
    named = "columns by name, such as {'N': …, 'D': …, 'loss': …} (of records: study(runs).fit)"
    need("columns", isinstance(columns, Mapping), named, columns)
    if form not in FITTED:
        raise ValueError(f"expected a law that can be fitted ({', '.join(FITTED)}), got {form!r}")
    if not 0 < level < 1:
        raise ValueError(f"level= expects a number between 0 and 1, got {level!r}")
    absolute = delta == LEAST_ABSOLUTE
    if not absolute and not (isinstance(delta, int | float) and 0 < delta < np.inf):
        raise ValueError(f'delta= expects a positive number or "lad", got {delta!r}')
    if draws < 2:
        raise ValueError(f"draws= expects at least 2, got {draws!r}")
    runs = check_runs(columns, FORMS[form].variables, weights, rows, convention)
    if groups is not None and len(groups) != len(runs):
        raise ValueError(f"groups= expects a label for each of {len(runs)} runs, got {len(groups)}")
    if priors and absolute:
        raise ValueError(f"priors= expects Huber's loss, got delta={LEAST_ABSOLUTE!r}: take a small one, such as 1e-5")
    width = SMALL_DELTA if absolute else float(delta)

    def best_of(kept: NDArray[np.bool_]) -> Optimum:
        mine = None if groups is None else [group for group, keeps in zip(groups, kept, strict=True) if keeps]
        others = tuple(f"[{group}]" for group in {*(groups or ())} - {*(mine or ())})
        held = {name: value for name, value in (fixed or {}).items() if not name.endswith(others)}
        known = {name: prior for name, prior in (priors or {}).items() if not name.endswith(others)}
        problem = problem_of(FORMS[form], runs.taken(kept), held, mine, own)
        objective = Objective(problem, runs.weights[kept], width, prior_of(problem, known))
        return optimum(objective, absolute=absolute)

    repeats = _repeats(runs, labels or {})
    kinds = {name: cells for name, cells in (labels or {}).items() if name not in repeats}
    if groups is not None and len(set(groups)) > 1:
        kept, best, left_out, common = _by_group(runs, best_of, keep_outliers, groups)
    else:
        kept, best, left_out, common = _without_outliers(runs, best_of, keep_outliers, repeats)
    if apart := describe_apart(left_out, kinds, *_quantities(runs)):
        kept, best, left_out, common = *_without_outliers(runs, best_of, True, repeats)[:3], apart
    drawn = draw(best, draws if form in TERMS else min(draws, MOST_DRAWS), seed, progress)
    fitted = _result(runs.taken(kept), best, drawn, level, convention, 0.0 if absolute else width)
    called = [f"row {i + 1}" for i in range(len(runs))] if rows is None else rows
    others = {name: [cells[i] for i in np.flatnonzero(kept).tolist()] for name, cells in kinds.items()}
    misfit, poor = _misfit(fitted.residuals, runs.taken(kept), best, others)
    told: tuple[str, ...] = (describe_outliers(left_out, called),) if left_out else (common,) if common else ()
    mine = None if groups is None else [groups[i] for i in np.flatnonzero(kept).tolist()]
    of_form = (*_above_the_lowest(fitted, runs.loss[kept], mine), *([poor] if poor else []))
    warnings = (*fitted.warnings, *told, *of_form)
    return replace(fitted, left_out=left_out, misfit=misfit, poor=poor, of_form=of_form, warnings=warnings)


def _above_the_lowest(fitted: LawFit, loss: Array, groups: Sequence[str] | None) -> tuple[str, ...]:
    """That an irreducible loss lies above a loss that runs [n] reached, which no law that describes them has."""
    said = []
    for name in sorted(set(fitted.parameters) - fitted.undetermined):
        mine = loss if groups is None or name == "E" else loss[[name == f"E[{group}]" for group in groups]]
        if is_of("E", name) and mine.size and mine.min() < fitted.parameters[name]:
            said.append(
                f"{name} = {fitted.parameters[name]:.4g}, the least loss that the law allows, lies above a "
                f"measured one, {mine.min():.4g}: the law does not describe the runs near their optimum"
            )
    return tuple(said)


ROUNDS = 4
"""Of leaving outliers out and fitting again."""


def _repeats(runs: Runs, labels: Mapping[str, Sequence[str]]) -> dict[str, Array]:
    """How often each run saw its data, by what is known: columns of epochs or unique tokens, D/U [n]."""
    found = {}
    for name, cells in labels.items():
        if fact_of(name) in (*EPOCHS, *UNIQUE):
            numbers = [cell_number(cell) for cell in cells]
            if None not in numbers:
                found[name] = np.array(numbers, dtype=float)
        if name in found and fact_of(name) in UNIQUE and "D" in runs.variables:
            found[name] = runs.variables["D"] / found[name]
    if {"D", "U"} <= {*runs.variables}:
        found["D/U"] = runs.variables["D"] / runs.variables["U"]
    return found


def _without_outliers(
    runs: Runs,
    best_of: Callable[[NDArray[np.bool_]], Optimum],
    keep: bool,
    repeats: Mapping[str, Array],
    among: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.bool_], Optimum, tuple[Outlier, ...], str]:
    """Which runs the fit keeps [n], their optimum, the others; and a warning where these have repeats in common.

    Runs of N and D are held to the posterior's law, then all to the law that is fitted. `among`: those looked at.
    """
    everything = np.ones(len(runs), dtype=bool) if among is None else among
    whole = best = best_of(everything)
    kept, found = everything, list[Outlier]()
    if keep:
        return everything, whole, (), ""
    if {*runs.variables} == {"N", "D"}:
        rows = np.flatnonzero(everything)
        N, D = runs.variables["N"][rows], runs.variables["D"][rows]
        found = [
            replace(run, row=int(rows[run.row])) for run in outliers_of(N, D, TRAINING_FLOPS * N * D, runs.loss[rows])
        ]
        far = np.isin(np.arange(len(runs)), [run.row for run in found])
        if name := together(far, repeats):
            return everything, whole, (), describe_together(len(found), name)
        if found:
            kept = everything & ~far
            best = best_of(kept)
    first = kept, best, tuple(found), ""
    for _ in range(ROUNDS if everything.sum() >= 2 * best.constants else 0):
        residuals = best.objective.problem.residuals(best.theta[None])[0]
        out = outlying(residuals, scatter(residuals, best.constants))
        if not out.any():
            break
        rows = np.flatnonzero(kept)[out]
        found += [
            Outlier(int(i), float(runs.loss[i]), float(runs.loss[i] * np.exp(r)))
            for i, r in zip(rows, residuals[out], strict=True)
        ]
        if len(found) > MOST * everything.sum():
            return first
        far = np.isin(np.arange(len(runs)), [run.row for run in found])
        if name := together(far, repeats):
            return everything, whole, (), describe_together(len(found), name)
        kept = kept.copy()
        kept[rows] = False
        best = best_of(kept)
    return kept, best, tuple(sorted(found, key=lambda run: run.row)), ""


def _by_group(
    runs: Runs, best_of: Callable[[NDArray[np.bool_]], Optimum], keep: bool, groups: Sequence[str]
) -> tuple[NDArray[np.bool_], Optimum, tuple[Outlier, ...], str]:
    """The same of each group by itself, as a fit to it alone leaves them out."""
    label = np.array(groups)
    parts = [_without_outliers(runs, best_of, keep, {}, label == name) for name in dict.fromkeys(groups)]
    kept = np.any([part[0] for part in parts], axis=0)
    return kept, best_of(kept), tuple(sorted((run for part in parts for run in part[2]), key=lambda run: run.row)), ""


def _misfit(
    residuals: Array, runs: Runs, best: Optimum, labels: Mapping[str, Sequence[str]]
) -> tuple[float | None, str]:
    """Scatter over what seeds give, None for too few runs to tell; and that the law does not describe them."""
    if too_few(len(runs), best.constants):
        return None, ""
    spread = scatter(residuals, best.constants)
    misfit = misfit_of(spread, runs.loss)
    if misfit <= POOR:
        return misfit, ""
    problem = best.objective.problem
    slope = problem.slope(problem.state(best.theta[None]))
    columns = explaining(residuals, slope, labels, _quantities(runs))
    size = [runs.variables[name] for name in "ND" if name in runs.variables]
    far = far_runs(residuals, *size) if len(size) == 2 else ""
    return misfit, describe_misfit(spread, misfit, columns, far)


def _quantities(runs: Runs) -> list[Array]:
    """What a column may be a function of, and is then no kind: the law's variables, N·D and D/N."""
    size = [runs.variables[name] for name in "ND" if name in runs.variables]
    products = [size[0] * size[1], size[1] / size[0]] if len(size) == 2 else []
    return [*runs.variables.values(), *products]


def _result(runs: Runs, best: Optimum, drawn: Array, level: float, convention: Convention, delta: float) -> LawFit:
    problem, open_ = best.objective.problem, unknown(best, drawn)
    closed = frozenset(name for each in open_ if each.closed for name in each.names)
    point = dict(zip(problem.names, problem.constants(best.theta[None])[0].tolist(), strict=True))
    spread = dict(zip(problem.names, problem.constants(drawn).T, strict=True))
    errors = {name: 0.0 if name in problem.fixed else float(values.std()) for name, values in spread.items()}
    between = {name: interval(values, level) for name, values in spread.items()}
    # where groups have constants of their own, the law is the first group's
    first = {constant: next(name for name in point if is_of(constant, name)) for constant in problem.form.constants}
    chosen = {constant: point[name] for constant, name in first.items()}
    draws = None if closed else {constant: spread[name] for constant, name in first.items()}
    return LawFit(
        law=Law(problem.form, chosen, convention, draws, f"fitted to {len(runs)} run{'s' * (len(runs) != 1)}"),
        parameters=point,
        standard_errors=errors | dict.fromkeys(closed, np.inf),
        intervals=between | dict.fromkeys(closed, (0.0, np.inf)),
        level=level,
        covariance=np.cov(np.stack(list(spread.values()))).reshape(len(spread), len(spread)),
        objective=best.value,
        delta=delta,
        n=len(runs),
        residuals=problem.residuals(best.theta[None])[0],
        unknown=tuple(open_),
        undetermined=frozenset(n for each in open_ if each.closed and each.gap != Gap.FEW for n in each.names),
        warnings=(*runs.warnings, *map(str, open_)),
        draws=spread,
        influence=partial(influence, best, drawn),
    )
