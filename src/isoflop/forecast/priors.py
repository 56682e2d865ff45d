"""What finished runs teach of one under way: priors of its loss curve, and where it will end beside runs like it.

Priors are of a curve's exponent, its height, and the gain of a falling learning rate. A run's ln α, ln A and ln C
follow a line in ln N, ln B and ln η, plus an effect of its organisation, plus its own: a random-effects model, with the
two spreads averaged over a grid. Each run is read by its own posterior first. The base priors are the prior of the
line, so that few runs move it little and many decide it.

`beside`: the curves of one user's runs that are alike, over their final losses, are one curve. So at fixed tokens per
parameter and schedule, whatever the size (Qiu et al. 2025, arXiv:2507.02119; Bergsma et al. 2025, 2509.25087): the
final loss is the present one times what the siblings' fell by from the same part of the run on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from isoflop.arrays import Array
from isoflop.forecast.curve import FeaturesPath, LossBins, LossCurve, kernel_gains, path
from isoflop.forecast.lr_plan import LrPlan
from isoflop.forecast.posterior import CurvePosterior, Normal, solve

REFERENCE = (3e8, 5e5, 1e-3, 1e10)
"""Non-embedding parameters, tokens a batch, peak learning rate and effective tokens at which the intercepts hold."""
UNKNOWN = (1.5, 1.0, 0.7, 1.5)
"""Standard deviation, in e-folds, of a size, batch, peak rate or number of tokens that is not known."""
Where = tuple[float | None, float | None, float | None, float | None]


@dataclass(frozen=True)
class Line:
    """A quantity's logarithm, normal about a line in ln N, ln B, ln peak rate and ln D.

    Attributes:
        centre: where the intercept holds, in logarithms from `REFERENCE`: amid the runs it was learnt from, where
            intercept and slopes are independent.
    """

    mean: tuple[float, float, float, float, float]  # intercept at `REFERENCE` and slopes in ln N, ln B, ln η, ln D
    sd: tuple[float, float, float, float, float]  # standard deviations of the five
    between: float  # standard deviation between organisations (data, tokenizer, recipe)
    within: float  # standard deviation between runs of one organisation
    centre: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def at(self, where: Where) -> Normal:
        """Mean and standard deviation for a run with these N, B, peak rate and D; None is unknown."""
        mean, variance = self.mean[0], self.sd[0] ** 2 + self.between**2 + self.within**2
        parts = zip(where, REFERENCE, self.centre, UNKNOWN, self.mean[1:], self.sd[1:], strict=True)
        for value, ref, centre, unknown, slope, sd in parts:
            if value is None:
                variance += (slope**2 + sd**2) * unknown**2
            else:
                away = math.log(value / ref) - centre
                mean += slope * away
                variance += (sd * away) ** 2
        return Normal(mean, variance**0.5)


@dataclass(frozen=True)
class Priors:
    """Priors of α, of the amplitude at `EFFECTIVE` tokens and of the gain of a full decay; E is flat.

    D is in effective tokens, Σ lr/peak × batch: so far for α and A, at the end of the plan for C.
    """

    alpha: Line  # ln α of x^−α
    amplitude: Line  # ln of A·x^−α now, nats
    gain: Line  # ln C, the nats that a decay of the rate from its peak to 0 gives in the end
    own_runs: int = 0  # finished runs of the user's own among what they were learnt from
    source: str = ""  # where they are from, in words
    before: Priors | None = None  # without the user's own runs; None: there are none
    runs: tuple[LossCurve, ...] = ()  # these


UNSHARED = (0.08, 0.05)
"""Standard deviation, between organisations, of the slopes of ln C in ln N and ln B: of either sign (.06 in N with four
organisations, −.16 in the fifth), so that what some teach is no guide for another."""

WEAK_PRIORS = Priors(
    alpha=Line((math.log(0.5), 0.0, 0.0, 0.0, 0.0), (0.25, 0.05, 0.05, 0.05, 0.0), 0.12, 0.15),
    amplitude=Line((-1.6, 0.14, 0.2, 0.0, -0.5), (0.5, 0.1, 0.2, 0.1, 0.0), 0.2, 0.2),
    gain=Line((-1.5, 0.0, 0.0, 0.15, 0.0), (0.4, *UNSHARED, 0.1, 0.03), 0.15, 0.08),
    source="weak priors",
)
"""Before any curve: slopes about 0, and a factor of 1.3 to 1.7 of doubt on each."""

DEFAULT_PRIORS = Priors(
    alpha=Line((-0.80, -0.03, 0.03, 0.09, 0.0), (0.06, 0.02, 0.03, 0.03, 0.0), 0.13, 0.13),
    amplitude=Line((-1.46, 0.18, 0.29, -0.32, -0.5), (0.10, 0.02, 0.06, 0.05, 0.0), 0.20, 0.18),
    gain=Line((-1.41, 0.0, 0.0, 0.30, -0.07), (0.07, *UNSHARED, 0.03, 0.02), 0.17, 0.09),
    source="264 public curves of dense language models, 5 organisations",
)
"""What ships: `learn_priors` on the public curves of MultiPowerLaw (Luo et al. 2025: 25 to 400M, several plans),
OLMo-ladder (190M to 3B, cosine), Gemstones (McLeish et al. 2025: 50M to 2B, constant and cooled), Hägele et al. 2024
and Schaipp et al. 2025 (14M to 308M, cosine and WSD) and modded-nanogpt (124M, linear and cosine to 0), from
`WEAK_PRIORS`, rounded; the spreads of the gain are rounded up, for five organisations say little of a sixth."""

FOREIGN = 0.25
"""The least standard deviation of ln C with an unknown learning rate or another optimizer than Adam's family."""
REAL_RATE = 0.2
"""A peak learning rate above this is taken as relative: its scale says nothing."""


def known(value: float | None, most: float = np.inf) -> float | None:
    """The value where it says something: positive, finite and not above `most`."""
    return float(value) if value is not None and np.isfinite(value) and 0 < value <= most else None


def comparable_peak(peak: float, optimizer: str | None) -> float | None:
    """The peak rate where it can be compared: a real rate of Adam's family."""
    name = (optimizer or "").lower().removeprefix("torch.optim.")
    return known(peak, REAL_RATE) if name in {"adam", "adamw", "adam(w)"} else None


WIDER = 2.0
"""A run's own parameters are read with priors this much wider than the base's, so that the data decide them."""
DOUBT = 4.0
"""Degrees of freedom with which the base's spreads are believed."""
FEWEST = 12
"""Bins of loss that a run needs to be learnt from."""
SAME = 2 / 3
"""Probability, before its curve is seen, that a run is of the recipe of the user's earlier ones: a judgement."""
APART = 0.5
"""Of the spread between organisations, that a user's own runs may have among themselves (other recipes, other data)."""
SPREADS = np.geomspace(0.35, 2.8, 10)
"""Multiples of the base's spreads that are averaged over."""


def learn_priors(runs: Sequence[LossCurve], base: Priors = DEFAULT_PRIORS, *, own: bool = True) -> Priors:
    """`base` updated with finished runs; those that do not determine a parameter (no decay, say) leave it alone.

    Args:
        runs: finished runs.
        base: what was known before.
        own: the priors are for further runs of the organisation of `runs`, whose effect is then known; False: for a
            run of another one.
    """
    read = [reading for run in runs if (reading := read_run(run, base)) is not None]
    if not read:
        return base
    facts = [_facts(reading) for reading in read]
    where = np.array([reading.where for reading in read])
    organisations = [reading.organisation for reading in read]
    lines = (base.alpha, base.amplitude, base.gain if own else _with_slopes(base.gain, 0.0, 0.0))
    alpha, amplitude, gain = (
        _learn(line, where, np.array([fact[i] for fact in facts]), organisations, own) for i, line in enumerate(lines)
    )
    if not own:
        gain = _with_slopes(gain, *UNSHARED)
    return replace(
        base,
        alpha=alpha,
        amplitude=amplitude,
        gain=gain,
        own_runs=base.own_runs + (len(read) if own else 0),
        source=f"{base.source}, updated with {len(read)} finished run{'s' if len(read) > 1 else ''}"
        + (" of your own" if own else ""),
        before=base if own else None,
        runs=tuple(runs) if own else (),
    )


def _with_slopes(line: Line, size: float, batch: float) -> Line:
    """A line with these standard deviations of its slopes in ln N and ln B."""
    intercept, _, _, fourth, fifth = line.sd
    return replace(line, sd=(intercept, size, batch, fourth, fifth))


@dataclass(frozen=True)
class Reading:
    """A run's posterior under wide priors, and where it lies: ln N, ln B, ln η, ln D from the reference."""

    where: tuple[float, ...]
    posterior: CurvePosterior
    priors: tuple[Normal, Normal, Normal]
    organisation: str
    road: FeaturesPath
    foreign: bool  # an unknown rate or another optimizer: its gain says less


def read_run(run: LossCurve, base: Priors) -> Reading | None:
    """The posterior of a whole run; None where it is too short."""
    bins, warmup = LossBins(), run.plan.warmup_steps
    bins.feed(run)
    columns = bins.columns(warmup)
    steps, loss, count = (columns[name] for name in ("step", "loss", "count"))
    if len(steps) < FEWEST:
        return None
    road = path(run.plan, warmup, float(max(run.total_steps, bins.last_step)))
    peak = comparable_peak(run.plan.peak, run.optimizer) if np.isfinite(run.lr).any() else None
    batch = run.batch_tokens or bins.last_tokens / bins.last_step
    at = (known(run.N), known(run.batch_tokens), peak, float(road.x(steps[-1:])[0]) * batch)
    lines = (line.at(at) for line in (base.alpha, base.amplitude, base.gain))
    priors = widened(lines)
    posterior = solve(road, steps, loss, count, *priors)
    where = tuple(0.0 if v is None else math.log(v / ref) for v, ref in zip(at, REFERENCE, strict=True))
    return Reading(where, posterior, priors, run.organisation, road, foreign=peak is None)


def widened(priors: Iterable[Normal]) -> tuple[Normal, Normal, Normal]:
    """Priors of ln α, ln A and ln C that leave the decision to the curve."""
    alpha, amplitude, gain = (Normal(mean, max(WIDER * sd, 0.3)) for mean, sd in priors)
    return alpha, amplitude, gain


def blended(
    own: Sequence[Normal], before: Sequence[Normal], facts: Sequence[tuple[float, float]]
) -> tuple[Normal, Normal, Normal]:
    """Priors of ln α, ln A and ln C by own runs and without them, by the odds that this curve is of their recipe.

    Moments of the mixture. `facts`: value and variance of each by the curve alone; infinite where it does not tell.
    """
    odds = math.log(SAME / (1 - SAME))
    for (value, variance), mine, other in zip(facts, own, before, strict=True):
        if math.isfinite(variance):
            odds += _density(value - mine.mean, mine.sd**2 + variance)
            odds -= _density(value - other.mean, other.sd**2 + variance)
    part = 1 / (1 + math.exp(-max(-50.0, min(50.0, odds))))
    alpha, amplitude, gain = (_mixture(part, *each) for each in zip(own, before, strict=True))
    return alpha, amplitude, gain


def _mixture(part: float, a: Normal, b: Normal) -> Normal:
    variance = part * a.sd**2 + (1 - part) * b.sd**2 + part * (1 - part) * (a.mean - b.mean) ** 2
    return Normal(part * a.mean + (1 - part) * b.mean, math.sqrt(variance))


def _density(away: float, variance: float) -> float:
    return -0.5 * (away**2 / variance + math.log(variance))


def _facts(reading: Reading) -> list[tuple[float, float]]:
    """Value and variance of a run's ln α, ln A and ln C: what the curve itself says."""
    found = facts_of(reading.posterior, reading.priors)
    if reading.foreign:
        found[2] = (found[2][0], found[2][1] + FOREIGN**2)
    return found


def facts_of(posterior: CurvePosterior, priors: Sequence[Normal]) -> list[tuple[float, float]]:
    """Value and variance of ln α, ln A and ln C by a curve alone, without the priors that it was read with."""
    weight, log_alpha = posterior.weight, np.log(posterior.alphas)
    mean = float(weight.sum(1) @ log_alpha)
    values = [(mean, float(weight.sum(1) @ (log_alpha - mean) ** 2))]
    grid, levels = posterior.grid, kernel_gains()
    for i, each, own in ((1, grid.A, grid.var_A), (2, grid.C / levels, grid.var_C / levels**2)):
        middle = float(np.sum(weight * each))
        spread = float(np.sum(weight * (own + (each - middle) ** 2)))
        middle = max(middle, 0.1 * math.exp(priors[i].mean))
        values.append((math.log(middle), spread / middle**2))
    found = []
    for (value, variance), prior in zip(values, priors, strict=True):
        # the posterior without the prior it was read with
        gained = 1 / max(variance, 1e-6) - 1 / prior.sd**2
        if gained <= 0.25 / prior.sd**2:
            found.append((0.0, math.inf))
            continue
        estimate = (value / max(variance, 1e-6) - prior.mean / prior.sd**2) / gained
        found.append((estimate, 1 / gained))
    return found


def _learn(line: Line, where: Array, found: Array, organisations: list[str], own: bool) -> Line:
    fine = np.isfinite(found[:, 1])
    if not fine.any():
        return line
    if own:  # a user's few runs may lie further apart than those of a published sweep: theirs is to show
        line = replace(line, within=math.hypot(line.within, APART * line.between))
    value, error = found[fine, 0], found[fine, 1]
    centre = np.array(line.centre)
    design = np.column_stack([np.ones(len(value)), where[fine] - centre])
    names = [o for o, kept in zip(organisations, fine, strict=True) if kept]
    groups = sorted(set(names))
    member = np.array([[name == group for group in groups] for name in names], dtype=float)
    prior_mean, prior_var = np.array(line.mean), np.array(line.sd) ** 2 + 1e-12
    size = len(prior_mean)
    both = np.hstack([design, member])
    away = value - design @ prior_mean
    results = []
    for within in line.within * SPREADS:
        for between in line.between * SPREADS if line.between else [1e-6]:
            precision = np.diag(np.concatenate([1 / prior_var, np.full(len(groups), between**-2)]))
            w = 1 / (error + within**2)
            precision = precision + (both * w[:, None]).T @ both
            cov = np.linalg.inv(precision)
            mean = cov @ (both.T @ (w * away))
            fit = 0.5 * (np.log(w).sum() - np.linalg.slogdet(precision)[1] - w @ away**2 + mean @ precision @ mean)
            fit -= len(groups) * math.log(between)
            fit += _chi(within, line.within) + (_chi(between, line.between) if line.between else 0.0)
            results.append((fit, within, between, mean, cov))
    weight = np.exp(np.array([r[0] for r in results]) - max(r[0] for r in results))
    weight /= weight.sum()
    mean = sum(w * r[3] for w, r in zip(weight, results, strict=True))
    cov = sum(w * (r[4] + np.outer(r[3] - mean, r[3] - mean)) for w, r in zip(weight, results, strict=True))
    within = float(np.sqrt(weight @ np.array([r[1] for r in results]) ** 2))
    between = float(np.sqrt(weight @ np.array([r[2] for r in results]) ** 2)) if line.between else 0.0
    if own and len(groups) == 1:
        fold = np.zeros((size, size + 1))
        fold[:, :size] = np.eye(size)
        fold[0, size] = 1
        mean, cov, between = fold @ mean, fold @ cov @ fold.T, 0.0
    new, cov = prior_mean + mean[:size], cov[:size, :size]
    if own:
        # the intercept amid the runs, where it does not hang on the slopes
        move = np.append(1.0, where[fine].mean(0) - centre)
        centre = centre + move[1:]
        new[0], cov[0, 0] = move @ new, move @ cov @ move
    sd = np.sqrt(np.diag(cov))
    return Line(_plain(new), _plain(sd), between, within, _plain(centre))  # type: ignore[arg-type]


def _plain(values: Array) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _chi(spread: float, expected: float) -> float:
    """Log density of a spread by a scaled inverse chi-square about `expected`, per unit of its logarithm."""
    return DOUBT * (math.log(expected / spread) - 0.5 * (expected / spread) ** 2)


SIBLINGS = 2
"""Siblings that a forecast needs."""
SHAPE, RATIO = 0.08, 0.3
"""How alike: rates within this part of their peaks at each part of the run, ln(tokens per parameter) within this."""
WINDOW = 0.015
"""Of the run, to either side, over which a sibling's loss is averaged."""
PARTS = np.linspace(0.02, 1, 50)


class Beside(NamedTuple):
    """Final loss by siblings, its standard deviation without the run's own noise, and how many they are."""

    mean: float
    sd: float
    siblings: int

    def joined(self, mean: float, sd: float, error: float) -> tuple[float, float]:
        """With the run's own forecast: the mean by precision, the spread of the surer one, widened where they disagree.

        By how much they are apart over what their spreads allow (Birge's ratio). `error`: of the run's present loss.
        """
        mine = math.hypot(self.sd, error)
        part, apart = sd**-2 / (sd**-2 + mine**-2), abs(mean - self.mean) / math.hypot(sd, mine)
        return part * mean + (1 - part) * self.mean, min(sd, mine) * max(1.0, apart)


def beside(
    runs: Sequence[LossCurve], plan: LrPlan, N: float, batch_tokens: float, now: float, loss: float, left_out: float
) -> Beside | None:
    """The final loss of a run by its siblings; None with fewer than `SIBLINGS`.

    Args:
        runs: finished runs of the same data and loss.
        plan, N, batch_tokens: of the run, with tokens of a step.
        now, loss: its present step, and its smoothed loss there, nats.
        left_out: of the drop to come, the standard deviation that no sibling shows.
    """
    shape, tokens = plan.at(PARTS * plan.total_steps) / plan.peak, plan.total_steps * batch_tokens / N
    part, found = now / plan.total_steps, []
    for run in runs:
        if not run.N or not run.batch_tokens:
            continue
        its = run.plan.at(PARTS * run.total_steps) / run.plan.peak
        ratio = run.total_steps * run.batch_tokens / run.N / tokens
        near = np.abs(run.steps / run.total_steps - part) <= WINDOW
        if np.abs(its - shape).max() < SHAPE and abs(math.log(ratio)) < RATIO and near.any():
            found.append((run.final / float(run.loss[near].mean()), math.exp(-abs(math.log(run.N / N)))))
    if len(found) < SIBLINGS:
        return None
    falls, weights = np.array(found).T
    weights = weights / weights.sum()
    fall, several = float(weights @ falls), 1 / float(weights @ weights)
    spread = float(weights @ (falls - fall) ** 2) * several / max(several - 1, 0.5)
    mean = loss * fall
    return Beside(mean, math.hypot(loss * math.sqrt(spread * (1 + 1 / several)), left_out * (loss - mean)), len(found))
