"""The passport of a run: its values, its block for a model card, and that a finished run leaves one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import isoflop
from isoflop.cli import app
from isoflop.live.passport import markdown, passport
from isoflop.record import Point, RecordLog, Run, read_run
from report_files import HOSTILE, write
from study_runs import planted_run
from tiny import Rows, batches, model
from trainers import plain_loop


def a_run() -> Run:
    device = {"name": "H100", "world_size": 8, "peak_flops": 5e13}
    run = planted_run("small", 1e8, 2e9, options={"unique_tokens": 5e8}, device=device)
    steps = run.points[-1].step
    points = [replace(point, training_time=7200.0 * point.step / steps, extra={"mfu": 0.9}) for point in run.points]
    return replace(run, points=tuple(points))


def test_the_values_are_the_records() -> None:
    run = a_run()
    known, last = passport(run), run.points[-1]
    assert known["parameters"]["non_embedding_with_head"] == run.parameters["non_embedding_with_head"]
    assert known["tokens"] == {"processed": last.tokens, "data": last.data_tokens, "repeats": last.data_tokens / 5e8}
    assert known["flops"]["model"] == last.flops
    assert known["time"]["training_hours"] == 2 and known["time"]["device_hours"] == 16
    assert known["mfu"] == pytest.approx((last.flops or 0) / 7200 / 8 / 5e13)  # not the mean of the intervals
    assert 0.3 < known["mfu"] < 1 and "above 100%" not in markdown(known)
    assert "(above 100%: the stated peak or FLOPs are off)" in markdown({**known, "mfu": 2.0})
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


def test_losses_without_tokens_are_losses() -> None:
    """Of images, say: they are nats per nothing that is known."""
    run = a_run()
    points = [replace(point, tokens=None, losses={"train": 0.1, "eval/shapes": 0.2}) for point in run.points]
    known = passport(replace(run, points=tuple(points)))
    assert known["loss"]["final"] == {"train": pytest.approx(0.1), "eval/shapes": 0.2}
    assert "| Final loss, eval/shapes | 0.2000 |" in markdown(known)
    assert "nats per token" in markdown(passport(run)) and "nats per token" not in markdown(known)


def forecast_for(total: int, step: int) -> dict[str, float]:
    return dict(zip(("forecast_loss", "forecast_low", "forecast_high"), (total, total - 1, total + 1), strict=True))


def test_a_resume_with_another_end_has_the_forecast_of_that_end(tmp_path: Path) -> None:
    log = RecordLog.create(tmp_path, "again", {"planned": {"steps": 200}})
    for step in range(20, 201, 20):
        log.point(Point(step=step, losses={"train": 2.0}, extra=forecast_for(200, step)))
    log.end(200, "completed")
    log.close()
    log = RecordLog.resume(log.path, 200, expected={})
    log.event("update", planned={"steps": 240})
    for step in (220, 240):
        log.point(Point(step=step, losses={"train": 2.0}, extra=forecast_for(240, step)))
    log.end(240, "completed")
    log.close()
    known = passport(read_run(log.path))["loss"]["forecast_at_half_time"]
    assert (known["step"], known["loss"]) == (220, 240.0)


def test_a_run_that_advice_stopped_leaves_one_too(tmp_path: Path) -> None:
    with isoflop.Monitor(None, record_dir=tmp_path, total_steps=100, log_every=1, on_advice="stop") as monitor:
        for step in range(1, 101):
            monitor.step(3.0 if step < 20 else math.nan, tokens=500)
            if monitor.should_stop:
                break
    known = json.loads((tmp_path / "isoflop-passport.json").read_text())
    assert known["status"] == "interrupted" and known["loss"]["final"] == {"train": None}
    why = "it ended at step 22 of 100 planned; its training loss is no finite number from step 20 on"
    assert known["not_finished"] == why
    assert f"| Not finished | {why} |" in (tmp_path / "isoflop-passport.md").read_text()
