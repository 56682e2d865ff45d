"""Counting the reads of tensors' values that isoflop's own code makes: each would be a host-device sync on a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero", "__array__")
_LOADERS = str(Path("torch") / "utils" / "data")
_AROUND = "_inner_training_loop"
"""Our function around the Trainer's loop, in which all of its training runs."""
_OURS = tuple(str(Path(__file__).parent.parent / name) for name in ("src", "integrations"))


class Found:
    """What was read in which optimizer step (steps count from 1; `mark` ends one)."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, str, str]] = []
        self.step = 1

    def mark(self, step: int) -> None:
        self.step = step + 1

    def steps(self) -> list[int]:
        return [step for step, _, _ in self.reads]


@contextmanager
def counted_syncs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Found]:
    found = Found()

    def counting(name: str, original: Any) -> Any:
        def read(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            frame = sys._getframe(1)
            where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            # a data loader's own reads are the training's, also where a wrapper of ours around it is on the stack
            while frame is not None and _LOADERS not in frame.f_code.co_filename:
                if frame.f_code.co_filename.startswith(_OURS) and frame.f_code.co_name != _AROUND:
                    found.reads.append((found.step, name, where))
                    break
                frame = frame.f_back  # type: ignore[assignment]
            return original(tensor, *args, **kwargs)

        return read

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cpu", False)  # those of a CPU are read at once, for nothing waits there
        for name in READS:
            if hasattr(torch.Tensor, name):
                patch.setattr(torch.Tensor, name, counting(name, getattr(torch.Tensor, name)))
        yield found
