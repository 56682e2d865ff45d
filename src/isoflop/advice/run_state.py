"""What the evaluators look at: one run as it stands at a log step. Unknown is None.

What the evaluators need of a run's past, in a fixed size: its losses, forecasts that fall due, its speed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from isoflop.fit.posterior import Posterior
from isoflop.forecast import Forecast, LrPlan, NoForecast, usable
from isoflop.noise.critical_batch import Belief

Intent = Literal["optimal", "overtrain"]


class Estimate(NamedTuple):
    """A number and its standard deviation."""

    mean: float
    sd: float


class Batch(NamedTuple):
    """Batch size against the critical one.

    Attributes:
        tokens: of one optimizer step.
        critical: B_crit, measured and published together.
        measured: B_crit as this run's noise scale says, its model error included; None: not measured, or too little.
        prior: B_crit by published fits over D.
        measurements: steps at which the noise scale was measured.
        measuring: more may come.
    """

    tokens: float
    critical: Belief
    measured: Belief | None
    prior: Belief
    measurements: int = 0
    measuring: bool = False


class Evaluated(NamedTuple):
    """A loss on an evaluation set, nats per token, and the training loss at the time; None: not known."""

    step: int
    loss: float
    train: float | None = None


class Expected(NamedTuple):
    """What was forecast for a step some way ahead, and what came."""

    step: int
    made_at: int
    loss: Estimate
    came: float
    noise: float


@dataclass(frozen=True, kw_only=True)
class Situation:
    """One run as it stands.

    Attributes:
        step, total_steps, warmup_steps: optimizer steps done, planned, and until the learning rate's peak.
        N: parameters, non-embedding with the head.
        N_non_embedding: without the head.
        tokens: D so far.
        tokens_per_step: mean so far.
        flops: measured so far.
        flops_per_token: measured, of a training step.
        seconds: training time so far.
        price_per_hour: of all devices, in the user's currency.
        unlike: why published sweeps say nothing of this run (experts, fine-tuning); empty: they do.
        line: N_opt(C): the prior's, or the user's own runs' too.
        line_source: what the line rests on.
        inference_tokens, unique_tokens, target_loss, intent: the user's.
        loss: mean of the last interval, nats per token.
        losses: (steps, losses) of the last log steps, each an interval's mean; in nats per token.
        nonfinite: log steps in a row whose loss was NaN or infinite.
        forecast: of the loss at the planned end, or why there is none.
        forecast_of: whose loss that is: `train` or eval/<name>.
        decay_now: asks for the forecast if the learning rate decayed from here on.
        converged: asks for the loss that this size would come to in endless training.
        expected: forecasts that fell due at this step.
        by_ladder: what the user's earlier sizes had forecast for this step, before the run began, and what came.
        fall: expected fall of the loss over the last doubling of steps, by a forecast made before it, with its sd.
        fell: the fall that came, with its sd.
        rates: the learning-rate plan.
        batch: against the critical size.
        batch_wanted: the user wants it judged.
        evaluations: by set.
        speeds, best_speed: tokens/s per device of the last log steps, and the best median of any stretch before them.
    """

    step: int
    total_steps: int | None = None
    warmup_steps: int | None = None
    N: float | None = None
    N_non_embedding: float | None = None
    tokens: float | None = None
    tokens_per_step: float | None = None
    flops: float | None = None
    flops_per_token: float | None = None
    seconds: float | None = None
    price_per_hour: float | None = None
    unlike: str = ""
    line: Posterior | None = None
    line_source: str = ""
    inference_tokens: float | None = None
    unique_tokens: float | None = None
    target_loss: float | None = None
    intent: Intent = "optimal"
    loss: float | None = None
    losses: Sequence[tuple[int, float]] = ()
    nonfinite: int = 0
    forecast: Forecast | NoForecast | None = None
    forecast_of: str = "train"
    decay_now: Callable[[], Forecast | NoForecast | None] = lambda: None
    converged: Callable[[], Forecast | NoForecast | None] = lambda: None
    expected: Sequence[Expected] = ()
    by_ladder: Expected | None = None
    fall: Estimate | None = None
    fell: Estimate | None = None
    rates: LrPlan | None = None
    batch: Batch | None = None
    batch_wanted: bool = True
    evaluations: Mapping[str, Sequence[Evaluated]] = field(default_factory=dict)
    speeds: Sequence[float] = ()
    best_speed: float | None = None

    @property
    def planned_tokens(self) -> float | None:
        """D at the planned end, at the mean batch size so far."""
        if self.total_steps is None or self.tokens_per_step is None:
            return None
        done = self.tokens or 0.0
        return done + max(self.total_steps - self.step, 0) * self.tokens_per_step

    @property
    def left(self) -> float | None:
        """Share of the planned run that is left."""
        return None if not self.total_steps else max(1 - self.step / self.total_steps, 0.0)

    @property
    def warming_up(self) -> bool:
        """Still in warm-up, or not clearly out of it."""
        return self.step < 2 * (self.warmup_steps or 0)

    def hours(self, steps: float) -> float | None:
        """Wall-clock hours of training for so many steps, at the speed so far."""
        if not self.step or self.seconds is None:
            return None
        return self.seconds / self.step * steps / 3600


MOST = 96
"""Losses kept; when there are more, every second of the older half goes."""
AVERAGED = 5
"""Log steps whose mean is compared with a forecast."""
EVERY, AHEAD = 1.15, 1.3
"""A forecast is made whenever the steps have grown by the first factor, for the step the second times as far."""
DOUBLED = 2.0

Forecaster = Callable[[int], "Estimate | None"]
"""Step → forecast loss, None where there is none."""


class Track:
    """Fed at each log step."""

    def __init__(self) -> None:
        self.losses: list[tuple[int, float]] = []
        self.nonfinite = 0
        self.speeds: deque[float] = deque(maxlen=16)
        self.best_speed: float | None = None
        self.fall: Estimate | None = None
        self.fell: Estimate | None = None
        self._came: deque[Expected] = deque(maxlen=2)
        self._due: list[tuple[int, int, float, float]] = []  # due, made at, mean, sd
        self._doubling: list[tuple[int, float, float | None, float | None]] = []  # due, loss then, forecast, sd
        self._next = 0.0

    def loss(self, step: int, loss: float | None, forecast: Forecaster) -> None:
        """A log step's mean loss."""
        if loss is None:
            return
        if not usable(loss):
            self.nonfinite += 1
            return
        self.nonfinite = 0
        self.losses.append((step, float(loss)))
        if len(self.losses) > MOST:
            self.losses = self.losses[: MOST // 2 : 2] + self.losses[MOST // 2 :]
        self._settle(step)
        if step >= self._next and len(self.losses) >= 2 * AVERAGED:
            self._promise(step, forecast)

    def speed(self, tokens_per_second: float | None) -> None:
        """Tokens a second per device over the interval."""
        if tokens_per_second is None or not tokens_per_second > 0:
            return
        if len(self.speeds) >= 8:  # the best stretch of five, the first ones warm up and compile
            stretch = float(np.median(list(self.speeds)[-5:]))
            self.best_speed = stretch if self.best_speed is None else max(self.best_speed, stretch)
        self.speeds.append(float(tokens_per_second))

    def forget_forecasts(self) -> None:
        """The plan that they were made for is another now; nothing of them will fall due."""
        self._due, self._doubling = [], []
        self._came.clear()
        self.fall = self.fell = None

    @property
    def expected(self) -> tuple[Expected, ...]:
        """The last two forecasts that fell due."""
        return tuple(self._came)

    def now(self) -> Estimate | None:
        """Mean of the last log steps, with its standard error."""
        recent = [loss for _, loss in self.losses[-AVERAGED:]]
        if len(recent) < AVERAGED:
            return None
        sd = noise(np.array([loss for _, loss in self.losses[-30:]]))
        return Estimate(float(np.mean(recent)), sd / len(recent) ** 0.5)

    def _settle(self, step: int) -> None:
        now = self.now()
        if now is None:
            return
        while self._due and self._due[0][0] <= step:
            due, made, mean, sd = self._due.pop(0)
            self._came.append(Expected(due, made, Estimate(mean, sd), now.mean, now.sd))
        while self._doubling and self._doubling[0][0] <= step:
            _, then, forecast, error = self._doubling.pop(0)
            self.fall = None if forecast is None or error is None else Estimate(then - forecast, error)
            self.fell = Estimate(then - now.mean, now.sd * 2**0.5)

    def _promise(self, step: int, forecast: Forecaster) -> None:
        self._next = step * EVERY
        now = self.now()
        ahead, doubled = forecast(round(step * AHEAD)), forecast(round(step * DOUBLED))
        if ahead is not None:
            self._due.append((round(step * AHEAD), step, *ahead))
        if now is not None:
            self._doubling.append((round(step * DOUBLED), now.mean, *(doubled or (None, None))))

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "losses": [list(each) for each in self.losses],
            "nonfinite": self.nonfinite,
            "speeds": list(self.speeds),
            "best_speed": self.best_speed,
            "due": [list(each) for each in self._due],
            "doubling": [list(each) for each in self._doubling],
            "next": self._next,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.losses = [(int(step), float(loss)) for step, loss in state["losses"]]
        self.nonfinite = int(state["nonfinite"])
        self.speeds = deque((float(each) for each in state["speeds"]), maxlen=16)
        self.best_speed = state["best_speed"]
        self._due = [(int(due), int(made), float(mean), float(sd)) for due, made, mean, sd in state["due"]]
        self._doubling = [(int(due), float(then), mean, sd) for due, then, mean, sd in state["doubling"]]
        self._next = float(state["next"])


def noise(losses: np.ndarray) -> float:
    """Standard deviation of a logged loss about its trend, by second differences (median absolute deviation)."""
    second = np.diff(losses, 2)
    return float(1.4826 * np.median(np.abs(second - np.median(second))) / np.sqrt(6)) if len(second) else 0.0
