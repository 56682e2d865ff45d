"""Fit a law to finished runs: the global optimum of Huber's loss on ln L, with its uncertainty.

What a fit returns: the law, how sure it is, and what the runs do not tell.

`fit_law` for a law that is no sum of powers: the same result, from `general`'s search.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from isoflop.arrays import Array
from isoflop.fit.newton import Problem, Values
from isoflop.fit.problem import PowerSum, Term, power_sum, power_sum_exp, prior_of
from isoflop.fit.runs import Runs, check_runs
from isoflop.fit.search import Optimum, flat_directions, not_identified, optima, optimum, resting, too_few, undetermined
from isoflop.fit.uncertainty import Progress, draw, influence, nothing
from isoflop.laws.forms import FORMS, Convention, Form, Law
from isoflop.laws.frontier import interval


@dataclass(frozen=True)
class LawFit:
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
        n: runs.
        residuals: ln L̂ − ln L [n].
        warnings: what the runs do not tell, and what is odd about them.
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
    """Leave one out: () → change of each free constant [n, free] in standard errors, when a run is left out."""

    def __str__(self) -> str:
        lines = [f"{self.law.form.text}   n = {self.n}, objective {self.objective:.6g}"]
        for name, value in self.parameters.items():
            low, high = self.intervals[name]
            error = f"± {self.standard_errors[name]:<10.3g} {self.level:.0%}: {low:.4g} … {high:.4g}"
            lines.append(f"  {name:8} {value:<12.6g} {error}")
        return "\n".join(lines + [f"  ! {warning}" for warning in self.warnings])


def described(
    form: Form,
    point: Mapping[str, float],
    draws: Mapping[str, Array],
    residuals: Array,
    *,
    fixed: Collection[str],
    unknown: Collection[str],
    level: float,
    convention: Convention,
    objective: float,
    delta: float,
    warnings: tuple[str, ...],
    influence: Callable[[], Array],
) -> LawFit:
    """A fit from its point and draws, both by constant; of `unknown` ones nothing is known, `fixed` have no error."""
    group = next((name[name.index("[") :] for name in point if "[" in name), "")

    def of_first(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: values.get(name + group, values.get(name)) for name in form.constants}

    errors = {name: 0.0 if name in fixed else float(values.std()) for name, values in draws.items()}
    between = {name: interval(values, level) for name, values in draws.items()}
    source = f"fitted to {len(residuals)} runs"
    return LawFit(
        law=Law(form, of_first(point), convention, None if unknown else of_first(draws), source),
        parameters=point,
        standard_errors=errors | dict.fromkeys(unknown, np.inf),
        intervals=between | dict.fromkeys(unknown, (0.0, np.inf)),
        level=level,
        covariance=np.cov(np.stack(list(draws.values()))).reshape(len(draws), len(draws)),
        objective=objective,
        delta=delta,
        n=len(residuals),
        residuals=residuals,
        warnings=warnings,
        draws=draws,
        influence=influence,
    )


SEARCH = 0.7
"""Share of the time that the search for optima takes."""
MOST_DRAWS = 400
"""Some 5 ms each."""
FARTHEST = 200.0
"""Draws of ln R_D* run off where nothing holds them: so far that exp still has a value."""


def fit_general(
    form: Form,
    runs: Runs,
    delta: float,
    fixed: Mapping[str, float],
    level: float,
    draws: int,
    seed: int,
    convention: Convention,
    progress: Progress = nothing,
) -> LawFit:
    """Fit any form by its values; see `fit_law` for the arguments.

    Raises:
        ValueError: a constant that the form does not have, or none left to fit.
    """
    for name in fixed:
        if name not in form.constants:
            raise ValueError(f"expected one of the law's constants {', '.join(form.constants)}, got {name!r}")
    if set(fixed) == set(form.constants):
        raise ValueError("all constants are fixed: nothing is left to fit")
    law = Values(form, runs.variables, np.log(runs.loss), dict(fixed))
    found = optima(law, runs.weights, delta, seed=seed, progress=lambda share: progress(SEARCH * share))
    theta, objective = found[0]
    drawn = np.clip(draw(law, theta, runs.weights, delta, min(draws, MOST_DRAWS), seed), -FARTHEST, FARTHEST)
    flat = flat_directions(law, theta, runs.weights, delta, drawn, found)
    few = too_few(len(runs), len(theta))

    def whole(values: Array) -> dict[str, Array]:
        free = dict(zip(law.free, np.exp(values.T), strict=True))
        return {name: free.get(name, np.full(len(values), fixed.get(name, np.nan))) for name in form.constants}

    said = [f"{len(runs)} runs for {len(theta)} constants: no interval is to be trusted"] if few else []
    return described(
        form,
        {name: float(value[0]) for name, value in whole(theta[None]).items()},
        whole(drawn),
        law.residuals(theta),
        fixed=fixed,
        unknown={name for name in law.free if few or any(name in text.split(":")[0].split() for text in flat)},
        level=level,
        convention=convention,
        objective=objective,
        delta=delta,
        warnings=(*runs.warnings, *said, *flat),
        influence=partial(influence, law, theta, runs.weights, delta, drawn),
    )


DELTA = 1e-3
"""Hoffmann et al. 2022, section 3.3."""
LEAST_ABSOLUTE = "lad"


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
            logarithm. They are weighed against the runs by the noise that these show (`prior`).
        groups: a label a run (its dataset, its family) …
        own: … and the constants of which each group has its own.
        level: of the intervals.
        draws: of the constants, for errors and intervals.
        seed: of the draws.
        convention: which parameters the column N counts.
        rows: what to call each row in messages.
        progress: told now and then what share of the work is done, 0 to 1.

    Raises:
        ValueError: a law that can't be fitted; `BadData` names row and column of a value that can't be.

    >>> N, D = np.meshgrid([1e7, 1e8, 1e9], [1e9, 1e10, 1e11])
    >>> loss = 1.7 + 400 / N**0.34 + 410 / D**0.28
    >>> fit = fit_law("hoffmann", {"N": N.ravel(), "D": D.ravel(), "loss": loss.ravel()}, draws=50)
    >>> {name: round(value, 4) for name, value in fit.parameters.items()}
    {'E': 1.7, 'A': 400.0, 'alpha': 0.34, 'B': 410.0, 'beta': 0.28}
    """
    if form not in FITTED:
        raise ValueError(f"expected a law that can be fitted ({', '.join(FITTED)}), got {form!r}")
    if not 0 < level < 1:
        raise ValueError(f"level= expects a number between 0 and 1, got {level!r}")
    if delta != LEAST_ABSOLUTE and not (isinstance(delta, int | float) and 0 < delta < np.inf):
        raise ValueError(f'delta= expects a positive number or "lad", got {delta!r}')
    if draws < 2:
        raise ValueError(f"draws= expects at least 2, got {draws!r}")
    runs = check_runs(columns, FORMS[form].variables, weights, rows)
    if groups is not None and len(groups) != len(runs):
        raise ValueError(f"groups= expects a label for each of {len(runs)} runs, got {len(groups)}")
    if priors and isinstance(delta, str):
        raise ValueError(f"priors= expects Huber's loss, got delta={LEAST_ABSOLUTE!r}: take a small one, such as 1e-5")
    if form in _GENERAL:
        if priors:
            raise ValueError(f"{form} is no sum of powers: priors= are not for it; fixed= holds a constant")
        if groups is not None or own or isinstance(delta, str):
            raise ValueError(f"{form} is no sum of powers: groups=, own= and delta={LEAST_ABSOLUTE!r} are not for it")
        return fit_general(FORMS[form], runs, delta, fixed or {}, level, draws, seed, convention, progress)
    inner_fixed = _to_terms(form, fixed or {})
    law = power_sum(_TERMS[form], runs.variables, groups, own, inner_fixed)
    prior = prior_of(law, priors or {}, form in _COEFFICIENTS)
    problem = law.problem(np.log(runs.loss))
    best = optimum(law, problem, runs, delta, prior)
    drawn = draw(
        problem, best.theta, runs.weights, best.width, draws, seed, best.prior, best.noise, best.constants, progress
    )
    return _result(form, law, problem, runs, best, drawn, delta, level, convention)


def _result(
    form: str,
    law: PowerSum,
    problem: Problem,
    runs: Runs,
    best: Optimum,
    drawn: Array,
    delta: float | str,
    level: float,
    convention: Convention,
) -> LawFit:
    names, theta, prior = law.names, best.theta, best.prior
    point = dict(zip(names, _from_terms(form, law, law.constants(theta[None]))[0].tolist(), strict=True))
    spread = dict(zip(names, _from_terms(form, law, law.constants(drawn)).T, strict=True))
    inner = dict(zip(law.names, law.constants(drawn).T, strict=True))
    open_ = undetermined(law, problem, theta, drawn, prior, best.constants)
    held = () if prior is None else prior.names
    said = not_identified(law, inner, float(runs.loss.min()), len(runs), open_, best.constants, held)
    return described(
        FORMS[form],
        point,
        spread,
        problem.residuals(theta[None])[0],
        fixed=law.fixed,
        unknown=set(law.free_names) if too_few(len(runs), best.constants) else set(open_),
        level=level,
        convention=convention,
        objective=best.objective,
        delta=0.0 if isinstance(delta, str) else best.width,
        warnings=(*runs.warnings, *said, *resting(prior, drawn)),
        influence=partial(influence, problem, theta, runs.weights, best.width, drawn, prior),
    )


# -- laws as sums of powers --------------------------------------------------------------------------------------------

_TERMS: dict[str, tuple[Term, ...]] = {
    "hoffmann": (Term("E"), Term("A", "N", "alpha"), Term("B", "D", "beta")),
    # Kaplan's (N_c/N)^α_N is one term with the coefficient N_c^α_N
    "kaplan-n": (Term("N_c", "N", "alpha_N"),),
    "kaplan-d": (Term("D_c", "D", "alpha_D"),),
    "kaplan-c": (Term("C_c", "C", "alpha_C"),),
    "kaplan-ns": (Term("N_c", "N", "alpha_N"), Term("S_c", "S_min", "alpha_S")),
    "schaipp": (Term("E"), Term("A_N", "N", "alpha"), Term("A_B", "B", "beta"), Term("A_S", "S", "gamma")),
}
_COEFFICIENTS = ("hoffmann", "schaipp")
"""Forms whose constants are the terms' coefficients themselves."""
_GENERAL = ("kaplan-nd", "muennighoff")
FITTED = (*_TERMS, *_GENERAL)
"""Laws that `fit_law` fits."""


def _from_terms(form: str, law: PowerSum, constants: Array) -> Array:
    """From coefficients of terms to the formula's constants: (N_c/N)^α has the coefficient N_c^α."""
    if form in _COEFFICIENTS:
        return constants
    result = constants.copy()
    for i in np.flatnonzero(~law.is_exponent):
        run, term = np.argwhere(law.coefficient == i)[0]
        result[:, i] = power_sum_exp(np.log(constants[:, i]) / constants[:, law.exponent[run, term]])
    return result


def _to_terms(form: str, fixed: Mapping[str, float]) -> dict[str, float]:
    if form not in _COEFFICIENTS and any(not name.startswith("alpha") for name in fixed):
        raise ValueError(f"{form}: only the exponent can be fixed, got fixed={dict(fixed)}")
    return dict(fixed)
