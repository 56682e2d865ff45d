"""Approach 2 of Hoffmann et al. 2022 (section 3.2): the least loss of isoFLOP profiles, and lines through the minima.

At each budget the size with the least loss, by a parabola or by an Akima interpolant (Porian et al. 2024); then
N_opt ∝ C^a and D_opt ∝ C^b by a line through these in logarithms. Parabolas are biased where profiles aren't.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.arrays import Array
from isoflop.console import by_reason
from isoflop.fit.optimal_line import Approach, Minimum, column, columns_of, fitted_line, quantile
from isoflop.fit.robust import seed_noise
from isoflop.fit.runs import describe_rate, implausible
from isoflop.laws.forms import Convention
from isoflop.laws.quantities import check_level

Rows = NDArray[np.intp]
Method = Literal["parabola", "akima"]
NEEDED = {"parabola": 3, "akima": 4}
"""Distinct sizes: a parabola has three coefficients; Akima's slopes look two intervals to either side."""
TOLERANCE = 1.25
"""A factor of C within which runs share a budget."""
MERGED = math.log(1.2)
"""Of ln C of the runs of one budget, beyond which that they are merged is told."""
CLEAR = 5.0
"""Gaps of ln C this many times wider than all others part budgets, though they are close."""
COPIES = 1000
"""Noisy copies of a profile, as many as Porian et al. 2024 draw."""
PRIOR = 4
"""Degrees of freedom that the typical budget lends to each: few residuals alone tell little of their variance."""


def group(C: Array, budgets: ArrayLike | None) -> tuple[list[tuple[float, Rows]], int]:
    """Rows of each budget, by budget, and how many belong to none (`profile_minima`)."""
    log_C, reach = np.log(C), math.log(TOLERANCE)
    if budgets is not None:
        known = np.unique(column("budgets", budgets, "FLOPs"))
        distance = np.abs(log_C[:, None] - np.log(known))
        nearest = np.where(distance.min(axis=1) <= reach, distance.argmin(axis=1), -1)
        return [(float(b), np.flatnonzero(nearest == i)) for i, b in enumerate(known)], int((nearest < 0).sum())
    order = np.argsort(log_C)
    parts = []
    for rows in np.split(order, np.flatnonzero(np.diff(log_C[order]) > reach) + 1):
        if np.ptp(log_C[rows]) > 2 * reach:
            raise ValueError(
                f"expected budgets apart by more than a factor {TOLERANCE:g}, got FLOPs that run on from "
                f"{C[rows].min():.3g} to {C[rows].max():.3g}: name the nominal budgets (budgets=, "
                "--budgets), such as 6e18,1e19"
            )
        parts += _apart(rows, log_C)
    return [(float(np.exp(log_C[rows].mean())), rows) for rows in parts], 0


def _apart(rows: Rows, log_C: Array) -> list[Rows]:
    """Rows of neighbouring budgets [n], by ln C, at clear gaps between them."""
    gaps = np.diff(log_C[rows])
    steps = np.append(1e-3, np.sort(gaps[gaps > 1e-3]))
    jump = int(np.argmax(steps[1:] / steps[:-1])) if len(steps) > 1 else 0
    if len(steps) < 2 or steps[jump + 1] < CLEAR * steps[jump]:
        return [rows]
    parts = np.split(rows, np.flatnonzero(gaps > steps[jump]) + 1)
    return parts if min(map(len, parts)) >= NEEDED["parabola"] else [rows]


def one_per_size(x: Array, loss: Array) -> Rows:
    """Rows of the least loss of each size, by size: as Porian et al. 2024 (sweeps leave several runs of a size).

    Sizes that differ by less than 1e-6 relative are one: an interpolant would swing between them.
    """
    order = np.argsort(x, kind="stable")
    sizes = np.empty(len(x), dtype=np.intp)
    sizes[order] = np.r_[0, np.cumsum(np.diff(x[order]) > 1e-6)]
    by_loss = np.lexsort((loss, sizes))
    return by_loss[np.r_[True, np.diff(sizes[by_loss]) > 0]]


def _parabola(x: Array, loss: Array) -> tuple[Array, Array, Array]:
    """Least squares of loss [n] or [n, copies] = c₀ + c₁x + c₂x², x = ln N: vertex, its loss, where c₂ > 0."""
    centre, width = x.mean(), max(float(np.ptp(x)), 1e-12)
    u = (x - centre) / width
    c0, c1, c2 = np.linalg.lstsq(np.stack([np.ones_like(u), u, u * u], axis=1), loss, rcond=None)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = -c1 / (2 * c2)
        return centre + width * vertex, c0 + c1 * vertex / 2, c2 > 0


def akima(x: Array, loss: Array) -> tuple[Array, Array, Array]:
    """The least value of an Akima interpolant of ln loss [n] or [n, copies] over x = ln N, exact: by its cubics' roots.

    Returns ln N, loss and True; at an end of x where the loss still falls towards it.
    """
    from scipy.interpolate import Akima1DInterpolator  # slow to import, and approach 2 is by parabolas unless asked

    y = np.log(loss)
    copies = y.reshape(len(x), -1)
    c3, c2, c1, c0 = Akima1DInterpolator(x, copies).c
    length = np.diff(x)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        # minimum of the cubic: the root of 3c₃t² + 2c₂t + c₁ with a positive second derivative, 2√disc: stable form
        disc = np.sqrt(c2 * c2 - 3 * c3 * c1)
        t = np.where(c2 > 0, -c1 / (c2 + disc), (-c2 + disc) / (3 * c3))
    t = np.where((t >= 0) & (t <= length), t, 0.0)
    value = np.concatenate([c0 + t * (c1 + t * (c2 + t * c3)), copies[-1:]])
    place = np.concatenate([x[:-1, None] + t, np.full((1, copies.shape[1]), x[-1])])
    best, columns = value.argmin(axis=0), np.arange(copies.shape[1])
    vertex, least = place[best, columns], np.exp(value[best, columns])
    return vertex.reshape(y.shape[1:]), least.reshape(y.shape[1:]), np.ones(y.shape[1:], dtype=bool)


def refused(x: Array, loss: Array, method: Method = "parabola") -> str | None:
    """Why this profile, losses over ln N [n], has no minimum to speak of; None: it has one."""
    if not len(x):
        return "no run lies near it"
    rows = one_per_size(x, loss)
    if len(rows) < NEEDED[method]:
        return f"fewer than {NEEDED[method]} sizes, which a minimum by {method} needs"
    vertex, _, upwards = _parabola(x, loss) if method == "parabola" else akima(x[rows], loss[rows])
    rises = np.diff(loss[np.argsort(x)]) > 0
    if not upwards and (rises.all() or not rises.any()):  # falls all the way to one end
        vertex = x[np.argmin(loss)]
    elif not upwards:
        return "its parabola opens downwards"
    if vertex <= x.min():
        return f"its loss is least at or below the smallest size, {np.exp(x.min()):.3g} parameters: add smaller ones"
    if vertex >= x.max():
        return f"its loss is least at or above the largest size, {np.exp(x.max()):.3g} parameters: add larger ones"
    return None


@dataclass(frozen=True)
class ProfileMinima:
    """The sizes of least loss at the budgets that show one; why others don't, and what is odd about the rows.

    `dof`: degrees of freedom behind the noise. `rows`: in the profiles. `level`: of the minima's intervals.
    """

    minima: tuple[Minimum, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    dof: float
    rows: int
    level: float


def profile_minima(
    C: ArrayLike,
    N: ArrayLike,
    D: ArrayLike,
    L: ArrayLike,
    *,
    budgets: ArrayLike | None = None,
    minimum: Method = "parabola",
    noise: float | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> ProfileMinima:
    """The sizes of least loss, of one budget too.

    A parabola is fitted to L over ln N through all rows of a budget. An Akima interpolant goes through ln L over ln N
    of the best run of each size.

    The minima's intervals come from copies of each profile with noise added to its losses, as Porian et al. 2024 do:
    resampling the runs instead would leave holes in grids of five to ten sizes, and an interpolant has no residuals.

    Args:
        C, N, D, L: as `isoflop_profiles`.
        budgets: nominal budgets; rows go to the nearest in ln C, those farther than a factor of 1.25 from it are left
            out. None: ln C is split at gaps wider than that.
        minimum: "parabola" or "akima".
        noise: standard deviation of a loss in nats per token. None: for parabolas their residuals, each budget's drawn
            towards the median of all; for Akima, or where there are no residuals, `seed_noise`.
        level: of the intervals.
        seed: of the noise.

    Raises:
        ValueError: a column with values that aren't positive, columns of different lengths, units mixed up, budgets
            that run into each other.
    """
    level, warnings = check_level(level), []
    if minimum not in NEEDED:
        raise ValueError(f'expected minimum "parabola" or "akima", got {minimum!r}')
    C, N, D, L = columns_of(C=C, N=N, D=D, L=L)
    if (wrong := implausible(C, N, D)).size:
        raise ValueError(describe_rate(C, N, D, wrong[0], [f"row {i + 1}" for i in range(len(C))]))
    if np.ptp(np.log(N)) < 1e-6:
        raise ValueError(f"expected several sizes in column N, got {N[0]:.6g} in all {len(N)} rows")
    groups, left = group(C, budgets)
    if left:
        warnings.append(f"{left} of {len(C)} rows left out: more than a factor {TOLERANCE:g} from the nearest budget")
    warnings += [
        f"runs of {C[rows].min():.3g} to {C[rows].max():.3g} FLOPs are taken for one budget: if they are several, name "
        "them (budgets=, --budgets)"
        for _, rows in groups
        if budgets is None and np.ptp(np.log(C[rows])) > MERGED
    ]
    why = [refused(np.log(N[rows]), L[rows], minimum) for _, rows in groups]
    kept = [each for each, told in zip(groups, why, strict=True) if told is None]
    left_out = [(value, told) for (value, _), told in zip(groups, why, strict=True) if told is not None]
    sd, dof = _noise(noise, minimum, [(np.log(N[rows]), L[rows]) for _, rows in kept])
    rng = np.random.default_rng(seed)
    minima = []
    for (value, rows), s in zip(kept, sd, strict=True):
        found = _minimum(value, C[rows], N[rows], D[rows], L[rows], s, minimum, quantile(level, dof), rng)
        if isinstance(found, Minimum):
            minima.append(found)
        else:
            left_out.append((value, found))
    rows_used = sum(len(rows) for _, rows in kept)
    return ProfileMinima(tuple(minima), _by_cause(left_out), tuple(warnings), dof, rows_used, level)


def _by_cause(left_out: list[tuple[float, str]]) -> tuple[str, ...]:
    """Why budgets are left out, one line for each cause."""
    return tuple(
        f"the budget{'s' * (len(at) > 1)} {', '.join(at[:3])}{f' and {len(at) - 3} more' if len(at) > 3 else ''} FLOPs "
        f"{'are' if len(at) > 1 else 'is'} left out: {why}"
        for why, at in by_reason((f"{value:.3g}", why) for value, why in left_out).items()
    )


def _noise(noise: float | None, method: Method, profiles: list[tuple[Array, Array]]) -> tuple[list[Array], float]:
    """Standard deviations of each profile's losses, and the degrees of freedom behind them."""
    if noise is not None:
        if not (np.isfinite(noise) and noise >= 0):
            raise ValueError(f"expected the noise of a loss in nats per token, got {noise!r}")
        return [np.full(len(loss), float(noise)) for _, loss in profiles], math.inf
    own = np.array([len(x) - 3 for x, _ in profiles])
    if method == "akima" or own.sum() <= 0:
        return [seed_noise(loss) for _, loss in profiles], math.inf
    squares = np.array([float(((np.polynomial.Polynomial.fit(x, y, 2)(x) - y) ** 2).sum()) for x, y in profiles])
    typical = float(np.median(squares[own > 0] / own[own > 0]))
    variance = (squares + PRIOR * typical) / (own + PRIOR)
    return [np.full(len(y), np.sqrt(v)) for (_, y), v in zip(profiles, variance, strict=True)], float(own.sum())


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
    used, least = (slice(None), _parabola) if method == "parabola" else (best, akima)
    vertex, loss, _ = least(x[used], L[used])
    noisy = L[used, None] + sd[used, None] * rng.standard_normal((len(x[used]), COPIES))
    drawn, _, upwards = least(x[used], np.maximum(noisy, 1e-3 * L[used, None]))
    drawn = drawn[upwards & (drawn > x.min()) & (drawn < x.max())]
    if len(drawn) < COPIES / 2:
        return f"noise of {np.median(sd):.2g} nats per token moves its minimum off the grid more often than not"
    size = math.exp(vertex)
    # FLOPs per parameter and token of the sizes around: 6 where C = 6ND
    rate = np.exp(np.interp(vertex, x[best], np.log(C / (N * D))[best]))
    # wider by the copies that were lost off the grid: as Porian et al.
    error = float(drawn.std()) * COPIES / len(drawn)
    ends: tuple[float, float] | None = (size * math.exp(-reach * error), size * math.exp(reach * error))
    if method == "parabola" and len(x) == NEEDED[method]:
        ends = None  # it passes through any three losses
    return Minimum(budget, size, float(budget / (rate * size)), float(loss), len(best), error, ends)


def isoflop_profiles(
    C: ArrayLike, N: ArrayLike, D: ArrayLike, L: ArrayLike, *, convention: Convention = "unknown", **options: Any
) -> Approach:
    """Approach 2: the exponents of the compute-optimal size and tokens from isoFLOP profiles.

    The exponents' standard errors are the larger of what the minima's noise and what their scatter about the line say.

    Args:
        C: training FLOPs [n].
        N: parameters [n].
        D: tokens [n].
        L: losses, nats per token [n].
        convention: which parameters N counts.
        options: of `profile_minima`.

    Returns:
        The exponents, prefactors and minima; budgets without a minimum are left out and named in `warnings`.

    Raises:
        ValueError: as `profile_minima`; or fewer than two budgets with a minimum.
    """
    found, method = profile_minima(C, N, D, L, **options), options.get("minimum", "parabola")
    minima, warnings = found.minima, list(found.warnings)
    if not minima and found.reasons and all("fewer than" in reason for reason in found.reasons):
        raise ValueError(f"no isoFLOP budgets in these runs: none has {NEEDED[method]} sizes, so it does not apply")
    if len(minima) < 2:
        told = "; ".join(found.reasons) or f"all rows have about {minima[0].C:.3g} FLOPs"
        raise ValueError(f"expected at least two budgets with a minimum, got {len(minima)}: {told}")
    if len(minima) == 2:
        warnings.append("two budgets: whether the minima lie on a line can't be tested")
    at, size, tokens, error = np.array([(m.C, m.N, m.D, m.standard_error) for m in minima], dtype=float).T
    return Approach(
        f"approach 2 ({method.replace('akima', 'Akima')})",
        2,
        fitted_line(np.log(at), np.log(size), error, found.dof),
        fitted_line(np.log(at), np.log(tokens), error, found.dof),
        found.level,
        minima,
        (*warnings, *found.reasons),
        found.rows,
        convention,
    )
