"""Does anything grow with a run's length? Time a step, memory, the record's and the event file's size by decade.

    python benchmarks/endurance.py                    # 10⁴, 10⁵ and 10⁶ steps
    python benchmarks/endurance.py --steps 10000000   # hours on a busy machine

One run in one process, stopped at each power of ten to be measured; the model computes nothing, its loss is planted,
everything else is what a user's run goes through: forward hook, log steps, forecasts, advice, record, TensorBoard.
The last column is the forecast of the run's end from every log step; below it stands that from the thinned record.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import isoflop
from isoflop.forecast import Forecast, NoForecast, OnlineForecaster

TOKENS, LOG_EVERY = 512, 10


class Instant(nn.Module):
    """A model whose forward pass takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(256, 64))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens


def planted(step: int, noise: random.Random) -> float:
    """A loss that falls as a power of the step, with the scatter of a small batch."""
    return 2.5 + 1.5 * (1 + step / 200) ** -0.4 + noise.gauss(0, 0.02)


@dataclass(frozen=True)
class Row:
    """What was measured when `steps` steps were done.

    Attributes:
        micros: µs of processor time a step since the row before, the loop's own off (log steps included).
        memory: MB that the process holds more than after the first 1,000 steps.
        record, events: MB on disk.
        points: in the record.
        full: forecast of the run's end from every log step.
    """

    steps: int
    micros: float
    memory: float
    record: float
    events: float
    points: int
    full: Forecast | NoForecast | None


def resident() -> float:
    """Resident memory of this process in MB; NaN where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return math.nan
    return pages * 4096 / 1e6


def endure(steps: int, folder: Path, log_every: int = LOG_EVERY) -> tuple[list[Row], Forecast | NoForecast]:
    """One run of `steps` optimizer steps, the first half of what it plans."""
    model, ids, noise = Instant(), torch.zeros((1, TOKENS), dtype=torch.long), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    empty = loop_alone(model, ids)
    monitor = isoflop.Monitor(
        model,
        optimizer=optimizer,
        lr_plan=lambda step: 1e-3,
        total_steps=2 * steps,
        record_dir=folder,
        log_every=log_every,
        num_params=10_000_000,
        flops_per_token=6e7,
    )
    rows, before, base, began = [], 0, math.nan, time.process_time()
    for step in range(1, steps + 1):
        model(ids)
        monitor.step(planted(step, noise))
        if step == 1_000:
            gc.collect()
            base = resident()
        if step >= 10_000 and math.log10(step) % 1 == 0:
            micros = 1e6 * ((time.process_time() - began) / (step - before) - empty)
            gc.collect()
            rows.append(measured(step, micros, resident() - base, folder, monitor))
            before, began = step, time.process_time()
    thinned = from_record(folder, monitor)
    monitor.close()
    return rows, thinned


def loop_alone(model: nn.Module, ids: torch.Tensor) -> float:
    """Seconds a step of the same loop without isoflop."""
    noise, began = random.Random(0), time.process_time()
    for step in range(1, 10_001):
        model(ids)
        planted(step, noise)
    return (time.process_time() - began) / 10_000


def measured(steps: int, micros: float, memory: float, folder: Path, monitor: isoflop.Monitor) -> Row:
    forecasting = monitor._forecast
    curve = forecasting.curve
    (record,) = folder.glob("*.jsonl")
    with record.open("rb") as lines:  # not read_runs: what it takes would be taken for the monitor's
        points = sum(b'"event":"point"' in line for line in lines)
    return Row(
        steps,
        micros,
        memory,
        record=record.stat().st_size / 1e6,
        events=sum(path.stat().st_size for path in folder.glob("events*")) / 1e6,
        points=points,
        full=None if curve is None else curve.forecast(forecasting.plan),
    )


def from_record(folder: Path, monitor: isoflop.Monitor) -> Forecast | NoForecast:
    """The forecast of the run's end from the points of its record."""
    (run,) = isoflop.read_runs(folder)
    thinned = OnlineForecaster(N=10_000_000, batch_tokens=TOKENS, optimizer="AdamW")
    last = 0
    for point in run.points:
        thinned.add(point.step, point.data_tokens or 0, point.lr, point.losses["train"] or math.nan, point.step - last)
        last = point.step
    return thinned.forecast(monitor._forecast.plan)


def said(forecast: Forecast | NoForecast | None) -> str:
    if isinstance(forecast, Forecast):
        return f"{forecast.loss:.4f} [{forecast.low:.4f}, {forecast.high:.4f}]"
    return "–" if forecast is None else str(forecast)[:30]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000, help="a power of ten from 10,000 on")
    parser.add_argument("--log-every", type=int, default=LOG_EVERY)
    options = parser.parse_args()
    logging.getLogger("isoflop").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows, thinned = endure(options.steps, Path(folder), options.log_every)
    table = Table(title=f"One run, a log step every {options.log_every}")
    for column in ("steps", "µs/step", "memory +MB", "record MB", "points", "events MB"):
        table.add_column(column, justify="right")
    table.add_column("forecast, every log step")
    for row in rows:
        numbers = (
            f"{row.micros:.0f}",
            f"{row.memory:.1f}",
            f"{row.record:.2f}",
            f"{row.points:,}",
            f"{row.events:.2f}",
        )
        table.add_row(f"{row.steps:,}", *numbers, said(row.full))
    Console(width=140).print(table)
    print("forecast from the record:", said(thinned))
    print(f"µs a step, last decade over first: {rows[-1].micros / rows[0].micros:.2f}")


if __name__ == "__main__":
    main()
