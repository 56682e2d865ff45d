"""What the evaluators look at: one run as it stands at a log step. Unknown is None."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from isoflop.fit.batch import Belief
from isoflop.fit.forecast import Forecast, LrPlan, Silence
from isoflop.fit.posterior import Posterior

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
    forecast: Forecast | Silence | None = None
    forecast_of: str = "train"
    decay_now: Callable[[], Forecast | Silence | None] = lambda: None
    converged: Callable[[], Forecast | Silence | None] = lambda: None
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
