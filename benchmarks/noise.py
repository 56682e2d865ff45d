"""What measuring the gradient noise scale costs a training step, at the default cadence, for each source.

    python benchmarks/noise.py [--steps 400]

The same training of a small GPT with `noise_scale="off"` and on, in turns, so that a noisy machine troubles both alike.
"a measured step adds": the median of such steps less that of the others. "amortised": that, times how many were
measured in the second half of the run, when the cadence has settled, and the time inside the noise scale's own calls on
every step, over the training time. "steps, on / off": medians of whole steps without a measurement, which should be the
same.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import isoflop

VOCABULARY, LENGTH, WIDTH, LAYERS = 512, 128, 96, 2
LOG_EVERY = 20


class Model(nn.Module):
    """A third of a million parameters; larger ones have longer steps, and measuring is a smaller share of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True, dropout=0.0) for _ in range(LAYERS)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


# of the process on a CPU, so that a busy machine does not disturb; the wall's on a GPU
clock = time.perf_counter if torch.cuda.is_available() else time.process_time


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Training:
    """One training: `step` makes an optimizer step and returns (seconds, whether it was measured)."""

    def __init__(self, source: str, option: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.micro, self.device, self.split = (4 if source == "accumulation" else 1), device, source == "split"
        model: Any = Model().to(device)
        if source == "ddp":
            model = nn.parallel.DistributedDataParallel(model)
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
        self.monitor = isoflop.Monitor(
            model, optimizer=self.optimizer, record_dir=tempfile.mkdtemp(), log_every=LOG_EVERY, noise_scale=option
        )
        self.spent = 0.0
        for name in ("begin", "step", "collect", "scalars", "halves"):
            setattr(self.monitor.noise, name, self._timed(getattr(self.monitor.noise, name)))
        generator = torch.Generator().manual_seed(dist.get_rank() if dist.is_initialized() else 0)
        self.tokens = torch.randint(0, VOCABULARY, (64, LENGTH), generator=generator).to(device)

    def _timed(self, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent += clock() - began

        return timed

    def step(self, sequences: int) -> tuple[float, bool]:
        source = self.monitor.noise._source
        synchronize()
        began = clock()
        measured = source is not None and source.armed
        for i in range(self.micro):
            batch = self.tokens[i * sequences : (i + 1) * sequences]
            for part, share in self.monitor.split(batch) if self.split else [(batch, 1.0)]:
                (loss_of(self.model, part) * share / self.micro).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.monitor.step()
        synchronize()
        return clock() - began, measured


def compare(source: str, steps: int, rank: int = 0) -> dict[str, float]:
    """Off and on, in turns, step by step."""
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    option = "split" if source == "split" else "auto"
    off, on = Training(source, "off", device), Training(source, option, device)
    sequences = 2 if source == "accumulation" else 8
    plain, unmeasured, measured = [], [], []
    inside, late = 0.0, 0
    for step in range(steps):
        with on.monitor.evaluating():  # the other's step is not in its clock
            began = time.perf_counter()
            without, _ = off.step(sequences)
        times = on.monitor.noise._times
        if times._last is not None:
            times._last += time.perf_counter() - began
        before = on.spent
        seconds, was = on.step(sequences)
        if step < 10:
            continue
        plain.append(without)
        (measured if was else unmeasured).append(seconds)
        if step >= steps // 2:  # the cadence has settled
            late += was
            inside += on.spent - before
    ordinary, base = statistics.median(unmeasured), statistics.median(plain)
    extra = statistics.median(measured) - ordinary if measured else 0.0
    share = (extra * late + inside) / (base * (steps - steps // 2))
    return {
        "base": base,
        "ordinary": ordinary,
        "extra": extra,
        "every": float(on.monitor.noise.cadence.every),
        "measured": float(late),
        "share": share,
        "values": float(on.monitor.noise.raw.count),
        "parameters": float(sum(p.numel() for p in on.model.parameters())),
    }


def _rank(rank: int, source: str, steps: int, file: str, queue: Any) -> None:
    torch.set_num_threads(1)
    logging.getLogger("isoflop").setLevel(logging.ERROR)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    found = compare(source, steps, rank)
    if rank == 0:
        queue.put(found)
    dist.barrier()
    dist.destroy_process_group()


def on_two_ranks(source: str, steps: int) -> dict[str, float]:
    """The same on two ranks of this machine (gloo)."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    file = tempfile.mktemp()
    processes = [context.Process(target=_rank, args=(rank, source, steps, file, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found: dict[str, float] = queue.get(timeout=900)
    for process in processes:
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    logging.getLogger("isoflop").setLevel(logging.ERROR)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    table = Table(title=f"Cost of the noise scale, {device}, {steps} steps each")
    for column in ("source", "steps, on / off (ms)", "a measured step adds", "every", "amortised", "measured"):
        table.add_column(column, justify="left" if column == "source" else "right")
    sources = ["accumulation", "split"]
    if dist.is_available() and not torch.cuda.is_available():
        sources += ["ddp"]
    for source in sources:
        found = compare(source, steps) if source in ("accumulation", "split") else on_two_ranks(source, steps)
        table.add_row(
            source,
            f"{found['ordinary'] * 1e3:.1f} / {found['base'] * 1e3:.1f}",
            f"{found['extra'] * 1e3:+.2f} ms ({found['extra'] / found['base']:+.0%})",
            f"{found['every']:.0f}",
            f"{found['share']:.2%}",
            f"{found['values']:.0f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
