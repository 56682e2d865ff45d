"""The measured figures on the public curves, each organisation left out of the priors in turn (docs/forecast.md)."""

from __future__ import annotations

import csv
import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import stdtrit

from curves import fed
from fits import DATA
from isoflop.forecast import (
    ESTIMATORS,
    WEAK_PRIORS,
    Forecast,
    LossCurve,
    LrPlan,
    OnlineForecaster,
    backtest,
    fit_ladder,
    learn_priors,
    priors_for,
    read_curves,
)
from isoflop.forecast.backtest import replay

CURVES = DATA / "curves"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CURVES.exists(), reason=f"the public curves are not here: {CURVES}"),
]


@pytest.fixture(scope="module")
def runs() -> list[LossCurve]:
    return read_curves(CURVES)


GOALS = {"0.25": (0.55, 1.6, 0.8), "0.5": (0.35, 1.1, 0.9), "0.75": (0.22, 0.8, 0.9)}
"""Median and 90th percentile of the error, %, means over organisations; share of runs that get a forecast."""


def test_errors_coverage_and_silence_by_organisation(runs: list[LossCurve]) -> None:
    """Nothing was learnt from the organisation that is scored."""
    table = backtest([replace(run, dataset=run.organisation) for run in runs], ["isoflop", "hoffmann", "last-value"])
    for fraction, (median, p90, spoke) in GOALS.items():
        score = table["isoflop"]["all"][fraction]
        assert score.median <= median and score.p90 <= p90 and score.spoke >= spoke
        assert score.coverage <= 0.93
        assert table["hoffmann"]["all"][fraction].median > 2.5 * score.median
        assert table["last-value"]["all"][fraction].median > 8 * score.median
        for organisation, cells in table["isoflop"].items():
            assert cells[fraction].coverage >= 0.75, (organisation, fraction)


def test_intervals_are_not_surely_too_wide_for_organisations(
    runs: list[LossCurve], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of one organisation's runs are alike, so that five coverages are five numbers, whatever the runs.

    Coverage is above .9 where its mean over organisations is, by more than their scatter allows (t, one-sided 95%);
    an interval is too wide where the width that four choose by log score is better for the fifth (two-sided 95%).
    """
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.setattr(sys.modules[replay.__module__], "ESTIMATORS", dict(ESTIMATORS))  # its peers join these
    monkeypatch.delitem(sys.modules, "_peers", raising=False)
    benchmark = importlib.import_module("forecast")
    scored = benchmark.replayed(runs)
    for part in map(float, GOALS):
        held: dict[str, list[bool]] = {}
        for run, at, f in scored:
            if at == part and f is not None:
                held.setdefault(run.organisation, []).append(f.low <= run.final <= f.high)
        each = [np.mean(inside) for inside in held.values()]
        mean, error = np.mean(each), np.std(each, ddof=1) / len(each) ** 0.5
        assert mean - stdtrit(len(each) - 1, 0.95) * error < 0.9 and mean > 0.8, part
    changes = np.array([(log_score, -interval) for _, log_score, interval, _ in benchmark.widths(scored).values()])
    error = changes.std(0, ddof=1) / len(changes) ** 0.5
    assert (changes.mean(0) < stdtrit(len(changes) - 1, 0.975) * error).all()
    # and it would be seen, were they twice as wide
    doubled = [(run, part, f and replace(f, sd=2 * f.sd, high=2 * f.high - f.loss)) for run, part, f in scored]
    changes = np.array([(log_score, -interval) for _, log_score, interval, _ in benchmark.widths(doubled).values()])
    error = changes.std(0, ddof=1) / len(changes) ** 0.5
    assert (changes.mean(0) > stdtrit(len(changes) - 1, 0.975) * error).all()


def test_each_bin_of_stated_half_widths_holds(runs: list[LossCurve]) -> None:
    priors = priors_for(runs, "leave-one-organisation-out")
    half, held = [], []
    for run in runs:
        for found in replay(run, "isoflop", (0.25, 0.5, 0.75), priors[run.organisation]).values():
            if found is not None:
                half.append(100 * (found.high / found.loss - 1))
                held.append(found.low <= run.final <= found.high)
    for low, high in ((0, 0.3), (0.3, 0.6), (0.6, 1), (1, 1.5), (1.5, 2.6)):
        inside = [h for w, h in zip(half, held, strict=True) if low <= w < high]
        assert len(inside) > 50 and np.mean(inside) >= 0.7, (low, high)


def test_what_ships_does_no_worse(runs: list[LossCurve]) -> None:
    table = backtest([replace(run, dataset=run.organisation) for run in runs], priors="default")["isoflop"]["all"]
    for fraction, (median, _, _) in GOALS.items():
        assert table[fraction].median <= median
        assert 0.75 <= table[fraction].coverage <= 0.96


def test_a_cooldown_from_here_is_forecast_as_those_that_were_made(runs: list[LossCurve]) -> None:
    """What-if of Gemstones' runs at a constant rate, small and large, against their own cooldowns."""
    priors = priors_for(runs, "leave-one-organisation-out")
    constant = {run.name: run for run in runs if run.dataset == "gemstones"}
    held: dict[bool, list[bool]] = {False: [], True: []}
    for cooled in (run for run in runs if run.dataset == "gemstones_cool"):
        run = constant[cooled.name.rsplit("_", 1)[0]]
        begin = float(cooled.plan.steps[cooled.plan.lr > 0.999 * cooled.plan.peak][-1])
        forecaster = OnlineForecaster.of(run, priors[run.organisation]).feed(run, begin)
        new = LrPlan(np.array([begin, cooled.total_steps]), np.array([run.plan.peak, 0.0]))
        answer = forecaster.what_if(run.plan, new)
        assert isinstance(answer, Forecast) and run.N
        held[run.N > 1e8].append(answer.low <= cooled.final <= answer.high)
    assert all(len(each) > 25 and np.mean(each) >= 0.8 for each in held.values())


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
