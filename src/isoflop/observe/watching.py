"""Counting a live training step where its model can't be measured on the meta device: which, when, and until when."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any

import torch

from isoflop.observe.calls import Signature
from isoflop.observe.measure import eagerly
from isoflop.observe.real_step import LiveCounter

MOST = 256
"""Signatures: to listen costs as much as to measure, 40 µs an operator."""
ATTEMPTS = 3
"""A (micro-)batch that is not followed by its own backward pass tells nothing; after so many it never will."""


class Watch:
    """Listens to one (micro-)batch of each signature that is `wanted`, from `begin` to `end`."""

    def __init__(self) -> None:
        self.wanted: dict[Signature, int] = {}
        """Signature → attempts left."""
        self._live: tuple[Signature, LiveCounter, AbstractContextManager[Any]] | None = None

    def want(self, key: Signature) -> None:
        """Watch the next batch of this signature, unless that can't be done without touching the training.

        Compiled code would have to run as it was written, which takes more memory and rounds otherwise.
        """
        if key not in self.wanted and len(self.wanted) < MOST and not _something_is_compiled():
            self.wanted[key] = ATTEMPTS

    def begin(self, key: Signature) -> None:
        """A (micro-)batch of this signature begins."""
        if self._live is not None or self.wanted.get(key, 0) <= 0:
            return
        self.wanted[key] -= 1
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return
        counter, eager = LiveCounter(), eagerly()
        eager.__enter__()
        if counter.enter():
            self._live = key, counter, eager
        else:
            eager.__exit__(None, None, None)

    def end(self) -> tuple[Signature, LiveCounter] | None:
        """The batch and its backward pass are over. Returns what was counted, if it is a whole step."""
        if self._live is None:
            return None
        key, counter, eager = self._live
        if not counter.leave():
            return None
        self._live = None
        eager.__exit__(None, None, None)
        phases = {phase for _, phase in counter.by_operator}
        if counter.problem is not None or "backward" not in phases:
            return None
        self.wanted[key] = 0
        return key, counter


def _something_is_compiled() -> bool:
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and dynamo.counters["frames"]["total"] > 0
