"""Which size, by some runs: the posterior of `isoflop.fit.drifting_law`, and N_opt(C) and losses by its draws.

One engine behind `fit`, `plan`, `ladder fit` and the advice, for any number of finished runs.
**Likelihood.** ln L of the runs is Gaussian about the law's plus b·bend·o, o ≈ ½·ln(D/(20·N)) the distance from 20
tokens per parameter in ln N, so that b moves best sizes by as much whatever the loss's `bend`; its covariance is
s²·(noise of each run, in part shared by runs of one size) + τ²·`misfit`. s, τ and b are unknown. b is an error that all
runs share: a sweep's untuned rate or long warm-up moves the best sizes of all its budgets the same way (Porian et al.
2024), and more budgets do not average that out. It has heavy tails (Student's t): where the runs' best sizes agree with
the prior they are believed. Where they contradict it, they are believed within the runs, whose recipe has b, and the
less the farther beyond (`Posterior.lasting`).

**Posterior.** Its mode by least squares, then Markov chains begun about it (`isoflop.fit.uncertainty`).
What is asked of a budget is also held to 20 tokens per parameter there: `Posterior.towards`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array
from isoflop.fit.drifting_law import (
    ALPHA,
    BETA,
    CONSTANTS,
    KAPPA_A,
    KAPPA_B,
    RATIO,
    RHO,
    SIZE_SD,
    BudgetLine,
    E,
    FlopRate,
    Origin,
    P,
    PriorLine,
    Q,
    apart,
    bend,
    best_size,
    beyond,
    flop_rate,
    gradient,
    least_loss,
    log_loss,
    off_ratio,
    pulls,
    slopes,
    tilt,
    together,
)
from isoflop.fit.optimal_line import columns_of
from isoflop.fit.robust import LEAST_SCATTER, Labels, Outlier, describe_apart, kept_rows, misfit_of, outlying, scatter
from isoflop.fit.uncertainty import CHAINS, chains, least_squares, log_of_one_and

NOISE, NOISE_SD = 0.004, 0.7
"""Median noise of ln L of a finished run (seed, order, rate off its best), and standard deviation of its logarithm:
.1% to 1.6%. Seeds alone give .1–.3% (Porian et al. 2024: .005 nats below L = 3)."""
SHARED = 0.5
"""Variance that runs of one size share (a shape better or worse than its size), over a run's own."""
MISFIT, MISFIT_SD, MOST_MISFIT = 0.008, 1.0, 32.0
"""Median of τ, by which ln L is off the law's form at a factor of 2 from the size of 20 tokens per parameter, and
standard deviation of its logarithm. It grows by the third power of the distance, to the third number times as much. Of
.004, .008 and .016 the one of least waste on ten public sweeps (Porian et al. 2024; `benchmarks/sizes.py`)."""
BIAS, BIAS_DOF = 0.06, 2.0
"""Scale and degrees of freedom of b, in ln N_opt: a small scale lets clear runs of other ratios speak. One of .003 in
ln L is as much where the loss bends as in Hoffmann et al. 2022; sharp profiles of small runs were believed too much."""
BEND = 0.05
"""Usual `bend`: Hoffmann et al. 2022's law at 1e21 FLOPs."""
FADES, FADES_SD = 1.5, 1.0
"""Beyond the largest run b fades over so many e-folds of compute and as many as the runs span (2 standard deviations),
and with it what the runs say against 20 tokens per parameter; standard deviation of its logarithm. Within the runs b is
no error: who trains by their recipe has it. The number: of 1 to 3, on Porian et al. 2024's untuned sweeps. The span:
what held over a decade may hold over another; planted sweeps at 3.9 or 150 tokens per parameter missed N without it."""
TARGET, TARGET_DOF = 0.18, 4.0
"""Scale and degrees of freedom of ln N_opt about 20 tokens per parameter at the budget that is asked for. Published
optima lie within a factor of two in D/N; those of small untuned sweeps do not, and do not last (Porian et al. 2024).
Heavy tails let clear runs speak. Chosen of .17 to .2 on their sweeps (`benchmarks/sizes.py`)."""
SCATTER = 0.05
"""Standard deviation of ln N_opt per e-fold of compute beyond the runs that neither they nor the prior foresee: a rate
rule, a schedule, a data mix of the large run. With it N's 80% interval holds in .80, .82, .88 and all of the sweeps by
one budget to four."""
FEWEST_TO_TELL = 5
"""Constants of Hoffmann's law: so many runs say nothing of the best size that others could check, and more of them in
part; the interval is as wide as published sweeps leave it, at least. Of planted laws at 6 to 70 tokens per parameter
that of four and six runs held .6."""
FEWEST_TO_JUDGE, TELLING = 6, 0.7
"""Runs from which on one can be told for an outlier, and noise from the law's misfit; standard deviation of ln N_opt at
the largest budget over the prior's, above which the runs say little of it."""

BIAS_AT, NOISE_AT, FORM_AT = range(CONSTANTS, CONSTANTS + 3)
"""Of b, ln s and ln τ in a row of unknowns, behind θ."""
SCALES, SCALES_SD = np.log([NOISE, MISFIT]), np.array([NOISE_SD, MISFIT_SD])
"""Prior of (ln s, ln τ)."""
WIDER = 1.6
"""Chains begin at draws of the Gaussian about a mode, this much wider: skewed tails are reached sooner so."""
BIASED = 6.0
"""Half of the chains begin at the mode for a b this many times wider: there is one for each reading of the runs."""
SAME_SIZE = 1e-6
"""Of ln N, within which runs are of one size."""
MANY, CELL = 500, 0.3
"""Runs from which on chains take those near each other as one; how near, in ln N·D, ln D/N and ln of their variance."""
LEVEL_SD = 3.0
"""Of ln L at the origin about the runs' mean: no information."""
Seen = tuple[Outlier, ...] | None


def misfit(N: Array, D: Array) -> Array:
    """Variance of ln L that the law's form is off, over that at a factor of 2 from 20 tokens per parameter [n]."""
    far = (off_ratio(N, D) / math.log(2)) ** 6
    return np.asarray(far / (1 + far / MOST_MISFIT**2))


def run_covariance(N: Array, D: Array, noise: float) -> Array:
    """Covariance of runs' ln L about a law, with b's at a usual `bend` in it [n, n]."""
    same, off = np.abs(np.log(N)[:, None] - np.log(N)[None]) < SAME_SIZE, tilt(N, D)
    own = noise**2 * (np.eye(len(N)) + SHARED * same)
    return own + MISFIT**2 * np.diag(misfit(N, D)) + (BIAS * BEND) ** 2 * off[:, None] * off


@dataclass(frozen=True)
class Posterior:
    """What runs and prior say.

    Attributes:
        origin: of θ.
        mode: θ of greatest posterior probability [8].
        draws: θ [draws, 8].
        bias, fades: b·bend, ln L per ln N, and e-folds of compute over which it fades, by draw [draws].
        noise: standard deviation of a run's own ln L, by draw [draws].
        form: standard deviation of ln L that the law's form is off at a factor of 2 from 20 tokens per parameter
            [draws].
        rate: FLOPs per parameter and token of the runs.
        largest: FLOPs of the largest run.
        n: runs.
        target: FLOPs of the budget that draws are held to 20 tokens per parameter at; None: not yet.
        turn: change of ln N_opt per e-fold of compute beyond the largest run that the law does not know, by draw
            [draws]; 0: not asked for a budget yet.
        left_out, apart: runs far off the law; that such runs are of a kind of their own, and were kept.
        misfit: scatter of ln L over what seeds alone give; None: too few runs to tell.
        shift: of ln N_opt, by draw [draws]: doubt that runs which say nothing of the best size leave.
        spread: standard deviation of ln N_opt at the largest budget, by the runs and the prior there.
        unlikely: −ln likelihood of the runs at their best, but for a constant.
    """

    origin: Origin
    mode: Array
    draws: Array = field(repr=False)
    bias: Array = field(repr=False)
    fades: Array = field(repr=False)
    noise: Array = field(repr=False)
    form: Array = field(repr=False)
    rate: FlopRate
    largest: float
    n: int
    target: float | None = None
    turn: Array | float = field(default=0.0, repr=False)
    left_out: tuple[Outlier, ...] = ()
    apart: str = ""
    misfit: float | None = None
    shift: Array | float = field(default=0.0, repr=False)
    spread: float = 0.0
    unlikely: float = field(default=0.0, repr=False)

    @property
    def telling(self) -> bool:
        """Whether the runs say much more than the prior of the best size at the largest budget."""
        return self.spread < TELLING * SIZE_SD

    def line(self, C: float) -> BudgetLine:
        """Sizes that C FLOPs allow, at the runs' own FLOPs per parameter and token."""
        return self.rate.line(C)

    def flops(self, N: float, D: float) -> float:
        """Training FLOPs of N parameters on D tokens, as the runs spent them."""
        return N * D * self.rate.at(N)

    def towards(self, C: float) -> Posterior:
        """The posterior for a run of C FLOPs: draws taken again by the prior of D/N there (importance resampling).

        Small sweeps' best sizes may not last; those of published families do. Draws held there and at the largest run
        count one prior twice: `shift` gives back what it and the runs leave open. One that has a budget stays.
        """
        if self.target is not None:
            return self
        line, rng = self.line(C), np.random.default_rng(0)
        z = (self.sizes(line) - math.log(line.size_of_ratio(RATIO))) / TARGET
        weights = (1 + z**2 / TARGET_DOF) ** (-(TARGET_DOF + 1) / 2 * (1 - self.lasting(C).mean()))
        at = (np.arange(len(z)) + 0.5) / len(z)
        taken = np.searchsorted(np.cumsum(weights) / weights.sum(), at).clip(max=len(z) - 1)
        of_draws = {name: getattr(self, name)[taken] for name in ("draws", "bias", "fades", "noise", "form")}
        held = replace(self, **of_draws, target=C, turn=SCATTER * rng.standard_normal(len(taken)))
        told = max(self.spread**-2 - SIZE_SD**-2, 0.0) * max(1 - FEWEST_TO_TELL / self.n, 0.0)
        known = PriorLine().at(C)[1] ** -2 + told
        missing = max(1 / known - float(held.sizes(line).var()), 0.0)
        return replace(held, shift=math.sqrt(missing) * rng.standard_normal(len(taken)))

    def log_sizes(self, C: float) -> Array:
        """Ln N_opt at C FLOPs, sorted [draws]."""
        return np.sort(self.towards(C).sizes(self.line(C)))

    def at(self, C: float) -> tuple[float, float]:
        """Median and standard deviation of ln N_opt at C FLOPs."""
        log_N = self.log_sizes(C)
        return float(np.median(log_N)), float(log_N.std())

    def exponents(self, C: float) -> Array:
        """A in N_opt ∝ C^a from the largest budget to C FLOPs, or over the decade to C where that is near [draws]."""
        low = self.largest if 1.5 * self.largest < C else C / 10
        held = self.towards(C)
        return np.asarray((held.sizes(self.line(C)) - held.sizes(self.line(low))) / math.log(C / low))

    def exponent(self, C: float) -> float:
        """Median of `exponents`."""
        return float(np.median(self.exponents(C)))

    def flops_per_param_token(self, C: float) -> float:
        """C/(N·D) at the median N_opt of C FLOPs."""
        N = math.exp(self.at(C)[0])
        return C / (N * float(self.line(C).tokens(N)))

    def sizes(self, line: BudgetLine) -> Array:
        """Ln N of the least loss on a budget's line, by draw."""
        beyond = max(0.0, math.log(line.C / self.largest))
        bias = self.bias * self.lasting(line.C)
        return best_size(self.draws, self.origin, line, bias) + self.shift + self.turn * beyond

    def lasting(self, C: float) -> Array:
        """Share of b that acts on runs of C FLOPs [draws]: all within the runs, less and less beyond."""
        return np.asarray(np.exp(-max(0.0, math.log(C / self.largest)) / self.fades))

    def residuals(self, N: Array, D: Array, loss: Array) -> tuple[Array, Array]:
        """Ln L̂ − ln L of runs by the mode, without b [n], and the slope of ln L̂ by its constants [n, 8]."""
        x, y, theta = self.origin.x(N), self.origin.y(D), self.mode[None]
        return log_loss(theta, x, y)[0] - np.log(loss), slopes(theta, x, y)[0]

    def losses(self, N: float, D: float) -> Array:
        """Ln L of a run of that size, without its noise, by draw."""
        known = log_loss(self.draws, self.origin.x(np.array([N])), self.origin.y(np.array([D])))[:, 0]
        return known + self.bias * self.lasting(self.flops(N, D)) * tilt(np.array([N]), np.array([D]))[0]

    def run_losses(self, N: float, D: float, seed: int = 0) -> Array:
        """Logarithm of the loss of a run of that size, by draw: its noise and, beyond the runs, doubt of any law.

        Runs of two seeds have noises of their own, and share the doubt.
        """
        form = self.form**2 * misfit(np.array([N]), np.array([D]))
        own, shared = (np.random.default_rng(part).standard_normal(len(self.noise)) for part in ([seed, 1], 0))
        noise = np.sqrt((1 + SHARED) * self.noise**2 + form) * own
        return self.losses(N, D) + noise + beyond(self.flops(N, D), self.largest) * shared

    def least(self, line: BudgetLine) -> Array:
        """Ln L at each draw's own best size."""
        return least_loss(self.draws, self.origin, line, self.bias * self.lasting(line.C))


def posterior_of_runs(
    N: Array, D: Array, C: Array, loss: Array, seed: int = 0, *, left_out: Seen = None, labels: Labels = None
) -> Posterior:
    """The posterior of the drifting law, its origin at the largest budget and 20 tokens per parameter.

    Args:
        N: parameters, with the head where it is known [n].
        D: tokens [n].
        C: training FLOPs [n].
        loss: nats per token [n].
        seed: of the chains.
        left_out: those that a fit left out (`LawFit.left_out`); default: those far off the law (`isoflop.fit.robust`).
        labels: other columns of the runs [n]; outliers of a kind that has other runs stay (`Posterior.apart`).

    Raises:
        ValueError: no runs, columns of different lengths, values that are not positive and finite.
    """
    N, D, C, loss = columns_of(N=N, D=D, C=C, L=loss)
    left_out = outliers_of(N, D, C, loss) if left_out is None else left_out
    left_out = () if (apart := describe_apart(left_out, labels or {}, N, D, C, D / N)) else left_out
    N, D, C, loss = (column[kept_rows(len(N), left_out)] for column in (N, D, C, loss))
    origin = Origin.of(N, D, C)
    model = _Model.of(N, D, loss, origin)
    modes = [_mode(model, width) for width in (1.0, BIASED)]
    rows = _drawn(model, modes, np.random.default_rng(seed))
    best = modes[int(np.argmax(model.log_density(np.stack(modes))))]
    draws, bias, noise, form = rows[:, :CONSTANTS], rows[:, BIAS_AT] * bend(rows), *np.exp(rows[:, NOISE_AT:]).T
    fades = (FADES + 2 * np.log(C).std()) * np.exp(FADES_SD * np.random.default_rng(1).standard_normal(len(rows)))
    misfit = misfit_of(float(np.median(noise)), loss) if len(N) >= FEWEST_TO_JUDGE else None
    known = (origin, best[:CONSTANTS], draws, bias, fades, noise, form, flop_rate(N, D, C), float(C.max()), len(N))
    found = Posterior(*known, left_out=left_out, apart=apart, misfit=misfit, unlikely=model.at_best(modes[0]))
    return replace(found, spread=float(found.sizes(found.line(found.largest)).std()))


def outliers_of(N: Array, D: Array, C: Array, loss: Array) -> tuple[Outlier, ...]:
    """Runs far off the law that the others follow: its mode by a robust loss, so that they do not draw it to them."""
    if len(N) < FEWEST_TO_JUDGE:
        return ()
    model = _Model.of(N, D, loss, Origin.of(N, D, C), apart=True)
    mode = _mode(model, BIASED, robust=True)
    residuals = model.residuals(mode[None])[:, 0]
    spread = np.maximum(np.sqrt(model.spread @ np.exp(2 * mode[NOISE_AT:])), LEAST_SCATTER)
    rows = np.flatnonzero(outlying(residuals, spread))
    return tuple(Outlier(int(i), float(loss[i]), float(loss[i] * math.exp(residuals[i]))) for i in rows)


@dataclass(frozen=True)
class _Model:
    """Likelihood and prior of rows (θ, b, ln s, ln τ) [rows, 11] over runs, those that share a size last [n].

    Runs of one size share noise, so a size's covariance is diag(d) + `SHARED`·s²·11ᵀ with d = s² + τ²·`misfit`: its
    inverse and determinant have closed forms (Sherman and Morrison 1950); of a single run it is one variance. The
    chains spend their time here: what is linear in constants is a product of matrices, logarithms and exponentials are
    NumPy's own, sums run along the first axis, and of `MANY` runs those near each other are one (`merged`).

    Attributes:
        known: y, y²/2, x, x²/2, 1, `tilt` and ln L, which constants are multiplied with [n, 7].
        spread: what s² and τ² are multiplied with in a run's variance [n, 2].
        alike: the first of the runs that share a size, and where among these each size begins.
        level: mean ln L.
        number, within: how many runs each row is the mean of, and their variance of ln L about it [n].
        floor: whether the law has an irreducible loss.
    """

    known: Array
    spread: Array
    alike: tuple[int, NDArray[np.intp]]
    level: float
    number: Array
    within: Array
    floor: bool = True

    @classmethod
    def of(cls, N: Array, D: Array, loss: Array, origin: Origin, apart: bool = False) -> _Model:
        """`apart`: runs of one size share no noise, and keep their order."""
        order, number = np.arange(len(N)), np.ones(len(N), dtype=int)
        if not apart:
            order = np.argsort(N, kind="stable")
            size = np.cumsum(np.diff(np.log(N[order]), prepend=-np.inf) >= SAME_SIZE) - 1
            number = np.bincount(size)[size]
            last = np.argsort(number > 1, kind="stable")
            order, number = order[last], number[last]
        first = int((number == 1).sum())
        begins = np.flatnonzero(np.diff(np.log(N[order[first:]]), prepend=-np.inf) >= SAME_SIZE)
        N, D, seen = N[order], D[order], np.log(loss[order])
        x, y = origin.x(N), origin.y(D)
        known = np.stack([y, y * y / 2, x, x * x / 2, np.ones(len(N)), tilt(N, D), seen], axis=1)
        spread = np.stack([1 + SHARED * (number == 1), misfit(N, D)], axis=1)
        level = float(np.median(seen) if apart else seen.mean())
        return cls(known, spread, (first, begins), level, np.ones(len(N)), np.zeros(len(N)))

    def merged(self, mode: Array) -> _Model:
        """Runs within a `CELL`, of one size where they share it, as their mean: losses move there by the mode's law."""
        first, begins = self.alike
        y, x = self.known[:, [0, 2]].T
        doubt = np.log(self.spread @ np.exp(2 * mode[NOISE_AT:]))
        cells = np.floor(np.stack([np.zeros(len(x)), x + y, y - x, doubt], axis=1) / CELL)
        cells[first:, 0] = 1 + np.repeat(np.arange(len(begins)), np.diff(begins, append=len(x) - first))
        cells[first:, 1] = 0.0  # runs of one size differ in D alone
        cells, rank, number = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
        rank = rank.reshape(-1)  # NumPy 2.0 gave it another shape

        def mean(table: Array) -> Array:
            return np.stack([np.bincount(rank, column) / number for column in table.T], axis=1)

        off = self.residuals(mode[None])
        middle, known = mean(off), mean(self.known)
        known[:, [1, 3]] = known[:, [0, 2]] ** 2 / 2
        single = int((cells[:, 0] == 0).sum())
        alike = single, np.flatnonzero(np.diff(cells[single:, 0], prepend=0))
        within = mean((off - middle[rank]) ** 2)[:, 0]
        few = _Model(known, mean(self.spread), alike, self.level, number.astype(float), within, self.floor)
        known[:, -1] += (few.residuals(mode[None]) - middle)[:, 0]
        return few

    def residuals(self, rows: Array) -> Array:
        """Ln L̂ − ln L of rows (θ, b, …) [n, rows]: `log_loss` and b's part."""
        t = rows.T
        alpha, beta, rho = np.exp(t[[ALPHA, BETA, RHO]])
        value = self.known[:, :5] @ (np.array([-beta, -t[KAPPA_B], alpha, t[KAPPA_A], t[Q] - t[P]]) / rho)
        log_of_one_and(value)
        value *= rho
        value += self.known[:, 2:5] @ np.array([-alpha, -t[KAPPA_A], t[P] - t[E]])
        log_of_one_and(value)
        value += self.known[:, 4:] @ np.array([t[E], t[BIAS_AT] * bend(rows), -np.ones(len(rows))])
        return value

    def unlikely(self, residuals: Array, scales: Array, share: float = 1.0) -> Array:
        """−ln likelihood but for a constant, of residuals [n, rows or 1] at (ln s, ln τ) [rows, 2]: [rows].

        `share`: weight of the determinant.
        """
        squares = np.exp(2 * scales.T)
        inverse = self.spread @ squares
        logs = self.number @ np.log(inverse)
        np.divide(self.number[:, None], inverse, out=inverse)
        weighted = residuals * inverse
        value = np.einsum("nr,nr->r", weighted, np.broadcast_to(residuals, inverse.shape)) + self.within @ inverse
        if len(self.alike[1]):
            common = SHARED * squares[0]
            inflated = 1 + common * self.sums(inverse)
            value -= common * (self.sums(weighted) ** 2 / inflated).sum(axis=0)
            logs += np.log(inflated).sum(axis=0)
        return np.asarray(0.5 * (value + share * logs + (((scales - SCALES) / SCALES_SD) ** 2).sum(axis=1)))

    def at_best(self, mode: Array) -> float:
        """`unlikely` at a mode [11]."""
        return float(self.unlikely(self.residuals(mode[None]), mode[None, NOISE_AT:])[0])

    def whitened(self, table: Array, scales: Array) -> Array:
        """Columns [n, k] divided by a root of the covariance at (ln s, ln τ): of residuals, independent of sd 1."""
        squares = np.exp(2 * scales)
        root = 1 / np.sqrt(self.spread @ squares)[:, None]
        table = root * table
        first, begins = self.alike
        length = self.sums(root**2)
        factor = (1 - (1 + SHARED * squares[0] * length) ** -0.5) / length
        of_runs = np.diff(begins, append=len(table) - first)
        table[first:] -= root[first:] * np.repeat(factor * self.sums(root * table), of_runs, axis=0)
        return np.asarray(table)

    def sums(self, table: Array) -> Array:
        """Of each size that runs share, over these runs [sizes, k]."""
        first, begins = self.alike
        return np.add.reduceat(table[first:], begins, axis=0) if len(begins) else table[:0]

    def prior(self, theta: Array, known: Array | None = None) -> Array:
        """The prior of θ as residuals of standard deviation 1 [rows, 8]; `known`: as of `pulls`."""
        level = np.log(np.exp(theta[:, :3]).sum(axis=1)) - self.level
        return np.concatenate([pulls(theta, self.floor, known), level[:, None] / LEVEL_SD], axis=1)

    def slopes(self, mode: Array) -> Array:
        """Of the whitened residuals by θ and b, and of the prior's, at a mode [n + 8, 9]."""
        theta = mode[None, :CONSTANTS]
        y, x, off = self.known[:, [0, 2, 5]].T
        of_runs = self.whitened(np.column_stack([slopes(theta, x, y)[0], bend(theta) * off]), mode[NOISE_AT:])
        return np.concatenate([of_runs, np.pad(gradient(self.prior, theta)[0], ((0, 0), (0, 1)))])

    def log_density(self, rows: Array, known: Array | None = None) -> Array:
        """Ln posterior probability, but for a constant [rows]; `known`: as of `pulls`."""
        with np.errstate(all="ignore"):
            value = -self.unlikely(self.residuals(rows), rows[:, NOISE_AT:])
            value -= (BIAS_DOF + 1) / 2 * np.log1p((rows[:, BIAS_AT] / BIAS) ** 2 / BIAS_DOF)
            value -= 0.5 * (self.prior(rows[:, :CONSTANTS], known) ** 2).sum(axis=1)
        return np.where(np.isfinite(value), value, -np.inf)

    def scales(self, residuals: Array, at: Array) -> Array:
        """(ln s, ln τ) of greatest posterior probability given residuals [n], by Newton's method from `at`."""
        share = max(len(residuals) - 5, 1) / len(residuals)  # constants that the runs fit take a share of the squares
        stencil = 1e-3 * np.array([(i, k) for i in (-1, 0, 1) for k in (-1, 0, 1)])
        for _ in range(30):
            f = self.unlikely(residuals[:, None], at + stencil, share).reshape(3, 3)
            down = np.array([f[2, 1] - f[0, 1], f[1, 2] - f[1, 0]]) / 2e-3
            mixed = (f[2, 2] - f[2, 0] - f[0, 2] + f[0, 0]) / 4e-6
            curve = np.array([[f[2, 1] + f[0, 1] - 2 * f[1, 1], 0], [0, f[1, 2] + f[1, 0] - 2 * f[1, 1]]]) / 1e-6
            size, axes = np.linalg.eigh(curve + mixed * (1 - np.eye(2)))
            step = -axes @ ((axes.T @ down) / np.maximum(np.abs(size), 1e-3))
            at = at + step * min(1.0, 1 / max(np.abs(step).max(), 1e-9))
            if np.abs(step).max() < 1e-3:
                break
        return np.asarray(at)

    def covariance(self, mode: Array) -> Array:
        """Of the Gaussian about a mode [11, 11]."""
        rows, n, whole = self.slopes(mode), len(self.known), np.zeros((len(mode), len(mode)))
        information = rows.T @ rows
        information[BIAS_AT, BIAS_AT] += BIAS**-2
        whole[:NOISE_AT, :NOISE_AT] = np.linalg.inv(information)
        whole[NOISE_AT:, NOISE_AT:] = np.diag(1 / (np.array([2 * n, n]) + SCALES_SD**-2))
        return whole


def floorless(N: Array, D: Array, C: Array, loss: Array, posterior: Posterior) -> float:
    """Ln of how much likelier runs [n] are by a law without an irreducible loss than by theirs, each at its best."""
    model = replace(_Model.of(N, D, loss, Origin.of(N, D, C)), floor=False)
    return posterior.unlikely - model.at_best(_mode(model, 1.0))


def _mode(model: _Model, width: float, robust: bool = False) -> Array:
    """(θ, b, ln s, ln τ) [11] by least squares and the scales in turn, b Gaussian of `width` times its scale.

    `robust`: squares of residuals beyond 3 times the scatter count less (Huber's ½r² to |r|, smooth).
    """
    least, exponent = math.exp(model.known[:, -1].min()), math.log(0.35)
    start = [math.log(0.6 * least), *([math.log(0.2 * least)] * 2), exponent, exponent, 0.0, 0.0, 0.0, 0.0]
    if not model.floor:
        low = math.log(0.09)
        start = [math.log(0.002 * least), *([math.log(0.93 * least)] * 2), low, low, 0.0, 0.0, low, 0.0]
    mode, scale = np.array([*start, math.log(0.02), math.log(MISFIT)]), width * BIAS
    for _ in range(12):
        scales = mode[NOISE_AT:]

        def residuals(u: Array, scales: Array = scales) -> Array:
            of_runs = model.whitened(model.residuals(u[None]), scales)[:, 0]
            return np.concatenate([of_runs, model.prior(u[None, :CONSTANTS])[0], u[BIAS_AT:NOISE_AT] / scale])

        def jacobian(u: Array) -> Array:
            return np.concatenate([model.slopes(u), np.eye(1, NOISE_AT, BIAS_AT) / scale])

        mode = np.append(least_squares(residuals, jacobian, mode, robust), scales)
        left = model.residuals(mode[None])[:, 0]
        if robust:
            left = np.clip(left, -(most := 3 * scatter(left)), most)
        mode[NOISE_AT:] = model.scales(left, scales)
        if np.abs(scales - mode[NOISE_AT:]).max() < 0.05:
            break
    return mode


def _drawn(model: _Model, modes: list[Array], rng: np.random.Generator) -> Array:
    """Draws of (θ, b, ln s, ln τ), by chains of what runs tell one by one (`apart`): there they are nearly Gaussian."""

    def log_density(rows: Array) -> Array:
        volume = np.log(np.exp(rows[:, ALPHA]) + np.exp(rows[:, BETA]))
        return model.log_density(together(rows), rows) + volume

    model = model.merged(modes[0]) if len(model.known) > MANY else model
    first = modes[0]
    root = gradient(apart, first[None])[0] @ np.linalg.cholesky(model.covariance(first) + 1e-15 * np.eye(len(first)))
    at = np.resize(apart(np.stack(modes)), (CHAINS, len(first)))
    return together(chains(log_density, at + WIDER * rng.standard_normal(at.shape) @ root.T, rng))
