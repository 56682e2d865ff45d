"""Which size, by my runs? `fit`, `plan`, `ladder fit` and the advice give one answer, near a planted truth."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from isoflop.cli import app
from isoflop.fit import learn_from
from isoflop.ladder import fit_ladder_runs
from isoflop.laws import HOFFMANN, Law, optimal_allocation
from isoflop.record import Point, RecordLog, read_runs

LAW = Law(HOFFMANN, {"E": 1.8, "A": 400.0, "B": 1500.0, "alpha": 0.34, "beta": 0.36}, "non_embedding_with_head")
COUNTED = "non_embedding_with_head"


def folder_of_runs(folder: Path, rate: float, budgets: tuple[float, ...] = (1e17, 4e17, 1.6e18)) -> Path:
    """Records of isoFLOP runs, five sizes a budget, at `rate` FLOPs per parameter and token."""
    rng = np.random.default_rng(0)
    for C in budgets:
        best = optimal_allocation(LAW, C, flops_per_param_token=rate).N
        for k in (0.35, 0.6, 1.0, 1.7, 2.8):
            N = round(best * k)
            D = round(C / rate / N)
            loss = float(LAW.loss(N=N, D=D)) * math.exp(0.001 * rng.standard_normal())
            name = f"C{C:.0e}-k{k}".replace("+", "")
            parameters = {COUNTED: N, "non_embedding": N // 3, "total": 2 * N}
            log = RecordLog.create(folder, name, {"name": name, "parameters": parameters, "planned": {"steps": 100}})
            log.point(Point(step=50, tokens=D // 2, padding=0, losses={"train": loss}, flops=round(C / 2)))
            log.point(Point(step=100, tokens=D, padding=0, losses={"train": loss}, flops=round(C)))
            log.end(100, "completed")
            log.close()
    return folder


def read(*arguments: object) -> dict[str, object]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("rate", [6.0, 9.0])
def test_four_engines_one_answer(tmp_path: Path, rate: float) -> None:
    C = 1.6e19  # ten times the largest run: where `fit` tells its size
    runs = folder_of_runs(tmp_path, rate)
    planned = read("plan", "--flops", C, "--runs", runs, "--n", COUNTED)
    fitted = read("fit", runs, "--n", COUNTED, "--draws", 20)["best_size"]
    ladder = fit_ladder_runs([runs], target_flops=C)
    own = learn_from(read_runs(runs))
    assert own.line is not None
    truth = optimal_allocation(LAW, C, flops_per_param_token=rate)
    sizes = {
        "plan": planned["N"],
        "fit": fitted["N"],  # type: ignore[index]
        "ladder": ladder.N_opt.value,
        "advice": math.exp(own.line.at(C)[0]),
    }
    for name, N in sizes.items():
        assert pytest.approx(ladder.N_opt.value, rel=0.02) == N, name
        assert pytest.approx(truth.N, rel=0.15) == N, name
    assert fitted["flops"] == pytest.approx(C, rel=1e-3)  # type: ignore[index]
    assert fitted["a"] == pytest.approx(0.36 / 0.70, abs=0.02)  # type: ignore[index]
    assert planned["D"] == pytest.approx(C / rate / planned["N"], rel=0.01)  # type: ignore[operator]
    assert planned["L"] == pytest.approx(ladder.loss.value, rel=1e-3)
    assert planned["L"] == pytest.approx(float(LAW.loss(N=planned["N"], D=planned["D"])), rel=0.01)  # type: ignore[arg-type]
