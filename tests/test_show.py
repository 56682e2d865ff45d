"""Axes of compute, the scalars of an interval, the terminal's line."""

from __future__ import annotations

import doctest
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from isoflop.flops import Parameters, Totals
from isoflop.live import (
    AXES,
    INTERVAL,
    MAX_STEP,
    ComputeAxes,
    Interval,
    LogStep,
    RunInfo,
    Sinks,
    TensorBoardSink,
    interval_line,
    interval_scalars,
)
from isoflop.live import sinks as terminal
from isoflop.record import due

LOG, GIGA = "isoflop/1000log10C_loss", "isoflop/GFLOPs_loss"


# -- compute as the step -----------------------------------------------------------------------------------------------


def steps(axes: ComputeAxes, flops: int | None, loss: float | None = 2.5) -> dict[str, int]:
    return {point.tag: point.step for point in axes.points(flops, loss)}


def test_the_step_is_compute():
    assert steps(ComputeAxes(), 10**18) == {LOG: 18_000, GIGA: 10**9}
    assert steps(ComputeAxes(), 2 * 10**18 + 5) == {LOG: 18_301, GIGA: 2 * 10**9}
    (point, _) = ComputeAxes().points(10**18, 2.5)
    assert point.value == 2.5
    assert {LOG, GIGA} < set(AXES)


def test_less_than_one_gigaflop():
    assert steps(ComputeAxes(), 1) == {LOG: 0, GIGA: 0}
    assert steps(ComputeAxes(), 999_999_999) == {LOG: 9000, GIGA: 0}


def test_a_step_beyond_int64_is_left_out_on_the_axis_that_it_breaks():
    assert steps(ComputeAxes(), (MAX_STEP + 1) * 10**9) == {LOG: 27_965}
    assert steps(ComputeAxes(), MAX_STEP * 10**9) == {LOG: 27_965, GIGA: MAX_STEP}
    assert steps(ComputeAxes(), 10**400) == {LOG: 400_000}


@pytest.mark.parametrize(
    ("flops", "loss"),
    [(None, 1.0), (0, 1.0), (-5, 1.0), (10**9, None), (10**9, math.nan), (10**9, math.inf), (10**9, -math.inf)],
)
def test_nothing_to_show(flops: int | None, loss: float | None):
    axes = ComputeAxes()
    assert axes.points(flops, loss) == []
    assert steps(axes, 10**9) == {LOG: 9000, GIGA: 1}  # and nothing is used up


@given(st.lists(st.integers(0, 2**120), max_size=40))
def test_steps_only_grow_and_survive_a_checkpoint(run: list[int]):
    axes, last = ComputeAxes(), dict.fromkeys((LOG, GIGA), -1)
    for flops in run:
        for tag, step in steps(axes, flops).items():
            assert last[tag] < step <= MAX_STEP
            last[tag] = step
        resumed = ComputeAxes()
        resumed.load_state_dict(json.loads(json.dumps(axes.state_dict())))
        axes = resumed
    assert axes.state_dict() == last


def test_a_log_axis_thins_itself():
    axes = ComputeAxes()
    written = sum(LOG in steps(axes, flops) for flops in range(10**6, 10**7, 1000))
    assert 900 <= written <= 1001


# -- the scalars of an interval ----------------------------------------------------------------------------------------

N = Parameters(total=130, trainable=130, non_embedding=50, non_embedding_with_head=100, active=130, method="by hand")
BEFORE = Interval(10, Totals(processed=1000, padding=100, loss_tokens=800, flops=10**6, flops_attention=10**5), 5.0, 10)
NOW = Interval(
    20, Totals(processed=3000, padding=300, loss_tokens=2400, flops=4 * 10**6, flops_attention=5 * 10**5), 9.0, 20
)


def scalars(**changes: Any) -> dict[str, float]:
    now, loss = changes.pop("now", NOW), changes.pop("loss", 2.0)
    arguments: dict[str, Any] = {
        "step": now.steps,
        "updates": now.updates,
        "totals": now.totals,
        "training_time": now.training_time,
        "wall_time": now.training_time / 0.9,
        "before": BEFORE,
        "loss": loss,
        "parameters": N,
        "devices": 2,
        "peak": 1e6,
    }
    return interval_scalars(LogStep(**{**arguments, **changes}))


PARTS = {"isoflop/flops_no_grad", "isoflop/flops_optimizer"}
"""Shown where there are any."""


def test_every_scalar_by_hand():
    assert scalars() == pytest.approx(
        {
            "isoflop/loss": 2.0,
            "isoflop/flops": 4e6,
            "isoflop/flops_6nd": 6 * 50 * 3000,
            "isoflop/tokens": 2700,
            "isoflop/tokens_processed": 3000,
            "isoflop/padding_fraction": 0.1,
            "isoflop/loss_tokens": 2400,
            "isoflop/goodput": 0.9,
            "isoflop/tokens_per_param": 27.0,
            "isoflop/tokens_per_param_non_embedding": 54.0,
            "isoflop/batch_tokens": 200,
            "isoflop/tokens_per_second_per_device": 2000 / 4 / 2,
            "isoflop/tflops_per_device": 3e6 / 4 / 2 / 1e12,
            "isoflop/mfu": 3e6 / 4 / 2 / 1e6,
            "isoflop/mfu_causal": (3e6 - 4e5 / 2) / 4 / 2 / 1e6,
        }
    )
    assert set(scalars()) == set(INTERVAL) - PARTS
    parts = NOW._replace(totals=NOW.totals._replace(flops_no_grad=7, flops_optimizer=5))
    assert [scalars(now=parts)[name] for name in sorted(PARTS)] == [7, 5]


def missing(**changes: Any) -> set[str]:
    return {name.removeprefix("isoflop/") for name in INTERVAL.keys() - PARTS - scalars(**changes).keys()}


def test_unknown_is_left_out():
    of_n = {"flops_6nd", "tokens_per_param", "tokens_per_param_non_embedding"}
    rates = {"tokens_per_second_per_device", "tflops_per_device", "mfu", "mfu_causal"}
    assert missing(loss=None) == {"loss"}
    assert missing(peak=None) == {"mfu", "mfu_causal"}
    assert missing(parameters=None) == of_n
    assert missing(before=NOW) == rates | {"batch_tokens"}
    no_flops = NOW._replace(totals=Totals(3000, 300, 2400, without_flops=1))
    assert missing(now=no_flops) == {"flops", "tflops_per_device", "mfu", "mfu_causal"}
    no_tokens = NOW._replace(totals=Totals(flops=4 * 10**6, without_tokens=1))
    of_tokens = {"tokens", "tokens_processed", "padding_fraction", "loss_tokens", "batch_tokens"}
    assert missing(now=no_tokens) == of_n | of_tokens | {"tokens_per_second_per_device"}
    nothing = Interval()
    assert missing(before=nothing, now=nothing) == rates | {"batch_tokens", "padding_fraction"}


def test_an_interval_survives_a_checkpoint():
    assert Interval.from_state(json.loads(json.dumps(NOW.state_dict()))) == NOW


# -- the terminal's line -----------------------------------------------------------------------------------------------


def test_the_line_in_the_documentation():
    assert doctest.testmod(terminal) == (0, 4)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "step 7"),
        ({"loss": 2.0}, "step 7 · loss 2.000"),
        ({"loss": math.nan}, "step 7 · loss nan"),
        ({"loss": math.inf}, "step 7 · loss inf"),
        ({"loss": -1e-9}, "step 7 · loss -1e-09"),
        ({"tokens_per_second_per_device": 0.4}, "step 7 · 0 tok/s/device"),
        ({"tokens_per_second_per_device": 1234567.0}, "step 7 · 1,234,567 tok/s/device"),
        ({"tflops_per_device": 99.96}, "step 7 · 100 TFLOP/s"),
        ({"tflops_per_device": 3.14159}, "step 7 · 3.14 TFLOP/s"),
        ({"tflops_per_device": 0.000123456}, "step 7 · 0.123 GFLOP/s"),
        ({"mfu": 0.31849}, "step 7 · MFU 31.8%"),
        ({"goodput": 1.0, "mfu": 0.0}, "step 7 · MFU 0.0% · goodput 100%"),
    ],
)
def test_the_line_leaves_out_what_is_unknown(values: dict[str, float], line: str):
    assert interval_line(7, {f"isoflop/{name}": value for name, value in values.items()}) == line


def test_large_steps():
    assert interval_line(1_234_567, {}) == "step 1,234,567"


def test_the_terminal_of_a_long_run_is_thinned_like_its_record_and_ends_with_its_last_line() -> None:
    lines: list[str] = []
    sinks = Sinks(RunInfo(say=lines.append))
    for step in range(1, 30_001):
        sinks.log(LogStep(step=step, scalars={"isoflop/loss": 2.0}))
    sinks.close(LogStep(step=30_001), completed=True)
    due_ones = sum(due(step) for step in range(1, 30_001))
    assert due_ones <= len(lines) <= due_ones + 1 and lines[-1] == "step 30,000 · loss 2.000"
    assert lines[:1024] == [f"step {step:,} · loss 2.000" for step in range(1, 1025)]


def test_tensorboard_shows_the_headline_in_one_group_and_evaluations_against_compute(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    sinks = Sinks(RunInfo(say=print, sinks=[sink]))
    scalars = {"isoflop/loss": 2.0, "isoflop/forecast_loss": 1.5, "isoflop/b_crit": 4e5, "isoflop/goodput": 0.9}
    totals = Totals(processed=10, padding=0, loss_tokens=10, flops=10**12, flops_attention=0)
    step = LogStep(step=10, scalars=scalars, loss=2.0, totals=totals)
    sinks.log(step)
    sinks.evaluate("val/c4", 2.5, step)
    sinks.evaluate("loss", 2.6, step)  # a name that the training's has
    sinks.close(step, completed=True)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"])
    assert {tag for tag in tags if not tag.startswith("isoflop/")} == {"isoflop_batch/b_crit", "isoflop_speed/goodput"}
    (evaluated,) = events.Scalars("isoflop/1000log10C_val_c4")
    assert (evaluated.step, evaluated.value) == (12_000, 2.5)
    assert [events.Scalars(f"isoflop/1000log10C_{name}")[0].value for name in ("loss", "loss_eval")] == [
        pytest.approx(2.0), pytest.approx(2.6)
    ]  # fmt: skip
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_an_event_file_of_our_own_is_thinned_and_ends_where_the_run_does(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    for step in range(1, 3000):
        sink.write(step, {"loss": float(step)}, [])
    sink.close()
    sink.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload().Scalars("loss")
    assert [event.step for event in events] == [step for step in range(1, 2999) if due(step)] + [2999]
    assert all(event.value == event.step for event in events)
