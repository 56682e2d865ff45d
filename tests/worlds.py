"""Training runs simulated from a known law: what advice would be right is known too."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from isoflop.advice import Advice, Adviser, Batch, Reason, Situation
from isoflop.forecast import LrPlan, OnlineForecaster
from isoflop.laws import HOFFMANN, Law, waste_of
from isoflop.laws.forms import effective_amount
from isoflop.laws.recipes import RATES, blended
from isoflop.noise import Belief, combine
from isoflop.record import Task

LOG_STEPS = 60
PRIOR_SD, MODEL_SD = 0.5, 0.5
"""Of ln B_crit: published fits over D, and what the noise scale's model leaves open (as the advice is told)."""


@dataclass(frozen=True)
class World:
    """A law, a plan, a batch; `k` is N over the optimum at the planned compute.

    `worth_lasts` is R_D*, epochs over which repeated data lose their worth; `rate_off` the peak rate over the best.
    """

    law: Law
    k: float
    N: float
    D: float
    steps: int
    batch_over_critical: float
    log_critical: float
    anneal: float
    noise: float
    schedule: str
    optimizer: str = "adam"
    epochs: float = 1.0
    worth_lasts: float = 15.4
    rate_off: float = 1.0

    @property
    def waste(self) -> float:
        """Extra compute over what the final loss needs."""
        return float(waste_of(self.law, self.N, self.D).extra[0])

    @property
    def rate(self) -> float:
        """The peak."""
        run = {"N": self.N, "D": self.D, "C": 6 * self.N * self.D, "width": 768 * (self.N / 85e6) ** (1 / 3)}
        return self.rate_off * blended(RATES, run)

    def worth(self, D: float) -> float:
        """Of D tokens, in new ones."""
        return float(effective_amount(D, min(self.D / self.epochs, D), self.worth_lasts))

    def best_size(self, D: float) -> float:
        """N of least compute for the loss of this N on D tokens."""
        return float(waste_of(self.law, self.N, D).N[0])


KINDS = ("plain", "muon", "wsd", "repeated data", "rates off")
"""Of worlds: as `world` draws them; Muon's optima, which lie at 7 to 15 tokens per parameter; …"""


def world_of(kind: str, rng: np.random.Generator, at_optimum: bool = False) -> World:
    """A world of a kind; where nothing is wrong with it, data are repeated 4 times at most, and rates within 2."""
    w = world(rng, at_optimum, (7, 15) if kind == "muon" else (10, 60))
    if kind == "muon":
        return replace(w, optimizer="muon")
    if kind == "wsd":
        return replace(w, schedule="wsd")
    if kind == "repeated data":
        epochs = rng.uniform(1, 4) if at_optimum else math.exp(rng.uniform(0, math.log(100)))
        return replace(w, epochs=epochs, worth_lasts=15.4 * math.exp(0.4 * rng.normal()))
    if kind == "rates off":
        near, far = math.exp(rng.uniform(-math.log(2), math.log(2))), 10.0 ** rng.choice([-1, 1])
        return replace(w, rate_off=near if at_optimum else near * far)
    return w


def world(rng: np.random.Generator, at_optimum: bool = False, ratios: tuple[float, float] = (10, 60)) -> World:
    """D/N of the optimum log-uniform in `ratios`, N in 1e7–1e10, k in 1/8–8, batch .05–20 times critical."""
    alpha, beta = rng.uniform(0.28, 0.42, 2)
    ratio, N = np.exp(rng.uniform(np.log(ratios[0]), np.log(ratios[1]))), 10 ** rng.uniform(7, 10)
    k = 1.0 if at_optimum else float(np.exp(rng.uniform(-np.log(8), np.log(8))))
    best_N = N / k
    best_D = ratio * best_N
    reducible = rng.uniform(0.8, 2.0) * (best_N / 1e8) ** -0.15
    A, B = (
        reducible * share / (alpha + beta) * size**power
        for share, size, power in ((beta, best_N, alpha), (alpha, best_D, beta))
    )
    law = Law(HOFFMANN, {"E": rng.uniform(1.5, 2.0), "A": A, "B": B, "alpha": alpha, "beta": beta})
    D = best_D / k
    over = math.exp(rng.uniform(math.log(0.3), math.log(1.5)) if at_optimum else rng.uniform(np.log(0.05), np.log(20)))
    critical = math.log(critical_by_papers(D)) + PRIOR_SD * rng.normal()
    return World(
        law,
        k,
        N,
        D,
        steps=max(round(D / (over * math.exp(critical))), 600),
        batch_over_critical=over,
        log_critical=critical,
        anneal=rng.uniform(0.03, 0.12),
        noise=rng.uniform(0.003, 0.02),
        schedule=rng.choice(["cosine", "linear", "wsd"]),
    )


def critical_by_papers(D: float) -> float:
    """B_crit(D) in tokens, the geometric mean of the two published fits (NOISE_SCALE)."""
    return math.sqrt(16.9 * D**0.505 * 3.1 * D**0.608)


def plan_of(w: World) -> LrPlan:
    """1% of warm-up, then the schedule to (a tenth of) nothing."""
    warmup = max(w.steps // 100, 5)
    if w.schedule == "wsd":
        return LrPlan.wsd(w.steps, 1e-3, warmup, w.steps // 5)
    make = LrPlan.cosine if w.schedule == "cosine" else LrPlan.linear
    return make(w.steps, 1e-3, warmup)


def live_through(w: World, rng: np.random.Generator) -> list[Advice]:
    """Everything that is said over the run."""
    plan, adviser = plan_of(w), Adviser()
    measured = math.exp(w.log_critical + MODEL_SD * rng.normal()) / critical_by_papers(w.D)  # over the papers'
    per_step = w.D / w.steps
    batch = w.batch_over_critical * math.exp(w.log_critical)
    forecaster = OnlineForecaster(N=w.N, batch_tokens=per_step)
    constants = w.law.constants
    base = Situation(
        step=1,
        total_steps=w.steps,
        N=w.N,
        N_non_embedding=w.N,
        tokens_per_step=per_step,
        flops_per_token=6 * w.N,
        tokens=per_step,
        rates=plan,
        task=Task(optimizer=w.optimizer),
        unique_tokens=w.D / w.epochs if w.epochs > 1 else None,
        peak_rate=w.rate,
    )
    said = adviser.start(base)
    for step in np.unique(np.linspace(w.steps / 300, w.steps, 300).astype(int)):
        if step < plan.warmup_steps:
            continue
        D = step * per_step
        loss = (
            constants["E"]
            + constants["A"] / w.N ** constants["alpha"]
            + constants["B"] / w.worth(D) ** constants["beta"]
        )
        loss += w.anneal * float(plan.at(step)) / plan.peak + w.noise * rng.normal()
        forecaster.add(int(step), D, float(plan.at(step)), loss, max(w.steps // 300, 1))
        if step % max(w.steps // LOG_STEPS, 1) < w.steps / 300:
            known = Belief(measured * critical_by_papers(D), MODEL_SD), Belief(critical_by_papers(D), PRIOR_SD)
            seen = Batch(batch, combine(known), *known)  # B_crit grows with D: the world's is that of its end
            run = replace(base, step=int(step), tokens=D, loss=loss, seconds=step * 0.5, batch=seen)
            said += adviser.log(replace(run, forecast=forecaster.forecast(plan)), forecaster, speed=1000.0)
    return said


def right(w: World, advice: Advice) -> bool | None:
    """Whether the truth agrees; None: nothing was advised."""
    if advice.reason is Reason.FRONTIER:
        return None
    D = advice.step / w.steps * w.D
    verdicts = {
        Reason.TOO_LARGE: w.k > 1,
        Reason.TOO_SMALL: w.k < 1,
        Reason.PAST_EFFICIENT: w.best_size(D) > w.N,
        Reason.BATCH_LARGE: w.batch_over_critical > 1,
        Reason.BATCH_SMALL: w.batch_over_critical < 0.5,
        Reason.EPOCHS: math.exp(-(w.epochs - 1) / w.worth_lasts) < 0.5,
        Reason.RATE_HIGH: w.rate_off > 2,
        Reason.RATE_LOW: w.rate_off < 0.5,
    }
    return verdicts.get(advice.reason, False)  # nothing else is wrong with these runs
