"""Steps of a plain loop: no trainer tells where one begins, nor that the model is called as a whole.

What the model computes without gradients before a step's first training call is observed where it is no part of every
step (an agent acts now and then), and in the first one. A step that calls the model's parts alone (a `ModuleDict`, a
method beside `forward`) is known by their calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from isoflop.flops.calls import Before, Call, OutermostCalls, watch
from isoflop.flops.costing import joined


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
        if self.model is not None and type(self.model).forward is nn.Module.forward:  # a container
            self._hear_parts()
        return watch(model, forward, None, self.evaluates, self.computes)

    def evaluates(self: Any, begins: bool) -> None:
        """A call of the model in evaluation mode without gradients begins or ends."""
        if begins:
            self.computes()
        if self.observation is not None:
            self.observation.evaluates(begins)

    def computes(self: Any) -> None:
        """A call of the model without gradients begins, of an agent that acts, say, or of a validation."""
        if self._paused or self._pending or self.observation is not None:
            return
        if not self._computes or self.costing.has_heads:  # (where each step has them its price has, too)
            return
        if self.costing.observes:
            self._observe(whole=False)
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
        self.outermost.calls.clear()
        keys = [call.key for call in calls]
        key = joined(keys)
        self._pending.append(counted(key, None))
        self._end_observation(keys)
        if self.costing.blocked is not None:
            self.costing.learn_calls(key, calls, self.outermost.problem)
        self.tally.add_flops(self.costing.settle_unheard(key))
        self.tally.add_flops(None, -self.costing.now_known)
