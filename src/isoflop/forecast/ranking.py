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
        can_stop: that probability is at most 1 − `sure`, and the run is not finished.
        finished: it has ended.
    """

    name: str
    forecast: Forecast
    before_next: float | None
    among_best: float
    can_stop: bool
    finished: bool


@dataclass(frozen=True)
class Ranking:
    """Runs in the order of their forecast final loss, the lowest first.

    Attributes:
        runs: in order.
        below: matrix (runs, runs) in that order: the probability that run i ends below run j; ½ on the diagonal.
        silent: name → why a run has no forecast and is not ranked.
        keep, sure: what `can_stop` was decided with.
    """

    runs: tuple[Ranked, ...]
    below: Array
    silent: Mapping[str, str]
    keep: int = 1
    sure: float = SURE

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
    silent: Mapping[str, str] | None = None,
    keep: int = 1,
    sure: float = SURE,
) -> Ranking:
    """Order runs by forecast final loss.

    Args:
        forecasts: run → forecast at its own end, all of the same loss on the same data.
        finished: which have ended already; default: none.
        silent: runs without a forecast, with the reason: they are listed and never stopped.
        keep: how many runs are wanted in the end.
        sure: a run can stop when with this probability it is not among them.

    Returns:
        The ranking; with `keep` runs or fewer none can stop. The same input gives the same numbers.

    Raises:
        ValueError: `keep` below 1 or `sure` not between ½ and 1.
    """
    if keep < 1:
        raise ValueError(f"keep is the number of runs that are wanted, at least 1; got {keep}.")
    if not 0.5 < sure < 1:
        raise ValueError(f"sure is a probability between 0.5 and 1; got {sure}.")
    names = sorted(forecasts, key=lambda name: (forecasts[name].loss, name))
    ordered = [forecasts[name] for name in names]
    ended = dict(finished or {})
    alike = np.array([0.0 if ended.get(name) else ALIKE**0.5 for name in names])
    below = np.array(
        [[_below(a, b, alike[i] * alike[j]) for j, b in enumerate(ordered)] for i, a in enumerate(ordered)]
    ).reshape(len(names), len(names))
    among = _among_best(ordered, alike, keep)
    # a run without a forecast can only push others out, so that who can stop now still can when it has one
    return Ranking(
        runs=tuple(
            Ranked(
                name=name,
                forecast=ordered[i],
                before_next=float(below[i, i + 1]) if i + 1 < len(names) else None,
                among_best=float(among[i]),
                can_stop=bool(among[i] <= 1 - sure and not ended.get(name)),
                finished=bool(ended.get(name)),
            )
            for i, name in enumerate(names)
        ),
        below=below,
        silent=dict(silent or {}),
        keep=keep,
        sure=sure,
    )


def _below(one: Forecast, other: Forecast, correlation: float) -> float:
    return 0.5 if one is other else one.probability_below(other, correlation)


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
