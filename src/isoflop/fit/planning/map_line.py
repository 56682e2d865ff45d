"""The MAP (maximum a posteriori) line: N_opt(C) from a prior on D/N and the exponent, and from isoFLOP minima if any.

ln N_opt = ln N₀ + a·(ln C − ln C₀), with ln N₀ = ½·(ln(C₀/6) − ln(D/N)). Prior and the minima's errors are Gaussian and
the line is linear in (ln N₀, a): the posterior has a closed form (Bayesian linear regression). In a backtest on 15
isoFLOP sets it lost .07% of the loss (median), raw fits to two small budgets .45% (approach 2) and 1.3% (approach 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isoflop.fit.laws import TRAINING_FLOPS

Array = NDArray[np.float64]

RATIO, RATIO_SD = 20.0, 0.45
"""ln(D/N) ~ N(ln 20, .45), N with the head. Measured: 12–20 (Llama 3, Chinchilla, tuned Porian), 7–54 over all sets."""
EXPONENT, EXPONENT_SD = 0.50, 0.06
"""a ~ N(.50, .06): .38–.62 are 2 sd; well-tuned sweeps lie within (Hoffmann .46–.50, DeepSeek .52, Porian .50)."""
REFERENCE = 1e21
"""FLOPs at which the ratio holds where no run is given. Published laws that slope differently agree best about there:
Hoffmann's approaches 1 and 2, Besiroglu, DeepSeek and Llama 3 (anchored) all give 19.5–21.6 tokens per parameter."""
SCATTER = 0.10
"""Standard deviation of a measured ln N_opt about the line beyond what its fit says: rates and shapes differ.
Doubt: a cautious choice. Our minima scatter about lines by .035–.12 in ten sweeps of Porian et al. 2024 in all."""


@dataclass(frozen=True)
class MapLine:
    """ln N_opt = log_N + exponent·ln(C/reference), Gaussian.

    Attributes:
        log_N: ln N_opt at `reference`.
        exponent: a in N_opt ∝ C^a.
        covariance: of (log_N, exponent) [2, 2].
        reference: FLOPs at which the prior on D/N holds: where own budgets are given, their geometric mean.
        flops_per_param_token: C/(N·D), 6 where own runs do not say otherwise.
        budgets: isoFLOP minima behind it; 0: the prior alone.
    """

    log_N: float
    exponent: float
    covariance: Array = field(repr=False, compare=False)
    reference: float = REFERENCE
    flops_per_param_token: float = TRAINING_FLOPS
    budgets: int = 0

    def at(self, C: float) -> tuple[float, float]:
        """Mean and standard deviation of ln N_opt at C FLOPs."""
        x = np.array([1.0, np.log(C / self.reference)])
        return self.log_N + self.exponent * float(x[1]), float(np.sqrt(x @ self.covariance @ x))

    @property
    def exponent_sd(self) -> float:
        """Standard deviation of the exponent."""
        return float(np.sqrt(self.covariance[1, 1]))

    @property
    def ratio(self) -> float:
        """D/N at the reference."""
        return self.reference / self.flops_per_param_token * float(np.exp(-2 * self.log_N))

    @property
    def ratio_sd(self) -> float:
        """Standard deviation of ln(D/N) at the reference."""
        return 2 * float(np.sqrt(self.covariance[0, 0]))


def prior_line(reference: float = REFERENCE, flops_per_param_token: float = TRAINING_FLOPS) -> MapLine:
    """The prior by itself, its ratio at `reference` FLOPs.

    >>> mean, sd = prior_line().at(5.76e23)  # Chinchilla's budget
    >>> f"{np.exp(mean) / 1e9:.1f}B parameters, times or over {np.exp(sd):.2f}"
    '69.3B parameters, times or over 1.56'
    """
    log_N = 0.5 * float(np.log(reference / flops_per_param_token / RATIO))
    covariance = np.diag([(RATIO_SD / 2) ** 2, EXPONENT_SD**2])
    return MapLine(log_N, EXPONENT, covariance, reference, flops_per_param_token)


def map_line(C: Array, N: Array, sd: Array, flops_per_param_token: float = TRAINING_FLOPS) -> MapLine:
    """Prior and measured minima together.

    The prior's ratio holds at the geometric mean of the budgets, so that its exponent pivots there: one budget moves
    D/N and leaves a to the prior. From about four budgets over a factor of 30 the data outweigh it.

    Args:
        C: budgets, FLOPs [n ≥ 1].
        N: size of least loss at each [n].
        sd: standard error of ln N at each [n]; `SCATTER` is added in square.
        flops_per_param_token: C/(N·D) of the runs.

    >>> C = np.array([1e17, 4e17])
    >>> line = map_line(C, np.sqrt(C / 6 / 12), np.full(2, 0.1))  # 12 tokens per parameter measured twice
    >>> f"D/N {line.ratio:.1f}, a = {line.exponent:.2f} ± {line.exponent_sd:.2f}"
    'D/N 13.1, a = 0.50 ± 0.06'
    """
    log_C = np.log(C)
    reference = float(np.exp(log_C.mean()))
    prior = prior_line(reference, flops_per_param_token)
    X = np.stack([np.ones_like(log_C), log_C - np.log(reference)], axis=1)
    weights = 1 / (np.asarray(sd) ** 2 + SCATTER**2)
    precision = np.linalg.inv(prior.covariance)
    covariance = np.linalg.inv(precision + (X.T * weights) @ X)
    mean = covariance @ (precision @ [prior.log_N, prior.exponent] + (X.T * weights) @ np.log(N))
    return MapLine(float(mean[0]), float(mean[1]), covariance, reference, flops_per_param_token, len(log_C))
