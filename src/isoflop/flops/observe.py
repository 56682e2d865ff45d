"""Count a training step as it runs: forward, backward, and whatever else the step does on the way to the update.

An `Observation` is a dispatch mode around a real step, or a part of one. It changes no result and calls nothing itself.
Where code that is compiled, or a CUDA graph, takes over it ends at once, for under a dispatch mode such code would run
otherwise. The step is cut into segments, one for the forward calls that share a backward pass, each with what leads up
to them (a teacher's forward). What the optimizer multiplies is apart.

The mode is entered and left in different hooks of a trainer, so no `with` block bounds it. Instead it can be taken off
the dispatcher's stack from any depth (`leave`), and is: by its normal end, by an exception in the forward or backward
pass, by a failure inside isoflop, by the end of its Monitor. Where that is noticed while it handles an operator, or in
another thread, it only passes operators on from then, and is taken off as soon as the main thread runs Python again.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from threading import RLock, Thread, get_ident, main_thread
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data.dataloader import _BaseDataLoaderIter

from isoflop.flops.aside import COMPILED, StandsAside, is_compiled, is_optimizers
from isoflop.flops.attention import Reading
from isoflop.flops.calls import INTERRUPTED_CALLS, Signature, frames, put
from isoflop.flops.cost import Segment
from isoflop.flops.counter import (
    NOTHING,
    FlopCount,
    Phase,
    current_phase,
    unwatch_backward,
    watch_backward,
)
from isoflop.flops.operators import Formula
from isoflop.flops.parameters import Uses, UseTracer
from isoflop.flops.plain_steps import Evaluated
from isoflop.guard import attempt, pass_on

GRAPH = "a CUDA graph shows no operators"
FOREIGN = "another dispatch mode is on around the step"
INFERENCE = "the step begins in inference mode"
BACKWARD = "the model's call was first seen in a backward pass (reentrant activation checkpointing)"
THREADS = "the model runs in several threads, of which one alone shows its operators"
INTERRUPTED = "the step ended in an exception"
ENDLESS = "no forward call of the model followed"
_OF_PARTS = ("NestedTensor", "DTensor")
"""Tensors that hold others: jagged ones their values, those of FSDP2 a rank's share of an optimizer's work."""
LONGEST = 5_000_000
"""Operators without a forward call of the model, after which a step is over: nobody has closed the Monitor."""


class Observation(StandsAside):
    """Counts between `start()` and `stop()`, which may lie in different hooks of a trainer.

    `whole`: it starts where the step does, not at a forward call; `tracer` sees the operators up to the first backward
    pass.
    """

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
        self._paused = 0  # data loaders under way, which are no part of the step
        self.evaluated = Evaluated()
        self.segments: list[Segment] = []
        self.ahead = NOTHING
        """What ran before the first forward call, if it does not start where the step does."""
        self.blocked: Callable[[], None] | None = None
        """Called at the moment when counting turns out to be impossible; for threads, at the end."""
        self.optimizer_stepped = False
        self.unseen: list[Any] = []
        """Optimizers that may have matrix products and stepped in compiled code, or behind another's."""
        self._sees_steps: Any = None
        self._whole, self._tracer = whole, tracer
        self._keys: list[Signature] = []
        self._began = self._called = NOTHING  # at the start of the segment, and at its first forward call
        self._after: FlopCount | None = None  # at the end of its last backward pass so far
        self._backward = self._recomputed = False
        self._no_grad = self._optimizer = 0
        self._optimizers = 0  # optimizers' steps under way
        self._multiplies: Any = None  # the last of them, if it may have matrix products
        self._closure = False  # … and the closure of the loss has still to run in it
        self._differentiable = 0  # custom autograd functions under way, whose forward runs without gradients
        self._first_node = 0
        self.over = False
        """Nothing is counted any more."""
        self._thread = get_ident()
        self._handling = 0  # operators under way, one inside the other
        self._since = 0  # operators since the last forward call

    # -- its bounds --------------------------------------------------------------------------------------------

    def start(self) -> bool:
        """Begin, unless a dispatch mode of others is on, which takes what is on top off at its end."""
        sweep()
        around = list(frames())
        problem, for_good = self._obstacle(around)
        if problem:
            self._give_up(problem, for_good)
            return False
        self._first_node = torch.autograd._get_sequence_nr()
        # a step of an optimizer has called its closure
        self._closure = any(map(is_optimizers, around))
        self._optimizers = int(self._closure)
        self._thread = get_ident()
        watch_backward(self)
        with _lock:
            _OBSERVERS.append(self)
            if len(_OBSERVERS) == 1:
                _look_around()
        self.__enter__()
        return True

    def _obstacle(self, around: list[FrameType]) -> tuple[str, bool]:
        """What forbids to begin ("": nothing), and whether for good."""
        if not all(isinstance(mode, Observation) for mode in _stack()):
            return FOREIGN, not self._whole
        if torch.is_inference_mode_enabled():  # it would be off behind that (see `sweep`)
            return INFERENCE, False
        if torch._C._current_graph_task_id() != -1:
            return BACKWARD, False
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return GRAPH, False
        return (COMPILED, True) if any(map(is_compiled, around)) else ("", False)

    def stop(self) -> None:
        """End, and close the last segment."""
        for kind, met in ((THREADS, self._thread != get_ident()), (COMPILED, self.is_aside)):
            if met and not self.over:
                self.meets(kind)
        if self.problem is None and not self.over:
            self._close(self._now())
        self.leave()
        if self.problem == THREADS and self.blocked is not None:
            self.blocked()  # not where the thread starts: a pool starts its own under the lock that a fork waits for

    def leave(self) -> None:
        """End, at any time and in any thread: nothing is counted any more, and the mode is taken off."""
        self.over = True
        if self._sees_steps is not None:
            self._sees_steps.remove()
            self._sees_steps = None
        with _lock:
            if self in _OBSERVERS:
                _OBSERVERS.remove(self)
            while _patches and not _OBSERVERS:
                _patches[-1]()
                _patches.pop()  # behind it: what Ctrl-C comes into is done again
        unwatch_backward(self)
        sweep()
        if self._on and not self._handling and self not in _stack():
            _take_off_later(self)

    # (torch's own two set flags of the whole process, by which its compiler goes, and expect to be left in order)

    def __enter__(self) -> Any:
        torch._C._push_on_torch_dispatch_stack(self)
        self._on = True  # after it, and below before: Ctrl-C in between must not leave one waited for that is off
        return self

    def __exit__(self, *error: Any) -> None:
        above = []
        self._on = self._on and not self.over
        while self in _stack():
            above.append(torch._C._pop_torch_dispatch_stack(None))
            if above[-1] is self:
                break
        for mode in reversed(above[:-1]):
            torch._C._push_on_torch_dispatch_stack(mode)

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Whatever compiles while the mode is on compiles as if it were not."""
        return True

    def forward(self, key: Signature) -> None:
        """A training call of the model begins; after a backward pass it begins a segment."""
        if self._thread != get_ident():
            self.meets(THREADS)
        self._since = 0
        now = self._now()
        if self._keys and self._backward:
            self._close(self._after or now)
        if not self._keys:
            self._called = now
        self._keys.append(key)

    def _close(self, end: FlopCount) -> None:
        head = self._called - self._began if self._keys else NOTHING
        body = end - self._began - head
        # (an optimizer that has the loss computed several times multiplies between them)
        head, body = (part - _of_optimizer(part.optimizer) for part in (head, body))
        observed = self._whole or bool(self.segments)
        self.ahead = self.ahead if observed else head
        self.segments.append(Segment(tuple(self._keys), head if observed else None, body))
        self._began, self._after, self._keys, self._backward = end, None, [], False

    def trace(self, tracer: UseTracer | None) -> None:
        """From here up to the first backward pass."""
        if tracer is not None:  # (a later micro-batch has none of its own)
            self._on_operator = self._tracer = tracer

    @property
    def uses(self) -> Uses | None:
        """What the parameters were used for, if that was traced."""
        return None if self._tracer is None else self._tracer.uses

    @property
    def optimizer(self) -> FlopCount:
        """The optimizer's matrix products."""
        return _of_optimizer(self._optimizer)

    def _now(self) -> FlopCount:
        counted = self.count._replace(no_grad=self._no_grad, optimizer=self._optimizer) + self.apart
        return counted - self.evaluated.unused() if self.evaluated.calls else counted

    def _give_up(self, problem: str, for_good: bool = False) -> None:
        first = self.problem is None
        if first:
            self.problem, self.for_good = problem, for_good
        self.leave()
        if first and problem != THREADS and self.blocked is not None:
            attempt(self.blocked)

    def failed(self, error: Exception) -> None:
        """Nothing of it reaches the training."""
        self._give_up(f"{type(error).__name__}: {error}", for_good=True)

    def interrupted(self) -> None:
        """An exception goes through a forward call or a backward pass."""
        if self._thread == get_ident():
            self._give_up(INTERRUPTED)

    def pause(self, change: int) -> None:
        """What is no part of the step begins (+1) or ends (−1)."""
        self._paused = max(0, self._paused + change)

    def evaluates(self, begins: bool) -> None:
        """A call in evaluation mode without gradients begins or ends; see `Evaluated`."""
        self.evaluated.call(self._now() + self.evaluated.unused(), begins)

    def differentiates(self, change: int) -> None:
        """A custom autograd function begins (+1) or ends (−1)."""
        self._differentiable += change

    def meets(self, kind: str) -> None:
        """Code that is compiled, or compiles (`COMPILED`), a CUDA graph or threads (`THREADS`) are about to run."""
        self._give_up(kind, for_good=True)

    def meets_compiled(self, frame: FrameType) -> None:
        """Compiled code is about to run, in this frame; of an optimizer, what came before it is counted."""
        if not (self._in_optimizer() and self._backward and not self._closure):
            if self._backward and self._after is None and torch._C._current_graph_task_id() == -1:
                self._after = self._now()
            if not self.over and not self.stands_aside(frame):
                self.meets(COMPILED)
        elif not self.over:
            self.unseen = [optimizer for optimizer in [self._multiplies] if optimizer is not None]
            self._close(self._now())
            self.leave()
            self._sees_steps = register_optimizer_step_pre_hook(self._steps_unseen)

    def follow(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """What follows from a call in evaluation mode is a part of the step if it leads up to a loss."""
        if self.evaluated.calls:
            self._called += self.evaluated.follow(packet, args, kwargs, out)  # it led up to the forward call

    def had_backward(self) -> None:
        """A backward pass that was not observed is over."""
        self._backward, self._closure, self._after, self._on_operator = True, False, self._now(), None

    def _in_optimizer(self) -> bool:
        """Whether an optimizer steps; torch has no hook for one whose step ended in an exception."""
        if self._optimizers and not any(map(is_optimizers, frames())):
            self._optimizers = 0
            self.interrupted()
        return self._optimizers > 0

    def _steps_unseen(self, optimizer: Any, *_: Any) -> None:
        if _may_multiply(optimizer):
            self.unseen.append(optimizer)

    # -- what runs ---------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._paused and not self.over:
            return func(*args, **(kwargs or {}))
        if not self.over and any(kind.__name__ in _OF_PARTS for kind in types):
            return NotImplemented  # (they then work with their parts, in operators that come here again)
        try:
            self._handling += 1
            if self.over:
                return func(*args, **(kwargs or {}))
            self._since += 1
            if self._since > LONGEST:
                self._give_up(ENDLESS)
            return super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._handling = max(0, self._handling - 1)  # Ctrl-C may come before it was raised
            if self.over and not self._handling:
                _take_off_later(self)

    def _parts(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # by the kernel that would run without us: a decomposition in Python may round otherwise
        key = torch._C.DispatchKey.CompositeImplicitAutograd
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
            return func._op_dk(key, *args, **kwargs)
        return super()._parts(func, args, kwargs)

    def _note(
        self, packet: Any, formula: Formula | None, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        if self.problem is not None or (formula is not None and isinstance(out, FakeTensor)):
            return  # (DTensors ask fake ones for a result's shape)
        phase = current_phase()
        if phase == "forward":
            self.follow(packet, args, kwargs, out)
            if formula is not None and not self.multiplies_with_gradients:
                of_graph = torch.is_grad_enabled() and any(getattr(arg, "requires_grad", False) for arg in args)
                self.multiplies_with_gradients = of_graph or self._differentiable > 0
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
            pass_on(error)
            self._give_up(f"{packet}: {type(error).__name__}: {error}", for_good=True)
        finally:
            self.unread = self.unread or Reading.refused
            Reading.allowed, Reading.refused = True, False

    def _add(self, flops: int, operator: str, phase: Phase, owner: str | None) -> None:
        super()._add(flops, operator, phase, owner)
        if phase == "forward" and not torch.is_grad_enabled():
            if self._in_optimizer() and not self._closure:
                self._optimizer += flops
            elif not self._differentiable:
                self._no_grad += flops


# -- observations that are on ------------------------------------------------------------------------------------------

_OBSERVERS: list[Observation] = []
_patches: list[Callable[[], None]] = []  # what undoes `_look_around`
_lock = RLock()


def _here() -> list[Observation]:
    """Those of this thread."""
    return [observation for observation in _OBSERVERS if observation._thread == get_ident()]


def _stack() -> list[Any]:
    """The dispatch modes of this thread, the innermost last."""
    return [torch._C._get_dispatch_stack_at(depth) for depth in range(torch._C._len_torch_dispatch_stack())]


def sweep() -> None:
    """Take every observation that is over off this thread's stack.

    Not in inference mode: its end brings the dispatcher back to what it was at its beginning, and that would be to a
    stack that is empty by then. The next operator behind it comes here again.
    """
    for mode in () if torch.is_inference_mode_enabled() else _stack():
        if isinstance(mode, Observation) and mode.over:
            mode.__exit__()


_leaving: list[Observation] = []


def _take_off_later(observation: Observation) -> None:
    """Take it off when the handler of an operator that it is in has returned: the main thread looks between calls."""
    if observation._thread == main_thread().ident and observation not in _leaving:
        _leaving.append(observation)
        ctypes.pythonapi.Py_AddPendingCall(_take_off, None)


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
def _take_off(_: Any) -> int:
    sweep()
    waits = not torch.is_inference_mode_enabled()
    _leaving[:] = [observation for observation in _leaving if observation._on and waits]
    if _leaving:
        ctypes.pythonapi.Py_AddPendingCall(_take_off, None)
    return 0


def _look_around() -> None:
    """Notice the optimizer's step, data loaders, custom functions, compiled code, CUDA graphs and exceptions."""
    for hook in (
        register_optimizer_step_pre_hook(_optimizer_begins),
        register_optimizer_step_post_hook(_optimizer_ends),
    ):
        _patches.append(hook.remove)
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    for home, name, around in (
        (_BaseDataLoaderIter, "__next__", lambda load: _around(load, lambda o: o.pause(1), lambda o: o.pause(-1))),
        (torch.autograd.Function, "apply", _applying),
        (Thread, "start", lambda start: _around(start, lambda o: o.meets(THREADS) if _in_a_module() else None)),
        (torch.cuda.CUDAGraph, "replay", lambda replay: _around(replay, lambda o: o.meets(GRAPH))),
        (torch if compiler is None else None, "compile", lambda f: _around(f, lambda o: o.meets(COMPILED))),
        (compiler, "_is_skip_guard_eval_unsafe_stance", _running_compiled),
        (compiler, "_maybe_set_eval_frame", _setting_callback),
    ):
        put(home, name, around, _patches)


def _in_child() -> None:
    """A data loader's worker is forked while a step is observed: nothing of that is its own."""
    global _lock
    _lock = RLock()  # its holder may not be here
    for observation in [*_OBSERVERS]:
        observation.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _interrupted() -> None:
    for observation in _here():
        observation.interrupted()


INTERRUPTED_CALLS.append(_interrupted)


def _optimizer_begins(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for observation in _here():
        observation._optimizers += 1
        observation._multiplies = optimizer if _may_multiply(optimizer) else None
        observation._closure = any(map(callable, (*args, *kwargs.values())))  # it computes the loss in the step


def _may_multiply(optimizer: Any) -> bool:
    """Of torch.optim's only Muon has matrix products."""
    return "torch.optim" not in type(optimizer).__module__ or "Muon" in type(optimizer).__name__


def _optimizer_ends(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for observation in _here():
        observation._optimizers = max(0, observation._optimizers - 1)
        observation.optimizer_stepped = True


Change = Callable[[Observation], None]


def _around(original: Any, before: Change, after: Change = lambda observation: None) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as ends:
            for observation in _here():
                observation.safely(before, observation)
                ends.callback(observation.safely, after, observation)
            return original(*args, **kwargs)

    return call


def _applying(original: Any) -> Any:
    def apply(kind: Any, *args: Any, **kwargs: Any) -> Any:  # a classmethod; from torch 2.14 on one of C's
        return original.__get__(None, kind)(*args, **kwargs)

    noticed = _around(apply, lambda o: o.differentiates(1), lambda o: o.differentiates(-1))
    return classmethod(lambda *args, **kwargs: (noticed if torch.is_grad_enabled() else apply)(*args, **kwargs))


def _running_compiled(original: Any) -> Any:
    def stance() -> Any:  # what dynamo's wrapper asks before it looks at the dispatcher's state
        for observation in _here() if is_compiled(sys._getframe(1)) else ():
            observation.safely(observation.meets_compiled, sys._getframe(1))
        return original()

    return stance


def _setting_callback(original: Any) -> Any:
    def setting(callback: Any) -> Any:  # its end is over before the callback is set
        for observation in _here():
            observation.safely(observation.sets_callback, sys._getframe(1))
        return original(callback)

    return setting


def _of_optimizer(flops: int) -> FlopCount:
    return FlopCount(flops, flops, 0, optimizer=flops)


def _in_a_module() -> bool:
    """Whether a module's forward is under way (DataParallel's starts threads)."""
    return any(frame.f_code is nn.Module._call_impl.__code__ for frame in frames())
