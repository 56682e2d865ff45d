"""Which size, by some runs: the posterior of `isoflop.fit.drifting_law`, and N_opt(C) and losses by its draws.

One engine behind `fit`, `plan`, `ladder fit` and the advice, for any number of finished runs.
**Likelihood.** `isoflop.fit.likelihood`: ln L of the runs is Gaussian about the law's plus an error b that all runs
share. A sweep's untuned rate or long warm-up moves the best sizes of all its budgets the same way (Porian et al. 2024),
and more budgets do not average that out. b has heavy tails (Student's t): where the runs' best sizes agree with the
prior they are believed. Where they contradict it, they are believed within the runs, whose recipe has b, and the less
the farther beyond (`Posterior.lasting`).

**Posterior.** Its modes by least squares, then importance sampling begun about them (`isoflop.fit.uncertainty`).
What is asked of a budget is also held to 20 tokens per parameter there: `Posterior.towards`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from isoflop.arrays import Array
from isoflop.fit.drifting_law import (
    CONSTANTS,
    RATIO,
    SIZE_SD,
    BudgetLine,
    FlopRate,
    Origin,
    PriorLine,
    apart,
    bend,
    best_size,
    beyond,
    flop_rate,
    gradient,
    least_loss,
    log_loss,
    slopes,
    tilt,
    together,
)
from isoflop.fit.likelihood import BIAS, BIAS_AT, MANY, MISFIT, NOISE_AT, SHARED, Likelihood, misfit, variances
from isoflop.fit.optimal_line import columns_of
from isoflop.fit.robust import LEAST_SCATTER, Labels, Outlier, describe_apart, kept_rows, misfit_of, outlying, scatter
from isoflop.fit.uncertainty import evenly, importance, least_squares

FADES, FADES_SD = 1.5, 1.0
"""Beyond the largest run b fades over so many e-folds of compute and as many as the runs span (2 standard deviations),
and with it what the runs say against 20 tokens per parameter; standard deviation of its logarithm. Within the runs b is
no error: who trains by their recipe has it. The number: of 1 to 3, on Porian et al. 2024's untuned sweeps. The span:
what held over a decade may hold over another; planted sweeps at 3.9 or 150 tokens per parameter missed N without it."""
TARGET, TARGET_DOF = 0.15, 4.0
"""Scale and degrees of freedom of ln N_opt about 20 tokens per parameter at the budget that is asked for. Published
optima lie within a factor of two in D/N; those of small untuned sweeps do not, and do not last (Porian et al. 2024).
Heavy tails let clear runs speak. Of .09 to .225: whichever of
Porian et al., Hoffmann et al., Gadre et al. and Muennighoff et al. is left out, the others waste least at .09 or .12.
But optima of the first three lie near 20: this is half way there from .18, and they waste 7, 7 and 20% less by it,
Muennighoff et al. (60 tokens per parameter) 1% more."""
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

NONLINEAR = [*range(1, CONSTANTS), *range(NOISE_AT, NOISE_AT + 2)]
"""What is drawn first of a row of unknowns by `apart`: all but the level and b, which ln L is linear in."""
WIDER, BIASED = 1.3, 6.0
"""Draws begin about a mode with so many times its Gaussian's width; half of them about the mode for a b that many times
wider: there is one for each reading of the runs."""
DRAWS = 2400
Seen = tuple[Outlier, ...] | None


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
        taken = evenly(weights, len(z))
        of_draws = {name: getattr(self, name)[taken] for name in ("draws", "bias", "fades", "noise", "form")}
        held = replace(self, **of_draws, target=C, turn=SCATTER * _standard(rng, len(taken)))
        told = max(self.spread**-2 - SIZE_SD**-2, 0.0) * max(1 - FEWEST_TO_TELL / self.n, 0.0)
        known = PriorLine().at(C)[1] ** -2 + told
        missing = max(1 / known - float(held.sizes(line).var()), 0.0)
        return replace(held, shift=math.sqrt(missing) * _standard(rng, len(taken)))

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
        seed: of the draws.
        left_out: those that a fit left out (`LawFit.left_out`); default: those far off the law (`isoflop.fit.robust`).
        labels: other columns of the runs [n]; outliers of a kind that has other runs stay (`Posterior.apart`).

    Raises:
        ValueError: no runs, columns of different lengths, values that are not positive and finite.
    """
    N, D, C, loss = columns_of(N=N, D=D, C=C, L=loss)
    left_out = outliers_of(N, D, C, loss) if left_out is None else left_out
    left_out = () if (kept := describe_apart(left_out, labels or {}, N, D, C, D / N)) else left_out
    N, D, C, loss = (column[kept_rows(len(N), left_out)] for column in (N, D, C, loss))
    origin = Origin.of(N, D, C)
    model = Likelihood.of(N, D, loss, origin)
    modes = [_mode(model, width) for width in (1.0, BIASED)]
    rows = _drawn(model, modes, np.random.default_rng(seed))
    best = modes[int(np.argmax(model.marginal(apart(np.stack(modes)))))]
    draws, bias, noise, form = rows[:, :CONSTANTS], rows[:, BIAS_AT] * bend(rows), *np.exp(rows[:, NOISE_AT:]).T
    fades = (FADES + 2 * np.log(C).std()) * np.exp(FADES_SD * np.random.default_rng(1).standard_normal(len(rows)))
    misfit = misfit_of(float(np.median(noise)), loss) if len(N) >= FEWEST_TO_JUDGE else None
    known = (origin, best[:CONSTANTS], draws, bias, fades, noise, form, flop_rate(N, D, C), float(C.max()), len(N))
    found = Posterior(*known, left_out=left_out, apart=kept, misfit=misfit, unlikely=model.at_best(modes[0]))
    return replace(found, spread=float(found.sizes(found.line(found.largest)).std()))


def outliers_of(N: Array, D: Array, C: Array, loss: Array) -> tuple[Outlier, ...]:
    """Runs far off the law that the others follow: its mode by a robust loss, so that they do not draw it to them."""
    if len(N) < FEWEST_TO_JUDGE:
        return ()
    model = Likelihood.of(N, D, loss, Origin.of(N, D, C), apart=True)
    mode = _mode(model, BIASED, robust=True)
    residuals = model.residuals(mode[None])[:, 0]
    spread = np.maximum(np.sqrt(model.spread @ variances(mode[NOISE_AT:])), LEAST_SCATTER)
    rows = np.flatnonzero(outlying(residuals, spread))
    return tuple(Outlier(int(i), float(loss[i]), float(loss[i] * math.exp(residuals[i]))) for i in rows)


def _standard(rng: np.random.Generator, count: int) -> Array:
    """Draws of mean 0 and standard deviation 1 to the last digit, so that chance moves no median [count]."""
    z = rng.standard_normal(count)
    return np.asarray((z - z.mean()) / z.std())


def floorless(N: Array, D: Array, C: Array, loss: Array, posterior: Posterior) -> float:
    """Ln of how much likelier runs [n] are by a law without an irreducible loss than by theirs, each at its best."""
    model = replace(Likelihood.of(N, D, loss, Origin.of(N, D, C)), floor=False)
    return posterior.unlikely - model.at_best(_mode(model, 1.0))


def _mode(model: Likelihood, width: float, robust: bool = False) -> Array:
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


def _drawn(model: Likelihood, modes: list[Array], rng: np.random.Generator) -> Array:
    """Draws of (θ, b, ln s, ln τ), by ln N_opt at the origin, of what runs tell one by one (`apart`)."""
    model, starts = model.merged(modes[0]) if len(model.known) > MANY else model, []
    for mode in modes:
        slope = gradient(apart, mode[None])[0]
        covariance = (slope @ model.covariance(mode) @ slope.T)[np.ix_(NONLINEAR, NONLINEAR)]
        root = np.linalg.cholesky(covariance + 1e-15 * np.eye(len(NONLINEAR)))
        starts.append((apart(mode[None])[0, NONLINEAR], WIDER * root))

    def rows_of(points: Array) -> Array:
        rows = np.zeros((len(points), len(modes[0])))
        rows[:, NONLINEAR] = points
        return rows

    points, weights = importance(lambda points: model.marginal(rows_of(points)), starts, rng)
    order = np.argsort(points[:, 1])
    taken = order[evenly(weights[order], DRAWS)]
    return together(model.completed(rows_of(points[taken]), rng))
