"""Source: FSDP2's unsharded local gradients, as they go into the reduce-scatter. Opt-in: a private interface of torch.

`FSDPModule.set_custom_reduce_scatter` is public; the class that it takes is not. Ours makes the same call as torch's
own, and looks at what goes in on measured steps. Adam's v is sharded and these gradients are not, so there is no
preconditioned value here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from isoflop.guard import Guard
from isoflop.observe.noise.measured import Measured, Number
from isoflop.observe.noise.microbatches import HOOKS
from isoflop.observe.noise.norms import Denominator, raw_square, raw_squares, total
from isoflop.observe.ranks import world_size

REDUCTION = (
    "FSDP2 reduces gradients by a sum or in float16 here, so that a rank's share in the mean is not known: use "
    "MixedPrecisionPolicy(reduce_dtype=torch.float32) and leave the divide factor alone"
)
SEVERAL_GROUPS = "a module of the model has several FSDP2 parameter groups, which torch lets nobody look into"


class ShardedBatches:
    """Measures single steps under FSDP2; the calls are those of `MicroBatches`.

    Each reduce-scatter's input is one part: with `set_requires_gradient_sync(False)` a rank's micro-batches come as
    one, else each by itself. Parameters outside of every FSDP module are not reduced, nor looked at.
    """

    preconditions = False

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter], guard: Guard) -> None:
        self.parameters = [parameter for parameter in parameters if hasattr(parameter, "to_local")]
        self.problem: str | None = None
        self.seconds = 0.0
        self._guard = guard
        self._armed = self._queued = False
        self._modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
        scatter = _make_scatter(self._see)
        try:
            for module in self._modules:
                module.set_custom_reduce_scatter(scatter)
        except ValueError:
            self.problem = SEVERAL_GROUPS
        self._reset()

    def _reset(self) -> None:
        self._begun = self._ended = self._reduced = 0
        self._squares: list[torch.Tensor] = []
        self._check: list[torch.Tensor] = []
        self._whole: tuple[torch.Tensor, torch.Tensor] | None = None
        self._tokens: list[Number | None] = []
        self._tokens_since: list[Number | None] = []

    @property
    def armed(self) -> bool:
        """Whether the step that runs is measured."""
        return self._armed

    @property
    def parts(self) -> int:
        """Micro-batches whose backward pass is done."""
        return self._ended

    def arm(self, expected: int, denominators: dict[int, Denominator]) -> None:
        """Measure the step that begins."""
        self._reset()
        self._expected, self._armed, self.seconds = expected, True, 0.0

    def disarm(self) -> None:
        """Do not; the reduce-scatter stays, and passes everything through."""
        self._armed = False

    def begin(self, tokens: Number | None) -> None:
        """A forward pass begins."""
        self._begun += 1
        self._tokens_since.append(tokens)

    def restart(self, tokens: Number | None) -> None:
        """Steps are not split here."""

    def _see(self, given: torch.Tensor, op: Any) -> None:
        """What a module's reduce-scatter is given: this rank's gradient, padded with zeros."""
        if not self._armed or self.problem is not None or not self._guard.open(HOOKS):
            return
        with self._guard.part(HOOKS), torch.no_grad():
            began = time.perf_counter()
            if op != dist.ReduceOp.AVG:
                self.problem = REDUCTION
                return
            if not self._queued:
                self._queued = True
                torch.autograd.Variable._execution_engine.queue_callback(self._last)
            self._squares.append(raw_square(given))
            self._check.append(given.sum(dtype=torch.float32))
            self.seconds += time.perf_counter() - began

    def _last(self) -> None:
        # FSDP2 queues its own last callback first of all, but DDP-like order costs nothing
        torch.autograd.Variable._execution_engine.queue_callback(self._end_of_backward)

    def _end_of_backward(self) -> None:
        self._queued = False
        if not self._armed or self.problem is not None or not self._guard.open(HOOKS):
            return
        with self._guard.part(HOOKS), torch.no_grad():
            began = time.perf_counter()
            self._reduced += 1
            self._ended = self._begun
            known = [tokens for tokens in self._tokens_since if tokens is not None]
            self._tokens.append(sum(known) if len(known) == len(self._tokens_since) and known else None)
            self._tokens_since = []
            shards = [p.grad.to_local() for p in self.parameters if p.grad is not None]  # type: ignore[attr-defined]
            if self._ended >= self._expected and shards:
                sums = total([shard.sum(dtype=torch.float32) for shard in shards])
                self._whole = (raw_squares(shards), sums)
            self.seconds += time.perf_counter() - began

    def take(self, step: int, tokens: float | None = None) -> Measured | None:
        """The step is over: what was measured, for this rank."""
        self.disarm()
        whole, parts, tokens_of = self._whole, self._reduced, list(self._tokens)
        if self.problem is not None or whole is None or not self._squares or self._ended < self._expected:
            return None
        ranks = world_size()
        if tokens is not None:
            tokens_of = [tokens / parts] * parts
        known = [float(t) if not isinstance(t, torch.Tensor) else t.float() for t in tokens_of if t is not None]
        unknown = len(known) < parts
        squares = total(self._squares) / ranks**2
        measured = Measured(
            step,
            squares,
            whole[0],  # of this rank's shards: over ranks they add up
            math.nan,
            math.nan,
            parts,
            math.nan if unknown else sum(known),
            math.nan if unknown else sum(value * value for value in known),
            math.nan if unknown else sum(1 / value for value in known),
            total(self._check) / ranks,
            squares,
            whole[1],
            math.nan,
        )
        self._reset()
        return measured


def _make_scatter(see: Callable[[torch.Tensor, Any], None]) -> Any:
    """Torch's own reduce-scatter with a look at its input; ImportError where the private module has moved."""
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultReduceScatter

    class Scatter(DefaultReduceScatter):
        def __call__(
            self,
            output_tensor: torch.Tensor,
            input_tensor: torch.Tensor,
            group: dist.ProcessGroup,
            op: Any,
            async_op: bool = False,
        ) -> Any:
            see(input_tensor, op)
            return super().__call__(output_tensor, input_tensor, group, op, async_op)

    return Scatter()
