"""What a report of many long runs costs: seconds and megabytes of `isoflop report` on 100 runs of 100,000 points each.

    python benchmarks/report.py                        # writes 4.5 GB of records to a temporary folder first
    python benchmarks/report.py --points 5000          # as isoflop itself thins records: a run of 10^5 log intervals
    python benchmarks/report.py --runs 20

The records follow a planted law with noise; a quarter of the runs has evaluations, some were resumed. The whole
command is timed as a user would: starting Python, reading, fitting, drawing, writing. The first pass reads files that
were just written, so from memory; a disk adds what it takes to deliver them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
BATCH = 500_000  # tokens a step
SECONDS, MEGABYTES = 10.0, 10.0  # what was promised


def write_run(folder: Path, number: int, runs: int, points: int) -> int:
    """One run's record, as isoflop writes it; its bytes."""
    rng = np.random.default_rng(number)
    N = int(10 ** (7 + 3 * number / max(runs - 1, 1)))
    every = max(1, int(20 * N * 10 ** rng.uniform(-0.7, 0.7) / BATCH / points))
    step = every * np.arange(1, points + 1)
    tokens = step * BATCH
    loss = (1.8172 + 482.01 / N**0.3478 + 2085.43 / tokens.astype(float) ** 0.3658) * np.exp(
        rng.normal(0, 0.004, points)
    )
    header = {
        "event": "header", "isoflop": 1, "run_id": f"r{number:03d}", "name": f"run {number}",
        "created": f"2026-01-01T{number // 60:02d}:{number % 60:02d}:00+00:00",
        "parameters": {"total": N, "non_embedding": N, "non_embedding_with_head": N},
        "planned": {"steps": int(step[-1])}, "counting": {"method": "measured on the meta device"},
    }  # fmt: skip
    lines = [json.dumps(header)]
    resumed = points // 2 if number % 10 == 0 else -1
    for i, (s, D, L) in enumerate(zip(step.tolist(), tokens.tolist(), loss.tolist(), strict=True)):
        lines.append(
            f'{{"event":"point","attempt":{1 + (i > resumed >= 0)},"step":{s},"tokens":{D},"padding":0,'
            f'"loss_tokens":{D},"flops":{6 * N * D},"flops_hardware":{6 * N * D},"flops_6nd":{6 * N * D},'
            f'"losses":{{"train":{L}}},'
            f'"nonfinite":{{}},"lr":0.001,"batch_tokens":{BATCH},"interval_steps":{every},"time":{1.7e9 + s},'
            f'"wall_time":{s}.0,"training_time":{s}.0,"extra":{{"mfu":0.4,"tflops_per_device":100.0,'
            '"tokens_per_second_per_device":1000.0}}'
        )
        if i == resumed:
            lines.append(f'{{"event":"resume","time":0,"attempt":2,"step":{s}}}')
        if number % 4 == 0 and (i + 1) % (points // 10) == 0:
            lines.append(f'{{"event":"point","attempt":1,"step":{s},"losses":{{"eval/val":{L}}}}}')
    lines.append(f'{{"event":"end","time":0,"step":{int(step[-1])},"status":"completed"}}')
    path = folder / f"isoflop-r{number:03d}.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--points", type=int, default=100_000, help="of each run")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as where:
        folder, page = Path(where) / "runs", Path(where) / "report.html"
        folder.mkdir()
        written = sum(write_run(folder, i, arguments.runs, arguments.points) for i in range(arguments.runs))
        print(f"{arguments.runs} runs of {arguments.points:,} points, {written / 1e9:.2f} GB of records\n")
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        command = [sys.executable, "-m", "isoflop", "report", str(folder), "-o", str(page)]
        wall, cpu = [], []
        for _ in range(arguments.repeat):
            before, started = os.times(), time.perf_counter()
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            wall.append(time.perf_counter() - started)
            after = os.times()
            cpu.append(after.children_user + after.children_system - before.children_user - before.children_system)
        size = page.stat().st_size / 1e6
    print(f"{'':24} {'measured':>10} {'promised':>10}")
    print(f"{'seconds, best of ' + str(arguments.repeat):24} {min(wall):>10.1f} {SECONDS:>10.1f}")
    print(f"{'of them computing':24} {min(cpu):>10.1f}")
    print(f"{'megabytes':24} {size:>10.1f} {MEGABYTES:>10.1f}")


if __name__ == "__main__":
    main()
