"""The measured figures on the public curves, each organisation left out of the priors in turn (docs/forecast.md)."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from curves import fed
from fits import DATA
from isoflop.forecast import WEAK_PRIORS, Forecast, LossCurve, backtest, fit_ladder, learn_priors, read_curves

CURVES = DATA / "curves"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CURVES.exists(), reason=f"the public curves are not here: {CURVES}"),
]


@pytest.fixture(scope="module")
def runs() -> list[LossCurve]:
    return read_curves(CURVES)


def test_errors_coverage_and_silence_on_public_curves(runs: list[LossCurve]) -> None:
    table = backtest(runs, ["isoflop", "hoffmann", "last-value"])
    goals = {"0.25": (0.5, 1.3, 0.8), "0.5": (0.37, 1.0, 0.9), "0.75": (0.22, 0.8, 0.9)}
    for fraction, (median, p90, spoke) in goals.items():
        score = table["isoflop"]["all"][fraction]
        assert score.median <= median and score.p90 <= p90 and score.spoke >= spoke
        assert 0.75 <= score.coverage <= 0.92
        assert table["hoffmann"]["all"][fraction].median > 2.5 * score.median
        assert table["last-value"]["all"][fraction].median > 8 * score.median
        for dataset, cells in table["isoflop"].items():
            assert cells[fraction].coverage >= 0.65, (dataset, fraction)


def test_what_ships_does_no_worse(runs: list[LossCurve]) -> None:
    table = backtest(runs, ["isoflop"], priors="default")["isoflop"]["all"]
    for fraction, median in {"0.25": 0.5, "0.5": 0.37, "0.75": 0.22}.items():
        assert table[fraction].median <= median
        assert 0.75 <= table[fraction].coverage <= 0.95


@pytest.mark.parametrize(
    ("dataset", "most_small", "least_large", "medians"),
    [
        ("olmo", 9e8, 1e9, (0.5, 0.35, 0.25)),
        ("mpl", 2e8, 2e8, (0.7, 0.4, 0.2)),
        ("gemstones", 6e8, 9e8, (0.9, 0.45, 0.2)),
    ],
)
def test_ladders(
    runs: list[LossCurve], dataset: str, most_small: float, least_large: float, medians: tuple[float, ...]
) -> None:
    with (CURVES / "index.csv").open(newline="") as file:
        total = {row["run"]: float(row["N"]) for row in csv.DictReader(file)}
    members = [run for run in runs if run.dataset == dataset]
    others = [run for run in runs if run.organisation != members[0].organisation]
    ladder = fit_ladder(
        [run for run in members if total[run.name] <= most_small], learn_priors(others, WEAK_PRIORS, own=False)
    )
    for fraction, most in zip((0.0, 0.25, 0.5), medians, strict=True):
        errors = []
        for run in members:
            if total[run.name] < least_large:
                continue
            under_way = fed(run, fraction, priors=ladder.priors) if fraction else None
            assert run.N and run.batch_tokens
            result = ladder.forecast(run.plan, N=run.N, batch_tokens=run.batch_tokens, run=under_way)
            assert isinstance(result, Forecast)
            errors.append(100 * abs(result.loss / run.final - 1))
        assert float(np.median(errors)) <= most


def test_the_order_of_runs_is_right_at_a_quarter(runs: list[LossCurve]) -> None:
    forecasts = [(run, fed(run, 0.25).forecast(run.plan)) for run in runs if run.dataset != "speedrun"]
    right = []
    for i, (a, fa) in enumerate(forecasts):
        for b, fb in forecasts[:i]:
            alike = a.dataset == b.dataset and a.total_steps == b.total_steps
            if alike and isinstance(fa, Forecast) and isinstance(fb, Forecast) and abs(a.final / b.final - 1) > 3e-3:
                right.append((fa.loss < fb.loss) == (a.final < b.final))
    assert np.mean(right) > 0.97
