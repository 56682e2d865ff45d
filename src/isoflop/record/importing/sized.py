"""What a model's configuration tells of its size, counted by whoever may know models: this room does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sized:
    """A model's size.

    Attributes:
        parameters: N by convention.
        method: how it was counted.
        huggingface: N as Hugging Face's total_flos has it: without the tables of nn.Embedding, an untied head in it.
        flops_per_token: of a training step at a sequence length, where one was given.
        flops_method: how they were counted.
    """

    parameters: Mapping[str, int | None]
    method: str
    huggingface: int | None = None
    flops_per_token: float | None = None
    flops_method: str | None = None


Counter = Callable[[str | Mapping[str, Any], int | None], Sized]
"""(a config.json or its content, tokens a sequence or None) → the model's size; raises ValueError with the reason."""
