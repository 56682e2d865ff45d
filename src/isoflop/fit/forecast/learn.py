"""Priors learnt from finished runs: each curve's own parameters, then a regression over runs and organisations.

A run's ln α, ln A and ln C follow a line in ln N, ln B and ln η, plus an effect of its organisation, plus its own:
a random-effects model, with the two spreads averaged over a grid. What the base priors know is kept as the prior of the
line, so that few runs move it little and many decide it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isoflop.fit.forecast.bins import LossBins, usable
from isoflop.fit.forecast.curves import FinishedRun
from isoflop.fit.forecast.features import Kernel, Path, path
from isoflop.fit.forecast.posterior import Normal, Posterior, solve
from isoflop.fit.forecast.priors import DEFAULT_PRIORS, FOREIGN, REFERENCE, Line, Priors, comparable_peak, known

Array = NDArray[np.float64]
WIDER = (2.0, 2.0, 2.0)
"""A run's own parameters are read with priors this much wider than the base's, so that they are the data's."""
DOUBT = 4.0
"""Degrees of freedom with which the base's spreads are believed."""
SPREADS = np.geomspace(0.35, 2.8, 10)
"""Multiples of the base's spreads that are averaged over."""


def learn_priors(
    runs: Sequence[FinishedRun], base: Priors = DEFAULT_PRIORS, *, own: bool = True, source: str | None = None
) -> Priors:
    """`base` updated with finished runs.

    Args:
        runs: finished runs; those that say nothing of a parameter (no decay, say) leave it alone.
        base: what was known before.
        own: the priors are for further runs of the organisation of `runs`, whose effect is then known; False: for a
            run of another one.
        source: what the result says it rests on.
    """
    read = [reading for run in runs if (reading := read_run(run, base)) is not None]
    if not read:
        return base
    kernels = _kernels(read, base)
    facts = [_facts(reading, kernels) for reading in read]
    where = np.array([reading.where for reading in read])
    organisations = [reading.organisation for reading in read]
    lines = [
        _learn(line, where, np.array([fact[i] for fact in facts]), organisations, own)
        for i, line in enumerate((base.alpha, base.amplitude, base.gain))
    ]
    total = base.own_runs + (len(read) if own else 0)
    said = source or f"{base.source}, updated with {len(facts)} finished run{'s' if len(facts) > 1 else ''}"
    alpha, amplitude, gain = lines
    return replace(base, alpha=alpha, amplitude=amplitude, gain=gain, kernels=kernels, source=said, own_runs=total)


@dataclass(frozen=True)
class Reading:
    """A run's posterior under wide priors, and where it lies: ln N, ln B, ln η, ln D from the reference."""

    where: tuple[float, ...]
    posterior: Posterior
    priors: tuple[Normal, Normal, Normal]
    organisation: str
    road: Path
    foreign: bool  # an unknown rate or another optimizer: its gain says less


def _kernels(read: Sequence[Reading], base: Priors) -> tuple[Kernel, ...]:
    """The kernels with their weights and levels of ln C, organisations counting alike; shrunk towards the base's."""
    shares: dict[str, list[Array]] = {}
    levels: dict[str, list[Array]] = {}
    for reading in read:
        share, value, informed = _gains(reading)
        if informed.all():
            shares.setdefault(reading.organisation, []).append(share)
            levels.setdefault(reading.organisation, []).append(value - value.mean())
    if not shares:
        return base.kernels
    old = np.array([k.weight for k in base.kernels]) / sum(k.weight for k in base.kernels)
    prior = np.array([k.gain for k in base.kernels])
    counts = {name: len(each) / (len(each) + 3) for name, each in shares.items()}  # three runs' worth of doubt
    total = 1 + sum(counts.values())
    weight = (old + sum(counts[name] * np.mean(each, axis=0) for name, each in shares.items())) / total
    believed = sum(counts.values()) / (sum(counts.values()) + 0.5)
    level = sum(counts[name] * np.mean(each, axis=0) for name, each in levels.items()) / sum(counts.values())
    gain = (1 - believed) * prior + believed * level
    return tuple(replace(k, weight=float(w), gain=float(g)) for k, w, g in zip(base.kernels, weight, gain, strict=True))


def _gains(reading: Reading) -> tuple[Array, Array, NDArray[np.bool_]]:
    """By kernel: its posterior share, ln C, and whether the curve says something of C."""
    posterior, prior = reading.posterior, reading.priors[2]
    share = posterior.weight.sum(0)
    each = posterior.weight / np.maximum(share, 1e-300)
    C, variance = posterior.grid.C, posterior.grid.var_C
    middle = np.sum(each * C, axis=0)
    spread = np.sum(each * (variance + (C - middle) ** 2), axis=0)
    middle = np.maximum(middle, 0.1 * math.exp(prior.mean))
    return share, np.log(middle), spread / middle**2 < 0.5 * prior.sd**2


def read_run(run: FinishedRun, base: Priors) -> Reading | None:
    """The posterior of a whole run; None where it is too short."""
    bins, warmup = LossBins(), run.plan.warmup_steps
    count = np.ones(len(run.steps)) if run.count is None else run.count
    for step, tokens, loss, n in zip(run.steps, run.tokens, run.loss, count, strict=True):
        if step >= 1 and usable(loss):
            bins.add(float(step), float(tokens), None, float(loss), float(n))
    columns = bins.columns()
    used = columns["step"] >= max(1.5 * warmup, 0.2 * bins.last_step)
    if used.sum() < 12:
        return None
    steps, loss, n = (columns[name][used] for name in ("step", "loss", "count"))
    road = path(run.plan, warmup, float(max(run.total_steps, bins.last_step)))
    peak = comparable_peak(run.plan.peak, run.optimizer, bool(np.isfinite(run.lr).any()))
    batch = run.batch_tokens or bins.last_tokens / bins.last_step
    at = (known(run.N), known(run.batch_tokens), peak, float(road.x(steps[-1:])[0]) * batch)
    alpha, amplitude, gain = (Normal(*p.at(at)) for p in (base.alpha, base.amplitude, base.gain))
    wide = [Normal(p.mean, max(p.sd * w, 0.3)) for p, w in zip((alpha, amplitude, gain), WIDER, strict=True)]
    kernels = tuple(replace(k, weight=1.0) for k in base.kernels)
    posterior = solve(road, steps, loss, n, wide[0], wide[1], wide[2], kernels)
    place = tuple(0.0 if v is None else math.log(v / ref) for v, ref in zip(at, REFERENCE, strict=True))
    foreign = peak is None
    return Reading(place, posterior, (wide[0], wide[1], wide[2]), run.organisation, road, foreign)


def _facts(reading: Reading, kernels: tuple[Kernel, ...]) -> list[tuple[float, float]]:
    """Value and variance of a run's ln α, ln A and ln C: what the curve itself says."""
    posterior, priors = reading.posterior, reading.priors
    # what other runs made of the kernels bears on this one
    weight = posterior.weight * np.array([k.weight for k in kernels])
    weight = weight / weight.sum()
    log_alpha = np.log(posterior.alphas)
    mean = float(weight.sum(1) @ log_alpha)
    values = [(mean, float(weight.sum(1) @ (log_alpha - mean) ** 2))]
    grid, levels = posterior.grid, np.exp([k.gain for k in kernels])
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
    if reading.foreign:
        found[2] = (found[2][0], found[2][1] + FOREIGN**2)
    return found


def _learn(line: Line, where: Array, found: Array, organisations: list[str], own: bool) -> Line:
    fine = np.isfinite(found[:, 1])
    if not fine.any():
        return line
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
