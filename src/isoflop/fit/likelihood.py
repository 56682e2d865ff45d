"""The likelihood of runs by a drifting law and an error that all of them share, with the prior of both.

ln L of the runs is Gaussian about the law's plus b·bend·o, o ≈ ½·ln(D/(20·N)) the distance from 20 tokens per
parameter in ln N, so that b moves best sizes by as much whatever the loss's `bend`; its covariance is
s²·(noise of each run, in part shared by runs of one size) + τ²·`misfit`. s, τ and b are unknown. ln L is linear in b
and in the law's level: both are integrated out (`Likelihood.marginal`) and drawn afterwards (`Likelihood.completed`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array
from isoflop.fit.drifting_law import (
    ALPHA,
    BETA,
    CONSTANTS,
    KAPPA_A,
    KAPPA_B,
    RHO,
    E,
    Origin,
    P,
    Q,
    apart,
    bend,
    gradient,
    off_ratio,
    pulls,
    slopes,
    tilt,
    together,
)
from isoflop.fit.uncertainty import log_of_one_and

NOISE, NOISE_SD = 0.004, 0.7
"""Median noise of ln L of a finished run (seed, order, rate off its best), and standard deviation of its logarithm:
.1% to 1.6%. Seeds alone give .1–.3% (Porian et al. 2024: .005 nats below L = 3)."""
SHARED = 0.5
"""Variance that runs of one size share (a shape better or worse than its size), over a run's own."""
MISFIT, MISFIT_SD, MOST_MISFIT = 0.008, 1.0, 32.0
"""Median of τ, by which ln L is off the law's form at a factor of 2 from the size of 20 tokens per parameter, and
standard deviation of its logarithm. It grows by the third power of the distance, to the third number times as much. Of
.004, .008 and .016 the one of least waste on ten public sweeps (Porian et al. 2024; `benchmarks/sizes.py`)."""
BIAS, BIAS_DOF = 0.06, 2.0
"""Scale and degrees of freedom of b, in ln N_opt: a small scale lets clear runs of other ratios speak. One of .003 in
ln L is as much where the loss bends as in Hoffmann et al. 2022; sharp profiles of small runs were believed too much."""
BEND = 0.05
"""Usual `bend`: Hoffmann et al. 2022's law at 1e21 FLOPs."""

BIAS_AT, NOISE_AT, FORM_AT = range(CONSTANTS, CONSTANTS + 3)
"""Of b, ln s and ln τ in a row of unknowns, behind θ."""
SCALES, SCALES_SD = np.log([NOISE, MISFIT]), np.array([NOISE_SD, MISFIT_SD])
"""Prior of (ln s, ln τ)."""
ROUNDING = 1e-5
"""Least noise of ln L: losses have five digits at most, and runs that are computed from a law have no noise."""
SAME_SIZE = 1e-6
"""Of ln N, within which runs are of one size."""
MANY, CELL = 500, 0.3
"""Runs from which on those near each other are taken as one; how near, in ln N·D, ln D/N and ln of their variance."""
LEVEL_SD = 3.0
"""Of ln L at the origin about the runs' mean: no information."""
MIXTURE = np.arange(-9.0, 2.8, 0.5)
"""ln λ of the Gaussians, of variance `BIAS`²/λ, whose mixture b's prior is: λ ~ Γ(ν/2, ν/2) is Student's t."""
MASS = BIAS_DOF / 2 * (MIXTURE - np.exp(MIXTURE))
"""Ln of their weights, but for a constant."""


def variances(scales: Array) -> Array:
    """s² and τ² of (ln s, ln τ) [2] or rows of them [rows, 2]: [2] or [2, rows]."""
    return np.asarray((np.exp(2 * scales) + np.array([ROUNDING**2, 0.0])).T)


def misfit(N: Array, D: Array) -> Array:
    """Variance of ln L that the law's form is off, over that at a factor of 2 from 20 tokens per parameter [n]."""
    far = (off_ratio(N, D) / math.log(2)) ** 6
    return np.asarray(far / (1 + far / MOST_MISFIT**2))


def run_covariance(N: Array, D: Array, noise: float) -> Array:
    """Covariance of runs' ln L about a law, with b's at a usual `bend` in it [n, n]."""
    same, off = np.abs(np.log(N)[:, None] - np.log(N)[None]) < SAME_SIZE, tilt(N, D)
    own = noise**2 * (np.eye(len(N)) + SHARED * same)
    return own + MISFIT**2 * np.diag(misfit(N, D)) + (BIAS * BEND) ** 2 * off[:, None] * off


@dataclass(frozen=True)
class Likelihood:
    """Likelihood and prior of rows (θ, b, ln s, ln τ) [rows, 11] over runs, those that share a size last [n].

    Runs of one size share noise, so a size's covariance is diag(d) + `SHARED`·s²·11ᵀ with d = s² + τ²·`misfit`: its
    inverse and determinant have closed forms (Sherman and Morrison 1950); of a single run it is one variance. Draws
    spend their time here: what is linear in constants is a product of matrices, logarithms and exponentials are
    NumPy's own, sums run along the first axis, and of `MANY` runs those near each other are one (`merged`).

    Attributes:
        known: y, y²/2, x, x²/2, 1, `tilt` and ln L, which constants are multiplied with [n, 7].
        spread: what s² and τ² are multiplied with in a run's variance [n, 2].
        alike: the first of the runs that share a size, and where among these each size begins.
        level: mean ln L.
        number, within: how many runs each row is the mean of, and their variance of ln L about it [n].
        floor: whether the law has an irreducible loss.
    """

    known: Array
    spread: Array
    alike: tuple[int, NDArray[np.intp]]
    level: float
    number: Array
    within: Array
    floor: bool = True

    @classmethod
    def of(cls, N: Array, D: Array, loss: Array, origin: Origin, apart: bool = False) -> Likelihood:
        """`apart`: runs of one size share no noise, and keep their order."""
        order, number = np.arange(len(N)), np.ones(len(N), dtype=int)
        if not apart:
            order = np.argsort(N, kind="stable")
            size = np.cumsum(np.diff(np.log(N[order]), prepend=-np.inf) >= SAME_SIZE) - 1
            number = np.bincount(size)[size]
            last = np.argsort(number > 1, kind="stable")
            order, number = order[last], number[last]
        first = int((number == 1).sum())
        begins = np.flatnonzero(np.diff(np.log(N[order[first:]]), prepend=-np.inf) >= SAME_SIZE)
        N, D, seen = N[order], D[order], np.log(loss[order])
        x, y = origin.x(N), origin.y(D)
        known = np.stack([y, y * y / 2, x, x * x / 2, np.ones(len(N)), tilt(N, D), seen], axis=1)
        spread = np.stack([1 + SHARED * (number == 1), misfit(N, D)], axis=1)
        level = float(np.median(seen) if apart else seen.mean())
        return cls(known, spread, (first, begins), level, np.ones(len(N)), np.zeros(len(N)))

    def merged(self, mode: Array) -> Likelihood:
        """Runs within a `CELL`, of one size where they share it, as their mean: losses move there by the mode's law."""
        first, begins = self.alike
        y, x = self.known[:, [0, 2]].T
        doubt = np.log(self.spread @ variances(mode[NOISE_AT:]))
        cells = np.floor(np.stack([np.zeros(len(x)), x + y, y - x, doubt], axis=1) / CELL)
        cells[first:, 0] = 1 + np.repeat(np.arange(len(begins)), np.diff(begins, append=len(x) - first))
        cells[first:, 1] = 0.0  # runs of one size differ in D alone
        cells, rank, number = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
        rank = rank.reshape(-1)  # NumPy 2.0 gave it another shape

        def mean(table: Array) -> Array:
            return np.stack([np.bincount(rank, column) / number for column in table.T], axis=1)

        off = self.residuals(mode[None])
        middle, known = mean(off), mean(self.known)
        known[:, [1, 3]] = known[:, [0, 2]] ** 2 / 2
        single = int((cells[:, 0] == 0).sum())
        alike = single, np.flatnonzero(np.diff(cells[single:, 0], prepend=0))
        within = mean((off - middle[rank]) ** 2)[:, 0]
        few = Likelihood(known, mean(self.spread), alike, self.level, number.astype(float), within, self.floor)
        known[:, -1] += (few.residuals(mode[None]) - middle)[:, 0]
        return few

    def residuals(self, rows: Array) -> Array:
        """Ln L̂ − ln L of rows (θ, b, …) [n, rows]: `log_loss` and b's part."""
        t = rows.T
        alpha, beta, rho = np.exp(t[[ALPHA, BETA, RHO]])
        value = self.known[:, :5] @ (np.array([-beta, -t[KAPPA_B], alpha, t[KAPPA_A], t[Q] - t[P]]) / rho)
        log_of_one_and(value)
        value *= rho
        value += self.known[:, 2:5] @ np.array([-alpha, -t[KAPPA_A], t[P] - t[E]])
        log_of_one_and(value)
        value += self.known[:, 4:] @ np.array([t[E], t[BIAS_AT] * bend(rows), -np.ones(len(rows))])
        return value

    def products(self, residuals: Array, scales: Array) -> tuple[Array, ...]:
        """r·r, 1·r, t·r, 1·1, 1·t, t·t by the inverse covariance at (ln s, ln τ) [rows, 2], and ln of its determinant.

        Each [rows]; r are residuals [n, rows or 1], t is `tilt`.
        """
        squares = variances(scales)
        inverse = self.spread @ squares
        logs = self.number @ np.log(inverse)
        np.divide(self.number[:, None], inverse, out=inverse)
        weighted, one, off = residuals * inverse, self.known[:, 4], self.known[:, 5]
        square = np.einsum("nr,nr->r", weighted, np.broadcast_to(residuals, inverse.shape)) + self.within @ inverse
        of_r, of_both = self.known[:, 4:6].T @ weighted, np.stack([one, off, off * off]) @ inverse
        if len(self.alike[1]):
            common, length = SHARED * squares[0], self.sums(inverse)
            inflated = 1 + common * length
            of_size = np.stack([self.sums(weighted), length, self.sums(off[:, None] * inverse)])
            shared = common / inflated * of_size
            square -= (shared[0] * of_size[0]).sum(axis=0)
            of_r -= (shared[0] * of_size[1:]).sum(axis=1)
            of_both -= (shared[[1, 1, 2]] * of_size[[1, 2, 2]]).sum(axis=1)
            logs += np.log(inflated).sum(axis=0)
        return square, *of_r, *of_both, logs

    def unlikely(self, residuals: Array, scales: Array, share: float = 1.0) -> Array:
        """−ln likelihood but for a constant, of residuals [n, rows or 1] at (ln s, ln τ) [rows, 2]: [rows].

        `share`: weight of the determinant.
        """
        square, *_, logs = self.products(residuals, scales)
        return np.asarray(0.5 * (square + share * logs + (((scales - SCALES) / SCALES_SD) ** 2).sum(axis=1)))

    def at_best(self, mode: Array) -> float:
        """`unlikely` at a mode [11]."""
        return float(self.unlikely(self.residuals(mode[None]), mode[None, NOISE_AT:])[0])

    def whitened(self, table: Array, scales: Array) -> Array:
        """Columns [n, k] divided by a root of the covariance at (ln s, ln τ): of residuals, independent of sd 1."""
        squares = variances(scales)
        root = 1 / np.sqrt(self.spread @ squares)[:, None]
        table = root * table
        first, begins = self.alike
        length = self.sums(root**2)
        factor = (1 - (1 + SHARED * squares[0] * length) ** -0.5) / length
        of_runs = np.diff(begins, append=len(table) - first)
        table[first:] -= root[first:] * np.repeat(factor * self.sums(root * table), of_runs, axis=0)
        return np.asarray(table)

    def sums(self, table: Array) -> Array:
        """Of each size that runs share, over these runs [sizes, k]."""
        first, begins = self.alike
        return np.add.reduceat(table[first:], begins, axis=0) if len(begins) else table[:0]

    def prior(self, theta: Array) -> Array:
        """The prior of θ as residuals of standard deviation 1 [rows, 8]."""
        known = apart(theta)
        return np.concatenate([pulls(theta, self.floor, known), (known[:, :1] - self.level) / LEVEL_SD], axis=1)

    def slopes(self, mode: Array) -> Array:
        """Of the whitened residuals by θ and b, and of the prior's, at a mode [n + 8, 9]."""
        theta = mode[None, :CONSTANTS]
        y, x, off = self.known[:, [0, 2, 5]].T
        of_runs = self.whitened(np.column_stack([slopes(theta, x, y)[0], bend(theta) * off]), mode[NOISE_AT:])
        return np.concatenate([of_runs, np.pad(gradient(self.prior, theta)[0], ((0, 0), (0, 1)))])

    def marginal(self, rows: Array) -> Array:
        """Ln posterior probability of rows by `apart` [rows, 11] but for a constant, whatever their level and b."""
        with np.errstate(all="ignore"):
            levels, logs, _, _, each = self._linear(rows)
            most = each.max(axis=1)
            value = most + np.log(np.exp(each - most[:, None]).sum(axis=1)) - 0.5 * (np.log(levels) + logs)
            value -= 0.5 * (pulls(rows, self.floor, rows) ** 2).sum(axis=1)
            value -= 0.5 * (((rows[:, NOISE_AT:] - SCALES) / SCALES_SD) ** 2).sum(axis=1)
            value += np.log(np.exp(rows[:, ALPHA]) + np.exp(rows[:, BETA]))  # |∂θ/∂rows|
        return np.where(np.isfinite(value), value, -np.inf)

    def completed(self, rows: Array, rng: np.random.Generator) -> Array:
        """The same rows with levels and b drawn given all else [rows, 11]."""
        levels, _, level, bias, each = self._linear(rows)
        chance = np.cumsum(np.exp(each - each.max(axis=1, keepdims=True)), axis=1)
        part = (chance < rng.random(len(rows))[:, None] * chance[:, -1:]).sum(axis=1)
        pull, sure, (first, by_bias) = bias[0], bias[1][np.arange(len(rows)), part], level
        rows = rows.copy()
        rows[:, BIAS_AT] = b = pull / sure + rng.standard_normal(len(rows)) / np.sqrt(sure)
        rows[:, 0] = self.level - (first + b * by_bias) / levels + rng.standard_normal(len(rows)) / np.sqrt(levels)
        return rows

    def _linear(self, rows: Array) -> tuple[Array, Array, tuple[Array, Array], tuple[Array, Array], Array]:
        """What levels and b are drawn by: by the residuals at b = 0 and the runs' mean level, a quadratic form of both.

        The level's precision, −2·ln likelihood at the best level and b = 0, the level's slopes by residuals and b
        [rows], b's slope [rows] and precision [rows, parts of the mixture], and ln of what each part gives [rows,
        parts].
        """
        rows = rows.copy()
        rows[:, 0], rows[:, BIAS_AT] = self.level, 0.0
        theta = together(rows)
        bent = bend(theta)
        square, of_level, of_bias, levels, both, biases, logs = self.products(self.residuals(theta), rows[:, NOISE_AT:])
        both, levels = bent * both, levels + LEVEL_SD**-2
        pull = of_level * both / levels - bent * of_bias
        held = np.exp(MIXTURE) / BIAS**2
        sure = held + (bent**2 * biases - both**2 / levels)[:, None]
        each = MASS + 0.5 * (np.log(held / sure) + pull[:, None] ** 2 / sure)
        return levels, square - of_level**2 / levels + logs, (of_level, both), (pull, sure), each

    def scales(self, residuals: Array, at: Array) -> Array:
        """(ln s, ln τ) of greatest posterior probability given residuals [n], by Newton's method from `at`."""
        share = max(len(residuals) - 5, 1) / len(residuals)  # constants that the runs fit take a share of the squares
        stencil = 1e-3 * np.array([(i, k) for i in (-1, 0, 1) for k in (-1, 0, 1)])
        for _ in range(30):
            f = self.unlikely(residuals[:, None], at + stencil, share).reshape(3, 3)
            down = np.array([f[2, 1] - f[0, 1], f[1, 2] - f[1, 0]]) / 2e-3
            mixed = (f[2, 2] - f[2, 0] - f[0, 2] + f[0, 0]) / 4e-6
            curve = np.array([[f[2, 1] + f[0, 1] - 2 * f[1, 1], 0], [0, f[1, 2] + f[1, 0] - 2 * f[1, 1]]]) / 1e-6
            size, axes = np.linalg.eigh(curve + mixed * (1 - np.eye(2)))
            step = -axes @ ((axes.T @ down) / np.maximum(np.abs(size), 1e-3))
            at = at + step * min(1.0, 1 / max(np.abs(step).max(), 1e-9))
            if np.abs(step).max() < 1e-3:
                break
        return np.asarray(at)

    def covariance(self, mode: Array) -> Array:
        """Of the Gaussian about a mode [11, 11]."""
        rows, n, whole = self.slopes(mode), len(self.known), np.zeros((len(mode), len(mode)))
        information = rows.T @ rows
        information[BIAS_AT, BIAS_AT] += BIAS**-2
        whole[:NOISE_AT, :NOISE_AT] = np.linalg.inv(information)
        whole[NOISE_AT:, NOISE_AT:] = np.diag(1 / (np.array([2 * n, n]) + SCALES_SD**-2))
        return whole
