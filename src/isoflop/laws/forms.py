"""Scaling laws as pure functions, and a law with its constants: what fits return and papers print.

N parameters, D and B tokens, S optimizer steps, C training FLOPs, L nats per token; arrays broadcast. A form's
constants are its function's keyword arguments. Which parameters N counts is stated by `Law.convention`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from inspect import signature
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.arrays import Array

Convention = Literal["total", "non_embedding", "non_embedding_with_head", "unknown"]
"""Which parameters N counts (`isoflop.flops.parameters`)."""
TRAINING_FLOPS = 6.0
"""Per parameter and token: forward 2, backward 4. Kaplan et al. 2020, section 2.1."""


def values(x: ArrayLike) -> Array:
    """As an array of floats: an integer array would overflow or refuse a negative power."""
    return np.asarray(x, dtype=float)


# -- compute -----------------------------------------------------------------------------------------------------------


def compute_of(N: ArrayLike, D: ArrayLike, measured: ArrayLike | None = None) -> Array:
    """Training FLOPs of runs or of points of a run: as measured, else 6·N·D. Every compute axis and table shows these.

    Args:
        N: parameters; NaN where unknown.
        D: tokens; NaN where unknown.
        measured: training FLOPs from the record; NaN or None where they were not counted.

    Returns:
        FLOPs, in the arguments' common shape; NaN where neither is known.

    >>> compute_of(1e8, [1e9, 2e9], [9e17, np.nan])
    array([9.0e+17, 1.2e+18])
    """
    with np.errstate(over="ignore"):  # a product beyond 1e308 is no run's
        nominal = TRAINING_FLOPS * values(N) * values(D)
    if measured is None:
        return nominal
    counted = values(measured)
    return np.where(np.isfinite(counted) & (counted > 0), counted, nominal)


LEAST_RATE, ALIKE = 5.7, 1.05
"""FLOPs per parameter and token, of rounded columns, below which no training step of a dense model stays; a factor."""


def understated(C: ArrayLike, N: ArrayLike, D: ArrayLike) -> NDArray[np.bool_]:
    """Which runs' C is less than training took: the forward pass alone, or the part of one device of several [n].

    A training step takes 6 FLOPs per parameter and token or more. Where N counts tables of embeddings, which no token
    multiplies, it takes less, and the larger the model the nearer to 6: rates that rise with N to no more than that are
    right.

    >>> understated([2e17, 4e17], [1e8, 2e8], 1e9), understated([4.5e17, 1.1e18], [1e8, 2e8], 1e9)
    (array([ True,  True]), array([False, False]))
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a product beyond 1e308 is no run's
        rate, size = np.broadcast_arrays(values(C) / (values(N) * values(D)), values(N))
    low, order = rate < LEAST_RATE, np.argsort(size, kind="stable")
    known = rate[order][np.isfinite(rate[order])]
    rising = known.size > 1 and known[-1] > ALIKE * known[0] and np.all(known[1:] * ALIKE >= known[:-1])
    return np.asarray(low & (not rising))


def short_of_training(C: ArrayLike, D: ArrayLike, counts: Mapping[str, int | None]) -> NDArray[np.bool_]:
    """Where C of a run on D tokens is less than training took, by its counts of parameters; not with frozen ones."""
    known = {name: count for name, count in counts.items() if count}
    total = known.pop("total", 0)
    N = min(known.values(), default=total / 2) if known.get("trainable", total) >= total else 0
    return np.asarray(values(C) < LEAST_RATE * N * values(D))


def typical_rate(C: ArrayLike, N: ArrayLike, D: ArrayLike) -> float:
    """FLOPs per parameter and token that runs took, C/(N·D): their geometric mean; 6 without runs.

    With it a law of N and D is put on the runs' compute axis.

    >>> round(typical_rate([8e17, 1.8e18], 1e8, [1e9, 2e9]), 2)
    8.49
    """
    rates = np.log(values(C) / (values(N) * values(D)))
    return float(np.exp(rates.mean())) if rates.size else TRAINING_FLOPS


def floats(formula: Callable[..., Array]) -> Callable[..., Array]:
    """A formula with all its arguments turned into arrays of floats."""

    @wraps(formula)
    def converted(*variables: ArrayLike, **constants: ArrayLike) -> Array:
        given = {name: values(value) for name, value in constants.items()}
        return np.asarray(formula(*map(values, variables), **given), dtype=float)

    return converted


# -- Hoffmann et al. 2022 (arXiv:2203.15556) ---------------------------------------------------------------------------


@floats
def hoffmann_loss(N: Array, D: Array, *, E: Array, A: Array, B: Array, alpha: Array, beta: Array) -> Array:
    """L(N,D) = E + A/N^α + B/D^β: eq. 2.

    >>> float(hoffmann_loss(70e9, 1.4e12, E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28).round(4))
    1.9366
    """
    with np.errstate(over="ignore", divide="ignore"):  # a draw's steep power: its term is 0, or endless
        return E + A / N**alpha + B / D**beta


def usual_loss(N: ArrayLike, D: ArrayLike) -> Array:
    """Nats per token that text has at N parameters and D tokens, whatever the corpus: Besiroglu et al. 2024."""
    return hoffmann_loss(N, D, E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)


def hoffmann_allocation(
    C: ArrayLike, *, A: ArrayLike, B: ArrayLike, alpha: ArrayLike, beta: ArrayLike
) -> tuple[Array, Array]:
    """N and D of the lowest loss at C = 6·N·D FLOPs: N = G·(C/6)^a, D = (C/6)^b/G, eq. 4.

    a = β/(α+β), b = α/(α+β), G = (αA/βB)^(1/(α+β)).

    >>> N, D = hoffmann_allocation(5.76e23, A=406.4, B=410.7, alpha=0.34, beta=0.28)
    >>> f"{N / 1e9:.1f}B parameters, {D / 1e12:.2f}T tokens"
    '32.2B parameters, 2.98T tokens'
    """
    A, B, alpha, beta = values(A), values(B), values(alpha), values(beta)
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    budget = values(C) / 6
    return G * budget ** (beta / (alpha + beta)), budget ** (alpha / (alpha + beta)) / G


@floats
def hoffmann_optimal_parameters(D: Array, *, A: Array, B: Array, alpha: Array, beta: Array) -> Array:
    """The N for which D tokens are compute-optimal: there αA/N^α = βB/D^β (from eq. 2 and C = 6·N·D)."""
    return (alpha * A / (beta * B) * D**beta) ** (1 / alpha)


# -- Muennighoff et al. 2023 (arXiv:2305.16264) ------------------------------------------------------------------------


@floats
def effective_amount(amount: Array, base: Array, R_star: Array) -> Array:
    """What x is worth: U + U·R*·(1 − exp(−R/R*)), R = x/U − 1: eq. 5 (D') and 6 (N').

    Up to `base` (U) an amount counts in full; beyond, each repetition counts less, in all never more than R* times U.

    >>> float(effective_amount(4 * 100e9, 100e9, 15.387756).round(-9))  # four epochs are worth 3.73
    373000000000.0
    """
    U = np.minimum(base, amount)
    return U - U * R_star * np.expm1(-(amount / U - 1) / R_star)


def effective_amounts(
    N: Array, D: Array, U: Array, *, A: Array, B: Array, alpha: Array, beta: Array, R_D_star: Array, R_N_star: Array
) -> tuple[Array, Array]:
    """N' and D' of N parameters on D tokens seen, U unique ones there are.

    D' discounts tokens seen again, worth 1/e of a new one after R_D* repetitions, N' parameters beyond U_N, the
    compute-optimal N for the U_D = min(U, D) unique tokens seen: section 3.1, eq. 5 and 6.
    """
    unique = np.minimum(U, D)
    U_N = hoffmann_optimal_parameters(unique, A=A, B=B, alpha=alpha, beta=beta)
    return effective_amount(N, U_N, R_N_star), effective_amount(D, unique, R_D_star)


@floats
def muennighoff_loss(
    N: Array,
    D: Array,
    U: Array,
    *,
    E: Array,
    A: Array,
    B: Array,
    alpha: Array,
    beta: Array,
    R_D_star: Array,
    R_N_star: Array,
) -> Array:
    """L = E + A/N'^α + B/D'^β with repeated data: section 3.1, eq. 17; N' and D' are `effective_amounts`.

    So with no token repeated it is Hoffmann's law up to U_N; beyond, N' < N and the loss is higher.
    """
    worth = effective_amounts(N, D, U, A=A, B=B, alpha=alpha, beta=beta, R_D_star=R_D_star, R_N_star=R_N_star)
    return hoffmann_loss(*worth, E=E, A=A, B=B, alpha=alpha, beta=beta)


# -- Clark et al. 2022 (arXiv:2202.01169): mixtures of experts ---------------------------------------------------------


@floats
def saturated(X: Array, X_start: Array, X_max: Array) -> Array:
    """What X experts are worth, from `X_start` for one to `X_max` for very many: section 4.4."""
    return 1 / (1 / (X - 1 + 1 / (1 / X_start - 1 / X_max)) + 1 / X_max)


@floats
def clark_loss(
    N: Array, X: Array, *, A: Array, alpha: Array, beta: Array, gamma: Array, X_start: Array, X_max: Array
) -> Array:
    """L(N,X) = A·N^−α·X̂^−β·X̂^(γ·ln N), X̂ = `saturated`: their eq. 1, in natural logarithms (γ = c/ln 10).

    N active parameters, X experts a layer of which a token visits one; all their runs saw 130B tokens.
    """
    log_N, log_X = np.log(N), np.log(saturated(X, X_start, X_max))
    return A * np.exp(-alpha * log_N - beta * log_X + gamma * log_N * log_X)


@floats
def dense_equivalent(
    N: Array, X: Array, *, alpha: Array, beta: Array, gamma: Array, X_start: Array, X_max: Array
) -> Array:
    """Parameters of the dense model with the loss of N active parameters and X experts, by `clark_loss`."""
    one, many = (np.log(saturated(x, X_start, X_max)) for x in (1.0, X))
    gain = (alpha - gamma * many) * np.log(N) + beta * (many - one)
    return np.exp(gain / (alpha - gamma * one))


# -- Schaipp 2026 (arXiv:2607.01487), Gadre et al. 2024 (arXiv:2403.08540) ---------------------------------------------


@floats
def schaipp_loss(
    N: Array,
    S: Array,
    B: Array,
    *,
    E: Array,
    A_N: Array,
    alpha: Array,
    A_B: Array,
    beta: Array,
    A_S: Array,
    gamma: Array,
) -> Array:
    """L(N,S,B) = E + A_N/N^α + A_B/B^β + A_S/S^γ: three terms. The paper: K and M for S and B, A, B, C for the A_x.

    Doubt: the paper's own text could not be read; the form is as two independent readers give it.
    """
    return E + A_N / N**alpha + A_B / B**beta + A_S / S**gamma


@floats
def gadre_loss(N: Array, D: Array, *, E: Array, a: Array, b: Array, eta: Array) -> Array:
    """L = E + (a·M^η + b·M^−η)·C^−η with M = D/N and C = 6·N·D.

    Hoffmann's law with α = β = 2η, A = a·6^−η, B = b·6^−η: one exponent, so M = (b/a)^(1/2η) is optimal at any budget.
    """
    M = D / N
    return E + (a * M**eta + b * M**-eta) * (6 * N * D) ** -eta


@floats
def gadre_error(L: Array, *, epsilon: Array, k: Array, gamma: Array) -> Array:
    """Err(L) = ε − k·exp(−γ·L): mean top-1 error of downstream tasks; ε is near that of guessing.

    >>> float(gadre_error(3.0, epsilon=0.850, k=2.08, gamma=0.756).round(3))
    0.635
    """
    return epsilon - k * np.exp(-gamma * L)


# -- Kaplan et al. 2020 (arXiv:2001.08361); N without embeddings -------------------------------------------------------

B_STAR, ALPHA_B = 2.1e8, 0.21  # table 5; eq. 5.3 rounds B* to 2e8
ALPHA_N_STEPS, ALPHA_S = 0.077, 0.76  # table 3, the fit of L(N,S)


@floats
def kaplan_loss_n(N: Array, *, N_c: Array, alpha_N: Array) -> Array:
    """L(N) = (N_c/N)^α_N, trained to convergence on enough data: eq. 1.1."""
    return (N_c / N) ** alpha_N


@floats
def kaplan_loss_d(D: Array, *, D_c: Array, alpha_D: Array) -> Array:
    """L(D) = (D_c/D)^α_D, a large model stopped early: eq. 1.2."""
    return (D_c / D) ** alpha_D


@floats
def kaplan_loss_c(C: Array, *, C_c: Array, alpha_C: Array) -> Array:
    """L(C_min) = (C_c/C_min)^α_C, the model of optimal size at a batch far below critical: eq. 1.3. FLOPs.

    >>> float(kaplan_loss_c(1e4 * 8.64e19, C_c=3.1e8 * 8.64e19, alpha_C=0.050).round(2))  # eq. 6.8: about 1.7
    1.68
    """
    return (C_c / C) ** alpha_C


@floats
def kaplan_loss_nd(N: Array, D: Array, *, N_c: Array, D_c: Array, alpha_N: Array, alpha_D: Array) -> Array:
    """L(N,D) = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D, D unique tokens, stopped early: eq. 1.5."""
    return ((N_c / N) ** (alpha_N / alpha_D) + D_c / D) ** alpha_D


@floats
def kaplan_loss_ns(N: Array, S_min: Array, *, N_c: Array, S_c: Array, alpha_N: Array, alpha_S: Array) -> Array:
    """L(N,S_min) = (N_c/N)^α_N + (S_c/S_min)^α_S, data without end: eq. 1.6 and 5.6.

    S_min = S/(1 + B_crit/B): steps to the same loss at a batch far above critical, eq. 5.4.
    """
    return (N_c / N) ** alpha_N + (S_c / S_min) ** alpha_S


@floats
def critical_batch(L: Array) -> Array:
    """B_crit(L) = B*/L^(1/α_B) tokens, whatever the size of the model: eq. 5.3, constants of table 5.

    >>> float((critical_batch(3.0 * 0.865) / critical_batch(3.0)).round(1))  # doubles for 13% off the loss
    2.0
    """
    return B_STAR / L ** (1 / ALPHA_B)


@floats
def unique_tokens_needed(N: Array) -> Array:
    """Unique tokens 5e3·N^0.74 that keep overfitting within the noise, about 2% of the loss: eq. 4.4.

    It speaks of training to convergence on data seen again and again; a single epoch at 20 tokens a parameter passes.
    """
    return 5e3 * N**0.74


# -- forms and laws ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A formula."""

    name: str  # in `FORMS`
    function: Callable[..., Array]  # of its variables, positional, and its constants, keywords
    text: str  # the formula, for people

    @cached_property
    def variables(self) -> tuple[str, ...]:
        """Names of its variables, in order."""
        return tuple(name for name, it in signature(self.function).parameters.items() if it.kind != it.KEYWORD_ONLY)

    @cached_property
    def constants(self) -> tuple[str, ...]:
        """Names of its constants, in order."""
        return tuple(name for name, it in signature(self.function).parameters.items() if it.kind == it.KEYWORD_ONLY)

    def at(self, variables: Mapping[str, ArrayLike], constants: Mapping[str, ArrayLike]) -> Array:
        """Its value; variables that it does not have are ignored."""
        return self.function(*(variables[name] for name in self.variables), **constants)


@dataclass(frozen=True)
class Law:
    """A formula with constants, and draws of them where they were estimated.

    Attributes:
        draws: constants drawn from their uncertainty, each [draws]; None: point values alone.
    """

    form: Form  # which formula (`FORMS`)
    constants: Mapping[str, float]  # by the formula's letters
    convention: Convention = "unknown"  # which parameters N counts
    draws: Mapping[str, Array] | None = field(default=None, repr=False)
    source: str = ""  # paper and table, or how it was fitted

    def __post_init__(self) -> None:
        if set(self.constants) != set(self.form.constants):
            raise ValueError(
                f"the law {self.form.name} expects constants {', '.join(self.form.constants)}, got "
                f"{', '.join(self.constants) or 'none'}"
            )

    def loss(self, **variables: ArrayLike) -> Array:
        """Loss in nats per token at the formula's variables, which broadcast."""
        return self.form.at(variables, self.constants)

    def loss_draws(self, **variables: float) -> Array | None:
        """Loss by each draw of the constants, at one point; None where there are none."""
        return None if self.draws is None else self.form.at(variables, self.draws)


HOFFMANN = Form("hoffmann", hoffmann_loss, "L(N,D) = E + A/N^α + B/D^β")

FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        HOFFMANN,
        Form("kaplan-n", kaplan_loss_n, "L(N) = (N_c/N)^α_N"),
        Form("kaplan-d", kaplan_loss_d, "L(D) = (D_c/D)^α_D"),
        Form("kaplan-c", kaplan_loss_c, "L(C_min) = (C_c/C_min)^α_C, both in FLOPs"),
        Form("kaplan-nd", kaplan_loss_nd, "L(N,D) = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D"),
        Form("kaplan-ns", kaplan_loss_ns, "L(N,S_min) = (N_c/N)^α_N + (S_c/S_min)^α_S"),
        Form("muennighoff", muennighoff_loss, "L(N,D,U) = E + A/N'^α + B/D'^β, D' and N' with R_D*, R_N*"),
        Form("clark", clark_loss, "L(N,X) = A·N^−α·X̂^(γ·ln N − β), X̂ from X experts, X_start and X_max"),
        Form("schaipp", schaipp_loss, "L(N,S,B) = E + A_N/N^α + A_B/B^β + A_S/S^γ"),
        Form("gadre", gadre_loss, "L = E + (a·M^η + b·M^−η)·C^−η, M = D/N, C = 6·N·D"),
        Form("gadre-error", gadre_error, "Err(L) = ε − k·exp(−γ·L)"),
    )
}
"""By name. All give a loss but "gadre-error", which gives a share of wrong answers from one."""
