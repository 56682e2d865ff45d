"""Parameters N in the conventions that scaling laws were fitted with.

total                    every parameter once (tied ones once, a sharded one whole)
trainable                those with `requires_grad`
non_embedding            without token and position embeddings and without the output head
                         (Kaplan et al. 2020, section 1.3)
non_embedding_with_head  the head's matrix counted, tied or not (Pearce & Song 2024, Porian et al. 2024)
active                   parameters that one token passes in a mixture of experts; the total where there are no experts

Embeddings and heads are told by use, for names lie (`shared`, `wte`, `embed_out`): `UseTracer` listens to the operators
of a forward pass on the twin, follows parameters through casts, transposes, slices and concatenations, and notes which
operator consumes them. Before the first measured step they are told by module type.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from isoflop.flops.values import storage_number
from isoflop.guard import attempt

_TOP_K = ("num_experts_per_tok", "moe_top_k", "top_k_experts", "num_selected_experts", "moe_topk", "moe_k")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Parameters:
    """Parameter counts by convention (see the module), None where unknown; `method` of telling embeddings apart."""

    total: int
    trainable: int
    non_embedding: int | None
    non_embedding_with_head: int | None
    active: int | None
    method: str

    def six_nd(self, tokens: int | None) -> int | None:
        """6·N·D with N non-embedding, of experts the active, and D tokens processed (Kaplan et al. 2020, sec. 2.1)."""
        if tokens is None or self.non_embedding is None:
            return None
        return 6 * (self.non_embedding - self._idle) * tokens

    @property
    def active_matrices(self) -> int | None:
        """Non-embedding with head, of experts the active: a token's matrices, and norms and biases."""
        return None if self.non_embedding_with_head is None else self.non_embedding_with_head - self._idle

    @property
    def _idle(self) -> int:
        return 0 if self.active is None else self.total - self.active

    def by_convention(self) -> dict[str, int | None]:
        """The counts alone, by name."""
        counts = asdict(self)
        del counts["method"]
        return counts


def full_shape(parameter: torch.Tensor) -> torch.Size:
    """Shape of a parameter before sharding and quantisation (DTensor, DeepSpeed ZeRO-3, bitsandbytes 4-bit)."""
    shape = getattr(parameter, "ds_shape", None)
    if shape is None:
        shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return torch.Size(parameter.shape if shape is None else shape)


def numel(parameter: torch.Tensor) -> int:
    """Number of elements of `full_shape`."""
    return math.prod(full_shape(parameter))


def given_parameters(count: int) -> Parameters:
    """The user's `num_params=`, used for every convention."""
    return Parameters(count, count, count, count, count, "num_params given by the user")


def count_parameters(model: nn.Module, uses: Uses | None = None) -> Parameters:
    """Count a model's parameters.

    Args:
        model: the model before or after sharding; torch.compile's and DDP's wrappers are fine.
        uses: of the parameters in a forward pass (`isoflop.flops.measure`); without it embeddings are told by module
            type and by Hugging Face's `get_input_embeddings`.

    Raises:
        ValueError: the model has no parameters.
    """
    model = unwrap(model)
    named = dict(model.named_parameters())
    if not named:
        raise ValueError(
            f"expected a model with parameters, got {type(model).__name__} with none; "
            "pass num_params= to count FLOPs as 6·N·D without them"
        )
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(
            "expected a model whose parameters show their size, got one in FSDP1's flat shards; pass num_params= "
            "(FSDP2 needs nothing)"
        )
    packed = next((name for name, _ in [*named.items(), *model.named_buffers()] if _is_packed(name)), None)
    if packed is not None:
        raise ValueError(
            f"expected weights that show their size, got packed quantised ones ({packed}); pass num_params= and "
            "flops_per_token= (bitsandbytes' 4 and 8 bits need nothing)"
        )
    sizes = {name: numel(parameter) for name, parameter in named.items()}
    total = sum(sizes.values())
    trainable = sum(sizes[name] for name, parameter in named.items() if parameter.requires_grad)
    embeddings, heads = _by_type(model, named) if uses is None else _by_use(uses, named)
    without = total - sum(sizes[name] for name in embeddings | heads)
    return Parameters(
        total=total,
        trainable=trainable,
        non_embedding=without,
        non_embedding_with_head=without + sum(sizes[name] for name in heads),
        active=total - _idle_experts(model, sizes),
        method="by module type" if uses is None else "by use in a traced forward pass",
    )


_FEW = 16
"""Rows of a table that may tell kinds of tokens rather than tokens."""

_PACKED = ("qweight", "qzeros", "weight_packed", "W_q", "packed_weight")
"""GPTQ and AWQ, compressed-tensors, HQQ: several weights in an integer, of a layout of their own."""


def _is_packed(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last in _PACKED or last.endswith(("proj_blocks", "proj_scales"))  # gpt-oss' MXFP4


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside torch.compile's, DDP's and Fabric's wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        elif type(model).__name__ == "_FabricModule":  # Lightning Fabric's
            model = model._original_module  # type: ignore[assignment]
        else:
            return model


def original_class(module: nn.Module) -> Any:
    """The class that the user wrote: `fully_shard` puts one of its own before it, whose `__new__` builds a module."""
    line = module.__class__.__mro__
    last = max((i for i, kind in enumerate(line) if kind.__name__ == "FSDPModule"), default=-1)
    return line[last + 1]


def _by_use(uses: Uses, named: dict[str, nn.Parameter]) -> tuple[set[str], set[str]]:
    """(embeddings, output heads); a tied matrix is in both."""
    lookups = {name for name in uses.lookup if len(full_shape(named[name])) >= 2}
    # BERT's two token types are no vocabulary that a classifier of two classes would be the head of
    rows = {full_shape(named[name])[0] for name in uses.vocabulary}
    vocabularies = {size for size in rows if size > _FEW or size == max(rows)}
    # the head: a matrix onto a vocabulary, after which no other matrix comes. The second condition is what tells it
    # apart where the model is as wide as its vocabulary.
    heads = {name for name, size in uses.last.items() if size in vocabularies}
    only_added = uses.added - uses.product - uses.lookup - uses.other
    positions = {name for name in only_added if len(full_shape(named[name])) >= 2}
    return lookups | positions, heads


def _by_type(model: nn.Module, named: dict[str, nn.Parameter]) -> tuple[set[str], set[str]]:
    name_of = {id(parameter): name for name, parameter in named.items()}
    tables: list[Any] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    outputs = []
    for module in model.modules():
        tables += _from_getter(module, "get_input_embeddings")
        outputs += _from_getter(module, "get_output_embeddings")
    embeddings = _names(tables, name_of)
    rows = {full_shape(named[name])[0] for name in embeddings}
    if not outputs:
        # a plain module: a Linear with one output for each row of an embedding table, the last such
        onto = [m for m in model.modules() if isinstance(m, nn.Linear) and full_shape(m.weight)[0] in rows]
        outputs = onto[-1:]
    return embeddings, _names(outputs, name_of)


def _from_getter(module: nn.Module, getter: str) -> list[Any]:
    try:
        found = getattr(module, getter)()
    except Exception:  # Hugging Face's base class raises where a model has no such table; any other reason is alike
        return []
    return [found] if found is not None else []


def _names(modules: Iterable[Any], name_of: dict[int, str]) -> set[str]:
    weights: Iterable[Any] = (getattr(module, "weight", None) for module in modules)
    # get_input_embeddings may give a convolution over patches or a spectrogram: that multiplies
    return {name_of[id(weight)] for weight in weights if id(weight) in name_of and len(full_shape(weight)) == 2}


def _idle_experts(model: nn.Module, sizes: dict[str, int]) -> int:
    """Parameters of the experts that one token does not pass: stacked weights or a list of modules per expert."""
    idle = 0
    seen: set[str] = set()
    for prefix, module in model.named_modules():
        config = attempt(getattr, module, "config", None)
        config = getattr(config, "text_config", config)
        experts = next((getattr(config, key) for key in _EXPERTS if getattr(config, key, None)), None)
        active = next((getattr(config, key) for key in _TOP_K if getattr(config, key, None)), None)
        if not experts or not active or experts <= active:
            continue
        for name in _expert_weights(module, prefix, int(experts)) - seen:
            seen.add(name)
            idle += sizes.get(name, 0) * (experts - active) // experts
    return idle


def _expert_weights(module: nn.Module, prefix: str, experts: int) -> set[str]:
    names: set[str] = set()
    for path, inner in module.named_modules(prefix=prefix):
        dot = f"{path}." if path else ""
        if isinstance(inner, nn.ModuleList) and len(inner) == experts and "expert" in path:
            names |= {f"{dot}{name}" for name, _ in inner.named_parameters()}
        for name, parameter in inner.named_parameters(recurse=False):
            shape = full_shape(parameter)
            if len(shape) >= 2 and shape[0] == experts and "expert" in f"{dot}{name}":
                names.add(f"{dot}{name}")
    return names


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
    last: dict[str, int] = field(default_factory=dict)
    """Matrices whose product no other matrix multiplies again: name → size of what comes out."""

    def __or__(self, other: Uses) -> Uses:
        return Uses(
            self.product | other.product,
            self.lookup | other.lookup,
            self.vocabulary | other.vocabulary,
            self.added | other.added,
            self.other | other.other,
            {**self.last, **other.last},
        )


class UseTracer:
    """Listens to a `FlopCounter` on the twin; `uses` is the result."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.uses = Uses()
        # storage → (its names as a parameter, names of the matrices it is a last product of)
        self._names: dict[int, frozenset[str]] = {}
        self._last: dict[int, frozenset[str]] = {}
        self._given: set[int] = set()  # storages of the call's integers, and of what is computed from them
        self._alive: list[Any] = []
        for name, parameter in parameters.items():
            self._tag(self._names, parameter, {name})

    def arguments(self, tensors: list[torch.Tensor]) -> None:
        """The call's own tensors, before the forward pass."""
        for tensor in tensors:
            self._give(tensor)

    def _give(self, tensor: torch.Tensor) -> None:
        if not tensor.is_floating_point():
            self._given.add(storage_number(tensor))
            self._alive.append(tensor)

    def __call__(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, is_forward: bool) -> bool:
        """Note one operator; True if an operand of a product is a parameter."""
        if not is_forward:
            return any(self._parameter_names(operand) for operand in args[_PRODUCTS.get(packet, slice(0, 0))])
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        named = [self._parameter_names(tensor) for tensor in inputs]
        names = frozenset().union(*named)
        chain = frozenset().union(*(self._last.get(storage_number(tensor), frozenset()) for tensor in inputs))
        matrices: frozenset[str] = frozenset()
        if packet in _PRODUCTS:
            matrices = frozenset().union(*map(self._parameter_names, args[_PRODUCTS[packet]]))
            if matrices:
                self.uses.product |= matrices
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
        self._alive.append(tensor)  # a freed storage's number would be given out again
