"""Tokens of a batch in three counts that are never mixed, without a host–device sync.

processed    positions that the model computed: FLOPs use these
padding      positions that the attention mask leaves out; D of the scaling laws is processed less padding
loss tokens  labels that count (not −100); recorded beside D, never shrinking it
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import nn

from isoflop.guard import attempt

IGNORED_LABEL = -100
"""torch's default `ignore_index` of cross-entropy, and Hugging Face's."""

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.uint16, torch.uint32, torch.int8)

Count = int | torch.Tensor
"""A number that is known, or a 0-dim integer tensor on the batch's device, to be read at the next log step."""


class TokenCount(NamedTuple):
    """Tokens of one (micro-)batch. `loss_tokens` is None where no labels were seen."""

    processed: int
    padding: Count = 0
    loss_tokens: Count | None = None


TokensFn = Callable[[Any], "int | TokenCount"]
"""`tokens_fn=`: a batch (Hugging Face: the forward call's keyword arguments) → processed tokens, or all three."""


def count_tokens(batch: Any, shifted_labels: bool = False, embeds: bool = True) -> TokenCount | None:
    """Count the tokens of a batch.

    Args:
        batch: a mapping with `input_ids` (int, [batch, time]) or `inputs_embeds` ([batch, time, width]), and
            optionally `attention_mask` ([batch, time], 0 = padding) and `labels` or `targets`; the same with a prefix
            (`chosen_input_ids`); one whose tensors are all integers of one shape ([batch, time]), whatever their
            names; a tuple or list whose first item is an integer tensor of tokens ([batch, time]), and
            the second of two, if integers of that shape, the labels; such a tensor, or one of tokens alone ([time]);
            mappings, tuples and lists of these, whose tokens are summed (Lightning's CombinedLoader).
        shifted_labels: the model shifts the labels itself (Hugging Face's causal models): the first label of a
            sequence is then no target.
        embeds: the model looks integers up in a table (`looks_integers_up`); else those without a name are no tokens.

    Returns:
        The counts, or None if there are no tokens to be seen (images, audio, ids of a table's rows, an unknown layout).
    """
    if isinstance(batch, Mapping):
        return _count_mapping(batch, shifted_labels, embeds)
    if isinstance(batch, list | tuple) and batch:
        if isinstance(batch[0], Mapping | list | tuple):
            nested = [item for item in batch if isinstance(item, Mapping | list | tuple)]
            return _sum(count_tokens(item, shifted_labels, embeds) for item in nested)
        tokens = batch[0]
        if not (embeds and looks_like_tokens(tokens)) or tokens.dim() < 2 <= len(batch):
            return None  # one number a sample is a class, or the row of a table (users and items)
        labels = batch[1] if len(batch) == 2 else None  # of three the second may be a mask
        aligned = _holds_tokens(labels) and labels.shape == tokens.shape
        return TokenCount(tokens.numel(), 0, _loss_tokens(labels) if aligned else None)
    return TokenCount(batch.numel()) if embeds and looks_like_tokens(batch) else None


def _sum(counts: Iterable[TokenCount | None]) -> TokenCount | None:
    """Counts of several batches at once; those without tokens (images beside the texts) are left out."""
    found = [count for count in counts if count is not None]
    if not found:
        return None
    labels = [count.loss_tokens for count in found if count.loss_tokens is not None]
    processed, padding = (sum(part) for part in list(zip(*found, strict=True))[:2])
    return TokenCount(processed, padding, sum(labels) if len(labels) == len(found) else None)


def looks_integers_up(model: nn.Module) -> bool:
    """True if a model may look integers up: it has an embedding, or a matrix of its own beside torch's layers.

    So may one without any parameters, whose weights are kept elsewhere.
    """
    if next(model.parameters(), None) is None:
        return True
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            return True
        own = not type(module).__module__.startswith("torch.")
        if own and any(parameter.dim() == 2 for parameter in module.parameters(recurse=False)):
            return True
    return False


def shifts_labels(model: nn.Module) -> bool:
    """True if the model's loss predicts label i+1 at position i, as Hugging Face's causal models compute it.

    A LightningModule is judged by the model inside it: its batches' labels are taken to go there.
    """
    losses = sys.modules.get("transformers.loss.loss_utils")  # loaded with any of its models
    if losses is None:
        return False
    inner = next((module for module in model.modules() if "loss_type" in vars(module)), None)
    if inner is None or getattr(attempt(getattr, inner, "config", None), "is_encoder_decoder", False):
        return False
    kind: Any = inner.loss_type
    if kind is None:  # GPT2LMHeadModel and its like have no type and get the causal loss by default
        return type(inner).__name__.endswith("LMHeadModel")
    return bool(losses.LOSS_MAPPING.get(kind) is losses.ForCausalLMLoss)


MASKS, LABELS = ("attention_mask",), ("labels", "targets", "target", "y")
_IDS = re.compile(r"^(?!decoder_)(.*?)(input_ids|inputs_embeds|token_ids|tokens)$")


def _count_mapping(batch: Mapping[str, Any], shifted_labels: bool, embeds: bool) -> TokenCount | None:
    prefixes = {found[1]: None for name in batch if isinstance(name, str) and (found := _IDS.match(name))}
    count = _sum(_count_named(batch, prefix, shifted_labels) for prefix in prefixes)
    if count is not None or (embeds and (count := _count_alike(batch)) is not None):
        return count
    nested = (item for item in batch.values() if isinstance(item, Mapping | list | tuple))
    return _sum(count_tokens(item, shifted_labels, embeds) for item in nested)


def _count_alike(batch: Mapping[str, Any]) -> TokenCount | None:
    """Of tensors under any names: all are integers of one shape, ids beside their targets."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    ids = next(iter(tensors.values()), None)
    if ids is None or ids.dim() != 2 or ids.shape[1] < 2:
        return None
    if not all(_holds_tokens(value) and value.shape == ids.shape for value in tensors.values()):
        return None
    mask, labels = (next((tensors[n] for n in names if n in tensors), None) for names in (MASKS, LABELS))
    padding: Count = 0 if mask is None else ids.numel() - torch.count_nonzero(mask)
    return TokenCount(ids.numel(), padding, None if labels is None else _loss_tokens(labels))


def _count_named(batch: Mapping[str, Any], prefix: str, shifted_labels: bool) -> TokenCount | None:
    names = (f"{prefix}{name}" for name in ("input_ids", "token_ids", "tokens"))
    tokens = next((value for name in names if _holds_tokens(value := batch.get(name))), None)
    if tokens is not None:
        processed = tokens.numel()
    else:
        embeds = batch.get(f"{prefix}inputs_embeds")
        if not isinstance(embeds, torch.Tensor) or embeds.dim() != 3:
            return None
        processed = embeds.shape[0] * embeds.shape[1]
    padding: Count = 0
    mask = batch.get(f"{prefix}attention_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and mask.numel() == processed:
        padding = processed - torch.count_nonzero(mask)
    labels = batch.get(f"{prefix}shift_labels")
    if labels is None:
        labels = batch.get(f"{prefix}labels", batch.get(f"{prefix}targets"))
        if shifted_labels and _holds_tokens(labels) and labels.dim() == 2:
            labels = labels[:, 1:]
    return TokenCount(processed, padding, _loss_tokens(labels) if _holds_tokens(labels) else None)


def _holds_tokens(value: Any) -> TypeGuard[torch.Tensor]:
    # integers that are no mask
    return isinstance(value, torch.Tensor) and value.dtype in _INTEGERS and value.dim() >= 1


def looks_like_tokens(value: Any) -> TypeGuard[torch.Tensor]:
    """Where nothing is named: neither an image (of bytes, in three or four dimensions) nor a mask."""
    return _holds_tokens(value) and value.dim() <= 2


def _loss_tokens(labels: Any) -> Count:
    return torch.count_nonzero(labels != IGNORED_LABEL)
