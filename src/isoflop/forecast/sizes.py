"""The joint fit over runs of several sizes: it forecasts a larger run, before it starts and under way.

Each run has its curve E_r + A_r·x^−α − C_r·F; the exponents are shared, E_r follows e0 + e1·N^−γ, A_r and C_r follow
their priors' lines with a level and a slope of this ladder, and each of the three has its own effect per run. Given (α,
kernel, γ, size of the effects) all is linear and Gaussian: the grid over those is averaged with its evidence. N is
non-embedding: the total doubles the error on public ladders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from isoflop.arrays import Array
from isoflop.forecast.curve import KERNELS, FeaturesPath, LossCurve, falls, kernel_gains, kernel_weights, path
from isoflop.forecast.forecast import Forecast, NoForecast, Refusal, forecast_of
from isoflop.forecast.lr_plan import LrPlan
from isoflop.forecast.online import Fit, OnlineForecaster, covered
from isoflop.forecast.posterior import CurvePosterior
from isoflop.forecast.priors import DEFAULT_PRIORS, Priors, comparable_peak, learn_priors, read_run

GAMMA = np.linspace(0.1, 0.55, 7)
"""Grid of the exponent of N; its prior is normal about .3, sd .12 (published laws lie between .27 and .35)."""
GAMMA_PRIOR = (0.3, 0.12)
EFFECTS = (0.004, 0.012, 0.035)
"""Grid of the standard deviation of E between runs, nats."""
RELATIVE = 0.07
"""Standard deviation of A and of C between runs of one ladder, relative."""
BELIEF = ((1.4, 0.4), (1.0, 1.0), (1.0, 0.3), (0.0, 0.08), (1.0, 0.2), (0.0, 0.06))
"""Prior mean and sd of e0, e1 (nats), and of level and slope in ln N of A and C over their priors' lines."""
INDEPENDENT = 12.0
"""A curve counts as at most this many independent bins: what its form leaves out does not average away."""
DOUBT = 1.8
"""What the joint fit's spread is multiplied with beside the run's own: each of four public ladders left out, the
others choose the same."""
FAR = 2.0
"""Standard deviations from the ladder's loss at the present step: of 120 looks at public runs without a forecast of
their own yet, at a fiftieth to a quarter of their steps, 5 were further off."""
LEFT_OUT = 0.002
"""Of the loss: what the form across sizes leaves out."""
PLACES = np.linspace(-2, 2, 9)
"""Grid of ln α about its prior mean, in its standard deviations."""


_Sized = tuple[float, float, float | None]
"""Non-embedding parameters, tokens of a step, and the peak rate where it can be compared."""


class _Member(NamedTuple):
    """A run's sufficient statistics on the grid of (α, kernel): information and its right-hand side for (E, A, C)."""

    gram: Array  # (alphas·kernels, 3, 3)
    right: Array  # (alphas·kernels, 3)
    size: float  # ln N over the ladder's middle


class _Marginal(NamedTuple):
    """At one (γ, effect), on the grid of (α, kernel): log evidence, mean and covariance of b; variances of effects."""

    gamma: float
    evidence: Array
    b: Array
    cov: Array
    spread: Array


@dataclass(frozen=True)
class Ladder:
    """A fitted ladder; `forecast` gives the loss of another run of it."""

    priors: Priors
    members: tuple[_Member, ...]
    alphas: Array
    kernels: Array  # their log prior weights
    middle: float  # geometric mean of N
    tokens: float  # effective tokens at which A is given
    optimizer: str | None
    names: tuple[str, ...]

    def forecast(
        self,
        plan: LrPlan,
        *,
        N: float,
        batch_tokens: float,
        run: OnlineForecaster | None = None,
        step: int | None = None,
        level: float = 0.8,
    ) -> Forecast | NoForecast:
        """The loss of a run of N parameters at a step of its plan (by default the end), before it starts or under way.

        Args:
            plan: its learning-rate plan.
            N: its non-embedding parameters.
            batch_tokens: tokens of an optimizer step.
            run: the run under way: its losses join the ladder's, and its own forecast is averaged in by precision.
            step: where.
            level: probability of the interval.
        """
        at = plan.total_steps if step is None else step
        if plan.assumed:
            now = 0.0 if run is None else run.last_step
            ask = partial(self.forecast, N=N, batch_tokens=batch_tokens, run=run, step=at, level=level)
            return covered(ask, plan, now)
        fit = None if run is None else run.fit(plan)
        single = None if run is None else run.forecast(plan, at, level)
        # a curve that says nothing of its own end yet is no evidence beside finished ones: there the fit is too sure
        own = fit.posterior if isinstance(single, Forecast) and isinstance(fit, Fit) else None
        sized = (N, batch_tokens, comparable_peak(plan.peak, self.optimizer))
        if run is not None and own is None and (unlike := self._unlike(plan, sized, run)) is not None:
            return unlike
        mean, sd = self._predict(plan, sized, own, float(at))
        basis = [f"{len(self.names)} finished runs: {', '.join(self.names[:6])}{'…' * (len(self.names) > 6)}"]
        if run is not None and isinstance(single, Forecast):
            mean, sd = _mixed((mean, DOUBT * sd), single.normal)
            basis.append(f"the run's own losses up to step {run.last_step:,.0f}")
        made = forecast_of(mean, sd, level=level, step=at, estimator="joint", basis=tuple(basis))
        came = np.zeros(0) if run is None else run.columns()["loss"][-3:]
        if isinstance(fit, NoForecast) and len(came) and came.max() < made.low:
            return fit  # the run's last losses lie lower already: these sizes say nothing of it
        return replace(made, as_of=0 if run is None else round(run.last_step))

    def _unlike(self, plan: LrPlan, sized: _Sized, run: OnlineForecaster) -> NoForecast | None:
        """Whether a run's last losses are not what these sizes say of their steps: then its end isn't either."""
        seen = run.columns(plan.warmup_steps)
        if len(seen["step"]) < 3:
            return None
        loss, step = float(np.median(seen["loss"][-3:])), float(seen["step"][-2])
        mean, sd = self._predict(plan, sized, None, step)
        if abs(loss - mean) <= FAR * sd:
            return None
        found = {"loss": loss, "step": step, "mean": mean, "low": mean - FAR * sd, "high": mean + FAR * sd}
        return NoForecast(Refusal.UNLIKE_SIZES, found)

    def member(self, own: CurvePosterior, road: FeaturesPath, sized: _Sized) -> _Member:
        """The statistics of a run."""
        columns = self._columns(road, own.steps, sized)
        w = own.precision * min(1.0, INDEPENDENT / len(own.steps))
        weighted = columns * w[:, None]
        gram, right = np.einsum("cni,cnj->cij", weighted, columns), np.einsum("cni,n->ci", weighted, own.loss)
        return _Member(gram, right, math.log(sized[0] / self.middle))

    def _columns(self, road: FeaturesPath, steps: Array, sized: _Sized) -> Array:
        """1, A's and C's columns at `steps` for each (α, kernel): shape (alphas·kernels, steps, 3)."""
        where = (*sized, self.tokens)
        amplitude, gain = (math.exp(line.at(where).mean) for line in (self.priors.amplitude, self.priors.gain))
        decay = amplitude * (road.x(steps)[None] * sized[1] / self.tokens) ** -self.alphas[:, None]
        fall = -gain * kernel_gains()[:, None] * falls(road, KERNELS, steps)
        parts = np.broadcast_arrays(1.0, decay[:, None], fall[None])
        return np.stack(parts, axis=-1).reshape(-1, len(steps), 3)

    def _predict(self, plan: LrPlan, sized: _Sized, own: CurvePosterior | None, at: float) -> tuple[float, float]:
        """Mean and standard deviation of the loss at a step."""
        road = path(plan, plan.warmup_steps, float(plan.total_steps))
        columns = self._columns(road, np.array([at]), sized)[:, 0]
        member = None if own is None else self.member(own, road, sized)
        found = []
        for marginal in self._marginals:
            evidence, Z = marginal.evidence, _design(math.log(sized[0] / self.middle), marginal.gamma)
            theta, cov = marginal.b @ Z.T, Z @ marginal.cov @ Z.T + np.diag(marginal.spread)
            if member is not None:
                evidence, theta, cov = _joined(member, evidence, theta, cov)
            each = np.einsum("ci,ci->c", columns, theta), np.einsum("ci,cij,cj->c", columns, cov, columns)
            found.append((evidence, *each))
        evidence, means, variances = (np.array(each) for each in zip(*found, strict=True))
        w = np.exp(evidence - evidence.max())
        w /= w.sum()
        loss = float(np.sum(w * means))
        return loss, math.sqrt(float(np.sum(w * (variances + (means - loss) ** 2))) + (LEFT_OUT * loss) ** 2)

    @cached_property
    def _marginals(self) -> list[_Marginal]:
        """On the grid of γ and effects: what does not change from one forecast to the next."""
        return [self._marginal(float(gamma), effect) for gamma in GAMMA for effect in EFFECTS]

    def _marginal(self, gamma: float, effect: float) -> _Marginal:
        spread = np.array([effect**2, RELATIVE**2, RELATIVE**2])
        mean0, sd0 = np.array(BELIEF).T
        cells = len(self.members[0].gram)
        b, cov = np.tile(mean0, (cells, 1)), np.tile(np.diag(sd0**2), (cells, 1, 1))
        evidence = np.full(cells, -0.5 * ((gamma - GAMMA_PRIOR[0]) / GAMMA_PRIOR[1]) ** 2)
        evidence += np.add.outer(-0.5 * PLACES**2, self.kernels).ravel()
        for member in self.members:
            Z = _design(member.size, gamma)
            before, known = b @ Z.T, Z @ cov @ Z.T + np.diag(spread)
            evidence, after, less = _joined(member, evidence, before, known)
            gain = cov @ Z.T @ np.linalg.inv(known)
            b = b + np.einsum("cij,cj->ci", gain, after - before)
            cov = cov - gain @ (known - less) @ gain.swapaxes(1, 2)
        return _Marginal(gamma, evidence, b, cov, spread)


def fit_ladder(runs: Sequence[LossCurve], priors: Priors = DEFAULT_PRIORS) -> Ladder:
    """The joint fit of finished runs of one family.

    Args:
        runs: at least two, of two sizes or more; N non-embedding.
        priors: what was known before; they learn from the runs.

    Raises:
        ValueError: if there are fewer than two sizes, or a run's N or batch is not known.
    """
    for run in runs:
        if not run.N or not run.batch_tokens:
            raise ValueError(f"A ladder needs N and batch_tokens of every run; {run.name or 'one'} lacks them.")
    if _sizes(runs) < 2:
        raise ValueError("A ladder needs runs of at least two sizes; add a smaller or larger one.")
    learnt = learn_priors(runs, priors)
    read = [(run, reading) for run in runs if (reading := read_run(run, learnt)) is not None]
    if _sizes([run for run, _ in read]) < 2:
        raise ValueError("Fewer than two sizes have curves long enough to fit; log more often.")
    middle = math.exp(float(np.mean([math.log(run.N or 1.0) for run, _ in read])))
    ends = [float(reading.road.x(reading.posterior.steps[-1:])[0]) * (run.batch_tokens or 1.0) for run, reading in read]
    first, tokens = read[0][0], math.exp(float(np.mean(np.log(ends))))
    alpha = learnt.alpha.at((middle, first.batch_tokens, None, tokens))
    ladder = Ladder(
        learnt,
        (),
        alphas=np.exp(alpha.mean + alpha.sd * PLACES),
        kernels=np.mean([kernel_weights(reading.road) for _, reading in read], axis=0),
        middle=middle,
        tokens=tokens,
        optimizer=first.optimizer,
        names=tuple(run.name for run, _ in read),
    )
    return replace(
        ladder,
        members=tuple(ladder.member(reading.posterior, reading.road, _sized(run)) for run, reading in read),
    )


def _sizes(runs: Sequence[LossCurve]) -> int:
    return len({round(math.log(run.N or 1.0), 2) for run in runs})


def _sized(run: LossCurve) -> _Sized:
    return float(run.N or 1.0), float(run.batch_tokens or 1.0), comparable_peak(run.plan.peak, run.optimizer)


def _joined(member: _Member, evidence: Array, theta: Array, cov: Array) -> tuple[Array, Array, Array]:
    """Evidence, mean and covariance of (E, A, C) with a run's own curve on top of what the ladder expects of it."""
    inverse = np.linalg.inv(cov)
    precision = member.gram + inverse
    right = member.right + np.einsum("cij,cj->ci", inverse, theta)
    posterior = np.linalg.inv(precision)
    new = np.einsum("cij,cj->ci", posterior, right)
    gained = 0.5 * (
        np.einsum("ci,ci->c", new, right)
        - np.einsum("ci,cij,cj->c", theta, inverse, theta)
        - np.linalg.slogdet(precision)[1]
        + np.linalg.slogdet(inverse)[1]
    )
    return evidence + gained, new, posterior


def _design(size: float, gamma: float) -> Array:
    """(E, A, C) of a run from b = (e0, e1, level and slope of A, level and slope of C)."""
    Z = np.zeros((3, 6))
    Z[0, :2] = 1, math.exp(-gamma * size)
    Z[1, 2:4] = Z[2, 4:6] = 1, size
    return Z


def _mixed(joint: tuple[float, float], own: tuple[float, float]) -> tuple[float, float]:
    """The mean by precision; its spread is no less than the run's own, for both see the same curve."""
    wa, wb = joint[1] ** -2, own[1] ** -2
    mean = (wa * joint[0] + wb * own[0]) / (wa + wb)
    return mean, max(own[1], math.hypot(min(joint[1], own[1]), 0.5 * abs(joint[0] - own[0])))
