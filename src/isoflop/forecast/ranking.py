"""Ranking of runs by the loss they are forecast to end with: the probability of each order, and which runs can stop.

Errors of one user's runs are alike, for they share data and priors: forecasts of runs under way are correlated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from isoflop.arrays import Array
from isoflop.forecast.forecast import Forecast

ALIKE = 0.75
"""Correlation of the errors of two runs under way: of the values that are likeliest for the orders of pairs of public
runs with each of the organisations left out (.75 to .95) the least."""
SURE = 0.95
"""Probability of not being among the best, from which a run can stop."""
DRAWS = 4_000
"""Joint draws behind the probabilities: their error is below 1%."""


@dataclass(frozen=True)
class Ranked:
    """One run's place.

    Attributes:
        name: the run's.
        forecast: of its final loss; of a finished run that loss itself, with its standard error.
        before_next: probability that it ends below the next in the order; None for the last.
        among_best: probability that it is one of the `keep` lowest.
        can_stop: that probability is at most 1 − `sure`, and the run is under way.
        finished: it has ended.
        stopped: why it ended before its plan, and can't reach the loss that is forecast; "": it did not.
    """

    name: str
    forecast: Forecast
    before_next: float | None
    among_best: float
    can_stop: bool
    finished: bool
    stopped: str = ""


@dataclass(frozen=True)
class Ranking:
    """`runs`, the lowest forecast first; `below`[i, j]: the probability that run i ends below run j, ½ on the diagonal.

    `silent`: name → why a run has no forecast and is not ranked; `keep` and `sure` as given to `rank`.
    """

    runs: tuple[Ranked, ...]
    below: Array
    silent: Mapping[str, str]
    keep: int
    sure: float

    @property
    def can_stop(self) -> tuple[str, ...]:
        """Names of the runs that can stop."""
        return tuple(run.name for run in self.runs if run.can_stop)

    def __getitem__(self, name: str) -> Ranked:
        return next(run for run in self.runs if run.name == name)


def rank(
    forecasts: Mapping[str, Forecast],
    *,
    finished: Mapping[str, bool] | None = None,
    stopped: Mapping[str, str] | None = None,
    silent: Mapping[str, str] | None = None,
    keep: int = 1,
    sure: float = SURE,
) -> Ranking:
    """Order runs by forecast final loss; the same input gives the same numbers.

    A run without a forecast can only push others out, so that who can stop now still can when it has one.

    Args:
        forecasts: run → forecast at its own end, all of the same loss on the same data.
        finished: which have ended already; default: none.
        stopped: why runs ended before their plans: their forecasts are of what they would have reached.
        silent: runs without a forecast, with the reason: they are listed and never stopped.
        keep: how many runs are wanted in the end; of so many or fewer none can stop.
        sure: a run can stop when with this probability it is not among them.

    Raises:
        ValueError: `keep` below 1 or `sure` not between ½ and 1.
    """
    if keep < 1:
        raise ValueError(f"keep is the number of runs that are wanted, at least 1; got {keep}.")
    if not 0.5 < sure < 1:
        raise ValueError(f"sure is a probability between 0.5 and 1; got {sure}.")
    names = sorted(forecasts, key=lambda name: (forecasts[name].loss, name))
    ordered, n = [forecasts[name] for name in names], len(names)
    ended = [bool((finished or {}).get(name)) for name in names]
    alike = np.where(ended, 0.0, ALIKE**0.5)
    below = np.full((n, n), 0.5)
    for i, j in zip(*np.nonzero(~np.eye(n, dtype=bool)), strict=True):
        below[i, j] = ordered[i].probability_below(ordered[j], float(alike[i] * alike[j]))
    among = _among_best(ordered, alike, keep).tolist()
    places = [
        Ranked(
            name,
            ordered[i],
            before_next=float(below[i, i + 1]) if i + 1 < n else None,
            among_best=among[i],
            can_stop=among[i] <= 1 - sure and not ended[i] and name not in (stopped or {}),
            finished=ended[i],
            stopped=(stopped or {}).get(name, ""),
        )
        for i, name in enumerate(names)
    ]
    return Ranking(tuple(places), below, dict(silent or {}), keep, sure)


def _among_best(forecasts: list[Forecast], alike: Array, keep: int) -> Array:
    """Probability of each to be one of the `keep` lowest, over joint draws from their Student t's."""
    if len(forecasts) <= keep:
        return np.ones(len(forecasts))
    from scipy.special import stdtrit  # slow to import

    # fixed numbers: who asks twice gets the same answer; a lattice in each column instead of chance alone
    generator = np.random.default_rng(0)
    places = (np.arange(DRAWS) + 0.5) / DRAWS
    shared, *own = (stdtrit(f.nu, generator.permutation(places)) for f in [forecasts[0], *forecasts])
    errors = np.column_stack([a * shared + (1 - a**2) ** 0.5 * each for a, each in zip(alike, own, strict=True)])
    draws = np.array([f.loss for f in forecasts]) + np.array([f.sd for f in forecasts]) * errors
    order = np.argsort(draws, axis=1, kind="stable")[:, :keep]
    return np.bincount(order.ravel(), minlength=len(forecasts)) / DRAWS
