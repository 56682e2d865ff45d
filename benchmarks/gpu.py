"""What only a GPU can show, in one run of at most five minutes: `make gpu`.

    python benchmarks/gpu.py [--device cuda] [--seconds 100] [--json gpu.json] [--tiny]

Each row is one check: its figure, the bound it is held to, and whether it holds. A check that fails or cannot run is a
row too, never the end of the others. `--tiny --device cpu` runs the same code at a size for tests; what a CPU cannot
answer (syncs, a device's rate) is then "not asked".
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import nn

import isoflop

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from tiny_gpt import GPTConfig, TinyGPT, next_token_loss, stdlib_text

LOG_EVERY = 10


@dataclass(frozen=True)
class Setting:
    """Where the checks run and at what size; `seconds` is the length of the real training."""

    device: str
    config: GPTConfig
    batch: int
    steps: int
    seconds: float

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def model(self) -> TinyGPT:
        """The same weights each time."""
        torch.manual_seed(0)
        return TinyGPT(self.config).to(self.device)

    def tokens(self, step: int) -> torch.Tensor:
        """Of a step: (batch, context + 1), made on the device, so that no copy hides a wait."""
        draw = torch.Generator(self.device).manual_seed(step)
        shape = (self.batch, self.config.context + 1)
        return torch.randint(self.config.vocabulary, shape, device=self.device, generator=draw)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Row:
    """A check's outcome; `holds` is None where the question was not asked, `figure` then says why."""

    check: str
    figure: str
    bound: str = ""
    holds: bool | None = None


class Loop:
    """Training steps of one model, with isoflop or without."""

    def __init__(self, setting: Setting, *, dtype: torch.dtype | None = None, compiled: bool = False, **model: Any):
        self.setting = setting
        self.model: Any = model.get("model") or setting.model()
        self.weights = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-3)
        self.cast = torch.autocast(setting.device.split(":")[0], dtype) if dtype else nullcontext()
        if compiled:
            self.model = torch.compile(self.model, backend="inductor" if setting.cuda else "aot_eager")

    def monitor(self, **options: Any) -> isoflop.Monitor:
        """Its record goes to a folder of its own."""
        chosen = {"record_dir": tempfile.mkdtemp(), "log_every": LOG_EVERY, "noise_scale": "off", **options}
        return isoflop.Monitor(self.model, optimizer=self.optimizer, **chosen)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        with self.cast:
            loss = next_token_loss(self.model(tokens[:, :-1]), tokens[:, 1:])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def run(self, steps: int, monitor: isoflop.Monitor | None = None, first: int = 0) -> float:
        """Take the steps; seconds of the median one that is no log step."""
        laps = []
        for step in range(first, first + steps):
            tokens = self.setting.tokens(step)
            self.setting.wait()
            began = time.perf_counter()
            loss = self.step(tokens)
            if monitor is not None:
                monitor.step(loss)
            self.setting.wait()
            if (step + 1) % LOG_EVERY:
                laps.append(time.perf_counter() - began)
        return statistics.median(laps)


def _step_flops(loop: Loop) -> tuple[float, str]:
    """Model FLOPs of one step as a Monitor records them, and the method."""
    monitor = loop.monitor(log_every=1)
    for step in range(2):
        monitor.step(loop.step(loop.setting.tokens(step)))
    monitor.close()
    (run,) = isoflop.read_runs(str(monitor.options.record_dir))
    last = run.points[-1]
    return last.flops / last.step, ", ".join(monitor.observer.costing.methods)


def _rate(device: str, dtype: torch.dtype, size: int) -> float:
    """FLOP/s that a dense matrix product reaches: the best of ten."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(13):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        began = time.perf_counter()
        a @ b
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def observed_flops(setting: Setting) -> Iterator[Row]:
    """What a Monitor records on the device equals the count on meta."""
    expected = isoflop.count(setting.model().to("cpu"), setting.tokens(0)[:, :-1].cpu()).model_flops
    for name, dtype, compiled in (
        ("float32", None, False),
        ("bfloat16", torch.bfloat16, False),
        ("bfloat16, compiled", torch.bfloat16, True),
    ):
        flops, method = _step_flops(Loop(setting, dtype=dtype, compiled=compiled))
        yield Row(f"FLOPs of a step, {name}", f"{flops:.6e} ({method})", f"{expected:.6e}", flops == expected)


def float8_flops(setting: Setting) -> Iterator[Row]:
    """The same of torchao's float8 training, where it is installed and the device has it."""
    if not setting.cuda or torch.cuda.get_device_capability() < (8, 9):
        yield Row("FLOPs of a step, float8", "not asked: the device has no float8")
        return
    try:
        from torchao.float8 import convert_to_float8_training
    except ImportError:
        yield Row("FLOPs of a step, float8", "not asked: torchao is not installed")
        return
    plain, _ = _step_flops(Loop(setting, dtype=torch.bfloat16))
    flops, method = _step_flops(Loop(setting, dtype=torch.bfloat16, model=convert_to_float8_training(setting.model())))
    yield Row("FLOPs of a step, float8", f"{flops:.6e} ({method})", f"{plain:.6e}", flops == plain)


@contextmanager
def _syncs_raise(asked: bool) -> Iterator[None]:
    if asked:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if asked:
            torch.cuda.set_sync_debug_mode("default")


def no_sync(setting: Setting) -> Iterator[Row]:
    """No wait of the host for the device in a step that logs nothing."""
    for name, compiled in (("eager", False), ("compiled", True)):
        loop = Loop(setting, dtype=torch.bfloat16, compiled=compiled)
        monitor, waits = loop.monitor(noise_scale="auto"), []
        for step in range(3 * LOG_EVERY):
            tokens = setting.tokens(step)
            try:
                with _syncs_raise(setting.cuda and step > 2 and (step + 1) % LOG_EVERY != 0):
                    loss = loop.step(tokens)
                    monitor.step(loss)
            except RuntimeError as error:  # from the loop itself; the Monitor's own are aside
                waits.append(f"step {step}: {error}")
        waits += [f"{name}: {reason}" for name, reason in monitor.guard.aside.items()]
        monitor.close()
        if not setting.cuda:
            yield Row(f"waits outside of log steps, {name}", "not asked: no CUDA device")
        else:
            yield Row(f"waits outside of log steps, {name}", waits[0] if waits else "none", "none", not waits)


def bitwise_weights(setting: Setting) -> Iterator[Row]:
    """Training with isoflop ends in the same bits."""
    for name, dtype, compiled in (
        ("float32", None, False),
        ("bfloat16", torch.bfloat16, False),
        ("bfloat16, compiled", torch.bfloat16, True),
    ):
        ends = []
        for watched in (False, True):
            loop = Loop(setting, dtype=dtype, compiled=compiled)
            monitor = loop.monitor(noise_scale="auto") if watched else None
            loop.run(2 * LOG_EVERY, monitor)
            if monitor is not None:
                monitor.close()
            ends.append([weight.detach().clone() for weight in loop.weights])
        same = all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
        yield Row(f"weights after {2 * LOG_EVERY} steps, {name}", "equal" if same else "differ", "equal", same)


def overhead(setting: Setting) -> Iterator[Row]:
    """An ordinary step with isoflop against the same without, in turn, so that a warm device favours neither."""
    for name, options, bound in (
        ("hooks", {"noise_scale": "off"}, 1.01),
        ("hooks and noise scale", {"noise_scale": "auto"}, 1.015),
    ):
        plain, watched = (Loop(setting, dtype=torch.bfloat16) for _ in range(2))
        monitor = watched.monitor(**options)
        plain.run(5)
        watched.run(5, monitor)
        ratios = []
        for turn in range(4):
            first = 5 + turn * setting.steps
            ratios.append(watched.run(setting.steps, monitor, first) / plain.run(setting.steps, first=first))
        monitor.close()
        ratio = statistics.median(ratios)
        # a tiny CPU model's step is shorter than a hook: no ratio of it says anything
        yield Row(f"step with {name} / without", f"{ratio:.4f}", f"≤ {bound}", ratio <= bound if setting.cuda else None)


def believable_mfu(setting: Setting) -> Iterator[Row]:
    """A model that is nearly all matrix products reaches a believable part of what one product reaches."""
    wide = nn.Sequential(*(nn.Linear(setting.config.width * 8, setting.config.width * 8, bias=False) for _ in range(6)))
    wide.to(setting.device, torch.bfloat16)
    reachable = _rate(setting.device, torch.bfloat16, setting.config.width * 8)
    optimizer = torch.optim.SGD(wide.parameters(), lr=1e-6)
    record = tempfile.mkdtemp()
    monitor = isoflop.Monitor(
        wide, optimizer=optimizer, record_dir=record, log_every=LOG_EVERY, peak_flops=reachable, noise_scale="off"
    )
    x = torch.randn(setting.batch * setting.config.context, setting.config.width * 8, device=setting.device).bfloat16()
    for _ in range(4 * LOG_EVERY):
        loss = wide(x).float().pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.step(loss)
    mfu = monitor.scalars.get("isoflop/mfu")
    monitor.close()
    yield Row("dense bfloat16 product", f"{reachable / 1e12:.3g} TFLOP/s")
    figure = "unknown" if mfu is None else f"{mfu:.3f}"
    yield Row(
        "MFU of six linear layers, of that", figure, ".3 to 1.05", (setting.cuda and mfu and 0.3 <= mfu <= 1.05) or None
    )


def one_rank(setting: Setting) -> Iterator[Row]:
    """FSDP2 on a world of one counts like the model alone."""
    from torch.distributed.fsdp import fully_shard

    expected, _ = _step_flops(Loop(setting))
    store = dist.HashStore()
    dist.init_process_group("nccl" if setting.cuda else "gloo", store=store, rank=0, world_size=1)
    try:
        model = setting.model()
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        flops, method = _step_flops(Loop(setting, model=model))
    finally:
        dist.destroy_process_group()
    yield Row("FLOPs of a step, FSDP2 on one rank", f"{flops:.6e} ({method})", f"{expected:.6e}", flops == expected)


def real_training(setting: Setting) -> Iterator[Row]:
    """A GPT on text for some time, everything on: what a user sees."""
    text = torch.frombuffer(bytearray(stdlib_text()[0]), dtype=torch.uint8).to(setting.device)
    loop = Loop(setting, dtype=torch.bfloat16, compiled=setting.cuda)
    starts = torch.Generator().manual_seed(0)
    reach = torch.arange(setting.config.context + 1, device=setting.device)

    def tokens() -> torch.Tensor:
        first = torch.randint(len(text) - setting.config.context - 1, (setting.batch, 1), generator=starts)
        return text[first.to(setting.device, non_blocking=True) + reach].long()

    began = time.perf_counter()
    for _ in range(4):
        loop.step(tokens()).item()
    began = time.perf_counter()
    for _ in range(8):
        loop.step(tokens()).item()
    total = max(8 * LOG_EVERY, int(setting.seconds / ((time.perf_counter() - began) / 8)))
    schedule = torch.optim.lr_scheduler.LinearLR(loop.optimizer, 1.0, 0.05, total)
    monitor = loop.monitor(noise_scale="auto", scheduler=schedule, total_steps=total)
    half: Any = None
    for step in range(total):
        loss = loop.step(tokens())
        schedule.step()
        monitor.step(loss)
        if step == total // 2:
            half = monitor.forecast or "none yet"
    monitor.close()
    final, aside = monitor.scalars.get("isoflop/loss"), monitor.guard.aside
    n = sum(weight.numel() for weight in loop.weights)
    yield Row("parts that failed", ", ".join(aside) or "none", "none", not aside)
    yield Row(f"{n / 1e6:.3g}M GPT on text, {total:,} steps", f"loss {final:.4f}" if final else "no loss")
    yield Row("forecast at half of it", " ".join(str(half).split()))
    for name in ("isoflop/b_simple", "isoflop/b_crit", "isoflop/mfu", "isoflop/tokens_per_second"):
        if name in monitor.scalars:
            yield Row(name, f"{monitor.scalars[name]:.4g}")
    for advice in monitor.advice:
        yield Row("advice", " ".join(str(advice).split()))


CHECKS: tuple[Callable[[Setting], Iterator[Row]], ...] = (
    observed_flops,
    float8_flops,
    no_sync,
    bitwise_weights,
    overhead,
    believable_mfu,
    one_rank,
    real_training,
)


def run(setting: Setting) -> list[Row]:
    """All checks; one that raises is a row of its own."""
    rows: list[Row] = []
    for check in CHECKS:
        torch.compiler.reset()
        began = time.perf_counter()
        try:
            rows += check(setting)
        except Exception as error:  # whatever a device or a driver comes up with
            traceback.print_exc()
            rows.append(Row(check.__name__, f"{type(error).__name__}: {error}"[:300], "runs", False))
        print(f"{check.__name__}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=100, help="of the real training (100)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--tiny", action="store_true", help="a size for a CPU")
    arguments = parser.parse_args()
    if arguments.tiny:
        setting = Setting(arguments.device, GPTConfig(context=32), 4, 12, min(arguments.seconds, 1))
    else:
        config = GPTConfig(layers=10, width=512, head_width=64, context=512)  # 31M parameters
        setting = Setting(arguments.device, config, 64, 40, arguments.seconds)
    logging.getLogger("isoflop").setLevel(logging.ERROR)
    rows = run(setting)

    name = torch.cuda.get_device_name() if setting.cuda else platform.processor() or platform.machine()
    table = Table("check", "figure", "bound", "holds", title=f"{name}, torch {torch.__version__}")
    for row in rows:
        table.add_row(row.check, row.figure, row.bound, {True: "yes", False: "NO", None: ""}[row.holds])
    Console(width=160).print(table)
    if arguments.json is not None:
        machine = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
        arguments.json.write_text(json.dumps({**machine, "rows": [asdict(row) for row in rows]}, indent=1))
    return int(any(row.holds is False for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
