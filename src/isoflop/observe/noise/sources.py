"""Whether the hooks see what the noise scale needs, by the model and how it is trained; else in a sentence why not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from isoflop.guard import Guard
from isoflop.observe.noise.microbatches import MicroBatches
from isoflop.observe.ranks import world_size

SHARDED = (
    "the parameters are sharded (FSDP2), where the hooks see reduced gradients only, and torch has no public interface "
    'to a rank\'s own: measure with DDP, or on one device with gradient accumulation or noise_scale="split"'
)
FLAT = "FSDP1 and DeepSpeed keep gradients where the hooks do not see them: use DDP"
TENSOR_PARALLEL = "ranks that share a batch (tensor, pipeline or context parallelism) are not supported"


def choose_source(
    model: nn.Module, guard: Guard, scale: Callable[[], torch.Tensor | None], data_parallel: int | None
) -> MicroBatches | str:
    """The source for a model, or why there is none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        return "no parameter of the model is trained"
    if data_parallel is not None and data_parallel < world_size():
        return TENSOR_PARALLEL
    if any(hasattr(p, "ds_id") or type(p).__name__ == "FlatParameter" for p in parameters):
        return FLAT
    if any(hasattr(parameter, "to_local") for parameter in parameters):
        return SHARDED
    return MicroBatches(parameters, guard, scale)
