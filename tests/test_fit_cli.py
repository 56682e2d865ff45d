"""`isoflop fit` as its users meet it: tables, records, options, JSON, and what it says when it can't."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fits import BESIROGLU, grid, hoffmann, reference
from isoflop.cli import app
from isoflop.fit import BadData, fit_law, read_table
from isoflop.record import Point, RecordLog
from study_runs import planted_run

KEYS = ["law", "parameters", "standard_errors", "intervals", "level", "objective", "n", "n_convention", "warnings"]
KEYS += ["best_size", "extrapolates", "undetermined"]
CONSTANTS = {"A", "B", "E", "alpha", "beta"}


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def table(path: Path, names: tuple[str, str, str] = ("N", "tokens", "loss"), **more: list[Any]) -> Path:
    """A planted law's 20 runs, noise-free."""
    N, D = grid(5, 4)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *more])
        writer.writerows(zip(N, D, hoffmann(N, D), *more.values(), strict=True))
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["fit", *map(str, arguments)])


def run_command(*arguments: object) -> Any:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done


def fitted(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json", "--draws", 20)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
    found = json.loads(result.stdout)
    assert sorted(found) == sorted([*KEYS, *["at_equal_compute"] * ("--group" in arguments)])
    return found


def told(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("isoflop fit: ")
    return result.stderr.removeprefix("isoflop fit: ").rstrip("\n")


@pytest.mark.parametrize("fault", ["no column is known", "twice", "--where"])
def test_a_table_of_very_many_columns_gets_a_short_answer_soon(fault: str, tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(20_000)] + (["c0"] if fault == "twice" else [])
    (tmp_path / "wide.csv").write_text("\n".join([",".join(names), ",".join("1" for _ in names)]))
    named = ["--column", "N=c1", "--column", "D=c2", "--column", "loss=c3", "--where", "x>1"]
    began = time.process_time()
    done = run(tmp_path / "wide.csv", *(named if fault == "--where" else []))
    assert done.exit_code == 1 and fault in done.output and len(done.output) < 2000
    assert time.process_time() - began < 4


def test_one_json_object(tmp_path: Path) -> None:
    found = fitted(table(tmp_path / "runs.csv"))
    assert found["law"] == "hoffmann" and found["n"] == 20 and found["level"] == 0.9 and found["warnings"] == []
    assert found["parameters"] == pytest.approx(BESIROGLU, rel=1e-6)
    for part in ("parameters", "standard_errors", "intervals"):
        assert set(found[part]) == CONSTANTS
    assert all(low <= high for low, high in found["intervals"].values())
    assert found["objective"] == pytest.approx(0, abs=1e-12)


def test_json_holds_the_verdict_of_the_test_on_larger_runs(tmp_path: Path) -> None:
    """Where the law is not trusted beyond the runs it is a warning, as people see it."""
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
    loss = 1.8172 + 482.01 / N**0.3478 + 2085.43 / D**0.3658 - 0.05 * np.log(np.maximum(N * D / 1e18, 1))
    path = tmp_path / "runs.csv"
    path.write_text("N,D,loss\n" + "".join(f"{n},{d},{x}\n" for n, d, x in zip(N, D, loss, strict=True)))
    found = fitted(path)
    assert found["extrapolates"] is False
    assert any("The test runs reach" in text and "can't be trusted" in text for text in found["warnings"])


def test_conditions_of_several_options_hold_together(tmp_path: Path) -> None:
    """Whichever comes first: a second one replaces none."""
    path = table(tmp_path / "runs.csv", kind=["a", "b"] * 10)
    both = fitted(path, "--where", "kind==a and N<5e9")["n"]
    assert 0 < both < 10
    one, other = ("--where", "kind==a"), ("--where", "N<5e9")
    assert {fitted(path, *one, *other)["n"], fitted(path, *other, *one)["n"]} == {both}


def test_an_option_of_one_value_is_given_once(tmp_path: Path) -> None:
    done = run(table(tmp_path / "runs.csv"), "--level", 0.8, "--json", "--json", "--level", 0.9)
    assert done.exit_code == 2 and "--level is given 2 times: expected it once" in done.output


def test_what_is_open_is_null_in_json(tmp_path: Path) -> None:
    path = table(tmp_path / "runs.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:7]) + "\n")
    found = fitted(path)
    assert found["n"] == 6 and set(found["standard_errors"].values()) == {None}
    assert all(interval == [0, None] for interval in found["intervals"].values())
    assert any(warning.startswith("6 runs for 5 constants") for warning in found["warnings"])


def test_published_optimum_from_the_shell() -> None:
    path = reference("chinchilla_245.csv")
    found = fitted(path, "--where", "epoch_outlier==0")
    assert found["n"] == 240 and found["objective"] == pytest.approx(0.00101827401780, rel=1e-9)
    assert fitted(path)["n"] == 241  # of the five highest losses one lies near the law
    everything = fitted(path, "--keep-outliers")
    assert everything["n"] == 245 and everything["objective"] > 1.5 * found["objective"]


def test_options(tmp_path: Path) -> None:
    path = table(tmp_path / "runs.csv", ("size", "seen", "final"), good=[1] * 19 + [0])
    columns = ["--column", "N=size", "--column", "D=seen", "--column", "loss=final"]
    found = fitted(path, *columns, "--where", "good==1", "--fix", "alpha=0.3478", "--delta", "lad", "--level", 0.5)
    assert found["n"] == 19 and found["level"] == 0.5
    assert found["parameters"]["alpha"] == 0.3478 and found["intervals"]["alpha"] == [0.3478, 0.3478]
    assert found["standard_errors"]["alpha"] == 0
    two = fitted(path, path, *columns)
    assert two["n"] == 40 and "20 runs are given twice" in two["warnings"][0]


def test_kaplans_law_from_the_shell(tmp_path: Path) -> None:
    N = np.geomspace(1e6, 1e9, 12)
    path = tmp_path / "runs.csv"
    path.write_text("params,loss\n" + "".join(f"{n},{(8.8e13 / n) ** 0.076}\n" for n in N))
    found = fitted(path, "--law", "kaplan-n")
    assert found["parameters"] == pytest.approx({"N_c": 8.8e13, "alpha_N": 0.076}, rel=1e-6)


def test_for_people(tmp_path: Path) -> None:
    result = run(table(tmp_path / "runs.csv"), "--draws", 20)
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[0] == "L(N,D) = E + A/N^α + B/D^β   fitted to 20 runs (N, D from tokens, loss)"
    assert re.search(r"value\s+standard error\s+90%", result.stdout)
    for name, value in {"E": "1.8172", "A": "482.01", "alpha": "0.3478", "B": "2085.4", "beta": "0.3658"}.items():
        assert any(re.match(rf"{name}\s+{re.escape(value)}\s", line) for line in lines)
    assert "Σ Huber(ln L̂ − ln L), δ = 0.001 = " in result.stdout
    six = tmp_path / "six.csv"
    six.write_text("\n".join((tmp_path / "runs.csv").read_text().splitlines()[:7]))
    assert "! 6 runs for 5 constants" in run(six, "--draws", 20).stdout
    assert "unknown" in run(six, "--draws", 20).stdout and "inf" not in run(six, "--draws", 20).stdout


def test_constants_that_runs_leave_open_have_no_value(tmp_path: Path) -> None:
    N = np.geomspace(1e8, 3e9, 9)
    rows = zip(N, 20 * N, hoffmann(N, 20 * N) * np.exp(np.random.default_rng(0).normal(0, 0.003, 9)), strict=True)
    path = tmp_path / "line.csv"
    path.write_text("N,D,loss\n" + "".join(f"{n},{d},{loss}\n" for n, d, loss in rows))
    found = fitted(path)
    assert set(found["undetermined"]) >= {"A", "B", "alpha", "beta"}
    assert all(found["parameters"][name] is None for name in found["undetermined"])
    text = run(path, "--draws", 20).stdout
    assert re.search(r"B\s+not determined", text) and "e+" not in text.split("Σ Huber")[0].split("90%")[1]


def test_approach_2_is_shown_beside_approach_3(tmp_path: Path) -> None:
    sizes = 2.0 ** (np.arange(7) - 3)
    rows = []
    for C in (1e18, 1e19, 1e20):
        N = 0.3 * C**0.5 / 4 * sizes
        rows += [(n, C / 6 / n, float(hoffmann(n, C / 6 / n))) for n in N]
    noise = np.random.default_rng(0).normal(0, 1e-3, len(rows))
    lines = [f"{n},{d},{loss * np.exp(e)}" for (n, d, loss), e in zip(rows, noise, strict=True)]
    path = tmp_path / "profiles.csv"
    path.write_text("\n".join(["N,tokens,loss", *lines]))
    text = run(path, "--draws", 50).stdout
    found = {name: float(a) for name, a in re.findall(r"(approach \d)\s+(\d\.\d+) \(\d\.\d+–\d\.\d+\)", text)}
    assert found.keys() == {"approach 2", "approach 3"}
    truth = BESIROGLU["beta"] / (BESIROGLU["alpha"] + BESIROGLU["beta"])
    assert all(abs(a - truth) < 0.05 for a in found.values())
    named = run(path, "--draws", 20, "--budgets", "1e18,1e20").stdout
    assert "approach 2 (parabola): 7 of 21 rows left out" in named
    assert told(path, "--budgets", "1e18,small").startswith(
        "--budgets: expected positive numbers between commas, got 'sm"
    )


def test_no_frontier_of_a_law_that_the_runs_leave_open(tmp_path: Path) -> None:
    path = table(tmp_path / "runs.csv")
    path.write_text("\n".join(path.read_text().splitlines()[:3]))
    text = run(path, "--draws", 20).stdout
    assert "fitted to 2 runs" in text and "approach 3 (parametric) is left out" in text
    assert "approach 2 (isoFLOP minima) is left out" in text and "approach 3 (parametric) 0" not in text
    assert "your runs do not determine the best size: train at least three sizes" in " ".join(text.split())
    assert "2 runs for 5 constants: a law of so many constants passes" in " ".join(text.split()) and "0.00%" not in text


def test_priors_from_the_shell(tmp_path: Path) -> None:
    path = table(tmp_path / "runs.csv", flag=[i < 8 for i in range(20)])
    lines = path.read_text().splitlines()
    noisy = [line.split(",") for line in lines[1:]]
    noise = np.random.default_rng(2).normal(0, 5e-3, len(noisy))
    rows = [f"{n},{d},{float(loss) * np.exp(e)}" for (n, d, loss, _), e in zip(noisy, noise, strict=True)]
    path.write_text("\n".join(["N,tokens,loss", *rows]))
    alone = fitted(path)
    held = fitted(path, "--prior", "alpha=0.3478:0.001", "--prior", "ln B=7.64:0.01")
    assert held["parameters"]["alpha"] == pytest.approx(0.3478, abs=2e-3)
    assert held["standard_errors"]["B"] < 0.1 * alone["standard_errors"]["B"]
    assert any(line.startswith("alpha is determined by its prior") for line in held["warnings"])


def test_a_bar_only_for_who_sees_it_and_only_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from isoflop import console as progress

    def shown(terminal: bool, seconds: float, wanted: bool = True) -> str:
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=terminal, width=80)
        monkeypatch.setattr("rich.console.Console", lambda stderr: console)
        clock = iter([0.0, *[seconds] * 9])
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock, seconds))
        with progress.progress_bar("fitting", wanted) as tell:
            tell(0.25)
            tell(0.5)
        return stream.getvalue()

    assert "fitting" in shown(True, 1.5) and "50%" in shown(True, 1.5)
    assert shown(True, 0.5) == shown(False, 1.5) == shown(True, 1.5, wanted=False) == ""


def test_progress_is_told_to_the_end() -> None:
    N, D = grid(5, 4)
    columns = {"N": N, "D": D, "loss": hoffmann(N, D)}
    shares: list[float] = []
    fit_law("hoffmann", columns, draws=9000, progress=shares.append)
    assert len(shares) >= 2 and shares == sorted(shares) and shares[-1] == 1.0


def a_record(
    folder: Path, run_id: str, parameters: dict[str, Any], losses: list[dict[str, float]], tokens: int
) -> None:
    log = RecordLog.create(folder, run_id, {"name": f"run-{run_id}", "parameters": parameters})
    for i, loss in enumerate(losses, start=1):  # all in the last 5% of the run
        log.point(Point(step=100 + i, tokens=i * tokens, padding=0, flops=i * 10**15, losses=loss))
    log.end(100 + len(losses), "completed")
    log.close()


def test_records_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    sizes = {"total": 2_000_000, "non_embedding": 1_000_000}
    a_record(folder, "a", sizes, [{"train": 5.0, "eval/val": 4.9}, {"train": 4.5}], 10_000_000)
    a_record(folder, "b", {"total": 9_000_000, "non_embedding": 8_000_000}, [{"train": 4.0, "eval/val": 3.9}], 10**8)
    a_record(folder / "below", "c", sizes, [], 5)
    found = read_table([folder], ("N", "D", "C", "loss"))
    assert found.rows == ("run run-a", "run run-b")
    # the loss with the tokens and FLOPs at which it was measured, not those of the run's end
    assert found.columns == {"N": [2e6, 9e6], "D": [1e7, 1e8], "C": [1e15, 1e15], "loss": [4.9, 3.9]}
    # no run states N with the head
    assert found.taken == {"N": "N_total", "D": "D", "C": "C", "loss": "eval/val"} and found.convention == "total"
    assert read_table([folder], ("N", "loss"), convention="non_embedding", loss="train").columns == {
        "N": [1e6, 8e6],
        "loss": [4.75, 4.0],
    }
    a_record(tmp_path / "other", "d", sizes, [{"train": 4.0}], 10**9)  # one run without the evaluation: not mixed
    assert read_table([folder, tmp_path / "other" / "isoflop-d.jsonl"], ("loss",)).taken == {"loss": "train"}
    assert read_table([folder], ("N",), where="loss<4").columns == {"N": [9e6]}
    json_found = fitted(folder)
    assert json_found["best_size"]["determined"] is False and json_found["extrapolates"] is None
    assert json_found["n"] == 2 and json_found["warnings"][0].startswith("2 runs for 5 constants")
    assert told(folder, "--n", "active").startswith(
        f"expected finished runs, got none in {folder}; run-a, run-b: its parameters (active) are not known;"
    )
    missing = told(folder, "--loss", "eval/none")  # which was asked for, of which run, and what there is instead
    assert missing.startswith(f"expected finished runs, got none in {folder}; run-a, run-b: it has no loss 'eval/none'")
    assert "run-b: it has no loss 'eval/none' with its tokens (it has eval/val, train)" in missing


def test_one_n_by_default_whoever_is_asked(tmp_path: Path) -> None:
    """fit, plan and report count the output head; a run that states no such N is left out and named."""
    for i, (budget, N) in enumerate(itertools.product((1e18, 4e18, 1.6e19), (5e7, 1e8, 2e8, 4e8))):
        run = planted_run(f"r{i}", N, budget / 6 / N)
        a_record(tmp_path, run.name or "", run.parameters, [dict(run.points[-1].losses)], round(budget / 6 / N))
    a_record(tmp_path, "odd", {"active": 10**8}, [{"train": 3.0}], 10**9)
    done = run_command("fit", tmp_path, "--draws", 20, "--json")
    assert "isoflop fit: left out: run-odd: its parameters (non embedding with head) are not known" in done.stderr
    fit = json.loads(done.stdout)
    done = run_command("plan", "--flops", 1e20, "--runs", tmp_path, "--json")
    # 1e15 FLOPs are written into each record, far from 6·N·D
    assert "measured FLOPs of run run-r0 and 11 more are not used: 0.006 per parameter and token" in done.stderr
    plan = json.loads(done.stdout)
    assert fit["n_convention"] == plan["n_convention"] == "non_embedding_with_head" and fit["n"] == 12
    run_command("report", tmp_path, "-o", tmp_path / "report.html")
    assert "N: non-embedding with head." in (tmp_path / "report.html").read_text()
    a_record(tmp_path, "old", {"total": 10**8}, [{"train": 3.0}], 10**9)
    done = run_command("fit", tmp_path, "--draws", 20, "--json")
    assert json.loads(done.stdout)["n_convention"] == "total"
    assert "isoflop fit: N counts total: not every run states non_embedding_with_head" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--law", "linear"], r"--law: expected one of hoffmann, kaplan-n, .*, got 'linear'"),
        (["--law", "kaplan-d", "--fix", "D_c=3"], r"kaplan-d: only the exponent can be fixed, got fixed={'D_c': 3.0}"),
        (["--delta", "small"], "--delta: expected a number, got 'small'"),
        (["--delta", "-1"], 'delta= expects a positive number or "lad", got -1.0'),
        (["--column", "N"], "--column: expected NAME=VALUE, got 'N'"),
        (["--column", "N=size"], "there is no column 'size' for N; there are N, tokens, loss"),
        (["--column", "n=N"], "--column: expected one of N, D, loss, perplexity, C before =, got 'n'"),
        (["--fix", "gamma=1"], "expected one of the law's constants E, A, B, alpha, beta, got 'gamma'"),
        (["--fix", "E=low"], "--fix E: expected a number, got 'low'"),
        (["--fix", "E=-1"], r"fixed E: expected a positive number, got -1.0"),
        (["--prior", "alpha=0.34"], "--prior alpha: expected MEAN:SD, such as 0.34:0.05, got '0.34'"),
        (["--prior", "alpha=0.34:x"], "--prior alpha: expected a number, got 'x'"),
        (["--prior", "gamma=1:1"], "priors: expected one of E, ln E, A, ln A, alpha, B, ln B, beta, got 'gamma'"),
        (["--column", "N=N", "--column", "N=tokens"], "--column: expected N once, got N and tokens"),
        (["--where", "__import__('os')"], "--where: expected column, comparison .*"),
        (["--where", "N>1e30"], "--where 'N>1e30' leaves none of 20 runs"),
        (["--n", "big"], "--n: expected one of total, trainable, non_embedding, .*, got 'big'"),
    ],
)
def test_what_it_says_when_it_cannot(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert re.fullmatch(message, told(table(tmp_path / "runs.csv"), *arguments))


def test_bad_values_by_line(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("N,D,loss\n1e9,2e10,2.5\n1e9,0,2.5\n")
    assert told(path) == (
        "line 3 of runs.csv, column 'D': expected a positive number of tokens, got 0.0; leave the run out or correct it"
    )
    path.write_text("")
    assert told(path) == f"{path} is empty: expected a first row with the columns' names"
    assert told(tmp_path / "none.csv").endswith("none.csv, which does not exist")


def test_a_law_for_each_group_of_a_column(tmp_path: Path) -> None:
    rows = ["N,D,loss,corpus"]
    for corpus, E in (("web", 1.7), ("code", 0.9)):
        for N, D in itertools.product((1e7, 1e8, 1e9, 1e10), (1e9, 1e10, 1e11, 1e12)):
            rows.append(f"{N},{D},{E + 400 / N**0.34 + 410 / D**0.28},{corpus}")
    path = tmp_path / "two.csv"
    path.write_text("\n".join(rows))
    (warning,) = [text for text in fitted(path)["warnings"] if "does not describe" in text]
    assert warning.endswith("or fit them apart: isoflop fit --group 'corpus'")
    apart = fitted(path, "--group", "corpus")
    planted = {"E[web]": 1.7, "E[code]": 0.9, "A[web]": 400, "A[code]": 400, "B[web]": 410, "B[code]": 410}
    assert apart["parameters"] == pytest.approx({**planted, "alpha": 0.34, "beta": 0.28}, rel=1e-3)
    assert apart["warnings"] == [] and apart["best_size"] is None
    only = fitted(path, "--group", "corpus", "--own", "E")["parameters"]
    assert set(only) == {"E[web]", "E[code]", "A", "B", "alpha", "beta"} and only["A"] == pytest.approx(400, rel=1e-3)
    shown = run(path, "--group", "corpus", "--draws", 20)
    assert shown.exit_code == 0 and "E[web]" in shown.stdout and "E[code]" in shown.stdout
    assert "never reaches it" in shown.stdout  # web's loss does not fall to code's
    equal = {row["group"]: row for row in apart["at_equal_compute"]["groups"]}
    assert equal["web"]["factor"] is None and equal["code"]["factor"] == pytest.approx(1)
    assert told(path, "--group", "nothing").startswith(
        "--group: expected a column that separates groups of runs (corpus"
    )
    assert told(path, "--own", "E").startswith("--own: expected --group COLUMN")
    assert "expected" in told(path, "--group", "corpus", "--own", "F")


def test_groups_are_compared_at_equal_compute(tmp_path: Path) -> None:
    """Planted: with muon a loss takes three quarters of adamw's compute, at a size smaller by the root of it."""
    rows, rng = ["N,D,loss,optimizer"], np.random.default_rng(0)
    for optimizer, share in (("adamw", 1.0), ("muon", 0.75)):
        for C, off in itertools.product((1e17, 4e17, 1.6e18), (0.3, 0.6, 1.2, 2.4)):
            N = (C / 120) ** 0.5 * off
            D = C / 6 / N
            loss = 1.7 + 400 / (N / share**0.5) ** 0.34 + 410 / (D / share**0.5) ** 0.28
            rows.append(f"{N},{D},{loss * np.exp(rng.normal(0, 2e-4))},{optimizer}")
    path = tmp_path / "two.csv"
    path.write_text("\n".join(rows))
    equal = fitted(path, "--group", "optimizer")["at_equal_compute"]
    best, other = equal["groups"]
    assert equal["flops"] == pytest.approx(1.6e18) and (best["group"], other["group"]) == ("muon", "adamw")
    assert best["above"] == 0 and best["factor"] == pytest.approx(1)
    assert other["factor"] == pytest.approx(1 / 0.75, rel=0.02) and other["above_interval"][0] > 0
    assert 6 * best["N"] * best["D"] == pytest.approx(1.6e18)
    shown = run(path, "--group", "optimizer", "--draws", 20).stdout
    assert "1.33× (" in shown and "muon has the least loss: at 90% the differences from all others exclude 0" in shown
    # no compute in common: not compared, with the reason
    small, large = rows[1:5], rows[17:]
    path.write_text("\n".join([rows[0], *small, *large]))
    shown = run(path, "--group", "optimizer", "--draws", 20).stdout
    assert "! optimizer: these runs do not show which group has the least loss at equal compute: " in shown


def test_files_are_stacked_by_their_own_names_and_units(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,params,tokens,val_loss\ns,1e7,2e8,4.5\nm,3e7,6e8,4.0\n")
    (tmp_path / "b.csv").write_text("Params (M),D,loss\n100,2e9,3.5\n300,6e9,3.2\n300,6e9,nan\n")
    found = read_table([tmp_path / "a.csv", tmp_path / "b.csv"], ("N", "D", "loss"))
    assert found.columns == {"N": [1e7, 3e7, 1e8, 3e8], "D": [2e8, 6e8, 2e9, 6e9], "loss": [4.5, 4.0, 3.5, 3.2]}
    assert found.taken["N"] == "params and Params (M)" and found.rows == (
        "s",
        "m",
        "line 2 of b.csv",
        "line 3 of b.csv",
    )
    assert found.left_out == ("line 4 of b.csv: its loss is nan: it diverged",)
    sizes = {"total": 2_000_000, "non_embedding": 1_000_000}
    a_record(tmp_path / "records", "r", sizes, [{"train": 5.0}, {"train": 4.5}], 10_000_000)
    mixed = read_table([tmp_path / "a.csv", tmp_path / "records"], ("N", "D", "loss"))
    assert mixed.rows == ("s", "m", "run run-r") and mixed.left_out == () and mixed.convention == "unknown"
    assert any("count N differently" in text for text in mixed.doubts)
    (tmp_path / "c.csv").write_text("width,tokens,loss\n64,2e9,3.5\n")
    with pytest.raises(BadData, match=r"c\.csv: no column is known to be N .*there are width, tokens, loss: say which"):
        read_table([tmp_path / "a.csv", tmp_path / "c.csv"], ("N", "D", "loss"))
    only = read_table(
        [tmp_path / "a.csv", tmp_path / "b.csv"], ("N", "D", "loss"), {"N": "params"}, "D/N>=20 and C>2e17"
    )
    assert only.columns["N"] == [1e8, 3e8]


def test_a_log_or_a_curve_is_no_table_of_runs(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("step 0: train loss 10.9\niter 0: loss 10.9, time 80ms\n")
    assert "is it a training log? `isoflop import` reads those" in told(tmp_path / "log.txt")
    lines = [f"{step},{step * 524288},{9 - step / 1000},1" for step in range(200, 4001, 200)]
    (tmp_path / "curve.csv").write_text("\n".join(["step,tokens,loss,n", *lines, f"4060,{4060 * 524288},3.0,1"]))
    assert "expected one row for each run, its end" in told(tmp_path / "curve.csv")
    (tmp_path / "one.csv").write_text("N,D,loss\n1e8,2e9,3.3\n")
    assert "expected several runs, got one" in told(tmp_path / "one.csv")
    (tmp_path / "empty").mkdir()
    assert "holds no isoflop records: first `isoflop import" in told(tmp_path / "empty")


@pytest.mark.parametrize(("k", "raised"), [(1, 3.0), (4, 3.0), (8, 3.0), (4, 0.6), (8, 0.6)])
def test_a_run_that_diverged_among_few_is_left_out_by_fit_and_plan_alike(tmp_path: Path, k: int, raised: float) -> None:
    ratios = [(5.3e6, 20), (5.3e6, 60), (1.29e7, 10), (1.29e7, 30), (2.55e7, 15), (2.55e7, 40), (5.2e7, 8), (5.2e7, 25)]
    N, ratio = np.array([*ratios, (1.01e8, 12)], dtype=float).T
    noise = np.random.default_rng(k).normal(0, 0.001, len(N))
    loss = (1.85 + 250 / N**0.34 + 320 / (N * ratio) ** 0.29) * np.exp(noise)
    loss[k] += raised
    path = tmp_path / "few.csv"
    rows = zip(range(len(N)), N, N * ratio, loss, strict=True)
    path.write_text("run,N,D,loss\n" + "".join(f"r{i},{n},{d},{L:.4f}\n" for i, n, d, L in rows))
    for command in (["fit", str(path), "--draws", "20"], ["plan", "--runs", str(path), "--flops", "1e19"]):
        shown = CliRunner().invoke(app, command)
        assert f"1 run is left out: it lies beyond 6 times the scatter of the others (r{k}:" in " ".join(
            shown.output.split()
        )


def test_a_run_that_diverged_makes_no_isoflop_minimum(tmp_path: Path) -> None:
    C, size = (a.ravel() for a in np.meshgrid([1e17, 1e18, 1e19], [0.25, 0.5, 1.0, 2.0, 4.0]))
    N = size * 4e7 * (C / 1e17) ** 0.46
    loss = (1.85 + 250 / N**0.34 + 320 / (C / 6 / N) ** 0.29) * np.exp(np.random.default_rng(0).normal(0, 5e-4, len(N)))

    def exponent(losses: np.ndarray) -> tuple[float, float]:
        path = tmp_path / "sweep.csv"
        rows = zip(N, C / 6 / N, losses, strict=True)
        path.write_text("N,D,loss\n" + "".join(f"{n},{d},{L:.5f}\n" for n, d, L in rows))
        shown = CliRunner().invoke(app, ["fit", str(path)])
        low, high = re.search(r"approach 2 +[\d.]+ \((-?[\d.]+)–([\d.]+)\)", shown.output).groups()  # type: ignore[union-attr]
        return float(low), float(high)

    diverged = loss.copy()
    diverged[4] += 3  # the largest size of the least budget
    sound, low_high = exponent(loss), exponent(diverged)
    assert sound[0] <= 0.46 <= sound[1]
    assert low_high[0] <= 0.46 <= low_high[1]
    assert low_high[1] - low_high[0] < 4 * (sound[1] - sound[0])


def test_fit_and_plan_load_what_they_need_alone(tmp_path: Path) -> None:
    """Typer 0.29 checks values with pydantic (.1 s), and a binomial share needs no scipy.stats (.7 s)."""
    budget, ratio = (x.ravel() for x in np.meshgrid([1e18, 3e18, 1e19, 3e19], np.geomspace(4, 100, 6)))
    N = np.sqrt(budget / 6 / ratio)
    noise = np.random.default_rng(0).normal(0, 3e-3, len(N))
    loss = hoffmann(N, N * ratio) * np.exp(noise)
    rows = "".join(f"{n},{d},{value}\n" for n, d, value in zip(N, N * ratio, loss, strict=True))
    (tmp_path / "runs.csv").write_text(f"N,D,loss\n{rows}")
    for asked in (("fit", "runs.csv"), ("plan", "--flops", "1e22")):
        command = [sys.executable, "-X", "importtime", "-m", "isoflop", *asked]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert asked[0] == "plan" or all(text in found.stdout for text in ("lie inside intervals", "approach 2"))
        assert "isoflop.fit" in found.stderr and not {"pydantic", "scipy"} & {*re.findall(r"\w+", found.stderr)}, asked
    for asked in (("--flops", "many"), ("--flops", "1e22", "--level", "2"), ("--flops", "1e22", "--top-k", "1.5")):
        assert CliRunner().invoke(app, ["plan", *asked]).exit_code == 2
