"""Eight runs write into one folder, two are killed, others read: nothing torn, nothing lost, no lock left."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import isoflop
from isoflop.record import RecordLog, Run, read_runs
from workers import forking, kill_me

WRITERS, STEPS, TOKENS = 8, 200, 512


def write(folder: Path, number: int, kill_at: int | None = None) -> None:
    """A run as a user's, all of a Monitor but the model's arithmetic; `kill_at`: it dies by SIGKILL at that step."""
    logging.getLogger("isoflop").setLevel(logging.ERROR)  # no lines in the terminal
    monitor = isoflop.Monitor(
        record_dir=folder, log_every=1, total_steps=STEPS, num_params=10_000 * number, flops_per_token=6e4 * number
    )
    for step in range(1, STEPS + 1):
        monitor.step(4 - 0.001 * step + number, tokens=TOKENS)
        if step == kill_at:
            kill_me()
    monitor.close()


def read_until(folder: Path, stop: Any, results: Any) -> None:
    """Reads the folder over and over; a run must only ever grow, and hold nothing that was not written."""
    readings, steps, odd = 0, {}, []
    while not stop.is_set() or not readings:
        for run in read_runs(folder, on_problem=lambda text: None):  # a file whose header is still on its way
            odd += [*run.problems, *wrong(run)]
            last = run.points[-1].step if run.points else 0
            if last < steps.get(run.run_id, 0):
                odd.append(f"{run.run_id} went back from {steps[run.run_id]} to {last}")
            steps[run.run_id] = last
        readings += 1
    results.put((readings, odd))


def fit_until(folder: Path, stop: Any, results: Any) -> None:
    """`isoflop fit` on the folder, over and over: a law, or an error that says what is missing."""
    from typer.testing import CliRunner

    from isoflop.cli import app

    readings, odd = 0, []
    while not stop.is_set() or not readings:
        result = CliRunner().invoke(app, ["fit", str(folder), "--json"])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            odd.append(repr(result.exception))
        readings += 1
    results.put((readings, odd))


def wrong(run: Run) -> list[str]:
    """What a run's points hold that its writer did not write."""
    number = run.parameters["total"] // 10_000 if run.parameters.get("total") else 0
    found = []
    for point in run.points:
        if point.tokens != TOKENS * point.step or point.flops != int(6e4 * number) * TOKENS * point.step:
            found.append(f"{run.run_id}, step {point.step}: {point.tokens} tokens, {point.flops} FLOPs")
    every = [point.step for point in run.points]
    if every != list(range(1, len(every) + 1)):
        found.append(f"{run.run_id}: steps {every[:20]}…")
    return found


def test_eight_writers_and_readers_in_one_folder(tmp_path: Path) -> None:
    kills = {3: 60, 6: 160}  # of these writers, at these steps
    with forking() as context:
        stop, results = context.Event(), context.Queue()
        readers = [
            context.Process(target=reader, args=(tmp_path, stop, results), daemon=True)
            for reader in (read_until, fit_until)
        ]
        writers = [
            context.Process(target=write, args=(tmp_path, number, kills.get(number)), daemon=True)
            for number in range(1, WRITERS + 1)
        ]
        for process in (*writers, *readers):
            process.start()
    for process in writers:
        process.join(120)
    stop.set()
    told = [results.get(timeout=60) for _ in readers]
    for process in readers:
        process.join(60)
    assert [process.exitcode for process in writers] == [
        -signal.SIGKILL if number in kills else 0 for number in range(1, WRITERS + 1)
    ]
    assert all(readings > 0 and odd == [] for readings, odd in told), told

    runs = {run.parameters["total"] // 10_000: run for run in read_runs(tmp_path)}
    assert sorted(runs) == list(range(1, WRITERS + 1))
    for number, run in runs.items():
        last = kills.get(number, STEPS)
        assert run.points[-1].step == last and wrong(run) == []
        assert run.status == ("running" if number in kills else "completed")
    for number in kills:  # its lock went with it: the record can be gone on with at once
        log = RecordLog.resume(str(runs[number].path), kills[number])
        log.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in files} <= {tmp_path, *(tmp_path / run.name for run in runs.values())}
    left = {path.name for path in files if not path.name.startswith("events.out.tfevents")}
    left -= {"isoflop-passport.md", "isoflop-passport.json"}  # of the runs that ended
    # no lock, no temporary file
    assert all(name.startswith("isoflop-") and name.endswith(".jsonl") for name in left), left
