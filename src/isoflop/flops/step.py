"""Tokens and FLOPs of a training step: counts the batches that go in, and the calls they lead to, into a `Tally`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from isoflop.flops.calls import Call, Signature, Uncountable, is_opaque, shapes, signature, sizes
from isoflop.flops.clock import Clock
from isoflop.flops.cost import MAX_KNOWN, Costing, first_matrix
from isoflop.flops.counter import FlopCount
from isoflop.flops.parameters import unwrap
from isoflop.flops.tokens import TokenCount, TokensFn, count_tokens, looks_integers_up, looks_like_tokens, shifts_labels
from isoflop.flops.totals import Tally, Totals

MAX_PENDING = 10_000  # micro-batches of one optimizer step; more: the loop forgets step(), and memory must not grow


@dataclass(slots=True)
class Counted:
    """A (micro-)batch: its signature, tokens and FLOPs (None: unknown yet, or for good).

    `times`: how often it came since the last log step, where all batches of its signature are alike.
    """

    key: Signature
    tokens: TokenCount | None
    flops: FlopCount | None
    times: int | None = None


class StepObserver:
    """Counts the (micro-)batches of a run into a `Tally`.

    `batch()` when a micro-batch goes in, `forward()` or `calls()` with what the model was called with (wanted when
    `batch()` returned True), `settle()` after the optimizer step. A batch like an earlier one costs one look-up by its
    signature. `costing` knows the FLOPs; `say` gets a sentence wherever a user should know more. `whole`: a step runs
    whole on a rank, not split over several that share its batch.
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
        self.costing = Costing(self.model, say, flops_per_token, num_params, whole)
        self.watching = False
        """A batch is being counted as it runs: `end_watching` is to be called when it is over."""
        self.last_tokens: TokenCount | None = None
        """Tokens of the last micro-batch that went in."""
        self._clock = clock or Clock()
        self._tokens_fn = tokens_fn
        self._say = say
        self._shifted = self.model is not None and shifts_labels(self.model)
        self._embeds = self.model is None or looks_integers_up(self.model)
        self._pending: list[Counted] = []
        self._alike: dict[Signature, Counted] = {}
        """Batches whose tokens and FLOPs their signature determines."""
        self._argument_names: list[str] = []
        self._by_calls = False
        """FLOPs are counted by the calls of each step, for its batches do not determine them."""
        self._calls_of: dict[Signature, Signature] = {}
        self._batches, self._look_again = 0, (1, 2)
        self._trainable = self._which_trainable()

    # -- while a step runs -------------------------------------------------------------------------------------

    def forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A micro-batch that goes straight into the model, as its forward hook sees it."""
        key = (signature(args), signature(kwargs)) if kwargs else signature(args)
        if self._is_like_another(key) or not self._enter(key, self._named(module, args, kwargs)):
            return
        try:
            self.costing.take(key, [Call(unwrap(module), shapes(args), shapes(kwargs))])
        except Uncountable as reason:
            self.costing.give_up(key, str(reason))

    def batch(self, batch: Any) -> bool:
        """A micro-batch goes into a training step. Returns True if `calls` is wanted: what the step calls.

        That is so for a new shape of batch; now and then for a known one, to see whether the step still calls the same;
        and always, where the batch does not determine the calls.
        """
        key = signature(batch)
        new = not self._is_like_another(key) and self._enter(key, batch)
        if self.costing.given is not None or self.model is None:
            return False
        self._batches += 1
        if self._batches >= self._look_again[1]:  # Fibonacci's numbers: seldom, and in step with no period
            self._look_again = (self._look_again[1], sum(self._look_again))
            new = True
        # texts beside a matrix of tokens are what every corpus carries along; alone they hide the step's size
        self._by_calls = self._by_calls or (is_opaque(key) and first_matrix(key) is None)
        return new or self._by_calls

    def _is_like_another(self, key: Signature) -> bool:
        """Add a batch that an earlier one was exactly like; False: there was none."""
        if self.watching:
            self.end_watching()
        alike = self._alike.get(key)
        if alike is None or len(self._pending) >= MAX_PENDING:
            return False
        self._pending.append(alike)
        self.last_tokens = alike.tokens
        return True

    def _enter(self, key: Signature, batch: Any) -> bool:
        """Add a batch whose tokens have to be counted. Returns True if its calls are wanted."""
        if len(self._pending) >= MAX_PENDING:
            self._say(f"{MAX_PENDING:,} forward passes came without an optimizer step: call monitor.step() after each")
            self.settle()
        flops = self.costing.lookup(key)
        self.last_tokens = self.count(batch)
        self._pending.append(Counted(key, self.last_tokens, flops))
        if flops is not None:
            return False
        self.watching = self.costing.watch.begin(key)
        return self.costing.wants(key)

    def _named(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's arguments by name, or as they are where no name tells more."""
        if not kwargs and len(args) <= 1:
            return args
        if not self._argument_names:
            self._argument_names = list(inspect.signature(unwrap(module).forward).parameters)
        names = self._argument_names
        if not kwargs and not any("mask" in name for name in names[: len(args)]):
            return args
        batch: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
        if "mask" in batch:
            batch.setdefault("attention_mask", batch["mask"])
        if args and self._tokens_fn is None and self._embeds and looks_like_tokens(args[0]):
            batch.setdefault("input_ids", args[0])
        return batch

    def calls(self, calls: list[Call], problem: str | None = None) -> None:
        """The calls that the last micro-batch led to, or why they can't tell its FLOPs."""
        last = self._pending[-1]
        known = last.times is not None or self.costing.lookup(last.key) is not None
        if problem is not None:
            if not known and self.costing.wants(last.key):
                self.costing.give_up(last.key, problem)
            return
        key = ("calls", tuple([(id(call.module), sizes(call.args), sizes(call.kwargs)) for call in calls]))
        if not self._by_calls:
            if self._calls_of.setdefault(last.key, key) == key:
                if not known:
                    self.costing.take(last.key, calls)
                return
            self._by_calls = True
            self.costing.methods["by the calls of each step"] = (
                f"steps differed; up to micro-batch {self._batches} by batch shape"
            )
            self._say(
                "batches of one shape led to forward calls of different shapes (a step that varies, or trims its "
                "batch): from here on the calls themselves are counted; FLOPs so far may be off"
            )
        self._pending[-1] = Counted(key, last.tokens, self.costing.lookup(key))
        if self._pending[-1].flops is None:
            self.costing.take(key, calls)

    def count(self, batch: Any) -> TokenCount | None:
        """Tokens of a batch, which is not added."""
        if self._tokens_fn is not None:
            counted = self._tokens_fn(batch)
            given = counted if isinstance(counted, TokenCount) else TokenCount(counted)
            return given._replace(processed=int(given.processed))
        count = count_tokens(batch, self._shifted, self._embeds)
        if count is None:
            self._say(
                "expected token ids in the batch (input_ids, a tensor of integers, or a tuple that begins with one), "
                f"got {_describe(batch)}; tokens, and what is computed from them, stay unknown: pass tokens_fn="
            )
        return count

    def end_watching(self) -> None:
        """If a batch was watched, it is over: correct the FLOPs that batches like it were counted as until now."""
        watched = self.costing.end()
        self.watching = self.costing.watch.live
        if watched is None:
            return
        key, flops, correction = watched
        self.tally.correct(correction)
        for counted in self._pending:
            if counted.key == key:
                counted.flops = flops

    # -- after it ----------------------------------------------------------------------------------------------

    def settle(self, tokens: int | TokenCount | None = None) -> None:
        """Count what is pending, after an optimizer step; `tokens` goes before what the batches showed."""
        if self.watching:
            self.end_watching()
        for counted in self._pending:
            if counted.times is not None and tokens is None:
                counted.times += 1  # added up when the tally is drained
                continue
            flops = counted.flops
            if flops is None:
                flops = self.costing.flops(counted.key, _processed(counted.tokens), self._clock)
            self._keep_if_alike(counted.key, counted.tokens, flops)
            self.tally.add(counted.tokens, flops, count_tokens=tokens is None)
        if tokens is not None or not self._pending:
            self._settle_given(tokens)
        self._pending.clear()
        self.last_tokens = None

    def _settle_given(self, tokens: int | TokenCount | None) -> None:
        given = tokens if tokens is None or isinstance(tokens, TokenCount) else TokenCount(int(tokens))
        if given is not None and given.processed < 0:
            self._say("step(tokens=…) expects a number from 0, got one below; tokens stay unknown")
            given = None
        if self._pending:
            self.tally.add_tokens(given)
        else:
            self.tally.add(given, self.costing.by_formula(_processed(given), "no forward call of the model was seen"))
        if given is None:
            self._say("no tokens were seen: the model given to the Monitor was not called; pass step(tokens=…)")

    def _keep_if_alike(self, key: Signature, count: TokenCount | None, flops: FlopCount | None) -> None:
        """Look the whole batch up from now on, if no mask and no labels make it differ from others of its shape."""
        if count is None or flops is None or self._tokens_fn is not None or len(self._alike) >= MAX_KNOWN:
            return
        if self._by_calls or key in self._alike or not self.costing.is_final(key):
            return
        if isinstance(count.padding, int) and not isinstance(count.loss_tokens, torch.Tensor):
            self._alike[key] = Counted(key, count, flops, times=0)

    def drain(self) -> tuple[Totals, float, int]:
        """`Tally.drain`, with the batches that were alike."""
        for counted in self._alike.values():
            if counted.times:
                self.tally.add(counted.tokens, counted.flops, times=counted.times)
                counted.times = 0
        return self.tally.drain()

    @property
    def holds_counts(self) -> bool:
        """True if anything was counted since the last `drain`."""
        return self.tally.batches > 0 or any(counted.times for counted in self._alike.values())

    def look_for_frozen_layers(self) -> None:
        """Measure anew if layers were frozen or thawed; for log steps, since it reads every parameter's flag."""
        trainable = self._which_trainable()
        if trainable != self._trainable:
            self._trainable = trainable
            self.costing.forget()
            self._alike.clear()

    def _which_trainable(self) -> int:
        return 0 if self.model is None else hash(tuple(p.requires_grad for p in self.model.parameters()))


def _processed(count: TokenCount | None) -> int | None:
    return None if count is None else count.processed


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return "a mapping of " + ", ".join(f"{key}: {_describe(value)}" for key, value in list(batch.items())[:6])
    if isinstance(batch, list | tuple):
        return f"a {type(batch).__name__} of ({', '.join(_describe(item) for item in batch[:6])})"
    shape = getattr(batch, "shape", None)
    if shape is not None:
        return f"{type(batch).__name__} {tuple(shape)} of {str(getattr(batch, 'dtype', '?')).removeprefix('torch.')}"
    return type(batch).__name__
