"""Tokens of a batch in three counts that are never mixed, without a host–device sync.

processed    positions that the model computed: FLOPs use these
padding      positions that the attention mask leaves out; D of the scaling laws is processed less padding
loss tokens  labels that count (not −100); recorded beside D, never shrinking it
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
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


def count_tokens(batch: Any, shifted_labels: bool = False) -> TokenCount | None:
    """Count the tokens of a batch.

    Args:
        batch: a mapping with `input_ids` (int, [batch, time]) or `inputs_embeds` ([batch, time, width]), and
            optionally `attention_mask` ([batch, time], 0 = padding) and `labels` or `targets`; a tuple or list whose
            first item is an integer tensor of tokens ([batch, time] or [time]), and the second of two, if integers
            of that shape, the labels; or such a tensor.
        shifted_labels: the model shifts the labels itself (Hugging Face's causal models): the first label of a
            sequence is then no target.

    Returns:
        The counts, or None if there are no tokens to be seen (images, audio, an unknown layout).
    """
    if isinstance(batch, Mapping):
        return _count_mapping(batch, shifted_labels)
    if isinstance(batch, list | tuple) and batch:
        if isinstance(batch[0], Mapping):
            return _count_mapping(batch[0], shifted_labels)
        tokens = batch[0]
        if not looks_like_tokens(tokens):
            return None
        if tokens.dim() == 1 and any(isinstance(item, torch.Tensor) and item.dim() > 1 for item in batch[1:]):
            return None  # classes, and then what they are the classes of
        labels = batch[1] if len(batch) == 2 else None  # of three the second may be a mask
        aligned = _holds_tokens(labels) and labels.shape == tokens.shape
        return TokenCount(tokens.numel(), 0, _loss_tokens(labels) if aligned else None)
    return TokenCount(batch.numel()) if looks_like_tokens(batch) else None


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


def _count_mapping(batch: Mapping[str, Any], shifted_labels: bool) -> TokenCount | None:
    tokens = batch.get("input_ids")
    if _holds_tokens(tokens):
        processed = tokens.numel()
    else:
        embeds = batch.get("inputs_embeds")
        if not isinstance(embeds, torch.Tensor) or embeds.dim() != 3:
            return None
        processed = embeds.shape[0] * embeds.shape[1]
    padding: Count = 0
    mask = batch.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and mask.numel() == processed:
        padding = processed - torch.count_nonzero(mask)
    labels = batch.get("shift_labels")
    if labels is None:
        labels = batch.get("labels", batch.get("targets"))
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
