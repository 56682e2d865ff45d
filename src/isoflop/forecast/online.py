"""The forecast of a run under way: losses are added as they come, the loss at a step of a learning-rate plan is asked.

Checks before the fit and on its residuals find the curves whose end can't be forecast: `NoForecast` with the reason.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array
from isoflop.averages import running_mean
from isoflop.forecast.curve import KERNELS, OFF_PLAN, FeaturesPath, LossBins, LossCurve, falls, kernel_weights, path
from isoflop.forecast.forecast import NO_PLAN, T80, Forecast, NoForecast, Refusal, forecast_of
from isoflop.forecast.lr_plan import LrPlan
from isoflop.forecast.posterior import FLOOR, CurvePosterior, Moments, Normal, Prediction, independent, solve
from isoflop.forecast.priors import (
    DEFAULT_PRIORS,
    FOREIGN,
    Beside,
    Priors,
    beside,
    blended,
    comparable_peak,
    facts_of,
    known,
    widened,
)
from isoflop.record.task import NAMES, START_NAMES, Task

if TYPE_CHECKING:
    from typing_extensions import Self

ANY = Task()

ELSEWHERE = (
    *("classification", "contrastive", "preference", "regression", "generative", "reinforcement", "headless"),
    *("image", "audio", "other"),
)
"""Objectives and modalities whose losses are no cross-entropies of text, so that priors of language models say nothing
of them."""
FEWEST = 5
"""Bins of loss after the warm-up that a fit needs."""
BATCH = 0.2
"""Tokens per step that change by this fraction in the window are another batch."""
REWARMED = 0.25
"""A plan that rises by this fraction of its peak after the warm-up was never tested."""
JUMP = 0.012
"""A step in the residuals of this fraction of the loss, and of nine times its noise, is a change point."""
RISE = 0.012
"""A loss this fraction above its lowest, and by six times the noise, diverges; of 264 sound runs none came to .9%."""
FALLEN = 0.2
"""A loss that fell by less than this part of what the prior expects is stuck; in sound runs it is .5 or more …"""
CLEARLY, BY = 4.0, 0.005
"""… unless it still falls, by so many standard errors and this part of the loss."""
SMALLEST, FAR_PER_DECADE = 25e6, 0.4
"""Parameters of the smallest public run behind the priors, and how much wider intervals are for each decade below: a
judgement. Of ten half-time forecasts of GPTs of 6,000 to 120,000 parameters the unwidened intervals held five or six,
the worst missed by 2.4 times its half-width."""
WIDEST = 0.025
"""An 80% half-width above this fraction of the loss is no forecast."""
UNTESTED = 1.5
"""Mixtures of experts, masked models and others that no public curve is of: the priors are this much wider."""
SEEN = 0.7
"""Part of the steps so far from which the losses of the rest are predicted, to see whether the form holds."""
DOUBT = 1.5
"""How fast an interval widens with each of four signs that the form does not hold (`_signs`), each beyond 1. Likeliest
for planted kinds of runs that the form leaves out (`benchmarks/forecast_worlds.py`) together with four of the five
organisations' runs are 1.5 to 1.75, whichever is left out. Public intervals are 5% wider by it; where the signs are
largest the public ones still hold, and those of planted kinds held a third of the time without it."""
DISCREPANCY = (0.065, 0.1)
"""Standard deviation of what the curve's form leaves out, as fractions of the drop still to come by training on and by
the falling rate. Chosen on an earlier version with each of five organisations left out in turn. The width that
any four would choose now, .7 to .8 of it, is not surely better for the fifth: one of five is worse off, and two would
hold .58 to .75 of the time (docs/forecast.md)."""
LATE = 0.95
"""Part of the run from which on a loss is its end's."""
CURVE_FLOOR = 2e-4
"""Of the loss: how near to its fit the curve of a healthy run stays at best."""
DOUBTED = 1.5
"""A widening from which on the basis of a forecast states it."""
UNLIKE = 2.4
"""A widening from which on what is expected next is doubted too: a height three standard deviations off its prior gives
it. Below, a fault of the run must show."""
READ = 0.02
"""A loss at a step is read as the mean over this last part of the steps: a noisy log's own uncertainty. Intervals were
calibrated with it on public curves; the final loss of a record is a mean over more (`isoflop.fit.runs.TAIL`)."""


def _check_task(task: Task, own_runs: int) -> NoForecast | None:
    """The priors are of language-model pretraining; own runs replace them."""
    kind = START_NAMES[task.start or ""] if task.tuned else ""
    kind = kind or next((each for each in (task.objective, task.modality) if each in ELSEWHERE), "")
    data = {"image": "a model of images", "audio": "a model of audio", "other": "a model of other data than text"}
    kind = {**NAMES, **data}.get(kind, kind)
    return NoForecast(Refusal.OUTSIDE_PRIORS, {"kind": kind}) if kind and not own_runs else None


def _check_plan(plan: LrPlan, steps: Array, rates: Array, warmup: int) -> NoForecast | None:
    """Whether the run has left its plan, and whether such a plan was tested."""
    after = plan.lr[plan.steps >= warmup]
    if len(after) and float((after - np.minimum.accumulate(after)).max()) > REWARMED * plan.peak:
        return NoForecast(Refusal.LR_RISES)
    if len(steps) and plan.off(steps[-2:], rates[-2:]).min() > OFF_PLAN:
        planned = float(plan.at(steps[-1]))
        return NoForecast(Refusal.LR_OFF_PLAN, {"step": steps[-1], "rate": rates[-1], "planned": planned})
    return None


def _check_curve(columns: Mapping[str, Array], bins: LossBins, warmup: int) -> NoForecast | None:
    """Whether the curve after the warm-up is long enough, finite, and of one batch size."""
    step, tokens = columns["step"], columns["tokens"]
    if bins.lost:
        return NoForecast(Refusal.NOT_FINITE, {"n": bins.lost})
    if bins.last_step < 2 * warmup:
        return NoForecast(Refusal.WARM_UP, {"needed": 2 * warmup, "now": bins.last_step})
    if len(step) < FEWEST:
        return NoForecast(Refusal.TOO_FEW_POINTS, {"n": len(step), "needed": FEWEST})
    third = len(step) // 3
    late = (tokens[-1] - tokens[-1 - third]) / (step[-1] - step[-1 - third])
    # in the first third of the window, and before it: the form counts steps of one size since the start
    for (of, at), i in (((step[0], tokens[0]), third), (bins.first, 0)):
        early = (tokens[i] - at) / max(step[i] - of, 1)
        if early > 0 and abs(late / early - 1) > BATCH:
            return NoForecast(Refusal.BATCH_CHANGED, {"before": early, "after": late})
    if running_mean(step, columns["loss"], late):
        return NoForecast(Refusal.AVERAGED)
    return None


def _check_residuals(residual: Array, loss: Array) -> NoForecast | None:
    """Whether the loss rose from its lowest, or jumped where no learning rate explains it."""
    n = len(residual)
    if n < 8:
        return None
    noise = 1.4826 * float(_medians(np.abs(np.diff(residual)))) / np.sqrt(2)
    level = float(np.mean(loss))
    # a jump between the medians of up to four bins before and after: one spike is none
    size = min(4, n // 4)
    middle = _medians(np.lib.stride_tricks.sliding_window_view(residual, size))
    steps = middle[size:] - middle[:-size]
    # against the steps to either side: a smooth misfit is no jump
    sharp = steps[size:-size] - (steps[: -2 * size] + steps[2 * size :]) / 2 if len(steps) > 2 * size else steps[:0]
    if len(sharp) and np.abs(sharp).max() > max(JUMP * level, 9 * noise * np.sqrt(2 / size)):
        # up to the last bins: beside a late jump `sharp` has its shadow alone, of the other sign
        sides = ((residual[max(i - size, 0) : i], residual[i : i + size]) for i in range(2, n - 1))
        across = (float(np.median(after) - np.median(before)) for before, after in sides)
        return NoForecast(Refusal.CHANGE_POINT, {"jump": max(across, key=abs)})
    smooth = np.convolve(loss, np.ones(3) / 3, mode="valid")
    rise = float(smooth[-1] - smooth.min())
    if rise > max(RISE * level, 6 * noise / np.sqrt(3)):
        return NoForecast(Refusal.DIVERGING, {"rise": rise})
    return None


def _check_fall(x: Array, loss: Array, step: Array, alpha: Normal, amplitude: Normal) -> NoForecast | None:
    """Whether the loss falls, from the first to the last third of the window, as that of a run that learns.

    A·x^−α is a part of the loss: for models and data far below those that the priors were learnt from, they would have
    it larger. A loss that falls clearly to the end is not stuck, however slow it is. Spikes are left out.
    """
    kept = ~_spikes(loss)
    x, loss, step = x[kept], loss[kept], step[kept]
    third = len(x) // 3
    A = min(math.exp(amplitude.mean), float(loss[-third:].mean()))
    curve = A * (x / x[-1]) ** -math.exp(alpha.mean)
    then, now = float(loss[:third].mean()), float(loss[-third:].mean())
    expected = float(curve[:third].mean() - curve[-third:].mean())
    if then - now >= FALLEN * expected or _falls(np.log(x), loss):
        return None
    since = float(step[:third].mean())
    return NoForecast(Refusal.STUCK, {"then": then, "since": since, "now": now})


def _spikes(loss: Array) -> NDArray[np.bool_]:
    """Bins far above their neighbours, by the scatter of all bins about these and by `JUMP` of the loss."""
    size = 5 if len(loss) >= 15 else 3
    around = np.lib.stride_tricks.sliding_window_view(np.pad(loss, size // 2, mode="reflect"), size)
    middle = _medians(around)
    off = loss - middle
    return np.asarray((off > np.maximum(9 * _medians(np.abs(off)), JUMP * middle)) & (np.arange(len(loss)) > 0))


def _medians(values: Array) -> Array:
    """Over the last axis, as `np.median` in a fifth to two fifths of its time."""
    ordered, n = np.sort(values), values.shape[-1]
    return np.asarray((ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2)


def _falls(x: Array, y: Array) -> bool:
    """Whether the last two thirds of a curve fall: by `CLEARLY` standard errors of their slope, and by `BY` of it."""
    x, y = x[len(x) // 3 :], y[len(x) // 3 :]
    if np.ptp(x) < 1e-6:  # at a rate of 0 nothing is trained
        return False
    slope, at_0 = np.polyfit(x, y, 1)
    error = float(np.std(y - slope * x - at_0)) / (float(np.std(x)) * math.sqrt(max(len(x) - 2, 1)))
    return bool(slope < -CLEARLY * error and slope * (x[0] - x[-1]) > BY * y[-1])


@dataclass(frozen=True)
class Fit:
    """A posterior and the plan it was made with."""

    posterior: CurvePosterior
    road: FeaturesPath
    plan: LrPlan
    now: float  # step
    rate: float  # raw losses per step
    doubt: float  # what intervals are multiplied with, by how badly the form has held so far


class Estimator(LossBins, ABC):
    """Forecasts the loss of one run from its curve so far.

    Args:
        N: non-embedding parameters; None where unknown (wider priors).
        batch_tokens: tokens of an optimizer step; None where unknown.
        optimizer: its name; other than Adam's family widens the priors.
        task: what is trained.
        priors: what is known beforehand.
    """

    name: ClassVar[str]

    def __init__(
        self,
        *,
        N: float | None = None,
        batch_tokens: float | None = None,
        optimizer: str | None = "adamw",
        task: Task = ANY,
        priors: Priors = DEFAULT_PRIORS,
    ) -> None:
        super().__init__()
        self.N, self.batch_tokens, self.optimizer = known(N), known(batch_tokens), optimizer
        self.task, self.priors = task, priors

    @classmethod
    def of(cls, curve: LossCurve, priors: Priors = DEFAULT_PRIORS) -> Self:
        """An estimator for a recorded run, before its first loss."""
        about = {name: getattr(curve, name) for name in ("N", "batch_tokens", "optimizer", "task")}
        return cls(**about, priors=priors)

    @abstractmethod
    def forecast(self, plan: LrPlan | None, step: int | None = None, level: float = 0.8) -> Forecast | NoForecast:
        """The loss at `step` of `plan` (its end by default), or why there is none."""

    def state_dict(self) -> dict[str, Any]:
        """The curve so far in plain values; at most 32 kB whatever the run's length. Restored it forecasts the same."""
        return {"version": 1, "bins": super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        super().load_state_dict(state["bins"])


def _variance(seen: Prediction) -> Array:
    """Of the curve at each step: its posterior's, and of what its form leaves out since the first step."""
    left_out = zip(DISCREPANCY, (seen.decay, seen.fall), strict=True)
    return np.asarray(seen.variance + sum((part * (drop - drop[..., :1])) ** 2 for part, drop in left_out))


def _signs(posterior: CurvePosterior, road: FeaturesPath, priors: tuple[Normal, Normal, Normal]) -> Iterator[float]:
    """How badly the form holds, in units that sound runs rarely exceed.

    How far ln α and ln A lie off their priors, how residuals hang together, and how far the mean of the last losses
    lies off what those before them led to expect: in standard deviations, but for the residuals.
    """
    (alpha, amplitude, _), weight = priors, posterior.weight
    yield abs(float(weight.sum(1) @ np.log(posterior.alphas)) - alpha.mean) / alpha.sd
    height = math.log(max(float(np.sum(weight * posterior.grid.A)), 1e-300))
    yield abs(height - amplitude.mean) / amplitude.sd - 0.5  # it varies more
    yield -math.log(independent(posterior.residuals * np.sqrt(posterior.precision)))
    n = int(np.searchsorted(posterior.steps, SEEN * posterior.steps[-1], side="right"))
    if n < FEWEST or len(posterior.steps) - n < 2:
        return
    loss, w = posterior.loss[n:], posterior.precision[n:]
    seen = posterior.rest(n, *priors, kernel_weights(road))
    variance = float(np.average(_variance(seen)[1:], weights=w) + 1 / w.sum()) + (FLOOR * loss[-1]) ** 2
    yield abs(float(np.average(loss - seen.mean[1:], weights=w))) / math.sqrt(variance)


def covered(ask: Callable[[LrPlan], Forecast | NoForecast], plan: LrPlan, now: float) -> Forecast | NoForecast:
    """The forecast for a plan that is assumed: of a rate that stays, with an interval that holds a decay to come."""
    stays = ask(replace(plan, assumed=False))
    decays = stays if isinstance(stays, NoForecast) else ask(plan.decayed(now))
    return decays if isinstance(stays, NoForecast) or isinstance(decays, NoForecast) else stays.covering(decays)


class OnlineForecaster(Estimator):
    """Forecasts the loss of one run from its curve so far, its learning-rate plan and priors."""

    name = "isoflop"
    _ready: tuple[LrPlan, float, FeaturesPath] | None = None

    def forecast(self, plan: LrPlan | None, step: int | None = None, level: float = 0.8) -> Forecast | NoForecast:
        """The loss at `step` of `plan` (its end by default), or why there is none."""
        if plan is not None and plan.assumed:
            return covered(lambda rates: self.forecast(rates, step, level), plan, self.last_step)
        fit = self.fit(plan)
        if isinstance(fit, NoForecast):
            return fit
        return self._at(fit, fit.plan.total_steps if step is None else step, level)

    def fit(self, plan: LrPlan | None) -> Fit | NoForecast:
        """The posterior of the curve so far under `plan`."""
        if plan is None:
            return NO_PLAN
        warmup, now = plan.warmup_steps, self.last_step
        columns, seen = self.columns(warmup), self.seen_rates()
        missing = (
            _check_task(self.task, self.priors.own_runs)
            or _check_curve(columns, self, warmup)
            or _check_plan(plan, *seen, warmup)
        )
        if missing is not None:
            return missing
        road = self._path(plan, warmup, *seen)
        step, loss, count = (columns[name] for name in ("step", "loss", "count"))
        priors = self._priors(plan, road, step, self.priors)
        if self.priors.before is not None and _check_task(self.task, 0) is None:
            before = self._priors(plan, road, step, self.priors.before)
            wide = widened(before)
            priors = blended(priors, before, facts_of(solve(road, step, loss, count, *wide), wide))
        posterior = solve(road, step, loss, count, *priors)
        missing = _check_residuals(posterior.residuals, loss) or _check_fall(posterior.x, loss, step, *priors[:2])
        if missing is not None:
            return missing
        doubt = math.hypot(1, *(DOUBT * max(sign - 1, 0.0) for sign in _signs(posterior, road, priors)))
        return Fit(posterior, road, plan, now, float(count.sum() / max(now - step[0], 1)), doubt)

    def _path(self, plan: LrPlan, warmup: int, steps: Array, rates: Array) -> FeaturesPath:
        """The prepared plan; its past as it was seen, where that differs."""
        end = float(max(plan.total_steps, self.last_step))
        if len(steps) and plan.off(steps, rates).max() > OFF_PLAN:
            return path(plan.spliced(steps, np.maximum(rates, 0)), warmup, end)
        if self._ready is None or self._ready[0] is not plan or self._ready[1] != end:
            self._ready = (plan, end, path(plan, warmup, end))
        return self._ready[2]

    def _priors(self, plan: LrPlan, road: FeaturesPath, step: Array, priors: Priors) -> tuple[Normal, Normal, Normal]:
        batch = self.batch_tokens or self.last_tokens / max(self.last_step, 1)
        now, end = (known(float(x) * batch) for x in road.x(np.array([step[-1], road.nodes[-1]])))
        peak = comparable_peak(plan.peak, self.optimizer)
        where = (self.N, self.batch_tokens, peak)
        alpha, amplitude = (line.at((*where, now)) for line in (priors.alpha, priors.amplitude))
        gain = priors.gain.at((*where, end))
        if peak is None:
            gain = Normal(gain.mean, max(gain.sd, FOREIGN))
        if self.task.unlike_pretraining and not priors.own_runs:
            alpha, amplitude, gain = (Normal(p.mean, max(UNTESTED * p.sd, FOREIGN)) for p in (alpha, amplitude, gain))
        return alpha, amplitude, gain

    def _far(self) -> float:
        """How much wider intervals are for a model smaller than any that the priors were learnt from."""
        if self.N is None or self.N >= SMALLEST or self.priors.own_runs:
            return 1.0
        return 1 + FAR_PER_DECADE * math.log10(SMALLEST / self.N)

    def _at(self, fit: Fit, step: int, level: float, seen: Prediction | None = None) -> Forecast | NoForecast:
        """The forecast from a posterior: its spread, and what the curve's form leaves out."""
        others = self._beside(fit, step) if seen is None else None
        seen = seen or fit.posterior.predict(fit.road, np.array([fit.now, float(step)]))
        loss, far, basis = float(seen.mean[1]), self._far(), self._basis(fit)
        variance = float(_variance(seen)[1])
        variance += (FLOOR * loss) ** 2
        variance += fit.posterior.noise**2 / max(READ * step * fit.rate, 1)
        sd = far * fit.doubt * math.sqrt(variance)
        if others is not None:
            loss, sd = others.joined(loss, sd, math.sqrt(float(seen.variance[0]) + (FLOOR * loss) ** 2))
            basis += (f"{others.siblings} finished runs of like schedule and tokens per parameter",)
        made = forecast_of(loss, sd, level=level, step=step, estimator=self.name, basis=basis)
        result = replace(made, as_of=round(fit.now))
        half = T80 * result.sd
        if half > WIDEST * far * loss:
            share = half / max(loss, half)  # of a loss that may be near or below 0: at most all of it
            return NoForecast(
                Refusal.TOO_WIDE, {"half": share, "most": WIDEST * far, "loss": loss, "end": step}, result
            )
        return result

    def _beside(self, fit: Fit, step: int) -> Beside | None:
        """The end of the run by own finished runs that are like it."""
        if not self.priors.runs or not self.N or not self.batch_tokens or step < LATE * fit.plan.total_steps:
            return None
        now = float(fit.posterior.predict(fit.road, np.array([fit.now])).mean[0])
        return beside(self.priors.runs, fit.plan, self.N, self.batch_tokens, fit.now, now, DISCREPANCY[1])

    def rates_so_far(self, plan: LrPlan | None = None) -> LrPlan | None:
        """The learning rates that were seen, which need no plan; `plan` where fewer than two were."""
        steps, rates = self.seen_rates()
        if len(steps) < 2 or not rates.max() > 0:
            return plan
        return LrPlan(steps, np.maximum(rates, 0))

    def expected(self, fits: Sequence[Fit], rates: LrPlan, steps: Array) -> tuple[Array, Array]:
        """What each of some earlier fits expects at its `now` and at later `steps`, given the rates since.

        Means and standard deviations of the curve, without the noise of a logged loss; shape (fits, 1 + steps).
        """
        road = path(rates, rates.warmup_steps, float(steps[-1]))
        at = np.append([fit.now for fit in fits], steps)
        which = np.array([[i, *range(len(fits), len(at))] for i in range(len(fits))])
        moments = Moments(*map(np.stack, zip(*(fit.posterior.moments for fit in fits), strict=True)))
        seen = moments.predict(road.x(at)[which], falls(road, KERNELS, at)[:, which].swapaxes(0, 1))
        doubt = self._far() * np.array([[fit.doubt if fit.doubt > UNLIKE else 1.0] for fit in fits])
        return seen.mean, doubt * np.sqrt(_variance(seen) + (CURVE_FLOOR * seen.mean) ** 2)

    def _basis(self, fit: Fit) -> tuple[str, ...]:
        alone = not self.priors.own_runs
        notes = {
            f"the losses up to step {fit.now:,.0f}": True,
            f"the learning-rate plan to step {fit.plan.total_steps:,}": True,
            f"priors: {self.priors.source}": True,
            "the size or the batch is not known: wider priors": self.N is None or self.batch_tokens is None,
            "another optimizer than Adam's family, or no real learning rate: a wider prior of the decay's gain": (
                comparable_peak(fit.plan.peak, self.optimizer) is None
            ),
            "the losses so far follow the curve's form badly: a wider interval": fit.doubt >= DOUBTED,
            f"wider priors: {self.task.unlike_pretraining}": alone and self.task.unlike_pretraining,
        }
        return tuple(note for note, holds in notes.items() if holds)

    def what_if(self, plan: LrPlan, new: LrPlan, level: float = 0.8) -> Forecast | NoForecast:
        """The loss at the end of another plan: more steps, another decay.

        Args:
            plan: the plan so far.
            new: the plan from now on; its past is not used.
            level: probability of the interval.
        """
        now = self.last_step
        past = plan.steps < now
        seen = np.append(plan.steps[past], now), np.append(plan.lr[past], plan.at(now))
        return self.forecast(new.spliced(*seen), level=level)

    def converged(self, plan: LrPlan | None, level: float = 0.8) -> Forecast | NoForecast:
        """The loss of this size after endless training: the curve's E, with the rate as low as at the plan's end.

        One curve determines it badly, often not at all. `step` of the answer is the plan's last.
        """
        fit = self.fit(plan)
        if isinstance(fit, NoForecast):
            return fit
        end = fit.plan.total_steps
        return self._at(fit, end, level, fit.posterior.converged(fit.road, fit.now, float(end)))
