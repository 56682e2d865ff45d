"""What a run ended with: one rule, whoever asks; runs that have not ended are left out and named."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from isoflop.cli import app
from isoflop.figures import study
from isoflop.fit import BadData, final_loss, learn_from, table_of_runs
from isoflop.forecast import finished_runs
from isoflop.ladder import read_finished
from isoflop.ladder.attempt import is_complete
from isoflop.live.passport import passport
from isoflop.logs import write_run
from isoflop.record import Run, read_run
from isoflop.report import read_record
from isoflop.tab import Tail
from study_runs import planted_run, with_nan_losses


def recorded(folder: Path, run: Run) -> Path:
    ended = {"step": run.points[-1].step, "status": run.status}
    path, _ = write_run(folder, replace(run, extra={"imported": {}}, end=ended))
    return path


def shell(*arguments: object) -> Any:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A noisy run whose evaluations are noisy too: a mean over them would differ from the last."""
    run = planted_run("a", 1e8, 2e9, points=400, noise=0.02)
    rng = np.random.default_rng(1)
    points = [
        replace(point, losses={**point.losses, "eval/val": 3.0 + 0.1 * float(rng.standard_normal())})
        for point in run.points
    ]
    return recorded(tmp_path_factory.mktemp("runs"), replace(run, points=tuple(points)))


@pytest.mark.parametrize("loss", ["train", "eval/val"])
def test_everybody_has_the_same_final_loss(path: Path, loss: str):
    run = read_run(path)
    last = run.points[-1]
    late = [point.losses["train"] for point in run.points if point.step >= 0.95 * last.step]
    assert 4 < len(late) < len(run.points) / 5
    truth = np.mean(late) if loss == "train" else last.losses[loss]
    in_the_tab = Tail(str(path.parent), path.name).read()
    (end,) = study([read_record(str(path))[0]], loss=loss, convention="non_embedding").ends
    (tab_end,) = study([in_the_tab.curve], loss=loss, convention="non_embedding").ends
    found = {
        "final_loss": final_loss(run.points, loss),
        "isoflop fit, plan": table_of_runs([run], ("N", "D", "loss"), loss=loss).columns["loss"][0],
        "the tab's planner": table_of_runs([in_the_tab.run], ("N", "D", "loss"), loss=loss).columns["loss"][0],
        "report": end.loss,
        "tab": tab_end.loss,
        "history=": learn_from([run], loss=loss).points[0].loss,
        "ladder": read_finished([path], loss=loss).runs[0].loss,
        "isoflop backtest": finished_runs([run], loss)[0][0].final,
        "isoflop rank": json.loads(shell("rank", path, "--loss", loss, "--json").stdout)["runs"][0]["forecast_loss"],
    }
    assert found == pytest.approx(dict.fromkeys(found, truth), rel=1e-12)


def test_the_final_loss_of_a_sparse_log_is_as_uncertain_as_its_losses_are(path: Path):
    """A point each 5% of the steps: one or two make the final loss, and their own scatter shows no noise."""
    run = read_run(path)
    last = run.points[-1].step
    sparse = [min(run.points, key=lambda point: abs(point.step - part * last / 20)) for part in range(1, 21)]
    (curve,), _ = finished_runs([replace(run, points=tuple(sparse))], "train")
    assert 0.005 < curve.final_error < 0.04  # the noise is 0.02


def test_runs_that_do_not_count_are_left_out_and_named(tmp_path: Path):
    """As the report leaves them out: a law is of finished runs."""
    good = [planted_run(f"good {i}", N, 20 * N) for i, N in enumerate((1e8, 2e8, 4e8))]
    bad = [
        replace(planted_run("live", 1e8, 2e9), status="running"),
        replace(planted_run("cut", 1e8, 2e9), planned={"steps": 10**6}),
        replace(planted_run("no size", 1e8, 2e9), parameters={}),
        replace(planted_run("empty", 1e8, 2e9), points=()),
    ]
    table = table_of_runs([*bad, *good], ("N", "D", "loss"))
    assert [row.removeprefix("run ") for row in table.rows] == ["good 0", "good 1", "good 2"]
    assert table.left_out == (
        "live: it is not finished",
        f"cut: it ended at step {bad[1].points[-1].step:,} of 1,000,000 planned",
        "no size: its parameters are not known",
        "empty: it has no loss with its tokens",
    )
    with pytest.raises(BadData, match="expected finished runs with a loss, got none; live: it is not finished"):
        table_of_runs(bad[:1], ("N", "D", "loss"))


@pytest.mark.parametrize("command", ["fit", "plan"])
def test_the_shell_names_them(command: str, tmp_path: Path):
    for i, N in enumerate((1e8, 1.5e8, 2e8, 3e8, 4e8, 8e8)):
        recorded(tmp_path, planted_run(f"run {i}", N, (10 + 5 * i) * N, seed=i))
    recorded(tmp_path, replace(planted_run("sizeless", 1e8, 2e9), parameters={}))
    args = ["fit", str(tmp_path), "--draws", "20"] if command == "fit" else ["plan", "--flops", "1e20"]
    done = CliRunner().invoke(app, args if command == "fit" else [*args, "--runs", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    assert f"isoflop {command}: left out: sizeless: its parameters are not known" in done.stderr


@pytest.mark.parametrize(
    ("until", "status", "why"),
    [
        (1.0, "completed", ""),
        (0.98, "completed", ""),
        (0.979, "completed", "it ended at step {last:,} of {planned:,} planned"),
        (1.0, "interrupted", "it was interrupted"),
        (1.0, "running", "it is not finished"),
    ],
)
def test_one_rule_of_finished(tmp_path: Path, until: float, status: str, why: str):
    """A run that has not ended, or that ended before 98% of its plan, is left out by all, for the same reason."""
    run = planted_run("a", 1e8, 4e9, points=400, status=status, until=until)
    path = recorded(tmp_path, run)
    last, planned = run.points[-1].step, int(run.planned["steps"])
    why = why.format(last=last, planned=planned)
    others = [planted_run("b", 1e8, 4e9), planted_run("c", 2e8, 4e9)]
    found = {
        "isoflop fit, plan": table_of_runs([run, *others], ("N", "D", "loss")).left_out,
        "history=": learn_from([run]).left_out,
        "ladder": read_finished([path]).left_out,
        "isoflop backtest": tuple(finished_runs([run])[1]),
        "report": tuple(f"{end.name}: {end.left_out}" for end in study([run]).ends if end.left_out),
    }
    assert found == dict.fromkeys(found, (f"a: {why}",) if why else ())
    assert is_complete(read_run(path), planned) == (why == "")  # else `ladder run` trains on


@pytest.mark.parametrize("loss", ["train", "eval/val"])
@pytest.mark.parametrize("evaluated", ["before", "after", "at the end"])
def test_a_run_that_broke_has_no_final_loss(loss: str, evaluated: str, tmp_path: Path):
    """NaN in the second half; the evaluation was made before that, is NaN too, or is a number at the very end."""
    run = with_nan_losses(planted_run("a", 1e8, 4e9, points=400), last=200)
    value, at = {"before": (3.0, 100), "after": (math.nan, -1), "at the end": (3.0, -1)}[evaluated]
    points = list(run.points)
    points[90] = replace(points[90], losses={"train": 3.5, "eval/val": 3.5})
    points[at] = replace(points[at], losses={"train": math.nan if at < 0 else 3.0, "eval/val": value})
    run = replace(run, points=tuple(points))
    recorded(tmp_path, run)
    good = [recorded(tmp_path, with_val(planted_run(name, N, 4e9))) for name, N in (("b", 1e8), ("c", 2e8))]
    runs = [run, *map(read_run, good)]
    ranked = json.loads(shell("rank", tmp_path, "--loss", loss, "--json").stdout)
    broke = loss == "train" or evaluated != "at the end"
    (reason,) = {study(runs, loss=loss).ends[0].left_out}
    assert ("is no finite number from step" in reason) == broke
    left_out = (f"a: {reason}",) if broke else ()
    found = {
        "isoflop fit, plan": table_of_runs(runs, ("N", "D", "loss"), loss=loss).left_out,
        "history=": learn_from(runs, loss=loss).left_out,
        "isoflop rank": tuple(f"{name}: {why}" for name, why in ranked["silent"].items()),
        "ladder": read_finished([tmp_path], loss=loss).left_out,
    }
    assert found == dict.fromkeys(found, left_out)
    assert (final_loss(run.points, loss) is None) == broke
    known = passport(run)
    assert (known["loss"]["final"][loss] is None) == broke and "no finite number" in known["not_finished"]


def with_val(run: Run) -> Run:
    points = [replace(point, losses={**point.losses, "eval/val": point.losses["train"]}) for point in run.points]
    return replace(run, points=tuple(points))


def test_one_interval_without_a_number_breaks_no_run():
    run = with_nan_losses(planted_run("a", 1e8, 4e9, points=400), last=0, spike_at=200)
    points = list(run.points)
    points[100] = replace(points[100], losses={**points[100].losses, "eval/val": 3.5})
    assert final_loss(points, "eval/val") == 3.5
    assert final_loss(points, "train") == pytest.approx(float(points[-1].losses["train"] or 0), rel=1e-2)
