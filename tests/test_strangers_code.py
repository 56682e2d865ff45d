"""What other code makes of the process while a step is observed stays; nothing of ours is in its way."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import isoflop
import isoflop.guard
from isoflop.record.writer import RecordLog
from tiny import Rows, batches, model, the_run
from workers import run

BATCH = next(iter(batches(Rows(8), 8)))


def test_a_class_is_pickled_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As MLflow and Ray do with classes of a script: what is loaded needs no isoflop."""

    class Own(nn.Linear):
        pass

    class Calls(nn.Linear):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return super().__call__(x) + 1

    for kind in (Own, Calls):
        net = kind(2, 2)
        before = net(torch.ones(2))
        monitor = isoflop.Monitor(net, record_dir=tmp_path)
        net(torch.ones(1, 2)).sum().backward()
        assert "__call__" in vars(kind)
        content = cloudpickle.dumps(net)
        monitor.close()
        with monkeypatch.context() as elsewhere:
            for name in [name for name in sys.modules if name.split(".")[0] == "isoflop"]:
                elsewhere.setitem(sys.modules, name, None)
            assert pickle.loads(content)(torch.ones(2)).equal(before)


@pytest.mark.parametrize("home", ["class", "thread"])
def test_what_others_put_there_meanwhile_stays(home: str, tmp_path: Path) -> None:
    net = model()
    kind, name = {"class": (type(net), "__call__"), "thread": (threading.Thread, "start")}[home]
    own = vars(kind).get(name)
    monitor = isoflop.Monitor(net, record_dir=tmp_path)
    net(**BATCH)["loss"].backward()
    ours, called = vars(kind)[name], []
    assert ours is not own

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(1)
        return ours(self, *args, **kwargs)

    setattr(kind, name, theirs)
    try:
        monitor.step(1.0)
        monitor.close()
        assert vars(kind)[name] is theirs
        net(**BATCH)
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
        assert called
    finally:
        if own is None:
            delattr(kind, name)
        else:
            setattr(kind, name, own)


def test_what_others_take_back_meanwhile_does_not_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: first(thread))
    net = model()
    monitor = isoflop.Monitor(net, record_dir=tmp_path)
    net(**BATCH)["loss"].backward()
    threading.Thread.start = first  # type: ignore[method-assign]
    monitor.step(1.0)
    monitor.close()
    assert threading.Thread.start is first


def test_a_worker_that_is_forked_while_a_step_is_observed(tmp_path: Path) -> None:
    net = model()
    monitor = isoflop.Monitor(net, record_dir=tmp_path)
    net(**BATCH)["loss"]
    assert torch._C._len_torch_dispatch_stack() == 1
    child = os.fork()
    if child == 0:
        clean = torch._C._len_torch_dispatch_stack() == 0 and threading.Thread.start.__module__ == "threading"
        os._exit(0 if clean else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch._C._len_torch_dispatch_stack() == 1
    monitor.close()


def test_a_process_forked_while_another_thread_writes_the_record(tmp_path: Path) -> None:
    log = RecordLog.create(tmp_path, "one", {})
    with log._one_at_a_time:
        holder_is_gone = []

        def forks() -> None:
            child = os.fork()
            if child == 0:
                try:
                    log.event("late")
                except isoflop.record.RecordError:
                    os._exit(0)
                os._exit(1)
            holder_is_gone.append(os.waitpid(child, 0)[1])

        thread = threading.Thread(target=forks)
        thread.start()
        thread.join(60)
    assert holder_is_gone == [0]
    log.close()


def test_a_warning_leaves_the_start_method_open() -> None:
    """tqdm's lock, where there is no bar, is not made: it would settle how processes are started."""
    assert run(_warned) == ["spawn"]


def _warned() -> Any:
    import multiprocessing

    import tqdm

    for each in (tqdm.tqdm, *tqdm.tqdm.__subclasses__()):
        if "_lock" in vars(each):
            del each._lock
    tqdm.std.TqdmDefaultWriteLock.__dict__.get("mp_lock") and delattr(tqdm.std.TqdmDefaultWriteLock, "mp_lock")
    multiprocessing.set_start_method(None, force=True)
    isoflop.guard.warn("a warning")
    multiprocessing.set_start_method("spawn")
    return multiprocessing.get_start_method()


# -- models whose attributes, copies and calls are of another kind than a module's usually are ------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 50)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(self.table(ids))))


class Answers(Small):
    """Has whatever it is asked for."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise
            return self.instead(name)

    def instead(self, name: str) -> Any:
        return lambda *_, **__: None


class Itself(Answers):
    """… and that is itself: who follows wrappers inwards goes round for ever."""

    def instead(self, name: str) -> Any:
        return self


class Raises(Answers):
    """Raises what `hasattr` does not catch."""

    def instead(self, name: str) -> Any:
        raise RuntimeError(name)


class NoCopy(Small):
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("it is not to be copied")

    __deepcopy__ = __copy__ = __reduce_ex__  # type: ignore[assignment]


class NoTruth(Small):
    __slots__ = ("extra",)

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


class OfItsOwn(nn.Parameter):
    pass


def own_parameter() -> nn.Module:
    net = Small()
    net.hidden.weight = OfItsOwn(net.hidden.weight.data)
    return net


class Logged(torch.Tensor):
    """So is all that is computed with one, the loss too."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def logged_parameter() -> nn.Module:
    net = Small()
    net.hidden.weight = nn.Parameter(net.hidden.weight.data.as_subclass(Logged))
    return net


def example() -> torch.Tensor:
    return torch.zeros(4, 8, dtype=torch.long)


class Passes(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {})) * 1.01 if "addmm" in str(func) else func(*args, **(kwargs or {}))


class PassesToo(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def loss_of(net: nn.Module, ids: torch.Tensor, how: str) -> torch.Tensor:
    """Its gradients are those of the parameters."""

    def of(weights: Any, rows: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(net, weights, (rows,))
        return nn.functional.cross_entropy(logits.flatten(0, -2), rows.flatten())

    weights = dict(net.named_parameters())
    if how == "functional":
        gradients, loss = torch.func.grad_and_value(of)(weights, ids)
    elif how in ("a row each", "a column each"):
        rows, place = (ids, 0) if how == "a row each" else (ids.T.contiguous(), 1)
        gradients, losses = torch.func.vmap(torch.func.grad_and_value(of), in_dims=(None, place))(weights, rows)
        gradients, loss = {name: value.mean(0) for name, value in gradients.items()}, losses.mean()
    else:
        loss = nn.functional.cross_entropy(net(ids).flatten(0, 1), ids.flatten())
        loss.backward()
        return loss
    for name, parameter in weights.items():
        parameter.grad = gradients[name].detach()
    return loss.detach()


def trained_so(make: Any, how: str, step: Any, around: Any, folder: Path | None) -> list[torch.Tensor]:
    torch.manual_seed(0)
    net, draw = make(), torch.Generator().manual_seed(1)
    lengths = [8] * 5 + [9] * 3
    rows = [
        torch.randint(0, 50, (4 if place != 4 else 3, length), generator=draw) for place, length in enumerate(lengths)
    ]
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    monitor = None if folder is None else isoflop.Monitor(net, optimizer=optimizer, record_dir=folder, log_every=2)
    with around():
        for ids in rows:
            loss = loss_of(net, ids, how)
            optimizer.step()
            optimizer.zero_grad()
            with step():
                if monitor is not None:
                    monitor.step(loss)
    if monitor is not None:
        monitor.close()
    return [parameter.detach().as_subclass(torch.Tensor).clone() for parameter in net.parameters()]


@contextmanager
def meta() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:Anomaly Detection")
@pytest.mark.parametrize(
    ("make", "how", "step", "around"),
    [
        (Small, "", nullcontext, nullcontext),
        (lambda: torch.jit.script(Small()), "", nullcontext, nullcontext),
        (lambda: torch.jit.trace(Small(), example()), "", nullcontext, nullcontext),
        (Answers, "", nullcontext, nullcontext),
        (Itself, "", nullcontext, nullcontext),
        (Raises, "", nullcontext, nullcontext),
        (NoCopy, "", nullcontext, nullcontext),
        (NoTruth, "", nullcontext, nullcontext),
        (own_parameter, "", nullcontext, nullcontext),
        (logged_parameter, "", nullcontext, nullcontext),
        (Small, "functional", nullcontext, nullcontext),
        (Small, "a row each", nullcontext, nullcontext),
        (Small, "a column each", nullcontext, nullcontext),
        (Small, "", meta, nullcontext),
        (Small, "", torch.inference_mode, nullcontext),
        (Small, "", nullcontext, Passes),
        (Small, "", nullcontext, PassesToo),
        (Small, "", nullcontext, deterministic),
        (Small, "", nullcontext, torch.autograd.detect_anomaly),
    ],
)
def test_models_of_other_kinds(make: Any, how: str, step: Any, around: Any, tmp_path: Path) -> None:
    without = trained_so(make, how, step, around, None)
    watched = trained_so(make, how, step, around, tmp_path)
    assert all(torch.equal(one, two) for one, two in zip(without, watched, strict=True))
    point = the_run(tmp_path).points[-1]
    tokens = 4 * (4 * 8) + 3 * 8 + 3 * (4 * 9)
    # 2 FLOPs for each of 16·16 + 16·50 weights and token, three times
    expected = tokens, tokens * 6 * (16 * 16 + 16 * 50)
    assert (point.tokens, point.flops) == (expected if make is not Itself else (None, None))
    assert point.step == 8 and torch._C._len_torch_dispatch_stack() == 0
