"""Tokens and FLOPs of a training run: counts the batches that go in, and observes the steps that they lead to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from isoflop.flops.batch_tokens import BatchTokens
from isoflop.flops.calls import (
    Call,
    OutermostCalls,
    Signature,
    described,
    is_opaque,
    signature,
)
from isoflop.flops.cost import MAX_KNOWN, first_matrix, joined
from isoflop.flops.costing import NOTICED_LATE, Costing
from isoflop.flops.counter import FlopCount
from isoflop.flops.observe import Observation
from isoflop.flops.parameters import Gradients, UseTracer, unwrap
from isoflop.flops.plain_steps import PlainSteps
from isoflop.flops.tokens import (
    Copied,
    Places,
    Sequences,
    TokenCount,
    TokensFn,
    copy_at,
    copy_sequences,
    count_sequences,
    join_sequences,
    places_of,
)
from isoflop.flops.totals import Clock, Tally, Totals

MAX_WAITING, MAX_COPIED = 64, 1 << 13
"""Batches whose masks and labels are kept until they are counted, at most, and tokens of one: some MB in all. Larger
ones are counted at once, which a step of that size does not notice."""
MAX_PENDING = 10_000  # micro-batches of one optimizer step; more: the loop forgets step(), and memory must not grow

OF_LIGHTNING = "the LightningModule is compiled as a whole; compile its model instead"
SELDOM = 89  # steps between two checks of what is known, at most: layers may be grown or skipped on the way
PATIENCE = 8
"""Steps that are observed in vain for what came once before."""


@dataclass(slots=True)
class Counted:
    """A (micro-)batch: its signature and tokens, or what these are to be counted from; `known` where FLOPs are."""

    key: Signature
    tokens: TokenCount | None
    sequences: list[Sequences] | Copied | None = None
    known: Known | None = None


@dataclass(slots=True)
class Known:
    """All batches of one signature, whose FLOPs are known.

    Attributes:
        places: where a call has its mask and labels; (): not in arguments of their own; None: not looked yet.
        waiting: masks and labels of those whose tokens are still to be counted: some µs each, all at once next to
            nothing.
    """

    flops: FlopCount  # of one
    tokens: TokenCount | None  # of one, where all have as many; None: they differ
    batch: Counted  # one of them, for `Counted`
    places: Places | tuple[()] | None = None
    times: int = 0  # how many came since the last log step
    waiting: list[list[Sequences] | Copied] = field(default_factory=list)


class StepObserver(PlainSteps):
    """Counts the (micro-)batches of a run into a `Tally`, and observes the steps that they lead to.

    `forward()` when the model is called, or `batch()` and `end_batch()` around a trainer's step; `settle()` after the
    optimizer's. A batch like an earlier one costs one look-up by its signature. `costing` knows the FLOPs; `say` gets a
    sentence wherever a user should know more. `whole`: a step runs whole on a rank, not split over several that share
    its batch.
    """

    def __init__(
        self,
        model: nn.Module | None,
        *,
        say: Callable[[str], None],
        tokens_fn: TokensFn | None = None,
        flops_per_token: float | None = None,
        num_params: int | None = None,
        whole: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self.model = None if model is None else unwrap(model)
        self.tally = Tally()
        self.costing = Costing(self.model, say, flops_per_token, num_params)
        if not whole:
            self.costing.blocked = "ranks share a batch, of which each runs a part"
        self.observation: Observation | None = None
        """Under way: `settle` or `end_batch` ends it."""
        self.due = False
        """The next step is to be observed from its beginning on, by `observe_next`."""
        self._given = model
        self._clock = clock or Clock()
        self._tokens = BatchTokens(self.model, say, tokens_fn)
        self._say = say
        self._pending: list[Counted] = []
        self._alike: dict[Signature, Known] = {}
        """Batches whose FLOPs their signature determines, of most the tokens, too."""
        self._waiting = 0  # of them, whose tokens are still to be counted
        self._by_batch = False  # a trainer's steps are seen, not the model's forward calls
        self._by_parts = False
        """FLOPs are counted by groups of micro-batches or whole steps."""
        self._by_calls = False
        """FLOPs are counted by the calls of each step, for its batches do not determine them."""
        self.outermost: OutermostCalls | None = None
        """Sees the calls of a trainer's step; `end_batch` ends it."""
        self._calls: list[Call] = []  # that the step under way makes, where its FLOPs are not known
        self._problem: str | None = None
        self._looked = self._traced = False
        self.batches = 0
        """Micro-batches of the last step."""
        self._steps = 0  # whose optimizer's FLOPs are still to be added
        self._begun, self._check = 1, (1, 2)  # parts of the run that may be observed from their beginning on
        self._calm = 0  # before which of them nothing but new signatures is looked at
        self._in_vain = 0
        self._gradients = Gradients(self.model)

    # -- while a step runs -------------------------------------------------------------------------------------

    def forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A micro-batch that goes straight into the model, as its forward call shows it."""
        key = (signature(args) if args else (), signature(kwargs)) if kwargs else signature(args)
        known = self._alike.get(key)
        if known is not None and self.observation is None and len(self._pending) < MAX_PENDING:
            if known.tokens is not None:
                self._pending.append(known.batch)
                return
            if known.places and len(self._pending) < MAX_WAITING:
                self._pending.append(Counted(key, None, copy_at(known.places, kwargs), known))
                return
        self._look_at_call(key, known, module, args, kwargs)

    def _look_at_call(
        self, key: Signature, known: Known | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self.observation is not None:
            self.observation.forward(key)
        batch = self._tokens.named(module, args, kwargs)
        self._enter(key, batch)
        if known is not None and known.places is None and self._pending[-1].sequences is not None:
            known.places = places_of(self._tokens.find(batch), kwargs)
        if known is not None or not self.costing.wants([counted.key for counted in self._pending]):
            return
        self._hear(module, args, kwargs)
        if self.observation is not None:
            self.observation.reads = True
            self.observation.trace(self._tracer_of((args, kwargs)))
        else:
            self._observe(whole=False, given=(args, kwargs))
            if self.observation is not None:
                self.observation.forward(key)
        if self.costing.blocked is not None:
            self.costing.learn_calls(key, self._calls, self._problem)

    def batch(self, batch: Any) -> None:
        """A micro-batch goes into a trainer's step, which `end_batch` ends."""
        key = signature(batch)
        known = self._alike.get(key)
        if known is not None and known.tokens is not None and self._begun < self._calm:  # as most are
            self._begun += 1
            self._pending.append(known.batch)
        else:
            self._look_at_batch(key, known, batch)

    def _look_at_batch(self, key: Signature, known: Known | None, batch: Any) -> None:
        costing, self._by_batch, self._calm = self.costing, True, 0
        wanted, check = False, self._begun >= self._check[1] or bool(costing.waiting or costing.varying)
        if known is None:
            self._by_calls = self._by_calls or (is_opaque(key) and first_matrix(key) is None)
            wanted = costing.wants([key])
        new = self.model is not None and (self._by_calls or self._tokens.is_new(key))
        self._enter(key, batch, heard=new)
        if check or (wanted and not self._by_calls):
            self._check_passed()
            self._observe(whole=True, given=batch if wanted else None)
        self._begun += 1
        heard = self.observation is not None or new or (wanted and self.costing.blocked is not None)
        if heard and self.model is not None:
            self._calls, self._problem = [], None
            self.outermost = OutermostCalls(self.model, self._heard, self._tokens.hear if new else None)

    def end_batch(self) -> None:
        """The trainer's step is over."""
        outermost, self.outermost = self.outermost, None
        if outermost is not None:
            outermost.stop()
        # without a batch what sees it has stepped aside
        if not self._pending or (outermost is None and self.observation is None):
            return
        last = self._pending[-1]
        keys = [last.key]
        if outermost is not None:
            if self._tokens.hears:
                self._pending[-1] = last = Counted(last.key, self._tokens.end(last.key))
            self._problem = self._problem or outermost.problem
            if self._by_calls:
                keys = [call.key for call in self._calls]
                self._pending[-1] = last = replace(last, key=joined(keys), known=None)
        self._end_observation(keys)
        if outermost is not None and self.costing.blocked is not None:
            self.costing.learn_calls(last.key, self._calls, self._problem)

    def _heard(self, call: Call) -> None:
        """One of the calls that a step makes: of a trainer's, or of a plain loop's that calls the model's parts."""
        if self._is_whole(call):
            return
        self._calls.append(call)
        if self.costing.blocked is not None:
            self._measure()
        elif self.observation is None and self._by_calls and len(self._calls) == 1 and self.costing.wants([call.key]):
            self._observe(whole=False)  # (later it would miss the calls before)
        if self.observation is not None and self._by_calls and len(self._calls) == 1:
            self.observation.forward(call.key)

    def _hear(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The call of a micro-batch whose FLOPs are not known."""
        call = described(unwrap(module), args, kwargs)
        self._calls, self._problem = ([], call) if isinstance(call, str) else ([call], None)
        if self.costing.blocked is not None:
            self._measure()

    def _measure(self) -> None:
        with self._clock.phase("measuring"):  # which may take seconds
            for call in self._calls:
                self.costing.measure(call)

    def _enter(self, key: Signature, batch: Any, heard: bool = False) -> None:
        """Add a batch whose tokens have to be counted; `heard`: by the calls of its step."""
        if len(self._pending) >= MAX_PENDING:
            self._say(f"{MAX_PENDING:,} forward passes came without an optimizer step: call monitor.step() after each")
            self.settle()
        known = self._alike.get(key)
        if heard and not self._tokens.given:
            self._pending.append(Counted(key, self._tokens.begin(batch, key, each=self._by_calls)))
            return
        if known is not None and known.tokens is not None:
            self._pending.append(known.batch)
            return
        found = [] if known is None or len(self._pending) >= MAX_WAITING else self._tokens.find(batch, key)
        if 0 < sum(each.processed for each in found) <= MAX_COPIED:
            self._pending.append(Counted(key, None, copy_sequences(found), known))
        else:
            self._pending.append(Counted(key, self._tokens.count(batch, key), None, known))

    def count_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TokenCount | None:
        """Tokens of a forward call, which is not added."""
        return self.count(self._tokens.named(module, args, kwargs))

    def count(self, batch: Any) -> TokenCount | None:
        """Tokens of a batch, which is not added; in a trainer's step, of one that `batch` has seen or a part of it."""
        return self._tokens.count(batch)

    # -- observing ---------------------------------------------------------------------------------------------

    def _check_passed(self) -> None:
        if self._begun >= self._check[1]:  # Fibonacci's numbers at first: in step with no period
            self._check = (self._check[1], min(sum(self._check), self._check[1] + SELDOM))

    def observe_next(self) -> None:
        """The step that is `due` begins."""
        self.due = False
        self._check_passed()
        self._observe(whole=True)

    def _observe(self, whole: bool, given: Any = None) -> None:
        """Begin to observe; `given`: what goes into the model, where that is known."""
        costing = self.costing
        if not self._looked and costing.blocked is None:
            self._looked = True
            if self._given is not None and vars(self._given).get("_compiler_ctx") is not None:
                self._block(OF_LIGHTNING)
        if not costing.observes or self.observation is not None:
            return
        # a check of what is known must not wait for the device
        observation = Observation(whole, self._tracer_of(given), reads=not whole or given is not None or costing.unsure)
        self.observation = observation  # before it begins and until it has ended: Ctrl-C in between must find it
        if observation.start():
            observation.blocked, observation.measure = self._blocked, self._beside
            return
        self._blocked()
        self.observation = None
        costing.problem = observation.problem or costing.problem

    def _beside(self, call: Call) -> tuple[FlopCount, FlopCount] | None:
        with self._clock.phase("measuring"):  # which may take seconds
            return self.costing.beside(call)

    def _tracer_of(self, given: Any) -> UseTracer | None:
        """Of the parameters' uses, in the first step whose inputs are known."""
        if self._traced or given is None or self.model is None:
            return None
        tracer = UseTracer.of(self.model, given)
        self._traced = tracer is not None
        return tracer

    def _blocked(self) -> None:
        """While a step is observed it turns out that it can't be."""
        if self.observation is not None and self.observation.for_good:
            self._block(self.observation.problem or "")

    def _block(self, reason: str) -> None:
        self.costing.blocked = reason
        self._measure()  # now: after a backward pass a process with a GPU can't be copied
        if self._calls and self._pending and not self._by_batch:
            self.costing.learn_calls(self._pending[-1].key, self._calls, self._problem)

    def _end_observation(self, keys: list[Signature] | None = None) -> None:
        """Take what was observed; `keys`: of a trainer's step, which is one part."""
        observation = self.observation
        if observation is None:
            return
        observation.stop()
        self.observation, self._calm = None, 0
        if observation.problem is not None:
            self.costing.observed += 1
            self.costing.problem = observation.problem
            if not observation.for_good:
                self.costing.waiting.update(counted.key for counted in self._pending)
            return
        self._computes = self._computes and bool(observation.ahead.model or not observation.evaluated.calls)
        if self._gradients.changed_unseen():
            self.costing.note_change(NOTICED_LATE)
        self.look_for_frozen_layers(anew=True)
        costing = self.costing
        if keys is not None and not self._by_calls and costing.differs(observation, keys):
            self._by_calls = True
            keys = self._price_by_calls()
        before, waited = (costing.one_by_one, len(costing.varying)), len(costing.waiting)
        self.tally.add_flops(costing.learn(observation, keys))
        self.tally.add_flops(None, -costing.now_known)
        self._in_vain = self._in_vain + 1 if len(costing.waiting) >= waited > 0 else 0
        if self._in_vain >= PATIENCE:
            costing.waiting.clear()
        self._by_parts = not costing.one_by_one
        if (costing.one_by_one, len(costing.varying)) != before:
            self._forget_alike()

    def _price_by_calls(self) -> list[Signature]:
        self._say(
            "batches of one shape led to forward calls of different shapes (a step that varies, or trims its batch): "
            "from here on the calls themselves are counted; FLOPs so far may be off"
        )
        self.costing.note_change("steps of one batch shape differed: by the calls of each step")
        keys = [call.key for call in self._calls]
        self._pending[-1] = replace(self._pending[-1], key=joined(keys), known=None)
        self._forget_alike()
        return keys

    def end_observing(self) -> None:
        """The run is over, or what observes it is broken: nothing more of this step is observed."""
        if self.observation is not None:
            self.observation.leave()
        self.observation = None
        outermost, self.outermost = self.outermost, None
        if outermost is not None:
            outermost.stop()

    def pause(self, paused: bool) -> None:
        """What is no part of a step begins or ends."""
        self._paused = max(0, self._paused + (1 if paused else -1))
        if self.observation is not None:
            self.observation.pause(1 if paused else -1)

    # -- after it ----------------------------------------------------------------------------------------------

    def settle(self, tokens: int | TokenCount | None = None) -> bool:
        """Count what is pending, after an optimizer step; `tokens` goes before what the batches showed.

        True if the step had as many micro-batches as the one before, and nothing is being or to be observed.
        """
        if not self._by_batch and (self.observation is not None or self.outermost is not None):
            self._end_parts(Counted)
        for each, wanted in self._gradients.ends:
            parameter = each()
            if parameter is not None and parameter.requires_grad is not wanted:
                self.look_for_frozen_layers()
                break
        pending = self._pending
        if tokens is not None or self._by_parts or not pending:
            self._settle_otherwise(tokens)
        else:
            for counted in pending:
                known = counted.known
                if known is None:
                    self._settle_new(counted)
                    continue
                known.times += 1  # added up when the tally is drained
                if counted.sequences is not None:
                    known.waiting.append(counted.sequences)
                    self._waiting += 1
                    if self._waiting >= MAX_WAITING:
                        self._add_alike()
                elif known.tokens is None:
                    self.tally.add_tokens(counted.tokens)
        before, self.batches = self.batches, len(pending)
        self.costing.seen += self.batches if self._by_batch else 1
        self._steps += 1
        pending.clear()
        if not self._by_batch:
            self._begun += 1
        if self._begun >= self._calm:
            self._look_ahead()
        return self.batches == before and self.observation is None and not self.due

    def _look_ahead(self) -> None:
        """How far the run may go on before anything but a new signature is looked at."""
        more = bool(self.costing.waiting or self.costing.varying)
        self.due = not self._by_batch and (more or self._begun >= self._check[1])
        self._calm = 0 if more or self._by_calls else min(self._check[1], self._begun + MAX_PENDING)

    def _settle_new(self, counted: Counted, count_tokens: bool = True) -> None:
        """Of a signature that was not known as it came, or counted otherwise."""
        known, self._calm = counted.known or self._alike.get(counted.key), 0
        if counted.sequences is not None:
            counted.tokens, counted.sequences = count_sequences(join_sequences([counted.sequences])), None
        if known is not None and not self._by_parts:
            self.tally.add_flops(known.flops)
        elif not self._by_parts:
            flops = self.costing.flops(counted.key, getattr(counted.tokens, "processed", None))
            self._keep_if_alike(counted.key, counted.tokens, flops)
            self.tally.add_flops(flops)
        if count_tokens:
            self.tally.add_tokens(counted.tokens)

    def _settle_otherwise(self, tokens: int | TokenCount | None) -> None:
        """A step whose tokens are given, or which is priced by parts, or of which no batch was seen."""
        pending, self._calm = self._pending, 0
        for counted in pending:
            self._settle_new(counted, count_tokens=tokens is None)
        if self._by_parts and pending:
            known = [counted.tokens.processed for counted in pending if counted.tokens is not None]
            parts = self.costing.cut([counted.key for counted in pending])
            share = sum(known) // len(parts) if len(known) == len(pending) else None
            for key in parts:
                self.tally.add_flops(self.costing.flops(key, share))
        if tokens is None and pending:
            return
        given = tokens if tokens is None or isinstance(tokens, TokenCount) else TokenCount(int(tokens))
        if given is not None and given.processed < 0:
            self._say("step(tokens=…) expects a number from 0, got one below; tokens stay unknown")
            given = None
        self.tally.add_tokens(given)
        if not pending:
            self.tally.add_flops(self.costing.flops((), getattr(given, "processed", None)))
            self._hear_parts()
        if given is None:
            self._say("no tokens were seen: the model given to the Monitor was not called; pass step(tokens=…)")

    def _keep_if_alike(self, key: Signature, count: TokenCount | None, flops: FlopCount | None) -> None:
        """Look FLOPs up from now on, and tokens if no mask and no labels make them differ from others of the shape."""
        if flops is None or self._by_calls or len(self._alike) >= MAX_KNOWN or not self.costing.is_final(key):
            return
        alike = count is not None and not self._tokens.given and isinstance(count.padding, int)
        alike = alike and count is not None and not isinstance(count.loss_tokens, torch.Tensor)
        batch = Counted(key, count)
        batch.known = self._alike[key] = Known(flops, count if alike else None, batch)

    def _forget_alike(self) -> None:
        self._add_alike()
        self._alike.clear()
        for counted in self._pending:
            counted.known = None

    def _add_alike(self) -> None:
        for known in self._alike.values():
            if known.times:
                self.tally.add_flops(known.flops, known.times)
                if known.tokens is not None:
                    self.tally.add_tokens(known.tokens, known.times)
                known.times = 0
            if known.waiting:
                count = count_sequences(join_sequences(known.waiting))
                self.tally.add_tokens(count, batches=len(known.waiting))
                known.waiting.clear()
        self._waiting = 0

    def drain(self) -> tuple[Totals, float, int]:
        """`Tally.drain`, with the batches that were alike and the optimizer's part of the steps."""
        self._add_alike()
        self.look_for_frozen_layers()
        if self.costing.optimizer.model:
            self.tally.add_flops(self.costing.optimizer, self._steps)
        self._steps = 0
        return self.tally.drain()

    @property
    def holds_counts(self) -> bool:
        """True if anything was counted since the last `drain`."""
        return self.tally.batches > 0 or any(known.times for known in self._alike.values())

    def look_for_frozen_layers(self, anew: bool = False) -> None:
        """Count anew if layers were frozen or thawed; `anew`: go through the model, not what it had the last time."""
        if self._gradients.changed(anew):
            self._forget_prices()

    def _forget_prices(self) -> None:
        self.costing.forget()
        self._forget_alike()
