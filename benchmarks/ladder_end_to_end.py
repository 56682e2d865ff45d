"""A ladder of small GPTs on real text through Ray, killed half-way and resumed; then its forecast is put to the test.

    python benchmarks/ladder_end_to_end.py --out runs/ladder-end-to-end        # 2.4e13 FLOPs: minutes to an hour
    python benchmarks/ladder_end_to_end.py --scale 0.02 --out runs/quick       # a 50th of the compute, to see it work

Twelve runs (four sizes at each of three budgets C = 6·N·D, N with the output head) are trained by `isoflop ladder run`
on Ray's local mode. When half of them are finished the driver and all its workers get SIGKILL; the same command is
given again. `isoflop ladder fit` learns the law. Three sizes are then trained at ten times the largest budget: the
predicted optimum, half and twice of it. Parts that are finished are not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import psutil
from _ladder_gpt import BATCH, SEQUENCE, learning_rate

from isoflop.cli.ladder import print_ladder_fit
from isoflop.ladder import LadderPlan, PlannedRun, fit_ladder_runs, read_plan, write_plan
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
    return planned_steps(name, rung, width, max(20, round(budget / (6 * N * STEP))), seed)


def flops_per_token(width: int) -> float:
    """Model FLOPs of a token, forward and backward, attention in full: what isoflop measures."""
    return 6.0 * (12 * DEPTH * width**2 + VOCABULARY * width) + 12.0 * DEPTH * SEQUENCE * width


def planned_steps(name: str, rung: int, width: int, steps: int, seed: int) -> PlannedRun:
    """A run of this width and so many optimizer steps."""
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
        flops=flops_per_token(width) * steps * STEP,
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


def width_near(N: float) -> int:
    """The width whose model comes nearest to N parameters with the head."""
    return min(range(16, 513, HEAD_DIM), key=lambda width: abs(math.log(with_head(width) / N)))


def with_head(width: int) -> int:
    """N of a width, as the ladder counts it."""
    return parameters(width)["non_embedding_with_head"]


def predict(out: Path) -> LadderPlan:
    """Fit the ladder, choose three sizes at ten times its largest run's compute, and write down what is expected."""
    plan = read_plan(out / "ladder.yaml")
    largest = max(run.points[-1].flops or 0 for run in read_runs(out / "ladder"))
    fit = fit_ladder_runs([out / "ladder"], plan=plan, target_flops=10.0 * largest, level=0.9)
    print_ladder_fit(fit)
    runs, expected = [], {}
    for i, (label, share) in enumerate((("half", 0.5), ("optimum", 1.0), ("twice", 2.0))):
        width = width_near(fit.N_opt.value * share)
        steps = round(fit.target_flops / (flops_per_token(width) * STEP))
        runs.append(planned_steps(f"target-{label}-w{width}", 3, width, steps, seed=100 + i))
        expected[runs[-1].name] = asdict(fit.loss_of(with_head(width), steps * STEP))
    told = {"target_flops": fit.target_flops, "N_opt": asdict(fit.N_opt), "loss": asdict(fit.loss), "runs": expected}
    (out / "prediction.json").write_text(json.dumps(told, indent=2))  # before a target run is trained
    target = plan_of(runs, fit.target_flops)
    write_plan(target, out / "target.yaml")
    return target


def train_target(out: Path, engine: str, workers: int) -> bool:
    """Train the three sizes and hold them against the prediction."""
    began = time.monotonic()
    subprocess.run(command(out / "target.yaml", out / "target", engine, workers), check=True)
    plan, told = read_plan(out / "target.yaml"), json.loads((out / "prediction.json").read_text())
    check_records(out / "target", plan)
    runs = {run.name: run for run in read_runs(out / "target")}
    losses = {each.name: runs[each.name].points[-1].losses["eval/val"] or math.nan for each in plan.runs}
    inside = 0
    print(f"target: {plan.flops:.3g} FLOPs in {time.monotonic() - began:,.0f} s")
    print(f"{'run':>20} {'expected':>9} {'90% interval':>18} {'came':>8}")
    for name, expected in told["runs"].items():
        held = expected["low"] <= losses[name] <= expected["high"]
        inside += held
        interval = f"[{expected['low']:.4f}, {expected['high']:.4f}]"
        print(f"{name:>20} {expected['value']:9.4f} {interval:>18} {losses[name]:8.4f} {'' if held else 'outside'}")
    best = min(losses.values())
    predicted = next(loss for name, loss in losses.items() if "optimum" in name)
    print(f"{inside} of {len(losses)} inside; the predicted size is {predicted / best - 1:.2%} above the best loss")
    return inside == len(losses) and predicted <= 1.01 * best


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
    if arguments.only in (None, "fit"):
        predict(out)
    if arguments.only in (None, "target") and not train_target(out, arguments.engine, arguments.workers):
        sys.exit("missed: the numbers are above")


if __name__ == "__main__":
    main()
