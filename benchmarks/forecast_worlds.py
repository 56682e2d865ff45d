"""Forecasts of planted runs whose kinds the forecast does not assume, each with its end known.

    OMP_NUM_THREADS=1 python benchmarks/forecast_worlds.py [--runs 40] [--kinds NAME ...] [--seed 7]

Sizes, batches, lengths, plans, rates, noises and logging intervals are drawn wide. At 25, 50 and 75%: the share of runs
with a forecast, the share of their 80% intervals that held the end, the medians of half-width and error in % of the
loss. What `late` kinds do comes after the look, mostly: no interval can hold it, and nothing before it warns.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from rich.console import Console
from rich.table import Table

from isoflop.arrays import Array
from isoflop.forecast import DEFAULT_PRIORS, Kernel, LossCurve, LrPlan, falls, path
from isoflop.forecast.backtest import FRACTIONS, replay

Rng = np.random.Generator
Places = tuple[float, float]
"""Parts of the run between which something happens."""
EARLY, LATE = (0.03, 0.2), (0.3, 0.9)


@dataclass(frozen=True)
class World:
    """A run to be: E + A·(x/end)^−α − C·F, as the forecast assumes, and what else a kind makes of it."""

    plan: LrPlan
    N: float
    batch: float
    noise: float  # standard deviation of one step's loss, nats
    every: int  # steps between logged losses
    E: float
    A: float
    alpha: float
    C: float
    kernel: Kernel

    @property
    def total(self) -> int:
        return self.plan.total_steps

    @property
    def steps(self) -> Array:
        return np.arange(1.0, self.total + 1)

    def decay(self, steps: Array) -> Array:
        """A·(x/end)^−α."""
        road = path(self.plan, self.plan.warmup_steps, float(self.total))
        return self.A * (road.x(steps) / road.effective[-1]) ** -self.alpha

    def gained(self) -> Array:
        """C·F at each step."""
        road = path(self.plan, self.plan.warmup_steps, float(self.total))
        return self.C * falls(road, (self.kernel,), self.steps)[0]

    def curve(self) -> Array:
        """The noise-free loss of each step."""
        return self.E + self.decay(self.steps) - self.gained()


def log_uniform(rng: Rng, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def plan_of(rng: Rng, total: int, peak: float) -> LrPlan:
    """A schedule as people use them."""
    warmup = int(total * rng.choice([0.01, 0.03, 0.05, 0.1]))
    decay = max(int(total * rng.uniform(0.1, 0.3)), 1)
    plans = (
        LrPlan.cosine(total, peak, warmup),
        LrPlan.cosine(total, peak, warmup, 0.0),
        LrPlan.linear(total, peak, warmup),
        LrPlan.wsd(total, peak, warmup, decay),
        LrPlan.constant(total, peak, warmup),
    )
    return plans[rng.integers(len(plans))]


def world(rng: Rng, least: float = 2e3, most: float = 5e4) -> World:
    """A language model's pretraining by the priors that ship, in so many steps."""
    total, N, peak = int(log_uniform(rng, least, most)), log_uniform(rng, 2e7, 2e9), log_uniform(rng, 1e-4, 3e-3)
    batch = log_uniform(rng, 3e4, 1e6)
    lines = (DEFAULT_PRIORS.alpha, DEFAULT_PRIORS.amplitude, DEFAULT_PRIORS.gain)
    alpha, A, C = (math.exp(rng.normal(*line.at((N, batch, peak, total * batch)))) for line in lines)
    return World(
        plan_of(rng, total, peak),
        N,
        batch,
        noise=0.045 * math.sqrt(524_288 / batch) * log_uniform(rng, 0.6, 1.8),
        every=max(1, int(total / log_uniform(rng, 100, 1000))),
        E=rng.uniform(1.8, 3.2),
        A=A,
        alpha=alpha,
        C=C,
        kernel=Kernel(rng.uniform(0.5, 0.9), log_uniform(rng, 50, 200)),
    )


def logged(rng: Rng, world: World, clean: Array, noise: Array | None = None, end: float | None = None) -> LossCurve:
    """The record: means over `every` steps; its end is that of the noise-free curve, over a hundredth of the run."""
    noise = world.noise * rng.normal(size=world.total) if noise is None else noise
    whole = world.total // world.every * world.every
    steps = world.steps[:whole].reshape(-1, world.every)[:, -1]
    return LossCurve(
        steps,
        steps * world.batch,
        world.plan.at(steps),
        (clean + noise)[:whole].reshape(-1, world.every).mean(1),
        world.plan,
        world.N,
        world.batch,
        count=np.full(len(steps), float(world.every)),
        final_loss=float(clean[-max(world.total // 100, 1) :].mean()) if end is None else end,
    )


def assumed(rng: Rng, least: float = 2e3, most: float = 5e4) -> LossCurve:
    w = world(rng, least, most)
    return logged(rng, w, w.curve())


def exponential(rng: Rng) -> LossCurve:
    """The first nats are lost exponentially, over 2 to 20% of the run."""
    w = world(rng)
    height, time = rng.uniform(0.5, 4), rng.uniform(0.02, 0.2) * w.total
    return logged(rng, w, w.curve() + height * np.exp(-w.steps / time))


def short_exponential(rng: Rng) -> LossCurve:
    """200 to 2,000 steps from ln V on."""
    w = world(rng, 200, 2000)
    start, time, end = rng.uniform(8, 11), rng.uniform(0.05, 0.35) * w.total, rng.uniform(3, 6)
    slow = rng.uniform(0.1, 0.6) * (w.steps / w.total + 0.02) ** -0.4
    return logged(rng, w, end + slow + (start - end) * np.exp(-w.steps / time) - w.gained())


def broken(rng: Rng, places: Places) -> LossCurve:
    """A smoothly broken power law (Caballero et al. 2022, arXiv:2210.14891): another exponent beyond a place."""
    w = world(rng)
    at, ratio, sharp = log_uniform(rng, *places) * w.total, log_uniform(rng, 0.4, 2.5), rng.uniform(0.1, 0.5)
    bend = (1 + (w.steps / at) ** (1 / sharp)) ** (-w.alpha * (ratio - 1) * sharp)
    return logged(rng, w, w.E + w.A * (w.steps / w.total) ** -w.alpha * bend - w.gained())


def emergence(rng: Rng, places: Places) -> LossCurve:
    """A drop of 2 to 15% of the loss within a part of an e-fold of steps."""
    w = world(rng)
    at, drop, wide = rng.uniform(*places) * w.total, rng.uniform(0.02, 0.15), rng.uniform(0.05, 0.3)
    return logged(rng, w, w.curve() - drop * w.E / (1 + np.exp(-np.log(w.steps / at) / wide)))


def data_mix(rng: Rng, places: Places) -> LossCurve:
    """Other data from a step on: another level and slope."""
    w = world(rng)
    at, level, slope = rng.uniform(*places) * w.total, rng.uniform(-0.06, 0.06), log_uniform(rng, 0.7, 1.4)
    there = w.decay(np.array([at]))[0] * (np.maximum(w.steps, at) / at) ** (-w.alpha * slope)
    return logged(rng, w, np.where(w.steps < at, w.curve(), w.E * (1 + level) + there - w.gained()))


def batch_ramp(rng: Rng, places: Places) -> LossCurve:
    """The batch doubles two or three times; the loss follows tokens, noise falls."""
    w = world(rng)
    batch = w.batch * 2.0 ** np.searchsorted(np.sort(rng.uniform(*places, rng.integers(2, 4))) * w.total, w.steps)
    tokens = np.cumsum(batch)
    noise = w.noise * np.sqrt(w.batch / batch) * rng.normal(size=w.total)
    run = logged(rng, w, w.E + w.A * (tokens / tokens[-1]) ** -w.alpha - w.gained(), noise)
    return replace(run, tokens=np.interp(run.steps, w.steps, tokens), batch_tokens=None)


def waves(rng: Rng, shape: Callable[[Array], Array]) -> LossCurve:
    """A rate of a shape of its own, from parts of the run to parts of the peak."""
    w = world(rng)
    knots = np.linspace(0, w.total, 257)
    w = replace(w, plan=LrPlan(knots, w.plan.peak * np.clip(shape(knots / w.total), 0, 1)))
    return logged(rng, w, w.curve())


def rewarmed(rng: Rng) -> LossCurve:
    """The rate falls, rises again, and falls to 0."""
    at, to = rng.uniform(0.3, 0.7), rng.uniform(0.1, 1)
    rates = [0, 1, rng.uniform(0.05, 0.9) * to, to, 0]
    return waves(rng, lambda part: np.interp(part, [0, 0.02, at, at + 0.03, 1], rates))


def cyclic(rng: Rng) -> LossCurve:
    n, depth = rng.integers(3, 12), rng.uniform(0.05, 0.9)
    return waves(rng, lambda part: 1 - depth * np.abs((n * part) % 1 * 2 - 1))


def noise_moves(rng: Rng) -> LossCurve:
    """Noise that shrinks or grows."""
    w, power = world(rng), rng.choice([-0.5, -0.3, 0.3, 0.5])
    return logged(rng, w, w.curve(), 2 * w.noise * (w.steps / w.total) ** power * rng.normal(size=w.total))


def heavy_tails(rng: Rng) -> LossCurve:
    """Student t noise of 1.5 degrees of freedom, upwards more than down, and spikes that take steps to heal."""
    w = world(rng)
    noise = w.noise * rng.standard_t(1.5, size=w.total)
    noise *= np.where(noise > 0, 1.5, 0.7)
    for at in rng.integers(0, w.total, 4):
        noise[at:] += rng.uniform(0.2, 2) * np.exp(-np.arange(w.total - at) / (0.002 * w.total + 1))
    noise = np.clip(noise, -1, 8)
    return logged(rng, w, w.curve(), noise - noise.mean())


def averaged(keep: float, values: Array, last: float) -> Array:
    out = np.empty(len(values))
    for i, each in enumerate(values):
        out[i] = last = keep * last + (1 - keep) * each
    return out


def red_noise(rng: Rng) -> LossCurve:
    """Noise that stays for a hundredth to a twentieth of the run: data in an order."""
    w = world(rng)
    keep = math.exp(-1 / (rng.uniform(0.01, 0.05) * w.total))
    red = averaged(keep, rng.normal(size=w.total), 0.0) * math.sqrt((1 + keep) / (1 - keep))
    return logged(rng, w, w.curve(), rng.uniform(0.003, 0.02) * w.E * red + w.noise * rng.normal(size=w.total))


def epochs(rng: Rng) -> LossCurve:
    """A fall at the begin of each epoch."""
    w, n, drop = world(rng), rng.integers(3, 9), rng.uniform(0.005, 0.06)
    return logged(rng, w, w.curve() - drop * w.E * np.floor(n * (w.steps - 1) / w.total) ** rng.uniform(0.5, 1.0))


def averages(rng: Rng, epochs: tuple[int, int] | None) -> LossCurve:
    """What is logged is the mean since the start of each of so many epochs; None: an exponential average."""
    w = world(rng)
    height, time = rng.uniform(0.5, 4), rng.uniform(0.02, 0.1) * w.total
    loss = w.curve() + height * np.exp(-w.steps / time) + w.noise * rng.normal(size=w.total)
    keep = 1 - 1 / (rng.uniform(0.01, 0.05) * w.total)
    if epochs is None:
        return logged(rng, w, averaged(keep, loss, float(loss[0])), np.zeros(w.total))
    n = rng.integers(*epochs, endpoint=True)
    begun = np.floor(n * (w.steps - 1) / w.total)  # epochs before this one
    before = np.floor(begun * w.total / n + 1e-9).astype(int)  # steps before it
    total = np.append(0.0, np.cumsum(loss))
    mean = (total[1:] - total[before]) / (w.steps - before)
    run = logged(rng, w, w.curve(), np.zeros(w.total))
    return replace(run, loss=mean[run.steps.astype(int) - 1], count=None)


def few_points(rng: Rng) -> LossCurve:
    """The loss of one step every 500."""
    w = replace(world(rng, 5e3, 3e4), every=500)
    run = logged(rng, w, w.curve())
    return replace(run, loss=run.loss + w.noise * rng.normal(size=len(run.steps)), count=None)


def drifting(rng: Rng, places: Places) -> LossCurve:
    """The level drifts by 1 to 5% to the end: longer sequences, a regulariser that is phased in."""
    w, by, begin = world(rng), rng.uniform(0.01, 0.05) * rng.choice([-1, 1]), rng.uniform(*places)
    return logged(rng, w, w.curve() + by * w.E * np.clip((w.steps / w.total - begin) / (1 - begin), 0, 1))


def logarithmic(rng: Rng) -> LossCurve:
    """No limit: a − b·ln t."""
    w = world(rng)
    return logged(rng, w, w.E + 2 - rng.uniform(0.03, 0.3) * np.log(w.steps) - w.gained())


def offset(rng: Rng) -> LossCurve:
    """A power law in t + t0, t0 2 to 50% of the run."""
    w = world(rng)
    zero, alpha = log_uniform(rng, 0.02, 0.5) * w.total, rng.uniform(0.3, 2)
    fall = ((w.steps + zero) / (w.total + zero)) ** -alpha
    return logged(rng, w, w.E + rng.uniform(0.1, 0.6) * fall - w.gained())


def gains(rng: Rng) -> LossCurve:
    """The decay gives a tenth to three times what it gives in language models; at once, or late."""
    w = world(rng)
    kernel = Kernel(rng.uniform(0.3, 1.5), log_uniform(rng, 1, 2000))
    w = replace(w, C=w.C * log_uniform(rng, 0.1, 3), kernel=kernel)
    return logged(rng, w, w.curve())


def fine_tuning(rng: Rng) -> LossCurve:
    """From 1 to 3 nats to .02 to 1, in part at once and in part epoch by epoch."""
    w = world(rng, 200, 5000)
    start, end, stairs, n = rng.uniform(1, 3), log_uniform(rng, 0.02, 1), rng.uniform(0, 0.5), rng.integers(1, 5)
    fast = (1 - stairs) * np.exp(-w.steps / (rng.uniform(0.02, 0.3) * w.total))
    clean = end + (start - end) * (fast + stairs * (1 - np.floor(n * (w.steps - 1) / w.total) / n))
    return logged(rng, w, clean, rng.uniform(0.03, 0.3) * clean * rng.normal(size=w.total))


def images(rng: Rng) -> LossCurve:
    """Classification from ln classes with SGD, a rate cut tenfold twice or a cosine to 0."""
    w = world(rng, 2e3, 1e5)
    first, second = np.sort(rng.uniform(0.3, 0.9, 2)) * w.total
    stairs = LrPlan(np.array([0, first, first + 1, second + 2, second + 3, w.total]), np.repeat([0.1, 0.01, 0.001], 2))
    plan = stairs if rng.random() < 0.5 else LrPlan.cosine(w.total, 0.1, 0, 0.0)
    w = replace(w, plan=plan, N=log_uniform(rng, 3e5, 1e8), batch=float(rng.choice([128, 256, 1024])))
    high, end = math.log(rng.choice([10, 100, 1000])), log_uniform(rng, 0.005, 1.2)
    slow = (1 + w.steps / (rng.uniform(0.005, 0.05) * w.total)) ** -rng.uniform(0.3, 1.0)
    clean = end + (high - end) * slow * (0.3 + 0.7 * (plan.at(w.steps) / plan.peak) ** 0.5)
    return replace(logged(rng, w, clean, 0.3 * clean * rng.normal(size=w.total)), optimizer="SGD")


def squares(rng: Rng) -> LossCurve:
    """A mean squared error: a power law or a stretched exponential to next to nothing, noise in proportion."""
    w = world(rng, 500, 5e4)
    part = w.steps / (log_uniform(rng, 1e-3, 0.1) * w.total)
    fall = (1 + part) ** -rng.uniform(0.3, 2) if rng.random() < 0.5 else np.exp(-(part ** rng.uniform(0.3, 0.6)))
    clean = log_uniform(rng, 1e-3, 3) * (fall + log_uniform(rng, 1e-4, 0.3))
    return logged(rng, replace(w, N=log_uniform(rng, 1e4, 1e8)), clean, 0.3 * clean * rng.normal(size=w.total))


def tiny(rng: Rng) -> LossCurve:
    """A character model of 10⁴ to 10⁷ parameters from ln 65: frequencies at once, then the rest."""
    w = world(rng, 500, 2e4)
    w = replace(w, N=log_uniform(rng, 1e4, 1e7), batch=log_uniform(rng, 1e3, 3e4), noise=rng.uniform(0.03, 0.2))
    end, slow = rng.uniform(1.0, 1.9), rng.uniform(0.02, 0.2) * w.total
    rest = (2.6 - end) * (1 + w.steps / slow) ** -rng.uniform(0.6, 2)
    return logged(rng, w, end + 1.57 * np.exp(-w.steps / rng.uniform(5, 50)) + rest - 0.3 * w.gained())


def overfit(rng: Rng, places: Places) -> LossCurve:
    """An evaluation's loss that falls, turns and rises."""
    w = replace(world(rng, 1e3, 2e4), noise=0.01)
    turn, by = rng.uniform(*places), rng.uniform(0.02, 0.3)
    run = logged(rng, w, w.curve() + by * w.E * np.maximum(w.steps / w.total - turn, 0) ** 1.5)
    return replace(run, loss_name="eval/val", count=None)


PLACED = {"broken": broken, "emergence": emergence, "data mix": data_mix, "batch ramp": batch_ramp}
PLACED |= {"level drifts": drifting, "overfit": overfit}
KINDS: dict[str, Callable[[Rng], LossCurve]] = {
    "as assumed": assumed,
    "short": partial(assumed, least=200, most=2000),
    "exponential start": exponential,
    "short from ln V": short_exponential,
    **{f"{name} early": partial(kind, places=EARLY) for name, kind in PLACED.items()},
    "rewarmed": rewarmed,
    "cyclic": cyclic,
    "noise moves": noise_moves,
    "heavy tails": heavy_tails,
    "red noise": red_noise,
    "epochs": epochs,
    "mean since start": partial(averages, epochs=(1, 1)),
    "mean since epoch": partial(averages, epochs=(2, 12)),
    "mean since short epoch": partial(averages, epochs=(20, 100)),
    "exponential mean": partial(averages, epochs=None),
    "few points": few_points,
    "logarithmic": logarithmic,
    "offset": offset,
    "other gains": gains,
    "fine-tuning": fine_tuning,
    "images": images,
    "squared error": squares,
    "tiny": tiny,
    **{f"late {name}": partial(kind, places=LATE) for name, kind in PLACED.items()},
}


def row(kind: Callable[[Rng], LossCurve], runs: int, seed: int) -> list[str]:
    """Of one kind: a cell for each fraction."""
    made = [kind(np.random.default_rng([seed, i])) for i in range(runs)]
    replays = [(run.final, replay(run, "isoflop", FRACTIONS, DEFAULT_PRIORS)) for run in made]
    cells = []
    for part in FRACTIONS:
        found = [(end, f) for end, each in replays if (f := each[part]) is not None]
        if not found:
            cells.append("0")
            continue
        held = np.mean([f.low <= end <= f.high for end, f in found])
        half = np.median([100 * (f.high / f.loss - 1) for _, f in found])
        error = np.median([100 * abs(f.loss / end - 1) for end, f in found])
        cells.append(f"{len(found) / runs:.2f} {held:.2f} ±{half:.2f} {error:.2f}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40, help="of each kind (40)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    table = Table("kind", *(f"{part:.0%}: spoke cov ±half error" for part in FRACTIONS))
    for name in options.kinds:
        table.add_row(name, *row(KINDS[name], options.runs, options.seed))
    Console().print(table)


if __name__ == "__main__":
    main()
