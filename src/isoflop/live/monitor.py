"""`Monitor` drives the rooms for one run, whatever the trainer: observe every step, record and show at log steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from isoflop.advice.advice import Advice
from isoflop.advice.run_state import Situation
from isoflop.flops.calls import Call, watch
from isoflop.flops.clock import Clock, Phase
from isoflop.flops.device import Device, model_device
from isoflop.flops.step import StepObserver
from isoflop.flops.tokens import TokenCount
from isoflop.flops.totals import (
    Loss,
    Totals,
    added,
    as_float,
    data_parallel_ranks,
    ddp_around,
    ends_apart,
    rank,
    sum_over_ranks,
    world_size,
)
from isoflop.forecast import Forecast, LrPlan, NoForecast
from isoflop.guard import declare, hook
from isoflop.live.advice import Advising, situation
from isoflop.live.forecast import About, Forecasting
from isoflop.live.header import describe_counting, run_header, run_plan, run_point
from isoflop.live.noise import NoiseDriver
from isoflop.live.options import Options
from isoflop.live.recorder import Recorder
from isoflop.live.run_info import Setup
from isoflop.live.scalars import Interval, interval_scalars
from isoflop.live.sinks import Output, TensorBoardSink
from isoflop.record.paths import last_name, location_of
from isoflop.record.run import Point

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from isoflop.live.options import OptionsDict


COUNTING, SETTLING, SUMMING = "counting the batch", "settling the step", "summing over ranks"
LAYOUT = declare("seeing which ranks share a batch", "tokens and FLOPs of ranks that do are counted more than once")
_UNKNOWN = "tokens and FLOPs are unknown from here on"


class Monitor:
    """Observes one training run: `Monitor(model, optimizer=…, total_steps=…)` in a plain loop, Accelerate or Fabric.

    It sees the model's forward calls by itself; after each optimizer step call `step(loss)`, on every rank. Under
    Lightning and the Hugging Face Trainer use `IsoFLOPMonitor` and `IsoFLOPCallback`, which drive a Monitor. Nothing
    it does changes training, and after construction nothing raises: an error costs one log line, and the part that
    failed steps aside.

    Args:
        model: the model that is trained, wrapped (compiled, DDP, FSDP2) or not; None: pass `step(tokens=…)`,
            `num_params=` and `flops_per_token=`.
        optimizer: for the learning rate and the record.
        scheduler: of torch, stepped once an optimizer step: the forecast asks it for the learning rates to come.
        total_steps: planned optimizer steps of the run.
        run_name: shown in tables; default: the record folder's name.
        setup: what a trainer's adapter knows; takes the place of the four before.
        **options: see `isoflop.live.options.Options`.

    Raises:
        ValueError, TypeError: an option that can't be.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        optimizer: Any = None,
        scheduler: Any = None,
        total_steps: int | None = None,
        run_name: str | None = None,
        setup: Setup | None = None,
        **options: Unpack[OptionsDict],
    ) -> None:
        self.options = Options.of(**options)
        if total_steps is not None and not (isinstance(total_steps, int) and total_steps >= 1):
            raise ValueError(f"total_steps= expects a whole number of at least 1, or None, got {total_steps!r}")
        self.steps = 0
        """Optimizer steps done."""
        self.totals = Totals()
        """Sums over all ranks, as of the last log step."""
        self.scalars: dict[str, float] = {}
        """What was logged last, by name (`isoflop.live.scalars.SCALARS`)."""
        plain = setup is None
        self.setup = setup or Setup(
            optimizer=optimizer, scheduler=scheduler, total_steps=total_steps, run_name=run_name
        )
        self.guard = self.setup.guard
        self.log_every = self.options.log_every or self.setup.log_every
        self._see_layout(model)
        self._clock = Clock()
        self.observer = StepObserver(
            model,
            say=self.guard.once,
            tokens_fn=self.options.tokens_fn,
            flops_per_token=self.options.flops_per_token,
            num_params=self.options.num_params,
            whole=self.setup.data_parallel in (None, world_size()),
            clock=self._clock,
        )
        folder = location_of(self.options.record_dir or self.setup.record_dir)
        self._writes = rank() == 0
        self.recorder = Recorder(
            folder, named=self.options.record_dir is not None, writes=self._writes, guard=self.guard
        )
        self._model = model
        self._ddp: Any = None  # the wrapper around the model, whether or not the user gave us that
        self._device: Device | None = None
        self._lr: Any = None
        self._started = self._finished = self._marked = False
        self._opened = False
        self._attempt_began_at = 0
        self._uncounted = False  # steps of this run that nothing was counted of
        self._logged = Interval()
        self._logged_at = 0  # the last log step, whether or not logging has worked
        self._loss = (0.0, 0)  # sum and number of losses since the last log step, over all ranks
        self.noise = NoiseDriver(model, self.setup, self.options.noise_scale, speaks=self._writes)
        """The gradient noise scale and the critical batch."""
        self._unwatch = lambda: None
        if plain and self._writes:
            # TensorBoard's files are appended to, which object stores cannot: they stay on this machine
            events = folder if isinstance(folder, Path) else self.setup.record_dir / last_name(folder)
            self.setup.sinks.append(TensorBoardSink(events))
            self.setup.tensorboard = events
        if plain and model is not None:
            self._unwatch = watch(model, self._forward)
        self._output = Output(self.setup.sinks, self.setup.say, self.guard)
        self._forecasting = Forecasting(self.options, self.setup, self.guard, self._keep_plan)
        self._advising = Advising(
            self.options,
            self.setup,
            self.guard,
            self._forecasting,
            self._put_advice,
            self._about,
            lambda: self.recorder.run_id,
        )
        self.should_stop = False
        """`on_advice` asks for the end of the run; the same on all ranks. A trainer is told; a plain loop looks."""

    @property
    def forecast(self) -> Forecast | NoForecast | None:
        """The loss forecast for the planned end, or why there is none; None before the first and on other ranks."""
        return self._forecasting.last

    @property
    def advice(self) -> tuple[Advice, ...]:
        """What was said and still holds, the gravest first; on the first rank."""
        return self._advising.current

    # -- what a step brings ------------------------------------------------------------------------------------

    @hook("starting", "the run is not observed")
    def start(self) -> None:
        """Training begins (by itself with the first batch)."""
        if not self._started:
            self._started = True
            self._clock.start()

    @hook(COUNTING, _UNKNOWN)
    def batch(self, batch: Any) -> bool:
        """A micro-batch goes in. True: its shape is new, and `calls` wants what the model is called with."""
        self._before_batch()
        wanted = self.observer.batch(batch)
        self.noise.begin(self.observer.last_tokens)
        return wanted

    @hook(COUNTING, _UNKNOWN)
    def forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A micro-batch that is the model's own forward call."""
        self._before_batch()
        self.observer.forward(module, args, kwargs)
        if not self._marked:
            # Hugging Face's Trainer gives the step's number of labels where the loss is a mean over them
            self.noise.begin(self.observer.last_tokens, "num_items_in_batch" in kwargs or None)

    @contextmanager
    def accumulate(self, tokens: int | TokenCount | None = None, *, by_tokens: bool = False) -> Iterator[None]:
        """Around one micro-batch's forward and backward pass in a plain loop: a part of the step's gradient.

        Needed only where that is not one forward call of the model each, or for what these arguments say.

        Args:
            tokens: of the micro-batch on this rank; default: what the model is given.
            by_tokens: the loss is this micro-batch's share of a mean over all tokens of the step; default: it is the
                micro-batch's own mean, divided by the number of micro-batches.
        """
        count = TokenCount(tokens) if isinstance(tokens, int) else tokens
        if count is not None:
            self._marked = True
            self.noise.begin(count, by_tokens)
        elif by_tokens:
            self.noise.by_tokens()
        try:
            yield
        finally:
            self._marked = False

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._model is not None
        if self._ddp is None:
            self._ddp = ddp_around(self._model)
        self.forward(self._model, args, kwargs)

    def split(self, batch: Any) -> Iterator[tuple[Any, float]]:
        """A step's batch in parts, for `noise_scale="split"` in a plain loop: mostly one, on measured steps two halves.

            for part, share in monitor.split(batch):
                (share * loss_of(model(part))).backward()

        Args:
            batch: sequences along the first dimension of each tensor; its loss is a mean over their tokens.

        Yields:
            The part, and its share of the step's loss.
        """
        parts = self.noise.halves(batch, self.observer.count)
        if parts is None:
            yield batch, 1.0
        else:
            for half in parts:
                yield half.batch, half.share

    @hook("taking the model's calls", "FLOPs fall back to 6·N·D")
    def calls(self, calls: list[Call], problem: str | None = None) -> None:
        """What the model was called with for the last batch, or why that does not tell the FLOPs."""
        self.observer.calls(calls, problem)

    @hook("adding the loss", "the training loss is not recorded")
    def loss(self, loss: Loss, scale: float = 1.0, owned: bool = False) -> None:
        """One loss to average over the interval, a number or a 0-dim tensor, not read before the next log step.

        Args:
            loss: in nats per token.
            scale: factor on it.
            owned: the tensor has no gradient and nobody writes to it again.
        """
        self.observer.tally.add_loss(loss, scale, owned)

    def step(self, loss: Loss | None = None, *, tokens: int | TokenCount | None = None, advance: int = 1) -> None:
        """One optimizer step is done.

        Args:
            loss: mean training loss of the step on this rank, in nats per token. A tensor stays on its device.
            tokens: tokens processed by this rank in this step, where the model's inputs do not show them.
            advance: by how much the trainer's step counter grew, where several optimizers stepped.
        """
        if not self._started:
            self.start()
        if self.observer.watching:
            self._end_watching()
        if loss is not None:
            self.loss(loss)
        self._settle(tokens)
        if not self._opened:
            self._open_record()
        before, self.steps = self.steps, self.steps + advance
        self.noise.step(self.steps, tokens)
        last = self.setup.total_steps is not None and before < self.setup.total_steps <= self.steps
        if not self.setup.logs_itself and (last or self.steps // self.log_every > before // self.log_every):
            if ends_apart(self._ddp) and world_size() > 1:
                self.guard.once(
                    "DDP's join() is on: ranks make different numbers of steps, so nothing is summed over them on the "
                    "way. Call monitor.log() on every rank after the join, for a point of all ranks"
                )
            else:
                self.log()

    # -- log steps ---------------------------------------------------------------------------------------------

    @property
    def logged_now(self) -> bool:
        """Whether the step just done was a log step."""
        return self._logged_at == self.steps

    def log(self, train_loss: float | None = None) -> None:
        """Sum over ranks, compute the scalars, write them everywhere. Every rank calls it at the same step.

        By itself every `log_every` steps; to be called in a plain loop only after DDP's `join()`.

        Args:
            train_loss: mean over the interval, where the trainer has it; default: the mean of what `loss` was given.
        """
        if self._finished or (self.logged_now and not ends_apart(self._ddp)):
            return
        self._logged_at = self.steps
        self.sync()  # even if this rank's logging has stepped aside: the others wait in this sum
        self.noise.collect(self.steps, self._clock.training_time)  # and in this
        self._log(train_loss)
        if not self.should_stop:  # on every rank, for `on_advice` may be set on the first one alone
            asked, _ = sum_over_ranks([int(self._advising.wants_stop)], [])
            self.should_stop = asked[0] > 0

    @hook("logging", "nothing more is recorded or shown")
    def _log(self, train_loss: float | None) -> None:
        total, count = self._loss
        if train_loss is not None and math.isfinite(total):
            # a trainer does not keep, through a resume, the losses since its last log step
            count = self.steps - max(self._logged.steps, self._attempt_began_at)
            total = train_loss * count
        self._loss = (0.0, 0)
        self.recorder.add(total, count)
        loss = total / count if count else None
        if loss is not None and not math.isfinite(loss):
            self.guard.once(
                "the training loss is %s in the interval that ends at step %d; recorded as null. Training goes on",
                loss,
                self.steps,
            )
        if self._model is None:
            self._see_device()
            self._read_learning_rate()
        self.observer.look_for_frozen_layers()
        now = Interval(self.steps, self.totals, self._clock.training_time)
        self.scalars = interval_scalars(
            loss=loss,
            before=self._logged,
            now=now,
            parameters=self.observer.costing.parameters,
            goodput=now.training_time / max(self._clock.wall_time, 1e-9),
            devices=world_size(),
            peak=None if self._device is None else self._device.peak,
        )
        noise = self.noise.scalars(now.steps, now.totals.data_tokens, loss)
        self.scalars.update(noise or {})
        steps, self._logged = now.steps - self._logged.steps, now
        if self._writes:
            with self._clock.phase("measuring"):
                self._forecast(loss, steps)
                self._advise(loss)
                self._output.show(self.steps, self.scalars, self.totals.flops_known, loss)
                self.recorder.counting(describe_counting(self.observer))
                self.recorder.interval(self._point())

    def _situation(self, loss: float | None = None) -> Situation:
        return situation(
            step=self.steps,
            totals=self.totals,
            parameters=self.observer.costing.parameters,
            scalars=self.scalars,
            training_time=self._clock.training_time,
            loss=loss,
            noise=self.noise,
            whole=not self._uncounted,
        )

    def _advise(self, loss: float | None) -> None:
        speed = self.scalars.get("isoflop/tokens_per_second_per_device")
        self._advising.log(self._situation(loss), speed, self._clock.wall_time)
        self.scalars.update(self._advising.scalars)

    def _put_advice(self, advice: Advice) -> None:
        self.recorder.advice(advice.as_dict())
        self._output.text(self.steps, "isoflop/advice", advice.markdown())

    def _forecast(self, loss: float | None, steps: int) -> None:
        if loss is not None and self._forecasting.on == "train":
            self._feed_forecast(loss, steps)
        self._forecasting.refit(self.steps, self._clock.wall_time)
        self.scalars.update(self._forecasting.scalars)

    def _feed_forecast(self, loss: float, steps: int) -> None:
        self._forecasting.add(self.steps, self.totals.data_tokens, self._lr, loss, steps, self._about())

    def _about(self) -> About:
        parameters = self.observer.costing.parameters
        sizes = {} if parameters is None else parameters.by_convention()
        return About(self._model, sizes, self.scalars.get("isoflop/batch_tokens"))

    @hook("evaluation losses", "losses of evaluation sets are not recorded")
    def evaluate(self, name: str, loss: Loss) -> None:
        """Record the loss of an evaluation set under `eval/<name>`, at the steps done so far.

        One rank may call it alone; under a trainer (`Setup.together`) every rank calls `sync()` before.
        """
        if self._finished:
            return
        value = as_float(loss)
        if not math.isfinite(value):
            self.guard.once("the loss of evaluation set %s is %s; it is recorded as null", name, value)
        point = Point(step=self.steps, time=time.time())
        if world_size() == 1:
            self.sync()
        if self.setup.together or world_size() == 1:
            point = self._point()
        # else another rank may not be here, and what is counted since the last log step can't be summed
        self.recorder.evaluation(name, value, point)
        if self._writes and self._forecasting.on == f"eval/{name}":
            if self._model is None:
                self._read_learning_rate()
            self._feed_forecast(value, 1)
        if self._writes:
            self._advising.evaluation(name, self.steps, value)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around an evaluation in a plain loop: its time is no training time."""
        self.enter("evaluation")
        try:
            yield
        finally:
            self.leave("evaluation")

    @hook("the clock", "goodput is wrong")
    def enter(self, phase: Phase) -> None:
        """Evaluation or a checkpoint begins."""
        self._clock.enter(phase)

    @hook("the clock", "goodput is wrong")
    def leave(self, phase: Phase) -> None:
        """… and ends."""
        self._clock.leave(phase)

    def sync(self) -> None:
        """Sum what has been counted over all ranks; before a checkpoint, on every rank."""
        self._sum()
        if not self.guard.open(SUMMING) and not self.totals.without_flops:
            self.totals = added(self.totals, Totals(without_tokens=1, without_labels=1, without_flops=1))

    @hook(SUMMING, _UNKNOWN)
    def _sum(self) -> None:
        if self._finished:
            return
        if not (self.guard.open(COUNTING) and self.guard.open(SETTLING)):
            self.observer.tally.add(None, None)
        part, loss_sum, losses = self.observer.drain(self.setup.data_parallel)
        self.totals = added(self.totals, part)
        self._loss = (self._loss[0] + loss_sum, self._loss[1] + losses)

    # -- its end, and a checkpoint in between ------------------------------------------------------------------

    @hook("ending the run", "the record has no end line")
    def finish(self, completed: bool = True) -> None:
        """Training has ended: the last point and the totals are written. More calls do nothing."""
        if self._finished:
            return
        self._end_watching()
        self._unwatch()
        self.noise.close()
        if world_size() == 1 or (completed and self.setup.together):
            self.sync()
            if not self.setup.logs_itself:
                self.recorder.add(*self._loss)
        total = self.setup.total_steps
        if completed and not self._opened and total is not None and self.steps >= total:
            self._open_record()  # resumed at its planned end: killed before its record was told so
        self._finished = True
        self.recorder.end(self._point(), "completed" if completed else "interrupted")
        self._output.close()
        if completed and self._writes:
            self._forecasting.tell_what_came()
        if self._writes and self.steps:
            for line in self._advising.close(self._situation(), self.totals, self.scalars.get("isoflop/goodput")):
                self.setup.tell(line)

    def close(self) -> None:
        """`finish()` for a plain loop."""
        self.finish()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish(completed=kind is None)

    @hook("saving the state", "a run resumed from this checkpoint counts from 0")
    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run goes on from, in plain Python values. On several ranks `sync()` first."""
        if world_size() == 1:
            self.sync()
        elif self.observer.holds_counts:
            self.guard.once(
                "the state was saved between log steps: what other ranks counted since the last one is not in it. Call "
                "monitor.sync() on every rank before saving"
            )
        return {
            "version": 1,
            "steps": self.steps,
            "uncounted": self._uncounted,
            "totals": self.totals.state_dict(),
            "loss": list(self._loss),
            "logged": self._logged.state_dict(),
            "clock": self._clock.state_dict(),
            "axes": self._output.axes.state_dict(),
            "recorder": self.recorder.state_dict(),
            "forecast": self._forecasting.state_dict(),
            "advice": self._advising.state_dict(),
            "noise": self.noise.state_dict(),
        }

    @hook("restoring from the checkpoint", "tokens and FLOPs begin at 0")
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; before the first step."""
        self.steps = self._attempt_began_at = int(state["steps"])
        self._uncounted = bool(state.get("uncounted", False))
        self.totals = Totals(**state["totals"])
        self._loss = (float(state["loss"][0]), int(state["loss"][1]))
        self._logged = Interval.from_state(state["logged"])
        self._logged_at = self._logged.steps
        self._clock.load_state_dict(state["clock"])
        self._output.axes.load_state_dict(state["axes"])
        self.recorder.load_state_dict(state["recorder"])
        self._forecasting.load_state_dict(state.get("forecast"))  # not in states of earlier versions
        self._advising.load_state_dict(state.get("advice"))  # likewise
        if "noise" in state:  # not in a checkpoint of an earlier version
            self.noise.load_state_dict(state["noise"])

    @hook("following the trainer's step", "points carry other steps than the trainer's")
    def expect(self, step: int) -> None:
        """The trainer goes on from this step; say so if the checkpoint held our counts for another one."""
        if self.steps != step:
            self.guard.once(
                "training goes on from step %d, but the checkpoint holds isoflop's counts up to step %d: tokens and "
                "FLOPs in between are not counted",
                step,
                self.steps,
            )
            self.steps = self._attempt_began_at = step
            self._uncounted = True

    # -- inside ------------------------------------------------------------------------------------------------

    def _see_layout(self, model: nn.Module | None) -> None:
        """Ranks with data of their own: as the user says, as the trainer knows, or as the parameters show."""
        given = self.options.data_parallel
        if given is not None:
            if given < world_size() and world_size() % given:
                raise ValueError(
                    f"data_parallel= expects a number that divides the job's {world_size()} ranks, got {given}"
                )
            self.setup.data_parallel = min(given, world_size())
        elif self.setup.data_parallel is None:
            with self.guard.part(LAYOUT):
                self.setup.data_parallel = data_parallel_ranks(model)

    def _before_batch(self) -> None:
        if not self._started:
            self.start()
        if self._device is None:
            self._see_device()
        self._read_learning_rate()

    def _read_learning_rate(self) -> None:
        groups = getattr(self.setup.optimizer, "param_groups", None)
        if groups:
            self._lr = groups[0].get("lr")

    @hook("counting a real step", "FLOPs fall back to a formula")
    def _end_watching(self) -> None:
        # here too, not in the observer's own hooks alone: whatever steps aside, this has to end
        self.observer.end_watching()

    @hook(SETTLING, _UNKNOWN)
    def _settle(self, tokens: int | TokenCount | None) -> None:
        if not self.guard.open(COUNTING):
            return
        self.observer.settle(tokens)

    def _open_record(self) -> None:
        self._opened = True
        if self.recorder.wants_header:
            self.enter("measuring")
            self.recorder.open(self._header, self._attempt_began_at)
            self.leave("measuring")

    def _keep_plan(self, plan: LrPlan) -> None:
        self.recorder.planned({**run_plan(self.setup), "learning_rates": plan.as_dict()})

    def _header(self) -> dict[str, Any]:
        return run_header(self.setup, self.observer, self._device, self.options, self._model, self.recorder.folder)

    @hook("seeing the device", "MFU is unknown")
    def _see_device(self) -> None:
        self._device = model_device(self._model, self.setup.dtype, self.options.peak_flops)
        if self._device.peak is None and self._writes:
            self.guard.once(
                "no datasheet peak is known for %s in %s, so there is no MFU; pass peak_flops= (dense FLOP/s of one "
                "device) to get it",
                self._device.name,
                self._device.dtype,
            )

    def _point(self) -> Point:
        return run_point(self.steps, self.totals, self.observer.costing.parameters, self.scalars, self._lr, self._clock)
