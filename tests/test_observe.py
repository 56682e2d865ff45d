"""Steps are counted as they run: all that they compute, and the training stays the same."""

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
from isoflop.flops import APART, FORMULA, OBSERVED, SIX_ND
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
    assert run.counting["method"] == OBSERVED and not run.counting["reasons"]


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
def test_all_that_a_step_computes(attention: str, kind: str | None, tmp_path: Path) -> None:
    """The model's own part, as on the meta device; the optimizer's products, 2·m·n·(m + m) a matrix; a metric's."""
    net = Peeks(attention=attention, checkpointing=kind)
    matrices = [parameter.shape for parameter in net.parameters() if parameter.dim() == 2]
    optimizer = sum(2 * m * n * m + 2 * m * m * n for m, n in matrices)
    monitor, _ = loop(net, tmp_path)
    assert monitor.observer.costing.methods == {OBSERVED: ""} and monitor.observer.costing.observed < 5
    totals = monitor.totals
    assert totals.flops == 4 * (3 * net.forward_flops(2, 16)[0] + optimizer + 2 * 5**3)
    assert (totals.flops_optimizer, totals.flops_no_grad) == (4 * optimizer, 0)
    assert (totals.flops_hardware > totals.flops) is (kind is not None)
    point = the_run(tmp_path).points[-1]
    assert point.extra["flops_optimizer"] == 4 * optimizer and "flops_no_grad" not in point.extra


def test_a_teacher_before_the_model_in_batches_of_many_lengths(tmp_path: Path) -> None:
    """What runs ahead of the forward call belongs to the step, also where a shape is new; so does its part without
    gradients.
    """
    net, teacher = TinyGPT(), TinyGPT()
    lengths = [16, 8, 12, 16, 8, 12, 20, 20, 20]
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for length in lengths:
            ids = tokens(2, length)
            with torch.no_grad():
                teacher(ids)
            net(ids, ids)[1].backward()
            monitor.step()
    forward = sum(net.forward_flops(2, length)[0] for length in lengths)
    assert (monitor.totals.flops, monitor.totals.flops_no_grad) == (4 * forward, forward)
    assert list(monitor.observer.costing.methods) == [OBSERVED]


def test_every_shape_is_observed_and_few_steps_again(tmp_path: Path) -> None:
    net = Peeks()
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=3) as monitor:
        for step in range(60):
            ids = tokens(2, (8, 16, 24)[step % 3])
            net(ids, ids)[1].backward()
            monitor.step()
    assert monitor.totals.flops == sum(20 * 3 * net.forward_flops(2, length)[0] for length in (8, 16, 24))
    assert monitor.observer.costing.observed <= 3 + 8  # Fibonacci's numbers up to 60


def test_turns_of_one_batch_and_two_forward_calls_a_backward_pass(tmp_path: Path) -> None:
    """A forward call with its backward pass, and one whose output is detached: equal shapes, different costs."""
    net = TinyGPT()
    forward = net.forward_flops(2, 16)[0]
    ids = tokens(2, 16)
    with isoflop.Monitor(net, record_dir=tmp_path / "turns", log_every=1) as monitor:
        for _ in range(5):
            net(ids, ids)[1].backward()
            net(ids)[0].detach()
            monitor.step()
    assert monitor.totals.flops == 5 * 4 * forward
    with isoflop.Monitor(net, record_dir=tmp_path / "two", log_every=1) as monitor:
        for _ in range(8):
            (net(ids, ids)[1] + net(ids, ids)[1]).backward()
            monitor.step()
    assert monitor.totals.flops == 8 * 2 * 3 * forward


def test_an_evaluation_between_two_steps_is_none_of_theirs(tmp_path: Path) -> None:
    net, ids = TinyGPT(), tokens(2, 16)
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for _ in range(5):
            net(ids, ids)[1].backward()
            monitor.step()
            net.eval()
            with torch.no_grad():
                net(ids)
            net.train()
    assert monitor.totals.flops == 5 * 3 * net.forward_flops(2, 16)[0]


def test_steps_that_differ_without_a_sign_are_averaged_and_it_is_said(tmp_path: Path) -> None:
    class Drops(TinyGPT):
        calls = 0

        def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
            self.calls += 1
            if self.calls % 2:
                torch.ones(50, 50) @ torch.ones(50, 50)
            return super().forward(tokens, targets)

    net, ids = Drops(), tokens(2, 16)
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for _ in range(40):
            net(ids, ids)[1].backward()
            monitor.step()
    least = 40 * 3 * net.forward_flops(2, 16)[0]
    assert least < monitor.totals.flops < least + 40 * 2 * 50**3
    assert "mean" in the_run(tmp_path).counting["reasons"][OBSERVED]


def test_a_users_dispatch_mode_is_left_in_peace(tmp_path: Path) -> None:
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    net = Peeks()
    net.around = Mode
    monitor, _ = loop(net, tmp_path / "inside")
    assert list(monitor.observer.costing.methods) == [OBSERVED]
    with Mode():
        monitor, _ = loop(TinyGPT(), tmp_path / "around")
        assert torch._C._len_torch_dispatch_stack() == 1
    assert list(monitor.observer.costing.methods) == [APART]
    # one that is entered before our end and left after it
    net = Peeks()
    with isoflop.Monitor(net, record_dir=tmp_path / "across", log_every=1) as monitor:
        for step in range(5):
            ids = tokens(2, 16, seed=step)
            net(ids, ids)[1].backward()
            with Mode() if step == 1 else nullcontext():
                monitor.step()
    assert torch._C._len_torch_dispatch_stack() == 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look
def test_nothing_compiled_runs_as_written(tmp_path: Path) -> None:
    torch._dynamo.reset()
    net = TinyGPT()
    net.blocks[0] = torch.compile(net.blocks[0], backend="eager")
    monitor, _ = loop(net, tmp_path / "model")
    assert list(monitor.observer.costing.methods) == [APART]
    assert monitor.totals.flops == 4 * 3 * net.forward_flops(2, 16)[0]

    class Calls(TinyGPT):
        """Compiled code that no module shows."""

        inner = staticmethod(torch.compile(lambda x: x * 2, backend="eager"))

        def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
            self.inner(torch.ones(3))
            return super().forward(tokens, targets)

    torch._dynamo.utils.counters.clear()
    monitor, _ = loop(Calls(), tmp_path / "function")
    assert list(monitor.observer.costing.methods) == [APART]
    assert torch._dynamo.utils.counters["frames"]["ok"] == 1  # it was compiled, once
    assert monitor.totals.flops == 4 * 3 * net.forward_flops(2, 16)[0]


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


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look
def test_the_formula_stands_in_where_the_shape_is_known(tmp_path: Path) -> None:
    """A Hugging Face model under a dispatch mode that does not run apart: PaLM's formula, with the matrices alone."""

    class Reads(type(gpt2())):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            assert self.transformer.wte.weight.sum().item() < 1e9
            return super().forward(input_ids=input_ids, labels=labels)

    net = gpt2()
    net.__class__ = Reads
    net.transformer.h[0] = torch.compile(net.transformer.h[0], backend="eager")
    ids = tokens(2, 16, 96)
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        net(input_ids=ids, labels=ids).loss.backward()
        monitor.step()
    assert list(monitor.observer.costing.methods) == [FORMULA]
    exact = 3 * gpt2_forward_flops(2, 16)
    norms_and_biases = 6 * 32 * (2 * (13 * 32 + 0) + 64)  # of GPT-2: 9d biases and 4d norms a layer, 2d at the end
    assert monitor.totals.flops == exact + norms_and_biases
    assert monitor.totals.flops_attention == 3 * 2 * 4 * 2 * 16**2 * 32


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
    # the fifth step is observed, as each whose number is Fibonacci's: it is noticed there
    assert monitor.totals.flops == 4 * 3 * forward + 4 * (3 * forward - head)
    assert monitor.observer.costing.methods == {OBSERVED: ""}


def test_checkpointed_functions_are_told_apart(tmp_path: Path) -> None:
    class Inside(Peeks):
        def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
            assert tokens.sum().item() >= 0
            return checkpoint(super().forward, tokens, targets, use_reentrant=False)

    net = Inside()
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for _ in range(4):
            net(tokens(2, 16), tokens(2, 16))[1].backward()
            monitor.step()
    forward, _ = net.forward_flops(2, 16)
    assert monitor.totals.flops == 4 * 3 * forward and monitor.totals.flops_hardware > monitor.totals.flops
