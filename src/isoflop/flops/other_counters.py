"""The counts of other counters for the same step, and why they differ: fvcore, FlopCounterMode, Hugging Face."""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

from isoflop.flops.calls import Call, Shape, Uncountable, metas, tensors_in
from isoflop.flops.count import StepCount
from isoflop.flops.counter import FlopCounter
from isoflop.flops.measure import describe_error, eagerly, forward_backward, on_a_copy
from isoflop.flops.parameters import unwrap
from isoflop.flops.twin import grouped_products, stand_ins, to_meta

FORWARD, STEP = "forward only; multiply-adds × 2", "forward and backward, as on a CPU"
Terms = Mapping[str, int]  # reasons and their FLOPs: the counter's excess (+) or lack (−)
Counted = Callable[[nn.Module, Call, StepCount], tuple[int, Terms]]


@dataclass(frozen=True)
class Opinion:
    """A counter's FLOPs (1 multiply-add = 2) of what it counts, and `ours` of the same.

    `reasons`: where the difference comes from, each with its FLOPs, the largest first; or why `flops` is None.
    """

    counter: str
    convention: str
    flops: int | None
    ours: int | None
    reasons: tuple[str, ...] = ()

    @property
    def difference(self) -> float | None:
        """Its relative error, if ours is right: −0.13 is 13 % too few."""
        return None if self.flops is None or not self.ours else self.flops / self.ours - 1


def opinions(model: nn.Module, call: Call, counted: StepCount) -> tuple[Opinion, ...]:
    """Compare our count of a call with three counters', on a copy that computes nothing. Never raises."""
    forward = sum(flops for (_, phase), flops in counted.by_operator.items() if phase == "forward") or None
    step = counted.model_flops
    return (
        _opinion(model, call, counted, Opinion("fvcore", FORWARD, None, forward), by_fvcore),
        _opinion(model, call, counted, Opinion("torch FlopCounterMode", STEP, None, step), by_flop_counter_mode),
        _opinion(model, call, counted, Opinion("Hugging Face floating_point_ops", "6·N·D", None, step), by_huggingface),
    )


def _opinion(model: nn.Module, call: Call, counted: StepCount, asked: Opinion, by: Counted) -> Opinion:
    def count(model: nn.Module, call: Call) -> tuple[int, Terms]:
        with warnings.catch_warnings(), eagerly(), torch.autocast("cpu", enabled=False), torch.enable_grad():
            warnings.simplefilter("ignore")
            return by(model, call, counted)

    try:
        flops, terms = on_a_copy(model, call, count)
    except Exception as error:  # whatever running somebody's model may raise: it becomes the reason
        return replace(asked, reasons=(describe_error(error),))
    terms = {**terms, "everything else": flops - (asked.ours or 0) - sum(terms.values())}
    largest = sorted((item for item in terms.items() if item[1]), key=lambda item: -abs(item[1]))
    return replace(asked, flops=flops, reasons=tuple(f"{text}: {_signed(number)}" for text, number in largest))


def _signed(number: int) -> str:
    text = f"{number:+,}" if abs(number) < 10**6 else f"{number:+.2e}"
    return re.sub(r"e\+0?", "e", text).replace("-", "−")


def by_huggingface(_: nn.Module, call: Call, counted: StepCount) -> tuple[int, Terms]:
    """Hugging Face's Trainer adds this to `total_flos`: 6 · parameters without embeddings · elements of the input."""
    module: Any = unwrap(call.module)
    if not callable(getattr(module, "num_parameters", None)):
        raise Uncountable(f"{type(module).__name__} has no num_parameters: the Trainer's total_flos stays 0")
    inputs = inspect.signature(module.forward).bind_partial(*call.args, **call.kwargs).arguments
    given = {**inputs, **inputs.pop("kwargs", {})}.get(getattr(module, "main_input_name", "input_ids"))
    taken = math.prod(given.size) if isinstance(given, Shape) else 0
    if not taken:
        return 0, {f"{module.main_input_name} is not among the inputs: nothing is counted": -(counted.model_flops or 0)}
    parameters, attention = counted.parameters, counted.flops.attention if counted.flops else 0
    idle = parameters.total - (parameters.active or parameters.total)
    terms = {"attention's products are left out": -attention, "all experts count, not the active": 6 * taken * idle}
    return 6 * taken * module.num_parameters(exclude_embeddings=True), terms


def by_flop_counter_mode(model: nn.Module, call: Call, _: StepCount) -> tuple[int, Terms]:
    """FLOPs that torch's FlopCounterMode reports of a step on a CPU, run on fake CPU tensors: shapes, no values."""
    theirs, ours = FlopCounterMode(display=False), FlopCounter()
    # (it logs what fails with a traceback, as an error)
    with patch.object(fake_tensor.log, "disabled", True), fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        to_meta(model, device="cpu")
        args, kwargs = metas((call.args, call.kwargs), device="cpu")
        with grouped_products(), ours, theirs:
            forward_backward(Call(unwrap(call.module), args, kwargs, call.method))
    found = {str(packet): int(flops) for packet, flops in theirs.get_flop_counts().get("Global", {}).items()}
    terms: Counter[str] = Counter()
    for name, flops in found.items():
        terms[_why(name)] += flops
    for (name, phase), flops in ours.by_operator.items():
        again = phase == "recomputed"
        terms[_why(name)] -= flops * (not again or name in found)
        terms["activation checkpointing's second forward pass is counted"] += flops * (again and name in found)
    return sum(found.values()), terms


def _why(name: str) -> str:
    known = {
        "convolution_backward": "a grouped convolution's backward pass is taken for a full one (pytorch#183405)",
        "attention": "scaled_dot_product_attention has no formula there for a CPU (pytorch#195460)",
    }
    return next((why for part, why in known.items() if part in name), f"{name} has another formula there, or none")


def by_fvcore(model: nn.Module, call: Call, counted: StepCount) -> tuple[int, Terms]:
    """Twice fvcore's multiply-adds of a forward pass, which it traces by TorchScript, here on the meta device."""
    from fvcore.nn import FlopCountAnalysis

    forward = {name: flops for (name, phase), flops in counted.by_operator.items() if phase == "forward"}
    forward["aten.scaled_dot_product_attention"] = sum(forward[name] for name in forward if "attention" in name)
    to_meta(model)
    unwrap(model).eval()  # reentrant checkpointing, which training uses, can't be traced
    module: Any = unwrap(call.module)
    other = {"use_cache": False} if hasattr(getattr(module, "config", None), "use_cache") else {}
    kwargs = {name: value for name, value in {**call.kwargs, **other}.items() if name != "attention_mask"}
    leaves, spec = tree_flatten((call.args, kwargs))

    class Traceable(nn.Module):
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            given = iter(tensors)
            args, kwargs = tree_unflatten([next(given) if isinstance(x, Shape) else x for x in leaves], spec)
            return tuple(tensors_in(getattr(module, call.method)(*args, **kwargs)))

    guard = "torch.fx.experimental.symbolic_shapes.guard_or_false"  # jit's sizes are tensors, which meta kernels mind
    unchecked = patch.object(torch, "_check", lambda *_, **__: None)
    traceable = Traceable()
    traceable.add_module("module", module)
    with torch.device("meta"), unchecked, patch(guard, bool), stand_ins(unwrap(model)):
        analysis = FlopCountAnalysis(traceable, tuple(leaf.meta() for leaf in leaves if isinstance(leaf, Shape)))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        found = {name: int(flops) for name, flops in analysis.by_operator().items()}
    # jit records a convolution inside its CPU kernel, which meta tensors do not reach; fvcore's formula is ours
    found.setdefault("conv", forward.get("aten.convolution", 0) // 2)
    skipped = {name.replace("::", ".") for name in analysis.unsupported_ops()}
    terms = {f"{name} is skipped": -forward.get(name, 0) for name in skipped}
    idle = [name for name in found if any(part in name for part in ("norm", "upsample", "pool", "grid_sampler"))]
    terms |= {f"{name} is counted, though it multiplies no matrices": 2 * found[name] for name in idle}
    return 2 * sum(found.values()), terms
