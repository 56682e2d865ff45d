"""`isoflop report` as its users meet it: files, options, and what it says when it can't."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from isoflop.cli import app
from isoflop.report import page as module
from report_files import write, write_all
from study_runs import planted_run, sweep


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three finished runs: too few for a law, so that nothing waits for a fit."""
    return write_all(tmp_path / "runs", [planted_run(f"r{i}", 1e8, 2e9, 12, seed=i) for i in range(3)])


def report(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_the_page_is_written_where_it_is_asked_for(runs: Path) -> None:
    result = report(runs)
    assert result.exit_code == 0 and result.stdout == "report.html\n" and result.stderr == ""
    assert Path("report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    result = report(runs, "-o", "new/folder/mine.html")
    assert result.exit_code == 0 and Path("new/folder/mine.html").stat().st_size > 4_000_000
    Path("report.html").write_text("old")
    assert report(runs).exit_code == 0 and len(Path("report.html").read_text(encoding="utf-8")) > 1000


def test_tables_and_figures_beside_it(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    made = module.figures
    monkeypatch.setattr(module, "figures", lambda study: made(study)[:1])  # one is enough, in three formats
    result = report(runs, "-o", "mine.html", "--latex", "--svg", "--png", "--pdf")
    assert result.exit_code == 0, result.stderr
    names = result.stdout.split()
    assert names[:3] == ["mine.html", "mine.tex", "mine.bib"] and all(Path(name).stat().st_size for name in names)
    figures = {name.rsplit(".", 1)[0] for name in names[3:]}
    assert "mine-loss-flops" in figures
    assert set(names[3:]) == {f"{name}.{kind}" for name in figures for kind in ("pdf", "svg", "png")}
    heads = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}
    assert all(Path(name).read_bytes().startswith(heads[name.rsplit(".", 1)[1]]) for name in names[3:])
    assert "report.bib" not in Path("mine.tex").read_text() and "mine.bib" in Path("mine.tex").read_text()


def test_options_reach_the_study(tmp_path: Path) -> None:
    write_all(tmp_path / "runs", sweep(budgets=(1e19, 1e20), sizes=5, points=12))
    result = report("runs", "--n", "total", "--level", "0.5", "--budgets", "1e19,1e20", "--loss", "train")
    page = Path("report.html").read_text(encoding="utf-8")
    assert result.exit_code == 0, result.stderr
    assert "50% interval" in page and "N total" in page and "approach 2 (parabola)" in page


def test_a_table_with_columns_of_its_own(tmp_path: Path) -> None:
    rows = "".join(f"{n},{d},{3 + i / 10},{i}\n" for i, (n, d) in enumerate([(1e7, 1e9), (2e7, 1e9), (3e7, 2e9)]))
    Path("runs.csv").write_text("size,tokens,final,kept\n" + rows)
    result = report("runs.csv", "--column", "N=size", "--column", "loss=final", "--where", "kept>0")
    assert result.exit_code == 0, result.stderr
    page = Path("report.html").read_text(encoding="utf-8")
    assert "2 runs, no law is fitted" in page and "N from size, D from tokens, loss from final" in page


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(runs: Path) -> None:
    bad = runs / "isoflop-bad.jsonl"
    bad.write_bytes(b"nothing\n")
    result = report(runs)
    assert result.exit_code == 0 and str(bad) in result.stderr and "left out" in result.stderr
    assert "isoflop-bad.jsonl" in Path("report.html").read_text(encoding="utf-8")


def test_one_figure_for_a_paper(runs: Path) -> None:
    pytest.importorskip("matplotlib")
    result = CliRunner().invoke(app, ["figure", "runs", "--style", "neurips", "--width", "12.7cm", "-o", "fig.png"])
    assert result.exit_code == 0 and result.stdout.strip() == "fig.png"
    assert "isoflop figure: No frontier" in result.stderr
    content = Path("fig.png").read_bytes()
    assert int.from_bytes(content[16:20], "big") == 5 * 300  # the IHDR chunk's width: 5 inches at 300 dpi


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--kind", "pie"], "--kind: expected one of loss-flops"),
        (["--width", "5"], "--width: expected a length between 1in and 40in"),
        (["--style", "nature"], "expected a style of plain, neurips"),
        (["-o", "fig.bmp"], "ends in .pdf, .svg, .png"),
    ],
)
def test_a_figure_that_cannot_be_drawn(runs: Path, options: list[str], expected: str) -> None:
    pytest.importorskip("matplotlib")
    result = CliRunner().invoke(app, ["figure", "runs", *options])
    assert result.exit_code == 1 and expected in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere, which does not exist"),
        (["runs", "-o", "runs"], "expected a file, got the folder runs: pass runs/report.html"),
        (["runs", "-o", "file/report.html"], "can't be written"),
        (["runs", "--n", "all"], "--n: expected one of total"),
        (["runs", "--budgets", "many"], "--budgets: expected positive numbers"),
        (["runs", "--column", "N"], "--column: expected NAME=VALUE"),
        (["runs", "--loss", "eval/none"], "expected a loss that a record has"),
        (["empty"], "nothing to report on in empty"),
    ],
)
def test_what_is_wrong_is_said(runs: Path, arguments: list[str], told: str) -> None:
    Path("file").write_text("")
    Path("empty").mkdir()
    result = report(*arguments)
    assert result.exit_code == 1 and told in result.stderr
    assert "Traceback" not in result.stderr and not Path("report.html").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the root user may write everywhere")
def test_a_folder_that_may_not_be_written_to(runs: Path) -> None:
    Path("locked").mkdir(mode=0o500)
    result = report(runs, "-o", "locked/report.html")
    assert result.exit_code == 1 and "locked/report.html, which can't be written" in result.stderr


def test_a_run_under_way_alone(tmp_path: Path) -> None:
    write(tmp_path / "runs", replace(planted_run("live", 1e8, 2e9, status="running", until=0.4), run_id="live"))
    result = report("runs")
    assert result.exit_code == 0
    assert "none finished: there is no scaling law yet" in Path("report.html").read_text(encoding="utf-8")


def test_records_at_a_url(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.put(str(runs), "/sweep", recursive=True)
    try:
        here = report(runs, "-o", tmp_path / "here.html")
        there = report("memory://sweep", "-o", tmp_path / "there.html")
        assert (here.exit_code, there.exit_code) == (0, 0), there.stderr
        one, other = ((tmp_path / f"{name}.html").read_text(encoding="utf-8") for name in ("here", "there"))
        assert [line for line in one.splitlines() if "Made" not in line] == [
            line for line in other.splitlines() if "Made" not in line
        ]
        gone = report(runs, "memory://nowhere", "-o", tmp_path / "some.html")
        assert gone.exit_code == 0 and "memory://nowhere" in gone.stderr
    finally:
        memory.rm("/sweep", recursive=True)
