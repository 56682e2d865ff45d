"""How sure a fit is: draws of its constants from a bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from isoflop.arrays import Array
from isoflop.fit.newton import Runs, minimise
from isoflop.fit.problem import Prior, weighed

MANY = 5000
"""Runs from which on draws come from the asymptotic normal distribution: a bootstrap's cost is runs × draws."""
Progress = Callable[[float], None]
"""Told what share of a fit is done, 0 to 1."""


def nothing(share: float) -> None:
    """Progress that nobody looks at."""


CHUNK = 120_000
"""Runs × resamples solved side by side: what fits into a processor's cache."""


def draw(
    problem: Runs,
    theta: Array,
    weights: Array,
    delta: float,
    draws: int,
    seed: int,
    prior: Prior | None = None,
    noise: float = 0.0,
    constants: float | None = None,
    progress: Progress = nothing,
) -> Array:
    """θ drawn from its uncertainty [draws, parameters].

    Runs are drawn anew, all residuals with their runs (noise that depends on N stays with it). The resamples are
    weights on the same design, and each fit begins at the optimum. Where residuals lie within δ the fit is one of
    squares, and multinomial weights (Efron 1979) give intervals that cover what they claim, once widened a little for
    the constants that the residuals were fitted with. Where they lie beyond, the fit is in effect a median, for which
    those spread too far on a few dozen runs (90% intervals covered 95–98% in our simulations); exponential weights
    (Rubin 1981) do not. So each takes its share of the draws (`tests/test_fit_coverage.py` measures the result).

    Priors are drawn anew like runs: each draw has means of its own, as far off as the priors are uncertain. Of a linear
    law this gives the posterior itself.

    Args:
        problem: the runs.
        theta: the optimum.
        weights: of the runs [n].
        delta: of Huber's loss.
        draws: how many.
        seed: of the draws.
        prior: of the constants, with the `noise` (standard deviation of ln L) that it is weighed by.
        constants: how many the runs fit; default: all.
        progress: told what share is done.
    """
    n = len(problem.log_loss)
    constants = float(len(theta)) if constants is None else constants
    residuals = problem.residuals(theta[None])[0]
    spread = 1.4826 * float(np.median(np.abs(residuals)))
    if n > MANY:
        return _asymptotic(problem, theta, weights, max(delta, 0.1 * spread), draws, seed, prior, noise)
    # a δ far below the noise makes a median, whose resamples stick to single runs and are all kinks for Newton: it is
    # smoothed by a share of the noise that falls with n, as kernels for quantiles are
    asked, delta = delta, max(delta, spread * n ** (-1 / 3))
    if prior is not None:
        prior = weighed(prior, noise, delta, weights)
    centre = theta
    if delta > asked:
        (centre,), _ = minimise(problem, theta[None], weights[None], delta, widest=0.0, tolerance=1e-12, penalty=prior)
    # of its own, so that the runs drawn are the same with a prior and without
    means = None if prior is None else prior.drawn(np.random.default_rng([seed, 1]), draws)
    rng = np.random.default_rng(seed)
    within = float(np.average(np.abs(residuals) < delta, weights=weights))
    counted = round(within**2 * draws)
    found = np.empty((draws, len(theta)))
    rows = max(8, CHUNK // n)
    for first in range(0, draws, rows):
        last = min(draws, first + rows)
        multinomial = min(max(counted - first, 0), last - first)
        drawn = np.concatenate(
            [
                rng.multinomial(n, np.full(n, 1 / n), size=multinomial).astype(np.float64),
                rng.exponential(size=(last - first - multinomial, n)),
            ]
        )
        start = np.repeat(centre[None], last - first, axis=0)
        mine = None if prior is None or means is None else replace(prior, mean=means[first:last])
        resampled = drawn * weights
        found[first:last], _ = minimise(problem, start, resampled, delta, widest=0.0, tolerance=1e-9, penalty=mine)
        progress(last / draws)
    found -= centre
    found[:counted] *= (n / max(n - constants, 1)) ** 0.25
    return theta + found


def _asymptotic(
    problem: Runs,
    theta: Array,
    weights: Array,
    delta: float,
    draws: int,
    seed: int,
    prior: Prior | None,
    noise: float,
) -> Array:
    """Normal draws with the sandwich covariance of an M-estimator (Huber 1967)."""
    (residuals,), (share,) = problem.state(theta[None])
    slope = problem.slope(share)
    spread = 1.4826 * float(np.median(np.abs(residuals)))
    width = max(delta, 1.06 * spread * len(residuals) ** -0.2)
    # E ψ′: the share within δ, from a window wide enough to hold many residuals
    within = float(np.mean(np.abs(residuals) < width)) * min(1.0, delta / width)
    pull = weights * np.clip(residuals, -delta, delta)
    curve, varies = (slope * weights[:, None]).T @ slope * within, (slope * pull[:, None]).T @ (slope * pull[:, None])
    if prior is not None:
        scale = weighed(prior, noise, delta, weights).scale
        known = prior.rows(theta).T @ prior.rows(theta)
        curve, varies = curve + scale * known, varies + scale**2 * known
    bread = np.linalg.pinv(curve)
    covariance = bread @ varies @ bread
    return np.random.default_rng(seed).multivariate_normal(theta, covariance, size=draws, method="svd")


def influence(
    problem: Runs, theta: Array, weights: Array, delta: float, drawn: Array, prior: Prior | None = None
) -> Array:
    """Change of each free constant [n, free], in standard deviations of the draws, when a run is left out."""
    n, rows = len(problem.log_loss), max(1, CHUNK // len(problem.log_loss))
    moved = np.empty((n, len(theta)))
    for first in range(0, n, rows):
        out = np.arange(first, min(n, first + rows))
        left = np.repeat(weights[None], len(out), axis=0)
        left[np.arange(len(out)), out] = 0
        start = np.repeat(theta[None], len(out), axis=0)
        moved[out], _ = minimise(problem, start, left, delta, widest=0.0, tolerance=1e-10, penalty=prior)
    return (moved - theta) / np.maximum(drawn.std(axis=0), 1e-300)
