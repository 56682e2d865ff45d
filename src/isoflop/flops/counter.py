"""FLOPs of what runs inside a `with` block, counted at torch's dispatcher: matrix products and convolutions.

The formulas are in `operators`. torch's `FlopCounterMode` itself is not used: it counts recomputation under activation
checkpointing as model FLOPs, SDPA on CPU as 0, and switches torch.compile off for good (pytorch#190286).

Attention is counted apart, for a causal mask needs half of it: QKᵀ, a product of two activations whose result meets a
softmax, and AV, which multiplies that. A state-space model's scan or a linear attention meets no softmax, and masks
nothing away.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from weakref import ref

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from isoflop.flops.operators import (
    BATCHED_PRODUCTS,
    Formula,
    counted_for_nothing,
    formula_of,
    is_attention_kernel,
    operator_name,
)
from isoflop.flops.parameters import storage_number
from isoflop.flops.twin import Made

aten = torch.ops.aten

_SOFTMAX = {aten._softmax, aten._safe_softmax, aten._sparse_softmax}


class AttentionProducts:
    """Follows the results of products of two activations through a forward pass, to the softmax or not."""

    def __init__(self) -> None:
        # storage → the products it comes from, True past a softmax. No tensor is kept alive: a freed storage's
        # number is given out again, by an operator that is seen here and forgets the old one.
        self._followed: dict[int, tuple[frozenset[int], bool]] = {}
        self._waiting: dict[int, int] = {}  # product → its FLOPs, until it is known to be attention
        self._number = 0

    def product(self, operands: Iterable[Any], output: torch.Tensor, flops: int) -> int:
        """A product of two activations. Returns FLOPs now known to be attention's."""
        if any(self._of(operand)[1] for operand in operands):  # AV
            self._follow([output], frozenset(), False)
            return flops
        self._number += 1
        self._waiting[self._number] = flops
        self._follow([output], frozenset({self._number}), False)
        return 0

    def other(self, packet: Any, args: tuple[Any, ...], outputs: Iterable[Any], is_product: bool) -> int:
        """Any other operator. Returns FLOPs now known to be attention's."""
        if not self._followed:
            return 0
        products: frozenset[int] = frozenset()
        passed = False
        if not is_product:
            for arg in args:
                for item in arg if isinstance(arg, list | tuple) else (arg,):
                    found, after = self._of(item)
                    products, passed = products | found, passed or after
        known = 0
        if packet in _SOFTMAX and products:
            known = sum(self._waiting.pop(product, 0) for product in products)
            products, passed = frozenset(), True
        self._follow(outputs, products, passed)
        return known

    def backward(self) -> None:
        """A backward pass is under way, whose operators are not shown here."""
        if self._followed:
            self._followed.clear()
            self._waiting.clear()

    def _of(self, tensor: Any) -> tuple[frozenset[int], bool]:
        if not isinstance(tensor, torch.Tensor):
            return frozenset(), False
        return self._followed.get(storage_number(tensor), (frozenset(), False))

    def _follow(self, outputs: Iterable[Any], products: frozenset[int], passed: bool) -> None:
        for output in outputs:
            if not isinstance(output, torch.Tensor):
                continue
            if products or passed:
                self._followed[storage_number(output)] = (products, passed)
            else:
                self._followed.pop(storage_number(output), None)


Phase = Literal["forward", "backward", "recomputed"]
"""`recomputed`: activation checkpointing's second forward pass, which is part of hardware FLOPs alone."""


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one forward and backward pass, exact integers.

    `model`: without recomputation (Chowdhery et al. 2022: "model FLOPs"), attention in full.
    `hardware`: with the forward passes that activation checkpointing repeats.
    `attention`: the part of `model` in products of two activations (QKᵀ, AV and their gradients); a causal mask
    would need half of it.
    """

    model: int
    hardware: int
    attention: int

    @property
    def causal(self) -> int:
        """Model FLOPs with attention counted half: what a causal kernel that skips the masked blocks computes."""
        return self.model - self.attention // 2

    def __add__(self, other: FlopCount) -> FlopCount:
        return FlopCount(self.model + other.model, self.hardware + other.hardware, self.attention + other.attention)

    def __mul__(self, times: int) -> FlopCount:
        return FlopCount(self.model * times, self.hardware * times, self.attention * times)


class FlopCounter(TorchDispatchMode):
    """Counts the FLOPs of the operators that run inside it, and changes none of their results.

    `on_operator(packet, args, kwargs, output, is_forward)`, if given, sees every operator (the parameters' tracer
    listens there); it may return True to say that the operator's operands hold a parameter. `made`, if given, gets a
    weak reference to every tensor that an operator returns. `owner(phase)`, if given, names the module that computes.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        on_operator: Callable[..., bool] | None = None,
        made: Made | None = None,
        owner: Callable[[Phase], str] | None = None,
    ) -> None:
        super().__init__()
        self._made = made
        self._on_operator = on_operator
        self._owner = owner
        self._attention_products = AttentionProducts()
        self.without_formula: set[str] = set()
        """Custom operators (a fused attention or loss), counted 0 because nobody has said what they compute."""
        self.by_operator: dict[tuple[str, Phase], int] = defaultdict(int)
        self.by_module: dict[tuple[str, Phase], int] = defaultdict(int)
        self._attention = 0

    @property
    def count(self) -> FlopCount:
        """FLOPs so far."""
        hardware = sum(self.by_operator.values())
        model = sum(flops for (_, phase), flops in self.by_operator.items() if phase != "recomputed")
        return FlopCount(model, hardware, self._attention)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # questions about a tensor, which the dispatcher does not know
            return func(*args, **kwargs)
        if self._made is not None:
            args, kwargs = _without_values((args, kwargs))
        higher_order = isinstance(func, torch._ops.HigherOrderOperator)
        packet = func if higher_order else func._overloadpacket
        formula = formula_of(packet)
        if formula is None and higher_order:
            with self:  # a branch or a loop: what counts is inside
                return func(*args, **kwargs)
        if formula is None and func._can_decompose():
            # a composite operator reaches us whole only without autograd; its parts are what has formulas
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        if formula is None and counted_for_nothing(packet, func.namespace):
            self.without_formula.add(operator_name(packet) or str(packet))
        out = func(*args, **kwargs)
        self._note(packet, formula, args, kwargs, out)
        return out

    def _note(
        self, packet: Any, formula: Formula | None, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        outputs = out if isinstance(out, tuple | list) else (out,)
        if self._made is not None:
            self._made += [ref(item) for item in outputs if isinstance(item, torch.Tensor)]
        phase = current_phase()
        on_parameter = self._on_operator is not None and self._on_operator(
            packet, args, kwargs, out, phase == "forward"
        )
        if formula is not None:
            flops = int(formula(*args, **kwargs, out_val=out))
            self.by_operator[str(packet), phase] += flops
            if self._owner is not None:
                self.by_module[self._owner(phase), phase] += flops
            if is_attention_kernel(packet):
                self._attention += 0 if phase == "recomputed" else flops
            elif packet in BATCHED_PRODUCTS and not on_parameter and phase != "backward":
                operands = args[1:3] if packet is aten.baddbmm else args[:2]
                part = with_gradients(operands, flops, phase)
                self._attention += self._attention_products.product(operands, out, part)
                return
        if phase == "backward":
            self._attention_products.backward()
        else:
            self._attention += self._attention_products.other(packet, args, outputs, formula is not None)


def current_phase() -> Phase:
    """Phase of the operator under way.

    Inside a backward pass only activation checkpointing's second forward runs with gradients enabled.
    """
    if torch._C._current_graph_task_id() == -1:
        return "forward"
    return "recomputed" if torch.is_grad_enabled() else "backward"


def _without_values(args: Any) -> Any:
    """In a replay: a tensor that the live model keeps outside of itself (a table of angles) as a meta tensor.

    Only where it meets a meta tensor: what is computed of real ones alone may decide a branch (LayerDrop).
    """
    leaves, spec = tree_flatten(args)
    real = [isinstance(leaf, torch.Tensor) and not _is_meta(leaf) for leaf in leaves]
    if not any(real) or not any(isinstance(leaf, torch.Tensor) and _is_meta(leaf) for leaf in leaves):
        return args
    for i, leaf in enumerate(leaves):
        if real[i]:
            leaves[i] = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
    return tree_unflatten(leaves, spec)


def _is_meta(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "meta" or isinstance(tensor, FakeTensor)


def with_gradients(operands: Any, flops: int, phase: Phase) -> int:
    """FLOPs of a product of two activations and of its gradients, two products of the same size.

    Both are counted at the forward pass, where activations can still be told from weights. Reentrant checkpointing
    runs that without gradients, and only its second forward knows which operands need them.
    """
    gradients = flops * sum(bool(operand.requires_grad) for operand in operands)
    if phase == "recomputed":
        node = torch._C._current_autograd_node()
        return gradients if node is not None and "CheckpointFunction" in node.name() else 0
    return flops + (gradients if torch.is_grad_enabled() else 0)


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

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Hooks on every module of `model`, a twin: a live model should not be hooked for this."""
        handles = []
        for name, module in model.named_modules():
            before, after = self._hooks(name)
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(*_: Any) -> None:
            self._stack.append(name)
            self._mark()

        def after(*_: Any) -> None:
            self._stack.pop()
            self._mark()

        return before, after

    def _mark(self) -> None:
        self._numbers.append(torch.autograd._get_sequence_nr())
        self._names.append(self._stack[-1])
