"""One compute axis: figures, tab, report, scalars and plans put a run at its measured FLOPs, else at 6·N·D."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from werkzeug.test import Client

import isoflop
from isoflop.cli import app
from isoflop.figures import FIGURES, Series, study
from isoflop.record import Point, RecordLog, Run
from isoflop.report import make_report, read_sources
from isoflop.tab import RecordStore, Root, Routes
from study_runs import LAW, optimal_size, sweep, without

RATE = 9.0
"""Measured FLOPs per parameter and token of the planted runs: attention makes it more than 6 in small models."""
BUDGETS = (1e18, 3e19, 1e21)


def measured(run: Run, rate: float = RATE) -> Run:
    """The run with FLOPs of `rate`·N·D at every point."""
    N = run.parameters["non_embedding_with_head"]
    points = tuple(replace(point, flops=round(rate * N * (point.data_tokens or 0))) for point in run.points)
    return replace(run, run_id=run.run_id.replace("+", ""), points=points)


RUNS = [measured(run) for run in sweep(BUDGETS, sizes=5)]


def write(folder: Path, runs: list[Run]) -> Path:
    for run in runs:
        header = {"name": run.name, "parameters": run.parameters, "planned": run.planned, "optimizer": run.optimizer}
        log = RecordLog.create(folder, run.run_id, header)
        for point in run.points:
            log.point(point)
        log.end(run.points[-1].step, "completed")
        log.close()
    return folder


def end_of(run: Run) -> float:
    return RATE * run.parameters["non_embedding_with_head"] * (run.points[-1].data_tokens or 0)


def frontier(series: Any) -> Series:
    return next(each for each in series if each.role == "fit" and not each.dashed)


def test_a_run_is_drawn_at_its_measured_compute_and_the_frontier_with_it() -> None:
    made = study(RUNS, draws=100)
    figure = FIGURES["loss-flops"](made)
    assert "C, measured" in figure.x.title and "6·N·D" not in figure.x.title
    ends = {series.run_id: series.x[-1] for series in figure.series if series.run_id}
    assert ends == {run.run_id: pytest.approx(end_of(run)) for run in RUNS}
    line = frontier(figure.series)
    assert line.x[[0, -1]] == pytest.approx([1.5 * BUDGETS[0], 1.5 * BUDGETS[-1]], rel=1e-3)
    N = np.array([optimal_size(C * 6 / RATE) for C in line.x])
    truth = LAW["E"] + LAW["A"] / N ** LAW["alpha"] + LAW["B"] / (line.x / RATE / N) ** LAW["beta"]
    assert line.y == pytest.approx(truth, rel=3e-3)  # a training loss is a mean over the last steps
    sizes = FIGURES["optimal-parameters"](made)
    by_law = next(series for series in sizes.series if series.role == "approach 3" and not series.dashed)
    by_minima = next(series for series in sizes.series if series.name == "its minima")
    assert by_law.y == pytest.approx([optimal_size(C * 6 / RATE) for C in by_law.x], rel=0.02)
    assert by_minima.y == pytest.approx([optimal_size(C * 6 / RATE) for C in by_minima.x], rel=0.02)


def test_where_flops_were_not_counted_6nd_stands_in_and_the_axis_says_for_how_many() -> None:
    nothing = study([without(run, "flops") for run in RUNS[:3]])
    assert "C = 6·N·D, N non-embedding with head" in FIGURES["loss-flops"](nothing).x.title
    assert pytest.approx([BUDGETS[0]] * 3, rel=1e-6) == nothing.C
    mixed = study([*RUNS[:3], without(RUNS[3], "flops")])
    assert "C, measured (6·N·D for 1 of 4 runs)" in FIGURES["loss-flops"](mixed).x.title
    assert pytest.approx([1.5 * BUDGETS[0]] * 3 + [BUDGETS[0]], rel=1e-6) == mixed.C


def test_tab_and_report_show_the_same_compute(tmp_path: Path) -> None:
    write(tmp_path, RUNS[:3])
    store = RecordStore([Root(str(tmp_path))])
    store.look()
    apps = Routes(store).apps()

    def asked(route: str, **query: str) -> Any:
        return Client(apps[f"/{route}"]).get(f"/{route}", query_string=query).json

    drawn = asked("figure", key="loss-flops")["plot"]["data"]
    listed = {row["run_id"]: row["C"] for row in asked("runs")["runs"]}
    shown = {
        each["meta"]["run_id"]: np.frombuffer(base64.b64decode(each["x"]["bdata"]), "<f4")[-1]
        for each in drawn
        if each.get("meta")
    }
    rows = {row.name: row for row in make_report(read_sources([tmp_path])).rows}
    for run in RUNS[:3]:
        at = pytest.approx(end_of(run))
        assert listed[run.run_id] == at and shown[run.run_id] == at and at == rows[run.name].C
        assert rows[run.name].measured


def test_a_plan_from_these_runs_is_asked_in_measured_flops(tmp_path: Path) -> None:
    def planned(runs: list[Run], flops: float) -> Any:
        folder = write(tmp_path / f"{flops:.0e}", runs)
        done = CliRunner().invoke(
            app,
            ["plan", "--json", "--n", "non_embedding_with_head", "--runs", str(folder), "--flops", f"{flops:g}"],
        )
        return json.loads(done.stdout)

    nominal = planned([without(run, "flops") for run in RUNS], 1e22)
    counted = planned(RUNS, 1.5e22)
    assert counted["N"] == pytest.approx(nominal["N"], rel=1e-3)
    assert counted["D"] == pytest.approx(nominal["D"], rel=1e-3)


def test_the_scalar_of_a_live_run_reads_the_frontier_at_its_measured_compute(tmp_path: Path) -> None:
    def law(N: float, D: float) -> float:
        return 1.5 + 40 / N**0.34 + 130 / D**0.37

    def frontier_loss(name: str, rate: float) -> tuple[float, float]:
        folder = tmp_path / name
        for C in (5e10, 2e11, 8e11):
            for k in (0.25, 0.5, 1.0, 2.0, 4.0):
                N = round((C / 120) ** 0.5 * k)
                log = RecordLog.create(folder, f"{C:.0f}-{k}", {"parameters": {"non_embedding_with_head": N}})
                D = round(C / 6 / N)
                log.point(Point(step=100, tokens=D, padding=0, losses={"train": law(N, D)}, flops=round(rate * N * D)))
                log.end(100, "completed")
                log.close()
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        options: dict[str, Any] = {"num_params": 50_000, "flops_per_token": rate * 5e4, "log_every": 20}
        monitor = isoflop.Monitor(
            None, optimizer=optimizer, total_steps=2000, record_dir=tmp_path / f"new {name}", history=folder, **options
        )
        for step in range(1, 2001):
            monitor.step(law(5e4, 500 * step) + 0.02, tokens=500)
        monitor.close()
        return monitor.scalars["isoflop/frontier_loss"], monitor.scalars["isoflop/flops"]

    nominal, _ = frontier_loss("nominal", 6.0)
    counted, flops = frontier_loss("counted", RATE)
    assert flops == pytest.approx(RATE * 5e4 * 1e6)
    assert counted == pytest.approx(nominal, abs=1e-6)  # the same N and D: the same place on the frontier
