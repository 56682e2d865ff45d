"""Which products of two activations are attention: QKᵀ, whose result meets a softmax, and AV, which multiplies that.

A causal mask would need half of these. A state-space model's scan or a linear attention multiplies two activations
too, but masks nothing away: what meets no softmax is no attention here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

aten = torch.ops.aten

_SOFTMAX = {aten._softmax, aten._safe_softmax, aten._sparse_softmax}


class AttentionProducts:
    """Follows the results of such products through a forward pass; says what is known to be attention."""

    def __init__(self) -> None:
        # storage → the products it comes from, and whether a softmax has been passed. No tensor is kept alive: a
        # freed storage's number is given out again, by an operator that is seen here and forgets the old one.
        self._followed: dict[int, tuple[frozenset[int], bool]] = {}
        self._waiting: dict[int, int] = {}  # product → its FLOPs, until it is known to be attention
        self._number = 0

    def product(self, operands: Iterable[Any], output: torch.Tensor, flops: int) -> int:
        """A product of two activations. Returns FLOPs now known to be attention's."""
        if any(self._of(operand)[1] for operand in operands):  # AV
            self._follow([output], frozenset(), False)
            return flops
        self._number += 1
        self._waiting[self._number] = flops
        self._follow([output], frozenset({self._number}), False)
        return 0

    def other(self, packet: Any, args: tuple[Any, ...], outputs: Iterable[Any], is_product: bool) -> int:
        """Any other operator. Returns FLOPs now known to be attention's."""
        if not self._followed:
            return 0
        products: frozenset[int] = frozenset()
        passed = False
        if not is_product:
            for arg in args:
                for item in arg if isinstance(arg, list | tuple) else (arg,):
                    found, after = self._of(item)
                    products, passed = products | found, passed or after
        known = 0
        if packet in _SOFTMAX and products:
            known = sum(self._waiting.pop(product, 0) for product in products)
            products, passed = frozenset(), True
        self._follow(outputs, products, passed)
        return known

    def backward(self) -> None:
        """A backward pass is under way, whose operators are not shown here."""
        if self._followed:
            self._followed.clear()
            self._waiting.clear()

    def _of(self, tensor: Any) -> tuple[frozenset[int], bool]:
        if not isinstance(tensor, torch.Tensor):
            return frozenset(), False
        return self._followed.get(_storage(tensor), (frozenset(), False))

    def _follow(self, outputs: Iterable[Any], products: frozenset[int], passed: bool) -> None:
        for output in outputs:
            if not isinstance(output, torch.Tensor):
                continue
            if products or passed:
                self._followed[_storage(output)] = (products, passed)
            else:
                self._followed.pop(_storage(output), None)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
