"""A loop as large models are trained: FSDP2 and tensor parallelism on a device mesh, isoflop beside it.

    torchrun --nproc-per-node 4 examples/torchtitan_style.py    # 2-way data parallel × 2-way tensor parallel
    python examples/torchtitan_style.py                         # starts four processes by itself
    tensorboard --logdir runs/torchtitan_style

It runs on CPUs (gloo), and on GPUs (nccl) where there are four. Each start replaces runs/torchtitan_style, and nothing
else. The model is split over the ranks of a batch, so each rank holds a part of it; isoflop reads from the parameters'
device mesh which ranks share a batch, and counts their tokens once.
"""

from __future__ import annotations

import os
import socket

import torch
import torch.distributed as dist
from tiny_gpt import QUICK, GPTConfig, TinyGPT, Windows, fresh_folder, next_token_loss, stdlib_text, warm_up_then_decay
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, DistributedSampler

import isoflop
from isoflop.live.passport import print_summary

RANKS, TENSOR_PARALLEL = 4, 2
STEPS = 20 if QUICK else 300
BATCH = 8  # windows a step and data-parallel rank


def parallelize(model: TinyGPT, mesh: DeviceMesh) -> None:
    """Tensor parallelism inside of the blocks' feed-forward networks, FSDP2 around each block and the whole."""
    for block in model.blocks:
        parallelize_module(block, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        fully_shard(block, mesh=mesh["dp"])
    parallelize_module(model, mesh["tp"], {"positions": ColwiseParallel(output_layouts=Replicate())})
    fully_shard(model, mesh=mesh["dp"])


def flops_per_token(config: GPTConfig, non_embedding: int) -> float:
    """Of a training step, as torchtitan and nanoGPT count: 6·N with the head, and 12·L·d·T for attention in full."""
    return 6 * (non_embedding + config.vocabulary * config.width) + 12 * config.layers * config.width * config.context


def train(rank: int) -> None:
    """What each process does."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.device_count() >= RANKS else "cpu"
    if device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    ranks = dist.get_world_size()
    mesh = init_device_mesh(device, (ranks // TENSOR_PARALLEL, TENSOR_PARALLEL), mesh_dim_names=("dp", "tp"))

    config = GPTConfig(width=64)
    model = TinyGPT(config).to(device)
    total = sum(parameter.numel() for parameter in model.parameters())  # before they are split
    non_embedding = total - (config.vocabulary + config.context) * config.width
    parallelize(model, mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.99), foreach=False)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_then_decay)

    # (1) One monitor on every rank, after the model is laid out. What a rank holds of this model can be counted without
    # help; where it can't (pipeline, context and expert parallelism, kernels of your own) these two stand in for it.
    monitor = isoflop.Monitor(
        model,
        optimizer=optimizer,
        scheduler=schedule,
        total_steps=STEPS,
        record_dir="runs/torchtitan_style",
        log_every=max(1, STEPS // 20),
        flops_per_token=flops_per_token(config, non_embedding),
        num_params=non_embedding,
        # data_parallel=mesh["dp"].size(),  # only where ranks share a batch and the parameters do not show it
    )

    # (2) Ranks that differ in "tp" alone get the same batches.
    windows = Windows(stdlib_text(2_000_000)[0], config.context)
    sampler = DistributedSampler(windows, mesh["dp"].size(), mesh["dp"].get_local_rank(), drop_last=True)
    batches = iter(DataLoader(windows, BATCH, sampler=sampler, drop_last=True))
    for _ in range(STEPS):
        inputs, targets = (part.to(device) for part in next(batches))
        loss = next_token_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        monitor.step(loss)  # (3) on every rank; sums over ranks happen at log steps only
    monitor.close()
    dist.barrier()


def process(rank: int, ranks: int, port: int) -> None:
    """One of the processes, under torchrun or started here."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(port))
    dist.init_process_group("nccl" if torch.cuda.device_count() >= RANKS else "gloo")
    if rank == 0:
        fresh_folder("torchtitan_style")
    dist.barrier()
    train(rank)
    dist.destroy_process_group()


def main() -> None:
    if "RANK" in os.environ:  # torchrun
        process(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), 0)
        first = os.environ["RANK"] == "0"
    else:
        torch.multiprocessing.spawn(process, (RANKS, free_port()), nprocs=RANKS)
        first = True
    if first:
        (run,) = isoflop.read_runs("runs/torchtitan_style")
        print_summary([run])
        last = run.points[-1]
        print(f"{run.device['world_size']} ranks, {run.device['data_parallel']} with data of their own:", end=" ")
        print(f"step {last.step:,}, {last.tokens:,} tokens, {last.flops:.3g} FLOPs")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
