"""The frontier of Hoffmann's law, with what presses on it: inference to be paid for, unique tokens that run out.

L = E + A/N^α + B/D^β. On the frontier the marginal returns per FLOP of N and of D are equal. Without constraints
αA/N^α = βB/D^β (Hoffmann et al. 2022, eq. 4); each inference token adds to the price of a parameter and to none of D
(Sardana et al. 2023), so the right side is multiplied by 1 + fixed/(train·D). Both sides are monotone: one root.
"""

from __future__ import annotations

import numpy as np

from isoflop.fit import laws
from isoflop.fit.frontier.solve import Array, Cost, Loss, best_at_budget, root

R_D_STAR, R_N_STAR = 15.387756, 5.309743
"""How fast repeated tokens and excess parameters lose value: Muennighoff et al. 2023, digits of their repository."""
REPEATED = (
    f"repeated tokens are worth less after Muennighoff et al. 2023 (R_D* = {R_D_STAR:.4f}, R_N* = {R_N_STAR:.4f}): "
    f"this law does not know U; their runs hardly identify these two, and no interval here includes that"
)


def at_budget(constants: dict[str, Array], C: float, cost: Cost) -> tuple[Array, Array]:
    """N and D [rows] that minimise L where N·(train·D + fixed) = C.

    Closed form without inference (`laws.hoffmann_allocation`); else the root of αA/N^α = βB/D^β·(1 + fixed/(train·D))
    in log D, which falls from +∞ to −∞.
    """
    A, B, alpha, beta = _valid(constants)
    with np.errstate(all="ignore"):
        if cost.fixed == 0:
            return laws.hoffmann_allocation(C * 6 / cost.train, A=A, B=B, alpha=alpha, beta=beta)
        log_prices = np.log(alpha * A) - np.log(beta * B)

        def per_parameter(log_D: Array) -> Array:
            return np.logaddexp(np.log(cost.train) + log_D, np.log(cost.fixed))

        def balance(log_D: Array) -> Array:
            log_share = per_parameter(log_D) - np.log(cost.train) - log_D
            return alpha * (np.log(C) - per_parameter(log_D)) - beta * log_D + log_share - log_prices

        log_D = root(balance, np.full_like(A, -100.0), np.full_like(A, 300.0))
        return np.exp(np.log(C) - per_parameter(log_D)), np.exp(log_D)


def at_reducible(constants: dict[str, Array], reducible: Array, cost: Cost) -> tuple[Array, Array]:
    """N and D [rows] that reach a loss E + `reducible` with the fewest N·(train·D + fixed) FLOPs; infinite from 0 down.

    By the share u of the reducible loss L − E that A/N^α has: u = a = β/(α+β) without inference; else the root of
    αu = β(1−u)·(1 + fixed/(train·D)), sought in logit u.
    """
    A, B, alpha, beta = _valid(constants)
    with np.errstate(all="ignore"):
        log_r = np.log(np.where(reducible > 0, reducible, np.nan))

        def log_D(logit: Array) -> Array:
            return (np.log(B) - log_r + np.logaddexp(0, logit)) / beta

        def balance(logit: Array) -> Array:
            return logit + np.log(alpha / beta) - np.log1p(cost.fixed / cost.train * np.exp(-log_D(logit)))

        logit = np.log(beta / alpha)
        if cost.fixed > 0:
            logit = root(balance, np.full_like(A, -100.0), np.full_like(A, 300.0))
        N, D = np.exp((np.log(A) - log_r + np.logaddexp(0, -logit)) / alpha), np.exp(log_D(logit))
    never = reducible <= 0
    return np.where(never, np.inf, N), np.where(never, np.inf, D)


def repeated_loss(constants: dict[str, Array], unique_tokens: float) -> Loss:
    """L(N', D') [rows] of a Hoffmann law where only so many unique tokens are in stock: `laws.muennighoff_loss`."""

    def loss(N: Array, D: Array) -> Array:
        with np.errstate(all="ignore"):
            return laws.muennighoff_loss(N, D, unique_tokens, **constants, R_D_star=R_D_STAR, R_N_star=R_N_STAR)

    return loss


def repeated_at_budget(constants: dict[str, Array], C: float, cost: Cost, unique_tokens: float) -> tuple[Array, Array]:
    """N and D [rows] that minimise `repeated_loss`: where the stock lasts for an epoch, the optimum without limit.

    Nothing beats that one then: N' ≤ N and D' ≤ D everywhere, and at it both are equal (inference makes N smaller
    for its D, never larger).
    """
    N, D = best_at_budget(repeated_loss(constants, unique_tokens), np.full_like(constants["A"], C), cost)
    free_N, free_D = at_budget(constants, C, cost)
    return np.where(free_D <= unique_tokens, free_N, N), np.where(free_D <= unique_tokens, free_D, D)


def _valid(constants: dict[str, Array]) -> tuple[Array, Array, Array, Array]:
    """A, B, α, β; NaN in rows where one is not positive: their loss has no minimum along a budget."""
    values = np.stack([constants[name] for name in ("A", "B", "alpha", "beta")])
    good = (np.isfinite(values) & (values > 0)).all(axis=0)
    A, B, alpha, beta = np.where(good, values, np.nan)
    return A, B, alpha, beta
