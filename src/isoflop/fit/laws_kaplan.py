"""Kaplan et al. 2020 (arXiv:2001.08361) as pure functions: losses, the critical batch size, overfitting.

N non-embedding parameters, D and B tokens, S optimizer steps, C FLOPs (the paper: PF-days), L nats per token.
"""

from __future__ import annotations

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


def critical_batch(L: ArrayLike, *, B_star: ArrayLike = B_STAR, alpha_B: ArrayLike = ALPHA_B) -> Values:
    """B_crit(L) = B*/L^(1/α_B) tokens, whatever the size of the model: eq. 5.3, constants of table 5.

    >>> float((critical_batch(3.0 * 0.865) / critical_batch(3.0)).round(1))  # doubles for 13% off the loss
    2.0
    """
    return values(B_star) / values(L) ** (1 / values(alpha_B))


def minimum_steps(S: ArrayLike, B: ArrayLike, B_crit: ArrayLike) -> Values:
    """S_min = S/(1 + B_crit/B): steps to the same loss at a batch far above critical, eq. 5.4."""
    return values(S) / (1 + values(B_crit) / values(B))


def unique_tokens_needed(N: ArrayLike) -> Values:
    """Unique tokens 5e3·N^0.74 that keep overfitting within the noise, about 2% of the loss: eq. 4.4.

    It speaks of training to convergence on data seen again and again; a single epoch at 20 tokens a parameter passes.
    """
    return 5e3 * values(N) ** 0.74
