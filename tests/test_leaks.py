"""What stands on or beside the live model is as it was: caches, pickles, copies."""

from __future__ import annotations

import copy
import functools
import io
from pathlib import Path

import pytest
import torch
from torch import nn

import isoflop
from isoflop.flops import Call, measure_flops, shapes

TABLES: dict[tuple[int, torch.dtype], torch.Tensor] = {}


@functools.lru_cache(None)
def angles(length: int) -> torch.Tensor:
    return torch.ones(length, 1)


@functools.lru_cache(maxsize=1)
def mask(length: int) -> torch.Tensor:
    return torch.ones(length, 1)


class Caching(nn.Module):
    """Keeps tables by length in three kinds of caches outside of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layer(self.words(x) * angles(x.shape[1]) * mask(x.shape[1]))
        key = (x.shape[1], h.dtype)
        if key not in TABLES:
            TABLES[key] = torch.ones(x.shape[1], 1, device=h.device, dtype=h.dtype)
        return h * TABLES[key]


@pytest.mark.parametrize("filled", [False, True])
def test_no_meta_tensor_stays_in_a_cache(filled: bool) -> None:
    TABLES.clear()
    angles.cache_clear()
    mask.cache_clear()
    model, x = Caching(), torch.zeros(2, 5, dtype=torch.long)
    if filled:  # what the live model has cached is of use to the replay, and stays
        model(x)
    found = measure_flops(model, Call(model, shapes((x,)), {})).flops.model
    assert found == 3 * 2 * 10 * 4 * 9
    assert bool(TABLES) is filled
    for length in (5, 7):
        model(torch.zeros(2, length, dtype=torch.long)).sum().backward()


def test_a_watched_model_can_be_pickled_and_copied(tmp_path: Path) -> None:
    model, x = Caching(), torch.zeros(2, 5, dtype=torch.long)
    monitor = isoflop.Monitor(model, record_dir=tmp_path, log_every=1)
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (twin, loaded):
        other(x)  # not the run's
    monitor.step(model(x).sum())
    monitor.close()
    assert monitor.totals.processed == 10
    assert monitor.guard.aside == {}


def test_a_run_from_another_folders_checkpoint_has_a_record_of_its_own(tmp_path: Path) -> None:
    def steps(monitor: isoflop.Monitor, count: int, loss: float) -> None:
        for _ in range(count):
            monitor.step(loss, tokens=10)

    def monitor(folder: str) -> isoflop.Monitor:
        from isoflop.live import RunInfo

        return isoflop.Monitor(Caching(), run=RunInfo(record_dir=tmp_path / folder, log_every=1))

    trunk = monitor("trunk")
    steps(trunk, 3, 1.0)
    state = trunk.state_dict()
    steps(trunk, 2, 1.0)  # and it is killed here
    trunk.recorder._log.close()
    branch = monitor("branch")
    branch.load_state_dict(state)
    steps(branch, 1, 2.0)
    branch.close()
    (old,), (new,) = isoflop.read_runs(tmp_path / "trunk"), isoflop.read_runs(tmp_path / "branch")
    assert [point.losses["train"] for point in old.points] == [1.0] * 5
    assert new.parent == {"run_id": old.run_id, "step": 3}
    assert (new.points[-1].step, new.points[-1].tokens, new.points[-1].losses) == (4, 40, {"train": 2.0})
    again = monitor("trunk")
    again.load_state_dict(state)
    steps(again, 1, 3.0)
    again.close()
    assert [point.losses["train"] for point in isoflop.read_runs(tmp_path / "trunk")[0].points] == [1.0, 1.0, 1.0, 3.0]


def test_the_dtype_behind_accelerates_and_fabrics_wrappers(tmp_path: Path) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from lightning.fabric import Fabric

    AcceleratorState._reset_state(reset_partial_state=True)  # one a process; other tests have used it
    x = torch.zeros(2, 5, dtype=torch.long)
    prepared = (
        Accelerator(mixed_precision="bf16", cpu=True).prepare(Caching()),
        Fabric(precision="bf16-mixed", accelerator="cpu").setup(Caching()),
    )
    for index, model in enumerate(prepared):
        with isoflop.Monitor(model, record_dir=tmp_path / str(index)) as monitor:
            monitor.step(model(x).float().sum())
        assert isoflop.read_runs(tmp_path / str(index))[0].device["dtype"] == "bfloat16"
    AcceleratorState._reset_state(reset_partial_state=True)


def test_without_a_model_device_and_learning_rate_are_known(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    with isoflop.Monitor(
        optimizer=optimizer, num_params=10, flops_per_token=60.0, peak_flops=1e12, log_every=1, record_dir=tmp_path
    ) as monitor:
        monitor.step(1.0, tokens=5)
    assert monitor.scalars["isoflop/mfu"] > 0
    assert isoflop.read_runs(tmp_path)[0].points[-1].lr == 0.5
