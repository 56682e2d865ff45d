"""Sums over the processes of a job: exact for integers of any size, one small collective at a log step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

_LIMB = 2**30
_LIMBS = 4  # 2^120: a count of FLOPs passes int64 (9.2e18) early


def world_size() -> int:
    """Processes in the job; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(integers: Sequence[int], floats: Sequence[float]) -> tuple[list[int], list[float]]:
    """Sum each number over all ranks. Every rank must call it at the same step.

    Args:
        integers: non-negative, below 2^120 / ranks: summed exactly.
        floats: summed in double precision.
    """
    if world_size() == 1:
        return list(integers), list(floats)
    device = torch.device("cpu")
    if dist.get_backend() in ("nccl", "xccl", "hccl"):  # these move no tensors of the CPU
        device = torch.accelerator.current_accelerator() or device
    limbs = [(value // _LIMB**i) % _LIMB for value in integers for i in range(_LIMBS)]
    # a double holds limbs exactly up to 2^53: 8 million ranks; so one collective carries both kinds
    packed = torch.tensor([*map(float, limbs), *floats], dtype=torch.float64, device=device)
    dist.all_reduce(packed)
    summed = packed.tolist()
    sums = [
        sum(int(limb) * _LIMB**i for i, limb in enumerate(summed[start : start + _LIMBS]))
        for start in range(0, len(limbs), _LIMBS)
    ]
    return sums, summed[len(limbs) :]
