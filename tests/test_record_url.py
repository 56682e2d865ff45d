"""Records at URLs: what is written arrives, through failures, slowness, kills and resumes, and training never waits."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import isoflop
from isoflop.record import (
    Point,
    RecordError,
    RecordFinished,
    RecordLog,
    RemoteLog,
    below,
    check_location,
    is_url,
    last_name,
    location_of,
    read_bytes,
    read_run,
    read_runs,
    write_bytes,
)
from isoflop.record.remote import whole_record
from test_record import python

fsspec = pytest.importorskip("fsspec")
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402

HEADER = {"name": "tiny", "model": {"class": "GPT"}, "parameters": {"total": 100}}


class Flaky(MemoryFileSystem):
    """An object store that fails as often as it is told to, with errors of its own kind, and hangs while told to."""

    protocol = "flaky"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failures = 0
    open_gate = threading.Event()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        assert self.open_gate.wait(60)
        if type(self).failures > 0:
            type(self).failures -= 1
            raise StoreError("503 slow down")
        super().pipe_file(path, value, mode=mode, **options)


class StoreError(Exception):
    """No OSError: botocore's and gcsfs's are none either."""


@pytest.fixture(autouse=True)
def _stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    MemoryFileSystem.store.clear()
    Flaky.store.clear()
    Flaky.failures = 0
    Flaky.open_gate.set()
    yield
    Flaky.open_gate.set()


def points(log: RemoteLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.point(Point(step=step, losses={"train": 1 / step}))


def steps(url: str) -> list[int]:
    (run,) = read_runs(url)
    assert run.problems == ()
    return [point.step for point in run.points]


# -- places ------------------------------------------------------------------------------------------------------------


def test_places(tmp_path: Path) -> None:
    assert location_of("s3://bucket/runs/") == "s3://bucket/runs" and is_url("gs://b") and is_url("simplecache::s3://b")
    for plain in ("runs", "C:/runs", "a:b/c", str(tmp_path)):
        assert location_of(plain) == Path(plain) and not is_url(plain)
    assert location_of("file:///a/b%20c") == location_of("file://localhost/a/b c") == Path("/a/b c")
    assert below("s3://b/r", "x", "y.json") == "s3://b/r/x/y.json" and below(tmp_path, "x") == tmp_path / "x"
    assert last_name("s3://b/runs/") == "runs" and last_name(tmp_path / "a") == "a"


def test_what_can_not_be_opened_is_said_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecordError, match="fsspec can open, got nonsense://b"):
        isoflop.Monitor(nn.Linear(2, 2), record_dir="nonsense://b/runs")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(RecordError, match=r'pip install "isoflop\[cloud\]"'):
        check_location("s3://bucket/runs")


def test_whole_files(tmp_path: Path) -> None:
    for place in (tmp_path / "a" / "b", "memory://a/b", "flaky://a/b"):
        write_bytes(place, b"one")
        write_bytes(place, b"two")
        assert read_bytes(place) == b"two"
        with pytest.raises(FileNotFoundError):
            read_bytes(f"{place}c" if isinstance(place, str) else tmp_path / "c")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_the_core_loads_no_fsspec() -> None:
    code = "import sys, isoflop.record; isoflop.record.read_runs('.'); import isoflop; print('fsspec' in sys.modules)"
    assert python(code).stdout.strip() == "False"


# -- the log -----------------------------------------------------------------------------------------------------------


def test_a_record_arrives_whole_and_its_spool_goes() -> None:
    said: list[str] = []
    log = RemoteLog.start("memory://bucket/runs", "a", HEADER, said.append)
    points(log, 1, 5)
    log.end(5, "completed")
    log.close()
    log.close()
    run = read_run("memory://bucket/runs/isoflop-a.jsonl")
    assert (run.run_id, run.status, [point.step for point in run.points]) == ("a", "completed", [1, 2, 3, 4, 5])
    assert said == [] and list(log.path.parent.iterdir()) == []
    with pytest.raises(RecordFinished):
        RemoteLog.go_on("memory://bucket/runs", "a", 3, say=said.append)


def test_readers_take_urls() -> None:
    for name in ("x", "y/z"):
        log = RemoteLog.start(f"memory://bucket/{name}", "of-" + name[0], HEADER, print)
        log.close()
    write_bytes("memory://bucket/x/notes.txt", b"no record")
    assert sorted(run.run_id for run in read_runs("memory://bucket")) == ["of-x", "of-y"]
    told: list[str] = []
    assert read_runs("memory://nowhere", "nonsense://b", on_problem=told.append) == []
    assert "no such folder" in told[0] and "nonsense://b" in told[1]
    with pytest.raises(RecordError, match=r"memory://bucket/isoflop-q\.jsonl"):
        read_run("memory://bucket/isoflop-q.jsonl")


def killed(log: RemoteLog) -> None:
    """As kill -9 leaves it: no flush, no end line."""
    assert log._uploader is not None
    log._uploader.stop()
    RecordLog.close(log)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("uploads", ["all", "none"])
def test_a_killed_run_goes_on_without_gap_or_double(
    uploads: str, elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if uploads == "none":
        Flaky.failures = 10**9
    said: list[str] = []
    log = RemoteLog.start("flaky://b", "a", HEADER, said.append, every=0.0)
    points(log, 1, 6)
    carried = json.loads(json.dumps(log.unsent()))  # a checkpoint of step 6
    points(log, 7, 9)
    killed(log)
    Flaky.failures = 0
    if elsewhere:  # another machine: its spool is empty
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
        (tmp_path / "other").mkdir()
    again = RemoteLog.go_on("flaky://b", "a", 6, expected=HEADER, unsent=carried, say=said.append, every=0.0)
    points(again, 7, 12)
    again.end(12, "completed")
    again.close()
    assert steps("flaky://b") == list(range(1, 13))
    assert read_runs("flaky://b")[0].attempts == 2


def test_a_lost_record_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="got none"):
        RemoteLog.go_on("memory://b", "a", 6, unsent={"offset": 500, "lines": "{}\n"}, say=print)
    assert not list(tmp_path.rglob("isoflop-a.jsonl"))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=12), st.integers(0, 12), st.integers(0, 12), st.integers(0, 12), st.booleans())
def test_of_one_history_the_longest_is_taken(text: bytes, a: int, b: int, c: int, spooled: bool) -> None:
    """The spool, the object and the checkpoint each hold a beginning of the record; only the last may begin later."""
    text = text.hex().encode()
    here = text[:a] if spooled else b""
    there = text[:b]
    unsent = {"offset": min(b, c), "lines": text[min(b, c) : max(b, c)].decode()}
    assert whole_record(here, there, unsent) == text[: max(len(here), len(there), min(len(text), max(b, c)))]


def test_another_machines_lines_are_not_lost() -> None:
    """Killed here, gone on with there, and now here again: the spool here is of the past."""
    assert whole_record(b"abcXX", b"abcdef", {"offset": 3, "lines": "de"}) == b"abcdef"
    assert whole_record(b"abcXX", b"abcdef", {"offset": 6, "lines": "gh"}) == b"abcdefgh"
    assert whole_record(b"", b"", {"offset": 0, "lines": "abc"}) == b"abc"
    assert whole_record(b"", b"", {"offset": 7, "lines": "abc"}) == b""


# -- failures and slowness ---------------------------------------------------------------------------------------------


def test_failed_uploads_are_told_once_and_made_up_for() -> None:
    Flaky.failures = 3
    said: list[str] = []
    log = RemoteLog.start("flaky://b", "a", HEADER, said.append, every=0.0)
    points(log, 1, 20)
    log.end(20, "completed")
    log.close()
    assert Flaky.failures == 0 and steps("flaky://b") == list(range(1, 21))
    assert len(said) == 1 and "503 slow down" in said[0] and "tried again" in said[0]


def test_an_end_that_can_not_be_uploaded_is_told_with_the_place_of_all_of_it() -> None:
    Flaky.failures = 10**9
    said: list[str] = []
    log = RemoteLog.start("flaky://b", "a", HEADER, said.append, every=0.0)
    points(log, 1, 3)
    log.close(timeout=0.05)
    assert "503 slow down" in said[-1]
    assert str(log.path) in said[-1] and [point.step for point in read_run(log.path).points] == [1, 2, 3]


def test_a_store_that_hangs_holds_nothing_up() -> None:
    Flaky.open_gate.clear()
    said: list[str] = []
    log = RemoteLog.start("flaky://b", "a", HEADER, said.append, every=0.0)
    points(log, 1, 50)  # returns: the upload waits in its own thread
    log.close(timeout=0.01)
    assert "took more than 0.01 s" in said[-1]


def test_uploads_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many lines between two turns are one upload."""
    done: list[int] = []
    first, put = threading.Event(), Flaky.pipe_file

    def counted(self: Flaky, path: str, value: bytes, *arguments: Any, **options: Any) -> None:
        put(self, path, value, *arguments, **options)
        done.append(len(value))
        first.set()

    monkeypatch.setattr(Flaky, "pipe_file", counted)
    log = RemoteLog.start("flaky://b", "a", HEADER, print, every=3600.0)
    assert first.wait(60)
    points(log, 1, 1000)
    log.close()
    assert len(done) == 2 and steps("flaky://b") == list(range(1, 1001))


# -- under a monitor ---------------------------------------------------------------------------------------------------


def train(url: str, first: int, last: int, state: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = isoflop.Monitor(model, optimizer=optimizer, total_steps=20, record_dir=url, log_every=1, **more)
    if state is not None:
        monitor.load_state_dict(state)
    for _ in range(first, last + 1):
        loss = model(torch.tensor([[1, 2, 3]])).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.step(loss)
    found = json.loads(json.dumps(monitor.state_dict()))  # Hugging Face's Trainer keeps it as JSON
    if last == 20:
        monitor.close()
    else:
        killed(monitor.recorder._log)  # type: ignore[arg-type]
        monitor._unwatch()
    return found


def test_a_monitors_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    Flaky.failures = 2
    with caplog.at_level(logging.WARNING, "isoflop"):
        state = train("flaky://bucket/runs", 1, 12)
        train("flaky://bucket/runs", 13, 20, state)
    (run,) = read_runs("flaky://bucket/runs")
    assert (run.status, run.attempts, run.name) == ("completed", 2, "runs")
    assert [point.step for point in run.points] == list(range(1, 21))
    assert [point.tokens for point in run.points] == [3 * step for step in range(1, 21)]
    assert not [record for record in caplog.records if "writing the record" in record.message]


def test_a_local_url_is_a_plain_folder(tmp_path: Path) -> None:
    train(tmp_path.as_uri(), 1, 20)
    (path,) = tmp_path.glob("isoflop-*.jsonl")
    assert read_run(path).status == "completed" and read_runs(tmp_path.as_uri())[0].run_id == read_run(path).run_id


def test_fit_reads_a_url(tmp_path: Path) -> None:
    """The command, in a process of its own, from the records' URL."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import ladder_trainers\n"
        "from isoflop.record import Point, RemoteLog\n"
        "from typer.testing import CliRunner\nfrom isoflop.cli import app\n"
        "for i, (N, D) in enumerate((N, D) for N in (1e6, 3e6, 1e7, 3e7) for D in (1e8, 3e8, 1e9)):\n"
        "    log = RemoteLog.start(f'memory://b/{i}', f'r{i}', {'parameters': {'non_embedding': int(N)}}, print)\n"
        "    log.point(Point(step=1, tokens=int(D), padding=0, losses={'train': ladder_trainers.law(N, D)}))\n"
        "    log.end(1, 'completed'); log.close()\n"
        "result = CliRunner().invoke(app, ['fit', 'memory://b', '--draws', '20', '--json'])\n"
        "print(result.stdout)\n"
    )
    result = python(code, Path(__file__).parent)
    fitted = json.loads(result.stdout)
    assert fitted["n"] == 12 and fitted["parameters"]["alpha"] == pytest.approx(0.34, abs=0.02)


def test_a_script_that_ends_without_closing_uploads_its_record(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "target = open(sys.argv[1], 'wb')\n"
        "import isoflop.record.remote as remote\n"
        "remote.write_bytes = lambda url, content: (target.seek(0), target.write(content), target.flush())\n"
        "from isoflop.record import Point\n"
        "log = remote.RemoteLog.start('memory://b', 'a', {'name': 'x'}, print, every=0.0)\n"
        "for step in range(1, 30): log.point(Point(step=step))\n"
    )
    path = tmp_path / "isoflop-a.jsonl"
    subprocess.CompletedProcess.check_returncode(python(code, path))
    assert [point.step for point in read_run(path).points] == list(range(1, 30))
