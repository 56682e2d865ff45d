"""Least absolute deviations: the limit of Huber's loss for δ → 0, finished by linear programming."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array, hstack, identity, vstack

from isoflop.fit.fitting.newton import Array, Problem


def least_absolute(problem: Problem, theta: Array, weights: Array, rounds: int = 40) -> tuple[Array, float]:
    """From θ [parameters] near the optimum to the minimum of Σ w·|ln L̂ − ln L|. Returns (θ, Σ w·|r|).

    In each round residuals are linearised and the step is a linear programme in a trust region, which grows while the
    real sum falls as promised (a sequential linear programme: Fletcher & Sainz de la Maza 1989).
    """
    n, parameters = len(problem.log_loss), len(theta)
    radius, best = 0.05, float((weights * np.abs(problem.residuals(theta[None])[0])).sum())
    ones = identity(n, format="csr")
    cost = np.concatenate([np.zeros(parameters), weights])
    for _ in range(rounds):
        (residuals,), (share,) = problem.state(theta[None])
        slope = csr_array(problem.slope(share))
        limits = vstack([hstack([slope, -ones]), hstack([-slope, -ones])])
        bounds = [(-radius, radius)] * parameters + [(0, None)] * n
        found = linprog(cost, A_ub=limits, b_ub=np.concatenate([-residuals, residuals]), bounds=bounds, method="highs")
        if found.x is None:
            break
        tried = theta + found.x[:parameters]
        value = float((weights * np.abs(problem.residuals(tried[None])[0])).sum())
        if value < best * (1 - 1e-13):
            theta, best = tried, value
            radius *= 2
        else:
            radius /= 8
        if radius < 1e-9:
            break
    return theta, best
