"""Forecasts as data: a loss with its interval, or the reason why there is none; compared with the final loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from isoflop.console import Shown

if TYPE_CHECKING:
    from typing_extensions import Self

NU = 5.0
"""Degrees of freedom of the Student t that a forecast's error is taken to follow (measured: docs/forecast.md)."""
T80 = 1.4758840488244815
"""Half-width of the 80% interval over the scale: the t distribution's 90% point."""
LOSS, LOW, HIGH = "isoflop/forecast_loss", "isoflop/forecast_low", "isoflop/forecast_high"


@dataclass(frozen=True)
class Forecast(Shown):
    """The loss forecast at a step.

    Attributes:
        low, high: the central interval that holds the loss with probability `level`.
        rate_assumed: nobody has said what the learning rate will be: `loss` is for one that stays, and the interval
            holds a decay still to come as well.
    """

    loss: float  # median, nats per token
    low: float
    high: float
    sd: float  # scale of the Student t with `nu` degrees of freedom that describes the error, nats
    level: float  # probability of the interval
    step: int  # the optimizer step it is for
    estimator: str  # the method's name in `ESTIMATORS`
    basis: tuple[str, ...] = ()  # what it was computed from, in words
    nu: float = NU  # degrees of freedom
    rate_assumed: bool = False
    as_of: int | None = None  # the last optimizer step whose loss it is based on, 0 before the run; None: unknown

    @property
    def normal(self) -> tuple[float, float]:
        """Mean and standard deviation of the normal nearest to it, for comparing runs."""
        return self.loss, self.sd * math.sqrt(self.nu / (self.nu - 2))

    def probability_below(self, other: Forecast | float, correlation: float = 0.0) -> float:
        """The probability that this run ends below `other`, whose error correlates so; a number is a certain loss."""
        from scipy.special import stdtr  # slow to import

        loss, sd = other.normal if isinstance(other, Forecast) else (float(other), 0.0)
        mine = self.normal[1]
        scale = (mine**2 + sd**2 - 2 * correlation * mine * sd) ** 0.5 * ((self.nu - 2) / self.nu) ** 0.5
        return float(stdtr(self.nu, (loss - self.loss) / scale))

    def covering(self, other: Forecast) -> Forecast:
        """This forecast with an interval that holds another's too: the rates to come are not known."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        wider = max(high - self.loss, self.loss - low) / (self.high - self.loss)
        basis = (*self.basis, "the learning rate is taken to stay; the interval holds a decay to 0 in the last quarter")
        return replace(self, low=low, high=high, sd=self.sd * wider, basis=basis, rate_assumed=True)

    def __str__(self) -> str:
        return f"loss {self.loss:.4f} at step {self.step:,} ({self.level:.0%}: {self.low:.4f} to {self.high:.4f})"


def forecast_of(
    loss: float, sd: float, *, level: float, step: int, estimator: str, basis: tuple[str, ...] = (), nu: float = NU
) -> Forecast:
    """A forecast from its median and standard deviation, with the interval of a Student t.

    Raises:
        ValueError: if `level` is no probability.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is the probability of the interval, between 0 and 1; got {level}.")
    from scipy.special import stdtrit  # slow to import

    sd *= math.sqrt((nu - 2) / nu)
    half = float(stdtrit(nu, 0.5 + level / 2)) * sd
    return Forecast(loss, loss - half, loss + half, sd, level, step, estimator, basis, nu)


class Refusal(str, Enum):
    """Why there is no forecast: a stable name, the text for people, and whether waiting may help."""

    text: str
    temporary: bool

    def __new__(cls, name: str, text: str, temporary: bool = False) -> Self:
        """A member whose value is its name."""
        member = str.__new__(cls, name)
        member._value_, member.text, member.temporary = name, text, temporary
        return member

    WARM_UP = "warm-up", "A forecast needs {needed:,.0f} steps, twice the warm-up; {now:,.0f} are done.", True
    TOO_FEW_POINTS = (
        "too few points",
        "{n} of the {needed} bins of loss that a fit needs are filled: log more often.",
        True,
    )
    TOO_WIDE = (
        "interval too wide",
        "Its 80% interval would be ±{half:.1%} of the loss: one up to ±{most:.1%} is shown.",
        True,
    )
    LR_UNKNOWN = "learning rate unknown", "The learning rate to come is unknown: {why}. Pass {remedy}."
    LR_OFF_PLAN = (
        "learning rate left its plan",
        "At step {step:,.0f} the learning rate is {rate:.3g}, not {planned:.3g}: pass the plan that it follows now.",
    )
    LR_RISES = "learning rate rises again", "The learning rate rises again after its warm-up; no such run was tested."
    OUTSIDE_PRIORS = (
        "outside the priors",
        "The priors are of language-model pretraining, this is {kind}: pass your own finished runs as history=.",
    )
    NOT_FINITE = "losses not finite", "Losses that are not finite were logged last, {n} in a row."
    DIVERGING = "diverging", "The loss has risen by {rise:.3f} nats from its lowest."
    CHANGE_POINT = (
        "change point",
        "The loss jumped by {jump:+.3f} nats where the learning rate does not explain it (new data, a restart, a "
        "spike, a mean since the epoch began?). Forecasts resume when the jump is long past.",
    )
    BATCH_CHANGED = (
        "batch size changed",
        "The tokens per step have changed, on average from {before:,.0f} to {after:,.0f}: earlier losses do not "
        "predict later ones.",
    )
    AVERAGED = (
        "loss is a running mean",
        "The logged loss looks like its mean since the start of the run, or over much of it, which lags behind the "
        "loss of the model: log the loss of each step, or its mean since the last log.",
    )
    STUCK = (
        "loss not falling",
        "The loss is {now:.3f} nats after {then:.3f} around step {since:,.0f}: too small a fall for a forecast. "
        "Forecasts resume when it falls clearly.",
    )
    DRIFTED = (
        "forecast has moved",
        "The run now heads for {loss:.3f}, far outside of what was forecast at step {step:,.0f} ({low:.3f} to "
        "{high:.3f}): something has changed. Check its data, gradients and learning rate.",
    )
    UNLIKE_SIZES = (
        "unlike the finished sizes",
        "The loss is {loss:.3f} around step {step:,.0f}, where the finished runs of other sizes put it at {mean:.3f} "
        "({low:.3f} to {high:.3f}): its end is not forecast by them. Forecasts resume with its own curve.",
    )
    NO_FIT = "no fit", "Least squares found no finite loss."
    TOKENS_UNKNOWN = "tokens unknown", "The run's tokens are not counted."
    END_UNKNOWN = "no planned end", "The run's length is not known: pass total_steps=, or max_steps to a Trainer."


@dataclass(frozen=True)
class NoForecast:
    """No forecast: a stable `reason` to branch on, and the numbers of its `message`; `wide`: one too wide to show."""

    reason: Refusal
    details: Mapping[str, float | str] = field(default_factory=dict)
    wide: Forecast | None = None

    @property
    def message(self) -> str:
        """What is missing, for people."""
        return self.reason.text.format(**self.details)

    def __str__(self) -> str:
        return f"no forecast ({self.reason.value}): {self.message}"


class Earlier:
    """Earlier forecasts of a run's end: one far outside of their intervals is no forecast, but a sign of trouble.

    Of 264 sound public runs 2 come to that, asked at each tenth. `state`: a row each of step, end, loss, low, high.
    """

    FAR = 4.0
    """Half-widths of the earlier interval."""

    def __init__(self, state: Iterable[Sequence[float]] = ()) -> None:
        self.state = [list(row) for row in state]

    def check(self, new: Forecast | NoForecast, now: float) -> Forecast | NoForecast:
        """The answer at step `now`, if earlier ones allow it; they count for four times their own steps."""
        if isinstance(new, Forecast):
            loss, end = new.loss, new.step
        elif new.reason is Refusal.TOO_WIDE:  # what is too doubtful to show may still be far from what was forecast
            loss, end = float(new.details["loss"]), int(new.details["end"])
        else:
            return new
        self.state = [row for row in self.state if row[1] == end and 4 * row[0] >= now]
        for step, _, before, low, high in self.state:
            if abs(loss - before) > self.FAR * (high - before if loss > before else before - low):
                return NoForecast(Refusal.DRIFTED, {"loss": loss, "step": step, "low": low, "high": high})
        if isinstance(new, Forecast) and (not self.state or now > 1.2 * self.state[-1][0]):
            self.state.append([now, end, new.loss, new.low, new.high])
        return new


NO_PLAN = NoForecast(Refusal.LR_UNKNOWN, {"why": "no plan was given", "remedy": "the learning-rate plan"})


def scalars_of(forecast: Forecast) -> dict[str, float]:
    """A forecast as the scalars that a Monitor logs: median, and the ends of its interval."""
    return {LOSS: forecast.loss, LOW: forecast.low, HIGH: forecast.high}


def forecast_from(scalars: Mapping[str, Any], step: int = 0) -> Forecast | None:
    """The forecast that logged scalars hold; None where they hold none.

    Args:
        scalars: as `Monitor.scalars`, with an 80% interval.
        step: the step that it is for, where that is known.
    """
    values = [scalars.get(name) for name in (LOSS, LOW, HIGH)]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return None
    loss, low, high = (float(value) for value in values if value is not None)
    if not low < high:
        return None
    return Forecast(loss, low, high, (high - low) / 2 / T80, 0.8, step, "isoflop", ("as logged during training",))


def logged_forecast(steps: Any, extra: Mapping[str, Any]) -> Forecast | None:
    """The newest forecast in a record, made at the first of the points that hold it.

    Args:
        steps: of the points, rising; a list or an array, shape (points,).
        extra: `forecast_loss`, `forecast_low` and `forecast_high` at them, among others, alike; None or NaN: none.

    >>> extra = {"forecast_loss": [3.0, 2.0, 2.0, None], "forecast_low": [2.8, 1.9, 1.9, None]}
    >>> found = logged_forecast([10, 20, 30, 40], extra | {"forecast_high": [3.2, 2.1, 2.1, None]})
    >>> found.loss, found.as_of
    (2.0, 20)
    """
    names = (LOSS, LOW, HIGH)
    columns = (reversed(extra.get(name.removeprefix("isoflop/"), ())) for name in names)
    found: Forecast | None = None
    for step, *values in zip(reversed(steps), *columns):  # noqa: B905 - none of them where one is missing
        here = forecast_from(dict(zip(names, values, strict=True)))
        if found is not None and (here is None or (here.loss, here.low) != (found.loss, found.low)):
            break
        found = here and replace(here, as_of=int(step))
    return found


class FinalLoss(NamedTuple):
    """Sums over the losses in the last part of a run, whose mean is its final loss (`isoflop.fit.runs.in_tail`).

    >>> final = FinalLoss.of([2.40, 2.42, 2.41])
    >>> f"{final.mean:.3f} ± {final.error:.3f}"
    '2.410 ± 0.006'
    """

    n: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, losses: Iterable[float]) -> FinalLoss:
        """The sums of some losses."""
        final = cls()
        for loss in losses:
            final = final.plus(loss)
        return final

    def plus(self, loss: float) -> FinalLoss:
        """With one more loss; all count alike."""
        return FinalLoss(self.n + 1, self.total + loss, self.squares + loss * loss)

    @property
    def mean(self) -> float | None:
        """The final loss in nats per token; None without losses."""
        return self.total / self.n if self.n else None

    @property
    def error(self) -> float:
        """Standard error of the mean, by the scatter of the losses; 0 with fewer than three."""
        if self.n < 3:
            return 0.0
        mean = self.total / self.n
        variance = max(0.0, self.squares / self.n - mean * mean)  # `mean**2` would raise beyond 1e154
        return math.sqrt(variance / (self.n - 1))


@dataclass(frozen=True)
class Outcome:
    """A forecast beside the final loss that the run came to."""

    forecast: Forecast
    final: float
    error: float  # standard error of `final`

    @property
    def off(self) -> float:
        """How far the final loss lies above the forecast, relative."""
        return self.final / self.forecast.loss - 1

    @property
    def inside(self) -> bool:
        """Whether the interval held the final loss, as well as that is known."""
        return self.forecast.low - self.error <= self.final <= self.forecast.high + self.error

    def __str__(self) -> str:
        """For example "2.405: 0.3% below, inside the interval"."""
        # few losses that agree by chance tell no error
        off, error = self.off, f" ± {self.error:.3f}" if self.error >= 5e-4 else ""
        where = "as forecast" if abs(off) < 5e-4 else f"{abs(off):.1%} {'above' if off > 0 else 'below'}"
        return f"{self.final:.3f}{error}: {where}, {'inside' if self.inside else 'outside'} the interval"
