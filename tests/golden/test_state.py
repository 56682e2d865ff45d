"""A run that is gone and goes on from its checkpoint ends with the record of one that was never interrupted."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import pytest

import isoflop
from golden import runs
from golden.conftest import PLAIN, quiet
from golden.runs import STEPS, Ran
from golden.values import condensed, differences

GONE = STEPS // 2
"""Optimizer steps before the end of the first process."""
BY_PROCESS = {"run_id", "created", "git", "name", "path", "attempts", "options", "points", "advice", "end", "status"}
"""Fields of a run that differ, or that are compared by themselves."""
SAME = 1e-5
"""Relative tolerance: a float32 training need not be the same to the bit in another process."""
BATCHES = ("batch_over_b_crit", "s_min", "e_min")
"""Until the first measured step after a resume these take the interval's tokens for the last measured step's."""


def compared(run: isoflop.Run) -> dict[str, Any]:
    """A record's values, less what tells one process from another."""
    return {
        "points": [dataclasses.asdict(point) | {"attempt": None, "time": None} for point in run.points],
        "advice": [{key: value for key, value in item.items() if key != "time"} for item in run.advice],
        "end": {key: value for key, value in (run.end or {}).items() if key != "time"},
        "status": run.status,
        "header": {
            field.name: repr(getattr(run, field.name))
            for field in dataclasses.fields(run)
            if field.name not in BY_PROCESS | {"optimizer"}  # its learning rate is that of each attempt's beginning
        },
    }


def assert_same(whole: Ran, resumed: Ran, *, batches: float = SAME) -> None:
    """That both records say the same, `BATCHES` to a tolerance of their own."""
    one, two = compared(whole.run), compared(resumed.run)
    assert [point["step"] for point in one["points"]] == [point["step"] for point in two["points"]]
    for old, new in zip(one["points"], two["points"], strict=True):
        for name in BATCHES:
            before, after = old["extra"].pop(name, None), new["extra"].pop(name, None)
            assert after is None if before is None else after == pytest.approx(before, rel=batches)
    for name in one:
        pairs = zip(one[name], two[name], strict=True) if name == "points" else [(one[name], two[name])]
        found = [line for old, new in pairs for line in differences(condensed(old), condensed(new), SAME, False, name)]
        assert not found, "\n".join(found[:40])


@pytest.mark.parametrize("stop_at", [GONE, GONE + 1])
def test_a_plain_loop_goes_on(plain: Ran, series: list[Ran], stop_at: int, tmp_path: Path) -> None:
    options = PLAIN | {"history": [ran.folder for ran in series]}
    _, checkpoint = runs.plain(tmp_path, stop_at=stop_at, **options)
    gc.collect()  # the process is gone: it holds the record no more
    assert isoflop.read_run(next(tmp_path.glob("isoflop-*.jsonl"))).status == "running"
    resumed, _ = runs.plain(tmp_path, checkpoint=checkpoint, **options)
    assert resumed.run.attempts == 2
    assert_same(plain, resumed)


def test_lightning_goes_on(lightning: Ran, tmp_path: Path) -> None:
    with quiet():
        runs.lightning(tmp_path, stop_after_epoch=1, inference_tokens=1e6)
        gc.collect()
        resumed = runs.lightning(tmp_path, resume=True, inference_tokens=1e6)
    assert resumed.run.attempts == 2
    assert_same(lightning, resumed)


def test_hugging_face_goes_on(transformers: Ran, tmp_path: Path) -> None:
    with quiet():
        runs.transformers(tmp_path, stop_at=GONE, intent="overtrain")
        gc.collect()
        resumed = runs.transformers(tmp_path, resume=True, intent="overtrain")
    assert resumed.run.attempts == 2
    assert_same(transformers, resumed, batches=0.02)  # padded: steps differ in tokens
