"""Planned ladders against even grids of the same spend and number of runs, on planted laws that no fit knows.

    python benchmarks/ladder.py            # 200 laws at each of three scales: about ten minutes of one core
    python benchmarks/ladder.py --quick    # 16

Every ladder is simulated run by run and fitted as `isoflop ladder fit` does. The laws are not the design's: exponents
uniform in .26–.46, the optimum's tokens per parameter log-uniform in 6–70, terms that do not simply add, exponents that
drift, shapes that are better or worse than their size, rates that miss far from the optimum, and outliers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isoflop.fit.drifting_law import BudgetLine
from isoflop.fit.posterior import posterior_of_runs
from isoflop.ladder.design import Bounds, Problem, Rung, even_grid
from isoflop.ladder.planning import designed, ladder_problem
from isoflop.ladder.sizes import family_of
from isoflop.laws.recipes import FEWEST_STEPS, all_steps, batch_rule

Array = NDArray[np.float64]
LEVEL = 0.9


@dataclass(frozen=True)
class World:
    """A law that training follows, noise apart: terms A(N) and B(D) about (N0, D0), mixed with exponent rho."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    drift: tuple[float, float]
    rho: float
    miss: tuple[float, float]
    N0: float
    D0: float
    shape_sd: float
    noise: float

    def loss(self, N: Array, D: Array) -> Array:
        """Nats per token of a run without noise."""
        x, y = np.log(N / self.N0), np.log(D / self.D0)
        A = self.A * np.exp(-self.alpha * x - self.drift[0] * x * x / 2)
        B = self.B * np.exp(-self.beta * y - self.drift[1] * y * y / 2)
        mixed = (A ** (1 / self.rho) + B ** (1 / self.rho)) ** self.rho
        off = 0.5 * np.log(D / N / 20)
        rate = np.where(off > 0, self.miss[0], self.miss[1]) * (off / np.log(4)) ** 2
        return np.asarray((self.E + mixed) * np.exp(rate))

    def best(self, line: BudgetLine) -> float:
        """N of the least loss on a budget's line."""
        N = line.N * np.exp(np.linspace(-4, 4, 16001))
        return float(N[self.loss(N, line.tokens(N)).argmin()])

    def waste(self, N: float, line: BudgetLine) -> float:
        """Loss at a size over the least one, relative, less 1."""
        at = np.array([N, self.best(line)])
        own, least = self.loss(at, line.tokens(at))
        return float(own / least - 1)


def world(rng: np.random.Generator, top: float) -> World:
    """A law about a budget of `top` FLOPs."""
    alpha, beta = rng.uniform(0.26, 0.46, 2)
    ratio = float(np.exp(rng.uniform(np.log(6), np.log(70))))
    N0 = float(np.sqrt(top / 6 / ratio))
    level, share = 3.0, rng.uniform(0.2, 0.65)
    rho = float(np.exp(rng.uniform(-0.15, 0.15)))
    # α·A^(1/ρ) = β·B^(1/ρ) at the optimum
    b = (alpha / beta) ** rho
    A = share * level / (1 + b ** (1 / rho)) ** rho
    return World(
        (1 - share) * level,
        A,
        A * b,
        alpha,
        beta,
        tuple(rng.uniform(-0.01, 0.01, 2)),
        rho,
        tuple(np.abs(rng.normal(0, 0.002, 2))),
        N0,
        ratio * N0,
        shape_sd=rng.uniform(0, 0.003),
        noise=float(np.exp(rng.uniform(np.log(0.0015), np.log(0.005)))),
    )


def trained(w: World, rungs: Sequence[Rung], seed: int) -> tuple[Array, Array, Array, Array]:
    """N, D, C and final losses of a ladder's runs; one in twenty is an outlier."""
    rng = np.random.default_rng(seed)
    N = np.array([size.N for rung in rungs for size in rung.sizes])
    D = np.array([rung.budget / size.flops_per_token for rung in rungs for size in rung.sizes])
    C = np.array([rung.budget for rung in rungs for _ in rung.sizes])
    shapes = {size: w.shape_sd * rng.normal() for size in sorted(set(N))}
    noise = w.noise * rng.normal(size=len(N)) * np.where(rng.random(len(N)) < 0.05, 4, 1)
    return N, D, C, w.loss(N, D) * np.exp(noise + np.array([shapes[size] for size in N]))


@dataclass(frozen=True)
class Score:
    """Of one ladder in one world: width of N_opt's interval in ln N, coverage, |error| in ln N, excess loss."""

    width: float
    covers: bool
    error: float
    excess: float
    loss_covers: bool


def scored(w: World, problem: Problem, rungs: Sequence[Rung], seed: int) -> Score:
    """Train, fit, compare with the truth."""
    N, D, C, loss = trained(w, rungs, seed)
    posterior = posterior_of_runs(N, D, C, loss)
    sizes = posterior.sizes(problem.target)
    low, middle, high = np.quantile(sizes, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    truth = float(np.log(w.best(problem.target)))
    chosen = float(np.exp(middle))
    at = np.array([chosen])
    there = w.loss(at, problem.target.tokens(at))[0]
    run = there * np.exp(w.noise * np.random.default_rng(seed + 1).normal())
    below, above = np.quantile(posterior.run_losses(chosen, float(problem.target.tokens(chosen))), [0.05, 0.95])
    return Score(
        float(high - low),
        bool(low <= truth <= high),
        abs(float(middle) - truth),
        w.waste(chosen, problem.target),
        bool(below <= np.log(run) <= above),
    )


SCALES: dict[str, tuple[str, float, float, tuple[float, float] | None, int | None, int | None, int]] = {
    "GPT-2, 3% of 1e21": ("gpt2", 1e21, 3e19, None, None, None, 16),
    "Llama, 1% of 1e23": ("llama", 1e23, 1e21, None, None, None, 16),
    "bytes, 40% of 2e13": ("gpt2", 2e13, 8e12, (20e3, 1e6), 256, 128, 12),
}


def designs_of(scale: str) -> tuple[Problem, dict[str, tuple[Rung, ...]]]:
    """The problem of a scale and its designs: "planned", with branches, and even grids of as many runs."""
    model, flops, spend, sizes, vocab, length, most = SCALES[scale]
    family = family_of(model, vocab, length)
    least = all_steps(FEWEST_STEPS) * family.sequence_length
    bounds = Bounds(runs=(9, most), sizes=sizes, tokens=(least, float("inf")))
    problem = ladder_problem(family, flops, spend, bounds)
    planned = designed(problem, batch_rule("auto"))
    count = sum(len(rung.sizes) for rung in planned)
    found = {
        "planned": planned,
        "branches": designed(replace(problem, branches=True), batch_rule("auto")),
        "even": even_grid(problem, count),
        "even, narrow": even_grid(problem, count, width=0.6),
        "even, 6 apart": even_grid(problem, count, ratio=6.0),
    }
    return problem, {name: rungs for name, rungs in found.items() if rungs is not None}


def compare(scale: str, laws: int, seed: int = 0, designs: Sequence[str] | None = None) -> dict[str, list[Score]]:
    """Scores by design."""
    problem, known = designs_of(scale)
    rng = np.random.default_rng(seed)
    worlds = [world(rng, known["planned"][-1].budget) for _ in range(laws)]
    return {
        name: [scored(w, problem, rungs, seed=1000 * seed + i) for i, w in enumerate(worlds)]
        for name, rungs in known.items()
        if designs is None or name in designs
    }


def report(scale: str, found: dict[str, list[Score]]) -> None:
    planned = np.array([score.width for score in found["planned"]])
    print(f"\n{scale}: {len(planned)} laws, {LEVEL:.0%} intervals")
    print(f"{'design':16}{'× or ÷':>9}{'ratio':>8}{'covers':>9}{'|error|':>9}{'excess':>9}{'9 in 10':>9}{'loss':>8}")
    for name, scores in found.items():
        width = np.array([score.width for score in scores])
        excess = np.array([score.excess for score in scores])
        print(
            f"{name:16}{np.exp(np.median(width) / 2):>9.2f}{np.median(width / planned):>8.2f}"
            f"{np.mean([score.covers for score in scores]):>9.1%}{np.median([score.error for score in scores]):>9.3f}"
            f"{np.median(excess):>9.3%}{np.quantile(excess, 0.9):>9.3%}"
            f"{np.mean([score.loss_covers for score in scores]):>8.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--laws", type=int)
    parser.add_argument("--scale", choices=list(SCALES))
    parser.add_argument("--designs", nargs="+", help="of planned; branches; even; even, narrow; …")
    options = parser.parse_args()
    laws = options.laws or (16 if options.quick else 200)
    for scale in [options.scale] if options.scale else SCALES:
        report(scale, compare(scale, laws, designs=options.designs))


if __name__ == "__main__":
    main()
