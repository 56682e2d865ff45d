"""Parameters N in the conventions that scaling laws were fitted with.

total                    every parameter once (tied ones once, a sharded one whole)
trainable                those with `requires_grad`
non_embedding            without token and position embeddings and without the output head
                         (Kaplan et al. 2020, section 1.3)
non_embedding_with_head  the head's matrix counted, tied or not (Pearce & Song 2024, Porian et al. 2024)
active                   parameters that one token passes in a mixture of experts; the total where there are no experts;
                         unknown where it is nowhere told how many of them a token passes

Embeddings and heads are told by use in a forward pass (`isoflop.flops.uses`), for names lie (`shared`, `wte`,
`embed_out`); before there was one, by module type. Parameters of a frozen model that runs without gradients beside the
trained one (a teacher, a reference) are in the total alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from isoflop.flops.uses import Uses
from isoflop.guard import attempt, pass_on


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
    embeddings, heads = _by_type(model, named) if uses is None else _by_use(model, uses, named)
    others = set() if uses is None else _of_a_teacher(uses, named)
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

    def inside(name: str) -> str:
        return name.partition(".")[0]

    taught = {inside(name) for name in uses.with_gradients} | {inside(n) for n, p in named.items() if p.requires_grad}
    ends = {inside(name) for name in uses.last}
    return {name for name in named if inside(name) in ({inside(used) for used in uses.product} & ends) - taught}


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
        heads = {name for name, size in uses.last.items() if any(_nearly(size, rows) for rows in vocabularies)}
    only_added = uses.added - uses.product - uses.lookup - uses.other
    positions = {name for name in only_added if len(full_shape(named[name])) >= 2}
    return lookups | idle | positions, heads


def _nearly(size: int, rows: int) -> bool:
    return rows > _FEW and abs(size - rows) <= rows / 4


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
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        onto = [m for m in linear if (weight := _weight(m)) is not None and full_shape(weight)[0] in rows]
        outputs = onto[-1:]
    return embeddings, _names(outputs, name_of)


def _from_getter(module: nn.Module, getter: str) -> list[Any]:
    try:
        found = getattr(module, getter)()
    except Exception as error:  # Hugging Face's base class raises where a model has no such table, and so may others
        pass_on(error)
        return []
    return [found] if found is not None else []


def _weight(module: Any) -> Any:
    """A module's own weight; one that is computed when it is read (spectral norm, which counts reads) is left alone."""
    return vars(module).get("_parameters", {}).get("weight") if isinstance(module, nn.Module) else None


def _names(modules: Iterable[Any], name_of: dict[int, str]) -> set[str]:
    weights = map(_weight, modules)
    # get_input_embeddings may give a convolution over patches or a spectrogram: that multiplies
    return {name_of[id(weight)] for weight in weights if id(weight) in name_of and len(full_shape(weight)) == 2}


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
        many = _told(told[path], _COUNT)
        if isinstance(module, nn.ModuleList | nn.ModuleDict):  # a dropout may be among them
            many = sum(1 for part in module.children() if next(part.parameters(), None) is not None)
        names = [
            f"{path}.{name}" for name, p in module.named_parameters() if many and _is_experts(module, name, p, many)
        ]
        if many is not None and many > 1 and names:
            seen.add(path)
            yield ExpertGroup(path, many, _told(told[path], _CHOSEN), names)


def _is_of_experts(path: str, module: nn.Module) -> bool:
    name, kind = path.rpartition(".")[2].lower(), type(module).__name__.lower()
    if "shared" in name:
        return False
    return "experts" in kind or bool(re.search(r"(^|_)experts?$", name) and not name.startswith("num"))


def _is_experts(module: nn.Module, name: str, parameter: torch.Tensor, many: int) -> bool:
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return True
    shape = full_shape(parameter)
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
