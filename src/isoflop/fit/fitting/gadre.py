"""Gadre et al. 2024 (arXiv:2403.08540): the loss of over-trained models from five small runs, and errors from losses.

Both laws are linear in all constants but one. For each value of that one the others follow by linear least squares, so
a scalar is minimised (variable projection: Golub & Pereyra 1973) and no start has to be guessed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar, nnls

from isoflop.fit.fitting.data import BadData, check_runs
from isoflop.fit.fitting.identified import FEW
from isoflop.fit.fitting.newton import Array
from isoflop.fit.law import GADRE, GADRE_ERROR, Convention, Form, Law

ETA = (0.01, 1.5)
"""Where η is looked for: half of α = β in `general.BOUNDS`."""
GAMMA = (0.01, 20.0)
_GRID = 80

Design = Callable[[float], Array]
"""From η or γ to the columns that the other constants multiply [n, constants]."""


def fit_gadre(
    N: ArrayLike, D: ArrayLike, loss: ArrayLike, *, draws: int = 200, seed: int = 0, convention: Convention = "total"
) -> Law:
    """Fit L = E + (a·M^η + b·M^−η)·C^−η, M = D/N, C = 6·N·D, by least squares on the loss itself.

    On log residuals their data give a third to a half more error (data/README.md: 1.05% and 1.10% for .71% and .73%).

    Args:
        N: parameters [n]; Gadre et al. count all of them.
        D: tokens [n].
        loss: nats per token [n].
        draws: of the constants, by random exponential weights (Rubin 1981); none with fewer than 7 runs.
        seed: of the draws.
        convention: which parameters N counts.

    Raises:
        ValueError: fewer than 4 runs, or all with the same tokens per parameter. `BadData` names row and column.

    >>> N, D = np.array([1e7, 8e7, 2e8, 4e8, 1e7]), np.array([2e8, 16e8, 4e9, 8e9, 32e8])
    >>> law = fit_gadre(N, D, GADRE.function(N, D, E=1.8, a=200.0, b=370.0, eta=0.135))
    >>> {name: round(value, 3) for name, value in law.constants.items()}
    {'E': 1.8, 'a': 200.0, 'b': 370.0, 'eta': 0.135}
    """
    runs = check_runs({"N": N, "D": D, "loss": loss}, ("N", "D"))
    _enough(len(runs), 4)
    tokens, parameters = runs.variables["D"], runs.variables["N"]
    log_M, log_C = np.log(tokens / parameters), np.log(6 * parameters * tokens)
    if np.ptp(log_M) < 1e-6:
        raise ValueError(
            f"expected runs of different tokens per parameter, got {np.exp(log_M[0]):.4g} in all: a and b can't "
            "be told apart; add an over-trained run (Gadre et al. 2024 take their smallest model at M = 320)"
        )

    def design(eta: float) -> Array:
        return np.column_stack([np.ones(len(runs)), np.exp(eta * (log_M - log_C)), np.exp(-eta * (log_M + log_C))])

    return _fit(GADRE, ("E", "a", "b"), "eta", design, runs.loss, ETA, draws, seed, convention)


def fit_gadre_error(loss: ArrayLike, error: ArrayLike, *, draws: int = 200, seed: int = 0) -> Law:
    """Fit Err(L) = ε − k·exp(−γ·L), the mean error of downstream tasks, by least squares.

    Args:
        loss: nats per token [n].
        error: share of wrong answers, between 0 and 1 [n].
        draws: of the constants, by random exponential weights (Rubin 1981); none with fewer than 6 models.
        seed: of the draws.

    Raises:
        ValueError: fewer than 3 models, all of one loss, or errors that are no shares. `BadData` names row and column.

    >>> L = np.array([2.5, 3.0, 3.5, 4.5])
    >>> law = fit_gadre_error(L, GADRE_ERROR.function(L, epsilon=0.85, k=2.08, gamma=0.756))
    >>> {name: round(value, 3) for name, value in law.constants.items()}
    {'epsilon': 0.85, 'k': 2.08, 'gamma': 0.756}
    """
    L = check_runs({"loss": loss}, ()).loss
    shares = np.asarray(error, dtype=np.float64)
    if shares.shape != L.shape:
        raise BadData(f"column 'error': expected one value for each of {len(L)} losses, got {shares.shape}")
    bad = np.flatnonzero(~((shares >= 0) & (shares <= 1)))
    if bad.size:
        raise BadData(
            f"row {bad[0] + 1}, column 'error': expected a share of wrong answers between 0 and 1, got "
            f"{shares[bad[0]]}; divide percentages by 100"
        )
    _enough(len(L), 3)
    if np.ptp(L) < 1e-9:
        raise ValueError(
            f"expected models of different losses, got {L[0]:.4g} for all: nothing says how the error grows"
        )

    def design(gamma: float) -> Array:
        return np.column_stack([np.ones(len(L)), -np.exp(-gamma * L)])

    return _fit(GADRE_ERROR, ("epsilon", "k"), "gamma", design, shares, GAMMA, draws, seed, "unknown")


def _enough(n: int, constants: int) -> None:
    if n < constants:
        raise ValueError(f"expected at least {constants} runs for {constants} constants, got {n}")


def _fit(
    form: Form,
    linear: tuple[str, ...],
    scalar: str,
    design: Design,
    target: Array,
    between: tuple[float, float],
    draws: int,
    seed: int,
    convention: Convention,
) -> Law:
    n = len(target)
    grid = np.geomspace(*between, _GRID)
    value, coefficients = _project(design, target, np.ones(n), grid)
    constants = dict(zip(linear, map(float, coefficients), strict=True)) | {scalar: value}
    source = f"fitted to {n} runs"
    if not between[0] * 1.01 < value < between[1] / 1.01:
        source += f"; {scalar} = {value:.3g} is at the edge of what was searched: not identified"
    zero = [name for name in linear if constants[name] == 0]
    if zero:
        source += f"; {', '.join(zero)} would be negative and is held at 0: not identified"
    drawn = None
    if n >= len(form.constants) + FEW and draws > 0:
        # weights, not resamples: of a few runs a resample holds too few different ones
        weights = np.random.default_rng(seed).exponential(size=(draws, n))
        found = [_project(design, target, w, grid) for w in weights]
        drawn = {name: np.array([c[i] for _, c in found]) for i, name in enumerate(linear)}
        drawn[scalar] = np.array([v for v, _ in found])
    return Law(form, constants, convention, drawn, source)


def _project(design: Design, target: Array, weights: Array, grid: Array) -> tuple[float, Array]:
    """The scalar of the least Σ w·(design·c − target)², and c there: the best of the grid's minima, refined."""
    root = np.sqrt(weights)

    def solve(log_scalar: float) -> tuple[float, Array]:
        X = design(float(np.exp(log_scalar))) * root[:, None]
        size = np.maximum(np.linalg.norm(X, axis=0), 1e-300)
        c = np.linalg.lstsq(X / size, target * root, rcond=None)[0]
        if (c < 0).any():  # a loss that grows with N or D is no law: the nearest that does not
            c = nnls(X / size, target * root)[0]
        return float(((X / size @ c - target * root) ** 2).sum()), c / size

    logs = np.log(grid)
    values = np.array([solve(log)[0] for log in logs])
    padded = np.concatenate([[np.inf], values, [np.inf]])
    minima = np.flatnonzero((values <= padded[:-2]) & (values <= padded[2:]))
    best = (np.inf, logs[0])
    for i in minima[np.argsort(values[minima])][:3]:
        low, high = logs[max(i - 1, 0)], logs[min(i + 1, len(logs) - 1)]
        found = minimize_scalar(lambda x: solve(x)[0], bounds=(low, high), method="bounded", options={"xatol": 1e-12})
        best = min(best, (float(found.fun), float(found.x)))
    return float(np.exp(best[1])), solve(best[1])[1]
