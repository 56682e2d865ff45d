"""What no trainer says: whether a call without gradients is a part of the step, and where a plain loop's step begins.

`Evaluated`: a call of the model in evaluation mode without gradients is a part of the training step where what it
returns, or what follows from it (tokens that were generated), meets a tensor that needs gradients; else a validation.
What becomes a number of Python or an array of NumPy on the way is not followed.

`PlainSteps`: what the model computes without gradients before a step's first training call is observed where it is no
part of every step (an agent acts now and then), and in the first one. A step that calls the model's parts alone (a
`ModuleDict`, a method beside `forward`) is known by their calls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from isoflop.flops.calls import Before, Call, OutermostCalls, watch
from isoflop.flops.cost import joined
from isoflop.flops.counter import NOTHING, FlopCount
from isoflop.flops.values import storage_number
from isoflop.guard import attempt


class Evaluated:
    """The calls of an observation. Those whose results meet each other are one."""

    def __init__(self) -> None:
        self.calls: list[FlopCount | None] = []
        """FLOPs of each; None: a part of the step."""
        self._joined: list[int] = []  # the call that it is one with, itself if none
        self._before: FlopCount | None = None  # one is under way, and that was counted before it
        self._made: dict[int, int] = {}  # storage → the call that it follows from

    def unused(self) -> FlopCount:
        """FLOPs of those that are no part of the step."""
        return sum((flops for flops in self.calls if flops is not None), NOTHING)

    def call(self, counted: FlopCount, begins: bool) -> None:
        """One begins or ends, where that much was counted."""
        if begins and self._before is None:
            self._before = counted
            self._joined.append(len(self.calls))
            self.calls.append(NOTHING)
        elif not begins and self._before is not None:
            first = self._first(len(self.calls) - 1)
            known = self.calls[first]
            self.calls[first] = None if known is None else known + (counted - self._before)
            self._before = None

    def follow(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> FlopCount:
        """An operator of a forward pass. Returns FLOPs that it shows to be a part of the step."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        read = set(map(storage_number, inputs))
        made = {storage_number(leaf) for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)}
        made -= set() if str(packet).endswith("_") else read  # a view
        met = {self._first(self._made[number]) for number in read & self._made.keys()}
        used = NOTHING
        if self._before is not None:
            met.add(self._first(len(self.calls) - 1))
        elif met and torch.is_grad_enabled() and any(leaf.requires_grad for leaf in inputs):
            for call in met:
                used += self.calls[call] or NOTHING
                self.calls[call] = None
        for number in made:  # no tensor is kept alive: a freed storage's number comes again
            if met:
                self._made[number] = min(met)
            else:
                self._made.pop(number, None)
        for call in met - {min(met, default=0)}:
            found, other = self.calls[min(met)], self.calls[call]
            if found is None or other is None:  # one with what is a part of the step
                used += found or other or NOTHING
                self.calls[min(met)] = None
            else:
                self.calls[min(met)] = found + other
            self.calls[call], self._joined[call] = NOTHING, min(met)
        return used

    def _first(self, call: int) -> int:
        while self._joined[call] != call:
            call = self._joined[call]
        return call


class PlainSteps:
    """Base of `StepObserver`."""

    outermost: OutermostCalls | None = None
    _calls: list[Call]
    _plain = _computes = False
    _computed = 0  # the last step for which that was added
    _paused = 0  # what is under way and no part of a step

    def in_plain_loop(self: Any, model: nn.Module, forward: Before) -> Callable[[], None]:
        """Call `forward` ahead of each training call of `model`. Returns the function that ends it."""
        self._plain = self._computes = True
        if getattr(type(self.model), "forward", None) is nn.Module.forward:  # a container (TorchScript raises there)
            self._hear_parts()
        return watch(model, forward, None, self.evaluates, self.computes)

    def evaluates(self: Any, begins: bool) -> None:
        """A call of the model in evaluation mode without gradients begins or ends."""
        if begins:
            self.computes()
        if self.observation is not None:
            self.observation.safely(self.observation.evaluates, begins)

    def computes(self: Any) -> None:
        """A call of the model without gradients begins, of an agent that acts, say, or of a validation."""
        if self._paused or self._pending or self.observation is not None:
            return
        if not self._computes or self.costing.has_heads:  # (where each step has them its price has, too)
            return
        if self.costing.observes:
            attempt(partial(self._observe, whole=False))
        elif self._begun != self._computed:
            self._computed = self._begun
            self.tally.add_flops(self.costing.ahead())

    def _hear_parts(self: Any) -> None:
        """The model was not called."""
        if self._plain and self.model is not None and self.outermost is None:
            self._by_calls, self._calls = True, []
            self.outermost = OutermostCalls(self.model, self._heard)

    def _is_whole(self: Any, call: Call) -> bool:
        """True if a call is the model's own: its parts are not heard any more."""
        if not self._plain or call.module is not self.model:
            return False
        outermost, self.outermost, self._by_calls = self.outermost, None, False
        outermost.stop()
        return True

    def _end_parts(self: Any, counted: type) -> None:
        """A step that may have called parts of the model alone is over."""
        if self.outermost is None or self._pending or not self._calls:
            self._end_observation()
            return
        calls, self._calls = self._calls, []
        keys = [call.key for call in calls]
        key = joined(keys)
        self._pending.append(counted(key, None))
        self._end_observation(keys)
        if self.costing.blocked is not None:
            self.costing.learn_calls(key, calls, self.outermost.problem)
        self.tally.add_flops(self.costing.settle_unheard(key))
        self.tally.add_flops(None, -self.costing.now_known)
