"""FLOPs of what runs inside a `with` block, counted at torch's dispatcher: matrix products and convolutions.

The formulas are in `operators`. torch's `FlopCounterMode` itself is not used: it counts recomputation under activation
checkpointing as model FLOPs, SDPA on CPU as 0, and switches torch.compile off for good (pytorch#190286).

Attention is counted apart (`isoflop.flops.attention`), for windows and documents leave a part of it, and a causal mask
needs half: QKᵀ, a product of two activations whose result meets a softmax, and AV, which multiplies that. A
state-space model's scan or a linear attention meets no softmax, and masks nothing away.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from operator import add
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from isoflop.flops.attention import AttentionProducts, Counted, kernel_flops
from isoflop.flops.operators import (
    BATCHED_PRODUCTS,
    Formula,
    counted_for_nothing,
    formula_of,
    is_attention_kernel,
    operator_name,
    real_products,
    takes_qkv,
)
from isoflop.guard import pass_on

aten = torch.ops.aten

Phase = Literal["forward", "backward", "recomputed"]
"""`recomputed`: activation checkpointing's second forward pass, which is part of hardware FLOPs alone."""


class FlopCount(NamedTuple):
    """FLOPs of a training step, or of a part of it, exact integers.

    `model`: all but recomputation (Chowdhery et al. 2022: "model FLOPs"), attention to the keys that a query's window
    and document let it meet.
    `hardware`: with the forward passes that activation checkpointing repeats.
    `attention`: the part of `model` in products of two activations (QKᵀ, AV and their gradients); a causal mask
    would need half of it.
    `left_out`: what windows and documents take away from attention in full.
    `no_grad`: the part of `model` computed without gradients (a teacher, a reference, generation).
    `optimizer`: the part of `model` in the optimizer's own matrix products (Muon, Shampoo, SOAP).
    """

    model: int
    hardware: int
    attention: int
    left_out: int = 0
    no_grad: int = 0
    optimizer: int = 0

    @property
    def causal(self) -> int:
        """Model FLOPs with attention counted half: what a causal kernel that skips the masked blocks computes."""
        return self.model - self.attention // 2

    @property
    def full(self) -> int:
        """Model FLOPs with attention in full: every position of a row meets every other."""
        return self.model + self.left_out

    def __add__(self, other: FlopCount) -> FlopCount:  # type: ignore[override]
        return FlopCount(*map(add, self, other))

    def __sub__(self, other: FlopCount) -> FlopCount:
        return self + other * -1

    def __mul__(self, times: int) -> FlopCount:  # type: ignore[override]
        return FlopCount(*(part * times for part in self))


NOTHING = FlopCount(0, 0, 0)


class FlopCounter(TorchDispatchMode):
    """Counts the FLOPs of the operators that run inside it, and changes none of their results.

    `on_operator(packet, args, kwargs, output, is_forward)`, if given, sees every operator (the parameters' tracer
    listens there); it may return True to say that the operator's operands hold a parameter. `owner(phase)`, if given,
    names the module that computes.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        on_operator: Callable[..., bool] | None = None,
        owner: Callable[[Phase], str] | None = None,
    ) -> None:
        super().__init__()
        self._on_operator = on_operator
        self._owner = owner
        self._products = AttentionProducts()
        self.without_formula: set[str] = set()
        """Custom operators (a fused attention or loss), counted 0 because nobody has said what they compute."""
        self.by_operator: Counter[tuple[str, Phase]] = Counter()
        self.by_module: Counter[tuple[str, Phase]] = Counter()
        self._attention = self._left_out = 0

    def __enter__(self) -> Any:
        watch_backward(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        unwatch_backward(self)

    def safely(self, act: Callable[..., None], *args: Any) -> None:
        """Call what must not fail into the code that is counted."""
        try:
            act(*args)
        except Exception as error:
            pass_on(error)
            self.failed(error)

    def failed(self, error: Exception) -> None:
        """Counting has failed."""
        raise error

    def interrupted(self) -> None:
        """An exception goes through a backward pass."""

    def backward_begins(self, create_graph: bool) -> None:
        """A backward pass, in this thread."""

    def backward_ends(self) -> None:
        """The end of one."""

    @property
    def count(self) -> FlopCount:
        """FLOPs so far."""
        hardware = sum(self.by_operator.values())
        model = sum(flops for (_, phase), flops in self.by_operator.items() if phase != "recomputed")
        return FlopCount(model, hardware, self._attention, self._left_out)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        higher_order = isinstance(func, torch._ops.HigherOrderOperator)
        # questions about a tensor (prim::device, aten::sym_size) are no operators that the dispatcher knows
        if not higher_order and not torch._C._dispatch_has_kernel(func.name()):
            return func(*args, **kwargs)
        packet = func if higher_order else func._overloadpacket
        formula = formula_of(packet)
        if formula is None and higher_order:
            with self:  # a branch or a loop: what counts is inside
                return func(*args, **kwargs)
        if formula is None and func._can_decompose() and not _has_kernel(func, args):
            # a composite operator reaches us whole only without autograd; its parts are what has formulas
            with self:
                parts = self._parts(func, args, kwargs)
            if parts is not NotImplemented:
                return parts
        if formula is None and counted_for_nothing(packet, func.namespace):
            self.without_formula.add(operator_name(packet) or str(packet))
        out = func(*args, **kwargs)
        self._note(packet, formula, args, kwargs, out)
        return out

    def _parts(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a composite operator by its parts."""
        return func.decompose(*args, **kwargs)

    def _note(
        self, packet: Any, formula: Formula | None, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        outputs = out if isinstance(out, tuple | list) else (out,)
        phase = current_phase()
        on_parameter = self._on_operator is not None and self._on_operator(
            packet, args, kwargs, out, phase == "forward"
        )
        if formula is not None:
            owner = None if self._owner is None else self._owner(phase)
            flops = int(formula(*args, **kwargs, out_val=out)) * real_products(packet, outputs[0])
            counted = flops, str(packet), phase, owner
            self._add(*counted)
            share = None
            of_activations = packet in BATCHED_PRODUCTS and not on_parameter
            if of_activations and phase == "backward":
                node = torch._C._current_autograd_node()
                share = None if node is None else self._products.shares.get(node._sequence_nr())
            elif of_activations:
                share = self._products.product(args[1:3] if packet is aten.baddbmm else args[:2], out, counted)
            if is_attention_kernel(packet):
                full = kernel_flops(packet, args, kwargs)[1] if takes_qkv(packet) else counted[0]
                self._is_attention(counted[0], phase, full - counted[0])
            elif share is not None:
                self._leave(share, counted)
            if of_activations and phase != "backward":
                return
        if phase == "backward":
            if formula is not None:  # (checkpointing keeps tensors without gradients while it computes anew)
                self._products.backward()
            return
        for share, product in self._products.other(packet, args, outputs, formula is not None):
            self._leave(share, product)

    def _add(self, flops: int, operator: str, phase: Phase, owner: str | None) -> None:
        self.by_operator[operator, phase] += flops
        if owner is not None:
            self.by_module[owner, phase] += flops

    def _leave(self, share: Fraction, counted: Counted) -> None:
        """A product that was counted in full is attention's, and a mask leaves a share of it."""
        flops, operator, phase, owner = counted
        left = int(flops * share)
        self._add(left - flops, operator, phase, owner)
        self._is_attention(left, phase, flops - left)

    def _is_attention(self, flops: int, phase: Phase, left_out: int) -> None:
        if phase != "recomputed":
            self._attention += flops
            self._left_out += left_out


def _has_kernel(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether a composite operator (`silu_backward`) has a kernel for this device: its parts would round otherwise."""
    device = next((arg.device.type for arg in args if isinstance(arg, torch.Tensor)), "cpu")
    key = torch._C._dispatch_key_for_device(device)
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))


_counters: list[FlopCounter] = []
"""Those that are on; one twice where a composite operator's parts run under it."""
_create_graph: list[bool] = []
"""While one is: whether each backward pass under way builds a graph, the innermost last."""
_engine: Any = None


def watch_backward(counter: FlopCounter) -> None:
    """Notice the backward passes, until `unwatch_backward`."""
    global _engine
    _counters.append(counter)
    now: Any = torch.autograd._engine_run_backward
    if len(_counters) == 1 and now is not _run_backward:
        _engine = now
        torch.autograd._engine_run_backward = _run_backward  # type: ignore[assignment]


def unwatch_backward(counter: FlopCounter) -> None:
    """Undo `watch_backward`."""
    on = counter in _counters
    if on:
        _counters.remove(counter)
    now: Any = torch.autograd._engine_run_backward
    if not _counters and (on or now is _run_backward):  # the latter: Ctrl-C came in here before
        torch.autograd._engine_run_backward = _engine


def _run_backward(outputs: Any, gradients: Any, retains: Any, create_graph: bool, *args: Any, **kwargs: Any) -> Any:
    _create_graph.append(create_graph)
    watching = list(_counters) if torch._C._current_graph_task_id() == -1 else []
    try:
        for counter in watching:
            counter.safely(counter.backward_begins, create_graph)
        return _engine(outputs, gradients, retains, create_graph, *args, **kwargs)
    except BaseException:  # also Ctrl-C: a counter does not stay on behind a pass that ended so; raised on
        for counter in list(_counters):
            counter.interrupted()
        raise
    finally:
        _create_graph.pop()
        for counter in watching:
            counter.safely(counter.backward_ends)


def current_phase() -> Phase:
    """Phase of the operator under way.

    Inside a backward pass gradients are enabled in activation checkpointing's second forward, and where a graph of the
    backward pass is built for a second derivative (`create_graph`).
    """
    if torch._C._current_graph_task_id() == -1:
        return "forward"
    if not torch.is_grad_enabled() or (_create_graph and _create_graph[-1] and not _in_checkpoint()):
        return "backward"
    return "recomputed"


def _in_checkpoint() -> bool:
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not _run_backward.__code__:
        if "checkpoint" in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class ModuleOwner:
    """Names the module that an operator belongs to, for a `FlopCounter`; listens to the calls of a model's modules.

    Autograd numbers its nodes in the order in which a forward pass makes them. At each entry to and exit from a module
    the next number is noted; a node's number then tells, in the backward pass, which module made it.
    """

    def __init__(self) -> None:
        self._stack: list[str] = [""]
        self._numbers: list[int] = []
        self._names: list[str] = []

    def __call__(self, phase: Phase) -> str:
        """Name of the module that computes the operator under way, "" for the model itself."""
        if phase != "backward":
            return self._stack[-1]
        node = torch._C._current_autograd_node()
        if node is None:
            return ""
        place = bisect_right(self._numbers, node._sequence_nr()) - 1
        return self._names[place] if place >= 0 else ""

    def attach(self, model: nn.Module) -> None:
        """Put hooks on every module of `model`, a copy: a live model should not be hooked for this."""
        for name, module in model.named_modules():
            module.register_forward_pre_hook(partial(self._enter, name))
            module.register_forward_hook(self._exit, always_call=True)

    def _enter(self, name: str, *_: Any) -> None:
        self._stack.append(name)
        self._mark()

    def _exit(self, *_: Any) -> None:
        self._stack.pop()
        self._mark()

    def _mark(self) -> None:
        self._numbers.append(torch.autograd._get_sequence_nr())
        self._names.append(self._stack[-1])
