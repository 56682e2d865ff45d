"""A model on the meta device: the same code and shapes, no memory, no arithmetic.

`to_meta` turns a model into that where it stands, in a process of its own or on a copy: parameters and buffers become
meta tensors (tied ones stay tied, `requires_grad` is kept, a sharded one gets its whole shape). So sharded or compiled
models can be measured too.

Around a replay, `stand_ins` replaces functions that can't run on the meta device by the same mathematics in plain
torch, only where the library that holds them is loaded.

A backward pass there needs autograd's engine, or `backward`: where a machine has an accelerator, the first backward
pass of a training starts a thread a device, and torch then refuses every backward pass in a process forked later. What
is measured apart in the middle of a run (a second batch shape of compiled code, a training after another in a notebook)
is such a process; on the meta device nothing has to run in threads.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import compress, repeat
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import get_gradient_edge

from isoflop.flops.attention import pairs_of_blocks
from isoflop.flops.calls import Uncountable, is_redirected
from isoflop.flops.parameters import full_shape, original_class, unwrap
from isoflop.flops.values import same_on_meta, with_values


@contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """Around a replay of `model`."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.autocast, "__init__", _autocast))
        stack.enter_context(patch.object(torch, "is_autocast_enabled", _is_autocast_enabled))
        stack.enter_context(grouped_products())
        flex = sys.modules.get("torch.nn.attention.flex_attention")
        if flex is not None:
            # it refuses the meta device, and compiles itself
            stack.enter_context(
                patch.multiple(
                    flex,
                    _validate_device=lambda *_: None,
                    flex_attention_hop=_flex_attention,
                    _FLEX_ATTENTION_DISABLE_COMPILE_DEBUG=True,
                )
            )
            # and a block mask that code keeps outside of the model
            on_meta = property(_blocks_on_meta, lambda mask, blocks: vars(mask).update(kv_num_blocks=blocks))
            stack.enter_context(patch.object(flex.BlockMask, "kv_num_blocks", on_meta, create=True))
        for home in {sys.modules.get(type(module).__module__) for module in model.modules()}:
            if home is not None and home.__name__.startswith("transformers"):
                references = _reference_implementations(home)
                if references:
                    stack.enter_context(patch.multiple(home, **references))
        yield


_AUTOCAST, _IS_AUTOCAST_ENABLED = torch.autocast.__init__, torch.is_autocast_enabled


def _autocast(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
    """`torch.autocast(x.device.type, …)`, as rotary embeddings begin: torch has none for meta, and FLOPs no dtype."""
    if device_type == "meta":
        _AUTOCAST(self, "cpu", enabled=False)
    else:
        _AUTOCAST(self, device_type, *args, **kwargs)


def _is_autocast_enabled(*device_type: str) -> bool:
    return device_type != ("meta",) and _IS_AUTOCAST_ENABLED(*device_type)


def grouped_products() -> ExitStack:
    """Around products of groups, which shapes alone have in bfloat16 alone."""
    with ExitStack() as stack:
        for home, name in ((F, "grouped_mm"), (torch, "_grouped_mm")):
            if hasattr(home, name):
                stack.enter_context(patch.object(home, name, partial(_in_bfloat16, getattr(home, name))))
        return stack.pop_all()


def _in_bfloat16(grouped: Any, a: torch.Tensor, b: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    dtype = kwargs.pop("out_dtype", None) or a.dtype
    return grouped(a.bfloat16(), b.bfloat16(), *args, **kwargs).to(dtype)


def _flex_attention(query: Any, key: Any, value: Any, _: Any, block_mask: Any, *__: Any, **___: Any) -> tuple[Any, ...]:
    """flex_attention with its block mask, (…, H, T, K), grouped queries or not."""
    groups = query.shape[-3] // key.shape[-3]
    key, value = (part.repeat_interleave(groups, dim=-3) if groups > 1 else part for part in (key, value))
    scores = query @ key.mT
    allowed = pairs_of_blocks(block_mask, query.shape[-2], key.shape[-2], "cpu")
    if allowed is not None:
        mask = with_values(torch.empty(allowed.shape, dtype=torch.bool, device="meta"), allowed)
        scores = torch.where(mask, scores, float("-inf"))
    return scores.softmax(-1) @ value, scores[..., 0], scores[..., 0]


def _blocks_on_meta(mask: Any) -> torch.Tensor:
    blocks: torch.Tensor = vars(mask)["kv_num_blocks"]
    return blocks if blocks.is_meta else same_on_meta(blocks)


def _reference_implementations(home: ModuleType) -> dict[str, Any]:
    """Plain torch of what Hugging Face replaces by an installed kernel (mamba_ssm, fla, causal_conv1d), by name."""
    found: dict[str, Any] = {}
    for name, function in vars(home).items():
        if not inspect.isfunction(function) or not hasattr(function, "__wrapped__"):
            continue
        reference = inspect.unwrap(function)
        if function.__code__.co_filename.endswith("hub_kernels.py") and reference.__module__ == home.__name__:
            found[name] = _selective_scan if name == "mamba_selective_scan" else reference
    return found


def _selective_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *_: Any,
    return_last_state: bool = False,
    **__: Any,
) -> Any:
    """Mamba's scan (Gu & Dao 2023, algorithm 2) for all positions at once: its one product is of the states with C.

    The reference goes from position to position in Python: minutes for a length of 2,048, on meta tensors too.
    hidden_states, dt (B, D, S); A (D, N); B, C (B, N, S).
    """
    dt = F.softplus(dt)[..., None]
    states = torch.exp(A[None, :, None] * dt) * dt * B.transpose(1, 2)[:, None] * hidden_states[..., None]
    out = states.transpose(1, 2).to(hidden_states.dtype) @ C.transpose(1, 2)[..., None].to(hidden_states.dtype)
    out = out.squeeze(-1).transpose(1, 2)
    return (out, states[:, :, -1]) if return_last_state else out


class DequantizedLinear(nn.Linear):
    """A layer with 4- or 8-bit weights: a product with all of them, in the input's dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


_HOOKS = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_TRAINING = {"use_cache": False}
"""As Hugging Face's Trainer has it: with a cache, documents that positions tell apart are not told apart."""
_WRITTEN_OUT = {"_attn_implementation_internal": "eager", "_experts_implementation_internal": "batched_mm"}
"""Hugging Face's attention and experts in plain torch, which multiply as flash_attention_2, hub kernels and grouped
products do: these need a GPU."""
# A LightningModule logs through these
_LOGGING = ("_trainer", "_fabric")
# bitsandbytes' linear layers
_QUANTIZED = ("Linear4bit", "LinearNF4", "LinearFP4", "Linear8bitLt")
_LONG = 1000
"""A container with more items holds data: it stays."""


def to_meta(model: nn.Module, written_out: bool = False, device: str = "meta") -> dict[str, nn.Parameter]:
    """Turn a model into one on the meta device, in this process; wrappers of torch.compile and DDP inside it go.

    Returns the parameters by the names that they had. `written_out`: with attention and experts in plain torch, where
    the model has a choice. Another `device` is that of fake tensors, under whose mode it is made then.
    """
    live = dict(unwrap(model).named_parameters())
    turn = _Turn(device)
    turn.module(model)
    for module in unwrap(model).modules():
        settings = getattr(vars(module).get("config"), "__dict__", {})
        other = {**(_TRAINING if device == "meta" else {}), **(_WRITTEN_OUT if written_out else {})}
        settings.update({name: value for name, value in other.items() if name in settings})
    return {name: turn(parameter) for name, parameter in live.items()}


def optimizer_to_meta(optimizer: Any) -> None:
    """Turn an optimizer into one of meta tensors, in this process, each of its parameters with a gradient."""
    turn = _Turn("meta")
    state = {turn(parameter): held for parameter, held in optimizer.state.items()}
    for name, value in vars(optimizer).items():
        vars(optimizer)[name] = turn(value)
    optimizer.state.clear()
    optimizer.state.update({parameter: turn(held) for parameter, held in state.items()})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)


class _Turn:
    """Turns tensors, and what holds some, each once."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._done: dict[int, tuple[Any, Any]] = {}  # id → (the object, which keeps its id; what it became)

    def module(self, module: nn.Module) -> nn.Module:
        module = unwrap(module)
        if id(module) in self._done:
            return module
        self._done[id(module)] = module, module
        if type(module).__name__ == "FullyShardedDataParallel":
            raise Uncountable("FullyShardedDataParallel (FSDP1) holds flat shards, not the model's shapes; use FSDP2")
        kind = original_class(module)
        kind = DequantizedLinear if kind.__name__ in _QUANTIZED and isinstance(module, nn.Linear) else kind
        if kind is not type(module):
            module.__class__ = kind
        state = vars(module)
        for name in set(_HOOKS) & state.keys():
            for key in [key for key, hook in state[name].items() if _shards(hook)]:
                del state[name][key]
        state.update(dict.fromkeys(state.keys() & {*_LOGGING, "_compiled_call_impl"}))
        if is_redirected(module):
            del state["forward"]
        for name, value in state.items():
            if name in ("_parameters", "_buffers", "_modules"):
                value.update({key: self(item) for key, item in value.items()})
            elif name not in _HOOKS:
                state[name] = self(value)
        return module

    def __call__(self, value: Any, in_object: bool = False) -> Any:
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, torch.device):
            return torch.device(self._device)  # torch.arange(…, device=self.device)
        if id(value) in self._done:
            return self._done[id(value)][1]
        if isinstance(value, torch.Tensor):
            turned = self._tensor(value)
            self._done[id(value)] = value, turned
            return turned
        if isinstance(value, dict | list | tuple | deque) and len(value) <= _LONG:
            self._done[id(value)] = value, value
            if isinstance(value, dict):
                value.update({key: self(item, in_object) for key, item in value.items()})
                return value
            items = [self(item, in_object) for item in value]
            if isinstance(value, tuple):
                return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
            value.clear()
            value.extend(items)
        # an object of a plain class, such as a cache or a running mean; not what that holds in turn
        elif not in_object and type(getattr(value, "__dict__", None)) is dict and not isinstance(value, ModuleType):
            self._done[id(value)] = value, value
            vars(value).update({name: self(item, True) for name, item in vars(value).items()})
        return value

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_nested or tensor.layout != torch.strided:
            raise Uncountable("the model holds a sparse or nested tensor: a dense twin would be multiplied in full")
        # 4-bit weights lie packed in bytes, and are multiplied in bfloat16
        dtype = tensor.dtype if getattr(tensor, "quant_state", None) is None else torch.bfloat16
        turned = torch.empty(full_shape(tensor), dtype=dtype, device=self._device)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(turned, requires_grad=tensor.requires_grad)
        if type(tensor) is torch.Tensor and self._device == "meta" and not tensor.requires_grad:
            return same_on_meta(tensor)  # a buffer's numbers may be a mask, or decide a branch
        return turned.requires_grad_(tensor.requires_grad)


def _shards(hook: Any) -> bool:
    """True for a hook that gathers a sharded module's parameters, which are whole here.

    The user's and a library's hooks stay: they choose what is computed with (features, hidden states, a frozen model's
    embeddings that need a gradient).
    """
    home = str(getattr(inspect.unwrap(hook), "__module__", None) or type(hook).__module__)
    return home.startswith(("torch.distributed", "deepspeed", "accelerate"))


Gradient = torch.Tensor | None


def engine_runs() -> bool:
    """Whether autograd's engine works in this process."""
    try:
        torch.ones((), device="meta", requires_grad=True).exp().backward()
    except RuntimeError:
        return False
    return True


@contextmanager
def any_backward() -> Iterator[None]:
    """Backward passes run in any process: by the engine where it works, else node by node. For a process of our own."""
    if engine_runs():
        yield
        return
    walk, variable = Walk(), torch.autograd.Variable
    replaced = [
        (variable, "_execution_engine", walk),
        (torch._C, "_current_graph_task_id", lambda: walk.task),
        (torch._C, "_current_autograd_node", lambda: walk.node),
    ]
    before = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(replaced, before, strict=True):
            setattr(owner, name, value)


class Walk:
    """Stands in for `torch.autograd.Variable._execution_engine`: calls the nodes of a graph in the order of need.

    Hooks on tensors and nodes are not called, and no buffers are freed.
    """

    def __init__(self) -> None:
        self.task = -1
        """Number of the backward pass under way; -1: none."""
        self.node: Any = None
        """The node under way."""
        self._passes = 0

    def run_backward(
        self,
        roots: Sequence[torch.Tensor],
        gradients: Sequence[Gradient],
        keep_graph: bool,
        create_graph: bool,
        inputs: Sequence[Any] = (),
        allow_unreachable: bool = False,
        accumulate_grad: bool = False,
    ) -> tuple[Gradient, ...]:
        """As the engine's method of this name; gradients of chosen inputs alone would cost less than the whole graph.

        Raises:
            RuntimeError: `inputs` are named.
        """
        if inputs:
            raise RuntimeError("gradients of chosen tensors need autograd's engine, which a forked process lacks")
        outer, self._passes = (self.task, self.node), self._passes + 1
        self.task = self._passes
        try:
            with torch.set_grad_enabled(create_graph):
                self._walk([get_gradient_edge(root) for root in roots], gradients)
        finally:
            self.task, self.node = outer
        return ()

    def queue_callback(self, callback: Callable[[], None]) -> None:
        """What libraries run at the end of a backward pass computes nothing that is counted."""

    def is_checkpoint_valid(self) -> bool:
        """For checkpoints that run a backward pass of their own."""
        return True

    def _walk(self, edges: Sequence[Any], gradients: Sequence[Gradient]) -> None:
        awaited = _uses([edge.node for edge in edges])
        arrived: dict[Any, dict[int, torch.Tensor]] = defaultdict(dict)
        for edge, gradient in zip(edges, gradients, strict=True):
            _arrive(arrived, edge.node, edge.output_nr, gradient)
        ready = [node for node in dict.fromkeys(edge.node for edge in edges) if not awaited[node]]
        while ready:
            node = ready.pop()
            found = self._call(node, arrived.pop(node, {}))
            for (following, place), gradient in zip(_edges(node), found, strict=False):
                _arrive(arrived, following, place, gradient)
                awaited[following] -= 1
                if not awaited[following]:
                    ready.append(following)

    def _call(self, node: Any, gradients: dict[int, torch.Tensor]) -> Iterator[Gradient]:
        """The gradients along `_edges(node)`."""
        if not gradients:
            return repeat(None)
        self.node = node
        arguments = [gradients.get(place) for place in range(len(node._input_metadata))]
        if callable(node):
            found, wanted = node(*arguments), [following is not None for following, _ in node.next_functions]
        else:  # a user's Function, which returns one for each argument of its forward, tensor or not
            found, wanted = node.apply(*arguments), node.needs_input_grad
        return compress(found if isinstance(found, tuple) else (found,), wanted)


def _edges(node: Any) -> list[tuple[Any, int]]:
    """The nodes that a node's gradients go to, and as which of their inputs."""
    return [edge for edge in node.next_functions if edge[0] is not None]


def _uses(roots: Sequence[Any]) -> Counter[Any]:
    """How many gradients each node of a graph waits for."""
    awaited: Counter[Any] = Counter()
    seen, left = set(roots), list(roots)
    while left:
        for following, _ in _edges(left.pop()):
            awaited[following] += 1
            if following not in seen:
                seen.add(following)
                left.append(following)
    return awaited


def _arrive(arrived: dict[Any, dict[int, torch.Tensor]], node: Any, place: int, gradient: Gradient) -> None:
    """Add a gradient to what a node has, in the shape of what the node once returned (broadcasting is undone)."""
    if gradient is None:
        return
    known = node._input_metadata[place]
    if not known.is_nested_tensor and gradient.shape != known.shape:
        gradient = gradient.sum_to_size(known.shape)
    gradient = gradient.to(known.dtype)  # under autocast a part may come in another precision
    before = arrived[node].get(place)
    arrived[node][place] = gradient if before is None else before + gradient
