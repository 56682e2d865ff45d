"""Approach 2 of Hoffmann et al. 2022 (section 3.2): the least loss of isoFLOP profiles, and lines through the minima.

At each budget the size with the least loss, by a parabola or by an Akima interpolant (Porian et al. 2024); then
N_opt ∝ C^a and D_opt ∝ C^b by a line through these in logarithms. Parabolas are biased where profiles aren't.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.arrays import Array
from isoflop.fit.approaches import Approach, Minimum, around, column, from_lines, line, quantile
from isoflop.fit.robust import seed_noise
from isoflop.laws.forms import Convention
from isoflop.laws.quantities import check_level as level_of

Rows = NDArray[np.intp]


def columns(C: ArrayLike, N: ArrayLike, D: ArrayLike, L: ArrayLike) -> tuple[Array, Array, Array, Array]:
    """The four columns, checked (`isoflop_profiles`)."""
    meanings = {"C": "training FLOPs", "N": "parameters", "D": "tokens", "L": "losses in nats per token"}
    table = [column(name, v, meanings[name]) for name, v in zip("CNDL", (C, N, D, L), strict=True)]
    if len({len(v) for v in table}) > 1:
        lengths = ", ".join(f"{name} {len(v)}" for name, v in zip("CNDL", table, strict=True))
        raise ValueError(f"expected columns of one length, got {lengths}")
    C, N, D, L = table
    # 6 for dense models; Kaplan's N without the head of a tiny model reaches 100
    ratio = C / (N * D)
    wrong = np.flatnonzero((ratio < 0.5) | (ratio > 1000))
    if wrong.size:
        raise ValueError(
            f"row {wrong[0] + 1}, columns 'C', 'N', 'D': expected about 6 FLOPs per parameter and token, got "
            f"C/(N·D) = {ratio[wrong[0]]:.3g}: are N and D plain counts (not millions), and C in FLOPs?"
        )
    if np.ptp(np.log(N)) < 1e-6:
        raise ValueError(f"expected several sizes in column N, got {N[0]:.6g} in all {len(N)} rows")
    return C, N, D, L


def group(C: Array, budgets: ArrayLike | None, tolerance: float) -> tuple[list[tuple[float, Rows]], int]:
    """Rows of each budget, by budget, and how many belong to none (`isoflop_profiles`)."""
    if not tolerance > 1:
        raise ValueError(f"expected a tolerance above 1, got {tolerance!r}: it is a factor of C, 1.25 for ±25%")
    log_C, reach = np.log(C), np.log(tolerance)
    if budgets is not None:
        known = np.unique(column("budgets", budgets, "FLOPs"))
        distance = np.abs(log_C[:, None] - np.log(known))
        nearest = np.where(distance.min(axis=1) <= reach, distance.argmin(axis=1), -1)
        found = [(float(b), np.flatnonzero(nearest == i)) for i, b in enumerate(known)]
        return found, int((nearest < 0).sum())
    order = np.argsort(log_C)
    parts = []
    for rows in np.split(order, np.flatnonzero(np.diff(log_C[order]) > reach) + 1):
        if np.ptp(log_C[rows]) > 2 * reach:
            raise ValueError(
                f"expected budgets apart by more than a factor {tolerance:g}, got FLOPs that run on from "
                f"{C[rows].min():.3g} to {C[rows].max():.3g}: name the nominal budgets (budgets=, "
                "--budgets), such as 6e18,1e19"
            )
        parts += _apart(rows, log_C)
    return [(float(np.exp(log_C[rows].mean())), rows) for rows in parts], 0


MERGED = math.log(1.2)
"""Of ln C of the runs of one budget, beyond which that they are merged is told."""
CLEAR = 5.0
"""Gaps of ln C this many times wider than all others part budgets, though they are close."""


def _apart(rows: Rows, log_C: Array) -> list[Rows]:
    """Rows of neighbouring budgets [n], by ln C, at clear gaps between them."""
    gaps = np.diff(log_C[rows])
    steps = np.append(1e-3, np.sort(gaps[gaps > 1e-3]))
    jump = int(np.argmax(steps[1:] / steps[:-1])) if len(steps) > 1 else 0
    if len(steps) < 2 or steps[jump + 1] < CLEAR * steps[jump]:
        return [rows]
    parts = np.split(rows, np.flatnonzero(gaps > steps[jump]) + 1)
    return parts if min(map(len, parts)) >= NEEDED["parabola"] else [rows]


Method = Literal["parabola", "akima"]
NEEDED = {"parabola": 3, "akima": 4}
"""Distinct sizes: a parabola has three coefficients; Akima's slopes look two intervals to either side."""


def one_per_size(x: Array, loss: Array) -> Rows:
    """Rows of the least loss of each size, by size: as Porian et al. 2024 (sweeps leave several runs of a size).

    Sizes that differ by less than 1e-6 relative are one: an interpolant would swing between them.
    """
    order = np.argsort(x, kind="stable")
    group = np.empty(len(x), dtype=np.intp)
    group[order] = np.r_[0, np.cumsum(np.diff(x[order]) > 1e-6)]
    by_loss = np.lexsort((loss, group))
    return by_loss[np.r_[True, np.diff(group[by_loss]) > 0]]


def parabola(x: Array, loss: Array) -> tuple[Array, Array, Array]:
    """Least squares of loss = c₀ + c₁x + c₂x² (Hoffmann et al. 2022, section 3.2).

    Args:
        x: ln N [n].
        loss: [n] or [n, copies].

    Returns:
        Vertex in ln N, its loss, and c₂, each [copies] or scalar: no vertex is refused here, see `refused`.
    """
    centre, width = x.mean(), max(float(np.ptp(x)), 1e-12)
    u = (x - centre) / width
    c0, c1, c2 = np.linalg.lstsq(np.stack([np.ones_like(u), u, u * u], axis=1), loss, rcond=None)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = -c1 / (2 * c2)
        least = c0 + c1 * vertex / 2
    return centre + width * vertex, least, c2 / width**2


def akima(x: Array, loss: Array) -> tuple[Array, Array]:
    """The least value of an Akima interpolant of ln loss over ln N (Porian et al. 2024), exact: by its cubics' roots.

    Args:
        x: ln N [n], increasing.
        loss: [n] or [n, copies].

    Returns:
        ln N and loss there, each [copies] or scalar; at an end of x where the loss still falls towards it.
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
    best = value.argmin(axis=0)
    columns = np.arange(copies.shape[1])
    return place[best, columns].reshape(y.shape[1:]), np.exp(value[best, columns]).reshape(y.shape[1:])


def refused(x: Array, loss: Array, method: Method) -> str | None:
    """Why this profile has no minimum to speak of; None: it has one."""
    if not len(x):
        return "no run lies near it"
    rows = one_per_size(x, loss)
    sizes = len(rows)
    if sizes < NEEDED[method]:
        return f"fewer than {NEEDED[method]} sizes, which a minimum by {method} needs"
    if method == "parabola":
        vertex, _, curvature = parabola(x, loss)
        if curvature <= 0:
            return "its parabola opens downwards"
    else:
        vertex, _ = akima(x[rows], loss[rows])
    if vertex <= x.min():
        return f"its loss is least at or below the smallest size, {np.exp(x.min()):.3g} parameters: add smaller ones"
    if vertex >= x.max():
        return f"its loss is least at or above the largest size, {np.exp(x.max()):.3g} parameters: add larger ones"
    return None


def resampled(x: Array, loss: Array, sd: Array, method: Method, copies: int, rng: np.random.Generator) -> Array:
    """Minima in ln N of noisy copies of a profile, those inside the grid only [≤ copies].

    Args:
        x: ln N [n].
        loss: [n].
        sd: noise of the losses [n], nats per token.
        method: parabola or Akima.
        copies: how many.
        rng: for the noise.
    """
    if method == "akima":
        rows = one_per_size(x, loss)
        x, loss, sd = x[rows], loss[rows], sd[rows]
    noisy = loss[:, None] + sd[:, None] * rng.standard_normal((len(x), copies))
    noisy = np.maximum(noisy, 1e-3 * loss[:, None])
    if method == "akima":
        vertex, _ = akima(x, noisy)
        inside = np.ones(copies, dtype=bool)
    else:
        vertex, _, curvature = parabola(x, noisy)
        inside = curvature > 0
    return vertex[inside & (vertex > x.min()) & (vertex < x.max())]


COPIES = 1000
"""Noisy copies of a profile, as many as Porian et al. 2024 draw."""


PRIOR = 4
"""Degrees of freedom that the typical budget lends to each: few residuals alone tell little of their variance."""


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
    method: Method
    level: float


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
    """The sizes of least loss, of one budget too.

    A parabola is fitted to L over ln N through all rows of a budget. An Akima interpolant goes through ln L over ln N
    of the best run of each size.

    The minima's intervals come from copies of each profile with noise added to its losses, as Porian et al. 2024 do:
    resampling the runs instead would leave holes in grids of five to ten sizes, and an interpolant has no residuals.

    Args:
        C, N, D, L: as `isoflop_profiles`.
        budgets: nominal budgets; rows go to the nearest in ln C, those farther than `tolerance` from it are left out.
            None: ln C is split at gaps wider than `tolerance`.
        tolerance: a factor of C.
        minimum: "parabola" or "akima".
        noise: standard deviation of a loss in nats per token. None: for parabolas their residuals, each budget's drawn
            towards the median of all; for Akima, or where there are no residuals, `seed_noise`.
        level: of the intervals.
        seed: of the noise.

    Raises:
        ValueError: a column with values that aren't positive, columns of different lengths, units mixed up, budgets
            that run into each other.
    """
    level, warnings = level_of(level), []
    if minimum not in ("parabola", "akima"):
        raise ValueError(f'expected minimum "parabola" or "akima", got {minimum!r}')
    C, N, D, L = columns(C, N, D, L)
    groups, left = group(C, budgets, tolerance)
    if left:
        warnings.append(f"{left} of {len(C)} rows left out: more than a factor {tolerance:g} from the nearest budget")
    warnings += [
        f"runs of {C[rows].min():.3g} to {C[rows].max():.3g} FLOPs are taken for one budget: if they are several, name "
        "them (budgets=, --budgets)"
        for _, rows in groups
        if budgets is None and np.ptp(np.log(C[rows])) > MERGED
    ]
    kept: list[tuple[float, Rows]] = []
    left_out: list[tuple[float, str]] = []
    for value, rows in groups:
        why = refused(np.log(N[rows]), L[rows], minimum)
        if why is None:
            kept.append((value, rows))
        else:
            left_out.append((value, why))
    sd, sd_dof = _noise(noise, minimum, [(np.log(N[rows]), L[rows]) for _, rows in kept])
    rng = np.random.default_rng(seed)
    minima = []
    for (value, rows), s in zip(kept, sd, strict=True):
        found = _minimum(value, C[rows], N[rows], D[rows], L[rows], s, minimum, quantile(level, sd_dof), rng)
        if isinstance(found, Minimum):
            minima.append(found)
        else:
            left_out.append((value, found))
    rows_used = sum(len(rows) for _, rows in kept)
    return ProfileMinima(tuple(minima), _by_cause(left_out), tuple(warnings), sd_dof, rows_used, minimum, level)


def _by_cause(left_out: Sequence[tuple[float, str]]) -> tuple[str, ...]:
    """Why budgets are left out, one line for each cause."""
    causes: dict[str, list[str]] = {}
    for value, why in left_out:
        causes.setdefault(why, []).append(f"{value:.3g}")
    return tuple(
        f"the budget{'s' * (len(at) > 1)} {', '.join(at[:3])}{f' and {len(at) - 3} more' if len(at) > 3 else ''} FLOPs "
        f"{'are' if len(at) > 1 else 'is'} left out: {why}"
        for why, at in causes.items()
    )


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
    found = profile_minima(C, N, D, L, **options)
    minima, warnings = found.minima, list(found.warnings)
    if len(minima) < 2:
        told = "; ".join(found.reasons) or f"all rows have about {minima[0].C:.3g} FLOPs"
        raise ValueError(f"expected at least two budgets with a minimum, got {len(minima)}: {told}")
    if len(minima) == 2:
        warnings.append("two budgets: whether the minima lie on a line can't be tested")
    at = np.log([m.C for m in minima])
    spread = np.array([m.standard_error for m in minima])
    return from_lines(
        f"approach 2 ({'Akima' if found.method == 'akima' else 'parabola'})",
        line(at, np.log([m.N for m in minima]), spread, found.dof),
        line(at, np.log([m.D for m in minima]), spread, found.dof),
        found.level,
        minima=minima,
        warnings=(*warnings, *found.reasons),
        n=found.rows,
        convention=convention,
        number=2,
    )
