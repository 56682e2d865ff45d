"""Damped Newton for many fits at once: the least Σ w·huber(ln L̂ − ln L), where L̂ is a sum of power laws.

ln L̂ᵢ = ln Σₖ exp(tᵢₖ) with tᵢₖ = Σₚ Xᵢₖₚ·θₚ: each term of L = E + A/N^α + B/D^β is linear in θ = (ln E, ln A, α, …).
Gradient and Hessian are exact. Many rows of θ (starts, or resamples that differ in their weights) are solved side by
side in NumPy; each has its own damping and stops for itself.

A law known by its values alone as `newton.minimise` wants it: many θ at once, derivatives by differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array
from isoflop.laws.forms import Form

CONTINUATION = 3.0
"""δ is lowered by this factor: a Huber loss with a small δ has kinks everywhere, with a large one it is quadratic."""
WIDEST = 3e-2


class Penalty(Protocol):
    """What is added to Σ w·huber: `prior.Prior`."""

    def of(self, rows: NDArray[np.int64]) -> Penalty:
        """For some rows of θ."""

    def penalty(self, theta: Array) -> Array:
        """[rows]."""

    def derivatives(self, theta: Array) -> tuple[Array, Array]:
        """Gradient [rows, p] and Hessian [rows, p, p]."""


class Runs(Protocol):
    """What `minimise` and draws ask of the runs of a fit: `Problem`, `numeric.Values`."""

    @property
    def log_loss(self) -> Array:
        """[n]."""

    def residuals(self, theta: Array) -> Array:
        """From ln L̂ − ln L: θ [rows, p] → [rows, n]."""

    def slope(self, state: Array) -> Array:
        """Derivative of ln L̂ by θ [n, p], from one row of `state`'s second array."""

    def state(self, theta: Array) -> tuple[Array, Array]:
        """Residuals [rows, n] and what their derivatives need [rows, …]."""

    def derivatives(self, state: tuple[Array, Array], weights: Array, delta: float) -> tuple[Array, Array]:
        """Gradient [rows, p] and Hessian [rows, p, p] of Σ w·huber."""


class Problem:
    """The runs of a fit of a sum of powers.

    Args:
        design: X [n, terms, parameters].
        offset: of the terms, from what is fixed [n, terms].
        log_loss: ln L [n].
    """

    def __init__(self, design: Array, offset: Array, log_loss: Array) -> None:
        self.log_loss = log_loss
        n, terms, p = design.shape
        self.shape = design.shape
        # runs last: NumPy is fast along long contiguous axes
        self._offset = np.ascontiguousarray(offset.T)
        self._terms = np.ascontiguousarray(np.swapaxes(design, 0, 1))
        self._flat = self._terms.reshape(terms * n, p)
        # Xₖ ⊗ Xₗ of each pair of terms: the Hessian is one matrix product with these
        self._pairs = [(k, m) for k in range(terms) for m in range(k, terms)]
        outer = [np.einsum("np,nq->npq", design[:, k], design[:, m]) for k, m in self._pairs]
        outer = [o if k == m else o + np.swapaxes(o, 1, 2) for o, (k, m) in zip(outer, self._pairs, strict=True)]
        self._outer = np.stack(outer).reshape(len(self._pairs) * n, p * p)

    def residuals(self, theta: Array) -> Array:
        """From ln L̂ − ln L: θ [rows, parameters] → [rows, n]."""
        return self.state(theta)[0]

    def state(self, theta: Array) -> tuple[Array, Array]:
        """Residuals [rows, n] and the terms' shares of L̂ [rows, terms, n]."""
        n, terms, _ = self.shape
        share = (theta @ self._flat.T).reshape(-1, terms, n)
        share += self._offset
        highest = share.max(axis=1, keepdims=True)
        share -= highest
        np.exp(share, out=share)
        total = share.sum(axis=1, keepdims=True)
        share /= total
        return (highest + np.log(total))[:, 0] - self.log_loss, share

    def slope(self, share: Array) -> Array:
        """Derivative of ln L̂ by θ from the shares of one row [terms, n]: [n, parameters]."""
        return np.einsum("kn,knp->np", share, self._terms)

    def derivatives(self, state: tuple[Array, Array], weights: Array, delta: float) -> tuple[Array, Array]:
        """Gradient [rows, p] and Hessian [rows, p, p] of Σ w·huber."""
        n, _, p = self.shape
        residuals, share = state
        pull = weights * np.clip(residuals, -delta, delta)
        pulled = pull[:, None] * share
        gradient = pulled.reshape(len(share), -1) @ self._flat
        curved = (weights * (np.abs(residuals) < delta) - pull)[:, None] * share
        parts = np.empty((len(share), len(self._pairs), n))
        for i, (k, m) in enumerate(self._pairs):
            np.multiply(curved[:, k], share[:, m], out=parts[:, i])
            if k == m:
                parts[:, i] += pulled[:, k]
        hessian = (parts.reshape(len(share), -1) @ self._outer).reshape(-1, p, p)
        return gradient, hessian


def huber(residuals: Array, delta: float) -> Array:
    """½r² where |r| ≤ δ, else δ·(|r| − ½δ): Huber 1964, as Hoffmann et al. 2022 use it (section 3.3)."""
    size = np.abs(residuals)
    inside = np.minimum(size, delta)
    return inside * (size - 0.5 * inside)


def minimise(
    problem: Runs,
    theta: Array,
    weights: Array,
    delta: float,
    *,
    widest: float = WIDEST,
    merge: float = 0.0,
    tolerance: float = 1e-14,
    steps: int = 200,
    penalty: Penalty | None = None,
) -> tuple[Array, Array]:
    """From each row of θ to a minimum nearby.

    Args:
        problem: the runs.
        theta: [rows, parameters].
        weights: [rows, n] or [1, n].
        delta: of the Huber loss.
        widest: where the continuation in δ begins.
        merge: rows of common weights that the continuation brings this near a better one are dropped.
        tolerance: relative gain of a step below which a row is done.
        steps: at most.
        penalty: of θ, added to the objective.

    Returns:
        θ and objectives [rows, or fewer where some merged], penalties included.
    """
    widths = [delta]
    while widths[-1] * CONTINUATION <= widest:
        widths.append(widths[-1] * CONTINUATION)
    for width in widths[:0:-1]:
        # at the widest δ starts far off still come together, which is cheaper than to take each through the kinks
        at_most = 30 if merge and width == widths[-1] else 8
        theta, found = _newton(problem, theta, weights, width, steps=at_most, tolerance=1e-3, penalty=penalty)
        if merge:
            theta = theta[np.argsort(found)]
            near = np.abs(theta[:, None] - theta).max(axis=2) < merge
            theta = theta[~np.tril(near, -1).any(axis=1)]
    return _newton(problem, theta, weights, delta, steps, tolerance, penalty)


def _newton(
    problem: Runs,
    theta: Array,
    weights: Array,
    delta: float,
    steps: int,
    tolerance: float,
    penalty: Penalty | None,
) -> tuple[Array, Array]:
    theta = theta.copy()
    rows = len(theta)
    weights = np.broadcast_to(weights, (rows, len(problem.log_loss)))
    damping, stalled = np.full(rows, 1e-3), np.zeros(rows, dtype=int)
    residuals, share = problem.state(theta)
    best = (weights * huber(residuals, delta)).sum(axis=1)
    if penalty is not None:
        best += penalty.penalty(theta)
    active = np.arange(rows)
    for _ in range(steps):
        w = weights[active]
        gradient, hessian = problem.derivatives((residuals, share), w, delta)
        mine = None if penalty is None else penalty.of(active)
        if mine is not None:
            more = mine.derivatives(theta[active])
            gradient, hessian = gradient + more[0], hessian + more[1]
        values, vectors = np.linalg.eigh(hessian)
        rotated = np.einsum("rpq,rp->rq", vectors, gradient)
        # |eigenvalue|: downhill along directions of negative curvature too
        size = np.abs(values)
        curvature = np.maximum(size + (damping[active] * size.max(axis=1))[:, None], 1e-290)
        step = -np.einsum("rpq,rq->rp", vectors, rotated / curvature)
        # no leap by more than e² in a coefficient
        step *= np.minimum(1, 2 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
        tried = theta[active] + step
        new_residuals, new_share = problem.state(tried)
        value = (w * huber(new_residuals, delta)).sum(axis=1)
        if mine is not None:
            value += mine.penalty(tried)
        gain = best[active] - value
        better = gain > 0
        good = active[better]
        theta[good], best[good] = tried[better], value[better]
        residuals[better], share[better] = new_residuals[better], new_share[better]
        damping[good] = np.maximum(damping[good] / 5, 1e-15)
        damping[active[~better]] = np.minimum(damping[active[~better]] * 6, 1e8)
        # done: three steps in a row that gain nothing to speak of
        small = gain <= tolerance * np.abs(best[active])
        stalled[active] = np.where(small, stalled[active] + 1, 0)
        going = stalled[active] < np.where(better, 2, 9)
        active, residuals, share = active[going], residuals[going], share[going]
        if not active.size:
            break
    return theta, best


STEP = 1e-5
"""Of ln of a constant, to both sides."""
_OFF = 1e3
"""A residual where the law has no value."""


@dataclass(frozen=True)
class Values:
    """A law over some runs, as a function of the logarithms of its free constants (`newton.Runs`).

    The Hessian is Gauss and Newton's, which `minimise`'s damping makes up for.
    """

    form: Form
    variables: Mapping[str, Array]
    log_loss: Array
    fixed: Mapping[str, float]

    @property
    def free(self) -> tuple[str, ...]:
        """Constants that are fitted."""
        return tuple(name for name in self.form.constants if name not in self.fixed)

    def residuals(self, theta: Array) -> Array:
        """From ln L̂ − ln L at θ [free] or [rows, free]: [n] or [rows, n]."""
        with np.errstate(all="ignore"):  # where a direction is flat, θ may run off
            values = np.exp(theta.T) if theta.ndim == 1 else np.exp(theta.T)[..., None]
            constants = {**self.fixed, **dict(zip(self.free, values, strict=True))}
            loss = self.form.function(*(self.variables[name] for name in self.form.variables), **constants)
            residuals = np.log(loss) - self.log_loss
        return np.where(np.isfinite(residuals), residuals, _OFF)

    def objective(self, theta: Array, weights: Array, delta: float) -> float:
        """Σ w·huber."""
        return float((weights * huber(self.residuals(theta), delta)).sum())

    def objectives(self, theta: Array, weights: Array, delta: float) -> Array:
        """The same of θ [rows, free]: [rows]."""
        return (weights * huber(self.residuals(theta), delta)).sum(axis=1)

    def state(self, theta: Array) -> tuple[Array, Array]:
        """Residuals [rows, n] and their derivatives by θ [rows, n, free]."""
        slopes = []
        for i in range(theta.shape[1]):
            step = np.zeros(theta.shape[1])
            step[i] = STEP
            slopes.append((self.residuals(theta + step) - self.residuals(theta - step)) / (2 * STEP))
        return self.residuals(theta), np.clip(np.stack(slopes, axis=2), -1e3, 1e3)

    def slope(self, state: Array) -> Array:
        """Derivative of ln L̂ by θ from one row of `state` [n, free]: itself."""
        return state

    def derivatives(self, state: tuple[Array, Array], weights: Array, delta: float) -> tuple[Array, Array]:
        """Gradient [rows, free] and Hessian [rows, free, free] of Σ w·huber."""
        residuals, slope = state
        gradient = ((weights * np.clip(residuals, -delta, delta))[:, None] @ slope)[:, 0]
        curved = (weights * (np.abs(residuals) < delta))[..., None] * slope
        return gradient, np.swapaxes(curved, 1, 2) @ slope
