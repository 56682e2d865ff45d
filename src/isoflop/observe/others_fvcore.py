"""fvcore's count of the forward pass: it traces TorchScript, here on the meta device, and counts multiply-adds."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch
from weakref import ref

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from isoflop.observe.calls import Call, Shape, Uncountable, tensors_in
from isoflop.observe.counter import Phase
from isoflop.observe.leaks import Made
from isoflop.observe.others_run import Term, ThinRun, first_that_works
from isoflop.observe.stand_ins import stand_ins
from isoflop.observe.twin import Twin

_NO_PRODUCTS = ("norm", "upsample", "pool", "grid_sampler")
"""What fvcore counts beside products, by a rough estimate."""


def by_fvcore(
    model: nn.Module, call: Call, by_operator: Mapping[tuple[str, Phase], int], run: ThinRun | None
) -> tuple[int, list[Term]]:
    """Twice fvcore's multiply-adds of a call's forward pass, and why that is not what we count.

    Raises:
        Uncountable: the forward pass can't be traced.
    """
    counts, skipped, forgotten = _traced(model, call)
    ours = by_operator if run is None else run.ours
    if "conv" not in counts:
        # jit records a convolution inside its CPU kernel, which meta tensors do not reach; fvcore's formula is ours
        counts["conv"] = ours.get(("aten.convolution", "forward"), 0) // 2
    terms = [
        (f"{name} is counted, though it multiplies no matrices", 2 * flops)
        for name, flops in counts.items()
        if any(part in name for part in _NO_PRODUCTS)
    ]
    terms.append(("a matrix times a batch of them counts once (matmul)", -2 * forgotten))
    for name in sorted(skipped):
        operator = name.replace("::", ".")
        missed = ours.get((operator, "forward"), 0)
        if name == "aten::scaled_dot_product_attention" and run is not None:
            operator, missed = "scaled_dot_product_attention", run.sdpa
        terms.append((f"{operator} is skipped", -missed))
    return sum(2 * flops for flops in counts.values()), terms


Trace = tuple[dict[str, int], set[str], int]
"""Multiply-adds by operator, the operators that fvcore skipped, and the multiply-adds that its matmul forgot."""


def _traced(model: nn.Module, call: Call) -> Trace:
    unmasked = {key: value for key, value in call.kwargs.items() if key != "attention_mask"}
    try:
        # Hugging Face's masks look into values, and reentrant checkpointing can't be traced: two ways round each
        return first_that_works(
            [
                partial(_trace, model, replace(call, kwargs=kwargs), training)
                for training in (True, False)
                for kwargs in (call.kwargs, unmasked)
            ]
        )
    except Uncountable as reason:
        raise Uncountable(f"TorchScript can't trace it ({reason})") from None


def _trace(model: nn.Module, call: Call, training: bool, made: Made) -> Trace:
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape, matmul_flop_jit

    forgotten = 0

    def matmul(inputs: list[Any], outputs: list[Any]) -> int:
        nonlocal forgotten
        theirs = int(matmul_flop_jit(inputs, outputs))
        forgotten += math.prod(get_shape(outputs[0])) * get_shape(inputs[0])[-1] - theirs
        return theirs

    twin = Twin(model)
    if not training:
        twin.root.eval()
    module = _TensorsOnly(twin[call.module], call)
    with _on_meta(), stand_ins(twin.root), torch.device("meta"), _noting(made):
        analysis = FlopCountAnalysis(module, module.given())
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        analysis.set_op_handle("aten::matmul", matmul)
        counts = {name: int(flops) for name, flops in analysis.by_operator().items()}
        return counts, set(analysis.unsupported_ops()), forgotten


class _TensorsOnly(nn.Module):
    """A module as jit traces it: tensors in, tensors out, no cache."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__()
        self.module, self.method = module, call.method
        kwargs = dict(call.kwargs)
        if hasattr(getattr(module, "config", None), "use_cache"):
            kwargs["use_cache"] = False
        self.leaves, self.spec = tree_flatten((call.args, kwargs))

    def given(self) -> tuple[torch.Tensor, ...]:
        return tuple(leaf.meta() for leaf in self.leaves if isinstance(leaf, Shape))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tensor = iter(tensors)
        leaves = [next(tensor) if isinstance(leaf, Shape) else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.spec)
        return tuple(tensors_in(getattr(self.module, self.method)(*args, **kwargs)))


@contextmanager
def _noting(made: Made) -> Iterator[None]:
    """Note the meta tensors that come to be inside, for `no_leaks`; a mode that sees them would disturb jit."""

    def metas() -> list[torch.Tensor]:
        return [item for item in gc.get_objects() if type(item) in (torch.Tensor, nn.Parameter) and item.is_meta]

    before = metas()  # held, for their ids stay theirs
    try:
        yield
    finally:
        known = {id(tensor) for tensor in before}
        made += [ref(tensor) for tensor in metas() if id(tensor) not in known]


@contextmanager
def _on_meta() -> Iterator[None]:
    """Sizes are tensors while jit traces, which torch's meta kernels, written in Python, are not prepared for."""
    guard = "torch.fx.experimental.symbolic_shapes.guard_or_false"
    with patch.object(torch, "_check", lambda *_, **__: None), patch(guard, bool):
        yield
