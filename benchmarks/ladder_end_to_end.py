"""A ladder of small GPTs on real text through Ray, killed half-way and resumed; then its forecast is put to the test.

    python benchmarks/ladder_end_to_end.py --out runs/ladder-end-to-end        # about an hour on two idle cores
    python benchmarks/ladder_end_to_end.py --scale 0.02 --out runs/quick       # a 50th of the compute, to see it work

Twelve runs (four sizes at each of three budgets C = 6·N·D, N with the output head) are trained by `isoflop ladder run`
on Ray's local mode. When half of them are finished the driver and all its workers get SIGKILL; the same command is
given again. `isoflop ladder fit` learns the law. Three sizes are then trained at ten times the largest budget: the
predicted optimum, half and twice of it. Parts that are finished are not done again.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
from _ladder_gpt import BATCH, SEQUENCE, learning_rate

from isoflop.ladder import LadderPlan, PlannedRun, write_plan
from isoflop.record import read_runs

HERE = Path(__file__).resolve().parent
LARGEST = 5e11  # FLOPs of the largest rung's runs, 6·N·D
RUNGS = (0.25, 0.5, 1.0)  # of it
WIDTHS = ((24, 32, 40, 48), (24, 32, 40, 48), (24, 32, 48, 64))  # by rung; 2 layers; 32 is 33k parameters, 64 115k
DEPTH, HEAD_DIM, VOCABULARY = 2, 8, 256
STEP = BATCH * SEQUENCE  # tokens


def parameters(width: int) -> dict[str, int]:
    """N by convention of a TinyGPT of this width."""
    matrices, norms, table = 12 * DEPTH * width**2, (2 * DEPTH + 1) * width, VOCABULARY * width
    return {
        "total": matrices + norms + table + SEQUENCE * width,
        "non_embedding": matrices + norms,
        "non_embedding_with_head": matrices + norms + table,
    }


def planned(name: str, rung: int, width: int, budget: float, seed: int) -> PlannedRun:
    """A run of this width that costs 6·N·D = `budget`."""
    N = parameters(width)["non_embedding_with_head"]
    steps = max(20, round(budget / (6 * N * STEP)))
    attention = 12 * DEPTH * SEQUENCE * width  # FLOPs a token, forward and backward
    return PlannedRun(
        name=name,
        rung=rung,
        config={
            "family": "gpt2",
            "depth": DEPTH,
            "width": width,
            "heads": width // HEAD_DIM,
            "head_dim": HEAD_DIM,
            "mlp_width": 4 * width,
            "vocab_size": VOCABULARY,
            "sequence_length": SEQUENCE,
            "tied": True,
        },
        parameters=parameters(width),
        tokens=steps * STEP,
        batch_tokens=STEP,
        steps=steps,
        warmup_steps=min(100, steps // 10),
        learning_rate=learning_rate(width, steps * STEP),
        flops=float((6 * 12 * DEPTH * width**2 + 6 * VOCABULARY * width + attention) * steps * STEP),
        seed=seed,
    )


def plan_of(runs: Iterable[PlannedRun], target: float) -> LadderPlan:
    """A plan as `isoflop ladder run` reads it."""
    runs = tuple(runs)
    return LadderPlan(
        target_flops=target,
        spend_flops=sum(run.flops for run in runs),
        family="gpt2",
        vocab_size=VOCABULARY,
        sequence_length=SEQUENCE,
        convention="non_embedding_with_head",
        runs=runs,
        level=0.9,
        expected={},
        rules={"sizes": "2 layers, head width 8", "learning_rate": "tuned at widths 32 and 64: _ladder_gpt.py"},
    )


def ladder_of(largest: float) -> list[PlannedRun]:
    """Four sizes at each of three budgets."""
    return [
        planned(f"c{rung}-w{width}", rung, width, share * largest, seed=10 * rung + i)
        for rung, (share, widths) in enumerate(zip(RUNGS, WIDTHS, strict=True))
        for i, width in enumerate(widths)
    ]


def command(plan: Path, out: Path, engine: str, workers: int) -> list[str]:
    """`isoflop ladder run` of a plan."""
    train = f"{HERE / '_ladder_gpt.py'}:train"
    options = ["--out", str(out), "--engine", engine, "--workers", str(workers), "--retries", "2"]
    return [sys.executable, "-m", "isoflop", "ladder", "run", str(plan), "--train", train, *options]


def finished(out: Path) -> int:
    """How many runs are at their end."""
    return sum(run.status == "completed" for run in read_runs(out, on_problem=lambda text: None))


def kill_half_way(arguments: list[str], out: Path, half: int) -> float:
    """Start the ladder; when half of its runs are finished, SIGKILL to the driver and all its workers.

    Returns:
        Seconds that it ran.
    """
    began = time.monotonic()
    driver = subprocess.Popen(arguments)
    while driver.poll() is None and finished(out) < half:
        time.sleep(1)
    time.sleep(5)  # into the next runs
    if driver.poll() is not None:
        sys.exit("the ladder was over before it could be killed: take a larger --scale")
    family = [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]
    for process in family:
        process.kill()
    driver.wait()
    print(f"killed the driver and {len(family) - 1} processes of Ray with {finished(out)} runs finished", flush=True)
    return time.monotonic() - began


def train_ladder(out: Path, scale: float, engine: str, workers: int) -> LadderPlan:
    """The ladder, killed half-way and resumed."""
    runs = ladder_of(LARGEST * scale)
    plan = plan_of(runs, 10 * LARGEST * scale)
    path, records = out / "ladder.yaml", out / "ladder"
    write_plan(plan, path)
    arguments = command(path, records, engine, workers)
    seconds = 0.0
    if not records.exists():
        seconds = kill_half_way(arguments, records, len(runs) // 2)
    began = time.monotonic()
    subprocess.run(arguments, check=True)
    seconds += time.monotonic() - began
    print(f"ladder: {plan.flops:.3g} FLOPs in {seconds:,.0f} s", flush=True)
    return plan


def check_records(out: Path, plan: LadderPlan) -> None:
    """Each run's record: complete, no gap, no double, as many attempts as it took."""
    runs = {run.name: run for run in read_runs(out)}
    print(f"{'run':>10} {'N':>9} {'D':>12} {'6ND':>9} {'lr':>7} {'steps':>7} {'attempts':>8} {'loss':>8}")
    for each in plan.runs:
        run = runs[each.name]
        steps = [point.step for point in run.points]
        gaps = {after - before for before, after in itertools.pairwise(steps)}
        last = run.points[-1]
        assert run.status == "completed" and last.step == each.steps and last.tokens == each.tokens, run
        assert len(steps) == len(set(steps)) and max(gaps) <= 2 * max(1, each.steps // 100), (each.name, gaps)
        N = run.parameters["non_embedding_with_head"] or 0
        print(
            f"{run.name:>10} {N:9,} {last.tokens:12,} {6 * N * last.tokens:9.3g} {each.learning_rate:7.2g} "
            f"{last.step:7,} {run.attempts:8} {last.losses['eval/val']:8.4f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ladder-end-to-end"))
    parser.add_argument("--scale", type=float, default=1.0, help="of the compute: 1 is 5e11 FLOPs for a largest run")
    parser.add_argument("--engine", default="ray")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=("ladder", "fit", "target"), help="this part alone")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(folder for folder in sys.path if folder)
    if arguments.only in (None, "ladder"):
        plan = train_ladder(out, arguments.scale, arguments.engine, arguments.workers)
        check_records(out / "ladder", plan)


if __name__ == "__main__":
    main()
