"""A training step on fake CPU tensors, which have shapes and no values, watched by torch's FlopCounterMode and by us.

The dispatcher chooses the kernels of a CPU, so FlopCounterMode reports exactly what it does of a real step there,
while nothing is computed or allocated.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch
from weakref import ref

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from isoflop.observe.calls import Call, Uncountable, metas, tensors_in
from isoflop.observe.counter import FlopCount, FlopCounter, Phase, current_phase, with_gradients
from isoflop.observe.leaks import Made, no_leaks
from isoflop.observe.measure import differentiated, eagerly, fake_tensors, said
from isoflop.observe.operators import attention_forward_flops, formula_of, is_attention_kernel
from isoflop.observe.stand_ins import stand_ins
from isoflop.observe.twin import Twin, untouched_randomness
from isoflop.observe.uses import UseTracer

aten = torch.ops.aten

Term = tuple[str, int]
"""A reason and its FLOPs: what a counter says more (+) or less (−) than we."""


@dataclass
class Products:
    """FLOPs of the products with one parameter: of the forward pass, and with the gradients that are needed."""

    forward: int = 0
    training: int = 0


@dataclass(frozen=True)
class ThinRun:
    """What was seen of one training step on fake CPU tensors.

    `theirs`: FlopCounterMode's count by operator. `ours`: ours by operator and phase. `weights`: by parameter.
    `activations`: of products of two activations that are no fused attention, forward and backward.
    `sdpa`: of scaled_dot_product_attention in the forward pass, whatever kernel it came to.
    `flex`: flex_attention was written out, which has no backward pass on a CPU and stops FlopCounterMode elsewhere.
    """

    theirs: Mapping[str, int]
    ours: Mapping[tuple[str, Phase], int]
    count: FlopCount
    weights: Mapping[str, Products]
    activations: int
    sdpa: int
    flex: bool

    @property
    def scans(self) -> int:
        """FLOPs of products of two activations that are no attention (a state-space model's scan)."""
        fused = sum(n for (name, phase), n in self.ours.items() if "attention" in name and phase != "recomputed")
        return self.activations - (self.count.attention - fused)


def thin_run(model: nn.Module, call: Call) -> ThinRun:
    """Run a call and its backward pass on fake CPU tensors.

    Raises:
        Uncountable: the model's code does not run on them, with the reason.
    """
    # grouped products have a meta kernel for bf16 alone
    return first_that_works([partial(_thin_run, model, call, floating) for floating in (None, torch.bfloat16)])


T = TypeVar("T")


def first_that_works(ways: list[Callable[[Made], T]]) -> T:
    """The result of the first of several ways to run somebody's forward pass on a twin that raises nothing.

    Nothing is said, drawn, compiled, cast or left behind.

    Raises:
        Uncountable: all fail, with the first one's reason.
    """
    with no_leaks() as made, untouched_randomness(), warnings.catch_warnings(), eagerly():
        warnings.simplefilter("ignore")
        with torch.autocast("cpu", enabled=False), torch.enable_grad():
            outcome = _first(ways, made)
    if isinstance(outcome, str):
        raise Uncountable(outcome)
    return outcome


def _first(ways: list[Callable[[Made], T]], made: Made) -> T | str:
    """A result or a text; an exception would hold on to the tensors in its frames, which `no_leaks` then finds."""
    reason = ""
    for way in ways:
        try:
            return way(made)
        except Exception as error:  # whatever a user's forward may raise
            reason = reason or said(error)
    return reason


def _thin_run(model: nn.Module, call: Call, floating: torch.dtype | None, made: Made) -> ThinRun:
    from torch.utils.flop_counter import FlopCounterMode

    with fake_tensors():
        twin = Twin(model, floating, device="cpu")
        tracer = _Listener(twin.parameters, made)
        args, kwargs = metas((call.args, call.kwargs), floating, "cpu")
        tracer.arguments(tensors_in((args, kwargs)))
        counter, theirs = FlopCounter(tracer), FlopCounterMode(display=False)
        with stand_ins(twin.root), _flex_calls() as flex, counter, theirs, _SDPA() as sdpa:
            output = getattr(twin[call.module], call.method)(*args, **kwargs)
            roots = [tensor for tensor in differentiated(output) if tensor.requires_grad]
            if roots:
                torch.autograd.backward(roots, [torch.empty_like(root) for root in roots])
    by_operator = theirs.get_flop_counts().get("Global", {})
    return ThinRun(
        {str(packet): int(flops) for packet, flops in by_operator.items()},
        Counter(counter.by_operator),
        counter.count,
        tracer.weights,
        tracer.activations,
        sdpa.flops,
        bool(flex),
    )


@contextmanager
def _flex_calls() -> Iterator[list[None]]:
    """Inside `stand_ins`: an entry for each call of flex_attention."""
    calls: list[None] = []
    module = sys.modules.get("torch.nn.attention.flex_attention")
    if module is None:
        yield calls
        return
    stand_in = vars(module)["flex_attention_hop"]

    def noted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return stand_in(*args, **kwargs)

    with patch.object(module, "flex_attention_hop", noted):
        yield calls


class _SDPA(TorchFunctionMode):
    """Counts the forward calls of scaled_dot_product_attention, which may go to a kernel or be written out."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and current_phase() == "forward":
            given = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
            self.flops += attention_forward_flops(given["query"], given["key"], given["value"])
        return func(*args, **kwargs)


class _Listener(UseTracer):
    """Adds up the products of a training step by the parameter that they multiply by."""

    def __init__(self, parameters: dict[str, nn.Parameter], made: Made) -> None:
        super().__init__(parameters)
        self._made = made
        self._sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        self.weights: dict[str, Products] = {}
        self.activations = 0

    def __call__(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, is_forward: bool) -> bool:
        self._made += [ref(leaf) for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        on_parameter = super().__call__(packet, args, kwargs, out, is_forward)
        formula, phase = formula_of(packet), current_phase()
        if formula is not None and phase != "backward" and not is_attention_kernel(packet):
            operands = args[1:3] if packet in (aten.addmm, aten.baddbmm, aten.addmv, aten.addbmm) else args[:2]
            flops = int(formula(*args, **kwargs, out_val=out))
            self._add(operands, flops if phase == "forward" else 0, with_gradients(operands, flops, phase))
        return on_parameter

    def _add(self, operands: tuple[Any, ...], forward: int, training: int) -> None:
        names = sorted(frozenset().union(*map(self._parameter_names, operands)))
        if not names:
            self.activations += training
        size = sum(self._sizes[name] for name in names)
        for name in names:  # several where the weight is put together of them
            products = self.weights.setdefault(name, Products())
            products.forward += forward * self._sizes[name] // size
            products.training += training * self._sizes[name] // size
