"""Tokens of a batch in three counts that are never mixed, without a host–device sync.

processed    positions that the model computed: FLOPs use these
padding      positions that the attention mask leaves out; D of the scaling laws is processed less padding
loss tokens  labels that count (not −100); recorded beside D, never shrinking it
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
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


class Sequences(NamedTuple):
    """Token sequences of a batch: what their counts are read from."""

    processed: int
    mask: torch.Tensor | None = None  # 0 = padding
    labels: torch.Tensor | None = None
    shifted: bool = False  # the first label of a row is no target, for the model shifts them itself


def find_sequences(batch: Any, shifted_labels: bool = False, tables: int = 1) -> list[Sequences]:
    """Token sequences of a batch; none: there are no tokens to be seen (images, ids of a table's rows, another layout).

    Args:
        batch: a mapping with `input_ids` (int, [batch, time]) or `inputs_embeds` ([batch, time, width]), and
            optionally `attention_mask` ([batch, time], 0 = padding) and `labels` or `targets`; the same with a prefix
            (`chosen_input_ids`); one whose tensors are all integers of one shape ([batch, time]), whatever their
            names; a tuple or list whose first item is an integer tensor of tokens ([batch, time]), and
            the second of two, if integers of that shape, the labels; such a tensor, or one of tokens alone ([time]);
            mappings, tuples and lists of these, whose tokens are summed (Lightning's CombinedLoader).
        shifted_labels: the model shifts the labels itself (Hugging Face's causal models): the first label of a
            sequence is then no target.
        tables: in so many does the model look integers up (`tables_of`). Where there is none, or one for each column
            (or two: users and items in a factorization and in a net), those without a name are no tokens.
    """
    if isinstance(batch, Mapping):
        named = [_find_named(batch, prefix, shifted_labels) for prefix in _prefixes(tuple(batch))]
        found = [each for each in named if each is not None]
        if not found and (alike := _find_alike(batch, tables)) is not None:
            found = [alike]
        return found or _find_nested(batch.values(), shifted_labels, tables)
    if isinstance(batch, list | tuple) and batch:
        if isinstance(batch[0], Mapping | list | tuple):
            return _find_nested(batch, shifted_labels, tables)
        tokens = batch[0]
        if not looks_like_tokens(tokens, tables) or tokens.dim() < 2 <= len(batch):
            return []  # one number a sample is a class, or the row of a table (users and items)
        labels = batch[1] if len(batch) == 2 else None  # of three the second may be a mask
        aligned = _holds_tokens(labels) and labels.shape == tokens.shape
        return [Sequences(tokens.numel(), None, labels if aligned else None)]
    return [Sequences(batch.numel())] if looks_like_tokens(batch, tables) else []


def count_tokens(batch: Any, shifted_labels: bool = False, tables: int = 1) -> TokenCount | None:
    """Count the tokens of a batch (see `find_sequences`); None: there are none to be seen."""
    return count_sequences(find_sequences(batch, shifted_labels, tables))


def count_sequences(found: Sequence[Sequences]) -> TokenCount | None:
    """The counts of a batch's sequences, summed; None: there are none."""
    if not found:
        return None
    processed = sum(each.processed for each in found)
    padding = sum(each.mask.numel() - torch.count_nonzero(each.mask) for each in found if each.mask is not None)
    labels = [each.labels[:, 1:] if each.shifted else each.labels for each in found if each.labels is not None]
    if len(labels) < len(found):
        return TokenCount(processed, padding)
    return TokenCount(processed, padding, sum(torch.count_nonzero(each != IGNORED_LABEL) for each in labels))


def copy_sequences(found: Sequence[Sequences]) -> list[Sequences]:
    """With copies of masks and labels, to be counted later: a model or a loop may write to its own."""
    return [
        Sequences(n, None if mask is None else mask.clone(), None if labels is None else labels.clone(), shifted)
        for n, mask, labels, shifted in found
    ]


def resized(found: Sequence[Sequences], processed: Sequence[int]) -> list[Sequences]:
    """Sequences of which the model computed that many positions, each or in all: the first ones of each row.

    Labels are those of the last ones, for a row is cut where each token is predicted from those before it.
    """
    if not found:
        return [Sequences(n) for n in processed]
    given, total = sum(each.processed for each in found), sum(processed)
    if len(processed) != len(found):
        processed = [each.processed * total // given for each in found]
    return [each if n == each.processed else _resized(each, n) for each, n in zip(found, processed, strict=True)]


def _resized(each: Sequences, n: int) -> Sequences:
    def cut(tensor: torch.Tensor | None, last: bool) -> torch.Tensor | None:
        if tensor is None or tensor.numel() != each.processed:
            return tensor
        rows = tensor.shape[0]
        if tensor.dim() != 2 or n % rows:
            return tensor.flatten()[:n]
        return tensor[:, -(n // rows) :] if last else tensor[:, : n // rows]

    return Sequences(n, cut(each.mask, False), cut(each.labels, True), False)


Places = tuple[int, str, str, bool]
"""Of the calls of one signature: processed tokens, names of mask and labels (""; none), whether these are shifted."""
Copied = tuple[Places, torch.Tensor]
"""Masks and labels of one call, beside each other."""


def places_of(found: Sequence[Sequences], named: Mapping[str, Any]) -> Places | tuple[()]:
    """Where a call's arguments of these names have the mask and the labels, of one shape, of its only sequences."""
    n, mask, labels, shifted = found[0]
    name_of = {id(value): name for name, value in named.items()} | {id(None): ""}
    names = name_of.get(id(mask)), name_of.get(id(labels))
    differ = mask is not None and labels is not None and (mask.shape, mask.dtype) != (labels.shape, labels.dtype)
    return () if len(found) > 1 or differ or None in names else (n, names[0] or "", names[1] or "", shifted)


def copy_at(places: Places, named: Mapping[str, Any]) -> Copied:
    """As `copy_sequences`, by one operator, of a call like the one that these places are of."""
    _, mask, labels, _ = places
    return places, torch.cat((named[mask], named[labels])) if mask and labels else named[mask or labels].clone()


def join_sequences(batches: Sequence[list[Sequences] | Copied]) -> list[Sequences]:
    """The sequences of several batches of one shape, as those of one batch."""

    def of_all(name: str, each: Sequence[Sequences]) -> torch.Tensor | None:
        first = getattr(each[0], name)
        return None if first is None else torch.cat([getattr(one, name) for one in each])

    found = [batch if isinstance(batch, list) else _copied(*batch) for batch in batches]
    return [
        Sequences(sum(one.processed for one in each), of_all("mask", each), of_all("labels", each), each[0].shifted)
        for each in zip(*found, strict=True)
    ]


def _copied(places: Places, tensor: torch.Tensor) -> list[Sequences]:
    n, mask, labels, shifted = places
    parts = tensor.chunk(2) if mask and labels else (tensor,)
    return [Sequences(n, parts[0] if mask else None, parts[-1] if labels else None, shifted)]


def tables_of(model: nn.Module) -> int:
    """In how many tables a model may look integers up: its embeddings; 1: a matrix of its own beside torch's layers.

    So may one without any parameters, whose weights are kept elsewhere.
    """
    if next(model.parameters(), None) is None:
        return 1
    tables, matrix = 0, False
    for module in model.modules():
        scripted = isinstance(module, torch.jit.ScriptModule) and module.original_name
        tables += isinstance(module, nn.Embedding | nn.EmbeddingBag) or scripted in ("Embedding", "EmbeddingBag")
        own = not type(module).__module__.startswith("torch.")
        matrix = matrix or (own and any(parameter.dim() == 2 for parameter in module.parameters(recurse=False)))
    return tables or int(matrix)


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


@functools.lru_cache(maxsize=256)
def _prefixes(names: tuple[Any, ...]) -> tuple[str, ...]:
    """Of the token sequences in a batch of these names."""
    matches = (_IDS.match(name) for name in names if isinstance(name, str))
    return tuple(dict.fromkeys(match[1] for match in matches if match))


def _find_nested(items: Iterable[Any], shifted_labels: bool, tables: int) -> list[Sequences]:
    """Those of several batches at once; items without tokens (images beside the texts) are left out."""
    nested = [item for item in items if isinstance(item, Mapping | list | tuple)]
    return [each for item in nested for each in find_sequences(item, shifted_labels, tables)]


def _find_alike(batch: Mapping[str, Any], tables: int) -> Sequences | None:
    """Of tensors under any names: all are integers of one shape, ids beside their targets."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    ids = next(iter(tensors.values()), None)
    if not looks_like_tokens(ids, tables) or ids.dim() != 2 or ids.shape[1] < 2:
        return None
    if not all(_holds_tokens(value) and value.shape == ids.shape for value in tensors.values()):
        return None
    mask, labels = (next((tensors[n] for n in names if n in tensors), None) for names in (MASKS, LABELS))
    return Sequences(ids.numel(), mask, labels)


def _find_named(batch: Mapping[str, Any], prefix: str, shifted_labels: bool) -> Sequences | None:
    for name in ("input_ids", "token_ids", "tokens"):
        tokens = batch.get(f"{prefix}{name}")
        if _holds_tokens(tokens):
            processed = tokens.numel()
            break
    else:
        embeds = batch.get(f"{prefix}inputs_embeds")
        if not isinstance(embeds, torch.Tensor) or embeds.dim() != 3:
            return None
        processed = embeds.shape[0] * embeds.shape[1]
    mask = batch.get(f"{prefix}attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or mask.numel() != processed:
        mask = None
    labels, shifted = batch.get(f"{prefix}shift_labels"), False
    if labels is None:
        labels, shifted = batch.get(f"{prefix}labels", batch.get(f"{prefix}targets")), shifted_labels
    if not _holds_tokens(labels):
        return Sequences(processed, mask)
    return Sequences(processed, mask, labels, shifted and labels.dim() == 2)


def _holds_tokens(value: Any) -> TypeGuard[torch.Tensor]:
    # integers that are no mask
    return isinstance(value, torch.Tensor) and value.dtype in _INTEGERS and value.dim() >= 1


def looks_like_tokens(value: Any, tables: int) -> TypeGuard[torch.Tensor]:
    """Where nothing is named: neither an image (of bytes, in three or four dimensions), a mask nor columns."""
    if not tables or not _holds_tokens(value) or value.dim() > 2:
        return False
    return value.dim() < 2 or value.shape[1] < 2 or tables % value.shape[1] > 0


def example_for(batch: Any) -> str:
    """What to pass as `tokens_fn=` for a batch like this one, by the names in it."""
    pairs = batch.items() if isinstance(batch, Mapping) else enumerate(batch if isinstance(batch, list | tuple) else ())
    tensors = [(key, value) for key, value in pairs if isinstance(value, torch.Tensor) and value.dim() > 1]
    found = next((key for key, value in tensors if not value.is_floating_point()), tensors[0][0] if tensors else None)
    if found is None:
        return "tokens_fn=, a function of such a batch"
    key = f'"{found}"' if isinstance(found, str) else found
    return f"tokens_fn=lambda batch: batch[{key}].numel(), if these are its tokens"


def describe_batch(batch: Any) -> str:
    """Its layout in words, for a message."""
    if isinstance(batch, Mapping):
        return "a mapping of " + ", ".join(f"{key}: {describe_batch(value)}" for key, value in list(batch.items())[:6])
    if isinstance(batch, list | tuple):
        return f"a {type(batch).__name__} of ({', '.join(describe_batch(item) for item in batch[:6])})"
    shape = getattr(batch, "shape", None)
    if shape is not None:
        return f"{type(batch).__name__} {tuple(shape)} of {str(getattr(batch, 'dtype', '?')).removeprefix('torch.')}"
    return type(batch).__name__
