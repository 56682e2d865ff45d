"""Planted training curves for the tests of the forecast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoflop.forecast import Estimator, Kernel, LossCurve, LrPlan, OnlineForecaster, falls, path

BATCH = 5e5


@dataclass(frozen=True)
class Planted:
    """L = E + A·(x·B/1e10)^−α − C·F + noise of one step."""

    E: float = 2.4
    A: float = 0.26
    alpha: float = 0.44
    C: float = 0.22
    noise: float = 0.03
    kernel: Kernel = Kernel(0.65, 100.0)  # noqa: RUF009

    def loss(self, plan: LrPlan, steps: np.ndarray) -> np.ndarray:
        """The loss without noise."""
        road = path(plan, plan.warmup_steps, float(plan.total_steps))
        fall = falls(road, (self.kernel,), steps)[0]
        return self.E + self.A * (road.x(steps) * BATCH / 1e10) ** -self.alpha - self.C * fall

    def seen(self, plan: LrPlan, seed: int = 0, every: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Steps and the losses logged at them: means over `every` steps."""
        steps = np.arange(1.0, plan.total_steps + 1)
        loss = self.loss(plan, steps) + self.noise * np.random.default_rng(seed).normal(size=len(steps))
        whole = len(steps) // every * every
        return steps[:whole].reshape(-1, every)[:, -1], loss[:whole].reshape(-1, every).mean(1)

    def run(self, plan: LrPlan, *, N: float = 3e8, seed: int = 0, every: int = 20, name: str = "") -> LossCurve:
        """The finished run."""
        steps, loss = self.seen(plan, seed, every)
        return LossCurve(
            steps=steps,
            tokens=steps * BATCH,
            lr=plan.at(steps),
            loss=loss,
            plan=plan,
            N=N,
            batch_tokens=BATCH,
            organisation="planted",
            dataset="planted",
            name=name or f"{N:.0e}",
            count=np.full(len(steps), float(every)),
            final_loss=float(self.loss(plan, np.array([float(plan.total_steps)]))[0]),
        )


def fed(run: LossCurve, fraction: float = 1.0, **options: object) -> OnlineForecaster:
    """A forecaster that has seen a fraction of a run."""
    arguments = {"N": run.N, "batch_tokens": run.batch_tokens, "optimizer": run.optimizer} | options
    forecaster = OnlineForecaster(**arguments)
    feed(forecaster, run, fraction)
    return forecaster


def feed(forecaster: Estimator, run: LossCurve, fraction: float = 1.0, start: float = 0.0) -> None:
    """Adds the part of a run between two fractions of it."""
    forecaster.feed(run, fraction * run.total_steps, after=start * run.total_steps)
