"""The Scaling tab's server: what it finds, how it follows growing records, what it answers, what it refuses."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from werkzeug.test import Client

from isoflop.cli import app
from isoflop.figures import study
from isoflop.fit.runs import final_loss
from isoflop.record import LAST, SMALL, Digest, RecordLog, Run, glimpse, read_run
from isoflop.record.lines import PER_DOUBLING
from isoflop.tab import RecordStore, Root, Routes, Tail
from isoflop.tab.answers import budget_of, fit_answer
from isoflop.tab.plugin import roots_of
from isoflop.tab.records import open_inside, scan
from isoflop.tab.studies import Studies
from study_runs import planted_run, sweep
from test_packaging import heavy_packages_loaded_by, python

GRID = sweep((1e18, 3e19, 1e21), sizes=5, noise=0.002)
HOSTILE = "<img src=x onerror=alert(1)>"


def write(folder: Path, run: Run, advice: dict[str, Any] | None = None) -> RecordLog:
    """A run as the writer of records writes it; still open where it isn't completed."""
    header = {"name": run.name, "parameters": run.parameters, "planned": run.planned, "optimizer": run.optimizer}
    log = RecordLog.create(folder, re.sub(r"[^\w.-]", "", run.run_id), header)
    for point in run.points:
        log.point(point)
    if advice:
        log.event("advice", **advice)
    if run.status == "completed":
        log.end(run.points[-1].step, "completed")
        log.close()
    return log


def line(step: int, loss: float = 2.0, **more: Any) -> bytes:
    point = {"event": "point", "attempt": 1, "step": step, "tokens": step * 100, "padding": 0, "flops": step * 1000}
    return json.dumps({**point, "losses": {"train": loss}, **more}, separators=(",", ":")).encode() + b"\n"


HEADER = b'{"event":"header","isoflop":1,"run_id":"a","name":"a","parameters":{"non_embedding":1000}}\n'


class Asked:
    """The plugin's routes over some folders, as a browser asks them."""

    def __init__(self, *roots: Path) -> None:
        self.store = RecordStore([Root(str(root)) for root in roots])
        self.apps = Routes(self.store).apps()

    def raw(self, route: str, **parameters: str) -> Any:
        return Client(self.apps[f"/{route}"]).get(f"/{route}", query_string=parameters)

    def __call__(self, route: str, **parameters: str) -> Any:
        self.store.look()
        answer = self.raw(route, **parameters)
        assert answer.status_code == 200, answer.data
        assert answer.content_type == "application/json" and answer.headers["X-Content-Type-Options"] == "nosniff"
        return answer.json

    def refused(self, route: str, **parameters: str) -> str:
        answer = self.raw(route, **parameters)
        assert answer.status_code == 400 and answer.content_type == "application/json", answer.data
        return answer.json["error"]


# ---------------------------------------- the plugin ----------------------------------------


def test_the_plugin_is_imported_without_torch_or_numpy():
    assert heavy_packages_loaded_by("import isoflop.tab.plugin") == set()


def test_the_plugin_can_not_import_tensorflow_scipy_or_plotly():
    done = python(
        "import isoflop.tab.plugin, sys; print([n for n in ('tensorflow', 'scipy', 'plotly') if n in sys.modules])"
    )
    assert done.stdout.strip() == "[]"


def test_every_script_of_the_page_is_served_and_no_other():
    static = Path(__file__).parents[1] / "src" / "isoflop" / "tab" / "static"
    routes = set(Routes(RecordStore([])).apps())
    assert {f"/{path.name}" for path in static.iterdir()} <= routes
    for path in static.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert {"/" + name[2:] for name in re.findall(r"from '(\./[^']+)'", text)} <= routes
        assert not re.search(r"https?://", text)  # nothing is fetched from elsewhere


@pytest.mark.parametrize("route", ["index.js", "style.css", "plotly.js"])
def test_a_static_file_has_its_type(route: str):
    answer = Asked().raw(route)
    assert answer.status_code == 200
    kind = "text/css" if route.endswith("css") else "text/javascript"
    assert answer.content_type == f"{kind}; charset=utf-8"


def test_plotlys_script_is_the_installed_one_compressed_and_kept():
    import plotly

    answer = Client(Asked().apps["/plotly.js"]).get("/plotly.js", headers={"Accept-Encoding": "gzip"})
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    assert gzip.decompress(answer.data) == script.read_bytes()
    assert "max-age=86400" in answer.headers["Cache-Control"]


def test_only_get_is_answered():
    assert Client(Asked().apps["/runs"]).post("/runs").status_code == 405


@pytest.mark.parametrize(
    ("logdir", "spec", "roots"),
    [
        ("/a/b", None, [Root("/a/b")]),
        (None, "one:/a,two:/b,/c", [Root("/a", "one"), Root("/b", "two"), Root("/c")]),
        ("gs://bucket/x", None, []),
        (None, "far:gs://bucket/x,near:/a", [Root("/a", "near")]),
        ("", "", []),
    ],
)
def test_log_folders_are_read_as_tensorboard_does(logdir: str | None, spec: str | None, roots: list[Root]):
    found, remote = roots_of(logdir, spec)
    assert found == roots
    assert bool(remote) == ("gs://" in f"{logdir}{spec}")


def test_it_is_inactive_without_records_and_active_with_one_below(tmp_path: Path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "events.out.tfevents.1").write_bytes(b"x")
    assert not RecordStore([Root(str(tmp_path))]).any(wait=60)
    assert not RecordStore([Root(str(tmp_path / "missing"))]).any(wait=60)
    assert not RecordStore([]).any(wait=0)
    (tmp_path / "deep" / "er" / "isoflop-a.jsonl").write_bytes(HEADER)
    assert RecordStore([Root(str(tmp_path))]).any(wait=60)


# ---------------------------------------- reading ----------------------------------------


def test_a_short_record_is_read_as_the_reader_reads_it(tmp_path: Path):
    run = planted_run("a", 1e8, 2e9, points=300)
    write(tmp_path, run).close()
    (name,) = (path.name for path in tmp_path.iterdir())
    reading = Tail(str(tmp_path), name).read()
    whole = read_run(tmp_path / name)
    assert reading.curve is not None and reading.run is not None and reading.whole
    assert reading.curve.losses["train"].tolist() == [point.losses["train"] for point in whole.points]
    late = tuple(point for point in whole.points if point.step >= 0.95 * whole.points[-1].step)
    assert reading.run.points == late


@given(
    lines=st.lists(
        st.one_of(
            st.integers(0, 10**6).map(line),
            st.integers(0, 10**6).map(lambda step: line(step).replace(b'"train"', b'"eval/val"')),
            st.integers(0, 100).map(lambda step: b'{"event":"resume","attempt":2,"step":%d}\n' % step),
            st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"") + b"\n"),
        ),
        max_size=60,
    ),
    cuts=st.lists(st.integers(1, 200), max_size=40),
)
@settings(max_examples=60)
def test_a_digest_does_not_depend_on_how_its_bytes_came(lines: list[bytes], cuts: list[int]):
    data, whole, parts = HEADER + b"".join(lines), Digest(), Digest()
    whole.feed(data)
    rest = data
    for cut in cuts:
        parts.feed(rest[:cut])
        rest = rest[cut:]
    parts.feed(rest)
    assert whole.record() == parts.record() == b"".join(x + b"\n" for x in data.split(b"\n") if x)


def test_a_long_record_is_thinned_evenly_on_a_logarithmic_axis_and_whole_at_its_end():
    digest = Digest()
    digest.feed(HEADER + b"".join(line(step) for step in range(1, 100_001)))
    steps = [json.loads(row)["step"] for row in digest.record().splitlines()[1:]]
    assert len(steps) == len(set(steps)) and steps == sorted(steps)
    assert steps[: 2 * PER_DOUBLING] == list(range(1, 2 * PER_DOUBLING + 1))
    assert steps[-LAST:] == list(range(100_001 - LAST, 100_001))
    for start in (1_000, 5_000, 40_000):
        inside = [step for step in steps if start < step <= 2 * start]
        assert PER_DOUBLING <= len(inside) <= 2 * PER_DOUBLING
        assert max(np.diff(inside)) <= start / PER_DOUBLING * 2.1


def test_a_glimpse_of_a_large_file_shows_its_whole_course_and_its_end(tmp_path: Path):
    path = tmp_path / "isoflop-a.jsonl"
    end = b'{"event":"end","step":50000,"status":"completed"}\n'
    path.write_bytes(HEADER + b"".join(line(step) for step in range(1, 50_001)) + end)
    with path.open("rb") as stream:
        found = glimpse(stream, path.stat().st_size)
    steps = [json.loads(row)["step"] for row in found.splitlines()[1:-1]]
    assert found.startswith(HEADER) and found.endswith(end)
    assert steps[0] == 1 and steps[-1] == 50_000 and steps == sorted(set(steps))
    assert np.diff(np.log(steps[3:])).max() < 0.75 and len(steps) < 120
    reading = Tail(str(tmp_path), path.name).glimpse(path.stat().st_size)
    assert not reading.whole and reading.run is not None and reading.run.status == "completed"


def test_the_store_glimpses_at_large_files_and_then_reads_them(tmp_path: Path):
    for name in "ab":
        body = HEADER + b"".join(line(step, note="x" * 400) for step in range(1, 2001))
        (tmp_path / f"isoflop-{name}.jsonl").write_bytes(body)
        assert len(body) > SMALL
    store = RecordStore([Root(str(tmp_path))])
    assert store._look() is True
    first = store._snapshot
    assert (first.found, len(first.entries), first.whole) == (2, 2, 0)
    assert store._look() is False
    assert store._snapshot.whole == 2 and store._snapshot.version != first.version
    again = store.look()
    assert again.version == store._snapshot.version  # nothing is new


def test_a_growing_record_is_followed_line_by_line(tmp_path: Path):
    path = tmp_path / "isoflop-a.jsonl"
    path.write_bytes(HEADER + line(1))
    asked = Asked(tmp_path)
    (row,) = asked("runs")["runs"]
    assert (row["step"], row["status"]) == (1, "running")
    with path.open("ab") as stream:
        stream.write(line(2) + line(3)[:20])  # and half of a line
    assert asked("runs")["runs"][0]["step"] == 2
    with path.open("ab") as stream:
        stream.write(line(3)[20:] + b'{"event":"end","step":3,"status":"completed"}\n')
    (row,) = asked("runs")["runs"]
    assert (row["step"], row["status"], row["problems"]) == (3, "completed", 0)


def test_a_row_says_of_which_step_each_loss_is(tmp_path: Path):
    evaluated = b'{"event":"point","step":2,"losses":{"eval/val":2.4}}\n'
    (tmp_path / "isoflop-a.jsonl").write_bytes(HEADER + line(1) + evaluated + line(2) + line(9, 3.2))
    (row,) = Asked(tmp_path)("runs")["runs"]
    assert row["losses"] == {"train": 3.2, "eval/val": 2.4}
    assert row["loss_steps"] == {"train": 9, "eval/val": 2}


def test_only_what_was_added_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "isoflop-a.jsonl"
    path.write_bytes(HEADER + line(1))
    tail, fed = Tail(str(tmp_path), path.name), list[bytes]()
    tail.read()
    feed = Digest.feed

    def watched(self: Digest, chunk: bytes) -> None:
        fed.append(chunk)
        feed(self, chunk)

    monkeypatch.setattr(Digest, "feed", watched)
    with path.open("ab") as stream:
        stream.write(line(2))
    tail.read()
    assert fed == [line(2)]


def test_of_a_run_that_ended_no_lines_are_held_and_one_that_is_resumed_is_read_again(tmp_path: Path):
    path = tmp_path / "isoflop-a.jsonl"
    end = b'{"event":"end","step":2,"status":"completed"}\n'
    path.write_bytes(HEADER + line(1) + line(2) + end)
    tail = Tail(str(tmp_path), path.name)
    tail.read()
    assert tail._digest.record() == b""  # of 5,000 runs the lines would be gigabytes
    with path.open("ab") as stream:
        stream.write(b'{"event":"resume","step":1}\n' + line(3))
    reading = tail.read()
    assert reading.run is not None and reading.run.status == "running"
    assert reading.curve is not None and reading.curve.step.tolist() == [1, 3]
    assert tail._digest.size == path.stat().st_size


def test_a_row_of_the_list_is_made_once_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from isoflop.tab import answers

    for name in "abc":
        (tmp_path / f"isoflop-{name}.jsonl").write_bytes(HEADER + line(1))
    made = []
    row = answers._row
    monkeypatch.setattr(answers, "_row", lambda entry: made.append(entry.path) or row(entry))
    asked = Asked(tmp_path)
    asked("runs")
    with (tmp_path / "isoflop-b.jsonl").open("ab") as stream:
        stream.write(line(2))
    assert [each["step"] for each in asked("runs")["runs"]] == [1, 2, 1]
    assert made == ["isoflop-a.jsonl", "isoflop-b.jsonl", "isoflop-c.jsonl", "isoflop-b.jsonl"]


@pytest.mark.parametrize("same_file", [True, False])
def test_a_record_written_anew_in_its_place_is_read_anew(tmp_path: Path, same_file: bool):
    path = tmp_path / "isoflop-a.jsonl"
    path.write_bytes(HEADER + line(1) + line(2))
    asked = Asked(tmp_path)
    asked("runs")
    other = tmp_path / "other"
    target = path if same_file else other
    target.write_bytes(HEADER.replace(b'"name":"a"', b'"name":"b"') + b"".join(line(k) for k in (5, 6, 7)))
    if not same_file:
        os.replace(other, path)
    (row,) = asked("runs")["runs"]
    assert (row["name"], row["step"]) == ("b", 7)


def test_a_record_that_vanishes_leaves_the_others(tmp_path: Path):
    for name in "ab":
        (tmp_path / f"isoflop-{name}.jsonl").write_bytes(HEADER + line(1))
    asked = Asked(tmp_path)
    assert len(asked("runs")["runs"]) == 2
    (tmp_path / "isoflop-a.jsonl").unlink()
    assert [row["path"] for row in asked("runs")["runs"]] == ["isoflop-b.jsonl"]
    (tmp_path / "isoflop-b.jsonl").unlink()
    assert asked("runs")["found"] == 0


def test_a_record_that_vanishes_between_list_and_read_is_told(tmp_path: Path):
    reading = Tail(str(tmp_path), "isoflop-a.jsonl").read()
    assert reading.run is None and reading.problem == "it can't be read: No such file or directory"


def test_runs_are_not_sent_again_while_nothing_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Studies, "_ask", lambda self, choice: None)  # no fit comes in between
    (tmp_path / "isoflop-a.jsonl").write_bytes(HEADER + line(1))
    asked = Asked(tmp_path)
    version = asked("runs")["version"]
    assert "runs" not in asked("runs", have=version)
    digest = asked("figure", key="loss-flops")["digest"]
    assert asked("figure", key="loss-flops", have=digest) == {"digest": digest, "unchanged": True}


# ---------------------------------------- hostile folders ----------------------------------------


def test_links_are_not_followed(tmp_path: Path):
    outside, logs = tmp_path / "outside", tmp_path / "logs"
    for folder in (outside, logs):
        folder.mkdir()
    (outside / "isoflop-secret.jsonl").write_bytes(HEADER + line(1))
    (logs / "isoflop-link.jsonl").symlink_to(outside / "isoflop-secret.jsonl")
    (logs / "folder").symlink_to(outside)
    (logs / "round").symlink_to(logs)
    asked = Asked(logs)
    told = asked("runs")
    assert (told["found"], told["links"], told["runs"]) == (0, 3, [])
    for path in ("isoflop-link.jsonl", "folder/isoflop-secret.jsonl", "../outside/isoflop-secret.jsonl"):
        with pytest.raises(OSError, match=r"lies outside|symbolic links"):
            open_inside(str(logs), path)


def test_a_folder_replaced_by_a_link_after_it_was_listed_is_refused(tmp_path: Path):
    outside, logs = tmp_path / "outside", tmp_path / "logs"
    for folder in (outside, logs / "run"):
        folder.mkdir(parents=True)
        (folder / "isoflop-a.jsonl").write_bytes(HEADER + line(1))
    asked = Asked(logs)
    assert asked("runs")["runs"][0]["run_id"] == "a"
    with asked.store._lock:  # not in the middle of the following thread's own scan
        asked.store._next_scan = float("inf")  # it isn't listed again yet
    (logs / "run" / "isoflop-a.jsonl").unlink()
    (logs / "run").rmdir()
    (logs / "run").symlink_to(outside)
    with (outside / "isoflop-a.jsonl").open("ab") as stream:
        stream.write(line(9))
    (row,) = asked("runs")["runs"]
    assert "run_id" not in row and "lies outside" in row["problem"]


def test_the_log_folder_itself_may_be_a_link(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "isoflop-a.jsonl").write_bytes(HEADER + line(1))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert Asked(tmp_path / "link")("runs")["runs"][0]["run_id"] == "a"


def test_pipes_and_folders_with_a_records_name_are_left_alone(tmp_path: Path):
    os.mkfifo(tmp_path / "isoflop-pipe.jsonl")
    (tmp_path / "isoflop-folder.jsonl").mkdir()
    assert scan(str(tmp_path))[0] == {}
    with pytest.raises(OSError, match="no regular file"):
        open_inside(str(tmp_path), "isoflop-pipe.jsonl")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "Expected a header line"),
        (b"\xff\xfe\x00" * 100, "Expected a header line"),
        (b"x" * (3 << 20), "Expected a header line"),
        (HEADER + b"x" * (3 << 20) + b"\n" + line(1), "lines of more than 1,048,576 bytes were skipped"),
        (HEADER + b'{"event":"note"}\n' * 20_001 + line(1), "more than 20,000 events"),
        (HEADER + b"\xff\n" + b"[" * 5000 + b"\n" + line(1), None),
    ],
)
def test_a_broken_file_is_told_and_the_rest_is_shown(tmp_path: Path, content: bytes, told: str | None):
    (tmp_path / "isoflop-bad.jsonl").write_bytes(content)
    (tmp_path / "isoflop-good.jsonl").write_bytes(HEADER + line(5))
    bad, good = Asked(tmp_path)("runs")["runs"]
    assert good["step"] == 5
    assert (told in bad["problem"]) if told else bad["problem"] is None
    if content.endswith(line(1)):
        assert bad["step"] == 1


def test_strangers_texts_arrive_as_data(tmp_path: Path):
    hostile = planted_run(HOSTILE, 1e8, 2e9)
    advice = {
        "step": 3,
        "reason": HOSTILE,
        "severity": HOSTILE,
        "what": HOSTILE,
        "do": None,
        "numbers": [{"name": 1, "value": 2.0}, {"name": "x"}],
    }
    folder = tmp_path / HOSTILE.replace("/", "")
    write(folder, hostile, advice)
    asked = Asked(tmp_path)
    raw = asked("runs")["runs"][0]
    assert raw["name"] == HOSTILE
    (said,) = asked("advice")["advice"]
    assert (
        said["what"] == HOSTILE
        and said["do"] == said["severity"] == ""
        and [each["name"] for each in said["numbers"]] == [""]
    )
    drawn = json.dumps(asked("figure", key="loss-flops")["plot"])  # its notes are texts of the page
    assert "<img" not in drawn and "&lt;img" in drawn


@pytest.mark.parametrize("route", ["runs", "figure", "advice", "fit", "plan"])
@pytest.mark.parametrize("keys", ["../../etc/passwd", "/etc/passwd", "a,b", "<script>", "0" * 13, ",", "%00"])
def test_requests_name_runs_by_their_keys_alone(tmp_path: Path, route: str, keys: str):
    (tmp_path / "isoflop-a.jsonl").write_bytes(HEADER + line(1))
    asked = Asked(tmp_path)
    asked("runs")
    for name in ("runs", "without"):
        said = asked.refused(route, **{name: keys, "key": "loss-flops", "budget": "1e20"})
        assert said == f"{name}: expected keys of runs between commas"


def test_a_key_of_a_run_that_is_gone_is_no_error(tmp_path: Path):
    (tmp_path / "isoflop-a.jsonl").write_bytes(HEADER + line(1))
    assert Asked(tmp_path)("advice", runs="0123456789ab") == {"advice": []}


@pytest.mark.parametrize("asked_for", [{"key": "../x"}, {"key": ""}, {"key": "loss-flops", "theme": "<b>"}])
def test_figures_are_named_by_their_keys_alone(tmp_path: Path, asked_for: dict[str, str]):
    assert "expected" in Asked(tmp_path).refused("figure", **asked_for)


# ---------------------------------------- figures and fit ----------------------------------------


def test_a_fit_is_made_beside_and_lasts_while_a_run_goes_on(tmp_path: Path):
    for run in GRID:
        write(tmp_path, run)
    live = write(tmp_path / "live", planted_run("live", 3e8, 6e9, status="running", until=0.5))
    store = RecordStore([Root(str(tmp_path))])
    studies = Studies()
    drawn = studies.drawn(store.look().entries, may_fit=False)
    assert drawn.state == "fitting" and drawn.study.law is None and len(drawn.study.curves) == len(GRID) + 1
    (choice,) = studies._choices.values()
    assert choice.now is not None
    choice.now.fit_all()  # as the thread does
    choice.fitted, choice.drawn, choice.fits, choice.again = choice.now, None, 1, float("inf")
    fitted = studies.drawn(store.look().entries)
    assert fitted.state == "fitted" and fitted.study.law is not None and fitted.version != drawn.version
    live.point(planted_run("live", 3e8, 6e9).points[-1])
    later = studies.drawn(store.look().entries)
    assert later.state == "fitted" and later.version != fitted.version
    assert later.study.law is fitted.study.law  # not fitted again
    last = {curve.run_id: curve.step[-1] for curve in later.study.curves}["live"]
    assert last == planted_run("live", 3e8, 6e9).points[-1].step
    live.end(int(last), "completed")
    live.close()
    older = studies.drawn(store.look().entries)
    assert older.state == "older" and older.study.law is fitted.study.law
    assert len(older.study.counted) == len(GRID)


def test_the_fits_table_recovers_a_planted_law(tmp_path: Path):
    told = fit_answer(study(GRID), "fitted")
    constants = {row["name"]: row for row in told["constants"]}
    low, high = constants["alpha"]["interval"]
    assert low <= constants["alpha"]["value"] <= high
    assert constants["alpha"]["value"] == pytest.approx(0.3478, abs=0.02)
    names = {row["name"].split(" (")[0] for row in [*told["approaches"], *told["without"]]}
    assert told["approaches"][0]["name"].startswith("posterior")  # it leads
    assert names == {"posterior", "approach 1", "approach 2", "approach 3"}
    json.dumps(told, allow_nan=False)


def test_constants_that_the_runs_leave_open_have_no_value():
    along_a_line = [
        planted_run(f"{N:.0e}", N, 20 * N, noise=0.003, seed=i) for i, N in enumerate(np.geomspace(1e8, 3e9, 9))
    ]
    constants = {row["name"]: row["value"] for row in fit_answer(study(along_a_line, draws=20), "fitted")["constants"]}
    assert set(constants) == {"E", "A", "B", "alpha", "beta"}
    assert [constants[name] for name in ("A", "B", "alpha", "beta")] == [None] * 4


def test_without_enough_runs_the_reason_is_told(tmp_path: Path):
    told = fit_answer(study([planted_run("a", 1e8, 2e9)]), "fitted")
    assert told["approaches"] == [] and told["refused"] and len(told["without"]) == 3
    assert all(row["name"] and row["reason"] for row in told["without"])


def test_the_first_figure_can_be_drawn_against_other_axes(tmp_path: Path):
    runs = [replace(run, points=tuple(replace(p, training_time=2.0 * p.step) for p in run.points)) for run in GRID[:2]]
    for run in runs:
        write(tmp_path / run.name, run)
    asked, last = Asked(tmp_path), runs[0].points[-1]
    N = runs[0].parameters["non_embedding_with_head"]
    ends = {"flops": last.flops, "6nd": 6 * N * last.tokens, "tokens": last.tokens, "step": last.step}
    for axis, end in {**ends, "hours": last.step / 1800}.items():
        plot = asked("figure", key="loss-flops", x=axis, loss="train")["plot"]
        (line,) = [trace for trace in plot["data"] if trace["name"] == runs[0].name]
        x = np.frombuffer(base64.b64decode(line["x"]["bdata"]), line["x"]["dtype"])
        assert x[-1] == pytest.approx(end, rel=1e-6)
    titles = [asked("figure", key="loss-flops", x=axis, loss="train")["title"] for axis in ("flops", "tokens", "step")]
    assert titles == ["Loss against training compute", "Loss against tokens", "Loss against optimizer steps"]
    assert "expected one of flops, 6nd, tokens" in asked.refused("figure", key="loss-flops", x="colour")
    assert "expected one of" in asked.refused("figure", key="waste", x="tokens")
    assert asked("figure", key="loss-flops", x="tokens", loss="eval/none")["plot"] is None


def test_smoothed_at_five_percent_a_curve_ends_at_the_final_loss_and_the_fit_stays(tmp_path: Path):
    rng = np.random.default_rng(0)
    points = [replace(p, losses={"train": p.losses["train"] + rng.normal(0, 0.1)}) for p in GRID[0].points]  # type: ignore[operator]
    write(tmp_path, replace(GRID[0], points=tuple(points)))
    asked, drawn = Asked(tmp_path), {}
    for smooth in ("", "0.05", "0.2"):
        answer = asked("figure", key="loss-flops", smooth=smooth)
        (line,) = [trace for trace in answer["plot"]["data"] if trace.get("name") == GRID[0].name]
        drawn[smooth] = np.frombuffer(base64.b64decode(line["y"]["bdata"]), line["y"]["dtype"])
        assert any("% of the steps up to it" in note for note in answer["notes"]) is bool(smooth)
    evaluated = asked("figure", key="loss-flops", x="step", loss="eval/none", smooth="0.05")
    assert not any("% of the steps up to it" in note for note in evaluated["notes"])
    assert drawn["0.05"][-1] == pytest.approx(final_loss(points, "train"), rel=1e-6)
    for smooth, y in drawn.items():
        within = [[p for p in points if (1 - float(smooth or 0)) * last.step <= p.step <= last.step] for last in points]
        means = [np.mean([p.losses["train"] for p in near]) for near in within]  # type: ignore[misc]
        assert y == pytest.approx(means, rel=1e-6)
    assert "expected one of 0, 0.02" in asked.refused("figure", key="loss-flops", smooth="0.5")
    assert "expected one of" in asked.refused("figure", key="waste", smooth="0.1")


def test_a_row_tells_what_the_list_shows(tmp_path: Path):
    scalars = {"mfu": 0.4, "forecast_loss": 2.0, "forecast_low": 1.9, "forecast_high": 2.1}
    points = tuple(replace(p, time=1e9 + 30 * i, extra=scalars) for i, p in enumerate(GRID[0].points))
    write(tmp_path, replace(GRID[0], points=points), advice={"step": 3, "severity": "warning", "reason": "x"})
    (row,) = Asked(tmp_path)("runs")["runs"]
    assert (row["mfu"], row["forecast"], row["every"], row["worst"]) == (0.4, [2.0, 1.9, 2.1], 30.0, "warning")
    assert row["forecast_step"] == points[0].step  # it has stood since


@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_figure_is_answered(tmp_path: Path, count: int):
    for run in GRID[:count]:
        write(tmp_path, run)
    asked = Asked(tmp_path)
    asked("runs")
    for key in asked("runs").get("figures", ["loss-flops"]):
        for theme in ("light", "dark"):
            answer = asked("figure", key=key, theme=theme)
            assert answer["title"] and bool(answer["plot"]) != bool(answer["reason"])


# ---------------------------------------- the planner ----------------------------------------


def test_the_planner_answers_as_isoflop_plan_does(tmp_path: Path):
    for run in GRID:
        write(tmp_path, run)
    answer = Asked(tmp_path)("plan", budget="10 PF-days")
    done = CliRunner().invoke(app, ["plan", "--runs", str(tmp_path), "--flops", "8.64e20", "--json"])
    told = json.loads(done.stdout)
    assert answer["runs"] == len(GRID)
    for name in ("method", "n_convention", "level"):
        assert answer[name] == told[name]
    for name in ("N", "D", "L", "tokens_per_param"):  # the two read the folder's records in different orders
        assert answer[name] == pytest.approx(told[name], rel=1e-6)
    assert answer["intervals"]["N"] == pytest.approx(told["intervals"]["N"], rel=1e-6)
    assert answer["notes"] == told["warnings"]


def test_the_planner_answers_without_runs(tmp_path: Path):
    answer = Asked(tmp_path)("plan", budget="1e21")
    assert answer["runs"] == 0 and answer["N"] == pytest.approx(2.9e9, rel=0.05)


@pytest.mark.parametrize("budget", ["1e9999", "-1", "nan", "inf", "<script>", "", "0", "1e", "1" * 50, "1e21 dollars"])
def test_a_budget_that_is_none_is_refused_in_a_sentence(tmp_path: Path, budget: str):
    said = Asked(tmp_path).refused("plan", budget=budget)
    assert said.startswith("expected a budget in FLOPs, such as 1e21, or in PF-days") and len(said) < 250


def test_a_budget_too_small_to_be_in_flops_is_asked_about(tmp_path: Path):
    assert "did you mean PF-days?" in Asked(tmp_path).refused("plan", budget="10")


@given(st.text(max_size=60))
def test_budgets_are_numbers_or_refused(text: str):
    try:
        assert 0 < budget_of(text) < float("inf")
    except ValueError as error:
        assert "expected a budget" in str(error)


def test_the_shipped_example_has_three_sizes_that_cross_and_a_run_that_overfits(tmp_path: Path):
    done = CliRunner().invoke(app, ["demo", "--no-serve", "-o", str(tmp_path / "demo")])
    assert done.exit_code == 0 and "isoflop report" in done.output
    rows = sorted(Asked(tmp_path / "demo")("runs")["runs"], key=lambda row: (row["path"].count("/"), row["N"]))
    assert [row["path"].rpartition("/")[0] for row in rows] == ["6k", "25k", "98k", "little-data/98k-on-32kB"]
    assert all(row["status"] == "completed" and row["problem"] is None for row in rows)
    assert [row["worst"] for row in rows] == [None, None, None, "warning"]
    losses = [row["losses"]["train"] for row in rows[:3]]
    assert losses == sorted(losses, reverse=True)  # each size has trained past the point where the smaller one leads


def test_runs_of_another_folder_or_data_set_are_drawn_not_fitted(tmp_path: Path):
    for run in GRID:
        write(tmp_path / "sweep" / run.name, run)
    for run in GRID[:3]:
        write(tmp_path / "other" / run.name, replace(run, run_id=f"other-{run.run_id}"))
    asked = Asked(tmp_path)
    assert asked("runs")["groups"] == ["other", "sweep"]
    entries = asked.store.look().entries
    for group, expected in ((None, len(GRID) + 3), ("sweep", len(GRID)), ("other", 3)):
        studies = Studies()
        drawn = studies.drawn(entries, may_fit=False, group=group)
        (choice,) = studies._choices.values()
        assert choice.now is not None and len(choice.now.counted) == expected
        assert len(drawn.study.curves) == len(GRID) + 3
    assert asked("plan", budget="1e20")["runs"] == len(GRID)
    assert asked("plan", budget="1e20", group="*")["runs"] == len(GRID) + 3
