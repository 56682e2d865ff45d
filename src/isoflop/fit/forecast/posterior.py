"""The posterior of a loss curve without an optimizer: a grid over α and kernels, E, A and C in closed form.

Given α and a kernel the curve is linear in (E, A, C), so that Gaussian priors give a Gaussian posterior and the evidence;
the grid is averaged with it. The noise is estimated robustly and its uncertainty averaged over as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.fit.forecast.features import Kernel, Path, falls

Array = NDArray[np.float64]
ALPHAS = 15
HUBER = 1.345
FLOOR = 5e-4
"""The least noise, as a fraction of the loss: a curve is never known better."""


@dataclass(frozen=True)
class Normal:
    """Mean and standard deviation."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Posterior:
    """Grid weights (α, kernels) and the posterior mean and covariance of (E, A, C) at each; A at `x_ref`."""

    alphas: Array
    kernels: tuple[Kernel, ...]
    weight: Array  # (alphas, kernels)
    mean: Array  # (alphas, kernels, 3)
    cov: Array  # (alphas, kernels, 3, 3)
    x_ref: float
    noise: float  # standard deviation of one raw step's loss, nats
    memory: float  # how much the residuals remember: (1 − ρ)/(1 + ρ)
    residuals: Array

    def design(self, road: Path, steps: Array) -> Array:
        """Columns 1, (x/x_ref)^−α, −F: shape (alphas, kernels, steps, 3)."""
        decay = (road.x(steps)[None] / self.x_ref) ** -self.alphas[:, None]
        fall = falls(road, self.kernels, steps)
        shape = (len(self.alphas), len(self.kernels), len(steps))
        return np.stack(
            [np.ones(shape), np.broadcast_to(decay[:, None], shape), np.broadcast_to(-fall[None], shape)], axis=-1
        )

    def terms(self, road: Path, steps: Array) -> Array:
        """Posterior means of the three terms E, A·x^−α and −C·F at `steps`: shape (steps, 3)."""
        return np.einsum("ak,aksi,aki->si", self.weight, self.design(road, steps), self.mean)

    def predict(self, road: Path, steps: Array) -> tuple[Array, Array]:
        """Mean and variance of the noise-free loss at `steps`."""
        design = self.design(road, steps)
        each = np.einsum("aksi,aki->aks", design, self.mean)
        spread = np.einsum("aksi,akij,aksj->aks", design, self.cov, design)
        mean = np.einsum("ak,aks->s", self.weight, each)
        return mean, np.einsum("ak,aks->s", self.weight, spread + (each - mean) ** 2)


def solve(
    road: Path,
    steps: Array,
    loss: Array,
    count: Array,
    alpha: Normal,
    amplitude: Normal,
    gain: Normal,
    kernels: tuple[Kernel, ...],
) -> Posterior:
    """The posterior from binned losses.

    Args:
        road: the plan made ready.
        steps, loss, count: mean step, mean loss in nats and raw steps of each bin, shape (bins,).
        alpha, amplitude, gain: normal priors of ln α, of ln A at the last bin, of ln C.
        kernels: kernels of the grid.
    """
    places = np.linspace(-3, 3, ALPHAS)
    alphas, prior = np.exp(alpha.mean + alpha.sd * places), -0.5 * places**2
    x = road.x(steps)
    x_ref = float(x[-1])
    decay = (x[None] / x_ref) ** -alphas[:, None]  # (a, n)
    fall = falls(road, kernels, steps)  # (k, n)
    # log-normal priors by their first two moments: the curve stays linear
    height, gains = np.exp(amplitude.mean), np.exp(gain.mean + np.array([k.gain for k in kernels]))
    zero = np.zeros(len(kernels))
    m0 = np.column_stack([zero, zero + height, gains])
    p0 = np.column_stack([zero, zero + (height * amplitude.sd) ** -2, (gains * gain.sd) ** -2])
    belief = np.log([k.weight for k in kernels])
    level = float(np.mean(loss))
    # an estimate of the noise, and Huber's weights, about the best point of the grid
    relative = count / np.mean(count)
    huber = np.ones(len(steps))
    sd, memory = max(0.01 * level, 1e-9), 1.0
    design = np.ones((len(steps), 3))
    best = (ALPHAS // 2, len(kernels) // 2)
    for _ in range(4):
        floor = FLOOR * level
        w = huber / (sd**2 / relative + floor**2)
        evidence, mean, cov = _grid(decay, fall, loss - level, w, m0, p0)
        total = evidence + prior[:, None] + belief
        best = np.unravel_index(int(np.argmax(total)), total.shape)  # type: ignore[assignment]
        design[:, 1], design[:, 2] = decay[best[0]], -fall[best[1]]
        residual = loss - level - design @ mean[best]
        scaled = residual * np.sqrt(relative)
        sd = (
            max(
                1.4826 * float(np.median(np.abs(scaled))),
                float(np.sqrt(np.mean(np.minimum(scaled**2, (2.5 * sd) ** 2)))),
                1e-6 * level,
            )
            if len(residual) > 3
            else sd
        )
        z = np.abs(residual) / np.sqrt(sd**2 / relative + floor**2)
        huber = np.minimum(1, HUBER / np.maximum(z, 1e-12))
    if len(residual) > 4:
        r = residual * np.sqrt(w)
        rho = float(np.clip((r[1:] @ r[:-1]) / (r @ r), 0, 0.9))
        memory = (1 - rho) / (1 + rho)
    # a second, narrow grid where the first one found the weight
    evidence, mean, cov = _grid(decay, fall, loss - level, w * memory, m0, p0)
    total = evidence + prior[:, None] + belief
    rough = np.exp(total - total.max()).sum(1)
    centre = float(rough @ places / rough.sum())
    width = max(np.sqrt(float(rough @ (places - centre) ** 2 / rough.sum())), places[1] - places[0])
    places = centre + width * np.linspace(-3, 3, ALPHAS)
    alphas, prior = np.exp(alpha.mean + alpha.sd * places), -0.5 * places**2
    decay = (x[None] / x_ref) ** -alphas[:, None]
    evidence, mean, cov = _grid(decay, fall, loss - level, w * memory, m0, p0)
    total = evidence + prior[:, None] + belief
    weight = np.exp(total - total.max())
    weight /= weight.sum()
    mean[..., 0] += level
    return Posterior(alphas, kernels, weight, mean, cov, x_ref, sd * float(np.sqrt(np.mean(count))), memory, residual)


def _grid(decay: Array, fall: Array, y: Array, w: Array, m0: Array, p0: Array) -> tuple[Array, Array, Array]:
    """Log evidence and the Gaussian posterior of (E, A, C) at each (α, kernel)."""
    a, k = len(decay), len(fall)
    gram = np.empty((a, k, 3, 3))
    wd, wf = decay * w, fall * w
    gram[..., 0, 0] = w.sum()
    gram[..., 0, 1] = gram[..., 1, 0] = wd.sum(1)[:, None]
    gram[..., 0, 2] = gram[..., 2, 0] = -wf.sum(1)
    gram[..., 1, 1] = (wd * decay).sum(1)[:, None]
    gram[..., 1, 2] = gram[..., 2, 1] = -(wd @ fall.T)
    gram[..., 2, 2] = (wf * fall).sum(1)
    right = np.empty((a, k, 3))
    right[..., 0] = w @ y
    right[..., 1] = (wd @ y)[:, None]
    right[..., 2] = -(wf @ y)
    precision = gram + p0[:, :, None] * np.eye(3)
    right += p0 * m0
    cov = np.linalg.inv(precision)
    mean = np.einsum("akij,akj->aki", cov, right)
    evidence = 0.5 * (np.einsum("aki,aki->ak", mean, right) - np.linalg.slogdet(precision)[1])
    # the priors' own heights, which differ between kernels
    evidence += 0.5 * (np.log(p0[:, 1:]).sum(1) - (p0 * m0**2).sum(1))
    return evidence, mean, cov
