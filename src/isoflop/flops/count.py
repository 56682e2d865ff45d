"""Count one training step of a model: parameters, FLOPs in total and by module, and how they were counted.

And what other counters count of the same step, and why they differ: fvcore, FlopCounterMode, Hugging Face.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from isoflop.console import Shown, cell
from isoflop.flops.calls import Call, Shape, Uncountable, metas, shapes, signature, tensors_in
from isoflop.flops.cost import first_matrix
from isoflop.flops.counter import FlopCount, FlopCounter, Phase
from isoflop.flops.measure import (
    Measurement,
    describe_error,
    eagerly,
    forward_backward,
    measure_flops,
    on_a_copy,
    run_once,
)
from isoflop.flops.operators import FORMULA, MEASURED, SIX_ND, WATCHED, palm, shape_of, six_n
from isoflop.flops.parameters import Parameters, count_parameters, groups_of_experts, numel, unwrap
from isoflop.flops.tokens import count_tokens
from isoflop.flops.twin import grouped_products, stand_ins, to_meta
from isoflop.lookup import need


@dataclass(frozen=True)
class ModuleCount:
    """Parameters and FLOPs of a module, its parts included; `count` alike neighbours (a stack's layers) are summed."""

    name: str
    kind: str
    parameters: int
    forward: int
    model: int
    hardware: int
    parts: tuple[ModuleCount, ...] = ()
    count: int = 1


def module_tree(model: nn.Module, by_module: Mapping[tuple[str, Phase], int]) -> ModuleCount:
    """FLOPs and parameters by module; a parameter, or a module, that several share counts with the first of them.

    Args:
        model: the model; wrappers of torch.compile inside it have no row.
        by_module: FLOPs of each module without its parts (`Measurement.by_module`).
    """
    seen: set[int] = set()

    def tree(name: str, path: str, module: nn.Module) -> ModuleCount:
        module = unwrap(module)
        if id(module) in seen:
            return ModuleCount(name, type(module).__name__, 0, 0, 0, 0)
        seen.add(id(module))
        size = 0
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                size += numel(parameter)
        parts = [tree(inner, f"{path}.{inner}" if path else inner, child) for inner, child in module.named_children()]
        phases: tuple[Phase, ...] = ("forward", "backward", "recomputed")
        forward, backward, again = (by_module.get((path, phase), 0) for phase in phases)
        return ModuleCount(
            name,
            type(module).__name__,
            size + sum(part.parameters for part in parts),
            forward + sum(part.forward for part in parts),
            forward + backward + sum(part.model for part in parts),
            forward + backward + again + sum(part.hardware for part in parts),
            tuple(_together(parts)),
        )

    return tree("", "", model)


def _together(parts: list[ModuleCount]) -> Iterator[ModuleCount]:
    """Sum neighbours that differ in name alone: the layers of a stack."""
    groups: list[list[ModuleCount]] = []
    for part in parts:
        if groups and part.name.isdigit() and replace(part, name=groups[-1][0].name) == groups[-1][0]:
            groups[-1].append(part)
        else:
            groups.append([part])
    for first, *others in groups:
        yield _times(first, 1 + len(others), f"{first.name}–{others[-1].name}") if others else first


def _times(module: ModuleCount, n: int, name: str) -> ModuleCount:
    parts = tuple(_times(part, n, part.name) for part in module.parts)
    sums = (module.parameters * n, module.forward * n, module.model * n, module.hardware * n)
    return ModuleCount(name, module.kind, *sums, parts, module.count * n)


RUN_AT_MOST = 2e13
"""FLOPs of a step that is run for real where it can't be measured on the meta device: a minute on two cores …"""
RUN_AT_MOST_PARAMETERS = 1e9
"""… and parameters: 4 GB, and as much again for a copy and for gradients."""


@dataclass(frozen=True)
class StepCount(Shown):
    """One training step of a model, forward and backward."""

    parameters: Parameters
    flops: FlopCount | None  # None where nothing could be measured
    estimate: int | None  # model FLOPs by a formula, where they could not be measured
    six_nd: int | None  # 6·N·D with N non-embedding (of experts the active); None where the inputs are no tokens
    tokens: int | None  # D, positions processed
    method: str  # how the FLOPs were counted (`isoflop.flops.operators`)
    reason: str = ""  # why not in a better way, or ""
    uncounted: tuple[str, ...] = ()  # heavy or custom operators without a formula, counted 0
    modules: ModuleCount | None = None  # FLOPs by module; None where they are not measured
    by_operator: Mapping[tuple[str, Phase], int] = field(default_factory=dict)  # FLOPs by operator and phase
    notes: tuple[str, ...] = ()
    """What to know of experts: that they are computed for tokens that did not choose them, or are chosen in turn."""

    @property
    def model_flops(self) -> int | None:
        """Measured or, failing that, estimated."""
        return self.estimate if self.flops is None else self.flops.model

    def __str__(self) -> str:
        N, flops = self.parameters, self.model_flops
        tokens = "" if self.tokens is None else f" of {self.tokens:,} tokens"
        return "\n".join(
            (
                f"N       {N.total:,} parameters, {cell(N.non_embedding, ',')} non-embedding, "
                f"{cell(N.non_embedding_with_head, ',')} with the output head",
                f"FLOPs   {'unknown' if flops is None else f'{flops:.4g}'} for a training step{tokens}",
                *([] if self.six_nd is None else [f"6·N·D   {self.six_nd:.4g}"]),
                f"by      {self.method}" + (f": {self.reason}" if self.reason else ""),
                *(f"note: {note}" for note in (*(f"counted 0: {name}" for name in self.uncounted), *self.notes)),
            )
        )


def count(model: nn.Module, *args: Any, **kwargs: Any) -> StepCount:
    """Count one training step of `model` on the given inputs, without running or changing it.

    Args:
        model: on any device (also "meta", where it takes no memory), wrapped and compiled or not.
        *args: arguments of its forward: tensors of the shapes that training has, on any device.
        **kwargs: likewise.

    Returns:
        Parameters and FLOPs, and how they were counted: on the meta device; else on one real step with random inputs
        on a copy (a model with weights, up to 2e13 FLOPs); else by a formula of its configuration; else 6·N·D.

    Raises:
        ValueError: the model has no parameters, or its inputs can't be described.
        Uncountable: nothing works, with the reasons.

    >>> import torch
    >>> model = nn.Linear(4, 5)
    >>> count(model, torch.empty(3, 4)).flops.model  # 2 · 3·4·5 forward, as much for the weights' gradient
    240
    """
    hint = " built already (for a configuration: `isoflop count config.json`)"
    need("model", isinstance(model, nn.Module), f"a torch.nn.Module{hint}", model)
    model = unwrap(model)
    with torch.inference_mode(False), torch.enable_grad():
        try:
            call = Call(model, shapes(args, values=True), shapes(kwargs, values=True))
        except Uncountable as reason:
            raise ValueError(f"{reason}: pass tensors") from None
        try:
            return count_measured(model, call)
        except Uncountable as reason:
            return count_otherwise(model, call, str(reason))


def count_measured(model: nn.Module, call: Call, tokens: int | None = None) -> StepCount:
    """Count a call on the meta device.

    Args:
        model: contains the called module.
        call: the module and the shapes of its arguments.
        tokens: D, where the inputs are no tokens; else it is their number.

    Raises:
        Uncountable: its code can't run there.
    """
    return _counted(model, measure_flops(model, call, by_module=True), call, tokens, MEASURED)


def count_otherwise(
    model: nn.Module,
    call: Call,
    reason: str,
    build: Callable[[], nn.Module] | None = None,
    tokens: int | None = None,
) -> StepCount:
    """Count a call that the meta device can't run: on one real step, or by a formula where it is too large for that.

    Args:
        model: contains the called module.
        call: the module and the shapes of its arguments.
        reason: why not on the meta device.
        build: makes the model with weights, where `model` has none.
        tokens: as above.

    Raises:
        Uncountable: the inputs are likely not those of training: it does not run on a CPU either, for another reason
            than that it needs a GPU; or no formula fits.
    """
    parameters = count_parameters(model)
    found, length = _positions(call)
    positions = found or tokens
    if build is None and not any(parameter.is_meta for parameter in model.parameters()):
        build = lambda: model  # noqa: E731
    work = 6 * parameters.total * (positions or 1)
    if build is not None and work <= RUN_AT_MOST and parameters.total <= RUN_AT_MOST_PARAMETERS:
        try:
            real = unwrap(build())
            name = next(name for name, module in model.named_modules() if module is call.module)
            measurement = run_once(real, replace(call, module=real.get_submodule(name)), _vocabulary(model))
            return _counted(model, measurement, call, tokens, WATCHED, reason)
        except Uncountable as error:
            if not _NEEDS_GPU.search(str(error)):
                raise
            reason = f"{error}; {reason}"
    elif _LACKS_INPUT.search(reason):
        raise Uncountable(reason)
    elif build is not None:
        reason = f"{reason}; too large to be run for real"
    estimate, method = estimated(model, parameters, positions, length)
    if estimate is None:
        raise Uncountable(reason)
    return StepCount(parameters, None, estimate.model, parameters.six_nd(positions), positions, method, reason)


_LACKS_INPUT = re.compile(r"\((Value|Index|Key|Type|Attribute|Assertion)Error: (?!.*\bmeta\b)")
"""Errors on the meta device that wrong inputs would raise on any device."""
_NEEDS_GPU = re.compile(r"cuda|gpu|nvidia|triton|flash|No module named|ImportError|NotImplementedError", re.IGNORECASE)


def estimated(
    model: nn.Module, parameters: Parameters, tokens: int | None, length: int | None
) -> tuple[FlopCount | None, str]:
    """FLOPs of a step that can't be measured, and by which formula: PaLM's where the shape is known, or 6·N·D.

    PaLM's with the matrices alone is exact for a dense transformer but for norms and biases; 6·N·D leaves out
    attention and the output head.
    """
    if tokens is None:
        return None, ""
    shape = shape_of(getattr(unwrap(model), "config", None))
    matrices = parameters.active_matrices
    if shape is not None and matrices is not None and length:
        flops = palm(matrices, shape, length) * tokens
        return FlopCount(flops, flops, flops - six_n(matrices) * tokens), FORMULA
    six_nd = parameters.six_nd(tokens)
    return None if six_nd is None else FlopCount(six_nd, six_nd, 0), SIX_ND


def _counted(
    model: nn.Module, measurement: Measurement, call: Call, tokens: int | None, method: str, reason: str = ""
) -> StepCount:
    parameters = count_parameters(model, measurement.uses)
    tokens = _positions(call)[0] or tokens
    return StepCount(
        parameters=parameters,
        flops=measurement.flops,
        estimate=None,
        six_nd=parameters.six_nd(tokens),
        tokens=tokens,
        method=method,
        reason=reason,
        uncounted=tuple(sorted(measurement.without_formula)),
        modules=module_tree(unwrap(model), measurement.by_module) if measurement.by_module else None,
        by_operator=measurement.by_operator,
        notes=tuple(_notes(unwrap(model), measurement, tokens)),
    )


def _notes(model: nn.Module, measurement: Measurement, tokens: int | None) -> Iterator[str]:
    """Sentences where experts multiply more than their tokens' rows, or choices are made up or drawn."""
    if measurement.in_turn:
        yield "tokens choose their experts in turn: exact where none is dropped and all experts cost the same"
    if measurement.drawn:
        yield "random numbers choose what is computed (layers that are dropped): this is one draw, other steps differ"
    done = needed = 0
    kind = ""
    for path, many, chosen, names in groups_of_experts(model):
        if tokens is None or chosen is None or not measurement.by_module:
            return
        weights = sum(numel(model.get_parameter(name)) for name in names if model.get_parameter(name).dim() >= 2)
        inside = (item for item in measurement.by_module.items() if f"{item[0][0]}.".startswith(f"{path}."))
        done += sum(flops for (_, phase), flops in inside if phase == "forward")
        needed += 2 * tokens * weights * chosen // many
        kind = kind or f"{chosen} of {many}"
    if needed and done > 1.5 * needed:
        yield (
            f"experts are computed for {done / needed:.1f}× as many tokens as choose them ({kind}): the FLOPs are what "
            "this code computes, 6·N·D what the choice needs"
        )


def _positions(call: Call) -> tuple[int | None, int | None]:
    """Positions that a call processes, and those of a sequence: of its token ids or embeddings (the encoder's)."""
    named = {name: value for name, value in call.kwargs.items() if not _NO_INPUT.search(name)}
    # by name, else the first input: a plain module's may be called anything
    for batch in (named, call.args, next(iter(named.values()), None)):
        found = count_tokens(given := metas(batch))
        if found is not None:
            matrix = first_matrix(signature(given))
            return found.processed, found.processed if matrix is None else matrix[1]
    return None, None


_NO_INPUT = re.compile("mask|label|target|decoder|position|type")


def _vocabulary(model: nn.Module) -> int | None:
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    config = getattr(model, "config", None)
    size = getattr(config, "vocab_size", None) or getattr(getattr(config, "text_config", None), "vocab_size", None)
    return size if isinstance(size, int) else max(tables, default=None)


# -- other counters ----------------------------------------------------------------------------------------------------

FORWARD, STEP = "forward only; multiply-adds × 2", "forward and backward, as on a CPU"
Terms = Mapping[str, int]  # reasons and their FLOPs: the counter's excess (+) or lack (−)
Counting = Callable[[nn.Module, Call, StepCount], tuple[int, Terms]]


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


def _opinion(model: nn.Module, call: Call, counted: StepCount, asked: Opinion, by: Counting) -> Opinion:
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
    from torch._subclasses import fake_tensor
    from torch.utils.flop_counter import FlopCounterMode

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
