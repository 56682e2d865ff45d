"""Processed, padding, loss tokens: three counts, every layout of a batch, no sync."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import isoflop
from isoflop.flops import StepObserver, TokenCount, count_tokens
from isoflop.flops.step import MAX_WAITING
from isoflop.flops.tokens import tables_of
from tiny import TinyLM

IDS = torch.arange(12).reshape(3, 4)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]])
LABELS = torch.where(MASK == 1, IDS, -100)


def counts(batch: Any, shifted: bool = False) -> tuple[int, int, int | None] | None:
    count = count_tokens(batch, shifted)
    if count is None:
        return None
    return count.processed, int(count.padding), None if count.loss_tokens is None else int(count.loss_tokens)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (IDS, (12, 0, None)),
        (IDS.int(), (12, 0, None)),
        (IDS[0], (4, 0, None)),
        ((IDS,), (12, 0, None)),
        ((IDS, LABELS), (12, 0, 8)),
        ([IDS, LABELS], (12, 0, 8)),
        ((IDS, torch.tensor([0, 1, 2])), (12, 0, None)),  # classes of sequences
        ((IDS, torch.rand(3, 4)), (12, 0, None)),
        ((IDS, MASK, LABELS), (12, 0, None)),  # of three, the second may be a mask
        ({"input_ids": IDS}, (12, 0, None)),
        ({"input_ids": IDS, "attention_mask": MASK}, (12, 4, None)),
        ({"input_ids": IDS, "attention_mask": MASK.bool(), "labels": LABELS}, (12, 4, 8)),
        ({"input_ids": IDS, "attention_mask": None, "targets": LABELS}, (12, 0, 8)),
        ({"input_ids": IDS, "labels": torch.tensor([0, 1, 2])}, (12, 0, 3)),
        ({"input_ids": IDS, "labels": torch.rand(3)}, (12, 0, None)),
        ({"input_ids": IDS, "attention_mask": torch.ones(3, 1, 4, 4)}, (12, 0, None)),
        ({"inputs_embeds": torch.rand(3, 4, 7), "attention_mask": MASK}, (12, 4, None)),
        ({"input_ids": None, "inputs_embeds": torch.rand(3, 4, 7)}, (12, 0, None)),
        (UserDict(input_ids=IDS, labels=LABELS), (12, 0, 8)),  # transformers' BatchEncoding is one
        (({"input_ids": IDS, "labels": LABELS}, 0, 1), (12, 0, 8)),  # Lightning's CombinedLoader
        ({"x": IDS, "y": LABELS}, (12, 0, 8)),  # under any names: integers of one shape
        ({"ids": IDS, "next": IDS, "attention_mask": MASK, "source": "c4"}, (12, 4, None)),
    ],
)
def test_layouts(batch: Any, expected: tuple[int, int, int | None]):
    assert counts(batch) == expected


@pytest.mark.parametrize(
    "batch",
    [
        torch.rand(3, 4),
        (torch.rand(3, 3, 8, 8), torch.tensor([1, 2, 3])),  # images and classes
        (torch.tensor([1, 2, 3]), torch.rand(3, 3, 8, 8)),  # classes and images
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),  # images of bytes
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([1, 2])),
        (torch.zeros(3, 4, dtype=torch.bool), IDS),
        {"pixel_values": torch.rand(3, 3, 8, 8), "labels": torch.tensor([1, 2, 3])},
        {"input_ids": [1, 2, 3]},
        {"x": IDS, "y": torch.tensor([1, 2, 3])},  # features and classes
        {"x": torch.rand(3, 4), "y": IDS},
        {"user": torch.tensor([1, 2, 3]), "item": torch.tensor([4, 5, 6])},
        {"user": IDS[:, :1], "item": IDS[:, :1]},
        {"inputs_embeds": torch.rand(4, 7)},
        {},
        [],
        (),
        None,
        3,
        "text",
        torch.tensor(3),
    ],
)
def test_what_holds_no_tokens_is_unknown(batch: Any):
    assert counts(batch) is None


def test_a_model_without_a_table_looks_no_integers_up():
    assert count_tokens({"x": IDS, "y": LABELS}, tables=0) is None


@pytest.mark.parametrize(("columns", "tables", "tokens"), [(6, 6, None), (2, 4, None), (6, 2, 192), (2, 1, 64)])
def test_columns_of_a_table_are_looked_up_each_in_its_own(columns: int, tables: int, tokens: int | None):
    rows = torch.zeros(32, columns, dtype=torch.int64)
    net = nn.ModuleList(nn.Embedding(10, 4) for _ in range(tables))
    for batch in (rows, (rows, torch.zeros(32)), {"x": rows}):
        counted = count_tokens(batch, tables=tables_of(net))
        assert (None if counted is None else counted.processed) == tokens


def test_labels_that_the_model_shifts():
    batch = {"input_ids": IDS, "labels": LABELS}
    assert counts(batch, shifted=True) == (12, 0, 5)  # the first of each row is no target
    assert counts({**batch, "shift_labels": LABELS}, shifted=True) == (12, 0, 8)  # already shifted


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**31), st.booleans())
def test_the_three_counts_never_mix(rows: int, length: int, seed: int, shifted: bool):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(9, (rows, length), generator=draw)
    mask, chosen = (torch.randint(2, (rows, length), generator=draw) for _ in range(2))
    labels = torch.where(chosen == 1, ids, -100)
    processed, padding, loss_tokens = counts({"input_ids": ids, "attention_mask": mask, "labels": labels}, shifted)
    assert processed == rows * length
    assert processed - padding == int(mask.sum())
    assert loss_tokens == int(chosen[:, 1:].sum() if shifted else chosen.sum())


def test_counting_reads_nothing_from_the_device(monkeypatch: pytest.MonkeyPatch):
    reads: list[str] = []

    def refuse(name: str) -> Any:
        def read(self: torch.Tensor, *_: Any, **__: Any) -> Any:
            reads.append(name)
            raise AssertionError(f"a sync by Tensor.{name}")

        return read

    batches = [
        {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS},
        (IDS, LABELS),
        IDS,
        {"inputs_embeds": torch.rand(3, 4, 7), "attention_mask": MASK},
    ]
    observer = StepObserver(torch.nn.Embedding(12, 2), say=lambda text: None, flops_per_token=6.0)
    names = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "to")
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "is_cpu", False)  # whose values are read at once
        for name in names:
            patched.setattr(torch.Tensor, name, refuse(name))
        for batch in batches:
            observer.batch(batch)
            observer.tally.add_loss(torch.tensor(2.0))
            observer.settle()
    assert reads == []
    totals, loss_sum, losses = observer.drain()
    assert (totals.processed, totals.padding, totals.without_tokens, totals.flops) == (48, 8, 0, 6 * 48)
    assert (loss_sum, losses) == (8.0, 4)


# -- tokens_fn, and the positional arguments of a call -----------------------------------------------------------------


def observed(model: Any, *args: Any, tokens_fn: Any = None, **kwargs: Any) -> tuple[int, int, int | None]:
    observer = StepObserver(model, say=lambda text: None, tokens_fn=tokens_fn, flops_per_token=6.0)
    observer.forward(model, args, kwargs)
    observer.settle()
    totals, _, _ = observer.drain()
    return totals.processed, totals.padding, totals.loss_tokens_known


class Masked(torch.nn.Linear):
    def forward(self, x: Any, attention_mask: Any = None, labels: Any = None) -> Any:  # type: ignore[override]
        return x


def test_positional_arguments_are_known_by_their_names():
    class Targets(Masked):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    assert observed(Targets(2, 2), IDS, LABELS) == (12, 0, 8)  # two of one shape: inputs and targets
    model = Masked(2, 2)
    assert observed(model, IDS, MASK) == (12, 4, None)
    assert observed(model, IDS, MASK, labels=LABELS) == (12, 4, 8)
    assert observed(model, IDS, attention_mask=MASK) == (12, 4, None)


def test_tokens_fn_goes_first():
    model = Masked(2, 2)
    assert observed(model, IDS, tokens_fn=lambda batch: batch[0].shape[0]) == (3, 0, None)
    assert observed(model, IDS, tokens_fn=lambda batch: TokenCount(5, 1, 2)) == (5, 1, 2)
    assert observed(model, IDS, labels=LABELS, tokens_fn=lambda batch: batch["labels"].numel()) == (12, 0, None)


def test_step_tokens_may_be_any_whole_number():
    import numpy as np

    for given_tokens in (7, np.int64(7), torch.tensor(7), TokenCount(7)):
        observer = StepObserver(None, say=lambda text: None, flops_per_token=2.0)
        observer.settle(given_tokens)
        totals, _, _ = observer.drain()
        assert (totals.processed, totals.flops) == (7, 14)


def test_masks_and_labels_are_counted_as_they_went_in(tmp_path: Path):
    net, drawn = TinyLM(), torch.Generator().manual_seed(0)
    monitor = isoflop.Monitor(net, record_dir=tmp_path, log_every=1000)
    padding = loss_tokens = 0
    steps = 2 * MAX_WAITING + 3
    for _ in range(steps):
        ids = torch.randint(0, 8, (2, 6), generator=drawn)
        mask = (torch.rand(2, 6, generator=drawn) < 0.8).long()
        labels = torch.where(mask == 1, ids, -100)
        padding, loss_tokens = padding + int((mask == 0).sum()), loss_tokens + int((labels != -100).sum())
        loss = net(ids, mask, labels)["loss"]
        loss.backward()
        labels.fill_(-100), mask.zero_()  # a buffer of the loop's
        monitor.step(loss)
    monitor.sync()
    assert (monitor.totals.processed, monitor.totals.padding) == (12 * steps, padding)
    assert monitor.totals.loss_tokens_known == loss_tokens
    monitor.close()
