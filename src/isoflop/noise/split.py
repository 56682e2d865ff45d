"""The split step: a batch in two halves, whose gradients are the parts. For one device without accumulation; opt-in.

No pass more than without, but two of half the size; the step's gradient is the same up to the rounding of a sum in
another order, and to dropout's draws. It is so only where the loss is a mean over tokens that do not see each other's
sequences: batch normalisation, contrastive losses over the batch and the load-balancing loss of a mixture of experts
are refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from isoflop.guard import attempt, pass_on

Batch = TypeVar("Batch")

CONTRASTIVE = re.compile("^CLIP|Clip(Model|Loss)|SigLIP|Siglip|SimCLR|InfoNCE|Contrastive|BarlowTwins|VICReg")
CHECK_TOLERANCE = 1e-3
"""Relative difference between a batch's loss and that of its halves; single precision and bfloat16's is below."""


class Unsplittable(ValueError):
    """The batch or the model can't be split; the text says why and what to do."""


def refusal(model: nn.Module) -> str | None:
    """Why halves of a batch have another gradient in this model, as far as its modules tell; None: nothing found."""
    why, remedy = None, "Accumulate gradients or use several ranks"
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            why = f"{name or kind} normalises over the batch ({kind})"
        elif CONTRASTIVE.search(kind):
            why = f"{kind} contrasts the sequences of a batch with each other"
    config = attempt(getattr, model, "config", None)
    if (
        why is None
        and getattr(config, "router_aux_loss_coef", False)
        and getattr(config, "output_router_logits", False)
    ):
        why = "the load-balancing loss of the mixture of experts is over the whole batch"
        remedy = "Accumulate gradients, use several ranks, or output_router_logits=False"
    return why and f"a step can't be split: {why}, so halves have another gradient. {remedy}"


def batch_size(batch: Any) -> int | None:
    """Sequences of a batch: the first dimension of its first tensor that has one; None: there is none."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.dim() >= 1 else None
    for item in _items(batch):
        size = batch_size(item)
        if size is not None:
            return size
    return None


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """The first and the second half of a batch, as views.

    Args:
        batch: tensors [batch, …] in mappings, tuples, lists, dataclasses of any depth. Every tensor with dimensions
            must have the same first one; what is no tensor is shared, but a list as long as the batch is split too.

    Raises:
        Unsplittable: fewer than two sequences, or tensors that do not agree on how many there are.

    >>> first, second = halves({"input_ids": torch.arange(6).reshape(3, 2), "names": ["a", "b", "c"], "scale": 2})
    >>> second
    {'input_ids': tensor([[2, 3],
            [4, 5]]), 'names': ['b', 'c'], 'scale': 2}
    """
    size = batch_size(batch)
    if size is None or size < 2:
        raise Unsplittable(f"a step can't be split: expected a batch of at least 2 sequences, got {size or 0}")
    return _part(batch, 0, size // 2, size), _part(batch, size // 2, size, size)


def _items(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    if isinstance(batch, list | tuple):
        return list(batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return []


def _part(batch: Any, start: int, stop: int, size: int) -> Any:
    if isinstance(batch, torch.Tensor):
        if batch.dim() == 0:
            return batch
        if batch.shape[0] != size:
            raise Unsplittable(
                f"a step can't be split: expected tensors of {size} sequences, got one of shape {tuple(batch.shape)}"
            )
        return batch[start:stop]
    if isinstance(batch, list) and len(batch) == size and not any(isinstance(item, torch.Tensor) for item in batch):
        return batch[start:stop]
    if isinstance(batch, Mapping):
        parts = {key: _part(value, start, stop, size) for key, value in batch.items()}
        if type(batch) is dict:
            return parts
        try:
            return type(batch)(parts)  # type: ignore[call-arg]  # BatchEncoding and its like
        except Exception as error:
            pass_on(error)
            return parts
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_part(item, start, stop, size) for item in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(_part(item, start, stop, size) for item in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [field.name for field in dataclasses.fields(batch)]
        return dataclasses.replace(batch, **{n: _part(getattr(batch, n), start, stop, size) for n in names})
    return batch


def compare(model: nn.Module, losses: Callable[[], Sequence[Any]], share: float) -> str | None:
    """Once, without dropout and gradients: why the halves' losses do not make up the batch's; None: they do.

    Where they do, their gradients do, too.

    Args:
        model: put into evaluation mode meanwhile.
        losses: of the batch and its halves.
        share: of the first half.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            whole, first, second = map(float, losses())
    finally:
        for module, mode in modes.items():
            module.training = mode
    together = share * first + (1 - share) * second
    # not finite: nothing is shown
    if not abs(whole - together) > CHECK_TOLERANCE * max(abs(whole), abs(together)):
        return None
    return (
        f"a step can't be split: the batch's loss is {whole:.6g}, but its halves' come to {together:.6g}; sequences of "
        "a batch see each other (a contrastive or load-balancing loss), or the loss is no mean over tokens. Accumulate "
        "gradients or use several ranks"
    )
