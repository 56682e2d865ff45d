"""Whether the law describes a ladder's runs: judged by the noise of seeds, not by the noise that the fit found.

What is asked of all runs is `isoflop.fit.trust`'s; the largest rung is held out. A fit takes what its law leaves over
for noise, and wider intervals then hold whatever the law misses: the noise of seeds (`SEED`) stands in for it. And the
runs are held against the same law with a term in ln N·ln D beside it: an exponent of the data that moves with the size
(or terms of size and data that mix otherwise, as without an irreducible loss in Kaplan et al. 2020, eq. 1.5) shows
there first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from isoflop.arrays import Array
from isoflop.fit.drifting_law import gradient, log_loss, pulls, slopes
from isoflop.fit.posterior import MISFIT, Posterior, misfit, run_covariance
from isoflop.fit.trust import SEED, LeftOut, Trust, leave_out, trust_of
from isoflop.laws.recipes import FEWEST_STEPS, warmup_of

SEED_SD = 0.4
"""Of the logarithm of `SEED`."""
FORM, FORM_SD = 0.004, 0.5
"""By which ln L may be off the law's form at a factor of 2 from 20 tokens per parameter: half of the fit's prior."""
MOVES = 0.03
"""Standard deviation of the change of β per e-fold of N that the runs are held against: .07 of .35 over a decade."""
ODDS = math.log(2.0)
"""Ln of how much likelier the runs must be with that term: of 60 worlds of the law's own kind 2 are (3%)."""
RUNG = 1.5
"""A factor of the largest budget within which runs are its rung."""


@dataclass(frozen=True)
class Described:
    """Whether the law describes the runs that it was fitted to.

    Attributes:
        odds: ln of how much likelier they are with β that moves with N.
        moves: the change of β per e-fold of N that they ask for.
        trust: what is asked of any runs; of a ladder the largest rung is held out.
    """

    odds: float
    moves: float
    trust: Trust

    @property
    def left_out(self) -> LeftOut | None:
        """The largest rung, predicted without it; None: too few runs are left."""
        return self.trust.held if isinstance(self.trust.held, LeftOut) else None

    @property
    def noise(self) -> float:
        """Scatter about the law over that of seeds; 0: too few runs to tell."""
        return self.trust.misfit or 0.0

    @property
    def moving(self) -> bool:
        """Whether β moves with N."""
        return self.odds > ODDS

    @property
    def noisy(self) -> bool:
        """Whether the runs scatter far more than seeds do."""
        return not self.trust.describes

    @property
    def well(self) -> bool:
        """Whether nothing speaks against the law."""
        predicts = self.left_out is None or self.left_out.passed
        return predicts and self.trust.has_floor and not (self.moving or self.noisy)


def described(
    names: list[str], N: Array, D: Array, C: Array, loss: Array, posterior: Posterior, asked: float
) -> Described:
    """Hold the law against runs [n] of these names, for a target of `asked` FLOPs."""
    held = leave_out((C, N, D, loss), C.max() / RUNG <= C, names, SEED)
    trust = trust_of((C, N, D, loss), None, posterior, asked=asked, held=held)
    return Described(*_moving(N, D, loss, posterior), trust)


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


FOLLOWS = 0.5
"""Correlation of what the law misses with ln steps from which on steps explain it."""


def by_steps(ends: Sequence[float], N: Array, D: Array, loss: Array, posterior: Posterior) -> dict[str, float]:
    """How many steps runs [n] have (`ends`), where these are few and explain what the law misses; else empty."""
    steps = np.array(ends)
    beyond = [int(count) - warmup_of(int(count)) for count in ends]
    if min(beyond) >= FEWEST_STEPS or np.ptp(steps) == 0:
        return {}
    follows = float(np.corrcoef(posterior.residuals(N, D, loss)[0], np.log(steps))[0, 1])
    known = {"least": float(steps.min()), "most": float(steps.max()), "enough": float(FEWEST_STEPS)}
    return known if follows > FOLLOWS else {}
