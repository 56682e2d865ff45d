"""Parameters N in the conventions that scaling laws were fitted with.

total                    every parameter once (tied ones once, a sharded one whole)
trainable                those with `requires_grad`
non_embedding            without token and position embeddings and without the output head
                         (Kaplan et al. 2020, section 1.3)
non_embedding_with_head  the head's matrix counted, tied or not (Pearce & Song 2024, Porian et al. 2024)
active                   parameters that one token passes in a mixture of experts; the total where there are no experts;
                         unknown where it is nowhere told how many of them a token passes

Embeddings and heads are told by use in a forward pass (`UseTracer`), for names lie (`shared`, `wte`, `embed_out`);
before there was one, by module type. Parameters of a frozen model that runs without gradients beside the trained one (a
teacher, a reference), and of a copy of it (averaged weights), are in the total alone.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from isoflop.flops.calls import compiled, tensors_in
from isoflop.flops.values import storage_number
from isoflop.guard import attempt

aten = torch.ops.aten


@dataclass(frozen=True)
class Parameters:
    """Parameter counts by convention (see the module), None where unknown; `method` of telling embeddings apart."""

    total: int
    trainable: int
    non_embedding: int | None
    non_embedding_with_head: int | None
    active: int | None
    method: str
    idle: int | None = field(default=0, compare=False)
    """Parameters of experts that a token does not pass; None: unknown."""

    def six_nd(self, tokens: int | None) -> int | None:
        """6·N·D with N non-embedding, of experts the active, and D tokens processed (Kaplan et al. 2020, sec. 2.1)."""
        if tokens is None or self.non_embedding is None or self.idle is None:
            return None
        return 6 * (self.non_embedding - self.idle) * tokens

    @property
    def active_matrices(self) -> int | None:
        """Non-embedding with head, of experts the active: a token's matrices, and norms and biases."""
        if self.non_embedding_with_head is None or self.idle is None:
            return None
        return self.non_embedding_with_head - self.idle

    def by_convention(self) -> dict[str, int | None]:
        """The counts alone, by name."""
        counts = asdict(self)
        del counts["method"], counts["idle"]
        return counts


def has_shape(parameter: torch.Tensor) -> bool:
    """False for a lazy layer's before the first forward pass."""
    return not isinstance(parameter, nn.UninitializedParameter)


def full_shape(parameter: torch.Tensor) -> torch.Size:
    """Shape of a parameter before sharding and quantisation (DTensor, DeepSpeed ZeRO-3, bitsandbytes 4-bit)."""
    shape = getattr(parameter, "ds_shape", None)
    if shape is None:
        shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return torch.Size(parameter.shape if shape is None else shape)


def numel(parameter: torch.Tensor) -> int:
    """Its size before sharding and quantisation."""
    return math.prod(full_shape(parameter))


def given_parameters(count: int) -> Parameters:
    """The user's `num_params=`, used for every convention."""
    return Parameters(count, count, count, count, count, "num_params given by the user")


def count_parameters(model: nn.Module, uses: Uses | None = None) -> Parameters:
    """Count a model's parameters.

    Args:
        model: the model before or after sharding; torch.compile's and DDP's wrappers are fine.
        uses: of the parameters in a forward pass; without it embeddings are told by module type and by Hugging Face's
            `get_input_embeddings`.

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
    packed = next((name for name, _ in [*named.items(), *model.named_buffers()] if _PACKED.search(name)), None)
    if packed is not None:
        raise ValueError(
            f"expected weights that show their size, got packed quantised ones ({packed}); pass num_params= and "
            "flops_per_token= (bitsandbytes' 4 and 8 bits need nothing)"
        )
    sizes = {name: numel(parameter) for name, parameter in named.items()}
    total = sum(sizes.values())
    trainable = sum(sizes[name] for name, parameter in named.items() if parameter.requires_grad)
    embeddings, heads = _by_type(model, named) if uses is None else _by_use(model, uses, named)
    others = set() if uses is None else _of_a_teacher(uses, named) | set(copies(model, uses.with_gradients))
    without = total - sum(sizes[name] for name in embeddings | heads | others)
    idle = _idle_experts(model, sizes, uses)
    return Parameters(
        total=total,
        trainable=trainable,
        non_embedding=without,
        non_embedding_with_head=without + sum(sizes[name] for name in heads - others),
        active=None if idle is None else total - idle - sum(sizes[name] for name in others),
        method="by module type" if uses is None else "by use in a traced forward pass",
        idle=idle,
    )


def _of_a_teacher(uses: Uses, named: Mapping[str, nn.Parameter]) -> set[str]:
    """Parameters of the outermost modules that are frozen, multiply without gradients only, and feed no other matrix.

    (A frozen backbone feeds the head that trains: it is a part of the model.)
    """

    def outermost(names: Iterable[str]) -> set[str]:
        return {name.partition(".")[0] for name in names}

    taught = outermost(uses.with_gradients) | outermost(n for n, p in named.items() if p.requires_grad)
    teachers = (outermost(uses.product) & outermost(uses.last)) - taught
    return {name for name in named if name.partition(".")[0] in teachers}


_AVERAGES = re.compile(r"(ema|averag|shadow|swa|target|momentum|teacher)[^.]*$", re.IGNORECASE)


def copies(model: nn.Module, used: Set[str] = frozenset()) -> dict[str, nn.Parameter]:
    """Names in networks of the shapes of one beside them, frozen or averages by name, none `used` → its parameters."""
    found: dict[str, nn.Parameter] = {}
    for prefix, parent in model.named_modules():
        inside = {f"{prefix}.{n}".lstrip("."): dict(child.named_parameters()) for n, child in parent.named_children()}
        apart = {n for n, of in inside.items() if not any(p.requires_grad for p in of.values()) or _AVERAGES.search(n)}
        if isinstance(parent, nn.ModuleList | nn.Sequential):  # of layers in a row some may be frozen
            continue
        for name, other in itertools.product(apart, inside.keys() - apart):
            mine, its = ([full_shape(p) for p in inside[each].values()] for each in (name, other))
            if mine == its and sum(len(shape) > 1 for shape in mine) > 1:  # a layer is no network
                of = {f"{name}.{each}": p for each, p in zip(inside[name], inside[other].values(), strict=True)}
                found |= {} if of.keys() & used else of
    return found


_FEW = 16
"""Rows of a table that may tell kinds of tokens rather than tokens."""

_PACKED = re.compile(r"(^|\.)(qweight|qzeros|weight_packed|W_q|packed_weight)$|proj_(blocks|scales)$")
"""GPTQ and AWQ, compressed-tensors, HQQ, gpt-oss' MXFP4: several weights in an integer, of a layout of their own."""


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside torch.compile's, DDP's and Fabric's wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif (inner := compiled(model)) is not None:
            model = inner
        elif type(model).__name__ == "_FabricModule":  # Lightning Fabric's
            model = model._original_module  # type: ignore[assignment]
        else:
            return model


def original_class(module: nn.Module) -> Any:
    """The class that the user wrote: `fully_shard` puts one of its own before it, whose `__new__` builds a module."""
    line = module.__class__.__mro__
    last = max((i for i, kind in enumerate(line) if kind.__name__ == "FSDPModule"), default=-1)
    return line[last + 1]


def _by_use(model: nn.Module, uses: Uses, named: dict[str, nn.Parameter]) -> tuple[set[str], set[str]]:
    """(embeddings, output heads); a tied matrix is in both."""
    lookups = {name for name in uses.lookup if len(full_shape(named[name])) >= 2}
    # tables that this pass had no use for (it was given embeddings), and those it used as a head alone
    tables = _names((m for m in model.modules() if isinstance(m, nn.Embedding)), {id(p): n for n, p in named.items()})
    idle = {name for name in tables if name not in uses.lookup | uses.added | uses.other}
    # BERT's two token types are no vocabulary that a classifier of two classes would be the head of
    rows = {full_shape(named[name])[0] for name in uses.vocabulary or idle}
    vocabularies = {size for size in rows if size > _FEW or size == max(rows)}
    # the head: a matrix onto a vocabulary, after which no other matrix comes. The second condition is what tells it
    # apart where the model is as wide as its vocabulary.
    heads = {name for name, size in uses.last.items() if size in vocabularies}
    if not heads:  # a table may have some rows more than the head (special tokens, padding), or fewer
        large = [rows for rows in vocabularies if rows > _FEW]
        heads = {name for name, size in uses.last.items() if any(abs(size - rows) <= rows / 4 for rows in large)}
    only_added = uses.added - uses.product - uses.lookup - uses.other
    positions = {name for name in only_added if len(full_shape(named[name])) >= 2}
    return lookups | idle | positions, heads


def _by_type(model: nn.Module, named: dict[str, nn.Parameter]) -> tuple[set[str], set[str]]:
    name_of = {id(parameter): name for name, parameter in named.items()}
    modules = list(model.modules())
    tables: list[Any] = [module for module in modules if isinstance(module, nn.Embedding)]
    # Hugging Face's base class raises where a model has no such table, and so may others
    tables += [attempt(_asked, module, "get_input_embeddings") for module in modules]
    outputs = [found for module in modules if (found := attempt(_asked, module, "get_output_embeddings")) is not None]
    embeddings = _names(tables, name_of)
    rows = {full_shape(named[name])[0] for name in embeddings}
    if not outputs:
        # a plain module: a Linear with one output for each row of an embedding table, the last such
        linear = [module for module in modules if isinstance(module, nn.Linear)]
        onto = [m for m in linear if (weight := _weight(m)) is not None and full_shape(weight)[0] in rows]
        outputs = onto[-1:]
    return embeddings, _names(outputs, name_of)


def _asked(module: Any, getter: str) -> Any:
    return getattr(module, getter)()


def _weight(module: Any) -> Any:
    # one that is computed when it is read (spectral norm, which counts reads) is left alone
    return vars(module).get("_parameters", {}).get("weight") if isinstance(module, nn.Module) else None


def _names(modules: Iterable[Any], name_of: dict[int, str]) -> set[str]:
    weights = map(_weight, modules)
    # get_input_embeddings may give a convolution over patches or a spectrogram: that multiplies
    return {name_of[id(weight)] for weight in weights if id(weight) in name_of and len(full_shape(weight)) == 2}


class Gradients:
    """Notices layers that are frozen or thawed.

    Attributes:
        ends: some parameters, for a look at each step: the first, the last, and those next to a change from one to the
            next, where freezing and thawing begins; each with `requires_grad` as it was.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.ends: list[tuple[ref[nn.Parameter], bool]] = []
        self._model = model
        self._all: list[ref[nn.Parameter]] = []
        self._wanted: list[bool | None] | None = None

    def changed_unseen(self) -> bool:
        """True if layers came, went, froze or thawed, and the `ends` do not show it: maybe some steps ago."""
        shown = any(
            each() is None or getattr(each(), "requires_grad", None) is not wanted for each, wanted in self.ends
        )
        now = None if self._model is None else [each.requires_grad for each in self._model.parameters()]
        return not shown and self._wanted is not None and now != self._wanted

    def changed(self, anew: bool = False) -> bool:
        """Look at all that the model had the last time, or (`anew`) that it has now."""
        found = [each() for each in self._all]
        wanted = [None if each is None else each.requires_grad for each in found]
        if self._model is not None and (anew or not found or None in wanted):
            parameters = [*self._model.parameters()]
            self._all, wanted = [ref(each) for each in parameters], [each.requires_grad for each in parameters]
        before, self._wanted = self._wanted, wanted
        if wanted != before:
            near = [i for i in range(1, len(wanted)) if wanted[i] is not wanted[i - 1]][:8]
            chosen = sorted({*near, *(i - 1 for i in near), *([0, len(wanted) - 1] if wanted else [])})
            self.ends = [(self._all[i], bool(wanted[i])) for i in chosen]
        return before is not None and wanted != before


# -- mixtures of experts -----------------------------------------------------------------------------------------------

_COUNT = re.compile(r"^(n|num|moe|moe_num|num_moe)?_?(local_|routed_)?experts?$")
"""Names of the number of experts: num_experts, n_routed_experts, num_local_experts, n_expert, moe_num_experts."""
_CHOSEN = re.compile(
    r"experts?_(per_tok|per_token|used|top_?k)|(selected|active|activated|top_?k)_experts?"
    r"|^moe_?(router_)?(top_?)?k$|^router_top_?k$|^(experts?_)?top_?k$"
)
"""Names of how many a token passes: num_experts_per_tok, n_expert_per_token, moe_top_k, num_selected_experts."""


def _idle_experts(model: nn.Module, sizes: dict[str, int], uses: Uses | None) -> int | None:
    """Parameters of the experts that one token does not pass; None: it is nowhere told how many it passes.

    Experts are told by structure: parts of a module list, or weights stacked along their first dimension, below a
    module that is named after experts. How many a token passes is told by the configuration of the module that they
    are in, or of one around it, or by what a router chose in the traced forward pass.
    """
    groups = list(groups_of_experts(model))
    idle = 0
    for _, experts, chosen, names in groups:
        if chosen is None and uses is not None:
            alike = sum(1 for group in groups if group.many == experts)
            each, rest = divmod(uses.chosen[experts], alike)
            chosen = each if each and not rest else None
        if chosen is None:
            return None
        if chosen < experts:
            idle += sum(sizes[name] for name in names) * (experts - chosen) // experts
    return idle


class ExpertGroup(NamedTuple):
    """Experts of one layer: the path of the module that holds them, how many there are, how many a token passes by the
    configuration (None: unknown), and their parameters' names.
    """

    path: str
    many: int
    chosen: int | None
    names: list[str]


def groups_of_experts(model: nn.Module) -> Iterator[ExpertGroup]:
    """The experts of a model, told by structure; see `_idle_experts`."""
    told: dict[str, Mapping[str, Any]] = {}
    seen: set[str] = set()
    for path, module in model.named_modules():
        parent = path.rpartition(".")[0]
        told[path] = {**told.get(parent, {}), **_settings(attempt(getattr, module, "config", None))}
        if not _is_of_experts(path, module) or any(f"{path}.".startswith(f"{other}.") for other in seen):
            continue
        many, inside = _told(told[path], _COUNT) or 0, dict(module.named_parameters())
        if isinstance(module, nn.ModuleList | nn.ModuleDict):  # a dropout may be among them
            many = sum(1 for part in module.children() if next(part.parameters(), None) is not None)
        elif many:
            inside = {name: p for name, p in inside.items() if _stacked(name, full_shape(p), many)}
        names = [f"{path}.{name}" for name in inside]
        if many > 1 and names:
            seen.add(path)
            yield ExpertGroup(path, many, _told(told[path], _CHOSEN), names)


def _is_of_experts(path: str, module: nn.Module) -> bool:
    name, kind = path.rpartition(".")[2].lower(), type(module).__name__.lower()
    named = "experts" in kind or bool(re.search(r"(^|_)experts?$", name) and not name.startswith("num"))
    return named and "shared" not in name


def _stacked(name: str, shape: torch.Size, many: int) -> bool:
    return len(shape) >= 2 and shape[0] % many == 0 and not re.search(r"(^|\.)router(\.|$)", name)


def _settings(config: Any, depth: int = 0) -> dict[str, Any]:
    """Numbers of a configuration and of those inside it; an outer one's go before."""
    held = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    inner = [value for name, value in held.items() if str(name).endswith("config") and depth < 2]
    found: dict[str, Any] = {}
    for value in inner:
        found |= _settings(value, depth + 1)
    return found | {str(name): value for name, value in held.items() if type(value) is int}


def _told(settings: Mapping[str, Any], pattern: re.Pattern[str]) -> int | None:
    return next((value for name, value in settings.items() if pattern.search(name) and value > 0), None)


# -- what a forward pass does with each --------------------------------------------------------------------------------

# which positional arguments of a product can be a weight (a bias is none)
_PRODUCTS: dict[Any, slice] = {
    aten.mm: slice(0, 2),
    aten.bmm: slice(0, 2),
    aten.mv: slice(0, 2),
    aten.addmm: slice(1, 3),
    aten.baddbmm: slice(1, 3),
    aten.convolution: slice(1, 2),
    aten.linear: slice(1, 2),
    aten._scaled_mm: slice(0, 2),
}
if hasattr(aten, "_grouped_mm"):
    _PRODUCTS[aten._grouped_mm] = slice(0, 2)
_LOOKUPS = {aten.embedding, aten.index, aten.index_select, aten.gather, aten._embedding_bag}
_ADDITIONS = {aten.add, aten.add_}
# the parameter is still itself after these
_SAME = {aten._to_copy, aten.clone, aten.cat, aten.stack, aten.contiguous, aten.repeat, aten.mul, aten.copy_}
# and after views: most share its storage, but fake tensors do not
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

    @classmethod
    def of(cls, model: nn.Module, given: Any) -> UseTracer | None:
        """Of a model's next call with these arguments; None while a parameter has no shape yet (lazy ones)."""
        named = dict(model.named_parameters())
        if not all(map(has_shape, named.values())):
            return None
        tracer = cls(named)
        tracer.arguments(tensors_in(given))
        return tracer

    def arguments(self, tensors: list[torch.Tensor]) -> None:
        """The call's own tensors, before the forward pass; or what is computed from them."""
        self._given |= {storage_number(tensor) for tensor in tensors if not tensor.is_floating_point()}

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
        if packet is aten.argmax and len(args) > 1 and args[1] in (-1, args[0].dim() - 1):
            self.uses.chosen[args[0].shape[-1]] += 1  # a router's choice, by design; how many `topk` takes is a setting
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
            self.arguments(outputs)
        if names - matrices:
            self._note(packet, names - matrices, inputs, named, outputs)
        if chain:
            for tensor in outputs:
                self._tag(self._last, tensor, chain)
        return bool(matrices)

    def _note(self, packet: Any, names: Set[str], inputs: list[Any], named: list[Any], outputs: list[Any]) -> None:
        if packet in _LOOKUPS and named[0]:
            chosen_by = set(map(storage_number, inputs[1:]))
            if inputs[0].dim() >= 3:  # whole matrices: the experts of a token
                for tensor in outputs:
                    self._tag(self._names, tensor, named[0])
            elif chosen_by & self._last.keys():
                self.uses.other |= named[0]  # rows that a matrix product chose: biases of a token's experts
            else:
                self.uses.lookup |= named[0]
                self.uses.vocabulary |= named[0] if chosen_by & self._given else set()
        elif packet in _ADDITIONS:
            self.uses.added |= names
        elif packet in _SAME and all(named):
            for tensor in outputs:
                self._tag(self._names, tensor, names)
        elif not all(storage_number(tensor) in self._names for tensor in outputs):  # no mere view of the parameter
            self.uses.other |= names

    def _parameter_names(self, tensor: Any) -> frozenset[str]:
        known = isinstance(tensor, torch.Tensor)
        return self._names.get(storage_number(tensor), frozenset()) if known else frozenset()

    def _tag(self, tags: dict[int, frozenset[str]], tensor: torch.Tensor, names: Set[str]) -> None:
        storage = storage_number(tensor)
        tags[storage] = tags.get(storage, frozenset()) | names
