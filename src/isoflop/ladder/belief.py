"""What is known of a ladder's law before its runs: published exponents and ratios, widely, and how runs scatter."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from isoflop.fit.planning.map_line import RATIO
from isoflop.ladder.drifting_law import ALPHA, BETA, KAPPA_A, KAPPA_B, RHO, Array, E, P, Q

EXPONENT, EXPONENT_SD = 0.35, 0.25
"""Median of α and of β, and standard deviation of their logarithms: published ones lie in .28–.37 (Hoffmann et al.
2022; Besiroglu et al. 2024; Muennighoff et al. 2023). Then a = β/(α+β) is .50 ± .09; well-tuned sweeps give .46–.52,
others .38–.62 (`fit.planning.map_line`). Wider than there, for a ladder may be of anything."""
SIZE_SD = 0.5
"""Of ln N_opt at the largest budget about 20 tokens per parameter: 2 standard deviations are 2.7 to 150 tokens."""
REDUCIBLE, REDUCIBLE_SD = 0.4, 0.8
"""Share of the loss above E at the largest budget, and standard deviation of its logit: .12 to .77 are 2 of them."""
DRIFT_SD = 0.015
"""Of κ, the change of an exponent per e-fold: over a factor of 100 in size .07 of .35; a then changes by .008 per
e-fold of compute. Public frontiers bend as much: tuned sweeps of Porian et al. 2024 by +.013 ± .002 and +.016 ± .003
(`fit.frontier.bend`, 1e16 to 2e19 FLOPs). With .006 N_opt's 90% intervals held in 64% of 50 worlds of other forms, with
.015 in 84%, and the designs that it asks for miss by less (`benchmarks/ladder_misfits.py`)."""
BEYOND = 0.0015
"""Standard deviation of ln L per e-fold of compute beyond the largest budget that no law foresees (a rate rule's miss,
a bend). Doubt: a choice; over a factor of 300 it is .9%, where Gadre et al. 2024's predictions were off by .7%."""
NOISE, NOISE_SD = 0.004, 0.7
"""Median noise of ln L of a finished run (seed, order, rate off its best), and standard deviation of its logarithm:
.1% to 1.6%. Seeds alone give .1–.3% (Porian et al. 2024: .005 nats below L = 3, more above)."""
SHARED = 0.5
"""Variance that runs of one size share (a shape better or worse than its size), over a run's own."""
FAR = math.log(4)
"""ln of the factor off 20 tokens per parameter, in N, at which a run's noise has grown by √2: there a rate rule's miss
and the law's own form weigh more."""
MIXING_SD = 0.08
"""Of ln ρ, how the terms of size and data combine: 1 in Hoffmann's form. Doubt: a cautious choice."""


def pulls(theta: Array) -> Array:
    """The prior as residuals of standard deviation 1 [rows, 7], θ's origin at 20 tokens per parameter."""
    alpha, beta, rho = np.exp(theta[:, ALPHA]), np.exp(theta[:, BETA]), np.exp(theta[:, RHO])
    size = (rho * (theta[:, ALPHA] - theta[:, BETA]) + theta[:, P] - theta[:, Q]) / (alpha + beta)
    logit = rho * np.logaddexp(theta[:, P] / rho, theta[:, Q] / rho) - theta[:, E]
    return np.stack(
        [
            (theta[:, ALPHA] - math.log(EXPONENT)) / EXPONENT_SD,
            (theta[:, BETA] - math.log(EXPONENT)) / EXPONENT_SD,
            size / SIZE_SD,
            (logit - math.log(REDUCIBLE / (1 - REDUCIBLE))) / REDUCIBLE_SD,
            theta[:, KAPPA_A] / DRIFT_SD,
            theta[:, KAPPA_B] / DRIFT_SD,
            theta[:, RHO] / MIXING_SD,
        ],
        axis=-1,
    )


def prior_laws(count: int, level: float = 3.0, seed: int = 0) -> Array:
    """Laws drawn from the prior, of Hoffmann's form, evenly spread (a scrambled Sobol sequence) [count, 8].

    Args:
        count: how many; a power of two.
        level: loss at the origin, nats per token: of no matter for what runs tell.
        seed: of the scrambling.
    """
    z = stats.norm.ppf(stats.qmc.Sobol(4, seed=seed).random(count))
    log_alpha, log_beta = (math.log(EXPONENT) + EXPONENT_SD * z[:, k] for k in (0, 1))
    share = 1 / (1 + np.exp(-math.log(REDUCIBLE / (1 - REDUCIBLE)) - REDUCIBLE_SD * z[:, 3]))
    alpha, beta = np.exp(log_alpha), np.exp(log_beta)
    log_odds = SIZE_SD * z[:, 2] * (alpha + beta) - log_alpha + log_beta  # p − q
    A = share * level / (1 + np.exp(-log_odds))
    zero = np.zeros(count)
    rows = (np.log((1 - share) * level), np.log(A), np.log(share * level - A), log_alpha, log_beta, zero, zero, zero)
    return np.stack(rows, axis=-1)


def scatter(N: Array, D: Array) -> Array:
    """Covariance of runs' ln L over the variance of one near 20 tokens per parameter [n, n]."""
    off = 0.5 * np.log(D / N / RATIO)
    same = np.abs(np.log(N)[:, None] - np.log(N)[None]) < 1e-6
    return np.diag(1 + (off / FAR) ** 2) + SHARED * same
