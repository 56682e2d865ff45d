"""`WeightWatch` sees at log steps whether training changes any weight."""

from __future__ import annotations

import torch
from torch import nn

from isoflop.guard import attempt

TENSORS, ELEMENTS = 32, 4096
"""Whose values are compared, and of each the first ones."""


class WeightWatch:
    """Whether any weight that trains has changed between log steps.

    In-place writes count up a tensor's version, which costs nothing to read. Where no version has moved the values are
    compared as well, for kernels of others write past it: then nothing can be seen, and nothing is concluded.

    Args:
        model: that is trained, wrapped or not; None: nothing is seen.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._watched: list[nn.Parameter] = []
        self._versions: list[int] = []
        self._moves = 0  # the one whose version has moved
        self._since: int | None = None
        self._values: list[torch.Tensor] = []

    def unchanged_since(self, step: int) -> int | None:
        """Step since which no weight has changed; None: some has, or it can't be seen. On one rank, without a sum."""
        moves = self._moves
        if moves < len(self._watched) and self._watched[moves]._version != self._versions[moves]:
            self._versions[moves] = self._watched[moves]._version
            self._since = None
            return None
        return None if self._model is None else attempt(self._compare, self._model, step)

    def _compare(self, model: nn.Module, step: int) -> int | None:
        watched = [each for each in model.parameters() if each.requires_grad]
        versions = [each._version for each in watched]
        same = len(watched) == len(self._watched) and all(map(lambda a, b: a is b, watched, self._watched))
        before, self._watched, self._versions = self._versions, watched, versions
        moved = [i for i, version in enumerate(versions) if not same or version != before[i]]
        if moved or not watched:
            self._moves, self._since = next(iter(moved), 0), None
            return None
        values = _values(watched)
        if self._since is None:
            self._since, self._values = step, values
            return None
        if not all(map(torch.equal, values, self._values)):
            self._model = None  # written past the version
            self._since = None
        return self._since


def _values(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    """Some of this rank's values."""
    some = parameters[:: -(-len(parameters) // TENSORS)]
    shards = (each.to_local() if hasattr(each, "to_local") else each for each in some)
    return [shard.detach().reshape(-1)[:ELEMENTS].clone() for shard in shards]
