"""Gaussian priors on a law's constants, weighed against the runs by the runs' own noise.

Huber's Σ w·ρ(r) is no likelihood: its scale means nothing. Times ω = E ψ′ / E ψ² its curvature is the information that
the runs carry about the constants, and the variance of its slope too (Huber 1964), so that it can be added to
½((constant − mean)/sd)². The noise behind ω comes from the residuals, and the fit and it are found in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import erf, exp, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array
from isoflop.fit.problem import PowerSum, Problem, is_of

FIRST_NOISE, LEAST_NOISE = 1e-2, 1e-6
"""Of ln L. The noise is looked for from above: from below, a fit through every run would confirm that there is none."""
LOGARITHM = "ln "


@dataclass(frozen=True)
class Prior:
    """k Gaussians on linear forms of θ, or on their exponentials (E itself, where θ has ln E).

    Attributes:
        names: of the constants [k].
        labels: what each Gaussian is on: the constant, or "ln A".
        form, offset: u = form·θ + offset [k, free], [k].
        lifted: whether the Gaussian is on exp(u) [k].
        mean, sd: [k], or means [rows, k] where each row of θ has its own.
        scale: 1/ω, what a unit of the Gaussians' exponent is in units of Σ w·huber.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    form: Array
    offset: Array
    lifted: NDArray[np.bool_]
    mean: Array
    sd: Array
    scale: float = 1.0

    def of(self, rows: NDArray[np.int64]) -> Prior:
        """For some rows of θ."""
        return replace(self, mean=self.mean[rows]) if self.mean.ndim > 1 else self

    def values(self, theta: Array) -> tuple[Array, Array]:
        """What the Gaussians are on and its derivative by u, both [rows, k]."""
        u = theta @ self.form.T + self.offset
        value = np.where(self.lifted, np.exp(np.clip(u, -300, 300)), u)
        return value, np.where(self.lifted, value, 1.0)

    def penalty(self, theta: Array) -> Array:
        """½((value − mean)/sd)², summed and scaled [rows]."""
        return 0.5 * self.scale * (((self.values(theta)[0] - self.mean) / self.sd) ** 2).sum(axis=1)

    def derivatives(self, theta: Array) -> tuple[Array, Array]:
        """Of `penalty`: gradient [rows, free] and Hessian [rows, free, free]."""
        value, slope = self.values(theta)
        pull = self.scale * (value - self.mean) * slope / self.sd**2
        curve = self.scale * (slope / self.sd) ** 2 + np.where(self.lifted, pull, 0)
        return pull @ self.form, np.einsum("rk,kp,kq->rpq", curve, self.form, self.form)

    def as_runs(self, theta: Array) -> Array:
        """The Gaussians as runs with noise 1 at θ [free]: derivatives of value/sd [k, free]."""
        return (self.values(theta[None])[1][0] / self.sd)[:, None] * self.form

    def drawn(self, rng: np.random.Generator, draws: int) -> Array:
        """Means, as uncertain as the prior is [draws, k]."""
        return self.mean + self.sd * rng.standard_normal((draws, len(self.sd)))

    def weighed(self, noise: float, delta: float, weights: Array) -> Prior:
        """On the scale of Σ w·huber with δ, at that noise (standard deviation of ln L, Gaussian about 0).

        Weights count relative to each other, as in resamples of the runs.
        """
        scale = squared_pull(noise, delta) / within_delta(noise, delta) * float(_mean_weight(weights))
        return replace(self, scale=scale)


def prior_of(problem: Problem, given: Mapping[str, tuple[float, float]]) -> Prior | None:
    """Set priors up for the free constants of a law; None where none are given.

    Args:
        problem: the law over its runs.
        given: mean and standard deviation by constant, "alpha" or "E", or by "ln A" for the logarithm of one. A name
            without its group is for each group's own constant.

    Raises:
        ValueError: a law that is no sum of powers; a constant that it does not have or that is fixed; a mean or a
            deviation that can't be.
    """
    if not given:
        return None
    if not isinstance(problem, PowerSum):
        raise ValueError(f"{problem.form.name} is no sum of powers: priors= are not for it; fixed= holds a constant")
    rows = [row for key, pair in given.items() for row in _gaussians(problem, key, pair)]
    names, labels, forms, offsets, lifted, means, sds = zip(*rows, strict=True)
    return Prior(names, labels, np.array(forms), np.array(offsets), np.array(lifted), np.array(means), np.array(sds))


def _gaussians(problem: PowerSum, key: str, pair: object) -> list[tuple[str, str, Array, float, bool, float, float]]:
    """The fields of `Prior` for each constant that a prior is for."""
    name, in_logarithm = key.removeprefix(LOGARITHM), key.startswith(LOGARITHM)
    mine = [i for i, full in enumerate(problem.names) if full == name or is_of(name, full)]
    if not mine:
        each = zip(problem.names, problem.is_exponent, strict=True)
        known = ", ".join(full if is_exponent else f"{full}, ln {full}" for full, is_exponent in each)
        raise ValueError(f"priors: expected one of {known}, got {key!r}")
    try:
        mean, sd = (float(value) for value in pair)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ValueError(f"priors: {key}: expected (mean, standard deviation), got {pair!r}") from None
    if not (np.isfinite(mean) and 0 < sd < np.inf):
        raise ValueError(f"priors: {key}: expected a mean and a positive standard deviation, got {mean!r} and {sd!r}")
    found = []
    for i in mine:
        full, is_exponent = problem.names[i], bool(problem.is_exponent[i])
        if full in problem.fixed:
            held = f"{full} is fixed at {problem.fixed[full]:g}"
            raise ValueError(f"priors: {held}: leave its prior out, or don't fix it")
        if is_exponent and in_logarithm:
            raise ValueError(f"priors: expected a prior on {full} itself, got one on {key}: leave the ln out")
        if not is_exponent and problem.scales:
            raise ValueError(f"priors: of this law only exponents can have one, got {key!r}")
        if not in_logarithm and not mean > 0:
            raise ValueError(f"priors: {key}: expected a positive mean, got {mean!r}")
        form, offset, slope = np.zeros(len(problem.names)), 0.0, problem.slopes[i]
        form[i] = 1.0
        if not is_exponent and slope >= 0:  # θ has the coefficient at the centre of the runs
            form[slope] = problem.centre[i]
            offset = problem.centre[i] * problem.fixed.get(problem.names[slope], 0.0)
        label = f"{LOGARITHM}{full}" if in_logarithm else full
        found.append((full, label, form[problem.free], offset, not (is_exponent or in_logarithm), mean, sd))
    return found


# -- noise -------------------------------------------------------------------------------------------------------------


def within_delta(noise: float, delta: float) -> float:
    """E ψ′: the share of residuals within δ."""
    return erf(delta / noise / sqrt(2))


def squared_pull(noise: float, delta: float) -> float:
    """E ψ², ψ = min(max(r, −δ), δ)."""
    z = delta / noise
    inside = within_delta(noise, delta)
    return noise**2 * (inside - z * sqrt(2 / pi) * exp(-z * z / 2)) + delta**2 * (1 - inside) if z < 30 else noise**2


def _mean_weight(weights: Array) -> float:
    return (weights**2).sum() / weights.sum()


def fitted_by_runs(problem: Problem, theta: Array, weights: Array, prior: Prior, noise: float, delta: float) -> float:
    """How many constants the runs fit, those that rest on a prior counted less: tr (H (H + P)⁻¹)."""
    slope = problem.slope(problem.state(theta[None]))
    information = (slope * (weights / _mean_weight(weights))[:, None]).T @ slope
    information *= within_delta(noise, delta) ** 2 / squared_pull(noise, delta)
    rows = prior.as_runs(theta)
    return float(np.trace(information @ np.linalg.pinv(information + rows.T @ rows, hermitian=True)))


def typical_size(residuals: Array) -> float:
    """Standard deviation by the median of |r|, as of Gaussian residuals about 0."""
    return 1.4826 * float(np.median(np.abs(residuals)))


def noise_of(residuals: Array, weights: Array, constants: float) -> float:
    """Standard deviation of the runs' noise from residuals of a fit of so many constants; outliers count little.

    The mean absolute deviation, which is right for medians and for means, of residuals clipped at three times the
    deviation that the typical of them shows. A fit near a median passes through as many runs as it has constants: these
    say nothing.
    """
    size = np.sort(np.abs(residuals[weights > 0]))
    passed = min(round(constants), len(size) - 1)
    left = max(len(size) - constants, 1.0)
    return max(sqrt(pi / 2) * float(np.minimum(size, 3 * typical_size(size[passed:])).sum()) / left, LEAST_NOISE)
