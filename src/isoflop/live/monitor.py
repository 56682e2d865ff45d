"""`Monitor` observes one run, whatever the trainer, and passes each log step through its parts.

`step(loss)` adds a loss to the observer's tally. Every `log_every` steps `log` sums the tally over ranks and passes a
`LogStep` of it through `parts`: scalars, noise scale, forecast, advice, record, and sinks, which write TensorBoard.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod, finalize

from torch import nn

from isoflop.flops.device import NO_PEAK, Device, model_device
from isoflop.flops.step import StepObserver
from isoflop.flops.tokens import TokenCount
from isoflop.flops.totals import Clock, Loss, Phase, Totals, as_float, ddp_around, ends_apart, rank, world_size
from isoflop.guard import UNKNOWN, attempt, declare, hook
from isoflop.live.advice import AdvicePart
from isoflop.live.forecast import ForecastPart
from isoflop.live.log_step import Interval, LogStep, Part, Scalars
from isoflop.live.noise import Noise
from isoflop.live.options import Options
from isoflop.live.plain_loop import PlainLoop
from isoflop.live.ranks import APART, UNCOUNTED, Ranks, Settings
from isoflop.live.recorder import NOT_COUNTED, Recorder, describe_counting, run_header
from isoflop.live.run_info import RunInfo, describe_task
from isoflop.live.sinks import Display, Sinks, TensorBoardSink
from isoflop.lookup import need
from isoflop.record.paths import location_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from isoflop.live.options import OptionsDict

SEEING = declare("seeing the model", UNKNOWN)
COUNTING = declare("counting the batch", UNKNOWN)
LOSSES = declare("adding the loss", "the training loss is not recorded")
SETTLING = declare("settling the step", UNKNOWN)
READING = declare("reading the counts", UNKNOWN)
TASK = declare("recognising the task", "the run counts as pretraining from scratch")


class Monitor(PlainLoop, Display):
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
        run_name: the run's, and of its folder for TensorBoard, with a number where it is taken; default: the folder's.
        run: what a trainer's adapter knows; takes the place of the four before.
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
        run: RunInfo | None = None,
        **options: Unpack[OptionsDict],
    ) -> None:
        self.options = Options.of(**options)
        whole = total_steps is None or (isinstance(total_steps, int) and total_steps >= 1)
        need("total_steps=", whole, "a whole number of at least 1, or None", total_steps)
        seen = model is None or hasattr(model, "parameters")
        need("model", seen, "a torch.nn.Module (of several: torch.nn.ModuleList)", model)
        need("optimizer=", not isinstance(optimizer, str), "a torch.optim.Optimizer", optimizer)
        need("scheduler=", not isinstance(scheduler, str), "a torch scheduler (by name: lr_plan=)", scheduler)
        self.steps = 0  # optimizer steps done, as the trainer counts them
        self.updates = 0  # of the weights: of several optimizers that step together, one
        self.totals = Totals()  # sums over all ranks, as of the last log step
        self.should_stop = False
        """`on_advice` asks for the end of the run; the same on all ranks. A trainer is told; a plain loop looks."""
        plain = {"optimizer": optimizer, "scheduler": scheduler, "total_steps": total_steps, "run_name": run_name}
        self.run = run or RunInfo(**plain, own=None)
        self.guard = self.run.guard
        self.log_every = self.options.log_every or self.run.log_every
        self.run.see_layout(model, self.options.data_parallel)
        self._model = model
        self._ddp: Any = None  # the wrapper around the model, whether or not the user gave us that
        self._clock = Clock()
        self._device: Device | None = None
        self._lr: Any = None
        self._held: dict[str, Any] = {"param_groups": [{"lr": None}]}  # the optimizer's attributes; none: no rate
        self._started = self._finished = self._opened = self._uncounted = False  # steps that nothing was counted of
        self._loss = (0.0, 0)  # sum and number of losses since the last log step, over all ranks
        self._logged = Interval()
        self._attempt_began_at = self.logged_at = 0  # the last log step, whether or not logging has worked
        self._latest = LogStep(step=0)  # what came of it
        self._counting: tuple[Any, dict[str, Any]] = None, {}  # ways by which FLOPs are counted, as the record has them
        settings = self.log_every, self.run.total_steps, self.options.noise_scale, self.options.on_advice != "warn"
        self._ranks = Ranks(self.guard, Settings(*settings, self.run.lockstep))
        self._apart = self._asks_to_stop = False  # ranks make different numbers of steps; this rank's advice
        self._handled = id(sys.exc_info()[1])  # of an error in whose handling all of the training runs
        given = {name: getattr(self.options, name) for name in ("tokens_fn", "flops_per_token", "num_params")}
        whole = self.run.data_parallel in (None, world_size())
        observer: Any = partial(StepObserver, say=self.guard.once, whole=whole, clock=self._clock, **given)
        self._unwatch = lambda: None
        try:
            self.observer = observer(model)
            if run is None and model is not None:
                self._unwatch = self.observer.in_plain_loop(model, self.forward)
        except Exception as error:  # of a model whose own attributes raise
            self.guard.failed(SEEING, error)
            self._model = model = None
            self.observer = observer(None)
        finalize(self, self._unwatch)
        self.guard.on_failure = WeakMethod(self._on_failure)
        finalize(self, self.observer.end_observing)
        self._make_parts(plain=run is None)

    def _make_parts(self, plain: bool) -> None:
        """What a log step is passed through; forecast, advice and sinks on the rank that writes."""
        options, run, model, writes = self.options, self.run, self._model, rank() == 0
        folder = location_of(options.record_dir or run.record_dir)
        if plain and writes:
            run.sinks.append(TensorBoardSink(run.local(folder), run))
            self._end_at_exit()
        self.noise = Noise(model, run, options.noise_scale, speaks=writes)
        self.recorder = Recorder(folder, named=options.record_dir is not None, run=run, writes=writes)
        self._forecast = ForecastPart(options, run, model)
        self._advice = AdvicePart(options, run, model)
        with run.guard.part(TASK):
            run.task = describe_task(run, model, options.task)
        self.parts: list[Part] = [Scalars(run.guard), self.noise, self.recorder]
        if writes:
            self.parts = [Scalars(run.guard), self.noise, self._forecast, self._advice, self.recorder, Sinks(run)]

    # -- what a step brings ------------------------------------------------------------------------------------

    @hook("starting", "the run is not observed")
    def start(self) -> None:
        """Training begins (by itself with the first batch)."""
        if not self._started:
            self._started = True
            self._clock.start()

    def batch(self, batch: Any) -> None:
        """A micro-batch goes into a trainer's step, at whose end the observer's `end_batch` is called."""
        try:
            if self._quiet:
                self._lr = self._held["param_groups"][0]["lr"]
            elif COUNTING in self.guard.aside:
                return
            else:
                self._begin()
                if self.noise.armed:
                    self.noise.begin(self.observer.count(batch))
            self.observer.batch(batch)  # last, for it begins to observe what the step computes
        except Exception as error:
            self.guard.failed(COUNTING, error)

    def forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A micro-batch that is the model's own forward call."""
        try:
            if self._quiet:
                self._lr = self._held["param_groups"][0]["lr"]
                self.observer.forward(module, args, kwargs)
            elif COUNTING not in self.guard.aside:
                self._begin()
                self.observer.forward(module, args, kwargs)
                self.noise.marked -= self._marked
                if self.noise.armed and not self._marked:
                    # Hugging Face's Trainer gives the step's number of labels where the loss is a mean over them
                    count = self.observer.count_call(module, args, kwargs)
                    self.noise.begin(count, "num_items_in_batch" in kwargs or None)
        except Exception as error:
            self.guard.failed(COUNTING, error)

    def _begin(self) -> None:
        """Before a micro-batch: the device, once, and the learning rate that its step will use (not the next one's)."""
        if self._device is None:
            self.start()
            self._see_device()
            self._ddp = ddp_around(self._model)
        optimizer = self.run.optimizer
        groups = attempt(getattr, optimizer, "param_groups", None)  # it may be of the user's own making
        if known := isinstance(group := next(iter(groups or ()), None), dict) and "lr" in group:
            inner, self._lr = attempt(getattr, optimizer, "optimizer", optimizer), group["lr"]  # of a wrapper
            self._held = attempt(vars, inner) or {}
            known = self._held.get("param_groups") is groups
        self._quiet = (known or optimizer is None) and not (self._device is None or self.noise.armed or self._marked)

    def _on_failure(self) -> None:
        """Something steps aside: this step is no longer observed."""
        self._quiet, self._until = False, 0
        self.observer.end_observing()

    def loss(self, loss: Loss, scale: float = 1.0, owned: bool = False) -> None:
        """One loss to average over the interval, a number or a 0-dim tensor, not read before the next log step.

        Args:
            loss: in nats per token.
            scale: factor on it.
            owned: the tensor has no gradient and nobody writes to it again.
        """
        if LOSSES not in self.guard.aside:
            try:
                self.observer.tally.add_loss(loss, scale, owned)
            except Exception as error:
                self.guard.failed(LOSSES, error)

    def step(
        self, loss: Loss | None = None, *, tokens: int | TokenCount | None = None, advance: int = 1, updates: int = 1
    ) -> None:
        """One optimizer step is done.

        Args:
            loss: mean training loss of the step on this rank, in nats per token. A tensor stays on its device.
            tokens: tokens processed by this rank in this step, where the model's inputs do not show them.
            advance: by how much the trainer's step counter grew, where several optimizers stepped.
            updates: how often the weights were updated: once, where each of them stepped once.
        """
        if loss is not None:
            self.loss(loss)
        alike, aside = False, self.guard.aside
        if not aside or (COUNTING not in aside and SETTLING not in aside):
            try:
                alike = self.observer.settle(tokens)
            except Exception as error:  # the boundary: whatever it is, it must not reach training
                self.guard.failed(SETTLING, error)
        if alike and self.steps + advance < self._until:
            self.steps += advance
            self.updates += updates
        else:
            self._look_at_step(tokens, advance, updates)

    def _look_at_step(self, tokens: int | TokenCount | None, advance: int, updates: int) -> None:
        """A step that is logged, measured or observed, or unlike the one before; and how far the next such one is."""
        run, noise, observer = self.run, self.noise, self.observer
        if not self._started:
            self.start()
        if observer.observation is not None:  # what should have ended it has stepped aside
            observer.end_observing()
        if not self._opened:
            self._agree()
            self._open_record()
        before, self.steps = self.steps, self.steps + advance
        self.updates += updates
        batches = observer.batches + noise.marked
        if noise.active and (self.updates >= noise.next_step or batches != noise.forwards):
            noise.step(self.updates, tokens, batches)
        noise.marked = 0
        total = math.inf if run.total_steps is None or before >= run.total_steps else run.total_steps
        last = total <= self.steps
        if not run.logs_itself and (last or self.steps // self.log_every > before // self.log_every):
            if self._ranks.several and ends_apart(self._ddp):
                self._apart = True
                self.guard.once(APART)
            else:
                self.log()
        if observer.due and not (self._finished or last) and SETTLING not in self.guard.aside:
            with self.guard.part(SETTLING):
                observer.observe_next()  # last, for it counts what runs from here on
        self._quiet = self._quiet and not noise.armed
        self._until = total if run.logs_itself else min(total, (self.steps // self.log_every + 1) * self.log_every)
        if noise.active:
            self._until = min(self._until, self.steps + noise.next_step - self.updates)

    # -- log steps ---------------------------------------------------------------------------------------------

    def log(self, train_loss: float | None = None) -> None:
        """Sum over ranks and pass the log step through the parts. Every rank calls it at the same step.

        By itself every `log_every` steps; to be called in a plain loop only after DDP's `join()`.

        Args:
            train_loss: mean over the interval, where the trainer has it; default: the mean of what `loss` was given.
        """
        if self._finished or (self.logged_at == self.steps and not ends_apart(self._ddp)):
            return
        self.logged_at = self.steps
        self._quiet, self._until = False, 0  # each interval, the optimizer is asked anew, and the noise scale's cadence
        times, noise, ranks = self._clock.times(), self.noise, self._ranks
        # a sum, in which a rank whose counting or logging has stepped aside takes part: the others wait there
        if (row := noise.row()) is None or (ranks.several and not row):
            row = noise.nothing
        if summed := self._sum(row):
            noise.fold(summed, self.updates)
        self._log(train_loss, times)
        asks = self._asks_to_stop  # on every rank, for `on_advice` may be set on the first one alone
        self.should_stop = self.should_stop or (ranks.any(asks, self.steps) if ranks.several else asks)

    @hook("logging", "nothing more is recorded or shown")
    def _log(self, train_loss: float | None, times: tuple[float, float]) -> None:
        if self._model is None:
            self._begin()
        loss_sum, losses = self._loss
        if train_loss is not None and math.isfinite(loss_sum):
            if not math.isclose(loss_sum, train_loss * losses, rel_tol=0.01):
                self.observer.tally.first = None  # of another loss than the trainer's
            # a trainer does not keep, through a resume, the losses since its last log step
            losses = self.steps - max(self._logged.steps, self._attempt_began_at)
            loss_sum = train_loss * losses
        if self._compares:
            attempt(self._compare_steps)
        step, self._loss = self._now(loss_sum, losses, times=times), (0.0, 0)
        if not self._ranks.held:  # else the interval goes on until the ranks' sum
            self._logged = Interval(self.steps, self.totals, step.training_time, self.updates)
        self._latest = step
        self._each_part("log", step)
        self._clock.measured()
        self._asks_to_stop = self._asks_to_stop or step.stop

    def _now(
        self, loss_sum: float = 0.0, losses: int = 0, summed: bool = True, times: tuple[float, float] | None = None
    ) -> LogStep:
        """The run as it stands, without what the parts add."""
        wall_time, training_time = times or self._clock.times()
        costing = self.observer.costing
        ways = {**costing.methods}, len(costing.uncounted), costing.flops_per_token
        if ways != self._counting[0]:
            self._counting = ways, describe_counting(self.observer)
        return LogStep(
            step=self.steps,
            updates=self.updates,
            loss_sum=loss_sum,
            losses=losses,
            loss=loss_sum / losses if losses else None,
            first_loss=self.observer.tally.first,
            made_by=self.observer.tally.made_by,
            before=self._logged,
            totals=self._ranks.known(self.totals) if self._ranks.held else self.totals,
            summed=summed and not self._ranks.held,
            whole=not self._uncounted,
            parameters=costing.parameters,
            lr=None if self._lr is None else float(self._lr),
            wall_time=wall_time,
            training_time=training_time,
            busy_time=max(self._clock.cpu(), training_time),
            devices=world_size() if self._ranks.several else 1,
            peak=None if self._device is None else self._device.peak,
            counting=self._counting[1],
        )

    @hook("evaluation losses", "losses of evaluation sets are not recorded")
    def evaluate(self, name: str, loss: Loss) -> None:
        """Record the loss of an evaluation set under `eval/<name>`, at the steps done so far.

        One rank may call it alone; under a trainer (`RunInfo.together`) every rank calls `sync()` before.
        """
        if self._finished:
            return
        if not math.isfinite(value := as_float(loss)):
            self.guard.once("the loss of evaluation set %s is %s; it is recorded as null", name, value)
        if not self._ranks.several:
            self.sync()
        if self._model is None:
            self._begin()
        # on several ranks of a plain loop the others may not be here: what is counted since the last log step is theirs
        step = self._between(summed=self.run.together or not self._ranks.several)
        self._each_part("evaluate", name, value, step)

    def _each_part(self, method: str, *args: Any) -> None:
        for part in self.parts:
            if part.boundary not in self.guard.aside:
                try:
                    getattr(part, method)(*args)
                except Exception as error:  # the boundary: a part that fails takes no other along
                    self.guard.failed(part.boundary, error)

    def _between(self, loss_sum: float = 0.0, losses: int = 0, summed: bool = True) -> LogStep:
        """The run as it stands, with what the parts made of the last log step."""
        step, last = self._now(loss_sum, losses, summed), self._latest
        step.scalars, step.batch, step.forecast = last.scalars, last.batch, last.forecast
        step.forecaster, step.ladder, step.plan = last.forecaster, last.ladder, last.plan
        return step

    @hook("the clock", "goodput is wrong")
    def enter(self, phase: Phase) -> None:
        """Evaluation or a checkpoint begins."""
        self.observer.pause(True)
        self._clock.enter(phase)

    @hook("the clock", "goodput is wrong")
    def leave(self, phase: Phase) -> None:
        """… and ends."""
        self._clock.leave(phase)
        self.observer.pause(False)

    def sync(self) -> None:
        """Sum what has been counted over all ranks; before a checkpoint, on every rank."""
        if not self._finished:
            self._sum(self.noise.nothing)

    def _sum(self, noise: list[float]) -> list[float]:
        """Add what every rank has counted to the totals; returns the sums of `noise`, none if that failed."""
        part, loss_sum, losses = UNCOUNTED, 0.0, 0.0
        if READING not in self.guard.aside:
            try:
                part, loss_sum, losses = self.observer.drain()
            except Exception as error:  # the boundary: this rank takes part in the sum all the same
                self.guard.failed(READING, error)
        if self.guard.aside and not self.guard.counts:
            part = part._replace(without_tokens=1, without_labels=1, without_flops=1)
        if self._ranks.several:
            self._agree()
            part, (loss_sum, losses, *noise) = self._ranks.total(
                part, [loss_sum, losses], noise, 0 if self._apart else self.steps, self.run.data_parallel
            )
        self.totals = self.totals.plus(part)
        self._loss = (self._loss[0] + loss_sum, self._loss[1] + round(losses))
        return noise

    def _agree(self) -> None:
        """Go by the settings of the first rank, once all are here."""
        settings = self._ranks.agree(self.steps)
        if rank() != 0 and len(self.parts) > 3:  # made before the process group, as if this rank were the first
            self._make_parts(plain=False)
        if settings is not None:
            self._until = 0
            self.log_every, self.run.total_steps = settings.log_every, settings.total_steps
            if settings.noise_scale == "off" and self.noise.option != "off":
                self.noise.detach()

    # -- its end, and a checkpoint in between ------------------------------------------------------------------

    @hook("ending the run", "the record has no end line")
    def finish(self, completed: bool = True) -> None:
        """Training has ended (by advice: interrupted): write the last point and the totals. More calls do nothing."""
        if self._finished:
            return
        self.observer.end_observing()
        if sums := not self._ranks.several or (completed and self.run.together):
            self.sync()  # first, for the other ranks wait there
        loss = self._loss if sums and not self.run.logs_itself else (0.0, 0)
        self._unwatch()
        self.noise.detach()
        total = self.run.total_steps
        if completed and not self._opened and total is not None and self.steps >= total:
            self._open_record()  # resumed at its planned end: killed before its record was told so
        self._finished = True
        completed = completed and not (self.should_stop and (total is None or self.steps < total))
        step = self._between(*loss)
        self._each_part("close", step, completed)

    @hook("saving the state", "a run resumed from this checkpoint counts from 0")
    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run goes on from, in plain Python values. On several ranks `sync()` first."""
        if not self._ranks.several:
            self.sync()
        elif self.observer.holds_counts:
            self.guard.once(
                "the state was saved between log steps: what other ranks counted since the last one is not in it. Call "
                "monitor.sync() on every rank before saving"
            )
        state: dict[str, Any] = {
            "version": 1,
            "steps": self.steps,
            "updates": self.updates,
            "uncounted": self._uncounted,
            "totals": self._ranks.known(self.totals)._asdict(),
            "loss": list(self._loss),
            "logged": self._logged.state_dict(),
            "clock": self._clock.state_dict(),
        }
        for part in self.parts:
            with self.guard.part(part.boundary):  # a part's fault must not lose the run's counts
                state[part.name] = part.state_dict()
        return state

    @hook("restoring from the checkpoint", "tokens and FLOPs begin at 0")
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; before the first step."""
        self.steps = self._attempt_began_at = int(state["steps"])
        self.updates = int(state.get("updates", self.steps))  # not in states of earlier versions
        self._uncounted = bool(state.get("uncounted", False))
        self.totals = Totals(**state["totals"])
        self._loss = (float(state["loss"][0]), int(state["loss"][1]))
        self._logged = Interval.from_state(state["logged"])
        self.logged_at = self._logged.steps
        self._clock.load_state_dict(state["clock"])
        for part in self.parts:
            stored = state.get(part.name)  # None: of an earlier version, or of another rank
            if stored is not None and part.boundary not in self.guard.aside:
                with self.guard.part(part.boundary):
                    part.load_state_dict(stored)

    @hook("following the trainer's step", "points carry other steps than the trainer's")
    def expect(self, step: int) -> None:
        """The trainer goes on from this step; say so if the checkpoint held our counts for another one."""
        if self.steps != step:
            self.guard.once(NOT_COUNTED, step, self.steps)
            self.steps = self._attempt_began_at = step
            self._uncounted = True

    # -- inside ------------------------------------------------------------------------------------------------

    def _open_record(self) -> None:
        self._opened = True
        if self.recorder.wants_header:
            self.enter("measuring")
            known = self.run, self.observer, self._device, self.options, self._model
            self.recorder.open(partial(run_header, *known), self._attempt_began_at)
            self.leave("measuring")

    @hook("seeing the device", "MFU is unknown")
    def _see_device(self) -> None:
        device = self._device = model_device(self._model, self.run.dtype, self.options.peak_flops)
        if device.peak is None and device.type != "cpu" and rank() == 0:  # nobody asks for a CPU's MFU
            self.guard.once(NO_PEAK, device.name, device.dtype)
