"""`isoflop ladder fit` on worlds whose form neither the fit nor `benchmarks/ladder.py` has: how often intervals hold.

    python benchmarks/ladder_misfits.py                # 50 worlds, ten of each kind, at each of two scales
    python benchmarks/ladder_misfits.py --worlds 200

- bend: N_opt's exponent changes along the frontier, by 0 ± .01 per e-fold of compute (`fit.frontier.bend`): the
  tuned sweeps of Porian et al. 2024 have +.013 ± .002 and +.016 ± .003, with parabolas through seven sizes a budget;
- broken: the exponent of one term changes by .03 to .1 around a size between the ladder and the target;
- noise: runs of the smallest budget scatter three times as much as those of the largest, with heavy tails;
- count: the law follows a count that holds a part of the head alone, the ladder's N has all of it;
- rate: losses grow by 1 to 2% from the smallest to the largest model, for their rate suits them less and less.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from ladder import LEVEL, SCALES, Array, world
from numpy.typing import NDArray

from isoflop.fit.posterior import posterior_of_runs
from isoflop.ladder.design import Problem, Rung, best_design, even_grid
from isoflop.ladder.planning import ladder_problem
from isoflop.ladder.sizes import family_of, size_grid

Loss = Callable[[Array, Array], Array]
KINDS = ("bend", "broken", "noise", "count", "rate")


def misfit(kind: str, rng: np.random.Generator, rungs: tuple[Rung, ...], head: float) -> Loss:
    """Nats per token of a run without noise.

    Args:
        kind: of `KINDS`.
        rng: for the world's constants.
        rungs: of the ladder.
        head: parameters of the head over √N: what a head of the family's vocabulary has, as widths go with N^(1/2).
    """
    top = rungs[-1].budget
    w = world(rng, top)
    smallest, largest = (f(size.N for rung in rungs for size in rung.sizes) for f in (min, max))
    if kind == "bend":
        a, curvature = w.beta / (w.alpha + w.beta), 0.01 * rng.normal()

        def bent(N: Array, D: Array) -> Array:
            c = np.log(N * D / (w.N0 * w.D0))
            u = np.log(N / w.N0) - a * c - curvature * c * c / 2  # ln N over the bent optimum
            above = (w.A + w.B) * np.exp(-a * w.alpha * c)  # along the frontier it falls as the law's
            profile = (w.beta * np.exp(-w.alpha * u) + w.alpha * np.exp(w.beta * u)) / (w.alpha + w.beta)
            return np.asarray(w.E + above * profile)

        return bent
    if kind == "broken":
        at = w.N0 * np.exp(rng.uniform(0, 2))
        change, of_size = rng.choice([-1, 1]) * rng.uniform(0.03, 0.1), rng.random() < 0.5
        at = at if of_size else at * w.D0 / w.N0

        def broken(N: Array, D: Array) -> Array:
            x, y = np.log(N / w.N0), np.log(D / w.D0)
            bend = change * np.logaddexp(0, 2 * np.log((N if of_size else D) / at)) / 2
            a, b = (bend, 0.0) if of_size else (0.0, bend)
            return np.asarray(w.E + w.A * np.exp(-w.alpha * x - a) + w.B * np.exp(-w.beta * y - b))

        return broken
    if kind == "count":
        part = rng.uniform(0.3, 0.8)

        def counted(N: Array, D: Array) -> Array:
            return w.loss(N - (1 - part) * np.minimum(head * np.sqrt(N), 0.94 * N), D)

        return counted
    if kind == "rate":
        miss = rng.uniform(0.01, 0.02) / np.log(largest / smallest)
        return lambda N, D: np.asarray(w.loss(N, D) * (N / smallest) ** miss)
    return w.loss


def trained(kind: str, loss: Loss, rungs: tuple[Rung, ...], rng: np.random.Generator) -> tuple[Array, ...]:
    """N, D, C, final losses of the ladder's runs, and the noise of a run at the target last."""
    N = np.array([size.N for rung in rungs for size in rung.sizes])
    D = np.array([rung.budget / size.flops_per_token for rung in rungs for size in rung.sizes])
    C = np.array([rung.budget for rung in rungs for _ in rung.sizes])
    noise = float(np.exp(rng.uniform(np.log(0.0015), np.log(0.005))))
    if kind == "noise":
        grows = 3 ** (1 - np.log(C / C.min()) / np.log(C.max() / C.min()))
        scatter = noise * grows * rng.standard_t(3, len(N)) / np.sqrt(3)
    else:
        scatter = noise * rng.normal(size=len(N))
    return N, D, C, loss(N, D) * np.exp(scatter), np.array([noise * rng.normal()])


def scored(kind: str, problem: Problem, rungs: tuple[Rung, ...], head: float, seed: int) -> tuple[float, ...]:
    """Whether N_opt and a run's loss lie in their intervals, half the width and error in ln N, excess loss."""
    rng = np.random.default_rng(seed)
    loss = misfit(kind, rng, rungs, head)
    N, D, C, L, noise = trained(kind, loss, rungs, rng)
    posterior, line = posterior_of_runs(N, D, C, L), problem.target
    low, chosen, high = np.quantile(posterior.sizes(line), [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    grid = line.N * np.exp(np.linspace(-4, 4, 16001))
    along = loss(grid, line.tokens(grid))
    truth = float(np.log(grid[along.argmin()]))
    size = np.exp(np.array([chosen]))
    run = np.log(loss(size, line.tokens(size))[0]) + noise[0]
    below, above = np.quantile(posterior.run_losses(float(size[0]), float(line.tokens(size)[0])), [0.05, 0.95])
    excess = float(loss(size, line.tokens(size))[0] / along.min() - 1)
    return low <= truth <= high, below <= run <= above, (high - low) / 2, abs(chosen - truth), excess


def compare(scale: str, worlds: int, design: str = "planned") -> dict[str, NDArray[np.float64]]:
    """Scores by kind [worlds, 5]."""
    model, flops, spend, sizes, vocab, length, most = SCALES[scale]
    family = family_of(model, vocab, length)
    problem = ladder_problem(family, flops, spend, runs=(9, most), sizes=sizes)
    rungs = best_design(problem)
    if design == "even":
        rungs = even_grid(problem, sum(len(rung.sizes) for rung in rungs)) or rungs
    shape = size_grid(family, rungs[-1].sizes[0].N / 2, rungs[-1].sizes[-1].N)[0]
    head = family.vocab_size * shape.width / np.sqrt(shape.N)
    return {
        kind: np.array([scored(kind, problem, rungs, head, 100_000 * k + i) for i in range(worlds)], dtype=float)
        for k, kind in enumerate(KINDS)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", type=int, default=50, help="at each scale, all kinds together")
    parser.add_argument("--scale", choices=list(SCALES))
    options = parser.parse_args()
    for scale in [options.scale] if options.scale else ("GPT-2, 3% of 1e21", "bytes, 40% of 2e13"):
        found = compare(scale, options.worlds // len(KINDS))
        print(f"\n{scale}: {LEVEL:.0%} intervals")
        print(f"{'world':10}{'worlds':>8}{'N_opt':>8}{'loss':>8}{'× or ÷':>9}{'|error|':>9}{'excess':>9}{'9 in 10':>9}")
        for kind, rows in (*found.items(), ("all", np.concatenate(list(found.values())))):
            print(
                f"{kind:10}{len(rows):>8}{rows[:, 0].mean():>8.1%}{rows[:, 1].mean():>8.1%}"
                f"{np.exp(np.median(rows[:, 2])):>9.2f}{np.median(rows[:, 3]):>9.3f}"
                f"{np.median(rows[:, 4]):>9.3%}{np.quantile(rows[:, 4], 0.9):>9.3%}"
            )


if __name__ == "__main__":
    main()
