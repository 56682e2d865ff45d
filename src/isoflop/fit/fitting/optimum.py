"""The global optimum of a sum of powers over some runs, with a prior or without."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from isoflop.fit.fitting.data import Runs
from isoflop.fit.fitting.lad import least_absolute
from isoflop.fit.fitting.newton import Array, Problem, huber, minimise
from isoflop.fit.fitting.power_sum import PowerSum
from isoflop.fit.fitting.prior import FIRST_NOISE, Prior, fitted_by_runs, noise_of, weighed
from isoflop.fit.fitting.search import starts

SAME = 1e-3
"""Starts that the continuation in δ has brought this near each other go on as one."""
ROUNDS, SETTLED = 8, 0.02
"""Of the fit under a prior and of the noise that weighs it, and the change of that noise's logarithm that ends them."""
LOST = 1e-2
"""Share of the loss below which a term may have been overlooked: it is looked for again."""

NOISELESS, EXACT, STARTS = 1e-3, 1e-30, 24
"""Residuals of runs with next to no noise, the mean ½r² of an exact fit, starts that are tried in between."""
SMALL, GONE = 0.2, 20.0
"""Share of the loss below which a term is tried without, and by how much ln of its coefficient is lowered for that."""


@dataclass(frozen=True)
class Optimum:
    """θ [free], Σ w·huber there without the prior's part, δ; the prior weighed, the noise it was weighed by.

    `constants`: how many of them the runs fit; what rests on a prior counts less.
    """

    theta: Array
    objective: float
    width: float
    constants: float
    prior: Prior | None = None
    noise: float = 0.0


def optimum(
    law: PowerSum,
    problem: Problem,
    runs: Runs,
    delta: float | str,
    prior: Prior | None = None,
) -> Optimum:
    """Find it.

    Args:
        law: set up for the runs.
        problem: of the law.
        runs: their losses and weights.
        delta: of Huber's loss; "lad": least absolute deviations.
        prior: of the constants.
    """
    log_loss = problem.log_loss
    width = 1e-6 if isinstance(delta, str) else float(delta)
    if prior is not None:
        return _with_prior(law, problem, runs.weights, width, prior)
    found, objectives = minimise(
        problem, starts(law, log_loss, runs.weights, width), runs.weights[None], width, merge=SAME
    )
    theta, objective = found[objectives.argmin()], float(objectives.min())
    _, (share,) = problem.state(theta[None])
    if share.max(axis=1).min() < LOST and law.is_exponent[law.free].any():
        again = starts(law, log_loss, runs.weights, width, around=theta)
        found, objectives = minimise(problem, again, runs.weights[None], width)
        if objectives.min() < objective:
            theta, objective = found[objectives.argmin()], float(objectives.min())
    gone = _without_small_terms(law, problem, theta)
    if len(gone):
        found, objectives = minimise(problem, gone, runs.weights[None], width, widest=0.0)
        if objectives.min() < objective:
            theta, objective = found[objectives.argmin()], float(objectives.min())
    if np.abs(problem.residuals(theta[None])).max() < NOISELESS:
        theta, objective = _to_the_last_digit(law, problem, runs, theta, width)
    if isinstance(delta, str):
        theta, objective = least_absolute(problem, theta, runs.weights)
    return Optimum(theta, objective, width, len(theta))


def _to_the_last_digit(law: PowerSum, problem: Problem, runs: Runs, theta: Array, width: float) -> tuple[Array, float]:
    """Of runs without noise: a term of 1e-5 of the loss is told by digits that Newton's squares of them lose.

    Levenberg and Marquardt's method works on the residuals themselves; from many starts, for such a term's basin is
    narrow, and the other terms' constants hide it while they are not exact.
    """
    root = np.sqrt(runs.weights)

    def residuals(x: Array) -> Array:
        values: Array = root * problem.residuals(x[None])[0]
        return values

    def slope(x: Array) -> Array:
        values: Array = root[:, None] * problem.slope(problem.state(x[None])[1][0])
        return values

    log_loss = problem.log_loss
    begin = [theta[None], starts(law, log_loss, runs.weights, width, keep=STARTS)]
    if law.is_exponent[law.free].any():
        begin.append(starts(law, log_loss, runs.weights, width, around=theta, keep=STARTS))
    best, least = theta, float((runs.weights * huber(problem.residuals(theta[None])[0], width)).sum())
    for x in np.concatenate(begin):
        if len(x) > len(root) or least < EXACT * float(runs.weights.sum()):
            break
        found = least_squares(residuals, x, slope, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=300).x
        value = float((runs.weights * huber(problem.residuals(found[None])[0], width)).sum())
        if value < least:
            best, least = found, value
    return best, least


def _without_small_terms(law: PowerSum, problem: Problem, theta: Array) -> Array:
    """θ with each term that is small at all runs as good as gone [≤ terms, free].

    Where the best E is 0, ln E runs off, and Newton's way there over Huber's kinks is long.
    """
    _, (share,) = problem.state(theta[None])
    rows = []
    for k in np.flatnonzero(share.max(axis=1) < SMALL):
        mine = np.isin(law.free, law.coefficient[:, k])
        rows += [np.where(mine, theta - GONE, theta)] if mine.any() else []
    return np.array(rows)


def _with_prior(law: PowerSum, problem: Problem, weights: Array, width: float, prior: Prior) -> Optimum:
    noise = FIRST_NOISE
    for _ in range(ROUNDS):
        mine = weighed(prior, noise, width, weights)
        begin = starts(law, problem.log_loss, weights, width, prior=mine)
        found, objectives = minimise(problem, begin, weights[None], width, merge=SAME, penalty=mine)
        theta = found[objectives.argmin()]
        constants = fitted_by_runs(problem, theta, weights, prior, noise, width)
        residuals = problem.residuals(theta[None])[0]
        before, noise = noise, noise_of(residuals, weights, constants)
        if abs(np.log(noise / before)) < SETTLED:
            break
    objective = float((weights * huber(residuals, width)).sum())
    return Optimum(theta, objective, width, constants, mine, before)
