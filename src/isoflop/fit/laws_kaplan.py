"""Kaplan et al. 2020 (arXiv:2001.08361) as pure functions: losses, batch size, overfitting, the compute-efficient run.

N non-embedding parameters, D and B tokens, S optimizer steps, C FLOPs (the paper: PF-days), L nats per token.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from isoflop.fit.laws import Values, values

PF_DAY = 8.64e19
"""FLOPs of a day at 10^15 FLOP/s."""

B_STAR, ALPHA_B = 2.1e8, 0.21  # table 5; eq. 5.3 rounds B* to 2e8
ALPHA_N_STEPS, ALPHA_S = 0.077, 0.76  # table 3, the fit of L(N,S)


def kaplan_loss_n(N: ArrayLike, *, N_c: ArrayLike, alpha_N: ArrayLike) -> Values:
    """L(N) = (N_c/N)^α_N, trained to convergence on enough data: eq. 1.1."""
    return (values(N_c) / values(N)) ** values(alpha_N)


def kaplan_loss_d(D: ArrayLike, *, D_c: ArrayLike, alpha_D: ArrayLike) -> Values:
    """L(D) = (D_c/D)^α_D, a large model stopped early: eq. 1.2."""
    return (values(D_c) / values(D)) ** values(alpha_D)


def kaplan_loss_c(C: ArrayLike, *, C_c: ArrayLike, alpha_C: ArrayLike) -> Values:
    """L(C_min) = (C_c/C_min)^α_C, the model of optimal size at a batch far below critical: eq. 1.3. FLOPs.

    >>> float(kaplan_loss_c(1e4 * PF_DAY, C_c=3.1e8 * PF_DAY, alpha_C=0.050).round(2))  # eq. 6.8: about 1.7
    1.68
    """
    return (values(C_c) / values(C)) ** values(alpha_C)


def kaplan_loss_nd(
    N: ArrayLike, D: ArrayLike, *, N_c: ArrayLike, D_c: ArrayLike, alpha_N: ArrayLike, alpha_D: ArrayLike
) -> Values:
    """L(N,D) = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D, D unique tokens, stopped early: eq. 1.5."""
    alpha_N, alpha_D = values(alpha_N), values(alpha_D)
    return ((values(N_c) / values(N)) ** (alpha_N / alpha_D) + values(D_c) / values(D)) ** alpha_D


def kaplan_loss_ns(
    N: ArrayLike, S_min: ArrayLike, *, N_c: ArrayLike, S_c: ArrayLike, alpha_N: ArrayLike, alpha_S: ArrayLike
) -> Values:
    """L(N,S_min) = (N_c/N)^α_N + (S_c/S_min)^α_S, data without end: eq. 1.6 and 5.6. S_min: `minimum_steps`."""
    return (values(N_c) / values(N)) ** values(alpha_N) + (values(S_c) / values(S_min)) ** values(alpha_S)


def kaplan_loss_nsb(
    N: ArrayLike,
    S: ArrayLike,
    B: ArrayLike,
    *,
    N_c: ArrayLike,
    S_c: ArrayLike,
    alpha_N: ArrayLike,
    alpha_S: ArrayLike,
    B_star: ArrayLike = B_STAR,
    alpha_B: ArrayLike = ALPHA_B,
) -> Values:
    """The loss after S steps of B tokens: eq. 5.6 with eq. 5.4, whose B_crit is that of the loss which is sought.

    Solved by bisection between the loss at an endless batch and what B_crit of that loss, the largest, would cost.
    """

    def at(L: Values) -> Values:
        steps = minimum_steps(S, B, critical_batch(L, B_star=B_star, alpha_B=alpha_B))
        return kaplan_loss_ns(N, steps, N_c=N_c, S_c=S_c, alpha_N=alpha_N, alpha_S=alpha_S)

    low = kaplan_loss_ns(N, S, N_c=N_c, S_c=S_c, alpha_N=alpha_N, alpha_S=alpha_S)
    high = at(low)
    low = np.broadcast_to(low, high.shape)
    for _ in range(60):
        middle = (low + high) / 2
        above = at(middle) > middle  # `at` falls with L: the root lies above
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return (low + high) / 2


def critical_batch(L: ArrayLike, *, B_star: ArrayLike = B_STAR, alpha_B: ArrayLike = ALPHA_B) -> Values:
    """B_crit(L) = B*/L^(1/α_B) tokens, whatever the size of the model: eq. 5.3, constants of table 5.

    >>> float((critical_batch(3.0 * 0.865) / critical_batch(3.0)).round(1))  # doubles for 13% off the loss
    2.0
    """
    return values(B_star) / values(L) ** (1 / values(alpha_B))


def minimum_steps(S: ArrayLike, B: ArrayLike, B_crit: ArrayLike) -> Values:
    """S_min = S/(1 + B_crit/B): steps to the same loss at a batch far above critical, eq. 5.4."""
    return values(S) / (1 + values(B_crit) / values(B))


def minimum_compute(C: ArrayLike, B: ArrayLike, B_crit: ArrayLike) -> Values:
    """C_min = C/(1 + B/B_crit): compute to the same loss at a batch far below critical, eq. 5.5."""
    return values(C) / (1 + values(B) / values(B_crit))


def overfitting(
    N: ArrayLike,
    D: ArrayLike,
    *,
    N_c: ArrayLike = 6.4e13,
    D_c: ArrayLike = 1.8e13,
    alpha_N: ArrayLike = 0.076,
    alpha_D: ArrayLike = 0.103,
) -> Values:
    """L(N,D)/L(N,∞) − 1 for D unique tokens, eq. 4.3; constants of table 2."""
    alpha_N, alpha_D = values(alpha_N), values(alpha_D)
    return np.expm1(alpha_D * np.log1p((values(N) / values(N_c)) ** (alpha_N / alpha_D) * values(D_c) / values(D)))


def unique_tokens_needed(N: ArrayLike) -> Values:
    """Unique tokens 5e3·N^0.74 that keep overfitting within the noise, about 2% of the loss: eq. 4.4.

    It speaks of training to convergence on data seen again and again; a single epoch at 20 tokens a parameter passes.

    >>> N = 1.5e9
    >>> float(overfitting(N, unique_tokens_needed(N)).round(3))
    0.021
    """
    return 5e3 * values(N) ** 0.74


def optimal_parameters(C_min: ArrayLike) -> Values:
    """N_opt = 1.3e9·C_min^0.73, C_min in PF-days within, FLOPs here: table 6. At the critical batch C = 2·C_min."""
    return 1.3e9 * (values(C_min) / PF_DAY) ** 0.73


def optimal_batch(C_min: ArrayLike) -> Values:
    """B_crit at the loss reached = 2.0e6·C_min^0.24 tokens: table 6."""
    return 2.0e6 * (values(C_min) / PF_DAY) ** 0.24


def optimal_steps(C_min: ArrayLike) -> Values:
    """S_min = 5.4e3·C_min^0.03, the fewest steps; at the critical batch it takes twice as many: table 6."""
    return 5.4e3 * (values(C_min) / PF_DAY) ** 0.03


def optimal_tokens(C_min: ArrayLike) -> Values:
    """D_opt = 2e10·C_min^0.27 tokens at the critical batch, one epoch: table 6.

    Doubt: eq. 6.7 prints 4e10·C_min^0.26 for it; 2·C_min/(6·N_opt) and 2·B·S_min agree with the table.
    """
    return 2e10 * (values(C_min) / PF_DAY) ** 0.27


def compute_ratio(size: ArrayLike, *, alpha_N: ArrayLike = ALPHA_N_STEPS, alpha_S: ArrayLike = ALPHA_S) -> Values:
    """Compute to the same loss with a model `size` times the optimal, over the optimal's: eq. B.16, figure 12.

    Infinite where a model so small never gets there.

    >>> compute_ratio([0.6, 1.0, 2.2]).round(2)
    array([1.16, 1.  , 1.2 ])
    """
    return values(size) * steps_ratio(size, alpha_N=alpha_N, alpha_S=alpha_S)


def steps_ratio(size: ArrayLike, *, alpha_N: ArrayLike = ALPHA_N_STEPS, alpha_S: ArrayLike = ALPHA_S) -> Values:
    """Steps likewise: eq. B.17. Not to be trusted for very large models, which stay in the curve's first transient."""
    alpha_N, alpha_S = values(alpha_N), values(alpha_S)
    left = 1 + alpha_S / alpha_N * (1 - values(size) ** -alpha_N)  # of the loss, for the steps to remove
    with np.errstate(divide="ignore"):
        return np.maximum(left, 0.0) ** (-1 / alpha_S)
