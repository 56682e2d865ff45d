"""What a forward pass does with each parameter: multiplies with it, looks rows up in it, adds it.

`UseTracer` listens to the operators of a forward pass, follows parameters through casts, transposes, slices and
concatenations, and notes which operator consumes them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from isoflop.flops.values import storage_number

aten = torch.ops.aten

# which positional arguments of a product can be a weight (a bias is none)
_PRODUCTS: dict[Any, slice] = {
    aten.mm: slice(0, 2),
    aten.bmm: slice(0, 2),
    aten.mv: slice(0, 2),
    aten.addmm: slice(1, 3),
    aten.baddbmm: slice(1, 3),
    aten.convolution: slice(1, 2),
    aten._scaled_mm: slice(0, 2),
}
if hasattr(aten, "_grouped_mm"):
    _PRODUCTS[aten._grouped_mm] = slice(0, 2)
_LOOKUPS = {aten.embedding, aten.index, aten.index_select, aten.gather, aten._embedding_bag}
_ADDITIONS = {aten.add, aten.add_}
# the parameter is still itself after these
_SAME = {aten._to_copy, aten.clone, aten.cat, aten.stack, aten.contiguous, aten.repeat, aten.mul, aten.copy_}
# and after views: most share its storage, but fake tensors (measure.py's third way) do not
_SAME |= {aten.t, aten.transpose, aten.permute, aten.view, aten._unsafe_view, aten.reshape, aten.expand}
_SAME |= {aten.detach, aten.alias, aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.unbind}
_SAME |= {aten.unsqueeze, aten.squeeze}


@dataclass
class Uses:
    """Names of parameters by what a forward pass did with them."""

    product: set[str] = field(default_factory=set)
    lookup: set[str] = field(default_factory=set)
    vocabulary: set[str] = field(default_factory=set)
    """Of `lookup`: by the call's arguments (token ids), not by positions that the forward pass made itself."""
    added: set[str] = field(default_factory=set)
    other: set[str] = field(default_factory=set)
    with_gradients: set[str] = field(default_factory=set)
    """Of `product`: where gradients are enabled; a frozen matrix that is not among them is a teacher's."""
    last: dict[str, int] = field(default_factory=dict)
    """Matrices whose product no other matrix multiplies again: name → size of what comes out."""
    chosen: Counter[int] = field(default_factory=Counter)
    """Size of a last dimension → how often one of it was chosen (`argmax`): experts of a token."""

    @property
    def used(self) -> set[str]:
        """Parameters that the forward pass used for anything."""
        return self.product | self.lookup | self.added | self.other

    def __or__(self, other: Uses) -> Uses:
        # sets' and dicts' |; counters add up
        return Uses(
            *(
                mine + theirs if isinstance(mine, Counter) else mine | theirs
                for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)
            )
        )


class UseTracer:
    """Listens to a `FlopCounter` on the twin; `uses` is the result."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.uses = Uses()
        # storage → (its names as a parameter, names of the matrices it is a last product of)
        self._names: dict[int, frozenset[str]] = {}
        self._last: dict[int, frozenset[str]] = {}
        self._given: set[int] = set()  # storages of the call's integers, and of what is computed from them
        for name, parameter in parameters.items():
            self._tag(self._names, parameter, {name})

    def arguments(self, tensors: list[torch.Tensor]) -> None:
        """The call's own tensors, before the forward pass."""
        for tensor in tensors:
            self._give(tensor)

    def _give(self, tensor: torch.Tensor) -> None:
        if not tensor.is_floating_point():
            self._given.add(storage_number(tensor))

    def __call__(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, is_forward: bool) -> bool:
        """Note one operator; True if an operand of a product is a parameter."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        # no tensor is kept alive: a freed storage's number is given out again, to one that an operator returns
        for number in set(map(storage_number, outputs)) - set(map(storage_number, inputs)):
            self._names.pop(number, None)
            self._last.pop(number, None)
            self._given.discard(number)
        if not is_forward:
            found = [self._parameter_names(operand) for operand in args[_PRODUCTS.get(packet, slice(0, 0))]]
            if torch.is_grad_enabled():  # what checkpointing runs again
                self.uses.with_gradients |= frozenset().union(*found)
            return any(found)
        self._choice(packet, args)
        named = [self._parameter_names(tensor) for tensor in inputs]
        names = frozenset().union(*named)
        chain = frozenset().union(*(self._last.get(storage_number(tensor), frozenset()) for tensor in inputs))
        matrices: frozenset[str] = frozenset()
        if packet in _PRODUCTS:
            matrices = frozenset().union(*map(self._parameter_names, args[_PRODUCTS[packet]]))
            if matrices:
                self.uses.product |= matrices
                if torch.is_grad_enabled():
                    self.uses.with_gradients |= matrices
                for earlier in chain:
                    self.uses.last.pop(earlier, None)
                for name in matrices:
                    self.uses.last[name] = outputs[0].shape[1 if packet is aten.convolution else -1]
                chain = matrices
        if any(storage_number(tensor) in self._given for tensor in inputs):
            for tensor in outputs:
                self._give(tensor)
        if names - matrices:
            self._note(packet, names - matrices, inputs, named, outputs)
        if chain:
            for tensor in outputs:
                self._tag(self._last, tensor, chain)
        return bool(matrices)

    def _choice(self, packet: Any, args: tuple[Any, ...]) -> None:
        """A router's choice of an expert for each of its rows, by design: how many `topk` takes is a setting."""
        if packet is aten.argmax and len(args) > 1 and args[1] in (-1, args[0].dim() - 1):
            self.uses.chosen[args[0].shape[-1]] += 1

    def _note(
        self, packet: Any, names: frozenset[str], inputs: list[Any], named: list[Any], outputs: list[Any]
    ) -> None:
        if packet in _LOOKUPS and named[0] and inputs[0].dim() >= 3:  # whole matrices: the experts of a token
            for tensor in outputs:
                self._tag(self._names, tensor, named[0])
        elif packet in _LOOKUPS and named[0] and any(storage_number(tensor) in self._last for tensor in inputs[1:]):
            self.uses.other |= named[0]  # rows that a matrix product chose: biases of a token's experts
        elif packet in _LOOKUPS and named[0]:
            self.uses.lookup |= named[0]
            if any(storage_number(tensor) in self._given for tensor in inputs[1:]):
                self.uses.vocabulary |= named[0]
        elif packet in _ADDITIONS:
            self.uses.added |= names
        elif packet in _SAME and all(named):
            for tensor in outputs:
                self._tag(self._names, tensor, names)
        elif not all(storage_number(tensor) in self._names for tensor in outputs):  # no mere view of the parameter
            self.uses.other |= names

    def _parameter_names(self, tensor: Any) -> frozenset[str]:
        if not isinstance(tensor, torch.Tensor):
            return frozenset()
        return self._names.get(storage_number(tensor), frozenset())

    def _tag(self, tags: dict[int, frozenset[str]], tensor: torch.Tensor, names: set[str] | frozenset[str]) -> None:
        storage = storage_number(tensor)
        tags[storage] = tags.get(storage, frozenset()) | names
