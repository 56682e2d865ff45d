"""Priors learnt from finished runs: each curve's own parameters, then a regression over runs and organisations.

A run's ln α, ln A and ln C follow a line in ln N, ln B and ln η, plus an effect of its organisation, plus its own:
a random-effects model, with the two spreads averaged over a grid. What the base priors know is kept as the prior of the
line, so that few runs move it little and many decide it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from isoflop.fit.forecast.bins import LossBins
from isoflop.fit.forecast.curves import FinishedRun
from isoflop.fit.forecast.features import path
from isoflop.fit.forecast.posterior import Normal, solve
from isoflop.fit.forecast.priors import DEFAULT_PRIORS, EFFECTIVE, REAL_RATE, REFERENCE, Line, Priors, adam, known

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
    facts = [fact for run in runs if (fact := _facts(run, base)) is not None]
    if not facts:
        return base
    where = np.array([fact[0] for fact in facts])
    organisations = [fact[2] for fact in facts]
    lines = [
        _learn(line, where, np.array([f[1][i] for f in facts]), organisations, own)
        for i, line in enumerate((base.alpha, base.amplitude, base.gain))
    ]
    said = source or f"{base.source}, updated with {len(facts)} finished run{'s' if len(facts) > 1 else ''}"
    return replace(base, alpha=lines[0], amplitude=lines[1], gain=lines[2], source=said)


def _facts(run: FinishedRun, base: Priors) -> tuple[list[float], list[tuple[float, float]], str] | None:
    """Where a run lies (ln N, ln B, ln η from the reference), and value and error of its three parameters."""
    bins, warmup = LossBins(), run.plan.warmup_steps
    count = np.ones(len(run.steps)) if run.count is None else run.count
    for step, tokens, loss, n in zip(run.steps, run.tokens, run.loss, count, strict=True):
        if step >= 1 and math.isfinite(loss):
            bins.add(float(step), float(tokens), None, float(loss), float(n))
    columns = bins.columns()
    used = columns["step"] >= max(1.5 * warmup, 0.2 * bins.last_step)
    if used.sum() < 12:
        return None
    steps, loss, n = (columns[name][used] for name in ("step", "loss", "count"))
    road = path(run.plan, warmup, float(max(run.total_steps, bins.last_step)))
    peak = known(run.plan.peak, REAL_RATE) if np.isfinite(run.lr).any() else None
    at = (known(run.N), known(run.batch_tokens), peak)
    alpha, amplitude, gain = (Normal(*p.at(at)) for p in (base.alpha, base.amplitude, base.gain))
    batch = run.batch_tokens or bins.last_tokens / bins.last_step
    shift = base.scaling * math.log(float(road.x(steps[-1:])[0]) * batch / EFFECTIVE)
    wide = [
        Normal(p.mean - s, max(p.sd * w, 0.3))
        for p, s, w in zip((alpha, amplitude, gain), (0.0, shift, 0.0), WIDER, strict=True)
    ]
    posterior = solve(road, steps, loss, n, *wide)
    weight = posterior.weight
    log_alpha = np.log(posterior.alphas)
    mean = float(weight.sum(1) @ log_alpha)
    values = [(mean, float(weight.sum(1) @ (log_alpha - mean) ** 2))]
    for i in (1, 2):
        middle = float(np.sum(weight * posterior.mean[..., i]))
        spread = float(np.sum(weight * (posterior.cov[..., i, i] + (posterior.mean[..., i] - middle) ** 2)))
        middle = max(middle, 0.1 * math.exp(wide[i].mean))
        values.append((math.log(middle), spread / middle**2))
    found = []
    for (value, variance), prior, moved in zip(values, wide, (0.0, shift, 0.0), strict=True):
        # what the curve itself says: the posterior without the prior it was read with
        gained = 1 / max(variance, 1e-6) - 1 / prior.sd**2
        if gained <= 0.25 / prior.sd**2:
            found.append((0.0, math.inf))
            continue
        estimate = (value / max(variance, 1e-6) - prior.mean / prior.sd**2) / gained
        found.append((estimate + moved, 1 / gained))
    if peak is None or not adam(run.optimizer):
        found[2] = (found[2][0], found[2][1] + 0.35**2)
    place = [0.0 if v is None else math.log(v / ref) for v, ref in zip(at, REFERENCE, strict=True)]
    return place, found, run.organisation


def _learn(line: Line, where: Array, found: Array, organisations: list[str], own: bool) -> Line:
    fine = np.isfinite(found[:, 1])
    if not fine.any():
        return line
    value, error = found[fine, 0], found[fine, 1]
    design = np.column_stack([np.ones(len(value)), where[fine]])
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
    new = prior_mean + mean[:size]
    sd = np.sqrt(np.diag(cov)[:size])
    return Line(tuple(map(float, new)), tuple(map(float, sd)), between, within)  # type: ignore[arg-type]


def _chi(spread: float, expected: float) -> float:
    """Log density of a spread by a scaled inverse chi-square about `expected`, per unit of its logarithm."""
    return DOUBT * (math.log(expected / spread) - 0.5 * (expected / spread) ** 2)
