"""A ladder of four small GPTs, for the two examples that train one; `isoflop ladder plan` makes larger ones."""

from __future__ import annotations

from pathlib import Path

from tiny_gpt import QUICK, VOCABULARY, fresh_folder

import isoflop
from isoflop.cli.ladder import following, summary_lines
from isoflop.ladder import LadderPlan, PlannedRun, run_ladder, write_plan
from isoflop.live.passport import print_summary

DEPTH, CONTEXT, BATCH = 2, 64, 16
STEPS = ((16, 20), (24, 20)) if QUICK else ((16, 2000), (24, 1000), (24, 2000), (32, 1000))  # width, optimizer steps


def tiny_plan() -> LadderPlan:
    """The plan: widths of 16 to 32 and what each is trained on."""
    runs = []
    for width, steps in STEPS:
        blocks, table = 12 * DEPTH * width**2, VOCABULARY * width
        tokens = steps * BATCH * CONTEXT
        runs.append(
            PlannedRun(
                name=f"w{width}-s{steps}",
                rung=0,
                config={
                    "depth": DEPTH,
                    "width": width,
                    "head_dim": 8,
                    "vocab_size": VOCABULARY,
                    "sequence_length": CONTEXT,
                },
                parameters={
                    "total": blocks + table + CONTEXT * width,
                    "non_embedding": blocks,
                    "non_embedding_with_head": blocks + table,
                },
                tokens=tokens,
                batch_tokens=BATCH * CONTEXT,
                steps=steps,
                warmup_steps=steps // 10,
                learning_rate=2.0e-2 * (16 / width) ** 0.65,
                flops=6.0 * (blocks + table) * tokens,
            )
        )
    spend = sum(run.flops for run in runs)
    return LadderPlan(
        target_flops=10 * spend,
        spend_flops=spend,
        family="gpt2",
        vocab_size=VOCABULARY,
        sequence_length=CONTEXT,
        convention="non_embedding_with_head",
        runs=tuple(runs),
        level=0.9,
        expected={},
    )


def train_ladder(script: str, folder: str) -> None:
    """Train the ladder with a script's `train`, two runs at one time, each in a process of its own."""
    out = fresh_folder(folder)
    out.mkdir(parents=True)
    write_plan(tiny_plan(), out / "plan.yaml")
    result = run_ladder(tiny_plan(), f"{script}:train", out, engine="local", workers=2, watch=following)
    for line in summary_lines(result):
        print(line)
    print_summary(isoflop.read_runs(out))
    print(f"The same by hand:  isoflop ladder run {out / 'plan.yaml'} --train {Path(script).name}:train --out {out}")
    if not result.done:
        raise SystemExit(1)
