"""What a fit of L = E + A/N^α + B/D^β costs and reaches, beside SciPy from a grid and the `chinchilla` package.

    OMP_NUM_THREADS=1 python benchmarks/fit.py [--quick]

The 240 runs of Hoffmann et al.'s figure 4 (../shared/data/chinchilla_245.csv without the five highest losses), Huber's
loss with δ = 1e-3 on ln L. CPU seconds of this process and its children, medians for what takes less than a second:
these machines are noisy, so read the ratios. `chinchilla` is beside where it is installed (`pip install chinchilla`).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import importlib.util
import itertools
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

from isoflop.fit.law_fit import DELTA, fit_law
from isoflop.fit.problem import huber, problem_of
from isoflop.fit.runs import check_runs
from isoflop.laws import FORMS

DATA = Path(__file__).parents[2] / "shared" / "data" / "chinchilla_245.csv"
BEST = 0.00101827401780
"""The global optimum's objective on the 240 runs (../shared/data/README.md)."""
RESAMPLES = 4000
FIT_GOAL, RESAMPLES_GOAL, CHINCHILLA_GOAL, GRID_GOAL = 50, 2, 200, 1000
"""ms, s, times, times."""
GRID = {
    "e": np.linspace(-1, 1, 5),
    "a": np.linspace(0, 25, 6),
    "b": np.linspace(0, 25, 6),
    "alpha": np.linspace(0, 2, 5),
    "beta": np.linspace(0, 2, 5),
}
"""Hoffmann et al. 2022, section D.3: 4,500 starts; e, a, b are logarithms. A part is run, the cost extrapolated."""

Columns = dict[str, np.ndarray]


def planted(n: int, noise: float = 5e-3) -> Columns:
    """Runs of Besiroglu et al.'s law."""
    rng = np.random.default_rng(0)
    N, D = 3e7 * 300 ** rng.random(n), 1e9 * 300 ** rng.random(n)
    loss = (1.8172 + 482.01 / N**0.3478 + 2085.43 / D**0.3658) * np.exp(noise * rng.standard_normal(n))
    return {"N": N, "D": D, "loss": loss}


def runs() -> tuple[Columns, str]:
    if not DATA.exists():
        return planted(240), f"240 planted runs: {DATA} is not here"
    with DATA.open() as file:
        rows = [row for row in csv.DictReader(file) if row["epoch_outlier"] == "0"]
    names = {"N": "N", "D": "tokens", "loss": "loss"}
    return {new: np.array([float(row[old]) for row in rows]) for new, old in names.items()}, f"{len(rows)} runs"


def cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def cost(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Median CPU seconds, and what it returned."""
    laps = []
    for _ in range(repeats):
        began = cpu() if repeats == 1 else time.process_time()
        result = function()
        laps.append((cpu() if repeats == 1 else time.process_time()) - began)
    return statistics.median(laps), result


def objective(columns: Columns, E: float, A: float, B: float, alpha: float, beta: float) -> float:
    predicted = np.log(E + A / columns["N"] ** alpha + B / columns["D"] ** beta)
    return float(huber(predicted - np.log(columns["loss"]), DELTA).sum())


def from_a_grid(columns: Columns, starts: int, exact: bool) -> tuple[float, float]:
    """L-BFGS-B with exact gradients or SciPy's differences: CPU seconds a start, the best objective."""
    problem = problem_of(FORMS["hoffmann"], check_runs(columns, ("N", "D")), {})
    centre = {name: np.log(columns[x]).mean() for name, x in (("a", "N"), ("b", "D"))}

    def value(theta: np.ndarray) -> float:
        return float(huber(problem.residuals(theta[None]), DELTA).sum())

    def with_gradient(theta: np.ndarray) -> tuple[float, np.ndarray]:
        state = problem.state(theta[None])
        return float(huber(state[0], DELTA).sum()), np.clip(state[0][0], -DELTA, DELTA) @ problem.slope(state)

    # θ has the coefficients at the runs' centre: ln A − α·mean ln N
    grid = np.array(
        [
            (e, a - alpha * centre["a"], alpha, b - beta * centre["b"], beta)
            for e, a, b, alpha, beta in itertools.product(*GRID.values())
        ]
    )
    chosen = grid[np.random.default_rng(0).choice(len(grid), starts, replace=False)]
    options = {"maxiter": 15_000, "maxfun": 100_000, "ftol": 1e-15, "gtol": 1e-12}

    def solve() -> float:
        function = with_gradient if exact else value
        found = [minimize(function, start, jac=exact or None, method="L-BFGS-B", options=options) for start in chosen]
        return min(float(result.fun) for result in found)

    seconds, best = cost(solve)
    return seconds / starts, best


def chinchilla_package(columns: Columns, points: int) -> tuple[float, float] | str:
    """CPU seconds and objective of the `chinchilla` package from points⁵ starts, or why there are none."""
    if importlib.util.find_spec("chinchilla") is None:
        return "not installed (pip install chinchilla)"
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        from chinchilla import Chinchilla
        from chinchilla._metrics import log_huber

        with tempfile.TemporaryDirectory() as folder:
            with open(Path(folder) / "df.csv", "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["C", "N", "D", "loss"])
                N, D = columns["N"], columns["D"]
                writer.writerows(zip(6 * N * D, N, D, columns["loss"], strict=True))
            grid = {
                "E": np.linspace(1, 2, points),
                "a": np.linspace(1, 10, points),
                "b": np.linspace(1, 10, points),
                "alpha": np.linspace(0.1, 0.7, points),
                "beta": np.linspace(0.1, 0.7, points),
            }
            loss = functools.partial(log_huber, delta=DELTA)
            model = Chinchilla(project_dir=folder, param_grid=grid, loss_fn=loss, log_level=50)
            with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
                seconds, _ = cost(model.fit)
        constants = {name: float(getattr(model, name)) for name in ("E", "A", "B", "alpha", "beta")}
    except Exception as error:  # another's package, of any version
        return f"failed: {type(error).__name__}: {error}"
    return seconds, objective(columns, **constants)


def off(found: float, best: float) -> str:
    return f"{found / best - 1:+.1e}"


def beside(columns: Columns, told: str, quick: bool) -> Table:
    repeats = 3 if quick else 15
    fit_law("hoffmann", columns, draws=2)
    seconds, fitted = cost(lambda: fit_law("hoffmann", columns, draws=2), repeats)
    resamples = 400 if quick else RESAMPLES
    with_draws, _ = cost(lambda: fit_law("hoffmann", columns, draws=resamples), 1 if quick else 3)
    best = BEST if DATA.exists() else fitted.objective
    result = Table(title=f"One fit, {told}, δ = {DELTA:g}", title_justify="left")
    for name in ("", "CPU", "goal", "isoflop is cheaper by", "goal", "objective", f"over {best:.10e}"):
        result.add_column(name, justify="right" if name else "left")
    result.add_row(
        "isoflop: the fit",
        f"{seconds * 1e3:.0f} ms",
        f"{FIT_GOAL} ms",
        "",
        "",
        f"{fitted.objective:.10e}",
        off(fitted.objective, best),
    )
    drawn = (with_draws - seconds) * RESAMPLES / resamples
    result.add_row(f"isoflop: {RESAMPLES:,} resamples", f"{drawn:.2f} s", f"{RESAMPLES_GOAL} s", "", "", "", "")
    starts, whole = 6 if quick else 60, int(np.prod([len(axis) for axis in GRID.values()]))
    for exact in (False, True):
        each, reached = from_a_grid(columns, starts, exact)
        result.add_row(
            f"SciPy L-BFGS-B, {'exact gradients' if exact else 'its differences'}, {whole:,} starts (from {starts})",
            f"{each * whole:.0f} s",
            "",
            f"{each * whole / seconds:,.0f} ×",
            f"{GRID_GOAL:,} ×",
            f"{reached:.10e}",
            off(reached, best),
        )
    points = 1 if quick else 3
    package = chinchilla_package(columns, points)
    name = f"chinchilla package, BFGS, {points**5} start{'s' if points > 1 else ''}"
    if isinstance(package, str):
        result.add_row(name, package, "", "", f"{CHINCHILLA_GOAL} ×", "", "")
    else:
        theirs, reached = package
        ratio = f"{theirs / seconds:,.0f} ×"
        result.add_row(
            name, f"{theirs:.1f} s", "", ratio, f"{CHINCHILLA_GOAL} ×", f"{reached:.10e}", off(reached, best)
        )
    return result


def growth(quick: bool) -> Table:
    result = Table(title="The fit (without draws) against the number of planted runs", title_justify="left")
    for name in ("runs", "CPU ms", "per run, µs", "of ten times fewer (at most 10 ×)"):
        result.add_column(name, justify="right")
    before = None
    for n in (100, 1000, 10_000) if quick else (100, 1000, 10_000, 100_000):
        columns = planted(n)
        seconds, _ = cost(functools.partial(fit_law, "hoffmann", columns, draws=2), 3)
        ratio = "" if before is None else f"{seconds / before:.1f} ×"
        result.add_row(f"{n:,}", f"{seconds * 1e3:.0f}", f"{seconds / n * 1e6:.1f}", ratio)
        before = seconds
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer starts and repeats, in seconds")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    columns, told = runs()
    console = Console(width=150)
    console.print(beside(columns, told, options.quick))
    console.print(growth(options.quick))


if __name__ == "__main__":
    main()
