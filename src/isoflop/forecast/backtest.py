"""Forecasts of many runs: finished ones replayed (backtests), beside baselines, and runs ranked by their forecasts.

Baselines are forecasts by least squares, without priors; `ESTIMATORS` has all estimators by name. In a ranking the
errors of one user's runs are alike, for they share data and priors: forecasts of runs under way are correlated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from isoflop.arrays import Array
from isoflop.forecast.curve import LossCurve
from isoflop.forecast.forecast import NO_PLAN, Earlier, Forecast, NoForecast, Refusal, forecast_of
from isoflop.forecast.history import OWN
from isoflop.forecast.lr_plan import LrPlan
from isoflop.forecast.online import FEWEST, Estimator, OnlineForecaster
from isoflop.forecast.priors import DEFAULT_PRIORS, WEAK_PRIORS, Priors, learn_priors

EXPONENTS = np.geomspace(0.1, 2, 80)
"""Exponents of a power law that are tried."""


class Baseline(Estimator):
    """E + A·S^−a in optimizer steps S, fitted to the window after the warm-up; others predict otherwise."""

    exponents = EXPONENTS

    def forecast(self, plan: LrPlan | None, step: int | None = None, level: float = 0.8) -> Forecast | NoForecast:
        """The loss at `step` of `plan` (its end by default), or why there is none."""
        if plan is None:
            return NO_PLAN
        columns = self.columns(plan.warmup_steps)
        steps, losses, count = (columns[name] for name in ("step", "loss", "count"))
        if len(steps) < FEWEST:
            return NoForecast(Refusal.TOO_FEW_POINTS, {"n": len(steps), "needed": FEWEST})
        target = plan.total_steps if step is None else step
        loss, sd = self._predict(steps, losses, count, plan, float(target))
        if not (math.isfinite(loss) and math.isfinite(sd)):
            return NoForecast(Refusal.NO_FIT)
        return forecast_of(loss, sd, level=level, step=target, estimator=self.name, nu=1e6)

    def _predict(self, steps: Array, loss: Array, count: Array, plan: LrPlan, target: float) -> tuple[float, float]:
        """Loss at `target` and its standard error."""
        return self._power_law(np.append(steps, target), loss, count)

    def _power_law(self, x: Array, loss: Array, count: Array) -> tuple[float, float]:
        x = x / x[0]
        return fit_separable(lambda a: np.column_stack([np.ones(len(x)), x**-a]), loss, count, self.exponents)[1:]


class LastValue(Baseline):
    """The loss stays where it is: the mean of the last tenth of an e-fold."""

    name = "last-value"

    def _predict(self, steps: Array, loss: Array, count: Array, plan: LrPlan, target: float) -> tuple[float, float]:
        last = steps >= 0.9 * steps[-1]
        mean = float(np.average(loss[last], weights=count[last]))
        return mean, max(float(np.std(loss[last])) / math.sqrt(last.sum()), 1e-6)


class PowerLaw(Baseline):
    """With a free exponent."""

    name = "power-law"


class Hoffmann(Baseline):
    """E + B·D^−β with Hoffmann et al. 2022's β = .2849; one run has a fixed batch, so S stands for D."""

    name = "hoffmann"
    exponents = np.array([0.2849083])


class Kaplan(Baseline):
    """Kaplan et al. 2020, eq. 1.6 within one run: E + A·S_min^−.76, S_min = S/(1 + B_crit(L)/B).

    B_crit = B*/L^(1/α_B) with B* = 2.1e8 tokens and α_B = .21 (eq. 1.4, 5.3), L the smoothed loss; at the target the
    loss is iterated. Without a known batch S stands for S_min. Kaplan's α_S is of runs with the same schedule.
    """

    name = "kaplan"
    exponents = np.array([0.76])

    def _predict(self, steps: Array, loss: Array, count: Array, plan: LrPlan, target: float) -> tuple[float, float]:
        out = (float(loss[-1]), 0.0)
        smooth = np.polyval(np.polyfit(np.log(steps), loss, 2, w=np.sqrt(count)), np.log(steps))
        for _ in range(8):
            s_min = np.append(steps, target)
            if self.batch_tokens:
                level = np.maximum(np.append(smooth, out[0]), 0.05)  # an iteration may overshoot below 0
                s_min = s_min / (1 + 2.1e8 / level ** (1 / 0.21) / self.batch_tokens)
            out = self._power_law(s_min, loss, count)
        return out


def fit_separable(
    columns: Callable[[float], Array], loss: Array, count: Array, exponents: Array
) -> tuple[float, float, float]:
    """Fit a curve that is linear given one exponent: the exponent by a search, coefficients by least squares, all ≥ 0.

    Args:
        columns: exponent → the design, a row each loss and one more, the target's: shape (losses + 1, coefficients).
        loss, count: nats, and the raw steps behind each, its weight: shape (losses,).
        exponents: those that are tried, ascending.

    Returns:
        Residual sum of squares, loss at the target and its standard error.
    """
    from scipy.optimize import nnls  # slow to import

    weight = np.sqrt(count / count.mean())

    def fit(exponent: float) -> tuple[float, Array, Array]:
        design = columns(exponent)
        beta, norm = nnls(design[:-1] * weight[:, None], loss * weight)
        return float(norm) ** 2 if beta[0] > 0 else math.inf, beta, design  # no limit is no law of a loss

    sums = [fit(exponent)[0] for exponent in exponents]
    best = int(np.argmin(sums))
    exponent = float(exponents[best])
    if 0 < best < len(sums) - 1 and math.isfinite(
        sums[best - 1] + sums[best + 1]
    ):  # the vertex of the parabola through three points
        logs = np.log(exponents[best - 1 : best + 2])
        a, b, _ = np.polyfit(logs - logs[1], sums[best - 1 : best + 2], 2)
        exponent = math.exp(logs[1] - b / (2 * a)) if a > 0 else exponent
    rss, beta, design = fit(exponent)
    jacobian = design[:, beta > 0]
    if len(sums) > 1:
        jacobian = np.column_stack([jacobian, (columns(exponent * 1.001) - design) @ beta / 1e-3])
    X, at = jacobian[:-1] * weight[:, None], jacobian[-1]
    noise = rss / max(len(loss) - X.shape[1], 1)
    variance = float(at @ np.linalg.pinv(X.T @ X) @ at) * noise
    return rss, float(design[-1] @ beta), math.sqrt(max(variance, 1e-12))


ESTIMATORS: dict[str, type[Estimator]] = {
    kind.name: kind for kind in (OnlineForecaster, LastValue, PowerLaw, Kaplan, Hoffmann)
}
"""By name, isoflop's own first; `benchmarks/` adds the published laws that it compares with."""


FRACTIONS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Score:
    """How an estimator did at one fraction of the runs of one set.

    Attributes:
        median, p90: of |error of the final loss|, %; NaN where nothing was forecast.
    """

    median: float
    p90: float
    coverage: float  # share of the intervals that held the final loss
    spoke: float  # share of the runs with a forecast
    n: int  # runs scored


Table = dict[str, dict[str, dict[str, Score]]]
Replay = dict[float, "Forecast | None"]


def backtest(
    runs: Sequence[LossCurve],
    estimators: Sequence[str] = ("isoflop",),
    fractions: Sequence[float] = FRACTIONS,
    priors: Literal["leave-one-organisation-out", "default"] | Mapping[str, Priors] = "leave-one-organisation-out",
    level: float = 0.8,
) -> Table:
    """Errors and coverage by estimator, dataset ("all": the mean over datasets) and fraction ("0.25").

    Baselines are scored on the runs that the first estimator forecast, so that silence gives it no advantage.

    Args:
        runs: finished runs.
        estimators: names in `ESTIMATORS`, the first decides which runs are scored.
        fractions: of the run that is seen.
        priors: learnt from the runs of other organisations, or those that ship; or by organisation.
        level: probability of the intervals.

    Raises:
        ValueError: for an unknown estimator or fraction.
    """
    for name in estimators:
        if name not in ESTIMATORS:
            raise ValueError(f"Unknown estimator {name!r}; there are {', '.join(ESTIMATORS)}.")
    if not all(0 < f < 1 for f in fractions):
        raise ValueError(f"Fractions of a run lie between 0 and 1; got {list(fractions)}.")
    chosen = priors_for(runs, priors)
    sets = sorted({run.dataset for run in runs})
    table: Table = {}
    first: list[Replay] = []
    for name in estimators:
        replays = [replay(run, name, fractions, chosen[run.organisation], level) for run in runs]
        first = first or replays
        scores = {
            key: {
                f"{f:g}": _score([each for each in zip(runs, replays, first, strict=True) if each[0].dataset == key], f)
                for f in fractions
            }
            for key in sets
        }
        if sets:
            scores["all"] = {f"{f:g}": _mean([scores[key][f"{f:g}"] for key in sets]) for f in fractions}
        table[name] = scores
    return table


def priors_for(runs: Sequence[LossCurve], priors: str | Mapping[str, Priors]) -> dict[str, Priors]:
    """The priors for each organisation's runs.

    Raises:
        ValueError: for another text than the two of `backtest`.
    """
    if isinstance(priors, Mapping):
        return dict(priors)
    names = sorted({run.organisation for run in runs})
    if priors == "default":
        return {name: DEFAULT_PRIORS for name in names}
    if priors != "leave-one-organisation-out":
        raise ValueError(f'priors is "leave-one-organisation-out" or "default"; got {priors!r}.')
    return {
        name: learn_priors([run for run in runs if run.organisation != name], WEAK_PRIORS, own=False) for name in names
    }


def priors_without(organisation: str, runs: Sequence[LossCurve]) -> Priors:
    """The priors that a user's run would have had: those that ship, and all their other finished runs."""
    return learn_priors([replace(run, organisation=OWN) for run in runs if run.organisation != organisation])


def replay(run: LossCurve, name: str, fractions: Sequence[float], priors: Priors, level: float = 0.8) -> Replay:
    """The forecasts of one run's end, by fraction of it; None where there was none."""
    estimator = ESTIMATORS[name].of(run, priors)
    forecasts: Replay = {}
    seen, earlier = -math.inf, Earlier()
    for fraction in sorted(fractions):
        result = estimator.feed(run, fraction * run.total_steps, after=seen).forecast(run.plan, run.final_step, level)
        if isinstance(estimator, OnlineForecaster):
            result = earlier.check(result, fraction * run.total_steps)
        forecasts[fraction] = result if isinstance(result, Forecast) else None
        seen = fraction * run.total_steps
    return forecasts


def _score(replays: Sequence[tuple[LossCurve, Replay, Replay]], fraction: float) -> Score:
    """Runs with their forecasts, and those that decide which are scored."""
    spoke = float(np.mean([mine[fraction] is not None for _, mine, _ in replays]))
    made = [
        (run.final, forecast)
        for run, mine, first in replays
        if first[fraction] is not None and (forecast := mine[fraction]) is not None
    ]
    if not made:
        return Score(math.nan, math.nan, math.nan, spoke, 0)
    errors = np.array([abs(100 * (forecast.loss / final - 1)) for final, forecast in made])
    held = [forecast.low <= final <= forecast.high for final, forecast in made]
    return Score(float(np.median(errors)), float(np.quantile(errors, 0.9)), float(np.mean(held)), spoke, len(made))


def _mean(scores: Sequence[Score]) -> Score:
    """Over datasets, each with the same weight; those without a forecast have no error to count."""
    known = [(s.median, s.p90, s.coverage) for s in scores if s.n]
    median, p90, coverage = np.mean(known, axis=0).tolist() if known else [math.nan] * 3
    return Score(median, p90, coverage, float(np.mean([s.spoke for s in scores])), sum(s.n for s in scores))


ALIKE = 0.75
"""Correlation of the errors of two runs under way: of the values that are likeliest for the orders of pairs of public
runs with each of the organisations left out (.75 to .95) the least."""
SURE = 0.95
"""Probability of not being among the best, from which a run can stop."""
DRAWS = 4_000
"""Joint draws behind the probabilities: their error is below 1%."""


@dataclass(frozen=True)
class Ranked:
    """One run's place."""

    name: str  # the run's
    forecast: Forecast  # of its final loss; of a finished run that loss itself, with its standard error
    before_next: float | None  # probability that it ends below the next in the order; None for the last
    among_best: float  # probability that it is one of the `keep` lowest
    can_stop: bool  # that probability is at most 1 − `sure`, and the run is under way
    finished: bool  # it has ended
    stopped: str = ""  # why it ended before its plan, and can't reach the loss that is forecast; "": it did not


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
