"""The options that `IsoFLOPMonitor`, `IsoFLOPCallback` and `isoflop.Monitor` share, in one place."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypedDict

NOISE_SCALE = ("auto", "split", "fsdp", "off")


class OptionsDict(TypedDict, total=False):
    """`Options` as keyword arguments (for type checkers and editors); their meaning is there."""

    record_dir: str | os.PathLike[str] | None
    log_every: int | None
    tokens_fn: Callable[[Any], Any] | None
    flops_per_token: float | None
    num_params: int | None
    peak_flops: float | None
    noise_scale: str


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user can set; None: measured or taken from the trainer.

    Attributes:
        record_dir: folder of the run's record (default: beside the trainer's logs; a plain loop: `runs/isoflop`).
        log_every: optimizer steps between two points (default: the trainer's logging interval; a plain loop: 10).
        tokens_fn: batch → tokens processed, or a `TokenCount`, where the batch's layout is not one that isoflop
            reads. Lightning passes the batch; Hugging Face and a plain loop pass what the model is called with: the
            tuple of its arguments, or a dict if there are keyword arguments.
        flops_per_token: FLOPs of a training step (forward and backward) per processed token, instead of
            the measured count: for pipeline, context and expert parallelism and custom kernels.
        num_params: N, instead of the count of the model's parameters, in every convention: where the model that
            this process holds is only a part.
        peak_flops: dense peak of one device in FLOP/s at the run's dtype, instead of the datasheet's.
        noise_scale: "auto": measure the gradient noise scale where that changes nothing (gradient accumulation, DDP);
            "split": also on one device without accumulation, by now and then taking a step's batch in two halves;
            "fsdp": under FSDP2, through a private interface of torch; "off": not at all.
    """

    record_dir: str | os.PathLike[str] | None = None
    log_every: int | None = None
    tokens_fn: Callable[[Any], Any] | None = None
    flops_per_token: float | None = None
    num_params: int | None = None
    peak_flops: float | None = None
    noise_scale: str = "auto"

    def __post_init__(self) -> None:
        for name in ("flops_per_token", "peak_flops"):
            value = getattr(self, name)
            if value is not None and not (_is_a(value, int | float) and 0 < value < float("inf")):
                raise ValueError(f"{name}= expects a positive number, got {value!r}")
        for name in ("log_every", "num_params"):
            value = getattr(self, name)
            if value is not None and not (_is_a(value, int) and value >= 1):
                raise ValueError(f"{name}= expects a whole number of at least 1, got {value!r}")
        if self.noise_scale not in NOISE_SCALE:
            raise ValueError(f"noise_scale= expects one of {', '.join(NOISE_SCALE)}, got {self.noise_scale!r}")
        if self.tokens_fn is not None and not callable(self.tokens_fn):
            raise ValueError(f"tokens_fn= expects a function of a batch, got {self.tokens_fn!r}")
        if self.record_dir is not None and not isinstance(self.record_dir, str | os.PathLike):
            raise ValueError(f"record_dir= expects a path, got {self.record_dir!r}")

    @classmethod
    def of(cls, **options: Any) -> Options:
        """Options from keyword arguments.

        Raises:
            ValueError: a value that can't be.
            TypeError: an option that does not exist.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise TypeError(f"isoflop has no option {', '.join(unknown)}; its options are {', '.join(known)}")
        return cls(**options)

    def given(self) -> dict[str, Any]:
        """The options that were set, as plain values for the record's header."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value if isinstance(value, int | float) else str(value)
            for name, value in values.items()
            if value is not None and not (name == "noise_scale" and value == "auto")
        }


def _is_a(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
