"""What a run has consumed: exact integers, on one rank and over several, read from the device once."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from isoflop.flops import FlopCount, TokenCount, Totals, rank, sum_over_ranks, world_size
from isoflop.flops.totals import MAX_WAITING, DeviceSum, Tally
from isoflop.guard import Guard
from isoflop.live.ranks import Ranks, Settings

counts = st.integers(0, 2**90)


def drained(tally: Tally) -> Totals:
    totals, _, _ = tally.drain()
    return totals


# -- exact -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(counts, counts, counts), max_size=5))
def test_flops_are_exact_whatever_their_size(parts: list[tuple[int, int, int]]):
    tally = Tally()
    for part in parts:
        tally.add(TokenCount(1), FlopCount(*part))
    totals = drained(tally)
    sums = [sum(column) for column in zip(*parts, strict=True)] or [0, 0, 0]
    assert [totals.flops, totals.flops_hardware, totals.flops_attention] == sums
    assert totals.processed == len(parts)
    assert json.loads(json.dumps(totals._asdict())) == totals._asdict()


@given(st.lists(st.integers(0, 2**50), max_size=6), st.lists(st.integers(0, 2**50), max_size=6))
def test_numbers_and_tensors_sum_exactly(numbers: list[int], tensors: list[int]):
    tally = Tally()
    for number in numbers:
        tally.add_tokens(TokenCount(2**51, number, number))
    for value in tensors:
        tally.add_tokens(TokenCount(2**51, torch.tensor(value), torch.tensor(value)))
    totals = drained(tally)
    assert totals.processed == 2**51 * (len(numbers) + len(tensors))
    assert totals.padding == totals.loss_tokens == sum(numbers) + sum(tensors)
    assert totals.data_tokens == totals.processed - totals.padding


def test_a_long_interval_is_summed_as_it_goes():
    tally = Tally()
    for i in range(3 * MAX_WAITING + 7):
        tally.add_tokens(TokenCount(4, torch.tensor(i % 3)))
        assert len(tally._padding.waiting) <= MAX_WAITING
    assert drained(tally).padding == sum(i % 3 for i in range(3 * MAX_WAITING + 7))


def test_draining_begins_anew():
    tally = Tally()
    tally.add(TokenCount(3, torch.tensor(1), torch.tensor(2)), FlopCount(5, 6, 1))
    tally.add_loss(2.0)
    assert tally.batches == 1
    first, loss_sum, losses = tally.drain()
    assert (first.processed, first.flops, loss_sum, losses, tally.batches) == (3, 5, 2.0, 1, 0)
    assert tally.drain() == (Totals(), 0.0, 0)


# -- unknown is not zero -----------------------------------------------------------------------------------------------


def test_one_unknown_batch_makes_the_sum_unknown():
    tally = Tally()
    tally.add(TokenCount(3, 1), FlopCount(5, 5, 0))
    totals = drained(tally)
    assert (totals.tokens_known, totals.data_tokens, totals.flops_known, totals.loss_tokens_known) == (3, 2, 5, None)
    tally.add(None, None)
    later = totals.plus(drained(tally))
    assert (later.tokens_known, later.data_tokens, later.flops_known) == (None, None, None)
    assert (later.processed, later.without_tokens, later.without_labels, later.without_flops) == (3, 1, 1, 1)


def test_flops_without_tokens_and_tokens_without_flops():
    tally = Tally()
    tally.add_flops(FlopCount(5, 5, 0))
    tally.add_tokens(TokenCount(4, 0, 4))
    totals = drained(tally)
    assert (totals.tokens_known, totals.flops_known, totals.loss_tokens_known) == (4, 5, 4)


@given(st.lists(st.integers(0, 2**80), min_size=22, max_size=22))
def test_adding_totals(values: list[int]):
    one, two = Totals(*values[:11]), Totals(*values[11:])
    assert list(one.plus(two)) == [a + b for a, b in zip(values[:11], values[11:], strict=True)]
    assert one.plus(Totals()) == one


# -- losses ------------------------------------------------------------------------------------------------------------


def test_losses_of_every_kind_are_averaged():
    tally = Tally()
    tally.add_loss(1.0)
    tally.add_loss(torch.tensor(2.0, requires_grad=True) * 1)
    tally.add_loss(torch.tensor([3.0], dtype=torch.float64))
    tally.add_loss(torch.tensor(4.0, dtype=torch.bfloat16), scale=0.5)
    tally.add_loss(torch.tensor(0.5), scale=4.0, owned=True)
    _, loss_sum, losses = tally.drain()
    assert (loss_sum, losses) == (10.0, 5)


def test_a_sum_of_bf16_losses_does_not_stop_growing():
    tally = Tally()
    for _ in range(2000):
        tally.add_loss(torch.tensor(1.0, dtype=torch.bfloat16))
    assert tally.drain()[1:] == (2000.0, 2000)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stays_one_to_be_told(bad: float):
    for loss in (bad, torch.tensor(bad)):
        tally = Tally()
        tally.add_loss(loss)
        tally.add(TokenCount(3, torch.tensor(1)), None)
        totals, loss_sum, _ = tally.drain()
        assert not math.isfinite(loss_sum)
        assert (totals.processed, totals.padding) == (3, 1)


def test_what_is_added_may_be_overwritten_afterwards():
    """A CUDA graph writes each step's loss into the same tensor."""
    static, total = torch.zeros(()), DeviceSum(torch.float32)
    for value in (1.0, 2.0, 3.0):
        static.fill_(value)
        total.add(static)
    assert total.tensor is not None and total.tensor.item() == 6.0


def test_one_read_for_everything_on_a_device(monkeypatch: pytest.MonkeyPatch):
    tally = Tally()
    tally.add_tokens(TokenCount(3, torch.tensor(1), torch.tensor(2)))
    tally.add_loss(torch.tensor(0.5))
    reads: list[str] = []
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    for name in ("item", "tolist", "cpu", "__int__", "__float__", "__bool__"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, n=name, r=real: reads.append(n) or r(self, *a))
    totals, loss_sum, _ = tally.drain()
    monkeypatch.undo()
    assert reads == ["tolist"]
    assert (totals.padding, totals.loss_tokens, loss_sum) == (1, 2, 0.5)


# -- over ranks --------------------------------------------------------------------------------------------------------


def integers(of_rank: int) -> list[int]:
    draw = random.Random(of_rank)
    return [
        0,
        1,
        2**30 - 1,
        2**30,
        2**53 + 1,
        2**63 + of_rank,
        2**118 + of_rank,
        -3 * of_rank,  # a correction
        -(2**90),
        *(draw.getrandbits(118) for _ in range(50)),
    ]


def _rank(number: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=ranks)
    assert (rank(), world_size()) == (number, ranks)
    sums, floats = sum_over_ranks(integers(number), [0.25 + number, math.pi])
    tally, ranks_of_one_run = Tally(), Ranks(Guard(), Settings(10, None, "auto", False))
    tally.add(TokenCount(10**18, torch.tensor(number)), FlopCount(2**64 + number, 2**65, 2))
    tally.add_loss(torch.tensor(1.0 + number))
    part, *loss = tally.drain()
    together = ranks_of_one_run.total(part, loss, [], 1, None)
    tally.add(TokenCount(10), FlopCount(100, 100, 0))
    tensor_parallel = ranks_of_one_run.total(tally.drain()[0], [], [], 2, 1)
    results = {
        "sums": sums,
        "floats": floats,
        "totals": together[0]._asdict(),
        "loss": together[1],
        "tensor_parallel": tensor_parallel[0]._asdict(),
    }
    Path(folder, f"{number}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def test_sums_over_two_ranks_are_exact(tmp_path: Path):
    mp.spawn(_rank, (2, str(tmp_path)), nprocs=2)
    one, two = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    assert one == two
    assert one["sums"] == [a + b for a, b in zip(integers(0), integers(1), strict=True)]
    assert one["floats"] == [1.5, 2 * math.pi]
    totals: dict[str, Any] = one["totals"]
    assert (totals["processed"], totals["padding"]) == (2 * 10**18, 1)
    assert (totals["flops"], totals["flops_hardware"], totals["flops_attention"]) == (2**65 + 1, 2**66, 4)
    assert one["loss"] == [3.0, 2]
    assert (one["tensor_parallel"]["processed"], one["tensor_parallel"]["flops"]) == (10, 100)


def test_one_process_needs_no_collective():
    assert (world_size(), rank()) == (1, 0)
    assert sum_over_ranks([2**200], [0.1]) == ([2**200], [0.1])
