"""The least loss of one isoFLOP profile: by a parabola, or by an Akima interpolant; for many noisy copies at once."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from isoflop.fit.approaches.checks import Array, Rows

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
        return f"it has {sizes} size{'s' * (sizes != 1)}, a minimum by {method} needs {NEEDED[method]}"
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
