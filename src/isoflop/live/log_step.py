"""`LogStep`: a run as it stands at a log step; `Part`, what it is passed through; and the scalars that are logged then.

Each part of a `Monitor` takes the step, does its work and adds what it found out: scalars, the batch against the
critical one, a forecast, advice. A later part needs nothing but the step.

Scalars have a name, a unit and a meaning: the reference's table is checked against `SCALARS`. `ComputeAxes` shows loss
against compute in TensorBoard, which has neither a log axis nor another x than an integer step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from isoflop.advice import Advice, Batch
from isoflop.flops.parameters import Parameters
from isoflop.flops.totals import Operators, Totals
from isoflop.forecast import Forecast, Ladder, LrPlan, NoForecast, OnlineForecaster
from isoflop.guard import Guard, declare


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
        loss_sum, losses: sum and number of the training losses since the last log step, over all ranks; nats.
        first_loss: of the first step that this process made, where that is known apart from the interval's mean.
        made_by: operators of that loss; None: not known.
        summed: they hold all up to this step; False: up to the last log step, or other ranks' are still to come.
        wall_time, training_time: seconds since the run began; busy_time: of training, by the clock or by the
            CPU of its thread, whichever is more: what forecasts and advice may take a share of.
    """

    step: int  # optimizer steps done, as the trainer counts them
    updates: int = 0  # of the weights, of which one is several steps where several optimizers step together
    loss_sum: float = 0.0
    losses: int = 0
    loss: float | None = None  # the mean of `losses`, nats per token
    first_loss: float | None = None
    made_by: Operators | None = None
    before: Interval = field(default_factory=Interval)  # the last log step
    totals: Totals = field(default_factory=Totals)  # tokens and FLOPs since the run began, over all ranks
    summed: bool = True
    whole: bool = True  # `totals` hold all of the run; False: some of its steps were not counted
    parameters: Parameters | None = None  # N by convention
    lr: float | None = None  # the learning rate of the step just done
    wall_time: float = 0.0
    training_time: float = 0.0
    busy_time: float = 0.0
    devices: int = 1  # in the job
    peak: float | None = None  # dense peak of one of them in FLOP/s
    counting: Mapping[str, Any] = field(default_factory=dict)  # how FLOPs are counted, for the record
    scalars: dict[str, float] = field(default_factory=dict)  # what is shown, by name (`isoflop.live.log_step.SCALARS`)
    batch: Batch | None = None  # against the critical batch
    forecaster: OnlineForecaster | None = None  # fed up to this step
    ladder: Ladder | None = None  # the user's earlier sizes
    plan: LrPlan | None = None  # the learning rates of the whole run
    forecast: Forecast | NoForecast | None = None  # of the loss at the planned end, or why there is none
    advice: tuple[Advice, ...] = ()  # what is new
    stop: bool = False  # `on_advice` asks for the run's end


class Part:
    """A part of a `Monitor`; an error in it makes this part step aside and no other."""

    name: ClassVar[str]  # key of its state in a checkpoint
    boundary: ClassVar[str]  # its name in `isoflop.guard.BOUNDARIES`

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


class Scalar(NamedTuple):
    """A logged number."""

    unit: str
    meaning: str


INTERVAL: dict[str, Scalar] = {
    "isoflop/loss": Scalar("nats per loss token", "training loss, mean over the interval and all ranks"),
    "isoflop/flops": Scalar("FLOPs", "model FLOPs so far, measured: forward and backward, attention in full"),
    "isoflop/flops_6nd": Scalar("FLOPs", "6·N·D so far, N non-embedding (of experts the active), D tokens processed"),
    "isoflop/flops_no_grad": Scalar("FLOPs", "of them without gradients: a teacher, a reference, generation"),
    "isoflop/flops_optimizer": Scalar("FLOPs", "of them the optimizer's own matrix products (Muon, Shampoo, SOAP)"),
    "isoflop/tokens": Scalar("tokens", "D of the scaling laws: tokens processed less padding"),
    "isoflop/tokens_processed": Scalar("tokens", "positions the model computed, padding included"),
    "isoflop/padding_fraction": Scalar("1", "padding / processed, by the attention mask"),
    "isoflop/loss_tokens": Scalar("tokens", "labels that counted in the loss"),
    "isoflop/tokens_per_param": Scalar("tokens/parameter", "D/N with N non-embedding and the output head"),
    "isoflop/tokens_per_param_non_embedding": Scalar("tokens/parameter", "D/N with N non-embedding"),
    "isoflop/batch_tokens": Scalar("tokens/step", "processed per optimizer step, all ranks"),
    "isoflop/tokens_per_second_per_device": Scalar("tokens/s", "processed, over training time"),
    "isoflop/tflops_per_device": Scalar("TFLOP/s", "model FLOPs over training time, per device"),
    "isoflop/mfu": Scalar("1", "model FLOPs utilisation: TFLOP/s over the dense peak, attention in full"),
    "isoflop/mfu_causal": Scalar("1", "the same with attention counted half, as causal kernels compute it"),
    "isoflop/goodput": Scalar("1", "training time over wall time (less evaluation, checkpoints, compilation)"),
}
"""Counted over the interval (`interval_scalars`)."""

ESTIMATED: dict[str, Scalar] = {
    "isoflop/forecast_loss": Scalar("nats per loss token", "loss forecast for the planned end of the run"),
    "isoflop/forecast_low": Scalar("nats per loss token", "lower end of the forecast's 80% interval"),
    "isoflop/forecast_high": Scalar("nats per loss token", "upper end of the forecast's 80% interval"),
    "isoflop/n_opt": Scalar("parameters", "size (with head) at which the planned run's loss costs least compute"),
    "isoflop/frontier_loss": Scalar("nats per loss token", "least loss for the compute so far, by your own runs' law"),
    "isoflop/excess_loss": Scalar(
        "nats per loss token", "training loss minus frontier_loss; overstated until the rate has decayed"
    ),
    "isoflop/b_simple": Scalar("tokens", "gradient noise scale, averaged over the run; under Adam preconditioned"),
    "isoflop/b_simple_low": Scalar("tokens", "lower end of its 95% interval"),
    "isoflop/b_simple_high": Scalar("tokens", "upper end; left out, with the value, where it is unbounded"),
    "isoflop/b_simple_raw": Scalar("tokens", "the same without Adam's preconditioning; under Adam often far too low"),
    "isoflop/b_crit": Scalar("tokens", "critical batch: noise scale and published runs combined"),
    "isoflop/b_crit_sigma": Scalar("1", "standard deviation of ln B_crit, model error included"),
    "isoflop/batch_over_b_crit": Scalar("1", "B/B_crit: the extra tokens that this batch costs, as a share"),
    "isoflop/s_min": Scalar("steps", "steps so far, had the batch been endless: ΣΔS/(1 + B_crit/B)"),
    "isoflop/e_min": Scalar("tokens", "tokens so far, had the batch been tiny: ΣΔE/(1 + B/B_crit)"),
}
"""Forecast, advised, or from the gradient noise scale."""

SCALARS = {**INTERVAL, **ESTIMATED}

LOG, GIGA = "isoflop/1000log10C_loss", "isoflop/GFLOPs_loss"
FRONTIER = "isoflop/1000log10C_frontier"
AXES: dict[str, Scalar] = {
    LOG: Scalar("nats per loss token", "training loss; the step is 1000·log10(FLOPs): 18,000 reads 10^18"),
    GIGA: Scalar("nats per loss token", "training loss; the step is FLOPs / 10^9"),
    FRONTIER: Scalar("nats per loss token", "lower envelope of your finished runs (`history=`), on the first axis"),
    "isoflop/1000log10C_<name>": Scalar("nats per loss token", "an evaluation's loss, on the first axis"),
}
"""In TensorBoard alone: the step is compute, so that runs of different sizes overlay (Hoffmann et al., figure 2)."""


_GROUPS: dict[str, str] = {
    "batch": "b_simple b_simple_low b_simple_high b_simple_raw b_crit b_crit_sigma batch_over_b_crit s_min e_min",
    "counts": "flops flops_6nd flops_no_grad flops_optimizer tokens tokens_processed padding_fraction loss_tokens "
    "tokens_per_param_non_embedding batch_tokens n_opt",
    "speed": "goodput tokens_per_second_per_device tflops_per_device mfu_causal",
}
TAGS = {f"isoflop/{name}": f"isoflop_{group}/{name}" for group, names in _GROUPS.items() for name in names.split()}
"""Scalars with another tag in TensorBoard, which shows the group before the slash as a section, twelve charts of it
at once. The group `isoflop` keeps the headline: losses, against compute too, forecast, tokens per parameter, MFU."""


_BAND = ["isoflop/forecast_loss", "isoflop/forecast_low", "isoflop/forecast_high"]
CHARTS = {
    "isoflop": {
        "loss against compute, x = 1000·log10(FLOPs)": [
            "Multiline",
            ["isoflop/1000log10C_.*"],
        ],
        "final loss: forecast, 80%": ["Margin", _BAND],
        "tokens per parameter D/N": ["Multiline", ["isoflop/tokens_per_param"]],
        "TFLOP/s per device": ["Multiline", ["isoflop_speed/tflops_per_device"]],
    }
}
"""Of TensorBoard's tab Custom Scalars, as `SummaryWriter.add_custom_scalars` takes it."""


MOST_MFU = 1.05
"""A device may run a little above the clock of its datasheet."""


class Scalars(Part):
    """The scalars that are counted over the interval."""

    name = "scalars"
    boundary = declare("computing the scalars", "loss, speed and MFU of the intervals are not shown")

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def log(self, step: LogStep) -> None:
        """Adds the `INTERVAL` scalars that are known."""
        if step.loss is not None and not math.isfinite(step.loss):
            self._guard.once(
                "the training loss is %s in the interval that ends at step %d; recorded as null. Training goes on",
                step.loss,
                step.step,
            )
        step.scalars.update(interval_scalars(step))
        if (mfu := step.scalars.get("isoflop/mfu", 0.0)) > MOST_MFU:
            self._guard.once(
                "MFU is %.0f%%, and no device computes more than its peak: the peak (peak_flops=) or the FLOPs "
                "(flops_per_token=) are off",
                100 * mfu,
            )


def interval_scalars(step: LogStep) -> dict[str, float]:
    """The scalars of a log step; what is unknown is left out."""
    totals, before, parameters = step.totals, step.before, step.parameters
    processed, tokens, flops = totals.tokens_known, totals.data_tokens, totals.flops_known
    values: dict[str, float | None] = {
        "isoflop/loss": step.loss,
        "isoflop/flops": flops,
        "isoflop/flops_no_grad": totals.flops_no_grad or None,
        "isoflop/flops_optimizer": totals.flops_optimizer or None,
        "isoflop/flops_6nd": None if parameters is None else parameters.six_nd(processed),
        "isoflop/tokens": tokens,
        "isoflop/tokens_processed": processed,
        "isoflop/padding_fraction": totals.padding / processed if processed else None,
        "isoflop/loss_tokens": totals.loss_tokens_known,
        "isoflop/goodput": step.training_time / max(step.wall_time, 1e-9),
    }
    if parameters is not None and tokens is not None:
        head, body = parameters.non_embedding_with_head, parameters.non_embedding
        values["isoflop/tokens_per_param"] = tokens / head if head else None
        values["isoflop/tokens_per_param_non_embedding"] = tokens / body if body else None
    updates, seconds = step.updates - before.updates, step.training_time - before.training_time
    if processed is not None and updates > 0:
        values["isoflop/batch_tokens"] = (processed - before.totals.processed) / updates
    if processed is not None and seconds > 0:
        values["isoflop/tokens_per_second_per_device"] = (processed - before.totals.processed) / seconds / step.devices
    if flops is not None and seconds > 0:
        done = (flops - before.totals.flops) / seconds / step.devices
        attention = (totals.flops_attention - before.totals.flops_attention) / seconds / step.devices
        values["isoflop/tflops_per_device"] = done / 1e12
        if step.peak:
            values["isoflop/mfu"] = done / step.peak
            if attention:  # a count by 6·N·D or given by the user doesn't tell it
                values["isoflop/mfu_causal"] = (done - attention / 2) / step.peak
    return {name: float(value) for name, value in values.items() if value is not None}


MAX_STEP = 2**63 - 1  # a step is an int64 there


def log_step(flops: float) -> int:
    """The step on the logarithmic axis."""
    return round(1000 * math.log10(flops))


class AxisPoint(NamedTuple):
    """A scalar whose step is compute."""

    tag: str
    value: float
    step: int


class ComputeAxes:
    """Turns (FLOPs, loss) into scalars on two compute axes, each written only when its integer step has grown.

    So a log axis thins itself: 1,000 points a factor of ten.
    """

    def __init__(self) -> None:
        self._last = {LOG: -1, GIGA: -1}

    def points(self, flops: int | None, loss: float | None) -> list[AxisPoint]:
        """The scalars to write now."""
        if not flops or flops < 1 or loss is None or not math.isfinite(loss):
            return []
        new = []
        for tag, step in ((LOG, log_step(flops)), (GIGA, flops // 10**9)):
            if self._last[tag] < step <= MAX_STEP:
                self._last[tag] = step
                new.append(AxisPoint(tag, loss, step))
        return new

    def state_dict(self) -> dict[str, int]:
        """The last steps written."""
        return dict(self._last)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from `state_dict()`."""
        self._last.update(state)
