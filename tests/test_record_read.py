"""The record's reader: whatever a file holds, it raises nothing but RecordError and says what it skipped."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.record import Point, RecordError, Run, read_run, read_runs, read_stream
from test_record import GOLDEN, a_record, python

HEADER = b'{"event":"header","isoflop":1,"run_id":"a"}\n'
POINT = b'{"event":"point","attempt":1,"step":7,"losses":{"train":2.5}}\n'


def read(folder: Path, *lines: bytes) -> Run:
    path = folder / "isoflop-a.jsonl"
    path.write_bytes(b"".join(lines))
    return read_run(path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"\xff\xfe\n", "expected UTF-8"),
        (b'{"event":"point","step":1,"losses":{"train":NaN}}\n', "with finite numbers"),
        (b'{"event":"point","step":1,"lr":1e999}\n', "with finite numbers"),
        (b'{"event":"point","st\n', "one whole JSON object"),
        (b"[" * 100_000 + b"\n", "one whole JSON object"),
        (b'{"event":"point","step":' + b"9" * 5000 + b"}\n", "expected"),
        (b"x" * (1 << 20) + b"\n", "expected lines of at most 1048576 bytes, got 'a longer one'"),
        (b"[1,2]\n", 'expected an object with an "event"'),
        (b'{"event":["point"]}\n', 'expected an object with an "event"'),
        (b'{"event":"point"}\n', "expected a step (a whole number from 0), got None"),
        (b'{"event":"point","step":-1}\n', "expected a step (a whole number from 0), got -1"),
        (b'{"event":"point","step":1.5}\n', "expected a step (a whole number from 0), got 1.5"),
        (b'{"event":"point","step":true}\n', "expected a step (a whole number from 0), got True"),
        (b'{"event":"resume"}\n', "expected a step (a whole number from 0), got None"),
        (b'{"event":"end","step":9,"status":"\\u001b[31mdone"}\n', r"got '\x1b[31mdone'"),
        (b'{"event":"header","isoflop":1,"run_id":"b"}\n', "expected one header, got 'a second one"),
    ],
)
def test_a_broken_line_is_told_and_skipped(tmp_path: Path, line: bytes, told: str) -> None:
    run = read(tmp_path, HEADER, POINT, line)
    assert [point.step for point in run.points] == [7]
    (problem,) = run.problems
    assert problem.startswith(f"{tmp_path / 'isoflop-a.jsonl'}:3: ") and told in problem
    assert len(problem) < 300 + len(str(tmp_path))


def test_a_value_that_cannot_be_is_told_and_unknown(tmp_path: Path) -> None:
    wrong = {
        **dict.fromkeys(("tokens", "padding", "flops"), -1),
        **{"flops_6nd": 10**40, "loss_tokens": "7", "lr": [1], "time": 1e300, "interval_steps": 0.5},
        **{"losses": {"train": "x", "eval/a": 2, "eval/b": None}, "extra": 3, "nonfinite": {"train": "no"}},
    }
    run = read(tmp_path, HEADER, json.dumps({"event": "point", "step": 7, **wrong}).encode() + b"\n")
    assert run.points == (Point(step=7, losses={"eval/a": 2.0, "eval/b": None}),)
    assert len(run.problems) == 11


def test_a_batch_beyond_any_double_is_unknown(tmp_path: Path) -> None:
    run = read(tmp_path, HEADER, b'{"event":"point","attempt":1,"step":7,"batch_tokens":%b}\n' % (b"9" * 400))
    assert run.points == (Point(step=7),)
    assert len(run.problems) == 1 and "batch_tokens to be a number in its range" in run.problems[0]


def test_counts_that_another_tool_wrote_as_floats_are_counts(tmp_path: Path) -> None:
    run = read(tmp_path, HEADER, b'{"event":"point","step":1e1,"flops":1E+21}')
    assert run.points == (Point(step=10, flops=10**21),)


def test_byte_order_mark_and_line_ends_of_windows(tmp_path: Path) -> None:
    lines = [HEADER, b"\n", POINT]
    run = read(tmp_path, b"\xef\xbb\xbf", *(line.replace(b"\n", b"\r\n") for line in lines))
    assert [point.step for point in run.points] == [7]
    (problem,) = run.problems
    assert "expected UTF-8 without a byte-order mark" in problem


def test_half_a_surrogate_pair_can_be_printed(tmp_path: Path) -> None:
    run = read(tmp_path, b'{"event":"header","isoflop":1,"run_id":"a","name":"\\uD83D \\ud83d\\ude00"}\n')
    assert run.name == "? 😀"


def test_a_line_still_being_written_is_no_problem_before_the_end(tmp_path: Path) -> None:
    end = b'{"event":"end","step":7,"status":"completed"}\n'
    assert read(tmp_path, HEADER, POINT, b'{"event":"po').problems == ()
    assert read(tmp_path, HEADER, POINT, b'{"event":"po').status == "running"
    assert "one whole JSON" in read(tmp_path, HEADER, POINT, end, b'{"event":"po').problems[0]


def test_the_rest_of_a_line_written_meanwhile_is_not_taken_for_a_line() -> None:
    class Growing(io.BytesIO):
        def readline(self, size: int | None = -1) -> bytes:
            at = self.tell()
            return super().readline(size if at < len(HEADER) else 5)  # each call finds what was added since the last

    run = read_stream(Growing(HEADER + POINT), "x")
    assert (run.points, run.problems, run.status) == ((), (), "running")


def test_problems_are_bounded(tmp_path: Path) -> None:
    run = read(tmp_path, HEADER, b"x\n" * 1000)
    assert len(run.problems) == 21
    assert run.problems[-1].endswith("and 980 more")


def test_two_lines_of_a_step_are_one_point(tmp_path: Path) -> None:
    lines = [
        b'{"event":"point","step":1,"lr":0.5,"interval_steps":10,"losses":{"train":3,"eval/a":null},'
        b'"nonfinite":{"eval/a":"nan"}}\n',
        b'{"event":"point","step":1,"tokens":9,"losses":{"eval/a":4}}\n',
    ]
    run = read(tmp_path, HEADER, *lines)
    assert run.points == (Point(step=1, tokens=9, lr=0.5, interval_steps=10, losses={"train": 3.0, "eval/a": 4.0}),)


def test_steps_that_go_back_without_a_resume_are_told_and_sorted(tmp_path: Path) -> None:
    run = read(tmp_path, HEADER, POINT, b'{"event":"point","step":3}\n', b'{"event":"point","step":8}\n')
    assert [point.step for point in run.points] == [3, 7, 8]
    assert "expected a step from 7 on, or a resume line before, got 3" in run.problems[0]


def test_a_point_beyond_the_end_reopens_the_run(tmp_path: Path) -> None:
    end = b'{"event":"end","step":7,"status":"completed"}\n'
    assert read(tmp_path, HEADER, POINT, end, POINT).status == "completed"
    assert read(tmp_path, HEADER, POINT, end, POINT.replace(b"7", b"8")).status == "running"


def test_resumes_of_resumes(tmp_path: Path) -> None:
    def line(event: str, step: int) -> bytes:
        return json.dumps({"event": event, "step": step}).encode() + b"\n"

    story = [("point", 1), ("point", 2), ("point", 3), ("resume", 2)]
    story += [("point", 3), ("point", 4), ("resume", 1)]
    run = read(tmp_path, HEADER, *(line(*one) for one in story))
    assert [point.step for point in run.points] == [1]
    again = [*story, ("point", 2), ("resume", 0), ("point", 1)]
    run = read(tmp_path, HEADER, *(line(*one) for one in again))
    assert ([point.step for point in run.points], run.attempts, run.problems) == ([1], 4, ())


def test_a_newer_schema_is_read_as_far_as_known(tmp_path: Path) -> None:
    header = b'{"event":"header","isoflop":3,"run_id":"a","model":7,"versions":{"a":1},"new":{"x":1}}\n'
    run = read(tmp_path, header, POINT, b'{"event":"new"}\n')
    assert (run.schema, run.model, run.versions, run.extra) == (3, {}, {}, {"new": {"x": 1}})
    assert [point.step for point in run.points] == [7]
    assert "expected a schema up to 1, so upgrade isoflop (what it knows was read), got 3" in run.problems[0]
    assert "expected model to be an object, got 7" in run.problems[1]


@pytest.mark.parametrize("content", [b"", b"\n", POINT, b"\x00" * 5000, b'{"event":"header","run_id":"a"}\n'])
def test_a_file_without_a_header_is_no_record(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(RecordError, match="Expected a header line"):
        read(tmp_path, content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
events = st.sampled_from(["header", "point", "resume", "end", "count", "note", "x"])
keys = ["isoflop", "step", "status", "losses", "nonfinite", "extra", "tokens", "lr", "time", "batch_tokens"]
keys += ["interval_steps", "run_id", "created", "model", "parameters", "versions", "loss_units", "parent"]
fields = st.dictionaries(st.sampled_from(keys), json_values, max_size=6)
made = st.builds(lambda event, fields: json.dumps({"event": event, **fields}).encode(), events, fields)
golden = GOLDEN.read_bytes().splitlines()
spoilt = st.builds(
    lambda line, at, junk: line[: at % len(line)] + junk + line[at % len(line) + len(junk) :],
    st.sampled_from(golden),
    st.integers(0, 10**4),
    st.binary(max_size=3),
)


@settings(max_examples=int(os.environ.get("ISOFLOP_FUZZ_CASES", 400)), deadline=None, derandomize=True)
@given(st.lists(made | spoilt | st.sampled_from(golden) | st.binary(max_size=20), max_size=8), st.booleans())
def test_no_file_makes_the_reader_raise(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], headed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "isoflop-fuzz.jsonl"
    path.write_bytes(b"\n".join([HEADER.strip()] * headed + lines))
    try:
        run = read_run(path)
    except RecordError:
        assert not headed
        return
    found = [point.step for point in run.points]
    assert found == sorted(set(found)) and len(run.problems) <= 21
    str(run).encode()
    json.dumps([run.model, run.extra, run.end], allow_nan=False)


def test_folders_are_searched_and_bad_files_reported(tmp_path: Path) -> None:
    first = a_record(tmp_path / "inside" / "deeper")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "isoflop-b.jsonl").write_bytes(HEADER)
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "inside" / "loop").symlink_to(tmp_path / "inside")
    (tmp_path / "inside" / "isoflop-bad.jsonl").write_text("no\n")
    (tmp_path / "inside" / "other.jsonl").write_text("no\n")
    os.mkfifo(tmp_path / "inside" / "isoflop-pipe.jsonl")
    told: list[str] = []
    runs = read_runs(tmp_path / "inside", first, str(first), tmp_path / "none", on_problem=told.append)
    assert [run.path for run in runs] == [str(first)]
    assert len(told) == 4
    assert any(
        f"a link to a folder is not followed: name {tmp_path / 'inside' / 'link'} itself" in text for text in told
    )
    assert any("isoflop-bad.jsonl, got none" in text for text in told)
    assert any("isoflop-pipe.jsonl, got a folder or device" in text for text in told)
    assert any(text.endswith("none, got no such file.") for text in told)
    found = [run.created for run in read_runs(tmp_path, on_problem=told.append)]
    assert len(found) == 2 and found == sorted(found)  # oldest first


def test_bad_files_are_logged_without_a_listener(tmp_path: Path, caplog: Any) -> None:
    assert read_runs(tmp_path / "none") == []
    assert "no such file" in caplog.text


def test_reading_needs_no_torch() -> None:
    code = """if True:
        import sys
        blocked = ("torch", "numpy", "scipy", "lightning", "transformers", "tensorboard")
        sys.modules.update(dict.fromkeys(blocked))
        from isoflop.record import library_versions, read_run
        print(len(read_run(sys.argv[1]).points))
        library_versions()
        assert not any(sys.modules[name] for name in blocked)
        try:
            import torch
        except ImportError:
            print("blocked")  # the block works, so this test can fail
    """
    assert python(code, GOLDEN).stdout.split() == ["4", "blocked"]


def test_an_update_changes_the_header_from_there_on(tmp_path: Path) -> None:
    path = tmp_path / "isoflop-a.jsonl"
    lines = [
        {"event": "header", "isoflop": 1, "run_id": "a", "planned": {"steps": 10}, "counting": {"method": "6ND"}},
        {"event": "update", "planned": {"steps": 20}, "run_id": "b", "counting": "no object"},
        {"event": "point", "step": 1},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(path)
    assert (run.run_id, run.planned, run.counting) == ("a", {"steps": 20}, {"method": "6ND"})
    assert len(run.points) == 1


def test_a_folder_of_links_alone_says_that_they_are_not_followed(tmp_path: Path) -> None:
    run, links, said = tmp_path / "run", tmp_path / "links", []
    run.mkdir()
    links.mkdir()
    read(run, HEADER, POINT)
    (links / "a").symlink_to(run, target_is_directory=True)
    assert read_runs(links, on_problem=said.append) == [] and f"name {links / 'a'} itself" in said[0]
    assert [found.run_id for found in read_runs(links / "a")] == ["a"]
