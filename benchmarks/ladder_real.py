"""By how much a law fitted to the lower budgets of public runs misses the loss of higher ones, per e-fold of compute.

    python benchmarks/ladder_real.py --data ../shared/data

Hoffmann et al. 2022 (Besiroglu et al. 2024's 245 points), Gadre et al. 2024, Porian et al. 2024; 5 to 200 tokens
per parameter. `isoflop.fit.posterior` has what came of it.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoflop.fit.posterior import posterior_of_runs

Array = NDArray[np.float64]
FILES = {
    "Hoffmann": ("chinchilla_245.csv", ("N", "tokens", "loss"), None),
    "Gadre": ("gadre_rpj.csv", ("N", "D", "loss_c4"), None),
    "Porian": ("porian_refinedweb.csv", ("N", "D", "loss"), "config"),
}
CUTS = (0.15, 0.3, 0.5, 0.7)


def tables(path: Path, names: tuple[str, ...], by: str | None) -> Iterator[tuple[str, Array]]:
    """N, D and loss [runs, 3] of a file's runs, by the values of a column."""
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if float(row[names[2]]) < 7]
    for value in sorted({row[by] for row in rows}) if by else [""]:
        table = np.array([[float(row[name]) for name in names] for row in rows if by is None or row[by] == value])
        ratio = table[:, 1] / table[:, 0]
        yield value, table[(ratio >= 5) & (ratio <= 200)]


def main() -> None:
    """Print by cut: reach and median miss of ln L, per e-fold."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    folder = parser.parse_args().data
    for source, (file, names, by) in FILES.items():
        for value, table in tables(folder / file, names, by):
            N, D, loss = table.T
            C = 6 * N * D
            for cut in np.quantile(C, CUTS):
                low, high = cut >= C, 8 * cut <= C
                if low.sum() < 9 or high.sum() < 2:
                    continue
                found = posterior_of_runs(N[low], D[low], C[low], loss[low])
                miss = [np.log(at) - np.median(found.losses(n, d)) for n, d, at in table[high]]
                reach = float(np.median(np.log(C[high] / C[low].max())))
                print(
                    f"{source:9}{value:40}{low.sum():>4} runs to {cut:.1e} FLOPs, × {np.exp(reach):>6.0f}: "
                    f"{np.median(miss):+.3f}, {np.median(miss) / reach:+.4f} per e-fold"
                )


if __name__ == "__main__":
    main()
