"""Which module of a model computes: forward passes by what is being called, backward passes by what built the graph."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from isoflop.observe.counter import Phase


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
