"""DDP on two ranks (gloo) measures what one process measures on the joined batch, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import isoflop
from isoflop.live import Monitor
from isoflop.noise import Cadence
from noise_truth import gpt, loss_of, pool
from workers import run

STEPS, MICRO = 50, 2
DATA = pool()


def parts(step: int) -> list[torch.Tensor]:
    """Of one step, all ranks' micro-batches: the first rank's, then the second's."""
    chosen = torch.randint(len(DATA), (4 * 2 * MICRO,), generator=torch.Generator().manual_seed(step))
    return list(DATA[chosen].split(4))


def densely(monitor: Monitor, every: int = 1) -> Monitor:
    monitor.noise.cadence = Cadence(every=every, fixed=True)
    return monitor


def results(monitor: Monitor) -> dict[str, Any]:
    averages = {"raw": monitor.noise.raw, "preconditioned": monitor.noise.preconditioned}
    found: dict[str, Any] = {name: average.state_dict()["sums"] for name, average in averages.items()}
    return found | {"aside": list(monitor.guard.aside), "scalars": noise_scalars(monitor)}


def noise_scalars(monitor: Monitor) -> dict[str, float]:
    return {
        name: value
        for name, value in monitor.scalars.items()
        if name.startswith(("isoflop/b_simple", "isoflop/batch_o"))
    }


def trained(model: nn.Module, rank_parts: Any, folder: Path | None, accumulate: bool, **options: Any) -> Any:
    """Trains; the gradients of ranks are averaged by the wrapper, of micro-batches added up."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.5))
    monitor = None
    if folder is not None:
        monitor = densely(Monitor(model, optimizer=optimizer, record_dir=folder, log_every=10, **options))
    for step in range(STEPS):
        mine = rank_parts(step)
        mine = mine if accumulate else [torch.cat(mine)]
        for i, batch in enumerate(mine):
            if isinstance(model, DistributedDataParallel):
                model.require_backward_grad_sync = i == len(mine) - 1
            (loss_of(model, batch) / len(mine)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)  # after the whole was looked at
        optimizer.step()
        optimizer.zero_grad()
        if monitor is not None:
            monitor.step()
    if monitor is not None:
        monitor.close()
    return monitor


def of_rank(step: int) -> list[torch.Tensor]:
    return parts(step)[dist.get_rank() * MICRO :][:MICRO]


def ddp_rank(folder: Path | None, accumulate: bool) -> Any:
    model = gpt()
    monitor = trained(DistributedDataParallel(model), of_rank, folder, accumulate)
    return results(monitor) if monitor else None, [p.detach().numpy() for p in model.parameters()]


def alone(folder: Path, accumulate: bool) -> dict[str, Any]:
    """One process, which accumulates what the ranks have."""

    def joined(step: int) -> list[torch.Tensor]:
        of_all = parts(step)
        return of_all if accumulate else [torch.cat(of_all[:MICRO]), torch.cat(of_all[MICRO:])]

    return results(trained(gpt(), joined, folder, True))


@pytest.mark.parametrize("accumulate", [False, True])
def test_ddp_measures_like_one_process_and_changes_nothing(accumulate: bool, tmp_path: Path) -> None:
    (first, weights), (second, _) = run(ddp_rank, tmp_path / "a", accumulate, ranks=2)
    assert first == second and not first["aside"]
    expected = alone(tmp_path / "b", accumulate)
    assert set(first["scalars"]) >= {"isoflop/b_simple_raw", "isoflop/batch_over_b_crit"}
    for kind in ("raw", "preconditioned"):
        assert expected[kind][0] > 2  # measured
        assert first[kind] == pytest.approx(expected[kind], rel=1e-3)
    (_, unobserved), _ = run(ddp_rank, None, accumulate, ranks=2)
    assert all(np.array_equal(one, two) for one, two in zip(weights, unobserved, strict=True))


# -- when ranks or sources go wrong ------------------------------------------------------------------------------------


def one_rank_fails(folder: Path) -> Any:
    import isoflop.noise.sources as source

    calls = [0]
    original = source.raw_square

    def sometimes(gradient: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if dist.get_rank() == 1 and calls[0] == 200:
            raise RuntimeError("on purpose")
        return original(gradient)

    source.raw_square = sometimes
    model = gpt()
    monitor = trained(DistributedDataParallel(model), of_rank, folder, False)
    return list(monitor.guard.aside), monitor.noise.raw.count


def test_a_rank_that_steps_aside_does_not_let_the_other_wait(tmp_path: Path) -> None:
    (first, count), (second, same) = run(one_rank_fails, tmp_path, ranks=2)
    assert first == [] and second == ["the noise scale's hooks"]
    assert count == same and 0 < count < STEPS - 1


def reduced_by_hand(folder: Path) -> Any:
    """Ranks whose gradients are averaged after the backward pass: what is seen at its end is not the mean."""
    model = gpt()
    monitor = densely(isoflop.Monitor(model, record_dir=folder, log_every=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    said: list[str] = []
    monitor.run.say = said.append
    for step in range(STEPS):
        loss_of(model, torch.cat(of_rank(step))).backward()
        for p in model.parameters():
            dist.all_reduce(p.grad)
            p.grad /= 2
        optimizer.step()
        optimizer.zero_grad()
        monitor.step()
    monitor.close()
    return (
        list(noise_scalars(monitor)),
        monitor.noise.raw.count,
        [text for text in said if "noise scale" in text and "not judged" not in text],
    )


def test_gradients_that_are_reduced_in_another_way_give_no_value(tmp_path: Path) -> None:
    (scalars, count, said), _ = run(reduced_by_hand, tmp_path, ranks=2)
    assert count == 0 and set(scalars) <= {"isoflop/batch_over_b_crit"}
    (text,) = said
    assert "the optimizer's gradient is not the sum (over ranks: the mean) of the parts that were seen" in text


def sharded(folder: Path) -> list[str]:
    from torch.distributed.fsdp import fully_shard

    model = gpt()
    fully_shard(model)
    said: list[str] = []
    monitor = isoflop.Monitor(model, record_dir=folder, log_every=2)
    monitor.run.say = said.append
    for _ in range(4):
        loss_of(model, DATA[:4]).backward()
        monitor.step()
    monitor.close()
    return [text for text in said if "noise scale" in text and "not judged" not in text]


def test_under_fsdp2_there_is_no_source_and_it_is_said_where_to_measure(tmp_path: Path) -> None:
    first, second = run(sharded, tmp_path, ranks=2)
    assert len(first) == 1 and 'on one device with gradient accumulation or noise_scale="split"' in first[0]
    assert second == []  # one rank speaks
