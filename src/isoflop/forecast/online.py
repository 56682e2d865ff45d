"""The forecast of a run under way: fed losses as they come, asked for the loss at a step of a learning-rate plan.

What a forecast comes to: a loss with its interval, or silence with the reason.

When there is no forecast, and what to tell the user: checks before the fit and on its residuals.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoflop.arrays import Array
from isoflop.forecast import posterior as what_if
from isoflop.forecast.curve import FeaturesPath, FinishedRun, LossBins, path, usable
from isoflop.forecast.lr_plan import LrPlan
from isoflop.forecast.posterior import FLOOR, Normal, Posterior, Prediction, solve
from isoflop.forecast.priors import DEFAULT_PRIORS, FOREIGN, Priors, comparable_peak, known

if TYPE_CHECKING:
    from typing_extensions import Self


NU = 5.0
"""Degrees of freedom of the Student t that a forecast's error is taken to follow (measured: docs/forecast.md)."""

T80 = 1.4758840488
"""Half-width of the 80% interval over the scale: the t distribution's 90% point."""

PASSING = ("warm-up", "too few points", "interval too wide")
"""Reasons for silence that time may mend; of others the user is told at once."""


@dataclass(frozen=True)
class Forecast:
    """The loss forecast at a step.

    Attributes:
        loss: median, nats per token.
        low, high: the central interval that holds the loss with probability `level`.
        sd: scale of the Student t with `nu` degrees of freedom that describes the error, nats.
        level: probability of the interval.
        step: the optimizer step it is for.
        estimator: the method's name in `ESTIMATORS`.
        basis: what it rests on, in words.
        nu: degrees of freedom.
    """

    loss: float
    low: float
    high: float
    sd: float
    level: float
    step: int
    estimator: str
    basis: tuple[str, ...] = ()
    nu: float = NU

    @property
    def normal(self) -> tuple[float, float]:
        """Mean and standard deviation of the normal nearest to it, for comparing runs."""
        return self.loss, self.sd * (self.nu / (self.nu - 2)) ** 0.5

    def probability_below(self, other: Forecast | float) -> float:
        """The probability that this run ends below `other`, taken as independent; a number is a certain loss."""
        from scipy.special import stdtr  # slow to import

        loss, sd = other.normal if isinstance(other, Forecast) else (float(other), 0.0)
        scale = (self.normal[1] ** 2 + sd**2) ** 0.5 * ((self.nu - 2) / self.nu) ** 0.5
        return float(stdtr(self.nu, (loss - self.loss) / scale))

    def __str__(self) -> str:
        return f"loss {self.loss:.4f} at step {self.step:,} ({self.level:.0%}: {self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class Silence:
    """No forecast: a stable `reason` to branch on, and a `message` that says what is missing."""

    reason: str
    message: str

    def __str__(self) -> str:
        return f"no forecast ({self.reason}): {self.message}"


def forecast_of(
    loss: float, sd: float, *, level: float, step: int, estimator: str, basis: tuple[str, ...] = (), nu: float = NU
) -> Forecast:
    """A forecast from its median and scale, with the interval of a Student t."""
    if not 0 < level < 1:
        raise ValueError(f"level is the probability of the interval, between 0 and 1; got {level}.")
    from scipy.special import stdtrit  # slow to import

    half = float(stdtrit(nu, 0.5 + level / 2)) * sd
    return Forecast(loss, loss - half, loss + half, sd, level, step, estimator, basis, nu)


DOMAINS = ("moe", "finetuning", "vision", "reinforcement_learning")
"""What the priors do not know; a mixture of experts gets wider ones, the rest no forecast without own runs."""
FEWEST = 6
"""Bins of loss after the warm-up that a fit needs."""
OFF_PLAN = 0.05
"""A rate this far off its plan, as a fraction of the peak, has left it."""
BATCH = 0.2
"""Tokens per step that change by this fraction in the window are another batch."""
REWARMED = 0.25
"""A plan that rises by this fraction of its peak after the warm-up is none that was tested."""
JUMP = 0.012
"""A step in the residuals of this fraction of the loss, and of nine times its noise, is a change point."""
RISE = 0.02
"""A loss this fraction above its lowest, and by six times the noise, diverges."""


def checked_domain(domain: Mapping[str, bool] | None) -> frozenset[str]:
    """The flags that are set.

    Raises:
        ValueError: for a flag that is none of `DOMAINS`.
    """
    unknown = sorted(set(domain or {}) - set(DOMAINS))
    if unknown:
        raise ValueError(f"Unknown domain {', '.join(map(repr, unknown))}; the flags are {', '.join(DOMAINS)}.")
    return frozenset(flag for flag, on in (domain or {}).items() if on)


def of_domain(domain: frozenset[str], own_runs: int) -> Silence | None:
    """Silence where the priors say nothing: no dense language-model pretraining, and no own runs to learn from."""
    foreign = sorted(domain - {"moe"})
    if not foreign or own_runs:
        return None
    kind = " and ".join(flag.replace("_", " ") for flag in foreign)
    return Silence(
        "outside the priors",
        f"The priors are of language-model pretraining, this is {kind}: give finished runs of yours as `history`.",
    )


def of_plan(plan: LrPlan, steps: Array, rates: Array, warmup: int) -> Silence | None:
    """Silence where the run left the plan, or the plan is none that was tested."""
    after = plan.steps >= warmup
    lowest = np.minimum.accumulate(plan.lr[after])
    if len(lowest) and float((plan.lr[after] - lowest).max()) > REWARMED * plan.peak:
        return Silence("outside the priors", "The learning rate rises again after its warm-up; no such run was tested.")
    if len(steps) == 0:
        return None
    off = off_plan(plan, steps[-2:], rates[-2:])
    if off.min() > OFF_PLAN:
        return Silence(
            "learning rate left its plan",
            f"At step {steps[-1]:,.0f} the learning rate is {rates[-1]:.3g}, by the plan it is "
            f"{float(plan.at(steps[-1])):.3g}: pass the plan that the run follows now.",
        )
    return None


def off_plan(plan: LrPlan, steps: Array, rates: Array) -> Array:
    """How far rates are off a plan, as fractions of its peak; a step early or late is none."""
    near = plan.at(steps[:, None] + np.array([-1.0, 0.0, 1.0]))
    return np.asarray(np.abs(near - rates[:, None]).min(1) / plan.peak)


def of_curve(step: Array, tokens: Array, loss: Array, now: float, warmup: int, lost: int) -> Silence | None:
    """Silence where the curve is too young, breaks off or changes its batch; arrays are the bins after the warm-up."""
    if lost:
        return Silence("diverging", f"The last {lost} logged losses are not finite.")
    if now < 2 * warmup:
        return Silence("warm-up", f"A forecast needs {2 * warmup:,} steps, twice the warm-up; {now:,.0f} are done.")
    if len(step) < FEWEST:
        return Silence(
            "too few points",
            f"{len(step)} of the {FEWEST} bins of loss that a fit needs are filled: log more often or wait.",
        )
    third = len(step) // 3
    early, late = ((tokens[i] - tokens[j]) / (step[i] - step[j]) for i, j in ((third, 0), (-1, -1 - third)))
    if early > 0 and abs(late / early - 1) > BATCH:
        return Silence(
            "batch size changed",
            f"The tokens per step went from {early:,.0f} to {late:,.0f}: the curve before says nothing of the one now.",
        )
    return None


def of_residuals(residual: Array, loss: Array) -> Silence | None:
    """Silence where the loss rose from its lowest, or jumped where no learning rate explains it."""
    n = len(residual)
    if n < 8:
        return None
    noise = 1.4826 * float(np.median(np.abs(np.diff(residual)))) / np.sqrt(2)
    level = float(np.mean(loss))
    # a jump between the medians of up to four bins before and after: one spike is none
    size = min(4, n // 4)
    middle = np.median(np.lib.stride_tricks.sliding_window_view(residual, size), axis=1)
    steps = middle[size:] - middle[:-size]
    # against the steps to either side: a smooth misfit is no jump
    sharp = steps[size:-size] - (steps[: -2 * size] + steps[2 * size :]) / 2 if len(steps) > 2 * size else steps[:0]
    jump = float(sharp[np.argmax(np.abs(sharp))]) if len(sharp) else 0.0
    jumped = abs(jump) > max(JUMP * level, 9 * noise * np.sqrt(2 / size))
    smooth = np.convolve(loss, np.ones(3) / 3, mode="valid")
    rise = float(smooth[-1] - smooth.min())
    if jumped:
        return Silence(
            "change point",
            f"The loss jumped by {jump:+.3f} nats where the learning rate does not explain it (new data, "
            "a restart, a spike?): there is a forecast again when the jump is long past.",
        )
    if rise > max(RISE * level, 6 * noise / np.sqrt(3)):
        return Silence("diverging", f"The loss has risen by {rise:.3f} nats from its lowest.")
    return None


SMALLEST, FAR_PER_DECADE = 25e6, 0.4
"""Parameters of the smallest public run behind the priors, and how much wider intervals are for each decade below: a
judgement. Of ten half-time forecasts of GPTs of 6,000 to 120,000 parameters the unwidened intervals held five or six,
the worst missed by 2.4 times its half-width."""
WIDEST = 0.025
"""An 80% half-width above this fraction of the loss is no forecast."""
UNTESTED = 1.5
"""Mixtures of experts: no public curve was seen, so the priors are this much wider."""
READ = 0.02
"""A loss at a step is read as the mean over this last part of the steps: a noisy log's own uncertainty. Intervals were
calibrated with it on public curves; the final loss of a record is a mean over more (`isoflop.fit.runs.TAIL`)."""


@dataclass(frozen=True)
class Fit:
    """A posterior and the plan it was made with."""

    posterior: Posterior
    road: FeaturesPath
    plan: LrPlan
    now: float  # step
    rate: float  # raw losses per step


class Estimator(ABC):
    """Forecasts the loss of one run from its curve so far.

    Args:
        N: non-embedding parameters; None where unknown (wider priors).
        batch_tokens: tokens of an optimizer step; None where unknown.
        optimizer: its name; other than Adam's family widens the priors.
        domain: what is trained, as flags: `moe`, `finetuning`, `vision`, `reinforcement_learning`.
        priors: what is known beforehand.
        warmup_steps: steps of warm-up; by default read off the plan.
    """

    name: ClassVar[str]

    def __init__(
        self,
        *,
        N: float | None = None,
        batch_tokens: float | None = None,
        optimizer: str | None = "adamw",
        domain: Mapping[str, bool] | None = None,
        priors: Priors = DEFAULT_PRIORS,
        warmup_steps: int | None = None,
    ) -> None:
        self.N, self.batch_tokens, self.optimizer = known(N), known(batch_tokens), optimizer
        self.domain = checked_domain(domain)
        self.priors, self.warmup_steps = priors, warmup_steps
        self.bins = LossBins()

    @classmethod
    def of(cls, run: FinishedRun, priors: Priors = DEFAULT_PRIORS) -> Self:
        """An estimator for a recorded run, before its first loss."""
        return cls(N=run.N, batch_tokens=run.batch_tokens, optimizer=run.optimizer, domain=run.domain, priors=priors)

    def add(self, step: float, tokens: float, lr: float | None, loss: float, count: float = 1) -> None:
        """Add one logged loss: nats per token, the mean over `count` optimizer steps up to `step`. O(1).

        Tokens are those processed so far; `lr` None is unknown. A step before the last one is left out: a run that goes
        back to a checkpoint restores the state of then.
        """
        if step < max(1, self.bins.last_step):
            return
        self.bins.lost = 0 if usable(loss) else self.bins.lost + 1
        if self.bins.lost:
            return
        rate = float(lr) if lr is not None and math.isfinite(lr) and lr >= 0 else None
        self.bins.add(float(step), float(tokens), rate, float(loss), float(max(count, 1)))

    def feed(self, run: FinishedRun, until: float = math.inf, after: float = -math.inf) -> Self:
        """Add the points of a curve with `after` < step ≤ `until`."""
        count = np.ones(len(run.steps)) if run.count is None else run.count
        for point in np.flatnonzero((run.steps > after) & (run.steps <= until)).tolist():
            self.add(run.steps[point], run.tokens[point], run.lr[point], run.loss[point], count[point])
        return self

    @abstractmethod
    def forecast(self, plan: LrPlan | None, step: int | None = None, level: float = 0.8) -> Forecast | Silence:
        """The loss at `step` of `plan` (its end by default), or why there is none."""

    def state_dict(self) -> dict[str, Any]:
        """The curve so far in plain values; at most 32 kB whatever the run's length."""
        return {"version": 1, "bins": self.bins.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`: forecasts are the same, bit by bit."""
        self.bins.load_state_dict(dict(state["bins"]))

    def _warmup(self, plan: LrPlan) -> int:
        return plan.warmup_steps if self.warmup_steps is None else self.warmup_steps


class OnlineForecaster(Estimator):
    """Forecasts the loss of one run from its curve so far, its learning-rate plan and priors."""

    name = "isoflop"
    _ready: tuple[LrPlan, float, FeaturesPath] | None = None

    def forecast(self, plan: LrPlan | None, step: int | None = None, level: float = 0.8) -> Forecast | Silence:
        """The loss at `step` of `plan` (its end by default), or why there is none."""
        fit = self.fit(plan)
        if isinstance(fit, Silence):
            return fit
        assert plan is not None
        return self._at(fit, plan.total_steps if step is None else step, level)

    def fit(self, plan: LrPlan | None) -> Fit | Silence:
        """The posterior of the curve so far under `plan`."""
        if plan is None:
            return Silence("learning rate unknown", "The coming learning rate is not known: pass the plan.")
        warmup = self._warmup(plan)
        now = self.bins.last_step
        columns = self.bins.columns()
        used = columns["step"] >= max(1.5 * warmup, 0.2 * now)
        step, tokens, loss, count = (columns[name][used] for name in ("step", "tokens", "loss", "count"))
        seen = self.bins.seen_rates()
        reason = (
            of_domain(self.domain, self.priors.own_runs)
            or of_curve(step, tokens, loss, now, warmup, self.bins.lost)
            or of_plan(plan, *seen, warmup)
        )
        if reason is not None:
            return reason
        road = self._path(plan, warmup, *seen)
        posterior = solve(road, step, loss, count, *self._priors(plan, road, step), self.priors.kernels)
        reason = of_residuals(posterior.residuals, loss)
        if reason is not None:
            return reason
        return Fit(posterior, road, plan, now, float(count.sum() / max(now - step[0], 1)))

    def _path(self, plan: LrPlan, warmup: int, steps: Array, rates: Array) -> FeaturesPath:
        """The plan made ready; its past as it was seen, where that differs."""
        if len(steps) and float(off_plan(plan, steps, rates).max()) > OFF_PLAN:
            seen = plan.spliced(steps, np.maximum(rates, 0))
            return path(seen, warmup, float(max(plan.total_steps, self.bins.last_step)))
        end = float(max(plan.total_steps, self.bins.last_step))
        if self._ready is None or self._ready[0] is not plan or self._ready[1] != end:
            self._ready = (plan, end, path(plan, warmup, end))
        return self._ready[2]

    def _priors(self, plan: LrPlan, road: FeaturesPath, step: Array) -> tuple[Normal, Normal, Normal]:
        batch = self.batch_tokens or self.bins.last_tokens / max(self.bins.last_step, 1)
        now, end = (known(float(x) * batch) for x in road.x(np.array([step[-1], road.nodes[-1]])))
        peak = comparable_peak(plan.peak, self.optimizer)
        alpha = Normal(*self.priors.alpha.at((self.N, self.batch_tokens, peak, now)))
        amplitude = Normal(*self.priors.amplitude.at((self.N, self.batch_tokens, peak, now)))
        gain = Normal(*self.priors.gain.at((self.N, self.batch_tokens, peak, end)))
        if peak is None:
            gain = Normal(gain.mean, max(gain.sd, FOREIGN))
        if "moe" in self.domain and not self.priors.own_runs:
            alpha, amplitude, gain = (Normal(p.mean, max(UNTESTED * p.sd, FOREIGN)) for p in (alpha, amplitude, gain))
        return alpha, amplitude, gain

    def _far(self) -> float:
        """How much wider intervals are for a model smaller than any that the priors were learnt from."""
        if self.N is None or self.N >= SMALLEST or self.priors.own_runs:
            return 1.0
        return 1 + FAR_PER_DECADE * math.log10(SMALLEST / self.N)

    def _at(
        self, fit: Fit, step: int, level: float, seen: Prediction | None = None, doubt: float = 0.0
    ) -> Forecast | Silence:
        seen = seen or fit.posterior.predict(fit.road, np.array([fit.now, float(step)]))
        loss = float(seen.mean[1])
        read = fit.posterior.noise**2 / max(READ * step * fit.rate, 1)
        training, falling = (
            part * float(np.ptp(drop))
            for part, drop in zip(self.priors.discrepancy, (seen.decay, seen.fall), strict=True)
        )
        sd = math.sqrt(
            self.priors.width**2 * float(seen.variance[1])
            + training**2
            + falling**2
            + (FLOOR * loss) ** 2
            + read
            + doubt
        )
        far = self._far()
        sd *= far
        result = forecast_of(loss, sd, level=level, step=step, estimator=self.name, basis=self._basis(fit))
        half, widest = T80 * sd, WIDEST * far
        if half > widest * loss:
            return Silence(
                "interval too wide",
                f"The 80% interval is ±{half / loss:.1%} of the loss, more than the ±{widest:.1%} that is shown: wait.",
            )
        return result

    def _basis(self, fit: Fit) -> tuple[str, ...]:
        basis = [
            f"the losses up to step {fit.now:,.0f}",
            f"the learning-rate plan to step {fit.plan.total_steps:,}",
            f"priors: {self.priors.source}",
        ]
        if self.N is None or self.batch_tokens is None:
            basis.append("the size or the batch is not known: wider priors")
        if comparable_peak(fit.plan.peak, self.optimizer) is None:
            basis.append(
                "another optimizer than Adam's family, or no real learning rate: a wider prior of the decay's gain"
            )
        if "moe" in self.domain and not self.priors.own_runs:
            basis.append("a mixture of experts: wider priors")
        return tuple(basis)

    def what_if(
        self,
        plan: LrPlan,
        new: LrPlan | None = None,
        *,
        N: float | None = None,
        step: int | None = None,
        level: float = 0.8,
    ) -> Forecast | Silence:
        """The loss at the end of another plan, from the same posterior; or of another size.

        Args:
            plan: the plan so far.
            new: the plan from now on, its past is not used: more steps, another decay. With `N`: the plan of that run
                from its start, by default this one's stretched to the same compute, 6·N·D.
            N: other non-embedding parameters, trained from the start with the same batch. How E falls with N is not
                seen in one run: it rests on a published law; a ladder knows better (`joint.fit_ladder`).
            step: instead of the end.
            level: probability of the interval.

        Raises:
            ValueError: if neither `new` nor `N` is given, or the run's own N is not known.
        """
        if new is None and N is None:
            raise ValueError("what_if needs another plan (new) or another size (N).")
        if N is not None and self.N is None:
            raise ValueError("what_if with another N needs the run's own: OnlineForecaster(N=...).")
        fit = self.fit(plan)
        if isinstance(fit, Silence):
            return fit
        if N is not None and self.N is not None:
            whole = new or plan.stretched(round(plan.total_steps * self.N / N))
            at = whole.total_steps if step is None else step
            seen, doubt = what_if.resized(fit.posterior, fit.plan, whole, self.N, N, at)
            told = self._at(fit, at, level, seen, doubt)
            law = f"another N: the law of Besiroglu et al. 2024, taken to {what_if.DOUBT:.0%}"
            return replace(told, basis=(*told.basis, law)) if isinstance(told, Forecast) else told
        assert new is not None
        after = what_if.diverted(fit.plan, new, fit.now, self._warmup(plan))
        return self._at(replace(fit, road=after, plan=new), new.total_steps if step is None else step, level)

    def converged(self, plan: LrPlan | None, level: float = 0.8) -> Forecast | Silence:
        """The loss that this size would come to in endless training: the curve's E, its rate as low as the plan's end.

        One curve tells it badly; where it does not at all, silence. `step` of the answer is the plan's last.
        """
        fit = self.fit(plan)
        if isinstance(fit, Silence):
            return fit
        end = fit.plan.total_steps
        return self._at(fit, end, level, fit.posterior.converged(fit.road, fit.now, float(end)))
