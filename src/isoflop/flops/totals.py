"""Totals of a run in exact integers, summed over all ranks; and where its wall time goes.

A log step costs one small collective, exact for integers of any size. `data_parallel_ranks` tells which ranks hold the
same data. Time is training, evaluation, checkpoints, compilation, our own measuring: goodput = training time / wall
time, where waiting for data counts as training time, for it is the run's own doing.
"""

from __future__ import annotations

import math
import operator
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from isoflop.flops.counter import FlopCount
from isoflop.flops.tokens import TokenCount
from isoflop.guard import attempt

_LIMB = 2**30
_LIMBS = 5  # 2^150: a count of FLOPs passes int64 (9.2e18) early


def world_size() -> int:
    """Processes in the job; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(integers: Sequence[int], floats: Sequence[float]) -> tuple[list[int], list[float]]:
    """Sum each number over all ranks. Every rank must call it at the same step.

    Args:
        integers: summed exactly, where the sum stays below 2^149; a correction may be negative.
        floats: summed in double precision.
    """
    if world_size() == 1:
        return list(integers), list(floats)
    device = torch.device("cpu")
    if dist.get_backend() in ("nccl", "xccl", "hccl"):  # these move no tensors of the CPU
        device = torch.accelerator.current_accelerator() or device
    limbs = [(value // _LIMB**i) % _LIMB for value in integers for i in range(_LIMBS)]
    # a double holds limbs exactly up to 2^53: 8 million ranks; so one collective carries both kinds
    packed = torch.tensor([*map(float, limbs), *floats], dtype=torch.float64, device=device)
    dist.all_reduce(packed)
    summed = packed.tolist()
    whole, half = _LIMB**_LIMBS, _LIMB**_LIMBS // 2
    sums = [
        (sum(int(limb) * _LIMB**i for i, limb in enumerate(summed[start : start + _LIMBS])) + half) % whole - half
        for start in range(0, len(limbs), _LIMBS)
    ]
    return sums, summed[len(limbs) :]


Loss = float | int | torch.Tensor


class Totals(NamedTuple):
    """Sums over all ranks since the run began. The `without_*` counts tell whether a sum can be given at all."""

    processed: int = 0
    padding: int = 0
    loss_tokens: int = 0
    flops: int = 0
    flops_hardware: int = 0
    flops_attention: int = 0
    flops_no_grad: int = 0  # of `flops`: without gradients (a teacher, a reference, generation)
    flops_optimizer: int = 0  # of `flops`: the optimizer's own matrix products
    without_tokens: int = 0  # (micro-)batches whose tokens could not be told
    without_labels: int = 0
    without_flops: int = 0

    @property
    def tokens_known(self) -> int | None:
        """Processed tokens, or None if some batch's were unknown."""
        return None if self.without_tokens else self.processed

    @property
    def loss_tokens_known(self) -> int | None:
        """Loss tokens, or None if some batch showed no labels."""
        return None if self.without_tokens or self.without_labels else self.loss_tokens

    @property
    def flops_known(self) -> int | None:
        """Model FLOPs, or None if some batch's were unknown."""
        return None if self.without_flops else self.flops

    @property
    def data_tokens(self) -> int | None:
        """D of the laws: processed less padding."""
        return None if self.without_tokens else self.processed - self.padding

    def plus(self, part: Totals) -> Totals:
        """The sum of two."""
        return Totals(*map(operator.add, self, part))


MAX_WAITING = 256
"""Owned tensors of a `DeviceSum` that wait at most; each is some bytes on its device."""


class DeviceSum:
    """A running sum of numbers and 0-dim tensors; the tensors' part stays on their device.

    What is added is read at once, in stream order, for a CUDA graph may overwrite it at its next replay; only what
    nobody else writes to (`owned`) may wait, and costs nothing before the sum is read.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.number: float = 0
        self.tensor: torch.Tensor | None = None
        self.waiting: list[tuple[torch.Tensor, float]] = []
        self._dtype = dtype

    def add(self, value: Loss, scale: float = 1, owned: bool = False) -> None:
        """Add `scale · value`; `owned`: a tensor without gradient that stays as it is."""
        if not isinstance(value, torch.Tensor):
            self.number += value * scale
            return
        if owned and len(self.waiting) < MAX_WAITING:
            self.waiting.append((value, scale))
            return
        value = value.detach()
        if self.tensor is None or self.tensor.device != value.device:
            self.number += 0 if self.tensor is None else self.tensor.item()
            self.tensor = torch.zeros((), dtype=self._dtype, device=value.device)
        self.tensor.add_(value if value.dim() == 0 else value.reshape(()), alpha=scale)


_GENERATED = re.compile(r"(Backward)?\d*$")
_PRODUCT = re.compile(r"[Mm]m$|[Mm]v$|^Linear|Convolution|Embedding|^Compiled|AccumulateGrad")
_PICKS = re.compile(r"^(Nll|Gather|Index|Select|Ctc|CrossEntropy)")
_TAKES = {"Index", "IndexSelect", "MaskedSelect"}
"""A part of the positions, as a masked model's loss, or one without padding."""
_BELOW = {"LogSigmoid": "compared", "Minimum": "clipped", "Maximum": "clipped"}
NODES = 512
"""Of a loss's graph, at most."""


class Operators(NamedTuple):
    """What a loss is made by: names, such as "NllLoss" (none: not known); the share of the logits' positions taken."""

    names: frozenset[str] = frozenset()
    part: float = 1.0


def operators_of(loss: Any) -> Operators:
    """Autograd's operators between a loss and the matrix products before it.

    And "LogSoftmax, all of it" where no target picks from it: a teacher's distribution, smoothed labels; "…, compared"
    below a log-sigmoid, "…, clipped" below a minimum. A graph outlives its backward pass, without the values in it.
    """
    seen: set[tuple[Any, str]] = set()
    names: set[str] = set()
    taken = given = 0.0
    todo: list[tuple[Any, str]] = [(getattr(loss, "grad_fn", None), "all of it")]
    for node, of in todo:  # grows as it goes
        name = "" if node is None else _GENERATED.sub("", node.name())
        if not name or _PRODUCT.search(name) or (node, of) in seen or len(seen) >= NODES:
            continue
        seen.add((node, of))
        names |= {name, f"{name}, {of}"}
        if of == "of logits" and name in _TAKES:
            source, place = node.next_functions[0]
            some, whole = node._input_metadata[0].shape, source._input_metadata[place].shape
            taken += math.prod(some[:-1]) if len(some) > 1 else some[0] / whole[-1]
            given += math.prod(whole[:-1])
        if name == "LogSoftmax":
            of = "of logits"
        elif of != "of logits" and name in _BELOW:
            of = _BELOW[name]
        elif of == "all of it" and _PICKS.match(name):
            of = "picked"
        todo += [(each, of) for each, _ in node.next_functions]
    return Operators(frozenset(names), taken / given if given else 1.0)


class Tally:
    """This process's part since the last `drain`; device tensors are read there only, with one sync."""

    def __init__(self) -> None:
        self._counts = [0] * len(Totals._fields)
        self._padding = DeviceSum(torch.int64)
        self._loss_tokens = DeviceSum(torch.int64)
        self._loss_sum = DeviceSum(torch.float32)  # a sum in bf16 would stop growing
        self._finite = DeviceSum(torch.int64)  # number of finite losses, once some were not
        self._losses = 0
        self.batches = 0
        """(Micro-)batches since the last `drain`."""
        self.first: Any = None
        """The first loss of all, a number from the first `drain` on: the mean of an interval may be far from it."""
        self.made_by: Operators | None = None
        """`operators_of` the first loss; None: not yet."""
        self.add_loss = self._add_first  # type: ignore[method-assign]

    def add(self, tokens: TokenCount | None, flops: FlopCount | None) -> None:
        """One (micro-)batch; None: unknown."""
        self.add_flops(flops)
        self.add_tokens(tokens)

    def add_flops(self, flops: FlopCount | None, times: int = 1) -> None:
        """FLOPs, maybe negative, without a batch; None: unknown."""
        if flops is None:
            self._counts[_WITHOUT_FLOPS] += times
        else:
            parts = (flops.model, flops.hardware, flops.attention, flops.no_grad, flops.optimizer)
            for i, part in enumerate(parts, _FLOPS):
                self._counts[i] += part * times

    def add_tokens(self, count: TokenCount | None, times: int = 1, batches: int = 1) -> None:
        """The tokens of a number of (micro-)batches together, and `times` as many; None: unknown."""
        self.batches += times * batches
        if count is None:
            self._counts[_WITHOUT_TOKENS] += times * batches
            return
        processed, padding, loss_tokens = count
        self._counts[0] += processed * times
        if type(padding) is int:
            self._padding.number += padding * times
        else:
            self._padding.add(padding, times, owned=True)
        if loss_tokens is None:
            self._counts[_WITHOUT_LABELS] += times * batches
        else:
            self._loss_tokens.add(loss_tokens, times, owned=True)

    def add_loss(self, loss: Loss, scale: float = 1.0, owned: bool = False) -> None:
        """One loss of the interval's mean, a number or a 0-dim tensor, which stays on its device (see `DeviceSum`)."""
        total = self._loss_sum
        if type(loss) is torch.Tensor and owned and len(total.waiting) < MAX_WAITING:
            total.waiting.append((loss, scale))
        elif type(loss) is torch.Tensor and loss.is_cpu:  # nothing waits for the host
            total.number += float(loss.item()) * scale
        elif isinstance(loss, torch.Tensor):
            placements = getattr(loss, "placements", None)
            if placements is not None:  # a DTensor, under torch's loss_parallel
                if not all(placement.is_replicate() for placement in placements):
                    raise ValueError(f"expected a loss that every rank of the mesh holds, got one placed {placements}")
                loss = loss.to_local()  # type: ignore[attr-defined]
            total.add(loss, scale, owned)
        else:
            total.number += as_float(loss) * scale
        self._losses += 1

    def _add_first(self, loss: Loss, scale: float = 1.0, owned: bool = False) -> None:
        """The first of all; later ones cost nothing for it."""
        del self.add_loss
        self.add_loss(loss, scale, owned)
        self.see(loss)
        if isinstance(loss, torch.Tensor):
            local = loss.to_local() if hasattr(loss, "placements") else loss  # type: ignore[attr-defined]
            self.first = local.detach() * scale  # a copy
        else:
            self.first = as_float(loss) * scale

    def see(self, loss: Any) -> None:
        """What the first loss that comes with its graph is made by."""
        if self.made_by is None and getattr(loss, "grad_fn", None) is not None:
            self.made_by = attempt(operators_of, loss) or Operators()

    def _add_finite(self, loss: Loss, scale: float = 1.0, owned: bool = False) -> None:
        """Likewise where some losses are NaN: the mean is over the others, if there are any."""
        loss = loss.detach() if isinstance(loss, torch.Tensor) else torch.tensor(as_float(loss))
        finite = loss.isfinite()
        self._finite.add(finite, owned=True)
        Tally.add_loss(self, torch.where(finite, loss, 0.0), scale, owned=True)

    def drain(self) -> tuple[Totals, float, int]:
        """Everything since the last call, of this process: (counts, sum of losses, number of losses)."""
        counts, losses = self._counts, self._losses
        sums, ends, terms = [], [], []
        for each in (self._padding, self._loss_tokens, self._loss_sum, self._finite):
            sums.append(each.number)
            terms += each.waiting if each.tensor is None else [*each.waiting, (each.tensor, 1)]
            ends.append(len(terms))
            each.number, each.tensor, each.waiting = 0, None, []
        # before they are read, for what can't be must not stay
        self._counts, self._losses, self.batches = [0] * len(counts), 0, 0
        first = [self.first] if isinstance(self.first, torch.Tensor) else []
        begin, values = 0, read_scalars([*(tensor for tensor, _ in terms), *first]) if terms or first else []
        self.first = values[-1] if first else self.first
        for i, end in enumerate(ends):
            sums[i] += sum([values[j] * terms[j][1] for j in range(begin, end)])
            begin = end
        counts[1], counts[2], loss_sum = round(sums[0]), round(sums[1]), sums[2]
        if self.add_loss == self._add_finite:
            loss_sum, losses = (loss_sum, round(sums[3])) if sums[3] or not losses else (math.nan, losses)
        elif not math.isfinite(loss_sum):  # looked at one by one from here on; before, that would cost each step
            self.add_loss = self._add_finite  # type: ignore[method-assign]
        return Totals(*counts), loss_sum, losses


_FLOPS, _WITHOUT_TOKENS, _WITHOUT_LABELS, _WITHOUT_FLOPS = map(
    Totals._fields.index, ("flops", "without_tokens", "without_labels", "without_flops")
)


def as_float(loss: Loss) -> float:
    """A loss as a float; an integer beyond a float's range is infinite."""
    try:
        return float(loss)
    except OverflowError:
        return math.inf if loss > 0 else -math.inf


def read_scalars(scalars: Sequence[torch.Tensor]) -> list[float]:
    """The values of tensors of one element, in double precision, with one wait a device."""
    groups: dict[Any, list[int]] = {}
    values = [0.0] * len(scalars)
    for i, each in enumerate(scalars):
        if each.is_cpu:
            values[i] = each.item()
        else:
            groups.setdefault((each.device, each.dtype), []).append(i)
    if not groups:
        return values
    with torch.no_grad():
        stacks = {kind: torch.stack([scalars[i].reshape(()) for i in where]) for kind, where in groups.items()}
        for device in {device for device, _ in groups}:
            here = {kind: stack for kind, stack in stacks.items() if kind[0] == device}
            if len(here) > 1 and device.type != "mps":  # which has no doubles
                read = torch.cat([stack.double() for stack in here.values()]).tolist()
            else:
                read = [value for stack in here.values() for value in stack.tolist()]
            for i, value in zip([i for kind in here for i in groups[kind]], read, strict=True):
                values[i] = value
    return values


# names of device meshes' dimensions: torch's tutorials, torchtitan ("tp"), Lightning ("tensor_parallel")
_TENSOR = re.compile(r"(?<![a-z])(tp|tensor)")
_DATA = re.compile(r"dp|data|replica|shard|batch|(?<![a-z])(ep|expert)")  # a rank of experts has data of its own


def data_parallel_ranks(model: nn.Module | None) -> int | None:
    """How many ranks have data of their own: all but for tensor parallelism, whose ranks share a batch; None: all.

    Told by the device meshes of the model's parameters (`torch.distributed.tensor`). Pipeline parallelism, and tensor
    parallelism without DTensors (Megatron), do not show there.
    """
    if model is None or world_size() == 1:
        return None
    fully_sharded = any("FSDPModule" in (kind.__name__ for kind in type(m).__mro__) for m in model.modules())
    share = max((_ranks_of_one_batch(p, fully_sharded) for p in model.parameters()), default=1)
    return world_size() // share if share > 1 and world_size() % share == 0 else None


def _ranks_of_one_batch(parameter: Any, fully_sharded: bool) -> int:
    """Over how many ranks tensor parallelism has split a parameter; 1: it has not, or it is no DTensor."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return 1
    names = [name.lower() for name in mesh.mesh_dim_names or [""] * mesh.ndim]
    tensor = [i for i, name in enumerate(names) if _TENSOR.search(name)]
    if not tensor:
        split = [not placement.is_replicate() for placement in parameter.placements]
        # FSDP2 puts its dimension first, and hybrid sharding a replicated one before it
        data = (1 if split[0] else 2) if fully_sharded else 0
        tensor = [i for i in range(data, mesh.ndim) if split[i] and not _DATA.search(names[i])]
    return math.prod(mesh.shape[i] for i in tensor)


def ends_apart(model: Any) -> bool:
    """True if ranks make different numbers of steps: DDP's `join()` lets those with more batches go on alone.

    Nothing may be summed over ranks at a step then: a rank that has ended answers DDP's collectives and no others.
    """
    return bool(getattr(getattr(model, "_join_config", None), "enable", False))


def ddp_around(model: Any) -> Any:
    """While `model` runs: the DistributedDataParallel that runs it; else `model` itself."""
    return getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None) or model


Phase = Literal["evaluation", "checkpoint", "measuring"]


def compile_seconds() -> float:
    """Seconds that torch.compile has spent in this process so far; 0 where nothing was compiled."""
    # torch's own, not public: without it compilation counts as training time
    dynamo = sys.modules.get("torch._dynamo.utils")
    if not getattr(dynamo, "cumulative_time_spent_ns", True):
        return 0.0
    spent = getattr(dynamo, "calculate_time_spent", None)
    return 0.0 if spent is None else float(spent().get("total_wall_time", 0.0))


class Clock:
    """Wall and training time of a run, over all its attempts; the gaps between attempts count as neither.

    Phases nest (a checkpoint inside an evaluation): the outermost one is charged.
    """

    def __init__(
        self, now: Callable[[], float] = time.monotonic, compiling: Callable[[], float] = compile_seconds
    ) -> None:
        self._now, self._compiling = now, compiling
        self._before = {"wall": 0.0, "away": 0.0, "cpu": 0.0}
        self._cpu_before = time.thread_time()
        self._started: float | None = None
        self._away = self._compiled_before = self._read = 0.0
        self._phases: list[tuple[Phase, float, float]] = []

    def start(self) -> None:
        """The run begins, or goes on after a resume."""
        self._started, self._cpu_before = self._now(), time.thread_time()
        self._away = 0.0
        self._compiled_before = self._compiling()
        self._phases.clear()

    def enter(self, phase: Phase) -> None:
        """Time is no longer training time."""
        self._phases.append((phase, self._now(), self._compiling()))

    def leave(self, phase: Phase) -> None:
        """Back to training; whatever was entered inside `phase` and not left ends with it."""
        names = [name for name, _, _ in self._phases]
        if phase not in names:
            return
        _, since, compiled = self._phases[names.index(phase)]
        del self._phases[names.index(phase) :]
        if not self._phases:
            # compilation during the phase (an evaluation's first batch) is counted by compile_seconds already
            self._away += max(0.0, self._now() - since - (self._compiling() - compiled))

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """`enter` and `leave` around a block."""
        self.enter(phase)
        try:
            yield
        finally:
            self.leave(phase)

    def times(self) -> tuple[float, float]:
        """Seconds since the run began, less the gaps between attempts; and of them those of training."""
        wall, away = self._before["wall"], self._before["away"]
        if self._started is not None:
            now, compiled = self._now(), self._compiling()
            self._read = now
            wall += now - self._started
            away += self._away + max(0.0, compiled - self._compiled_before)  # torch._dynamo.reset() sets it back
            if self._phases:
                _, since, before = self._phases[0]
                away += now - since - (compiled - before)
        return wall, max(0.0, wall - away)

    def measured(self) -> None:
        """Since `times` were read last we have measured: that is no training time."""
        if self._started is not None and not self._phases:
            self._away += max(0.0, self._now() - self._read)

    def cpu(self) -> float:
        """CPU seconds of the thread that trains, over all attempts: as many on a busy machine as on an idle one."""
        return self._before["cpu"] + (0.0 if self._started is None else time.thread_time() - self._cpu_before)

    def state_dict(self) -> dict[str, float]:
        """Plain numbers, for a checkpoint."""
        wall, training = self.times()
        return {"wall": wall, "away": wall - training, "cpu": self.cpu()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state_dict()`."""
        cpu = state.get("cpu", state["wall"])  # not in states of earlier versions
        self._before = {"wall": float(state["wall"]), "away": float(state["away"]), "cpu": float(cpu)}
