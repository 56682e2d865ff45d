"""A model that the meta device can't run is counted on a step that it trains anyway; the training stays the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as package
import pytest
import torch
import torch._dynamo.utils
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import isoflop
from isoflop.flops import FORMULA, SIX_ND, WATCHED
from isoflop.lightning import IsoFLOPMonitor
from isoflop.transformers import IsoFLOPCallback
from models import TinyGPT, gpt2, gpt2_forward_flops, tokens
from tiny import Rows, batches, model, same_weights, the_run, totals, weights
from trainers import LIGHTNING_NOISE, hf_trainer, lightning_module, lightning_trainer

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_NOISE]

ROWS = Rows(64)
Weights = dict[str, torch.Tensor]


def branches(dropout: float = 0.1) -> nn.Module:
    """The tiny model of the trainers' tests, reading a value in its forward pass."""

    class Branches(type(model())):  # type: ignore[misc]
        def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
            assert input_ids.sum().item() >= 0
            return super().forward(input_ids, attention_mask, labels)

    torch.manual_seed(3)
    return Branches(dropout=dropout)


def with_lightning(net: nn.Module, folder: Path, observed: bool, **options: Any) -> None:
    callbacks = [IsoFLOPMonitor(log_every=1)] if observed else []
    trainer = lightning_trainer(package, folder, callbacks=callbacks, **options)
    trainer.fit(lightning_module(package, net), batches(ROWS, 8))


def with_transformers(net: nn.Module, folder: Path, observed: bool, **options: Any) -> None:
    hf_trainer(net, folder, ROWS, [IsoFLOPCallback()] if observed else [], **options).train()


@pytest.mark.parametrize(
    ("train", "options"),
    [
        (with_lightning, {}),
        (with_lightning, {"accumulate_grad_batches": 4}),
        (with_transformers, {}),
        (with_transformers, {"gradient_accumulation_steps": 4}),
    ],
    ids=["Lightning", "Lightning, accumulating", "transformers", "transformers, accumulating"],
)
def test_totals_are_exact_and_weights_the_same(train: Callable[..., None], options: Any, tmp_path: Path) -> None:
    found: list[Weights] = []
    for observed in (True, False):
        net = branches()
        train(net, tmp_path / str(observed), observed, **options)
        found.append(weights(net))
        assert torch._C._len_torch_dispatch_stack() == 0
    assert same_weights(*found)
    run = the_run(tmp_path / "True")
    assert totals(run) == ROWS.totals()
    assert run.counting["method"] == WATCHED and "Branches can't run on the meta" in run.counting["reasons"][WATCHED]


class Peeks(TinyGPT):
    """Reads a value; `around` is what its blocks run in."""

    around: Any = nullcontext

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        assert tokens.sum().item() >= 0
        with self.around():
            return super().forward(tokens, targets)


class Multiplies(torch.optim.SGD):
    """An optimizer with matrix products of its own, as Muon's."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() == 2:
                    parameter.add_(parameter @ parameter.T @ parameter, alpha=1e-6)


def loop(net: nn.Module, folder: Path, steps: int = 4, length: int = 16) -> Any:
    """(monitor, the losses) of a plain loop."""
    optimizer = Multiplies(net.parameters(), 0.1)
    losses = []
    with isoflop.Monitor(net, optimizer=optimizer, record_dir=folder, log_every=1) as monitor:
        for step in range(steps):
            ids = tokens(2, length, seed=step)
            loss = net(ids, ids)[1]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            torch.ones(5, 5) @ torch.ones(5, 5)  # a metric, an augmentation
            monitor.step(loss)
    return monitor, losses


@pytest.mark.parametrize("kind", [None, "reentrant", "modern"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_count_is_that_of_the_meta_device(attention: str, kind: str | None, tmp_path: Path) -> None:
    """With an optimizer that multiplies matrices, which are no part of the model's step."""
    real, _ = loop(Peeks(attention=attention, checkpointing=kind), tmp_path / "a")
    meta, _ = loop(TinyGPT(attention=attention, checkpointing=kind), tmp_path / "b")
    assert list(real.observer.costing.methods) == [WATCHED]
    assert real.totals == meta.totals


def test_every_shape_is_watched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, watched = Peeks(), []
    from isoflop.flops.measure import LiveCounter

    enter = LiveCounter.enter
    monkeypatch.setattr(LiveCounter, "enter", lambda self: watched.append(1) or enter(self))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with isoflop.Monitor(net, optimizer=optimizer, record_dir=tmp_path, log_every=3) as monitor:
        for step in range(12):
            ids = tokens(2, (8, 16, 24)[step % 3])
            net(ids, ids)[1].backward()
            monitor.step()
    assert monitor.totals.flops == sum(4 * 3 * net.forward_flops(2, length)[0] for length in (8, 16, 24))
    assert len(watched) == 3


def test_a_users_dispatch_mode_is_left_in_peace(tmp_path: Path) -> None:
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    net = Peeks()
    net.around = Mode
    monitor, _ = loop(net, tmp_path / "inside")
    assert list(monitor.observer.costing.methods) == [WATCHED]
    with Mode():
        monitor, _ = loop(Peeks(), tmp_path / "around")
        assert torch._C._len_torch_dispatch_stack() == 1
    assert list(monitor.observer.costing.methods) == [SIX_ND]
    # one that is entered before our end and left after it
    net = Peeks()
    with isoflop.Monitor(net, record_dir=tmp_path / "across", log_every=1) as monitor:
        for step in range(5):
            ids = tokens(2, 16, seed=step)
            net(ids, ids)[1].backward()
            with Mode() if step == 1 else nullcontext():
                monitor.step()
    assert torch._C._len_torch_dispatch_stack() == 0
    forward, _ = net.forward_flops(2, 16)
    assert monitor.totals.flops == 5 * 3 * forward


def test_a_batch_without_its_own_backward_pass_tells_nothing(tmp_path: Path) -> None:
    net = Peeks()
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for _ in range(8):
            ids = tokens(2, 16)
            (net(ids, ids)[1] + net(ids, ids)[1]).backward()  # two forward calls, one backward pass
            monitor.step()
    # the second of a pair is followed by the backward pass of both, the first by none: its count would be wrong
    assert list(monitor.observer.costing.methods) == [SIX_ND]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look
def test_nothing_compiled_runs_as_written(tmp_path: Path) -> None:
    torch._dynamo.reset()
    net = Peeks()
    net.blocks[0] = torch.compile(net.blocks[0], backend="eager")
    monitor, _ = loop(net, tmp_path)
    assert list(monitor.observer.costing.methods) == [SIX_ND]


def test_a_formula_that_fails_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isoflop.flops import operators

    _, expected = loop(Peeks(), tmp_path / "a")

    def fails(*_: Any, **__: Any) -> int:
        raise RuntimeError("no shape")

    monkeypatch.setitem(operators._NAMED, "aten::mm", fails)
    torch.manual_seed(0)
    monitor, _ = loop(Peeks(), tmp_path / "b")
    assert monitor.steps == 4 and list(monitor.observer.costing.methods) == [SIX_ND]
    assert len(expected) == 4


def test_the_formula_stands_in_where_the_shape_is_known(tmp_path: Path) -> None:
    """A Hugging Face model in code that is compiled: PaLM's formula, with the matrices alone."""
    net = gpt2()
    net.forward_ = net.forward

    class Reads(type(net)):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            assert input_ids.sum().item() >= 0
            return super().forward(input_ids=input_ids, labels=labels)

    net.__class__ = Reads
    del net.forward_
    torch._dynamo.utils.counters["frames"]["total"] = 1
    ids = tokens(2, 16, 96)
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        net(input_ids=ids, labels=ids).loss.backward()
        monitor.step()
    assert list(monitor.observer.costing.methods) == [FORMULA]
    exact = 3 * gpt2_forward_flops(2, 16)
    norms_and_biases = 6 * 32 * (2 * (13 * 32 + 0) + 64)  # of GPT-2: 9d biases and 4d norms a layer, 2d at the end
    assert monitor.totals.flops == exact + norms_and_biases
    assert monitor.totals.flops_attention == 3 * 2 * 4 * 2 * 16**2 * 32


def test_an_argument_that_can_not_be_copied(tmp_path: Path) -> None:
    class Cache:
        def __init__(self) -> None:
            self.seen: list[torch.Tensor] = []

    class Caches(TinyGPT):
        def forward(self, tokens: torch.Tensor, targets: Any = None, cache: Any = None) -> Any:
            cache.seen.append(tokens)
            return super().forward(tokens, targets)

    net = Caches()
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for _ in range(3):
            net(tokens(2, 16), tokens(2, 16), Cache())[1].backward()
            monitor.step()
    assert monitor.observer.costing.methods == {WATCHED: "an argument of type Cache can't be copied to the meta device"}
    assert monitor.totals.flops == 3 * 3 * net.forward_flops(2, 16)[0]


def test_freezing_begins_anew(tmp_path: Path) -> None:
    net = Peeks(tied=False)
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for step in range(8):
            if step == 4:
                net.out.requires_grad_(False)
            net(tokens(2, 16), tokens(2, 16))[1].backward()
            monitor.step()
    forward, _ = net.forward_flops(2, 16)
    head = 2 * 2 * 16 * 16 * 48
    # noticed at the log step after: the fifth still counts as the fourth
    assert monitor.totals.flops == 5 * 3 * forward + 3 * (3 * forward - head)
    assert list(monitor.observer.costing.methods) == [WATCHED]


def test_checkpointed_functions_are_told_apart(tmp_path: Path) -> None:
    class Inside(Peeks):
        def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
            assert tokens.sum().item() >= 0
            return checkpoint(super().forward, tokens, targets, use_reentrant=False)

    monitor, _ = loop(Inside(), tmp_path)
    forward, _ = Inside().forward_flops(2, 16)
    assert monitor.totals.flops == 4 * 3 * forward and monitor.totals.flops_hardware > monitor.totals.flops
