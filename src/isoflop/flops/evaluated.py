"""Calls of the model in evaluation mode without gradients: a part of the training step, or its validation?

They are a part where what they return, or what follows from it (tokens that were generated), meets a tensor that needs
gradients. What becomes a number of Python or an array of NumPy on the way is not followed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from isoflop.flops.counter import NOTHING, FlopCount
from isoflop.flops.values import storage_number


class Evaluated:
    """The calls of an observation. Those whose results meet each other are one."""

    def __init__(self) -> None:
        self.calls: list[FlopCount | None] = []
        """FLOPs of each; None: a part of the step."""
        self._joined: list[int] = []  # the call that it is one with, itself if none
        self._before: FlopCount | None = None  # one is under way, and that was counted before it
        self._made: dict[int, int] = {}  # storage → the call that it follows from

    def unused(self) -> FlopCount:
        """FLOPs of those that are no part of the step."""
        return sum((flops for flops in self.calls if flops is not None), NOTHING)

    def call(self, counted: FlopCount, begins: bool) -> None:
        """One begins or ends, where that much was counted."""
        if begins and self._before is None:
            self._before = counted
            self._joined.append(len(self.calls))
            self.calls.append(NOTHING)
        elif not begins and self._before is not None:
            first = self._first(len(self.calls) - 1)
            known = self.calls[first]
            self.calls[first] = None if known is None else known + (counted - self._before)
            self._before = None

    def follow(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> FlopCount:
        """An operator of a forward pass. Returns FLOPs that it shows to be a part of the step."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        read = set(map(storage_number, inputs))
        made = {storage_number(leaf) for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)}
        made -= set() if str(packet).endswith("_") else read  # a view
        met = {self._first(self._made[number]) for number in read & self._made.keys()}
        used = NOTHING
        if self._before is not None:
            met.add(self._first(len(self.calls) - 1))
        elif met and torch.is_grad_enabled() and any(leaf.requires_grad for leaf in inputs):
            for call in met:
                used += self.calls[call] or NOTHING
                self.calls[call] = None
        for number in made:  # no tensor is kept alive: a freed storage's number comes again
            if met:
                self._made[number] = min(met)
            else:
                self._made.pop(number, None)
        for call in met - {min(met, default=0)}:
            found, other = self.calls[min(met)], self.calls[call]
            if found is None or other is None:  # one with what is a part of the step
                used += found or other or NOTHING
                self.calls[min(met)] = None
            else:
                self.calls[min(met)] = found + other
            self.calls[call], self._joined[call] = NOTHING, min(met)
        return used

    def _first(self, call: int) -> int:
        while self._joined[call] != call:
            call = self._joined[call]
        return call
