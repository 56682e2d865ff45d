"""The exact FLOPs of a step's forward and backward pass, measured on the model's meta twin.

FLOPs of a step that really runs: for a model whose forward needs values, which the meta device does not have.
"""

from __future__ import annotations

import copy
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isoflop.flops.calls import Call, Shape, Uncountable, metas, tensors_in
from isoflop.flops.counter import FlopCount, FlopCounter, ModuleOwner, Phase, current_phase
from isoflop.flops.operators import Formula
from isoflop.flops.parameters import Uses, UseTracer
from isoflop.flops.twin import Made, Twin, no_leaks, requires_gradients, stand_ins, untouched_randomness


@dataclass(frozen=True)
class Measurement:
    """FLOPs of the calls, forward and backward, and what the forward passes used each parameter for."""

    flops: FlopCount
    uses: Uses
    without_formula: frozenset[str] = frozenset()
    """Heavy or custom operators that were counted 0."""
    by_operator: Counter[tuple[str, Phase]] = field(default_factory=Counter)
    """FLOPs by operator ("aten.mm") and phase."""
    by_module: Counter[tuple[str, Phase]] = field(default_factory=Counter)
    """FLOPs by the name of the module that computed them, its parts not included, and phase; if asked for."""

    def __add__(self, other: Measurement) -> Measurement:
        return Measurement(
            self.flops + other.flops,
            self.uses | other.uses,
            self.without_formula | other.without_formula,
            self.by_operator + other.by_operator,
            self.by_module + other.by_module,
        )


def measure(model: nn.Module, calls: Sequence[Call], by_module: bool = False) -> Measurement:
    """Replay forward calls and their backward passes on a meta twin of `model`, and count.

    Nothing is allocated or computed, the live model, its gradients, hooks, compiled code and random numbers stay
    as they are. FLOPs are those of the calls' own matrix products and convolutions, forward and backward.

    Args:
        model: the live model (sharded, compiled and wrapped ones are read, not run).
        calls: what the training step called, as `OutermostCalls` or a forward hook saw it.
        by_module: tell FLOPs by module too.

    Raises:
        Uncountable: the code can't run without data (it branches on values, or a kernel has no meta version).
    """
    if not calls:
        raise Uncountable("no forward call of the model was seen in the training step")
    with no_leaks() as made:
        outcome = _outcome(model, calls, made, by_module)
    if isinstance(outcome, str):
        raise Uncountable(outcome)
    return outcome


def _outcome(model: nn.Module, calls: Sequence[Call], made: Made, by_module: bool) -> Measurement | str:
    """The measurement or why there is none; as a text, for an exception holds on to what its frames hold."""
    try:
        return _measure(model, calls, made, by_module)
    except Uncountable as reason:
        return str(reason)
    except Exception as error:  # a module that is not made of Python attributes (TorchScript, lazy parameters …)
        return f"{type(model).__name__} can't be copied to the meta device ({said(error)})"


def _measure(model: nn.Module, calls: Sequence[Call], made: Made, by_module: bool) -> Measurement:
    replays = _Replays(model, made, by_module)
    total: Measurement | None = None
    reason: Uncountable | None = None
    for call in calls:
        try:
            part = replays.measure(call)
        except Uncountable as error:
            if any(True for _ in call.module.parameters()):
                raise
            reason = error  # a metric of the loss, which reads values: without a weight there is little to count
            continue
        total = part if total is None else total + part
    if total is None:
        assert reason is not None
        raise reason
    return total


class _Replays:
    """Five ways to run a call, from the fastest.

    Hugging Face's SDPA decoders look into the mask's values (_ignore_causal_mask_sdpa): the same products run without
    a mask. Or into the positions' (packed sequences), or call a kernel that needs a GPU: the same products again,
    written out. Fake tensors tell a model that it is traced. And grouped products have a meta kernel for bf16 alone.
    """

    def __init__(self, model: nn.Module, made: Made, by_module: bool) -> None:
        self._model, self._made, self._by_module = model, made, by_module
        self._twins: dict[tuple[Any, ...], Twin] = {}

    def measure(self, call: Call) -> Measurement:
        bf16 = torch.bfloat16
        unmasked = {**call.kwargs, "attention_mask": None} if "attention_mask" in call.kwargs else None
        reason = ""
        for kwargs, floating, written_out, mode in (
            (call.kwargs, None, False, nullcontext()),
            (unmasked, None, False, nullcontext()),
            (call.kwargs, None, True, nullcontext()),
            (call.kwargs, None, False, fake_tensors()),
            (call.kwargs, bf16, False, fake_tensors()),
        ):
            if kwargs is None:
                continue
            twin = self._twin(floating, written_out)
            try:
                with mode:
                    return _forward_backward(twin, replace(call, kwargs=kwargs), self._made, self._by_module)
            except Exception as error:  # whatever a user's forward may raise on meta: the reason goes into the record
                if floating is None and not written_out:
                    reason = said(error)
        raise Uncountable(f"{type(call.module).__name__} can't run on the meta device ({reason})")

    def _twin(self, *kind: Any) -> Twin:
        if kind not in self._twins:
            self._twins[kind] = Twin(self._model, *kind)
        return self._twins[kind]


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Torch's fake tensors, quietly: shapes on any device, and code that asks is told that it is being traced."""
    from torch._subclasses import fake_tensor

    # it logs a failure with a traceback as an error; ours is caught and told in a sentence
    disabled, fake_tensor.log.disabled = fake_tensor.log.disabled, True
    try:
        with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        fake_tensor.log.disabled = disabled


def _forward_backward(twin: Twin, call: Call, made: Made, by_module: bool) -> Measurement:
    tracer = UseTracer(twin.parameters)
    owner = ModuleOwner() if by_module else None
    counter = FlopCounter(tracer, made, owner)
    # The caller may stand inside autocast or no_grad; FLOPs know no dtype, and a backward pass is wanted
    with (
        untouched_randomness(),
        warnings.catch_warnings(),
        eagerly(),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.device("meta"),
        stand_ins(twin.root),
        nullcontext() if owner is None else owner.listening(twin.root),
    ):
        warnings.simplefilter("ignore")  # the live model has said the same
        args, kwargs = metas(call.args, twin.floating), metas(call.kwargs, twin.floating)
        tracer.arguments(tensors_in((args, kwargs)))
        with counter:
            output = getattr(twin[call.module], call.method)(*args, **kwargs)
            roots = [tensor for tensor in differentiated(output) if tensor.requires_grad]
            if roots:
                torch.autograd.backward(roots, [torch.empty_like(root) for root in roots])
    return Measurement(
        counter.count,
        tracer.uses,
        frozenset(counter.without_formula),
        Counter(counter.by_operator),
        Counter(counter.by_module),
    )


def differentiated(output: Any) -> list[torch.Tensor]:
    """The tensors that training differentiates: the loss where the model names one, else all it returns.

    (A part of a loss, or logits beside it, hang in the same graph, which is walked once whatever it is entered by.)
    """
    if isinstance(output, Mapping):
        loss = output.get("loss")
        if isinstance(loss, torch.Tensor):
            return [loss]
        # a cache hangs in the same graph: it would add nothing but time
        output = {key: value for key, value in output.items() if key != "past_key_values"}
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]


def eagerly() -> AbstractContextManager[Any]:
    """torch.compile's functions run as they were written; the compiled code is used again afterwards."""
    import sys

    if "torch._dynamo" in sys.modules:
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def said(error: Exception) -> str:
    """What an exception says in a line, and where in the user's code, or a library's, it came up."""
    text = str(error).strip().splitlines()
    if isinstance(error, Uncountable):
        return str(error)
    kind = type(error).__name__
    if kind in ("DataDependentOutputException", "DynamicOutputShapeException"):
        kind = f"it depends on values, which shapes do not have; {kind}"
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    places = [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__, limit=None)
        if not frame.filename.startswith((*ours, "<"))
    ]
    return f"{kind}: {text[0][:200] if text else ''}{f', at {places[-1]}' if places else ''}"


class LiveCounter(FlopCounter):
    """Counts a live training step between `enter()` and `leave()`, which may lie in different hooks of a trainer.

    What nobody differentiates after a backward pass is no part of the step's model (an optimizer that multiplies
    matrices, a metric, the next batch's augmentation). Nothing is raised: `problem` says why there is no count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.problem: str | None = None
        self._entered = self._past_backward = self._recomputed = False
        self._first_node = 0

    def enter(self) -> bool:
        """Begin, unless somebody else listens at the dispatcher: two such modes must be left in the right order."""
        if torch._C._len_torch_dispatch_stack() > 0:
            self.problem = "another dispatch mode is on"
            return False
        self._first_node = torch.autograd._get_sequence_nr()
        self.__enter__()
        self._entered = True
        return True

    def leave(self) -> bool:
        """End; False if it is not our turn yet, since a mode entered after us is still on."""
        if not self._entered:
            return True
        top = torch._C._len_torch_dispatch_stack() - 1
        if top < 0 or torch._C._get_dispatch_stack_at(top) is not self:
            return False
        self.__exit__(None, None, None)
        self._entered = False
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if current_phase() != "forward":
            self._past_backward = True
        elif self._past_backward and not (torch.is_grad_enabled() and any(_trains(arg) for arg in args)):
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _note(
        self, packet: Any, formula: Formula | None, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        if self.problem is not None:
            return
        phase = current_phase()
        self._recomputed = self._recomputed or phase == "recomputed"
        if phase == "backward" and formula is not None and not self._recomputed:
            # (what reentrant checkpointing runs again is numbered anew by autograd's own threads)
            node = torch._C._current_autograd_node()
            if node is not None and node._sequence_nr() < self._first_node:
                self.problem = "the backward pass reaches into an earlier forward pass"
                return
        try:
            super()._note(packet, formula, args, kwargs, out)
        except Exception as error:  # a user's formula, an operand of an unknown kind: training goes on
            self.problem = f"{packet}: {type(error).__name__}: {error}"


def _trains(arg: Any) -> bool:
    return isinstance(arg, torch.Tensor) and arg.requires_grad


def run_once(model: nn.Module, call: Call, vocabulary: int | None = None) -> Measurement:
    """Run one forward and backward pass on a copy of `model`, with random inputs, and count.

    Args:
        model: one with weights; it is copied, and stays as it is.
        call: of which shapes.
        vocabulary: token ids are drawn below it.

    Raises:
        Uncountable: it does not run either, with the reason.
    """
    try:
        twin = copy.deepcopy(model)
        _drop_hooks(twin)
        module = dict(twin.named_modules())[next(name for name, m in model.named_modules() if m is call.module)]
        tracer = UseTracer(dict(twin.named_parameters()))
        device = next((parameter.device for parameter in twin.parameters()), torch.device("cpu"))
        # a GPU's backward pass runs in a thread with numbers of its own, by which no module can be told
        owner = ModuleOwner() if device.type == "cpu" else None
        counter = FlopCounter(tracer, owner=owner)
        with (
            untouched_randomness(),
            eagerly(),
            torch.enable_grad(),
            nullcontext() if owner is None else owner.listening(twin),
        ):
            torch.manual_seed(0)
            args, kwargs = (_real(part, vocabulary or 2, device) for part in (call.args, call.kwargs))
            tracer.arguments(tensors_in((args, kwargs)))
            with counter:
                roots = [
                    tensor
                    for tensor in differentiated(getattr(module, call.method)(*args, **kwargs))
                    if tensor.requires_grad
                ]
                if roots:
                    torch.autograd.backward(roots, [torch.ones_like(root) for root in roots])
    except Exception as error:  # whatever a user's forward may raise
        raise Uncountable(f"{type(call.module).__name__} does not run on these inputs ({said(error)})") from None
    return Measurement(
        counter.count,
        tracer.uses,
        frozenset(counter.without_formula),
        Counter(counter.by_operator),
        Counter(counter.by_module),
    )


def _drop_hooks(twin: nn.Module) -> None:
    """A user's hook on the live model (a recorder, a logger) must not see the copy; torch's own compute weights."""
    for module in twin.modules():
        for name in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
            hooks = getattr(module, name)
            for key, hook in list(hooks.items()):
                home = str(getattr(hook, "__module__", type(hook).__module__))
                if not home.startswith("torch.") and not requires_gradients(hook):
                    del hooks[key]


def _real(value: Any, vocabulary: int, device: torch.device, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _real(item, vocabulary, device, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_real(item, vocabulary, device, name) for item in value)
    if not isinstance(value, Shape):
        return value
    if "mask" in name:
        return torch.ones(value.size, dtype=value.dtype, device=device)
    if value.dtype.is_floating_point:
        return torch.randn(value.size, dtype=value.dtype, device=device)
    return torch.randint(vocabulary, value.size, dtype=value.dtype, device=device)
