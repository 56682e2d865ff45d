"""Whether the law describes a ladder's runs: judged by the noise of seeds, not by the noise that the fit found.

A fit takes what its law leaves over for noise, and wider intervals then hold whatever the law misses. So both checks
take the noise of seeds (`SEED`) instead. The largest rung is predicted from those below it. And the runs are held
against the same law with a term in ln N·ln D beside it: an exponent of the data that moves with the size (or terms of
size and data that mix otherwise, as without an irreducible loss in Kaplan et al. 2020, eq. 1.5) shows there first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy.optimize import minimize

from isoflop.arrays import Array
from isoflop.fit.drifting_law import gradient, log_loss, pulls, slopes
from isoflop.fit.posterior import MISFIT, Posterior, misfit, posterior_of_runs, run_covariance

SEED, SEED_SD = 0.002, 0.4
"""Standard deviation of ln L between seeds, and of its logarithm: .1–.3% (Porian et al. 2024; Hoffmann et al. 2022)."""
FORM, FORM_SD = 0.004, 0.5
"""By which ln L may be off the law's form at a factor of 2 from 20 tokens per parameter: half of the fit's prior."""
MOVES = 0.03
"""Standard deviation of the change of β per e-fold of N that the runs are held against: .07 of .35 over a decade."""
ODDS = math.log(2.0)
"""Ln of how much likelier the runs must be with that term: of 60 worlds of the law's own kind 2 are (3%)."""
TIMES = 3.0
"""Fitted noise over that of seeds from which on it is no noise."""
RUNG = 1.5
"""A factor of the largest budget within which runs are its rung."""
FEWEST_BELOW = 5
"""Runs below the largest rung from which it can be predicted."""
LEVEL = 0.9
"""Of the intervals of the largest rung, whatever level is asked: a verdict does not change with it."""
FEWEST_PREDICTED = 3
"""Runs of the largest rung below which their being inside shows nothing: intervals hold one run by chance."""
SURPRISING = 0.05
"""Probability of as few runs inside their intervals from which on it is no accident."""


class Verdict(Enum):
    """Whether the law extrapolates to the largest rung."""

    HOLDS = "the law predicted them"
    UNDECIDED = "too few runs to distinguish a law that does not extrapolate from chance"
    FAILS = "the law does NOT extrapolate: do not rely on it"


@dataclass(frozen=True)
class Predicted:
    """One run of the largest rung: its loss, and what the fit without that rung expected, with an interval."""

    name: str
    loss: float
    expected: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether the loss lies in the interval."""
        return self.low <= self.loss <= self.high


@dataclass(frozen=True)
class LeftOut:
    """The largest rung, predicted without it.

    Attributes:
        runs: of the largest rung.
        fitted_runs: runs below it.
        reach: its budget over the largest that was fitted.
        level: of the intervals.
        chance: probability of as few runs inside their intervals if the law holds.
    """

    runs: tuple[Predicted, ...]
    fitted_runs: int
    reach: float
    level: float
    chance: float

    @property
    def inside(self) -> int:
        """Runs inside their interval."""
        return sum(run.inside for run in self.runs)

    @property
    def passed(self) -> bool:
        """Whether so many inside are no surprise."""
        return self.chance >= SURPRISING

    @property
    def verdict(self) -> Verdict:
        """Whether the law extrapolates."""
        if not self.passed:
            return Verdict.FAILS
        few = len(self.runs) < FEWEST_PREDICTED or 2 * self.inside < len(self.runs)
        return Verdict.UNDECIDED if few else Verdict.HOLDS


def leave_largest_out(names: list[str], N: Array, D: Array, C: Array, loss: Array) -> LeftOut | None:
    """Fit without the largest rung and predict it with seeds' noise; None where too few runs are left.

    All predictions share the law's error, so runs leave their intervals together: the chance comes from draws.
    """
    top = C.max() / RUNG <= C
    if (~top).sum() < FEWEST_BELOW:
        return None
    below = posterior_of_runs(N[~top], D[~top], C[~top], loss[~top])
    rows = np.flatnonzero(top)
    law = np.stack([below.losses(N[i], D[i]) for i in rows], axis=1)
    seeds = run_covariance(N[top], D[top], SEED) - run_covariance(N[top], D[top], 0.0)
    drawn = law + np.random.default_rng(0).standard_normal(law.shape) @ np.linalg.cholesky(seeds).T
    low, middle, high = np.quantile(drawn, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2], axis=0)
    hits = ((low <= np.log(loss[top])) & (np.log(loss[top]) <= high)).sum()
    chance = float(np.mean(((low <= drawn) & (drawn <= high)).sum(axis=1) <= hits))
    runs = tuple(
        Predicted(names[i], float(loss[i]), *(float(np.exp(v[k])) for v in (middle, low, high)))
        for k, i in enumerate(rows)
    )
    return LeftOut(runs, int((~top).sum()), float(C[top].max() / C[~top].max()), LEVEL, chance)


@dataclass(frozen=True)
class Described:
    """Whether the law describes the runs that it was fitted to.

    Attributes:
        odds: ln of how much likelier they are with β that moves with N.
        moves: the change of β per e-fold of N that they ask for.
        noise: fitted noise over that of seeds.
        left_out: the largest rung, predicted without it; None: too few runs are left.
    """

    odds: float
    moves: float
    noise: float
    left_out: LeftOut | None

    @property
    def moving(self) -> bool:
        """Whether β moves with N."""
        return self.odds > ODDS

    @property
    def noisy(self) -> bool:
        """Whether the runs scatter far more than seeds do."""
        return self.noise > TIMES

    @property
    def well(self) -> bool:
        """Whether nothing speaks against the law."""
        return not (self.moving or self.noisy or (self.left_out is not None and not self.left_out.passed))


def described(names: list[str], N: Array, D: Array, C: Array, loss: Array, posterior: Posterior) -> Described:
    """Hold the law against runs [n] of these names."""
    odds, moves = _moving(N, D, loss, posterior)
    noise = float(np.median(posterior.noise)) / SEED
    return Described(odds, moves, noise, leave_largest_out(names, N, D, C, loss))


def _moving(N: Array, D: Array, loss: Array, posterior: Posterior) -> tuple[float, float]:
    """Ln odds that β moves with N, and how much: by Gaussians about the mode, over the best noise of each."""
    theta, x, y = posterior.mode[None], posterior.origin.x(N), posterior.origin.y(D)
    slope, prior, off = slopes(theta, x, y)[0], gradient(pulls, theta)[0], pulls(theta)[0]
    constants = np.linalg.inv(prior.T @ prior + np.diag([1.0, *np.zeros(slope.shape[1] - 1)]))
    law = slope @ constants @ slope.T
    left = np.log(loss) - log_loss(theta, x, y)[0] + slope @ constants @ prior.T @ off  # over the prior's own law
    of_data = -slope[:, 2] * x * y  # ∂ ln L/∂ ln B times what a change of β per e-fold of N does to ln B
    still = run_covariance(N, D, 0.0) - MISFIT**2 * np.diag(misfit(N, D)) + law
    own, form = run_covariance(N, D, 1.0) - run_covariance(N, D, 0.0), np.diag(misfit(N, D))

    def unlikely(scales: Array, moves: float) -> float:
        factor = np.linalg.cholesky(_covariance(scales, moves))
        u = np.linalg.solve(factor, left)
        z = (scales - np.log([SEED, FORM])) / [SEED_SD, FORM_SD]
        return float(0.5 * (u @ u + z @ z) + np.log(np.diag(factor)).sum())

    def _covariance(scales: Array, moves: float) -> Array:
        s, tau = np.exp(2 * np.asarray(scales))
        return np.asarray(s * own + tau * form + still + moves**2 * np.outer(of_data, of_data))

    found = [
        minimize(unlikely, np.log([SEED, FORM]), (moves,), "Nelder-Mead", options={"xatol": 1e-2, "fatol": 1e-2})
        for moves in (0.0, MOVES)
    ]
    weights = np.linalg.solve(_covariance(found[1].x, 0.0), of_data)
    return float(found[0].fun - found[1].fun), float(weights @ left / (weights @ of_data + MOVES**-2))
