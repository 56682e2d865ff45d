"""What the runs do not tell: flat directions, constants that they leave open, constants that rest on a prior."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

import numpy as np

from isoflop.fit.fitting.newton import Array, Problem
from isoflop.fit.fitting.power_sum import PowerSum
from isoflop.fit.fitting.prior import LEAST_NOISE, RESTS, Prior
from isoflop.fit.fitting.search import HIGHEST, LOWEST

FEW = 3
"""Runs beyond the number of constants below which nothing is said about their noise."""

SINGULAR = 1e-6
"""Of the largest singular value of the law's slopes, each scaled to 1: a direction below it is flat."""
VAGUE, STUCK = 0.5, 0.4
"""Linear standard error of an exponent over its value, or of ln of a coefficient, beyond which it is open; and least
share of it that draws must reach, else they have not left the flat valley's floor where they began."""
LARGE = 0.6
"""An exponent above it counts as this: it came out high because it is open (published ones are below .8)."""
ALIKE = "the runs are too much alike in size, or too noisy"
ON_A_LINE = 0.02
"""Standard deviation of ln D about its line on ln N below which all runs lie on one."""


def too_few(n: int, constants: float) -> bool:
    """Whether so many runs, which fit so many constants (a share of one where a prior helps), tell no noise."""
    return n < constants + FEW - 0.5


def undetermined(
    law: PowerSum,
    problem: Problem,
    theta: Array,
    drawn: Array,
    prior: Prior | None = None,
    constants: float | None = None,
) -> dict[str, str]:
    """Constants that the runs leave open, and why, by name (coefficients with their exponents).

    One size of model or nearly, a single line D = k·N, fewer distinct runs than constants: draws that start from one
    optimum in a long flat valley stay near it, and would make narrow intervals of nothing. What has a prior is closed.
    """
    said: dict[str, str] = {}
    held = () if prior is None else prior.names
    residuals = problem.residuals(theta[None])[0]
    (_,), (share,) = problem.state(theta[None])
    slope = problem.slope(share)
    n, p = slope.shape
    constants = p if constants is None else constants
    spread = 1.4826 * float(np.median(np.abs(residuals))) * np.sqrt(n / max(n - constants, 1))
    if prior is not None:  # beside the runs, as runs of the same noise
        slope = np.concatenate([slope, max(spread, LEAST_NOISE) * prior.rows(theta)])
    norms = np.linalg.norm(slope, axis=0)
    lengths = np.where(norms > 1e-12 * norms.max(), norms, np.inf)
    _, singular, directions = np.linalg.svd(slope / lengths, full_matrices=len(slope) < len(theta))
    singular = np.append(singular, np.zeros(len(theta) - len(singular)))
    for direction in directions[singular < SINGULAR * singular.max()]:
        for i in np.flatnonzero(np.abs(direction) > 0.05):
            said[law.free_names[i]] = "the runs' sizes leave it open"
    scaled = directions / np.maximum(singular, SINGULAR * singular.max())[:, None] / lengths
    errors = spread * np.linalg.norm(scaled, axis=0)
    is_exponent = law.is_exponent[law.free]
    size = np.where(is_exponent, np.minimum(np.abs(theta), LARGE), 1)
    edge = is_exponent & ((theta < LOWEST * 1.05) | (theta > HIGHEST * 0.95))
    stuck = (drawn.std(axis=0) < STUCK * errors) & (errors > 1e-6)
    for i in np.flatnonzero((errors > VAGUE * size) | stuck | edge):
        said.setdefault(law.free_names[i], ALIKE)
    # a term whose exponent is open takes any part of what the others leave, from the constant too
    if any(name in said for name, exponent in zip(law.free_names, is_exponent, strict=True) if exponent):
        for i in law.free:
            if (law.exponent[law.coefficient == i] < 0).all() and not law.is_exponent[i]:
                said.setdefault(law.names[i], ALIKE)
    columns = {term.variable: k for k, term in enumerate(law.terms) if term.variable}
    for one, other in itertools.combinations(columns, 2):
        x, y = law.logs[:, columns[one]], law.logs[:, columns[other]]
        ratio = np.exp(np.median(y - x))
        line = f"{other} goes with {one} in all runs (about {ratio:.3g} × {one}): which of them lowers the loss is open"
        left = np.std(y - np.polyval(np.polyfit(x - x.mean(), y, 1), x - x.mean())) if np.ptp(x) > 0 else np.std(y)
        slopes_held = {law.names[i] for k in (columns[one], columns[other]) for i in law.exponent[:, k]} <= {*held}
        if left < ON_A_LINE and np.ptp(x) > 0 and np.ptp(y) > 0 and not slopes_held:
            for k in (columns[one], columns[other]):
                indices = {*law.coefficient[:, k].tolist(), *law.exponent[:, k].tolist()}
                said |= {law.names[i]: line for i in indices if law.names[i] in law.free_names}
    for i in np.flatnonzero(~law.is_exponent):
        slopes = {law.names[e] for e in law.exponent[law.coefficient == i].tolist() if e >= 0}
        for name in slopes & set(said):
            if law.names[i] in law.free_names:
                said.setdefault(law.names[i], said[name])
    return {name: reason for name, reason in said.items() if name not in held}


def not_identified(
    law: PowerSum,
    draws: Mapping[str, Array],
    least_loss: float,
    n: int,
    undetermined: Mapping[str, str],
    constants: float | None = None,
    held: Collection[str] = (),
) -> list[str]:
    """What the runs do not tell, in sentences; empty: nothing to say.

    A published fit of 240 runs has its exponents to ±9% and B to a factor of 2.3 each way (Besiroglu et al. 2024).
    """
    said = []
    free = law.free_names
    constants = len(free) if constants is None else constants
    if too_few(n, constants):
        beside = "" if constants > len(free) - 0.05 else " that rest on no prior"
        said.append(
            f"{n} run{'s' if n > 1 else ''} for {constants:.2g} constants{beside}: the residuals "
            "tell nothing about the noise, so no interval is to be trusted"
        )
    for reason in dict.fromkeys(undetermined.values()):
        said.append(
            f"not identified: {', '.join(name for name in undetermined if undetermined[name] == reason)}: {reason}"
        )
    for i in law.free:
        name = law.names[i]
        if name in undetermined or name in held:
            continue
        low, high = np.quantile(draws[name], [0.05, 0.95])
        if law.is_exponent[i]:
            if high > 4 * max(low, 1e-12):
                said.append(f"{name} is not identified: 90% of its draws run from {low:.2g} to {high:.2g}")
        elif (law.exponent[law.coefficient == i] < 0).all() and low < 0.01 * least_loss:
            said.append(f"{name} can't be told from 0: the runs do not show where the loss levels off")
        elif high > 1e4 * max(low, 1e-300):
            said.append(
                f"{name} is not identified by itself: its draws run from {low:.2g} to {high:.2g}, with its exponent"
            )
    return said


def resting(prior: Prior | None, drawn: Array) -> list[str]:
    """Which constants the runs tell nothing about that the prior had not told, in sentences.

    Args:
        prior: of the constants.
        drawn: θ drawn [draws, free].
    """
    said = []
    for j, name in enumerate(() if prior is None else prior.names):
        assert prior is not None
        u = np.clip(drawn @ prior.form[j] + prior.offset[j], -300, 300)
        spread = float((np.exp(u) if prior.lifted[j] else u).std())
        if spread > RESTS * prior.sd[j]:
            what = name if prior.lifted[j] or name in prior.plain else f"ln {name}"
            said.append(
                f"{name} rests on its prior ({what} = {prior.mean[j]:.4g} ± {prior.sd[j]:.3g}): the runs add next to "
                "nothing"
            )
    return said
