"""Count one training step of a model: parameters, FLOPs in total and by module, and how they were counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from isoflop.console import Shown, cell
from isoflop.flops.calls import Call, Uncountable, metas, shapes, signature
from isoflop.flops.cost import first_matrix
from isoflop.flops.counter import FlopCount, Phase
from isoflop.flops.measure import Measurement, measure_flops, run_once
from isoflop.flops.operators import FORMULA, MEASURED, SIX_ND, WATCHED, palm, shape_of, six_n
from isoflop.flops.parameters import Parameters, count_parameters, groups_of_experts, numel, unwrap
from isoflop.flops.tokens import count_tokens
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
    flops: FlopCount | None
    """None where nothing could be measured."""
    estimate: int | None
    """Model FLOPs by a formula, where they could not be measured."""
    six_nd: int | None
    """6·N·D with N non-embedding (of experts the active); None where the inputs are no tokens."""
    tokens: int | None
    """D, positions processed."""
    method: str
    """How the FLOPs were counted (`isoflop.flops.operators`)."""
    reason: str = ""
    """Why not in a better way, or ""."""
    uncounted: tuple[str, ...] = ()
    """Heavy or custom operators without a formula, counted 0."""
    modules: ModuleCount | None = None
    """FLOPs by module; None where they are not measured."""
    by_operator: Mapping[tuple[str, Phase], int] = field(default_factory=dict)
    """FLOPs by operator and phase."""
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
    return _counted(model, measure_flops(model, [call], by_module=True), call, tokens, MEASURED)


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
