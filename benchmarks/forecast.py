"""How well the end of a run is forecast at 25, 50 and 75% of it, and what a refit and its state cost.

    OMP_NUM_THREADS=1 python benchmarks/forecast.py [--folder CURVES] [--baselines NAMES] [--default-priors]

Errors are |relative error of the final loss|, %, median / 90th percentile, datasets weighted equally; the priors are
learnt leaving the run's whole organisation out. `cov` is the share of the 80% intervals that held the final loss,
`spoke` the share of the runs with a forecast; baselines are scored on those. The Multi-Power Law costs seconds a fit:
only where it is named. Cost is CPU time: these machines are noisy.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from pathlib import Path
from typing import Any

import _peers  # noqa: F401 - adds the momentum law and the Multi-Power Law to the estimators
import numpy as np
from rich.console import Console
from rich.table import Table

from isoflop.forecast import (
    ESTIMATORS,
    WEAK_PRIORS,
    Forecast,
    LossCurve,
    LrPlan,
    OnlineForecaster,
    Score,
    backtest,
    fit_ladder,
    learn_priors,
    read_curves,
)

FAST = tuple(name for name in ESTIMATORS if name not in ("isoflop", "multi-power-law"))
CURVES = Path(__file__).parents[2] / "shared" / "data" / "curves"
GOALS = {"0.25": (0.5, 1.8, 0.8), "0.5": (0.3, 1.2, 0.9), "0.75": (0.2, 0.9, 0.9)}
"""Median, 90th percentile, share of runs with a forecast."""
LADDER_GOALS = {0.0: 0.7, 0.25: 0.35, 0.5: 0.15}


def cell(score: Score) -> str:
    return f"{score.median:.2f}/{score.p90:.2f}  {score.coverage:.2f}  {score.spoke:.2f}"


def single(console: Console, runs: list[LossCurve], names: list[str], priors: str) -> None:
    table = Table("estimator", "set", *(f"{100 * float(k):.0f}%: error  cov  spoke" for k in GOALS), title="one run")
    began = time.perf_counter()
    scores = backtest(runs, names, priors=priors)  # type: ignore[arg-type]
    for name, sets in scores.items():
        for dataset, cells in sets.items():
            if name == names[0] or dataset == "all":
                table.add_row(name, dataset, *(cell(cells[key]) for key in GOALS))
    goals = (f"{m}/{p}  .75-.85  {s}" for m, p, s in GOALS.values())
    table.add_row("goal", "all", *goals)
    console.print(table, f"{len(runs)} runs, priors: {priors}, {time.perf_counter() - began:.0f} s")


def fed(run: LossCurve, fraction: float, **options: Any) -> OnlineForecaster:
    """A forecaster that has seen a fraction of a run."""
    forecaster = OnlineForecaster(N=run.N, batch_tokens=run.batch_tokens, optimizer=run.optimizer, **options)
    return forecaster.feed(run, fraction * run.total_steps)


def ladders(console: Console, runs: list[LossCurve], folder: Path) -> None:
    with (folder / "index.csv").open(newline="") as file:
        total = {row["run"]: float(row["N"]) for row in csv.DictReader(file)}
    asked = {
        "OLMo to 760M, then 1B": ("olmo", lambda N: N < 1e9, lambda N: N > 1e9),
        "MPL 25M and 100M, then 400M": ("mpl", lambda N: N < 2e8, lambda N: N > 2e8),
        "Gemstones to .6B, then 1 to 2B": ("gemstones", lambda N: N <= 0.6e9, lambda N: N > 0.9e9),
    }
    table = Table("ladder", "runs", "before", "25%", "50%", title="a finished ladder, a larger run: median/p90  cov")
    for name, (dataset, small, large) in asked.items():
        members = [run for run in runs if run.dataset == dataset]
        if not members:
            continue
        others = [run for run in runs if run.organisation != members[0].organisation]
        priors = learn_priors(others, WEAK_PRIORS, own=False)
        ladder = fit_ladder([run for run in members if small(total[run.name])], priors)
        targets = [run for run in members if large(total[run.name])]
        row = []
        for fraction in LADDER_GOALS:
            errors, held = [], []
            for run in targets:
                under_way = fed(run, fraction, priors=ladder.priors) if fraction else None
                result = ladder.forecast(run.plan, N=run.N or 0.0, batch_tokens=run.batch_tokens or 0.0, run=under_way)
                if isinstance(result, Forecast):
                    errors.append(100 * abs(result.loss / run.final - 1))
                    held.append(result.low <= run.final <= result.high)
            row.append(f"{np.median(errors):.2f}/{np.quantile(errors, 0.9):.2f}  {np.mean(held):.2f}")
        table.add_row(name, f"{len(members) - len(targets)}, {len(targets)}", *row)
    table.add_row("goal (median)", "", *map(str, LADDER_GOALS.values()))
    console.print(table)


def ranking(console: Console, runs: list[LossCurve]) -> None:
    """Pairs of runs of one set, length and batch: is the order of their forecasts right?"""
    table = Table("at", "pairs", "right", "mean probability", title="order of pairs that end more than .3% apart")
    for fraction in (0.25, 0.5):
        forecasts = [(run, fed(run, fraction).forecast(run.plan)) for run in runs]
        right, sure = [], []
        for i, (a, fa) in enumerate(forecasts):
            for b, fb in forecasts[:i]:
                alike = a.dataset == b.dataset and a.total_steps == b.total_steps
                made = isinstance(fa, Forecast) and isinstance(fb, Forecast)
                if not (alike and made) or abs(a.final / b.final - 1) < 3e-3:
                    continue
                right.append((fa.loss < fb.loss) == (a.final < b.final))
                probability = fa.probability_below(fb)
                sure.append(max(probability, 1 - probability))
        table.add_row(f"{fraction:.0%}", str(len(right)), f"{np.mean(right):.1%}", f"{np.mean(sure):.1%}")
    console.print(table)


def cost(console: Console) -> None:
    table = Table(
        "steps",
        "refit and forecast, ms: median, least (goal 2)",
        "add, µs",
        "state, kB as JSON (goal 32)",
        title="cost",
    )
    rng = np.random.default_rng(0)
    for total in (10**2, 10**4, 10**6, 10**7):
        plan = LrPlan.cosine(total, 3e-4, total // 20)
        every = max(1, total // 20_000)
        steps = np.arange(every, int(0.6 * total), every)
        loss = 2.5 + 0.9 * (steps / total + 0.02) ** -0.3 + 0.02 * rng.normal(size=len(steps))
        rates = plan.at(steps).tolist()
        forecaster = OnlineForecaster(N=1e8, batch_tokens=5e5)
        began = time.process_time()
        for step, lr, value in zip(steps.tolist(), rates, loss.tolist(), strict=True):
            forecaster.add(step, step * 5e5, lr, value, every)
        each = (time.process_time() - began) / len(steps)
        laps = []
        for _ in range(100):
            began = time.process_time()
            forecaster.forecast(plan)
            laps.append(time.process_time() - began)
        size = len(json.dumps(forecaster.state_dict())) / 1e3
        table.add_row(
            f"{total:,}",
            f"{1e3 * statistics.median(laps):.2f}, {1e3 * min(laps):.2f}",
            f"{1e6 * each:.1f}",
            f"{size:.1f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=CURVES, help="index.csv and <dataset>/<run>.csv")
    parser.add_argument("--baselines", default=",".join(FAST), help="names, comma-separated; '' for none")
    parser.add_argument("--default-priors", action="store_true", help="what ships, nothing left out")
    parser.add_argument("--no-ladders", action="store_true")
    options = parser.parse_args()
    console = Console()
    cost(console)
    if not options.folder.exists():
        console.print(f"No curves: {options.folder} is not here.")
        return
    runs = read_curves(options.folder)
    priors = "default" if options.default_priors else "leave-one-organisation-out"
    single(console, runs, ["isoflop", *filter(None, options.baselines.split(","))], priors)
    if not options.no_ladders:
        ladders(console, runs, options.folder)
        ranking(console, runs)


if __name__ == "__main__":
    main()
