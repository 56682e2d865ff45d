"""How many functions of ours a step runs, and in how many files: the way of a loss value stays short enough to read.

A function counts once however often it is called; comprehensions count with the function that they stand in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import isoflop
from isoflop.forecast import Forecast
from tiny import Rows, model

ROOT = Path(__file__).parents[1]
OURS = (str(ROOT / "src"), str(ROOT / "integrations"))
LOG_EVERY, STEPS = 10, 120
LOG, JUDGED = (90, 21), (142, 30)
"""Functions and files of a log step, and of one at which the rules of advice are asked, as measured. The aim is 80 in
20; most of the rest are the rules, the noise scale and the sums over tokens and FLOPs."""


def functions_of(act: Callable[[], Any]) -> set[CodeType]:
    """Those of ours that `act` calls."""
    seen: set[CodeType] = set()

    def look(frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if (
            event == "call"
            and code.co_filename.startswith(OURS)
            and (code.co_name[0] != "<" or "lambda" in code.co_name)
        ):
            seen.add(code)

    sys.setprofile(look)
    try:
        act()
    finally:
        sys.setprofile(None)
    return seen


def files(functions: set[CodeType]) -> set[str]:
    return {code.co_filename for code in functions}


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[int, set[CodeType]]:
    """By optimizer step what a plain loop calls: token ids alone, two micro-batches a step."""
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, betas=(0.9, 0.9))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (2 * STEPS))
    folder = tmp_path_factory.mktemp("run")
    rows = Rows(8).ids

    def micro_batch(ids: torch.Tensor) -> None:
        logits = net(ids)["logits"][:, :-1]
        (F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) / 2).backward()

    def step(monitor: isoflop.Monitor) -> None:
        for ids in rows.chunk(2):
            micro_batch(ids)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        monitor.step(torch.tensor(2.5))

    options: dict[str, Any] = {"record_dir": folder, "log_every": LOG_EVERY, "total_steps": STEPS}
    with isoflop.Monitor(net, optimizer=optimizer, scheduler=scheduler, **options) as monitor:
        monitor.run.say = lambda line: None
        found = {}
        for number in range(1, STEPS + 1):
            # time for refits of the forecast at first, and none for further ones later
            monitor._clock._before["cpu"] = 30.0 if number <= STEPS // 2 else 0.0
            monitor._advice._spent = 0.0 if number <= STEPS // 2 else 1.0
            found[number] = functions_of(lambda: step(monitor))
        assert not monitor.guard.aside and monitor.noise.raw.count >= 3 and monitor.forecast is not None
    return found


def refits(functions: set[CodeType]) -> bool:
    """Or gives new advice."""
    return bool({"solve", "markdown"} & {code.co_name for code in functions})


def test_a_plain_step_runs_few_functions(steps: dict[int, set[CodeType]]) -> None:
    """But for the steps that are measured for the noise scale, the two before each, and those that are observed."""
    later = [found for number, found in steps.items() if number > STEPS // 2 and number % LOG_EVERY]
    others = {"Noise.step", "Observation.forward", "StepObserver.observe_next"}
    plain = [found for found in later if not others & {code.co_qualname for code in found}]
    assert plain and max(map(len, plain)) <= 11 and max(len(files(found)) for found in plain) <= 5


def test_a_log_step_runs_no_more_functions_than_it_did(steps: dict[int, set[CodeType]]) -> None:
    """Without a refit of the forecast or a measured step, as most are; with forecast, noise scale and advice on."""
    logged = [found for number, found in steps.items() if number > STEPS // 2 and number % LOG_EVERY == 0]
    quiet = [found for found in logged if not refits(found) and not any("MicroBatches" in c.co_qualname for c in found)]
    assert quiet, "each log step refits the forecast or is measured"
    names = {code.co_qualname for code in quiet[0]}
    assert {"ForecastPart.log", "Noise.log", "AdvicePart.log", "Recorder.log", "Sinks.log"} <= names
    judged = [found for found in quiet if any(code.co_qualname == "Adviser.look" for code in found)]
    unjudged = [found for found in quiet if found not in judged]
    for steps_of, (functions, in_files) in ((unjudged, LOG), (judged, JUDGED)):
        assert steps_of, "all log steps are judged, or none"
        assert max(map(len, steps_of)) <= functions and max(len(files(found)) for found in steps_of) <= in_files


def test_the_measure_can_fail() -> None:
    assert {code.co_name for code in functions_of(lambda: isoflop.TokenCount(1))} == {"__getattr__"}
    assert isinstance(Forecast, type)
