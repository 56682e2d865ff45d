"""The methods to beat, by least squares and without priors, behind the same interface as ours."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from isoflop.fit.forecast.bins import LossBins, usable
from isoflop.fit.forecast.features import path
from isoflop.fit.forecast.priors import DEFAULT_PRIORS, Priors, known
from isoflop.fit.forecast.result import Forecast, Silence, forecast_of
from isoflop.fit.forecast.schedule import LearningRatePlan

Array = NDArray[np.float64]
FEWEST = 6


class Baseline(ABC):
    """The part that all baselines share: the memory, the window after the warm-up, the arguments."""

    name: ClassVar[str] = ""

    def __init__(
        self,
        *,
        N: float | None = None,
        batch_tokens: float | None = None,
        optimizer: str | None = "adamw",
        domain: Mapping[str, bool] | None = None,
        priors: Priors = DEFAULT_PRIORS,
        warmup_steps: int | None = None,
    ) -> None:
        self.N, self.batch_tokens, self.optimizer, self.domain = known(N), known(batch_tokens), optimizer, domain
        self.priors, self.warmup_steps = priors, warmup_steps
        self.bins = LossBins()

    def add(self, step: int, tokens: float, lr: float | None, loss: float, count: int = 1) -> None:
        """One logged loss: nats per token, the mean over `count` optimizer steps up to `step`."""
        if usable(loss) and step >= max(1, self.bins.last_step):
            self.bins.add(float(step), float(tokens), lr, float(loss), float(max(count, 1)))

    def forecast(
        self, plan: LearningRatePlan | None, step: int | None = None, level: float = 0.8
    ) -> Forecast | Silence:
        """The loss at `step` of `plan` (its end by default), or why there is none."""
        if plan is None:
            return Silence("learning rate unknown", "The coming learning rate is not known: pass the plan.")
        warmup = plan.warmup_steps if self.warmup_steps is None else self.warmup_steps
        columns = self.bins.columns()
        used = columns["step"] >= max(1.5 * warmup, 0.2 * self.bins.last_step)
        if used.sum() < FEWEST:
            return Silence("too few points", f"{int(used.sum())} of {FEWEST} bins of loss are filled.")
        target = plan.total_steps if step is None else step
        loss, sd = self._predict(
            columns["step"][used], columns["loss"][used], columns["count"][used], plan, warmup, float(target)
        )
        if not (math.isfinite(loss) and math.isfinite(sd)):
            return Silence("no fit", "The least squares found no finite loss.")
        return forecast_of(loss, sd, level=level, step=target, estimator=self.name, nu=1e6)

    @abstractmethod
    def _predict(
        self, steps: Array, loss: Array, count: Array, plan: LearningRatePlan, warmup: int, target: float
    ) -> tuple[float, float]:
        """Loss at `target` and its standard error."""

    def state_dict(self) -> dict[str, Any]:
        """The curve so far in plain values."""
        return {"version": 1, "bins": self.bins.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self.bins.load_state_dict(dict(state["bins"]))


class LastValue(Baseline):
    """The loss stays where it is: the mean of the last tenth of an e-fold."""

    name = "last-value"

    def _predict(
        self, steps: Array, loss: Array, count: Array, plan: LearningRatePlan, warmup: int, target: float
    ) -> tuple[float, float]:
        last = steps >= 0.9 * steps[-1]
        mean = float(np.average(loss[last], weights=count[last]))
        return mean, max(float(np.std(loss[last])) / math.sqrt(last.sum()), 1e-6)


class Separable(Baseline):
    """Curves that are linear once one exponent is given: the exponent by a search, the rest by least squares."""

    exponents: ClassVar[Array] = np.geomspace(0.1, 2, 80)

    @abstractmethod
    def columns(self, steps: Array, exponent: float, plan: LearningRatePlan, warmup: int) -> Array:
        """The design at `steps`: shape (steps, coefficients)."""

    def _predict(
        self, steps: Array, loss: Array, count: Array, plan: LearningRatePlan, warmup: int, target: float
    ) -> tuple[float, float]:
        return self._fitted(steps, loss, count, plan, warmup, target)[1:]

    def _fitted(
        self, steps: Array, loss: Array, count: Array, plan: LearningRatePlan, warmup: int, target: float
    ) -> tuple[float, float, float]:
        """Residual sum of squares, loss at `target` and its standard error."""
        everywhere = np.append(steps, target)
        weight = np.sqrt(count / count.mean())

        def fit(exponent: float) -> tuple[float, Array, Array]:
            design = self.columns(everywhere, exponent, plan, warmup)
            beta = _least_squares(design[:-1] * weight[:, None], loss * weight)
            residual = (loss - design[:-1] @ beta) * weight
            # a negative limit is no law of a loss
            return float(residual @ residual) if beta[0] >= 0 else math.inf, beta, design

        sums = [fit(exponent)[0] for exponent in self.exponents]
        best = int(np.argmin(sums))
        exponent = float(self.exponents[best])
        if 0 < best < len(sums) - 1 and math.isfinite(sums[best - 1] + sums[best + 1]):
            # the vertex of the parabola through three points
            logs = np.log(self.exponents[best - 1 : best + 2])
            a, b, _ = np.polyfit(logs - logs[1], sums[best - 1 : best + 2], 2)
            exponent = math.exp(logs[1] - b / (2 * a)) if a > 0 else exponent
        rss, beta, design = fit(exponent)
        moved = fit(exponent * 1.001)[2]
        jacobian = np.column_stack([design, (moved - design) @ beta / 1e-3]) if len(sums) > 1 else design
        active = np.abs(jacobian[:-1]).max(0) > 0
        X, at = jacobian[:-1, active] * weight[:, None], jacobian[-1, active]
        noise = rss / max(len(steps) - X.shape[1], 1)
        variance = float(at @ np.linalg.pinv(X.T @ X) @ at) * noise
        return rss, float(design[-1] @ beta), math.sqrt(max(variance, 1e-12))


def _least_squares(design: Array, y: Array) -> Array:
    """Least squares in which no coefficient but the first may be negative: the terms that would be are left out."""
    kept = np.abs(design).max(0) > 0
    beta = np.zeros(design.shape[1])
    while True:
        solution = np.linalg.lstsq(design[:, kept], y, rcond=None)[0]
        beta[:] = 0
        beta[kept] = solution
        wrong = kept & (beta < 0)
        wrong[0] = False
        if not wrong.any():
            return beta
        kept &= ~wrong


class PowerLaw(Separable):
    """E + A·S^−a in optimizer steps."""

    name = "power-law"

    def columns(self, steps: Array, exponent: float, plan: LearningRatePlan, warmup: int) -> Array:
        """1, S^−a."""
        return np.column_stack([np.ones(len(steps)), (steps / steps[0]) ** -exponent])


class Hoffmann(PowerLaw):
    """E + B·D^−β with Hoffmann et al. 2022's β = .2849; one run has a fixed batch, so that D is as good as S."""

    name = "hoffmann"
    exponents = np.array([0.2849083])


class Kaplan(Separable):
    """Kaplan et al. 2020, eq. 1.6 within one run: E + A·S_min^−.76, S_min = S/(1 + B_crit(L)/B).

    B_crit = B*/L^(1/α_B) with B* = 2.1e8 tokens and α_B = .21 (eq. 1.4, 5.3), L the smoothed loss; at the target the
    loss is iterated. Without a known batch S stands for S_min. Kaplan's α_S is of runs with the same schedule.
    """

    name = "kaplan"
    exponents = np.array([0.76])

    def columns(self, steps: Array, exponent: float, plan: LearningRatePlan, warmup: int) -> Array:
        """1, S_min^−.76 from the loss at each step."""
        s_min = steps.copy()
        if self.batch_tokens:
            s_min = steps / (1 + 2.1e8 / self._losses ** (1 / 0.21) / self.batch_tokens)
        return np.column_stack([np.ones(len(steps)), (s_min / s_min[0]) ** -exponent])

    def _predict(
        self, steps: Array, loss: Array, count: Array, plan: LearningRatePlan, warmup: int, target: float
    ) -> tuple[float, float]:
        out = (float(loss[-1]), 0.0)
        smooth = np.polyval(np.polyfit(np.log(steps), loss, 2, w=np.sqrt(count)), np.log(steps))
        for _ in range(8):
            self._losses = np.append(smooth, out[0])
            out = super()._predict(steps, loss, count, plan, warmup, target)
        return out


class MomentumLaw(Separable):
    """Tissue et al. 2024 (arXiv:2408.11029): L0 + A·S1^−α − C·S2, S2 the momentum of the rate's falls.

    The rate is over its peak. The paper sets the momentum's decay λ by hand, .99 to .999; here the best of three.
    """

    name = "momentum-law"
    decays: ClassVar[tuple[float, ...]] = (0.99, 0.995, 0.999)

    def _predict(
        self, steps: Array, loss: Array, count: Array, plan: LearningRatePlan, warmup: int, target: float
    ) -> tuple[float, float]:
        everywhere = np.append(steps, target)
        road = path(plan, warmup, float(max(plan.total_steps, target)))
        nodes, shape = road.nodes[road.first :], road.shape[road.first :]
        x = road.x(everywhere)
        results = []
        for decay in self.decays:
            fall = np.zeros(len(everywhere))
            if len(nodes) > 1:
                lag = np.maximum(everywhere[:, None] - (nodes[1:] + nodes[:-1]) / 2, 0)
                fall = (1 - decay**lag) @ -np.diff(shape)
            self._x, self._fall = x / x[0], fall
            results.append(self._fitted(steps, loss, count, plan, warmup, target))
        return min(results)[1:]

    def columns(self, steps: Array, exponent: float, plan: LearningRatePlan, warmup: int) -> Array:
        """1, S1^−α, −S2."""
        return np.column_stack([np.ones(len(steps)), self._x**-exponent, -self._fall])
