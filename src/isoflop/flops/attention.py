"""Attention as it is computed: the keys that a query's window and document let it meet.

A query of a layer with a window of w meets min(w, S) keys; documents of s₁, s₂ … tokens packed into a row cost Σ sᵢ²
instead of (Σ sᵢ)². The causal mask alone takes nothing away, and neither does padding. Windows and documents are read
from the mask, where its values are known (`isoflop.flops.values`), or from the arguments of a fused kernel, by the
names in its schema.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from isoflop.flops.values import LARGEST_IN_STRIPS, Strips, storage_number, values_of
from isoflop.guard import pass_on

aten = torch.ops.aten


class Reading:
    """Whether masks and bounds of a training's own tensors may be read, which waits for a device other than the CPU."""

    allowed = True
    refused = False
    """Something was not read."""

    @classmethod
    def refuses(cls, tensor: Any) -> bool:
        """True if this tensor must not be read."""
        refused = not cls.allowed and isinstance(tensor, torch.Tensor) and tensor.device.type not in ("meta", "cpu")
        cls.refused = cls.refused or refused
        return refused


_AT_ONCE = 2**25
"""Pairs of a query and a key that are looked at together (from 32 MB on, glibc gives freed memory back at once)."""


def keys_met(allowed: torch.Tensor | Strips, queries: int, keys: int) -> Fraction:
    """The share of all pairs of a query and a key that windows and documents leave.

    Rows fall into documents where no pair crosses a boundary. In each, a query meets as many keys as the one that meets
    most (a causal mask's last); keys that none meets are padding, and counted. `allowed`: bool, (…, queries or 1,
    keys).
    """
    if len(allowed.shape) < 2 or allowed.shape[-2:] != (queries, keys):
        return Fraction(1)  # a mask of keys alone: padding
    found = [_extents(part) for part in _strips(allowed, queries, keys)]
    counts, first, last = (torch.cat(parts, 1) for parts in list(zip(*found, strict=True))[:3])
    unmet = ~torch.stack([part[3] for part in found]).any(0)
    met = sum(_met(*matrix) for matrix in zip(counts, first, last, unmet, strict=True))
    return Fraction(met, len(counts) * queries * keys)


def _strips(allowed: torch.Tensor | Strips, queries: int, keys: int) -> Iterator[torch.Tensor]:
    """Some rows after others of each different matrix, (matrices, rows, keys)."""
    step = max(1, _AT_ONCE // (keys * math.prod(allowed.shape[:-2])))
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        part = allowed.rows(start, stop) if isinstance(allowed, Strips) else allowed.narrow(-2, start, stop - start)
        for dim in range(part.dim() - 2):
            if part.stride(dim) == 0:
                part = part.narrow(dim, 0, 1)
        yield part.reshape(-1, stop - start, keys)


def _extents(allowed: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of rows: how many keys each meets, the first of them and the last; and the keys that some row meets."""
    bits, keys = allowed.to(torch.uint8), allowed.shape[-1]
    counts = allowed.sum(-1)
    first = torch.where(counts == 0, keys, bits.argmax(-1))
    last = torch.where(counts == 0, -1, keys - 1 - bits.flip(-1).argmax(-1))
    return counts, first, last, allowed.any(-2)


def _met(counts: torch.Tensor, first: torch.Tensor, last: torch.Tensor, unmet: torch.Tensor) -> int:
    queries, keys = len(counts), len(unmet)
    if queries != keys:
        return queries * min(keys, int(counts.max()) + int(unmet.sum()))
    numbers = torch.arange(keys, device=counts.device)
    before, behind = last.cummax(0).values, first.flip(0).cummin(0).values.flip(0)
    starts = (before[:-1] < numbers[1:]) & (behind[1:] >= numbers[1:])
    document = torch.cat([starts.new_zeros(1), starts]).cumsum(0)
    size = torch.bincount(document)
    most = torch.zeros_like(size).scatter_reduce(0, document, counts, "amax")
    padding = torch.bincount(document[unmet], minlength=len(size))
    return int((size * torch.minimum(size, most + padding)).sum())


# -- fused kernels -----------------------------------------------------------------------------------------------------


_NAMES = {
    "query": ("query", "q"),
    "key": ("key", "k"),
    "value": ("value", "v"),
    "mask": ("attn_mask", "attn_bias", "bias"),
    "documents": ("cum_seq_q", "cu_seqlens_q", "cu_seqlens", "cu_seq_q"),
    "of_keys": ("cum_seq_k", "cu_seqlens_k", "cu_seq_k"),
    "causal": ("is_causal", "causal"),
    "left": ("window_size_left", "window_size"),
    "right": ("window_size_right",),
    "longest_key": ("max_k", "max_seqlen_k"),
    "block_mask": ("block_mask",),
}
"""Arguments of attention's operators in torch and flash-attn, by what they mean."""

_FLEX = ("query", "key", "value", "score_mod", "block_mask")
_FLEX_BACKWARD = ("query", "key", "value", *[""] * 6, "block_mask")
"""Arguments of flex_attention's operators, which have no schema."""


def arguments_of(packet: Any) -> dict[str, int]:
    """Places of a query, a key … among an attention operator's arguments."""
    if isinstance(packet, torch._ops.HigherOrderOperator):
        names: Iterable[str] = _FLEX_BACKWARD if "backward" in str(packet) else _FLEX
    else:
        names = [argument.name for argument in getattr(packet, packet.overloads()[0])._schema.arguments]
    meaning = {name: meaning for meaning, ours in _NAMES.items() for name in ours}
    return {meaning[name]: place for place, name in enumerate(names) if name in meaning}


def kernel_flops(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """FLOPs of a fused attention operator, forward or backward, as computed and in full (2 products each for QKᵀ and
    AV; recomputing QKᵀ within the kernel is none of the model's).

    Kernels by themselves take (B, T, H, K), or (all tokens, H, K) with the documents' bounds; those behind
    `scaled_dot_product_attention`, (B, H, T, K).
    """
    name = str(packet)
    found: dict[str, Any] = dict.fromkeys(_NAMES)
    found |= {meaning: args[place] for meaning, place in arguments_of(packet).items() if place < len(args)}
    found |= {meaning: kwargs[one] for meaning, ours in _NAMES.items() for one in ours if one in kwargs}
    query, key, value = found["query"], found["key"], found["value"]
    alone = "scaled_dot_product" not in name and "flex" not in name and "cudnn" not in name
    if alone and query.dim() >= 3:
        query, key, value = (part.transpose(-3, -2) for part in (query, key, value))
    *batch, heads, T, K = query.shape
    S, V = key.shape[-2], value.shape[-1]
    rows = math.prod(batch)
    documents = _documents(found, T, S) if alone and rows == 1 else [(T, S)] * rows
    window = _window(found)
    full = sum(t * s for t, s in documents)
    pairs = full if window is None else sum(t * min(s, window) for t, s in documents)
    if found["mask"] is not None:
        pairs = int(pairs * share_met(found["mask"], T, S))
    elif found["block_mask"] is not None and not Reading.refuses(_blocks(found["block_mask"])):
        with _disable_current_modes(), torch.no_grad():
            allowed = pairs_of_blocks(found["block_mask"], T, S, query.device)
            pairs = pairs if allowed is None else int(pairs * keys_met(allowed, T, S))
    products = (2 if "backward" in name else 1) * 2 * heads * (K + V)
    return pairs * products, full * products


def _blocks(block_mask: Any) -> Any:
    return block_mask[2] if isinstance(block_mask, tuple) else getattr(block_mask, "kv_num_blocks", None)


def pairs_of_blocks(block_mask: Any, queries: int, keys: int, device: Any) -> Strips | None:
    """Pairs that a block mask allows, bool (B or 1, 1, T, S): a `BlockMask`'s, or of the tuple that the operator takes.

    None: there is no mask, or its function does not run on a grid of indices.
    """
    mask_mod = getattr(block_mask, "mask_mod", None) or (block_mask[-1] if isinstance(block_mask, tuple) else None)
    if not callable(mask_mod):
        return None
    batch = len(_blocks(block_mask))
    if batch * queries * keys > LARGEST_IN_STRIPS:
        return None

    def rows(start: int, stop: int) -> torch.Tensor:
        sides = ((0, batch), (0, 1), (start, stop), (0, keys))
        places = torch.meshgrid(*(torch.arange(*side, device=device) for side in sides), indexing="ij")
        return mask_mod(*places).expand(places[0].shape)  # the mask of none is a number

    try:
        rows(0, 1)
    except Exception as error:  # whatever a user's function may raise
        pass_on(error)
        return None
    return Strips(torch.Size((batch, 1, queries, keys)), rows)


def _documents(found: dict[str, Any], T: int, S: int) -> list[tuple[int, int]]:
    """Tokens and keys of each document of a packed row, by their bounds; as long as the longest where these have no
    values.
    """
    bounds = None if Reading.refuses(found["documents"]) else values_of(found["documents"])
    if bounds is None and found["documents"] is not None:
        return [(T, min(S, found["longest_key"] or S))]
    if not isinstance(bounds, torch.Tensor) or bounds.numel() < 2:
        return [(T, S)]
    of_keys = values_of(found["of_keys"])
    of_keys = of_keys if isinstance(of_keys, torch.Tensor) else bounds
    with _disable_current_modes():
        return list(zip(bounds.diff().tolist(), of_keys.diff().tolist(), strict=True))


def _window(found: dict[str, Any]) -> int | None:
    """Keys within a kernel's window, the query's own among them; a causal mask leaves those before it."""
    left, right = found["left"], found["right"]
    if isinstance(left, list | tuple):
        left, right = left
    if left is None or left < 0:
        return None
    if right is None and not found["causal"]:  # xformers' and torch's memory-efficient: the window's size
        return int(left) or None
    return int(left) + 1 + (0 if found["causal"] else max(0, int(right or 0)))


_SHARES: dict[tuple[Any, ...], tuple[torch.Tensor | Strips, Fraction]] = {}
"""Shares of the masks seen last: a model's layers have one between them."""


def share_met(mask: Any, queries: int, keys: int, inverted: bool = False) -> Fraction:
    """`keys_met` of a mask as attention takes it: bool, or added to the scores; 1 where its values are unknown.

    `inverted`: True stands for a pair that is masked away.
    """
    values = None if Reading.refuses(mask) else values_of(mask)
    if values is None or mask.requires_grad or tuple(values.shape[-2:]) != (queries, keys):
        return Fraction(1)
    key = (*_identity(values), inverted)
    if key not in _SHARES:
        with _disable_current_modes(), torch.no_grad():
            allowed = _allowed(values, mask.dtype, inverted)
            share = Fraction(1) if allowed is None else keys_met(allowed, queries, keys)
        if len(_SHARES) >= 8:
            del _SHARES[next(iter(_SHARES))]
        _SHARES[key] = values, share
    return _SHARES[key][1]


def _identity(values: torch.Tensor | Strips) -> tuple[Any, ...]:
    if isinstance(values, Strips):
        return (id(values),)
    place = values.untyped_storage()._cdata, values.storage_offset()
    version = object() if values.is_inference() else values._version  # which those do not have: no two are the same
    return (*place, values.shape, values.stride(), version)


def _allowed(values: torch.Tensor | Strips, dtype: torch.dtype, inverted: bool) -> torch.Tensor | Strips | None:
    """Pairs that a mask lets be, by its values of a dtype; None where it is none: added to all scores, a bias."""

    def each(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor | Strips:
        if isinstance(values, torch.Tensor):
            return function(values)
        return Strips(values.shape, lambda start, stop: function(values.rows(start, stop)))

    if dtype == torch.bool:
        return each(torch.logical_not) if inverted else values
    least = 0.0
    if dtype.is_floating_point:
        least = min((float(part.min()) for part in _strips(values, *values.shape[-2:])), default=0.0)
    # a mask holds 0 where a pair may be, and −1e4, the least number or −∞ elsewhere
    return None if least > -9999 else each(lambda part: part > least)


# -- written out: QKᵀ, a softmax, AV -----------------------------------------------------------------------------------


Counted = tuple[int, str, Any, str | None]
"""FLOPs of a product, its operator, phase and module."""


class AttentionProducts:
    """Follows the results of products of two activations through a forward pass, to the softmax or not.

    Each has a share of its FLOPs that a mask between it and the softmax leaves. Autograd's number of the product's node
    tells its gradients' products in the backward pass.
    """

    def __init__(self) -> None:
        # storage → the products it comes from, the share past a softmax. No tensor is kept alive: a freed storage's
        # number is given out again, by an operator that is seen here and forgets the old one.
        self._followed: dict[int, tuple[frozenset[int], Fraction | None]] = {}
        self._masked: dict[int, Fraction] = {}
        self._open: dict[int, tuple[int | None, Counted]] = {}
        """Products that may be QKᵀ, until a softmax tells: their nodes, and what was counted."""
        self._number = 0
        self.shares: dict[int | None, Fraction] = {}
        """Number of an autograd node → share of its product, for those known to be attention's."""

    def product(self, operands: Iterable[Any], output: torch.Tensor, counted: Counted) -> Fraction | None:
        """A product of two activations: its share if it is known to be attention's (AV)."""
        operands = list(operands)
        trains = torch.is_grad_enabled() and any(operand.requires_grad for operand in operands)
        node = torch.autograd._get_sequence_nr() - 1 if trains else None  # the last one made
        passed = [share for _, share in map(self._of, operands) if share is not None]
        if passed:
            self._follow([output], frozenset(), None)
            self.shares[node] = min(passed)
            return min(passed)
        self._number += 1
        self._open[self._number] = node, counted
        self._follow([output], frozenset({self._number}), None)
        return None

    def other(
        self, packet: Any, args: tuple[Any, ...], outputs: Iterable[Any], is_product: bool
    ) -> list[tuple[Fraction, Counted]]:
        """Any other operator. Returns the products that a softmax makes known to be attention's, with their shares."""
        if not self._followed:
            return []
        products: frozenset[int] = frozenset()
        passed: list[Fraction] = []
        for arg in () if is_product else args:
            for item in arg if isinstance(arg, list | tuple) else (arg,):
                found, share = self._of(item)
                products = products | found
                passed += [] if share is None else [share]
        known: list[tuple[Fraction, Counted]] = []
        if products and packet in _MASKS:
            share = _share_of(packet, args, [self._of(arg)[0] for arg in args])
            for product in products if share < 1 else ():
                self._masked[product] = min(share, self._masked.get(product, share))
        if packet in _SOFTMAX and products:
            for product in products & self._open.keys():
                node, counted = self._open.pop(product)
                self.shares[node] = self._masked.get(product, Fraction(1))
                known.append((self.shares[node], counted))
            # (a softmax over several products side by side, as of chunks, has the shares of all)
            products, passed = frozenset(), [min((share for share, _ in known), default=Fraction(1))]
        self._follow(outputs, products, min(passed) if passed else None)
        return known

    def backward(self) -> None:
        """A backward pass is under way, whose operators are not shown here."""
        for state in (self._followed, self._open, self._masked):
            state.clear()

    def _of(self, tensor: Any) -> tuple[frozenset[int], Fraction | None]:
        if not isinstance(tensor, torch.Tensor):
            return frozenset(), None
        return self._followed.get(storage_number(tensor), (frozenset(), None))

    def _follow(self, outputs: Iterable[Any], products: frozenset[int], share: Fraction | None) -> None:
        for output in outputs:
            if not isinstance(output, torch.Tensor):
                continue
            if products or share is not None:
                self._followed[storage_number(output)] = (products, share)
            else:
                self._followed.pop(storage_number(output), None)


_SOFTMAX = {aten._softmax, aten._safe_softmax, aten._sparse_softmax}
_MASKS = {aten.add, aten.add_, aten.where, aten.masked_fill, aten.masked_fill_}
"""Operators that mask scores."""


def _share_of(packet: Any, args: tuple[Any, ...], products: list[frozenset[int]]) -> Fraction:
    scores = next((arg for arg, found in zip(args, products, strict=True) if found), None)
    if scores is None or scores.dim() < 2:
        return Fraction(1)
    queries, keys = scores.shape[-2:]
    if packet is aten.where:
        return share_met(args[0], queries, keys, inverted=not products[1])
    if packet in (aten.add, aten.add_):
        return share_met(args[0] if scores is args[1] else args[1], queries, keys)
    return share_met(args[1], queries, keys, inverted=True)
