"""Damped Newton for many fits of the same runs at once: the least Σ w·huber(ln L̂ − ln L), plus a prior's penalty.

Many rows of θ (starts, or resamples that differ in their weights) are solved side by side in NumPy; each has its own
damping and stops for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from isoflop.arrays import Array
from isoflop.fit.prior import Prior
from isoflop.fit.problem import Problem, huber

CONTINUATION = 3.0
"""δ is lowered by this factor: a Huber loss with a small δ has kinks everywhere, with a large one it is quadratic."""
WIDEST = 3e-2


@dataclass(frozen=True)
class Objective:
    """What is minimised over θ.

    Attributes:
        problem: the law over its runs.
        weights: of the runs [n], or of each row of θ [rows, n].
        delta: of Huber's loss.
        prior: its penalty is added, on the scale of `Prior.weighed`.
    """

    problem: Problem
    weights: Array
    delta: float
    prior: Prior | None = None

    def value(self, theta: Array) -> Array:
        """At θ [rows, free]: [rows]."""
        value = self.problem.objective(theta, self.weights, self.delta)
        return value if self.prior is None else value + self.prior.penalty(theta)


def minimise(
    objective: Objective,
    theta: Array,
    *,
    widest: float = WIDEST,
    merge: float = 0.0,
    tolerance: float = 1e-14,
    steps: int = 200,
) -> tuple[Array, Array]:
    """From each row of θ to a minimum nearby.

    Args:
        objective: of all rows.
        theta: [rows, free].
        widest: where the continuation in δ begins; 0: at the objective's δ.
        merge: rows of common weights that the continuation brings this near a better one are dropped.
        tolerance: relative gain of a step below which a row is done.
        steps: at most.

    Returns:
        θ and objectives [rows, or fewer where some merged].
    """
    widths = [objective.delta]
    while widths[-1] * CONTINUATION <= widest:
        widths.append(widths[-1] * CONTINUATION)
    for width in widths[:0:-1]:
        # at the widest δ starts far off still come together, which is cheaper than to take each through the kinks
        at_most = 30 if merge and width == widths[-1] else 8
        theta, found = _newton(replace(objective, delta=width), theta, steps=at_most, tolerance=1e-3)
        if merge:
            theta = theta[np.argsort(found)]
            near = np.abs(theta[:, None] - theta).max(axis=2) < merge
            theta = theta[~np.tril(near, -1).any(axis=1)]
    return _newton(objective, theta, steps, tolerance)


def _newton(objective: Objective, theta: Array, steps: int, tolerance: float) -> tuple[Array, Array]:
    problem, delta, prior = objective.problem, objective.delta, objective.prior
    theta = theta.copy()
    rows = len(theta)
    weights = np.broadcast_to(objective.weights, (rows, len(problem.log_loss)))
    damping, stalled = np.full(rows, 1e-3), np.zeros(rows, dtype=int)
    residuals, details = problem.state(theta)
    best = (weights * huber(residuals, delta)).sum(axis=1)
    if prior is not None:
        best += prior.penalty(theta)
    active = np.arange(rows)
    for _ in range(steps):
        w = weights[active]
        gradient, hessian = problem.derivatives((residuals, details), w, delta)
        mine = None if prior is None else prior.of(active)
        if mine is not None:
            more = mine.derivatives(theta[active])
            gradient, hessian = gradient + more[0], hessian + more[1]
        tried = theta[active] + _step(gradient, hessian, damping[active])
        new_residuals, new_details = problem.state(tried)
        value = (w * huber(new_residuals, delta)).sum(axis=1)
        if mine is not None:
            value += mine.penalty(tried)
        gain = best[active] - value
        better = gain > 0
        good = active[better]
        theta[good], best[good] = tried[better], value[better]
        residuals[better], details[better] = new_residuals[better], new_details[better]
        damping[good] = np.maximum(damping[good] / 5, 1e-15)
        damping[active[~better]] = np.minimum(damping[active[~better]] * 6, 1e8)
        # done: three steps in a row that gain nothing to speak of
        small = gain <= tolerance * np.abs(best[active])
        stalled[active] = np.where(small, stalled[active] + 1, 0)
        going = stalled[active] < np.where(better, 2, 9)
        active, residuals, details = active[going], residuals[going], details[going]
        if not active.size:
            break
    return theta, best


def _step(gradient: Array, hessian: Array, damping: Array) -> Array:
    """Newton's step by row, damped; downhill along directions of negative curvature too (|eigenvalue|)."""
    values, vectors = np.linalg.eigh(hessian)
    rotated = np.einsum("rpq,rp->rq", vectors, gradient)
    size = np.abs(values)
    curvature = np.maximum(size + (damping * size.max(axis=1))[:, None], 1e-290)
    step = -np.einsum("rpq,rq->rp", vectors, rotated / curvature)
    # no leap by more than e² in a coefficient
    return step * np.minimum(1, 2 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
