"""What one more rung is worth: compute that the target would waste less, against what the rung costs; both in FLOPs.

Value of information (Raiffa and Schlaifer 1961): before the rung its losses are unknown, but how much they narrow N_opt
is known from where its runs are. A wrong size costs its loss; in FLOPs, what more compute the best size would take less
to reach that loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from isoflop.fit.posterior import Array, BudgetLine, Posterior, best_size, gradient, scatter, slopes

RATIOS = (1.5, 2.0, 3.0, 5.0, 10.0, 20.0)
"""Budgets of the next rung over the largest that are looked at."""
SIZES = (0.25, 1.0, 4.0)
"""Of its runs over the optimum to be expected there."""
MOST = 0.5
"""Of the target's budget, for a single run of the rung."""


@dataclass(frozen=True)
class RungWorth:
    """One more rung.

    Attributes:
        waste: FLOPs that the target wastes, expected, for N_opt is uncertain.
        waste_after: the same after the rung.
        cost: FLOPs of the rung.
        budget: of each of its runs.
        sizes: of them, parameters.
        narrower: sd of ln N_opt after it over that before.
    """

    waste: float
    waste_after: float
    cost: float
    budget: float
    sizes: tuple[float, ...]
    narrower: float

    @property
    def saved(self) -> float:
        """FLOPs that it is expected to save the target."""
        return self.waste - self.waste_after

    @property
    def go(self) -> bool:
        """Whether it saves more than it costs."""
        return self.saved > self.cost


def worth_of_a_rung(posterior: Posterior, target: BudgetLine, N: Array, D: Array, C: Array) -> RungWorth | None:
    """The next rung of the greatest saving less cost; None where even the smallest would be as dear as the target.

    Args:
        posterior: of the runs.
        target: whose size is asked for.
        N, D, C: parameters, tokens and FLOPs of the runs that there are.
    """
    now = expected_waste(posterior, target)
    largest = float(C.max())
    found = []
    for ratio in RATIOS:
        budget = largest * ratio
        if budget > MOST * target.C:
            break
        line = BudgetLine(budget, target.N, target.D * budget / target.C, target.slope)
        middle = float(np.exp(np.median(posterior.sizes(line))))
        sizes = np.array([middle * size for size in SIZES])
        narrower = _narrower(posterior, target, N, D, sizes, np.asarray(line.tokens(sizes)))
        after = now * narrower**2  # the waste is of second order in ln N
        found.append(RungWorth(now, after, len(SIZES) * budget, budget, tuple(sizes.tolist()), narrower))
    return max(found, key=lambda rung: rung.saved - rung.cost) if found else None


def expected_waste(posterior: Posterior, target: BudgetLine) -> float:
    """FLOPs that a run of the median N_opt is expected to waste at the target."""
    log_N = float(np.median(posterior.sizes(target)))
    N = math.exp(log_N)
    own = posterior.losses(N, float(target.tokens(N)))
    least = posterior.least(target)
    more = BudgetLine(1.1 * target.C, target.N, 1.1 * target.D, target.slope)
    fall = (least - posterior.least(more)) / math.log(1.1)  # of ln L per ln C along the frontier
    return float(target.C * np.mean(np.maximum(own - least, 0.0) / np.maximum(fall, 1e-6)))


def _narrower(posterior: Posterior, target: BudgetLine, N: Array, D: Array, new_N: Array, new_D: Array) -> float:
    """Standard deviation of ln N_opt after runs over that before, by the Gaussian of the posterior's draws."""
    theta, origin = posterior.mode[None], posterior.origin
    covariance = np.cov(posterior.draws.T)
    g = gradient(lambda rows: best_size(rows, origin, target), theta)[0]
    both_N, both_D = np.append(new_N, N), np.append(new_D, D)
    k = len(new_N)
    # what runs of one size share is known in part from the runs that there are: the new ones' own part counts
    own = scatter(both_N, both_D)
    conditional = own[:k, :k] - own[:k, k:] @ np.linalg.solve(own[k:, k:], own[k:, :k])
    rows = slopes(theta, origin.x(new_N), origin.y(new_D))[0]
    information = rows.T @ np.linalg.solve(conditional, rows) / float(np.median(posterior.noise)) ** 2
    after = np.linalg.inv(np.linalg.inv(covariance) + information)
    return float(math.sqrt((g @ after @ g) / (g @ covariance @ g)))
