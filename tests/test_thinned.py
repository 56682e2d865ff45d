"""Large records are read in part: nothing but points is lost, and of these as many are left as were said."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.record import LAST, Digest, Point, RecordError, Run, encode, encode_point, read_run, read_stream
from isoflop.report import runs as reading

PER_DOUBLING = 64
MAX_LINE_BYTES = 1 << 20
HEADER = encode({"event": "header", "isoflop": 1, "run_id": "a"})


def points(n: int, every: int = 0) -> list[bytes]:
    """Lines of a run; an evaluation after each `every`."""
    lines = []
    for i in range(1, n + 1):
        lines.append(encode_point(Point(step=i, tokens=10 * i, padding=0, losses={"train": 5 / i**0.1}), 1))
        if every and i % every == 0:
            lines.append(encode_point(Point(step=i, losses={"eval/val": 6 / i**0.1}), 1))
    return lines


def thinned(content: bytes, block: int = 1 << 20) -> bytes:
    """A record of the file, taken block by block."""
    digest = Digest(PER_DOUBLING)
    for at in range(0, len(content), block):
        digest.feed(content[at : at + block])
    assert digest.problem is None and digest.size == len(content)
    return digest.record()


def read(content: bytes) -> Run:
    return read_stream(io.BytesIO(content), "a")


def test_points_are_kept_evenly_by_the_logarithm_and_all_of_the_last() -> None:
    n = 20_000
    steps = [point.step for point in read(thinned(HEADER + b"".join(points(n)))).points]
    assert steps[: 2 * PER_DOUBLING] == list(range(1, 2 * PER_DOUBLING + 1))
    assert steps[-LAST:] == list(range(n - LAST + 1, n + 1))
    gaps = np.diff(steps)
    assert (gaps <= np.maximum(np.array(steps[1:]) / PER_DOUBLING, 1)).all()
    assert len(steps) < PER_DOUBLING * (2 + np.log2(n / PER_DOUBLING)) + LAST


def test_events_and_evaluations_are_not_lost() -> None:
    lines = points(5000, every=500)
    lines.insert(3000, encode({"event": "advice", "step": 2900, "what": "slow"}))
    lines.insert(4000, encode({"event": "update", "git": {"commit": "abc"}}))
    lines.append(encode({"event": "end", "step": 5000, "status": "completed"}))
    whole, part = read(HEADER + b"".join(lines)), read(thinned(HEADER + b"".join(lines)))
    evaluated = [
        [(p.step, p.losses["eval/val"]) for p in run.points if "eval/val" in p.losses] for run in (whole, part)
    ]
    assert evaluated[0] == evaluated[1] and len(evaluated[0]) == 10
    assert len(part.points) < len(whole.points) / 4
    assert (part.advice, part.git, part.status, part.end) == (whole.advice, whole.git, whole.status, whole.end)


def test_resumes_supersede_what_came_before() -> None:
    first, again = points(3000), [line.replace(b'"attempt":1', b'"attempt":2') for line in points(3000)]
    lines = [HEADER, *first, encode({"event": "resume", "step": 1000, "attempt": 2}), *again[1000:2000]]
    part = read(thinned(b"".join(lines)))
    assert part.attempts == 2 and part.points[-1].step == 2000
    assert {point.step for point in part.points} <= {point.step for point in read(b"".join(lines)).points}


@settings(max_examples=30)
@given(n=st.integers(0, 500), every=st.integers(0, 40), block=st.integers(40, 5000), cut=st.integers(0, 60))
def test_blocks_and_a_cut_end_change_nothing(n: int, every: int, block: int, cut: int) -> None:
    content = (HEADER + b"".join(points(n, every)))[: -cut or None] if cut < len(HEADER) else HEADER
    part = thinned(content, block)
    assert part == thinned(content)
    assert part.endswith(content.rpartition(b"\n")[2])
    assert set(part.split(b"\n")) <= set(content.split(b"\n"))


def test_lines_as_others_write_them_are_kept() -> None:
    lines = [json.dumps({"step": i, "losses": {"train": 3.0}, "event": "point"}).encode() + b"\n" for i in range(1000)]
    assert len(read(thinned(HEADER + b"".join(lines))).points) == 1000


def test_a_line_without_end_is_left_to_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = HEADER + b"x" * (2 * MAX_LINE_BYTES) + b"\n" + b"".join(points(10))
    path = tmp_path / "isoflop-a.jsonl"
    path.write_bytes(content)
    monkeypatch.setattr(reading, "LARGE", 1000)
    assert reading.read_record(str(path)) == (read_run(path), False)


def test_a_usual_record_is_read_whole_and_a_large_one_in_part(tmp_path: Path) -> None:
    small, large = tmp_path / "isoflop-small.jsonl", tmp_path / "isoflop-large.jsonl"
    small.write_bytes(HEADER + b"".join(points(100)))
    large.write_bytes(HEADER + b"".join(points(8000)))
    assert large.stat().st_size > reading.LARGE
    assert reading.read_record(str(small)) == (read_run(small), False)
    run, part = reading.read_record(str(large))
    assert part and run.points[-1] == read_run(large).points[-1]
    with pytest.raises(RecordError, match="no such file"):
        reading.read_record(str(tmp_path / "isoflop-none.jsonl"))
