"""`LogStep`: a run as it stands at a log step, and `Part`, what it is passed through.

Each part of a `Monitor` takes the step, does its work and adds what it found out: scalars, the batch against the
critical one, a forecast, advice. A later part needs nothing but the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from isoflop.advice import Advice, Batch
from isoflop.flops.parameters import Parameters
from isoflop.flops.totals import Totals
from isoflop.forecast import Forecast, Ladder, LrPlan, NoForecast, OnlineForecaster


class Interval(NamedTuple):
    """Where a run stood at a log step."""

    steps: int = 0
    totals: Totals = Totals()
    training_time: float = 0.0
    updates: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {**self._asdict(), "totals": self.totals._asdict()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Interval:
        """The inverse of `state_dict`."""
        steps, updates = int(state["steps"]), state.get("updates")  # not in states of earlier versions
        updates = steps if updates is None else int(updates)
        return cls(steps, Totals(**state["totals"]), float(state["training_time"]), updates)


@dataclass(kw_only=True, slots=True)
class LogStep:
    """A run at a log step. Unknown is None.

    Attributes:
        step: optimizer steps done, as the trainer counts them.
        updates: of the weights, of which one is several steps where several optimizers step together.
        loss_sum, losses: sum and number of the training losses since the last log step, over all ranks; nats.
        loss: their mean, nats per token.
        first_loss: of the first step that this process made, where that is known apart from the interval's mean.
        before: the last log step.
        totals: tokens and FLOPs since the run began, over all ranks.
        summed: they hold all up to this step; False: up to the last log step, or other ranks' are still to come.
        whole: they hold all of the run; False: some of its steps were not counted.
        parameters: N by convention.
        lr: the learning rate of the step just done.
        wall_time, training_time: seconds since the run began; busy_time: of training, by the clock or by the
            CPU of its thread, whichever is more: what forecasts and advice may take a share of.
        devices: in the job.
        peak: dense peak of one of them in FLOP/s.
        counting: how FLOPs are counted, for the record.
        scalars: what is shown, by name (`isoflop.live.scalars.SCALARS`).
        batch: against the critical batch.
        forecaster: fed up to this step.
        ladder: the user's earlier sizes.
        plan: the learning rates of the whole run.
        forecast: of the loss at the planned end, or why there is none.
        advice: what is new.
        stop: `on_advice` asks for the run's end.
    """

    step: int
    updates: int = 0
    loss_sum: float = 0.0
    losses: int = 0
    loss: float | None = None
    first_loss: float | None = None
    before: Interval = field(default_factory=Interval)
    totals: Totals = field(default_factory=Totals)
    summed: bool = True
    whole: bool = True
    parameters: Parameters | None = None
    lr: float | None = None
    wall_time: float = 0.0
    training_time: float = 0.0
    busy_time: float = 0.0
    devices: int = 1
    peak: float | None = None
    counting: Mapping[str, Any] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)
    batch: Batch | None = None
    forecaster: OnlineForecaster | None = None
    ladder: Ladder | None = None
    plan: LrPlan | None = None
    forecast: Forecast | NoForecast | None = None
    advice: tuple[Advice, ...] = ()
    stop: bool = False


class Part:
    """A part of a `Monitor`; an error in it makes this part step aside and no other.

    Attributes:
        name: key of its state in a checkpoint.
        boundary: its name in `isoflop.guard.BOUNDARIES`.
    """

    name: ClassVar[str]
    boundary: ClassVar[str]

    def log(self, step: LogStep) -> None:
        """A log step, to which this part adds what it finds."""
        raise NotImplementedError

    def evaluate(self, name: str, loss: float, step: LogStep) -> None:
        """The loss of the evaluation set `name`, in nats per token, as of `step`."""

    def close(self, step: LogStep, completed: bool) -> None:
        """The run has ended at `step`: completed, or interrupted."""

    def state_dict(self) -> Any:
        """Plain values, for a checkpoint."""
        return None

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict()`, before the first step."""
