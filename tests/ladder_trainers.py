"""Ladders for the tests: plans of small runs, and `train` functions that write a record as a training would."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from isoflop.ladder import LadderPlan, PlannedRun
from isoflop.record import Point, RecordLog

STEPS = 20


def a_run(name: str, *, steps: int = STEPS, rung: int = 0) -> PlannedRun:
    parameters = {"total": 1000, "non_embedding": 800, "non_embedding_with_head": 900}
    return PlannedRun(
        name=name,
        rung=rung,
        config={"family": "gpt2", "depth": 1, "width": 8},
        parameters=parameters,
        tokens=steps * 64,
        batch_tokens=64,
        steps=steps,
        warmup_steps=2,
        learning_rate=1e-2,
        flops=6.0 * 900 * steps * 64,
    )


def a_plan(*names: str, steps: int = STEPS) -> LadderPlan:
    return LadderPlan(
        target_flops=1e12,
        spend_flops=1e10,
        family="gpt2",
        vocab_size=256,
        sequence_length=16,
        convention="non_embedding_with_head",
        runs=tuple(a_run(name, steps=steps) for name in names),
        level=0.9,
        expected={},
    )


def law(N: float, D: float) -> float:
    """A planted loss in nats per token."""
    return 1.7 + 400 / N**0.34 + 400 / D**0.28


def write_record(config: dict[str, Any], *, first: int = 0, last: int | None = None) -> None:
    """What a training of steps `first` to `last` leaves; at the planned end its record is completed."""
    folder, steps = Path(config["record_dir"]), config["steps"]
    header = {"name": config["name"], "parameters": config["parameters"], "planned": {"steps": steps}}
    there = sorted(folder.glob("isoflop-*.jsonl"))
    log = RecordLog.resume(there[0], first) if first else RecordLog.create(folder, config["name"], header)
    for step in range(first + 1, (last or steps) + 1):
        tokens = step * config["batch_tokens"]
        loss = law(config["parameters"]["non_embedding_with_head"], tokens)
        log.point(Point(step=step, tokens=tokens, padding=0, losses={"train": loss}))
    if last is None:
        log.end(steps, "completed")
    log.close()


def finishes(config: dict[str, Any]) -> None:
    first = 0 if config["resume"] is None else int(Path(config["resume"]).read_text())
    write_record(config, first=first)


def branches(config: dict[str, Any]) -> None:
    """A run that leaves a checkpoint for each that branches off it; these begin their own record there."""
    for branch in config["branches"]:
        (Path(branch["checkpoint_dir"]) / "trunk").write_text(str(branch["step"]))
    if config["resume"] is None:
        return finishes(config)
    steps, first = config["steps"], int(Path(config["resume"]).read_text())
    header = {"name": config["name"], "parameters": config["parameters"], "planned": {"steps": steps}}
    log = RecordLog.create(Path(config["record_dir"]), config["name"], header)
    for step in range(first + 1, steps + 1):
        log.point(Point(step=step, tokens=step * config["batch_tokens"], padding=0, losses={"train": 3.0}))
    log.end(steps, "completed")
    log.close()


def dies_half_way(config: dict[str, Any]) -> None:
    """The first time, after a checkpoint at half of the steps and some more that are lost."""
    if config["resume"] is None:
        half = config["steps"] // 2
        write_record(config, last=half + 3)
        (Path(config["checkpoint_dir"]) / "latest").write_text(str(half))
        os.kill(os.getpid(), signal.SIGKILL)
    finishes(config)


def one_fails(config: dict[str, Any]) -> None:
    if config["name"] == "bad":
        raise RuntimeError("the learning rate was too good to be true")
    finishes(config)


def fails_once(config: dict[str, Any]) -> None:
    """No checkpoint is left: the second attempt begins anew."""
    mark = Path(config["checkpoint_dir"]).parent / "tried"
    if not mark.exists():
        mark.touch()
        write_record(config, last=5)
        raise RuntimeError("not the first time")
    finishes(config)


def stops_short(config: dict[str, Any]) -> None:
    write_record({**config, "steps": config["steps"] // 2})


def dies_or_fails(config: dict[str, Any]) -> None:
    one_fails(config) if config["name"] == "bad" else dies_half_way(config)
