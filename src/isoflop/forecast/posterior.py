"""The posterior of a loss curve without an optimizer: a grid over α and kernels, E, A and C in closed form.

Given α and a kernel the curve is linear in (E, A, C), so that Gaussian priors give a Gaussian posterior and the
evidence; the grid is averaged with it. E is flat and eliminated: all columns are about their weighted means. The noise
is not plugged in but averaged over, which makes the evidence that of a Student t. Its size comes from robust residuals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from isoflop.arrays import Array
from isoflop.forecast.curve import KERNELS, FeaturesPath, falls, kernel_gains, kernel_weights

ALPHAS = 15
"""Points of the grid in α, over three standard deviations either way."""
PLACES = np.linspace(-3, 3, ALPHAS)
TAIL = 4.0
"""Degrees of freedom of the priors of A and C."""
FLOOR = 5e-4
"""The least noise, as a fraction of the loss: a curve is never known better."""
STEEPEST = 300.0
"""ln of the most that a curve may have fallen by: numbers stay finite, squares of it too."""
HUBER = 1.345
"""Huber's k: 95% efficient on normal residuals."""


class Normal(NamedTuple):
    """Mean and standard deviation."""

    mean: float
    sd: float


class Grid(NamedTuple):
    """At each (α, kernel): the log evidence, and mean and (co)variance of (A, C), each of shape (alphas, kernels)."""

    evidence: Array
    A: Array
    C: Array
    var_A: Array
    var_C: Array
    both: Array
    loss: float  # weighted mean of the loss, decay (a,) and fall (k,): what the columns are about
    decay: Array
    fall: Array
    level: float  # variance of that mean


class Prediction(NamedTuple):
    """At each step asked for: mean and variance of the noise-free loss, and of it what A·x^−α and −C·F give."""

    mean: Array
    variance: Array
    decay: Array
    fall: Array


class Moments(NamedTuple):
    """Of (A, C) over a posterior's grid: a prediction is linear in them. Several stack along a first axis."""

    alphas: Array
    decay: Array  # by α, fall by kernel: what the columns are about
    fall: Array
    A: Array  # E A by α
    C: Array  # E C by kernel
    A2: Array
    C2: Array
    AC: Array  # by both
    loss: Array  # one number each
    level: Array
    x_ref: Array

    def predict(self, x: Array, fall: Array) -> Prediction:
        """The losses at effective steps `x`, shape (…, steps), and falls there, shape (…, kernels, steps)."""
        decay = (x[..., None, :] / self.x_ref[..., None]) ** -self.alphas[..., None]
        d, f = decay - self.decay[..., None], self.fall[..., None] - fall
        A, C, A2, C2 = (part[..., None, :] for part in (self.A, self.C, self.A2, self.C2))
        above = (A @ d + C @ f)[..., 0, :]  # the weighted mean of the losses
        square = (A2 @ d**2 + C2 @ f**2)[..., 0, :] + 2 * (d * (self.AC @ f)).sum(-2)
        parts = (A @ decay)[..., 0, :], -(C @ fall)[..., 0, :]
        return Prediction(self.loss + above, self.level + square - above**2, *parts)


@dataclass(frozen=True)
class CurvePosterior:
    """Grid weights over (α, kernel), and the Gaussian posterior of (A, C) at each; A is the height at the last bin."""

    alphas: Array
    weight: Array
    grid: Grid
    noise: float  # standard deviation of one raw step's loss, nats
    steps: Array  # the bins it was made from, their effective steps and falls, losses, and the precision each was given
    x: Array
    fall: Array
    loss: Array
    precision: Array
    residuals: Array  # of the likeliest curve, nats

    def predict(self, road: FeaturesPath, steps: Array) -> Prediction:
        """The loss at `steps` of a plan."""
        return self.moments.predict(road.x(steps), falls(road, KERNELS, steps))

    def converged(self, road: FeaturesPath, now: float, end: float) -> Prediction:
        """At step `now` of a plan, and after endless steps with the rate as low as at step `end`: E − C·F."""
        steps = np.array([now, end])
        x = road.x(steps)
        x[1] = np.inf
        return self.moments.predict(x, falls(road, KERNELS, steps))

    @cached_property
    def moments(self) -> Moments:
        """What predictions need."""
        w, grid = self.weight, self.grid
        A2, C2 = w * (grid.A**2 + grid.var_A), w * (grid.C**2 + grid.var_C)
        means = (w * grid.A).sum(1), (w * grid.C).sum(0)
        both = w * (grid.both + grid.A * grid.C)
        about = np.array([grid.loss, grid.level, self.x[-1]])[:, None]
        return Moments(self.alphas, grid.decay, grid.fall, *means, A2.sum(1), C2.sum(0), both, *about)

    def rest(self, n: int, alpha: Normal, amplitude: Normal, gain: Normal, belief: Array) -> Prediction:
        """What the first n bins, with the precision that all gave them, predict at the last of them and the others.

        Priors as for `solve`; `belief`: log prior weights of the kernels.
        """
        alphas, decay, before = _curves(alpha, PLACES[::2], self.x, belief)
        first, known = (self.fall[:, :n], self.loss[:n], self.precision[:n]), _known(amplitude, gain)
        grid = _grid(decay[:, :n], *first, *known)
        early = replace(self, alphas=alphas, weight=_weights(grid, before), grid=grid)
        return early.moments.predict(self.x[n - 1 :], self.fall[:, n - 1 :])


def solve(
    road: FeaturesPath,
    steps: Array,
    loss: Array,
    count: Array,
    alpha: Normal,
    amplitude: Normal,
    gain: Normal,
) -> CurvePosterior:
    """The posterior from binned losses.

    Args:
        road: the plan made ready.
        steps, loss, count: mean step, mean loss in nats and raw steps of each bin, shape (bins,).
        alpha, amplitude, gain: normal priors of ln α, of ln A at the last bin, of ln C.
    """
    x = road.x(steps)
    fall = falls(road, KERNELS, steps)
    belief = kernel_weights(road)
    prior, precision = _known(amplitude, gain)
    relative = count / np.mean(count)
    floor = FLOOR * max(float(np.mean(np.abs(loss))), 1e-9)

    places = PLACES[::2]
    _, coarse, before = _curves(alpha, places, x, belief)
    huber, sd, believed = np.ones(len(steps)), 20 * floor, precision
    for _ in range(3):
        w = huber / (sd**2 / relative + floor**2)
        grid = _grid(coarse, fall, loss, w, prior, believed)
        best = np.unravel_index(int(np.argmax(grid.evidence + before)), grid.evidence.shape)
        A, C = grid.A[best], grid.C[best]
        residual = loss - grid.loss - A * (coarse[best[0]] - grid.decay[best[0]])
        residual = residual + C * (fall[best[1]] - grid.fall[best[1]])
        sd, huber = _noise(residual, relative, sd, floor)
        # a Student t for the priors of A and C: where the curve contradicts them flatly, they step back
        away = (np.array([A, C]) - prior[best[1]]) ** 2 * precision[best[1]]
        believed = precision * np.minimum(1, (TAIL + 1) / (TAIL + away))
    w = huber / (sd**2 / relative + floor**2) * independent(residual * np.sqrt(w))
    # a second, narrow grid in α where the first finds the weight
    first = _weights(_grid(coarse, fall, loss, w, prior, believed), before).sum(1)
    centre = float(first @ places)
    width = max(float(first @ (places - centre) ** 2) ** 0.5, float(PLACES[1] - PLACES[0]))
    alphas, decay, before = _curves(alpha, centre + width * PLACES, x, belief)
    grid = _grid(decay, fall, loss, w, prior, believed)
    noise = sd * float(np.mean(count)) ** 0.5
    return CurvePosterior(alphas, _weights(grid, before), grid, noise, steps, x, fall, loss, w, residual)


def _curves(alpha: Normal, places: Array, x: Array, belief: Array) -> tuple[Array, Array, Array]:
    """α at places of its prior, (x / last)^−α of each, and log prior weights of (α, kernel)."""
    alphas = np.exp(alpha.mean + alpha.sd * places)
    # far outside of their runs the priors hold exponents of thousands for possible
    decay = np.exp(np.minimum(-alphas[:, None] * np.log(x[None] / x[-1]), STEEPEST))
    return alphas, decay, -0.5 * places[:, None] ** 2 + belief


def _known(amplitude: Normal, gain: Normal) -> tuple[Array, Array]:
    """Mean and precision of (A, C) with each kernel, shape (kernels, 2).

    Normal, with the log-normal priors' medians and relative spreads, so that the curve stays linear.
    """
    height, gains = float(np.exp(amplitude.mean)), np.exp(gain.mean) * kernel_gains()
    prior = np.column_stack([np.full(len(gains), height), gains])
    return prior, np.column_stack([np.full(len(gains), (height * amplitude.sd) ** -2), (gains * gain.sd) ** -2])


def _weights(grid: Grid, before: Array) -> Array:
    total = grid.evidence + before
    weight = np.exp(total - total.max())
    return np.asarray(weight / weight.sum())


def _grid(decay: Array, fall: Array, y: Array, w: Array, prior: Array, precision: Array) -> Grid:
    """The Gaussian posterior at each (α, kernel), its columns about their weighted means."""
    total = float(w.sum())
    y_mean, d_mean, f_mean = float(w @ y) / total, decay @ w / total, fall @ w / total
    y, d, f = y - y_mean, decay - d_mean[:, None], fall - f_mean[:, None]
    wd, wf = d * w, f * w
    aa = (wd * d).sum(1)[:, None] + precision[:, 0]
    cc = (wf * f).sum(1) + precision[:, 1]
    ac = -(wd @ f.T)
    ra = (wd @ y)[:, None] + precision[:, 0] * prior[:, 0]
    rc = -(wf @ y) + precision[:, 1] * prior[:, 1]
    det = aa * cc - ac**2
    A, C = (cc * ra - ac * rc) / det, (aa * rc - ac * ra) / det
    # twice the misfit, data and priors together, and the Occam factor against the priors' own widths
    misfit = float(w @ y**2) + (precision * prior**2).sum(1) - (A * ra + C * rc)
    occam = 0.5 * (np.log(precision).sum(1) - np.log(det))
    freedom = max(len(y) - 3.0, 1.0)
    evidence = -0.5 * freedom * np.log1p((misfit - misfit.min()) / freedom) + occam
    return Grid(evidence, A, C, cc / det, aa / det, -ac / det, y_mean, d_mean, f_mean, 1 / total)


def _noise(residual: Array, relative: Array, before: float, floor: float) -> tuple[float, Array]:
    """Standard deviation of a bin with the mean number of steps, and each bin's weight by Huber.

    Of residuals in nats and each bin's steps over their mean; beyond 2.5 of the estimate `before` they are clipped, and
    no number of steps reduces the `floor`.
    """
    scaled = residual * np.sqrt(relative)
    median = 1.4826 * float(np.sort(np.abs(scaled))[len(scaled) // 2])
    square = float(np.sqrt(np.mean(np.minimum(scaled**2, (2.5 * before) ** 2))))
    sd = max(median, square, 0.02 * floor)
    z = np.abs(residual) / np.sqrt(sd**2 / relative + floor**2)
    return sd, np.minimum(1.0, HUBER / np.maximum(z, 1e-12))


def independent(residual: Array) -> float:
    """(1 − ρ)/(1 + ρ) by the lag-one correlation ρ: the share of the bins that count as independent."""
    square = float(residual @ residual)
    if len(residual) < 5 or square == 0:
        return 1.0
    rho = min(max(float(residual[1:] @ residual[:-1]) / square, 0.0), 0.9)
    return (1 - rho) / (1 + rho)
