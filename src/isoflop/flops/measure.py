"""Count the exact FLOPs of forward and backward passes without training: on the model's meta twin, or on a copy.

`measure_flops` replays the calls of a training step on the meta device, without memory or arithmetic, in a process of
its own. A forward that needs values cannot run there: `run_once` runs a copy on random inputs.
"""

from __future__ import annotations

import copy
import sys
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

from isoflop.flops.apart import can_fork, run_apart
from isoflop.flops.calls import Call, Shape, Uncountable, metas, tensors_in
from isoflop.flops.counter import FlopCount, FlopCounter, ModuleOwner, Phase
from isoflop.flops.twin import Twin, stand_ins
from isoflop.flops.uses import Uses, UseTracer
from isoflop.flops.values import Values, WrittenOut
from isoflop.guard import pass_on


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
    in_turn: bool = False
    """Where the choice of experts depends on values, the tokens chose in turn."""

    def __add__(self, other: Measurement) -> Measurement:
        return Measurement(
            self.flops + other.flops,
            self.uses | other.uses,
            self.without_formula | other.without_formula,
            self.by_operator + other.by_operator,
            self.by_module + other.by_module,
            self.in_turn or other.in_turn,
        )


def measure_flops(model: nn.Module, calls: Sequence[Call], by_module: bool = False) -> Measurement:
    """Replay forward calls and their backward passes on a meta twin of `model`, and count.

    It happens in a process of its own, which ends with the measurement: nothing is allocated or computed, and the
    live model and all that its code changes stay as they are. FLOPs are those of the calls' own matrix products and
    convolutions, forward and backward.

    Args:
        model: the live model (sharded, compiled and wrapped ones are read, not run).
        calls: what the training step called, as `OutermostCalls` or a forward hook saw it.
        by_module: count FLOPs by module too.

    Raises:
        Uncountable: the code can't run without data (it branches on values, or a kernel has no meta version).
    """
    if not calls:
        raise Uncountable("no forward call of the model was seen in the training step")
    if not can_fork():
        return measured_here(model, calls, by_module)
    return run_apart(lambda: measured_here(model, calls, by_module))


def measured_here(model: nn.Module, calls: Sequence[Call], by_module: bool = False) -> Measurement:
    """`measure_flops` in this process, where the user's code may leave traces of meta tensors."""
    replays = _Replays(model, by_module)
    total: Measurement | None = None
    reason = ""
    try:
        for call in calls:
            try:
                part = replays.run(call)
            except Uncountable as error:
                if any(True for _ in call.module.parameters()):
                    raise
                reason = str(error)  # a metric, which reads values: without a weight there is little to count
            else:
                total = part if total is None else total + part
    except Uncountable:
        raise
    except Exception as error:  # a module that is not made of Python attributes (TorchScript, lazy parameters …)
        pass_on(error)
        reason = f"{type(model).__name__} can't be copied to the meta device ({describe_error(error)})"
    if total is None:
        raise Uncountable(reason)
    return total


class _Replays:
    """Six ways to run a call, the fastest first.

    Hugging Face's SDPA decoders read the mask's values (_ignore_causal_mask_sdpa): the same products run without a
    mask. Or the positions' (packed sequences), or call a kernel that needs a GPU: attention in plain torch has the same
    products. A loop over the experts that have tokens multiplies as many rows however the tokens choose. Fake tensors
    tell a model that it is traced. And grouped products have a meta kernel for bf16 alone.
    """

    def __init__(self, model: nn.Module, by_module: bool) -> None:
        self._model, self._by_module = model, by_module
        self._twins: dict[tuple[Any, ...], Twin] = {}

    def run(self, call: Call) -> Measurement:
        unmasked = {**call.kwargs, "attention_mask": None} if "attention_mask" in call.kwargs else None
        reason = ""
        for kwargs, floating, written_out, values, mode in (
            (call.kwargs, None, False, Values(), nullcontext()),
            (unmasked, None, False, Values(), nullcontext()),
            (call.kwargs, None, True, Values(), nullcontext()),
            (call.kwargs, None, True, Values(chosen=True), nullcontext()),
            (call.kwargs, None, False, Values(), fake_tensors()),
            (call.kwargs, torch.bfloat16, False, Values(), fake_tensors()),
        ):
            if kwargs is None:
                continue
            twin = self._twin(floating, written_out)
            try:
                with mode:
                    found = self._replay(twin, replace(call, kwargs=kwargs), values)
                    return replace(found, in_turn=values.chosen)
            except Exception as error:  # whatever a user's forward may raise on meta: the reason goes into the record
                pass_on(error)
                if floating is None and not written_out:
                    reason = describe_error(error)
        raise Uncountable(f"{type(call.module).__name__} can't run on the meta device ({reason})")

    def _twin(self, *kind: Any) -> Twin:
        if kind not in self._twins:
            self._twins[kind] = Twin(self._model, *kind)
        return self._twins[kind]

    def _replay(self, twin: Twin, call: Call, values: Values) -> Measurement:
        # The caller may be inside autocast; FLOPs know no dtype
        with (
            warnings.catch_warnings(),
            torch.autocast("cpu", enabled=False),
            torch.device("meta"),
            stand_ins(twin.root),
            WrittenOut(),
            values,
        ):
            warnings.simplefilter("ignore")  # the live model has given the same warnings
            args, kwargs = metas((call.args, call.kwargs), twin.floating)
            call = Call(twin[call.module], args, kwargs, call.method)
            return _count(call, twin.root, twin.parameters, self._by_module)


def _count(call: Call, root: nn.Module, parameters: dict[str, nn.Parameter], by_module: bool) -> Measurement:
    """Run a call whose arguments are tensors, of a module inside `root`, and its backward pass."""
    tracer = UseTracer(parameters)
    tracer.arguments(tensors_in((call.args, call.kwargs)))
    owner = ModuleOwner() if by_module else None
    counter = FlopCounter(tracer, owner)
    with eagerly(), torch.enable_grad(), nullcontext() if owner is None else owner.listening(root), counter:
        forward_backward(call)
    return Measurement(
        counter.count,
        tracer.uses,
        frozenset(counter.without_formula),
        Counter(counter.by_operator),
        Counter(counter.by_module),
    )


def forward_backward(call: Call) -> None:
    """Run a call whose arguments are tensors, and the backward pass from what training differentiates."""
    output = getattr(call.module, call.method)(*call.args, **call.kwargs)
    roots = [tensor for tensor in differentiated(output) if tensor.requires_grad]
    if roots:
        torch.autograd.backward(roots, [torch.ones_like(root) for root in roots])


def differentiated(output: Any) -> list[torch.Tensor]:
    """The tensors that training differentiates: the loss where the model names one, else all it returns.

    (A part of a loss, or logits beside it, are in the same graph, which is walked once from whatever root.)
    """
    if isinstance(output, Mapping):
        loss = output.get("loss")
        if isinstance(loss, torch.Tensor):
            return [loss]
        # a cache is in the same graph: it would add nothing but time; states beside logits are no part of a loss
        aside = _ASIDE if isinstance(output.get("logits"), torch.Tensor) else ("past_key_values",)
        output = {key: value for key, value in output.items() if not key.endswith(aside)}
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]


_ASIDE = ("past_key_values", "_outputs", "hidden_state", "hidden_states", "attentions")


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Torch's fake tensors, quietly: shapes on any device, and code that asks is told that it is being traced."""
    from torch._subclasses import fake_tensor

    # it logs a failure with a traceback as an error; ours is caught and reported in a sentence
    disabled, fake_tensor.log.disabled = fake_tensor.log.disabled, True
    try:
        with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        fake_tensor.log.disabled = disabled


def eagerly() -> AbstractContextManager[Any]:
    """torch.compile's functions run as they were written; the compiled code is used again afterwards."""
    if "torch._dynamo" in sys.modules:
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def describe_error(error: Exception) -> str:
    """An exception in a line, with the place in the user's code, or a library's, where it was raised."""
    if isinstance(error, Uncountable):
        return str(error)
    text = str(error).strip().splitlines()
    kind = type(error).__name__
    if kind in ("DataDependentOutputException", "DynamicOutputShapeException"):
        kind = f"it depends on values, which shapes do not have; {kind}"
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    where = f", at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{kind}: {text[0][:200] if text else ''}{where}"


# -- a copy on random inputs -------------------------------------------------------------------------------------------


def run_once(model: nn.Module, call: Call, vocabulary: int | None = None) -> Measurement:
    """Run one forward and backward pass on a copy of `model`, with random inputs, and count.

    Args:
        model: one with weights; it is copied, and stays as it is.
        call: of which shapes.
        vocabulary: token ids are drawn below it.

    Raises:
        Uncountable: it does not run either, with the reason.
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    if on_cpu and can_fork():
        return run_apart(lambda: _run_a_copy(model, call, vocabulary))
    return _run_a_copy(model, call, vocabulary)


def _run_a_copy(model: nn.Module, call: Call, vocabulary: int | None) -> Measurement:
    try:
        twin = copy.deepcopy(model)
        module = twin.get_submodule(next(name for name, m in model.named_modules() if m is call.module))
        device = next((parameter.device for parameter in twin.parameters()), torch.device("cpu"))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            args, kwargs = (_random(part, vocabulary or 2, device) for part in (call.args, call.kwargs))
            call = Call(module, args, kwargs, call.method)
            # a GPU's backward pass runs in a thread with numbers of its own, which name no module
            return _count(call, twin, dict(twin.named_parameters()), by_module=device.type == "cpu")
    except Exception as error:  # whatever a user's forward may raise
        pass_on(error)
        raise Uncountable(
            f"{type(call.module).__name__} does not run on these inputs ({describe_error(error)})"
        ) from None


def _random(value: Any, vocabulary: int, device: torch.device, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _random(item, vocabulary, device, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_random(item, vocabulary, device, name) for item in value)
    if not isinstance(value, Shape):
        return value
    if "mask" in name:
        return torch.ones(value.size, dtype=value.dtype, device=device)
    if value.values is not None and bool((value.values != value.values.flatten()[:1]).any()):
        return value.values.to(device)  # places of images, positions; not what stands for any ids
    if value.dtype.is_floating_point:
        return torch.randn(value.size, dtype=value.dtype, device=device)
    return torch.randint(vocabulary, value.size, dtype=value.dtype, device=device)
