"""N_opt(C) before any run of one's own: a line from what published sweeps showed of D/N and of the exponent.

ln N_opt = ln N₀ + a·(ln C − ln C₀), with ln N₀ = ½·(ln(C₀/6) − ln(D/N)), Gaussian in (ln N₀, a). With own runs
`isoflop.fit.posterior` answers instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from isoflop.fit.laws import TRAINING_FLOPS
from isoflop.fit.posterior import RATIO, RATIO_SD, SPLIT, SPLIT_SD, Array

REFERENCE = 1e21
"""FLOPs at which the ratio holds. Published laws that slope differently agree best about there: Hoffmann's approaches 1
and 2, Besiroglu, DeepSeek and Llama 3 (anchored) all give 19.5–21.6 tokens per parameter."""
QUANTILES = 2001
"""Of ln N_opt: as draws of one Gaussian they need no chance."""


@dataclass(frozen=True)
class PriorLine:
    """20 tokens per parameter at `reference` FLOPs, less surely away from there; asked as a `Posterior` is."""

    reference: float = REFERENCE

    def at(self, C: float) -> tuple[float, float]:
        """Mean and standard deviation of ln N_opt at C FLOPs.

        >>> mean, sd = PriorLine().at(5.76e23)  # Chinchilla's budget
        >>> f"{np.exp(mean) / 1e9:.1f}B parameters, times or over {np.exp(sd):.2f}"
        '69.3B parameters, times or over 1.56'
        """
        far = float(np.log(C / self.reference))
        mean = 0.5 * float(np.log(self.reference / TRAINING_FLOPS / RATIO)) + SPLIT * far
        return mean, float(np.hypot(RATIO_SD / 2, SPLIT_SD * far))

    def flops(self, N: float, D: float) -> float:
        """Training FLOPs of N parameters on D tokens."""
        return TRAINING_FLOPS * N * D

    def log_sizes(self, C: float) -> Array:
        """Ln N_opt at C FLOPs, sorted [draws]."""
        mean, sd = self.at(C)
        return np.asarray(mean + sd * ndtri((np.arange(QUANTILES) + 0.5) / QUANTILES))

    def exponent(self, C: float) -> float:
        """A in N_opt ∝ C^a, everywhere the same."""
        return SPLIT

    def flops_per_param_token(self, C: float) -> float:
        """C/(N·D)."""
        return TRAINING_FLOPS
