"""Tokens of one run's batches: as a batch shows them, corrected by what a trainer's step makes of it.

A step that takes rows of S + 1 tokens and predicts each from those before it computes S positions. The model's calls
show that at the first batch of each signature; the other ones are as long as that one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from isoflop.flops.calls import Signature, signature
from isoflop.flops.cost import MAX_KNOWN, first_matrix
from isoflop.flops.parameters import unwrap
from isoflop.flops.tokens import (
    Sequences,
    TokenCount,
    TokensFn,
    copy_sequences,
    count_sequences,
    describe_batch,
    example_for,
    find_sequences,
    looks_like_tokens,
    resized,
    shifts_labels,
    tables_of,
)


@dataclass(slots=True)
class _Call:
    """A call of a trainer's step, with the sequences in its arguments."""

    module: int
    sequences: list[Sequences]
    shapes: list[torch.Size]  # of the integers in its arguments
    looked_up: list[torch.Size] = field(default_factory=list)  # shapes of what embeddings were asked for in it

    @property
    def has_rows(self) -> bool:
        """True if integers of two dimensions are among its arguments, or none at all."""
        return max(map(len, self.shapes), default=2) >= 2

    @property
    def processed(self) -> int:
        """Positions computed: fewer than were given where the model itself drops a row's first or last ones."""
        given = sum(each.processed for each in self.sequences)
        rows = {shape[0] for shape in self.shapes if len(shape) == 2 and shape.numel() == given}
        if not rows or any(shape.numel() == given for shape in self.looked_up):
            return given
        parts = (shape.numel() for shape in self.looked_up if len(shape) == 2 and shape[0] in rows)
        return max((part for part in parts if part < given), default=given)


class BatchTokens:
    """Counts the tokens of batches. `say` gets a sentence where there are none to be seen."""

    def __init__(self, model: nn.Module | None, say: Callable[[str], None], tokens_fn: TokensFn | None) -> None:
        self.given = tokens_fn is not None
        """By a function of the user's."""
        self._tokens_fn, self._say, self._said = tokens_fn, say, False
        self._shifted = model is not None and shifts_labels(model)
        self._tables = 1 if model is None else tables_of(model)
        self._argument_names: dict[type, list[str]] = {}
        self._calls: list[_Call] = []
        self._batch: tuple[Any, list[Sequences]] | None = None
        """Whose calls are being heard, and its sequences as they were when it came."""
        self._computed: dict[Signature, tuple[int, ...]] = {}
        """Positions that the calls of a batch's step computed, by its sequences or all together."""
        self._shares: dict[int, tuple[int, int]] = {}
        """Length of a batch's rows → positions computed, and given, of a part of such a batch (its halves)."""

    # -- what a batch shows ------------------------------------------------------------------------------------

    def find(self, batch: Any, key: Signature | None = None) -> list[Sequences]:
        """The sequences of a batch; none: they are not to be seen, or a function of the user's counts them."""
        if self._tokens_fn is not None:
            return []
        found = find_sequences(batch, self._shifted, self._tables)
        if found:
            self._tables = min(self._tables, 1)  # of text; a later batch as long as it has tables is no table's rows
        if not self._computed:
            return found
        key = signature(batch) if key is None else key
        computed = self._computed.get(key)
        if computed is None:
            matrix = first_matrix(key)
            share = None if matrix is None or len(found) != 1 else self._shares.get(matrix[1])
            computed = None if share is None else (found[0].processed * share[0] // share[1],)
        return found if computed is None else resized(found, computed)

    def count(self, batch: Any, key: Signature | None = None) -> TokenCount | None:
        """Tokens of a batch; None: unknown."""
        if self._tokens_fn is not None:
            counted = self._tokens_fn(batch)
            given = counted if isinstance(counted, TokenCount) else TokenCount(counted)
            return given._replace(processed=int(given.processed))
        count = count_sequences(self.find(batch, key))
        if count is None and not self._said:
            self._said = True  # the last batch of an epoch is of another shape
            self._say(
                "expected token ids in the batch (input_ids, a tensor of integers, or a tuple that begins with one), "
                f"got {describe_batch(batch)}. Without tokens there are no tokens/s, tokens per parameter, forecast, "
                f"noise scale, or advice on size and batch: pass {example_for(batch)}"
            )
        return count

    def named(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call's arguments by name, or as they are where no name tells more."""
        if not kwargs and len(args) <= 1:
            return args
        if not args and self._tokens_fn is None and "mask" not in kwargs:
            return kwargs
        kind = type(unwrap(module))
        if kind not in self._argument_names:
            self._argument_names[kind] = list(inspect.signature(unwrap(module).forward).parameters)
        names = self._argument_names[kind]
        if not kwargs and not any("mask" in name for name in names[: len(args)]):
            return args
        batch: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
        if "mask" in batch:
            batch.setdefault("attention_mask", batch["mask"])
        if args and self._tokens_fn is None and looks_like_tokens(args[0], self._tables):
            batch.setdefault("input_ids", args[0])
        return batch

    # -- what the calls of a trainer's step show ---------------------------------------------------------------

    @property
    def hears(self) -> bool:
        """True between `begin` and `end`."""
        return self._batch is not None

    def begin(self, batch: Any, key: Signature, each: bool) -> TokenCount | None:
        """A batch's step begins, whose calls are heard. Returns what the batch itself shows.

        `each`: what was computed of another batch of this signature says nothing of this one.
        """
        if each:
            self._computed.pop(key, None)
        found = self.find(batch, key)
        self._calls, self._batch = [], (batch, copy_sequences(found))
        return count_sequences(found)

    def is_new(self, key: Signature) -> bool:
        """True if the calls of a batch's step are to be heard: no other of its signature was."""
        return self._tokens_fn is None and key not in self._computed

    def hear(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outermost: bool) -> None:
        """A call of the model, or of a module in it, in a training step."""
        if self._batch is None:
            return
        if outermost:
            found = find_sequences(self.named(module, args, kwargs), self._shifted, self._tables)
            integers = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
            shapes = [leaf.shape for leaf in integers if not leaf.is_floating_point()]
            self._calls.append(_Call(id(module), found, shapes))
        if isinstance(module, nn.Embedding) and self._calls:
            ids = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)), None)
            if ids is not None:
                self._calls[-1].looked_up.append(ids.shape)

    def end(self, key: Signature) -> TokenCount | None:
        """The step is over: the tokens of its batch."""
        if self._batch is None:
            return None
        (batch, found), self._batch = self._batch, None
        computed = self._computed_of(found)
        self._calls = []
        given = tuple(each.processed for each in found)
        computed = given if computed is None else computed
        if len(self._computed) < MAX_KNOWN:
            self._computed[key] = computed
        if not computed:
            return self.count(batch, key)
        matrix = first_matrix(key)
        if len(given) == 1 and matrix is not None:
            self._shares[matrix[1]] = sum(computed), given[0]
        return count_sequences(resized(found, computed))

    def _computed_of(self, found: Sequence[Sequences]) -> tuple[int, ...] | None:
        """Positions that the calls computed of a batch with these sequences; None: as many, or they don't show it.

        A row that goes through the model several times (a GAN's, R-Drop's) is one of the data all the same.
        """
        calls = [call for call in self._calls if call.sequences]
        if any(call.has_rows for call in calls):  # then a call with one row is of positions
            calls = [call for call in calls if call.has_rows]
        if not found:  # of several calls, or a mask that another batch has otherwise, the tokens are not to be seen
            seen = [call for call in calls if all(each.mask is None for each in call.sequences)]
            return (seen[0].processed,) if len(seen) == len(calls) == 1 else None
        parts = [[call.processed for call in calls if call.module == module] for module in {c.module for c in calls}]
        ways = [[call.processed for call in calls], *sorted(parts, key=sum, reverse=True)]
        ways += [[max(way)] for way in ways if way]
        given = [each.processed for each in found]
        if any(sum(way) == sum(given) for way in ways):
            return None
        fits = [way for way in ways if 0 < sum(way) < sum(given)]
        chosen = max(fits, key=lambda way: (sum(way), len(way) == len(given)), default=None)
        return None if chosen is None else tuple(chosen)
