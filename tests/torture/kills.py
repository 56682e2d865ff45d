"""kill -9 at random moments: a run is killed and resumed until it ends; then its record is held against the truth.

A moment is a time, a byte of one of our own writes, or a checkpoint being written. Workers are forked from a server
that has imported everything, see `workers`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from isoflop.record import RecordError, Run, read_run
from test_resume import ROWS, train_lightning, train_plain, train_transformers
from tiny import losses, totals
from workers import kill_me, run

TRAIN = {"plain": train_plain, "lightning": train_lightning, "transformers": train_transformers}
TORN = "torn.json"
PATIENCE = 600.0
"""Seconds for an attempt: the machine may be a busy one."""
STEPS = [2, 4, 6, 8, 10, 12]


@dataclass(frozen=True)
class Moment:
    """When to die: `kind` is "clock" (after `at` seconds), "write" (the record's write number `number`, after the share
    `at` of its bytes) or "checkpoint" (`at` seconds into `torch.save` number `number`).
    """

    kind: str
    number: int
    at: float


def any_moment(random: Random, seconds: float) -> Moment:
    """A moment in an attempt that takes so long; most of them are reached."""
    kind = random.choice(["clock", "clock", "write", "write", "checkpoint"])
    if kind == "clock":
        return Moment(kind, 0, random.uniform(0, seconds))
    if kind == "write":
        return Moment(kind, random.randint(1, 9), random.choice([0.0, 1.0, random.random(), random.random()]))
    return Moment(kind, random.randint(1, 8), random.uniform(0, 0.004))


def attempt(trainer: str, folder: Path, every: int, accumulate: int, moment: Moment | None) -> float:
    """In a worker: train from the last checkpoint on, and die at the moment. Returns how long it took."""
    logging.getLogger("isoflop").setLevel(logging.ERROR)
    began = time.perf_counter()
    if moment is not None:
        {"clock": _at_a_time, "write": _in_a_write, "checkpoint": _in_a_checkpoint}[moment.kind](moment, folder)
    TRAIN[trainer](folder, every, accumulate=accumulate)
    return time.perf_counter() - began


def _soon(seconds: float) -> None:
    def wait() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _at_a_time(moment: Moment, folder: Path) -> None:
    _soon(moment.at)


def _in_a_write(moment: Moment, folder: Path) -> None:
    left, write = moment.number, os.write

    def torn(descriptor: int, data: bytes) -> int:
        nonlocal left
        if not bytes(data).lstrip(b"\n").startswith(b'{"event":'):
            return write(descriptor, data)
        left -= 1
        if left:
            return write(descriptor, data)
        part = data[: round(moment.at * len(data))]
        closing = len(data) - len(data.lstrip(b"\n"))  # of a line that was torn before
        told = {"file": os.readlink(f"/proc/self/fd/{descriptor}"), "size": len(data) - closing}
        (folder / TORN).write_text(json.dumps({**told, "written": max(0, len(part) - closing)}))
        if part:
            write(descriptor, part)
        kill_me()
        return 0

    os.write = torn  # type: ignore[assignment]


def _in_a_checkpoint(moment: Moment, folder: Path) -> None:
    left, save = moment.number, torch.save

    def dying(*args: Any, **kwargs: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            _soon(moment.at)
        save(*args, **kwargs)

    torch.save = dying


def remove_torn_checkpoints(folder: Path) -> None:
    """What a supervisor does: Hugging Face's Trainer writes a checkpoint's files in place, this one last."""
    for checkpoint in folder.glob("checkpoint-*"):
        if checkpoint.is_dir():
            try:
                json.loads((checkpoint / "trainer_state.json").read_text())
            except (OSError, ValueError):
                shutil.rmtree(checkpoint)


def in_one_piece(trainer: str, folder: Path, every: int, accumulate: int) -> tuple[Run, float]:
    """The run that nobody kills, and how long it takes."""
    folder.mkdir()
    (seconds,) = run(attempt, trainer, folder, every, accumulate, None, timeout=PATIENCE)
    (record,) = records(folder)
    assert totals(record) == ROWS.totals()
    return record, seconds


def records(folder: Path) -> list[Run]:
    """Those that were begun: a file that was torn inside its first line is none yet."""
    found = []
    for path in sorted(folder.rglob("isoflop-*.jsonl")):
        try:
            found.append(read_run(path))
        except RecordError:
            assert b"\n" not in path.read_bytes(), f"{path} has lines, but no header"
    return found


def kill_until_done(
    trainer: str, folder: Path, random: Random, seconds: float, kills: int, every: int, accumulate: int
) -> tuple[int, list[dict[str, Any]]]:
    """Train in attempts, killed up to `kills` times; returns how often it was, and the lines that were torn."""
    folder.mkdir()
    torn: list[dict[str, Any]] = []
    for done in range(kills + 1):  # the last attempt is let through
        moment = any_moment(random, seconds) if done < kills else None
        (result,) = run(attempt, trainer, folder, every, accumulate, moment, timeout=PATIENCE)
        if result != "killed":
            return done, torn
        if (folder / TORN).exists():
            torn.append(json.loads((folder / TORN).read_text()))
            (folder / TORN).unlink()
        records(folder)  # a reader meanwhile is not stopped by anything
        remove_torn_checkpoints(folder)
    raise AssertionError("the last attempt, which nobody killed, did not end")


def check(whole: Run, folder: Path, torn: list[dict[str, Any]], compare_losses: bool) -> None:
    """The record says what the uninterrupted run's says: nothing lost, nothing twice, and what was repaired."""
    found = records(folder)
    completed = [record for record in found if record.status == "completed"]
    assert completed, f"no record has ended: {[(record.status, record.points[-1:]) for record in found]}"
    by_id = {record.run_id: record for record in found}
    for record in completed:
        assert totals(record) == totals(whole) == ROWS.totals()
        if record.parent is not None:
            # killed after its end line, before the process ended: what came again is a branch of the whole record
            assert by_id[record.parent["run_id"]].status == "completed"
            continue
        assert [point.step for point in record.points] == STEPS
        assert [point.interval_steps for point in record.points] == [2] * 6
        for name in ("tokens", "flops", "padding", "loss_tokens", "flops_hardware", "flops_6nd", "lr", "batch_tokens"):
            theirs = [getattr(point, name) for point in whole.points]
            assert [getattr(point, name) for point in record.points] == theirs, name
        if compare_losses:
            ours, expected = losses(record), losses(whole)
            assert all(abs((ours[step] or 0) - (expected[step] or 0)) < 1e-6 for step in STEPS), (ours, expected)
        cut = [line for line in torn if Path(line["file"]).name == Path(record.path or "").name]
        cut = [line for line in cut if 0 < line["written"] < line["size"] - 1]  # else it is there, or not begun
        assert len(record.problems) == len(cut), (record.problems, torn)
    assert any(record.parent is None for record in completed)


def one_run(trainer: str, folder: Path, number: int, kills: int, whole: dict[Any, tuple[Run, float]]) -> int:
    """Run number `number`, killed and held against the one in one piece; returns the kills it survived."""
    random = Random(f"{trainer} {number}")
    every, accumulate = random.choice([(2, 1), (3, 1), (4, 1), (4, 2)])
    key = (trainer, every, accumulate)
    if key not in whole:
        whole[key] = in_one_piece(trainer, folder / f"{trainer}-{every}-{accumulate}", every, accumulate)
    record, seconds = whole[key]
    where = folder / f"{trainer}-{number}"
    survived, torn = kill_until_done(trainer, where, random, seconds, kills, every, accumulate)
    check(record, where, torn, compare_losses=trainer != "transformers" or every % 2 == 0)
    shutil.rmtree(where)
    return survived
