"""The record's log: what is written is read back, through kills, resumes, full disks and other writers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.record import (
    Point,
    RecordBusy,
    RecordError,
    RecordFinished,
    RecordLog,
    RecordMismatch,
    new_run_id,
    read_run,
    record_path,
)

GOLDEN = Path(__file__).parent / "data" / "record-v1.jsonl"
HEADER: dict[str, Any] = {
    "name": "tiny",
    "model": {"class": "GPT"},
    "parameters": {"total": 100, "active": None},
}


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    source = str(Path(__file__).parent.parent / "src")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)


def steps(path: Path) -> list[int]:
    return [point.step for point in read_run(path).points]


def a_record(folder: Path, *, last: int = 5, status: Any = None) -> Path:
    log = RecordLog.create(folder, "a", HEADER)
    for step in range(1, last + 1):
        log.point(Point(step=step, losses={"train": 1 / step}))
    if status:
        log.end(last, status, tokens=7)
    log.close()
    return log.path


def test_the_first_version_stays_readable() -> None:
    run = read_run(GOLDEN)
    assert (run.run_id, run.name) == ("20261122-051233-a1b2c3", "gpt-small")
    assert run.created == "2026-11-22T05:12:33+00:00"
    assert (run.schema, run.status, run.attempts, run.framework) == (1, "completed", 3, "lightning")
    assert run.model["config"] == {"n_layer": 12, "n_embd": 768}
    assert run.parameters["non_embedding"] == 85_056_000 and run.parameters["active"] is None
    assert run.extra == {"cluster": "blue"}
    assert run.end is not None and run.end["flops"] == 2 * 10**19
    assert [point.step for point in run.points] == [10, 20, 30, 60]
    assert [point.losses["train"] for point in run.points] == [9.25, 8.5, 7.75, 6.5]  # the NaN is superseded
    assert run.points[1] == Point(
        step=20,
        tokens=163840,
        padding=3840,
        loss_tokens=158000,
        flops=14 * 10**13,
        flops_hardware=186 * 10**12,
        flops_6nd=83613450240000,
        losses={"train": 8.5, "eval/val": 8.75},
        lr=2e-4,
        batch_tokens=8192.0,
        interval_steps=10,
        time=1795324373.5,
        wall_time=20.0,
        training_time=17.0,
        extra={"mfu": 0.31},
    )
    assert run.points[1].data_tokens == 160_000
    (problem,) = run.problems
    assert problem.startswith(f"{GOLDEN}:6: expected one whole JSON object")


counts = st.none() | st.integers(0, 10**30)
numbers = st.none() | st.floats(0, 1e11)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
losses = st.dictionaries(names, st.none() | st.floats(), max_size=4)
points = st.builds(
    Point,
    step=st.integers(0, 2**62),
    tokens=counts,
    padding=counts,
    loss_tokens=counts,
    flops=counts,
    flops_hardware=counts,
    flops_6nd=counts,
    losses=losses,
    lr=st.none() | st.floats(),
    batch_tokens=counts | numbers,
    interval_steps=st.integers(0, 10**6),
    time=numbers,
    wall_time=numbers,
    training_time=numbers,
    extra=losses,
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(points, max_size=5, unique_by=lambda point: point.step))
def test_points_come_back_as_written(tmp_path_factory: pytest.TempPathFactory, written: list[Point]) -> None:
    written.sort(key=lambda point: point.step)
    log = RecordLog.create(tmp_path_factory.mktemp("r"), new_run_id(), HEADER)
    for point in written:
        log.point(point)
    log.close()
    run = read_run(log.path)
    assert run.points == tuple(written)
    assert (run.problems, run.status, run.parameters) == ((), "running", HEADER["parameters"])
    assert b"NaN" not in log.path.read_bytes().replace(b'NaN"', b"")


def test_losses_that_are_not_finite_are_named() -> None:
    point = Point(step=1, losses={"train": math.nan, "eval/a": -math.inf, "eval/b": 1e30}, lr=math.inf)
    assert point.losses == {"train": None, "eval/a": None, "eval/b": 1e30}
    assert point.nonfinite == {"train": "nan", "eval/a": "-inf"}
    assert point.lr is None


def test_killed_at_any_byte_it_loses_the_last_line_only(tmp_path: Path) -> None:
    whole, path = GOLDEN.read_bytes(), tmp_path / "isoflop-x.jsonl"
    header_size = whole.index(b"\n")
    known: dict[bytes, Any] = {}
    for size in [*range(0, header_size, 37), *range(header_size, len(whole) + 1)]:
        kept = whole[:size]
        path.write_bytes(kept)
        if size < header_size:
            with pytest.raises(RecordError, match="header line"):
                read_run(path)
            continue
        # Cut just before its line feed a line is whole.
        lines = kept + b"\n" if whole[size : size + 1] == b"\n" else kept[: kept.rfind(b"\n") + 1]
        run = read_run(path)
        if lines not in known:
            path.write_bytes(lines)
            known[lines] = read_run(path)
        assert run.points == known[lines].points and run.attempts == known[lines].attempts
        told = [[text for text in one.problems if ":6:" not in text] for one in (run, known[lines])]
        assert run.end or told[0] == told[1] == []  # while it runs, a cut line may be one being written


def test_a_torn_line_is_closed_and_told_on_resume(tmp_path: Path) -> None:
    path = a_record(tmp_path)
    whole = path.read_bytes()
    for cut in range(1, 30):
        path.write_bytes(whole[:-cut])
        log = RecordLog.resume(path, 4)
        assert log.messages == [f"{path}: its last line was cut off when the run stopped; it was closed."]
        log.point(Point(step=5, losses={"train": 0.5}))
        log.close()
        run = read_run(path)
        assert [point.step for point in run.points] == [1, 2, 3, 4, 5]
        assert (run.points[-1].losses, run.attempts) == ({"train": 0.5}, 2)
        assert cut == 1 or f"{path}:6: expected one whole JSON object" in run.problems[0]


def test_a_killed_writer_keeps_each_line_it_wrote(tmp_path: Path) -> None:
    code = """if True:
        import os, signal, sys
        from isoflop.record import Point, RecordLog
        log = RecordLog.create(sys.argv[1], "a", {})
        for step in range(1, 1000):
            log.point(Point(step=step))
            if step == 777:
                os.kill(os.getpid(), signal.SIGKILL)
    """
    with pytest.raises(subprocess.CalledProcessError) as error:
        python(code, tmp_path)
    assert error.value.returncode == -9
    path = record_path(tmp_path, "a")
    assert steps(path) == list(range(1, 778)) and not read_run(path).problems
    RecordLog.resume(path, 700).close()  # its lock died with it
    assert steps(path) == list(range(1, 701))


@pytest.mark.parametrize("status", [None, "interrupted", "completed"])
def test_a_resume_supersedes_what_came_after_its_step(tmp_path: Path, status: Any) -> None:
    path = a_record(tmp_path, status=status)
    resume_at = 5 if status == "completed" else 3
    log = RecordLog.resume(path, resume_at, expected=HEADER)
    assert (log.run_id, log.attempt, log.messages) == ("a", 2, [])
    assert read_run(path).status == "running"
    log.point(Point(step=9, losses={"train": 0.1}))
    log.end(9, "completed")
    log.close()
    run = read_run(path)
    assert [point.step for point in run.points] == [*range(1, resume_at + 1), 9]
    assert (run.status, run.attempts, run.problems) == ("completed", 2, ())


def test_a_finished_run_is_not_resumed_from_before_its_end(tmp_path: Path) -> None:
    path = a_record(tmp_path, status="completed")
    before = path.read_bytes()
    with pytest.raises(RecordFinished, match="completed at step 5; going on from step 3 is a branch") as error:
        RecordLog.resume(path, 3)
    assert (error.value.run_id, error.value.step) == ("a", 5)
    assert path.read_bytes() == before
    log = RecordLog.resume(path, 8)
    assert "completed at step 5; resumed at step 8, a gap" in log.messages[0]
    log.close()


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"model": {"class": "Llama"}}, "model class 'Llama', but .* is of 'GPT'"),
        ({"parameters": {"total": 7}}, "parameters total 7, but .* is of 100"),
    ],
)
def test_a_record_of_another_model_is_left_alone(tmp_path: Path, expected: dict[str, Any], said: str) -> None:
    path = a_record(tmp_path)
    before = path.read_bytes()
    with pytest.raises(RecordMismatch, match=said):
        RecordLog.resume(path, 3, expected=expected)
    assert path.read_bytes() == before
    RecordLog.resume(path, 3, expected={"model": {"class": None}, "parameters": None}).close()


def test_a_newer_record_is_left_alone(tmp_path: Path) -> None:
    path = record_path(tmp_path, "a")
    path.write_text('{"event":"header","isoflop":2,"run_id":"a"}\n')
    with pytest.raises(RecordError, match="schema 2, expected 1: upgrade isoflop"):
        RecordLog.resume(path, 3)


def test_a_second_writer_is_told(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    log = RecordLog.create(tmp_path, "a", HEADER)
    with pytest.raises(RecordBusy, match="written by another process"):
        RecordLog.resume(log.path, 0)
    log.close()
    log.close()
    RecordLog.resume(log.path, 0).close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["isoflop-a.jsonl"]  # no lock file left


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_holds_neither_log_nor_lock(tmp_path: Path) -> None:
    code = """if True:
        import os, sys
        from isoflop.record import RecordLog
        log = RecordLog.create(sys.argv[1], "a", {})
        wake, hold = os.pipe()
        ready, tell = os.pipe()
        if os.fork() == 0:
            os.close(hold)
            os.write(tell, b"1" if log.closed else b"0")
            os.read(wake, 1)  # lives on as a worker does after a kill
            os._exit(0)
        assert os.read(ready, 1) == b"1" and not log.closed
        log.close()
        RecordLog.resume(log.path, 0).close()
    """
    python(code, tmp_path)


def test_writers_without_a_lock_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    path = a_record(tmp_path)
    code = """if True:
        import sys
        sys.modules["fcntl"] = None
        from isoflop.record import RecordLog
        log = RecordLog.resume(sys.argv[1], 5)
        for step in range(1000):
            log.event("note", text=sys.argv[2] * 500)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src")}
    command = [sys.executable, "-c", code, str(path)]
    writers = [subprocess.Popen([*command, name], env=environment) for name in "xyz"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    lines = path.read_bytes().split()  # one may take another's line in the making for a torn one: a blank line
    texts = [json.loads(line).get("text") for line in lines]
    assert sorted(filter(None, texts)) == ["x" * 500] * 1000 + ["y" * 500] * 1000 + ["z" * 500] * 1000


def test_a_full_disk_costs_the_lines_it_refused_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_record(tmp_path)
    log = RecordLog.resume(path, 5)
    write = os.write
    for taken in (0, 1, 40):

        def full(descriptor: int, data: bytes, taken: int = taken) -> int:
            if len(data) > 100:
                return write(descriptor, data[:taken]) if taken and len(data) > 200 else fail()
            return fail()

        def fail() -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            log.point(Point(step=6 + taken))
        monkeypatch.setattr(os, "write", write)
        log.point(Point(step=100 + taken))
    log.close()
    assert steps(path) == [1, 2, 3, 4, 5, 100, 101, 140]
    assert len(read_run(path).problems) == 2


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    assert steps(a_record(tmp_path)) == [1, 2, 3, 4, 5]


def test_a_deleted_file_is_told(tmp_path: Path) -> None:
    log = RecordLog.create(tmp_path, "a", HEADER)
    log.path.unlink()
    with pytest.raises(RecordError, match="was deleted while the run wrote it"):
        log.point(Point(step=1))
    log.close()
    with pytest.raises(RecordError, match="was closed"):
        log.point(Point(step=1))
    with pytest.raises(RecordError, match=r"Expected a record to resume at .*record_dir="):
        RecordLog.resume(log.path, 1)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_folder_that_cannot_be_written_says_what_to_do(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"Expected a folder that can be made and written.*Set record_dir="):
        RecordLog.create(tmp_path / "file" / below, "a", HEADER)


def test_names_and_folders_that_cannot_be() -> None:
    with pytest.raises(RecordError, match="run_id: expected up to 128 letters"):
        RecordLog.create("x", "../a", {})
    with pytest.raises(RecordError, match="Expected a local folder, got s3://bucket"):
        RecordLog.create("s3://bucket", "a", {})


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    path = a_record(tmp_path)
    with pytest.raises(RecordError, match="File exists"):
        RecordLog.create(tmp_path, "a", HEADER)
    assert steps(path) == [1, 2, 3, 4, 5]


def test_whatever_is_written_is_strict_json(tmp_path: Path) -> None:
    header = {"name": "half a pair \ud83d", "options": {"x": math.nan, "f": len, "hf_token": "hf_a"}}
    log = RecordLog.create(tmp_path, "a", header)
    log.event("note", text="x" * 10**6, wide=[["y" * 900] * 900] * 900)
    log.point(Point(step=1, losses={"\ud83d": 1.0}))
    log.close()
    lines = log.path.read_bytes().splitlines()
    assert len(lines) == 3 and max(map(len, lines)) < 1 << 20
    run = read_run(log.path)
    assert (run.name, run.options) == ("half a pair ?", {"x": None, "f": "builtins.len", "hf_token": "…"})
    assert (run.points[0].losses, run.problems) == ({"?": 1.0}, ())


def test_threads_that_write_one_record_lose_and_tear_no_line(tmp_path: Path) -> None:
    log = RecordLog.create(tmp_path, "a", {})
    size = os.fstat

    def slow(descriptor: int) -> os.stat_result:
        found = size(descriptor)
        time.sleep(0)  # another thread's turn, between a look at the file and the write
        return found

    def write(first: int) -> None:
        for step in range(first, 400, 4):
            log.point(Point(step=step))

    threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fstat", slow)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(before)
    log.close()
    lines = log.path.read_text().splitlines()
    assert sorted(json.loads(line)["step"] for line in lines[1:]) == list(range(400))


def test_run_ids_sort_by_time_and_differ() -> None:
    ids = [new_run_id() for _ in range(50)]
    assert len(set(ids)) == 50 and all(len(one) == 22 for one in ids)
    assert [one[:15] for one in ids] == sorted(one[:15] for one in ids)
