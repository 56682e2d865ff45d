"""Two thousand runs of planted laws through Ray, with a trainer that only writes a record: what does a run cost?

    python benchmarks/ladder_scale.py                      # a few minutes on two idle cores
    python benchmarks/ladder_scale.py --runs 200 --kill 0

`train` writes the loss of a planted law at eight points, so that all of the time is the engine's and the records'.
Meanwhile a worker is killed (SIGKILL) every few seconds. In the end each run must be there once, complete.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from isoflop.ladder import LadderPlan, PlannedRun, run_ladder
from isoflop.record import Point, RecordLog, new_run_id, read_runs

STEPS = 80
BATCH = 64


def loss_of(N: float, D: float) -> float:
    """A planted law, in nats per token."""
    return 1.7 + 400 / N**0.34 + 400 / D**0.28


def train(config: dict[str, Any]) -> None:
    """What a training would leave."""
    N, folder = config["parameters"]["non_embedding_with_head"], Path(config["record_dir"])
    header = {"name": config["name"], "parameters": config["parameters"], "planned": {"steps": config["steps"]}}
    log = RecordLog.create(folder, new_run_id(), header)
    for step in range(config["steps"] // 8, config["steps"] + 1, config["steps"] // 8):
        tokens = step * config["batch_tokens"]
        log.point(Point(step=step, tokens=tokens, padding=0, losses={"train": loss_of(N, tokens)}))
    log.end(config["steps"], "completed")
    log.close()


def plan_of(count: int) -> LadderPlan:
    """Runs of sizes between 1e5 and 1e8."""
    runs = []
    for i in range(count):
        N = int(10 ** (5 + 3 * i / count))
        runs.append(
            PlannedRun(
                name=f"run-{i:05}",
                rung=0,
                config={"family": "planted"},
                parameters={"total": N, "non_embedding": N, "non_embedding_with_head": N},
                tokens=STEPS * BATCH,
                batch_tokens=BATCH,
                steps=STEPS,
                warmup_steps=1,
                learning_rate=1e-3,
                flops=6.0 * N * STEPS * BATCH,
            )
        )
    return LadderPlan(
        target_flops=1e18,
        spend_flops=sum(run.flops for run in runs),
        family="planted",
        vocab_size=256,
        sequence_length=BATCH,
        convention="non_embedding_with_head",
        runs=tuple(runs),
        level=0.9,
        expected={},
    )


def is_worker(process: psutil.Process) -> bool:
    """Whether it trains or waits for the next run."""
    try:
        return " ".join(process.cmdline()).startswith(("ray::train", "ray::IDLE"))
    except psutil.Error:  # it has just ended
        return False


def kill_workers(every: float, stop: threading.Event, killed: list[int]) -> None:
    """SIGKILL to one worker every so many seconds."""
    choose = random.Random(0)
    while not stop.wait(every):
        workers = [process for process in psutil.Process().children(recursive=True) if is_worker(process)]
        if workers:
            victim = choose.choice(workers)
            os.kill(victim.pid, signal.SIGKILL)
            killed.append(victim.pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--engine", default="ray")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", type=float, default=10.0, help="seconds between two kills of a worker; 0: none")
    arguments = parser.parse_args()
    plan = plan_of(arguments.runs)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        for i, run in enumerate(plan.runs[:200]):
            train({**run.as_dict(), "record_dir": f"{folder}/alone/{i}"})
        alone = (time.monotonic() - began) / min(200, len(plan.runs))

        stop, killed = threading.Event(), []
        killer = threading.Thread(target=kill_workers, args=(arguments.kill, stop, killed), daemon=True)
        if arguments.kill:
            killer.start()
        began, cpu = time.monotonic(), time.process_time()
        out = Path(folder) / "ladder"
        result = run_ladder(
            plan, f"{__file__}:train", out, engine=arguments.engine, workers=arguments.workers, retries=3
        )
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        stop.set()

        began = time.monotonic()
        run_ladder(plan, f"{__file__}:train", out, engine=arguments.engine)
        skipping = time.monotonic() - began
        runs = read_runs(out)

    names = [run.name for run in runs]
    wrong = [
        run.name
        for run in runs
        if run.status != "completed"
        or run.points[-1].losses["train"] != loss_of(run.parameters["total"] or 0, STEPS * BATCH)
    ]
    again = sum(state.attempts > 1 for state in result.states)
    rows = (
        ("runs", f"{len(plan.runs):,}"),
        ("finished", f"{len(result.of('finished')):,}"),
        ("records: complete, once each", f"{len(set(names) - set(wrong)):,}, {len(names) - len(set(names))} double"),
        ("workers killed", f"{len(killed):,}"),
        ("runs that needed another attempt", f"{again:,}"),
        ("seconds in all", f"{seconds:,.1f}"),
        (f"seconds per run, {arguments.workers} at a time", f"{seconds / len(plan.runs):.4f}"),
        ("of them `train` itself, alone", f"{alone:.4f}"),
        ("CPU seconds of the driver per run", f"{cpu / len(plan.runs):.4f}"),
        ("seconds to find all finished", f"{skipping:,.1f}"),
    )
    for name, value in rows:
        print(f"{name:>40}  {value}")
    if wrong or len(set(names)) != len(plan.runs) or not result.done:
        sys.exit(f"lost: {len(plan.runs) - len(set(names))}, wrong: {wrong[:5]}")


if __name__ == "__main__":
    main()
