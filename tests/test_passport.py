"""The passport of a run: its values, its block for a model card, and that a finished run leaves one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import isoflop
from isoflop.cli import app
from isoflop.live.passport import markdown, passport
from isoflop.record import Run
from report_files import HOSTILE, write
from study_runs import planted_run
from tiny import Rows, batches, model
from trainers import plain_loop


def a_run() -> Run:
    run = planted_run("small", 1e8, 2e9, options={"unique_tokens": 5e8}, device={"name": "H100", "world_size": 8})
    steps = run.points[-1].step
    points = [
        replace(point, training_time=7200.0 * point.step / steps, extra={"mfu": (0.3, 0.4)[i % 2]})
        for i, point in enumerate(run.points)
    ]
    return replace(run, points=tuple(points))


def test_the_values_are_the_records() -> None:
    run = a_run()
    known, last = passport(run), run.points[-1]
    assert known["parameters"]["non_embedding_with_head"] == run.parameters["non_embedding_with_head"]
    assert known["tokens"] == {"processed": last.tokens, "data": last.data_tokens, "repeats": last.data_tokens / 5e8}
    assert known["flops"]["model"] == last.flops
    assert known["time"]["training_hours"] == 2 and known["time"]["device_hours"] == 16
    assert known["mfu"] == pytest.approx(0.35, abs=0.01)
    assert set(known["loss"]["final"]) == {"train"} and known["loss"]["forecast_at_half_time"] is None


def test_unknown_is_none_and_a_dash() -> None:
    known = passport(Run(run_id="nothing"))
    assert known["tokens"] == {"processed": None, "data": None, "repeats": None} and known["mfu"] is None
    assert "| Tokens | – |" in markdown(known)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_cannot_break_the_table(name: str) -> None:
    run = a_run()
    run = replace(run, name=name, device={"name": name}, counting={"method": name})
    rows = [line for line in markdown(passport(run)).splitlines()[2:] if line]
    assert all(line.count("|") == 3 for line in rows)


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    record = write(tmp_path, a_run())
    for place in (record, tmp_path):  # the file, or a folder with one
        printed = CliRunner().invoke(app, ["passport", str(place), "--json"])
        assert printed.exit_code == 0 and json.loads(printed.output)["name"] == "small"
    write(tmp_path, replace(a_run(), run_id="other"))
    assert "expected one record" in CliRunner().invoke(app, ["passport", str(tmp_path)]).output
    done = CliRunner().invoke(app, ["passport", str(record), "-o", str(tmp_path / "card")])
    assert done.exit_code == 0 and json.loads((tmp_path / "card/isoflop-passport.json").read_text())["name"] == "small"
    assert "Training compute" in (tmp_path / "card/isoflop-passport.md").read_text()


def test_a_finished_run_leaves_one_beside_its_record(tmp_path: Path) -> None:
    net = model()
    with isoflop.Monitor(net, record_dir=tmp_path, total_steps=8, log_every=2) as monitor:
        plain_loop(net, batches(Rows(16), 2), monitor=monitor)
    known = json.loads((tmp_path / "isoflop-passport.json").read_text())
    (run,) = isoflop.read_runs(tmp_path)
    assert known["run_id"] == run.run_id and known["tokens"]["processed"] == run.points[-1].tokens
    assert known["status"] == "completed" and known["flops"]["method"] == run.counting["method"]
