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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import _peers  # noqa: F401 - adds the momentum law and the Multi-Power Law to the estimators
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import norm
from scipy.stats import t as student

from isoflop.arrays import Array
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
    priors_for,
    read_curves,
)
from isoflop.forecast.backtest import ALIKE, replay

FAST = tuple(name for name in ESTIMATORS if name not in ("isoflop", "multi-power-law"))
CURVES = Path(__file__).parents[2] / "shared" / "data" / "curves"
GOALS = {"0.25": (0.5, 1.8, 0.8), "0.5": (0.3, 1.2, 0.9), "0.75": (0.2, 0.9, 0.9)}
"""Median, 90th percentile, share of runs with a forecast."""
SAID = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Lower ends of the bins of a stated probability."""
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


Scored = tuple[LossCurve, float, Forecast | None]
"""A run, the part of it that was seen, and what was forecast."""


def replayed(runs: list[LossCurve]) -> list[Scored]:
    """All runs at each fraction, with priors learnt from the other organisations."""
    chosen = priors_for(runs, "leave-one-organisation-out")
    fractions = [float(key) for key in GOALS]
    return [
        (run, part, found)
        for run in runs
        for part, found in replay(run, "isoflop", fractions, chosen[run.organisation]).items()
    ]


def organisations(console: Console, scored: list[Scored]) -> None:
    """Errors and coverage by what a stranger's run may differ in: nothing here was learnt from the organisation."""
    kinds: dict[str, Callable[[LossCurve], str]] = {
        "organisation": lambda run: run.organisation,
        "steps": lambda run: _within(run.total_steps, (5e3, 2e4, 5e4)),
        "schedule": schedule,
        "parameters": lambda run: _within(run.N or 0, (5e7, 2e8, 1e9)),
    }
    for kind, name in kinds.items():
        table = Table(kind, *(f"{100 * float(k):.0f}%: error  cov  spoke  n" for k in GOALS))
        for value in sorted({name(run) for run, _, _ in scored}):
            table.add_row(
                value, *(_cell([s for s in scored if name(s[0]) == value and s[1] == float(k)]) for k in GOALS)
            )
        console.print(table)
    table = Table("stated half-width, %", "forecasts", "cov", "90th percentile of the error, %")
    for low, high in ((0, 0.3), (0.3, 0.6), (0.6, 1.0), (1.0, 1.5), (1.5, 2.6)):
        found = [(run, f) for run, _, f in scored if f is not None and low <= 100 * (f.high / f.loss - 1) < high]
        if found:
            held, errors = zip(*((f.low <= run.final <= f.high, _error(run, f)) for run, f in found), strict=True)
            row = (str(len(found)), f"{np.mean(held):.2f}", f"{np.quantile(errors, 0.9):.2f}")
            table.add_row(f"{low} to {high}", *row)
    console.print(table)


def alike(console: Console, scored: list[Scored]) -> None:
    """How alike the errors of one organisation's runs are, in standard deviations of the forecast: mean ± scatter.

    And what that leaves to any interval: organisations are drawn with such means and scatters, the interval is given
    the width that holds 80% of the runs of strangers, and the share of the draws is counted in which each organisation
    (all of them) finds 72 to 90% of its runs inside.
    """
    table = Table("organisation", *(f"{100 * float(k):.0f}%: mean ± scatter, n, in goal" for k in GOALS), title="alike")
    names = sorted({run.organisation for run, _, _ in scored})
    rows: dict[str, list[str]] = {name: [] for name in [*names, "all of them"]}
    rng = np.random.default_rng(0)
    for k in map(float, GOALS):
        made = [(run, f) for run, part, f in scored if part == k and f is not None]
        z = [np.array([(r.final - f.loss) / f.normal[1] for r, f in made if r.organisation == name]) for name in names]
        n, own = np.array([len(each) for each in z]), np.array([each.std() for each in z])
        between = np.std([each.mean() for each in z], ddof=1)
        means = between * rng.normal(size=(4000, 1, len(z)))
        wide = np.linspace(0.1, 4, 400)
        inside = norm.cdf((wide[:, None] - means) / own) - norm.cdf((-wide[:, None] - means) / own)
        held = inside[:, np.argmin(np.abs(inside.mean((0, 2)) - 0.8))]
        found = rng.binomial(n, held) / n
        right = (found >= 0.72) & (found <= 0.9)
        for name, each, share in zip(names, z, right.mean(0), strict=True):
            rows[name].append(f"{each.mean():+.2f} ± {each.std():.2f}, {len(each)}, {share:.0%}")
        rows["all of them"].append(f"± {between:.2f} between, {right.all(1).mean():.1%}")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)


WIDTHS = np.geomspace(0.5, 2, 57)
"""Multiples of all intervals, among which organisations choose."""


def widths(scored: list[Scored]) -> dict[str, tuple[float, float, float, list[float]]]:
    """What each organisation's forecasts would be worth with the width that the others' log score chooses.

    Every fraction of every organisation counts alike. By organisation: the width, as a multiple; the gain in log score,
    nats a forecast; the change of the interval score, %; the coverage at each fraction.
    """
    worth: dict[str, list[Array]] = {}
    for run, part, f in scored:
        if f is not None:
            density = _log_score(run, f, WIDTHS)
            half = (f.high - f.loss) * WIDTHS
            outside = np.maximum(abs(run.final - f.loss) - half, 0)
            interval = 100 * (2 * half + 2 / (1 - f.level) * outside) / run.final
            worth.setdefault(f"{run.organisation} {part}", []).append(np.stack([density, interval, outside == 0]))
    names = sorted({run.organisation for run, _, _ in scored})
    cells = {name: np.stack([np.mean(worth[f"{name} {float(k)}"], 0) for k in GOALS]) for name in names}
    as_is, found = int(np.argmin(np.abs(WIDTHS - 1))), {}
    for name, mine in cells.items():
        others = np.mean([cells[other][:, 0].mean(0) for other in names if other != name], 0)
        chosen = int(np.argmax(others))
        density, interval = (mine[:, i].mean(0)[chosen] - mine[:, i].mean(0)[as_is] for i in (0, 1))
        found[name] = (float(WIDTHS[chosen]), float(density), float(interval), mine[:, 2, chosen].tolist())
    return found


def chosen_widths(console: Console, scored: list[Scored]) -> None:
    """`widths` as a table; the mean over organisations with its standard error."""
    heads = ("organisation", "width", "log score, nats", "interval score, %", *GOALS)
    table = Table(*heads, title="with the width that the other organisations choose: what changes, coverage then")
    found = widths(scored)
    for name, (width, density, interval, held) in found.items():
        table.add_row(name, f"{width:.2f}", f"{density:+.3f}", f"{interval:+.2f}", *(f"{each:.2f}" for each in held))
    gains = np.array([each[1:3] for each in found.values()])
    error = gains.std(0, ddof=1) / len(gains) ** 0.5
    table.add_row("mean", "", *(f"{m:+.3f} ± {e:.3f}" for m, e in zip(gains.mean(0), error, strict=True)))
    console.print(table)


def schedule(run: LossCurve) -> str:
    """The shape of a run's plan after the warm-up."""
    plan = run.plan
    third, end = plan.at([(2 * plan.warmup_steps + plan.total_steps) / 3, plan.total_steps]) / plan.peak
    return "constant" if end > 0.98 else "constant, then a decay" if third > 0.98 else "decays throughout"


def _within(value: float, bounds: tuple[float, ...]) -> str:
    place = sum(value >= bound for bound in bounds)
    return f"{place + 1}: " + (f"below {bounds[0]:.0e}" if not place else f"{bounds[place - 1]:.0e} and more")


def _error(run: LossCurve, forecast: Forecast) -> float:
    return 100 * abs(forecast.loss / run.final - 1)


def _interval_score(run: LossCurve, forecast: Forecast) -> float:
    """Of an 80% interval, % of the final loss (Gneiting and Raftery 2007)."""
    outside = max(forecast.low - run.final, run.final - forecast.high, 0.0)
    return 100 * (forecast.high - forecast.low + 2 / (1 - forecast.level) * outside) / run.final


def _log_score(run: LossCurve, forecast: Forecast, wide: Array | float = 1.0) -> Array:
    """Log density of the final loss, nats, with so many times the width."""
    scale = forecast.sd * np.asarray(wide)
    return np.asarray(student.logpdf((run.final - forecast.loss) / scale, forecast.nu) - np.log(scale))


def _cell(scored: list[Scored]) -> str:
    made = [(run, f) for run, _, f in scored if f is not None]
    if not made:
        return "–"
    errors = [_error(run, f) for run, f in made]
    held = np.mean([f.low <= run.final <= f.high for run, f in made])
    spoke = len(made) / len(scored)
    return f"{np.median(errors):.2f}/{np.quantile(errors, 0.9):.2f}  {held:.2f}  {spoke:.2f}  {len(made)}"


def what_ifs(console: Console, runs: list[LossCurve]) -> None:
    """Runs at a constant rate asked what a cooldown from here would give, against the cooldowns that were made."""
    constant = {run.name: run for run in runs if run.dataset == "gemstones"}
    chosen = priors_for(runs, "leave-one-organisation-out")
    table = Table("parameters", "cooldowns", "error  cov", title="what if the rate fell to 0 from here")
    found: dict[str, list[tuple[float, bool]]] = {}
    for cooled in (run for run in runs if run.dataset == "gemstones_cool"):
        run = constant.get(cooled.name.rsplit("_", 1)[0])
        if run is not None:
            begin = float(cooled.plan.steps[cooled.plan.lr > 0.999 * cooled.plan.peak][-1])
            forecaster = OnlineForecaster.of(run, chosen[run.organisation]).feed(run, begin)
            new = LrPlan(np.array([begin, cooled.total_steps]), np.array([run.plan.peak, 0.0]))
            answer = forecaster.what_if(run.plan, new)
            if isinstance(answer, Forecast):
                held = answer.low <= cooled.final <= answer.high
                found.setdefault(_within(run.N or 0, (1e8, 3e8)), []).append((_error(cooled, answer), held))
    for size, each in sorted(found.items()):
        errors, held = zip(*each, strict=True)
        table.add_row(
            size, str(len(each)), f"{np.median(errors):.2f}/{np.quantile(errors, 0.9):.2f}  {np.mean(held):.2f}"
        )
    console.print(table)


def histories(console: Console, runs: list[LossCurve]) -> None:
    """The rest of a set, forecast at each fraction without and with some of its runs as history.

    And with a mixed one: four runs of the set and four of each other organisation's, or eight of the other's alone.
    `score` is the mean interval score against none (width, and ten times what a loss lies outside; %, less is better)
    and the gain in log score, nats, each with its standard error, over runs that have a forecast in both.
    """
    chosen = priors_for(runs, "leave-one-organisation-out")
    heads = (f"{100 * float(k):.0f}%: error cov spoke score" for k in GOALS)
    table = Table("set", "own runs", *heads, title="history")
    rng = np.random.default_rng(0)
    for dataset in sorted({run.dataset for run in runs}):
        members = [run for run in runs if run.dataset == dataset]
        base = chosen[members[0].organisation]
        own = [members[i] for i in rng.permutation(len(members))]
        rest = own[8:]
        histories = {str(known): own[:known] for known in (0, 1, 3, 8)}
        for other in sorted({run.organisation for run in runs} - {members[0].organisation}):
            foreign = [run for run in runs if run.organisation == other]
            foreign = [foreign[i] for i in rng.permutation(len(foreign))]
            histories |= {f"4 + 4 {other}": own[:4] + foreign[:4], f"8 {other}": foreign[:8]}
        none: dict[tuple[str, float], Array] = {}
        for known, history in histories.items():
            priors = learn_priors([replace(run, organisation="own") for run in history], base)
            fractions = [float(key) for key in GOALS]
            scored = [(run, k, f) for run in rest for k, f in replay(run, "isoflop", fractions, priors).items()]
            scores = {
                (run.name, k): np.array([_interval_score(run, f), float(_log_score(run, f))])
                for run, k, f in scored
                if f is not None
            }
            none = none or scores
            cells = []
            for k in fractions:
                away = np.array([score - none[key] for key, score in scores.items() if key[1] == k and key in none])
                changes = zip(away.mean(0), away.std(0) / len(away) ** 0.5, strict=True) if away.any() else ()
                worth = "  ".join(f"{mean:+.2f}±{error:.2f}" for mean, error in changes)
                median, *held = _cell([s for s in scored if s[1] == k]).split()[:3]
                cells.append("  ".join([median.split("/")[0], *held, worth]))
            table.add_row(dataset if known == "0" else "", known, *cells)
    console.print(table)


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


def ranking(console: Console, scored: list[Scored]) -> None:
    """Pairs of runs of one set and length: is the order of their forecasts right as often as is said?"""
    heads = ("at", "set", "pairs", "right", *(f"said {low:.0%}+" for low in SAID))
    table = Table(*heads, title="order of pairs that end more than .3% apart")
    for part in (0.25, 0.5):
        every: list[tuple[str, bool, float]] = []
        made = [(run, f) for run, k, f in scored if k == part and f is not None]
        for i, (a, fa) in enumerate(made):
            for b, fb in made[:i]:
                alike = a.dataset == b.dataset and a.total_steps == b.total_steps
                if alike and abs(a.final / b.final - 1) >= 3e-3:
                    below = fa.probability_below(fb, ALIKE)
                    every.append((a.dataset, (fa.loss < fb.loss) == (a.final < b.final), max(below, 1 - below)))
        for dataset in [*sorted({name for name, _, _ in every}), "all"]:
            pairs = [(right, said) for name, right, said in every if dataset in (name, "all")]
            row = [f"{np.mean([right for right, _ in pairs]):.1%}"]
            for low in SAID:
                inside = [right for right, said in pairs if low <= said < low + 0.1]
                row.append(f"{np.mean(inside):.2f} ({len(inside)})" if inside else "–")
            table.add_row(f"{part:.0%}", dataset, str(len(pairs)), *row)
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
    scored = replayed(runs)
    organisations(console, scored)
    alike(console, scored)
    chosen_widths(console, scored)
    ranking(console, scored)
    what_ifs(console, runs)
    histories(console, runs)
    if not options.no_ladders:
        ladders(console, runs, options.folder)


if __name__ == "__main__":
    main()
