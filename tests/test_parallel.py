"""Layouts over 2 and 4 ranks (gloo): DDP, FSDP2, tensor parallelism and both; each counts what one process counts."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import isoflop
from isoflop.flops import data_parallel_ranks
from isoflop.live import ranks as ranks_of_a_run
from tiny import Rows, TinyLM, batches, earlier_runs, losses, the_run, totals
from trainers import hf_trainer, lightning_module, lightning_trainer
from workers import kill_me, run

ROWS, GLOBAL_BATCH, LOG_EVERY = 61, 8, 3  # the last of 8 steps has 5 rows; 8 is no multiple of 3
STEPS = -(-ROWS // GLOBAL_BATCH)


class Seen(TinyLM):
    """Notes on which devices its forward has run, and on what parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[tuple[str, bool]] = []

    def forward(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        self.runs.append((input_ids.device.type, any(parameter.is_meta for parameter in self.parameters())))
        return super().forward(input_ids, *args, **kwargs)


def tensor_parallel(net: nn.Module, mesh: Any) -> None:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate()),
        "qkv": ColwiseParallel(output_layouts=Replicate()),
        "up": ColwiseParallel(),
        "down": RowwiseParallel(),
        "head": ColwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(net, mesh, plan)


def laid_out(layout: str) -> tuple[nn.Module, nn.Module, int, int]:
    """The user's module; what is trained; this rank's number among those with data of their own, and their number."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(1)
    net: nn.Module = Seen()
    if layout == "ddp":
        return net, DistributedDataParallel(net), rank, ranks
    if layout == "fsdp":
        mesh = init_device_mesh("cpu", (ranks,))
        fully_shard([net.up, net.down], mesh=mesh)  # type: ignore[list-item]
        fully_shard(net, mesh=mesh)
        return net, net, rank, ranks
    if layout.startswith("tensor, unnamed"):
        tensor_parallel(net, init_device_mesh("cpu", (ranks,)))
        return net, net, 0, 1
    if layout.startswith("tensor"):
        names = ("data", "tp") if layout == "tensor" else ("x", "y")  # names that say it, and names that do not
        mesh = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=names)
        tensor_parallel(net, mesh[names[1]])
        if layout == "tensor and fsdp":
            fully_shard(net, mesh=mesh[names[0]])
        return net, net, rank // 2, ranks // 2
    return net, net, 0, 1


def as_dtensor(loss: torch.Tensor, net: Any) -> torch.Tensor:
    """As torch's `loss_parallel` gives it."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(loss, net.up.weight.device_mesh, [Replicate()])


def shares(number: int, of: int) -> Iterator[dict[str, torch.Tensor]]:
    """What a rank gets of each step's batch: unequal parts of the last one."""
    rows = Rows(ROWS)
    for start in range(0, ROWS, GLOBAL_BATCH):
        mine = range(start + number, min(start + GLOBAL_BATCH, ROWS), of)
        picked = [rows[i] for i in mine]
        yield {name: torch.stack([row[name] for row in picked]) for name in picked[0]}


@contextmanager
def collectives_of_ours() -> Iterator[list[str]]:
    """Names of torch.distributed's functions that isoflop calls, however deep."""
    called: list[str] = []
    names = [name for name in vars(dist) if re.match(r"(all_|reduce|broadcast|gather|scatter|barrier|send|recv)", name)]
    assert {"all_reduce", "broadcast", "all_gather_object", "barrier"} <= set(names)
    originals = {name: getattr(dist, name) for name in names}

    def noted(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            frame: Any = sys._getframe(1)
            while frame is not None and not (
                str(frame.f_globals.get("__name__")).startswith("isoflop")
                # what passes the user's own call on: of a class that is listened to, of a mode that observes
                and frame.f_code.co_name not in ("__call__", "__torch_function__", "_run_backward")
            ):
                frame = frame.f_back
            if frame is not None:
                called.append(name)
            return originals[name](*args, **kwargs)

        return call

    for name in names:
        setattr(dist, name, noted(name))
    try:
        yield called
    finally:
        for name, function in originals.items():
            setattr(dist, name, function)


def train(folder: Path, layout: str, options: dict[str, Any]) -> dict[str, Any]:
    """One epoch; each rank's Monitor is given a folder of its own."""
    from isoflop.live import advice as advising

    advising.SHARE = math.inf  # what trains here takes milliseconds, of which a thousandth is nothing
    net, trained, number, of = laid_out(layout)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, foreach=False)  # of DTensors on two meshes too
    rank = dist.get_rank() if dist.is_initialized() else 0
    said: list[str] = []
    at_steps: list[int] = []
    step_losses: list[float] = []
    with collectives_of_ours() as called:
        monitor = isoflop.Monitor(
            trained,
            optimizer=optimizer,
            total_steps=STEPS,
            record_dir=folder / str(rank),
            log_every=LOG_EVERY,
            unique_tokens=100,
            **options,
        )
        monitor.run.say = said.append
        for step, batch in enumerate(shares(number, of), 1):
            before = len(called)
            loss = trained(**batch)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            monitor.step(as_dtensor(loss, net) if layout == "tensor" else loss)
            step_losses.append(loss.item())
            at_steps += [step] * (len(called) - before)
        live = list(net.runs)  # type: ignore[arg-type, call-overload]
        before = len(called)
        monitor.close()
    return {
        "losses": step_losses,
        "scalars": monitor.scalars,
        "aside": list(monitor.guard.aside),
        "files": sorted(path.name.partition("-")[0] for path in (folder / str(rank)).rglob("*") if path.is_file()),
        "collectives": sorted(set(at_steps)),
        "at the end": len(called) - before,
        "live runs": [run for run in live if run != ("meta", True)],
        "noise": [text for text in said if "no gradient noise scale" in text],
        "advice": [(str(item.reason), item.severity, item.numbers) for item in monitor.advice],
    }


LAYOUTS = [
    ("ddp", 2),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [("ddp", 4), ("fsdp", 2)]),  # as with two, and with four
    ("fsdp", 4),
    ("tensor, unnamed", 2),
    ("tensor and fsdp", 4),
    ("tensor", 4),
]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with earlier runs and the record of a training in one process, and what that came to."""
    folder = tmp_path_factory.mktemp("one process")
    options = {"noise_scale": "off", "history": earlier_runs(folder / "earlier")}
    return folder, train(folder / "alone", "one process", options)


@pytest.mark.parametrize(("layout", "ranks"), LAYOUTS)
def test_a_layout_counts_like_one_process(
    layout: str, ranks: int, one_process: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, alone = one_process
    results = run(train, tmp_path, layout, {"history": folder / "earlier"}, ranks=ranks)
    first, *others = results
    record, expected = the_run(tmp_path), the_run(folder / "alone")
    assert totals(record) == totals(expected) == Rows(ROWS).totals()
    assert record.parameters == expected.parameters  # N is that of the whole model
    assert record.model == expected.model
    if layout.startswith("tensor"):  # what is seen on a rank is a part of the batch's work
        (why,) = record.counting["reasons"].values()
        assert record.counting["method"].startswith("measured apart") and "ranks share a batch" in why
    else:
        assert record.counting == expected.counting
    assert record.status == "completed" and not record.problems
    split = 2 if layout.startswith("tensor") else 1
    assert record.device["world_size"] == ranks and record.device["data_parallel"] == ranks // split
    assert [point.step for point in record.points] == [3, 6, 8]
    for first_step, last in ((0, 3), (3, 6), (6, 8)):
        of_all = [loss for result in results for loss in result["losses"][first_step:last]]
        assert losses(record)[last] == pytest.approx(sum(of_all) / len(of_all), rel=1e-6)
    if layout == "tensor, unnamed":  # one batch, as in one process
        assert first["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert first["advice"] == alone["advice"] and first["advice"]
    for result in results:
        assert not result["aside"]
        assert result["collectives"] == [] and result["at the end"] == 0  # ranks meet in the store
        # the live model ran when the user ran it; whatever was measured, was on the meta device
        assert result["live runs"] == [("cpu", False)] * STEPS
    for result in others:
        assert result["files"] == [] and result["noise"] == []  # one rank writes, one speaks
        assert result["scalars"]["isoflop/flops"] == first["scalars"]["isoflop/flops"]
    assert "isoflop" in first["files"]
    if split > 1:
        (said,) = first["noise"]
        assert "ranks that share a batch" in said
    elif layout == "fsdp":
        (said,) = first["noise"]
        assert "the parameters are sharded (FSDP2)" in said


# -- what does not show in the parameters ------------------------------------------------------------------------------


def told(folder: Path) -> str:
    """Two ranks that share each batch in a way that only the user knows; and a number that can't be."""
    net = TinyLM()
    try:
        isoflop.Monitor(net, record_dir=folder, data_parallel=3)
    except ValueError as error:
        problem = str(error)
    with isoflop.Monitor(net, record_dir=folder / "b", log_every=LOG_EVERY, total_steps=STEPS, data_parallel=2) as m:
        for batch in shares(dist.get_rank() // 2, 2):
            net(**batch)["loss"].backward()
            m.step()
    return problem


def test_the_user_says_which_ranks_share_a_batch(tmp_path: Path) -> None:
    (problem, *_) = run(told, tmp_path, ranks=4)
    assert problem == "data_parallel= expects a number that divides the job's 4 ranks, got 3"
    assert totals(the_run(tmp_path / "b")) == Rows(ROWS).totals()


def test_more_than_there_are_is_all(tmp_path: Path) -> None:
    """A script for a cluster that is tried on one process."""
    monitor = isoflop.Monitor(TinyLM(), record_dir=tmp_path, data_parallel=64)
    assert monitor.run.data_parallel == 1
    monitor.close()


# -- a last batch that does not go round, under the trainers -----------------------------------------------------------


class Counting(TinyLM):
    """Counts what really goes through it, repeated rows too."""

    def __init__(self) -> None:
        super().__init__()
        self.processed = 0

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> dict[str, torch.Tensor]:
        self.processed += 0 if input_ids.is_meta else input_ids.numel()
        return super().forward(input_ids, attention_mask, labels)


def under_trainers(folder: Path) -> list[int]:
    """Tokens that went through this rank's model under Lightning and under Hugging Face's Trainer."""
    import lightning.pytorch as package

    from isoflop.lightning import IsoFLOPMonitor
    from isoflop.transformers import IsoFLOPCallback

    nets = Counting(), Counting()
    trainer = lightning_trainer(package, folder / "lightning", devices=2, strategy="ddp", callbacks=[IsoFLOPMonitor()])
    trainer.fit(lightning_module(package, nets[0]), batches(Rows(ROWS), 4))
    hf_trainer(
        nets[1],
        folder / "transformers",
        Rows(ROWS),
        [IsoFLOPCallback()],
        per_device_train_batch_size=4,
        ddp_backend="gloo",
        ddp_find_unused_parameters=False,
    ).train()
    return [net.processed for net in nets]


def test_uneven_last_batches_under_the_trainers(tmp_path: Path) -> None:
    """Their samplers repeat rows to make ranks even; what was repeated was computed, and is counted."""
    ranks = run(under_trainers, tmp_path, ranks=2)
    for i, name in enumerate(("lightning", "transformers")):
        record = the_run(tmp_path / name)
        assert record.points[-1].tokens == sum(processed[i] for processed in ranks) >= ROWS * 16
        assert record.points[-1].flops == Rows(ROWS).totals()["flops"] // ROWS * (record.points[-1].tokens or 0) // 16
        assert record.status == "completed" and record.points[-1].step == 8


# -- ranks that end apart ----------------------------------------------------------------------------------------------


def joined(folder: Path) -> list[Any]:
    """DDP's join: the first rank has five batches, the second three; the user gives either module to the Monitor."""
    rank, results = dist.get_rank(), []
    for which in ("wrapper", "module"):
        net = TinyLM()
        trained = DistributedDataParallel(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        monitor = isoflop.Monitor(trained if which == "wrapper" else net, record_dir=folder / which, log_every=2)
        mine = list(shares(rank, 2))[: (5, 3)[rank]]
        with trained.join():
            for batch in mine:
                loss = trained(**batch)["loss"]
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                monitor.step(loss)
        monitor.log()
        monitor.close()
        results.append((list(monitor.guard.aside), monitor.totals.processed, monitor.totals.flops))
    return results


def test_ranks_with_different_numbers_of_batches_under_join(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = run(joined, tmp_path, ranks=2)
    rows = 4 * (5 + 3)
    whole = {name: value * rows // ROWS for name, value in Rows(ROWS).totals().items()}
    assert first == second == [([], whole["tokens"], whole["flops"])] * 2
    for which in ("wrapper", "module"):
        record = the_run(tmp_path / which)
        assert (record.points[-1].step, record.points[-1].tokens) == (5, whole["tokens"])
        assert record.points[-1].losses["train"] is not None


# -- a rank dies -------------------------------------------------------------------------------------------------------


def one_dies(folder: Path, layout: str, where: str | None) -> str:
    """The error that ends the surviving rank; `where` the other dies, with isoflop or (None) without."""
    ranks_of_a_run.PATIENCE = 1.0
    _, trained, number, of = laid_out(layout)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    monitor = None
    if where is not None:
        monitor = isoflop.Monitor(trained, record_dir=folder, log_every=2, total_steps=STEPS)
    try:
        for step, batch in enumerate(shares(number, of), 1):
            loss = trained(**batch)["loss"]
            if (step, dist.get_rank()) == (4, 1) and where != "before our sum":
                kill_me()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if (step, dist.get_rank()) == (4, 1):
                kill_me()
            if monitor is not None:
                monitor.step(loss)
    except Exception as error:
        if monitor is not None:
            monitor.close()
        return type(error).__name__ + ": " + ("the peer is gone" if "peer" in str(error) else str(error))
    return "it trained to the end"


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_when_a_rank_dies_the_others_end_as_they_would_without_us(layout: str, tmp_path: Path) -> None:
    alone = run(one_dies, tmp_path, layout, None, ranks=2)
    assert alone[1] == "killed" and "the peer is gone" in alone[0]
    for where in ("in the step", "before our sum"):
        assert run(one_dies, tmp_path / where, layout, where, ranks=2) == alone
        record = the_run(tmp_path / where)
        assert record.points[0].step == 2 and record.status == "interrupted"


# -- which ranks share a batch, by the device meshes of parameters -----------------------------------------------------


class Placed:
    """A parameter as a DTensor shows itself: S sharded, R replicated along each dimension of its mesh."""

    def __init__(self, shape: tuple[int, ...], placements: str, names: tuple[str, ...] | None = None) -> None:
        self.device_mesh = SimpleNamespace(shape=shape, ndim=len(shape), mesh_dim_names=names)
        self.placements = [SimpleNamespace(is_replicate=lambda r=letter == "R": r) for letter in placements]


@pytest.mark.parametrize(
    ("parameter", "fully_sharded", "ranks"),
    [
        (object(), False, 1),
        (Placed((8,), "S"), True, 1),  # FSDP2
        (Placed((2, 4), "RS"), True, 1),  # hybrid sharding
        (Placed((2, 4), "SS"), True, 4),  # and tensor parallelism
        (Placed((2, 4), "SR", ("dp", "tp")), True, 4),  # a norm inside of it
        (Placed((2, 4, 8), "RSS"), True, 8),
        (Placed((2, 8), "RS", ("dp_replicate", "tp")), True, 8),  # torch's replicate, and tensor parallelism
        (Placed((8,), "S"), False, 8),  # tensor parallelism alone
        (Placed((8,), "R"), False, 1),
        (Placed((8,), "S", ("dp_shard",)), False, 1),  # sharded data-parallel by hand
        (Placed((2, 4), "SS", ("data_parallel", "tensor_parallel")), True, 4),  # Lightning's names
        (Placed((2, 2), "SS", ("dp_shard_mod_ep", "ep")), True, 1),  # torchtitan's experts
        (Placed((2, 2, 2), "SSS", ("dp", "ep", "tp")), True, 2),
    ],
)
def test_a_parameter_shows_how_many_ranks_share_a_batch(
    parameter: Any, fully_sharded: bool, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoflop.flops.totals.world_size", lambda: 64)
    modules = [type("FSDPModule", (), {})()] if fully_sharded else []
    model: Any = SimpleNamespace(parameters=lambda: iter([parameter]), modules=lambda: iter(modules))
    assert data_parallel_ranks(model) == (None if ranks == 1 else 64 // ranks)
