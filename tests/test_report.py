"""What a report says of runs whose law is known, of runs that tell none, and of files that can't be read."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from isoflop.cli import app
from isoflop.figures import RunEnd, ends_of_table, study
from isoflop.fit.plan import plan
from isoflop.report import Report, make_report, read_sources, run_rows
from isoflop.report.page import render
from isoflop.report.runs import facts, latest_advice, recorded_advice
from isoflop.report.sentences import checklist, headline, holdout, power_of_ten
from report_files import ADVICE, documented_run, write, write_all
from study_runs import LAW, optimal_size, planted_run, sweep, with_nan_losses

FIT = "Uncertainty, goodness of fit, validation"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Twenty-four finished runs of a known law with little noise, and one under way."""
    folder = tmp_path_factory.mktemp("planted")
    write_all(folder, sweep(noise=0.001))
    write(folder, planted_run("half way", 3e8, 6e9, status="running", until=0.5, seed=59))
    return make_report(read_sources([folder]))


def test_the_headline_tells_a_planted_law(planted: Report) -> None:
    first, exponent, ahead = planted.headline.says
    assert first.startswith("24 finished runs follow L(N,D) = ")
    alpha, beta = (float(text) for text in re.findall(r"/[ND]\^([0-9.]+)", first))
    assert alpha == pytest.approx(LAW["alpha"], abs=0.02) and beta == pytest.approx(LAW["beta"], abs=0.02)
    a = LAW["beta"] / (LAW["alpha"] + LAW["beta"])
    told, low, high = (float(text) for text in re.findall(r"[0-9]\.[0-9]{3}", exponent)[:3])
    assert low < told < high and told == pytest.approx(a, abs=0.01)
    C = float(planted.study.C.max()) * 10
    assert f"At 10 times that, {C:.2g} FLOPs," in ahead
    N = float(re.search(r"model of ([0-9.]+)B", ahead)[1]) * 1e9  # type: ignore[index]
    assert pytest.approx(optimal_size(C), rel=0.1) == N


def test_what_supports_a_law_and_what_does_not(planted: Report) -> None:
    assert any("the law holds there" in text for text in planted.headline.sure)
    N, D = np.meshgrid(np.geomspace(1e7, 1e10, 7), np.geomspace(1e9, 1e12, 7))
    # a sixth of the runs went wrong: outliers, left out and named; a third: no fit may leave out so many
    for every, said in ((6, "9 runs are left out"), (3, "leaves much open")):
        L = LAW["E"] + LAW["A"] / N ** LAW["alpha"] + LAW["B"] / D ** LAW["beta"]
        L.flat[::every] *= 1.15
        rough = study(table=ends_of_table({"N": N.ravel(), "D": D.ravel(), "loss": L.ravel()}), convention="unknown")
        assert any(said in text for text in headline(rough, holdout(rough)).unsure)
        moved = [text for text in headline(rough, "not tested").unsure if text.startswith("With the ")]
        assert (len(moved) == 1 and "9 outliers" in moved[0] and "α 0.3" in moved[0]) if every == 6 else not moved


def test_a_page_counts_runs_once_and_a_law_that_describes_nothing_is_not_followed() -> None:
    N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 7), np.geomspace(1e9, 1e12, 7)))
    L = LAW["E"] + LAW["A"] / N ** LAW["alpha"] + LAW["B"] / D ** LAW["beta"]
    table = {"N": N, "D": D, "loss": L * np.where(np.arange(len(L)) == 3, 1.3, 1.0)}
    one_off = study(table=ends_of_table(table), convention="unknown", draws=100)
    assert not one_off.doubts  # a run left out is no reason not to draw the frontier
    assert headline(one_off, "few").says[0].startswith("48 of 49 finished runs are fitted")
    corpus = np.where(np.random.default_rng(1).random(len(N)) < 0.5, "web", "code").tolist()
    mixed = {"N": N, "D": D, "loss": L * np.where(np.array(corpus) == "web", 1.05, 1.0)}
    two = study(table=ends_of_table(mixed, labels={"corpus": corpus}), convention="unknown", draws=100)
    assert any("'corpus'" in text for text in two.doubts)
    told = headline(two, holdout(two))
    assert told.says[0].endswith("which does not describe them, or they are noisier than usual: do not rely on it.")
    assert not any("should grow" in text for text in told.says)
    assert told.says[-1].startswith("At the largest run's compute")


def test_only_a_law_that_predicts_larger_runs_is_followed(planted: Report) -> None:
    assert planted.headline.says[0].endswith("which predicted the larger of them from the smaller.")
    columns, C = planted.study.columns, planted.study.C
    bent = columns["loss"] + 0.2 * np.maximum(np.log(C / np.quantile(C, 0.7)), 0)  # the largest are worse than the law
    made = study(table=ends_of_table({**columns, "loss": bent}), convention="unknown", draws=100)
    assert made.law is not None
    assert headline(made, holdout(made)).says[0].endswith("which fails on the larger runs: do not extrapolate it.")
    assert headline(made, "too few").says[0].endswith("not tested on larger runs.")


def test_headline_and_table_give_the_same_interval(planted: Report) -> None:
    row = next(row for row in planted.study.compared().rows if row.name.startswith("approach 3"))  # type: ignore[union-attr]
    from isoflop.laws import short

    assert row.N_interval is not None
    assert f"({short(row.N_interval[0])} to {short(row.N_interval[1])})" in planted.headline.says[2]


def test_a_single_run_under_way(tmp_path: Path) -> None:
    run = planted_run("w <i>", 1e8, 2e9, status="running", until=0.3)
    last = replace(run.points[-1], extra={"forecast_loss": 2.5, "forecast_low": 2.4, "forecast_high": 2.6})
    write(tmp_path, replace(run, run_id="a", points=(*run.points[:-1], last)))
    report = make_report(read_sources([tmp_path]))
    assert report.headline.says[0] == "1 run, none finished: there is no scaling law yet."
    assert report.headline.says[1].startswith("“w <i>” is at step ")
    assert f"forecast for the end, as of step {last.step:,}, is 2.500 (2.400 to 2.600, 80%)" in report.headline.says[1]
    assert [row.left_out for row in report.rows] == ["it is not finished"]


def test_a_run_under_way_is_shown_by_its_training_loss(tmp_path: Path) -> None:
    run = planted_run("live", 1e8, 2e9, status="running", until=0.5)
    evaluated = replace(run.points[-1], losses={**run.points[-1].losses, "eval/val": 3.0})
    write(tmp_path, replace(run, run_id="a", points=(*run.points[:-1], evaluated)))
    sources = read_sources([tmp_path])
    assert make_report(sources).study.loss == "train"
    assert make_report(sources, loss="eval/val").study.loss == "eval/val"


def test_runs_of_one_size_tell_no_law() -> None:
    same = study([planted_run(f"d{i}", 1e8, D, seed=i) for i, D in enumerate(np.geomspace(1e9, 1e10, 6))])
    said = headline(same, holdout(same)).says
    assert "do not determine a scaling law" in said[0] and len(said) == 2


def test_a_law_is_not_called_tested_on_few_runs() -> None:
    few = study(sweep(budgets=(1e19, 1e20), sizes=3))
    held = holdout(few)
    assert isinstance(held, str)
    assert any("not tested on larger runs" in text for text in headline(few, held).unsure) or few.law is None


def test_every_run_has_a_row_with_the_reason_if_it_does_not_count() -> None:
    runs = [
        planted_run("fine", 1e8, 2e9),
        planted_run("live", 1e8, 2e9, status="running", until=0.5, seed=1),
        with_nan_losses(planted_run("nan", 1e8, 2e9, seed=2)),
    ]
    row = RunEnd("row 1", 2e8, 3e9, 2.9)
    rows = run_rows(study(runs, table=[row]))
    assert [each.name for each in rows] == ["fine", "live", "nan", "row 1"]
    assert [bool(each.left_out) for each in rows] == [False, True, True, False]
    fine = rows[0]
    assert pytest.approx(6.5 * 1e8 * 2e9) == fine.C and fine.measured
    assert fine.ratio == pytest.approx(20) and fine.step == fine.planned
    assert rows[3].status == "" and not rows[3].measured and pytest.approx(6 * 2e8 * 3e9) == rows[3].C


def test_the_checklist_of_documented_runs_is_answered_from_them() -> None:
    made = study([documented_run()])
    items = {item.question: item for item in checklist(made, "too few")}
    for question, text in {
        "Training data": "c4",
        "Tokenizer": "gpt2",
        "Optimizer and its settings": "AdamW, betas [0.9, 0.95], weight decay 0.1",
        "Shape of the models": "12 layers, width 768, 12 heads, context 1024",
        "Learning rates": "highest 0.0003",
        "Schedule": "10% of that at the end",
        "Batch size": "500,000 tokens a step",
        "Precision and hardware": "H100, bfloat16",
        "Is data repeated?": "no: every run saw less than one epoch",
        "How compute is counted": "measured on the meta device",
        "How parameters are counted": "by use in a traced forward pass",
    }.items():
        assert items[question].state == "answered" and text in items[question].answer, question
    assert items["Training code"].state == "partly" and "0123456789ab" in items["Training code"].answer


def test_what_the_records_do_not_tell_is_left_open() -> None:
    bare = study([planted_run("bare", 1e8, 2e9, optimizer=None, planned={})])
    items = {item.question: item for item in checklist(bare, "too few")}
    for question in ("Training data", "Tokenizer", "Schedule", "Training code", "Optimizer and its settings"):
        assert items[question].state == "open"
        assert items[question].answer.startswith("Not recorded. Please state ")
    assert items["Prediction of runs that were held back" if bare.fit else FIT].state == "open"


def test_a_checklist_says_for_how_many_runs_something_is_missing() -> None:
    made = study([documented_run(), planted_run("bare", 1e8, 2e9)])
    item = next(item for item in checklist(made, "too few") if item.question == "Tokenizer")
    assert item.state == "partly" and "gpt2 (1 of 2 runs)" in item.answer and "for 1 of 2 runs" in item.answer


def test_the_checklist_of_a_table_claims_nothing_of_its_training() -> None:
    N, D = np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5))
    rows = [
        RunEnd(f"row {i}", n, d, 1.8 + 480 / n**0.35 + 2000 / d**0.37)
        for i, (n, d) in enumerate(zip(N.flat, D.flat, strict=True))
    ]
    made = study(table=rows, convention="unknown")
    training = [item for item in checklist(made, "too few") if item.part == "The training"]
    answered = {item.question for item in training if item.state == "answered"}
    assert answered == {"Number of models and runs", "Range of sizes, data and compute"}


def test_every_question_has_an_answer_and_every_part_is_there(planted: Report) -> None:
    parts = list(dict.fromkeys(item.part for item in planted.checklist))
    assert parts == ["The law", "The training", "The measurements", "The fit"]
    assert all(item.answer.strip() for item in planted.checklist)
    assert all("state" in item.answer for item in planted.checklist if item.state == "open")


def test_advice_is_shown_by_time_and_odd_values_do_no_harm(tmp_path: Path) -> None:
    run = planted_run("a", 1e8, 2e9)
    odd = {
        "step": 20,
        "time": "soon",
        "severity": 7,
        "what": None,
        "numbers": [3, {"name": "x", "value": "y"}],
        "basis": "b",
    }
    path = write(tmp_path, replace(run, run_id="a"), {**ADVICE, "time": 1.8e9, "step": 30}, ADVICE, odd)
    said = latest_advice(read_sources([path]).runs)
    assert [each.step for each in said] == [20, 10, 30]
    assert (said[0].time, said[0].severity, said[0].numbers, said[0].basis) == (None, "", (), ())
    assert [str(each) for each in said[1].numbers] == ["N = 1.3B parameters [1B, 2B]"] and said[1].probability == 0.93
    assert (said[1].time, said[1].reason) == (1.7e9, "too_large")


@pytest.mark.parametrize(("status", "said"), [("running", "Do: stop."), ("completed", "Next time: take more data")])
def test_a_run_that_has_ended_is_not_told_to_stop(status: str, said: str) -> None:
    advice = {**ADVICE, "reason": "overfitting", "do": "stop."}
    (found,) = recorded_advice(replace(planted_run("a", 1e8, 2e9, status=status), advice=(advice,)))
    assert f"{found.label}: {found.do}".startswith(said) and found.why == "overfitting"


def test_how_it_was_counted_and_by_what() -> None:
    runs = [documented_run(), documented_run(), planted_run("bare", 1e8, 2e9)]
    shared = [(fact.name, fact.value, fact.runs) for fact in facts(runs)]
    assert ("FLOPs", "measured on the meta device", 2) in shared
    assert ("git commit", "0123456789ab", 2) in shared and ("device", "8 × H100, bfloat16", 2) in shared


def test_a_file_that_cannot_be_read_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    write(tmp_path, replace(planted_run("good", 1e8, 2e9), run_id="good"))
    bad = tmp_path / "isoflop-bad.jsonl"
    bad.write_bytes(b"\x00nothing\n")
    short = tmp_path / "runs.csv"
    short.write_text("N,tokens,loss\n1e8,2e9\n")
    sources = read_sources([tmp_path, short])
    assert [run.name for run in sources.runs] == ["good"]
    assert [str(path) in "".join(sources.problems) for path in (bad, short)] == [True, True]


def test_rows_of_a_table_that_do_not_count_are_named_with_the_reason(tmp_path: Path) -> None:
    """By `read_sources`, by the command and on the page, and they are among the runs that came."""
    table = tmp_path / "runs.csv"
    table.write_text("run,N,D,loss,status\na,1e8,2e9,3.1,finished\nb: 2,2e8,2e9,7.9,diverged\nc,2e8,2e9,,finished\n")
    report = make_report(read_sources([table]))
    assert [(row.name, row.left_out) for row in report.rows] == [
        *(("a", ""), ("b: 2", "its status is diverged"), ("c", "nothing in loss"))
    ]
    assert "2 runs do not count in a fit: b: 2 (its status is diverged); c (nothing in loss)" in report.study.left_out
    page = render(report)
    assert "3 runs" in page and "no: its status is diverged" in page
    shown = CliRunner().invoke(app, ["report", str(table), "-o", str(tmp_path / "page.html")])
    assert "left out: b: 2: its status is diverged" in shown.stderr and "left out: c: nothing in loss" in shown.stderr


def test_records_and_tables_together_and_none_twice(tmp_path: Path) -> None:
    path = write(tmp_path, replace(planted_run("good", 1e8, 2e9), run_id="good"))
    table = tmp_path / "runs.csv"
    table.write_text("size,tokens,loss\n1e8,2e9,3.1\n2e8,2e9,3.0\n")
    sources = read_sources([path, tmp_path, table], {"N": "size"}, "size>1.5e8")
    assert len(sources.runs) == 1 and [row.N for row in sources.rows] == [2e8]
    assert sources.taken == {"N": "size", "D": "tokens", "loss": "loss"}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("nothing", None, "which does not exist"),
        ("isoflop-a.jsonl", b"", "expected isoflop's records"),
        ("runs.csv", b"a,b\n1,2\n", "no column is known to be N"),
        ("runs.csv", b"\xff\xfe\x00", "expected text in UTF-16, as its first bytes say, or UTF-8"),
    ],
)
def test_nothing_that_can_be_read_is_an_error_that_says_so(
    tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(told)):
        read_sources([tmp_path / name])


def test_numbers_in_the_headline() -> None:
    assert [power_of_ten(x) for x in (0.5, 482.01, 9999.4, 12845.6, 1e-5)] == [
        "0.5",
        "482",
        "9999",
        "1.285·10^4",
        "1.000·10^-5",
    ]


def test_runs_under_way_without_a_forecast_share_a_line():
    runs = [planted_run(f"run {i}", 1e8, 2e9, status="running", until=0.4) for i in range(3)]
    says = headline(study(runs), None).says
    (line,) = [each for each in says if "is at step" in each]
    assert line.count("is at step") == 3


def test_the_best_model_of_the_report_is_that_of_plan(tmp_path: Path) -> None:
    """Where the smaller runs' law fails on the larger ones too: the interval allows for what it misses."""
    rng, rows = np.random.default_rng(7), []
    for C in (1e18, 6e18, 3e19):
        for part in np.geomspace(0.25, 4, 8):
            N = (0.34 * 400 / (0.28 * 410)) ** (1 / 0.62) * (C / 6) ** (0.28 / 0.62) * part
            loss = (1.8 + 400 / N**0.34 + 410 / (C / 6 / N) ** 0.28) * np.exp(0.005 * rng.normal())
            rows.append((N, C / 6 / N, loss))
    table = tmp_path / "runs.csv"
    table.write_text("N,D,loss\n" + "".join(f"{n},{d},{loss}\n" for n, d, loss in rows))
    report = make_report(read_sources([table]))
    own = {name: np.array(column) for name, column in zip(("N", "D", "loss"), zip(*rows, strict=True), strict=True)}
    says = report.headline.says[-1]
    near = says.startswith("At the largest")
    answer = plan(float(report.study.C.max()) * (1 if near else 10), own=own, level=0.9)
    assert answer.L is not None
    low, high = answer.intervals["loss"]
    assert f"with a loss of {answer.L:.3f} ({low:.3f} to {high:.3f})" in says
    assert any("fails on the larger ones" in doubt for doubt in answer.doubts)
