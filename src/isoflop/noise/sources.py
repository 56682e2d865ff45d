"""Measures single steps: each micro-batch's gradient before it accumulates, and before ranks are reduced.

Only on a measured step, and only while a backward pass runs: a hook before each parameter's `AccumulateGrad` node sees
the gradient of one micro-batch on one rank; a callback at the end of the backward pass, after DDP's own, sees the sum
in `.grad`, scaled as the parts are (by AMP) and not yet clipped. Neither changes what it sees, and none waits for the
device: squared norms stay there as 0-dim tensors, raw and as Adam sees the gradient.

`Cadence`: which steps are measured, the first ones by number, then as many as a small share of the training time pays
for. Times are of CPUs, so that a busy machine measures the steps that an idle one does.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from isoflop.flops.totals import world_size
from isoflop.guard import Guard, declare
from isoflop.noise.estimator import Measured, Number

SECOND_MOMENTS = ("max_exp_avg_sq", "exp_avg_sq", "square_avg")
"""Where optimizers keep v: Adam's AMSGrad, Adam and its like, RMSprop."""
WARM_UP = 2.0
"""v is taken for settled after WARM_UP/(1 − β₂) steps, when 86% of it is of the run's own gradients …"""
SETTLED_BY = 40
"""… or after so many: a slower v is still the plain mean of all its steps but for a factor, the metric that Adam steps
in. A tiny GPT with β₂ = .999 measured from step 20 on had the noise scale of one with .95 within 20%."""


class Denominator(NamedTuple):
    """What an Adam-like optimizer divides a parameter's gradient by: (√v + ε), over its group's rate.

    A coordinate that has had no gradient for long (an embedding's row, whose token was not met) has a v of nearly 0,
    and its next gradient would outweigh the whole model; Adam divides by a v with that gradient in it. So v is taken
    as `least` at least: what one gradient of the tensor's usual size would make of a v of 0. That does not depend on
    the step that is measured, so it brings no bias; v after the step would.
    """

    v: torch.Tensor
    eps: float
    rate: float  # the group's learning rate over the largest group's
    least: torch.Tensor  # 0-dim

    def root(self) -> torch.Tensor:
        """√v + ε, of the gradient's size; infinite where the whole tensor has had no gradient yet."""
        return self.v.clamp(min=self.least).sqrt_().add_(torch.where(self.least > 0, self.eps, math.inf))


def raw_square(gradient: torch.Tensor) -> torch.Tensor:
    """|h|² in single precision, whatever the gradient's."""
    return torch.linalg.vector_norm(gradient, dtype=torch.float32).square()


def preconditioned_square(gradient: torch.Tensor, by: Denominator) -> torch.Tensor:
    """Σ h²·rate/(√v + ε): the squared norm in the metric that Adam steps in.

    v's bias correction is left out: a common factor, close to 1 once v has settled. One temporary of the gradient's
    size.
    """
    weight = by.root().sqrt_()
    torch.div(gradient, weight, out=weight) if weight.dtype == gradient.dtype else weight.reciprocal_().mul_(gradient)
    return torch.linalg.vector_norm(weight, dtype=torch.float32).square() * by.rate


def raw_squares(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Σ|g|² over tensors, in few kernels."""
    return total([norm.square() for norm in torch._foreach_norm(list(gradients), 2, dtype=torch.float32)])


def total(scalars: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of 0-dim tensors; of several devices (a model laid out over some) on the first's."""
    device = scalars[0].device
    return torch.stack([scalar.to(device, torch.float32) for scalar in scalars]).sum()


def inner_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside of Accelerate's, Fabric's and Lightning's wrappers."""
    for name in ("optimizer", "_optimizer"):
        inner = getattr(optimizer, name, None)
        if inner is not None and hasattr(inner, "param_groups"):
            return inner
    return optimizer


def denominators(optimizer: Any, parameters: Sequence[nn.Parameter]) -> dict[int, Denominator]:
    """By id of the parameter, for those whose optimizer keeps v beside it in its shape."""
    optimizer = inner_optimizer(optimizer)
    groups = getattr(optimizer, "param_groups", None)
    if not groups:
        return {}
    rates = [group.get("lr") for group in groups]
    plain = [rate for rate in rates if isinstance(rate, float | int)]
    largest = max(plain, default=0.0)
    wanted = {id(parameter) for parameter in parameters}
    found: dict[int, Denominator] = {}
    for group, rate in zip(groups, rates, strict=True):
        # a rate kept as a tensor would have to be read, and during warm-up from 0 all may be 0
        relative = float(rate) / largest if len(plain) == len(groups) and largest > 0 else 1.0
        for parameter in group["params"]:
            v = second_moment(optimizer, parameter) if id(parameter) in wanted else None
            if v is not None:
                age, decay = optimizer.state[parameter].get("step"), _decay(group)
                share = (1 - decay) / (1 - decay ** (age if isinstance(age, torch.Tensor) else age or math.inf))
                found[id(parameter)] = Denominator(v, float(group.get("eps", 1e-8)), relative, v.mean() * share)
    return found


def _decay(group: dict[str, Any]) -> float:
    """β₂ of a parameter group; RMSprop's α."""
    betas = group.get("betas")
    return float(betas[1]) if betas else float(group.get("alpha", 0.99))


def second_moment(optimizer: Any, parameter: nn.Parameter) -> torch.Tensor | None:
    """V of a parameter; None where the optimizer keeps none, or in another form (8 bits, factored)."""
    state = optimizer.state.get(parameter) or {}
    for name in SECOND_MOMENTS:
        v = state.get(name)
        if isinstance(v, torch.Tensor) and v.shape == parameter.shape and v.is_floating_point():
            return v
    return None


def settled(optimizer: Any) -> bool | None:
    """Whether v rests on enough gradients: `WARM_UP`/(1 − β₂) steps or `SETTLED_BY`; None: the optimizer keeps none.

    Reads a tensor; for log steps.
    """
    optimizer = inner_optimizer(optimizer)
    for group in getattr(optimizer, "param_groups", None) or []:
        decay = _decay(group)
        for parameter in group["params"]:
            if second_moment(optimizer, parameter) is not None:
                steps = float(optimizer.state[parameter].get("step", 0))
                return steps * (1 - decay) >= WARM_UP - 1e-6 or steps >= SETTLED_BY
    return None


HOOKS = declare("the noise scale's hooks", "no gradient noise scale")
TWICE = (
    "a parameter got its gradient twice in one micro-batch (several backward passes, or reentrant checkpointing of "
    "shared weights): add the losses and call backward once, and checkpoint with use_reentrant=False"
)
SPARSE = "a gradient is sparse: use nn.Embedding(sparse=False)"


class MicroBatches:
    """Measures single steps: `arm`, then `begin` before each micro-batch's forward pass, then `take`.

    Args:
        parameters: the trainable ones.
        guard: an error inside of a hook must not reach the backward pass.
        scale: the factor that AMP's scaler puts on the loss now, as a tensor; None: none, or unknown.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], guard: Guard, scale: Callable[[], torch.Tensor | None] | None = None
    ) -> None:
        self.parameters = list(parameters)
        self._guard = guard
        self._scale = scale
        self._handles: list[tuple[Any, Any]] = []  # a node lives as long as something holds it
        self._denominators: dict[int, Denominator] = {}
        # a small parameter for the check of the sum, but not one whose gradient is a handful of numbers
        self._checked = min(self.parameters, key=lambda p: (p.numel() < 16, p.numel()))
        self.problem: str | None = None
        self.seconds = 0.0
        """Spent on the host since `arm`."""
        self._reset()

    def _reset(self) -> None:
        self._begun = self._ended = 0
        self._queued = False
        self._seen: set[int] = set()
        self._raw: list[torch.Tensor] = []
        self._preconditioned: list[torch.Tensor] = []
        self._whole: tuple[torch.Tensor, torch.Tensor | float, torch.Tensor] | None = None
        self._check: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._tokens: list[Number | None] = []
        self._factor: torch.Tensor | float = 1.0

    @property
    def armed(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._handles)

    @property
    def parts(self) -> int:
        """Micro-batches whose backward pass is done."""
        return self._ended

    def arm(self, expected: int, denominators: dict[int, Denominator]) -> None:
        """Measure the step that begins: from micro-batch number `expected` on this rank on the whole is looked at.

        `denominators`: of Adam's metric, by id of the parameter; empty: raw only.
        """
        began = time.thread_time()
        self.disarm()
        self._reset()
        self.problem, self._expected, self._denominators = None, expected, denominators
        for parameter in self.parameters:
            if parameter.requires_grad:
                node = get_gradient_edge(parameter).node
                self._handles.append((node, node.register_prehook(self._hook(parameter))))
        self.seconds = time.thread_time() - began

    def disarm(self) -> None:
        """Take the hooks away."""
        for _, handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin(self, tokens: Number | None) -> None:
        """A forward pass begins; several before one backward pass make one micro-batch."""
        if self._begun == self._ended:
            self._begun += 1
            self._seen.clear()
            self._tokens.append(tokens)
        else:
            before = self._tokens[-1]
            self._tokens[-1] = None if before is None or tokens is None else before + tokens

    def restart(self, tokens: Number | None) -> None:
        """The micro-batch that has begun is another than it seemed: half of it."""
        if self._tokens:
            self._tokens[-1] = tokens

    def _hook(self, parameter: nn.Parameter) -> Callable[[Any], None]:
        def see(gradients: tuple[torch.Tensor | None, ...]) -> None:
            if self.problem is None and gradients[0] is not None and HOOKS not in self._guard.aside:
                with self._guard.part(HOOKS):
                    self._see(parameter, gradients[0])

        return see

    @torch.no_grad()
    def _see(self, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
        began = time.thread_time()
        key = id(parameter)
        if key in self._seen or self._begun == 0:
            self.problem = TWICE if self._begun else None
            return
        if gradient.layout != torch.strided:
            self.problem = SPARSE
            return
        self._seen.add(key)
        if not self._queued:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._last)
        square = raw_square(gradient)
        self._raw.append(square)
        if self._denominators:
            by = self._denominators.get(key)
            self._preconditioned.append(square * math.nan if by is None else preconditioned_square(gradient, by))
        if parameter is self._checked:
            self._check.append((gradient.sum(dtype=torch.float32), square))
        self.seconds += time.thread_time() - began

    def _last(self) -> None:
        # DDP queues its own last callback later than this one: queued anew, this comes after it
        torch.autograd.Variable._execution_engine.queue_callback(self._end_of_backward)

    def _end_of_backward(self) -> None:
        self._queued = False
        if self.armed and self.problem is None and HOOKS not in self._guard.aside:
            with self._guard.part(HOOKS):
                began = time.thread_time()
                # a nested backward pass (reentrant checkpointing) ends more than once for one micro-batch
                self._ended = self._begun
                if self._ended >= self._expected:
                    self._look_at_whole()
                self.seconds += time.thread_time() - began

    @torch.no_grad()
    def _look_at_whole(self) -> None:
        trained = [(p, p.grad) for p in self.parameters if p.grad is not None]
        whole = raw_squares([gradient for _, gradient in trained])
        preconditioned: torch.Tensor | float = math.nan
        if self._denominators and all(id(p) in self._denominators for p, _ in trained):
            preconditioned = total([preconditioned_square(g, self._denominators[id(p)]) for p, g in trained])
        checked = self._checked.grad
        self._whole = (whole, preconditioned, (whole * 0 if checked is None else checked).sum(dtype=torch.float32))
        # here, for the scaler may change it once the optimizer has stepped
        factor = None if self._scale is None else self._scale()
        self._factor = 1.0 if factor is None else factor.float()

    def take(self, step: int, tokens: float | None = None) -> Measured | None:
        """The step is over: what was measured, for this rank; None if its last micro-batch was not the expected one.

        `tokens`: the step's on this rank, where the micro-batches did not show theirs: they are taken as equal.
        """
        self.disarm()
        parts, whole, tokens_of = self._ended, self._whole, self._tokens[: self._ended]
        if self.problem is not None or whole is None or parts < self._expected or not self._raw:
            return None
        ranks = world_size()
        if tokens is not None:
            tokens_of = [tokens / parts] * parts
        known = [value for value in tokens_of if value is not None]
        unknown = len(known) < parts
        scale = self._factor
        inverse = 1 / (scale * scale)
        share = inverse / ranks**2  # a local gradient is 1/ranks of what it brings to the mean
        equal = inverse / ranks  # what every rank knows, and is summed over them
        numbers = (
            total(self._raw) * share,
            whole[0] * equal,
            total(self._preconditioned) * share if self._preconditioned else math.nan,
            whole[1] * equal,
            parts,
            math.nan if unknown else sum(known),
            math.nan if unknown else sum(value * value for value in map(_float, known)),
            math.nan if unknown else sum(1 / value for value in map(_float, known)),
            total([check for check, _ in self._check]) / (scale * ranks) if self._check else 0.0,
            total([square for _, square in self._check]) * share if self._check else 0.0,
            whole[2] / (scale * ranks),
            (whole[2] / scale).square() / ranks,
        )
        self._reset()
        return Measured(step, *numbers)


def _float(value: Number) -> Number:
    return value.float() if isinstance(value, torch.Tensor) else float(value)


SHARDED = (
    "the parameters are sharded (FSDP2), where the hooks see reduced gradients only, and torch has no public interface "
    'to a rank\'s own: measure with DDP, or on one device with gradient accumulation or noise_scale="split"'
)
FLAT = "FSDP1 and DeepSpeed keep gradients where the hooks do not see them: use DDP"
TENSOR_PARALLEL = "ranks that share a batch (tensor, pipeline or context parallelism) are not supported"


def choose_source(
    model: nn.Module, guard: Guard, scale: Callable[[], torch.Tensor | None], data_parallel: int | None
) -> MicroBatches | str:
    """The source for a model, or why there is none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        return "no parameter of the model is trained"
    if data_parallel is not None and data_parallel < world_size():
        return TENSOR_PARALLEL
    if any(hasattr(p, "ds_id") or type(p).__name__ == "FlatParameter" for p in parameters):
        return FLAT
    if any(hasattr(parameter, "to_local") for parameter in parameters):
        return SHARDED
    return MicroBatches(parameters, guard, scale)


SHARE = 0.005
"""Of the training time that measuring may take."""
FREE = 32
"""Measurements whatever they take: a short run, too, gets a value, and on any machine the same."""
DENSEST = 4
"""At most every 4th step is measured."""


@dataclass
class Cadence:
    """Measure each step that is a multiple of `every`."""

    every: int = DENSEST  # steps between two measurements
    fixed: bool = False  # `every` stays
    count: int = 0  # measurements so far

    def due(self, step: int) -> bool:
        """Whether this step is to be measured."""
        return step % self.every == 0

    def adapt(self, seconds: float, measured: int, steps: int, interval: float) -> None:
        """At a log step, from numbers that all ranks share: `seconds` that so many measurements took, of an
        `interval`'s.
        """
        self.count += measured
        if self.fixed or measured == 0 or steps <= 0 or self.count < FREE:
            return
        cost = seconds / measured * steps / max(interval, 1e-9)  # in steps
        self.every = max(DENSEST, 2 ** math.ceil(math.log2(max(cost / SHARE, 1.0))))

    def state_dict(self) -> dict[str, int]:
        """Plain values."""
        return {"every": self.every, "count": self.count}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The inverse of `state_dict`; states of earlier versions have no count."""
        self.count = int(state.get("count", FREE))
        if not self.fixed:
            self.every = int(state["every"])


class StepTimes:
    """What a measured step takes longer than the one before it, on this rank; of the last steps, in constant memory.

    The hooks' own time on the host leaves out what they cost elsewhere: caches, an all-reduce that waits, the device.
    """

    def __init__(self) -> None:
        self._measured: deque[float] = deque(maxlen=32)
        self._others: deque[float] = deque(maxlen=32)
        self.last: tuple[int, float] | None = None
        """Number and end of the last step; None: what came since (logging, evaluation) is no step's time."""

    def add(self, step: int, now: float, measured: bool) -> None:
        """Optimizer step number `step` is over, at `now` seconds."""
        before, self.last = self.last, (step, now)
        if before is not None and before[0] == step - 1:
            (self._measured if measured else self._others).append(now - before[1])

    def cost(self) -> float:
        """Seconds; 0 while there is nothing to compare."""
        if not self._measured or not self._others:
            return 0.0
        return max(statistics.median(self._measured) - statistics.median(self._others), 0.0)
