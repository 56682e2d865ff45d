"""Approach 2 of Hoffmann et al. 2022 (section 3.2): isoFLOP profiles.

At each budget the size with the least loss; then N_opt ∝ C^a and D_opt ∝ C^b by a line through these in logarithms.
Its parabolas are biased wherever profiles aren't parabolas: `isoflop.fit.approaches.bias`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.fit.approaches.approach import Approach, Minimum, around, from_lines, line, quantile
from isoflop.fit.approaches.checks import Array, Rows
from isoflop.fit.approaches.profile_groups import columns, group
from isoflop.fit.approaches.profile_minimum import Method, akima, one_per_size, parabola, refused, resampled
from isoflop.fit.frontier.checks import level as level_of
from isoflop.fit.law import Convention

COPIES = 1000
"""Noisy copies of a profile, as many as Porian et al. 2024 draw."""


PRIOR = 4
"""Degrees of freedom that the typical budget lends to each: few residuals alone tell little of their variance."""


def seed_noise(loss: Array) -> Array:
    """Standard deviation of losses between seeds, nats per token: .005 up to L = 3, .1 from L = 6, a power law between.

    The numbers in Porian et al. 2024's code (`get_noise_for_loss`), read as thresholds on the loss.
    """
    return np.exp(np.interp(np.log(loss), np.log([3.0, 6.0]), np.log([0.005, 0.1])))


def isoflop_profiles(
    C: ArrayLike,
    N: ArrayLike,
    D: ArrayLike,
    L: ArrayLike,
    *,
    budgets: ArrayLike | None = None,
    tolerance: float = 1.25,
    minimum: Method = "parabola",
    noise: float | None = None,
    level: float = 0.9,
    seed: int = 0,
    convention: Convention = "unknown",
) -> Approach:
    """Approach 2: the exponents of the compute-optimal size and tokens from isoFLOP profiles.

    A parabola is fitted to L over ln N through all rows of a budget. An Akima interpolant goes through ln L over ln N
    of the best run of each size.

    The minima's intervals come from copies of each profile with noise added to its losses, as Porian et al. 2024 do:
    resampling the runs instead would leave holes in grids of five to ten sizes, and an interpolant has no residuals.
    The exponents' standard errors are the larger of what this noise and what the scatter about the line say.

    Args:
        C: training FLOPs [n].
        N: parameters [n].
        D: tokens [n].
        L: losses, nats per token [n].
        budgets: nominal budgets; rows go to the nearest in ln C, those farther than `tolerance` from it are left out.
            None: ln C is split at gaps wider than `tolerance`.
        tolerance: a factor of C.
        minimum: "parabola" or "akima".
        noise: standard deviation of a loss in nats per token. None: for parabolas their residuals, each budget's drawn
            towards the median of all; for Akima, or where there are no residuals, `seed_noise`.
        level: of the intervals.
        seed: of the noise.
        convention: which parameters N counts.

    Returns:
        The exponents, prefactors and minima; budgets without a minimum are left out and named in `warnings`.

    Raises:
        ValueError: a column with values that aren't positive, columns of different lengths, units mixed up, budgets
            that run into each other, fewer than two budgets with a minimum.
    """
    found = profile_minima(
        C, N, D, L, budgets=budgets, tolerance=tolerance, minimum=minimum, noise=noise, level=level, seed=seed
    )
    minima, reasons, warnings, sd_dof = found.minima, found.reasons, list(found.warnings), found.dof
    if len(minima) < 2:
        told = "; ".join(reasons) or f"all rows have about {minima[0].C:.3g} FLOPs"
        raise ValueError(f"expected at least two budgets with a minimum, got {len(minima)}: {told}")
    if len(minima) == 2:
        warnings.append("two budgets: nothing tells whether the minima lie on a line")
    at = np.log([m.C for m in minima])
    spread = np.array([m.standard_error for m in minima])
    sizes, tokens = np.log([m.N for m in minima]), np.log([m.D for m in minima])
    return from_lines(
        f"approach 2 ({'parabola' if minimum == 'parabola' else 'Akima'})",
        line(at, sizes, spread, sd_dof),
        line(at, tokens, spread, sd_dof),
        level_of(level),
        minima=minima,
        warnings=(*warnings, *reasons),
        n=found.rows,
        convention=convention,
    )


@dataclass(frozen=True)
class ProfileMinima:
    """The sizes of least loss at the budgets that show one; why others don't, and what is odd about the rows.

    `dof`: degrees of freedom behind the noise. `rows`: in the profiles.
    """

    minima: tuple[Minimum, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    dof: float
    rows: int


def profile_minima(
    C: ArrayLike,
    N: ArrayLike,
    D: ArrayLike,
    L: ArrayLike,
    *,
    budgets: ArrayLike | None = None,
    tolerance: float = 1.25,
    minimum: Method = "parabola",
    noise: float | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> ProfileMinima:
    """The minima alone, of one budget too. Arguments and errors as `isoflop_profiles`."""
    level, warnings = level_of(level), []
    if minimum not in ("parabola", "akima"):
        raise ValueError(f'expected minimum "parabola" or "akima", got {minimum!r}')
    C, N, D, L = columns(C, N, D, L)
    groups, left = group(C, budgets, tolerance)
    if left:
        warnings.append(f"{left} of {len(C)} rows left out: more than a factor {tolerance:g} from the nearest budget")
    kept: list[tuple[float, Rows]] = []
    reasons = []
    for value, rows in groups:
        why = refused(np.log(N[rows]), L[rows], minimum)
        if why is None:
            kept.append((value, rows))
        else:
            reasons.append(f"the budget {value:.3g} FLOPs is left out: {why}")
    sd, sd_dof = _noise(noise, minimum, [(np.log(N[rows]), L[rows]) for _, rows in kept])
    rng = np.random.default_rng(seed)
    minima = []
    for (value, rows), s in zip(kept, sd, strict=True):
        found = _minimum(value, C[rows], N[rows], D[rows], L[rows], s, minimum, quantile(level, sd_dof), rng)
        if isinstance(found, Minimum):
            minima.append(found)
        else:
            reasons.append(f"the budget {value:.3g} FLOPs is left out: {found}")
    rows_used = sum(len(rows) for _, rows in kept)
    return ProfileMinima(tuple(minima), tuple(reasons), tuple(warnings), sd_dof, rows_used)


def _noise(noise: float | None, method: Method, profiles: list[tuple[Array, Array]]) -> tuple[list[Array], float]:
    """Standard deviations of each profile's losses, and the degrees of freedom behind them."""
    if noise is not None:
        if not (np.isfinite(noise) and noise >= 0):
            raise ValueError(f"expected the noise of a loss in nats per token, got {noise!r}")
        return [np.full(len(loss), float(noise)) for _, loss in profiles], np.inf
    dof = sum(len(x) - 3 for x, _ in profiles)
    if method == "akima" or dof <= 0:
        return [seed_noise(loss) for _, loss in profiles], np.inf
    own = np.array([len(x) - 3 for x, _ in profiles])
    squares = np.array([float(((np.polynomial.Polynomial.fit(x, y, 2)(x) - y) ** 2).sum()) for x, y in profiles])
    typical = float(np.median(squares[own > 0] / own[own > 0]))
    variance = (squares + PRIOR * typical) / (own + PRIOR)
    return [np.full(len(y), np.sqrt(v)) for (_, y), v in zip(profiles, variance, strict=True)], float(dof)


def _minimum(
    budget: float,
    C: Array,
    N: Array,
    D: Array,
    L: Array,
    sd: Array,
    method: Method,
    reach: float,
    rng: np.random.Generator,
) -> Minimum | str:
    """The minimum of one profile; or why noise hides it."""
    x, best = np.log(N), one_per_size(np.log(N), L)
    vertex, least = parabola(x, L)[:2] if method == "parabola" else akima(x[best], L[best])
    draws = resampled(x, L, sd, method, COPIES, rng)
    if len(draws) < COPIES / 2:
        return f"noise of {np.median(sd):.2g} nats per token moves its minimum off the grid more often than not"
    size = float(np.exp(vertex))
    # FLOPs per parameter and token of the sizes around: 6 where C = 6ND
    rate = np.exp(np.interp(vertex, x[best], np.log(C / (N * D))[best]))
    # wider by the copies that were lost off the grid: as Porian et al.
    error = float(draws.std()) * COPIES / len(draws)
    tokens = float(budget / (rate * size))
    return Minimum(budget, size, tokens, float(least), len(best), error, around(size, reach * error))
