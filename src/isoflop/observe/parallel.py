"""How a model is laid out over the processes of a job: which ranks hold the same data, and whether ranks end apart."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import nn

from isoflop.observe.ranks import world_size

# what the dimensions of device meshes are called: torch's tutorials, torchtitan ("tp"), Lightning ("tensor_parallel")
_TENSOR = re.compile(r"(?<![a-z])(tp|tensor)")
_DATA = re.compile(r"dp|data|replica|shard|batch|(?<![a-z])(ep|expert)")  # a rank of experts has data of its own


def data_parallel_ranks(model: nn.Module | None) -> int | None:
    """How many ranks have data of their own: all but for tensor parallelism, whose ranks share a batch; None: all.

    Told by the device meshes of the model's parameters (`torch.distributed.tensor`). Pipeline parallelism, and tensor
    parallelism without DTensors (Megatron), do not show there.
    """
    if model is None or world_size() == 1:
        return None
    fully_sharded = any("FSDPModule" in (kind.__name__ for kind in type(m).__mro__) for m in model.modules())
    share = max((_ranks_of_one_batch(p, fully_sharded) for p in model.parameters()), default=1)
    return world_size() // share if share > 1 and world_size() % share == 0 else None


def _ranks_of_one_batch(parameter: Any, fully_sharded: bool) -> int:
    """Over how many ranks tensor parallelism has split a parameter; 1: it has not, or it is no DTensor."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return 1
    names = [name.lower() for name in mesh.mesh_dim_names or [""] * mesh.ndim]
    tensor = [i for i, name in enumerate(names) if _TENSOR.search(name)]
    if not tensor:
        split = [not placement.is_replicate() for placement in parameter.placements]
        # FSDP2 puts its dimension first, and hybrid sharding a replicated one before it
        data = (1 if split[0] else 2) if fully_sharded else 0
        tensor = [i for i in range(data, mesh.ndim) if split[i] and not _DATA.search(names[i])]
    return math.prod(mesh.shape[i] for i in tensor)


def ends_apart(model: Any) -> bool:
    """Whether ranks make different numbers of steps: DDP's `join()` lets those with more batches go on alone.

    Nothing may be summed over ranks at a step then: a rank that has ended answers DDP's collectives and no others.
    """
    return bool(getattr(getattr(model, "_join_config", None), "enable", False))


def ddp_around(model: Any) -> Any:
    """While `model` runs: the DistributedDataParallel that runs it; else `model` itself."""
    return getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None) or model
