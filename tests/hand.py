"""Counting by hand: the matrix products of a forward pass, one line each, and what a training step makes of them.

Nothing here runs a model. A product of m×n by n×k costs 2mnk FLOPs. Its backward pass has a product of the same size
for each operand whose gradient somebody needs: a weight's where it trains, an activation's where anything trains
before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from isoflop.flops import FlopCount, Parameters

RANK = 4
"""Of LoRA's adapters (Hu et al. 2021): W·x + B·(A·x), with A of RANK rows."""


@dataclass(frozen=True)
class Product:
    """A product of the forward pass.

    `kind`: "weight" (times an activation), or of two activations "attention" or "scan" (which no causal mask halves).
    `needs`: who needs the activation's gradient: "all", "embeddings" (whoever trains what the first layer reads: with
    frozen embeddings nobody) or "nobody" (pixels).
    `adapter`: FLOPs of A·x and of B·(A·x) where LoRA adapts this weight.
    `block`: inside what activation checkpointing computes again.
    `last`: nothing in its block keeps what it returns, so that torch's early stop leaves it out.
    `left_out`: FLOPs of the pairs that a window leaves out.
    `trains`: the loss depends on it; else its forward pass alone is computed.
    """

    flops: int
    kind: str = "weight"
    needs: str = "all"
    adapter: tuple[int, int] | None = None
    block: bool = True
    last: bool = False
    left_out: int = 0
    trains: bool = True


Products = list[Product]


def weight(rows: int, inputs: int, outputs: int, *, adapted: bool = False, **rest: Any) -> Product:
    """`rows` vectors of `inputs` numbers times a weight."""
    adapter = (2 * rows * inputs * RANK, 2 * rows * RANK * outputs) if adapted else None
    return Product(2 * rows * inputs * outputs, adapter=adapter, **rest)


def scan(flops: int) -> Product:
    return Product(flops, kind="scan")


def attention(batch: int, queries: int, keys: int, width: int, window: int | None = None) -> Products:
    """QKᵀ and AV of each query with the keys in its window, over all heads: `width` = heads × their size."""
    met = min(keys, window or keys)
    one = 2 * batch * queries * width
    return [Product(one * met, kind="attention", left_out=one * (keys - met))] * 2


def self_attention(
    batch: int, length: int, d: int, width: int, of_keys: int, needs: str = "all", window: int | None = None
) -> Products:
    """Q, K, V, the two products and O; `width` = heads × their size, `of_keys` the same of keys and values."""
    rows = batch * length
    qkv = [weight(rows, d, outputs, adapted=True, needs=needs) for outputs in (width, of_keys, of_keys)]
    return [*qkv, *attention(batch, length, length, width, window), weight(rows, width, d, adapted=True)]


def cross_attention(batch: int, queries: int, keys: int, d: int, width: int) -> Products:
    return [
        weight(batch * queries, d, width, adapted=True),
        *[weight(batch * keys, d, width, adapted=True)] * 2,
        *attention(batch, queries, keys, width),
        weight(batch * queries, width, d, adapted=True),
    ]


def feed_forward(rows: int, d: int, ffw: int, *, gated: bool = False, last: bool = True) -> Products:
    """`last`: a residual addition alone comes after it (no normalisation, no weight of an expert)."""
    return [weight(rows, d, ffw)] * (2 if gated else 1) + [weight(rows, ffw, d, last=last)]


def outside(products: Iterable[Product]) -> Products:
    """Outside of the blocks that checkpointing computes again."""
    return [replace(product, block=False, last=False) for product in products]


def stack(layers: int, layer: Callable[[str], Products]) -> Products:
    """`layers` of them; only the first reads the embeddings."""
    return [product for i in range(layers) for product in layer("all" if i else "embeddings")]


def count(
    products: Products, *, lora: bool = False, checkpointing: str | None = None, inputs_require_grad: bool = False
) -> FlopCount:
    """What a training step costs.

    Args:
        products: of the forward pass.
        lora: nothing trains but the adapters.
        checkpointing: "reentrant" computes the blocks again in full, "modern" stops early.
        inputs_require_grad: Hugging Face's `enable_input_require_grads`, which its checkpointing switches on: the
            gradient of frozen embeddings is computed, though nobody uses it.
    """
    model = in_attention = again = 0
    for product in products:
        needed = product.needs == "all" or (product.needs == "embeddings" and (not lora or inputs_require_grad))
        forward = product.flops
        if not product.trains:
            step = forward
        elif product.kind == "weight":
            step = (1 + (not lora) + needed) * forward
        else:
            step = 3 * forward
        in_attention += step if product.kind == "attention" else 0
        if lora and product.adapter:
            a, b = product.adapter
            step += (2 + needed) * a + 3 * b
            forward += a + b
        model += step
        if product.block and not (checkpointing == "modern" and product.last):
            again += forward
    left_out = sum(3 * product.left_out for product in products)
    return FlopCount(model, model + (again if checkpointing else 0), in_attention, left_out=left_out)


# -- parameters --------------------------------------------------------------------------------------------------------


def layer_norm(d: int) -> int:
    return 2 * d


def linear(inputs: int, outputs: int, bias: bool = True) -> int:
    return inputs * outputs + (outputs if bias else 0)


@dataclass(frozen=True)
class Sizes:
    """Parameters by hand: `body` is the rest, `tables` the embeddings (positions too), `head` the output matrix.

    A tied head is no parameter of its own. `idle`: of the experts that one token does not pass. `frozen`: by the model.
    """

    body: int
    tables: int
    head: int = 0
    tied: bool = False
    idle: int = 0
    frozen: int = 0

    def parameters(self, adapters: int | None = None) -> Parameters:
        """In every convention; `adapters`: of LoRA, beside which nothing trains."""
        body = self.body + (adapters or 0)
        total = body + self.tables + (0 if self.tied else self.head)
        trainable = total - self.frozen if adapters is None else adapters
        method = "by use in a traced forward pass"
        return Parameters(total, trainable, body, body + self.head, total - self.idle, method)


# -- models ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A tiny model and its hand count.

    `build(attention)`: "eager" or "sdpa". `inputs(batch, length)`: as training calls it. `products(batch, length)`: of
    the forward pass. `adapted`: endings of the names of the layers that LoRA adapts; `adapters`: their parameters.
    `lengths`: some that it takes, the first is the tests'.
    """

    name: str
    build: Callable[[str], nn.Module]
    inputs: Callable[[int, int], dict[str, torch.Tensor]]
    products: Callable[[int, int], Products]
    sizes: Sizes
    adapted: tuple[str, ...]
    adapters: int
    attentions: tuple[str, ...] = ("eager", "sdpa")
    lengths: tuple[int, ...] = (16, 7, 24)
    masked: bool = True  # takes an attention mask for its tokens
    packed: bool = False  # takes position_ids

    def training_flops(self, batch: int, length: int) -> int:
        """Model FLOPs of a training step, by hand."""
        return count(self.products(batch, length)).model

    def forward_flops(self, batch: int, length: int) -> int:
        """FLOPs of the forward pass, by hand."""
        return sum(product.flops for product in self.products(batch, length))


class LoRA(nn.Module):
    """A frozen layer (nn.Linear or Hugging Face's Conv1D) and its adapter."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        inputs, outputs = base.weight.shape if type(base).__name__ == "Conv1D" else base.weight.shape[::-1]
        self.base = base
        self.a, self.b = nn.Linear(inputs, RANK, bias=False), nn.Linear(RANK, outputs, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.b(self.a(x))


def adapt(model: nn.Module, endings: tuple[str, ...]) -> nn.Module:
    """Freeze the model and give the layers with such names an adapter each."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if name.endswith(endings) and hasattr(module, "weight"):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, LoRA(module))
    return model


def checkpointed(model: Any, kind: str | None) -> Any:
    """With activation checkpointing: "reentrant" or "modern"."""
    if kind is not None and hasattr(model, "checkpointing"):
        model.checkpointing = kind
    elif kind is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": kind == "reentrant"})
        if model.main_input_name != "input_ids":  # else it has been done
            model.enable_input_require_grads()
    return model.train()


def ids(batch: int, length: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    """Token ids [batch, length]; 0 to 3 are kept for padding and the like."""
    return torch.randint(4, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
