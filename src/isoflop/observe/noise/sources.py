"""Which source fits a model and how it is trained; or in a sentence why none does, and how to get one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from isoflop.guard import Guard
from isoflop.observe.noise.measured import Measured, Number
from isoflop.observe.noise.microbatches import MicroBatches
from isoflop.observe.noise.norms import Denominator
from isoflop.observe.ranks import world_size

SHARDED = (
    'the parameters are sharded (FSDP2), where the hooks see reduced gradients only: pass noise_scale="fsdp", which '
    "uses a private interface of torch"
)
NOT_SHARDED = 'noise_scale="fsdp" is for FSDP2 (fully_shard), but no module of the model is sharded: use "auto"'
FLAT = 'FSDP1 and DeepSpeed keep gradients where the hooks do not see them: use DDP, or FSDP2 with noise_scale="fsdp"'
TENSOR_PARALLEL = "ranks that share a batch (tensor, pipeline or context parallelism) are not supported"


class Source(Protocol):
    """Measures single steps; see `MicroBatches`."""

    parameters: list[nn.Parameter]
    preconditions: bool
    problem: str | None
    seconds: float

    @property
    def armed(self) -> bool:
        """Whether the step that runs is measured."""

    @property
    def parts(self) -> int:
        """Micro-batches whose backward pass is done."""

    def arm(self, expected: int, denominators: dict[int, Denominator]) -> None:
        """Measure the step that begins."""

    def disarm(self) -> None:
        """Do not."""

    def begin(self, tokens: Number | None) -> None:
        """A forward pass begins."""

    def restart(self, tokens: Number | None) -> None:
        """The micro-batch that has begun holds other tokens than it seemed."""

    def take(self, step: int, tokens: float | None = None) -> Measured | None:
        """The step is over."""


def choose_source(
    model: nn.Module,
    option: str,
    guard: Guard,
    scale: Callable[[], torch.Tensor | None],
    data_parallel: int | None,
) -> Source | str:
    """The source for a model, or why there is none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        return "no parameter of the model is trained"
    if data_parallel is not None and data_parallel < world_size():
        return TENSOR_PARALLEL
    if any(hasattr(p, "ds_id") or type(p).__name__ == "FlatParameter" for p in parameters):
        return FLAT
    sharded = any(hasattr(parameter, "to_local") for parameter in parameters)
    if option == "fsdp":
        from isoflop.observe.noise.fsdp import ShardedBatches

        return ShardedBatches(model, parameters, guard) if sharded else NOT_SHARDED
    return SHARDED if sharded else MicroBatches(parameters, guard, scale)
