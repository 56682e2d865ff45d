"""`make torture`: faults, kills and fuzzing at full length, and one table of what was tried and what was lost.

Two processes work on it. Parts run by themselves too: `make torture ARGS="faults kills-lightning"`. TORTURE_SECONDS is
the time-box of each fuzz target, and of a trainer's interrupts.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

TESTS = Path(__file__).parents[1]
KILLS = {"lightning": 50, "transformers": 50, "plain": 20}
INTERRUPTS = 20
CASES = 100_000
SECONDS = float(os.environ.get("TORTURE_SECONDS", 90))
MOST_KILLS = 3
"""Of one run."""
MOST_LOST = 5
"""Of one row; then it is given up."""


class Row(NamedTuple):
    """One line of the table: what was tried how often, and what was lost."""

    what: str
    tried: int
    lost: int
    seconds: float


def faults() -> list[Row]:
    """The suite's faults, each as a run of its own."""
    import pytest

    class Count:
        passed = failed = 0

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            self.passed += report.when == "call" and report.passed
            self.failed += report.failed

    count, began = Count(), time.monotonic()
    files = [str(TESTS / name) for name in ("test_guard.py", "test_faults.py")]
    pytest.main(["-q", "--rootdir", str(TESTS.parent), *files], plugins=[count])
    return [Row("faults tried", count.passed + count.failed, count.failed, time.monotonic() - began)]


def kills(trainer: str) -> list[Row]:
    """kill -9 until so many were survived."""
    from torture.kills import one_run

    began, done, lost, number = time.monotonic(), 0, 0, 0
    folder, whole = Path(tempfile.mkdtemp(prefix="isoflop-kills-")), {}
    while done < KILLS[trainer] and lost <= MOST_LOST:
        try:
            done += one_run(trainer, folder, number, min(MOST_KILLS, KILLS[trainer] - done), whole)
        except Exception:
            lost += 1
            print(f"LOST: {trainer}, run {number}")
            traceback.print_exc()
        number += 1
    shutil.rmtree(folder)
    return [Row(f"kill -9 survived: {trainer}, {number} runs", done, lost, time.monotonic() - began)]


def ranks() -> list[Row]:
    """One rank of two and of four is killed at each request to the others."""
    from torture.ranks import kills_at_every_request

    rows = []
    for count in (2, 4):
        began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="isoflop-ranks-"))
        tried, lost = kills_at_every_request(folder, count)
        for victim, request, error in lost:
            print(f"LOST: rank {victim} of {count}, request {request}: {error}")
        rows.append(Row(f"one of {count} ranks killed at each request", tried, len(lost), time.monotonic() - began))
        shutil.rmtree(folder)
    return rows


def interrupts() -> list[Row]:
    """Ctrl-C at random moments of each trainer's runs, with isoflop and without."""
    from torture.interrupts import TRAINERS, one_moment

    rows = []
    for trainer in TRAINERS:
        began, folder, done, lost = time.monotonic(), Path(tempfile.mkdtemp(prefix="isoflop-interrupts-")), 0, 0
        while done < INTERRUPTS and lost <= MOST_LOST and time.monotonic() < began + SECONDS:
            try:
                one_moment(trainer, folder, done)
            except Exception as error:
                lost += 1
                print(f"LOST: {trainer}, moment {done}: {error}")
            done += 1
        rows.append(Row(f"Ctrl-C: {trainer}", done, lost, time.monotonic() - began))
        shutil.rmtree(folder)
    return rows


def fuzz() -> list[Row]:
    """Each target on numbered cases, until there were enough or the time is over."""
    from torture.fuzz import Lost, run_cases
    from torture.targets import TARGETS

    rows = []
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="isoflop-fuzz-", dir=memory if memory.is_dir() else None))
    logging.disable()
    for name, target in TARGETS.items():
        began, done, lost = time.monotonic(), 0, 0
        while done < CASES and lost <= MOST_LOST and (left := began + SECONDS - time.monotonic()) > 0:
            try:
                done += run_cases(target, CASES - done, folder, left, first=done)
            except Lost as error:
                lost += 1
                print(f"LOST: {error}")
                done = error.number + 1
        rows.append(Row(f"cases: {name}", done, lost, time.monotonic() - began))
    shutil.rmtree(folder)
    return rows


def coverage_guided() -> list[Row]:
    """The record's reader once more, by atheris, where that is installed."""
    from torture.guided import run_guided

    return run_guided(SECONDS)


PARTS: dict[str, Callable[[], list[Row]]] = {
    "faults": faults,
    **{f"kills-{trainer}": partial(kills, trainer) for trainer in KILLS},
    "ranks": ranks,
    "interrupts": interrupts,
    "fuzz": fuzz,
    "guided": coverage_guided,
}
HALVES = (("faults", *(f"kills-{trainer}" for trainer in KILLS), "ranks", "interrupts"), ("fuzz", "guided"))


def run_parts(names: Sequence[str], result: Path) -> None:
    """Run parts in this process, and leave their rows in a file."""
    torch.set_num_threads(1)
    rows = [row for name in names for row in PARTS[name]()]
    result.write_text(json.dumps(rows))


def main(names: list[str]) -> int:
    """Run the parts, print the table; 1 where anything was lost."""
    if names[:1] == ["--into"]:
        run_parts(names[2:], Path(names[1]))
        return 0
    if unknown := set(names) - set(PARTS):
        print(f"expected parts out of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    halves = [[name for name in half if not names or name in names] for half in HALVES]
    with tempfile.TemporaryDirectory(prefix="isoflop-torture-") as folder:
        results = [Path(folder) / f"{i}.json" for i in range(len(halves))]
        processes = [
            subprocess.Popen([sys.executable, "-m", "torture", "--into", str(result), *half])
            for half, result in zip(halves, results, strict=True)
            if half
        ]
        codes = [process.wait() for process in processes]
        rows = [Row(*row) for result in results if result.exists() for row in json.loads(result.read_text())]
    width = max((len(row.what) for row in rows), default=0)
    print(f"\n{'':{width}}  {'tried':>8}  {'lost':>5}  {'seconds':>8}")
    for row in rows:
        print(f"{row.what:{width}}  {row.tried:8,}  {row.lost:5}  {row.seconds:8,.0f}")
    lost = sum(row.lost for row in rows)
    print(f"\nlost: {lost}")
    return int(lost > 0 or any(codes) or not rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
