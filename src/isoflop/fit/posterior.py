"""Which size, by some runs: a Bayesian posterior of Hoffmann's law with exponents that may drift.

One engine behind `fit`, `plan`, `ladder fit` and the advice: N_opt(C), the least loss at C and the loss of a run of N
parameters on D tokens, each with draws. Any number of finished runs will do; the prior carries the rest.

**Law.** L(N, D) = E + (A^(1/ρ) + B^(1/ρ))^ρ with ln A = p − α·x − κ_A·x²/2, x = ln(N/N₀), and
ln B = q − β·y − κ_B·y²/2, y = ln(D/D₀). With κ = 0 and ρ = 1 it is Hoffmann et al. 2022, eq. 10; without E a form of
Kaplan et al. 2020, eq. 1.5. No form holds over all scales: κ and ln ρ, small by their prior, carry what Hoffmann's
leaves out, so that an extrapolation is less sure the farther it goes. Constants are rows
θ = (ln E, p, q, ln α, ln β, κ_A, κ_B, ln ρ), [rows, 8]; (N₀, D₀) lies at the largest budget, 20 tokens per parameter.

**Optimum.** On a budget's line, ln D = ln D_line − slope·(ln N − ln N_line), the loss is least where
α(x)·A^(1/ρ) = slope·β(y)·B^(1/ρ), with the local exponents α(x) = α + κ_A·x and β(y) = β + κ_B·y.

**Prior.** Independent Gaussians: `pulls`. **Likelihood.** ln L of the runs is Gaussian about the law's with the
covariance s²·`scatter`, s unknown. **Posterior.** Its mode by least squares, then differential evolution Markov chains
(ter Braak 2006) begun about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import least_squares

from isoflop.arrays import Array

E, P, Q, ALPHA, BETA, KAPPA_A, KAPPA_B, RHO = range(8)
CONSTANTS = 8
DENSE = 6.0
"""FLOPs per parameter and token without attention."""
FLATTEST = 0.03
"""Of a local exponent: one that drifts below counts as this."""
NEWTON_STEPS = 30
STEEPEST = 0.7
"""Of C/(N·D) over N, in logarithms: with attention alone it falls by N^(−2/3), with embeddings alone it rises as much;
runs of two sizes may show any slope."""


@dataclass(frozen=True)
class Origin:
    """N₀ parameters and D₀ tokens."""

    N: float
    D: float

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
    log_A = t[:, P] - np.exp(t[:, ALPHA]) * x - t[:, KAPPA_A] * x * x / 2
    log_B = t[:, Q] - np.exp(t[:, BETA]) * y - t[:, KAPPA_B] * y * y / 2
    rho = np.exp(t[:, RHO])
    return log_A, log_B, rho * np.logaddexp(log_A / rho, log_B / rho)


def log_loss(theta: Array, x: Array, y: Array) -> Array:
    """Ln L [rows, runs]."""
    return np.logaddexp(theta[:, E, None], _terms(theta, x, y)[2])


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


def best_size(theta: Array, origin: Origin, line: BudgetLine) -> Array:
    """Ln N of the least loss on a budget's line [rows].

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
    return np.asarray(x + math.log(origin.N))


def least_loss(theta: Array, origin: Origin, line: BudgetLine) -> Array:
    """Ln L at `best_size` [rows]."""
    N = np.exp(best_size(theta, origin, line))
    return log_loss(theta, origin.x(N)[:, None], origin.y(line.tokens(N))[:, None])[:, 0]


def gradient(function: Callable[[Array], Array], theta: Array, step: float = 1e-4) -> Array:
    """∂ function/∂θ by central differences [rows, …, 8]; `function` maps [rows, 8] to [rows, …]."""
    columns = []
    for k in range(CONSTANTS):
        move = np.zeros(CONSTANTS)
        move[k] = step
        columns.append((function(theta + move) - function(theta - move)) / (2 * step))
    return np.stack(columns, axis=-1)


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
FAR, FARTHEST = math.log(2), 1024.0
"""ln of the factor off 20 tokens per parameter, in N, at which a run's variance has doubled; it grows by the sixth
power of the distance, to `FARTHEST` more: there a rate rule's miss and the law's own form weigh more. Chosen by a
backtest on ten public sweeps (Porian et al. 2024; `benchmarks/sizes.py`): with the square of ln 4 the far ends of
profiles, which no law of this form follows, outweighed the runs near the optimum: two budgets wasted half as much
again."""
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


def scatter(N: Array, D: Array) -> Array:
    """Covariance of runs' ln L over the variance of one near 20 tokens per parameter [n, n]."""
    off = 0.5 * np.log(D / N / RATIO)
    same = np.abs(np.log(N)[:, None] - np.log(N)[None]) < 1e-6
    far = (off / FAR) ** 6
    return np.diag(1 + far / (1 + far / FARTHEST)) + SHARED * same


# -- the fit ----------------------------------------------------------------------------------------------------------

CHAINS, STEPS, KEPT_FROM, EVERY = 120, 1000, 600, 40
"""Each half of the chains moves every other step; they are kept when they have forgotten where they began."""
WIDER = 1.6
"""Chains begin at draws of the Gaussian about the mode, this much wider: skewed tails are reached sooner so."""
PLACE_SD = 3.0
"""Of ln L at the origin about the runs' mean: no information."""


TELLING = 0.7
"""Standard deviation of ln N_opt at the largest budget over the prior's, above which the runs say little of it."""


@dataclass(frozen=True)
class Posterior:
    """What runs and prior say.

    Attributes:
        origin: of θ.
        mode: θ of greatest posterior probability [8].
        draws: θ [draws, 8].
        noise: standard deviation of a run's own ln L, by draw [draws].
        residuals: ln L of the runs less the mode's [n].
        rate: FLOPs per parameter and token of the runs.
        largest: FLOPs of the largest run.
        n: runs.
    """

    origin: Origin
    mode: Array
    draws: Array = field(repr=False)
    noise: Array = field(repr=False)
    residuals: Array = field(repr=False)
    rate: FlopRate
    largest: float
    n: int

    def line(self, C: float) -> BudgetLine:
        """The sizes that C FLOPs allow, at the runs' own FLOPs per parameter and token."""
        return self.rate.line(C)

    def flops(self, N: float, D: float) -> float:
        """Training FLOPs of N parameters on D tokens, as the runs spent them."""
        return N * D * self.rate.at(N)

    @property
    def telling(self) -> bool:
        """Whether the runs say much more than the prior of the best size at the largest budget."""
        return self.at(self.largest)[1] < TELLING * SIZE_SD

    def log_sizes(self, C: float) -> Array:
        """Ln N_opt at C FLOPs, sorted [draws]."""
        return np.sort(self.sizes(self.line(C)))

    def at(self, C: float) -> tuple[float, float]:
        """Median and standard deviation of ln N_opt at C FLOPs."""
        log_N = self.sizes(self.line(C))
        return float(np.median(log_N)), float(log_N.std())

    def exponents(self, C: float) -> Array:
        """A in N_opt ∝ C^a from the largest budget to C FLOPs, or over the decade to C where that is near [draws]."""
        low = self.largest if 1.5 * self.largest < C else C / 10
        return np.asarray((self.sizes(self.line(C)) - self.sizes(self.line(low))) / math.log(C / low))

    def exponent(self, C: float) -> float:
        """Median of `exponents`."""
        return float(np.median(self.exponents(C)))

    def flops_per_param_token(self, C: float) -> float:
        """C/(N·D) at the median N_opt of C FLOPs."""
        N = math.exp(self.at(C)[0])
        return C / (N * float(self.line(C).tokens(N)))

    def sizes(self, line: BudgetLine) -> Array:
        """Ln N of the least loss on a budget's line, by draw."""
        return best_size(self.draws, self.origin, line)

    def losses(self, N: float, D: float) -> Array:
        """Ln L of a law's run of that size, without its noise, by draw."""
        return log_loss(self.draws, self.origin.x(np.array([N])), self.origin.y(np.array([D])))[:, 0]

    def run_losses(self, N: float, D: float, seed: int = 0) -> Array:
        """Logarithm of the loss of a run of that size, by draw: its noise and, beyond the ladder, doubt of any law."""
        own = scatter(np.array([N]), np.array([D]))[0, 0] * self.noise**2
        reach = max(0.0, float(self.origin.x(N) + self.origin.y(D)))
        rng = np.random.default_rng(seed)
        return self.losses(N, D) + np.sqrt(own + (BEYOND * reach) ** 2) * rng.standard_normal(len(self.noise))

    def least(self, line: BudgetLine) -> Array:
        """Ln L at each draw's own best size."""
        return least_loss(self.draws, self.origin, line)


def posterior_of_runs(N: Array, D: Array, C: Array, loss: Array, seed: int = 0) -> Posterior:
    """The posterior of the drifting law, its origin at the largest budget and 20 tokens per parameter.

    Args:
        N: parameters, with the head where it is known [n].
        D: tokens [n].
        C: training FLOPs [n].
        loss: nats per token [n].
        seed: of the chains.

    Raises:
        ValueError: no runs, columns of different lengths, values that are not positive and finite.
    """
    N, D, C, loss = _checked(N, D, C, loss)
    largest = int(np.argmax(C))
    middle = math.sqrt(N[largest] * D[largest] / RATIO)
    origin = Origin(middle, RATIO * middle)
    x, y, seen = origin.x(N), origin.y(D), np.log(loss)
    whiten = np.linalg.inv(np.linalg.cholesky(scatter(N, D)))
    place = float(seen.mean())
    mode, log_noise = _mode(x, y, seen, whiten, place)

    def log_density(rows: Array) -> Array:
        theta, s = rows[:, :CONSTANTS], rows[:, CONSTANTS]
        with np.errstate(over="ignore", invalid="ignore"):
            r = (log_loss(theta, x, y) - seen) @ whiten.T
            value = -0.5 * np.exp(-2 * s) * (r**2).sum(axis=1) - len(seen) * s
            value -= 0.5 * ((s - math.log(NOISE)) / NOISE_SD) ** 2
            value -= 0.5 * (_prior(theta, place) ** 2).sum(axis=1)
        return np.where(np.isfinite(value), value, -np.inf)

    information = _information(mode, x, y, whiten, math.exp(log_noise), place)
    spread = np.zeros((CONSTANTS + 1, CONSTANTS + 1))
    spread[:CONSTANTS, :CONSTANTS] = np.linalg.inv(information)
    spread[-1, -1] = 1 / (2 * len(seen) + NOISE_SD**-2)
    rows = _chains(log_density, np.append(mode, log_noise), spread, np.random.default_rng(seed))
    residuals = seen - log_loss(mode[None], x, y)[0]
    draws, noise = rows[:, :CONSTANTS], np.exp(rows[:, CONSTANTS])
    return Posterior(origin, mode, draws, noise, residuals, flop_rate(N, D, C), float(C.max()), len(N))


def _checked(*columns: Array) -> list[Array]:
    table = [np.asarray(column, dtype=float) for column in columns]
    if len({column.shape for column in table}) > 1 or table[0].ndim != 1 or not len(table[0]):
        shapes = ", ".join(str(column.shape) for column in table)
        raise ValueError(f"expected N, D, C and loss of the same runs, at least one, got shapes {shapes}")
    for name, column in zip(("N", "D", "C", "loss"), table, strict=True):
        if not (np.isfinite(column) & (column > 0)).all():
            raise ValueError(f"expected positive, finite numbers in {name}, got {column.min()!r}: leave the run out")
    return table


def _prior(theta: Array, place: float) -> Array:
    level = np.log(np.exp(theta[:, :3]).sum(axis=1)) - place
    return np.concatenate([pulls(theta), level[:, None] / PLACE_SD], axis=1)


def _mode(x: Array, y: Array, seen: Array, whiten: Array, place: float) -> tuple[Array, float]:
    """θ and ln noise: each in turn, for the noise's own optimum is known given the residuals."""
    level = math.exp(seen.min())
    log_alpha = math.log(0.35)
    theta = np.array([math.log(0.6 * level), *([math.log(0.2 * level)] * 2), log_alpha, log_alpha, 0.0, 0.0, 0.0])
    log_noise = math.log(0.02)
    for _ in range(12):

        def residuals(t: Array, sd: float = math.exp(log_noise)) -> Array:
            r = whiten @ (log_loss(t[None], x, y)[0] - seen) / sd
            return np.concatenate([r, _prior(t[None], place)[0]])

        def jacobian(t: Array, sd: float = math.exp(log_noise)) -> Array:
            prior = gradient(lambda rows: _prior(rows, place), t[None])[0]
            return np.concatenate([whiten @ slopes(t[None], x, y)[0] / sd, prior])

        theta = least_squares(residuals, theta, jacobian, method="trf", x_scale="jac", max_nfev=100).x
        squares = float(((whiten @ (log_loss(theta[None], x, y)[0] - seen)) ** 2).sum())
        before, log_noise = log_noise, _log_noise(squares, len(seen))
        if abs(before - log_noise) < 0.02:
            break
    return theta, log_noise


def _log_noise(squares: float, n: int) -> float:
    """Ln of the noise of greatest posterior probability given the sum of squares: by bisection."""
    low, high = math.log(1e-6), math.log(1.0)
    effective = max(n - 5, 1)  # constants that the runs fit take their share of the squares
    for _ in range(60):
        s = 0.5 * (low + high)
        slope = squares * math.exp(-2 * s) - effective - (s - math.log(NOISE)) / NOISE_SD**2
        low, high = (s, high) if slope > 0 else (low, s)
    return 0.5 * (low + high)


def _information(theta: Array, x: Array, y: Array, whiten: Array, noise: float, place: float) -> Array:
    rows = whiten @ slopes(theta[None], x, y)[0] / noise
    prior = gradient(lambda rows: _prior(rows, place), theta[None])[0]
    return np.asarray(rows.T @ rows + prior.T @ prior)


def _chains(log_density: Callable[[Array], Array], centre: Array, spread: Array, rng: np.random.Generator) -> Array:
    """Differential evolution Markov chains (ter Braak 2006): jumps along differences of other chains.

    The posterior is skewed where E is nearly open, and no fixed proposal fits it. Halves take turns, each jumping along
    the other half's differences, which keeps detailed balance.
    """
    d = len(centre)
    root = np.linalg.cholesky(spread + 1e-15 * np.eye(d))
    at = centre + WIDER * rng.standard_normal((CHAINS, d)) @ root.T
    value = log_density(at)
    half, kept = CHAINS // 2, []
    for step in range(STEPS):
        mine, others = (slice(0, half), half) if step % 2 else (slice(half, None), 0)
        first = rng.integers(half, size=half)
        second = (first + rng.integers(1, half, size=half)) % half
        length = 1.0 if step % 20 < 2 else 2.38 / math.sqrt(2 * d)
        jump = length * (at[others + first] - at[others + second]) + 1e-4 * rng.standard_normal((half, d)) @ root.T
        new = log_density(at[mine] + jump)
        accept = np.log(rng.random(half)) < new - value[mine]
        at[mine] = np.where(accept[:, None], at[mine] + jump, at[mine])
        value[mine] = np.where(accept, new, value[mine])
        if step >= KEPT_FROM and (step + 1) % EVERY == 0:
            kept.append(at.copy())
    return np.concatenate(kept)
