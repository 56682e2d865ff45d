"""Which size, by few small runs, and which loss? Held against public runs that the answer has not seen.

    python benchmarks/sizes.py            # sizes: a minute of one core
    python benchmarks/sizes.py --losses   # losses: a minute or two

**Sizes.** Compute that the advised size wastes on public isoFLOP sweeps (Porian et al. 2024). Own runs are those of one
to four neighbouring budgets among the smallest of each sweep; the largest budget is planned, a factor of 250 to 2,000
beyond. The advised size's loss is read off the measured profile of that budget, and turned into compute by the slope of
the sweep's own least losses: waste 1.1 is 10% more compute than the best size needs.

**Losses.** Larger runs of six organisations, predicted from the smaller .3, .45, .6 and .75 of their runs, and the
least losses of Porian et al.'s larger budgets, from one to nine neighbouring ones: the error of the predicted loss by
how far beyond the runs it lies, and the share of losses within their 80% intervals, a mean over what was fitted to.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator

from isoflop.fit.plan import expected_loss, plan
from isoflop.fit.posterior import posterior_of_runs
from isoflop.fit.profiles import akima, one_per_size

Array = NDArray[np.float64]
Sweep = dict[float, Array]
DATA = Path(__file__).parents[2] / "shared" / "data"
SWEEPS = "porian_refinedweb.csv"
FEWEST = 5
"""Runs of a budget that is used."""
STARTS = 4
PARTS = (0.3, 0.45, 0.6, 0.75)
BUDGETS = (1, 2, 3, 4, 6, 9)
REACHES = (1.0, 3.0)
"""E-folds of compute beyond the largest run: near, farther, far."""


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


def organisations(data: Path) -> dict[str, Array]:
    """N (with the head where it is known), D and final loss of runs that see no token twice [n, 3]."""
    curves, found = _rows(data / "curves" / "index.csv"), {}

    def of(name: str, *columns: str, where: tuple[str, str] | None = None) -> list[list[float]]:
        rows = _rows(data / name)
        return [[float(row[c]) for c in columns] for row in rows if where is None or row[where[0]] == where[1]]

    def ends(*names: str) -> list[list[float]]:
        """Of curves; gemstones' N has both embeddings."""
        return [
            [
                (float(row["N"]) + float(row["N_non_embedding"])) / 2 if "gemstones" in names[0] else float(row["N"]),
                float(row["total_steps"]) * float(row["batch_tokens"]),
                float(row["final_loss"]),
            ]
            for row in curves
            if row["dataset"] in names
        ]

    found["Hoffmann"] = of("chinchilla_245.csv", "N", "tokens", "loss", where=("epoch_outlier", "0"))
    found["Gadre"] = of("gadre_rpj.csv", "N", "D", "loss_c4")
    found["Muennighoff"] = of("datablations.csv", "N", "D", "loss", where=("epochs", "1"))
    found["OLMo"] = ends("olmo", "olmo3B")
    found["Schaipp"] = ends("schaipp_val")
    found["Gemstones"] = ends("gemstones_cool")
    return {name: np.array(rows) for name, rows in found.items()}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def least_of(budget: float, rows: Array) -> Array:
    """N, D and loss of the best size of a budget."""
    kept = one_per_size(np.log(rows[:, 0]), rows[:, 2])
    x, loss = akima(*profile(rows))[:2]
    rate = np.interp(x, np.log(rows[kept, 0]), np.log(budget / (rows[kept, 0] * rows[kept, 1])))
    return np.array([np.exp(x), budget / np.exp(x + rate), loss])


def held_out(data: Path) -> Iterator[tuple[str, Array, Array]]:
    """Organisation, runs to fit (N, D, loss, C) [n, 4], and larger ones to predict (N, D, loss) [m, 3]."""
    for name, runs in organisations(data).items():
        C = 6 * runs[:, 0] * runs[:, 1]
        for part in PARTS:
            small = np.quantile(C, part) >= C
            yield name, np.column_stack([runs, C])[small], runs[~small]
    for name, sweep in sweeps(data / SWEEPS).items():
        budgets = list(sweep)
        least = {C: least_of(C, rows) for C, rows in sweep.items()}
        for count in BUDGETS:
            starts = range(STARTS) if count <= STARTS else range(0, len(budgets) - count, 2)
            for chosen in (budgets[start : start + count] for start in starts):
                runs = np.concatenate([np.column_stack([sweep[C], np.full(len(sweep[C]), C)]) for C in chosen])
                beyond = [least[C] for C in budgets if chosen[-1] < C]
                yield f"Porian, {'tuned' if 'tuned' in name else 'untuned'}", runs, np.array(beyond)


def losses(data: Path) -> None:
    """Print, by organisation, errors near, farther and far, and how often intervals hold."""
    inside, errors = defaultdict(list), defaultdict(list)
    for name, runs, larger in held_out(data):
        N, D, L, C = runs.T
        own, held = posterior_of_runs(N, D, C, L), []
        for n, d, loss in larger:
            C_there = own.flops(n, d)
            value, between, _ = expected_loss(n, d, own.towards(C_there))
            assert value is not None and between is not None
            held.append(between[0] <= loss <= between[1])
            half = (between[1] - between[0]) / 2 / value
            errors[name].append((np.log(C_there / own.largest), value / loss - 1, half))
        inside[name].append(np.mean(held))
    names = ("inside", *(f"{'beyond' if low else 'within'} e^{low or REACHES[0]:g}" for low in (0, *REACHES)))
    print(f"{'':18}{names[0]:>8}" + "".join(f"{name:>26}" for name in names[1:]) + "   median error, |error|, ± 80%")
    for name, rows in errors.items():
        far, off, half = np.array(rows).T
        line = f"{name:18}{np.mean(inside[name]):>8.2f}"
        for low, high in zip((-np.inf, *REACHES), (*REACHES, np.inf), strict=True):
            part = (low <= far) & (far < high)
            said = "–"  # no run lies so far
            if part.any():
                said = f"{np.median(off[part]):+.2%}, {np.median(np.abs(off[part])):.2%}, {np.median(half[part]):.1%}"
            line += f"{said:>26}"
        print(line, flush=True)


def main() -> None:
    """Print medians and 90% points, of all sweeps and of those with tuned learning rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the public runs")
    parser.add_argument("--losses", action="store_true", help="of losses, not of sizes")
    options = parser.parse_args()
    if options.losses:
        losses(options.data)
        return
    found = sweeps(options.data / SWEEPS)
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
