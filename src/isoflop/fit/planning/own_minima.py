"""The isoFLOP minima of a user's own runs, few as they may be: one budget of three sizes is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.fit.approaches.approach import Minimum
from isoflop.fit.approaches.isoflop_profiles import COPIES, seed_noise
from isoflop.fit.approaches.profile_groups import group
from isoflop.fit.approaches.profile_minimum import one_per_size, parabola, refused, resampled
from isoflop.fit.fitting.data import check_runs
from isoflop.fit.laws import TRAINING_FLOPS, compute_of, typical_rate
from isoflop.fit.planning.map_line import Array

REACH = 4.0
"""Sizes within this factor of the best one make the parabola: profiles are none farther out. On Porian et al. 2024's
sweeps that halves the minima's scatter about a line against all sizes, and beats Akima interpolation too."""
LEAST = 4
"""Sizes in the parabola, if there are as many, however far they lie."""
SEED_DOF = 3
"""What `seed_noise` counts for beside the residuals of a few runs, in degrees of freedom."""
SPAN = 1.5
"""Factor between the largest and the smallest of them: sizes closer together differ by the losses' noise, or by
architecture. The spaced sweeps of the literature span 4 and more."""
BUDGET = 1.25
"""A factor of C within which runs share a budget."""


@dataclass(frozen=True)
class OwnMinima:
    """What own runs tell of the best size.

    Attributes:
        minima: by budget; none where the runs show none.
        columns: C, N, D and loss of the runs, checked.
        flops_per_param_token: C/(N·D) at the minima; without any, of the runs.
        reasons: why runs or budgets tell nothing, and what is odd about them.
    """

    minima: tuple[Minimum, ...]
    columns: tuple[Array, Array, Array, Array]
    flops_per_param_token: float = TRAINING_FLOPS
    reasons: tuple[str, ...] = ()


def own_minima(columns: Mapping[str, ArrayLike], seed: int = 0, rows: Sequence[object] | None = None) -> OwnMinima:
    """The size of least loss at each budget, by a parabola in ln N, with its noise.

    Args:
        columns: "N" parameters, "D" tokens, "loss" nats per token, one number a run; "C" training FLOPs, else 6·N·D.
        seed: of the noisy copies that the standard errors come from.
        rows: what to call each run in messages.

    Raises:
        ValueError: columns that are missing, or not of positive numbers (`data.BadData` names row and column).
    """
    runs = check_runs(columns, ("N", "D", "C") if "C" in columns else ("N", "D"), rows=rows)
    N, D, L = runs.variables["N"], runs.variables["D"], runs.loss
    C = compute_of(N, D, runs.variables.get("C"))
    warnings = tuple(text for text in runs.warnings if "the same C" not in text)  # one budget is enough
    try:
        groups, _ = group(C, None, BUDGET)
    except ValueError as error:
        said = (*warnings, f"the runs do not share budgets ({error})")
        return OwnMinima((), (C, N, D, L), typical_rate(C, N, D), said)
    reasons: list[str] = []
    profiles: list[tuple[float, Array, Array, Array]] = []
    for budget, mine in groups:
        x, loss = np.log(N[mine]), L[mine]
        near = _near(x, loss)
        why = refused(x[near], loss[near], "parabola")
        span = float(np.exp(np.ptp(x[near])))
        if why is None and span < SPAN:
            why = f"its sizes lie within a factor of {span:.2f}, a minimum needs {SPAN:g}"
        if why is None:
            profiles.append((budget, x[near], loss[near], (C / (N * D))[mine][near]))
        else:
            reasons.append(f"the budget {budget:.3g} FLOPs tells no size: {why}")
    noise = _noise([(x, loss) for _, x, loss, _ in profiles])
    rng = np.random.default_rng(seed)
    minima, rates = [], []
    for (budget, x, loss, rate), sd in zip(profiles, noise, strict=True):
        vertex, least, _ = parabola(x, loss)
        copies = resampled(x, loss, sd, "parabola", COPIES, rng)
        if len(copies) < COPIES / 2:
            reasons.append(f"the budget {budget:.3g} FLOPs tells no size: noise of {sd[0]:.2g} nats hides its minimum")
            continue
        size, standard_error = float(np.exp(vertex)), float(copies.std())
        order = np.argsort(x)
        rates.append(float(np.exp(np.interp(vertex, x[order], np.log(rate)[order]))))
        tokens = budget / (rates[-1] * size)
        minima.append(Minimum(budget, size, tokens, float(least), len(one_per_size(x, loss)), standard_error))
    typical = float(np.exp(np.mean(np.log(rates)))) if rates else typical_rate(C, N, D)
    return OwnMinima(tuple(minima), (C, N, D, L), typical, (*warnings, *reasons))


def _near(x: Array, loss: Array) -> Array:
    """Rows that make the parabola: all of the sizes near the best one."""
    best = x[loss.argmin()]
    distance = np.abs(x - best)
    sizes = np.sort(np.abs(x[one_per_size(x, loss)] - best))
    return distance <= max(np.log(REACH), sizes[min(LEAST, len(sizes)) - 1]) + 1e-6


def _noise(profiles: list[tuple[Array, Array]]) -> list[Array]:
    """Standard deviations of the losses: `seed_noise` scaled by what the residuals of all profiles say beside it."""
    ratios, dof = float(SEED_DOF), SEED_DOF
    expected = [seed_noise(loss) for _, loss in profiles]
    for (x, loss), sd in zip(profiles, expected, strict=True):
        residuals = loss - np.polynomial.Polynomial.fit(x, loss, 2)(x)
        ratios += float(((residuals / sd) ** 2).sum())
        dof += max(len(x) - 3, 0)
    scale = np.sqrt(ratios / dof)
    return [scale * sd for sd in expected]
