"""A scaling law whose exponents may drift: its slopes, its optimum on a compute budget, and the prior of its constants.

**Law.** L(N, D) = E + (A^(1/ρ) + B^(1/ρ))^ρ with ln A = p − α·x − κ_A·x²/2, x = ln(N/N₀), and
ln B = q − β·y − κ_B·y²/2, y = ln(D/D₀). With κ = 0 and ρ = 1 it is Hoffmann et al. 2022, eq. 10; without E a form of
Kaplan et al. 2020, eq. 1.5. No form holds over all scales: κ, small by its prior, and ρ carry what Hoffmann's
leaves out, so that an extrapolation is less sure the farther it goes. Constants are rows
θ = (ln E, p, q, ln α, ln β, κ_A, κ_B, ln ρ), [rows, 8]; (N₀, D₀) lies at the largest budget, 20 tokens per parameter.

**Optimum.** On a budget's line, ln D = ln D_line − slope·(ln N − ln N_line), the loss is least where
α(x)·A^(1/ρ) = slope·β(y)·B^(1/ρ), with the local exponents α(x) = α + κ_A·x and β(y) = β + κ_B·y.

**Prior.** Independent Gaussians: `pulls`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

from isoflop.arrays import Array

E, P, Q, ALPHA, BETA, KAPPA_A, KAPPA_B, RHO = range(8)
CONSTANTS = 8
DENSE = 6.0
"""FLOPs per parameter and token without attention."""
FLATTEST = 0.03
"""Of a local exponent: one that drifts below counts as this."""
NEWTON_STEPS = 30
MOST_SHIFT, HALVINGS = 3.0, 16
"""Of ln N_opt by a bias, and how often this is halved."""
FAR_OUT = 1.5
"""Distance in ln N beyond which b acts no more: profiles level off."""
STEEPEST = 0.7
"""Of C/(N·D) over N, in logarithms: with attention alone it falls by N^(−2/3), with embeddings alone it rises as much;
runs of two sizes may show any slope."""


@dataclass(frozen=True)
class Origin:
    """N₀ parameters and D₀ tokens."""

    N: float
    D: float

    @classmethod
    def of(cls, N: Array, D: Array, C: Array) -> Origin:
        """That of runs [n]: at the largest budget, 20 tokens per parameter."""
        largest = int(np.argmax(C))
        middle = math.sqrt(N[largest] * D[largest] / RATIO)
        return cls(middle, RATIO * middle)

    def x(self, N: Array | float) -> Array:
        """Ln N/N₀."""
        return np.log(np.asarray(N, dtype=float) / self.N)

    def y(self, D: Array | float) -> Array:
        """Ln D/D₀."""
        return np.log(np.asarray(D, dtype=float) / self.D)


@dataclass(frozen=True)
class BudgetLine:
    """The sizes that a budget allows: ln D falls by `slope` per ln N around (N, D).

    Attributes:
        C: FLOPs.
        N, D: a point of it.
        slope: 1 where C = 6·N·D; less for small models, whose attention is a larger part.
    """

    C: float
    N: float
    D: float
    slope: float = 1.0

    def tokens(self, N: Array | float) -> Array:
        """D for N parameters."""
        return np.asarray(self.D * (np.asarray(N, dtype=float) / self.N) ** -self.slope)

    def at(self, C: float) -> BudgetLine:
        """The line of another budget, at the same FLOPs per parameter and token."""
        return BudgetLine(C, self.N, self.D * C / self.C, self.slope)

    def size_of_ratio(self, ratio: float) -> float:
        """N at which D/N is `ratio`."""
        return self.N * (self.D / self.N / ratio) ** (1 / (1 + self.slope))


@dataclass(frozen=True)
class FlopRate:
    """C/(N·D) ≈ exp(level)·N^slope, and where that crosses `DENSE` on the way up, `limit` from there on.

    Small models spend more on attention beside their parameters; a line in logarithms carries that on. Where N counts
    embeddings the rate of small models is below 6, and rises.
    """

    level: float
    slope: float
    limit: float

    def at(self, N: float) -> float:
        """FLOPs per parameter and token of N parameters."""
        value = math.exp(self.level + self.slope * math.log(N))
        return max(value, self.limit) if self.slope <= 0 else min(value, self.limit)

    def line(self, C: float) -> BudgetLine:
        """The line of C FLOPs about 20 tokens per parameter."""
        rate = DENSE
        for _ in range(20):
            size = math.sqrt(C / rate / RATIO)
            rate = self.at(size)
        size = math.sqrt(C / rate / RATIO)
        return BudgetLine(C, size, C / rate / size, 1.0 + (0.0 if rate == self.limit else self.slope))


def flop_rate(N: Array, D: Array, C: Array) -> FlopRate:
    """Of runs with N parameters, D tokens and C training FLOPs each [n]."""
    log_rate, log_N = np.log(C / (N * D)), np.log(N)
    off = log_N - log_N.mean()
    slope = float(off @ log_rate / (off @ off)) if off @ off > 1e-12 else 0.0
    slope = 0.0 if abs(slope) < 1e-3 else min(max(slope, -STEEPEST), STEEPEST)
    level = float(log_rate.mean() - slope * log_N.mean())
    if slope == 0:
        return FlopRate(level, 0.0, math.exp(level))
    ends = float(np.exp(log_rate).min()), float(np.exp(log_rate).max())
    return FlopRate(level, slope, min(DENSE, ends[0]) if slope < 0 else max(DENSE, ends[1]))


def _terms(theta: Array, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Ln A(N), ln B(D) and the logarithm of both mixed [rows, runs]."""
    t = theta[:, :, None]
    log_A = t[:, P] - (np.exp(t[:, ALPHA]) + t[:, KAPPA_A] * x / 2) * x
    log_B = t[:, Q] - (np.exp(t[:, BETA]) + t[:, KAPPA_B] * y / 2) * y
    rho = np.exp(t[:, RHO])
    return log_A, log_B, rho * np.logaddexp(log_A / rho, log_B / rho)


def log_loss(theta: Array, x: Array, y: Array) -> Array:
    """Ln L [rows, runs]."""
    return np.asarray(np.logaddexp(theta[:, E, None], _terms(theta, x, y)[2]))


def slopes(theta: Array, x: Array, y: Array) -> Array:
    """∂ ln L/∂θ [rows, runs, 8]."""
    log_A, log_B, mixed = _terms(theta, x, y)
    t = theta[:, :, None]
    above = 1 / (1 + np.exp(t[:, E] - mixed))  # share of the loss that is above E
    w = np.exp((log_A - mixed) / np.exp(t[:, RHO]))
    a, b = above * w, above * (1 - w)
    terms = (
        1 - above,
        a,
        b,
        -a * np.exp(t[:, ALPHA]) * x,
        -b * np.exp(t[:, BETA]) * y,
        -a * x * x / 2,
        -b * y * y / 2,
        above * (mixed - w * log_A - (1 - w) * log_B),
    )
    return np.stack(terms, axis=-1)


def off_ratio(N: Array, D: Array) -> Array:
    """Distance in ln N from 20 tokens per parameter [n]."""
    return np.asarray(0.5 * np.log(np.asarray(D, dtype=float) / np.asarray(N, dtype=float) / RATIO))


def tilt(N: Array, D: Array) -> Array:
    """What b is multiplied with: `off_ratio`, levelling off [n]."""
    off = off_ratio(N, D)
    return np.asarray(off / np.sqrt(1 + (off / FAR_OUT) ** 2))


def bend(theta: Array) -> Array:
    """Second derivative of ln L by ln N along a budget at the origin, where both terms balance [rows]."""
    t = theta.T
    alpha, beta, rho = np.exp(t[[ALPHA, BETA, RHO]])
    mixed = rho * np.logaddexp(t[P] / rho, t[Q] / rho)
    return np.asarray(alpha * beta / rho / (1 + np.exp(t[E] - mixed)))


def best_size(theta: Array, origin: Origin, line: BudgetLine, bias: Array | None = None) -> Array:
    """Ln N of the least loss on a budget's line [rows]; `bias`: of ln L, times `tilt` [rows].

    Where −∂L/∂ln N of both terms balance: α(x)·A^(1/ρ) = slope·β(y)·B^(1/ρ), the local exponents α(x) = α + κ_A·x,
    likewise β(y). The difference of the logarithms falls in x, so Newton's method with steps of at most 2 finds it.
    """
    alpha, beta, rho = np.exp(theta[:, ALPHA]), np.exp(theta[:, BETA]), np.exp(theta[:, RHO])
    x_line, y_line = float(origin.x(line.N)), float(origin.y(line.D))
    x = np.full(len(theta), x_line)
    for _ in range(NEWTON_STEPS):
        y = y_line - line.slope * (x - x_line)
        steep_a = np.maximum(alpha + theta[:, KAPPA_A] * x, FLATTEST)
        steep_b = np.maximum(beta + theta[:, KAPPA_B] * y, FLATTEST)
        log_A = theta[:, P] - alpha * x - theta[:, KAPPA_A] * x * x / 2
        log_B = theta[:, Q] - beta * y - theta[:, KAPPA_B] * y * y / 2
        gap = np.log(steep_a / (line.slope * steep_b)) + (log_A - log_B) / rho
        step = np.clip(gap * rho / (steep_a + line.slope * steep_b), -2.0, 2.0)
        x = x + step
        if np.abs(step).max() < 1e-9:
            break
    return np.asarray(x + math.log(origin.N)) if bias is None else _moved(theta, origin, line, x, bias)


def _moved(theta: Array, origin: Origin, line: BudgetLine, x: Array, bias: Array) -> Array:
    """Ln N at which ln L + bias·`tilt` is least, by halving about the x of the least L [rows]."""
    low, high = x - MOST_SHIFT, x + MOST_SHIFT
    for _ in range(HALVINGS):
        x = (low + high) / 2
        N, y = origin.N * np.exp(x), float(origin.y(line.D)) - line.slope * (x - float(origin.x(line.N)))
        log_A, _, mixed = (term[:, 0] for term in _terms(theta, x[:, None], y[:, None]))
        w, above = np.exp((log_A - mixed) / np.exp(theta[:, RHO])), 1 / (1 + np.exp(theta[:, E] - mixed))
        by_size = w * (np.exp(theta[:, ALPHA]) + theta[:, KAPPA_A] * x)
        by_data = (1 - w) * line.slope * (np.exp(theta[:, BETA]) + theta[:, KAPPA_B] * y)
        by_tilt = 0.5 * (1 + line.slope) * (1 + (off_ratio(N, line.tokens(N)) / FAR_OUT) ** 2) ** -1.5
        rising = above * (by_data - by_size) - bias * by_tilt
        low, high = np.where(rising > 0, low, x), np.where(rising > 0, x, high)
    return np.asarray((low + high) / 2 + math.log(origin.N))


def least_loss(theta: Array, origin: Origin, line: BudgetLine, bias: Array | None = None) -> Array:
    """Ln L at `best_size` [rows]."""
    N = np.exp(best_size(theta, origin, line, bias))
    D = line.tokens(N)
    known = log_loss(theta, origin.x(N)[:, None], origin.y(D)[:, None])[:, 0]
    return known if bias is None else known + bias * tilt(N, D)


BEYOND, BEYOND_AT, BEYOND_FALL, SMALLEST = 0.012, 1e18, 0.16, 1e16
"""Standard deviation of ln L per e-fold of compute beyond runs whose largest has the second number of FLOPs that no law
foresees (a rate rule's miss, a bend), the power of compute by which it falls, and FLOPs below which it stays: no public
sweep is smaller. Chosen of .008 to .02 and 0 to .22: 80% intervals hold in .72 to .91 of the larger public
runs by six organisations and of Porian et al. 2024's tuned sweeps (`benchmarks/sizes.py --losses`). In their untuned
ones, whose small runs are worse than any law of the large ones, they hold in less."""


def beyond(C: float, largest: float) -> float:
    """Standard deviation of ln L at C FLOPs that no law foresees of runs whose largest has `largest`."""
    return max(0.0, math.log(C / largest)) * BEYOND * (max(largest, SMALLEST) / BEYOND_AT) ** -BEYOND_FALL


def gradient(function: Callable[[Array], Array], theta: Array, step: float = 1e-4) -> Array:
    """∂ function/∂θ by central differences [rows, …, k]; `function` maps [rows, k] to [rows, …]."""
    k = theta.shape[1]

    def moved(by: float) -> Array:
        values = function((theta[:, None] + by * np.eye(k)).reshape(-1, k))
        return values.reshape(len(theta), k, *values.shape[1:])

    return np.moveaxis((moved(step) - moved(-step)) / (2 * step), 1, -1)


# -- what is known before any run -------------------------------------------------------------------------------------

RATIO, RATIO_SD = 20.0, 0.45
"""ln(D/N) ~ N(ln 20, .45), N with the head. Measured: 12–20 (Llama 3, Chinchilla, tuned Porian), 7–54 over all sets."""
SPLIT, SPLIT_SD = 0.50, 0.06
"""a in N_opt ∝ C^a: .38–.62 are 2 sd; well-tuned sweeps lie within (Hoffmann .46–.50, DeepSeek .52, Porian .50)."""
EXPONENT, EXPONENT_SD = 0.35, 0.17
"""Median of α and of β, and standard deviation of their logarithms: published ones lie in .28–.37 (Hoffmann et al.
2022; Besiroglu et al. 2024; Muennighoff et al. 2023). Then a = β/(α+β) is `SPLIT` ± `SPLIT_SD`."""
SIZE_SD = RATIO_SD / 2
"""Of ln N_opt at the largest budget about 20 tokens per parameter."""
REDUCIBLE, REDUCIBLE_SD = 0.5, 0.8
"""Share of the loss above E at the largest budget, and standard deviation of its logit: .17 to .83 are 2 of them."""
DRIFT_SD = 0.015
"""Of κ, the change of an exponent per e-fold: over a factor of 100 in size .07 of .35; a then changes by .008 per
e-fold of compute. Public frontiers bend as much: tuned sweeps of Porian et al. 2024 by +.013 ± .002 and +.016 ± .003
(`fit.frontier.bend`, 1e16 to 2e19 FLOPs). With .006 N_opt's 90% intervals held in 64% of 50 worlds of other forms, with
.015 in 84%, and the designs that it asks for miss by less (`benchmarks/ladder_misfits.py`)."""
MIXING, MIXING_SD = -0.4, 0.5
"""Mean and standard deviation of ln ρ, how the terms of size and data combine: 0 in Hoffmann's form. An isoFLOP profile
bends (α + β)/ρ times as much as the least losses fall: 1.2 to 2.5 in Porian et al. 2024's sweeps, .7 by published
exponents and ρ = 1. Medians of ln ρ that runs ask for under a wider prior: Hoffmann 0, Muennighoff -.5, Gadre -.7, OLMo
and Porian -1.2; with it the losses of larger runs of all but Muennighoff are off by as much or less
(`benchmarks/sizes.py --losses`)."""


_MIDDLE = np.array([math.log(EXPONENT), math.log(EXPONENT), 0, math.log(REDUCIBLE / (1 - REDUCIBLE)), 0, 0, MIXING])
_WIDTH = np.array([EXPONENT_SD, EXPONENT_SD, SIZE_SD, REDUCIBLE_SD, DRIFT_SD, DRIFT_SD, MIXING_SD])


_FLOORLESS = np.array([math.log(0.09), math.log(0.09), 0, 6, 0, 0, math.log(0.09)])
_FLOORLESS_WIDTH = np.array([0.3, 0.3, SIZE_SD, 0.5, DRIFT_SD / 5, DRIFT_SD / 5, 0.3])
"""Kaplan et al.'s exponents are .076 and .095 to .103; the form's outer power is ρ = β."""


def apart(rows: Array) -> Array:
    """Rows θ… with ln E, p, q as what runs tell one by one: ln L at the origin, logit of the share above E, ln N_opt.

    |∂θ/∂rows| = α + β.
    """
    t = rows.T
    alpha, beta, rho = np.exp(t[[ALPHA, BETA, RHO]])
    mixed = rho * np.logaddexp(t[P] / rho, t[Q] / rho)
    size = (rho * (t[ALPHA] - t[BETA]) + t[P] - t[Q]) / (alpha + beta)
    return np.stack([np.logaddexp(t[E], mixed), mixed - t[E], size, *t[ALPHA:]], axis=1)


def together(rows: Array) -> Array:
    """Rows θ… of those that `apart` gives."""
    t = rows.T.copy()
    level, logit, size = t[:3]
    alpha, beta, rho = np.exp(t[[ALPHA, BETA, RHO]])
    odds = size * (alpha + beta) / rho - t[ALPHA] + t[BETA]  # (p − q)/ρ
    q = level - np.logaddexp(0, -logit) - rho * np.logaddexp(0, odds)
    t[:3] = level - np.logaddexp(0, logit), q + rho * odds, q
    return t.T


def pulls(theta: Array, floor: bool = True, known: Array | None = None) -> Array:
    """The prior as residuals of standard deviation 1 [rows, 7], θ's origin at 20 tokens per parameter.

    Of ln α, ln β, ln N_opt, the logit of the share above E, κ_A, κ_B and ln ρ. Without a `floor`: of laws of Kaplan et
    al. 2020's form, eq. 1.5, which have no E. `known`: θ by `apart`, where that is at hand.
    """
    known = (apart(theta) if known is None else known)[:, [ALPHA, BETA, 2, 1, KAPPA_A, KAPPA_B, RHO]]
    return np.asarray((known - _MIDDLE) / _WIDTH if floor else (known - _FLOORLESS) / _FLOORLESS_WIDTH)


def prior_laws(count: int, level: float = 3.0, seed: int = 0) -> Array:
    """Laws drawn from the prior, of Hoffmann's form, evenly spread (a scrambled Sobol sequence) [count, 8].

    `count` is a power of two; `level`, the loss at the origin in nats, is of no matter for what runs tell.
    """
    from scipy import stats  # imported here: it takes longer than all else, and only designs need it

    z = stats.norm.ppf(stats.qmc.Sobol(4, seed=seed).random(count))
    log_alpha, log_beta = (math.log(EXPONENT) + EXPONENT_SD * z[:, k] for k in (0, 1))
    share = 1 / (1 + np.exp(-math.log(REDUCIBLE / (1 - REDUCIBLE)) - REDUCIBLE_SD * z[:, 3]))
    alpha, beta = np.exp(log_alpha), np.exp(log_beta)
    log_odds = SIZE_SD * z[:, 2] * (alpha + beta) - log_alpha + log_beta  # p − q
    A = share * level / (1 + np.exp(-log_odds))
    zero = np.zeros(count)
    rows = (np.log((1 - share) * level), np.log(A), np.log(share * level - A), log_alpha, log_beta, zero, zero, zero)
    return np.stack(rows, axis=-1)


REFERENCE = 1e21
"""FLOPs at which the ratio holds. Published laws that slope differently agree best about there: Hoffmann's approaches 1
and 2, Besiroglu, DeepSeek and Llama 3 (anchored) all give 19.5–21.6 tokens per parameter."""
QUANTILES = 2001
"""Of ln N_opt: as draws of one Gaussian they need no chance."""


@cache
def _normal_quantiles() -> Array:
    return np.array([NormalDist().inv_cdf((k + 0.5) / QUANTILES) for k in range(QUANTILES)])


@dataclass(frozen=True)
class PriorLine:
    """20 tokens per parameter at `reference` FLOPs, sd of its ln `ratio_sd`, less sure away; asked as a `Posterior`."""

    reference: float = REFERENCE
    ratio_sd: float = RATIO_SD

    def at(self, C: float) -> tuple[float, float]:
        """Mean and standard deviation of ln N_opt at C FLOPs.

        >>> mean, sd = PriorLine().at(5.76e23)  # Chinchilla's budget
        >>> f"{np.exp(mean) / 1e9:.1f}B parameters, times or over {np.exp(sd):.2f}"
        '69.3B parameters, times or over 1.56'
        """
        far = float(np.log(C / self.reference))
        mean = 0.5 * float(np.log(self.reference / DENSE / RATIO)) + SPLIT * far
        return mean, float(np.hypot(self.ratio_sd / 2, SPLIT_SD * far))

    def flops(self, N: float, D: float) -> float:
        """Training FLOPs of N parameters on D tokens."""
        return DENSE * N * D

    def log_sizes(self, C: float) -> Array:
        """Ln N_opt at C FLOPs, sorted [draws]."""
        mean, sd = self.at(C)
        return mean + sd * _normal_quantiles()

    def exponent(self, C: float) -> float:
        """A in N_opt ∝ C^a, everywhere the same."""
        return SPLIT

    def flops_per_param_token(self, C: float) -> float:
        """C/(N·D)."""
        return DENSE


MUON_RATIO = 10.5
"""Tokens per parameter that a public ladder of Muon's found best."""


def known_line(optimizer: str | None) -> PriorLine:
    """N_opt(C) of published sweeps, which are AdamW's: wider for a family of optimizers that none is of.

    >>> f"{math.exp(known_line('muon').ratio_sd):.1f}"
    '2.2'
    """
    widened = 0.0 if optimizer in (None, "adam") else math.log(RATIO / MUON_RATIO)
    return PriorLine(ratio_sd=math.hypot(RATIO_SD, widened))
