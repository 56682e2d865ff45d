"""Our own fit to the 240 runs read off Hoffmann et al.'s figure 4, with its uncertainty: the default law of the shell.

Published constants come without a covariance, and B and β are known along a line only (their draws correlate by
.9997), so nothing about an allocation could be said with an interval. This is `fit_law("hoffmann", …)`, δ = 1e-3, with
20,000 draws.
"""

from __future__ import annotations

import numpy as np

from isoflop.fit.law import HOFFMANN, Law
from isoflop.fit.papers.publication import Published

# ln E, ln A, α, ln B, β, and the Cholesky factor of their draws' covariance
_THETA = (0.59730681, 6.1692464, 0.3473105, 7.6701567, 0.36717243)
_FACTOR = (
    (0.0137994, 0.0, 0.0, 0.0, 0.0),
    (0.147755, 0.202259, 0.0, 0.0, 0.0),
    (0.00872021, 0.0121295, 0.000535862, 0.0, 0.0),
    (0.254941, -0.314067, -0.0447523, 0.0970562, 0.0),
    (0.0124166, -0.0154717, -0.00243329, 0.00431244, 0.000146776),
)
_DRAWS = 1000
_NAMES = ("E", "A", "alpha", "B", "beta")


def _constants(theta: np.ndarray) -> dict[str, np.ndarray]:
    columns = dict(zip(_NAMES, theta.T, strict=True))
    return {name: column if name in ("alpha", "beta") else np.exp(column) for name, column in columns.items()}


_PAPER = "our fit to 240 of Hoffmann et al. 2022's runs, as Besiroglu et al. 2024 (arXiv:2404.10102) read them off"
_WHERE = "figure 4 there; Huber δ = 1e-3 on ln L, pairs bootstrap"
_normal = np.random.default_rng(0).standard_normal((_DRAWS, len(_THETA)))
REFIT = Published(
    "chinchilla-refit",
    _PAPER,
    _WHERE,
    "total",
    "SentencePiece, 32k",
    "240 runs of 70M to 16B parameters on MassiveText",
    law=Law(
        HOFFMANN,
        {name: float(value) for name, value in _constants(np.array(_THETA)).items()},
        "total",
        _constants(np.array(_THETA) + _normal @ np.array(_FACTOR).T),
        f"{_PAPER}, {_WHERE}",
    ),
    note="The one entry with draws, so that what follows from it has intervals. They know the constants alone: other "
    "data, tokenizers and recipes move the loss by more.",
)
