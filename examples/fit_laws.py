"""From small runs to the size of a large one: fit a law, plan a budget, compare options. No training, no torch.

    python examples/fit_laws.py

The runs are made up from a known law with noise, as 24 small models of four budgets would give them, so that what
comes out can be checked. With runs of your own: isoflop fit runs.csv, isoflop plan --flops 1e21 --runs runs.csv.
"""

from __future__ import annotations

import csv

import numpy as np
from tiny_gpt import fresh_folder

TRUE = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


def main() -> None:
    """Write runs.csv, fit it, and ask what to do with 1e21 FLOPs."""
    from isoflop.fit.law_fit import fit_law
    from isoflop.fit.options import compare_options
    from isoflop.fit.plan import plan
    from isoflop.laws.forms import hoffmann_loss
    from isoflop.laws.frontier import optimal_allocation

    folder = fresh_folder("fit_laws")
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    budgets = np.repeat([3e17, 3e18, 3e19, 3e20], 6)
    N = np.sqrt(budgets / 6 / 20) * np.tile(np.geomspace(0.3, 3, 6), 4)
    D = budgets / (6 * N)
    loss = hoffmann_loss(N, D, **TRUE) * np.exp(rng.normal(0, 0.002, N.size))
    with (folder / "runs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("N", "D", "loss"), *zip(N, D, loss, strict=True)])

    fitted = fit_law("hoffmann", {"N": N, "D": D, "loss": loss})
    print(f"{fitted}\n\nthe truth: {TRUE}\n")
    print(f"1e21 FLOPs by this law:\n{optimal_allocation(fitted.law, 1e21)}\n")
    print(f"by the runs' minima and what is known of others:\n{plan(1e21, own={'N': N, 'D': D, 'loss': loss})}\n")
    print(compare_options(["1B:160B", "3B:55B", "8B:20B"], fitted.law))
    print(f"\nthe same from the shell: isoflop fit {folder / 'runs.csv'}")


if __name__ == "__main__":
    main()
