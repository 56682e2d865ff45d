"""`isoflop backtest` and `isoflop rank`: what they read, what they say, and that it is right on planted runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fits import DATA
from isoflop.cli import app
from isoflop.cli.report import unpack
from isoflop.forecast import LrPlan
from isoflop.record import Point, RecordLog

TOKENS = 500_000
CURVES = DATA / "curves"


def shell(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def loss_at(step: np.ndarray, level: float, seed: int) -> np.ndarray:
    return level + 1.2 * (step / 100) ** -0.5 + np.random.default_rng(seed).normal(0, 0.003, len(step))


def folder_of_curves(
    folder: Path, levels: dict[str, float], organisation: str = "somebody", total: int = 4_000
) -> Path:
    """A folder laid out as published curves are: index.csv, <dataset>/<run>.csv; constant rates."""
    rows = []
    for place, (name, level) in enumerate(levels.items()):
        dataset, _, run = name.rpartition("/")
        (folder / dataset).mkdir(parents=True, exist_ok=True)
        steps = np.arange(20, total + 1, 20)
        with (folder / dataset / f"{run}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "tokens", "lr", "loss", "n"])
            for step, loss in zip(steps, loss_at(steps, level, place), strict=True):
                writer.writerow([step, step * TOKENS, 1e-3, loss, 20])
        rows.append(
            {
                "dataset": dataset,
                "organisation": f"of {dataset}",
                "run": run,
                "N_non_embedding": 10**8,
                "batch_tokens": TOKENS,
                "total_steps": total,
                "schedule": json.dumps({"kind": "constant", "warmup": 0}),
                "peak_lr": 1e-3,
                "final_loss": level + 1.2 * (total / 100) ** -0.5,
            }
        )
    with (folder / "index.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder


def record(folder: Path, name: str, level: float, *, until: int = 4_000, plan: bool = True, **header: Any) -> None:
    """A record of a planted run, finished where `until` is its end."""
    total = 4_000
    rates = LrPlan.constant(total, 1e-3)
    planned: dict[str, Any] = {"steps": total, "schedule": None, "accumulate": 1}
    if plan:
        planned["learning_rates"] = {"steps": [int(s) for s in rates.steps], "lr": [float(r) for r in rates.lr]}
    fields = {
        "name": name,
        "parameters": {"total": 10**8, "non_embedding": 10**8, "active": 10**8, "trainable": 10**8},
        "optimizer": {"class": "AdamW"},
        "planned": planned,
        **header,
    }
    log = RecordLog.create(folder, name, fields)
    steps = np.arange(20, until + 1, 20)
    for step, loss in zip(steps.tolist(), loss_at(steps, level, len(name)).tolist(), strict=True):
        log.point(
            Point(
                step=step,
                tokens=step * TOKENS,
                padding=0,
                losses={"train": loss},
                lr=1e-3,
                batch_tokens=TOKENS,
                interval_steps=20,
            )
        )
    if until == total:
        log.end(total, "completed")
    log.close()


def test_backtest_prints_one_object_of_figures(tmp_path: Path) -> None:
    folder = folder_of_curves(tmp_path, {"a/1": 2.5, "a/2": 2.6, "b/1": 2.7})
    code, out, _ = shell(
        "backtest", folder, "--json", "--baselines", "power-law, hoffmann,hoffmann", "--priors", "default"
    )
    assert code == 0
    found = json.loads(out)
    assert list(found) == ["isoflop", "power-law", "hoffmann"]
    for datasets in found.values():
        assert set(datasets) == {"a", "b"}
        for scores in datasets.values():
            assert list(scores) == ["0.25", "0.5", "0.75"]
            assert all(set(score) == {"median", "p90", "coverage", "spoke", "n"} for score in scores.values())
    last = found["isoflop"]["a"]["0.75"]
    assert last["spoke"] == 1 and last["n"] == 2 and last["median"] < 0.5 and 0 <= last["coverage"] <= 1


def test_backtest_reads_records_and_leaves_out_the_run_itself(tmp_path: Path) -> None:
    for place in range(3):
        record(tmp_path, f"run-{place}", 2.5 + place / 10)
    record(tmp_path, "cut", 2.5, until=1_000)
    code, out, err = shell("backtest", tmp_path, "--json", "--baselines", "none", "--at", "0.5")
    assert code == 0 and err.strip().endswith("isoflop backtest: left out: cut: it is not finished")
    (estimator,) = json.loads(out).values()
    assert estimator["records"]["0.5"]["n"] == 3 and estimator["records"]["0.5"]["median"] < 1

    from isoflop.forecast import finished_runs, priors_without
    from isoflop.record import read_runs

    own, _ = finished_runs(read_runs(tmp_path))
    assert "2 finished runs" in priors_without("run-1", own).source


@pytest.mark.parametrize("stated", [False, True])
def test_backtest_leaves_out_curves_that_were_broken_off(tmp_path: Path, stated: bool) -> None:
    """Also where the source states a final loss: it is not that of the planned end."""
    folder = folder_of_curves(tmp_path, {"a/1": 2.5, "a/2": 2.6, "b/1": 2.7})
    index = folder / "index.csv"
    with index.open(newline="") as file:
        rows = [{**row, "final_loss": row["final_loss"] if stated else ""} for row in csv.DictReader(file)]
    with index.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    curve = folder / "a" / "2.csv"
    lines = curve.read_text().splitlines()
    curve.write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    code, out, err = shell("backtest", folder, "--json", "--baselines", "none", "--priors", "default", "--at", "0.75")
    assert code == 0 and "isoflop backtest: left out: 2: it ended at step " in err
    assert {name: scores["0.75"]["n"] for name, scores in json.loads(out)["isoflop"].items()} == {"a": 1, "b": 1}


def test_backtest_draws_a_table(tmp_path: Path) -> None:
    folder = folder_of_curves(tmp_path, {"a/1": 2.5, "b/1": 2.7})
    code, out, _ = shell("backtest", folder, "--at", "0.5", "--baselines", "last-value")
    assert code == 0
    for text in ("at 50%", "isoflop", "last-value", "all", "2 runs, each replayed as it was logged"):
        assert text in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baselines", "chinchilla"], "--baselines: expected some of last-value, power-law, "),
        (["--priors", "mine"], "--priors: expected leave-one-out or default, got 'mine'"),
        (["--at", "0.5,2"], "--at: expected fractions between 0 and 1, such as 0.25,0.5; got '2'"),
    ],
)
def test_backtest_refuses(tmp_path: Path, arguments: list[str], message: str) -> None:
    record(tmp_path, "run", 2.5)
    code, out, err = shell("backtest", tmp_path, *arguments)
    assert code == 1 and out == "" and f"isoflop backtest: {message}" in err


@pytest.mark.parametrize("command", ["backtest", "rank"])
def test_nothing_to_read(tmp_path: Path, command: str) -> None:
    code, _, err = shell(command, tmp_path)
    assert code == 1 and err.startswith(f"isoflop {command}: no runs in {tmp_path}: expected isoflop's records")
    code, _, err = shell(command, tmp_path / "none")
    assert code == 1 and "it does not exist" in err


# -- rank --------------------------------------------------------------------------------------------------------------


def test_rank_orders_live_runs_and_names_those_that_can_stop(tmp_path: Path) -> None:
    record(tmp_path, "worst", 2.9, until=2_000)
    record(tmp_path, "best", 2.4, until=1_600)
    record(tmp_path, "young", 2.5, until=40)
    record(tmp_path, "unplanned", 2.5, until=2_000, plan=False)
    record(tmp_path, "done", 2.7)
    code, out, _ = shell("rank", tmp_path, "--json")
    assert code == 0
    found = json.loads(out)
    assert [run["name"] for run in found["runs"]] == ["best", "done", "worst"]
    assert found["can_stop"] == ["worst"]
    best, done, worst = found["runs"]
    assert done["finished"] and not best["finished"] and not done["can_stop"] and worst["can_stop"]
    assert best["forecast_loss"] == pytest.approx(2.4 + 1.2 * 40**-0.5, rel=0.01)
    assert done["forecast_loss"] == pytest.approx(2.7 + 1.2 * 40**-0.5, rel=0.002)
    assert best["probability_before_next"] > 0.99 and best["probability_among_best"] > 0.99
    assert np.allclose(np.array(found["probability_below"]) + np.array(found["probability_below"]).T, 1)
    assert set(found["silent"]) == {"young", "unplanned"}
    assert found["silent"]["unplanned"] == "it is not finished, and its record does not hold the learning rates to come"
    code, out, _ = shell("rank", tmp_path, "--keep", 3)
    assert code == 0 and "None can stop" in out and "among the best 3" in out


def test_rank_takes_a_runs_own_forecast_where_its_plan_is_not_recorded(tmp_path: Path) -> None:
    record(tmp_path, "live", 2.4, until=2_000, plan=False)
    (path,) = tmp_path.iterdir()
    lines = path.read_text().splitlines()
    last = json.loads(lines[-1])
    last["extra"] = {"forecast_loss": 2.59, "forecast_low": 2.57, "forecast_high": 2.61}
    # as the log writes it: whatever the key, read_run must give it back as extra
    path.write_text("\n".join([*lines[:-1], json.dumps({**last, **last.pop("extra")})]) + "\n")
    code, out, _ = shell("rank", tmp_path, "--json")
    assert code == 0
    (run,) = json.loads(out)["runs"]
    assert (run["forecast_loss"], run["interval"]) == (2.59, [2.57, 2.61])


def test_rank_as_runs_stood_at_a_part_of_their_plans(tmp_path: Path) -> None:
    folder = folder_of_curves(tmp_path, {"a/1": 2.5, "a/2": 2.4, "a/3": 2.9})
    code, out, _ = shell("rank", folder, "--at", "0.25")
    assert code == 0
    places = [out.index(name) for name in ("a/2", "a/1", "a/3")]
    assert places == sorted(places) and "Can stop: a/1, a/3" in out
    code, out, _ = shell("rank", folder)
    assert code == 0 and "All of them are finished." in out
    code, _, err = shell("rank", folder, "--at", "1.5")
    assert code == 1 and "--at: expected a fraction between 0 and 1" in err


def evaluated(folder: Path, name: str, level: float, evaluations: int, noise: float, seed: int) -> None:
    """A finished run with so many evaluations, each by an evaluator of its own noise; its rate has another plan."""
    generator = np.random.default_rng(seed)
    log = RecordLog.create(folder, name, {"name": name, "planned": {"steps": 2_000}})
    for step in (np.arange(1, evaluations + 1) * 2_000 // evaluations).tolist():
        loss = level + 1.2 * (step / 100) ** -0.5 + generator.normal(0, noise)
        log.point(Point(step=step, tokens=step * TOKENS, padding=0, losses={"eval/val": loss}, lr=1e-3))
    log.end(2_000, "completed")
    log.close()


@pytest.mark.parametrize("evaluations", [1, 3, 20])
def test_rank_is_not_sure_of_orders_within_an_evaluations_noise(tmp_path: Path, evaluations: int) -> None:
    """Runs .03 apart by an evaluator with a standard deviation of .045: 68% by truth, whatever they came out as."""
    evaluated(tmp_path, "a", 2.40, evaluations, 0.045, 0)
    evaluated(tmp_path, "b", 2.43, evaluations, 0.045, 1)
    code, out, err = shell("rank", tmp_path, "--loss", "eval/val", "--json")
    runs = json.loads(out)["runs"]
    assert code == 0 and all(0.015 < run["interval"][1] - run["forecast_loss"] < 0.15 for run in runs)
    assert runs[0]["probability_before_next"] < 0.95
    assert ("too few losses to know their noise, taken as ±1%: a, b" in err) == (evaluations < 20)


def test_rank_takes_the_noise_of_few_evaluations_from_runs_with_many(tmp_path: Path) -> None:
    evaluated(tmp_path, "few", 2.4, 2, 0.001, 0)
    evaluated(tmp_path, "many", 2.5, 20, 0.001, 1)
    _, out, err = shell("rank", tmp_path, "--loss", "eval/val", "--json")
    runs = json.loads(out)["runs"]
    assert "too few" not in err and runs[0]["probability_before_next"] > 0.99
    assert runs[0]["interval"][1] - runs[0]["forecast_loss"] < 0.01


def test_rank_says_whose_loss_it_shows_of_a_run_that_left_its_plan(tmp_path: Path) -> None:
    record(tmp_path, "left", 2.5)
    (path,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line.get("step", 0) > 2_000:
            line["lr"] = 3e-3
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    _, out, err = shell("rank", tmp_path, "--json")
    assert (
        "left its plan at step 2,020; shown is its mean training loss over the last 5% of steps, up to step 4,000"
        in err
    )
    assert json.loads(out)["runs"][0]["step"] == 4_000


def test_rank_says_what_does_not_compare(tmp_path: Path) -> None:
    record(tmp_path, "one", 2.9, tokenizer="gpt2")
    record(tmp_path, "two", 2.4, tokenizer="llama")
    _, _, err = shell("rank", tmp_path)
    assert "different tokenizers (gpt2, llama): their losses do not compare" in err


@pytest.mark.skipif(not CURVES.is_dir(), reason="../shared/data/curves is absent")
def test_orders_that_are_said_at_a_quarter_of_published_runs_are_right() -> None:
    """Within each set of one loss: of pairs that differ by more than 0.3%, and of what is said to be sure."""
    from isoflop.forecast import Forecast, OnlineForecaster, read_curves

    right: list[bool] = []
    sure: list[bool] = []
    by_set: dict[str, list[tuple[Any, Any]]] = {}
    for run in read_curves(CURVES):
        forecast = OnlineForecaster.of(run).feed(run, 0.25 * run.total_steps).forecast(run.plan)
        if isinstance(forecast, Forecast):
            by_set.setdefault(run.dataset, []).append((run, forecast))
    for members in by_set.values():
        before = len(right)
        for i, (one, first) in enumerate(members):
            for other, second in members[:i]:
                if abs(one.final / other.final - 1) > 0.003:
                    order = (first.loss < second.loss) == (one.final < other.final)
                    right.append(order)
                    chance = first.probability_below(second)
                    if max(chance, 1 - chance) > 0.95:
                        sure.append(order)
        if members[0][0].dataset in ("mpl", "olmo", "gemstones"):  # the others compare optimizers and architectures
            assert np.mean(right[before:]) > 0.97
    assert len(right) > 1_000 and np.mean(right) > 0.93
    assert len(sure) > 500 and np.mean(sure) > 0.98


def test_rank_learns_from_history_without_being_asked_for_a_loss(tmp_path: Path) -> None:
    unpack(tmp_path)
    code, shown, said = shell("rank", tmp_path, "--at", 0.5, "--history", tmp_path, "--json")
    assert code == 0 and "no finished run to learn from" not in said
    without = json.loads(shell("rank", tmp_path, "--at", 0.5, "--json")[1])
    assert json.loads(shown)["loss"] == without["loss"] == "train" and json.loads(shown) != without
