"""Which size, by few small runs? Compute that the advised size wastes on public isoFLOP sweeps (Porian et al. 2024).

Own runs are those of one to four neighbouring budgets among the smallest of each sweep; the largest budget is planned,
a factor of 250 to 2,000 beyond. The advised size's loss is read off the measured profile of that budget, and turned
into compute by the slope of the sweep's own least losses: waste 1.1 is 10% more compute than the best size needs.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator

from isoflop.fit.plan import plan
from isoflop.fit.profiles import akima, one_per_size

Array = NDArray[np.float64]
Sweep = dict[float, Array]
DATA = Path(__file__).parents[2] / "shared" / "data" / "porian_refinedweb.csv"
FEWEST = 5
"""Runs of a budget that is used."""
STARTS = 4


def sweeps(path: Path) -> dict[str, Sweep]:
    """N, D and loss of the runs [n, 3] by budget, by configuration."""
    found: dict[str, dict[float, list[list[float]]]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            values = [float(row[name]) for name in ("N", "D", "loss")]
            found.setdefault(row["config"], {}).setdefault(float(row["flops"]), []).append(values)
    return {
        name: {C: np.array(rows) for C, rows in sorted(budgets.items()) if len(rows) >= FEWEST}
        for name, budgets in found.items()
    }


def profile(rows: Array) -> tuple[Array, Array]:
    """Ln N and the least loss of each size."""
    kept = one_per_size(np.log(rows[:, 0]), rows[:, 2])
    return np.log(rows[kept, 0]), rows[kept, 2]


def waste(sweep: Sweep, N: float) -> float:
    """Compute of the largest budget over what the best size would need for the loss of N parameters."""
    least = [(np.log(C), np.log(akima(*profile(rows))[1])) for C, rows in sweep.items()]
    fall = -np.polyfit(*np.array(least[-5:]).T, 1)[0]
    x, loss = profile(sweep[max(sweep)])
    curve, u = Akima1DInterpolator(x, np.log(loss)), np.log(N)
    end = np.clip(u, x[0], x[-1])  # beyond the sizes along the end's slope
    log_loss = float(curve(end)) + (u - end) * (float(curve(end, 1)) if u != end else 0.0)
    return float(np.exp((log_loss - least[-1][1]) / fall))


def main() -> None:
    """Print medians and 90% points, of all sweeps and of those with tuned learning rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="porian_refinedweb.csv")
    found = sweeps(parser.parse_args().data)
    print(f"{'budgets':>9}{'median':>9}{'p90':>7}{'tuned':>9}{'p90':>7}{'80% interval':>15}   20:1 median, p90, tuned")
    plain = {name: waste(sweep, np.sqrt(max(sweep) / 120)) for name, sweep in found.items()}
    for count in (1, 2, 3, 4):
        rows = []
        for name, sweep in found.items():
            budgets, target = list(sweep), max(sweep)
            best = float(np.exp(akima(*profile(sweep[target]))[0]))
            for start in range(STARTS):
                chosen = budgets[start : start + count]
                N, D, L = np.concatenate([sweep[C] for C in chosen]).T
                own = {"N": N, "D": D, "loss": L, "C": np.repeat(chosen, [len(sweep[C]) for C in chosen])}
                answer = plan(target, own=own)
                assert answer.intervals is not None
                low, high = answer.intervals["N"]
                rows.append((waste(sweep, answer.N), "tuned" in name, low <= best <= high))
        values, tuned, inside = (np.array(column) for column in zip(*rows, strict=True))
        fixed = np.array(list(plain.values()))
        fixed_tuned = [value for name, value in plain.items() if "tuned" in name]
        print(
            f"{count:>9}{np.median(values):>9.3f}{np.quantile(values, 0.9):>7.2f}{np.median(values[tuned]):>9.3f}"
            f"{np.quantile(values[tuned], 0.9):>7.2f}{f'{inside.mean():.0%} hold':>15}"
            f"   {np.median(fixed):.3f}, {np.quantile(fixed, 0.9):.2f}, {np.median(fixed_tuned):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
