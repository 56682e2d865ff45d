"""The forward calls that a training step consists of, by the shapes of their arguments.

They are seen on the live model without a sync, a copy, a hook on it, or a graph break inside compiled code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from enum import Enum
from types import FrameType, MethodType
from typing import Any
from weakref import WeakMethod

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from isoflop.flops.values import LARGEST, with_values
from isoflop.guard import attempt, pass_on

Before = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
Ended = Callable[[Any], None]
Signature = tuple[Any, ...]

_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, Enum, slice)


class Uncountable(Exception):
    """The reason why a forward pass can't be replayed on the meta device."""


class TookTooLong(Uncountable):
    """Its time was over, or its process ended."""


@dataclass(frozen=True)
class Shape:
    """A tensor argument without its values."""

    size: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    values: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """Those of integers, on the CPU, where a count depends on them: documents, windows, places of images."""

    def meta(self, device: str = "meta") -> torch.Tensor:
        """An empty tensor of this shape."""
        tensor = torch.empty(self.size, dtype=self.dtype, device=device)
        return with_values(tensor.requires_grad_(self.requires_grad), self.values)


@dataclass(frozen=True)
class Call:
    """One call of a module with arguments of these shapes; `method` if it is not called as a whole."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    method: str = "__call__"
    gradients: bool = True  # gradients are enabled

    @property
    def key(self) -> Signature:
        """As `signature`, of the module and its arguments."""
        leaves, structure = tree_flatten((self.args, self.kwargs))
        return (id(self.module), str(structure), *map(_part, leaves))


def _part(leaf: Any) -> Signature:
    if isinstance(leaf, Shape):
        return torch.Size(leaf.size)
    return (repr(leaf) if isinstance(leaf, _PLAIN) else type(leaf).__name__,)


def shapes(value: Any, values: bool = False) -> Any:
    """Arguments with `Shape`s for tensors, nothing of the live step kept alive; `values`: with those of integers.

    Raises:
        Uncountable: an argument is an object that the replay could change (a cache, a graph …).
    """
    if isinstance(value, Mapping) and not isinstance(value, dict):
        value = dict(value)  # BatchEncoding, UserDict

    def leaf(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            if item.is_nested or item.layout != torch.strided:
                raise Uncountable("an argument is a sparse or nested tensor: a dense twin would be multiplied in full")
            kept = values and not (item.is_meta or item.is_floating_point()) and item.numel() <= LARGEST
            own = item.detach().cpu() if kept else None
            return Shape(tuple(item.shape), item.dtype, item.requires_grad, own)
        if isinstance(item, _PLAIN):
            return item
        if isinstance(item, Mapping):
            return {key: shapes(inner, values) for key, inner in item.items()}
        if type(item).__name__ == "BlockMask":  # flex_attention's
            return item
        raise Uncountable(f"an argument of type {type(item).__name__} can't be copied to the meta device")

    return tree_map(leaf, value)


def metas(value: Any, device: str = "meta") -> Any:
    """The arguments of `shapes` as meta tensors."""

    def leaf(item: Any) -> Any:
        if isinstance(item, torch.device):
            return torch.device(device)
        if type(item).__name__ == "BlockMask":
            return item.to(device)
        return item.meta(device) if isinstance(item, Shape) else item

    return tree_map(leaf, value)


class _Bounds(dict[Any, bool]):
    """Names of arguments → whether they are bounds of documents in a packed row."""

    def __missing__(self, name: Any) -> bool:
        found = str(name).startswith(("cu_seq", "cum_seq", "max_length", "max_seqlen", "max_seq_len"))
        return self.setdefault(name, found) if len(self) < 1000 else found


_BOUNDS = _Bounds()


def described(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | str:
    """A call by the shapes of its arguments; or why it can't be repeated."""
    try:
        return Call(module, shapes(args), shapes(kwargs))
    except Uncountable as reason:
        return str(reason)
    except Exception as error:  # of a user's object
        pass_on(error)
        return f"the arguments can't be read ({type(error).__name__}: {error})"


def signature(value: Any, top: bool = True) -> Signature:
    """A hashable key of a batch: the shapes of its tensors, in order. Costs a few µs and no sync.

    Numbers and strings belong to it where they may be arguments of the call (a mode, a number of loops). In a list
    or deeper they are data (names, row numbers), with which every batch would have a key of its own. So would it with
    the bounds of a packed row's documents.
    """
    if isinstance(value, torch.Tensor):
        return value.shape
    parts: list[Any] = []
    if isinstance(value, (list, tuple)):  # before mappings, which take longer to recognise
        top = top and isinstance(value, tuple)
        told = top
        for item in value:
            tensor = isinstance(item, torch.Tensor)
            told = told or tensor or isinstance(item, (list, tuple, Mapping))
            parts.append(item.shape if tensor else _item(item, top))
        if told:
            return tuple(parts)
    elif type(value) is dict or isinstance(value, Mapping):
        for key, item in value.items():
            if item is not None and not _BOUNDS[key]:
                parts.append((key, item.shape if isinstance(item, torch.Tensor) else _item(item, top)))
        return tuple(parts)
    return (type(value).__name__,)


def _item(value: Any, top: bool) -> Signature:
    # a large number is data (tokens in the batch, a row): with it every batch would have a key of its own
    mode = isinstance(value, bool | str) or (isinstance(value, int) and abs(value) < 16)
    return (value,) if top and mode else signature(value, False)


def is_opaque(key: Any) -> bool:
    """True if a signature holds something whose size it can't see: a text to tokenise, an object with tensors."""
    if not isinstance(key, tuple):
        return False
    if len(key) == 1 and isinstance(key[0], str):
        return key[0] not in ("int", "float", "bool", "NoneType")
    return any(is_opaque(part) for part in key)


Heard = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], "Ended | None"]
"""Called ahead of a call; what it returns is called behind it, with the output, None after an exception."""


def watch(
    module: nn.Module,
    before: Before,
    after: Ended | None = None,
    evaluating: Callable[[bool], None] | None = None,
    computing: Callable[[], None] | None = None,
) -> Callable[[], None]:
    """Call `before(module, args, kwargs)` ahead of each training call of `module` and `after(output)` behind it.

    A training call is one with `module.training` and gradients enabled. `evaluating(True)` and `evaluating(False)`
    come around a call in evaluation mode without gradients, `computing()` ahead of one in training mode without.
    Methods are kept weakly: a class that knows its listeners must not keep what they belong to alive. Returns the
    function that ends it.
    """
    ended = None if after is None else _weakly(after)
    return listen([module], _heard(module, _weakly(before), ended, _weakly(evaluating), _weakly(computing)))


def _weakly(listener: Any) -> Callable[[], Any]:
    return WeakMethod(listener) if isinstance(listener, MethodType) else lambda: listener


def _heard(
    module: nn.Module,
    before: Callable[[], Any],
    after: Callable[[], Any] | None,
    evaluating: Callable[[], Any],
    computing: Callable[[], Any],
) -> Heard:
    def heard(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ended | None:
        if torch.is_grad_enabled() is not called.training:
            if called.training and (listener := computing()) is not None:
                listener()
            return None
        listener = before() if called.training else evaluating()
        if listener is None or (torch._C._current_graph_task_id() != -1 and _is_repeated()):
            return None
        if called.training:
            if torch._C._functorch.peek_interpreter_stack() is not None:  # of vmap's: a row of its own to each
                args, kwargs = tree_map(_with_all_rows, (args, kwargs))
            listener(module, args, kwargs)
            return None if after is None else after()
        listener(True)
        return lambda output: listener(False)

    return heard


def _with_all_rows(value: Any) -> Any:
    """A tensor as it was given to `torch.vmap`, whose function sees one row of it; anything else as it is."""
    functorch = torch._C._functorch
    while isinstance(value, torch.Tensor) and functorch.is_functorch_wrapped_tensor(value):
        place = functorch.maybe_get_bdim(value) if functorch.is_batchedtensor(value) else 0
        value = functorch.get_unwrapped(value)
        value = value.movedim(place, 0) if place else value
    return value


def compiled(module: Any) -> nn.Module | None:
    """The module inside torch.compile's wrapper, else None. The user's own `__getattr__` may answer to any name."""
    inside = (attempt(vars, module) or {}).get("_modules")
    return inside.get("_orig_mod") if isinstance(inside, dict) else None


def listen(modules: Iterable[nn.Module], heard: Heard) -> Callable[[], None]:
    """Call `heard(module, args, kwargs)` ahead of each call of these modules; see `Heard`.

    The modules stay as they are: no hook stands on them that `torch.save`, `copy.deepcopy`, `torch.jit.script` or
    `torch.compile` would meet. Their classes get a `__call__` that knows them. Calls inside a graph that is being
    compiled are not heard. Returns the function that ends it.
    """
    _not_compiled(heard, called=True)
    kept: list[nn.Module] = []  # for an id is given out again
    wrapper = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", None)
    kinds: list[tuple[type, int]] = []
    for module in modules:
        inner = compiled(module)
        module = module if inner is None else inner
        kinds += [(kind, id(module)) for kind in (type(module), wrapper) if kind is not None]
        kept.append(module)
    for kind, number in kinds:
        _listeners(kind).setdefault(number, []).append(heard)

    def remove() -> None:
        for kind, number in kinds:
            listeners = _LISTENED.get(kind)
            here = [] if listeners is None else listeners.get(number, [])
            if heard in here:
                here.remove(heard)
            if listeners is not None and not here:
                listeners.pop(number, None)
        for kind in {kind for kind, _ in kinds if kind in _LISTENED and not _LISTENED[kind]}:
            of_kind = _LISTENED.pop(kind)
            if vars(kind).get("__call__") is not of_kind.ours:  # somebody has put another there since
                continue
            if of_kind.own is None:
                del kind.__call__
            else:
                kind.__call__ = of_kind.own  # type: ignore[method-assign]
        kept.clear()

    return remove


def put(home: Any, name: str, around: Callable[[Any], Any], undos: list[Callable[[], None]] | None = None) -> None:
    """Replace `home.name`, if it has one, by `around(original)`; `undos` gets the function that undoes it.

    Where somebody has put another there since, that stays.
    """
    original = vars(home).get(name) if home is not None else None
    if original is None:
        return
    ours = around(original)

    def undo() -> None:
        if vars(home).get(name) is ours:
            setattr(home, name, original)

    if undos is not None:
        undos.append(undo)  # ahead of it: Ctrl-C may come in between
    setattr(home, name, ours)


def frames() -> Iterator[FrameType]:
    """The caller's frame, and those around it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_repeated() -> bool:
    """Of a call in a backward pass, where activation checkpointing runs it again: true if it has run with gradients.

    The reentrant way ran it without: the call in the backward pass is then the one that counts.
    """
    return not any(f.f_code.co_name == "backward" and "checkpoint" in f.f_code.co_filename for f in frames())


INTERRUPTED_CALLS: list[Callable[[], None]] = []
"""Called when an exception leaves a call that is listened to, and no other such call is around it."""
_LISTENED: dict[type, _Listeners] = {}
"""Class → who listens to its modules."""
_WRAPPED: list[int] = []
"""Modules that are being called through torch.compile's wrapper, which is heard instead of them."""


class _Listeners(dict[int, "list[Heard]"]):
    """Who listens to the modules of a class, by their ids; pickled with the class, nobody."""

    def __init__(self, kind: type) -> None:
        self.own = vars(kind).get("__call__")
        """The class's own `__call__`; None: it inherits one."""
        self.ours: Any = None
        """Ours, in its place. What it uses is here, for it may be pickled by value, with nothing of ours."""
        self.wrapped, self.interrupted, self.is_inside, self.tell = _WRAPPED, INTERRUPTED_CALLS, _is_inside, _all_told

    def __reduce__(self) -> Any:
        return dict, ()


def _is_inside() -> bool:
    # what catches the exception may be around this call: a call that is listened to, or the backward pass in which
    # activation checkpointing runs a forward pass again, as far as it has to
    if torch._C._current_graph_task_id() != -1:
        return True
    caller = sys._getframe(1)
    return any(
        frame.f_code is caller.f_code and "waiting" in frame.f_locals for frame in frames() if frame is not caller
    )


def _listeners(kind: Any) -> _Listeners:
    if kind in _LISTENED:
        return _LISTENED[kind]
    original, own = kind.__call__, "__call__" in vars(kind)
    listeners, wraps = _Listeners(kind), kind.__name__ == "OptimizedModule"

    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return original(self, *args, **kwargs)
        number = id(self._orig_mod if wraps else self)
        if number not in listeners or number in listeners.wrapped:
            # what it inherits may be another by now: torch.fx puts one there while it traces
            return original(self, *args, **kwargs) if own else super(kind, self).__call__(*args, **kwargs)
        waiting = []
        for heard in listeners[number]:
            ended = heard(self, args, kwargs)
            if ended is not None:
                waiting.append(ended)
        output = None
        if wraps:
            listeners.wrapped.append(number)
        try:
            output = original(self, *args, **kwargs) if own else super(kind, self).__call__(*args, **kwargs)
            return output
        except BaseException:  # also Ctrl-C: an observation ends with the call that it is of; raised on
            if not listeners.is_inside():
                listeners.tell(listeners.interrupted)
            raise
        finally:
            if wraps:
                listeners.wrapped.remove(number)
            if waiting:
                listeners.tell(waiting, output)

    _not_compiled(__call__)
    listeners.ours, _LISTENED[kind] = __call__, listeners
    kind.__call__ = __call__
    return listeners


def _all_told(waiting: Iterable[Callable[..., None]], *output: Any) -> None:
    for told in list(waiting):
        told(*output)


def _not_compiled(function: Any, called: bool = False) -> None:
    """Let dynamo pass over a function as over `nn.Module.__call__`, and over what it calls too if `called`."""
    try:  # not public; as `torch._dynamo.eval_frame.skip_code` without its import of 1.7 s
        from torch._C._dynamo import eval_frame

        skip, default = eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT
        strategy = eval_frame._FrameExecStrategy(skip, skip if called else default)
        eval_frame.set_code_exec_strategy(function.__code__, strategy)
    except (ImportError, AttributeError):  # another version of torch: a compiled model has some frames more
        pass


_not_compiled(_all_told, called=True)


def tensors_in(output: Any) -> list[torch.Tensor]:
    """The tensors of a module's output: nested containers, Hugging Face's ModelOutput, plain dataclasses."""
    found: list[torch.Tensor] = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += tensors_in(dict(leaf))
        elif is_dataclass(leaf):
            found += tensors_in(dict(vars(leaf)))
    return found


class OutermostCalls:
    """Hears the calls of a model's modules that no other of its modules made, while it trains.

    A LightningModule's `training_step` calls `self(x)`, or `self.encoder(x)` and then `self.decoder(z)`. Compiled
    modules are seen from outside only. `inner` gets the calls inside of these, too: module, arguments, keyword
    arguments, and whether it is an outermost one.
    """

    def __init__(
        self,
        model: nn.Module,
        heard: Callable[[Call], None],
        inner: Callable[[nn.Module, tuple[Any, ...], dict[str, Any], bool], None] | None = None,
    ) -> None:
        self.problem: str | None = None
        """Why the calls can't be repeated on the meta device."""
        self._heard, self._inner = heard, inner
        self._open = 0  # calls under way
        self.stop = listen(list(_reachable(model)), self._before)
        """Ends it."""

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ended | None:
        if is_redirected(module):
            return None
        trains = (
            module.training
            and torch.is_grad_enabled()
            and not (torch._C._current_graph_task_id() != -1 and _is_repeated())
        )
        if trains and self._inner is not None:
            attempt(self._inner, module, args, kwargs, not self._open)  # what it does not take shows no tokens
        if trains and not self._open:
            call = described(module, args, kwargs)
            if isinstance(call, str):
                self.problem = call
            else:
                attempt(self._heard, call)  # nothing may be raised into the training step
        self._open += 1
        return self._after

    def _after(self, output: Any) -> None:
        self._open -= 1


def _reachable(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    if compiled(module) is None and getattr(module, "_compiled_call_impl", None) is None:
        for child in module.children():
            yield from _reachable(child)


def is_redirected(module: nn.Module) -> bool:
    """True if a call of the module runs its `training_step`: under DDP Lightning swaps it for `forward`."""
    # others swap it too (torch.compile's wrapper, autocast), and that is a forward pass
    return "_ForwardRedirection" in getattr(vars(module).get("forward"), "__qualname__", "")
