"""Whatever ends a step that is observed, nothing of it stays on; and what compiles, compiles as it would without."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import isoflop
from tiny import Rows, batches, model

BATCH = next(iter(batches(Rows(8), 8)))


def modes() -> int:
    return torch._C._len_torch_dispatch_stack()


def observed(folder: Path, net: nn.Module | None = None, **options: Any) -> tuple[isoflop.Monitor, nn.Module]:
    net = net or model()
    return isoflop.Monitor(net, record_dir=folder, **options), net


def mid_step(folder: Path) -> tuple[isoflop.Monitor, nn.Module]:
    """A Monitor whose first step is under way."""
    monitor, net = observed(folder)
    net(**BATCH)["loss"]
    assert modes() == 1
    return monitor, net


class Fails(torch.autograd.Function):
    """The backward pass fails."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise KeyError("the user's own")


def in_forward(net: nn.Module) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        net(input_ids=BATCH["input_ids"] + 10**6, labels=BATCH["labels"])


def in_backward(net: nn.Module) -> None:
    with pytest.raises(KeyError):
        Fails.apply(net(**BATCH)["loss"]).backward()


@pytest.mark.parametrize("fails", [in_forward, in_backward])
def test_an_exception_in_a_step(fails: Callable[[nn.Module], None], tmp_path: Path) -> None:
    monitor, net = observed(tmp_path)
    fails(net)
    assert modes() == 0
    net(**BATCH)["loss"].backward()  # the user's loop leaves that batch out and goes on
    monitor.step()
    monitor.close()
    assert not monitor.guard.aside


class Product(torch.autograd.Function):
    """Its forward computes without gradients, as all do."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x @ torch.ones(4, 4)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient @ torch.ones(4, 4)


class Custom(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(Product.apply(super().forward(x) if x.sum() > 0 else x))


@pytest.mark.parametrize("home", [torch.autograd.Function, torch._C._FunctionBase], ids=["torch's own", "in C"])
def test_a_function_whose_apply_is_torchs_or_c_s(home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written in C from torch 2.14 on."""
    monkeypatch.setattr(torch.autograd.Function, "apply", home.__dict__["apply"])
    monitor, net = observed(tmp_path, Custom(4, 4), log_every=1)
    net(torch.ones(2, 4)).sum().backward()
    monitor.step(1.0, tokens=2)
    monitor.close()
    product = 2 * 2 * 4 * 4
    assert not monitor.guard.aside and monitor.totals.flops_known == (3 - 1 + 2 + 3) * product  # the input has none
    assert torch.autograd.Function.__dict__["apply"] is home.__dict__["apply"]


def test_a_monitor_that_nobody_closes(tmp_path: Path) -> None:
    monitor, _ = mid_step(tmp_path)
    del monitor
    gc.collect()
    assert modes() == 0


def test_one_that_goes_while_it_handles_an_operator(tmp_path: Path) -> None:
    """Its collection comes inside of an operator, where a mode can't be taken off."""
    held = [mid_step(tmp_path)]

    class Collects(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    library = torch.library.Library("isoflop_ends", "DEF")
    library.define("collect(Tensor x) -> Tensor")

    def collect(x: torch.Tensor) -> torch.Tensor:
        held.clear()
        gc.collect()
        return x.clone()

    library.impl("collect", collect, "CPU")
    torch.ops.isoflop_ends.collect(torch.ones(1))
    for _ in range(3):  # the main thread runs Python again
        assert not held
    assert modes() == 0
    library._destroy()


def test_one_that_goes_in_another_thread(tmp_path: Path) -> None:
    held = [mid_step(tmp_path)]

    def let_go() -> None:
        held.clear()
        gc.collect()

    thread = Thread(target=let_go)
    thread.start()
    thread.join()
    for _ in range(3):
        assert not held
    assert modes() == 0


SOURCES = str(Path(isoflop.__file__).parent / "flops")


class CtrlC:
    """A run of two steps, interrupted at a line of isoflop's, whose user goes on; `names`: of these functions alone."""

    def __init__(self, folder: Path, names: tuple[str, ...] = ()) -> None:
        self.folder, self.names = folder, names
        self.lines = self.last = 0

    def in_function(self, frame: Any, event: str, argument: Any) -> Any:
        self.lines += event == "line"
        if self.lines == self.last:
            raise KeyboardInterrupt
        return self.in_function

    def trace(self, frame: Any, event: str, argument: Any) -> Any:
        ours = frame.f_code.co_filename.startswith(SOURCES)
        return self.in_function if ours and (not self.names or frame.f_code.co_name in self.names) else None

    def train(self, last: int = 0) -> int:
        """How often it was interrupted."""
        self.lines, self.last = 0, last
        net, hits = model(), 0
        monitor = isoflop.Monitor(net, record_dir=self.folder, log_every=1)
        sys.settrace(self.trace)
        try:
            for _ in range(2):
                try:
                    net(**BATCH)["loss"].backward()
                    monitor.step()
                except KeyboardInterrupt:
                    hits += 1
        finally:
            sys.settrace(None)
        monitor.step()
        monitor.close()
        return hits


@pytest.mark.parametrize("share", [i / 40 for i in range(40)])
def test_ctrl_c_at_any_line_of_an_observed_step(share: float, tmp_path: Path) -> None:
    """`conftest` looks whether something is still on."""
    run = CtrlC(tmp_path)
    assert run.train() == 0
    assert run.train(1 + int(share * run.lines)) == 1


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 11])
def test_ctrl_c_at_each_line_that_patches_torch(every: int, tmp_path: Path) -> None:
    run = CtrlC(tmp_path, ("start", "leave", "_look_around", "put", "undo"))
    assert run.train() == 0 and run.lines > 50
    for last in range(1, run.lines + 1, every):
        assert run.train(last) == 1
        assert modes() == 0 and not torch.compile.__module__.startswith("isoflop"), last
        assert not torch.autograd.Function.apply.__module__.startswith("isoflop"), last


def test_what_follows_an_optimizers_step_that_failed_is_none_of_its(tmp_path: Path) -> None:
    """A user who validates then and goes on: SGD multiplies nothing."""

    class Fails(torch.optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            self.steps += 1
            if self.steps < 5:
                raise RuntimeError("out of memory")
            return super().step(closure)

    monitor, net = observed(tmp_path, log_every=1)
    optimizer, done = Fails(net.parameters(), lr=0.1), 0
    for _ in range(12):
        net(**BATCH)["loss"].backward()
        try:
            optimizer.step()
        except RuntimeError:
            with torch.no_grad():
                net.eval()(**BATCH)
            net.train()
        else:
            monitor.step()
            done += 1
    monitor.close()
    assert done == 8 and monitor.observer.costing.optimizer.model == 0


@pytest.mark.parametrize("how", ["close", "exception", "operator"])
def test_one_that_goes_in_inference_mode(how: str, tmp_path: Path) -> None:
    """Inference mode ends with the dispatcher as it was at its beginning, when the observation was on."""
    monitor, net = mid_step(tmp_path)
    observation = monitor.observer.observation
    assert observation is not None
    with torch.inference_mode():
        if how == "close":
            monitor.close()
        elif how == "exception":
            with pytest.raises(IndexError):
                net(input_ids=BATCH["input_ids"] + 10**6, labels=BATCH["labels"])
            observation.interrupted()
        else:
            observation.problem = "an operator of an unknown kind"
            observation.leave()
        nn.Linear(3, 3)(torch.ones(2, 3))
    nn.Linear(3, 3)(torch.ones(2, 3)).sum().backward()
    for _ in range(3):
        assert observation.over
    assert modes() == 0


def test_a_teacher_in_inference_mode_and_a_step_that_is_told_there(tmp_path: Path) -> None:
    net, teacher = model(), model()
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for _ in range(9):
            with torch.inference_mode():
                teacher(**BATCH)
            net(**BATCH)["loss"].backward()
            with torch.inference_mode():
                monitor.step()
    assert modes() == 0 and not monitor.guard.aside
    assert monitor.totals.flops > 0


def jagged(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net(torch.nested.nested_tensor([x[:1], x[1:]], layout=torch.jagged)).values()


def gradients_of_each_row(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    weights = {name: parameter.detach() for name, parameter in net.named_parameters()}

    def loss(weights: Any, row: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, weights, row[None]).pow(2).mean()

    found: dict[str, torch.Tensor] = torch.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    return sum(gradient.mean() for gradient in found.values())  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", [jagged, gradients_of_each_row])
def test_kinds_of_tensors_that_torch_dispatches_otherwise(kind: Callable[..., torch.Tensor], tmp_path: Path) -> None:
    """Neither a run that ends nor a count of 0: observed, or measured apart within the backward pass."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for folder in (tmp_path, None):
        torch.manual_seed(0)
        net = nn.Linear(8, 8)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        watching: Any = nullcontext() if folder is None else isoflop.Monitor(net, record_dir=folder, log_every=1)
        with watching as monitor:
            for _ in range(5):
                (kind(net, x).mean() + net(x).pow(2).mean()).backward()
                optimizer.step()
                optimizer.zero_grad()
                if monitor is not None:
                    monitor.step()
        if monitor is not None:
            assert not monitor.guard.aside and monitor.totals.flops >= 5 * 2 * (2 * 4 * 8 * 8)
        found.append(net.weight.detach().clone())
    assert torch.equal(*found) and modes() == 0


def test_two_monitors_that_begin_and_end_in_turn(tmp_path: Path) -> None:
    (one, net), (two, other) = observed(tmp_path / "1", log_every=1), observed(tmp_path / "2", log_every=1)
    for _ in range(3):
        first, second = net(**BATCH)["loss"], other(**BATCH)["loss"]
        first.backward()
        one.step()  # the first to begin is the first to end
        second.backward()
        two.step()
    one.close()
    two.close()
    assert modes() == 0


def test_a_users_mode_is_entered_in_the_step_and_left_after_it(tmp_path: Path) -> None:
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    monitor, _ = mid_step(tmp_path)
    with Mode() as mode:
        monitor.close()
        assert [torch._C._get_dispatch_stack_at(0)] == [mode] and modes() == 1
    assert modes() == 0


def graphs(when: str, folder: Path | None) -> int:
    """How many graphs a compiled loss has, where the model is observed and where it is not (None)."""
    torch._dynamo.reset()
    backend = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = partial(torch.compile, fullgraph=True, backend=backend)
    net, loss_of = nn.Linear(4, 4), nn.functional.mse_loss
    if when == "before":
        loss_of = compiled(loss_of)
    monitor = None if folder is None else isoflop.Monitor(net, record_dir=folder)
    for length in (2, 3, 5):
        out = net(torch.ones(length, 4))
        if when == "in the step" and length == 2:
            loss_of = compiled(loss_of)
        loss_of(out, torch.zeros_like(out)).backward()
        if monitor is not None:
            monitor.step(tokens=length)
    if when == "after the last step":
        compiled(loss_of)(net(torch.ones(7, 4)), torch.zeros(7, 4))
    if monitor is not None:
        monitor.close()
    torch._dynamo.reset()
    return len(backend.graphs)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own
@pytest.mark.parametrize("when", ["before", "in the step", "after the last step"])
def test_what_compiles_has_as_many_graphs_as_without(when: str, tmp_path: Path) -> None:
    assert graphs(when, tmp_path) == graphs(when, None) > 0
