"""Finished runs of a student: logs of several tools, some stopped or diverged; what every command says of them."""

from __future__ import annotations

import json
import math
import re
import shlex
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fits import hoffmann
from isoflop.cli import app
from isoflop.figures import FIGURES, Figure, by_group, matplotlib_figure, plotly_figure
from isoflop.fit.own_runs import learn_from
from isoflop.fit.sources import number_of
from isoflop.fit.table import read_table
from isoflop.record import Point, Run, read_run, read_runs
from isoflop.report.page import study_of
from isoflop.report.runs import read_sources
from isoflop.tab.answers import runs_answer
from isoflop.tab.records import RecordStore, Root

BATCH = 65_536
SIZES = (5e6, 1e7, 2e7, 4e7)


def run(*arguments: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


def log(
    path: Path,
    N: float,
    ratio: float = 20.0,
    *,
    until: float = 1.0,
    every: int = 10,
    rise: float = 0.0,
    more: float = 0.0,
    evaluation: str = "val_loss",
    config: dict[str, Any] | None = None,
) -> Path:
    """A loop's lines of JSON: its settings, then losses by Hoffmann et al.'s law; `rise` from half of the run on."""
    steps = round(ratio * N / BATCH)
    settings = {"n_params": round(N), "max_steps": steps, "batch_tokens": BATCH, **(config or {})}
    rows: list[dict[str, Any]] = [{"event": "config", **settings}]
    rng = np.random.default_rng(zlib.crc32(str(path.stem).encode()))
    for step in range(every, int(until * steps) + 1, every):
        loss = float(hoffmann(np.array(N), np.array(float(step * BATCH)))) + more + float(rng.normal(0, 0.003))
        loss += rise * (step > steps / 2)
        rows.append({"it": step, "tokens": step * BATCH, "train_loss": min(loss, 10.0), "lr": 1e-3})
        if step % (5 * every) == 0 or step + every > steps:
            rows[-1][evaluation] = loss + 0.01
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sweep(folder: Path, **options: Any) -> None:
    for N in SIZES:
        for ratio in (10, 20, 40):
            log(folder / f"{folder.name}-{N / 1e6:.0f}M-{ratio}.jsonl", N, ratio, every=int(N / BATCH / 2), **options)


# -- what is finished ------------------------------------------------------------------------------------------------


def test_a_run_that_stopped_is_called_so_everywhere(tmp_path: Path) -> None:
    log(tmp_path / "logs" / "whole.jsonl", 1e7)
    log(tmp_path / "logs" / "stopped.jsonl", 2e7, until=0.35)
    log(tmp_path / "logs" / "risen.jsonl", 4e7, rise=3.0)
    done = run("import", tmp_path / "logs", "-o", tmp_path / "runs", "--json")
    assert {each["name"]: each["status"] for each in json.loads(done.stdout)["runs"]} == {
        "whole": "completed",
        "stopped": "interrupted",
        "risen": "completed",
    }
    why = "it ended at step 2,130 of 6,104 planned"
    ranked = json.loads(run("rank", tmp_path / "runs", "--json").stdout)
    assert [each["name"] for each in ranked["runs"] if each["finished"]] == ["whole", "risen"]
    assert ranked["silent"] == {"stopped": why}
    shown = run("rank", tmp_path / "runs").stdout
    assert "None of" not in shown or "under way" in shown
    (stopped,) = (tmp_path / "runs").glob("isoflop-stopped-*")
    assert json.loads(run("passport", stopped, "--json").stdout)["not_finished"] == why
    fit = run("fit", tmp_path / "runs", "--json", "--draws", 20)
    assert f"left out: stopped: {why}" in fit.stderr and json.loads(fit.stdout)["n"] == 2
    study = study_of(read_sources([tmp_path / "runs"]))
    assert dict(study.uncounted) == {why: ["stopped"]}
    # the tab has a green dot for neither
    answer = runs_answer(RecordStore([Root(str(tmp_path / "runs"))]).look())
    states = {row["name"]: (row["status"], row["stopped"], bool(row["rose"])) for row in answer["runs"]}
    assert states == {
        "whole": ("completed", "", False),
        "stopped": ("interrupted", why, False),
        "risen": ("completed", "", True),
    }


def test_a_stopped_run_whose_loss_rose_is_left_out_by_both(tmp_path: Path) -> None:
    log(tmp_path / "logs" / "whole.jsonl", 1e7)
    log(tmp_path / "logs" / "risen.jsonl", 2e7, until=0.8, rise=3.0)
    shown = run("import", tmp_path / "logs", "-o", tmp_path / "runs").stdout
    (rise,) = re.findall(r"risen: (its training loss ended at \S+, after \S+ at step \S+)", shown)
    why = f"it ended at step 4,880 of 6,104 planned; {rise}"
    assert json.loads(run("rank", tmp_path / "runs", "--json").stdout)["silent"] == {"risen": why}
    assert f"left out: risen: {why}" in run("fit", tmp_path / "runs", "--json", "--draws", 20, code=1).stderr
    assert dict(study_of(read_sources([tmp_path / "runs"])).uncounted) == {why: ["risen"]}


def test_rank_of_finished_runs_of_no_known_plan_tells_of_none(tmp_path: Path) -> None:
    """Their rates may move: nobody gave the plan that they would leave; that evaluations differ in name is named."""
    for name, evaluation in (("one", "val_loss"), ("two", "eval_loss")):
        path = log(tmp_path / "logs" / f"{name}.jsonl", 1e7, evaluation=evaluation)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for place, row in enumerate(rows[1:]):
            row["lr"] = 1e-3 * (0.4 + 0.6 * ((place * 7) % 11) / 10)  # of no kind of plan
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("import", tmp_path / "logs", "-o", tmp_path / "runs")
    ranked = run("rank", tmp_path / "runs", "--json")
    assert [each["finished"] for each in json.loads(ranked.stdout)["runs"]] == [True, True]
    assert "left its plan" not in ranked.stderr
    (hint,) = re.findall(r"may be one evaluation: (--loss \S+) joins them", ranked.stderr)
    joined = run("rank", tmp_path / "runs", *shlex.split(hint), "--json")
    assert json.loads(joined.stdout)["loss"] == hint.removeprefix("--loss ").split("=")[0]


def test_a_report_does_not_say_that_a_stopped_run_trains(tmp_path: Path) -> None:
    for i, until in enumerate((1.0, 1.0, 0.5)):
        log(tmp_path / "logs" / f"run{i}.jsonl", 1e7 * (i + 1), until=until)
    run("import", tmp_path / "logs", "-o", tmp_path / "runs")
    run("report", tmp_path / "runs", "-o", tmp_path / "report.html")
    page = re.sub(r"<[^>]+>", "", (tmp_path / "report.html").read_text())
    assert "3 runs, no law is fitted" in page and "is at step" not in page


@pytest.mark.parametrize(("every", "until", "status"), [(100, 1.0, "completed"), (100, 0.9, "interrupted")])
def test_a_run_ends_less_than_a_log_interval_after_its_last_log(
    tmp_path: Path, every: int, until: float, status: str
) -> None:
    """3,052 steps with a value each 100: the last one is of step 3,000, 98.3%; each 200 it is 98.3% too, each 250 …"""
    log(tmp_path / "log.jsonl", 1e7, 15.0, every=every, until=until)  # 2,289 steps: the last value lies at 96%
    run("import", tmp_path / "log.jsonl", "-o", tmp_path / "runs")
    (found,) = read_runs(tmp_path / "runs")
    assert found.status == status and found.planned["steps"] == 2_289
    assert found.end is not None and found.end["step"] == (2_289 if status == "completed" else 2_000)


def trainer(folder: Path, logged: list[int], evaluated: list[int], steps: int = 645) -> Path:
    history = [{"step": step, "loss": 5 - step / 500, "learning_rate": 1e-4} for step in logged]
    history += [{"step": step, "eval_loss": 5.1 - step / 500} for step in evaluated]
    history.sort(key=lambda row: row["step"])
    history.append({"step": steps, "train_loss": 4.2, "train_runtime": 100.0, "total_flos": 6e6 * 1e4 * steps})
    folder.mkdir(parents=True)
    state = {"log_history": history, "global_step": steps, "max_steps": steps, "logging_steps": 25}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def test_a_trainer_that_finished_between_two_logs_is_finished(tmp_path: Path) -> None:
    """645 of 645 steps, the last logged loss of step 625, the last evaluation of step 600."""
    trainer(tmp_path / "hf" / "a", [*range(25, 626, 25)], [200, 400, 600])
    run("import", tmp_path / "hf", "-o", tmp_path / "runs", "--params", "1M", "--tokens-per-step", "10k")
    (found,) = read_runs(tmp_path / "runs")
    assert (found.status, found.steps_done, found.stopped) == ("completed", 645, "")
    ranked = json.loads(run("rank", tmp_path / "runs", "--json").stdout)["runs"]
    assert ranked[0]["finished"] and ranked[0]["forecast_loss"] == pytest.approx(3.775)  # the mean of steps 600 and 625
    refused = run("plan", "--flops", "1e18", "--runs", tmp_path / "runs", "--json")
    assert "left out" not in refused.stderr  # by the training loss: the evaluation is too early
    fit = run("fit", tmp_path / "runs", "--loss", "eval/eval", code=1)
    assert "it finished at step 645, but its last 'eval/eval' is of step 600, before the last 5%" in fit.stderr


def test_a_rise_at_the_end_is_told_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)

    def made(losses: np.ndarray, status: Any = "completed") -> Run:
        points = tuple(Point(step=10 * (i + 1), losses={"train": float(loss)}) for i, loss in enumerate(losses))
        return Run(run_id="a", points=points, status=status)

    falling = 2 + 5 * np.arange(1, 401) ** -0.5
    assert all(not made(falling + rng.normal(0, noise, 400)).rose for noise in (0.0, 0.05, 0.4) for _ in range(20))
    risen = np.where(np.arange(400) > 250, 6.0, falling)
    assert made(risen).rose.startswith("its training loss ended at 6, after 2.3")
    assert not made(risen, "running").rose and not made(risen[:30]).rose
    assert made(np.append(falling, np.nan)).rose == "its training loss is no finite number at the end"


# -- names, groups and answers ----------------------------------------------------------------------------------------


def test_columns_of_the_table_label_runs_and_one_without_is_kept(tmp_path: Path) -> None:
    for arch, more in (("a", 0.0), ("b", 0.3)):
        sweep(tmp_path / "logs" / arch, more=more)
    names = sorted(path.stem for path in (tmp_path / "logs").rglob("*.jsonl"))
    table = tmp_path / "table.csv"
    table.write_text("run,arch\n" + "".join(f"{name},{name[0]}\n" for name in names[1:]) + "a-5M-1O,a\n")
    done = run("import", tmp_path / "logs", "-o", tmp_path / "runs", "--table", table, "--group", "arch")
    assert f"--group arch: 1 of 24 runs have no such column or hyperparameter ({names[0]})" in done.stderr
    assert "--table: 1 row names no run: a-5M-1O: is it a-5M-10" in done.stderr
    assert len(read_runs(tmp_path / "runs")) == 24
    fit = run("fit", tmp_path / "runs", "--group", "arch", "--own", "E", "--json", "--draws", 20)
    found = json.loads(fit.stdout)
    assert found["n"] == 23 and f"left out: run {names[0]}: no arch" in fit.stderr
    assert found["parameters"]["E[b]"] - found["parameters"]["E[a]"] == pytest.approx(0.3, abs=0.01)
    # the folder of the logs, which nobody named, and as a condition
    fit = run("fit", tmp_path / "runs", "--group", "folder", "--own", "E", "--json", "--draws", 20)
    found = json.loads(fit.stdout)["parameters"]
    assert found["E[b]"] - found["E[a]"] == pytest.approx(0.3, abs=0.01)
    one = json.loads(run("fit", tmp_path / "runs", "--where", "folder==b", "--json", "--draws", 20).stdout)
    assert one["n"] == 12


def test_folders_of_records_are_groups(tmp_path: Path) -> None:
    for arch, more in (("a", 0.0), ("b", 0.3)):
        sweep(tmp_path / "logs" / arch, more=more)
        run("import", tmp_path / "logs" / arch, "-o", tmp_path / "runs" / arch)
    fit = run("fit", tmp_path / "runs", "--group", "folder", "--own", "E", "--json", "--draws", 20)
    found = json.loads(fit.stdout)["parameters"]
    assert found["E[b]"] - found["E[a]"] == pytest.approx(0.3, abs=0.01)


def test_answers_that_match_nothing_are_told_with_the_nearest_names(tmp_path: Path) -> None:
    log(tmp_path / "small.jsonl", 5e6, config={"arch": "a"})
    told = run(
        *("import", tmp_path / "small.jsonl", "-n", "--params", "smal=124M", "--loss", "eval/val=vall_loss"),
        *("--tokens", "tokns", "--group", "arhc"),
    ).stderr
    for line in (
        "--params smal=…: no run is called so; is it small?",
        "--loss vall_loss: no log has such a column; is it val_loss",
        "--tokens tokns: no log has such a column; is it tokens?",
        "--group arhc: no log has such a column; is it arch?",
    ):
        assert line in told


def test_most_runs_refused_is_a_failure_in_one_line(tmp_path: Path) -> None:
    log(tmp_path / "logs" / "good.jsonl", 5e6)
    for i in range(5):
        rows = "".join(f"{step},0.5\n" for step in range(1, 30))
        (tmp_path / "logs" / f"bad{i}.csv").write_text("step,score\n" + rows)
    told = run("import", tmp_path / "logs", "-o", tmp_path / "runs", code=1).stderr
    assert told.count("no loss is in it") == 1 and "bad0.csv and 4 more: no loss is in it" in told
    assert "5 of 6 runs were refused" in told
    for i in range(6):  # a file a metric, as DVCLive keeps them
        (tmp_path / "logs" / f"bad{i}.csv").write_text(f"step,metric{i}\n" + rows)
    told = run("import", tmp_path / "logs", "-o", tmp_path / "runs", code=1).stderr
    assert told.count("no loss is in") == 1 and "bad0.csv and 5 more: no loss is in them" in told


def test_one_evaluation_of_several_names_is_joined(tmp_path: Path) -> None:
    """At fit as the hint says, and at import; without, a law of the runs of one name."""
    for name in ("val", "valid", "eval"):
        sweep(tmp_path / "logs" / name, evaluation=f"{name}_loss")
    for path in (tmp_path / "logs" / "eval").iterdir():  # which logged no training loss
        path.write_text(path.read_text().replace("train_loss", "accuracy"))
    run("import", tmp_path / "logs", "-o", tmp_path / "runs")
    first = run("fit", tmp_path / "runs", "--json", "--draws", 20)
    assert json.loads(first.stdout)["n"] == 24
    (hint,) = re.findall(r"may be one evaluation: (--loss \S+) joins them", first.stderr)
    joined = run("fit", tmp_path / "runs", *shlex.split(hint), "--json", "--draws", 20)
    assert json.loads(joined.stdout)["n"] == 36 and "left out" not in joined.stderr
    assert len(json.loads(run("rank", tmp_path / "runs", *shlex.split(hint), "--json").stdout)["runs"]) == 36
    (name, others) = hint.removeprefix("--loss ").split("=")
    run("import", tmp_path / "logs", "-o", tmp_path / "named", "--loss", f"{name}={others}")
    again = run("fit", tmp_path / "named", "--json", "--draws", 20)
    assert json.loads(again.stdout)["parameters"] == json.loads(joined.stdout)["parameters"]
    columns = "eval/val=val_loss,valid_loss,eval_loss"
    run("import", tmp_path / "logs", "-o", tmp_path / "columns", "--loss", columns)
    assert all("eval/val" in found.points[-1].losses for found in read_runs(tmp_path / "columns"))
    told = run("fit", tmp_path / "runs", "--loss", "eval/val=eval/none", code=1).stderr
    assert "--loss: expected losses of the runs (eval/eval, eval/val, eval/valid, train), got 'eval/none'" in told


# -- tables as published -----------------------------------------------------------------------------------------------


def published(path: Path, *further: str, comma: bool = False) -> Path:
    rows = []
    for n in (44, 90, 175, 400, 810):
        for ratio in (10, 20, 50):
            loss = float(hoffmann(np.array(n * 1e6), np.array(ratio * n * 1e6)))
            mark = "†" if (n, ratio) == (400, 50) else "*" if n == 90 else ""
            cells = (f"LM-{n}M{mark}", f"{n}", f"{ratio * n / 1e3:.4f}", f"{loss:.5f}{mark}", "")
            rows.append(";".join(cells))
    text = "\n".join(["Model;Params (M);Tokens (B);Test loss;Notes", *rows, *further]) + "\n"
    path.write_text(text.replace(".", ",") if comma else text)
    return path


@pytest.mark.parametrize("cell", ["–", "—", "-", "n/a", "", "OOM", "diverged", "†", "–†", "nan"])
def test_cells_without_a_number_hold_nothing(cell: str) -> None:
    assert math.isnan(number_of(cell, "Test loss", "row 1"))
    assert number_of("3.21†", "loss", "row 1") == number_of("*3.21", "loss", "row 1") == 3.21


@pytest.mark.parametrize("cell", ["–", "OOM"])
def test_rows_without_a_number_are_left_out(tmp_path: Path, cell: str) -> None:
    path = published(tmp_path / "table.csv", f"LM-3B;3000;60;{cell};not yet trained")
    fit = run("fit", path, "--json", "--draws", 20)
    assert json.loads(fit.stdout)["n"] == 15
    said = f"its Test loss is {cell}" if cell == "OOM" else "nothing in Test loss"
    assert f"left out: line 17 of table.csv: {said}" in fit.stderr
    told = run("import", path, "-o", tmp_path / "runs")
    assert len(read_runs(tmp_path / "runs")) == 15
    assert cell == "OOM" or "no loss in Model LM-3B: left out" in told.stderr


def test_the_advice_to_leave_a_row_out_works_as_pasted(tmp_path: Path) -> None:
    path = published(tmp_path / "table.csv", "LM-3B;3000;60;see text;")
    told = run("fit", path, code=1).stderr
    (advice,) = re.findall(r"leave the run out: (--where .*)", told)
    assert json.loads(run("fit", path, *shlex.split(advice), "--json", "--draws", 20).stdout)["n"] == 15
    for where in ("Params (M)<2000", "'Params (M)'<2000", '"Params (M)" < 2000 and Notes==""'):
        assert len(read_table([path], ("N", "D", "loss"), where=where).rows) == 15
    told = run("fit", path, "--where", "Params<2000", code=1).stderr
    assert "--where: there is no column 'Params'; there are Model, Params (M), Tokens (B)" in told


def test_mixed_decimal_marks_are_one_message(tmp_path: Path) -> None:
    path = published(tmp_path / "table.csv", comma=True)
    assert json.loads(run("fit", path, "--json", "--draws", 20).stdout)["n"] == 15
    rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{rows[0]};FLOPs", *(f"{row};1.16e+17" for row in rows[1:])]))
    for done in (run("fit", path, code=1), run("import", path, "-n", code=1)):
        assert "decimal commas (0,4400) and points are mixed: write one of them" in done.stderr
        assert len(done.stderr.splitlines()) <= 2


# -- figures -----------------------------------------------------------------------------------------------------------


def test_runs_are_coloured_by_group_and_unsound_ones_are_grey(tmp_path: Path) -> None:
    for arch, more in (("a", 0.0), ("b", 0.01)):
        sweep(tmp_path / "logs" / arch, more=more)
    log(tmp_path / "logs" / "a" / "stopped.jsonl", 3e7, until=0.4)
    log(tmp_path / "logs" / "b" / "risen.jsonl", 3e7, rise=3.0)
    run("import", tmp_path / "logs", "-o", tmp_path / "runs")
    study = study_of(read_sources([tmp_path / "runs"]))
    for kind in ("loss-flops", "learning-curves", "residuals"):
        plain = FIGURES[kind](study)
        assert isinstance(plain, Figure)
        grey = {series.name for series in plain.series if series.role == "out"}
        assert kind == "residuals" or {"stopped", "risen"} < grey
        assert kind == "residuals" or any("grey" in note and "risen (its training" in note for note in plain.notes)
        figure = by_group(plain, study, "folder")
        entries = [series for series in figure.series if series.role == "group" and series.legend]
        assert [series.name for series in entries] == ["a", "b"] and figure.shades is None
        drawn = plotly_figure(figure)["data"]
        colours = {trace["name"]: trace["line"]["color"] for trace in drawn if trace.get("name") in ("a", "b")}
        assert len(set(colours.values())) == 2
        matplotlib_figure(figure)
    done = run("figure", tmp_path / "runs", "--group", "folder", "-o", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000 and "Colours: folder." in done.stderr
    told = run("figure", tmp_path / "runs", "--group", "arch", code=1).stderr
    assert "--group: expected a column of the runs (folder), got 'arch'" in told


def test_rows_of_a_table_are_coloured_by_a_column(tmp_path: Path) -> None:
    path = published(tmp_path / "table.csv")
    rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{rows[0]};arch", *(f"{row};{'xy'[i % 2]}" for i, row in enumerate(rows[1:]))]))
    study = study_of(read_sources([path]))
    figure = by_group(FIGURES["loss-flops"](study), study, "arch")  # type: ignore[arg-type]
    of = {series.group: len(series.x) for series in figure.series if series.role == "group" and not series.legend}
    assert of == {"x": 8, "y": 7}


# -- folders -----------------------------------------------------------------------------------------------------------


def test_links_to_folders_elsewhere_are_named(tmp_path: Path) -> None:
    sweep(tmp_path / "elsewhere")
    log(tmp_path / "logs" / "here.jsonl", 1e7)
    (tmp_path / "logs" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "logs" / "inner").mkdir()
    (tmp_path / "logs" / "latest").symlink_to(tmp_path / "logs" / "inner")  # found anyway
    told = run("import", tmp_path / "logs", "-o", tmp_path / "runs").stderr
    assert f"logs: a link to a folder is not followed: name {tmp_path / 'logs' / 'linked'} itself" in told
    run("import", tmp_path / "logs" / "linked", "-o", tmp_path / "more")
    assert len(read_runs(tmp_path / "runs")) == 1 and len(read_runs(tmp_path / "more")) == 12
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "more")
    noted: list[str] = []
    assert len(read_runs(tmp_path / "runs", on_problem=noted.append)) == 1
    assert noted == [f"{tmp_path / 'runs'}: a link to a folder is not followed: name {tmp_path / 'runs/linked'} itself"]


def test_tab_opens_tensorboard_on_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isoflop.cli import report

    opened: list[tuple[Path, int, str]] = []
    monkeypatch.setattr(report, "show", lambda *given: opened.append(given))
    log(tmp_path / "log.jsonl", 5e6)
    run("import", tmp_path / "log.jsonl", "-o", tmp_path / "runs")
    run("tab", tmp_path / "runs", "--port", 7000)
    assert opened == [(tmp_path / "runs", 7000, "isoflop tab")]
    assert "expected a folder with records" in run("tab", tmp_path / "none", code=1).stderr


def test_an_import_keeps_its_status_when_read_again(tmp_path: Path) -> None:
    log(tmp_path / "log.jsonl", 5e6, until=0.5)
    run("import", tmp_path / "log.jsonl", "-o", tmp_path / "runs")
    (path,) = (tmp_path / "runs").iterdir()
    assert read_run(path).status == "interrupted"
    assert "1 unchanged" in run("import", tmp_path / "log.jsonl", "-o", tmp_path / "runs").stdout


def test_a_run_that_saw_little_data_again_and_again_is_no_point_of_a_law_nor_the_best(tmp_path: Path) -> None:
    """Of the shipped runs one saw 32,768 tokens 28 times: the lowest training loss, the highest on held-out data."""
    run("demo", "--no-serve", "-o", tmp_path)
    ranked = json.loads(run("rank", tmp_path, "--json").stdout)
    assert ranked["loss"] == "eval/val"
    assert [each["name"] for each in ranked["runs"]] == ["98k", "25k", "6k", "98k-on-32kB"]
    live = run("rank", tmp_path, "--loss", "train")
    assert "by eval/val so far 98k is the best: --loss eval/val" in live.stderr and "training loss" in live.stdout
    table = read_table([tmp_path], ("N", "D", "loss"))
    assert len(table.rows) == 3 and "98k-on-32kB: it saw its data 28 times" in " ".join(table.left_out)
    assert len(read_table([tmp_path], ("N", "D", "U", "loss")).rows) == 1  # the others' data are not known
    drawn = study_of(read_sources([tmp_path]))
    assert [end.name for end in drawn.ends if end.left_out.startswith("it saw its data")] == ["98k-on-32kB"]
    assert len(learn_from(read_runs(tmp_path), loss="eval/val").points) == 3


@pytest.mark.parametrize("ends", [0.1, 0.02, 1.0])
def test_a_log_that_ends_in_the_middle_of_its_decay_where_others_do_not_is_asked_about(
    tmp_path: Path, ends: float
) -> None:
    for number, until in enumerate((1.0, 1.0, 1.0, 1.0, 0.5)):
        steps = np.arange(10, int(until * 2000) + 1, 10)
        rates = 1e-3 * (ends + (1 - ends) * (1 + np.cos(math.pi * steps / 2000)) / 2)
        rows = [f"{step},{3 + number / 9 + 20 / step:.4f},{rate:.4g}" for step, rate in zip(steps, rates, strict=True)]
        (tmp_path / f"run{number}.csv").write_text("\n".join(["step,train_loss,lr", *rows]) + "\n")
    done = run("import", tmp_path, "-n", "--params", "10M", "--tokens-per-step", "10k")
    asked = "the log ends in the middle of the decay of run4 (5" in done.output
    assert asked == (ends < 1)
