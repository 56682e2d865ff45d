"""What a `training_step` makes of its batch: parts of a model, checkpointing, rows that are one token too long."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as package
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import isoflop
from isoflop.lightning import IsoFLOPMonitor
from tiny import LENGTH, VOCABULARY, TinyLM
from trainers import LIGHTNING_NOISE, lightning_trainer

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_NOISE]

Logits = Callable[[Any, torch.Tensor], torch.Tensor]
WIDTH, ROWS, BATCH = 16, 16, 4
PRODUCTS = 2 * (8 * WIDTH * WIDTH + WIDTH * VOCABULARY)
"""FLOPs of a position's forward pass."""
BLOCK = 2 * 4 * WIDTH * WIDTH
"""… of a block's first product; checkpointing need not compute the second one again."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(x)))


class Parts(nn.Module):
    """A model whose parts `training_step` calls, or that drops the last token by itself (`own_shift`)."""

    def __init__(self, own_shift: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH + 1, WIDTH)
        self.block, self.head = Block(), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.own_shift = own_shift

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        ids = ids[:, :-1] if self.own_shift else ids
        logits: torch.Tensor = self.head(self.block(self.words(ids) + self.places(torch.arange(ids.shape[1]))))
        return logits


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def of_parts(reentrant: bool | None) -> Logits:
    def logits(net: Any, ids: torch.Tensor) -> torch.Tensor:
        x = net.words(ids[:, :-1]) + net.places(torch.arange(ids.shape[1] - 1))
        x = net.block(x) if reentrant is None else checkpoint(net.block, x, use_reentrant=reentrant)
        return net.head(x)  # type: ignore[no-any-return]

    return logits


def whole(net: Any, ids: torch.Tensor) -> torch.Tensor:
    return net(ids[:, :-1])  # type: ignore[no-any-return]


def whole_checkpointed(net: Any, ids: torch.Tensor) -> torch.Tensor:
    return checkpoint(net, ids[:, :-1], use_reentrant=False)  # type: ignore[no-any-return]


def shifted_inside(net: Any, ids: torch.Tensor) -> torch.Tensor:
    return net(ids)  # type: ignore[no-any-return]


class Module(package.LightningModule):
    def __init__(
        self, net: nn.Module, logits: Callable[[Any, torch.Tensor], torch.Tensor], optimizers: int = 1
    ) -> None:
        super().__init__()
        self.net, self.logits, self.number = net, logits, optimizers
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        ids = ids_of(batch)
        loss = loss_of(self.logits(self.net, ids), ids)
        if not self.automatic_optimization:
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()
        return loss

    def configure_optimizers(self) -> Any:
        groups = [list(self.net.parameters())[i :: self.number] for i in range(self.number)]
        return [torch.optim.SGD(group, lr=0.01) for group in groups]


def ids_of(batch: Any) -> torch.Tensor:
    if isinstance(batch, torch.Tensor):
        return batch
    found: torch.Tensor = batch["input_ids"] if "input_ids" in batch else batch["text"]["words"]
    return found


def rows(layout: str = "tensor") -> Dataset[Any]:
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(LENGTH + 1) < torch.arange(LENGTH // 2, LENGTH // 2 + ROWS)[:, None]).long()
    wrapped: dict[str, Callable[[int], Any]] = {
        "tensor": lambda i: ids[i],
        "named": lambda i: {"input_ids": ids[i], "attention_mask": mask[i]},
        "unknown": lambda i: {"text": {"words": ids[i]}, "weight": 1.0, "source": "c4"},
    }
    return [wrapped[layout](i) for i in range(ROWS)]  # type: ignore[return-value]


def trained(folder: Path, module: Module, layout: str = "tensor", accumulate: int = 1, **options: Any) -> Any:
    watch = IsoFLOPMonitor(**options)
    module.automatic_optimization = module.number == 1
    trainer = lightning_trainer(package, folder, callbacks=[watch], accumulate_grad_batches=accumulate, max_epochs=1)
    trainer.fit(module, DataLoader(rows(layout), batch_size=BATCH))
    assert not watch.guard.aside
    return watch.monitor


@pytest.mark.parametrize(
    ("logits", "repeated", "accumulate", "optimizers"),
    [
        (of_parts(None), 0, 1, 1),
        (of_parts(None), 0, 2, 1),
        (of_parts(False), BLOCK, 1, 1),
        (of_parts(False), BLOCK, 2, 1),
        (of_parts(False), BLOCK, 1, 2),
        (of_parts(True), 2 * BLOCK, 1, 1),
        (of_parts(True), 2 * BLOCK, 2, 1),
        (of_parts(True), 2 * BLOCK, 1, 2),
        (whole, 0, 1, 2),
        (whole_checkpointed, 2 * BLOCK, 2, 1),
    ],
)
def test_flops_and_tokens_of_a_training_step(
    logits: Any, repeated: int, accumulate: int, optimizers: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    monitor = trained(tmp_path, Module(Parts(), logits, optimizers), accumulate=accumulate)
    assert monitor.observer.costing.methods == {"observed in training": ""}
    n = ROWS * LENGTH
    assert monitor.totals.flops == 3 * PRODUCTS * n
    assert monitor.totals.flops_hardware == (3 * PRODUCTS + repeated) * n
    assert monitor.totals.processed == n


@pytest.mark.parametrize("layout", ["tensor", "named", "unknown"])
@pytest.mark.parametrize("logits", [whole, of_parts(None), shifted_inside])
def test_tokens_are_the_positions_that_the_model_computed(
    logits: Any, layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = trained(tmp_path, Module(Parts(own_shift=logits is shifted_inside), logits), layout)
    assert monitor.totals.processed == ROWS * LENGTH
    assert monitor.scalars["isoflop/batch_tokens"] == BATCH * LENGTH
    # of a mask of the batch the columns of these positions
    padding = sum(max(0, LENGTH // 2 - i) for i in range(ROWS)) if layout == "named" else 0
    assert monitor.totals.padding == padding
    assert "expected token ids" not in caplog.text


def test_a_function_of_the_users_counts_as_it_says(tmp_path: Path) -> None:
    monitor = trained(
        tmp_path, Module(Parts(), whole), "unknown", tokens_fn=lambda batch: batch["text"]["words"].numel()
    )
    assert monitor.totals.processed == ROWS * (LENGTH + 1)


def test_a_row_that_is_computed_twice_is_one_of_the_data(tmp_path: Path) -> None:
    def twice(net: Any, ids: torch.Tensor) -> torch.Tensor:
        return net(ids[:, :-1]) + net(ids[:, :-1])  # type: ignore[no-any-return]

    monitor = trained(tmp_path, Module(Parts(), twice))
    assert monitor.totals.processed == ROWS * LENGTH
    assert monitor.totals.flops == 2 * 3 * PRODUCTS * ROWS * LENGTH


def test_a_row_that_is_computed_in_parts_is_all_of_them(tmp_path: Path) -> None:
    def parts(net: Any, ids: torch.Tensor) -> torch.Tensor:
        return torch.cat([net(part) for part in ids[:, :-1].split(LENGTH // 4, 1)], 1)

    assert trained(tmp_path, Module(Parts(), parts)).totals.processed == ROWS * LENGTH


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_call_of_a_plain_loop_is_one_call(reentrant: bool, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    monitor = isoflop.Monitor(net, optimizer=optimizer, record_dir=tmp_path, tokens_fn=lambda args: args[0].shape[0])
    for _ in range(3):
        x = torch.rand(8, WIDTH, requires_grad=True)
        loss = checkpoint(net, x, use_reentrant=reentrant).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.step(loss.detach())
    monitor.close()
    assert monitor.totals.processed == 24
    assert monitor.totals.flops == 24 * 2 * 2 * 3 * WIDTH * WIDTH


class Stopped(nn.Module):
    """Ends its own forward pass with an exception, which what calls it takes for a result (features of a layer)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        net.register_forward_hook(self._stop)

    def _stop(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        raise StopIteration(output)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        try:
            self.net(ids)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        raise AssertionError


def test_an_exception_that_the_model_itself_catches_ends_no_observation(tmp_path: Path) -> None:
    monitor = trained(tmp_path, Module(Stopped(Parts()), whole))
    assert monitor.observer.costing.methods == {"observed in training": ""}
    assert monitor.totals.flops == 3 * PRODUCTS * ROWS * LENGTH


def test_a_formula_is_named_at_the_first_step_with_its_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    def caught(net: Any, ids: torch.Tensor) -> torch.Tensor:
        try:
            net.head(torch.rand(WIDTH + 1))
        except RuntimeError:
            return whole(net, ids)
        raise AssertionError

    monitor = trained(tmp_path, Module(Parts(), caught))
    (line,) = [record.getMessage() for record in caplog.records if "FLOPs are taken" in record.getMessage()]
    assert "the step ended in an exception" in line and "flops_per_token=" in line
    assert monitor.observer.costing.methods == {"6·N·D, N non-embedding": "the step ended in an exception"}


def test_a_model_with_named_arguments_and_labels(tmp_path: Path) -> None:
    def logits(net: Any, ids: torch.Tensor) -> torch.Tensor:
        return net(input_ids=ids[:, :-1], labels=ids[:, 1:])["logits"]  # type: ignore[no-any-return]

    assert trained(tmp_path, Module(TinyLM(), logits)).totals.processed == ROWS * LENGTH
