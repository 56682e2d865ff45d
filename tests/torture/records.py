"""Targets: a spoilt record through its reader, what learns from records, and a run that resumes it."""

from __future__ import annotations

import functools
import io
import json
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from isoflop.fit import BadData, learn_from, read_table
from isoflop.forecast import (
    DEFAULT_PRIORS,
    OnlineForecaster,
    curve_of,
    forecast_of,
    history_of,
    ladder_of,
    learn_priors,
)
from isoflop.record import COUNTS, Point, RecordError, RecordLog, Run, read_run, read_runs
from torture.mutations import spoil_text

GOLDEN = Path(__file__).parents[1] / "data" / "record-v1.jsonl"


@functools.cache
def whole() -> bytes:
    """A finished run of 15 points with a plan of its learning rates, as the monitor records one."""
    log_folder = io.StringIO()
    header = {
        "event": "header",
        "isoflop": 1,
        "run_id": "20261122-051233-ffffff",
        "created": "2026-11-22T05:12:33+00:00",
        "name": "whole",
        "framework": "loop",
        "model": {"class": "tiny.TinyLM", "config": {"n_layer": 2, "_name_or_path": ""}},
        "parameters": {"total": 10_000, "non_embedding": 8_000, "non_embedding_with_head": 9_000, "active": 10_000},
        "optimizer": {"class": "AdamW", "lr": 0.01, "betas": [0.9, 0.95]},
        "planned": {"steps": 600, "schedule": "constant"},
        "tokenizer": "gpt2",
        "data": "c4",
        "counting": {"method": "measured on the meta device"},
        "loss_units": {"train": "nats per loss token"},
        "options": {"log_every": 10},
    }
    lines: list[dict[str, Any]] = [header]
    rates = {"steps": [1, 30, 600], "lr": [0.001, 0.01, 0.001]}
    lines.append({"event": "update", "planned": {**header["planned"], "learning_rates": rates}})  # type: ignore[dict-item]
    for step in range(40, 601, 40):
        lines.append(
            {
                "event": "point",
                "attempt": 1,
                "step": step,
                "tokens": step * 4096,
                "padding": step,
                "loss_tokens": step * 4000,
                "flops": step * 10**9,
                "flops_hardware": step * 10**9,
                "flops_6nd": step * 196_608_000,
                "losses": {"train": 2 + 8 / step**0.5, "eval/val": 2.1 + 8 / step**0.5},
                "nonfinite": {},
                "lr": 0.01,
                "batch_tokens": 4096.0,
                "interval_steps": 40,
                "time": 1795324353.5 + step,
                "wall_time": step * 1.0,
                "training_time": step * 0.9,
                "extra": {"mfu": 0.4, "forecast_loss": 2.3, "forecast_low": 2.2, "forecast_high": 2.4},
            }
        )
    lines.append({"event": "end", "step": 600, "status": "completed", "tokens": 600 * 4096})
    for line in lines:
        log_folder.write(json.dumps(line) + "\n")
    return log_folder.getvalue().encode()


def spoilt(random: Random) -> bytes:
    """A record with something wrong."""
    return spoil_text(random.choice([whole, GOLDEN.read_bytes])(), random)


def check_reader(data: bytes, folder: Path) -> Run | None:
    """Whatever a file holds, its reader gives a run or says that it is none."""
    path = folder / "isoflop-fuzz.jsonl"
    path.write_bytes(data)
    try:
        run = read_run(path)
    except RecordError as error:
        assert str(path) in str(error)
        return None
    steps = [point.step for point in run.points]
    assert steps == sorted(set(steps)) and len(run.problems) <= 21
    assert all("\n" not in text and text.isprintable() for text in run.problems), run.problems
    str(run).encode()
    json.dumps([run.model, run.extra, run.end, run.planned, run.options], allow_nan=False)
    return run


def fuzz_reader(random: Random, folder: Path) -> None:
    """The reader."""
    check_reader(spoilt(random), folder)


def fuzz_learners(random: Random, folder: Path) -> None:
    """What rests on records: the fit's table, the forecast's history, the advice's own runs."""
    run = check_reader(spoilt(random), folder)
    path = folder / "isoflop-fuzz.jsonl"
    runs = read_runs(path, on_problem=lambda text: None)
    with suppress(BadData):
        read_table([path], ("N", "D", "loss"), convention=random.choice(COUNTS))
    own, problem = history_of([path], random.choice(["train", "eval/val"]))
    assert bool(own) != bool(problem)
    if own and random.random() < 0.2:
        learn_priors(own)
        ladder_of(own, DEFAULT_PRIORS)
    learn_from(runs, tokenizer="gpt2", data="c4")
    if run is not None:
        try:
            curve = curve_of(run)
        except ValueError as error:
            assert str(error)
        else:
            OnlineForecaster.of(curve).feed(curve).forecast(curve.plan)
            forecast_of(
                curve.final, max(curve.final_error or 0.0, 1e-9), level=0.8, step=curve.total_steps, estimator=""
            )


def fuzz_resuming(random: Random, folder: Path) -> None:
    """A run goes on with a spoilt record: it is refused with a reason, or what is written then can be read."""
    path = folder / "isoflop-fuzz.jsonl"
    path.write_bytes(spoilt(random))
    step = random.choice([0, 20, 35, 60, 600, 10**6])
    try:
        log = RecordLog.resume(path, step, expected={"parameters": {"total": 10_000}})
    except RecordError:
        return
    log.point(Point(step=step + 1, tokens=7, losses={"train": 2.5}))
    log.end(step + 1, "completed")
    log.close()
    run = read_run(path)
    one_header = b"got 'a second one: the rest" not in "".join(run.problems).encode()
    if one_header:
        assert run.status == "completed" and run.points[-1].step == step + 1 and run.points[-1].tokens == 7
