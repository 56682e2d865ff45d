"""FLOPs and parameters of a model by module, as a tree: what `isoflop count` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from isoflop.observe.counter import Phase
from isoflop.observe.parameters import numel, unwrap


@dataclass(frozen=True)
class ModuleCount:
    """What a module costs, its parts included; `count` alike modules that stand side by side are one, added up."""

    name: str
    kind: str
    parameters: int
    forward: int
    model: int
    hardware: int
    parts: tuple[ModuleCount, ...] = ()
    count: int = 1


_PHASES: tuple[Phase, Phase, Phase] = ("forward", "backward", "recomputed")


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
        forward, backward, again = (by_module.get((path, phase), 0) for phase in _PHASES)
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


def _together(parts: list[ModuleCount]) -> list[ModuleCount]:
    """Neighbours that differ in name alone as one, added up: the layers of a stack."""
    result: list[ModuleCount] = []
    runs: list[list[ModuleCount]] = []
    for part in parts:
        if runs and part.name.isdigit() and _unnamed(runs[-1][0]) == _unnamed(part):
            runs[-1].append(part)
        else:
            runs.append([part])
    for run in runs:
        first, n = run[0], len(run)
        name = first.name if n == 1 else f"{first.name}–{run[-1].name}"
        result.append(_times(first, n, name))
    return result


def _unnamed(part: ModuleCount) -> Any:
    return (part.kind, part.parameters, part.forward, part.model, part.hardware, part.parts)


def _times(part: ModuleCount, n: int, name: str) -> ModuleCount:
    if n == 1:
        return part
    parts = tuple(_times(inner, n, inner.name) for inner in part.parts)
    sums = (part.parameters * n, part.forward * n, part.model * n, part.hardware * n)
    return ModuleCount(name, part.kind, *sums, parts, part.count * n)
