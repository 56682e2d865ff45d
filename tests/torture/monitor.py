"""Target: the Monitor itself, given losses, tokens, steps and clocks that can't be: training goes on, and is told."""

from __future__ import annotations

import math
import shutil
import time
import warnings
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import torch

import isoflop
from isoflop.advice import Reason
from isoflop.live import RunInfo
from isoflop.record import read_run

ODD: list[Any] = [
    *(float("nan"), float("inf"), float("-inf"), 0, 0.0, -0.0, -1.0, -1e30, 1e30, 1e308, 1e-320, 10**30, 10**400, True),
    *(torch.tensor(2.5), torch.tensor(2.5, dtype=torch.float64), torch.tensor(2.5, dtype=torch.bfloat16)),
    *(torch.tensor(float("nan"), dtype=torch.float16), torch.tensor([2.5]), torch.tensor([[2.5]]), torch.tensor(3)),
    *(torch.tensor(2**60), torch.tensor(True), torch.tensor(float("inf")), torch.tensor(1e38), torch.tensor(-1.0)),
    torch.tensor(2.5, requires_grad=True),
]
NO_NUMBERS: list[Any] = ["2.5", [2.5], object(), torch.ones(3), torch.ones(0), {}, 2 + 1j, b"2", torch.tensor(1j)]
TOKENS: list[Any] = [
    0,
    -1,
    None,
    512.0,
    0.5,
    10**15,
    10**30,
    True,
    float("nan"),
    float("inf"),
    "512",
    torch.tensor(512),
]


OF_THE_CURVE = (Reason.PAST_EFFICIENT, Reason.TARGET, Reason.OFF_CURVE, Reason.PLATEAU, Reason.OVERFITTING)
"""Reasons that a curve of numbers is needed for."""


class WildClock:
    """A clock that mostly goes on, and sometimes jumps by years."""

    def __init__(self, random: Random) -> None:
        self._random, self._now = random, 1.8e9

    def __call__(self) -> float:
        self._now += self._random.choice([0.01, 0.01, 0.1, 1.0])
        if self._random.random() < 0.02:
            self._now += self._random.choice([-3.2e8, 3.2e8, -60.0, 3600.0, -1.9e9])
        self._now = max(self._now, 1.0)
        return self._now


def fuzz_monitor(random: Random, folder: Path) -> None:
    """A run of odd numbers."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    total = random.choice([None, 1, 40, 40, 200])
    run = RunInfo(optimizer=optimizer, total_steps=total, record_dir=folder / "runs", say=lambda line: None)
    on_advice: list[Any] = []
    monitor = isoflop.Monitor(
        run=run,
        log_every=random.choice([1, 1, 2, 5]),
        num_params=1000,
        flops_per_token=6000.0,
        noise_scale="off",
        record_dir=folder / "runs",
        on_advice=on_advice.append,
    )
    if random.random() < 0.2:
        monitor._clock._before["cpu"] = 1e6  # so that forecasts and advice have time for their work
    kind = random.choice(["odd", "odd", "mixed", "constant", "no number"])
    constant = random.choice(ODD)
    expected_aside = set()
    clock = WildClock(random) if random.random() < 0.3 else time.time
    quick = {"git_state": lambda: None, "library_versions": dict}
    with warnings.catch_warnings(), patch("time.time", clock), patch.multiple("isoflop.live.recorder", **quick):
        warnings.simplefilter("error")
        for step in range(random.choice([1, 5, 40, 40])):
            loss: Any = 2 + 3 / (step + 1) + random.gauss(0, 0.01)
            if kind == "constant":
                loss = constant
            elif kind == "odd" and random.random() < 0.3:
                loss = random.choice(ODD)
            elif kind == "mixed":
                loss = random.choice([*ODD, None])
            elif kind == "no number" and random.random() < 0.2:
                loss = random.choice(NO_NUMBERS)
                expected_aside |= {"adding the loss", "summing over ranks"}
            tokens: Any = 512
            if random.random() < 0.05:
                tokens = random.choice(TOKENS)
                expected_aside |= {"settling the step"}
            if random.random() < 0.05:
                optimizer.param_groups[0]["lr"] = random.choice(
                    [0.0, -1.0, float("nan"), None, torch.tensor(0.1), 1e30]
                )
            if random.random() < 0.03:
                # a trainer whose counter repeats steps or goes back; rare, for each begins a stretch that is uncounted
                monitor.expect(random.choice([0, max(0, monitor.steps - 3), monitor.steps, monitor.steps + 1000]))
            if random.random() < 0.05:
                monitor.evaluate("val", random.choice([*ODD[:14], 2.5]))
            if random.random() < 0.02:
                kept = monitor.state_dict()
                if random.random() < 0.5 and kept:
                    monitor.load_state_dict(kept)
            monitor.step(loss, tokens=tokens, advance=random.choice([1, 1, 1, 1, 0, 2]))
        monitor.close()
    unexpected = {name: why for name, why in monitor.guard.aside.items() if name not in expected_aside}
    assert not unexpected, unexpected
    for advice in on_advice:
        assert all(math.isfinite(each.value) for each in advice.numbers), advice
        if kind == "constant" and not isinstance(constant, torch.Tensor) and not math.isfinite(float_or_inf(constant)):
            assert advice.reason not in OF_THE_CURVE, advice
    assert all(isinstance(value, float | int) for value in monitor.scalars.values()), monitor.scalars
    for path in (folder / "runs").glob("*.jsonl"):
        run = read_run(path)
        wild = clock is not time.time
        backwards = [text for text in run.problems if "or a resume line before" in text or (wild and "time" in text)]
        assert len(run.problems) == len(backwards), run.problems
        assert run.status == "completed"


def float_or_inf(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
