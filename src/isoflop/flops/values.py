"""Values on the meta device, for the tensors whose values are known: the user's integers, and what follows from them.

A replay has shapes alone, but masks, positions, image places and the branches that depend on them follow from the
call's integers, from `torch.arange` and its like, and from small buffers. `Values` keeps a real tensor beside each such
meta tensor, carries every operator out on both, and answers where code asks for a value. What depends on a weight or
an activation is unknown, and to ask for it raises, as on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten

LARGEST = 2**26
"""Elements of a tensor whose values are kept: masks up to a length of 8,192."""
LARGEST_IN_STRIPS = 2**31
"""… of one whose values are computed some rows at a time, when they are asked for: up to a length of 46,340."""
LARGEST_RANDOM = 2**12
"""… and of random numbers, of which a few decide a branch (LayerDrop) and many are a dropout."""

_EMPTY = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
_BY_SHAPE = {aten.zeros_like, aten.ones_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_full, *_EMPTY}
"""Operators that take a tensor for its shape alone."""
_INDEXED = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_}
_SAME = {aten.slice, aten.expand, aten.alias, aten.detach, aten.view, aten.unsqueeze, aten.clone, aten.contiguous}
"""Operators that change nothing but leading dimensions where they leave the number of rows and columns."""
_CHOICES = {aten.topk, aten.argmax}
_FAULTS = {aten.isnan, aten.isinf}
"""Questions that training answers with no."""
_ASKS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def storage_number(tensor: torch.Tensor) -> int:
    """Identity of a tensor's storage, or of a tensor without one (torch.func's); a freed one's is given out again."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return -id(tensor)


class Strips:
    """Values of a tensor that is too large to be kept.

    `rows(start, stop)` computes those of some rows, [..., stop − start, last dimension] or broadcast to it.
    """

    def __init__(self, shape: torch.Size, rows: Callable[[int, int], torch.Tensor]) -> None:
        self.shape, self.rows = shape, rows


def values_of(tensor: Any, made_up: bool = False) -> torch.Tensor | Strips | None:
    """Values of a tensor: a real one's are itself, a meta tensor's those that `Values` knows; None: unknown.

    `made_up`: also those that follow from a choice in turn.
    """
    if not isinstance(tensor, torch.Tensor) or isinstance(tensor, FakeTensor):
        return None
    if not made_up and IN_TURN in _sources(tensor):
        return None
    return getattr(tensor, "_isoflop_values", None) if tensor.is_meta else tensor


class UnknownValue(RuntimeError):
    """Code asks for what shapes alone do not tell."""

    def __init__(self) -> None:
        super().__init__("it depends on values, which shapes do not have")


RANDOM, IN_TURN = "random numbers", "choices in turn"
"""What values follow from that a training would have otherwise."""


def _sources(tensor: torch.Tensor) -> frozenset[str]:
    return getattr(tensor, "_isoflop_sources", frozenset())


def with_values(tensor: torch.Tensor, values: torch.Tensor | Strips | None) -> torch.Tensor:
    """The meta tensor `tensor`, which holds these values from now on."""
    tensor._isoflop_values = values  # type: ignore[attr-defined]
    return tensor


def same_on_meta(tensor: torch.Tensor) -> torch.Tensor:
    """A real tensor (a table that code keeps outside of the model) as a meta tensor with its values."""
    meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    small = tensor.device.type == "cpu" and tensor.numel() <= LARGEST and not tensor.requires_grad
    return with_values(meta, tensor.detach()) if small else meta


class Values(TorchDispatchMode):
    """Around a replay on meta tensors; see the module.

    Where a choice of the largest depends on what is unknown, as a router's of experts, the rows choose in turn, so that
    a loop over the experts' tokens can run: it multiplies as many rows however they are spread.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.decided: set[str] = set()
        """`RANDOM` and `IN_TURN`, where a branch or a shape was decided so (layers dropped, tokens of an expert)."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((*args, *kwargs.values())))
        metas = [tensor for tensor in tensors if tensor.is_meta]
        if len(metas) < len(tensors):
            if not metas or isinstance(func, torch._ops.HigherOrderOperator):
                out = func(*args, **kwargs)
                moved = isinstance(out, torch.Tensor) and out.is_meta and args[:1] and isinstance(args[0], torch.Tensor)
                return with_values(out, args[0]) if moved and out.shape == args[0].shape else out  # x.to("meta")
            # only where it meets a meta tensor: what is computed of real ones alone may decide a branch
            args, kwargs = tree_map(_on_meta, (args, kwargs))
            metas = list(_tensors((*args, *kwargs.values())))
        if isinstance(func, torch._ops.HigherOrderOperator):
            return func(*args, **kwargs)
        packet = func._overloadpacket
        random = torch.Tag.nondeterministic_seeded in func.tags
        sources = frozenset({RANDOM} if random else ()).union(*map(_sources, metas))
        if packet in _INDEXED and any(tensor.dtype in (torch.bool, torch.uint8) for tensor in metas[1:]):
            self.decided |= sources & {IN_TURN}
            args = self._with_numbers(args)
        known = all(self._known(tensor) is not None for tensor in metas)
        if any(isinstance(values_of(tensor), Strips) for tensor in metas):
            out = func(*args, **kwargs)
            if known:
                self._in_strips(func, args, kwargs, out)
            return out
        known = known or packet in _BY_SHAPE
        known = known and not (random and metas)
        # a backward pass asks for values of masks among indices at most, and makes zeros as large as activations
        wanted = torch.is_grad_enabled() or torch._C._current_graph_task_id() == -1 or bool(_ASKS & set(func.tags))
        if not (known and wanted):
            try:
                out = func(*args, **kwargs)
            except (RuntimeError, NotImplementedError) as error:
                if _ASKS & set(func.tags):
                    raise UnknownValue from error
                raise
            if func._schema.is_mutable:
                self._forget(args)
            if wanted and packet in _CHOICES:
                _choose_in_turn(packet, args, out)
            elif packet in _FAULTS and out.numel() <= LARGEST:
                with_values(out, torch.zeros(out.shape, dtype=torch.bool, device="cpu"))
            return out
        if packet is aten._local_scalar_dense:
            self.decided |= sources
            return self._known(metas[0]).item()  # type: ignore[union-attr]
        if _ASKS & set(func.tags):
            self.decided |= sources & {IN_TURN}
            return tree_map(_on_meta, self._compute(func, args, kwargs))
        if metas and torch.device(kwargs.get("device") or "meta").type == "cpu":  # x.cpu(), x.tolist()
            self.decided |= sources & {IN_TURN}
            return self._compute(func, args, kwargs)
        out = func(*args, **kwargs)
        most = LARGEST_RANDOM if random else LARGEST
        if all(tensor.is_meta and tensor.numel() <= most for tensor in _tensors((out,))):
            _remember(out, self._compute(func, args, kwargs))
            for tensor in _tensors((out,)) if sources else ():
                tensor._isoflop_sources = sources  # type: ignore[attr-defined]
        elif func._schema.is_mutable:
            self._forget(args)
        elif metas:
            self._in_strips(func, args, kwargs, out)
        return out

    def _in_strips(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Remember how to compute the rows of what an operator returns, if it works element by element."""
        if not isinstance(out, torch.Tensor) or out.dim() < 2 or out.numel() > LARGEST_IN_STRIPS:
            return
        packet, (*leading, many, columns) = func._overloadpacket, out.shape
        by_element = torch.Tag.pointwise in func.tags and not func._schema.is_mutable
        unchanged = packet in _SAME and args[0].shape[-2:] == out.shape[-2:]
        if not by_element and not (unchanged and (packet is aten.expand or args[0].numel() == out.numel())):
            return

        def rows(start: int, stop: int) -> torch.Tensor:
            def part(item: Any) -> Any:
                values = values_of(item, made_up=True)
                if isinstance(values, Strips):
                    return values.rows(start, stop)
                if values is not None and values.dim() > 1 and values.shape[-2] == many > 1:
                    return values.narrow(-2, start, stop - start)
                return item if values is None else values

            if by_element:
                return self._compute(func, *tree_map(part, (args, kwargs)))
            found = part(args[0])
            if packet is aten.expand:
                return found
            size = (stop - start, columns)
            return found.expand(*args[0].shape[:-2], *size).reshape(*leading, *size)

        with_values(out, Strips(out.shape, rows))

    def _known(self, tensor: torch.Tensor) -> torch.Tensor | Strips | None:
        values = values_of(tensor, made_up=True)
        if isinstance(values, Strips):
            return values
        return None if values is None or hasattr(values.untyped_storage(), "_isoflop_lost") else values

    def _forget(self, args: Any) -> None:
        """Something unknown was written into the first argument, and so into whatever shares its storage."""
        for tensor in _tensors(args[:1]):
            values = values_of(tensor, made_up=True)
            if isinstance(values, Strips):
                with_values(tensor, None)
            elif values is not None:
                values.untyped_storage()._isoflop_lost = True  # type: ignore[attr-defined]

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operator on the real tensors."""
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        args, kwargs = tree_map(_to_real, (args, kwargs))
        if func._overloadpacket is aten.histc:  # which a CPU has for floating-point numbers alone
            return func(args[0].double(), *args[1:], **kwargs).to(args[0].dtype)
        if func._overloadpacket in _EMPTY:  # what it holds is written before it is read
            return func(*args, **kwargs).zero_()
        return func(*args, **kwargs)

    def _with_numbers(self, args: Any) -> Any:
        """Masks among the indices as row numbers, whose shape is known."""
        indices: list[Any] = []
        for index in args[1]:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                indices.append(index)
                continue
            values = self._known(index)
            if values is None:
                return args
            indices += [same_on_meta(rows) for rows in values.nonzero().unbind(1)]  # type: ignore[union-attr]
        return (args[0], indices, *args[2:])


def _choose_in_turn(packet: Any, args: Any, out: Any) -> None:
    """Values for the indices that `topk` or `argmax` finds along the last dimension of its first argument."""
    indices, place = (out, 1) if packet is aten.argmax else (out[1], 2)
    along = args[place] if len(args) > place else -1
    if along in (-1, args[0].dim() - 1) and indices.numel() <= LARGEST:
        in_turn = torch.arange(indices.numel(), device="cpu") % args[0].shape[-1]
        with_values(indices, in_turn.view(indices.shape))
        indices._isoflop_sources = frozenset({IN_TURN})


def _tensors(items: Iterable[Any]) -> Iterable[torch.Tensor]:
    for item in items:
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from _tensors(item)


def _on_meta(item: Any) -> Any:
    return same_on_meta(item) if isinstance(item, torch.Tensor) and not item.is_meta else item


def _to_real(item: Any) -> Any:
    if isinstance(item, torch.device):
        return torch.device("cpu")
    if not isinstance(item, torch.Tensor) or not item.is_meta:
        return item
    values = values_of(item, made_up=True)
    # an operator that takes a tensor for its shape
    return torch.zeros(item.shape, dtype=item.dtype, device="cpu") if values is None else values


def _remember(out: Any, values: Any) -> None:
    if isinstance(out, torch.Tensor):
        with_values(out, values)
    elif isinstance(out, list | tuple):
        for item, value in zip(out, values, strict=True):
            _remember(item, value)


class WrittenOut(TorchFunctionMode):
    """What the meta device has no kernel for: `scaled_dot_product_attention` as QKᵀ, a softmax and AV; a CTC loss,
    which multiplies no matrices, as a sum; a number in a text (`self[f"expert_{i}"]`) as its value; and the
    values of a list that is made a tensor there, or is an index.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor):
            data = tree_map(_number, args[0])
            out = func(data, *args[1:], **(kwargs or {}))
            if not out.is_meta or out.numel() > LARGEST:
                return out
            return with_values(out, func(data, *args[1:], **{**(kwargs or {}), "device": "cpu"}))
        if func is torch.Tensor.__getitem__ and args[0].is_meta:
            index = args[1]
            return func(args[0], tuple(map(_index, index)) if isinstance(index, tuple) else _index(index))
        if func is F.ctc_loss:
            return args[0].sum()
        if func is torch.Tensor.__format__ and args[0].dim() == 0:
            return format(_number(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))


def _number(item: Any) -> Any:
    """A number that a tensor is known to hold; what is none, as it is."""
    values = values_of(item)
    return values.item() if isinstance(values, torch.Tensor) and values.numel() == 1 else item


def _index(item: Any) -> Any:
    """A list of row numbers, which C++ would turn to a meta tensor, with its values."""
    plain = isinstance(item, list) and item and all(type(number) is int for number in item)
    return same_on_meta(torch.tensor(item, device="cpu")) if plain else item


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *_: Any,
    enable_gqa: bool = False,
    **__: Any,
) -> torch.Tensor:
    """Tensors (…, H, T, K), with `enable_gqa` keys and values of fewer heads; a causal mask takes nothing away."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = query @ key.transpose(-2, -1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = torch.where(attn_mask, scores, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value
