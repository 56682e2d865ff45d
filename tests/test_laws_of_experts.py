"""Laws of mixtures of experts and of downstream errors: planted and published constants are found, plan uses them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from isoflop.cli import app
from isoflop.fit import fit_law
from isoflop.laws import FORMS, published

ROUTING = Path(__file__).parents[2] / "shared" / "data" / "routing_final.csv"
CLARK = {"A": 12.9, "alpha": 0.083, "beta": 0.126, "gamma": 0.0052, "X_start": 1.88, "X_max": 470.0}


def columns(router: str) -> dict[str, list[float]]:
    """Of one router's runs with one expert a token, and of the dense ones."""
    with ROUTING.open() as file:
        rows = [row for row in csv.DictReader(file) if row["k"] == "1" and row["router"] in (router, "Dense")]
    return {what: [float(row[name]) for row in rows] for what, name in (("N", "N"), ("X", "experts"), ("loss", "loss"))}


def test_planted_constants_are_found() -> None:
    N, X = (x.ravel() for x in np.meshgrid(np.geomspace(1.5e7, 1.3e9, 6), [1, 2, 8, 32, 128, 512]))
    loss = FORMS["clark"].at({"N": N, "X": X}, CLARK)
    found = fit_law("clark", {"N": N, "X": X, "loss": loss}, draws=20)
    assert found.parameters == pytest.approx(CLARK, rel=0.02)


@pytest.mark.skipif(not ROUTING.exists(), reason="the reference data are not at hand")
def test_clark_et_al_2022s_constants_are_reproduced() -> None:
    """Their table: a = -.083, b = -.126, c = .012 (decadic), X_start 1.88, X_max 470 for routers by reinforcement."""
    found = fit_law("clark", columns("RL-R"), draws=40)
    assert found.parameters["alpha"] == pytest.approx(0.083, rel=0.02)
    assert found.parameters["beta"] == pytest.approx(0.126, rel=0.1)
    assert found.parameters["gamma"] == pytest.approx(0.012 / math.log(10), rel=0.05)
    assert found.parameters["X_start"] == pytest.approx(1.88, rel=0.25)
    law = published("clark-refit-rlr").law
    assert law is not None and found.parameters == pytest.approx(law.constants, rel=1e-3)


def test_plan_says_what_experts_are_worth_where_runs_reach() -> None:
    def said(*options: str) -> str:
        return " ".join(CliRunner().invoke(app, ["plan", "--experts", "64", "--top-k", "8", *options]).output.split())

    assert "these experts are worth one 1.3 to 1.6 times as large (Clark et al. 2022)" in said("--flops", "2e20")
    assert "no public sweep says" in said("--flops", "1e22")


def test_a_downstream_error_is_fitted_by_the_loss(tmp_path: Path) -> None:
    loss = np.linspace(2.2, 3.8, 12)
    error = 0.85 - 2.08 * np.exp(-0.756 * loss)  # Gadre et al. 2024, C4
    lines = ["run,val_loss,top1_error", *(f"{i},{x},{y}" for i, (x, y) in enumerate(zip(loss, error, strict=True)))]
    (tmp_path / "runs.csv").write_text("\n".join(lines))
    command = ["fit", str(tmp_path / "runs.csv"), "--law", "gadre-error", "--draws", "20", "--json"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    expected = {"epsilon": 0.85, "k": 2.08, "gamma": 0.756}
    assert json.loads(found.stdout)["parameters"] == pytest.approx(expected, rel=1e-3)
