"""Count a training step as it runs: forward, backward, and whatever else the step does on the way to the update.

An `Observation` is a dispatch mode around a real step, or a part of one. It changes no result, runs nothing by itself,
and is left in peace by the training: where code that is compiled, or a CUDA graph, takes over it ends at once, for
under a dispatch mode such code would run otherwise. The step is cut into segments, one for the forward calls that
share a backward pass, each with what leads up to them (a teacher's forward). What the optimizer multiplies is apart.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import FrameType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data.dataloader import _BaseDataLoaderIter

from isoflop.flops.attention import Reading
from isoflop.flops.calls import Signature
from isoflop.flops.counter import NOTHING, FlopCount, FlopCounter, Phase, current_phase
from isoflop.flops.operators import Formula
from isoflop.flops.uses import Uses, UseTracer

COMPILED = "it is compiled, and what runs compiled shows no operators"
GRAPH = "a CUDA graph shows no operators"
FOREIGN = "another dispatch mode is on around the step"


class Segment(NamedTuple):
    """A part of a step: what leads up to its forward calls, and these with their backward pass."""

    keys: tuple[Signature, ...]
    """Signatures of the forward calls."""
    head: FlopCount | None
    """What ran since the backward pass before; None: it was not observed."""
    body: FlopCount


class Observation(FlopCounter):
    """Counts between `start()` and `stop()`, which may lie in different hooks of a trainer.

    Args:
        whole: it starts where the step does, not at a forward call.
        tracer: sees the operators up to the first backward pass.
    """

    _live = True

    def __init__(self, whole: bool, tracer: UseTracer | None = None, reads: bool = True) -> None:
        super().__init__(tracer)
        self.reads = reads
        """The values of masks and of documents' bounds are read, which waits for the device."""
        self.unread = False
        """Some were not: windows and documents are counted as if there were none."""
        self.problem: str | None = None
        """Why there is no count; nothing is raised."""
        self.for_good = False
        """… and no further step can be counted either."""
        self.paused = False
        """What runs is no part of the step: an evaluation, a data loader."""
        self.segments: list[Segment] = []
        self.blocked: Callable[[], None] | None = None
        """Called at the moment when counting turns out to be impossible."""
        self.optimizer_stepped = False
        self._whole, self._tracer = whole, tracer
        self._keys: list[Signature] = []
        self._began = self._called = NOTHING  # at the start of the segment, and at its first forward call
        self._after: FlopCount | None = None  # at the end of its last backward pass so far
        self._backward = self._recomputed = self._entered = False
        self._no_grad = self._optimizer = 0
        self._optimizers = 0  # optimizers' steps under way
        self._closure = False  # … and the closure of the loss has still to run in it
        self._differentiable = 0  # custom autograd functions under way, whose forward runs without gradients
        self._first_node = 0
        self._patches = ExitStack()

    # -- its bounds --------------------------------------------------------------------------------------------

    def start(self) -> bool:
        """Begin, unless another dispatch mode is on: two such modes must be left in the right order."""
        if torch._C._len_torch_dispatch_stack() > 0:
            self._give_up(FOREIGN, for_good=not self._whole)
            return False
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            self._give_up(GRAPH)
            return False
        frames = list(_frames())
        if any(map(_is_compiled, frames)):
            self._give_up(COMPILED, for_good=True)
            return False
        self._first_node = torch.autograd._get_sequence_nr()
        # a step of an optimizer has called its closure
        self._closure = any(frame.f_code.co_filename.endswith("torch/optim/optimizer.py") for frame in frames)
        self._optimizers = int(self._closure)
        self._look_around()
        self.__enter__()
        self._entered = True
        return True

    def stop(self) -> bool:
        """End, and close the last segment; False if a mode that was entered after us is still on: try again later."""
        if not self._exit():
            self._give_up("another dispatch mode was entered in the step and not left")
            return False
        if self.problem is None:
            self._close(self._now())
        return True

    def _exit(self) -> bool:
        if not self._entered:
            return True
        top = torch._C._len_torch_dispatch_stack() - 1
        if top < 0 or torch._C._get_dispatch_stack_at(top) is not self:
            return False
        self.__exit__(None, None, None)
        self._patches.close()
        self._entered = False
        return True

    def forward(self, key: Signature) -> None:
        """A training call of the model begins; after a backward pass it begins a segment."""
        now = self._now()
        if self._keys and self._backward:
            self._close(self._after or now)
        if not self._keys:
            self._called = now
        self._keys.append(key)

    def _close(self, end: FlopCount) -> None:
        head = self._called - self._began if self._keys else NOTHING
        body = end - self._began - head
        observed = self._whole or bool(self.segments)
        self.segments.append(
            Segment(tuple(self._keys), head if observed else None, body - _of_optimizer(body.optimizer))
        )
        self._began, self._after, self._keys, self._backward = end, None, [], False

    @property
    def uses(self) -> Uses | None:
        """What the parameters were used for, if that was traced."""
        return None if self._tracer is None else self._tracer.uses

    @property
    def optimizer(self) -> FlopCount:
        """The optimizer's matrix products."""
        return _of_optimizer(self._optimizer)

    def _now(self) -> FlopCount:
        return replace(self.count, no_grad=self._no_grad, optimizer=self._optimizer)

    def _give_up(self, problem: str, for_good: bool = False) -> None:
        if self.problem is None:
            self.problem, self.for_good = problem, for_good
            self._exit()
            if self.blocked is not None:
                self.blocked()

    # -- what runs ---------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.paused or self.problem is not None:
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _parts(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # by the kernel that would run without us: a decomposition in Python may round otherwise
        key = torch._C.DispatchKey.CompositeImplicitAutograd
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
            return func._op_dk(key, *args, **kwargs)
        return super()._parts(func, args, kwargs)

    def _note(
        self, packet: Any, formula: Formula | None, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        if self.problem is not None:
            return
        phase = current_phase()
        if phase != "forward":
            self._recomputed = self._recomputed or phase == "recomputed"
            self._backward, self._closure, self._after, self._on_operator = True, False, None, None
            if not self._whole and phase == "backward" and formula is not None and not self._recomputed:
                # (what reentrant checkpointing runs again is numbered anew by autograd's own threads)
                node = torch._C._current_autograd_node()
                if node is not None and node._sequence_nr() < self._first_node:
                    self._give_up("the backward pass reaches into a forward pass before the observation")
                    return
        elif self._backward and self._after is None:
            self._after = self._now()
        Reading.allowed = self.reads
        try:
            super()._note(packet, formula, args, kwargs, out)
        except Exception as error:  # a user's formula, an operand of an unknown kind: training goes on
            self._give_up(f"{packet}: {type(error).__name__}: {error}", for_good=True)
        finally:
            self.unread = self.unread or Reading.refused
            Reading.allowed, Reading.refused = True, False

    def _add(self, flops: int, operator: str, phase: Phase, owner: str | None) -> None:
        super()._add(flops, operator, phase, owner)
        if phase == "forward" and not torch.is_grad_enabled():
            if self._optimizers and not self._closure:
                self._optimizer += flops
            elif not self._differentiable:
                self._no_grad += flops

    # -- what the mode itself does not see ---------------------------------------------------------------------

    def _look_around(self) -> None:
        """Notice, until `stop`, the optimizer's step, data loaders, custom functions, compiled code, CUDA graphs."""
        for hook in (
            register_optimizer_step_pre_hook(self._optimizer_begins),
            register_optimizer_step_post_hook(self._optimizer_ends),
        ):
            self._patches.callback(hook.remove)
        compiler = sys.modules.get("torch._dynamo.eval_frame")
        for home, name, around in (
            (_BaseDataLoaderIter, "__next__", self._loading),
            (torch.autograd.Function, "apply", self._applying),
            (torch.cuda.CUDAGraph, "replay", self._replaying),
            (torch if compiler is None else None, "compile", self._compiling),
            (compiler, "_is_skip_guard_eval_unsafe_stance", self._running_compiled),
        ):
            original = getattr(home, "__dict__", {}).get(name)
            if original is not None:
                self._patches.enter_context(patch.object(home, name, around(original)))

    def _optimizer_begins(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._optimizers += 1
        self._closure = any(map(callable, (*args, *kwargs.values())))

    def _optimizer_ends(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._optimizers = max(0, self._optimizers - 1)
        self.optimizer_stepped = True

    def _loading(self, original: Any) -> Any:
        def load(loader: Any) -> Any:
            paused, self.paused = self.paused, True
            try:
                return original(loader)
            finally:
                self.paused = paused

        return load

    def _applying(self, original: Any) -> Any:
        def apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
            inside = int(torch.is_grad_enabled())
            self._differentiable += inside
            try:
                return original.__func__(kind, *args, **kwargs)
            finally:
                self._differentiable -= inside

        return classmethod(apply)

    def _replaying(self, original: Any) -> Any:
        def replay(graph: Any) -> Any:
            self._give_up(GRAPH, for_good=True)
            return original(graph)

        return replay

    def _compiling(self, original: Any) -> Any:
        def compiled(*args: Any, **kwargs: Any) -> Any:
            self._give_up(COMPILED, for_good=True)
            return original(*args, **kwargs)

        return compiled

    def _running_compiled(self, original: Any) -> Any:
        def stance() -> Any:  # what dynamo's wrapper asks before it looks at the dispatcher's state
            if _is_compiled(sys._getframe(1)):
                if self._optimizers and self._backward and not self._closure:
                    self._exit()  # a compiled optimizer: what came before it is counted
                else:
                    self._give_up(COMPILED, for_good=True)
            return original()

        return stance


def _of_optimizer(flops: int) -> FlopCount:
    return FlopCount(flops, flops, 0, optimizer=flops)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_compiled(frame: FrameType) -> bool:
    """Whether this frame is about to call compiled code: dynamo's wrapper with the compiler in it."""
    ours = frame.f_code.co_filename.endswith("torch/_dynamo/eval_frame.py")
    return ours and callable(frame.f_locals.get("callback"))
